"""What the convolution kernels share: geometry, the plan of one image pass, loops and masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum

from .gemm_emit import Element, Emitter

CONV_PARAMS = ("ptr geometry, ptr x, ptr w, ptr y, ptr workspace, ptr epilogue, ptr context, "
               "i64 begin, i64 end")  # fmt: skip
KC = 768  # at most this many products to a block of the sum: see `emit_box_steps`


class Geometry(IntEnum):
    """The slots of the geometry array that callers pass (i64 each)."""

    N = 0
    C = 1
    H = 2
    W = 3
    O = 4  # noqa: E741 - the letter that the layouts use
    KH = 5
    KW = 6
    OH = 7
    OW = 8
    STRIDE_H = 9
    STRIDE_W = 10
    PAD_TOP = 11
    PAD_LEFT = 12
    DILATION_H = 13
    DILATION_W = 14
    GROUPS = 15


class Plan(IntEnum):
    """The slots of a plan: one pass over images that sums taps of a source plane.

    out[n, r, i, j] = sum over c < CHANNELS, h < TAPS_H, w < TAPS_W of weight[r, c, h, w] *
    source[n, c, i * STRIDE_H + ROW_0 + h * ROW_STEP, j * STRIDE_W + COL_0 + w * COL_STEP],
    where a source outside of the plane counts as zero. Forward is one such pass; the gradient of
    the input is one for each of its stride_h * stride_w phases. Strides count elements.
    """

    SRC_IMAGE = 0
    SRC_CHANNEL = 1
    SRC_H = 2
    SRC_W = 3
    CHANNELS = 4
    TAPS_H = 5
    TAPS_W = 6
    ROW_0 = 7
    ROW_STEP = 8
    COL_0 = 9
    COL_STEP = 10
    STRIDE_H = 11
    STRIDE_W = 12
    OUT_W = 13  # positions in a row
    POSITIONS = 14  # positions of an image
    ROWS = 15  # output channels r
    DST_IMAGE = 16
    DST_ROW = 17  # from channel to channel
    DST_RUN = 18  # from run to run
    DST_COL = 19  # from position to position inside a run
    RUN = 20  # positions at one distance: a row, or the whole image where rows adjoin
    W_ROW = 21  # weights: from output channel to output channel
    W_CHANNEL = 22
    W_TAP_H = 23
    W_TAP_W = 24
    FIRST_ROW = 25  # channel number of r = 0, for the epilogue
    # The box of the sum that is packed now: a range of channels, of tap rows, of tap columns.
    BOX_C = 26
    BOX_C_COUNT = 27
    BOX_H = 28
    BOX_H_COUNT = 29
    BOX_W = 30
    BOX_W_COUNT = 31


class Code(Emitter):
    """`Emitter` with what convolution needs more: carried loops, ranges of lanes, slots."""

    def slot(self, block: str, index: int | str) -> str:
        """The i64 in slot `index` of an array."""
        pointer = self._slot_address(block, index)
        return self.emit(f"load i64, ptr {pointer}, align 8")

    def slots(self, block: str, *indices: int) -> list[str]:
        return [self.slot(block, i) for i in indices]

    def set_slot(self, block: str, index: int | str, value: str | int) -> None:
        pointer = self._slot_address(block, index)
        self.stmt(f"store i64 {value}, ptr {pointer}, align 8")

    def _slot_address(self, block: str, index: int | str) -> str:
        place = index if isinstance(index, str) else int(index)
        return self.emit(f"getelementptr i64, ptr {block}, i64 {place}")

    def sum(self, *values: str | int) -> str:
        total = str(values[0])
        for value in values[1:]:
            total = self.add(total, value)
        return total

    def multiply_sum(self, *pairs: tuple[str | int, str | int]) -> str:
        """The sum of the products of `pairs`."""
        return self.sum(*[self.mul(a, b) for a, b in pairs])

    def rem(self, a: str | int, b: str | int) -> str:
        """The remainder of two non-negative values."""
        return self.emit(f"urem i64 {a}, {b}")

    def ceil_div(self, a: str | int, b: str | int) -> str:
        return self.div(self.add(a, self.sub(b, 1)), b)

    @contextmanager
    def choice(self, condition: str) -> Iterator[Choice]:
        """`if (condition) { ... }` whose values are joined afterwards with `Choice.phi`."""
        then, done = self.new_label("then"), self.new_label("joined")
        chosen = Choice(self, self.block)
        self.branch_if(condition, then, done)
        self.label(then)
        yield chosen
        chosen.taken = self.block
        self.branch(done)
        self.label(done)

    @contextmanager
    def carrying(
        self, start: str | int, stop: str | int, *values: tuple[str, str]
    ) -> Iterator[Turn]:
        """`while (i < stop) { ... i += step; }` with `values` (type, first value) that go from
        turn to turn in registers; set `following` (and `step`, else 1) on what it yields."""
        body, done = self.new_label("turn"), self.new_label("done")
        before = self.block
        self.branch_if(self.compare("slt", start, stop), body, done)
        self.label(body)
        mark = len(self._lines)
        index = self.reserve()
        turn = Turn(index, [self.reserve() for _ in values])
        yield turn
        # `freeze` hides the inductions from loop-strength reduction, as `Emitter.advance` says.
        new_values = [
            self.emit(f"freeze {ty} {new}") if ty in ("i64", "ptr") else new
            for new, (ty, _) in zip(turn.following, values, strict=True)
        ]
        end = self.block
        following = self.reserve()
        self.advance(following, "i64", f"add i64 {index}, {turn.step}")
        self.branch_if(self.compare("slt", following, stop), body, done)
        phis = [f"  {index} = phi i64 [{start}, %{before}], [{following}, %{end}]"]
        for name, (ty, first), new in zip(turn.values, values, new_values):
            phis.append(f"  {name} = phi {ty} [{first}, %{before}], [{new}, %{end}]")
        self._lines[mark:mark] = phis
        self.label(done)
        for (ty, first), new in zip(values, new_values):
            turn.after.append(self.emit(f"phi {ty} [{first}, %{before}], [{new}, %{end}]"))


class Choice:
    """The join after `Code.choice`: a value of the taken branch, or else one from before."""

    def __init__(self, f: Code, before: str) -> None:
        self._f, self._before, self.taken = f, before, ""

    def phi(self, ty: str, taken: str, otherwise: str) -> str:
        return self._f.emit(f"phi {ty} [{taken}, %{self.taken}], [{otherwise}, %{self._before}]")


class Turn:
    """One turn of `Code.carrying`: its index and carried values, and those of the next turn."""

    def __init__(self, index: str, values: list[str]) -> None:
        self.index = index
        self.values = values
        self.following: list[str] = []
        self.after: list[str] = []  # the values after the loop
        self.step: str | int = 1


def with_lanes(element: Element, lanes: int) -> Element:
    """An element of shorter vectors, which the names of its functions tell; 0 is any."""
    if lanes in (0, element.lanes):
        return element
    return replace(element, dtype=f"{element.dtype}x{lanes}", lanes=lanes)


def multiply_add(f: Code, ty: str, a: str, b: str, c: str) -> str:
    """a * b + c: fused and rounded once for floats, wrapping for integers."""
    if f.element.is_float:
        return f.call_intrinsic("llvm.fma", ty, a, b, c)
    return f.emit(f"add {ty} {f.emit(f'mul {ty} {a}, {b}')}, {c}")


def aligned(f: Code, pointer: str) -> str:
    """The first address on a 64-byte line from `pointer` on."""
    address = f.emit(f"ptrtoint ptr {pointer} to i64")
    gap = f.emit(f"and i64 {f.sub(0, address)}, 63")
    return f.at_byte(pointer, gap)


def emit_box_steps(
    f: Code, channels: str, taps_h: str, taps_w: str, limit: int
) -> tuple[str, str, str]:
    """How many channels, tap rows and tap columns one block of at most `limit` taps takes.

    Whole channels while a channel's taps fit, evenly many in each block; else rows of one channel;
    else parts of one row: so ascending boxes are ascending taps. It depends on these extents alone,
    as the bits of a sum must.
    """
    taps_h, taps_w = f.maximum(taps_h, 1), f.maximum(taps_w, 1)
    taps = f.mul(taps_h, taps_w)
    whole = f.compare("sle", taps, limit)
    most = f.maximum(f.div(limit, taps), 1)
    blocks = f.maximum(f.ceil_div(channels, most), 1)
    step_c = f.maximum(f.ceil_div(channels, blocks), 1)
    step_h = f.select(whole, taps_h, f.maximum(f.div(limit, taps_w), 1))
    return step_c, step_h, f.minimum(taps_w, limit)


def emit_set_box(f: Code, starts: tuple[str, str, str], steps: tuple[str, str, str]) -> list[str]:
    """Writes the box of the sum from `starts` on to %plan; -> its extents."""
    extents = f.slots("%plan", Plan.CHANNELS, Plan.TAPS_H, Plan.TAPS_W)
    counts = [f.minimum(s, f.sub(e, b)) for s, e, b in zip(steps, extents, starts)]
    for slot, start, count in zip((Plan.BOX_C, Plan.BOX_H, Plan.BOX_W), starts, counts):
        f.set_slot("%plan", slot, start)
        f.set_slot("%plan", slot + 1, count)
    return counts
