"""The declared graph in the forms that a comparison needs: new graphs, the declared one stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike, substitute
from staticgrad.ir.dtype import DType, float32, float64
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.loc import use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ir.types import TensorType
from staticgrad.ops import registry
from staticgrad.ops.arithmetic import add
from staticgrad.ops.closing import has_trait
from staticgrad.ops.convert import constant_array
from staticgrad.ops.leaves import input as declare
from staticgrad.passes.mode import bind_mode


def training_form(graph: Graph) -> Graph:
    """The graph of `graph`'s outputs as training computes them: layers' modes are bound. Its
    updates are those of the layers and of the random generator alone."""
    return bind_mode(Graph(graph.inputs, graph.outputs, single=graph.single), True)


def draws(graph: Graph, outputs: Sequence[Value]) -> list[Node] | None:
    """The nodes that draw random numbers for `outputs`, in the order of their declaration; None
    where one of them is inside a loop or a branch, which draws as often as it runs."""
    found = []
    for node in reachable(outputs):
        if "random" in registry.get(node.op).traits:
            found.append(node)
        elif has_trait(node, "random"):
            return None
    return found


def with_draws_in_turn(graph: Graph, outputs: Sequence[Value]) -> Graph:
    """The graph with its random numbers drawn as the dynamic mode draws them.

    A compiled step draws all of its numbers at one step of the generator, each node at a site of
    its own; the dynamic mode moves the generator one step on with each operation. Here the k-th
    node draws at step + k, so that both see the same numbers.
    """
    numbers = {node: k for k, node in enumerate(draws(graph, outputs) or ())}

    def form(node: Node, operands: Sequence[Value]) -> tuple[Sequence[Value], Mapping[str, Any]]:
        k = numbers.get(node)
        if k is None:
            return operands, node.attrs
        key = add(operands[0], constant_array(np.array([0, k], "uint64"))) if k else operands[0]
        return (key, *operands[1:]), {**node.attrs, "site": 0}

    return _rebuilt(graph, {}, form)


def at_sizes(graph: Graph, dims: Mapping[str, DimLike]) -> Graph:
    """The graph with its symbolic dims replaced, as if it had been declared with those sizes."""

    def form(node: Node, operands: Sequence[Value]) -> tuple[Sequence[Value], Mapping[str, Any]]:
        return operands, {name: _sized(a, dims) for name, a in node.attrs.items()}

    new: dict[Value, Value] = {
        v: declare(v.node.attrs["name"], tuple(substitute(d, dims) for d in v.shape), v.dtype)
        for v in graph.inputs
    }
    return _rebuilt(graph, new, form)


def _sized(a: Any, dims: Mapping[str, DimLike]) -> Any:
    if isinstance(a, Dim):
        return substitute(a, dims)
    if isinstance(a, tuple):
        return tuple(_sized(x, dims) for x in a)
    if isinstance(a, TensorType):
        return TensorType(a.dtype, _sized(a.shape, dims))
    return at_sizes(a, dims) if isinstance(a, Graph) else a


def with_state_as_inputs(graph: Graph, *, wide: bool) -> tuple[Graph, list[Value]]:
    """The graph with its state as further inputs, and the states in the order of those; if `wide`,
    with every float32 value a float64 one."""
    change = _wide if wide else lambda a: a

    def form(node: Node, operands: Sequence[Value]) -> tuple[Sequence[Value], Mapping[str, Any]]:
        return operands, {name: change(a) for name, a in node.attrs.items()}

    states = list(graph.state)
    new: dict[Value, Value] = {
        v: declare(v.node.attrs["name"], v.shape, change(v.dtype)) for v in graph.inputs
    }
    extra = [declare(f"state{i}", s.shape, change(s.dtype)) for i, s in enumerate(states)]
    new.update(zip(states, extra))
    return _rebuilt(graph, new, form, extra), states


def _wide(a: Any) -> Any:
    if isinstance(a, DType):
        return float64 if a == float32 else a
    if isinstance(a, TensorType):
        return TensorType(_wide(a.dtype), a.shape)
    if isinstance(a, tuple):
        return tuple(_wide(x) for x in a)
    if isinstance(a, Graph):
        inner = [declare(v.node.attrs["name"], v.shape, _wide(v.dtype)) for v in a.inputs]
        return _rebuilt(
            a, dict(zip(a.inputs, inner)),
            lambda n, operands: (operands, {name: _wide(x) for name, x in n.attrs.items()}),
        )  # fmt: skip
    return a


Form = Callable[[Node, Sequence[Value]], tuple[Sequence[Value], Mapping[str, Any]]]


def _rebuilt(
    graph: Graph, new: dict[Value, Value], form: Form, extra: Sequence[Value] = ()
) -> Graph:
    """`graph` on `new` leaves, of which `extra` are further inputs; each node with the operands and
    attributes that `form` gives it."""
    made = dict(new)
    locs = {}
    for node in graph.nodes:
        if node.results[0] in made or node.op in ("input", "state"):
            continue
        where = graph.locs.get(node, node.locs)
        with use_locs(where):
            operands, attrs = form(node, [made.get(v, v) for v in node.operands])
            payload = node.payload
            if node.op == "constant" and attrs.get("dtype") != node.attrs.get("dtype"):
                payload = payload.astype(attrs["dtype"].numpy)
            rebuilt = registry.make(node.op, operands, attrs, payload=payload, locs=where)
        locs[rebuilt] = where
        made.update(zip(node.results, rebuilt.results))
    return Graph(
        [*(made.get(v, v) for v in graph.inputs), *extra], [made.get(v, v) for v in graph.outputs],
        [(made.get(s, s), made.get(v, v)) for s, v in graph.updates], locs=locs,
        single=graph.single,
    )  # fmt: skip


__all__ = ["at_sizes", "draws", "training_form", "with_draws_in_turn", "with_state_as_inputs"]
