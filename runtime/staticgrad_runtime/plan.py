"""Where every temporary lives in one arena: lifetimes and sizes -> offsets."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arena import ALIGN_BYTES

Ints = NDArray[np.int64]

# Below this many buffers Python places them in less than the native loop takes to compile.
NATIVE_FROM = 64


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes, one per buffer, all multiples of 64.

    `lower_bound_bytes` is the most that is alive at one step; no plan can need less.
    """

    offsets: Ints
    peak_bytes: int
    lower_bound_bytes: int


class Planner:
    """Places buffers whose lifetimes are fixed and whose sizes come with each `solve`."""

    def __init__(self, first: Sequence[int], last: Sequence[int]) -> None:
        self.first = np.asarray(first, np.int64)
        self.last = np.asarray(last, np.int64)

    def solve(self, size_bytes: Sequence[int]) -> Plan:
        """A plan for these sizes. Buffers of no bytes get offset 0."""
        sizes = -(-np.asarray(size_bytes, np.int64) // ALIGN_BYTES) * ALIGN_BYTES
        offsets = place(self.first, self.last, sizes)
        peak = int((offsets + sizes).max(initial=0))
        return Plan(offsets, peak, lower_bound(self.first, self.last, sizes))


def lower_bound(first: Ints, last: Ints, sizes: Ints) -> int:
    """The largest sum of sizes that are alive at one step."""
    if sizes.size == 0:
        return 0
    order = np.argsort(np.concatenate([first, last + 1]), kind="stable")
    steps = np.concatenate([first, last + 1])[order]
    running = np.cumsum(np.concatenate([sizes, -sizes])[order])
    ends = np.append(steps[1:] != steps[:-1], True)  # sums count once a step is complete
    return int(running[ends].max(initial=0))


def place(first: Ints, last: Ints, sizes: Ints) -> Ints:
    """Largest first, each into the tightest gap among the buffers alive with it."""
    order = np.lexsort((first - last, -sizes))
    if sizes.size < NATIVE_FROM:
        return place_in_order(order, first, last, sizes)
    from .plan_native import place_native

    return place_native(order, first, last, sizes)


def place_in_order(order: Ints, first: Ints, last: Ints, sizes: Ints) -> Ints:
    """Each buffer, in this order, into the tightest gap, else above all that live with it."""
    offsets = np.zeros(sizes.size, np.int64)
    placed: list[tuple[int, int, int, int]] = []  # (start, stop, first, last), sorted
    firsts, lasts, lengths = first.tolist(), last.tolist(), sizes.tolist()
    for buffer in order.tolist():
        size, begin, end = lengths[buffer], firsts[buffer], lasts[buffer]
        if size == 0:
            continue
        top, offset, tightest = 0, -1, 1 << 62
        for start, stop, other_begin, other_end in placed:
            if other_begin > end or other_end < begin:
                continue
            if size <= start - top < tightest:
                offset, tightest = top, start - top
                if tightest == size:
                    break
            if stop > top:
                top = stop
        if offset < 0:
            offset = top
        offsets[buffer] = offset
        bisect.insort(placed, (offset, offset + size, begin, end))
    return offsets
