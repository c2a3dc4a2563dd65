"""One pass of a convolution over images, with vectors along the positions: im2col by blocks.

    for a block of 256 output channels, for a block of KC terms (channel, tap):
        for a block of positions (4 strips; or an image, whose tap rows then share packed rows):
            unfold the source: a row of positions for each term
            for a strip of 3 vectors of positions, for 8 output channels: the tile, which broadcasts
                each channel's weight
            call the epilogue, with the last terms

It suits few output channels; `conv_channels` has the other way. Forward is one such pass, the
gradient of the input one for each phase of the stride.
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import KC, Code, Plan, aligned, emit_box_steps, emit_set_box
from .conv_im2col_pack import piece_table_bytes, require_im2col_pack
from .conv_im2col_tile import VECTORS, Steps, full_height, require_im2col_tile
from .gemm_emit import CONTROL, Element, emit_add
from .target import Target

ROW_BLOCK = 256  # output channels to a block of packed weights: 512 KiB of float32
STRIPS = 4  # strips of columns to a packed block: 416 KiB, read from L2 once a row tile
SHARED_COLUMNS = 2048  # at most so many positions to a shared packed row
ANYWHERE = 1 << 62  # the positions of an image in a view that never gets to its end

PASS_PARAMS = ("ptr plan, ptr pack, ptr src, ptr weights, ptr dst, ptr workspace, ptr epilogue, "
               "ptr context, i64 begin, i64 end")  # fmt: skip


def strip_columns(element: Element) -> int:
    return VECTORS * element.lanes


def block_stride(element: Element) -> int:
    """The row stride of a packed block: its columns and a vector that packing may run over."""
    return STRIPS * strip_columns(element) + element.lanes


def _offsets(element: Element) -> tuple[int, int, int]:
    """(tile buffer, packed weights, table of pieces) in the workspace, in elements; the packed
    block is first."""
    tile = KC * block_stride(element)
    weights = tile + full_height(element.target) * strip_columns(element)
    return tile, weights, weights + ROW_BLOCK * KC


def im2col_workspace_bytes(target: Target, dtype: str) -> int:
    """What a pass needs, and 64 bytes to align it."""
    element = Element.of(dtype, target)
    table = piece_table_bytes(max(SHARED_COLUMNS, STRIPS * strip_columns(element)))
    return _offsets(element)[2] * element.itemsize + table + 64


def require_im2col_pass(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_im2col_<dtype>(plan, pack, src, weights, dst, workspace,
    epilogue, context, begin, end)`: the pass of `Plan` over the images [begin, end).

    `pack` is null where the weights lie as [rows, taps], else `require_im2col_weights`' function: a
    pointer, so that forward, which has no need of it, does not compile it.
    """
    name = f"sg_conv_im2col_{element.dtype}"
    if module.has(name):
        return name
    _require_block(module, element)
    f = Code(module, name, PASS_PARAMS, element, CONTROL)
    steps = f.emit(f"alloca [{len(Steps)} x i64], align 64")
    view = f.emit(f"alloca [{len(Plan)} x i64], align 64")
    rows, channels, taps_h, taps_w = f.slots(
        "%plan", Plan.ROWS, Plan.CHANNELS, Plan.TAPS_H, Plan.TAPS_W
    )
    with f.loop(0, rows, ROW_BLOCK) as r0:
        count = f.minimum(f.sub(rows, r0), ROW_BLOCK)
        step_c, step_h, step_w = emit_box_steps(f, channels, taps_h, taps_w, KC)
        # A sum without terms is one empty block: its zeros have to be written too.
        some = [f.maximum(extent, 1) for extent in (channels, taps_h, taps_w)]
        with (
            f.loop(0, some[0], step_c) as c,
            f.loop(0, some[1], step_h) as h,
            f.loop(0, some[2], step_w) as w,
        ):
            counts = emit_set_box(f, (c, h, w), (step_c, step_h, step_w))
            for slot, extent in zip((Steps.COUNT_C, Steps.COUNT_H, Steps.COUNT_W), counts):
                f.set_slot(steps, slot, extent)
            start = f.emit(f"or i64 {f.emit(f'or i64 {c}, {h}')}, {w}")
            last = "true"
            for at, step, extent in zip((c, h, w), (step_c, step_h, step_w), some):
                last = f.both(last, f.compare("sge", f.add(at, step), extent))
            accumulate = f.emit(f"zext i1 {f.compare('ne', start, 0)} to i64")
            epilogue = f.select(last, "%epilogue", "null", "ptr")
            _emit_blocks(f, (steps, view), (r0, count), accumulate, epilogue)
    f.leave()
    f.finish()
    return name


def _emit_blocks(
    f: Code, tables: tuple[str, str], row_range: tuple[str, str], accumulate: str, epilogue: str
) -> None:
    """All positions of one block of the sum for one block of output channels."""
    steps, view = tables
    r0, rows = row_range
    dst_row, positions = f.slots("%plan", Plan.DST_ROW, Plan.POSITIONS)
    block = aligned(f, "%workspace")
    a = _emit_weights(f, steps, block, r0, rows)
    columns = _emit_layout(f, steps, view)
    dst = f.at("%dst", f.mul(r0, dst_row))
    first, last = f.mul("%begin", positions), f.mul("%end", positions)
    # A block with shared rows stays inside of one image; others go through them all.
    shared = f.compare("ne", f.slot(steps, Steps.SHARED), 0)
    reach = f.maximum(f.select(shared, positions, f.sub(last, first)), 1)
    with f.loop(first, last, reach) as part:
        end = f.minimum(f.add(part, reach), last)
        with f.loop(part, end, columns) as q:
            count = f.minimum(f.sub(end, q), columns)
            f.stmt(
                f"call void @sg_conv_im2col_block_{f.element.dtype}(ptr %plan, ptr {view}, "
                f"ptr {steps}, ptr %src, ptr {dst}, ptr {block}, ptr {a}, i64 {rows}, "
                f"i64 {accumulate}, i64 {q}, i64 {count})"
            )
            with f.when(f.emit(f"icmp ne ptr {epilogue}, null")):
                _emit_epilogue(f, epilogue, r0, rows, q, count)


def _emit_weights(f: Code, steps: str, block: str, r0: str, rows: str) -> str:
    """Packs the weights of the box if they have to be, and sets their steps; -> their start."""
    element = f.element
    w_row, w_c, w_h, w_w = f.slots("%plan", Plan.W_ROW, Plan.W_CHANNEL, Plan.W_TAP_H, Plan.W_TAP_W)
    c, h, w, count_h, count_w = f.slots(
        "%plan", Plan.BOX_C, Plan.BOX_H, Plan.BOX_W, Plan.BOX_H_COUNT, Plan.BOX_W_COUNT
    )
    buffer = f.at(block, _offsets(element)[1])
    from_row = f.at("%weights", f.mul(r0, w_row))
    pack = f.emit("icmp ne ptr %pack, null")
    with f.when(pack):
        f.stmt(f"call void %pack(ptr %plan, ptr {from_row}, ptr {buffer}, i64 {rows})")
    tap_row = f.mul(rows, count_w)
    for slot, packed, direct in (
        (Steps.A_C, f.mul(tap_row, count_h), w_c), (Steps.A_W, rows, w_w),
        (Steps.A_H, tap_row, w_h), (Steps.A_ROW, "1", w_row),
    ):  # fmt: skip
        f.set_slot(steps, slot, f.mul(f.select(pack, packed, direct), element.itemsize))
    direct = f.at(from_row, f.multiply_sum((c, w_c), (h, w_h), (w, w_w)))
    return f.select(pack, buffer, direct, "ptr")


def _emit_layout(f: Code, steps: str, view: str) -> str:
    """Decides how blocks of this box are packed, and writes it to the steps and the view of the
    plan that packing gets; -> how many positions a block takes.

    A tap of the row below reads, for stride 1, what a tap of this row reads OUT_W positions later.
    So tap rows can share a packed row that is longer by their span: 5 x 5 windows on 14 x 14 are
    packed as 18 rows instead of 70. It takes blocks that end with their image, and is left where
    the vectors that an image does not fill would be more than an eighth.
    """
    element, lanes = f.element, f.element.lanes
    positions, out_w, stride_h, row_0, row_step = f.slots(
        "%plan", Plan.POSITIONS, Plan.OUT_W, Plan.STRIDE_H, Plan.ROW_0, Plan.ROW_STEP
    )
    count_c, count_h, count_w = f.slots(steps, Steps.COUNT_C, Steps.COUNT_H, Steps.COUNT_W)
    down = f.mul(row_step, out_w)
    reach = f.mul(f.sub(count_h, 1), down)
    span = f.maximum(reach, f.sub(0, reach))
    packed_rows = f.maximum(f.mul(count_c, count_w), 1)
    most = f.minimum(f.div(KC * block_stride(element), packed_rows), SHARED_COLUMNS)
    room = f.sub(most, f.add(span, 2 * lanes))
    width = strip_columns(element)
    strips = f.mul(f.div(f.maximum(room, 0), width), width)
    columns = f.select(f.compare("sle", positions, room), positions, strips)
    shared = f.compare("eq", stride_h, 1)
    gain = f.compare(
        "sle", f.mul(f.add(columns, span), 4), f.mul(f.mul(columns, count_h), 3)
    )  # also false where there is no room for any column, or one tap row
    unfilled = f.sub(f.mul(f.ceil_div(positions, lanes), lanes), positions)
    shared = f.both(shared, f.both(gain, f.compare("sle", f.mul(unfilled, 8), positions)))
    shared = f.both(shared, f.compare("sgt", columns, 0))
    # An odd number of vectors: packed rows are then never whole pages apart.
    vectors = f.div(f.add(f.add(columns, span), 2 * lanes - 1), lanes)
    odd = f.mul(f.emit(f"or i64 {vectors}, 1"), lanes)
    stride = f.select(shared, odd, block_stride(element))
    plain_h = f.mul(count_w, stride)
    size = element.itemsize
    for step, value in (
        (Steps.STRIDE, stride),
        (Steps.SHARED, f.emit(f"zext i1 {shared} to i64")),
        (Steps.SPAN, f.select(shared, span, 0)),
        (Steps.B_C, f.mul(f.select(shared, plain_h, f.mul(plain_h, count_h)), size)),
        (Steps.B_W, f.mul(stride, size)),
        (Steps.B_H, f.mul(f.select(shared, down, plain_h), size)),
        (Steps.B_START, f.select(shared, f.mul(f.maximum(f.sub(0, reach), 0), size), 0)),
    ):
        f.set_slot(steps, step, value)
    with f.loop(0, len(Plan)) as slot:
        f.set_slot(view, slot, f.slot("%plan", slot))
    with f.when(shared):
        first = f.add(row_0, f.minimum(f.mul(f.sub(count_h, 1), row_step), 0))
        f.set_slot(view, Plan.ROW_0, first)
        f.set_slot(view, Plan.BOX_H_COUNT, 1)
        f.set_slot(view, Plan.POSITIONS, ANYWHERE)
    return f.select(shared, columns, STRIPS * width)


def _emit_epilogue(f: Code, epilogue: str, r0: str, rows: str, q: str, count: str) -> None:
    """Calls the epilogue on the finished block, once for each image that it has a part in."""
    positions, first = f.slots("%plan", Plan.POSITIONS, Plan.FIRST_ROW)
    low = f.add(first, r0)
    high = f.add(low, rows)
    with f.carrying(0, count) as part:
        at = f.add(q, part.index)
        n, p = f.div(at, positions), f.rem(at, positions)
        length = f.minimum(f.sub(positions, p), f.sub(count, part.index))
        f.stmt(
            f"call void {epilogue}(ptr %context, i64 {n}, i64 {low}, i64 {high}, i64 {p}, "
            f"i64 {f.add(p, length)})"
        )
        part.step = length


def _require_block(module: Module, element: Element) -> str:
    """Makes sure of the function that packs `count` positions from q on and multiplies them by the
    weights of `rows` output channels into dst: `void @sg_conv_im2col_block_<dtype>(plan, view,
    steps, src, dst, workspace, a, rows, accumulate, q, count)`."""
    name = f"sg_conv_im2col_block_{element.dtype}"
    if module.has(name):
        return name
    pack, merge = require_im2col_pack(module, element), _require_merge(module, element)
    params = ("ptr plan, ptr view, ptr steps, ptr src, ptr dst, ptr workspace, ptr a, i64 rows, "
              "i64 accumulate, i64 q, i64 count")  # fmt: skip
    f = Code(module, name, params, element, CONTROL)
    columns, height = strip_columns(element), full_height(module.target)
    tile_at, _, table_at = _offsets(element)
    tile, table = f.at("%workspace", tile_at), f.at("%workspace", table_at)
    _emit_pack(f, pack, table)
    run, dst_col, dst_row = f.slots("%plan", Plan.RUN, Plan.DST_COL, Plan.DST_ROW)
    start_b, a_row = f.slots("%steps", Steps.B_START, Steps.A_ROW)
    positions = f.slot("%plan", Plan.POSITIONS)
    block = f.at_byte("%workspace", start_b)
    plain = f.both(f.compare("eq", dst_col, 1), f.compare("eq", "%accumulate", 0))
    with f.loop(0, "%count", columns) as s:
        # A whole tile that adjoins in dst and overwrites it is stored straight; any other goes
        # through the buffer.
        b, q = f.at(block, s), f.add("%q", s)
        count = f.minimum(f.sub("%count", s), columns)
        left = f.sub(run, f.rem(f.rem(q, positions), run))
        adjoins = f.both(f.compare("eq", count, columns), f.compare("sle", count, left))
        straight = f.both(plain, adjoins)
        start = [("ptr", "%a"), ("ptr", emit_position_address(f, "%dst", q)), ("ptr", "%dst")]
        with f.carrying(0, "%rows", *start) as turn:
            a, c, dst = turn.values
            rows = f.minimum(f.sub("%rows", turn.index), height)
            direct = f.both(straight, f.compare("eq", rows, height))
            to = f.select(direct, c, tile, "ptr")
            _emit_tiles(f, a, b, (to, f.select(direct, dst_row, columns)), rows, count)
            with f.when(f.emit(f"xor i1 {direct}, true")):
                f.stmt(
                    f"call void @{merge}(ptr %plan, ptr {tile}, ptr {dst}, i64 {rows}, "
                    f"i64 %accumulate, i64 {q}, i64 {count})"
                )
            down = f.mul(dst_row, height)
            turn.following = [
                f.at_byte(a, f.mul(a_row, height)), f.at(c, down), f.at(dst, down)
            ]  # fmt: skip
            turn.step = height
    f.leave()
    f.finish()
    return name


def _emit_pack(f: Code, pack: str, table: str) -> None:
    """Packs the block; one with shared rows is told its image and counts positions from there."""
    positions, image = f.slots("%plan", Plan.POSITIONS, Plan.SRC_IMAGE)
    shared, span, stride = f.slots("%steps", Steps.SHARED, Steps.SPAN, Steps.STRIDE)
    inside = f.compare("ne", shared, 0)
    n, p = f.div("%q", positions), f.rem("%q", positions)
    src = f.at("%src", f.select(inside, f.mul(n, image), 0))
    q = f.select(inside, p, "%q")
    f.stmt(
        f"call void @{pack}(ptr %view, ptr {src}, ptr %workspace, i64 {stride}, ptr {table}, "
        f"i64 {q}, i64 {f.add('%count', span)})"
    )


def _emit_tiles(f: Code, a: str, b: str, out: tuple[str, str], rows: str, count: str) -> None:
    """Computes one tile, a vector of columns at a time where there are fewer than it has."""
    height, width, lanes = full_height(f.module.target), strip_columns(f.element), f.element.lanes

    def call(vectors: int, b: str, c: str) -> None:
        tile = require_im2col_tile(f.module, f.element, height, vectors)
        f.stmt(
            f"call void @{tile}(ptr %steps, ptr {a}, ptr {b}, ptr {c}, i64 {out[1]}, i64 {rows})"
        )

    narrow, wide, done = (f.new_label(h) for h in ("narrow", "wide", "computed"))
    f.branch_if(f.compare("sle", count, width - lanes), narrow, wide)
    f.label(narrow)
    with f.loop(0, count, lanes) as j:
        call(1, f.at(b, j), f.at(out[0], j))
    f.branch(done)
    f.label(wide)
    call(VECTORS, b, out[0])
    f.branch(done)
    f.label(done)


def emit_position_address(f: Code, dst: str, q: str) -> str:
    """Where position q of the output channel at `dst` lies."""
    positions, run, image, dst_run, dst_col = f.slots(
        "%plan", Plan.POSITIONS, Plan.RUN, Plan.DST_IMAGE, Plan.DST_RUN, Plan.DST_COL
    )
    n, p = f.div(q, positions), f.rem(q, positions)
    i, j = f.div(p, run), f.rem(p, run)
    return f.at(dst, f.multiply_sum((n, image), (i, dst_run), (j, dst_col)))


def _require_merge(module: Module, element: Element) -> str:
    """`void @sg_conv_im2col_merge_<dtype>(plan, tile, dst, rows, accumulate, q, count)`: puts the
    buffered tile of `count` positions from q on down in dst, run by run, or adds it to what is
    there."""
    name = f"sg_conv_im2col_merge_{element.dtype}"
    params = "ptr plan, ptr tile, ptr dst, i64 rows, i64 accumulate, i64 q, i64 count"
    f = Code(module, name, params, element)
    positions, run, dst_col, dst_row = f.slots(
        "%plan", Plan.POSITIONS, Plan.RUN, Plan.DST_COL, Plan.DST_ROW
    )
    add = f.compare("ne", "%accumulate", 0)
    dense = f.both(f.compare("eq", dst_col, 1), "true" if element.has_masks else "false")
    with f.carrying(0, "%count") as part:
        at = f.add("%q", part.index)
        length = f.sub(run, f.rem(f.rem(at, positions), run))
        length = f.minimum(length, f.sub("%count", part.index))
        start = [("ptr", f.at("%tile", part.index)), ("ptr", emit_position_address(f, "%dst", at))]
        with f.carrying(0, "%rows", *start) as r:
            source, row = r.values
            # Whole runs are vectors under a mask; strided ones go element by element.
            if element.has_masks:
                with f.loop(0, f.select(dense, length, 0), element.lanes) as j:
                    mask = f.mask(f.sub(length, j))
                    _emit_merge(f, add, f.at(source, j), f.at(row, j), mask)
            with f.loop(0, f.select(dense, 0, length)) as j:
                _emit_merge(f, add, f.at(source, j), f.at(row, f.mul(j, dst_col)), None)
            r.following = [f.at(source, strip_columns(element)), f.at(row, dst_row)]
        part.step = length
    f.leave()
    f.finish()
    return name


def _emit_merge(f: Code, add: str, source: str, target: str, mask: str | None) -> None:
    """target = source, or target + source: a masked vector or one element."""
    ty = f.element.memory if mask is None else f.element.memory_vector
    value = f.load(ty, source)
    with f.choice(add) as adding:
        old = f.load(ty, target) if mask is None else f.masked_load(target, mask)
        total = emit_add(f, ty, old, value)
    value = adding.phi(ty, total, value)
    if mask is None:
        f.store(ty, value, target)
    else:
        f.masked_store(value, target, mask)
