"""Products of one vector with few, whose lanes are blocks of k, for `gemm_vector`.

As many blocks as 16 bytes hold elements are a group, which is transposed in registers, and a part
of a vector. A vector's parts are stages: a group goes through them one after another, each a part
of k, one behind the group before it. So what is read together lies in other lines of an L1 cache:
blocks are often a multiple of 4096 bytes apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .builder import Module
from .gemm import longest_k_block
from .gemm_emit import LINE_BYTES, Element, Emitter, emit_add, emit_vector
from .gemm_kernel import emit_store_sum, emit_sum, get_field
from .gemm_pack import emit_transposed

NARROW_BYTES = 32  # of a vector: eight streams, as many as an L1 cache has ways
# Operands from which on they come from memory, and are asked for ahead, in the order in which they
# lie: streams that are a page long are too short for the hardware's prefetching. From the L3 cache
# that would cost 20 %.
FAR_BYTES = 16 << 20
BLOCKS_AHEAD = 2  # groups of blocks: 1 x 4,000,000 x 1 takes 1.04 ms so and 2.25 without
# Vectors that one is multiplied with at once, and most to a call: their sums lie on the stack.
ROWS, MOST_VECTORS = 2, 32

BLOCK_PARAMS = "ptr desc, ptr a, ptr b, ptr c, i64 step, i64 count"
ROWS_PARAMS = f"{BLOCK_PARAMS}, i64 many"


def emit_blocks(
    f: Emitter, desc: str, places: Sequence[str], step: str, count: str, many: str
) -> None:
    """Computes the products of the vector a with `many` vectors b over `count` blocks of k, as
    `_require_pair` has it, from the places of a, b and c."""
    a, b, c = places
    b_cs, c_cs = get_field(f, desc, "b_rs"), get_field(f, desc, "c_cs")
    pair, rows = _require_pair(f.module, f.element), _require_rows(f.module, f.element)
    alone = f.compare("eq", many, 1)
    with f.when(alone):
        f.call(pair, ("ptr", desc), ("ptr", a), ("ptr", b), ("ptr", c), ("i64", step),
               ("i64", count))  # fmt: skip
    with f.loop(0, f.select(alone, 0, many), MOST_VECTORS) as j:
        f.call(rows, ("ptr", desc), ("ptr", a), ("ptr", f.at_byte(b, f.mul(j, b_cs))),
               ("ptr", f.at(c, f.mul(j, c_cs))), ("i64", step), ("i64", count),
               ("i64", f.minimum(f.sub(many, j), MOST_VECTORS)))  # fmt: skip


class _Groups:
    """The groups of blocks of a function with BLOCK_PARAMS, and their way through `stages`."""

    def __init__(self, f: Emitter, stages: int) -> None:
        self.f, self.stages, self.side = f, stages, 16 // f.element.itemsize
        self.k = get_field(f, "%desc", "k")
        self.stride = f.mul(self.k, f.element.itemsize)
        self.part = f.emit(f"and i64 {f.div(self.k, stages)}, {-self.side}")
        self.offsets = emit_multiples(f, self.stride, self.side)
        self.last = f.div(f.sub("%count", 1), self.side)
        self.last_start = f.sub("%count", self.side)
        self.turns = f.add(self.last, stages)

    def enter(self, t: str) -> None:
        """Turn t: of each stage where its part of k begins in the first block of its group, which
        may have blocks of the group before it again."""
        f = self.f
        groups = [f.maximum(f.minimum(f.sub(t, s), self.last), 0) for s in range(self.stages)]
        starts = [f.minimum(f.mul(group, self.side), self.last_start) for group in groups]
        self.firsts = [f.mul(start, self.k) for start in starts]
        self.parts = [f.add(first, f.mul(self.part, s)) for s, first in enumerate(self.firsts)]

    def vectors(self, operand: str, p: str, stages: range) -> list[str]:
        """Of the next elements from p on, of as many as a group has blocks, the vectors over the
        blocks of some stages."""
        f, here = self.f, []
        for s in stages:
            first = f.at(operand, f.add(self.parts[s], p))
            here += [f.at_byte(first, offset) for offset in self.offsets]
        return emit_transposed(f, here)

    def rest(self, a: str, b: str, total: str) -> str:
        """Adds what k has beyond whole parts, for the last stage."""
        f, lanes, ty = self.f, self.f.element.lanes, self.f.element.register_vector
        with f.fold(f.mul(self.part, self.stages), self.k, 1, ty, total) as (p, (total,), carry):
            values = []
            for operand in (a, b):
                first = f.at(operand, f.add(self.firsts[-1], p))
                places = [f.at_byte(first, offset) for offset in self.offsets]
                values.append(emit_gathered(f, ["poison"] * (lanes - self.side) + places))
            added = emit_sum(f, values[0], values[1], total)
            bits = ", ".join(f"i1 {'true' if lane >= lanes - self.side else 'false'}"
                             for lane in range(lanes))  # fmt: skip
            carry(f.emit(f"select <{lanes} x i1> <{bits}>, {ty} {added}, {ty} {total}"))
        return f.folded[0]

    def moved_on(self, before: str, total: str) -> str:
        """The sums of the next turn: each group's behind a stage, the first of them `before`'s."""
        f, lanes, ty = self.f, self.f.element.lanes, self.f.element.register_vector
        shifted = ", ".join(f"i32 {i}" for i in range(lanes - self.side, 2 * lanes - self.side))
        return f.emit(f"shufflevector {ty} {before}, {ty} {total}, <{lanes} x i32> <{shifted}>")

    def put_down(self, t: str, total: str, sums: str, c: str) -> None:
        """Puts down, or adds, the sums of the group that is through: those of its blocks that the
        one before did not have. `sums` is room for a vector."""
        f, lanes, ty = self.f, self.f.element.lanes, self.f.element.memory
        first = f.mul(f.sub(t, self.stages - 1), self.side)
        start = f.minimum(first, self.last_start)
        emit_store_sum(f, total, sums)
        with f.loop(f.sub(first, start), self.side) as lane:
            value = f.load(ty, f.at(sums, f.add(lane, lanes - self.side)))
            place = f.at(c, f.mul(f.add(start, lane), "%step"))
            added = emit_add(f, ty, f.load(ty, place), value)
            alone = f.either(f.compare("ne", "%step", 0), f.compare("eq", f.add(start, lane), 0))
            f.store(ty, f.select(alone, value, added, ty), place)


def _require_pair(module: Module, element: Element) -> str:
    """Makes sure of `sg_gemv_blocks_<dtype>`: the products of the vectors a and b over `count`
    blocks of k (of the descriptor), at least as many as a group has. They are put down `step`
    elements apart from c on; added in c if that is 0.

    Two vectors of sums are under way, as a chain waits four cycles for each multiply-add.
    """
    name = f"sg_gemv_blocks_{element.dtype}"
    if module.has(name):
        return name
    f = Emitter(module, name, BLOCK_PARAMS, narrow(element))
    lanes, ty, side = f.element.lanes, f.element.register_vector, 16 // element.itemsize
    half = lanes // side
    g = _Groups(f, 2 * half)
    sums = f.emit(f"alloca {f.element.memory_vector}, align 64")
    # For a line of each of the streams as many lines of a group that comes later.
    far, lines = f.compare("sge", f.mul("%count", g.stride), FAR_BYTES // 2), side * g.stages
    asked, ahead = f.select(far, LINE_BYTES * lines, 0), f.mul(g.stride, side * BLOCKS_AHEAD)
    line = f.select(far, LINE_BYTES // element.itemsize, f.maximum(g.part, 1))
    with f.fold(0, g.turns, 1, ty, *["zeroinitializer"] * 2) as (t, totals, carry_on):
        g.enter(t)
        with f.fold(0, g.part, line, ty, *totals) as (start, totals, carry_line):
            behind = f.mul(f.add(g.firsts[0], f.mul(start, lines)), element.itemsize)
            emit_ask(f, ("%a", "%b"), f.add(behind, ahead), asked)
            end = f.minimum(f.add(start, line), g.part)
            with f.fold(start, end, side, ty, *totals) as (p, totals, carry):
                following = []
                for v, total in enumerate(totals):
                    stages = range(v * half, (v + 1) * half)
                    for a, b in zip(g.vectors("%a", p, stages), g.vectors("%b", p, stages)):
                        total = emit_sum(f, a, b, total)
                    following.append(total)
                carry(*following)
            carry_line(*f.folded)
        totals = f.folded
        last = g.rest("%a", "%b", totals[1])
        carry_on(g.moved_on("zeroinitializer", totals[0]), g.moved_on(*totals))
        with f.when(f.compare("sge", t, g.stages - 1)):
            g.put_down(t, last, sums, "%c")
    f.leave()
    f.finish()
    return name


def _require_rows(module: Module, element: Element) -> str:
    """Makes sure of `sg_gemv_block_rows_<dtype>`: the same for the products of a with `many`
    vectors, up to MOST_VECTORS. Those of b and c are as far apart as the descriptor's `b_rs`
    (bytes) and `c_cs` tell.

    The vector a is transposed once a turn. 10 x 100,000 x 1 took 147 us one by one, 96 so (112 by
    three at once, whose streams are too many); 10 x 10,000 24 and 13.
    """
    name = f"sg_gemv_block_rows_{element.dtype}"
    if module.has(name):
        return name
    f = Emitter(module, name, ROWS_PARAMS, narrow(element))
    lanes, ty, side = f.element.lanes, f.element.register_vector, 16 // element.itemsize
    memory, vector = f.element.memory, f.element.memory_vector
    g = _Groups(f, lanes // side)
    longest = longest_k_block(element.itemsize) // g.stages
    turned = f.emit(f"alloca [{longest * lanes} x {memory}], align 64")
    # A row that makes the last pair full has sums of its own, which nobody wants.
    sums = f.emit(f"alloca [{(MOST_VECTORS + ROWS) * lanes} x {memory}], align 64")
    b_rs, c_cs = get_field(f, "%desc", "b_rs"), get_field(f, "%desc", "c_cs")
    far = f.compare("sge", f.mul(f.mul("%count", g.stride), "%many"), FAR_BYTES)
    lines = side * g.stages
    asked, ahead = f.select(far, LINE_BYTES * lines, 0), f.mul(g.stride, side * BLOCKS_AHEAD)
    line = f.select(far, LINE_BYTES // element.itemsize, f.maximum(g.part, 1))
    with f.loop(0, f.add("%many", ROWS - 1)) as j:
        f.store(vector, "zeroinitializer", f.at(sums, f.mul(j, lanes)))
    with f.loop(0, g.turns) as t:
        g.enter(t)
        with f.loop(0, g.part, side) as p:
            for i, value in enumerate(g.vectors("%a", p, range(g.stages))):
                emit_store_sum(f, value, f.at(turned, f.mul(f.add(p, i), lanes)))
        with f.loop(0, "%many", ROWS) as j:
            numbers = [f.add(j, r) for r in range(ROWS)]
            rows = [f.minimum(number, f.sub("%many", 1)) for number in numbers]
            of_b = [f.at_byte("%b", f.mul(row, b_rs)) for row in rows]
            of_sums = [f.at(sums, f.mul(number, lanes)) for number in numbers]
            begun = [emit_vector(f, place) for place in of_sums]
            with f.fold(0, g.part, line, ty, *begun) as (start, totals, carry_line):
                behind = f.mul(f.add(g.firsts[0], f.mul(start, lines)), element.itemsize)
                emit_ask(f, of_b, f.add(behind, ahead), asked)
                end = f.minimum(f.add(start, line), g.part)
                with f.fold(start, end, side, ty, *totals) as (p, totals, carry):
                    place = f.at(turned, f.mul(p, lanes))
                    values = [emit_vector(f, f.at(place, i * lanes)) for i in range(side)]
                    following = []
                    for b, total in zip(of_b, totals):
                        for a, value in zip(values, g.vectors(b, p, range(g.stages))):
                            total = emit_sum(f, a, value, total)
                        following.append(total)
                    carry(*following)
                carry_line(*f.folded)
            for r, total in enumerate(f.folded):
                emit_store_sum(f, g.moved_on("zeroinitializer", total), of_sums[r])
                wanted = f.both(f.compare("sge", t, g.stages - 1),
                                f.compare("slt", numbers[r], "%many"))  # fmt: skip
                with f.when(wanted):
                    last = g.rest("%a", of_b[r], total)
                    room = f.at(sums, MOST_VECTORS * lanes)
                    g.put_down(t, last, room, f.at("%c", f.mul(numbers[r], c_cs)))
    f.leave()
    f.finish()
    return name


def emit_ask(f: Emitter, pointers: Iterable[str], offset: str, size: str | int) -> None:
    """Asks for so many bytes from the offset on, behind each of the pointers."""
    with f.loop(0, size, LINE_BYTES) as line:
        for pointer in pointers:
            f.prefetch(f.at_byte(pointer, f.add(offset, line)), locality=2)


def emit_multiples(f: Emitter, stride: str, count: int) -> list[str]:
    """The first multiples of a stride; the products by 2 and 4 become a part of the addresses."""
    odd = {n: f.mul(stride, n) for n in range(1, count, 2)}
    powers = [n & -n for n in range(1, count)]
    return ["0", *(f.mul(odd[n // p], p) if p > 1 else odd[n] for n, p in enumerate(powers, 1))]


def emit_gathered(f: Emitter, places: list[str]) -> str:
    """One element from each place, as a vector; of a place "poison" whatever there is."""
    result, ty = "poison", f.element.memory
    for lane, place in enumerate(places):
        if place != "poison":
            value = f.load(ty, place)
            vector = f"{f.element.memory_vector} {result}"
            result = f.emit(f"insertelement {vector}, {ty} {value}, i64 {lane}")
    return result


def narrow(element: Element) -> Element:
    return replace(element, lanes=min(element.lanes, NARROW_BYTES // element.itemsize))
