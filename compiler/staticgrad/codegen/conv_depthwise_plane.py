"""Planes of depthwise convolution: a band of an image's rows with the zeros around it.

A plane is a matrix of rows as wide as a stretch of the output and what its windows reach beyond it.
Under a stride along columns a row is cut in phases, columns of equal remainder by the stride, so
that a tap column finds a vector of positions next to each other, at an offset from a table. All
strides, paddings and dilations are dealt with here; the kernels read whole vectors without masks.
"""

from __future__ import annotations

from .builder import Module
from .conv_depthwise_window import BAND_BYTES, Pass, block_rows
from .conv_emit import Code, Plan
from .conv_lanes import emit_inside
from .gemm_emit import Element


def emit_layout(f: Code, at: str, columns: int, channels: int) -> None:
    """Lays out the planes of the pass at `at` that serve so many columns of the output."""
    lanes = f.element.lanes
    out_h, out_w, taps_h, taps_w, row_step, col_step, stride_h, stride = f.slots(
        at, Pass.OUT_H, Plan.OUT_W, Plan.TAPS_H, Plan.TAPS_W, Plan.ROW_STEP, Plan.COL_STEP,
        Plan.STRIDE_H, Plan.STRIDE_W,
    )  # fmt: skip
    reach = f.mul(f.maximum(f.sub(taps_w, 1), 0), col_step)
    width = f.add(f.minimum(out_w, columns), f.div(reach, stride))
    span = f.mul(f.ceil_div(width, lanes), lanes)
    pitch = f.mul(stride, span)
    # Whole blocks of rows, as many as have room.
    high = block_rows(f.element)
    room = f.div(BAND_BYTES // f.element.itemsize // channels, f.maximum(pitch, 1))
    span_h = f.add(f.mul(f.maximum(f.sub(taps_h, 1), 0), row_step), 1)
    rows = f.add(f.div(f.maximum(f.sub(room, span_h), 0), stride_h), 1)
    band = f.mul(f.maximum(f.div(rows, high), 1), high)
    single = f.compare("eq", taps_h, 1)
    flat = f.both(single, f.compare("eq", out_h, 1))
    unit = f.select(flat, lanes, f.select(single, f.mul(stride_h, pitch), pitch))
    plane = f.mul(f.add(f.mul(f.sub(band, 1), stride_h), span_h), pitch)
    for slot, value in (
        (Pass.PLANE, plane), (Pass.SPAN, span), (Pass.PITCH, pitch), (Pass.UNIT, unit),
        (Pass.BAND, band), (Pass.FLAT, f.emit(f"zext i1 {flat} to i64")),
    ):  # fmt: skip
        f.set_slot(at, slot, value)
    step, spread = f.slots(at, Plan.DST_RUN, Plan.DST_COL)
    f.set_slot(at, Plan.DST_RUN, f.select(flat, f.mul(spread, lanes), step))
    offsets = f.at_byte(at, Pass.OFFSETS * 8)
    with f.loop(0, taps_w) as w:
        to = f.mul(w, col_step)
        f.set_slot(offsets, w, f.add(f.mul(f.rem(to, stride), span), f.div(to, stride)))


def require_pack(module: Module, element: Element, stride: int) -> str:
    """Makes sure of `void @sg_conv_depthwise_pack_<stride>_<dtype>(pass, plane, src, row, count,
    j0)`: packs so many rows of the image from `row` on for what is computed from column j0 on."""
    name = f"sg_conv_depthwise_pack_{stride}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr pass, ptr plane, ptr src, i64 row, i64 count, i64 j0", element)
    src_h, src_w, col_0, span, pitch = f.slots(
        "%pass", Plan.SRC_H, Plan.SRC_W, Plan.COL_0, Pass.SPAN, Pass.PITCH
    )
    # Rows above the image, in it, below it.
    top = f.minimum(f.maximum(f.sub(0, "%row"), 0), "%count")
    bottom = f.maximum(f.minimum(f.sub(src_h, "%row"), "%count"), top)
    source = f.at("%src", f.mul(f.add("%row", top), src_w))
    first = f.add(f.mul("%j0", stride), col_0)
    with f.carrying(0, span, ("i64", first), ("ptr", "%plane")) as piece:
        col, place = piece.values
        copy = _Copy(f, stride, span, col, src_w)
        for begin, end in (("0", top), (bottom, "%count")):
            with f.carrying(begin, end, ("ptr", f.at(place, f.mul(begin, pitch)))) as row:
                copy.clear(row.values[0])
                row.following = [f.at(row.values[0], pitch)]
        start = [("ptr", f.at(source, col)), ("ptr", f.at(place, f.mul(top, pitch)))]
        with f.carrying(top, bottom, *start) as row:
            copy.emit(row.values[0], row.values[1])
            row.following = [f.at(row.values[0], src_w), f.at(row.values[1], pitch)]
        piece.step = element.lanes
        piece.following = [f.add(col, element.lanes * stride), f.at(place, element.lanes)]
    f.leave()
    f.finish()
    return name


class _Copy:
    """Copies `stride` vectors of a row, from column `col` on, to as many phases. What lies outside
    of the image is zero."""

    def __init__(self, f: Code, stride: int, span: str, col: str, src_w: str) -> None:
        self.f, self.stride, self.span = f, stride, span
        lanes = f.element.lanes
        self.masks = []
        for k in range(stride):
            low, high = emit_inside(f, f.add(col, k * lanes), src_w, "1", str(lanes))
            bits = f.sub(f.emit(f"shl i64 1, {high}"), f.emit(f"shl i64 1, {low}"))
            bits = f.emit(f"trunc i64 {bits} to i{lanes}")
            self.masks.append(f.emit(f"bitcast i{lanes} {bits} to <{lanes} x i1>"))

    def clear(self, place: str) -> None:
        self._store(["zeroinitializer"] * self.stride, place)

    def emit(self, source: str, place: str) -> None:
        lanes = self.f.element.lanes
        values = [
            self.f.masked_load(self.f.at(source, k * lanes), m) for k, m in enumerate(self.masks)
        ]
        self._store([self._phase(values, q) for q in range(self.stride)], place)

    def _phase(self, values: list[str], q: int) -> str:
        """Every `stride`-th element from the one numbered q on: of each vector those that it has,
        put where the lanes of the vectors before it end."""
        f, lanes, ty = self.f, self.f.element.lanes, self.f.element.memory_vector
        found = values[0]
        at = range(q, lanes * self.stride, self.stride)
        for k in range(1, self.stride):
            # The first vector's lanes move in the same step as the second's.
            before = [i if k == 1 else lane for lane, i in enumerate(at)]
            order = ", ".join(
                f"i32 {i - (k - 1) * lanes if i // lanes == k else b % lanes}"
                for i, b in zip(at, before)
            )
            pair = f"{ty} {found}, {ty} {values[k]}, <{lanes} x i32>"
            found = f.emit(f"shufflevector {pair} <{order}>")
        return found

    def _store(self, values: list[str], place: str) -> None:
        for value in values:
            self.f.store(self.f.element.memory_vector, value, place)
            place = self.f.at(place, self.span)
