"""Depthwise convolution: every channel with a window of its own, straight from the image.

    for an image, for four rows of the output, for a vector of positions of a row:
        forward: for a tap row, for a tap column: add to the four rows' sums in registers
        weights: for a tap row, for a tap column: add all four rows to the tap's vector in memory

Loads are under masks, which a table holds for each vector of a row and each tap column. One row of
weights does not pay for packing: 16 x 64 planes of 28 x 28 under 3 x 3 windows took 2.8 ms packed.
"""

from __future__ import annotations

from .builder import Module, vector, width
from .conv_emit import KC, Code, Plan, aligned, multiply_add
from .conv_im2col import PASS_PARAMS, require_im2col_pass
from .conv_lanes import emit_inside, emit_lane_code, emit_load_lanes, kinds_of
from .conv_weight import PASS_PARAMS as WEIGHT_PARAMS
from .conv_weight import require_weight_pass
from .gemm_emit import CONTROL, Element, emit_add, emit_broadcast, emit_in_memory, emit_in_register

ROWS = 4  # rows of the output at a time
PIECES = 64  # vectors of a row at a time: 1024 columns of float32
TAPS_W = 16  # at most so many tap columns; wider windows are packed
GROUP = 8  # accumulators whose lanes are added up together
TABLE_BYTES = PIECES * TAPS_W * 8
ROW_PARAMS = "ptr plan, ptr table, ptr src, ptr weights, ptr dst, i64 i, i64 j0, i64 j1"


def require_depthwise_pass(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_depthwise_<dtype>(plan, ...)`, which does what the function of
    `require_im2col_pass` does, and by calling it where a plan is not one channel by one, or its
    windows or strides are too wide. Targets without masks get that function itself."""
    general = require_im2col_pass(module, element)
    name = f"sg_conv_depthwise_{element.dtype}"
    if module.has(name) or not element.has_masks:
        return name if element.has_masks else general
    kinds = kinds_of(element)[:-1]
    functions = [_require_rows(module, element, kind) for kind in kinds]
    fill = _require_masks(module, element)
    f = Code(module, name, PASS_PARAMS, element, CONTROL)
    _emit_unless_applicable(f, general, PASS_PARAMS)
    image, dst_image, positions, first, stride_w = f.slots(
        "%plan", Plan.SRC_IMAGE, Plan.DST_IMAGE, Plan.POSITIONS, Plan.FIRST_ROW, Plan.STRIDE_W
    )
    function = _emit_function(f, stride_w, functions)
    table = aligned(f, "%workspace")
    with f.loop("%begin", "%end") as n:
        operands = (f.at("%src", f.mul(n, image)), "%weights", f.at("%dst", f.mul(n, dst_image)))
        _emit_plane(f, function, fill, table, operands, f.compare("eq", n, "%begin"))
        some = f.both(f.emit("icmp ne ptr %epilogue, null"), f.compare("sgt", positions, 0))
        with f.when(some):
            f.stmt(f"call void %epilogue(ptr %context, i64 {n}, i64 {first}, "
                   f"i64 {f.add(first, 1)}, i64 0, i64 {positions})")  # fmt: skip
    f.leave()
    f.finish()
    return name


def require_depthwise_weight_pass(module: Module, element: Element) -> str:
    """The same for `require_weight_pass`. Here the sums have an order of their own: over images,
    rows in fours, vectors of a row; the lanes at the end, in pairs of neighbours."""
    general = require_weight_pass(module, element)
    name = f"sg_conv_depthwise_weight_{element.dtype}"
    if module.has(name) or not element.has_masks:
        return name if element.has_masks else general
    functions = [_require_taps(module, element, kind) for kind in kinds_of(element)[:-1]]
    fill, add_up = _require_masks(module, element), _require_lane_sums(module, element)
    f = Code(module, name, WEIGHT_PARAMS, element, CONTROL)
    _emit_unless_applicable(f, general, WEIGHT_PARAMS)
    image, y_image, taps_h, taps_w, first, stride_w = f.slots(
        "%plan", Plan.SRC_IMAGE, Plan.DST_IMAGE, Plan.TAPS_H, Plan.TAPS_W, Plan.FIRST_ROW,
        Plan.STRIDE_W,
    )  # fmt: skip
    taps = f.mul(taps_h, taps_w)
    vectors = f.mul(f.ceil_div(taps, GROUP), GROUP)
    function = _emit_function(f, stride_w, functions)
    table = aligned(f, "%workspace")
    sums = f.at_byte(table, TABLE_BYTES)
    ty = element.register_vector
    with f.loop(0, vectors) as k:
        f.store(ty, "zeroinitializer", f.emit(f"getelementptr {ty}, ptr {sums}, i64 {k}"))
    with f.loop(0, "%images") as n:
        operands = (f.at("%x", f.mul(n, image)), f.at("%y", f.mul(n, y_image)), sums)
        _emit_plane(f, function, fill, table, operands, f.compare("eq", n, 0))
    f.call(add_up, ("ptr", sums), ("i64", vectors), ("ptr", "%w"), ("i64", taps))
    some = f.both(f.emit("icmp ne ptr %epilogue, null"), f.compare("sgt", taps, 0))
    with f.when(some):
        f.stmt(f"call void %epilogue(ptr %context, i64 0, i64 {first}, i64 {f.add(first, 1)}, "
               f"i64 0, i64 {taps})")  # fmt: skip
    f.leave()
    f.finish()
    return name


def depthwise_workspace_bytes(element: Element) -> int:
    """The masks, the sums of each tap's lanes, 64 bytes to align them."""
    return TABLE_BYTES + (KC + GROUP) * (element.target.vector_bits // 8) + 64


def _emit_unless_applicable(f: Code, general: str, params: str) -> None:
    """Leaves the plan to `general` if it is none for this file."""
    channels, rows, taps_h, taps_w, stride_w = f.slots(
        "%plan", Plan.CHANNELS, Plan.ROWS, Plan.TAPS_H, Plan.TAPS_W, Plan.STRIDE_W
    )
    fits = f.both(f.compare("eq", channels, 1), f.compare("eq", rows, 1))
    fits = f.both(fits, f.compare("sle", taps_w, TAPS_W))
    fits = f.both(fits, f.compare("sle", f.mul(taps_h, taps_w), KC))
    fits = f.both(fits, f.compare("slt", stride_w, len(kinds_of(f.element))))
    with f.when(f.emit(f"xor i1 {fits}, true")):
        pairs = [p.split() for p in params.split(", ")]
        f.call(general, *[(ty, f"%{name}") for ty, name in pairs])
        f.leave()


def _emit_function(f: Code, stride_w: str, functions: list[str]) -> str:
    """The function for the stride, as a pointer; `functions` are those for strides 1 and 2."""
    return f.select(f.compare("eq", stride_w, 1), f"@{functions[0]}", f"@{functions[-1]}", "ptr")


def _emit_plane(
    f: Code, function: str, fill: str, table: str, operands: tuple[str, str, str], first: str
) -> None:
    """Calls `function` for all rows of one plane, in fours, after filling the table of masks, where
    the plane before it has left others."""
    positions, out_w = f.slots("%plan", Plan.POSITIONS, Plan.OUT_W)
    width = PIECES * f.element.lanes
    wide = f.compare("sgt", out_w, width)
    with f.loop(0, f.select(f.compare("sgt", positions, 0), out_w, 0), width) as j0:
        j1 = f.minimum(f.add(j0, width), out_w)
        with f.when(f.either(wide, first)):
            f.call(fill, ("ptr", "%plan"), ("ptr", table), ("i64", j0), ("i64", j1))
        with f.loop(0, f.div(positions, out_w), ROWS) as i:
            pointers = ", ".join(f"ptr {p}" for p in operands)
            f.stmt(f"call void {function}(ptr %plan, ptr {table}, {pointers}, i64 {i}, i64 {j0}, "
                   f"i64 {j1})")  # fmt: skip


def _require_masks(module: Module, element: Element) -> str:
    """`void @sg_conv_depthwise_masks_<dtype>(plan, table, j0, j1)`: table[piece, tap column] = the
    code of the lanes inside of the image (`emit_lane_code`), for a row's vectors from column j0 to
    j1."""
    name = f"sg_conv_depthwise_masks_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr plan, ptr table, i64 j0, i64 j1", element)
    stride_w, col_0, col_step, src_w, taps_w = f.slots(
        "%plan", Plan.STRIDE_W, Plan.COL_0, Plan.COL_STEP, Plan.SRC_W, Plan.TAPS_W
    )
    with f.carrying("%j0", "%j1", ("ptr", "%table")) as piece:
        length = f.minimum(f.sub("%j1", piece.index), element.lanes)
        col = f.add(f.mul(piece.index, stride_w), col_0)
        with f.loop(0, taps_w) as w:
            low, high = emit_inside(f, f.add(col, f.mul(w, col_step)), src_w, stride_w, length)
            f.set_slot(piece.values[0], w, emit_lane_code(f, stride_w, low, high))
        piece.step = element.lanes
        piece.following = [f.at_byte(piece.values[0], TAPS_W * 8)]
    f.leave()
    f.finish()
    return name


def _emit_source_rows(
    f: Code, h: str, col: str, rows: str | None = None
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
    row = f.add(f.mul("%i", stride_h), tap)
    if rows is not None:
        last = f.add(f.mul(f.sub(rows, 1), stride_h), tap)
        src_h = f.maximum(f.minimum(src_h, f.add(last, 1)), 0)
    pointers, there = [], []
    for u in range(ROWS):
        at = f.add(row, f.mul(stride_h, u)) if u else row
        pointers.append(f.at("%src", f.add(f.mul(at, src_w), col)))
        there.append(f.emit(f"sext i1 {f.compare('ult', at, src_h)} to i64"))
    return pointers, there


def _require_rows(module: Module, element: Element, kind: str) -> str:
    """`void @sg_conv_depthwise_rows_<kind>_<dtype>(plan, table, src, weights, dst, i, j0, j1)`:
    rows i to i + 3 of one plane, columns j0 to j1."""
    name = f"sg_conv_depthwise_rows_{kind}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, ROW_PARAMS, element)
    stride_w, col_0, col_step, taps_h, taps_w = f.slots(
        "%plan", Plan.STRIDE_W, Plan.COL_0, Plan.COL_STEP, Plan.TAPS_H, Plan.TAPS_W
    )
    tap_h, tap_w = f.slots("%plan", Plan.W_TAP_H, Plan.W_TAP_W)
    ty = element.register_vector
    buffer = f.emit(f"alloca [{ROWS * element.lanes} x {element.memory}], align 64")
    zeros = [(ty, "zeroinitializer")] * ROWS
    with f.carrying("%j0", "%j1", ("ptr", "%table")) as piece:
        col = f.add(f.mul(piece.index, stride_w), col_0)
        with f.carrying(0, taps_h, ("ptr", "%weights"), *zeros) as row:
            weights, *sums = row.values
            pointers, there = _emit_source_rows(f, row.index, col)
            start = [("ptr", weights), *[("ptr", p) for p in pointers], *[(ty, s) for s in sums]]
            with f.carrying(0, taps_w, *start) as tap:
                weight, sources = tap.values[0], tap.values[1 : 1 + ROWS]
                code = f.slot(piece.values[0], tap.index)
                factor = emit_broadcast(f, weight)
                new = [
                    multiply_add(
                        f, ty, factor, _emit_lanes(f, kind, s, f.emit(f"and i64 {code}, {t}")), v
                    )
                    for s, t, v in zip(sources, there, tap.values[1 + ROWS :])
                ]
                tap.following = [f.at(weight, tap_w), *[f.at(s, col_step) for s in sources], *new]
            row.following = [f.at(weights, tap_h), *tap.after[1 + ROWS :]]
        _emit_store_rows(f, buffer, piece.index, row.after[1:])
        piece.step = element.lanes
        piece.following = [f.at_byte(piece.values[0], TAPS_W * 8)]
    f.leave()
    f.finish()
    return name


def _emit_lanes(f: Code, kind: str, pointer: str, code: str) -> str:
    return emit_in_register(f, emit_load_lanes(f, kind, pointer, code))


def _emit_store_rows(f: Code, buffer: str, j: str, sums: list[str]) -> None:
    """Puts four vectors down at column j of rows i to i + 3, those of them that are there."""
    element = f.element
    positions, out_w, run, dst_run, dst_col = f.slots(
        "%plan", Plan.POSITIONS, Plan.OUT_W, Plan.RUN, Plan.DST_RUN, Plan.DST_COL
    )
    for u, value in enumerate(sums):
        f.store(element.memory_vector, emit_in_memory(f, value), f.at(buffer, u * element.lanes))
    # A run is one row, or the whole plane.
    step = f.select(f.compare("eq", run, out_w), dst_run, out_w)
    rows = f.minimum(f.sub(f.div(positions, out_w), "%i"), ROWS)
    length = f.minimum(f.sub("%j1", j), element.lanes)
    mask = f.mask(length)
    dense = f.compare("eq", dst_col, 1)
    start = f.at("%dst", f.multiply_sum(("%i", step), (j, dst_col)))
    with f.carrying(0, rows, ("ptr", start), ("ptr", buffer)) as row:
        target, source = row.values
        with f.when(dense):
            f.masked_store(f.load(element.memory_vector, source), target, mask)
        with f.loop(0, f.select(dense, 0, length)) as lane:
            value = f.load(element.memory, f.at(source, lane))
            f.store(element.memory, value, f.at(target, f.mul(lane, dst_col)))
        row.following = [f.at(target, step), f.at(source, element.lanes)]


def _require_taps(module: Module, element: Element, kind: str) -> str:
    """`void @sg_conv_depthwise_taps_<kind>_<dtype>(plan, table, src, weights, dst, i, j0, j1)`:
    adds to the vector of each tap, at `dst`, what rows i to i + 3 and columns j0 to j1 of the
    output's gradient, at `weights`, give with the image at `src`."""
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
    with f.carrying("%j0", "%j1", ("ptr", "%table")) as piece:
        mask = f.mask(f.sub("%j1", piece.index))
        gradients = []
        for u in range(ROWS):
            at = f.add("%i", u)
            # Of a row that is not there nothing is read: the mask is empty.
            here = f.compare("slt", at, rows)
            lanes = f"<{element.lanes} x i1>"
            masked = f.emit(f"select i1 {here}, {lanes} {mask}, {lanes} zeroinitializer")
            pointer = f.at("%weights", f.add(f.mul(at, out_w), piece.index))
            gradients.append(emit_in_register(f, f.masked_load(pointer, masked)))
        col = f.add(f.mul(piece.index, stride_w), col_0)
        with f.carrying(0, taps_h, ("ptr", "%dst")) as row:
            pointers, there = _emit_source_rows(f, row.index, col, rows)
            start = [("ptr", row.values[0]), *[("ptr", p) for p in pointers]]
            with f.carrying(0, taps_w, *start) as tap:
                sums, *sources = tap.values
                code = f.slot(piece.values[0], tap.index)
                total = f.load(ty, sums)
                for s, t, g in zip(sources, there, gradients):
                    x = _emit_lanes(f, kind, s, f.emit(f"and i64 {code}, {t}"))
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


def _require_lane_sums(module: Module, element: Element) -> str:
    """`void @sg_conv_depthwise_sums_<dtype>(sums, vectors, out, count)`: out[i] = the sum of the
    lanes of vector i, for `count` of `vectors` (a multiple of GROUP) vectors, which it overwrites.

    Lanes are added in pairs of neighbours."""
    name = f"sg_conv_depthwise_sums_{element.dtype}"
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
    if element.memory == element.register:
        return [(ty, value) for value in values]
    narrow = f"<{lanes} x {element.memory}>"
    return [(narrow, f.emit(f"trunc {ty} {value} to {narrow}")) for value in values]
