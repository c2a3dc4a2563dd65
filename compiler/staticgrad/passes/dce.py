"""dce: what nobody needs -> nothing.

before -> after

    %4, %5 = fused(%0, %1) { ... }          %4 = fused(%0) { ... }
    updates: %w <- %w, %b <- %4             updates: %b <- %4

Dropped are nodes that no output and no update needs, results of nodes with sub-graphs that nobody
reads together with what only they need (carries of a loop too, where no iteration's result depends
on them), and updates of state by its own old value.

Preserving: what is left is computed as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.rewrite.driver import rebuilt


def dce(graph: Graph) -> Graph:
    updates = [(s, v) for s, v in graph.updates if v is not s]
    held = [n for n in graph.nodes if subgraphs(n)]
    if not held:
        if len(updates) == len(graph.updates):
            return graph  # a graph holds only what its roots need
        return Graph(graph.inputs, graph.outputs, updates, order=graph.nodes, locs=graph.locs,
                     constraints=graph.constraints, single=graph.single)  # fmt: skip
    return _without_dead_results(graph, updates)


class _Kept:
    """What stays of a node with sub-graphs: results, operands, and its attributes."""

    def __init__(self, results: list[int], operands: list[int], attrs: dict[str, Any]) -> None:
        self.results, self.operands, self.attrs = results, operands, attrs


def _without_dead_results(graph: Graph, updates: list[tuple[Value, Value]]) -> Graph:
    """Backwards, so that a node is met after everything that may read it."""
    needed: set[Value] = {*graph.inputs, *graph.outputs, *(v for _, v in updates)}
    needed.update(s for s, _ in updates)
    plan: dict[Node, _Kept] = {}
    for node in reversed(graph.nodes):
        alive = [i for i, r in enumerate(node.results) if r in needed]
        if not alive:
            continue
        trim = _TRIM.get(node.op)
        if trim is None:
            needed.update(node.operands)
            continue
        kept = trim(node, alive)
        if (
            len(kept.results) < len(node.results)
            or len(kept.operands) < len(node.operands)
            or any(kept.attrs[name] is not g for name, g in subgraphs(node))
        ):
            plan[node] = kept
        needed.update(node.operands[i] for i in kept.operands)
    if not plan and len(updates) == len(graph.updates):
        return graph
    return _rebuild(graph, updates, plan)


def _read(graph: Graph) -> list[int]:
    """The places of the inputs that a graph reads."""
    read = {v for n in graph.nodes for v in n.operands} | set(graph.outputs)
    return [i for i, v in enumerate(graph.inputs) if v in read]


def _with(graph: Graph, inputs: Sequence[int], outputs: Sequence[int]) -> Graph:
    """The graph with these inputs and outputs alone, and nothing dead in it."""
    wanted = [graph.outputs[i] for i in outputs]
    if len(inputs) == len(graph.inputs) and len(wanted) == len(graph.outputs):
        return dce(graph)
    return dce(
        Graph([graph.inputs[i] for i in inputs], wanted, order=graph.nodes, locs=graph.locs,
              single=graph.single, constraints=graph.constraints)
    )  # fmt: skip


def _trim_fused(node: Node, alive: list[int]) -> _Kept:
    body: Graph = node.attrs["body"]
    inner = _with(body, range(len(body.inputs)), alive)
    operands = _read(inner)
    return _Kept(alive, operands, {**node.attrs, "body": _with(inner, operands, range(len(alive)))})


def _trim_branches(node: Node, alive: list[int]) -> _Kept:
    held = subgraphs(node)
    inner = [_with(g, range(len(g.inputs)), alive) for _, g in held]
    inputs = sorted({i for g in inner for i in _read(g)})
    every = range(len(alive))
    attrs = {**node.attrs, **{n: _with(g, inputs, every) for (n, _), g in zip(held, inner)}}
    return _Kept(alive, [0, *(i + 1 for i in inputs)], attrs)


def _with_carries(
    body: Graph, carries: set[int], rows: list[int], count: int
) -> tuple[list[int], Graph, list[int]]:
    """The outputs of a loop's body that stay: these carries and rows, and the carries that any of
    them reads; the body with these alone, and the places of the inputs that it reads."""
    while True:
        outputs = [*sorted(carries), *rows]
        inner = _with(body, range(len(body.inputs)), outputs)
        read = _read(inner)
        more = carries | {i - 1 for i in read if 1 <= i <= count}
        if more == carries:
            return outputs, inner, read
        carries = more


def _trim_scan(node: Node, alive: list[int]) -> _Kept:
    """A carry stays if its last value is read, or if what stays in the body reads it."""
    body: Graph = node.attrs["body"]
    nc, nx = node.attrs["carries"], node.attrs["xs"]
    carries = {i for i in alive if i < nc}
    rows = [i for i in alive if i >= nc]
    outputs, inner, read = _with_carries(body, carries, rows, nc)
    kept = [i for i in outputs if i < nc]
    operands = sorted({*kept, *(i - 1 for i in read if i > nc)})
    inputs = [0, *(i + 1 for i in operands)]
    attrs = {
        **node.attrs, "body": _with(inner, inputs, range(len(outputs))), "carries": len(kept),
        "xs": sum(nc <= i < nc + nx for i in operands),
    }  # fmt: skip
    return _Kept(outputs, operands, attrs)


def _trim_while(node: Node, alive: list[int]) -> _Kept:
    """A carry stays if its last value is read, or if the condition or what stays reads it."""
    body, condition = node.attrs["body"], node.attrs["condition"]
    nc, tested = node.attrs["carries"], node.attrs["condition_captures"]
    asking = dce(condition)
    asked = _read(asking)
    carries = set(alive) | {i - 1 for i in asked if 1 <= i <= nc}
    outputs, inner, read = _with_carries(body, carries, [], nc)
    asked_of = [i for i in asked if i > nc]
    captured = [i for i in read if i > nc]
    first = [0, *(i + 1 for i in outputs)]
    attrs = {
        **node.attrs, "carries": len(outputs), "condition_captures": len(asked_of),
        "condition": _with(asking, [*first, *asked_of], [0]),
        "body": _with(inner, [*first, *captured], range(len(outputs))),
    }  # fmt: skip
    operands = [*outputs, *(i - 1 for i in asked_of), *(i - 1 + tested for i in captured)]
    return _Kept(outputs, operands, attrs)


_TRIM: dict[str, Callable[[Node, list[int]], _Kept]] = {
    "fused": _trim_fused,
    "scan": _trim_scan,
    "while_loop": _trim_while,
    "cond": _trim_branches,
    "switch": _trim_branches,
}


def _rebuild(graph: Graph, updates: list[tuple[Value, Value]], plan: dict[Node, _Kept]) -> Graph:
    values: dict[Value, Value] = {}
    order: list[Node] = []
    locs: dict[Node, Locs] = {}
    for node in graph.nodes:
        operands = [values.get(v, v) for v in node.operands]
        kept = plan.get(node)
        if kept is not None:
            read = [operands[i] for i in kept.operands]
            made = registry.make(node.op, read, kept.attrs, locs=node.locs)
            values.update((node.results[i], r) for i, r in zip(kept.results, made.results))
        else:
            made = rebuilt(node, operands)
            if made is not node:
                values.update(zip(node.results, made.results))
        order.append(made)
        locs[made] = graph.locs[node]
    return Graph(
        graph.inputs, [values.get(v, v) for v in graph.outputs],
        [(s, values.get(v, v)) for s, v in updates], order=order, locs=locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip
