"""What `conv_im2col` packs: the unfolded source of a block, straight from the image (for a tap
column, tap row and channel of the block, for a piece of positions: a vector), and weights."""

from __future__ import annotations

from .builder import Module
from .conv_emit import Code, Plan
from .conv_lanes import emit_inside, emit_lane_code, emit_load_lanes, kinds_of
from .gemm_emit import CONTROL, Element

# A block's positions are cut into pieces: at most one vector each, all in one row of one image.
# What the loops over taps need of them is tabled once a block: `PIECE_SLOTS` i64s a piece.
PIECE_SLOTS = 6
OFFSET, ROW, TARGET, LANES, COL, LENGTH = range(PIECE_SLOTS)


def piece_table_bytes(positions: int) -> int:
    """The table of a block of so many positions: at worst each is a piece of its own."""
    return positions * PIECE_SLOTS * 8


def require_im2col_pack(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_im2col_pack_<dtype>(plan, src, dst, dst_rs, table, q0, count)`.

    dst[k * dst_rs + l] = the source value of tap k at position q0 + l, l < count, where k counts
    the taps of the plan's box (channel, tap row, tap column) and positions go through the images.
    Up to a vector after the last position may be overwritten: dst_rs >= count + lanes. Only
    elements inside of the images are read. `table` has `piece_table_bytes(count)` bytes.

    Rows of dst are written one after the other, pieces innermost, so that a line of dst is fetched
    from L2 once. Packing half vectors, which cross fewer lines, and prefetching dst were slower.
    """
    name = f"sg_conv_im2col_pack_{element.dtype}"
    if module.has(name):
        return name
    pieces = _require_pieces(module, element)
    params = "ptr plan, ptr src, ptr dst, i64 dst_rs, ptr table, i64 q0, i64 count"
    f = Code(module, name, params, element)
    box_c, count_w, channel, col_step, stride_w = f.slots(
        "%plan", Plan.BOX_C, Plan.BOX_W_COUNT, Plan.SRC_CHANNEL, Plan.COL_STEP, Plan.STRIDE_W
    )
    end_slot = f.emit("alloca i64, align 8")
    f.call(pieces, ("ptr", "%plan"), ("ptr", "%table"), ("i64", "%q0"), ("i64", "%count"),
           ("ptr", end_slot))  # fmt: skip
    end = f.load("i64", end_slot, 8)
    src = f.at("%src", f.mul(box_c, channel))
    with f.loop(0, count_w) as w:
        shift = f.mul(w, col_step)
        _emit_lanes(f, end, shift)
        _emit_rows(f, f.at(src, shift), f.at("%dst", f.mul(w, "%dst_rs")), stride_w, end)
    f.leave()
    f.finish()
    return name


def _require_pieces(module: Module, element: Element) -> str:
    """`void @sg_conv_im2col_pieces_<dtype>(plan, table, q0, count, end)`: tables the pieces of
    `count` positions for the first tap of the box; *end is how many bytes of the table are used."""
    name = f"sg_conv_im2col_pieces_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr plan, ptr table, i64 q0, i64 count, ptr end", element, CONTROL)
    out_w, positions, stride_h, stride_w, image, src_w = f.slots(
        "%plan", Plan.OUT_W, Plan.POSITIONS, Plan.STRIDE_H, Plan.STRIDE_W, Plan.SRC_IMAGE,
        Plan.SRC_W,
    )  # fmt: skip
    row_0, row_step, col_0, col_step, box_h, box_w = f.slots(
        "%plan", Plan.ROW_0, Plan.ROW_STEP, Plan.COL_0, Plan.COL_STEP, Plan.BOX_H, Plan.BOX_W
    )
    row_0 = f.add(row_0, f.mul(box_h, row_step))
    col_0 = f.add(col_0, f.mul(box_w, col_step))
    with f.when(f.compare("eq", "%count", 0)):  # and maybe no position to divide by
        f.store("i64", "0", "%end", 8)
        f.leave()
    n, p = f.div("%q0", positions), f.rem("%q0", positions)
    i, j = f.div(p, out_w), f.rem(p, out_w)
    start = [("i64", v) for v in (n, p, i, j)]
    with f.carrying(0, "%count", *start, ("ptr", "%table")) as piece:
        n, p, i, j, entry = piece.values
        length = f.minimum(f.sub(out_w, j), f.sub("%count", piece.index))
        length = f.minimum(length, element.lanes)
        row = f.add(f.mul(i, stride_h), row_0)
        col = f.add(f.mul(j, stride_w), col_0)
        offset = f.sum(f.mul(n, image), f.mul(row, src_w), col)
        for slot, value in ((OFFSET, offset), (ROW, row), (TARGET, piece.index), (COL, col),
                            (LENGTH, length)):  # fmt: skip
            f.set_slot(entry, slot, value)
        next_p, next_j = f.add(p, length), f.add(j, length)
        row_ends, image_ends = f.compare("eq", next_j, out_w), f.compare("eq", next_p, positions)
        next_i = f.select(row_ends, f.add(i, 1), i)
        piece.following = [
            f.select(image_ends, f.add(n, 1), n), f.select(image_ends, 0, next_p),
            f.select(image_ends, 0, next_i), f.select(row_ends, 0, next_j),
            f.at_byte(entry, PIECE_SLOTS * 8),
        ]  # fmt: skip
        piece.step = length
    last = f.emit(f"ptrtoint ptr {piece.after[4]} to i64")
    used = f.sub(last, f.emit("ptrtoint ptr %table to i64"))
    f.store("i64", used, "%end", 8)
    f.leave()
    f.finish()
    return name


def _emit_lanes(f: Code, end: str, shift: str) -> None:
    """Tables the lanes of each piece that lie inside of the image for columns moved by `shift`."""
    src_w, stride_w = f.slots("%plan", Plan.SRC_W, Plan.STRIDE_W)
    with f.loop(0, end, PIECE_SLOTS * 8) as at:
        entry = f.at_byte("%table", at)
        col, length = f.slots(entry, COL, LENGTH)
        low, high = emit_inside(f, f.add(col, shift), src_w, stride_w, length)
        f.set_slot(entry, LANES, emit_lane_code(f, stride_w, low, high))


def _emit_rows(f: Code, src: str, dst: str, stride_w: str, end: str) -> None:
    """Packs the rows of one tap column: all tap rows and channels of the box."""
    src_h, src_w, channel, row_step = f.slots(
        "%plan", Plan.SRC_H, Plan.SRC_W, Plan.SRC_CHANNEL, Plan.ROW_STEP
    )
    count_c, count_h, count_w = f.slots(
        "%plan", Plan.BOX_C_COUNT, Plan.BOX_H_COUNT, Plan.BOX_W_COUNT
    )
    row_rs = f.mul(count_w, "%dst_rs")
    channel_rs = f.mul(count_h, row_rs)
    with f.carrying(0, count_h, ("ptr", src), ("ptr", dst), ("i64", "0")) as h:
        from_row, to_row, down = h.values
        with f.carrying(0, count_c, ("ptr", from_row), ("ptr", to_row)) as c:
            from_channel, to = c.values
            with f.carrying(0, end) as piece:
                entry = f.at_byte("%table", piece.index)
                offset, row, target, code = f.slots(entry, OFFSET, ROW, TARGET, LANES)
                there = f.compare("ult", f.add(row, down), src_h)
                # No `select`: LLVM makes a branch of it, which the edges of images mispredict.
                code = f.emit(f"and i64 {code}, {f.emit(f'sext i1 {there} to i64')}")
                _emit_piece(f, f.at(from_channel, offset), f.at(to, target), code, stride_w)
                piece.step = PIECE_SLOTS * 8
            c.following = [f.at(from_channel, channel), f.at(to, channel_rs)]
        h.following = [
            f.at(from_row, f.mul(row_step, src_w)), f.at(to_row, row_rs), f.add(down, row_step)
        ]  # fmt: skip


def _emit_piece(f: Code, source: str, target: str, code: str, stride_w: str) -> None:
    """Packs one piece in the way of its stride; which one is told by a branch that always goes the
    same way."""
    kinds = kinds_of(f.element)
    done = f.new_label("packed")
    for stride, kind in enumerate(kinds[:-1], 1):
        this, other = f.new_label(kind), f.new_label("or")
        f.branch_if(f.compare("eq", stride_w, stride), this, other)
        f.label(this)
        f.store(f.element.memory_vector, emit_load_lanes(f, kind, source, code), target)
        f.branch(done)
        f.label(other)
    _emit_each(f, source, target, code, stride_w)
    f.branch(done)
    f.label(done)


def _emit_each(f: Code, source: str, target: str, code: str, stride_w: str) -> None:
    """Copies the lanes of `code` one by one; without masks, a whole dense vector as one."""
    element = f.element
    ty, lanes = element.memory_vector, element.lanes
    low, high = f.emit(f"and i64 {code}, {(1 << 32) - 1}"), f.emit(f"lshr i64 {code}, 32")
    if not element.has_masks:
        whole = f.both(f.compare("eq", code, lanes << 32), f.compare("eq", stride_w, 1))
        with f.when(whole):
            f.store(ty, f.load(ty, source), target)
        high = f.select(whole, 0, high)
        low = f.select(whole, 0, low)
        with f.when(f.emit(f"xor i1 {whole}, true")):
            f.store(ty, "zeroinitializer", target)
    else:
        f.store(ty, "zeroinitializer", target)
    with f.carrying(low, high) as lane:
        value = f.load(element.memory, f.at(source, f.mul(lane.index, stride_w)))
        f.store(element.memory, value, f.at(target, lane.index))


def require_im2col_weights(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_im2col_weights_<dtype>(plan, weights, dst, rows)`: the weights
    of the plan's box for `rows` output channels from `weights` on, as dst[k * rows + r]."""
    name = f"sg_conv_im2col_weights_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr plan, ptr weights, ptr dst, i64 rows", element)
    w_row, w_c, w_h, w_w = f.slots("%plan", Plan.W_ROW, Plan.W_CHANNEL, Plan.W_TAP_H, Plan.W_TAP_W)
    box_c, count_c, box_h, count_h, box_w, count_w = f.slots(
        "%plan", Plan.BOX_C, Plan.BOX_C_COUNT, Plan.BOX_H, Plan.BOX_H_COUNT, Plan.BOX_W,
        Plan.BOX_W_COUNT,
    )  # fmt: skip
    start = f.at("%weights", f.multiply_sum((box_c, w_c), (box_h, w_h), (box_w, w_w)))
    with f.loop(0, count_c) as c, f.loop(0, count_h) as h, f.loop(0, count_w) as w:
        k = f.add(f.mul(f.add(f.mul(c, count_h), h), count_w), w)
        src = f.at(start, f.multiply_sum((c, w_c), (h, w_h), (w, w_w)))
        dst = f.at("%dst", f.mul(k, "%rows"))
        with f.carrying(0, "%rows", ("ptr", src)) as turn:
            value = f.load(element.memory, turn.values[0])
            f.store(element.memory, value, f.at(dst, turn.index))
            turn.following = [f.at(turn.values[0], w_row)]
    f.leave()
    f.finish()
    return name
