"""cse: equal pure nodes -> one node.

before -> after

    %2 = exp(%0)                    %2 = exp(%0)
    %3 = exp(%0)                    %4 = add(%2, %2)
    %4 = add(%2, %3)

Two nodes are equal if they apply one op to the same values with the same attributes; constants if
dtype, shape and every byte agree. Of two reductions that differ in `keepdims` alone the second
becomes a reshape of the first. Never merged: inputs, state, random draws (two dropouts are two
draws) and nodes that hold sub-graphs. What is merged has the locations of both.

Preserving: the node that stays computes what the other one did.
"""

from __future__ import annotations

from collections.abc import Hashable

from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import NOWHERE, Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction
from staticgrad.rewrite.driver import rebuilt
from staticgrad.rewrite.pattern import attrs_key, own_key


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
        own = own_key(kept)
        first = kept if own is None else known.setdefault((own, kept.operands), kept)
        if first is kept and isinstance(registry.get(kept.op).lower, Reduction):
            first = _in_other_form(kept, known)
        if first is not node:
            changed = True
            values.update(zip(node.results, first.results))
        if first in locs:
            locs[first] |= graph.locs[node]
        else:
            order.append(first)
            locs[first] = graph.locs[node]
    if not changed:
        return graph
    return Graph(
        graph.inputs, [values.get(v, v) for v in graph.outputs],
        [(s, values.get(v, v)) for s, v in graph.updates], order=order, locs=locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip


def _in_other_form(node: Node, known: dict[Hashable, Node]) -> Node:
    """`node`, or a reshape of the same reduction that keeps (or drops) the dims of 1."""
    attrs = {**node.attrs, "keepdims": not node.attrs["keepdims"]}
    other = known.get(((node.op, attrs_key(attrs)), node.operands))
    if other is None:
        return node
    shape = {"shape": node.types[0].shape}
    made = registry.make("reshape", other.results, shape, locs=NOWHERE)
    found = known.setdefault((own_key(made), made.operands), made)
    known[(own_key(node), node.operands)] = found
    return found


def _inside(node: Node) -> Node:
    """`node` with its sub-graphs merged inside."""
    held = subgraphs(node)
    if not held:
        return node
    inner = {name: cse(g) for name, g in held}
    if all(inner[name] is g for name, g in held):
        return node
    return rebuilt(node, node.operands, {**node.attrs, **inner})
