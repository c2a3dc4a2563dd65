"""Depthwise convolution: the rows of one plane, four at a time, under windows of any size.

`void @..(plan, table, src, weights, dst, j0, j1)`: all rows, columns j0 to j1; `table` holds the
lanes inside of the image for each vector of a row and each tap column.
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import Code, Plan, multiply_add
from .conv_lanes import emit_load_lanes
from .gemm_emit import Element, emit_broadcast, emit_in_memory, emit_in_register

ROWS = 4  # rows of the output at a time
PIECES = 64  # vectors of a row at a time: 1024 columns of float32
TAPS_W = 16  # at most so many tap columns; wider windows are packed
TABLE_BYTES = PIECES * TAPS_W * 8
ROW_PARAMS = "ptr plan, ptr table, ptr src, ptr weights, ptr dst, i64 j0, i64 j1"


def require_rows(module: Module, element: Element, kind: str) -> str:
    """`@sg_conv_depthwise_rows_<kind>_<dtype>`: dst = the sums of the taps."""
    name = f"sg_conv_depthwise_rows_{kind}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, ROW_PARAMS, element)
    stride_w, col_0, col_step, taps_h, taps_w, tap_h, tap_w = f.slots(
        "%plan", Plan.STRIDE_W, Plan.COL_0, Plan.COL_STEP, Plan.TAPS_H, Plan.TAPS_W, Plan.W_TAP_H,
        Plan.W_TAP_W,
    )  # fmt: skip
    ty = element.register_vector
    store = RowStore(f)
    zeros = [(ty, "zeroinitializer")] * ROWS
    with f.loop(0, store.rows, ROWS) as i, f.carrying("%j0", "%j1", ("ptr", "%table")) as piece:
        col = f.add(f.mul(piece.index, stride_w), col_0)
        with f.carrying(0, taps_h, ("ptr", "%weights"), *zeros) as row:
            weights, *sums = row.values
            pointers, there = _emit_source_rows(f, i, row.index, col)
            start = [("ptr", weights), *[("ptr", p) for p in pointers], *[(ty, s) for s in sums]]
            with f.carrying(0, taps_w, *start) as tap:
                weight, sources = tap.values[0], tap.values[1 : 1 + ROWS]
                code = f.slot(piece.values[0], tap.index)
                factor = emit_broadcast(f, weight)
                new = [
                    multiply_add(
                        f, ty, factor, emit_lanes(f, kind, s, f.emit(f"and i64 {code}, {t}")), v
                    )
                    for s, t, v in zip(sources, there, tap.values[1 + ROWS :])
                ]
                tap.following = [f.at(weight, tap_w), *[f.at(s, col_step) for s in sources], *new]
            row.following = [f.at(weights, tap_h), *tap.after[1 + ROWS :]]
        store.emit(i, 1, piece.index, row.after[1:])
        piece.step = element.lanes
        piece.following = [f.at_byte(piece.values[0], TAPS_W * 8)]
    f.leave()
    f.finish()
    return name


def require_taps(module: Module, element: Element, kind: str) -> str:
    """`@sg_conv_depthwise_taps_<kind>_<dtype>`: adds to the vector of each tap, at `dst`, what the
    output's gradient, at `weights`, gives with the image at `src`."""
    name = f"sg_conv_depthwise_taps_{kind}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, ROW_PARAMS, element)
    positions, out_w, stride_w, col_0, col_step, taps_h, taps_w = f.slots(
        "%plan", Plan.POSITIONS, Plan.OUT_W, Plan.STRIDE_W, Plan.COL_0, Plan.COL_STEP, Plan.TAPS_H,
        Plan.TAPS_W,
    )  # fmt: skip
    ty = element.register_vector
    rows = f.div(positions, out_w)
    with f.loop(0, rows, ROWS) as i, f.carrying("%j0", "%j1", ("ptr", "%table")) as piece:
        gradients, _ = emit_gradients(f, i, piece.index, rows, out_w)
        col = f.add(f.mul(piece.index, stride_w), col_0)
        with f.carrying(0, taps_h, ("ptr", "%dst")) as row:
            pointers, there = _emit_source_rows(f, i, row.index, col, rows)
            start = [("ptr", row.values[0]), *[("ptr", p) for p in pointers]]
            with f.carrying(0, taps_w, *start) as tap:
                sums, *sources = tap.values
                code = f.slot(piece.values[0], tap.index)
                total = f.load(ty, sums)
                for s, t, g in zip(sources, there, gradients):
                    x = emit_lanes(f, kind, s, f.emit(f"and i64 {code}, {t}"))
                    total = multiply_add(f, ty, g, x, total)
                f.store(ty, total, sums)
                following = f.emit(f"getelementptr {ty}, ptr {sums}, i64 1")
                tap.following = [following, *[f.at(s, col_step) for s in sources]]
            row.following = [tap.after[0]]
        piece.step = element.lanes
        piece.following = [f.at_byte(piece.values[0], TAPS_W * 8)]
    f.leave()
    f.finish()
    return name


def emit_gradients(f: Code, i: str, j: str, rows: str, out_w: str) -> tuple[list[str], list[str]]:
    """Four rows of the output's gradient, `%weights`, from row i on at column j, and the masks of
    what is there; zeros elsewhere."""
    lanes = f"<{f.element.lanes} x i1>"
    mask = f.mask(f.sub("%j1", j))
    gradients, masks = [], []
    for u in range(ROWS):
        at = f.add(i, u)
        # Of a row that is not there nothing is read: the mask is empty.
        here = f.compare("slt", at, rows)
        masks.append(f.emit(f"select i1 {here}, {lanes} {mask}, {lanes} zeroinitializer"))
        pointer = f.at("%weights", f.add(f.mul(at, out_w), j))
        gradients.append(emit_in_register(f, f.masked_load(pointer, masks[-1])))
    return gradients, masks


def _emit_source_rows(
    f: Code, i: str, h: str, col: str, rows: str | None = None
) -> tuple[list[str], list[str]]:
    """Where the four rows that tap row h reads start at column `col` of the image, and for each a
    mask of all bits where the image has it.

    A row that an output of `rows` rows lacks may well lie in the image: what is there, times a
    gradient of zero, is no zero if it is infinite. It lies behind the last row that the tap row
    reads. (That costs 3 %; a comparison more for each of the four cost 13.)
    """
    stride_h, row_0, row_step, src_h, src_w = f.slots(
        "%plan", Plan.STRIDE_H, Plan.ROW_0, Plan.ROW_STEP, Plan.SRC_H, Plan.SRC_W
    )
    tap = f.add(f.mul(h, row_step), row_0)
    row = f.add(f.mul(i, stride_h), tap)
    if rows is not None:
        last = f.add(f.mul(f.sub(rows, 1), stride_h), tap)
        src_h = f.maximum(f.minimum(src_h, f.add(last, 1)), 0)
    pointers, there = [], []
    for u in range(ROWS):
        at = f.add(row, f.mul(stride_h, u)) if u else row
        pointers.append(f.at("%src", f.add(f.mul(at, src_w), col)))
        there.append(f.emit(f"sext i1 {f.compare('ult', at, src_h)} to i64"))
    return pointers, there


def emit_lanes(f: Code, kind: str, pointer: str, code: str) -> str:
    return emit_in_register(f, emit_load_lanes(f, kind, pointer, code))


class RowStore:
    """Puts four vectors down at a column of four rows of `%dst`, those of them that are there."""

    def __init__(self, f: Code) -> None:
        self.f = f
        positions, out_w, run, dst_run, self.dst_col = f.slots(
            "%plan", Plan.POSITIONS, Plan.OUT_W, Plan.RUN, Plan.DST_RUN, Plan.DST_COL
        )
        self.rows = f.div(positions, out_w)
        # A run is one row, or the whole plane.
        self.step = f.select(f.compare("eq", run, out_w), dst_run, out_w)
        lanes = f.element.lanes
        self.buffer = f.emit(f"alloca [{ROWS * lanes} x {f.element.memory}], align 64")
        self.has_pairs = lanes <= 16  # the masks of two vectors' even lanes are one i64

    def emit(self, row: str, row_step: int | str, j: str, sums: list[str]) -> None:
        """`sums` of rows row, row + row_step, .. from column j on."""
        f, lanes = self.f, self.f.element.lanes
        values = [emit_in_memory(f, value) for value in sums]
        length = f.minimum(f.sub("%j1", j), lanes)
        column = f.at("%dst", f.mul(j, self.dst_col))
        rows = [f.add(row, f.mul(row_step, u)) if u else row for u in range(ROWS)]
        here = [f.compare("ult", at, self.rows) for at in rows]
        places = [f.at(column, f.mul(at, self.step)) for at in rows]
        apart = f.compare("ne", self.dst_col, 1)
        with f.when(f.negate(apart)):
            for value, place, is_here in zip(values, places, here):
                f.masked_store(value, place, f.mask(f.select(is_here, length, 0)))
        if self.has_pairs:
            apart = f.compare("ugt", self.dst_col, 2)
            with f.when(f.compare("eq", self.dst_col, 2)):
                some = f.sub(f.emit(f"shl i64 1, {f.add(length, length)}"), 1)
                bits = f.emit(f"and i64 {some}, {0x5555555555555555}")
                for value, place, is_here in zip(values, places, here):
                    self._spread(value, place, f.select(is_here, bits, 0))
        with f.when(apart):
            for u, value in enumerate(values):
                f.store(f.element.memory_vector, value, f.at(self.buffer, u * lanes))
            with f.carrying(0, ROWS, ("i64", row), ("ptr", self.buffer)) as turn:
                at, source = turn.values
                place = f.at(column, f.mul(at, self.step))
                count = f.select(f.compare("ult", at, self.rows), length, 0)
                with f.loop(0, count) as lane:
                    item = f.load(f.element.memory, f.at(source, lane))
                    f.store(f.element.memory, item, f.at(place, f.mul(lane, self.dst_col)))
                turn.following = [f.add(at, row_step), f.at(source, lanes)]

    def _spread(self, value: str, place: str, bits: str) -> None:
        """Every other element, as two vectors under masks: 14 stores one by one took 30 cycles."""
        f, lanes, ty = self.f, self.f.element.lanes, self.f.element.memory_vector
        for half in (0, 1):
            order = ", ".join(f"i32 {half * lanes // 2 + k // 2}" for k in range(lanes))
            spread = f.emit(f"shufflevector {ty} {value}, {ty} poison, <{lanes} x i32> <{order}>")
            part = f.emit(f"lshr i64 {bits}, {half * lanes}")
            narrow = f.emit(f"trunc i64 {part} to i{lanes}")
            mask = f.emit(f"bitcast i{lanes} {narrow} to <{lanes} x i1>")
            f.masked_store(spread, f.at(place, half * lanes), mask)
