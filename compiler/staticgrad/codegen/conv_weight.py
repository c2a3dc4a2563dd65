"""The gradient of a convolution's weights: taps against a vector of output channels.

    for a block of 4 vectors of output channels, for a chunk of 1024 taps (channel, row, column):
        for a block of 512 positions (images, or rows of one, or parts of a row):
            pack the source as planes with the zeros around them
            transpose the output's gradient to panels [position][channel], a vector wide
            for a vector of channels, for 20 to 28 taps: the tile, over all positions
        transpose the sums into the result, call the epilogue

Taps read the planes one element at a time: nothing is unfolded, and no lanes are left to add up.
(Dot products along positions, with 8 rows and 3 taps to a tile, ran at 86 to 92 GFLOP/s of 117;
half of what was lost went into unfolded rows.)
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import Code, Plan, aligned
from .conv_plane import (
    POSITIONS,
    Block,
    Workspace,
    emit_blocks_of_positions,
    evenly,
    plane_elements,
    require_pack_block,
    require_position_table,
    require_tap_table,
    tap_row,
)
from .conv_tile import MOST_ROWS
from .conv_transpose import require_transpose
from .gemm_emit import CONTROL, Element
from .target import Target

MOST_TAPS = 1024  # whose sums are kept at a time
PANELS = 4  # vectors of output channels that share a packed plane

# `tile` is a function of `require_tile`, for `height` taps; [first, last) a range of taps.
PASS_PARAMS = ("ptr plan, ptr x, ptr y, ptr w, ptr workspace, ptr epilogue, ptr context, "
               "i64 rows, i64 images, ptr tile, i64 height, i64 first, i64 last")  # fmt: skip


def channel_block(element: Element) -> int:
    """Output channels that are computed together."""
    return PANELS * element.lanes


def _workspace(element: Element) -> Workspace:
    return Workspace(element, PANELS * panel_rs(element), PANELS * sums_rs(element), MOST_TAPS)


def panel_rs(element: Element) -> int:
    """Elements from panel to panel of the output's gradient."""
    return POSITIONS * element.lanes


def sums_rs(element: Element) -> int:
    """Elements from panel to panel of the sums."""
    return (MOST_TAPS + MOST_ROWS) * element.lanes


def weight_workspace_bytes(target: Target, dtype: str) -> int:
    return _workspace(Element.of(dtype, target)).bytes


def require_weight_pass(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_weight_pass_<dtype>(plan, x, y, w, workspace, epilogue, context,
    rows, images, tile, height, first, last)`: taps first to last of the gradient of `rows` output
    channels of one group, from y and w on.

    The plan describes x as in the forward pass, and y by its DST slots.
    """
    name = f"sg_conv_weight_pass_{element.dtype}"
    if module.has(name):
        return name
    chunk = _require_chunk(module, element)
    transpose = require_transpose(module, element)
    f = Code(module, name, PASS_PARAMS, element, CONTROL)
    parts = _workspace(element)
    channel, w_row, first, taps_h, taps_w = f.slots(
        "%plan", Plan.DST_ROW, Plan.W_ROW, Plan.FIRST_ROW, Plan.TAPS_H, Plan.TAPS_W
    )
    space = aligned(f, "%workspace")
    block, sums = f.at_byte(space, parts.block), f.at_byte(space, parts.sums)
    emit_blocks_of_positions(f, block, "%images")
    f.call(require_position_table(module, element), ("ptr", "%plan"), ("ptr", block),
           ("ptr", f.at_byte(space, parts.positions)), ("i64", 0))  # fmt: skip
    fit = f.slot(block, Block.CHANNELS)
    flat = f.compare("eq", fit, 0)
    taps = f.maximum(f.mul(taps_h, taps_w), 1)
    most = f.select(flat, plane_elements(element) // tap_row(element), MOST_TAPS)
    most = evenly(f, f.sub("%last", "%first"), most)
    wide = channel_block(element)
    with f.loop(0, "%rows", wide) as r0:
        rows = f.minimum(f.sub("%rows", r0), wide)
        from_y, to_w = f.at("%y", f.mul(r0, channel)), f.at("%w", f.mul(r0, w_row))
        with f.carrying("%first", "%last") as part:
            # Channels that the planes have room for, the first of them maybe in part.
            room = f.mul(f.add(f.div(part.index, taps), fit), taps)
            end = f.minimum(f.add(part.index, most), "%last")
            end = f.select(flat, end, f.minimum(end, room))
            f.call(chunk, ("ptr", "%plan"), ("ptr", "%x"), ("ptr", from_y), ("ptr", space),
                   ("i64", rows), ("i64", "%images"), ("ptr", "%tile"), ("i64", "%height"),
                   ("i64", part.index), ("i64", end))  # fmt: skip
            count = f.sub(end, part.index)
            with f.loop(0, rows, element.lanes) as r:
                panel = f.div(r, element.lanes)
                f.call(transpose, ("ptr", f.at(sums, f.mul(panel, sums_rs(element)))),
                       ("ptr", f.at(to_w, f.add(f.mul(r, w_row), part.index))),
                       ("i64", element.lanes), ("i64", w_row), ("i64", count),
                       ("i64", f.minimum(f.sub(rows, r), element.lanes)))  # fmt: skip
            with f.when(f.emit("icmp ne ptr %epilogue, null")):
                low = f.add(first, r0)
                f.stmt(f"call void %epilogue(ptr %context, i64 0, i64 {low}, "
                       f"i64 {f.add(low, rows)}, i64 {part.index}, i64 {end})")  # fmt: skip
            part.step = count
    f.leave()
    f.finish()
    return name


def _require_chunk(module: Module, element: Element) -> str:
    """`void @sg_conv_weight_chunk_<dtype>(plan, x, y, space, rows, images, tile, height, first,
    last)`: the sums of taps first to last over all positions, in the workspace as
    [panel][tap][lane]."""
    name = f"sg_conv_weight_chunk_{element.dtype}"
    if module.has(name):
        return name
    pack, pack_panels = require_pack_block(module, element), _require_panels(module, element)
    params = ("ptr plan, ptr x, ptr y, ptr space, i64 rows, i64 images, ptr tile, i64 height, "
              "i64 first, i64 last")  # fmt: skip
    f = Code(module, name, params, element, CONTROL)
    parts, lanes = _workspace(element), element.lanes
    out_w, all_positions = f.slots("%plan", Plan.OUT_W, Plan.POSITIONS)
    block, table, plane, panels = (
        f.at_byte("%space", p) for p in (parts.block, parts.taps, parts.plane, parts.panels)
    )
    f.call(require_tap_table(module, element), ("ptr", "%plan"), ("ptr", block), ("ptr", table),
           ("i64", "%first"), ("i64", "%last"), ("i64", MOST_ROWS))  # fmt: skip
    step_n, step_i, step_j = f.slots(block, Block.IMAGES, Block.ROWS, Block.COLS)
    out_h = f.div(all_positions, f.maximum(out_w, 1))
    # No position at all is one empty block: its zeros have to be written too.
    some = [f.maximum(extent, 1) for extent in ("%images", out_h, out_w)]
    with (
        f.loop(0, some[0], step_n) as n,
        f.loop(0, some[1], step_i) as i,
        f.loop(0, some[2], step_j) as j,
    ):
        counts = [
            f.minimum(step, f.sub(extent, at))
            for step, extent, at in zip((step_n, step_i, step_j), ("%images", out_h, out_w),
                                        (n, i, j))
        ]  # fmt: skip
        run = f.mul(counts[1], counts[2])  # positions of one image, which adjoin
        positions = f.mul(counts[0], run)
        f.call(pack, ("ptr", "%plan"), ("ptr", block), ("ptr", "%x"), ("ptr", plane),
               *[("i64", v) for v in (n, i, j, *counts, "%first", "%last")])  # fmt: skip
        f.call(pack_panels, ("ptr", "%plan"), ("ptr", "%y"), ("ptr", panels), ("i64", "%rows"),
               ("i64", n), ("i64", counts[0]), ("i64", f.add(f.mul(i, out_w), j)), ("i64", run)
               )  # fmt: skip
        start = f.emit(f"or i64 {f.emit(f'or i64 {n}, {i}')}, {j}")
        with f.loop(0, f.ceil_div("%rows", lanes)) as panel:
            b = f.at(panels, f.mul(panel, panel_rs(element)))
            sums = f.at(f.at_byte("%space", parts.sums), f.mul(panel, sums_rs(element)))
            with f.loop(0, f.sub("%last", "%first"), "%height") as t:
                f.stmt(
                    f"call void %tile(i64 {positions}, ptr {plane}, "
                    f"ptr {f.at_byte(table, f.mul(t, 8))}, "
                    f"ptr {f.at_byte('%space', parts.positions)}, ptr {b}, "
                    f"ptr {f.at(sums, f.mul(t, lanes))}, i64 {start})"
                )
    f.leave()
    f.finish()
    return name


def _require_panels(module: Module, element: Element) -> str:
    """`void @sg_conv_weight_panels_<dtype>(plan, y, panels, rows, n, images, start, run)`: the
    gradient of `rows` output channels at a block of positions, as [panel][position][channel]: in
    `images` images from n on, `run` positions from `start` on."""
    name = f"sg_conv_weight_panels_{element.dtype}"
    if module.has(name):
        return name
    transpose = require_transpose(module, element)
    params = "ptr plan, ptr y, ptr panels, i64 rows, i64 n, i64 images, i64 start, i64 run"
    f = Code(module, name, params, element, CONTROL)
    lanes = element.lanes
    dst_image, dst_row = f.slots("%plan", Plan.DST_IMAGE, Plan.DST_ROW)
    with f.loop(0, "%images") as m:
        from_y = f.at("%y", f.add(f.mul(f.add("%n", m), dst_image), "%start"))
        to = f.at("%panels", f.mul(f.mul(m, "%run"), lanes))
        with f.loop(0, "%rows", lanes) as r:
            f.call(transpose, ("ptr", f.at(from_y, f.mul(r, dst_row))),
                   ("ptr", f.at(to, f.mul(f.div(r, lanes), panel_rs(element)))), ("i64", dst_row),
                   ("i64", lanes), ("i64", f.minimum(f.sub("%rows", r), lanes)), ("i64", "%run")
                   )  # fmt: skip
    f.leave()
    f.finish()
    return name
