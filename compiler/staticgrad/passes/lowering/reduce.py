"""Reductions of one shape over the same axes, with what feeds them and what uses them.

    for the kept dims (shared among threads)
        for each stage: reduce over the reduced axes (in lanes, if the last dim is reduced)
        for the reduced axes: store what has the full shape

Sums over the kept axes of such a kernel are in `columns`, reductions of everything in `blocks`.

A value of the full shape that is dear to compute and needed by several stages is kept in a row of
scratch memory; cheap ones are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from staticgrad.ir.dim import Dim, DimLike, product, substitute
from staticgrad.ir.dtype import bool_
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.ir import (
    Accumulator,
    Call,
    Expr,
    Let,
    Literal,
    Loop,
    Reduce,
    Ref,
    Stmt,
)
from staticgrad.kernels.order import combine_op, reduce_lanes
from staticgrad.kernels.rewrite import IndexMapper, all_indices, merges, replaced
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction

from ..groups import is_heavy
from .blocks import BlockedLowering, in_blocks, piece, pieces
from .body import Body
from .columns import ColumnSums
from .draft import Draft, linear
from .pull import At, Puller
from .space import OfOnes, Space, space_of, spaces_of_ones

if TYPE_CHECKING:
    from .lower import Lowerer


def lower_reduce(lowerer: Lowerer, body: Body) -> None:
    ReduceLowering(lowerer, body).run()


COLUMNS_AT_ONCE = 128  # a band of columns, see `codegen/loops.py`


class ReduceLowering:
    def __init__(self, lowerer: Lowerer, body: Body, space: Space | None = None) -> None:
        self.lowerer, self.body = lowerer, body
        self.draft = Draft(lowerer.program)
        every = [n for n in body.inside if self._is_reduction(n)]
        rows = [n for n in every if n.operands[0].type.ndim - 1 in n.attrs["axes"]]
        self.reductions = rows or every
        self.space = space or space_of(self.reductions[0])
        sums = [n for n in every if n not in self.reductions]
        self.columns = ColumnSums(lowerer, body, self.space, sums) if sums else None
        self.stages = self._stages()
        self.names: dict[Node, str] = {}
        self.kept_rows: dict[Value, int] = {}  # full values in scratch memory or an output
        self.computed: set[Value] = set()  # those of them that a stage has stored already

    @staticmethod
    def _is_reduction(n: Node) -> bool:
        return isinstance(registry.get(n.op).lower, Reduction) and bool(n.attrs["axes"])

    # --- stages -----------------------------------------------------------------------------------

    def _stages(self) -> list[list[Node]]:
        """Reductions by how many reductions they depend on; those of a stage share its loops."""
        depth: dict[Node, int] = {}
        for n in self.body.inside:
            below = max((depth.get(v.node, 0) for v in n.operands), default=0)
            depth[n] = below + 1 if self._is_reduction(n) else below
        found: dict[tuple[int, int], list[Node]] = {}
        for n in self.reductions:
            found.setdefault((depth[n], reduce_lanes(n.types[0].dtype)), []).append(n)
        return [found[key] for key in sorted(found)]

    def _needs(self, roots: list[Value]) -> set[Node]:
        """The full-shaped nodes inside that `roots` are computed from, up to reductions."""
        seen: set[Node] = set()
        stack = [v.node for v in roots]
        while stack:
            n = stack.pop()
            if n in seen or n not in self.body.inside or self._is_reduction(n):
                continue
            seen.add(n)
            stack += [v.node for v in n.operands]
        return seen

    def _plan_rows(self, full: list[tuple[Value, Value]]) -> None:
        """Chooses the values that are kept between stages."""
        if not self.space.rows_in_lanes:
            return
        groups = [[n.operands[0] for n in stage] for stage in self.stages]
        summed = [] if self.columns is None else [n.operands[0] for n in self.columns.nodes]
        groups.append([*(inner for inner, _ in full), *summed])
        count: dict[Node, int] = {}
        for roots in groups:
            for n in self._needs(roots):
                count[n] = count.get(n, 0) + 1
        outputs = dict(full)
        for n, times in count.items():
            v = n.results[0]
            if times < 2 or v.shape != self.space.shape or not is_heavy(n):
                continue
            if v in outputs:
                self.kept_rows[v] = self._result(outputs[v])
            else:
                size = product(tuple(e for _, e in self.space.reduced))
                self.kept_rows[v] = self.lowerer.scratch(v.dtype, size, per_thread=True)

    # --- kernel -----------------------------------------------------------------------------------

    def run(self) -> None:
        space = self.space
        full = [(i, o) for i, o in self.body.outputs if self._is_full(i)]
        sums = () if self.columns is None else self.columns.nodes
        others = [(i, o) for i, o in self.body.outputs if not self._is_full(i)]
        rows = [(i, o) for i, o in others if i.node not in sums]
        if space.is_short:
            self._finish(self._written_out(full, rows))
            return
        ones = [] if self.columns is not None else spaces_of_ones(self.reductions[0])
        if self.columns is None and not ones and in_blocks(space, len(self.stages), bool(full)):
            BlockedLowering(self).run(full, rows)
            return
        statements = self._statements(full, rows)
        self._finish(statements, [self._of_ones(o, full, rows) for o in ones])
        if self.columns is not None:
            self.columns.finish(dict(self.body.outputs))

    def _of_ones(
        self, ones: OfOnes, full: list[tuple[Value, Value]], rows: list[tuple[Value, Value]]
    ) -> Loop:
        """The statements that run where sizes turn out to be 1."""
        other = ReduceLowering(self.lowerer, self.body, ones.space)
        other.draft = self.draft
        at_one = IndexMapper(lambda d: substitute(d, ones.sizes), lambda d: d)
        return self._if(ones.when, at_one.body(other._statements(full, rows)))

    def _if(self, when: DimLike, statements: Sequence[Stmt]) -> Loop:
        return Loop(f"d{len(self.space.shape) + 1}", when, tuple(statements), "serial")

    def _statements(
        self, full: list[tuple[Value, Value]], rows: list[tuple[Value, Value]]
    ) -> list[Stmt]:
        """What computes the group's results, inside of the loops over what is kept."""
        space = self.space
        self._plan_rows(full)
        statements: list[Stmt] = []
        for stage in self.stages:
            statements.append(self._stage(stage))
        puller = self._puller()
        stores = []
        for inner, outer in full:
            if inner in self.kept_rows and self.kept_rows[inner] == self.lowerer.stored.get(outer):
                continue  # a stage has stored it
            buffer = self._result(outer)
            value = self._full_value(puller, inner)
            stores.append(self.draft.store(buffer, linear(space.at, outer.shape), value))
        if self.columns is not None:
            stores += self.columns.stores(self.draft, puller)
        if stores:
            statements += self._reduced_loops(tuple(stores))
        # Last, since a row's result may take the memory of an operand that the loops above read.
        for inner, outer in rows:
            at = self.row_at(inner)
            statements.append(
                self.draft.store(
                    self._result(outer),
                    linear(at, outer.shape),
                    puller.pull(inner, at),
                )
            )
        return statements

    def _written_out(
        self, full: list[tuple[Value, Value]], rows: list[tuple[Value, Value]]
    ) -> list[Stmt]:
        """Statements for one row, each of its elements an expression of its own."""
        space = self.space
        extent = space.reduced[0][1]
        assert isinstance(extent, int)
        known: dict[Value, Callable[[At], Expr]] = {}
        puller = Puller(self.body.inside, self._outside, known)
        for n in self.reductions:
            known[n.results[0]] = (
                lambda at, n=n: _folded(  # type: ignore[misc]
                    n, [puller.pull(n.operands[0], (*space.at[:-1], j)) for j in range(extent)]
                )
            )
        statements: list[Stmt] = []
        for inner, outer in full:
            buffer = self._result(outer)
            for j in range(extent):
                at = (*space.at[:-1], j)
                value = puller.pull(inner, at)
                statements.append(self.draft.store(buffer, linear(at, outer.shape), value))
        for inner, outer in rows:
            at = self.row_at(inner)
            buffer = self._result(outer)
            value = puller.pull(inner, at)
            statements.append(self.draft.store(buffer, linear(at, outer.shape), value))
        return statements

    def _result(self, outer: Value) -> int:
        """The buffer of a result, of which there is one for all sizes."""
        known = self.lowerer.stored.get(outer)
        return self.lowerer.result_buffer(outer) if known is None else known

    def _is_full(self, v: Value) -> bool:
        return v.shape == self.space.shape and not self._is_reduction(v.node)

    def row_at(self, v: Value) -> At:
        if len(v.shape) == len(self.space.shape):
            return tuple(0 if a in self.space.axes else i for a, i in enumerate(self.space.at))
        return self.space.row

    def _puller(self) -> Puller:
        known: dict[Value, Callable[[At], Expr]] = {}
        for n, name in self.names.items():
            v = n.results[0]
            known[v] = lambda at, name=name, v=v: Ref(name, v.dtype)  # type: ignore[misc]
        for v in self.computed:
            known[v] = lambda at, v=v: self._kept_load(v, at)  # type: ignore[misc]
        return Puller(self.body.inside, self._outside, known)

    def _outside(self, v: Value, at: At) -> Expr:
        return self.lowerer.outside(self.draft, self.body, v, at)

    def _kept_index(self, v: Value, at: At) -> DimLike:
        if self.lowerer.program.buffers[self.kept_rows[v]].size == v.type.size:
            return linear(at, v.shape)
        axes = self.space.axes
        return linear([at[a] for a in axes], tuple(v.shape[a] for a in axes))

    def _kept_load(self, v: Value, at: At) -> Expr:
        from staticgrad.kernels.ir import Load

        name = self.draft.buffer(self.kept_rows[v], "inout")
        return Load(name, self._kept_index(v, at), v.dtype)

    def _full_value(self, puller: Puller, v: Value) -> Expr:
        return puller.pull(v, self.space.at)

    def _stage(self, stage: list[Node]) -> Reduce:
        space = self.space
        puller = self._puller()
        body: list[Stmt] = []
        needed = self._needs([n.operands[0] for n in stage])
        for v in self.kept_rows:
            if v.node in needed and v not in self.computed:
                # Kept while it is computed: the accumulators below use the same expression.
                value = puller.pull(v, space.at)
                label = f"k{len(self.computed)}"
                body.append(Let(label, value))
                at = self._kept_index(v, space.at)
                buffer = self.kept_rows[v]
                self.draft.buffer(buffer, "inout")
                body.append(self.draft.store(buffer, at, Ref(label, v.dtype)))
                self.computed.add(v)
        for n in stage:
            self.names[n] = f"r{len(self.names)}"
        reduction = self.reduction(stage, self.names, puller)
        return replace(reduction, body=tuple(body))

    def reduction(self, stage: list[Node], names: Mapping[Node, str], puller: Puller) -> Reduce:
        """The reductions of a stage, whose results get these names."""
        space = self.space
        accumulators = []
        for n in stage:
            lower = registry.get(n.op).lower
            assert isinstance(lower, Reduction)
            value = puller.pull(n.operands[0], space.at)
            accumulators.append(Accumulator(names[n], lower.kind, value))
        variables = tuple(name for name, _ in space.reduced)
        extents = tuple(e for _, e in space.reduced)
        return Reduce(variables, extents, (), tuple(accumulators), space.rows_in_lanes)

    def lanes_of(self, stage: list[Node]) -> int | None:
        """The lanes along a row of a stage; None in columns."""
        return reduce_lanes(stage[0].types[0].dtype) if self.space.rows_in_lanes else None

    def _reduced_loops(self, inner: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        lanes = self.space.rows_in_lanes
        for i, (name, extent) in enumerate(reversed(self.space.reduced)):
            kind = "vector" if lanes and i == 0 else "serial"
            inner = (Loop(name, extent, inner, kind),)
        return inner

    def _finish(self, statements: list[Stmt], ones: Sequence[Loop] = ()) -> None:
        if self.columns is not None:
            self._add_step(*self.columns.loops(self.draft, statements))
            return
        space = self.space
        kept = list(space.kept)
        body: tuple[Stmt, ...] = tuple(statements)
        i = len(kept) - 2
        while i >= 0:
            (outer, e0), (inner, e1) = kept[i], kept[i + 1]
            if merges(all_indices(body), outer, inner, e1):
                body = replaced(body, {outer: 0})
                kept[i : i + 2] = [(inner, e0 * e1)]
            i -= 1
        in_lanes = not space.rows_in_lanes
        if ones:
            if in_lanes:
                body, tiles = self._tiled(body, *kept.pop())
                kept.append(tiles)
                in_lanes = False
            body = (self._if(1 - sum(o.extent for o in ones), body), *ones)
        extent: DimLike = kept[0][1] if kept else 1
        for i in range(len(kept) - 1, -1, -1):
            name, size = kept[i]
            last = i == len(kept) - 1
            kind = "parallel" if i == 0 else "serial"
            if last and in_lanes:
                kind = "parallel_vector" if i == 0 else "vector"
            body = (Loop(name, size, body, kind),)
        self._add_step(body, extent)

    def _tiled(
        self, body: tuple[Stmt, ...], column: str, columns: DimLike
    ) -> tuple[tuple[Stmt, ...], tuple[str, DimLike]]:
        """The columns in lanes, in pieces that threads can share; and the loop over those."""
        tile = f"d{len(self.space.shape)}"
        start, width = piece(Dim.symbol(tile), COLUMNS_AT_ONCE, columns)
        body = replaced(body, {column: start + Dim.symbol(column)})
        return (Loop(column, width, body, "vector"),), (tile, pieces(COLUMNS_AT_ONCE, columns))

    def _add_step(self, body: tuple[Stmt, ...], extent: DimLike) -> None:
        kernel, buffers, sizes = self.draft.finish(self.body.name, body)
        nodes = self.body.labels
        flops = product(self.space.shape) * len(nodes)
        self.lowerer.add_step(kernel, buffers, sizes, extent, nodes, self.body.locs, flops=flops)


def _folded(n: Node, elements: Sequence[Expr]) -> Expr:
    """The elements of a row folded as lanes are: by halves, of the next power of two."""
    lower = registry.get(n.op).lower
    assert isinstance(lower, Reduction)
    dtype = n.types[0].dtype
    op = combine_op(lower.kind)
    lanes: list[Expr | None] = list(elements)
    while len(lanes) & (len(lanes) - 1):
        lanes.append(None)
    while len(lanes) > 1:
        half = len(lanes) // 2
        pairs = zip(lanes[:half], lanes[half:])
        lanes = [a if b is None or a is None else Call(op, (a, b), dtype) for a, b in pairs]
    (found,) = lanes
    assert found is not None
    if lower.kind == "sum" and dtype.is_float:  # as a sum of blocks ends: -0.0 is 0.0
        found = Call("add", (found, Literal(0.0, dtype)), dtype)
    if lower.kind in ("max", "min") and dtype.is_float:  # as lanes end: any NaN is the same one
        is_nan = Call("isnan", (found,), bool_)
        found = Call("select", (is_nan, Literal(math.nan, dtype), found), dtype)
    return found
