"""From which cache the memory of a step can come: its reuse distance, that is how much is touched
from the last use of a piece of memory up to the step (Mattson's stack distance), and how old it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from staticgrad.kernels.program import Program, Step
from staticgrad_runtime.plan import Plan

_PIECE_BYTES = 1 << 14
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Reuse:
    """Of each piece of memory that a step uses: the bytes touched since its last use, at least what
    the step uses itself; and how many steps ago that was."""

    sizes: Array
    steps: Array

    def ages(self, step: int, seconds: Array) -> Array:
        """How long ago that was, from the seconds of each step of the program."""
        ends = np.cumsum(np.tile(seconds, 2))
        at = step + len(seconds)
        return np.asarray(ends[at - 1] - ends[at - self.steps])


def reuses(program: Program, plan: Plan) -> list[Reuse]:
    """For each step, in calls that follow one another. In a loop memory counts as it is touched by
    one iteration, and as just used."""
    places, count = _places(program, plan)
    last = np.full(count, -1)
    steps = program.steps
    found: list[Reuse] = []
    for i, step in enumerate((*steps, *steps)):
        used = _pieces(program, step, places)
        if i >= len(steps):
            since = np.full(used.size, 1) if step.times != 1 else i - last[used]
            later = count - np.searchsorted(np.sort(last), last[used], side="right")
            later *= step.times == 1
            sizes = np.maximum(_PIECE_BYTES * (later + 1), step_bytes(program, step))
            found.append(Reuse(sizes, since))
        last[used] = i
    return found


def step_bytes(program: Program, step: Step) -> int:
    """The memory that one run of a step uses."""
    return sum(_size(program, index) for index in set(step.buffers))


def _size(program: Program, index: int) -> int:
    size = program.buffers[index].size_bytes
    assert isinstance(size, int), "workloads have known sizes"
    return size


def _places(program: Program, plan: Plan) -> tuple[dict[int, range], int]:
    """The pieces of each buffer that has memory of its own, and how many pieces there are:
    temporaries where they are planned, everything else behind them."""
    places: dict[int, range] = {}
    end = -(-plan.peak_bytes // _PIECE_BYTES)
    planned = iter(plan.offsets.tolist())
    for index, b in enumerate(program.buffers):
        offset = next(planned) if b.kind in ("temp", "slice") else None
        if b.kind == "slice" or _size(program, index) == 0:
            continue
        first = end if offset is None else offset // _PIECE_BYTES
        size = _size(program, index) + (0 if offset is None else offset % _PIECE_BYTES)
        places[index] = range(first, first - (-size // _PIECE_BYTES))
        if offset is None:
            end = places[index].stop
    return places, end


def _pieces(program: Program, step: Step, places: dict[int, range]) -> Array:
    bases = {program.base(index) for index in step.buffers}
    ranges = [places[base] for base in bases if base in places]
    return np.unique(np.concatenate([np.arange(r.start, r.stop) for r in ranges or [range(1)]]))
