"""cse: equal pure nodes -> one node.

before -> after

    %2 = exp(%0)                    %2 = exp(%0)
    %3 = exp(%0)                    %4 = add(%2, %2)
    %4 = add(%2, %3)

Two nodes are equal if they apply one op to the same values with the same attributes; constants if
dtype, shape and every byte agree. Never merged: inputs, state, random draws (two dropouts are two
draws) and nodes that hold sub-graphs. What is merged has the locations of both.

Preserving: the node that stays computes what the other one did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.rewrite.driver import rebuilt

_SHORT = 256  # bytes of a constant that are kept as the key itself; of longer ones a digest


def cse(graph: Graph) -> Graph:
    values: dict[Value, Value] = {}
    known: dict[Hashable, Node] = {}
    order: list[Node] = []
    locs: dict[Node, Locs] = {}
    changed = False
    for node in graph.nodes:
        kept = node
        if any(v in values for v in node.operands):
            kept = rebuilt(node, [values.get(v, v) for v in node.operands])
        kept = _inside(kept)
        key = node_key(kept)
        first = known.setdefault(key, kept) if key is not None else kept
        if first is not node:
            changed = True
            values.update(zip(node.results, first.results))
        if first is kept:
            order.append(kept)
            locs[kept] = graph.locs[node]
        else:
            locs[first] |= graph.locs[node]
    if not changed:
        return graph
    return Graph(
        graph.inputs, [values.get(v, v) for v in graph.outputs],
        [(s, values.get(v, v)) for s, v in graph.updates], order=order, locs=locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip


def _inside(node: Node) -> Node:
    """`node` with its sub-graphs merged inside."""
    held = subgraphs(node)
    if not held:
        return node
    inner = {name: cse(g) for name, g in held}
    if all(inner[name] is g for name, g in held):
        return node
    return rebuilt(node, node.operands, {**node.attrs, **inner})


_BY_IDENTITY = frozenset(("input", "state"))


def node_key(node: Node) -> Hashable | None:
    """What equal nodes share; None for a node that is equal to itself only."""
    if node.op == "constant":
        return constant_key(node)
    if node.op in _BY_IDENTITY or node.payload is not None:
        return None
    if "random" in registry.get(node.op).traits:
        return None
    attrs = attrs_key(node.attrs) if node.attrs else ()
    return None if attrs is None else (node.op, node.operands, attrs)


def constant_key(node: Node) -> Hashable:
    data: bytes = node.payload.tobytes()
    if len(data) > _SHORT:
        data = hashlib.blake2b(data).digest()
    return (node.op, node.types[0], data)


def attrs_key(attrs: Mapping[str, Any]) -> Hashable | None:
    """The attributes as a key; None where they hold a sub-graph."""
    found = []
    for name, a in attrs.items():
        if isinstance(a, Graph):
            return None
        found.append((name, _plain(a)))
    return tuple(found) if len(found) < 2 else tuple(sorted(found, key=lambda item: item[0]))


def _plain(a: Any) -> Hashable:
    # 0.0 == -0.0 and 1 == 1.0 == True, but they are not the same attribute.
    kind = type(a)
    if kind is float:
        return (kind, a.hex())
    if kind is tuple:
        return tuple(_plain(x) if type(x) is not int else x for x in a)
    return (kind, a)
