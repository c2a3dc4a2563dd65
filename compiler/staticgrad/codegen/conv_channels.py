"""One pass of a convolution over images, with vectors along the output channels.

    for a block of 8 vectors of output channels, for a block of KC terms (channel, tap):
        pack the weights as panels [term][channel], a vector of channels wide
        for a block of 512 positions (images, or rows of one, or parts of a row):
            pack the source as planes with the zeros around them
            for a vector of channels:
                for 20 to 28 positions: the tile, which broadcasts each position's element
                transpose the block's sums into the result
            call the epilogue, with the last terms

What is packed and transposed is 2 to 3 % of the work with 400 terms, where unfolded rows of
positions against 8 channels (`conv_im2col`) lost 8 % to packing and another 10 to the tile. With 25
terms the transposing alone is 25 %. It wants terms enough, and channels enough to fill its vectors:
see `prefers_channels`.
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import KC, Code, Plan, aligned, emit_box_steps
from .conv_im2col import emit_position_address
from .conv_im2col_tile import full_height
from .conv_plane import (
    POSITIONS,
    Block,
    Workspace,
    emit_blocks_that_fit,
    require_pack_block,
    require_position_table,
    require_tap_table,
)
from .conv_tile import MOST_ROWS
from .conv_transpose import require_transpose
from .gemm_emit import CONTROL, Element
from .target import Target

PANELS = 8  # vectors of output channels to a block of packed weights: 384 KiB of float32

# `tile` is a function of `require_tile`, for `height` positions.
PASS_PARAMS = ("ptr plan, ptr pack, ptr src, ptr weights, ptr dst, ptr workspace, ptr epilogue, "
               "ptr context, i64 begin, i64 end, ptr tile, i64 height")  # fmt: skip


def prefers_channels(element: Element, rows: object, terms: object) -> bool:
    """Whether a pass that sums `terms` products for each of so many output channels is faster here
    than in `conv_im2col`.

    This one has 12/13 of its time a term, and fills vectors of channels where that one fills its
    tile's rows; but transposing takes 10 terms' time a position, storing there 5. On Zen 4, 3 x 3
    windows of 3 channels to 64 on 32 x 32: 75 GFLOP/s and 103; of 8 channels 95 and 96; of 16 98
    and 102; of 32 channels on 28 x 28 111 and 108.
    """
    if not isinstance(rows, int):
        return True
    here, there = (-(-rows // n) * n for n in (element.lanes, full_height(element.target)))
    if isinstance(terms, int):
        here, there = here * (terms + 10), there * (terms + 5)
    return 12 * here <= 13 * there


def _workspace(element: Element) -> Workspace:
    sums = (POSITIONS + MOST_ROWS) * element.lanes
    return Workspace(element, PANELS * panel_rs(element), sums, KC)


def panel_rs(element: Element) -> int:
    """Elements from panel to panel of the weights."""
    return KC * element.lanes


def channels_workspace_bytes(target: Target, dtype: str) -> int:
    return _workspace(Element.of(dtype, target)).bytes


def require_channels_pass(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_channels_<dtype>(plan, pack, src, weights, dst, workspace,
    epilogue, context, begin, end, tile, height)`: the pass of `Plan` over the images [begin, end).

    `pack` is null where the weights lie as [rows, terms], else `require_pack_terms`' function.
    """
    name = f"sg_conv_channels_{element.dtype}"
    if module.has(name):
        return name
    run = _require_terms(module, element)
    f = Code(module, name, PASS_PARAMS, element, CONTROL)
    rows, channels, taps_h, taps_w = f.slots(
        "%plan", Plan.ROWS, Plan.CHANNELS, Plan.TAPS_H, Plan.TAPS_W
    )
    taps = f.mul(taps_h, taps_w)
    terms = f.mul(channels, taps)
    steps = emit_box_steps(f, channels, taps_h, taps_w, KC)
    space = aligned(f, "%workspace")
    # A sum without terms is one empty block: its zeros have to be written too.
    some = [f.maximum(extent, 1) for extent in (channels, taps_h, taps_w)]
    with (
        f.loop(0, rows, PANELS * element.lanes) as r,
        f.loop(0, some[0], steps[0]) as c,
        f.loop(0, some[1], steps[1]) as h,
        f.loop(0, some[2], steps[2]) as w,
    ):
        # A box of the sum is a range of terms: whole channels, rows of one, or parts of one row.
        first = f.sum(f.mul(c, taps), f.mul(h, taps_w), w)
        count = "1"
        for at, step, extent in zip((c, h, w), steps, (channels, taps_h, taps_w)):
            count = f.mul(count, f.minimum(step, f.sub(extent, at)))
        end = f.add(first, count)
        epilogue = f.select(f.compare("sge", end, terms), "%epilogue", "null", "ptr")
        f.call(run, *[("ptr", f"%{p}") for p in ("plan", "pack", "src", "weights", "dst")],
               ("ptr", space), ("ptr", epilogue), ("ptr", "%context"), ("i64", "%begin"),
               ("i64", "%end"), ("ptr", "%tile"), ("i64", "%height"), ("i64", r),
               ("i64", f.minimum(f.sub(rows, r), PANELS * element.lanes)), ("i64", first),
               ("i64", end))  # fmt: skip
    f.leave()
    f.finish()
    return name


def _require_terms(module: Module, element: Element) -> str:
    """`void @sg_conv_channels_terms_<dtype>(plan, .., height, r, rows, first, last)`: what terms
    first to last give to the output channels r to r + rows; what those before gave is in dst."""
    name = f"sg_conv_channels_terms_{element.dtype}"
    if module.has(name):
        return name
    compute, pack = _require_block(module, element), require_pack_block(module, element)
    params = PASS_PARAMS.replace("ptr workspace", "ptr space")
    f = Code(module, name, params + ", i64 r, i64 rows, i64 first, i64 last", element, CONTROL)
    parts = _workspace(element)
    block, taps = f.at_byte("%space", parts.block), f.at_byte("%space", parts.taps)
    out_w, positions, first_row = f.slots("%plan", Plan.OUT_W, Plan.POSITIONS, Plan.FIRST_ROW)
    emit_blocks_that_fit(f, block, f.sub("%end", "%begin"), "%first", "%last")
    f.call(require_position_table(module, element), ("ptr", "%plan"), ("ptr", block),
           ("ptr", f.at_byte("%space", parts.positions)), ("i64", MOST_ROWS))  # fmt: skip
    f.call(require_tap_table(module, element), ("ptr", "%plan"), ("ptr", block), ("ptr", taps),
           ("i64", "%first"), ("i64", "%last"), ("i64", 0))  # fmt: skip
    _emit_pack_weights(f, f.at_byte("%space", parts.panels), panel_rs(element))
    step_n, step_i, step_j = f.slots(block, Block.IMAGES, Block.ROWS, Block.COLS)
    out_h = f.div(positions, f.maximum(out_w, 1))
    with (
        f.loop("%begin", "%end", step_n) as n,
        f.loop(0, out_h, step_i) as i,
        f.loop(0, out_w, step_j) as j,
    ):
        images = f.minimum(step_n, f.sub("%end", n))
        high, wide = f.minimum(step_i, f.sub(out_h, i)), f.minimum(step_j, f.sub(out_w, j))
        f.call(pack, ("ptr", "%plan"), ("ptr", block), ("ptr", "%src"),
               ("ptr", f.at_byte("%space", parts.plane)),
               *[("i64", v) for v in (n, i, j, images, high, wide, "%first", "%last")])  # fmt: skip
        p, run = f.add(f.mul(i, out_w), j), f.mul(high, wide)
        f.call(compute, ("ptr", "%plan"), ("ptr", "%dst"), ("ptr", "%space"), ("ptr", "%tile"),
               *[("i64", v) for v in ("%height", "%r", "%rows", "%first", "%last", n, images, p,
                                      run)])  # fmt: skip
        with f.when(f.emit("icmp ne ptr %epilogue, null")), f.loop(0, images) as m:
            low = f.add(first_row, "%r")
            f.stmt(f"call void %epilogue(ptr %context, i64 {f.add(n, m)}, i64 {low}, "
                   f"i64 {f.add(low, '%rows')}, i64 {p}, i64 {f.add(p, run)})")  # fmt: skip
    f.leave()
    f.finish()
    return name


def _emit_pack_weights(f: Code, panels: str, step: int) -> None:
    """The weights of the terms as [panel][term][channel]."""
    lanes = f.element.lanes
    transpose = require_transpose(f.module, f.element)
    w_row = f.slot("%plan", Plan.W_ROW)
    with f.loop(0, "%rows", lanes) as r:
        to = f.at(panels, f.mul(f.div(r, lanes), step))
        rows = f.minimum(f.sub("%rows", r), lanes)
        source = f.at("%weights", f.mul(f.add("%r", r), w_row))
        adjoin = f.emit("icmp eq ptr %pack, null")
        with f.when(adjoin):
            f.call(transpose, ("ptr", f.at(source, "%first")), ("ptr", to), ("i64", w_row),
                   ("i64", lanes), ("i64", rows), ("i64", f.sub("%last", "%first")))  # fmt: skip
        with f.when(f.negate(adjoin)):
            f.stmt(f"call void %pack(ptr %plan, ptr {source}, ptr {to}, i64 {rows}, i64 %first, "
                   "i64 %last)")  # fmt: skip


def require_pack_terms(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_channels_pack_<dtype>(plan, weights, dst, rows, first, last)`:
    the weights of terms first to last (channel, tap row, tap column) for `rows` output channels
    from `weights` on, as dst[(k - first) * lanes + r]."""
    name = f"sg_conv_channels_pack_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr plan, ptr weights, ptr dst, i64 rows, i64 first, i64 last", element)
    w_row, w_c, w_h, w_w, taps_h, taps_w = f.slots(
        "%plan", Plan.W_ROW, Plan.W_CHANNEL, Plan.W_TAP_H, Plan.W_TAP_W, Plan.TAPS_H, Plan.TAPS_W
    )
    taps = f.mul(taps_h, taps_w)
    with f.carrying("%first", "%last", ("ptr", "%dst")) as k:
        rest = f.rem(k.index, taps)
        place = f.multiply_sum(
            (f.div(k.index, taps), w_c), (f.div(rest, taps_w), w_h), (f.rem(rest, taps_w), w_w)
        )
        with f.carrying(0, "%rows", ("ptr", f.at("%weights", place))) as r:
            value = f.load(element.memory, r.values[0])
            f.store(element.memory, value, f.at(k.values[0], r.index))
            r.following = [f.at(r.values[0], w_row)]
        k.following = [f.at(k.values[0], element.lanes)]
    f.leave()
    f.finish()
    return name


def _require_block(module: Module, element: Element) -> str:
    """`void @sg_conv_channels_block_<dtype>(plan, dst, space, tile, height, r, rows, first, last,
    n, images, p, run)`: multiplies the packed planes of `run` positions from p on of `images`
    images from n on by the packed weights, into dst."""
    name = f"sg_conv_channels_block_{element.dtype}"
    if module.has(name):
        return name
    move = _require_move(module, element)
    params = ("ptr plan, ptr dst, ptr space, ptr tile, i64 height, i64 r, i64 rows, i64 first, "
              "i64 last, i64 n, i64 images, i64 p, i64 run")  # fmt: skip
    f = Code(module, name, params, element, CONTROL)
    parts, lanes = _workspace(element), element.lanes
    dst_row, dst_image = f.slots("%plan", Plan.DST_ROW, Plan.DST_IMAGE)
    sums = f.at_byte("%space", parts.sums)
    plane, table = f.at_byte("%space", parts.plane), f.at_byte("%space", parts.positions)
    terms, taps = f.sub("%last", "%first"), f.at_byte("%space", parts.taps)
    positions = f.mul("%images", "%run")
    again = f.compare("ne", "%first", 0)
    with f.loop(0, "%rows", lanes) as r:
        rows = f.minimum(f.sub("%rows", r), lanes)
        b = f.at(f.at_byte("%space", parts.panels), f.mul(f.div(r, lanes), panel_rs(element)))
        dst = f.at("%dst", f.add(f.mul(f.add("%r", r), dst_row), f.mul("%n", dst_image)))

        def move_all(out: int, dst: str = dst, rows: str = rows) -> None:
            with f.loop(0, "%images") as m:
                f.call(move, ("ptr", "%plan"), ("ptr", f.at(dst, f.mul(m, dst_image))),
                       ("ptr", f.at(sums, f.mul(f.mul(m, "%run"), lanes))), ("i64", rows),
                       ("i64", "%p"), ("i64", "%run"), ("i64", out))  # fmt: skip

        with f.when(again):
            move_all(0)
        with f.loop(0, positions, "%height") as at:
            f.stmt(
                f"call void %tile(i64 {terms}, ptr {plane}, ptr {f.at_byte(table, f.mul(at, 8))}, "
                f"ptr {taps}, ptr {b}, ptr {f.at(sums, f.mul(at, lanes))}, i64 %first)"
            )
        move_all(1)
    f.leave()
    f.finish()
    return name


def _require_move(module: Module, element: Element) -> str:
    """`void @sg_conv_move_<dtype>(plan, dst, sums, rows, p, count, out)`: dst of `rows` output
    channels and `count` positions from p on = sums[position][channel]; with `out` = 0 the other
    way."""
    name = f"sg_conv_move_{element.dtype}"
    if module.has(name):
        return name
    transpose, apart = require_transpose(module, element), _require_move_apart(module, element)
    params = "ptr plan, ptr dst, ptr sums, i64 rows, i64 p, i64 count, i64 out"
    f = Code(module, name, params, element, CONTROL)
    run, dst_col, dst_row = f.slots("%plan", Plan.RUN, Plan.DST_COL, Plan.DST_ROW)
    dense, out = f.compare("eq", dst_col, 1), f.compare("ne", "%out", 0)
    lanes = element.lanes
    with f.carrying(0, "%count") as part:
        p = f.add("%p", part.index)
        length = f.minimum(f.sub(run, f.rem(p, run)), f.sub("%count", part.index))
        dst = emit_position_address(f, "%dst", p)
        sums = f.at("%sums", f.mul(part.index, lanes))
        a, b = f.select(out, sums, dst, "ptr"), f.select(out, dst, sums, "ptr")
        with f.when(dense):
            a_rs, b_rs = f.select(out, lanes, dst_row), f.select(out, dst_row, lanes)
            rows, cols = f.select(out, length, "%rows"), f.select(out, "%rows", length)
            f.call(transpose, ("ptr", a), ("ptr", b), ("i64", a_rs), ("i64", b_rs), ("i64", rows),
                   ("i64", cols))  # fmt: skip
        with f.when(f.negate(dense)):
            a_col, b_col = f.select(out, lanes, dst_col), f.select(out, dst_col, lanes)
            a_row, b_row = f.select(out, 1, dst_row), f.select(out, dst_row, 1)
            f.call(apart, ("ptr", a), ("i64", a_col), ("i64", a_row), ("ptr", b), ("i64", b_col),
                   ("i64", b_row), ("i64", length), ("i64", "%rows"))  # fmt: skip
        part.step = length
    f.leave()
    f.finish()
    return name


def _require_move_apart(module: Module, element: Element) -> str:
    """`void @sg_conv_apart_<dtype>(a, a_col, a_row, b, b_col, b_row, count, rows)`: b = a, element
    by element."""
    name = f"sg_conv_apart_{element.dtype}"
    params = "ptr a, i64 a_col, i64 a_row, ptr b, i64 b_col, i64 b_row, i64 count, i64 rows"
    f = Code(module, name, params, element)
    with f.carrying(0, "%rows", ("ptr", "%a"), ("ptr", "%b")) as row:
        with f.carrying(0, "%count", *[("ptr", v) for v in row.values]) as col:
            a, b = col.values
            f.store(element.memory, f.load(element.memory, a), b)
            col.following = [f.at(a, "%a_col"), f.at(b, "%b_col")]
        row.following = [f.at(row.values[0], "%a_row"), f.at(row.values[1], "%b_row")]
    f.leave()
    f.finish()
    return name
