"""A step of `simplify`: the scale of attention's queries -> an attribute of attention.

before -> after

    %2 = multiply(%q, 0.125)                     %3 = attention(%q, %k, %v){scale=0.125}
    %3 = attention(%2, %k, %v)                   %4, .. = attention_gradient(%q, ..){scale=0.125}
    %4, .. = attention_gradient(%2, ..)
    %5 = multiply(%4, 0.125)

The kernels scale a block of queries, and a block of their cotangents, while it is in the cache. The
same elements are multiplied by the same number, so the bits are the same.
"""

from __future__ import annotations

import math
from typing import Any

from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import NOWHERE, Locs, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.rewrite.driver import rebuilt
from staticgrad.rewrite.pattern import number

_ATTENTION = frozenset(
    ("attention", "attention_gradient", "attention_mask_gradient", "attention_tangent")
)


def scales_into_attention(graph: Graph) -> Graph:
    if not any(n.op in _ATTENTION or subgraphs(n) for n in graph.nodes):
        return graph
    with use_locs(NOWHERE):
        return _Scales(graph).run()


class _Scales:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uses = graph.uses()
        self.roots = set(graph.roots)
        self.values: dict[Value, Value] = {}  # what takes the place of values that are gone
        self.scale_of: dict[Node, float] = {}  # of nodes of attention that take one
        for v in {n.operands[0]: None for n in graph.nodes if n.op in _ATTENTION}:
            self._look_at(v)

    def _look_at(self, v: Value) -> None:
        """Notes what reads the queries `v`, if they are a multiple that nothing else reads."""
        scale = self._scale(v.node)
        users = self.uses[v]
        alone = len(set(users)) == len(users) and all(_takes(u, v) for u in users)
        if scale is None or v in self.roots or not alone:
            return
        alike = [u for n in users if n.op == "attention_gradient" for u in self._readers(n)]
        alike += [n.operands[i].node for n in users for i in _tangent_of_queries(n)]
        if all(self._scale(u) == scale for u in alike):
            self.scale_of.update(dict.fromkeys(users, scale))

    def _readers(self, gradient: Node) -> list[Node]:
        """What reads the cotangent of the queries; the node itself stands for the caller."""
        ct = gradient.results[0]
        return [*self.uses.get(ct, ()), *([gradient] if ct in self.roots else [])]

    def _scale(self, node: Node) -> float | None:
        """What a node multiplies all elements of its first operand by."""
        if node.op != "multiply" or node.operands[0].shape != node.types[0].shape:
            return None
        found = number(node.operands[1])
        return float(found) if found is not None and math.isfinite(found) else None

    def run(self) -> Graph:
        g = self.graph
        order: list[Node] = []
        locs: dict[Node, Locs] = {}
        for node in g.nodes:
            source = node.operands[0] if node.operands else None
            if source is not None and source.index == 0 and self._is_scaled_inside(node):
                self.values[node.results[0]] = self.values[source]
                locs[self.values[source].node] |= g.locs[node]
                continue
            made = self._made(node)
            if made is not node:
                self.values.update(zip(node.results, made.results))
            order.append(made)
            locs[made] = g.locs[node]
        if all(a is b for a, b in zip(order, g.nodes, strict=False)):
            return g
        value = self._value
        return Graph(
            g.inputs, [value(v) for v in g.outputs], [(s, value(v)) for s, v in g.updates],
            order=order, locs=locs, constraints=g.constraints, single=g.single,
        )  # fmt: skip

    def _is_scaled_inside(self, node: Node) -> bool:
        """Whether a node multiplies a cotangent of queries that its gradient scales itself."""
        source = node.operands[0]
        return (
            source.node.op == "attention_gradient"
            and source.index == 0
            and source.node in self.scale_of
        )

    def _made(self, node: Node) -> Node:
        operands = [self._value(v) for v in node.operands]
        attrs: dict[str, Any] = {name: scales_into_attention(g) for name, g in subgraphs(node)}
        scale = self.scale_of.get(node)
        if scale is not None:
            for i in (0, *_tangent_of_queries(node)):
                operands[i] = self._value(node.operands[i].node.operands[0])
            attrs["scale"] = scale
        changed = any(a is not node.attrs.get(name) for name, a in attrs.items())
        return rebuilt(node, operands, {**node.attrs, **attrs} if changed else None)

    def _value(self, v: Value) -> Value:
        return self.values.get(v, v)


def _takes(node: Node, queries: Value) -> bool:
    """Whether a node reads `queries` as queries, unscaled so far."""
    return node.op in _ATTENTION and node.operands[0] is queries and "scale" not in node.attrs


def _tangent_of_queries(node: Node) -> tuple[int, ...]:
    """The number of that operand, if there is one."""
    moving = node.attrs["moving"] if node.op == "attention_tangent" else ""
    return (len(node.operands) - len(moving) + moving.index("q"),) if "q" in moving else ()


__all__ = ["scales_into_attention"]
