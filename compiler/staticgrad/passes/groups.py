"""The groups of `fuse`: which nodes become one kernel, and what its steps ask of them.

A step decides which groups may be one, and merges them; `regroup` makes the kernels. A group that
was merged into another one stays where it was and points to that one, so a merge costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView, Sequence
from dataclasses import dataclass, field
from typing import Any

from staticgrad.ir.dim import Dim, DimLike, Shape
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.cost import COST
from staticgrad.ops import registry
from staticgrad.ops.lowering import View

# Above this a function of the fused kernel costs more to compile than its sweep over memory saves:
# LLVM's time grows faster than the length of a block (16,000 vector operations: 0.5 s).
MOST_NODES = 96


@dataclass(eq=False)
class Group:
    kind: str  # "map", "reduce" or "product"
    shape: Shape  # of the iteration space
    level: int
    nodes: list[Node] = field(default_factory=list)
    axes: tuple[int, ...] = ()
    forms: dict[Node, str] = field(default_factory=dict)  # of values that depend on a reduction
    merged: Group | None = None
    read: bool = False  # by a node outside: then what depends on it may be of any higher level
    copies: dict[Node, None] = field(default_factory=dict)  # of other groups' nodes: `recompute`

    def absorb(self, other: Group) -> None:
        self.nodes += other.nodes
        self.forms.update(other.forms)
        self.read = self.read or other.read
        other.merged = self

    def full_reads(self) -> KeysView[Value]:
        """The arrays of the full shape that it reads, in the order of its nodes."""
        inside = dict.fromkeys([*self.nodes, *self.copies])
        return dict.fromkeys(
            v for n in inside for v in n.operands if v.node not in inside and v.shape == self.shape
        ).keys()


class Grouping:
    """The groups of a graph while they are made."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uses = graph.uses()
        self.roots = set(graph.roots)
        self.groups: list[Group] = []
        self.group_of: dict[Node, Group] = {}  # as a node was placed: `group` follows the merges
        self.levels: dict[Node, int] = {}  # of nodes outside of groups

    def group(self, node: Node) -> Group | None:
        found = self.group_of.get(node)
        while found is not None and found.merged is not None:
            found = found.merged
        return found

    def level(self, node: Node) -> int:
        g = self.group(node)
        return g.level if g is not None else self.levels[node]

    def add(self, g: Group, node: Node) -> None:
        g.nodes.append(node)
        self.group_of[node] = g

    def only_reader(
        self, g: Group, accepts: Callable[[Value, Node], bool]
    ) -> tuple[Group, list[Node]] | None:
        """The one group that reads `g`, and the views through which it does; None where there is
        another reader, or one of which `accepts(value, reader)` does not hold."""
        target: Group | None = None
        views: dict[Node, None] = {}
        stack = list(g.nodes)
        while stack:
            for v in stack.pop().results:
                if v in self.roots:
                    return None
                for u in self.uses.get(v, ()):
                    reader = self.group(u)
                    if reader is g:
                        continue
                    if reader is None:
                        if view_index(u) is None:
                            return None
                        if u not in views:
                            views[u] = None
                            stack.append(u)
                    elif target not in (None, reader) or not accepts(v, u):
                        return None
                    else:
                        target = reader
        return None if target is None else (target, list(views))

    def move(self, g: Group, target: Group, views: Sequence[Node]) -> bool:
        """Has a group that `target` alone reads, through `views`, computed inside of that, if there
        is room. No cycle can arise, and others read `target` no more than before."""
        if len(g.nodes) + len(views) + len(target.nodes) > MOST_NODES:
            return False
        for n in views:
            self.group_of[n] = target
        target.nodes += [*g.nodes, *views]
        g.merged = target
        return True

    def join_form(self, g: Group, node: Node, forms: dict[Node, str] | None = None) -> str | None:
        """The form that `node` takes in a reduction's group, recorded; None if it does not fit."""
        known = g.forms if forms is None else forms
        names = [Dim.symbol(f"d{i}") for i in range(len(g.shape))]
        result = node.types[0]
        for form in ("full", "kept", "row"):
            if result.shape != form_shape(form, g.shape, g.axes):
                continue
            at = canonical_index(form, names, g.axes)
            if all(
                _operand_at(node, v, at) == canonical_index(known[v.node], names, g.axes)
                for v in node.operands
                if v.node in known
            ):
                g.forms[node] = form
                return form
        return None


def canonical_index(form: str, names: Sequence[Dim], axes: tuple[int, ...]) -> tuple[DimLike, ...]:
    """Where a value of a reduction's group lies: "full", "kept" (reduced dims are 1) or "row"."""
    if form == "full":
        return tuple(names)
    if form == "kept":
        return tuple(0 if i in axes else n for i, n in enumerate(names))
    return tuple(n for i, n in enumerate(names) if i not in axes)


def form_shape(form: str, shape: Shape, axes: tuple[int, ...]) -> Shape:
    if form == "full":
        return shape
    if form == "kept":
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def broadcast_index(at: Sequence[DimLike], shape: Shape) -> tuple[DimLike, ...]:
    """The index of an operand of `shape` that is broadcast to where `at` points."""
    tail = at[len(at) - len(shape) :]
    return tuple(0 if d == 1 else i for d, i in zip(shape, tail))


def view_index(node: Node) -> Any:
    """Where the elements `(d0, d1, ..)` of a view lie in its operand; None of what is no view, and
    of one whose elements an index does not say."""
    lower = registry.get(node.op).lower
    if not isinstance(lower, View):
        return None
    at = tuple(Dim.symbol(f"d{i}") for i in range(node.types[0].ndim))
    return lower.index(at, node.attrs, node.operands[0].type, node.types[0])


def _operand_at(node: Node, v: Value, at: tuple[DimLike, ...]) -> Any:
    lower = registry.get(node.op).lower
    if isinstance(lower, View):
        return lower.index(at, node.attrs, v.type, node.types[0])
    return broadcast_index(at, v.shape)


def is_heavy(node: Node) -> bool:
    return COST.get(node.op, 1) >= 8 or "random" in registry.get(node.op).traits
