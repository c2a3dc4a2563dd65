"""Depthwise convolution under windows of 3 x 3 at strides of 1 and 2, taps written out.

Four rows of the output read six of the image, or nine at stride 2, each of which is loaded once for
a tap column: 18 or 27 loads to 36 multiply-adds. Weights, or the taps' sums, stay in registers over
the whole plane. Each sum has the order of `conv_depthwise_rows`.
"""

from __future__ import annotations

from .builder import Module
from .conv_depthwise_rows import ROW_PARAMS, ROWS, TAPS_W, RowStore, emit_gradients, emit_lanes
from .conv_emit import Code, Plan, multiply_add
from .conv_lanes import kinds_of
from .gemm_emit import Element, emit_broadcast

TAPS = 3


class Source:
    """The rows of the image from `row` on that four rows of the output read, each `step` rows
    further, `%src`."""

    def __init__(self, f: Code, stride: int, row: str, step: str | int) -> None:
        self.f, self.stride = f, stride
        self.kind = kinds_of(f.element)[stride - 1]
        self.rows = range((ROWS - 1) * stride + TAPS)
        src_h, src_w, self.col_0, self.col_step = f.slots(
            "%plan", Plan.SRC_H, Plan.SRC_W, Plan.COL_0, Plan.COL_STEP
        )
        rows = [f.add(row, f.mul(step, k)) for k in self.rows]
        inside = [f.compare("ult", at, src_h) for at in rows]
        self.starts = [f.at("%src", f.mul(at, src_w)) for at in rows]
        self.there = [f.emit(f"sext i1 {one} to i64") for one in inside]

    def lanes(self, k: int, j: str, codes: list[str]) -> list[str]:
        """What the three tap columns find in row k from column j of the output on."""
        f, found = self.f, []
        for w, code in enumerate(codes):
            at = f.sum(f.mul(j, self.stride), self.col_0, f.mul(self.col_step, w))
            code = f.emit(f"and i64 {code}, {self.there[k]}")
            found.append(emit_lanes(f, self.kind, f.at(self.starts[k], at), code))
        return found

    def uses(self, k: int) -> list[tuple[int, int]]:
        """Which rows of the output read row k of the image, and by which tap row."""
        taps = [(u, k - u * self.stride) for u in range(ROWS)]
        return [(u, h) for u, h in taps if 0 <= h < TAPS]


def require_rows_3x3(module: Module, element: Element, stride: int) -> str:
    """`@sg_conv_depthwise_rows_3x3_<stride>_<dtype>`, as `require_rows`, where ROW_STEP is 1 or -1;
    at stride 2, 1."""
    name = f"sg_conv_depthwise_rows_3x3_{stride}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, ROW_PARAMS, element)
    row_0, row_step, tap_h, tap_w = f.slots(
        "%plan", Plan.ROW_0, Plan.ROW_STEP, Plan.W_TAP_H, Plan.W_TAP_W
    )
    ty, taps = element.register_vector, range(TAPS)
    factors = [
        [emit_broadcast(f, f.at("%weights", f.multiply_sum((tap_h, h), (tap_w, w)))) for w in taps]
        for h in taps
    ]
    store = RowStore(f)
    # Rows of the image are gone through as tap rows ascend: upwards or downwards.
    back = f.select(f.compare("slt", row_step, 0), ROWS - 1, 0)
    with f.loop(0, store.rows, ROWS) as i:
        first = f.add(i, back)
        source = Source(f, stride, f.add(f.mul(first, stride), row_0), row_step)
        with f.carrying("%j0", "%j1", ("ptr", "%table")) as piece:
            codes = [f.slot(piece.values[0], w) for w in taps]
            sums = ["zeroinitializer"] * ROWS
            for k in source.rows:
                xs = source.lanes(k, piece.index, codes)
                for u, h in source.uses(k):
                    for factor, x in zip(factors[h], xs):
                        sums[u] = multiply_add(f, ty, factor, x, sums[u])
            store.emit(first, row_step, piece.index, sums)
            piece.step = element.lanes
            piece.following = [f.at_byte(piece.values[0], TAPS_W * 8)]
    f.leave()
    f.finish()
    return name


def require_taps_3x3(module: Module, element: Element, stride: int) -> str:
    """`@sg_conv_depthwise_taps_3x3_<stride>_<dtype>`, as `require_taps`, where ROW_STEP is 1."""
    name = f"sg_conv_depthwise_taps_3x3_{stride}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, ROW_PARAMS, element)
    row_0, positions, out_w = f.slots("%plan", Plan.ROW_0, Plan.POSITIONS, Plan.OUT_W)
    ty, taps, rows = element.register_vector, range(TAPS), f.div(positions, out_w)
    lanes = f"<{element.lanes} x i1>"
    places = [f.emit(f"getelementptr {ty}, ptr %dst, i64 {k}") for k in range(TAPS * TAPS)]
    before = [(ty, f.load(ty, place)) for place in places]
    with f.carrying(0, rows, *before) as block:
        i = block.index
        source = Source(f, stride, f.add(f.mul(i, stride), row_0), 1)
        start = [("ptr", "%table"), *[(ty, v) for v in block.values]]
        with f.carrying("%j0", "%j1", *start) as piece:
            gradients, here = emit_gradients(f, i, piece.index, rows, out_w)
            codes = [f.slot(piece.values[0], w) for w in taps]
            sums = piece.values[1:]
            for k in source.rows:
                xs = source.lanes(k, piece.index, codes)
                for u, h in source.uses(k):
                    for at, x in enumerate(xs, h * TAPS):
                        # Times the zeros of a row that is not there, infinity is no zero.
                        new = multiply_add(f, ty, gradients[u], x, sums[at])
                        sums[at] = f.emit(f"select {lanes} {here[u]}, {ty} {new}, {ty} {sums[at]}")
            piece.step = element.lanes
            piece.following = [f.at_byte(piece.values[0], TAPS_W * 8), *sums]
        block.step = ROWS
        block.following = piece.after[1:]
    for value, place in zip(block.after, places):
        f.store(ty, value, place)
    f.leave()
    f.finish()
    return name
