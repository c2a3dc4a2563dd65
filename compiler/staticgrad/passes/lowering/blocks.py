"""Reductions whose blocks are shared among threads, and what adds blocks.

A reduction takes its elements in blocks (`kernels/order.py`). Where nothing else could be shared,
because everything is reduced or few long columns are, each block's result is stored and a small
kernel combines them, in order and, for float sums, with compensation, as a reduction in one kernel
does (`codegen/reduce.py`): the same bits.

    for each block (shared among threads): part[block] = the reduction of the block
    for each block: total = total op part[block]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from staticgrad.ir.dim import Dim, DimLike, dim_min, floor_div, product
from staticgrad.ir.dtype import DType, bool_
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.cost import COST
from staticgrad.kernels.ir import (
    Call,
    Carry,
    Expr,
    Let,
    Literal,
    Loop,
    Next,
    Ref,
    Stmt,
    Store,
    call,
)
from staticgrad.kernels.order import BLOCK, COLUMN_BLOCK, block_rows, combine_op, identity
from staticgrad.kernels.rewrite import all_indices, merges, replaced
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction

from .draft import Draft, linear
from .map import lower_map, nest
from .pull import At, Puller

if TYPE_CHECKING:
    from .reduce import ReduceLowering
    from .space import Space

# A sweep over so many elements takes some 5 us; a barrier and a kernel more take 1.
LEAST_ELEMENTS = 1 << 16
# Of an unknown number of rows: these should be so long, that 64 of them are as many elements.
LEAST_ROW = 1024
# Columns: enough rows for blocks; and so few columns that blocks are what threads share better,
# or so many rows that bands of columns would go through memory in short pieces, each in another
# page: 64 times 512 x 512 took 2.5 ms instead of 1.6.
LEAST_ROWS, MOST_COLUMNS = 256, 4096
ASSUMED_ROWS = 8  # what a batch of unknown size counts as
# Or so many elements that they come from memory, of at least so many rows; and the columns whose
# results stay in the second cache: the longer the pieces of a row, the less memory waits (64 rows
# of 1 MiB on one thread: 4.9 ms in pieces of 16 KiB, 4.2 of 128 KiB).
LEAST_STREAM, LEAST_STREAM_ROWS = 1 << 20, 16
TILE_COLUMNS = 32768
# Rows that are added in one sweep over the results: memory serves eight streams better than one
# (64 rows of 1 MiB on one thread: 4.2 ms by single rows, 2.5 by eight), unless two of them lie in
# one page, which the prefetchers take for one stream (rows of 2 KiB: 2.9 ms by one, 4.2 by eight,
# 6.1 by two). Of what costs many instructions an element only one: it is bound by them, and each
# copy of it is to be compiled.
ROWS_AT_ONCE, LEAST_BYTES, MOST_COST = 8, 4096, 32


class Total(NamedTuple):
    """What a reduction's blocks are combined to."""

    name: str
    op: str  # of the reduction: "sum", "max", ..
    dtype: DType

    @property
    def compensated(self) -> bool:
        return self.op == "sum" and self.dtype.is_float


def no_elements(op: str, dtype: DType) -> Literal:
    """What a reduction begins with."""
    return Literal(identity(op, dtype), dtype)


def combined(
    totals: Sequence[Total], block: str, blocks: DimLike, part: Callable[[int], Expr]
) -> list[Stmt]:
    """Statements that bind each total's name; `part(i)` is the block's part of total `i`."""
    carries: list[Carry] = []
    inside: list[Stmt] = []
    after: list[Stmt] = []
    for i, t in enumerate(totals):
        nothing = no_elements(t.op, t.dtype)
        total, rest = Ref(f"total{i}", t.dtype), Ref(f"rest{i}", t.dtype)
        carries.append(Carry(total.name, nothing))
        found = Ref(f"part{i}", t.dtype)
        inside.append(Let(found.name, part(i)))
        if not t.compensated:
            inside.append(Next(total.name, Call(combine_op(t.op), (total, found), t.dtype)))
            after.append(Let(t.name, total))
            continue
        carries.append(Carry(rest.name, nothing))
        inside += _compensated(i, total, rest, found)
        whole = call("add", total, rest)
        known = call("select", call("isnan", rest, dtype=bool_), total, whole, dtype=t.dtype)
        # The sum of nothing, -0.0 so far, is shown as +0.0.
        after.append(Let(t.name, call("add", known, Literal(0.0, t.dtype))))
    return [Loop(block, blocks, tuple(inside), "serial", tuple(carries)), *after]


def _compensated(i: int, total: Ref, rest: Ref, part: Expr) -> list[Stmt]:
    """Knuth's two-sum: the new total, and `rest` plus what that has rounded away."""
    lets: list[Stmt] = []

    def bound(name: str, value: Expr) -> Ref:
        lets.append(Let(f"{name}{i}", value))
        return Ref(f"{name}{i}", total.dtype)

    added = bound("added", call("add", total, part))
    of_part = bound("of_part", call("subtract", added, total))
    of_total = call("subtract", added, of_part)
    lost = call("add", call("subtract", total, of_total), call("subtract", part, of_part))
    more = bound("more", call("add", rest, lost))
    return [*lets, Next(total.name, added), Next(rest.name, more)]


def pieces(step: DimLike, extent: DimLike) -> DimLike:
    """How many pieces of `step` an extent has, the last of which may be shorter."""
    return floor_div(extent + (step - 1), step)


def piece(number: DimLike, step: DimLike, extent: DimLike) -> tuple[DimLike, DimLike]:
    """Where the piece of that number begins, and how long it is."""
    begin = number * step
    if isinstance(extent, int) and isinstance(step, int) and extent % step == 0:
        return begin, step
    return begin, dim_min(step, extent - begin)


def in_blocks(space: Space, stages: int, full: bool) -> bool:
    """Whether a group of reductions is lowered this way. A function of the shape, so that sizes
    alone decide; the bits are the same either way."""
    if not space.reduced or space.is_short:
        return False
    sizes = [space.shape[a] for a in space.axes]
    known = product(tuple(e for e in sizes if isinstance(e, int)))
    assert isinstance(known, int)
    any_size = any(isinstance(e, Dim) for e in sizes)
    if not space.kept:
        return known >= (LEAST_ROW if any_size else LEAST_ELEMENTS)
    rows, columns = known * (ASSUMED_ROWS if any_size else 1), space.kept[-1][1]
    if space.rows_in_lanes or stages > 1 or full:
        return False
    if isinstance(columns, Dim):
        return False
    whole = product(space.shape)
    if isinstance(whole, int) and whole >= LEAST_STREAM and rows >= LEAST_STREAM_ROWS:
        return True
    return rows >= LEAST_ROWS and columns <= MOST_COLUMNS and rows * columns >= LEAST_ELEMENTS


class BlockedLowering:
    """Lowers the stages of a group, each by two kernels, and what else it has by one."""

    def __init__(self, lowering: ReduceLowering) -> None:
        self.r = lowering
        self.space = lowering.space
        self.lowerer = lowering.lowerer
        self.block = f"d{len(self.space.shape)}"  # a loop's name, as `passes/names.py` knows them
        self.scalars: dict[Node, int] = {}

    def run(self, full: list[tuple[Value, Value]], rows: list[tuple[Value, Value]]) -> None:
        r = self.r
        for i, stage in enumerate(r.stages):
            self._stage(stage, rows if i == len(r.stages) - 1 else [], bool(full))
        if full:
            r.draft = draft = Draft(self.lowerer.program)
            outputs = [self._full_output(inner, outer) for inner, outer in full]
            labels = r.body.labels
            lower_map(
                self.lowerer, draft, r.body.name, self.space.shape, outputs, labels, r.body.locs
            )

    def _full_output(
        self, inner: Value, outer: Value
    ) -> tuple[int, Callable[[At], DimLike], Callable[[At], Expr]]:
        puller = self._puller({})
        buffer = self.lowerer.result_buffer(outer)
        return buffer, lambda at: linear(at, outer.shape), lambda at: puller.pull(inner, at)

    def _puller(self, names: dict[Node, str]) -> Puller:
        """Knows the reductions that `names` binds in this kernel, and loads those before."""
        r = self.r
        known: dict[Value, Callable[[At], Expr]] = {}
        for n, name in names.items():
            ref = Ref(name, n.types[0].dtype)
            known[n.results[0]] = lambda at, ref=ref: ref  # type: ignore[misc]
        for n, buffer in self.scalars.items():
            if n not in names:
                known[n.results[0]] = lambda at, n=n, b=buffer: r.draft.load(  # type: ignore[misc]
                    b, 0, n.types[0].dtype
                )
        return Puller(r.body.inside, r._outside, known)

    def _stage(self, stage: list[Node], rows: list[tuple[Value, Value]], full: bool) -> None:
        space, cut = self.space, self._cut(stage)
        blocks = product(tuple(pieces(step, extent) for _, step, extent in cut))
        parts = [
            self.lowerer.scratch(
                n.types[0].dtype, blocks * product(tuple(e for _, e in space.kept))
            )
            for n in stage
        ]
        self._block_kernel(stage, cut, blocks, parts)
        self._combine_kernel(stage, blocks, parts, rows, full)

    def _cut(self, stage: list[Node]) -> list[tuple[str, DimLike, DimLike]]:
        """The reduced axes that blocks are pieces of: variable, length of a piece, extent."""
        lanes = self.r.lanes_of(stage)
        *rows, (name, extent) = self.space.reduced
        if lanes is None:
            return [(name, COLUMN_BLOCK, extent)]
        cut = [(row, block_rows(extent, lanes), count) for row, count in rows]
        if not (cut and isinstance(extent, int) and extent <= BLOCK):
            cut.append((name, BLOCK, extent))
        return cut

    def _place(self, blocks: DimLike) -> DimLike:
        """Of a block's result: blocks lie side by side, the columns of one together."""
        kept = self.space.kept
        at = [Dim.symbol(name) for name, _ in kept]
        at.insert(max(0, len(at) - 1), Dim.symbol(self.block))
        shape = [e for _, e in kept]
        shape.insert(max(0, len(shape) - 1), blocks)
        return linear(at, tuple(shape))

    def _block_kernel(
        self, stage: list[Node], cut: list[tuple[str, DimLike, DimLike]], blocks: DimLike,
        parts: list[int],
    ) -> None:  # fmt: skip
        r, space = self.r, self.space
        r.draft = draft = Draft(self.lowerer.program)
        extents, table = dict(space.reduced), {}
        number: DimLike = Dim.symbol(self.block)  # of the block, along the axes not yet cut
        for i, (name, step, extent) in reversed(list(enumerate(cut))):
            outer = floor_div(number, pieces(step, extent)) if i else 0
            begin, extents[name] = piece(number - outer * pieces(step, extent), step, extent)
            table[name] = begin + Dim.symbol(name)
            if step == 1:  # a piece of one row, whose loop would be a tenth of the time
                table[name] = begin
                del extents[name]
            number = outer
        if space.kept:
            body, loops = self._streamed(stage, blocks, parts, extents, table)
        else:
            names = {n: f"r{i}" for i, n in enumerate(stage)}
            reduction = r.reduction(stage, names, self._puller({}))
            body = (
                *replaced(
                    [replace(reduction, vars=tuple(extents), extents=tuple(extents.values()))],
                    table,
                ),
                *(
                    draft.store(b, self._place(blocks), Ref(names[n], n.types[0].dtype))
                    for n, b in zip(stage, parts)
                ),
            )
            loops = []
        loops.insert(0, (self.block, blocks))
        if len(loops) > 1 and not _at_least(blocks, loops[1][1]):
            loops[:2] = loops[1::-1]
        for i, (name, size) in reversed(list(enumerate(loops))):
            body = (Loop(name, size, body, "serial" if i else "parallel"),)
        self._add(body, r.body.name, loops[0][1], product(space.shape) * len(r.body.labels))

    def _streamed(
        self, stage: list[Node], blocks: DimLike, parts: list[int], extents: dict[str, DimLike],
        table: dict[str, DimLike],
    ) -> tuple[tuple[Stmt, ...], list[tuple[str, DimLike]]]:  # fmt: skip
        """A block of rows, which begins as `table` says, taken one after another as they lie in
        memory and added to a line of results in the cache; and the loops around. Bands of columns
        in registers read 1 KiB of a row at a time: 64 x 262144 took 3.5 ms so, as long as on one
        thread."""
        space, place = self.space, self._place(blocks)
        puller = self._puller({})
        nothing: list[Stmt] = []
        lines: list[Stmt] = []
        for n, b in zip(stage, parts):
            lower = registry.get(n.op).lower
            assert isinstance(lower, Reduction)
            dtype = n.types[0].dtype
            nothing.append(self.r.draft.store(b, place, no_elements(lower.kind, dtype)))
            known = self.r.draft.load(b, place, dtype)
            element = puller.pull(n.operands[0], space.at)
            value = Call(combine_op(lower.kind), (known, element), dtype)
            lines.append(self.r.draft.store(b, place, value))
        statements: tuple[Stmt, ...] = (*nothing, *lines)
        kept = list(space.kept)
        for i in range(len(kept) - 2, -1, -1):
            (outer, _), (inner, extent) = kept[i], kept[i + 1]
            if merges(all_indices(statements), outer, inner, extent):
                statements = replaced(statements, {outer: 0})
                kept[i : i + 2] = [(inner, kept[i][1] * extent)]
        column, columns = kept.pop()
        tile, width = f"d{len(space.shape) + 1}", columns
        if not (isinstance(columns, int) and columns <= TILE_COLUMNS):
            start, width = piece(Dim.symbol(tile), TILE_COLUMNS, columns)
            statements = replaced(statements, {column: start + Dim.symbol(column)})
            kept.append((tile, pieces(TILE_COLUMNS, columns)))
        statements = replaced(statements, table)
        ((row, rows),) = extents.items()
        row_bytes = columns * stage[0].operands[0].dtype.itemsize_bytes
        at_once = ROWS_AT_ONCE if _at_least(row_bytes, LEAST_BYTES) and self._is_light() else 1
        sums = statements[len(nothing) :]
        body = self._rows(sums, row, rows, at_once, (column, width))
        return (Loop(column, width, statements[: len(nothing)], "vector"), *body), kept

    def _is_light(self) -> bool:
        cost = sum(COST.get(label, 1) for label in self.r.body.labels)
        return cost * ROWS_AT_ONCE <= MOST_COST

    def _rows(
        self, lines: Sequence[Stmt], row: str, extent: DimLike, at_once: int,
        columns: tuple[str, DimLike],
    ) -> tuple[Stmt, ...]:  # fmt: skip
        """The sweeps over the results that add all rows: so many at once, and what is left."""
        group = f"d{len(self.space.shape) + 2}"
        taken = floor_div(extent, at_once) * at_once
        counts = ((group, 0, taken, at_once), (row, taken, extent - taken, 1))
        sweeps: list[Stmt] = []
        for name, start, rows, step in counts:
            if rows == 0:
                continue
            first = start + Dim.symbol(name) * step
            each = [replaced(lines, {row: first + i}) for i in range(step)]
            sweep = Loop(*columns, tuple(_added(of_line) for of_line in zip(*each)), "vector")
            sweeps.append(Loop(name, floor_div(rows, step), (sweep,), "serial"))
        return tuple(sweeps)

    def _combine_kernel(
        self, stage: list[Node], blocks: DimLike, parts: list[int],
        rows: list[tuple[Value, Value]], full: bool,
    ) -> None:  # fmt: skip
        r, space = self.r, self.space
        r.draft = draft = Draft(self.lowerer.program)
        totals = []
        for i, n in enumerate(stage):
            lower = registry.get(n.op).lower
            assert isinstance(lower, Reduction)
            totals.append(Total(f"r{i}", lower.kind, n.types[0].dtype))
        place = self._place(blocks)
        body = combined(
            totals, self.block, blocks, lambda i: draft.load(parts[i], place, totals[i].dtype)
        )
        names = {n: t.name for n, t in zip(stage, totals)}
        last = stage is r.stages[-1]
        if full or not last:
            for n, t in zip(stage, totals):
                self.scalars[n] = self.lowerer.scratch(t.dtype, 1)
                body.append(draft.store(self.scalars[n], 0, Ref(t.name, t.dtype)))
        puller = self._puller(names)
        for inner, outer in rows:
            at = r.row_at(inner)
            buffer = self.lowerer.result_buffer(outer)
            body.append(draft.store(buffer, linear(at, outer.shape), puller.pull(inner, at)))
        sizes = [e for _, e in space.kept]
        nested = nest(body, [name for name, _ in space.kept], sizes) if sizes else tuple(body)
        flops = blocks * product(tuple(sizes)) * len(stage)
        self._add(nested, f"{stage[0].op}_blocks", sizes[0] if sizes else 1, flops)

    def _add(self, body: tuple[Stmt, ...], name: str, extent: DimLike, flops: DimLike) -> None:
        kernel, buffers, sizes = self.r.draft.finish(name, body)
        r = self.r
        self.lowerer.add_step(
            kernel, buffers, sizes, extent, r.body.labels, r.body.locs, flops=flops
        )


def _added(stores: Iterable[Stmt]) -> Store:
    """Of stores of `result op element`: the one of `((result op element) op element) op ..`."""
    whole: Store | None = None
    for s in stores:
        assert isinstance(s, Store) and isinstance(s.value, Call)
        if whole is not None:
            s = replace(s, value=replace(s.value, args=(whole.value, s.value.args[1])))
        whole = s
    assert whole is not None
    return whole


def _at_least(a: DimLike, b: DimLike) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a >= b
