"""`compile(check="nan")`: a step that computes a NaN stops, changes nothing, and says where.

The compiled program tests its outputs and the new values of its state before anything is written.
On a hit the step is run again, op by op and from unmodified state, to find the first node whose
result has a NaN that none of its operands has; the backward pass is part of what is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.errors import ExecutionError
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import locs_text, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops.checking import check_nan
from staticgrad.ops.interpret import run_graph

Array = np.ndarray[Any, Any]


def watched(graph: Graph, count: int) -> Graph:
    """The graph with its floating outputs (the first `count`) and new values tested for NaN."""
    seen: dict[Value, Any] = {}

    def test(v: Any) -> Any:
        if not v.dtype.is_float:
            return v
        if v not in seen:
            with use_locs(graph.locs[v.node]):
                seen[v] = check_nan(v)
        return seen[v]

    outputs = [test(v) if i < count else v for i, v in enumerate(graph.outputs)]
    return Graph(
        graph.inputs, outputs,
        [(s, test(v)) for s, v in graph.updates], locs=graph.locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip


class _FoundError(Exception):
    def __init__(self, node: Node, results: Sequence[Array]) -> None:
        self.node, self.results = node, results


def explain_nan(graph: Graph, arrays: Sequence[Array]) -> None:
    """Raises an `ExecutionError` that names where the first NaN came from."""
    names = [v.node.attrs["name"] for v in graph.inputs]
    given = [n for n, a in zip(names, arrays) if _has_nan(a)]
    if given:
        raise ExecutionError(f"NaN in the input {', '.join(map(repr, given))}; state is unchanged")
    for v in graph.state:
        if _has_nan(v.node.payload.numpy()):
            raise ExecutionError(f"NaN in the state {v.node.attrs['name']!r}; nothing was changed")

    def watch(node: Node, operands: Sequence[Array], results: Sequence[Array]) -> None:
        if any(map(_has_nan, results)) and not any(map(_has_nan, operands)):
            raise _FoundError(node, results)

    try:
        run_graph(graph, arrays, watch=watch)
    except _FoundError as found:
        node = found.node
        at = next(int(np.flatnonzero(np.isnan(r))[0]) for r in found.results if _has_nan(r))
        operands = ", ".join(str(v.type) for v in node.operands)
        line = locs_text(graph.locs.get(node, node.locs))
        where = f"\n  at {line}" if line else ""
        raise ExecutionError(
            f"NaN computed by {node.op}({operands}) in element {at} of {node.types[0]}; state is "
            f"unchanged{where}"
        ) from None


def _has_nan(a: Array) -> bool:
    return a.dtype.kind == "f" and bool(np.isnan(a).any())
