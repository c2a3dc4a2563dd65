"""Generated convolution: forward, gradient of the input, gradient of the weights.

    y[n, o, i, j] = sum over c, kh, kw of w[o, c, kh, kw]
                    * x[n, g * C/groups + c, i * stride_h - pad_top + kh * dilation_h,
                                             j * stride_w - pad_left + kw * dilation_w]

with g = o // (O/groups) and zero for what lies outside of x; x: [N, C, H, W], w: [O, C/groups, KH,
KW], y: [N, O, OH, OW], contiguous. Convolution in one dimension has H = KH = OH = 1; transposed
convolution is the gradient of the input. Every function has the signature

    void (ptr geometry, ptr x, ptr w, ptr y, ptr workspace, ptr epilogue, ptr context,
          i64 begin, i64 end)

where `geometry` holds the i64s of `conv_emit.Geometry`, [begin, end) is a range of images (of
`weight_parts` for the gradient of the weights), the workspace has `workspace_bytes` bytes for each
caller, and `epilogue` is null or `void (ptr context, i64 batch, i64 r0, i64 r1, i64 c0, i64 c1)`,
called once for each finished block of channels [r0, r1) and positions [c0, c1).

`depthwise=True` makes a function that takes every geometry too, is two to three times as fast where
groups = C = O, and takes longer to compile.

`rows` (`wide_rows`, `tile_rows`) chooses the tile: so many elements of the image against a vector
of output channels. Forward and the gradient of the input take 0 too, and then compute a vector of
positions for a few channels at a time, which suits groups of few channels.

Bits: an element of y or of x's gradient is summed over channel, tap row and tap column, nested in
this order, ascending, by fma, in blocks of at most `KC` terms that depend on the extents of that
sum alone, along channels or positions; of x's gradient only the taps that reach the element count
(those of its phase of the stride). An element of w's gradient is summed over (n, position),
ascending, by fma, in blocks of at most `POSITIONS` that depend on N, OH and OW. The depthwise
functions have orders of their own, which depend on the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.dim import DimLike, floor_div

from .builder import Module
from .conv_depthwise import (
    depthwise_workspace_bytes,
    require_depthwise_pass,
    require_depthwise_weight_pass,
)
from .conv_emit import COLD, Code, Geometry, Plan
from .conv_pack import require_pack_weights
from .conv_pass import pass_workspace_bytes, require_pass
from .conv_plane import POSITIONS
from .conv_rows import require_rows_tile, tile_rows
from .conv_weight import channel_block, require_weight_pass, weight_workspace_bytes
from .conv_wide import (
    prefers_wide,
    require_pack_terms,
    require_wide_pass,
    wide_workspace_bytes,
)
from .gemm_emit import Element
from .target import Target

CONV_PARAMS = ("ptr geometry, ptr x, ptr w, ptr y, ptr workspace, ptr epilogue, ptr context, "
               "i64 begin, i64 end")  # fmt: skip


def workspace_bytes(target: Target, dtype: str) -> int:
    """The scratch memory that one call of any of the three functions needs, whatever its sizes."""
    return max(
        pass_workspace_bytes(target, dtype),
        weight_workspace_bytes(target, dtype),
        wide_workspace_bytes(target, dtype),
        depthwise_workspace_bytes(Element.of(dtype, target)),
    )


class _Sizes:
    """The geometry's values and the products that strides are made of, as emitted names."""

    def __init__(self, f: Code) -> None:
        values = dict(zip(Geometry, f.slots("%geometry", *Geometry)))
        self.value = values
        self.group_c = f.div(values[Geometry.C], values[Geometry.GROUPS])
        self.group_o = f.div(values[Geometry.O], values[Geometry.GROUPS])
        self.plane = f.mul(values[Geometry.H], values[Geometry.W])
        self.positions = f.mul(values[Geometry.OH], values[Geometry.OW])
        self.taps = f.mul(values[Geometry.KH], values[Geometry.KW])
        self.products = f.mul(self.group_c, self.taps)  # terms of one output element

    def __getitem__(self, slot: Geometry) -> str:
        return self.value[slot]


def _new_plan(f: Code, values: dict[Plan, str | int]) -> str:
    plan = f.emit(f"alloca [{len(Plan)} x i64], align 64")
    for slot, value in values.items():
        f.set_slot(plan, slot, value)
    return plan


def _forward_values(f: Code, sizes: _Sizes) -> dict[Plan, str | int]:
    """The plan that takes x to y, for one group."""
    G = Geometry
    return {
        Plan.SRC_IMAGE: f.mul(sizes[G.C], sizes.plane),
        Plan.SRC_CHANNEL: sizes.plane,
        Plan.SRC_H: sizes[G.H],
        Plan.SRC_W: sizes[G.W],
        Plan.CHANNELS: sizes.group_c,
        Plan.TAPS_H: sizes[G.KH],
        Plan.TAPS_W: sizes[G.KW],
        Plan.ROW_0: f.sub(0, sizes[G.PAD_TOP]),
        Plan.ROW_STEP: sizes[G.DILATION_H],
        Plan.COL_0: f.sub(0, sizes[G.PAD_LEFT]),
        Plan.COL_STEP: sizes[G.DILATION_W],
        Plan.STRIDE_H: sizes[G.STRIDE_H],
        Plan.STRIDE_W: sizes[G.STRIDE_W],
        Plan.OUT_W: sizes[G.OW],
        Plan.POSITIONS: sizes.positions,
        Plan.ROWS: sizes.group_o,
        Plan.DST_IMAGE: f.mul(sizes[G.O], sizes.positions),
        Plan.DST_ROW: sizes.positions,
        Plan.DST_RUN: sizes.positions,
        Plan.DST_COL: 1,
        Plan.RUN: sizes.positions,
        Plan.W_ROW: sizes.products,
        Plan.W_CHANNEL: sizes.taps,
        Plan.W_TAP_H: sizes[G.KW],
        Plan.W_TAP_W: 1,
    }


def wide_rows(target: Target, dtype: str, channels: object, sizes: Sequence[object]) -> int:
    """The argument `rows` for a pass that sums `channels` channels of a group at planes of so many
    positions: of the tile along channels, 0 for the other one. It changes no bit."""
    if not prefers_wide(Element.of(dtype, target), channels):
        return 0
    count = 1
    for size in reversed(sizes):
        if not isinstance(size, int):
            return tile_rows(target, None)
        count *= min(size, max(POSITIONS // max(count, 1), 1))
    return tile_rows(target, count)


def _name(kind: str, element: Element, depthwise: bool, rows: int) -> str:
    how = "depthwise_" if depthwise else ""
    return f"sg_conv_{kind}_{how}{f'{rows}_' if rows else ''}{element.dtype}"


def _pass_of(module: Module, element: Element, depthwise: bool, rows: int) -> tuple[str, str]:
    """The function of a pass, and its arguments that only the one along channels has."""
    if rows and not depthwise:
        tile = require_rows_tile(module, element, rows)
        return require_wide_pass(module, element), f", ptr @{tile}, i64 {rows}"
    return (require_depthwise_pass if depthwise else require_pass)(module, element), ""


def require_conv_forward(
    module: Module, dtype: str, *, depthwise: bool = False, rows: int = 0
) -> str:
    """Makes sure of `sg_conv_forward_<dtype>` (reads x and w, writes y; a range of images). With
    `rows` (`wide_rows`) it computes vectors of channels, else vectors of positions."""
    element = Element.of(dtype, module.target)
    name = _name("forward", element, depthwise, rows)
    if module.has(name):
        return name
    run, more = _pass_of(module, element, depthwise, rows)
    f = Code(module, name, CONV_PARAMS, element, COLD)
    sizes = _Sizes(f)
    plan = _new_plan(f, _forward_values(f, sizes))
    with f.loop(0, sizes[Geometry.GROUPS]) as g:
        o = f.mul(g, sizes.group_o)
        f.set_slot(plan, Plan.FIRST_ROW, o)
        x = f.at("%x", f.multiply_sum((f.mul(g, sizes.group_c), sizes.plane)))
        w, y = f.at("%w", f.mul(o, sizes.products)), f.at("%y", f.mul(o, sizes.positions))
        f.stmt(
            f"call void @{run}(ptr {plan}, ptr null, ptr {x}, ptr {w}, ptr {y}, ptr %workspace, "
            f"ptr %epilogue, ptr %context, i64 %begin, i64 %end{more})"
        )
    f.leave()
    f.finish()
    return name


def weight_parts(
    target: Target, dtype: str, outputs: DimLike, groups: int, taps: DimLike, depthwise: bool
) -> DimLike:
    """How many parts the gradient of weights [outputs, taps] can be shared in: output channels if
    depthwise; else, in each block of output channels of a group, taps."""
    if depthwise:
        return outputs
    block = channel_block(Element.of(dtype, target))
    blocks = floor_div(floor_div(outputs, groups) + (block - 1), block)
    return blocks * groups * taps


def require_conv_grad_weight(
    module: Module, dtype: str, *, depthwise: bool = False, rows: int = 0
) -> str:
    """Makes sure of `sg_conv_grad_weight_<rows>_<dtype>` (reads x and y, the gradient of the
    output; writes w; a range of `weight_parts`), whose tile has so many rows: `tile_rows` of the
    number of taps is a good one."""
    element = Element.of(dtype, module.target)
    height = rows or tile_rows(module.target, None)
    name = _name("grad_weight", element, depthwise, height)
    if module.has(name):
        return name
    run = (require_depthwise_weight_pass if depthwise else require_weight_pass)(module, element)
    tile = require_rows_tile(module, element, height)
    f = Code(module, name, CONV_PARAMS, element, COLD)
    sizes = _Sizes(f)
    plan = _new_plan(f, _forward_values(f, sizes))
    # The parts of a block are its taps; of depthwise weights a block is a channel, of one part.
    block = "1" if depthwise else str(channel_block(element))
    parts = "1" if depthwise else f.maximum(sizes.products, 1)
    blocks = f.maximum(f.ceil_div(sizes.group_o, block), 1)
    with f.loop(f.div("%begin", parts), f.ceil_div("%end", parts)) as at:
        g, r = f.div(at, blocks), f.mul(f.rem(at, blocks), block)
        o = f.add(f.mul(g, sizes.group_o), r)
        channels = f.minimum(f.sub(sizes.group_o, r), block)
        start = f.mul(at, parts)
        t0 = "0" if depthwise else f.maximum(f.sub("%begin", start), 0)
        t1 = sizes.products if depthwise else f.minimum(f.sub("%end", start), parts)
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


def require_conv_grad_input(
    module: Module, dtype: str, *, depthwise: bool = False, rows: int = 0
) -> str:
    """Makes sure of `sg_conv_grad_input_<dtype>` (reads y, the gradient of the output, and w;
    writes x; a range of images). Also the forward of a transposed convolution."""
    element = Element.of(dtype, module.target)
    name = _name("grad_input", element, depthwise, rows)
    if module.has(name):
        return name
    run, more = _pass_of(module, element, depthwise, rows)
    pack = (require_pack_terms if more else require_pack_weights)(module, element)
    axis = _require_phase_axis(module, element)
    f = Code(module, name, CONV_PARAMS, element, COLD)
    G = Geometry
    sizes = _Sizes(f)
    slots = f.emit("alloca [10 x i64], align 64")
    rows_of, cols_of = slots, f.emit(f"getelementptr i64, ptr {slots}, i64 5")
    plan = _new_plan(f, _input_values(f, sizes))
    phases_h = f.minimum(sizes[G.STRIDE_H], sizes[G.H])
    phases_w = f.minimum(sizes[G.STRIDE_W], sizes[G.W])
    single = f.both(f.compare("eq", phases_h, 1), f.compare("eq", phases_w, 1))
    epilogue = f.select(single, "%epilogue", "null", "ptr")
    with f.loop(0, sizes[G.GROUPS]) as g:
        c, o = f.mul(g, sizes.group_c), f.mul(g, sizes.group_o)
        f.set_slot(plan, Plan.FIRST_ROW, c)
        y, w = f.at("%y", f.mul(o, sizes.positions)), f.at("%w", f.mul(o, sizes.products))
        x = f.at("%x", f.mul(c, sizes.plane))
        with f.loop(0, phases_h) as h, f.loop(0, phases_w) as v:
            f.call(axis, ("ptr", rows_of), ("i64", h), *(("i64", sizes[s]) for s in (
                G.KH, G.STRIDE_H, G.PAD_TOP, G.DILATION_H)))  # fmt: skip
            f.call(axis, ("ptr", cols_of), ("i64", v), *(("i64", sizes[s]) for s in (
                G.KW, G.STRIDE_W, G.PAD_LEFT, G.DILATION_W)))  # fmt: skip
            first_tap = _emit_set_phase(f, plan, sizes, (rows_of, cols_of), (h, v), single)
            to_x = f.at(x, f.add(f.mul(h, sizes[G.W]), v))
            f.stmt(
                f"call void @{run}(ptr {plan}, ptr @{pack}, ptr {y}, ptr {f.at(w, first_tap)}, "
                f"ptr {to_x}, ptr %workspace, ptr {epilogue}, ptr %context, i64 %begin, "
                f"i64 %end{more})"
            )
        # Phases interleave in x, so its blocks are finished only after the last of them.
        left = f.both(f.emit(f"icmp ne ptr %epilogue, {epilogue}"),
                      f.compare("sgt", f.mul(sizes.group_c, sizes.plane), 0))  # fmt: skip
        end = f.select(left, "%end", "%begin")
        rows_end = f.add(c, sizes.group_c)
        with f.loop("%begin", end) as n:
            f.stmt(f"call void %epilogue(ptr %context, i64 {n}, i64 {c}, i64 {rows_end}, i64 0, "
                   f"i64 {sizes.plane})")  # fmt: skip
    f.leave()
    f.finish()
    return name


def _input_values(f: Code, sizes: _Sizes) -> dict[Plan, str | int]:
    """The part of the plan that takes y to x which all phases share, for one group."""
    G = Geometry
    return {
        Plan.SRC_IMAGE: f.mul(sizes[G.O], sizes.positions),
        Plan.SRC_CHANNEL: sizes.positions,
        Plan.SRC_H: sizes[G.OH],
        Plan.SRC_W: sizes[G.OW],
        Plan.CHANNELS: sizes.group_o,
        Plan.STRIDE_H: 1,
        Plan.STRIDE_W: 1,
        Plan.ROWS: sizes.group_c,
        Plan.DST_IMAGE: f.mul(sizes[G.C], sizes.plane),
        Plan.DST_ROW: sizes.plane,
        Plan.DST_COL: sizes[G.STRIDE_W],
        Plan.W_ROW: sizes.taps,
        Plan.W_CHANNEL: sizes.products,
    }


# What `sg_conv_phase` writes: the first tap of a phase, the distance to its next one, how many
# there are, the position of y that the first one reads at the phase's first position, and the
# change of that position from tap to tap.
TAP, TAP_STEP, TAP_COUNT, START, START_STEP = range(5)


def _require_phase_axis(module: Module, element: Element) -> str:
    """`void @sg_conv_phase(out, phase, taps, stride, pad, dilation)`: along one axis, the taps k
    with phase + pad - k * dilation = 0 modulo stride, and the positions of y that they read.

    They are an arithmetic progression of distance stride / gcd(stride, dilation).
    """
    name = "sg_conv_phase"
    if module.has(name):
        return name
    params = "ptr out, i64 phase, i64 taps, i64 stride, i64 pad, i64 dilation"
    f = Code(module, name, params, element, COLD)
    # Euclid's algorithm; a turn of the loop for each bit is more than it can need.
    with f.carrying(0, 64, ("i64", "%stride"), ("i64", "%dilation")) as turn:
        a, b = turn.values
        more = f.compare("ne", b, 0)
        remainder = f.rem(a, f.select(more, b, 1))
        turn.following = [f.select(more, b, a), f.select(more, remainder, 0)]
        turn.step = f.select(more, 1, 64)
    divisor = turn.after[0]
    step = f.div("%stride", divisor)
    origin = f.add("%phase", "%pad")
    with f.carrying(0, f.minimum(step, "%taps"), ("i64", "-1")) as turn:
        offset = f.sub(origin, f.mul(turn.index, "%dilation"))
        fits = f.compare("eq", f.emit(f"srem i64 {offset}, %stride"), 0)
        turn.following = [f.select(fits, turn.index, turn.values[0])]
    some = f.compare("sge", turn.after[0], 0)
    tap = f.maximum(turn.after[0], 0)
    start = f.sub(origin, f.mul(tap, "%dilation"))
    f.set_slot("%out", TAP, tap)
    f.set_slot("%out", TAP_STEP, step)
    f.set_slot("%out", TAP_COUNT, f.select(some, f.ceil_div(f.sub("%taps", tap), step), 0))
    f.set_slot("%out", START, f.emit(f"sdiv i64 {start}, %stride"))
    f.set_slot("%out", START_STEP, f.sub(0, f.div("%dilation", divisor)))
    f.leave()
    f.finish()
    return name


def _emit_set_phase(
    f: Code, plan: str, sizes: _Sizes, axes: tuple[str, str], phase: tuple[str, str], single: str
) -> str:
    """Completes the plan for one phase; -> the offset of its first tap in the weights."""
    G = Geometry
    out_h = f.ceil_div(f.sub(sizes[G.H], phase[0]), sizes[G.STRIDE_H])
    out_w = f.ceil_div(f.sub(sizes[G.W], phase[1]), sizes[G.STRIDE_W])
    positions = f.mul(out_h, out_w)
    f.set_slot(plan, Plan.OUT_W, out_w)
    f.set_slot(plan, Plan.POSITIONS, positions)
    # The only phase covers x without gaps, so a whole image is one run.
    f.set_slot(plan, Plan.RUN, f.select(single, positions, out_w))
    f.set_slot(plan, Plan.DST_COL, f.select(single, 1, sizes[G.STRIDE_W]))
    f.set_slot(plan, Plan.DST_RUN, f.mul(sizes[G.STRIDE_H], sizes[G.W]))
    targets = [
        (Plan.TAPS_H, Plan.ROW_0, Plan.ROW_STEP, Plan.W_TAP_H, sizes[G.KW]),
        (Plan.TAPS_W, Plan.COL_0, Plan.COL_STEP, Plan.W_TAP_W, "1"),
    ]
    first = []
    for axis, (count, start, start_step, tap_step, distance) in zip(axes, targets):
        f.set_slot(plan, count, f.slot(axis, TAP_COUNT))
        f.set_slot(plan, start, f.slot(axis, START))
        f.set_slot(plan, start_step, f.slot(axis, START_STEP))
        f.set_slot(plan, tap_step, f.mul(f.slot(axis, TAP_STEP), distance))
        first.append(f.mul(f.slot(axis, TAP), distance))
    return f.add(*first)
