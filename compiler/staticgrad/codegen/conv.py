"""Generated convolution: forward, gradient of the input, gradient of the weights.

    y[n, o, i, j] = sum over c, kh, kw of w[o, c, kh, kw]
                    * x[n, g * C/groups + c, i * stride_h - pad_top + kh * dilation_h,
                                             j * stride_w - pad_left + kw * dilation_w]

with g = o // (O/groups) and zero for what lies outside of x; x: [N, C, H, W], w: [O, C/groups, KH,
KW], y: [N, O, OH, OW], contiguous. Convolution in one dimension has H = KH = OH = 1; transposed
convolution is the gradient of the input. Every function has the signature

    void (ptr geometry, ptr x, ptr w, ptr y, ptr workspace, ptr epilogue, ptr context,
          i64 begin, i64 end)

where `geometry` holds the i64s of `conv_emit.Geometry`, [begin, end) is a range of `image_parts`
(of `weight_parts` for the gradient of the weights), the workspace has `workspace_bytes` bytes for
each caller, and `epilogue` is null or `void (ptr context, i64 batch, i64 r0, i64 r1, i64 c0, i64
c1)`, called once for each finished block of channels [r0, r1) and positions [c0, c1).

For few channels to a group `conv_depthwise` has functions of this signature.

`rows` (`wide_rows`, `tile_rows`) chooses the tile: so many elements of the image against a vector
of output channels. Forward and the gradient of the input take 0 too, and then compute a vector of
positions for a few channels at a time, which suits groups of few channels.

Bits: an element of y or of x's gradient is summed over channel, tap row and tap column, nested in
this order, ascending, by fma, in blocks of at most `KC` terms that depend on the extents of that
sum alone, along channels or positions; of x's gradient only the taps that reach the element count
(those of its phase of the stride). An element of w's gradient is summed over (n, position),
ascending, by fma, in blocks of at most `POSITIONS` that depend on N, OH and OW.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

from staticgrad.ir.dim import DimLike, floor_div

from .builder import Module
from .conv_channels import (
    channels_workspace_bytes,
    prefers_channels,
    require_channels_pass,
    require_pack_terms,
)
from .conv_emit import CONV_PARAMS, Code, Geometry, Plan, with_lanes
from .conv_im2col import im2col_workspace_bytes, require_im2col_pass
from .conv_im2col_pack import require_im2col_weights
from .conv_im2col_tile import full_height
from .conv_plan import (
    Sizes,
    emit_set_phase,
    forward_values,
    input_values,
    new_plan,
    require_phase_axis,
)
from .conv_plane import POSITIONS
from .conv_tile import require_tile, tile_rows
from .conv_weight import channel_block, require_weight_pass, weight_workspace_bytes
from .gemm_emit import CONTROL, Element
from .target import Target

LEAST_ROWS = 8  # accumulators that hide what a multiply-add takes, at two a cycle


def workspace_bytes(target: Target, dtype: str) -> int:
    """The scratch memory that one call of any of the three functions needs, whatever its sizes."""
    return max(
        im2col_workspace_bytes(target, dtype),
        weight_workspace_bytes(target, dtype),
        channels_workspace_bytes(target, dtype),
    )


# From so many vectors of sums on `conv_im2col` is worth being compiled for short ones: it wins 1 to
# 3 ns with each, and takes LLVM 30 ms where the program has the other way too.
WORTH_IM2COL = 1 << 16


def wide_rows(
    target: Target, dtype: str, channels: object, sizes: Sequence[object], terms: object
) -> int:
    """The argument `rows` for a pass to `channels` channels of a group on images of these sizes
    (how many, and of what), whose elements are sums of so many terms: of the tile along channels, 0
    for the other one. It changes no bit."""
    element = Element.of(dtype, target)
    known = [size for size in (channels, *sizes) if isinstance(size, int)]
    if len(known) == 1 + len(sizes) and prod(known) < WORTH_IM2COL * element.lanes:
        terms = None
    if not prefers_channels(element, channels, terms):
        return 0
    count = 1
    for size in reversed(sizes[1:]):
        if not isinstance(size, int):
            return tile_rows(target, None)
        count *= min(size, max(POSITIONS // max(count, 1), 1))
    return tile_rows(target, count)


def _name(kind: str, element: Element, rows: int) -> str:
    return f"sg_conv_{kind}_{f'{rows}_' if rows else ''}{element.dtype}"


def _pass_of(module: Module, element: Element, rows: int) -> tuple[str, str]:
    """The function of a pass, and its arguments that only the one along channels has."""
    if rows:
        tile = require_tile(module, element, rows)
        return require_channels_pass(module, element), f", ptr @{tile}, i64 {rows}"
    return require_im2col_pass(module, element), ""


def _block(element: Element, rows: int) -> int:
    """Output channels of a part."""
    return element.lanes if rows else full_height(element.target)


def image_parts(
    target: Target, dtype: str, images: DimLike, groups: int, channels: DimLike, rows: int
) -> DimLike:
    """How many parts a pass to so many channels of each group can be shared in: in each group of
    each image, blocks of channels. (By images alone a second thread had nothing to do for one.)"""
    block = _block(Element.of(dtype, target), rows)
    return images * groups * floor_div(channels + (block - 1), block)


@contextmanager
def _parts(f: Code, groups: str, channels: str, block: int) -> Iterator[tuple[str, ...]]:
    """For the parts from %begin to %end: (first image, last image, group, first channel of it, last
    channel). Whole images, which pack the weights but once, go together."""
    blocks = f.maximum(f.ceil_div(channels, block), 1)
    unit = f.maximum(f.mul(groups, blocks), 1)
    with f.carrying("%begin", "%end") as turn:
        n, first = f.div(turn.index, unit), f.rem(turn.index, unit)
        left = f.sub("%end", turn.index)
        whole = f.both(f.compare("eq", first, 0), f.compare("uge", left, unit))
        images = f.select(whole, f.div(left, unit), 1)
        last = f.minimum(unit, f.add(first, left))
        with f.loop(f.div(first, blocks), f.ceil_div(last, blocks)) as g:
            start = f.mul(g, blocks)
            low = f.mul(f.maximum(f.sub(first, start), 0), block)
            high = f.minimum(f.mul(f.minimum(f.sub(last, start), blocks), block), channels)
            yield n, f.add(n, images), g, low, high
        turn.step = f.mul(images, f.sub(last, first))


def require_conv_forward(module: Module, dtype: str, *, rows: int = 0) -> str:
    """Makes sure of `sg_conv_forward_<dtype>` (reads x and w, writes y). With `rows` (`wide_rows`)
    it computes vectors of channels, else vectors of positions."""
    element = Element.of(dtype, module.target)
    name = _name("forward", element, rows)
    if module.has(name):
        return name
    run, more = _pass_of(module, element, rows)
    f = Code(module, name, CONV_PARAMS, element, CONTROL)
    sizes = Sizes(f)
    plan = new_plan(f, forward_values(f, sizes))
    groups, block = sizes[Geometry.GROUPS], _block(element, rows)
    with _parts(f, groups, sizes.group_o, block) as (begin, end, g, low, high):
        o = f.add(f.mul(g, sizes.group_o), low)
        f.set_slot(plan, Plan.FIRST_ROW, o)
        f.set_slot(plan, Plan.ROWS, f.sub(high, low))
        x = f.at("%x", f.multiply_sum((f.mul(g, sizes.group_c), sizes.plane)))
        w, y = f.at("%w", f.mul(o, sizes.products)), f.at("%y", f.mul(o, sizes.positions))
        f.stmt(
            f"call void @{run}(ptr {plan}, ptr null, ptr {x}, ptr {w}, ptr {y}, ptr %workspace, "
            f"ptr %epilogue, ptr %context, i64 {begin}, i64 {end}{more})"
        )
    f.leave()
    f.finish()
    return name


def weight_tile(target: Target, dtype: str, outputs: object, taps: object) -> dict[str, int]:
    """The arguments `rows` and `lanes` for the gradient of the weights of `outputs` channels of a
    group, each of so many taps. They change no bit. Taps of one tile make two, so that two threads
    gain by sharing them (25 taps, 64 x 28 x 28: 0.45 ms on one and on two; 0.47 and 0.28).

    Vectors that the channels fill by half at most are halved: a CPU that computes 512 bits in two
    parts takes two vectors of 256 in that time, and any other loses nothing. The offsets of few
    rows stay in registers, as they must where each cycle wants two elements from memory (8 channels
    on Zen 4, GFLOP/s of 117: whole vectors 54, halves with 24 rows 63, with 8 to 10 rows 88).
    """
    lanes = Element.of(dtype, target).lanes
    few = isinstance(outputs, int) and 2 * outputs <= lanes and target.vector_bits >= 512
    rows = tile_rows(target, taps, halved=few)
    if isinstance(taps, int):
        rows = min(rows, max(taps, LEAST_ROWS))
        half = -(-taps // 2)
        if taps <= rows and half >= LEAST_ROWS:  # a thread's share would take the whole tile's time
            rows = half
    return {"rows": rows, "lanes": lanes // 2 if few else lanes}


def weight_parts(
    target: Target, dtype: str, outputs: DimLike, groups: int, taps: DimLike
) -> DimLike:
    """How many parts the gradient of weights [outputs, taps] can be shared in: in each block of
    output channels of a group, taps."""
    block = channel_block(Element.of(dtype, target))
    blocks = floor_div(floor_div(outputs, groups) + (block - 1), block)
    return blocks * groups * taps


def require_conv_grad_weight(module: Module, dtype: str, *, rows: int = 0, lanes: int = 0) -> str:
    """Makes sure of `sg_conv_grad_weight_<rows>_<dtype>` (reads x and y, the gradient of the
    output; writes w; a range of `weight_parts`), with a tile of so many rows, which are vectors of
    so many `lanes`: see `weight_tile`."""
    element = with_lanes(Element.of(dtype, module.target), lanes)
    height = rows or tile_rows(module.target, None)
    name = _name("grad_weight", element, height)
    if module.has(name):
        return name
    run, tile = require_weight_pass(module, element), require_tile(module, element, height)
    f = Code(module, name, CONV_PARAMS, element, CONTROL)
    sizes = Sizes(f)
    plan = new_plan(f, forward_values(f, sizes))
    block, parts = channel_block(element), f.maximum(sizes.products, 1)  # of a block: its taps
    blocks = f.maximum(f.ceil_div(sizes.group_o, block), 1)
    with f.loop(f.div("%begin", parts), f.ceil_div("%end", parts)) as at:
        g, r = f.div(at, blocks), f.mul(f.rem(at, blocks), block)
        o = f.add(f.mul(g, sizes.group_o), r)
        channels = f.minimum(f.sub(sizes.group_o, r), block)
        start = f.mul(at, parts)
        t0 = f.maximum(f.sub("%begin", start), 0)
        t1 = f.minimum(f.sub("%end", start), parts)
        f.set_slot(plan, Plan.FIRST_ROW, o)
        x = f.at("%x", f.mul(f.mul(g, sizes.group_c), sizes.plane))
        w, y = f.at("%w", f.mul(o, sizes.products)), f.at("%y", f.mul(o, sizes.positions))
        f.stmt(
            f"call void @{run}(ptr {plan}, ptr {x}, ptr {y}, ptr {w}, ptr %workspace, "
            f"ptr %epilogue, ptr %context, i64 {channels}, i64 {sizes[Geometry.N]}, ptr @{tile}, "
            f"i64 {height}, i64 {t0}, i64 {t1})"
        )
    f.leave()
    f.finish()
    return name


def require_conv_grad_input(module: Module, dtype: str, *, rows: int = 0) -> str:
    """Makes sure of `sg_conv_grad_input_<dtype>` (reads y, the gradient of the output, and w;
    writes x). Also the forward of a transposed convolution."""
    element = Element.of(dtype, module.target)
    name = _name("grad_input", element, rows)
    if module.has(name):
        return name
    run, more = _pass_of(module, element, rows)
    pack = (require_pack_terms if more else require_im2col_weights)(module, element)
    axis = require_phase_axis(module, element)
    f = Code(module, name, CONV_PARAMS, element, CONTROL)
    G = Geometry
    sizes = Sizes(f)
    slots = f.emit("alloca [10 x i64], align 64")
    rows_of, cols_of = slots, f.emit(f"getelementptr i64, ptr {slots}, i64 5")
    plan = new_plan(f, input_values(f, sizes))
    phases_h = f.minimum(sizes[G.STRIDE_H], sizes[G.H])
    phases_w = f.minimum(sizes[G.STRIDE_W], sizes[G.W])
    single = f.both(f.compare("eq", phases_h, 1), f.compare("eq", phases_w, 1))
    epilogue = f.select(single, "%epilogue", "null", "ptr")
    groups, block = sizes[G.GROUPS], _block(element, rows)
    with _parts(f, groups, sizes.group_c, block) as (begin, end, g, low, high):
        c, o = f.add(f.mul(g, sizes.group_c), low), f.mul(g, sizes.group_o)
        f.set_slot(plan, Plan.FIRST_ROW, c)
        f.set_slot(plan, Plan.ROWS, f.sub(high, low))
        y = f.at("%y", f.mul(o, sizes.positions))
        w = f.at("%w", f.multiply_sum((o, sizes.products), (low, sizes.taps)))
        x = f.at("%x", f.mul(c, sizes.plane))
        with f.loop(0, phases_h) as h, f.loop(0, phases_w) as v:
            f.call(axis, ("ptr", rows_of), ("i64", h), *(("i64", sizes[s]) for s in (
                G.KH, G.STRIDE_H, G.PAD_TOP, G.DILATION_H)))  # fmt: skip
            f.call(axis, ("ptr", cols_of), ("i64", v), *(("i64", sizes[s]) for s in (
                G.KW, G.STRIDE_W, G.PAD_LEFT, G.DILATION_W)))  # fmt: skip
            first_tap = emit_set_phase(f, plan, sizes, (rows_of, cols_of), (h, v), single)
            to_x = f.at(x, f.add(f.mul(h, sizes[G.W]), v))
            f.stmt(
                f"call void @{run}(ptr {plan}, ptr @{pack}, ptr {y}, ptr {f.at(w, first_tap)}, "
                f"ptr {to_x}, ptr %workspace, ptr {epilogue}, ptr %context, i64 {begin}, "
                f"i64 {end}{more})"
            )
        # Phases interleave in x, so its blocks are finished only after the last of them.
        left = f.both(f.emit(f"icmp ne ptr %epilogue, {epilogue}"),
                      f.compare("sgt", f.mul(sizes.group_c, sizes.plane), 0))  # fmt: skip
        rows_end = f.add(c, f.sub(high, low))
        with f.loop(begin, f.select(left, end, begin)) as n:
            f.stmt(f"call void %epilogue(ptr %context, i64 {n}, i64 {c}, i64 {rows_end}, i64 0, "
                   f"i64 {sizes.plane})")  # fmt: skip
    f.leave()
    f.finish()
    return name
