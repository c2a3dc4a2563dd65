"""Which convolutions of few channels to a group have functions of their own (`conv_depthwise`), and
what those need: planes, passes, sums."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import gcd
from typing import NamedTuple

from staticgrad.ir.dim import DimLike

from .conv_emit import Plan, with_lanes
from .gemm_emit import Element
from .target import Target

BAND_BYTES = 20 * 1024  # what a plane takes of the L1 cache, if no window wants more
MOST_BYTES = 128 * 1024  # what it may take of the L2 cache
MOST_STRIDE = 4
MOST_TAP_ROWS = 32  # which are text
MOST_TAPS = 1024  # of a window
MOST_SUMS = 4096  # vectors: of all taps of a group
# Channels of a group. `conv_channels` and its kin fill vectors or tiles with those of the result: 8
# on 28 x 28 take as long there, 4 twice as long; 3 to 16 on 32 x 32 0.40 ms, here 0.28. Weights are
# summed for each pair of channels: 3 to 16 there 0.33, here 0.27; 3 to 32 0.25 and 0.31.
MOST_CHANNELS = 8  # on both sides
FEW_CHANNELS = 4  # on one side, with up to as many as `MANY_CHANNELS` on the other
MANY_CHANNELS = 64
MOST_PAIRS = 48
GROUP = 8  # sums whose lanes are added up together


def is_halved(element: Element) -> bool:
    """Whether its vectors are half of the target's."""
    return element.lanes < element.target.lanes(max(element.itemsize, 2))


def block_rows(element: Element) -> int:
    """Rows of the output at a time: so many multiply-adds are under way, each of which takes four
    cycles; of halved vectors two begin in a cycle."""
    return 8 if is_halved(element) else 4


class Pass(IntEnum):
    """What follows a `Plan` of one group: distances count elements."""

    OUT_H = len(Plan)  # rows of the output
    W_FIRST = OUT_H + 1  # from the window's start to its first tap
    DST_FIRST = OUT_H + 2
    SPAN = OUT_H + 3  # from phase to phase of a plane's row
    PITCH = OUT_H + 4  # from row to row
    UNIT = OUT_H + 5  # what kernels count rows by
    BAND = OUT_H + 6  # rows of the output that a plane serves
    PLANE = OUT_H + 7  # from channel to channel
    FLAT = OUT_H + 8  # whether the vectors of one row are taken for rows
    OFFSETS = OUT_H + 9  # where each tap column starts in a row


class Window(NamedTuple):
    """An element of the output sums so many taps, each a step from the last one, from stride times
    its position on: rows and columns each; of so many channels."""

    taps: tuple[int, int]
    stride: tuple[int, int]
    step: tuple[int, int]
    channels: int = 1

    def rows_alone(self) -> Window:
        """What kernels depend on. Rows that share nothing are any unit apart (`Pass.UNIT`)."""
        if self.taps[0] == 1:
            return Window(self.taps, (1, 1), (1, 1), self.channels)
        return Window(self.taps, (self.stride[0], 1), (self.step[0], 1), self.channels)

    def reach(self, axis: int) -> int:
        """Rows or columns from the first tap to the last."""
        return (self.taps[axis] - 1) * self.step[axis] + 1

    def rows(self, count: int) -> int:
        """Rows of the image that so many of the output read."""
        return (count - 1) * self.stride[0] + self.reach(0)

    def row_vectors(self, element: Element, vectors: int) -> int:
        """Vectors of a plane's row that serves so many of the output's."""
        columns = vectors * element.lanes + (self.reach(1) - 1) // self.stride[1]
        return self.stride[1] * -(-columns // element.lanes)

    def plane_bytes(self, element: Element, rows: int, vectors: int) -> int:
        size = element.lanes * element.itemsize
        return self.channels * self.rows(rows) * self.row_vectors(element, vectors) * size

    def vectors(self, element: Element) -> int:
        """How many vectors of an output's row are computed from one plane; 0 if none have room. The
        order of a sum depends on it."""
        for count in (16, 8, 4):
            if self.plane_bytes(element, 8, count) <= BAND_BYTES:
                return count
        return 2 if self.plane_bytes(element, block_rows(element), 2) <= MOST_BYTES else 0

    def space(self, element: Element) -> tuple[int, int]:
        """The bytes of a plane, with what the last vector reads beyond it, and those of a pass."""
        vectors = self.vectors(element)
        plane = max(BAND_BYTES, self.plane_bytes(element, block_rows(element), vectors))
        return plane + element.lanes * element.itemsize, (Pass.OFFSETS + self.taps[1]) * 8


class Kind(NamedTuple):
    """The attribute `window` of a template: what its functions' text depends on."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    group_c: int = 1  # channels of a group
    group_o: int = 1

    @property
    def forward(self) -> Window:
        kernel, stride, dilation = self[:2], self[2:4], self[4:6]
        return Window(kernel, stride, dilation, self.group_c)

    @property
    def backward(self) -> list[Window]:
        """The windows of the gradient of the input: of a phase each that has as many tap rows; all
        with the most tap columns that any has. The first one is the largest."""
        window = self.forward
        common = [gcd(s, d) for s, d in zip(window.stride, window.step)]
        apart = [s // n for s, n in zip(window.stride, common)]
        heights = {-(-(self.kernel_h - k) // apart[0]) for k in range(min(apart[0], self.kernel_h))}
        wide = -(-self.kernel_w // apart[1])
        step = self.dilation_h // common[0], self.dilation_w // common[1]
        return [Window((high, wide), (1, 1), step, self.group_o) for high in sorted(heights)[::-1]]

    @property
    def taps(self) -> int:
        """Of a group."""
        return self.group_o * self.group_c * self.kernel_h * self.kernel_w


def depthwise_window(
    target: Target, dtype: str, kernel: Sequence[DimLike], stride: Sequence[int],
    dilation: Sequence[int], group: tuple[DimLike, DimLike] = (1, 1), weight: bool = False,
) -> tuple[int, ...]:  # fmt: skip
    """The attribute `window` of a convolution of one or two dims, with so many channels of the
    input and of the output to a group, or of the gradient of its weights; () where it has to do
    without functions of its own: of many channels, on targets without masks, and for windows that
    reach too far."""
    element = Element.of(dtype, target)
    channels = [c for c in group if isinstance(c, int) and 0 < c <= MANY_CHANNELS]
    if len(channels) < 2 or not element.has_masks:
        return ()
    few, many = sorted(channels)
    if (many > MOST_CHANNELS and few > FEW_CHANNELS) or (weight and few * many > MOST_PAIRS):
        return ()
    axes = [(1, *map(int, values))[-2:] for values in (kernel, stride, dilation)]
    kind = Kind(*(n for axis in axes for n in axis), *channels)
    fits = max(stride) <= MOST_STRIDE and kind.kernel_h <= MOST_TAP_ROWS
    fits = fits and kind.kernel_h * kind.kernel_w <= MOST_TAPS
    fits = fits and (not weight or kind.taps <= MOST_SUMS)
    fits = fits and all(w.vectors(element) for w in (kind.forward, *kind.backward))
    return tuple(kind) if fits else ()


def depthwise_lanes(target: Target, dtype: str, window: Sequence[int], width: DimLike) -> int:
    """The argument `lanes` for rows of so many outputs: half a vector for those that it holds, on
    CPUs that compute whole ones in two parts; 0 is a whole one. It changes no bit."""
    element, kind = Element.of(dtype, target), Kind(*window)
    halved = with_lanes(element, element.lanes // 2)
    if target.vector_bits < 512 or not isinstance(width, int) or width > halved.lanes:
        return 0
    return halved.lanes if min(w.vectors(halved) for w in (kind.forward, *kind.backward)) > 2 else 0


def outputs_together(element: Element, channels: int) -> int:
    """Output channels of so many of a group whose sums have registers: they share what is loaded
    of the image."""
    room = not is_halved(element) and element.target.vector_registers >= 32
    return 2 if room and channels % 2 == 0 else 1


def depthwise_parts(
    target: Target, dtype: str, window: Sequence[int], lanes: int, images: DimLike, groups: int,
    kind: str,
) -> DimLike:  # fmt: skip
    """How many parts the work has: channels of the output for the gradient of the weights, else
    channels of the result that are computed together, of each image."""
    attr, element = Kind(*window), with_lanes(Element.of(dtype, target), lanes)
    if kind == "conv_grad_weight":
        return groups * attr.group_o
    channels = attr.group_c if kind == "conv_grad_input" else attr.group_o
    return images * (groups * (channels // outputs_together(element, channels)))


def depthwise_workspace_bytes(
    target: Target, dtype: str, window: Sequence[int], lanes: int = 0
) -> int:
    """The scratch memory of any of the three functions: a plane, passes, sums of taps."""
    element, kind = with_lanes(Element.of(dtype, target), lanes), Kind(*window)
    most = [w.space(element) for w in (kind.forward, kind.backward[0])]
    plane, pass_bytes = (max(sizes) for sizes in zip(*most))
    sums = (kind.taps + GROUP) * (target.vector_bits // 8)
    return 64 + lines(plane) + lines(pass_bytes) * kind.stride_h * kind.stride_w + sums


def lines(size: int) -> int:
    return -(-size // 64) * 64
