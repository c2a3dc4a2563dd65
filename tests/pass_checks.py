"""What the tests of passes share: graphs as formulas and structures, values before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.ir.verify import infer_by, verify_graph
from staticgrad.ops import registry
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.samples import special_values

Array = np.ndarray[Any, Any]

_SHOWN = ("axes", "shape", "dtype", "axis", "start", "step", "keepdims")


def formula(v: Value) -> str:
    """A value as a nested formula: `add(x, multiply(y, 2.0))`. For small graphs."""
    node = v.node
    if node.op in ("input", "state"):
        return str(node.attrs["name"])
    if node.op == "constant":
        return str(node.payload.tolist())
    attrs = {k: a for k, a in node.attrs.items() if k in _SHOWN and a is not False}
    shown = [f"{k}={_text(attrs[k])}" for k in _SHOWN if k in attrs]
    return f"{node.op}({', '.join([*map(formula, node.operands), *shown])})"


def _text(a: Any) -> str:
    return "(" + ", ".join(map(str, a)) + ")" if isinstance(a, tuple) else str(a)


def structure(graph: Graph) -> list[Any]:
    """The graph up to the identity of its nodes: equal for equal graphs, in whatever order their
    nodes were made."""
    number: dict[Node, int] = {v.node: i for i, v in enumerate(graph.inputs)}
    lines: list[Any] = []
    for root in graph.roots:
        stack = [root.node]
        while stack:
            node = stack[-1]
            waiting = [v.node for v in node.operands if v.node not in number]
            if waiting:
                stack += reversed(waiting)
                continue
            stack.pop()
            if node in number:
                continue
            number[node] = len(graph.inputs) + len(lines)
            operands = [(number[v.node], v.index) for v in node.operands]
            held = None if node.payload is None else bytes(memoryview(node.payload).tobytes())
            lines.append((node.op, operands, sorted(node.attrs.items(), key=lambda a: a[0]), held))
    return [*lines, [(number[v.node], v.index) for v in graph.roots]]


def ops_of(graph: Graph) -> list[str]:
    """The names of the ops that compute something, sorted."""
    return sorted(n.op for n in graph.nodes if n.op not in ("input", "state", "constant"))


def verified(graph: Graph) -> Graph:
    verify_graph(graph, infer_by(registry))
    return graph


def run(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    return run_graph(graph, arrays)[0]


def assert_same_bits(got: Sequence[Array], expected: Sequence[Array], what: str = "") -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what}: output {i}"
        if a.dtype.kind == "f":
            # The sign of a NaN is the hardware's choice.
            a, b = np.where(np.isnan(a), np.nan, a), np.where(np.isnan(b), np.nan, b)
            a, b = a.view(f"i{a.itemsize}"), b.view(f"i{b.itemsize}")
        np.testing.assert_array_equal(a, b, err_msg=f"{what}: output {i}")


def assert_close(
    got: Sequence[Array], expected: Sequence[Array], what: str = "", ulps: float = 8.0
) -> None:
    """Within some ULP; NaN and infinities exactly, zeros of either sign are equal."""
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what}: output {i}"
        if a.dtype.kind != "f":
            np.testing.assert_array_equal(a, b, err_msg=f"{what}: output {i}")
            continue
        info = np.finfo(a.dtype)
        np.testing.assert_allclose(
            a, b, rtol=ulps * float(info.eps), atol=128 * float(info.smallest_subnormal),
            err_msg=f"{what}: output {i}",
        )  # fmt: skip


def special_arrays(dtype: str, count: int, columns: int = 3) -> list[Array]:
    """`count` arrays [N, columns] in which special values meet each other."""
    values = special_values(dtype)
    rng = np.random.default_rng(0)
    if dtype in ("float32", "float64"):
        values = np.concatenate([values, rng.standard_normal(40).astype(dtype)])
    size = -(-len(values) * 4 // columns) * columns
    return [rng.permutation(np.resize(values, size)).reshape(-1, columns) for _ in range(count)]
