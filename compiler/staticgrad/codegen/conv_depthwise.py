"""Convolution with few channels to a group: depthwise above all, where each has its own window.

    for a group of an image, for a stretch of its columns, for a band of its rows:
        copy what they read with the zeros around it (`conv_depthwise_plane`)
        forward, input: add tap columns to four rows' sums in registers (`conv_depthwise_rows`)
        weights: add rows to tap columns' sums in registers (`conv_depthwise_taps`)

The functions have the signature of all convolutions (`conv`), and take a range of
`depthwise_parts`. The heights of windows, strides and steps are in the text of kernels, of which a
program compiles those that its windows want. The gradient of the input is a pass for each phase of
the stride, with the taps turned: of windows of half the size under a stride of 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from .builder import Module
from .conv_depthwise_plane import emit_layout, require_pack
from .conv_depthwise_rows import require_rows
from .conv_depthwise_taps import require_clear, require_lane_sums, require_taps
from .conv_depthwise_window import GROUP, Kind, Pass, Window, lines, outputs_together
from .conv_emit import CONV_PARAMS, Code, Geometry, Plan, aligned, with_lanes
from .conv_plan import Sizes, emit_set_phase, require_phase_axis
from .gemm_emit import CONTROL, Element


class Drive:
    """A function that takes planes through kernels, and its workspace."""

    def __init__(self, module: Module, name: str, element: Element, window: Window) -> None:
        self.f = f = Code(module, name, CONV_PARAMS, element, CONTROL)
        self.window = window
        self.pack = require_pack(module, element, window.stride[1])
        self.columns = window.vectors(element) * element.lanes
        plane, self.pass_bytes = map(lines, window.space(element))
        self.plane = aligned(f, "%workspace")
        self.passes = f.at_byte(self.plane, plane)

    def pass_at(self, index: str) -> str:
        return self.f.at_byte(self.passes, self.f.mul(index, self.pass_bytes))

    def set(self, at: str, values: Mapping[Plan | Pass, str | int]) -> None:
        """Completes the pass at `at`."""
        for slot, value in values.items():
            self.f.set_slot(at, slot, value)
        emit_layout(self.f, at, self.columns, self.window.channels)

    def set_forward(self, sizes: Sizes) -> None:
        """The only pass of the image."""
        G = Geometry
        self.set(self.passes, {
            Plan.SRC_H: sizes[G.H], Plan.SRC_W: sizes[G.W],
            Plan.TAPS_H: sizes[G.KH], Plan.TAPS_W: sizes[G.KW],
            Plan.ROW_0: self.f.sub(0, sizes[G.PAD_TOP]), Plan.ROW_STEP: sizes[G.DILATION_H],
            Plan.COL_0: self.f.sub(0, sizes[G.PAD_LEFT]), Plan.COL_STEP: sizes[G.DILATION_W],
            Plan.STRIDE_H: sizes[G.STRIDE_H], Plan.STRIDE_W: sizes[G.STRIDE_W],
            Plan.OUT_W: sizes[G.OW], Plan.DST_RUN: sizes[G.OW], Plan.DST_COL: 1,
            Plan.W_TAP_H: sizes[G.KW], Plan.W_TAP_W: 1, Plan.W_ROW: sizes.products,
            Plan.W_CHANNEL: sizes.taps, Plan.CHANNELS: sizes.group_c,
            Plan.DST_ROW: sizes.positions,
            Pass.OUT_H: sizes[G.OH], Pass.W_FIRST: 0, Pass.DST_FIRST: 0,
        })  # fmt: skip

    @contextmanager
    def bands(self, at: str) -> Iterator[Band]:
        """The parts of the output that are computed from planes together."""
        f = self.f
        row_0, out_h, out_w, stride, taps_h, step, band = f.slots(
            at, Plan.ROW_0, Pass.OUT_H, Plan.OUT_W, Plan.STRIDE_H, Plan.TAPS_H, Plan.ROW_STEP,
            Pass.BAND,
        )  # fmt: skip
        reach = f.add(f.mul(f.maximum(f.sub(taps_h, 1), 0), step), 1)
        some = f.select(f.compare("sgt", out_h, 0), out_w, 0)
        with f.loop(0, some, self.columns) as j0, f.loop(0, out_h, band) as i0:
            j1 = f.minimum(f.add(j0, self.columns), out_w)
            i1 = f.minimum(f.add(i0, band), out_h)
            row = f.add(f.mul(i0, stride), row_0)
            count = f.add(f.mul(f.sub(f.sub(i1, i0), 1), stride), reach)
            yield Band(self, at, (i0, i1), (j0, j1), row, count)


class Band:
    """Some rows and columns of the output, and the rows of the image that they read."""

    def __init__(
        self, drive: Drive, at: str, rows: tuple[str, str], columns: tuple[str, str], first: str,
        count: str,
    ) -> None:  # fmt: skip
        self.drive, self.at, self.rows, self.columns = drive, at, rows, columns
        self.first, self.count = first, count

    def pack(self, src: str, plane: str) -> None:
        d = self.drive
        d.f.call(d.pack, ("ptr", self.at), ("ptr", plane), ("ptr", src), ("i64", self.first),
                 ("i64", self.count), ("i64", self.columns[0]))  # fmt: skip

    def compute(self, kernel: str, outputs: tuple[str, str], moved: int) -> None:
        """Calls a kernel; `outputs` are its `weights` and `dst`, of which the one numbered `moved`
        has the output's rows."""
        f, lanes, at, start = self.drive.f, self.drive.f.element.lanes, self.at, self.drive.plane
        (i0, i1), (j0, j1) = self.rows, self.columns
        spread, flat = f.slots(at, Plan.DST_COL, Pass.FLAT)
        flat = f.compare("ne", flat, 0)

        def call(plane: str, *ends: str | int, first: str | int = 0) -> None:
            pointers = list(outputs)
            pointers[moved] = f.at(pointers[moved], f.mul(first, spread))
            words = [*(f"ptr {p}" for p in (at, plane, *pointers)), *(f"i64 {n}" for n in ends)]
            f.stmt(f"call void {kernel}({', '.join(words)})")

        with f.when(f.negate(flat)):
            call(start, i0, i1, j0, j1)
        with f.when(flat):
            # Vectors as rows of one vector; what is left is a shorter row.
            width = f.sub(j1, j0)
            rows = f.div(width, lanes)
            full = f.mul(rows, lanes)
            rest = f.sub(width, full)
            some = f.emit(f"zext i1 {f.compare('sgt', rest, 0)} to i64")
            call(start, 0, rows, 0, lanes, first=j0)
            call(f.at(start, full), 0, some, 0, rest, first=f.add(j0, full))


def _name(kind: str, attr: Sequence[int], element: Element) -> str:
    return f"sg_conv_depthwise_{kind}_{'_'.join(map(str, attr))}_{element.dtype}"


def require_depthwise_forward(
    module: Module, dtype: str, window: Sequence[int], lanes: int = 0
) -> str:
    """Makes sure of the function for one kind of window: reads x and w, writes y."""
    element, kind = with_lanes(Element.of(dtype, module.target), lanes), Kind(*window)
    name = _name("forward", window, element)
    if module.has(name):
        return name
    outputs = outputs_together(element, kind.group_o)
    kernels = [(require_rows(module, element, kind.forward, 1, outputs), kind.forward)]
    d = Drive(module, name, element, kind.forward)
    sizes = Sizes(d.f)
    d.set_forward(sizes)
    operands = (("%y", sizes.positions, kind.group_o), ("%x", sizes.plane, kind.group_c))
    _emit_groups(d, sizes, "1", kernels, *operands)
    return name


def require_depthwise_grad_input(
    module: Module, dtype: str, window: Sequence[int], lanes: int = 0
) -> str:
    """The same for the gradient of the input: reads y, the gradient of the output, and w; writes
    x."""
    element, kind = with_lanes(Element.of(dtype, module.target), lanes), Kind(*window)
    name = _name("grad_input", window, element)
    if module.has(name):
        return name
    windows = kind.backward
    outputs = outputs_together(element, kind.group_c)
    kernels = [(require_rows(module, element, w, kind.stride_w, outputs), w) for w in windows]
    axis = require_phase_axis(module, element)
    d = Drive(module, name, element, windows[0])
    f, sizes, G = d.f, Sizes(d.f), Geometry
    rows_of, cols_of = (f.emit("alloca [5 x i64], align 64") for _ in range(2))
    phases_h = f.minimum(sizes[G.STRIDE_H], sizes[G.H])
    phases_w = f.minimum(sizes[G.STRIDE_W], sizes[G.W])
    with f.loop(0, phases_h) as h, f.loop(0, phases_w) as v:
        at = d.pass_at(f.add(f.mul(h, phases_w), v))
        for axis_of, phase, slots in (
            (rows_of, h, (G.KH, G.STRIDE_H, G.PAD_TOP, G.DILATION_H)),
            (cols_of, v, (G.KW, G.STRIDE_W, G.PAD_LEFT, G.DILATION_W)),
        ):
            f.call(axis, ("ptr", axis_of), ("i64", phase), *(("i64", sizes[s]) for s in slots))
        first = emit_set_phase(f, at, sizes, (rows_of, cols_of), (h, v), "false")
        d.set(at, {
            Plan.SRC_H: sizes[G.OH], Plan.SRC_W: sizes[G.OW], Plan.STRIDE_H: 1, Plan.STRIDE_W: 1,
            Plan.W_ROW: sizes.taps, Plan.W_CHANNEL: sizes.products, Plan.CHANNELS: sizes.group_o,
            Plan.DST_ROW: sizes.plane,
            Pass.OUT_H: f.ceil_div(f.sub(sizes[G.H], h), sizes[G.STRIDE_H]),
            Pass.DST_FIRST: f.add(f.mul(h, sizes[G.W]), v), Pass.W_FIRST: _emit_turn(f, at, first),
        })  # fmt: skip
    operands = (("%x", sizes.plane, kind.group_c), ("%y", sizes.positions, kind.group_o))
    _emit_groups(d, sizes, f.mul(phases_h, phases_w), kernels, *operands)
    return name


def _emit_turn(f: Code, at: str, first: str) -> str:
    """Turns a pass whose taps walk up and to the left; -> its first tap then."""
    for count, start, step, tap in (
        (Plan.TAPS_H, Plan.ROW_0, Plan.ROW_STEP, Plan.W_TAP_H),
        (Plan.TAPS_W, Plan.COL_0, Plan.COL_STEP, Plan.W_TAP_W),
    ):
        taps, begin, forth, distance = f.slots(at, count, start, step, tap)
        last = f.maximum(f.sub(taps, 1), 0)
        first = f.add(first, f.mul(last, distance))
        f.set_slot(at, start, f.add(begin, f.mul(last, forth)))
        f.set_slot(at, step, f.sub(0, forth))
        f.set_slot(at, tap, f.sub(0, distance))
    # A phase without a tap row has no tap at all.
    taps_h, taps_w = f.slots(at, Plan.TAPS_H, Plan.TAPS_W)
    f.set_slot(at, Plan.TAPS_W, f.select(f.compare("eq", taps_h, 0), 0, taps_w))
    return first


@contextmanager
def _groups(f: Code, parts: int) -> Iterator[tuple[str, str, str]]:
    """For %begin to %end: (group, its first part, its last part), of so many parts to a group."""
    with f.carrying("%begin", "%end") as turn:
        first = f.rem(turn.index, parts)
        last = f.minimum(f.add(first, f.sub("%end", turn.index)), parts)
        yield f.div(turn.index, parts), first, last
        turn.step = f.sub(last, first)


Operand = tuple[str, str, int]  # pointer, elements of a channel, channels of a group


def _emit_groups(
    d: Drive, sizes: Sizes, passes: str, kernels: list[tuple[str, Window]], result: Operand,
    source: Operand,
) -> None:  # fmt: skip
    """The parts from %begin to %end, which are channels of the result; those of a group, which read
    the same planes, together."""
    f, outputs = d.f, outputs_together(d.f.element, result[2])
    groups = sizes[Geometry.GROUPS]
    with _groups(f, result[2] // outputs) as (p, begin, end):
        n, g = f.div(p, groups), f.rem(p, groups)
        low, high = f.mul(begin, outputs), f.mul(end, outputs)
        src, dst = (f.at(o[0], f.mul(p, f.mul(o[1], o[2]))) for o in (source, result))
        weights = f.at("%w", f.mul(g, f.mul(sizes.products, sizes.group_o)))
        with f.loop(0, passes) as q:
            at = d.pass_at(q)
            w_first, dst_first, taps_h, w_row, plane = f.slots(
                at, Pass.W_FIRST, Pass.DST_FIRST, Plan.TAPS_H, Plan.W_ROW, Pass.PLANE
            )
            function = f"@{kernels[0][0]}"
            for other, window in kernels[1:]:
                this = f.compare("eq", taps_h, window.taps[0])
                function = f.select(this, f"@{other}", function, "ptr")
            from_w, to = f.at(weights, w_first), f.at(dst, dst_first)
            with d.bands(at) as band:
                with f.loop(0, source[2]) as c:
                    band.pack(f.at(src, f.mul(c, source[1])), f.at(d.plane, f.mul(c, plane)))
                with f.loop(low, high, outputs) as r:
                    pointers = f.at(from_w, f.mul(r, w_row)), f.at(to, f.mul(r, result[1]))
                    band.compute(function, pointers, 1)
        low, high = (f.add(f.mul(g, result[2]), r) for r in (low, high))
        some = f.both(f.emit("icmp ne ptr %epilogue, null"), f.compare("sgt", result[1], 0))
        with f.when(some):
            f.stmt(f"call void %epilogue(ptr %context, i64 {n}, i64 {low}, i64 {high}, i64 0, "
                   f"i64 {result[1]})")  # fmt: skip
    f.leave()
    f.finish()


def require_depthwise_grad_weight(
    module: Module, dtype: str, window: Sequence[int], lanes: int = 0
) -> str:
    """The same for the gradient of the weights: reads x and y, the gradient of the output; writes
    w; a range of channels."""
    element, kind = with_lanes(Element.of(dtype, module.target), lanes), Kind(*window)
    name = _name("grad_weight", window, element)
    if module.has(name):
        return name
    win = kind.forward._replace(channels=1)  # planes that a kernel reads
    kernel = require_taps(module, element, win, kind.group_o)
    add_up = require_lane_sums(module, element)
    clear = require_clear(module, element)
    d = Drive(module, name, element, win)
    f, sizes = d.f, Sizes(d.f)
    d.set_forward(sizes)
    sums, register = f.at_byte(d.passes, d.pass_bytes), element.lanes * max(element.itemsize, 2)
    with _groups(f, kind.group_o) as (g, begin, end):
        count = f.mul(f.sub(end, begin), sizes.products)
        vectors = f.mul(f.ceil_div(count, GROUP), GROUP)
        f.set_slot(d.passes, Plan.ROWS, f.sub(end, begin))
        f.call(clear, ("ptr", sums), ("i64", vectors))
        with f.loop(0, sizes[Geometry.N]) as n:
            p = f.add(f.mul(n, sizes[Geometry.GROUPS]), g)
            src = f.at("%x", f.mul(p, f.mul(sizes.plane, kind.group_c)))
            gradient = f.add(f.mul(p, kind.group_o), begin)
            gradient = f.at("%y", f.mul(gradient, sizes.positions))
            with d.bands(d.passes) as band, f.loop(0, kind.group_c) as c:
                band.pack(f.at(src, f.mul(c, sizes.plane)), d.plane)
                to = f.at_byte(sums, f.mul(c, f.mul(sizes.taps, register)))
                band.compute(f"@{kernel}", (gradient, to), 0)
        low, high = (f.add(f.mul(g, kind.group_o), o) for o in (begin, end))
        to = f.at("%w", f.mul(low, sizes.products))
        f.call(add_up, ("ptr", sums), ("i64", vectors), ("ptr", to), ("i64", count))
        with f.when(f.emit("icmp ne ptr %epilogue, null")):
            f.stmt(f"call void %epilogue(ptr %context, i64 0, i64 {low}, i64 {high}, i64 0, "
                   f"i64 {sizes.products})")  # fmt: skip
    f.leave()
    f.finish()
    return name
