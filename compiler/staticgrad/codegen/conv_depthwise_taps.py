"""The gradient of depthwise weights: a vector of sums for each tap, over the rows of a plane.

    for a tap column, or several whose sums have registers:
        for four rows of the output's gradient, for a vector of positions:
            load the gradients; for a row of the plane: load a vector, add it times those of the
                gradients that have a tap there

A sum goes over images, stretches of columns, rows in fours, vectors of a row, the four rows; its
lanes are added up at the end, in pairs of neighbours.
"""

from __future__ import annotations

from .builder import Module, vector, width
from .conv_depthwise_rows import ROW_PARAMS, Column, Multiples, runs
from .conv_depthwise_window import GROUP, Pass, Window, block_rows, is_halved
from .conv_emit import Code, Plan, multiply_add
from .gemm_emit import Element, emit_add, emit_in_register


def columns_together(element: Element, high: int, wide: int) -> list[tuple[int, int, int]]:
    """Tap columns in ranges (first, last, how many at a time), so that the sums at a time stay in
    registers. (LLVM loads ahead: with 21 of 32 registers it stored and reloaded sums.)"""
    most = max(element.target.vector_registers * 3 // 8 // high, 1)
    whole = wide - wide % most
    ranges = [(0, whole, most), (whole, wide, wide - whole)]
    return [r for r in ranges if r[0] < r[1]]


def require_taps(module: Module, element: Element, window: Window, outputs: int) -> str:
    """Makes sure of `@sg_conv_depthwise_taps_<taps>_<stride>_<step>_<dtype>`: adds to the vector of
    each tap, at `dst`, what the output's gradient, at `weights`, gives with a plane, in rows i0 to
    i1 and columns j0 to j1; with several `outputs` for all channels of a group."""
    window = window.rows_alone()
    (taps_h, taps_w), stride, step = window.taps, window.stride[0], window.step[0]
    many = "channels_" if outputs > 1 else ""
    name = f"sg_conv_depthwise_taps_{many}{taps_h}x{taps_w}_{stride}_{step}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, ROW_PARAMS, element)
    taps = _Taps(f, window)
    if many:
        channels, dst_row, w_row = f.slots("%pass", Plan.ROWS, Plan.DST_ROW, Plan.W_ROW)
        with f.carrying(0, channels, ("ptr", "%weights"), ("ptr", "%dst")) as o:
            gradient, sums = o.values
            taps.emit(gradient, sums)
            following = f.emit(f"getelementptr {element.register_vector}, ptr {sums}, i64 {w_row}")
            o.following = [f.at(gradient, dst_row), following]
    else:
        taps.emit("%weights", "%dst")
    f.leave()
    f.finish()
    return name


class _Taps:
    """Adds to the sums of one channel of the output."""

    def __init__(self, f: Code, window: Window) -> None:
        self.f, self.window = f, window
        self.high = block_rows(f.element)
        unit = f.slot("%pass", Pass.UNIT)
        self.rows = Multiples(f, unit, window.rows(self.high))
        self.offsets = f.at_byte("%pass", Pass.OFFSETS * 8)
        self.down = f.mul(unit, self.high * window.stride[0])

    def emit(self, gradient: str, sums: str) -> None:
        f, (taps_h, taps_w) = self.f, self.window.taps
        ty = f.element.register_vector
        for first, last in runs(taps_h):
            for begin, end, together in columns_together(f.element, last - first, taps_w):
                with f.loop(begin, end, together) as w:
                    places = [
                        f.emit(f"getelementptr {ty}, ptr {sums}, i64 {f.add(w, h * taps_w + c)}")
                        for c in range(together) for h in range(first, last)
                    ]  # fmt: skip
                    starts = [f.slot(self.offsets, f.add(w, c)) for c in range(together)]
                    new = self._add(
                        gradient, (first, last), starts, [f.load(ty, p) for p in places]
                    )
                    for value, place in zip(new, places):
                        f.store(ty, value, place)

    def _add(
        self, gradient: str, run: tuple[int, int], starts: list[str], sums: list[str]
    ) -> list[str]:
        """What a run of tap rows and some tap columns get from all rows."""
        f, lanes = self.f, self.f.element.lanes
        ty = f.element.register_vector
        column = Column(self.window, self.high, *run)
        before = [(ty, v) for v in sums]
        with f.carrying("%i0", "%i1", ("ptr", "%plane"), *before) as block:
            start = [("ptr", block.values[0]), *[(ty, v) for v in block.values[1:]]]
            with f.carrying("%j0", "%j1", *start) as piece:
                gradients, here = _emit_gradients(f, gradient, block.index, piece.index)
                at, *new = piece.values
                for c, offset in enumerate(starts):
                    base = f.at(at, offset)
                    for k in column.rows:
                        x = f.load(f.element.memory_vector, self.rows.at(base, k))
                        x = emit_in_register(f, x)
                        for u, h in column.uses[k]:
                            n = c * (run[1] - run[0]) + h - run[0]
                            total = multiply_add(f, ty, gradients[u], x, new[n])
                            # Times the zeros of what is not there, infinity is no zero.
                            choice = f"<{lanes} x i1> {here[u]}, {ty} {total}, {ty} {new[n]}"
                            new[n] = f.emit(f"select {choice}")
                piece.step = lanes
                piece.following = [f.at(at, lanes), *new]
            block.step = self.high
            block.following = [f.at(block.values[0], self.down), *piece.after[1:]]
        return block.after[1:]


def _emit_gradients(f: Code, start: str, i: str, j: str) -> tuple[list[str], list[str]]:
    """A block of rows of the output's gradient from row i on at column j, and the masks of what is
    there; zeros elsewhere."""
    step = f.slot("%pass", Plan.DST_RUN)
    lanes = f"<{f.element.lanes} x i1>"
    mask = f.mask(f.sub("%j1", j))
    gradients, masks = [], []
    for u in range(block_rows(f.element)):
        at = f.add(i, u)
        # Of a row that is not there nothing is read: the mask is empty.
        here = f.compare("slt", at, "%i1")
        masks.append(f.emit(f"select i1 {here}, {lanes} {mask}, {lanes} zeroinitializer"))
        pointer = f.at(start, f.add(f.mul(at, step), j))
        gradients.append(emit_in_register(f, f.masked_load(pointer, masks[-1])))
    return gradients, masks


def require_lane_sums(module: Module, element: Element) -> str:
    """`void @sg_conv_depthwise_sums_<dtype>(sums, vectors, out, count)`: out[i] = the sum of the
    lanes of vector i, for `count` of `vectors` (a multiple of GROUP) vectors, which it overwrites.

    Lanes are added in pairs of neighbours."""
    name = f"sg_conv_depthwise_sums_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr sums, i64 vectors, ptr out, i64 count", element)
    ty = element.register_vector
    with f.loop(0, "%vectors", GROUP) as first:
        values = [
            f.load(ty, f.emit(f"getelementptr {ty}, ptr %sums, i64 {f.add(first, i)}"))
            for i in range(GROUP)
        ]
        at = f.at("%sums", first)
        for result, value in _emit_lane_sums(f, values):
            f.store(result, value, at)
            at = f.at(at, width(result))
    with f.loop(0, "%count") as i:
        f.store(element.memory, f.load(element.memory, f.at("%sums", i)), f.at("%out", i))
    f.leave()
    f.finish()
    return name


def require_clear(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_depthwise_clear_<dtype>(sums, vectors)`: makes them zeros."""
    name = f"sg_conv_depthwise_clear_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr sums, i64 vectors", element)
    ty = element.register_vector
    with f.loop(0, "%vectors") as k:
        f.store(ty, "zeroinitializer", f.emit(f"getelementptr {ty}, ptr %sums, i64 {k}"))
    f.leave()
    f.finish()
    return name


def _emit_lane_sums(f: Code, values: list[str]) -> list[tuple[str, str]]:
    """The sum of each vector's lanes, as vectors (type, value) of consecutive sums in memory's
    type. Each level adds neighbours: of two vectors into one while there are two, else of one."""
    element = f.element
    lanes, left = element.lanes, element.lanes
    ty = element.register_vector
    while left > 1:
        pairs = list(zip(values[::2], values[1::2])) or [(values[0], "poison")]
        span = 2 * lanes if len(values) > 1 else lanes
        even, odd = (
            f"<{span // 2} x i32> <{', '.join(f'i32 {i}' for i in range(first, span, 2))}>"
            for first in (0, 1)
        )
        result = vector(element.register, span // 2)
        values = [
            emit_add(
                f, result,
                f.emit(f"shufflevector {ty} {a}, {ty} {b}, {even}"),
                f.emit(f"shufflevector {ty} {a}, {ty} {b}, {odd}"),
            )
            for a, b in pairs
        ]  # fmt: skip
        ty, lanes, left = result, span // 2, left // 2
    if is_halved(element):
        # What the other half of a whole vector would have added: no bit depends on the vector.
        values = [emit_add(f, ty, value, "zeroinitializer") for value in values]
    if element.memory == element.register:
        return [(ty, value) for value in values]
    narrow = f"<{lanes} x {element.memory}>"
    return [(narrow, f.emit(f"trunc {ty} {value} to {narrow}")) for value in values]
