"""Reductions: the fixed order in which elements are folded.

Row form (`Reduce.vector`), over rows or one row: element j of a row goes to lane j mod L, where L
lanes are 128 bytes, row after row; lanes are folded by halves. Column form, over one axis: elements
are taken one after another. Both work in blocks: of BLOCK elements of a long row, of as many short
rows as give a lane about as much, of COLUMN_BLOCK elements of a column. Blocks are added in order,
for float sums with compensation. Nothing here depends on the vector width, on threads or on what
was fused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from staticgrad.ir.dim import product
from staticgrad.kernels.ir import Reduce
from staticgrad.kernels.order import (
    BLOCK,
    COLUMN_BLOCK,
    block_rows,
    combine_op,
    identity,
    reduce_lanes,
)

from . import extrema
from .builder import constant, register_type, vector
from .scalar import emit_scalar
from .values import Lane, Scope

if TYPE_CHECKING:
    from .loops import KernelEmitter

UNROLL = 16  # a reduction over at most this many elements known at compile time has no loop


def emit_reduce(em: KernelEmitter, s: Reduce) -> None:
    """Emits the reduction and binds its accumulators' names."""
    ReduceEmitter(em, s).run()


class ReduceEmitter:
    def __init__(self, em: KernelEmitter, s: Reduce) -> None:
        self.em, self.s = em, s
        self.ops = [a.op for a in s.accumulators]
        self.dtypes = [a.value.dtype for a in s.accumulators]
        if s.vector:
            lanes = {reduce_lanes(d) for d in self.dtypes}
            if em.vector_var is not None or len(lanes) != 1:
                raise ValueError(f"{em.kernel.name}: a row reduction of mixed lanes or in lanes")
            self.lanes = lanes.pop()
        else:
            self.lanes = em.lanes if em.vector_var is not None else 1

    def run(self) -> None:
        em, s = self.em, self.s
        if product(s.extents) == 0:
            results = self._identities(1 if s.vector else self.lanes)
        elif self._is_unrolled():
            results = self._unrolled(list(s.vars), self._identities(self.lanes))
        elif len(s.vars) > (2 if s.vector else 1):
            raise ValueError(f"{em.kernel.name}: a reduction over axes that are to be one")
        elif s.vector:
            results = self._rows()
        else:
            results = self._column()
        result_lanes = 1 if s.vector else self.lanes
        for i, compensated in enumerate(self._compensated()):
            if compensated:  # the sum of nothing, -0.0 so far, is shown as +0.0
                ty = self._types(result_lanes)[i]
                results[i] = em.f.emit(f"fadd {ty} {results[i]}, {constant(0.0, ty)}")
        for a, name, dtype in zip(s.accumulators, results, self.dtypes):
            em.scopes[-1].names[a.name] = Lane(name, dtype, result_lanes, em.level)

    def _is_unrolled(self) -> bool:
        total = product(self.s.extents)
        return not self.s.vector and isinstance(total, int) and total <= UNROLL

    def _identities(self, lanes: int) -> list[str]:
        return [
            constant(identity(op, d), vector(register_type(d), lanes))
            for op, d in zip(self.ops, self.dtypes)
        ]

    def _types(self, lanes: int) -> list[str]:
        return [vector(register_type(d), lanes) for d in self.dtypes]

    def _combine(self, lanes: int, a: list[str], b: list[str]) -> list[str]:
        return [
            emit_scalar(self.em.f, combine_op(op), str(d), [str(d), str(d)], lanes, [x, y])
            for op, d, x, y in zip(self.ops, self.dtypes, a, b)
        ]

    # --- parts: what lanes carry from element to element, of some accumulators several ------------

    def _in_parts(self, i: int) -> bool:
        return self.s.vector and self.ops[i] in ("max", "min") and self.dtypes[i].is_float

    def _part_types(self, lanes: int) -> list[str]:
        found: list[str] = []
        for i, ty in enumerate(self._types(lanes)):
            found += extrema.part_types(ty) if self._in_parts(i) else (ty,)
        return found

    def _no_parts(self) -> list[str]:
        found: list[str] = []
        for i, (ty, start) in enumerate(zip(self._types(self.lanes), self._identities(self.lanes))):
            found += extrema.no_parts(self.ops[i], ty) if self._in_parts(i) else (start,)
        return found

    def _parts_of(self, values: list[str]) -> list[str]:
        found: list[str] = []
        for i, (ty, value) in enumerate(zip(self._types(self.lanes), values)):
            split = self._in_parts(i)
            found += extrema.parts_of(self.em.f, ty, value) if split else (value,)
        return found

    def _merged(self, lanes: int, a: list[str], b: list[str]) -> list[str]:
        """The parts of what is in `a` and then in `b`."""
        f = self.em.f
        found: list[str] = []
        left, right = iter(a), iter(b)
        for i, (op, d, ty) in enumerate(zip(self.ops, self.dtypes, self._types(lanes))):
            if self._in_parts(i):
                x, y = ((next(p), next(p), next(p)) for p in (left, right))
                found += extrema.merged(f, op, ty, y, x)
            else:
                pair = [next(left), next(right)]
                found.append(emit_scalar(f, combine_op(op), str(d), [str(d), str(d)], lanes, pair))
        return found

    def _whole(self, parts: list[str]) -> list[str]:
        """The accumulators that a row's parts, in scalars by now, stand for."""
        left, found = iter(parts), []
        for i, (op, ty) in enumerate(zip(self.ops, self._types(1))):
            if self._in_parts(i):
                found.append(extrema.whole(self.em.f, op, ty, (next(left), next(left), next(left))))
            else:
                found.append(next(left))
        return found

    # --- blocks -----------------------------------------------------------------------------------

    def _column(self) -> list[str]:
        (var,), (extent,) = self.s.vars, self.s.extents
        end = self.em.integer(extent)
        if isinstance(extent, int) and extent <= COLUMN_BLOCK:
            return self._elements(var, "0", end)
        loop = ("block of " + var, end, str(COLUMN_BLOCK))
        return self._blocks([loop], lambda spans: self._elements(var, *spans[0]))

    def _rows(self) -> list[str]:
        """Blocks of a long row, or of several short ones: one of the two loops has one step."""
        em = self.em
        *rows, var = self.s.vars
        *counts, length = self.s.extents
        known = length if isinstance(length, int) and length <= BLOCK else None
        loops = []
        if rows:
            steps = em.integer(block_rows(length, self.lanes))
            loops.append(("block of " + rows[0], em.integer(counts[0]), steps))
        if known is None:
            loops.append(("block of " + var, em.integer(length), str(BLOCK)))
        end = em.integer(length)

        def block(spans: list[tuple[str, str]]) -> list[str]:
            first, last = spans[-1] if known is None else ("0", end)
            if not rows:
                return self._fold(self._lanes(var, first, last, known, self._no_parts()))
            carried = list(zip(self._part_types(self.lanes), self._no_parts()))
            opened = em.open_loop(rows[0], *spans[0], 1, carried)
            em.close_loop(opened, self._lanes(var, first, last, known, opened.phis))
            return self._fold(opened.phis)

        return self._blocks(loops, block) if loops else block([])

    def _blocks(
        self, loops: list[tuple[str, str, str]],
        block: Callable[[list[tuple[str, str]]], list[str]],
    ) -> list[str]:  # fmt: skip
        """Adds the results of blocks in order: `loops` are nested (name, end, step), and `block`
        gets their spans. A float's sum carries what each addition rounds away (Knuth's two-sum), or
        a million blocks would add up a million rounding errors."""
        em = self.em
        lanes = 1 if self.s.vector else self.lanes
        types, inits = self._types(lanes), self._identities(lanes)
        lost = [i for i, compensated in enumerate(self._compensated()) if compensated]
        all_types = types + [types[i] for i in lost]

        def nested(left: list[tuple[str, str, str]], carried: list[str], spans: Any) -> list[str]:
            if not left:
                totals, rests = carried[: len(inits)], carried[len(inits) :]
                found = block(spans)
                added = self._combine(lanes, totals, found)
                return added + [
                    self._kept(types[i], totals[i], found[i], added[i], rest)
                    for i, rest in zip(lost, rests)
                ]
            (name, end, step), *inner = left
            opened = em.open_loop(name, "0", end, step, list(zip(all_types, carried)))
            limit = em.f.emit(f"add i64 {opened.i}, {step}")
            span = (opened.i, em.f.call_intrinsic("llvm.smin", "i64", limit, end))
            em.close_loop(opened, nested(inner, opened.phis, [*spans, span]))
            return opened.phis

        carried = nested(loops, inits + [inits[i] for i in lost], [])
        results, rests = carried[: len(inits)], carried[len(inits) :]
        for i, rest in zip(lost, rests):
            results[i] = self._with_rest(types[i], results[i], rest, lanes)
        return results

    def _compensated(self) -> list[bool]:
        return [op == "sum" and d.is_float for op, d in zip(self.ops, self.dtypes)]

    def _kept(self, ty: str, a: str, b: str, total: str, rest: str) -> str:
        """`rest` plus what `total = a + b` has rounded away."""
        f = self.em.f
        of_b = f.emit(f"fsub {ty} {total}, {a}")
        of_a = f.emit(f"fsub {ty} {total}, {of_b}")
        error_a = f.emit(f"fsub {ty} {a}, {of_a}")
        error_b = f.emit(f"fsub {ty} {b}, {of_b}")
        return f.emit(f"fadd {ty} {rest}, {f.emit(f'fadd {ty} {error_a}, {error_b}')}")

    def _with_rest(self, ty: str, total: str, rest: str, lanes: int) -> str:
        """`total + rest`; where an infinity made the rest NaN, `total`."""
        f = self.em.f
        known = f.emit(f"fcmp ord {ty} {rest}, {rest}")
        whole = f.emit(f"fadd {ty} {total}, {rest}")
        return f.emit(f"select {vector('i1', lanes)} {known}, {ty} {whole}, {ty} {total}")

    def _fold(self, parts: list[str]) -> list[str]:
        """The accumulators of a row's parts, whose lanes are folded by halves."""
        if not self.s.vector:
            return parts
        f, lanes = self.em.f, self.lanes
        while lanes > 1:
            half = lanes // 2
            low = ", ".join(f"i32 {i}" for i in range(half))
            high = ", ".join(f"i32 {i}" for i in range(half, lanes))
            a, b = [], []
            for name, ty in zip(parts, self._part_types(lanes)):
                pick = f"shufflevector {ty} {name}, {ty} poison, <{half} x i32> "
                a.append(f.emit(f"{pick}<{low}>"))
                b.append(f.emit(f"{pick}<{high}>"))
            parts = self._merged(half, a, b) if half > 1 else self._last(a, b)
            lanes = half
        return self._whole(parts)

    def _last(self, a: list[str], b: list[str]) -> list[str]:
        """Two vectors of one lane each: merged as scalars."""
        f = self.em.f
        first, second = [], []
        for x, y, ty in zip(a, b, self._part_types(1)):
            first.append(f.emit(f"extractelement <1 x {ty}> {x}, i32 0"))
            second.append(f.emit(f"extractelement <1 x {ty}> {y}, i32 0"))
        return self._merged(1, first, second)

    # --- elements ---------------------------------------------------------------------------------

    def _elements(self, var: str, begin: str, end: str) -> list[str]:
        """Accumulates over `[begin, end)` of a column."""
        em = self.em
        carried = list(zip(self._part_types(self.lanes), self._no_parts()))
        opened = em.open_loop(var, begin, end, 1, carried)
        em.close_loop(opened, self._step(opened.phis))
        return opened.phis

    def _step(self, accumulated: list[str]) -> list[str]:
        """The accumulators after one element (of each lane)."""
        em = self.em
        em.body(self.s.body)
        values = []
        for a in self.s.accumulators:
            lane = em.value(a.value)
            values.append(em.spread(lane) if self.lanes > 1 else lane.name)
        return self._merged(self.lanes, accumulated, self._parts_of(values))

    def _unrolled(self, left: list[str], accumulated: list[str]) -> list[str]:
        em = self.em
        if not left:
            return self._step(accumulated)
        extent = self.s.extents[len(self.s.vars) - len(left)]
        assert isinstance(extent, int)
        for i in range(extent):
            scope = Scope([])
            em.f.open_list(scope.prelude)
            scope.vars[left[0]] = str(i)
            em.scopes.append(scope)
            accumulated = self._unrolled(left[1:], accumulated)
            em.scopes.pop()
        return accumulated

    def _lanes(
        self, var: str, begin: str, end: str, known: int | None, accumulated: list[str]
    ) -> list[str]:
        """Accumulates over `[begin, end)` of a row, whose length may be known."""
        em, width = self.em, self.lanes
        f = em.f
        em.lanes, em.vector_var = width, var
        start = begin
        if known is None or known >= width:
            count = f.emit(f"sub i64 {end}, {begin}")
            stop = f.emit(f"add i64 {begin}, {f.emit(f'and i64 {count}, {-width}')}")
            carried = list(zip(self._part_types(width), accumulated))
            opened = em.open_loop(var, begin, stop, width, carried)
            em.close_loop(opened, self._step(opened.phis))
            accumulated, start = opened.phis, stop
        if known is None or known % width:
            accumulated = self._masked_step(var, start, end, accumulated, skip=known is None)
        em.lanes, em.vector_var = 1, None
        return accumulated

    def _masked_step(
        self, var: str, start: str, end: str, accumulated: list[str], skip: bool
    ) -> list[str]:
        em, f, width = self.em, self.em.f, self.lanes
        scope = Scope([])
        f.open_list(scope.prelude)
        inside, after, before = f.new_label("tail"), f.new_label("whole"), f.block
        if skip:
            f.branch_if(f.emit(f"icmp slt i64 {start}, {end}"), inside, after)
            f.label(inside)
        scope.vars[var] = start
        em.scopes.append(scope)
        em.mask = em.tail_mask(start, end, width)
        stepped = self._step(accumulated)
        kept = [
            f.emit(f"select <{width} x i1> {em.mask}, {ty} {new}, {ty} {old}")
            for ty, new, old in zip(self._part_types(width), stepped, accumulated)
        ]
        em.mask = None
        em.scopes.pop()
        if not skip:
            return kept
        last = f.block
        f.branch(after)
        f.label(after)
        merged: list[str] = []
        for ty, old, new in zip(self._part_types(width), accumulated, kept):
            merged.append(f.emit(f"phi {ty} [{old}, %{before}], [{new}, %{last}]"))
        return merged
