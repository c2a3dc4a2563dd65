"""dce: what nobody needs -> nothing.

before -> after

    %4, %5 = fused(%0, %1) { ... }          %4 = fused(%0) { ... }
    updates: %w <- %w, %b <- %4             updates: %b <- %4

Dropped are nodes that no output and no update needs, results of `fused` nodes that nobody reads
together with what only they need, and updates of state by its own old value.

Preserving: what is left is computed as before.
"""

from __future__ import annotations

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


def _without_dead_results(graph: Graph, updates: list[tuple[Value, Value]]) -> Graph:
    """Backwards, so that a node is met after everything that may read it."""
    needed: set[Value] = {*graph.inputs, *graph.outputs, *(v for _, v in updates)}
    needed.update(s for s, _ in updates)
    plan: dict[Node, list[int]] = {}  # the results that stay, of fused nodes that lose some
    bodies: dict[Node, Graph] = {}
    for node in reversed(graph.nodes):
        if not any(r in needed for r in node.results):
            continue
        if node.op != "fused":
            needed.update(node.operands)
            continue
        alive = [i for i, r in enumerate(node.results) if r in needed]
        body = node.attrs["body"]
        if len(alive) < len(node.results):
            body = _trimmed(body, alive)
            plan[node], bodies[node] = alive, body
        kept = set(body.inputs)
        operands = zip(node.attrs["body"].inputs, node.operands)
        needed.update(v for i, v in operands if i in kept)
    if not plan and len(updates) == len(graph.updates):
        return graph
    return _rebuild(graph, updates, plan, bodies)


def _trimmed(body: Graph, alive: list[int]) -> Graph:
    """The body without the outputs that nobody reads, and without the inputs only they need."""
    outputs = [body.outputs[i] for i in alive]
    inner = Graph(body.inputs, outputs, order=body.nodes, locs=body.locs)
    read = {v for n in inner.nodes for v in n.operands} | set(outputs)
    inputs = [v for v in body.inputs if v in read]
    return Graph(inputs, outputs, order=body.nodes, locs=body.locs, single=body.single,
                 constraints=body.constraints)  # fmt: skip


def _rebuild(
    graph: Graph, updates: list[tuple[Value, Value]], plan: dict[Node, list[int]],
    bodies: dict[Node, Graph],
) -> Graph:  # fmt: skip
    values: dict[Value, Value] = {}
    order: list[Node] = []
    locs: dict[Node, Locs] = {}
    for node in graph.nodes:
        operands = [values.get(v, v) for v in node.operands]
        if node in plan:
            body = bodies[node]
            kept = set(body.inputs)
            read = [v for i, v in zip(node.attrs["body"].inputs, operands) if i in kept]
            made = registry.make("fused", read, {**node.attrs, "body": body}, locs=node.locs)
            values.update((node.results[i], r) for i, r in zip(plan[node], made.results))
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
