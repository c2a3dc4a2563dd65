"""Depthwise convolution: every channel with a window of its own, straight from the image.

    for an image, for four rows of the output, for a vector of positions of a row:
        forward: for a tap row, for a tap column: add to the four rows' sums in registers
        weights: for a tap row, for a tap column: add all four rows to the tap's vector in memory

Loads are under masks, which a table holds for each vector of a row and each tap column. One row of
weights does not pay for packing: 16 x 64 planes of 28 x 28 under 3 x 3 windows took 2.8 ms packed.
The functions of a plane's rows are in `conv_depthwise_rows`, those for windows of 3 x 3, by far the
most frequent ones, in `conv_depthwise_3x3`: the same sums in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

from .builder import Module, vector, width
from .conv_depthwise_3x3 import require_rows_3x3, require_taps_3x3
from .conv_depthwise_rows import PIECES, TABLE_BYTES, TAPS_W, require_rows, require_taps
from .conv_emit import KC, Code, Plan, aligned
from .conv_im2col import PASS_PARAMS, require_im2col_pass
from .conv_lanes import emit_inside, emit_lane_code, kinds_of
from .conv_weight import PASS_PARAMS as WEIGHT_PARAMS
from .conv_weight import require_weight_pass
from .gemm_emit import CONTROL, Element, emit_add

GROUP = 8  # accumulators whose lanes are added up together


def near_stride(kernel: Sequence[object], stride: Sequence[int], dilation: Sequence[int]) -> int:
    """The argument `near` for a window and its strides: the stride, where the functions of windows
    of 3 x 3 serve, else 0. It changes no bit, and spares LLVM all others (25 of 55 ms)."""
    fits = tuple(kernel) == (3, 3) and set(dilation) == {1} and tuple(stride) in ((1, 1), (2, 2))
    return stride[0] if fits else 0


def supported(element: Element, near: int) -> int:
    """`near`, where this element has such functions, else 0."""
    return near if near < len(kinds_of(element)) else 0


def require_depthwise_pass(module: Module, element: Element, near: int) -> str:
    """Makes sure of `void @sg_conv_depthwise_<dtype>(plan, ...)`, which does what the function of
    `require_im2col_pass` does, and by calling it where a plan is not one channel by one, or its
    windows or strides are too wide. Targets without masks get that function itself.

    With `near` all plans have windows of 3 x 3 and this stride."""
    if not element.has_masks:
        return require_im2col_pass(module, element)
    name = f"sg_conv_depthwise_{f'3x3_{near}_' if near else ''}{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, PASS_PARAMS, element, CONTROL)
    fill = _require_masks(module, element)
    if near:
        function = f"@{require_rows_3x3(module, element, near)}"
    else:
        kinds = kinds_of(element)[:-1]
        functions = [require_rows(module, element, kind) for kind in kinds]
        _emit_unless_applicable(f, require_im2col_pass(module, element), PASS_PARAMS)
        function = _emit_function(f, functions)
    image, dst_image, positions, first = f.slots(
        "%plan", Plan.SRC_IMAGE, Plan.DST_IMAGE, Plan.POSITIONS, Plan.FIRST_ROW
    )
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


def require_depthwise_weight_pass(module: Module, element: Element, near: int) -> str:
    """The same for `require_weight_pass`. Here the sums have an order of their own: over images,
    rows in fours, vectors of a row; the lanes at the end, in pairs of neighbours."""
    if not element.has_masks:
        return require_weight_pass(module, element)
    name = f"sg_conv_depthwise_weight_{f'3x3_{near}_' if near else ''}{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, WEIGHT_PARAMS, element, CONTROL)
    fill, add_up = _require_masks(module, element), _require_lane_sums(module, element)
    if near:
        function = f"@{require_taps_3x3(module, element, near)}"
    else:
        functions = [require_taps(module, element, kind) for kind in kinds_of(element)[:-1]]
        _emit_unless_applicable(f, require_weight_pass(module, element), WEIGHT_PARAMS)
        function = _emit_function(f, functions)
    image, y_image, taps_h, taps_w, first = f.slots(
        "%plan", Plan.SRC_IMAGE, Plan.DST_IMAGE, Plan.TAPS_H, Plan.TAPS_W, Plan.FIRST_ROW
    )
    taps = f.mul(taps_h, taps_w)
    vectors = f.mul(f.ceil_div(taps, GROUP), GROUP)
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


def _emit_function(f: Code, functions: list[str]) -> str:
    """The function for the stride, as a pointer; `functions` are those for strides 1 and 2."""
    single = f.compare("eq", f.slot("%plan", Plan.STRIDE_W), 1)
    return f.select(single, f"@{functions[0]}", f"@{functions[-1]}", "ptr")


def _emit_plane(
    f: Code, function: str, fill: str, table: str, operands: tuple[str, str, str], first: str
) -> None:
    """Calls `function` for one plane, after filling the table of masks, where the plane before it
    has left others."""
    positions, out_w = f.slots("%plan", Plan.POSITIONS, Plan.OUT_W)
    width = PIECES * f.element.lanes
    wide = f.compare("sgt", out_w, width)
    with f.loop(0, f.select(f.compare("sgt", positions, 0), out_w, 0), width) as j0:
        j1 = f.minimum(f.add(j0, width), out_w)
        with f.when(f.either(wide, first)):
            f.call(fill, ("ptr", "%plan"), ("ptr", table), ("i64", j0), ("i64", j1))
        pointers = ", ".join(f"ptr {p}" for p in operands)
        f.stmt(f"call void {function}(ptr %plan, ptr {table}, {pointers}, i64 {j0}, i64 {j1})")


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


def _require_lane_sums(module: Module, element: Element) -> str:
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
