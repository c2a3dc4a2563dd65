"""The last step of `fuse`: the graph in which each group is one node with a closed body."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from staticgrad.ir.dim import product
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import Locs, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction, View

from .groups import Group, Grouping, form_shape


def regrouped(grouping: Grouping, held: dict[Node, Any]) -> Graph:
    """The graph with each group of several nodes as one `fused` node; `held` are the attributes of
    nodes whose sub-graphs are fused."""
    graph = grouping.graph
    order = _topological(grouping)
    leaves = _leaving(grouping)
    new: dict[Value, Value] = {}
    locs: dict[Node, Locs] = {}
    nodes: list[Node] = []

    def keep(node: Node) -> None:
        operands = [new[v] for v in node.operands]
        if node in held:
            copy = registry.make(node.op, operands, held[node], locs=node.locs)
        elif all(a is b for a, b in zip(operands, node.operands)):
            copy = node
        else:
            copy = registry.clone(node, operands, node.locs)
        locs[copy] = graph.locs[node]
        nodes.append(copy)
        new.update(zip(node.results, copy.results))

    for item in order:
        if isinstance(item, Node):
            keep(item)
        elif len(item.nodes) == 1 and not item.copies:
            keep(item.nodes[0])
        else:
            made, results = _fused_node(graph, item, new, leaves)
            inside = (*item.nodes, *item.copies)
            locs[made[0]] = frozenset().union(*(graph.locs[n] for n in inside))
            nodes += made
            new.update(results)
    return Graph(
        [new[v] for v in graph.inputs], [new[v] for v in graph.outputs],
        [(new[s], new[v]) for s, v in graph.updates], order=nodes, locs=locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip


def _leaving(grouping: Grouping) -> Callable[[Value, Group], bool]:
    """Whether a value of a group is needed outside of it: by something that does not compute it
    again."""
    holders: dict[Node, list[Group]] = {}
    for g in grouping.groups:
        for n in g.copies:
            holders.setdefault(n, []).append(g)

    def leaves(v: Value, g: Group) -> bool:
        return v in grouping.roots or any(
            h is not g and (h is None or v.node not in h.copies)
            for u in grouping.uses.get(v, ())
            for h in (grouping.group(u), *holders.get(u, ()))
        )

    return leaves


def _fused_node(
    graph: Graph, g: Group, new: dict[Value, Value], leaves: Callable[[Value, Group], bool]
) -> tuple[list[Node], dict[Value, Value]]:
    members = sorted([*g.nodes, *g.copies], key=lambda n: n.id)
    inside = set(members)
    external: dict[Value, Value] = {}
    for n in members:
        for v in n.operands:
            if v.node not in inside and v not in external:
                attrs = {"name": f"p{len(external)}", "id": len(external), "dtype": v.dtype,
                         "shape": v.shape}  # fmt: skip
                external[v] = registry.make("input", (), attrs, locs=frozenset()).results[0]
    body_of: dict[Value, Value] = dict(external)
    order = [v.node for v in external.values()]
    for n in members:
        copy = registry.clone(n, [body_of[v] for v in n.operands], graph.locs[n])
        order.append(copy)
        body_of.update(zip(n.results, copy.results))
    escaping: dict[Value, None] = {}
    views: list[Node] = []
    for n in sorted(g.nodes, key=lambda n: n.id):
        for v in n.results:
            if leaves(v, g):
                if isinstance(registry.get(n.op).lower, View):
                    views += [m for m in _view_chain(n, inside) if m not in views]
                    v = _view_chain(n, inside)[0].operands[0]
                if not _has_place(g, v):
                    raise AssertionError(f"fuse: no place for {v.type} in a group over {g.shape}")
                escaping.setdefault(v)
    body = Graph(list(external.values()), [body_of[v] for v in escaping], order=order)
    with use_locs(frozenset()):
        node = registry.make("fused", [new[v] for v in external], {"kind": g.kind, "body": body})
    results = dict(zip(escaping, node.results))
    nodes = [node]
    for n in views:
        operands = [results[v] for v in n.operands]
        copy = registry.clone(n, operands, graph.locs[n])
        nodes.append(copy)
        results.update(zip(n.results, copy.results))
    return nodes, results


def _has_place(g: Group, v: Value) -> bool:
    """Whether a kernel over the group's elements computes all of a value."""
    if v.shape == g.shape or g.kind != "reduce":
        return v.shape == g.shape
    kept = product(form_shape("kept", g.shape, g.axes))
    is_sum = isinstance(registry.get(v.node.op).lower, Reduction)  # maybe over the other axes
    return is_sum or v.node in g.forms or v.type.size == kept


def _view_chain(node: Node, inside: set[Node]) -> list[Node]:
    """The views that lead to `node` inside a group, first to last: they are repeated outside of it,
    and what they look at is what the kernel stores."""
    chain = [node]
    while True:
        source = chain[0].operands[0].node
        if source not in inside or not isinstance(registry.get(source.op).lower, View):
            return chain
        chain.insert(0, source)


def _topological(grouping: Grouping) -> list[Node | Group]:
    """Groups and single nodes in an order that respects what they read: by level, views after
    what they view, then by the age of their first node."""

    def final(n: Node) -> Node | Group:
        return grouping.group(n) or n

    position = {n: i for i, n in enumerate(grouping.graph.nodes)}
    items: dict[Node | Group, int] = {}
    for n in grouping.graph.nodes:
        items.setdefault(final(n), position[n])
    waiting: dict[Node | Group, int] = {}
    followers: dict[Node | Group, list[Node | Group]] = {}
    for item in items:
        members = [item] if isinstance(item, Node) else [*item.nodes, *item.copies]
        before = {final(v.node) for n in members for v in n.operands} - {item}
        waiting[item] = len(before)
        for b in before:
            followers.setdefault(b, []).append(item)
    ready = [(p, id(i), i) for i, p in items.items() if not waiting[i]]
    heapq.heapify(ready)
    order: list[Node | Group] = []
    while ready:
        _, _, item = heapq.heappop(ready)
        order.append(item)
        for f in followers.get(item, ()):
            waiting[f] -= 1
            if not waiting[f]:
                heapq.heappush(ready, (items[f], id(f), f))
    if len(order) != len(items):
        raise AssertionError("fuse: groups form a cycle")
    return order
