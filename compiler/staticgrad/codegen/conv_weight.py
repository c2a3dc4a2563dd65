"""The gradient of a convolution's weights: dot products over positions, a vector of them at a time.

Both operands are packed with positions along the lanes, so neither is transposed: a transposed
panel for the matrix-product kernel costs 16 loads, 64 shuffles and 16 stores for 256 elements,
which O products each (32 in a small network) don't pay for.
"""

from __future__ import annotations

from .builder import Module, vector, width
from .conv_emit import COLD, Code, Plan, emit_box_steps, emit_set_box, multiply_add
from .conv_pack import piece_table_bytes, require_pack_rows, require_pack_source
from .conv_pass import aligned
from .conv_tile import emit_add, emit_vector, full_height
from .gemm_emit import Element
from .target import Target

POSITIONS = 1024  # at most so many to a block: 64 vectors of float32, and
POSITION_BYTES = 4096  # so many bytes of each row, 8 of which are the L1 cache
TAPS = 96  # taps to a packed block: 390 KiB, in L2
ROWS = 64  # rows of the output's gradient to a packed block: 260 KiB
COLUMNS = 3  # taps to a tile
GROUP = 8  # accumulators whose lanes are added up together

PASS_PARAMS = ("ptr plan, ptr x, ptr y, ptr w, ptr workspace, ptr epilogue, ptr context, "
               "i64 rows, i64 images")  # fmt: skip


def tile_heights(target: Target) -> list[int]:
    """Rows of the tiles: full, and one for depthwise convolution and single channels."""
    return [full_height(target), 1]


def position_block(element: Element) -> int:
    return min(POSITION_BYTES // element.itemsize, POSITIONS)


def block_stride(element: Element) -> int:
    return position_block(element) + element.lanes


def weight_workspace_bytes(target: Target, dtype: str) -> int:
    """What the pass needs: packed rows and taps, the table of pieces, 64 bytes to align them."""
    element = Element.of(dtype, target)
    packed = _packed_rows(target) * block_stride(element) * element.itemsize
    return packed + piece_table_bytes(position_block(element)) + 64


def _packed_rows(target: Target) -> int:
    """The rows and then the taps, each with a tile's height to spare."""
    return ROWS + tile_heights(target)[0] + TAPS + COLUMNS


def _require_dot(module: Module, element: Element, rows: int) -> str:
    """`void @sg_conv_dot_<dtype>_<rows>(positions, a, b, out, out_rs, accumulate, count, cols)`:
    out[r * out_rs + c] (+)= sum over l < positions of a[r, l] * b[c, l] for r < count <= rows,
    c < cols <= 3; positions are whole vectors. Rows and taps that are not written are read.
    """
    name = f"sg_conv_dot_{element.dtype}_{rows}"
    if module.has(name):
        return name
    finish = require_finish(module, element)
    params = "i64 positions, ptr a, ptr b, ptr out, i64 out_rs, i64 accumulate, i64 count, i64 cols"
    f = Code(module, name, params, element)
    ty, stride = element.register_vector, block_stride(element)
    groups = -(-COLUMNS * rows // GROUP)
    buffer = f.emit(f"alloca [{groups * GROUP} x {ty}], align 64")
    zeros = [(ty, "zeroinitializer")] * (rows * COLUMNS)
    with f.carrying(0, "%positions", ("ptr", "%a"), ("ptr", "%b"), *zeros) as turn:
        a, b, *sums = turn.values
        taps = [emit_vector(f, f.at(b, c * stride)) for c in range(COLUMNS)]
        for r in range(rows):
            value = emit_vector(f, f.at(a, r * stride))
            for c in range(COLUMNS):
                sums[c * rows + r] = multiply_add(f, ty, value, taps[c], sums[c * rows + r])
        turn.step = element.lanes
        turn.following = [f.at(a, element.lanes), f.at(b, element.lanes), *sums]
    for at, value in enumerate(turn.after[2:]):
        f.store(ty, value, f.emit(f"getelementptr {ty}, ptr {buffer}, i64 {at}"))
    f.stmt(
        f"call void @{finish}(ptr {buffer}, i64 {groups * GROUP}, i64 {rows}, ptr %out, "
        "i64 %out_rs, i64 %accumulate, i64 %count, i64 %cols)"
    )
    f.leave()
    f.finish()
    return name


def require_finish(module: Module, element: Element) -> str:
    """`void @sg_conv_finish_<dtype>(sums, vectors, rows, out, out_rs, accumulate, count, cols)`:
    adds up the lanes of each of `vectors` (a multiple of GROUP) accumulators [columns, rows], in
    place, and writes or adds the results to out.

    Lanes are added in pairs of neighbours, whatever the tile.
    """
    name = f"sg_conv_finish_{element.dtype}"
    if module.has(name):
        return name
    params = ("ptr sums, i64 vectors, i64 rows, ptr out, i64 out_rs, i64 accumulate, i64 count, "
              "i64 cols")  # fmt: skip
    f = Code(module, name, params, element)
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
    add = f.compare("ne", "%accumulate", 0)
    start = [("ptr", "%sums"), ("ptr", "%out")]
    with f.carrying(0, "%count", *start) as r:
        with f.carrying(0, "%cols", *[("ptr", v) for v in r.values]) as c:
            source, out = c.values
            value = f.load(element.memory, source)
            with f.choice(add) as adding:
                total = emit_add(f, element.memory, f.load(element.memory, out), value)
            f.store(element.memory, adding.phi(element.memory, total, value), out)
            c.following = [f.at(source, "%rows"), f.at(out, 1)]
        r.following = [f.at(r.values[0], 1), f.at(r.values[1], "%out_rs")]
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


def require_weight_pass(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_weight_pass_<dtype>(plan, x, y, w, workspace, epilogue, context,
    rows, images)`: the gradient of `rows` output channels of one group, from y and w on.

    The plan describes x as in the forward pass, and y by its DST slots.
    """
    name = f"sg_conv_weight_pass_{element.dtype}"
    if module.has(name):
        return name
    pack_rows = require_pack_rows(module, element)
    block = _require_weight_block(module, element)
    f = Code(module, name, PASS_PARAMS, element, COLD)
    positions, image, channel, w_row, first = f.slots(
        "%plan", Plan.POSITIONS, Plan.DST_IMAGE, Plan.DST_ROW, Plan.W_ROW, Plan.FIRST_ROW
    )
    a = aligned(f, "%workspace")
    total = f.mul("%images", positions)
    blocks = f.maximum(f.ceil_div(total, position_block(element)), 1)
    step = f.maximum(f.ceil_div(f.ceil_div(total, blocks), element.lanes), 1)
    step = f.mul(step, element.lanes)
    with f.loop(0, "%rows", ROWS) as r0:
        rows = f.minimum(f.sub("%rows", r0), ROWS)
        from_y = f.at("%y", f.mul(r0, channel))
        to_w = f.at("%w", f.mul(r0, w_row))
        # No position at all is one empty block: its zeros have to be written too.
        with f.loop(0, f.maximum(total, 1), step) as q:
            count = f.minimum(step, f.sub(total, q))
            f.call(pack_rows, ("ptr", from_y), ("i64", image), ("i64", channel), ("i64", positions),
                   ("ptr", a), ("i64", block_stride(element)), ("i64", rows), ("i64", q),
                   ("i64", count))  # fmt: skip
            _emit_zero_tail(f, a, rows, count)
            f.stmt(
                f"call void @{block}(ptr %plan, ptr %x, ptr {a}, ptr {to_w}, i64 {rows}, i64 {q}, "
                f"i64 {count})"
            )
        with f.when(f.both(f.emit("icmp ne ptr %epilogue, null"), f.compare("sgt", w_row, 0))):
            low = f.add(first, r0)
            f.stmt(f"call void %epilogue(ptr %context, i64 0, i64 {low}, i64 {f.add(low, rows)}, "
                   f"i64 0, i64 {w_row})")  # fmt: skip
    f.leave()
    f.finish()
    return name


def _emit_zero_tail(f: Code, packed: str, rows: str, count: str) -> None:
    """Zeros the vector after the `count` positions of each packed row: the rest of a whole one."""
    with f.loop(0, rows) as row:
        end = f.at(packed, f.add(f.mul(row, block_stride(f.element)), count))
        f.store(f.element.memory_vector, "zeroinitializer", end)


def _require_weight_block(module: Module, element: Element) -> str:
    """`void @sg_conv_weight_block_<dtype>(plan, x, a, w, rows, q, count)`: adds what `count`
    positions from q on give to `rows` rows of w; at q = 0 it overwrites. `a` holds the packed rows
    of y; the packed taps come after them."""
    name = f"sg_conv_weight_block_{element.dtype}"
    if module.has(name):
        return name
    pack_source = require_pack_source(module, element)
    heights = tile_heights(module.target)
    dots = {height: _require_dot(module, element, height) for height in heights}
    params = "ptr plan, ptr x, ptr a, ptr w, i64 rows, i64 q, i64 count"
    f = Code(module, name, params, element)
    stride = block_stride(element)
    b = f.at("%a", (ROWS + heights[0]) * stride)
    table = f.at("%a", _packed_rows(module.target) * stride)
    channels, taps_h, taps_w, w_row = f.slots(
        "%plan", Plan.CHANNELS, Plan.TAPS_H, Plan.TAPS_W, Plan.W_ROW
    )
    steps = emit_box_steps(f, channels, taps_h, taps_w, TAPS)
    whole = f.mul(f.ceil_div("%count", element.lanes), element.lanes)
    with (
        f.loop(0, channels, steps[0]) as c,
        f.loop(0, taps_h, steps[1]) as h,
        f.loop(0, taps_w, steps[2]) as w,
    ):
        counts = emit_set_box(f, (c, h, w), steps)
        taps = f.mul(f.mul(counts[0], counts[1]), counts[2])
        first = f.add(f.mul(f.add(f.mul(c, taps_h), h), taps_w), w)
        f.call(pack_source, ("ptr", "%plan"), ("ptr", "%x"), ("ptr", b), ("i64", stride),
               ("ptr", table), ("i64", "%q"), ("i64", "%count"))  # fmt: skip
        _emit_zero_tail(f, b, taps, "%count")
        with f.carrying(0, "%rows") as tile:
            left = f.sub("%rows", tile.index)
            to_w = f.at(f.at("%w", f.mul(tile.index, w_row)), first)
            from_a = f.at("%a", f.mul(tile.index, stride))
            tile.step = _emit_row_tile(f, dots, (whole, from_a, b, to_w, w_row), left, taps)
    f.leave()
    f.finish()
    return name


def _emit_row_tile(
    f: Code, dots: dict[int, str], operands: tuple[str, str, str, str, str], left: str, taps: str
) -> str:
    """All taps of the next rows: a tile of them, or the only one; -> how many rows."""
    full = full_height(f.module.target)
    positions, a, b, w, w_row = operands
    accumulate = f.emit(f"zext i1 {f.compare('ne', '%q', 0)} to i64")
    rows = f.minimum(left, full)
    function = f.select(f.compare("eq", left, 1), f"@{dots[1]}", f"@{dots[full]}", "ptr")
    with f.loop(0, taps, COLUMNS) as t:
        from_b = f.at(b, f.mul(t, block_stride(f.element)))
        cols = f.minimum(f.sub(taps, t), COLUMNS)
        f.stmt(
            f"call void {function}(i64 {positions}, ptr {a}, ptr {from_b}, ptr {f.at(w, t)}, "
            f"i64 {w_row}, i64 {accumulate}, i64 {rows}, i64 {cols})"
        )
    return rows
