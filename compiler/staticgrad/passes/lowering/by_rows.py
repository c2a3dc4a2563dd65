"""by_rows: the threads of a loop keep to rows of their own, and do not wait for each other.

before -> after

    repeat _i0 in 0..100 {                     repeat _i0 in 0..100 by rows {
      step 0: matmul(h, w -> g)                  step 0: matmul(h, w -> g)   rows of g
      step 1: cell(g, xs -> h)                   step 1: cell(g, xs -> h)
    }                                          }

Where each step of an iteration works on the rows of a batch, and reads of what the loop writes only
the same row, no row needs what another thread computes: in this iteration or in an earlier one. The
steps are then shared by the same rows, products too, and nobody meets inside of the loop. A GRU of
100 steps met 600 times in a training step, each time for the slower of the two.

Few rows are shared so that threads wait, which is known when the batch is: at run time, if it is a
symbol. Then the same steps have other shares, and the barriers of any other loop.

A pass over the program whose steps are in order. Preserving: who computes a row changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from staticgrad.codegen.sharing import is_shared, kernel_unit
from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim, DimLike, dim_max, dim_min, floor_div, substitute, symbols
from staticgrad.ir.dtype import dtype
from staticgrad.kernels.ir import TILE, Kernel, Loop, Stmt, Template
from staticgrad.kernels.program import Choose, Item, Program, Repeat, Step, parts
from staticgrad.kernels.rewrite import factor_of
from staticgrad.kernels.walk import accesses

UNIT_ROWS = 8  # of a share: a tile of the product's micro-kernels
UNIT_ELEMS = 64  # where all kernels are flat: whole cache lines
# With fewer, threads share the columns of products, and wait: a GRU's step of 100 x 8 x 128 takes
# 2.0 ms so and 2.9 by rows (of 16: 3.8 and 3.5, of 24: 6.0 and 6.7).
LEAST_ROWS = 4 * UNIT_ROWS
LEAST_ELEMS = 2 * UNIT_ELEMS

ROW = "row"


def by_rows(program: Program, target: Target) -> Program:
    """The program with the loops that allow it shared by rows."""

    def each(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(one(item) for item in items)

    def one(item: Item) -> Item:
        if isinstance(item, Step):
            return item
        if isinstance(item, Choose):
            return replace(item, branches=tuple(each(b) for b in item.branches))
        if any(not isinstance(i, Step) for part in parts(item) for i in part):
            return replace(item, items=each(item.items), test=each(item.test))
        return _shared_by_rows(program, item, target) or item

    return replace(program, items=list(each(program.items)))


@dataclass(frozen=True)
class _Access:
    """The elements of a buffer that one row's work touches: `index` over the row and variables of
    the given extents. None for what no index describes."""

    buffer: str
    index: DimLike | None
    extents: Mapping[str, DimLike]


@dataclass(frozen=True)
class _Rows:
    """A step's work by rows; a flat kernel's are its elements. Each row of a product goes through
    a matrix of so many bytes."""

    step: Step
    count: DimLike
    is_flat: bool
    accesses: tuple[_Access, ...]
    matrix_bytes: DimLike = 0

    def each(self, count: DimLike) -> int | None:
        """How many of these rows make one of `count`; None where they don't."""
        found = floor_div(self.count, count)
        return found if isinstance(found, int) and found * count == self.count else None


def _shared_by_rows(program: Program, loop: Repeat, target: Target) -> Repeat | None:
    steps = [s for s in loop.items if isinstance(s, Step)]
    if loop.length is None or not any(is_shared(s) for s in steps):
        return None
    found = [_rows_of(s) for s in steps]
    rows = [r for r in found if r is not None]
    if len(rows) < len(found) or any(s.can_fail for s in steps):
        return None
    counts = {r.count for r in rows if not r.is_flat} or {r.count for r in rows}
    if len(counts) != 1:
        return None
    (count,) = counts
    is_flat = all(r.is_flat for r in rows)
    unit, least = (UNIT_ELEMS, LEAST_ELEMS) if is_flat else (UNIT_ROWS, LEAST_ROWS)
    enough = dim_min(1, dim_max(0, count - (least - 1)))  # 1 or 0, at the latest at run time
    if enough == 0:
        return None
    # A product shared by rows has all of the matrix go through each core's L2 cache.
    matrices = sum(r.matrix_bytes for r in rows)
    if not isinstance(matrices, int) or matrices > target.l2_bytes:
        return None
    if any(r.each(count) is None for r in rows) or not _own_rows(program, rows, count):
        return None
    return replace(loop, items=tuple(_kept(r, count, unit, enough) for r in rows), by_rows=enough)


def _own_rows(program: Program, rows: Sequence[_Rows], count: DimLike) -> bool:
    """Whether of all memory that is written each row has a part of its own, the same in each step,
    and touches nothing else of it."""
    written = {
        program.base(index)
        for r in rows
        for index, parameter in zip(r.step.buffers, r.step.kernel.buffers)
        if parameter.mode != "in" and not program.buffers[index].per_thread
    }
    length: dict[int, int] = {}  # of a row in memory, in elements
    for r in rows:
        each = r.each(count) or 1
        places = {b.name: i for i, b in zip(r.step.buffers, r.step.kernel.buffers)}
        for access in r.accesses:
            index = places[access.buffer]
            base = program.base(index)
            if base not in written:
                continue
            stride = _row_stride(access)
            if stride is None:
                return False
            if length.setdefault(base, stride * each) != stride * each:
                return False
            offset, whole = _offset(program, index), length[base] * count
            if floor_div(offset, whole) * whole != offset:
                return False
    return True


def _offset(program: Program, index: int) -> DimLike:
    """Where a buffer begins in the memory that it is part of."""
    offset: DimLike = 0
    while program.buffers[index].base >= 0:
        offset = offset + program.buffers[index].offset
        index = program.buffers[index].base
    return offset


def _row_stride(access: _Access) -> int | None:
    """The distance of two rows, if what a row touches lies within it."""
    if access.index is None:
        return None
    stride = factor_of(access.index, ROW)
    if not isinstance(stride, int) or stride <= 0:
        return None
    rest = substitute(access.index, {ROW: 0})
    low = high = substitute(rest, dict.fromkeys(access.extents, 0))
    for name in symbols(rest):
        factor, extent = factor_of(rest, name), access.extents.get(name)
        if not isinstance(factor, int) or not isinstance(extent, int):
            return None
        reach = factor * (extent - 1)
        low, high = low + min(0, reach), high + max(0, reach)
    if not isinstance(low, int) or not isinstance(high, int) or low < 0 or high >= stride:
        return None
    return stride


_OWN_SIZES = 14  # of a product, behind which is what is said of its share


def _kept(rows: _Rows, count: DimLike, unit: int, enough: DimLike) -> Step:
    """The step as a part of a loop by rows: a product that else had its columns shared by threads
    has its rows, where there are `enough`."""
    each = rows.each(count)
    assert each is not None
    plain = kernel_unit(rows.step.kernel)
    step = replace(rows.step, unit=plain + enough * (unit * each - plain))
    (s,) = step.kernel.body
    if not isinstance(s, Template):
        return step
    values = dict(zip(step.kernel.sizes, step.sizes))
    m, n = s.sizes[:2]
    flag, names, sizes = enough, step.kernel.sizes, step.sizes
    if not isinstance(enough, int):
        flag, names, sizes = Dim.symbol("by_rows"), (*names, "by_rows"), (*sizes, enough)
    template = replace(s, sizes=(*s.sizes[:_OWN_SIZES], m + n * flag))
    kernel = replace(step.kernel, sizes=names, body=(template,))
    extent = dim_max(substitute(m, values), substitute(n, values) * (1 - enough))
    return replace(step, kernel=kernel, sizes=sizes, extent=extent)


# --- one step -------------------------------------------------------------------------------------


def _rows_of(step: Step) -> _Rows | None:
    """A step as work on rows, a product's being those of its result; None where its share is
    something else."""
    body = step.kernel.body
    if len(body) != 1:
        return None
    values = dict(zip(step.kernel.sizes, step.sizes))
    (s,) = body
    if isinstance(s, Loop) and s.kind.startswith("parallel"):
        found = _accesses(s.body, {**values, s.var: Dim.symbol(ROW)})
        return _Rows(step, step.extent, s.kind == "parallel_vector", tuple(found))
    if isinstance(s, Template) and s.name == "matmul":
        return _product_rows(step, s, values)
    return None


def _product_rows(step: Step, s: Template, values: Mapping[str, DimLike]) -> _Rows | None:
    m, n, k, a, a_rs, a_cs, _, _, _, c, c_rs, batch, *_ = (substitute(d, values) for d in s.sizes)
    if batch != 0:
        return None
    row, column, inner = (Dim.symbol(name) for name in (ROW, "column", "k"))
    found = [
        _Access(s.buffers[0], a + row * a_rs + inner * a_cs, {"k": k}),
    ]
    if "tile" not in s.attrs or s.buffers[2] != s.buffers[3]:
        found.append(_Access(s.buffers[2], c + row * c_rs + column, {"column": n}))
    found += [_Access(b, None, {}) for b in (s.buffers[1], *s.buffers[4:])]
    left, right = s.prologues
    if left is not None:
        found += _prologue_accesses(left, values, k, by_columns=a_rs == 1)
    if right is not None:
        found += [_Access(b.name, None, {}) for b in right.buffers if b.name != TILE]
    if s.epilogue is not None:
        found += _epilogue_accesses(s.epilogue, values, n)
    matrix_bytes = n * k * dtype(s.attrs["dtype"]).itemsize_bytes
    return _Rows(step, m, False, tuple(found), matrix_bytes)


def _epilogue_accesses(
    epilogue: Kernel, values: Mapping[str, DimLike], columns: DimLike
) -> Iterator[_Access]:
    """Its loops go over the rows and columns of the result, whatever extents they have."""
    for rows in epilogue.body:
        assert isinstance(rows, Loop) and rows.kind == "rows"
        for inner in rows.body:
            if isinstance(inner, Loop) and inner.kind == "columns":
                at = {**values, rows.var: Dim.symbol(ROW)}
                found = _accesses(inner.body, at, {inner.var: columns})
                yield from (access for access in found if access.buffer != TILE)
            else:
                yield from (_Access(b.name, None, {}) for b in epilogue.buffers)


def _prologue_accesses(
    prologue: Kernel, values: Mapping[str, DimLike], k: DimLike, *, by_columns: bool
) -> Iterator[_Access]:
    """What a prologue of A reads for a row, which is a column of its loops where it computes the
    transpose."""
    (rows,) = prologue.body
    assert isinstance(rows, Loop)
    (columns,) = rows.body
    assert isinstance(columns, Loop)
    row, other = (columns, rows) if by_columns else (rows, columns)
    at = {**values, row.var: Dim.symbol(ROW)}
    for access in _accesses(columns.body, at, {other.var: k}):
        if access.buffer != TILE:
            yield access


def _accesses(
    body: Sequence[Stmt],
    values: Mapping[str, DimLike],
    extents: Mapping[str, DimLike] | None = None,
) -> Iterator[_Access]:
    """What statements touch, with `values` put in for names."""
    for touch, around in accesses(body, extents):
        if isinstance(touch, Template):
            yield from (_Access(b, None, {}) for b in touch.touched)
        else:
            index = None if touch.gathers else substitute(touch.index, values)
            known = {name: substitute(extent, values) for name, extent in around.items()}
            yield _Access(touch.buffer, index, known)
