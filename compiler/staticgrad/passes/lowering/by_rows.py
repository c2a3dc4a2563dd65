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

A pass over the program whose steps are in order. Preserving: who computes a row changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from staticgrad.codegen.sharing import is_shared
from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim, DimLike, floor_div, modulo, substitute, symbols
from staticgrad.kernels.ir import (
    Call,
    Check,
    Expr,
    Kernel,
    Let,
    Load,
    Loop,
    Next,
    Reduce,
    Stmt,
    Store,
    Template,
)
from staticgrad.kernels.program import Choose, Item, Program, Repeat, Step, parts
from staticgrad.kernels.rewrite import factor_of

UNIT_ROWS = 8  # of a share: a tile of the product's micro-kernels
UNIT_ELEMS = 64  # where all kernels are flat: whole cache lines
# With fewer rows, threads share the columns of products, and wait.
LEAST_ROWS = 4 * UNIT_ROWS

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
    """A step's work by rows; a flat kernel's are its elements."""

    step: Step
    count: DimLike
    is_flat: bool
    accesses: tuple[_Access, ...]

    def each(self, count: int) -> int | None:
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
    unit = UNIT_ELEMS if is_flat else UNIT_ROWS
    if not isinstance(count, int) or count < max(2 * unit, LEAST_ROWS):
        return None
    # A product shared by rows has all of the matrix go through each core's L2 cache.
    if sum(_matrix_bytes(s) for s in steps) > target.l2_bytes:
        return None
    if any(r.each(count) is None for r in rows) or not _own_rows(program, rows, count):
        return None
    items = tuple(replace(r.step, unit=unit * (r.each(count) or 1)) for r in rows)
    return replace(loop, items=items, by_rows=True)


def _own_rows(program: Program, rows: Sequence[_Rows], count: int) -> bool:
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
            if modulo(_offset(program, index), length[base] * count) != 0:
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


# --- one step -------------------------------------------------------------------------------------


def _rows_of(step: Step) -> _Rows | None:
    """A step as work on rows, products with the rows of their result as the share; None where its
    share is something else."""
    body = step.kernel.body
    if len(body) != 1:
        return None
    values = dict(zip(step.kernel.sizes, step.sizes))
    (s,) = body
    if isinstance(s, Loop) and s.kind.startswith("parallel"):
        walk = _Walk({**values, s.var: Dim.symbol(ROW)})
        walk.body(s.body, {})
        return _Rows(step, step.extent, s.kind == "parallel_vector", tuple(walk.found))
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
        _Access(s.buffers[2], c + row * c_rs + column, {"column": n}),
    ]
    found += [_Access(b, None, {}) for b in (s.buffers[1], *s.buffers[4:])]
    if s.epilogue is not None:
        found += _epilogue_accesses(s.epilogue, values, n)
    template = replace(s, attrs={**s.attrs, "by_rows": True})
    kernel = replace(step.kernel, body=(template,))
    return _Rows(replace(step, kernel=kernel, extent=m), m, False, tuple(found))


def _epilogue_accesses(
    epilogue: Kernel, values: Mapping[str, DimLike], columns: DimLike
) -> Iterator[_Access]:
    """Its loops go over the rows and columns of the result, whatever extents they have."""
    for rows in epilogue.body:
        assert isinstance(rows, Loop) and rows.kind == "rows"
        for inner in rows.body:
            if not isinstance(inner, Loop) or inner.kind != "columns":
                yield from (_Access(b.name, None, {}) for b in epilogue.buffers)
                continue
            walk = _Walk({**values, rows.var: Dim.symbol(ROW)})
            walk.body(inner.body, {inner.var: columns})
            yield from walk.found


class _Walk:
    """Collects the accesses of statements, with `values` put in for names."""

    def __init__(self, values: Mapping[str, DimLike]) -> None:
        self.values = values
        self.found: list[_Access] = []

    def body(self, statements: Sequence[Stmt], extents: Mapping[str, DimLike]) -> None:
        seen: set[int] = set()
        for s in statements:
            match s:
                case Let() | Next():
                    self._expr(s.value, extents, seen)
                case Store():
                    self._access(s, extents, seen)
                    self._expr(s.value, extents, seen)
                case Check():
                    self._expr(s.condition, extents, seen)
                    self._expr(s.value, extents, seen)
                case Loop():
                    for c in s.carries:
                        self._expr(c.init, extents, seen)
                    self.body(s.body, {**extents, s.var: substitute(s.extent, self.values)})
                case Reduce():
                    spans = (substitute(e, self.values) for e in s.extents)
                    inside = {**extents, **dict(zip(s.vars, spans))}
                    self.body(s.body, inside)
                    self.body([Let(a.name, a.value) for a in s.accumulators], inside)
                case Template():
                    self.found += [_Access(b, None, {}) for b in s.buffers]

    def _expr(self, e: Expr, extents: Mapping[str, DimLike], seen: set[int]) -> None:
        if id(e) in seen:
            return
        seen.add(id(e))
        if isinstance(e, Load):
            self._access(e, extents, seen)
        elif isinstance(e, Call):
            for a in e.args:
                self._expr(a, extents, seen)

    def _access(self, e: Load | Store, extents: Mapping[str, DimLike], seen: set[int]) -> None:
        plain = not e.gathers
        index = substitute(e.index, self.values) if plain else None
        self.found.append(_Access(e.buffer, index, extents))
        for g, _ in e.gathers:
            self._expr(g, extents, seen)
        if e.guard is not None:
            self._expr(e.guard, extents, seen)


def _matrix_bytes(step: Step) -> int:
    """The right operand's bytes of a product of known sizes, else 0."""
    for s in step.kernel.body:
        if isinstance(s, Template) and s.name == "matmul":
            values = dict(zip(step.kernel.sizes, step.sizes))
            n, k = (substitute(d, values) for d in s.sizes[1:3])
            names = [b.name for b in step.kernel.buffers]
            itemsize = step.kernel.buffers[names.index(s.buffers[1])].dtype.itemsize_bytes
            if isinstance(n, int) and isinstance(k, int):
                return n * k * itemsize
    return 0
