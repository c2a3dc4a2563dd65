"""fuse: element-wise chains, their producers, reductions, epilogues and prologues -> `fused` nodes.

before -> after

    %3 = matmul(%x, %w)                   %4 = fused(%x, %w, %b) { matmul; add; relu }
    %4 = add(%3, %b)
    %5 = relu(%4)

A group becomes one kernel. Its kinds: "map" (element-wise over one shape), "reduce" (reductions of
one shape over the same axes, see `siblings`, with what feeds them and what uses them; sums over all
other axes too, see `columns`), "product" (a matrix product or convolution with element-wise
consumers, and a matrix product with what its operands are computed of, see `prologue`). A group's
level is one more than the highest level of what it reads; a node may join a group only if
everything else it reads is of a lower level, so no cycle can arise and the pass is linear in the
nodes. What is cheap is computed where it is read, see `sink` and `recompute`.

Preserving: every element is computed by the same operations in the same order, fused or not.
"""

from __future__ import annotations

from typing import Any

from staticgrad.ir.dim import Shape
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Generate, Leaf, Pointwise, Product, Reduction, View

from .columns import attach_columns
from .groups import MOST_NODES, Group, Grouping, is_heavy, view_index
from .prologue import attach_prologues
from .recompute import recompute_cheap
from .regroup import regrouped
from .rows import attach_rows
from .siblings import join_sums
from .sink import sink_cheap


def fuse(graph: Graph, *, in_loop: bool = False) -> Graph:
    """`in_loop`: of the body of a loop or choice, siblings that read the same become one kernel."""
    return _Fusion(_with_copies(graph) if in_loop else graph).run(in_loop=in_loop)


def _with_copies(graph: Graph) -> Graph:
    """A body whose outputs that are parts of what it computes are copied by nodes of their own, so
    that a sibling which reads the same can make the copy: a third of a GRU's product is kept for
    the reverse, and read by the cell."""
    copied: dict[Value, Value] = {}
    for v in graph.outputs:
        source = v
        while isinstance(registry.get(source.node.op).lower, View):
            source = source.node.operands[0]
        is_part = source.type.size != v.type.size
        if is_part and not isinstance(registry.get(source.node.op).lower, Leaf):
            copy = registry.make("astype", (v,), {"dtype": v.dtype}, locs=graph.locs[v.node])
            copied.setdefault(v, copy.results[0])
    if not copied:
        return graph
    locs = {**graph.locs, **{w.node: graph.locs[v.node] for v, w in copied.items()}}
    return Graph(
        graph.inputs, [copied.get(v, v) for v in graph.outputs], graph.updates,
        order=[*graph.nodes, *(w.node for w in copied.values())], locs=locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip


class _Fusion(Grouping):
    def run(self, *, in_loop: bool) -> Graph:
        held = {n: _inside(n) for n in self.graph.nodes if subgraphs(n)}
        for node in self.graph.nodes:
            lower = registry.get(node.op).lower
            if isinstance(lower, Leaf):
                self.levels[node] = 0
            elif isinstance(lower, View):
                self._place_view(node)
            elif isinstance(lower, (Pointwise, Generate)):
                self._place(node, "map")
            elif isinstance(lower, Reduction):
                self._place(node, "reduce")
            elif isinstance(lower, Product):
                self._new_group("product", node, node.types[0].shape)
                self._mark_read(node)
            else:
                self._mark_read(node)
                self.levels[node] = 1 + self._operand_level(node)
        attach_rows(self)
        attach_columns(self)
        self._inline_producers()
        attach_prologues(self)
        sink_cheap(self)
        if in_loop:
            self._join_siblings()
        recompute_cheap(self)
        return regrouped(self, held)

    # --- placing ----------------------------------------------------------------------------------

    def _operand_level(self, node: Node) -> int:
        return max((self.level(v.node) for v in node.operands), default=0)

    def _new_group(self, kind: str, node: Node, shape: Shape, axes: tuple[int, ...] = ()) -> Group:
        g = Group(kind, shape, 1 + self._operand_level(node), axes=axes)
        self.groups.append(g)
        self.add(g, node)
        if kind == "reduce":
            g.forms[node] = "kept" if node.attrs["keepdims"] else "row"
        return g

    def _place_view(self, node: Node) -> None:
        """A view belongs to no group of its own; it follows its operand into the operand's group
        where the map of indices allows, so that consumers can be fused through it."""
        g = self.group(node.operands[0].node)
        if (
            len(node.operands) == 1
            and g is not None
            and len(g.nodes) < MOST_NODES
            and self._view_fits(g, node)
        ):
            self.add(g, node)
            return
        self._mark_read(node)
        self.levels[node] = self._operand_level(node)

    def _view_fits(self, g: Group, node: Node) -> bool:
        if node.results[0] in self.roots or not self._only_elementwise_uses(node):
            return False
        source = node.operands[0]
        if source.node in g.forms:
            return self.join_form(g, node) is not None
        if g.kind == "product" or view_index(node) is None:
            return False
        # An intermediate that others read as well is stored once, and the view reads that.
        return self.sole_use(source, node)

    def _only_elementwise_uses(self, node: Node) -> bool:
        return all(
            isinstance(registry.get(u.op).lower, (Pointwise, Reduction, View))
            for u in self.uses.get(node.results[0], ())
        )

    def sole_use(self, value: Value, node: Node) -> bool:
        return value not in self.roots and all(u is node for u in self.uses.get(value, ()))

    def _place(self, node: Node, kind: str) -> None:
        shape = node.operands[0].shape if kind == "reduce" else node.types[0].shape
        axes = node.attrs["axes"] if kind == "reduce" else ()
        if kind == "reduce" and not axes:
            kind = "map"
        self._level_up(node, shape)
        for g in self._candidates(node):
            if len(g.nodes) < MOST_NODES and self._fits(g, node, kind, shape, axes):
                self._absorb_others(g, node)
                self.add(g, node)
                break
        else:
            lifted = self._lifted(node, kind, shape, axes)
            if lifted is not None:
                g = lifted
                self.add(g, node)
            else:
                g = self._new_group(kind, node, shape, axes)
        self._mark_read(node)
        if kind == "reduce":
            join_sums(self, node)
            g = self.group(node) or g
        for v in node.operands:
            producer = self.group(v.node)
            if producer is not None and producer is not g:
                self._inline(producer)

    def _candidates(self, node: Node) -> list[Group]:
        """The groups of the operands' highest level, if nothing else that is read is as high."""
        top = self._operand_level(node)
        found: list[Group] = []
        for v in node.operands:
            g = self.group(v.node)
            if self.level(v.node) == top:
                if g is None:
                    return []
                if g not in found:
                    found.append(g)
        if len(found) > 1 and not self._mergeable(found):
            return []
        return found[:1] if found else []

    def _mark_read(self, node: Node) -> None:
        own = self.group(node)
        for g in self._operand_groups(node):
            if g is not own:
                g.read = True

    def _lifted(self, node: Node, kind: str, shape: Shape, axes: tuple[int, ...]) -> Group | None:
        """A group that `node` may join once the group is of a higher level than all else that
        `node` reads. Nothing outside may have read it: then nothing depends on it.

        A batch norm's `rsqrt` of state is of the level of the convolution that it scales, an
        optimiser's rate of that of the moments.
        """
        for g in self._operand_groups(node):
            if g.read or len(g.nodes) >= MOST_NODES or (g.kind == "map" and g.shape != shape):
                continue
            before = g.level
            others = (self.level(v.node) for v in node.operands if self.group(v.node) is not g)
            g.level = max(before, 1 + max(others, default=0))
            if self._fits(g, node, kind, shape, axes):
                return g
            g.level = before
        return None

    def _level_up(self, node: Node, shape: Shape) -> None:
        """Sweeps over the same elements that nothing outside has read yet come to be of one level,
        so that `node`, which reads them all, can make them one: Adam's two moments."""
        free = [g for g in self._operand_groups(node)
                if g.kind == "map" and g.shape == shape and not g.read]  # fmt: skip
        if len(free) > 1 and self._mergeable(free):
            level = max(g.level for g in free)
            for g in free:
                g.level = level

    def _mergeable(self, groups: list[Group]) -> bool:
        first = groups[0]
        total = sum(len(g.nodes) for g in groups)
        if total >= MOST_NODES or any(g.kind == "product" for g in groups):
            return False
        if any(g.shape != first.shape for g in groups):
            return False
        axes = {g.axes for g in groups if g.kind == "reduce"}
        return len(axes) <= 1

    def _absorb_others(self, g: Group, node: Node) -> None:
        """Merges the operands' other groups of the same level into `g`."""
        for v in node.operands:
            other = self.group(v.node)
            if other is None or other is g or other.level != g.level:
                continue
            if other.kind == "reduce":
                g.kind, g.axes = "reduce", other.axes
            g.absorb(other)

    # --- producers --------------------------------------------------------------------------------

    def _inline_producers(self) -> None:
        """A "map" group that one other group alone reads is computed inside of that one.

        No cycle can arise: nothing else depends on it. `momentum * v` so joins the product's
        epilogue that adds the gradient to it.
        """
        for g in sorted(self.groups, key=lambda h: -h.level):
            self._inline(g)

    def _inline(self, g: Group) -> None:
        if g.merged is not None or g.kind != "map":
            return
        found = self.only_reader(g, lambda _, u: not isinstance(registry.get(u.op).lower, Product))
        if found is None:
            return
        target, views = found
        if (views or g.shape != target.shape) and any(is_heavy(n) for n in g.nodes):
            return  # it would be computed again for each element that it is broadcast to
        self.move(g, target, views)

    def _join_siblings(self) -> None:
        """ "map" groups of one level and shape that read the same array become one. None depends on
        another, as what depends on a group is of a higher level.

        In a loop's body only: elsewhere results may be wanted at very different times, and would
        wait in memory. The reverse of a GRU's gates read their states twice.
        """
        readers: dict[tuple[int, Shape, Value], Group] = {}
        for g in self.groups:
            if g.merged is not None or g.kind != "map":
                continue
            read = [(g.level, g.shape, v) for v in g.full_reads() if v.type.size != 1]
            found = next((h for h in map(readers.get, read) if h is not None), None)
            if found is not None and len(found.nodes) + len(g.nodes) <= MOST_NODES:
                found.absorb(g)
            for key in read:
                readers.setdefault(key, g if g.merged is None else g.merged)

    # --- what fits --------------------------------------------------------------------------------

    def _fits(self, g: Group, node: Node, kind: str, shape: Shape, axes: tuple[int, ...]) -> bool:
        others = [h for h in self._operand_groups(node) if h is not g and h.level == g.level]
        every = [g, *others]
        if any(h.kind == "product" for h in every):
            return g.kind == "product" and not others and kind == "map" and self._rides(g, node)
        if kind == "reduce":
            return self._reduce_fits(every, node, shape, axes)
        if any(h.kind == "reduce" for h in every):
            return self._join_reduce(every, node)
        return self._widens(every, node, shape)

    def _operand_groups(self, node: Node) -> list[Group]:
        found: list[Group] = []
        for v in node.operands:
            h = self.group(v.node)
            if h is not None and h not in found:
                found.append(h)
        return found

    def _rides(self, g: Group, node: Node) -> bool:
        """An epilogue works on the product's own element: same shape, no index changed."""
        if node.types[0].shape != g.shape:
            return False
        return all(v.shape == g.shape for v in node.operands if self.group(v.node) is g)

    def _reduce_fits(
        self, groups: list[Group], node: Node, shape: Shape, axes: tuple[int, ...]
    ) -> bool:
        source = node.operands[0]
        (g,) = groups
        if g.kind == "reduce":
            if g.axes != axes or g.shape != shape:
                return False
            fits = source.node not in g.forms or g.forms[source.node] == "full"
        else:
            fits = self._widens(groups, node, shape)
            if fits:
                g.kind, g.shape, g.axes = "reduce", shape, axes
        if fits:
            g.forms[node] = "kept" if node.attrs["keepdims"] else "row"
        return fits

    def _widens(self, groups: list[Group], node: Node, shape: Shape) -> bool:
        """Whether the groups, of one shape, are of this one, or can be computed inside the larger
        space of their only consumer; what depends on fewer dims is computed once an outer
        iteration, by the code generator's levels. What others read has no place there: of an array
        of the smaller shape one element would be stored."""
        if groups[0].shape == shape:
            return True
        members = {n for g in groups for n in g.nodes}
        if any(g.kind != "map" for g in groups) or any(is_heavy(n) for n in members):
            return False
        for v in (v for n in members for v in n.results):
            if v in self.roots:
                return False
            if any(u is not node and u not in members for u in self.uses.get(v, ())):
                return False
        for g in groups:
            g.shape = shape
        return True

    def _join_reduce(self, groups: list[Group], node: Node) -> bool:
        g = next(h for h in groups if h.kind == "reduce")
        forms: dict[Node, str] = {}
        for h in groups:
            forms.update(h.forms)
        if any(h.shape != g.shape for h in groups):
            return False
        return self.join_form(g, node, forms) is not None


def _inside(node: Node) -> dict[str, Any]:
    """The attributes of a loop or a choice with its sub-graphs fused."""
    return {**node.attrs, **{name: fuse(inner, in_loop=True) for name, inner in subgraphs(node)}}
