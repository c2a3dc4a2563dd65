"""From the geometry of a convolution to the plans of its passes over images.

Forward is one pass. The gradient of the input is one for each of the stride_h * stride_w phases:
the elements of x whose rows and columns have equal remainders modulo the strides are reached by the
same taps, and by no others.
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import Code, Geometry, Plan
from .gemm_emit import CONTROL, Element


class Sizes:
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


def new_plan(f: Code, values: dict[Plan, str | int]) -> str:
    plan = f.emit(f"alloca [{len(Plan)} x i64], align 64")
    for slot, value in values.items():
        f.set_slot(plan, slot, value)
    return plan


def forward_values(f: Code, sizes: Sizes) -> dict[Plan, str | int]:
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


def input_values(f: Code, sizes: Sizes) -> dict[Plan, str | int]:
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


# What `require_phase_axis` has written: the first tap of a phase, the distance to its next one, how
# many there are, the position of y that the first one reads at the phase's first position, and the
# change of that position from tap to tap.
TAP, TAP_STEP, TAP_COUNT, START, START_STEP = range(5)


def require_phase_axis(module: Module, element: Element) -> str:
    """`void @sg_conv_phase_<dtype>(out, phase, taps, stride, pad, dilation)`: along one axis, the
    taps k with phase + pad - k * dilation = 0 modulo stride, and the positions of y they read.

    They are an arithmetic progression of distance stride / gcd(stride, dilation).
    """
    name = f"sg_conv_phase_{element.dtype}"
    if module.has(name):
        return name
    params = "ptr out, i64 phase, i64 taps, i64 stride, i64 pad, i64 dilation"
    f = Code(module, name, params, element, CONTROL)
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


def emit_set_phase(
    f: Code, plan: str, sizes: Sizes, axes: tuple[str, str], phase: tuple[str, str], single: str
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
