"""A graph: inputs, state, outputs and updates, with its nodes in topological order.

Nodes are frozen and may be shared by graphs; what a graph owns is the order of its nodes and the
side table of their locations, which are sets, since rewrites merge nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from .errors import GraphError
from .loc import Locs, locs_text
from .node import DimEquality, Node, Value

LEAF_OPS = frozenset(("input", "state", "constant"))


class Graph:
    """A closed program: what it computes from its inputs and its state.

    `updates` maps state values to their new values; all of them read the old values, and they are
    written together after everything that can fail.
    """

    def __init__(
        self, inputs: Sequence[Value], outputs: Sequence[Value],
        updates: Sequence[tuple[Value, Value]] = (), *, order: Iterable[Node] | None = None,
        locs: Mapping[Node, Locs] | None = None, constraints: Iterable[DimEquality] | None = None,
        single: bool = False,
    ) -> None:  # fmt: skip
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.updates = tuple(updates)
        self.single = single  # one bare output instead of a tuple of outputs
        # State that is only written belongs to the graph as well.
        written = tuple(state for state, _ in self.updates)
        self.nodes = _ordered(self.inputs, (*self.roots, *written), order)
        self.locs: dict[Node, Locs] = (
            {n: n.locs for n in self.nodes}
            if locs is None
            else {n: locs.get(n, n.locs) for n in self.nodes}
        )
        self.state = tuple(n.results[0] for n in self.nodes if n.op == "state")
        if constraints is None:
            constraints = (c for n in self.nodes for c in n.constraints)
        self.constraints = tuple(dict.fromkeys(constraints))
        self._check_inputs()

    @property
    def roots(self) -> tuple[Value, ...]:
        """Everything that is computed: the outputs, then the new values of the state."""
        return (*self.outputs, *(new for _, new in self.updates))

    def _check_inputs(self) -> None:
        declared = {v.node for v in self.inputs}
        for n in self.nodes:
            if n.op == "input" and n not in declared:
                name = n.attrs.get("name")
                names = [v.node.attrs.get("name") for v in self.inputs]
                twin = "; the input of that name is another one, declared by another call"
                raise GraphError(
                    f"the outputs need the input {name!r} (declared at {locs_text(n.locs)}), which "
                    f"is not among the graph's inputs: {names}{twin if name in names else ''}"
                )

    def uses(self) -> dict[Value, list[Node]]:
        """For each value the nodes that read it, once for each operand that does."""
        found: dict[Value, list[Node]] = {}
        for n in self.nodes:
            for v in n.operands:
                found.setdefault(v, []).append(n)
        return found

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


def subgraphs(node: Node) -> list[tuple[str, Graph]]:
    """The closed sub-graphs that a node holds, by attribute name: how every pass descends."""
    return [(name, a) for name, a in node.attrs.items() if isinstance(a, Graph)]


def reachable(roots: Iterable[Value]) -> list[Node]:
    """The nodes that `roots` need, oldest first; a node is always younger than its operands."""
    seen: set[Node] = set()
    stack = [v.node for v in roots]
    while stack:
        n = stack.pop()
        if n not in seen:
            seen.add(n)
            stack.extend(v.node for v in n.operands if v.node not in seen)
    return sorted(seen, key=lambda n: n.id)


def _ordered(
    inputs: Sequence[Value], roots: Iterable[Value], order: Iterable[Node] | None
) -> tuple[Node, ...]:
    needed = reachable((*inputs, *roots))
    if order is None:
        return tuple(needed)
    wanted = set(needed)
    ordered = tuple(n for n in dict.fromkeys(order) if n in wanted)
    if len(ordered) == len(needed):
        return ordered
    placed = set(ordered)
    # Inputs that nothing reads, and nodes that the given order forgot, keep their age's place.
    return tuple(sorted((*ordered, *(n for n in needed if n not in placed)), key=lambda n: n.id))
