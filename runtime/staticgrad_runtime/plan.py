"""Where every temporary lives in one arena: lifetimes and sizes -> offsets."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arena import ALIGN_BYTES

Ints = NDArray[np.int64]

# Below this many buffers Python places them in less than the native loop takes to compile, which is
# 14 ms: of 128 in 0.4 ms, or 5 with all tries.
NATIVE_FROM = 128

# Where the native loop is loaded already, or a program has been planned so often that it is better
# loaded, which takes 3 ms from the disk: Python places 100 buffers in some 0.2 ms.
NATIVE_FROM_AGAIN = 32
PATIENCE = 12

NO_LIMIT = 1 << 62

# A plan so close to the bound is taken as it is. For others, other orders are tried: of 200 made-up
# training steps of 56 buffers 21 were more than 5 % above the bound, at worst 22 %; then three, at
# worst 7.5 %. A try takes 0.5 ms for 1,000 buffers; so many of them, not much more.
CLOSE = 1.02
MOST_TRIES = 32
TRIES_BUFFERS = 1800
_SPREADS = (0.1, 0.3, 1.0)  # of the logarithms of sizes


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
        steps = np.concatenate([self.first, self.last + 1])
        self._events = np.argsort(steps, kind="stable")  # begins and ends in the order of steps
        steps = steps[self._events]
        self._ends = np.append(steps[1:] != steps[:-1], True)  # sums count once a step is complete
        self._solved = 0

    def solve(self, size_bytes: Sequence[int]) -> Plan:
        """A plan for these sizes. Buffers of no bytes get offset 0."""
        sizes = -(-np.asarray(size_bytes, np.int64) // ALIGN_BYTES) * ALIGN_BYTES
        if not sizes.any():
            return Plan(np.zeros(sizes.size, np.int64), 0, 0)
        bound = self._lower_bound(sizes)
        offsets = self._placed(np.lexsort((self.first - self.last, -sizes)), sizes)
        assert offsets is not None
        peak = int((offsets + sizes).max())
        if peak > CLOSE * bound:
            peak, offsets = self._tried_again(sizes, CLOSE * bound, peak, offsets)
        self._solved += 1
        return Plan(offsets, peak, bound)

    def _lower_bound(self, sizes: Ints) -> int:
        """The largest sum of sizes that are alive at one step."""
        running = np.cumsum(np.concatenate([sizes, -sizes])[self._events])
        return int(running[self._ends].max())

    def _placed(self, order: Ints, sizes: Ints, limit: int = NO_LIMIT) -> Ints | None:
        """Each buffer, in this order, into the tightest gap; those of no bytes come last. None
        where one would reach up to `limit`."""
        place = place_in_order
        if sizes.size >= min(NATIVE_FROM, NATIVE_FROM_AGAIN):
            from .plan_native import is_loaded, place_native

            if sizes.size >= NATIVE_FROM or self._solved >= PATIENCE or is_loaded():
                place = place_native
        return place(order, self.first, self.last, sizes, limit)

    def _tried_again(self, sizes: Ints, close: float, peak: int, offsets: Ints) -> tuple[int, Ints]:
        """The best of some more plans, the same ones every time; ends where one is close."""
        random = np.random.default_rng(0)
        by_size = np.where(sizes > 0, -np.log(np.maximum(sizes, 1)), np.inf)
        for i in range(min(MOST_TRIES, TRIES_BUFFERS // sizes.size)):
            spread = _SPREADS[i % len(_SPREADS)]
            order = np.argsort(by_size + spread * random.standard_normal(sizes.size), kind="stable")
            found = self._placed(order, sizes, peak)
            if found is not None:
                peak, offsets = int((found + sizes).max()), found
                if peak <= close:
                    break
        return peak, offsets


def place_in_order(
    order: Ints, first: Ints, last: Ints, sizes: Ints, limit: int = NO_LIMIT
) -> Ints | None:
    """Each buffer, in this order, into the tightest gap, else above all that live with it. None
    where one would reach up to `limit`."""
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
        if offset + size >= limit:
            return None
        offsets[buffer] = offset
        bisect.insort(placed, (offset, offset + size, begin, end))
    return offsets
