"""The rewriting driver: applies a rule to every node, in order, until it applies no more.

A rule looks at one node, whose operands are final, and returns None (it stays) or the values that
take the place of its results. The nodes a rule makes are looked at again themselves. The driver
carries the locations: what replaces a node gets the node's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.ir.errors import StaticgradError
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import Locs, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry

Rule = Callable[[Node], Sequence[Value] | None]

# A rule set that settles never rewrites one node this often; one that does not would loop forever.
STEP_LIMIT = 1000


class RewriteLoopError(StaticgradError):
    """Rules that undo each other: a bug in a pass."""


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """The graph with `rule` applied to every node, those of closed sub-graphs included."""
    return _Rewriter(graph, rule).run()


def rebuilt(node: Node, operands: Sequence[Value], attrs: Any = None) -> Node:
    """`node` with other operands (and attributes); itself where nothing differs."""
    if attrs is None and all(a is b for a, b in zip(operands, node.operands)):
        return node
    with use_locs(node.locs):
        return registry.make(
            node.op, operands, node.attrs if attrs is None else attrs, payload=node.payload
        )


class _Rewriter:
    def __init__(self, graph: Graph, rule: Rule) -> None:
        self.graph, self.rule = graph, rule
        self.values: dict[Value, Value] = {}
        self.final: set[Node] = set()
        self.order: list[Node] = []
        self.locs: dict[Node, Locs] = {}
        self._replacements: dict[Node, list[Value]] = {}

    def run(self) -> Graph:
        g = self.graph
        for node in g.nodes:
            self._visit(node, g.locs[node])
        return Graph(
            [self.values[v] for v in g.inputs], [self.values[v] for v in g.outputs],
            [(self.values[s], self.values[v]) for s, v in g.updates], order=self.order,
            locs=self.locs, constraints=g.constraints, single=g.single,
        )  # fmt: skip

    def _visit(self, node: Node, locs: Locs) -> None:
        """Makes `node` final and fills in `values` for its results."""
        pending: list[tuple[Node, int]] = [(node, 0)]
        steps = 0
        while pending:
            current, stage = pending.pop()
            if stage == 0:
                if current in self.final and current is not node:
                    continue
                known = all(r in self.values for r in current.results) and current.results
                if known and current is not node:
                    continue
                steps += 1
                if steps > STEP_LIMIT:
                    raise RewriteLoopError(f"rewriting {node!r} does not come to an end")
                self._step(current, locs, pending)
            else:
                # What replaced `current` is final by now.
                self._alias(current)

    def _step(self, current: Node, locs: Locs, pending: list[tuple[Node, int]]) -> None:
        operands = [self.values.get(v, v) for v in current.operands]
        attrs = self._attrs(current)
        with use_locs(locs):
            candidate = rebuilt(current, operands, attrs)
            found = self.rule(candidate)
        if found is None or all(a is b for a, b in zip(found, candidate.results)):
            self._finalize(candidate, locs)
            for old, new in zip(current.results, candidate.results):
                self.values[old] = new
            return
        self._replacements[current] = list(found)
        pending.append((current, 1))
        pending += [(n, 0) for n in reversed(self._fresh(found))]

    def _alias(self, current: Node) -> None:
        for old, new in zip(current.results, self._replacements.pop(current)):
            self.values[old] = self.values.get(new, new)

    def _fresh(self, values: Sequence[Value]) -> list[Node]:
        """The nodes that a rule has just made, oldest first."""
        seen: set[Node] = set()
        stack = [v.node for v in values]
        while stack:
            n = stack.pop()
            if n in seen or n in self.final:
                continue
            seen.add(n)
            stack += [v.node for v in n.operands]
        return sorted(seen, key=lambda n: n.id)

    def _finalize(self, node: Node, locs: Locs) -> None:
        if node in self.final:
            self.locs[node] |= locs
            return
        self.final.add(node)
        self.order.append(node)
        self.locs[node] = locs

    def _attrs(self, node: Node) -> Any:
        held = subgraphs(node)
        if not held:
            return None
        inner = {name: rewrite(g, self.rule) for name, g in held}
        if all(inner[name] is g for name, g in held):
            return None
        return {**node.attrs, **inner}
