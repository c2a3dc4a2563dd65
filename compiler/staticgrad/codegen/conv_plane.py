"""Planes: a part of the source with its zeros around it, and the tables of offsets into it.

A term of a convolution reads x[position + tap], and in a plane both are offsets that add up. So a
tile reads its elements straight from the plane, with one table for positions and one for taps, and
nothing is unfolded: 5 x 5 taps on 14 x 14 positions are a plane of 18 x 18, not 25 rows of 196.
"""

from __future__ import annotations

from enum import IntEnum

from .builder import Module
from .conv_emit import Code, Plan
from .conv_lanes import emit_inside, emit_lane_code, emit_load_lanes
from .conv_tile import MOST_ROWS
from .gemm_emit import CONTROL, Element

PLANE_BYTES = 256 * 1024  # of all channels of a block together: a part of L2
POSITIONS = 512  # at most so many to a block: their panel and a channel's plane fit L1


class Block(IntEnum):
    """The slots that describe blocks of positions and their planes (i64 each).

    A block is some images, or some rows of one, or a part of one row. Distances count elements.
    """

    IMAGES = 0  # images of a block, rows of each, columns of each row
    ROWS = 1
    COLS = 2
    HIGH = 3  # rows and columns of a plane
    WIDE = 4
    CHANNEL = 5  # from channel to channel
    IMAGE = 6  # from image to image
    CHANNELS = 7  # how many fit; 0: not one, so each tap is packed as a row of its own
    LOW_H = 8  # what the tap furthest up (left) adds to a position's row (column): 0 or less
    LOW_W = 9
    TAP_ROW = 10  # elements from row to row where each tap is packed as one


class Workspace:
    """Where the parts of the workspace are, in bytes from its first aligned address: planes,
    `panels` and `sums` elements, tables of positions and of `taps`."""

    def __init__(self, element: Element, panels: int, sums: int, taps: int) -> None:
        size = element.itemsize
        parts = (
            PLANE_BYTES + element.lanes * size, panels * size, sums * size,
            (POSITIONS + MOST_ROWS) * 8, (taps + MOST_ROWS) * 8, len(Block) * 8,
        )  # fmt: skip
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + -(-part // 64) * 64)
        self.plane, self.panels, self.sums, self.positions, self.taps, self.block, _ = starts
        self.bytes = starts[-1] + 64  # to align it


def plane_elements(element: Element) -> int:
    return PLANE_BYTES // element.itemsize


def tap_row(element: Element) -> int:
    """Elements of a tap that is packed as a row of all positions of a block."""
    return POSITIONS + element.lanes


def evenly(f: Code, extent: str, most: str | int) -> str:
    """The length of parts of at most `most` that are as equal as can be, at least 1."""
    blocks = f.maximum(f.ceil_div(extent, most), 1)
    return f.maximum(f.ceil_div(extent, blocks), 1)


def emit_blocks_of_positions(f: Code, block: str, images: str) -> None:
    """Cuts the positions of `images` images into blocks, by these extents alone, and lays out the
    planes that they read."""
    out_w, positions = f.slots("%plan", Plan.OUT_W, Plan.POSITIONS)
    some_w, some = f.maximum(out_w, 1), f.maximum(positions, 1)
    sizes = (
        evenly(f, images, f.maximum(f.div(POSITIONS, some), 1)),
        evenly(f, f.div(positions, some_w), f.maximum(f.div(POSITIONS, some_w), 1)),
        evenly(f, out_w, POSITIONS),
    )
    of_channel = _emit_layout(f, block, sizes)
    fit = f.div(plane_elements(f.element), f.mul(of_channel, sizes[0]))
    f.set_slot(block, Block.CHANNELS, fit)
    f.set_slot(block, Block.IMAGE, f.mul(of_channel, fit))
    f.set_slot(block, Block.TAP_ROW, tap_row(f.element))


def emit_blocks_that_fit(f: Code, block: str, images: str, first: str, last: str) -> None:
    """The same for blocks whose planes of all channels of the terms first to last have room, which
    may be as small as that takes: it changes no bit of a sum over terms."""
    out_w, positions, stride_h, stride_w, taps_h, taps_w, row_step, col_step = f.slots(
        "%plan", Plan.OUT_W, Plan.POSITIONS, Plan.STRIDE_H, Plan.STRIDE_W, Plan.TAPS_H,
        Plan.TAPS_W, Plan.ROW_STEP, Plan.COL_STEP,
    )  # fmt: skip
    taps = f.maximum(f.mul(taps_h, taps_w), 1)
    channels = f.maximum(f.sub(f.ceil_div(last, taps), f.div(first, taps)), 1)
    room = f.div(plane_elements(f.element), channels)  # of one channel
    some_w = f.maximum(out_w, 1)
    out_h = f.maximum(f.div(positions, some_w), 1)
    (_, span_h), (_, span_w) = (
        _emit_span(f, count, step) for count, step in ((taps_h, row_step), (taps_w, col_step))
    )

    def most(size: str, span: str, stride: str) -> str:
        """Positions along one dim whose taps reach over at most `size` elements; maybe 0."""
        left = f.sub(size, span)
        return f.select(f.compare("slt", left, 1), 0, f.add(f.div(f.sub(left, 1), stride), 1))

    # Parts of a row first: of a block that is as wide as the result, the rows that have room.
    cols = f.minimum(f.minimum(most(f.div(room, f.add(span_h, 1)), span_w, stride_w), some_w),
                     POSITIONS)  # fmt: skip
    flat = f.compare("slt", cols, 1)
    cols = f.select(
        flat, f.minimum(some_w, 2 * f.element.lanes), evenly(f, some_w, f.maximum(cols, 1))
    )
    wide = f.sum(f.mul(f.sub(cols, 1), stride_w), span_w, 1)
    rows = f.minimum(most(f.div(room, wide), span_h, stride_h), f.div(POSITIONS, cols))
    single = f.either(flat, f.compare("slt", cols, some_w))
    rows = f.select(single, 1, evenly(f, out_h, f.maximum(f.minimum(rows, out_h), 1)))
    high = f.sum(f.mul(f.sub(rows, 1), stride_h), span_h, 1)
    together = f.minimum(
        f.div(room, f.maximum(f.mul(high, wide), 1)), f.div(POSITIONS, f.mul(rows, cols))
    )
    single = f.either(single, f.compare("slt", rows, out_h))
    count = f.select(single, 1, evenly(f, images, f.maximum(together, 1)))
    of_channel = _emit_layout(f, block, (count, rows, cols))
    f.set_slot(block, Block.CHANNELS, f.select(flat, 0, channels))
    f.set_slot(block, Block.IMAGE, f.mul(of_channel, channels))
    f.set_slot(block, Block.TAP_ROW, 3 * f.element.lanes)


def _emit_span(f: Code, taps: str, step: str) -> tuple[str, str]:
    """What the taps along one dim add to a position at least (0 or less), and how far they reach
    over from the first to the last."""
    reach = f.mul(f.maximum(f.sub(taps, 1), 0), step)
    return f.minimum(reach, 0), f.maximum(reach, f.sub(0, reach))


def _emit_layout(f: Code, block: str, sizes: tuple[str, str, str]) -> str:
    """Lays out the planes of blocks of so many images, rows and columns; -> a plane's elements."""
    stride_h, stride_w, taps_h, taps_w, row_step, col_step = f.slots(
        "%plan", Plan.STRIDE_H, Plan.STRIDE_W, Plan.TAPS_H, Plan.TAPS_W, Plan.ROW_STEP,
        Plan.COL_STEP,
    )  # fmt: skip
    for slot, size in zip((Block.IMAGES, Block.ROWS, Block.COLS), sizes):
        f.set_slot(block, slot, size)
    extents = []
    for low_slot, slot, size, stride, taps, step in (
        (Block.LOW_H, Block.HIGH, sizes[1], stride_h, taps_h, row_step),
        (Block.LOW_W, Block.WIDE, sizes[2], stride_w, taps_w, col_step),
    ):
        low, span = _emit_span(f, taps, step)
        extents.append(f.sum(f.mul(f.sub(size, 1), stride), span, 1))
        f.set_slot(block, low_slot, low)
        f.set_slot(block, slot, extents[-1])
    of_channel = f.mul(*extents)
    f.set_slot(block, Block.CHANNEL, of_channel)
    return of_channel


def require_position_table(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_positions_<dtype>(plan, block, table, spare)`: table[p] = the
    bytes from the plane's start to what position p of a block reads with the tap at offset 0; parts
    of a block are its beginning. `spare` entries more are 0."""
    name = f"sg_conv_positions_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr plan, ptr block, ptr table, i64 spare", element, CONTROL)
    images, rows, cols, wide, image, fit = f.slots(
        "%block", Block.IMAGES, Block.ROWS, Block.COLS, Block.WIDE, Block.IMAGE, Block.CHANNELS
    )
    stride_h, stride_w = f.slots("%plan", Plan.STRIDE_H, Plan.STRIDE_W)
    size = f.element.itemsize
    planes = f.compare("sgt", fit, 0)
    steps = (f.mul(image, size), f.mul(f.mul(stride_h, wide), size), f.mul(stride_w, size))
    flat = (f.mul(f.mul(rows, cols), size), f.mul(cols, size), str(size))
    by_n, by_i, by_j = (f.select(planes, a, b) for a, b in zip(steps, flat))
    start = [("ptr", "%table"), ("i64", "0")]
    with f.carrying(0, images, *start) as n:
        with f.carrying(0, rows, *[(t, v) for (t, _), v in zip(start, n.values)]) as i:
            with f.carrying(0, cols, *[(t, v) for (t, _), v in zip(start, i.values)]) as j:
                f.set_slot(j.values[0], 0, j.values[1])
                j.following = [f.at_byte(j.values[0], 8), f.add(j.values[1], by_j)]
            i.following = [j.after[0], f.add(i.values[1], by_i)]
        n.following = [i.after[0], f.add(n.values[1], by_n)]
    with f.loop(0, "%spare") as at:
        f.set_slot(n.after[0], at, 0)
    f.leave()
    f.finish()
    return name


def require_tap_table(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_taps_<dtype>(plan, block, table, begin, end, spare)`:
    table[t - begin] = the bytes that tap t (channel, tap row, tap column) adds to a position's;
    `spare` entries more are the last one over again."""
    name = f"sg_conv_taps_{element.dtype}"
    if module.has(name):
        return name
    params = "ptr plan, ptr block, ptr table, i64 begin, i64 end, i64 spare"
    f = Code(module, name, params, element, CONTROL)
    wide, channel, fit, low_h, low_w, row_of_tap = f.slots(
        "%block", Block.WIDE, Block.CHANNEL, Block.CHANNELS, Block.LOW_H, Block.LOW_W, Block.TAP_ROW
    )
    taps_h, taps_w, row_step, col_step = f.slots(
        "%plan", Plan.TAPS_H, Plan.TAPS_W, Plan.ROW_STEP, Plan.COL_STEP
    )
    size = f.element.itemsize
    planes = f.compare("sgt", fit, 0)
    taps = f.maximum(f.mul(taps_h, taps_w), 1)  # of no taps there is no table
    first = f.div("%begin", taps)
    count = f.sub("%end", "%begin")
    entries = f.select(f.compare("sgt", count, 0), f.add(count, "%spare"), 0)
    with f.carrying(0, entries, ("ptr", "%table")) as turn:
        at = f.minimum(turn.index, f.sub(count, 1))
        t = f.add("%begin", at)
        c, rest = f.div(t, taps), f.rem(t, taps)
        h, w = f.div(rest, taps_w), f.rem(rest, taps_w)
        row, col = f.sub(f.mul(h, row_step), low_h), f.sub(f.mul(w, col_step), low_w)
        inside = f.sum(f.mul(f.sub(c, first), channel), f.mul(row, wide), col)
        offset = f.select(planes, inside, f.mul(at, row_of_tap))
        f.set_slot(turn.values[0], 0, f.mul(offset, size))
        turn.following = [f.at_byte(turn.values[0], 8)]
    f.leave()
    f.finish()
    return name


def _require_pack_plane(module: Module, element: Element) -> str:
    """`void @sg_conv_plane_<dtype>(plan, src, dst, channels, channel_rs, row, rows,
    col, width)`.

    dst[c * channel_rs + i * width + j] = the source's element (c, row + i, col + j), zero outside
    of it. Up to a vector after the last element may be overwritten.
    """
    name = f"sg_conv_plane_{element.dtype}"
    if module.has(name):
        return name
    params = "ptr plan, ptr src, ptr dst, i64 channels, i64 channel_rs, i64 row, i64 rows, "
    f = Code(module, name, params + "i64 col, i64 width", element)
    src_h, src_w, channel = f.slots("%plan", Plan.SRC_H, Plan.SRC_W, Plan.SRC_CHANNEL)
    from_row = f.at("%src", f.add(f.mul("%row", src_w), "%col"))
    with f.carrying(0, "%channels", ("ptr", from_row), ("ptr", "%dst")) as c:
        with f.carrying(0, "%rows", *[("ptr", v) for v in c.values]) as i:
            source, target = i.values
            there = f.compare("ult", f.add("%row", i.index), src_h)
            code = f.emit(f"sext i1 {there} to i64")
            with f.loop(0, "%width", element.lanes) as j:
                _emit_plane_vector(f, (source, target), j, src_w, code)
            i.following = [f.at(source, src_w), f.at(target, "%width")]
        c.following = [f.at(c.values[0], channel), f.at(c.values[1], "%channel_rs")]
    f.leave()
    f.finish()
    return name


def _emit_plane_vector(f: Code, row: tuple[str, str], j: str, src_w: str, there: str) -> None:
    """The columns from j on of one row, which is zero unless `there` has all bits."""
    element = f.element
    source, target = f.at(row[0], j), f.at(row[1], j)
    low, high = emit_inside(f, f.add("%col", j), src_w, "1", str(element.lanes))
    code = f.emit(f"and i64 {emit_lane_code(f, '1', low, high)}, {there}")
    if element.has_masks:
        f.store(element.memory_vector, emit_load_lanes(f, "dense", source, code), target)
        return
    whole = f.compare("eq", code, element.lanes << 32)
    with f.when(whole):
        f.store(element.memory_vector, f.load(element.memory_vector, source), target)
    with f.when(f.negate(whole)):
        f.store(element.memory_vector, "zeroinitializer", target)
        begin, end = f.emit(f"and i64 {code}, {(1 << 32) - 1}"), f.emit(f"lshr i64 {code}, 32")
        with f.loop(begin, end) as lane:
            f.store(element.memory, f.load(element.memory, f.at(source, lane)), f.at(target, lane))


def require_pack_block(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_pack_<dtype>(plan, block, src, dst, n, i, j, images, rows, cols,
    first, last)`: packs what the taps (terms) first to last read at a block of positions, which
    starts at image n, row i and column j and has so many of them: the planes of their channels, or
    each tap as a row where not one plane has room."""
    name = f"sg_conv_pack_{element.dtype}"
    if module.has(name):
        return name
    plane, tap = _require_pack_plane(module, element), _require_pack_tap(module, element)
    params = ("ptr plan, ptr block, ptr src, ptr dst, i64 n, i64 i, i64 j, i64 images, i64 rows, "
              "i64 cols, i64 first, i64 last")  # fmt: skip
    f = Code(module, name, params, element, CONTROL)
    planes = f.compare("sgt", f.slot("%block", Block.CHANNELS), 0)
    image, step = f.slot("%plan", Plan.SRC_IMAGE), f.slot("%block", Block.TAP_ROW)
    source = f.at("%src", f.mul("%n", image))
    with f.when(planes):
        _emit_pack_planes(f, plane, source, image)
    images = f.select(planes, 0, "%images")
    with f.loop(0, images) as m, f.carrying("%first", "%last", ("ptr", "%dst")) as t:
        positions = f.mul(m, f.mul("%rows", "%cols"))
        f.call(tap, ("ptr", "%plan"), ("ptr", f.at(source, f.mul(m, image))),
               ("ptr", f.at(t.values[0], positions)), ("i64", t.index), ("i64", "%i"),
               ("i64", "%j"), ("i64", "%rows"), ("i64", "%cols"))  # fmt: skip
        t.following = [f.at(t.values[0], step)]
    f.leave()
    f.finish()
    return name


def _emit_pack_planes(f: Code, pack: str, source: str, image: str) -> None:
    """Packs the planes of the channels of taps %first to %last, image by image."""
    row_0, col_0, stride_h, stride_w, channel, taps_h, taps_w = f.slots(
        "%plan", Plan.ROW_0, Plan.COL_0, Plan.STRIDE_H, Plan.STRIDE_W, Plan.SRC_CHANNEL,
        Plan.TAPS_H, Plan.TAPS_W,
    )  # fmt: skip
    rows, high, wide, channel_rs, image_rs, low_h, low_w = f.slots(
        "%block", Block.ROWS, Block.HIGH, Block.WIDE, Block.CHANNEL, Block.IMAGE, Block.LOW_H,
        Block.LOW_W,
    )  # fmt: skip
    taps = f.maximum(f.mul(taps_h, taps_w), 1)
    first = f.div("%first", taps)
    channels = f.sub(f.ceil_div("%last", taps), first)
    row = f.sum(f.mul("%i", stride_h), row_0, low_h)
    col = f.sum(f.mul("%j", stride_w), col_0, low_w)
    # The last block of an image may have fewer rows.
    high = f.sub(high, f.mul(f.sub(rows, "%rows"), stride_h))
    start = f.at(source, f.mul(first, channel))
    with f.loop(0, "%images") as m:
        f.call(pack, ("ptr", "%plan"), ("ptr", f.at(start, f.mul(m, image))),
               ("ptr", f.at("%dst", f.mul(m, image_rs))), ("i64", channels), ("i64", channel_rs),
               ("i64", row), ("i64", high), ("i64", col), ("i64", wide))  # fmt: skip


def _require_pack_tap(module: Module, element: Element) -> str:
    """`void @sg_conv_tap_<dtype>(plan, src, dst, t, i, j, high, wide)`: what tap t reads at so many
    rows and columns of positions from (i, j) on. Taps so far apart are rare: element by element."""
    name = f"sg_conv_tap_{element.dtype}"
    if module.has(name):
        return name
    params = "ptr plan, ptr src, ptr dst, i64 t, i64 i, i64 j, i64 high, i64 wide"
    f = Code(module, name, params, element, CONTROL)
    row_0, row_step, stride_h, src_h, taps_h, col_0, col_step, stride_w, src_w, taps_w, channel = (
        f.slots(
            "%plan", Plan.ROW_0, Plan.ROW_STEP, Plan.STRIDE_H, Plan.SRC_H, Plan.TAPS_H, Plan.COL_0,
            Plan.COL_STEP, Plan.STRIDE_W, Plan.SRC_W, Plan.TAPS_W, Plan.SRC_CHANNEL,
        )
    )  # fmt: skip
    taps = f.mul(taps_h, taps_w)
    rest = f.rem("%t", taps)
    row_0 = f.add(row_0, f.mul(f.div(rest, taps_w), row_step))
    col_0 = f.add(col_0, f.mul(f.rem(rest, taps_w), col_step))
    plane = f.at("%src", f.mul(f.div("%t", taps), channel))
    with f.carrying(0, "%high", ("ptr", "%dst")) as y:
        row = f.add(f.mul(f.add("%i", y.index), stride_h), row_0)
        with f.carrying(0, "%wide", ("ptr", y.values[0])) as x:
            col = f.add(f.mul(f.add("%j", x.index), stride_w), col_0)
            there = f.both(f.compare("ult", row, src_h), f.compare("ult", col, src_w))
            place = f.at(plane, f.add(f.mul(row, src_w), col))
            with f.choice(there) as inside:
                value = f.load(element.memory, place)
            zero = "0.0" if element.is_float else "0"
            f.store(element.memory, inside.phi(element.memory, value, zero), x.values[0])
            x.following = [f.at(x.values[0], 1)]
        y.following = [x.after[0]]
    f.leave()
    f.finish()
    return name
