"""The rewriting driver: applies a rule to every node, in order, until it applies no more.

A rule looks at one node, whose operands are final, and returns None (it stays) or the values that
take the place of its results. The nodes a rule makes are looked at again themselves. The driver
carries the locations: what replaces a node gets the node's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.ir.dim import equal_dims
from staticgrad.ir.errors import StaticgradError
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import NOWHERE, Locs, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry

Rule = Callable[[Node], Sequence[Value] | None]

# A rule set that settles never rewrites one node this often; one that does not would loop forever.
STEP_LIMIT = 1000


class RewriteLoopError(StaticgradError):
    """Rules that undo each other: a bug in a pass."""


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """The graph with `rule` applied to every node, those of closed sub-graphs included; the graph
    itself where the rule applies nowhere."""
    # The driver sets the locations in the graph's side table: without this, each node that a rule
    # makes would walk the Python stack for the user's line, which costs more than making it.
    with use_locs(NOWHERE):
        return _Rewriter(graph, rule).run()


def rule_table(rules_of: Callable[[str], Sequence[Rule]]) -> Rule:
    """One rule out of those for each op; of these the first that applies is taken."""
    table: dict[str, Sequence[Rule]] = {}

    def apply_first(node: Node) -> Sequence[Value] | None:
        rules = table.get(node.op)
        if rules is None:
            rules = table[node.op] = rules_of(node.op)
        for rule in rules:
            found = rule(node)
            if found is not None:
                return found
        return None

    return apply_first


def rebuilt(node: Node, operands: Sequence[Value], attrs: Any = None) -> Node:
    """`node` with other operands (and attributes); itself where nothing differs."""
    if attrs is None:
        old = node.operands
        if all(a is b for a, b in zip(operands, old)):
            return node
        if all(a.node.types[a.index] == b.node.types[b.index] for a, b in zip(operands, old)):
            # The types are what they were: no need to infer them again (9 us a node).
            return registry.clone(node, operands, node.locs)
        attrs = node.attrs
    return registry.make(node.op, operands, attrs, payload=node.payload, locs=node.locs)


class _Rewriter:
    def __init__(self, graph: Graph, rule: Rule) -> None:
        self.graph, self.rule = graph, rule
        self.values: dict[Value, Value] = {}  # what takes the place of values that are gone
        self.final: set[Node] = set()
        self.order: list[Node] = []
        self.locs: dict[Node, Locs] = {}
        self.changed = False

    def run(self) -> Graph:
        g = self.graph
        locs = g.locs
        for node in g.nodes:
            self._visit(node, locs[node])
        if not self.changed:
            return g
        values = self.values
        return Graph(
            [values.get(v, v) for v in g.inputs], [values.get(v, v) for v in g.outputs],
            [(values.get(s, s), values.get(v, v)) for s, v in g.updates], order=self.order,
            locs=self.locs, constraints=g.constraints, single=g.single,
        )  # fmt: skip

    def _visit(self, node: Node, locs: Locs) -> None:
        """Makes `node` final, or what replaces it."""
        found = self._step(node, locs)
        if found is None:
            return
        # The nodes that the rule made come first, oldest first; then what they became takes the
        # place of the results. Explicit, as a rule's nodes may be rewritten again themselves.
        pending: list[tuple[Node, Sequence[Value] | None]] = [(node, found)]
        pending += [(n, None) for n in reversed(self._fresh(found))]
        steps = 0
        while pending:
            current, results = pending.pop()
            if results is not None:
                self._replace(current, results)
            elif current not in self.final and current.results[0] not in self.values:
                steps += 1
                if steps > STEP_LIMIT:
                    raise RewriteLoopError(f"rewriting {node!r} does not come to an end")
                found = self._step(current, locs)
                if found is not None:
                    pending.append((current, found))
                    pending += [(n, None) for n in reversed(self._fresh(found))]

    def _step(self, node: Node, locs: Locs) -> Sequence[Value] | None:
        """Applies the rule once. None where the node is final now, else what is to replace it."""
        values = self.values
        candidate = node
        attrs = self._attrs(node) if node.attrs else None
        moved = attrs is not None
        for v in node.operands:
            moved = moved or v in values
        if moved:
            candidate = rebuilt(node, [values.get(v, v) for v in node.operands], attrs)
        found = self.rule(candidate)
        if found is not None and any(a is not b for a, b in zip(found, candidate.results)):
            self.changed = True
            return found
        if candidate is not node:
            self.changed = True
            self._replace(node, candidate.results)
        if candidate in self.final:
            self.locs[candidate] |= locs
        else:
            self.final.add(candidate)
            self.order.append(candidate)
            self.locs[candidate] = locs
        return None

    def _replace(self, node: Node, results: Sequence[Value]) -> None:
        values = self.values
        for old, new in zip(node.results, results, strict=True):
            new = values.get(new, new)
            if not _same_type(old, new):
                raise AssertionError(f"{node!r}: a rule replaced {old.type} by {new.type}")
            values[old] = new

    def _fresh(self, values: Sequence[Value]) -> list[Node]:
        """The nodes that a rule has just made, oldest first."""
        final, gone = self.final, self.values
        seen: set[Node] = set()
        stack = [v.node for v in values]
        while stack:
            n = stack.pop()
            if n in seen or n in final or (n.results and n.results[0] in gone):
                continue
            seen.add(n)
            stack += [v.node for v in n.operands]
        return sorted(seen, key=lambda n: n.id)

    def _attrs(self, node: Node) -> Any:
        held = subgraphs(node)
        if not held:
            return None
        inner = {name: _Rewriter(g, self.rule).run() for name, g in held}
        if all(inner[name] is g for name, g in held):
            return None
        return {**node.attrs, **inner}


def _same_type(old: Value, new: Value) -> bool:
    """One dtype, and shapes that are not provably different: two names of one size may differ."""
    a, b = old.type, new.type
    if a is b or a == b:
        return True
    return (
        a.dtype == b.dtype
        and len(a.shape) == len(b.shape)
        and all(equal_dims(i, j) is not False for i, j in zip(a.shape, b.shape))
    )
