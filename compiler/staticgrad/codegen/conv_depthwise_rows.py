"""The sums of depthwise convolution: rows of a plane, four of the output at a time.

    for four rows of the output, for a vector of positions:
        for a tap column: load its weights; for a row of the plane: load a vector, add it to those
            of the four sums that have a tap there
        store the four rows

Under 3 x 3 taps a column costs 6 loads, 3 of weights, 12 multiply-adds; under 7 x 7 10, 7, 28.
The text has no more than one tap column, and a loop over them: so a sum goes over channels, tap
columns, the rows of one. Tap rows are written out, at most `RUN` together: their weights, the sums
and a vector of the image have registers. (Vectors of half the size take eight rows at a time.)
"""

from __future__ import annotations

from itertools import pairwise

from .builder import Module
from .conv_depthwise_window import Pass, Window, block_rows
from .conv_emit import Code, Plan, multiply_add
from .gemm_emit import Element, emit_broadcast, emit_in_memory, emit_in_register

RUN = 7  # tap rows
ROW_PARAMS = "ptr pass, ptr plane, ptr weights, ptr dst, i64 i0, i64 i1, i64 j0, i64 j1"


class Column:
    """The rows of a plane that four rows of the output read by tap rows `first` to `last`, as
    multiples of its pitch, and which of them a row serves."""

    def __init__(self, window: Window, high: int, first: int, last: int) -> None:
        stride, step = window.stride[0], window.step[0]
        self.uses: dict[int, list[tuple[int, int]]] = {}  # row -> (row of the output, tap row)
        for u in range(high):
            for h in range(first, last):
                self.uses.setdefault(u * stride + h * step, []).append((u, h))
        self.rows = sorted(self.uses)


def runs(taps: int) -> list[tuple[int, int]]:
    """Tap rows, in runs of even length."""
    count = -(-taps // RUN)
    cuts = [taps * k // count for k in range(count + 1)]
    return list(pairwise(cuts))


class Multiples:
    """Where rows of a plane or of weights are, a pitch apart: few registers hold its odd multiples,
    the addressing of x86 doubles them."""

    def __init__(self, f: Code, pitch: str, count: int) -> None:
        size = f.mul(pitch, f.element.itemsize)
        self.f = f
        self.odd = {k: f.mul(size, k) if k > 1 else size for k in range(1, count, 2)}

    def at(self, base: str, row: int) -> str:
        if row == 0:
            return base
        scale = min(row & -row, 8)
        odd = self.odd.get(row // scale)
        if odd is None:
            odd = self.f.mul(self.odd[1], row // scale)
        return self.f.emit(f"getelementptr i{8 * scale}, ptr {base}, i64 {odd}")


def require_rows(
    module: Module, element: Element, window: Window, spread: int, outputs: int = 1
) -> str:
    """Makes sure of `@sg_conv_depthwise_rows_<tap rows>_<stride>_<step>_<spread>_<dtype>`: rows i0
    to i1, columns j0 to j1 of `outputs` channels of the output, `spread` apart, from planes that
    begin with them."""
    window = window.rows_alone()
    taps, stride, step = window.taps[0], window.stride[0], window.step[0]
    many = f"{outputs}_of_channels_" if window.channels > 1 or outputs > 1 else ""
    name = f"sg_conv_depthwise_rows_{many}{taps}_{stride}_{step}_{spread}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, ROW_PARAMS, element)
    ty, high = element.register_vector, block_rows(element)
    sum_up, store = _Sums(f, window, outputs), RowStore(f, spread)
    channels, plane, w_channel, dst_row, unit = f.slots(
        "%pass", Plan.CHANNELS, Pass.PLANE, Plan.W_CHANNEL, Plan.DST_ROW, Pass.UNIT
    )
    down = f.mul(unit, high * stride)
    with f.carrying("%i0", "%i1", ("ptr", "%plane")) as block:
        with f.carrying("%j0", "%j1", ("ptr", block.values[0])) as piece:
            sums, base = ["zeroinitializer"] * (high * outputs), piece.values[0]
            if many:
                start = [("ptr", base), ("ptr", "%weights"), *[(ty, v) for v in sums]]
                with f.carrying(0, channels, *start) as c:
                    new = sum_up.emit(c.values[0], c.values[1], c.values[2:])
                    ahead = [f.at(c.values[0], plane), f.at(c.values[1], w_channel)]
                    c.following = [*ahead, *new]
                sums = c.after[2:]
            else:
                sums = sum_up.emit(base, "%weights", sums)
            for o in range(outputs):
                dst = f.at("%dst", f.mul(dst_row, o)) if o else "%dst"
                store.emit(dst, block.index, piece.index, sums[o * high : (o + 1) * high])
            piece.step = element.lanes
            piece.following = [f.at(piece.values[0], element.lanes)]
        block.step = high
        block.following = [f.at(block.values[0], down)]
    f.leave()
    f.finish()
    return name


class _Sums:
    """Adds what one channel of the image gives to the sums of a block of rows."""

    def __init__(self, f: Code, window: Window, outputs: int) -> None:
        self.f, self.window, self.outputs = f, window, outputs
        self.high = block_rows(f.element)
        unit, self.taps_w, tap_h, self.tap_w, self.w_row = f.slots(
            "%pass", Pass.UNIT, Plan.TAPS_W, Plan.W_TAP_H, Plan.W_TAP_W, Plan.W_ROW
        )
        self.rows = Multiples(f, unit, window.rows(self.high))
        self.weights = Multiples(f, tap_h, window.taps[0])
        self.offsets = f.at_byte("%pass", Pass.OFFSETS * 8)

    def emit(self, start: str, weights: str, sums: list[str]) -> list[str]:
        """From the plane's vector at `start` and the channel's weights."""
        f, ty = self.f, self.f.element.register_vector
        for first, last in runs(self.window.taps[0]):
            column = Column(self.window, self.high, first, last)
            before = [("ptr", weights), *[(ty, v) for v in sums]]
            with f.carrying(0, self.taps_w, *before) as w:
                at, *new = w.values
                base = f.at(start, f.slot(self.offsets, w.index))
                channels = [
                    f.at(at, f.mul(self.w_row, o)) if o else at for o in range(self.outputs)
                ]
                factors = [
                    {h: emit_broadcast(f, self.weights.at(c, h)) for h in range(first, last)}
                    for c in channels
                ]
                for k in column.rows:
                    x = f.load(f.element.memory_vector, self.rows.at(base, k))
                    x = emit_in_register(f, x)
                    for o, of_channel in enumerate(factors):
                        for u, h in column.uses[k]:
                            n = o * self.high + u
                            new[n] = multiply_add(f, ty, of_channel[h], x, new[n])
                w.following = [f.at(at, self.tap_w), *new]
            sums = w.after[1:]
        return sums


class RowStore:
    """Puts vectors down at a column of rows of `dst`, those of them that are there: elements
    `spread` apart, as so many vectors under masks. (Stored one by one, 14 elements took 30
    cycles.)"""

    def __init__(self, f: Code, spread: int) -> None:
        self.f, self.spread = f, spread
        self.step = f.slot("%pass", Plan.DST_RUN)

    def emit(self, dst: str, row: str, j: str, sums: list[str]) -> None:
        f = self.f
        column = f.at(dst, f.mul(j, self.spread))
        masks = [self._mask(f.sub("%j1", j), part) for part in range(self.spread)]
        for u, value in enumerate(sums):
            at = f.add(row, u)
            # A branch, which only the last rows miss: masks for each row took 40 instructions.
            with f.when(f.compare("slt", at, "%i1")):
                value = emit_in_memory(f, value)
                place = f.at(column, f.mul(at, self.step))
                for part, mask in enumerate(masks):
                    to = f.at(place, part * f.element.lanes)
                    f.masked_store(self._spread(value, part), to, mask)

    def _sources(self, part: int) -> list[int | None]:
        """The lanes that the lanes of a part come from."""
        lanes = self.f.element.lanes
        places = range(part * lanes, (part + 1) * lanes)
        return [None if at % self.spread else at // self.spread for at in places]

    def _mask(self, count: str, part: int) -> str:
        """A part's lanes that come from lanes below `count`."""
        f, lanes = self.f, self.f.element.lanes
        ty = f"i{8 * max(f.element.itemsize, 2)}"
        limit = f.minimum(count, lanes)
        if ty != "i64":
            limit = f.emit(f"trunc i64 {limit} to {ty}")
        steps = ", ".join(f"{ty} {lanes if n is None else n}" for n in self._sources(part))
        limits = f.splat(limit, f"<{lanes} x {ty}>")
        return f.emit(f"icmp slt <{lanes} x {ty}> <{steps}>, {limits}")

    def _spread(self, value: str, part: int) -> str:
        if self.spread == 1:
            return value
        ty, lanes = self.f.element.memory_vector, self.f.element.lanes
        order = ", ".join(f"i32 {n or 0}" for n in self._sources(part))
        pair = f"{ty} {value}, {ty} poison, <{lanes} x i32>"
        return self.f.emit(f"shufflevector {pair} <{order}>")
