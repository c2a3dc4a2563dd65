"""One pass of a convolution over images: pack a block of the source, multiply it by the weights.

Forward is one pass, the gradient of the input one pass for each phase of the stride.
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import COLD, KC, Code, Plan, emit_box_steps, emit_set_box
from .conv_pack import piece_table_bytes, require_pack_source
from .conv_tile import VECTORS, emit_add, full_height, require_tile
from .gemm_emit import Element
from .target import Target

ROW_BLOCK = 256  # output channels to a block of packed weights: 512 KiB of float32
STRIPS = 4  # strips of columns to a packed block: 416 KiB, read from L2 once a row tile

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


def pass_workspace_bytes(target: Target, dtype: str) -> int:
    """What a pass needs, and 64 bytes to align it."""
    element = Element.of(dtype, target)
    table = piece_table_bytes(STRIPS * strip_columns(element))
    return _offsets(element)[2] * element.itemsize + table + 64


def aligned(f: Code, pointer: str) -> str:
    """The first address on a 64-byte line from `pointer` on."""
    address = f.emit(f"ptrtoint ptr {pointer} to i64")
    gap = f.emit(f"and i64 {f.sub(0, address)}, 63")
    return f.at_byte(pointer, gap)


def require_pass(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_pass_<dtype>(plan, pack, src, weights, dst, workspace, epilogue,
    context, begin, end)`: the pass of `Plan` over the images [begin, end).

    `pack` is null where the weights lie as [rows, taps], else `require_pack_weights`' function: a
    pointer, so that forward, which has no need of it, does not compile it.
    """
    name = f"sg_conv_pass_{element.dtype}"
    if module.has(name):
        return name
    require_block(module, element)
    f = Code(module, name, PASS_PARAMS, element, COLD)
    rows, channels, taps_h, taps_w, positions = f.slots(
        "%plan", Plan.ROWS, Plan.CHANNELS, Plan.TAPS_H, Plan.TAPS_W, Plan.POSITIONS
    )
    q_begin, q_end = f.mul("%begin", positions), f.mul("%end", positions)
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
            k = f.mul(f.mul(counts[0], counts[1]), counts[2])
            start = f.emit(f"or i64 {f.emit(f'or i64 {c}, {h}')}, {w}")
            flags = [f.compare("ne", start, 0)]
            for at, step, extent in zip((c, h, w), (step_c, step_h, step_w), some):
                flags.append(f.compare("sge", f.add(at, step), extent))
            last = f.both(f.both(flags[1], flags[2]), flags[3])
            accumulate = f.emit(f"zext i1 {flags[0]} to i64")
            epilogue = f.select(last, "%epilogue", "null", "ptr")
            _emit_blocks(f, (r0, count), k, accumulate, epilogue, (q_begin, q_end))
    f.leave()
    f.finish()
    return name


def _emit_blocks(
    f: Code, row_range: tuple[str, str], k: str, accumulate: str, epilogue: str,
    q_range: tuple[str, str],
) -> None:  # fmt: skip
    """All positions of one block of the sum for one block of output channels."""
    element = f.element
    r0, rows = row_range
    w_row, dst_row, taps_h, taps_w = f.slots(
        "%plan", Plan.W_ROW, Plan.DST_ROW, Plan.TAPS_H, Plan.TAPS_W
    )
    block = aligned(f, "%workspace")
    buffer = f.at(block, _offsets(element)[1])
    from_row = f.at("%weights", f.mul(r0, w_row))
    pack = f.emit("icmp ne ptr %pack, null")
    with f.when(pack):
        f.stmt(f"call void %pack(ptr %plan, ptr {from_row}, ptr {buffer}, i64 {rows})")
    c, h, w = f.slots("%plan", Plan.BOX_C, Plan.BOX_H, Plan.BOX_W)
    direct = f.at(from_row, f.add(f.mul(f.add(f.mul(c, taps_h), h), taps_w), w))
    a = f.select(pack, buffer, direct, "ptr")
    size = element.itemsize
    a_rs = f.select(pack, size, f.mul(w_row, size))
    a_cs = f.select(pack, f.mul(rows, size), size)
    dst = f.at("%dst", f.mul(r0, dst_row))
    columns = STRIPS * strip_columns(element)
    with f.loop(*q_range, columns) as q:
        count = f.minimum(f.sub(q_range[1], q), columns)
        f.call(f"sg_conv_block_{element.dtype}", ("ptr", "%plan"), ("ptr", "%src"), ("ptr", dst),
               ("ptr", block), ("i64", k), ("ptr", a), ("i64", a_rs), ("i64", a_cs),
               ("i64", rows), ("i64", accumulate), ("i64", q), ("i64", count))  # fmt: skip
        with f.when(f.emit(f"icmp ne ptr {epilogue}, null")):
            _emit_epilogue(f, epilogue, r0, rows, q, count)


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


def require_block(module: Module, element: Element) -> str:
    """Makes sure of the function that packs `count` positions from q on and multiplies them by
    weights a[r * a_rs + k * a_cs], r < rows, into dst: `void @sg_conv_block_<dtype>(plan, src,
    dst, workspace, k, a, a_rs, a_cs, rows, accumulate, q, count)`, strides of a in bytes."""
    name = f"sg_conv_block_{element.dtype}"
    if module.has(name):
        return name
    pack, merge = require_pack_source(module, element), _require_merge(module, element)
    params = ("ptr plan, ptr src, ptr dst, ptr workspace, i64 k, ptr a, i64 a_rs, i64 a_cs, "
              "i64 rows, i64 accumulate, i64 q, i64 count")  # fmt: skip
    f = Code(module, name, params, element, COLD)
    columns, height = strip_columns(element), full_height(module.target)
    tile_at, _, table_at = _offsets(element)
    tile, table = f.at("%workspace", tile_at), f.at("%workspace", table_at)
    f.stmt(
        f"call void @{pack}(ptr %plan, ptr %src, ptr %workspace, i64 {block_stride(element)}, "
        f"ptr {table}, i64 %q, i64 %count)"
    )
    positions, run, dst_col, dst_row = f.slots(
        "%plan", Plan.POSITIONS, Plan.RUN, Plan.DST_COL, Plan.DST_ROW
    )
    plain = f.both(f.compare("eq", dst_col, 1), f.compare("eq", "%accumulate", 0))
    with f.loop(0, "%count", columns) as s:
        # A whole tile that adjoins in dst and overwrites it is stored straight; any other goes
        # through the buffer.
        b, q = f.at("%workspace", s), f.add("%q", s)
        count = f.minimum(f.sub("%count", s), columns)
        left = f.sub(run, f.rem(f.rem(q, positions), run))
        adjoins = f.both(f.compare("eq", count, columns), f.compare("sle", count, left))
        straight = f.both(plain, adjoins)
        out = _emit_address(f, "%dst", q)
        start = [("ptr", "%a"), ("ptr", out), ("ptr", "%dst")]
        with f.carrying(0, "%rows", *start) as turn:
            a, c, dst = turn.values
            rows = f.minimum(f.sub("%rows", turn.index), height)
            direct = f.both(straight, f.compare("eq", rows, height))
            to = f.select(direct, c, tile, "ptr")
            to_rs = f.select(direct, dst_row, columns)
            _emit_tiles(f, ("%k", a, b), (to, to_rs), rows, count)
            with f.when(f.emit(f"xor i1 {direct}, true")):
                f.call(merge, ("ptr", "%plan"), ("ptr", tile), ("ptr", dst), ("i64", rows),
                       ("i64", "%accumulate"), ("i64", q), ("i64", count))  # fmt: skip
            down = f.mul(dst_row, height)
            turn.following = [
                f.at_byte(a, f.mul("%a_rs", height)), f.at(c, down), f.at(dst, down)
            ]  # fmt: skip
            turn.step = height
    f.leave()
    f.finish()
    return name


def _emit_tiles(
    f: Code, operands: tuple[str, str, str], out: tuple[str, str], rows: str, count: str
) -> None:
    """Computes one tile, a vector of columns at a time where there are fewer than it has."""
    k, a, b = operands
    height, width = full_height(f.module.target), strip_columns(f.element)
    b_rs = block_stride(f.element) * f.element.itemsize

    def call(shape: tuple[int, int], b: str, c: str) -> None:
        f.call(require_tile(f.module, f.element, *shape), ("i64", k), ("ptr", a), ("i64", "%a_rs"),
               ("i64", "%a_cs"), ("ptr", b), ("i64", b_rs), ("ptr", c), ("i64", out[1]),
               ("i64", rows))  # fmt: skip

    narrow, wide, done = (f.new_label(h) for h in ("narrow", "wide", "computed"))
    f.branch_if(f.compare("sle", count, width - f.element.lanes), narrow, wide)
    f.label(narrow)
    with f.loop(0, count, f.element.lanes) as j:
        call((height, 1), f.at(b, j), f.at(out[0], j))
    f.branch(done)
    f.label(wide)
    call((height, VECTORS), b, out[0])
    f.branch(done)
    f.label(done)


def _emit_address(f: Code, dst: str, q: str) -> str:
    """Where position q of the output channel at `dst` lies."""
    positions, run, image, dst_run, dst_col = f.slots(
        "%plan", Plan.POSITIONS, Plan.RUN, Plan.DST_IMAGE, Plan.DST_RUN, Plan.DST_COL
    )
    n, p = f.div(q, positions), f.rem(q, positions)
    i, j = f.div(p, run), f.rem(p, run)
    return f.at(dst, f.multiply_sum((n, image), (i, dst_run), (j, dst_col)))


def _require_merge(module: Module, element: Element) -> str:
    """`void @sg_conv_merge_<dtype>(plan, tile, dst, rows, accumulate, q, count)`: puts the buffered
    tile of `count` positions from q on down in dst, run by run, or adds it to what is there."""
    name = f"sg_conv_merge_{element.dtype}"
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
        start = [("ptr", f.at("%tile", part.index)), ("ptr", _emit_address(f, "%dst", at))]
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
