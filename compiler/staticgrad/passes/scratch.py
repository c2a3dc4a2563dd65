"""scratch: memory that steps need for themselves is for other steps, too.

before -> after

    step 4: matmul(.., c1, s1)                step 4: matmul(.., c1, s1)
    step 5: matmul(.., c2, s2)                meet
                                              step 5: matmul(.., c2, s1)

Where no barrier stands between two steps, one thread may be at the second while another is at the
first, and so each buffer has its memory for all of the phase. What a thread has of its own (s1) no
other thread looks at: a step of that phase may use what an earlier one has left. The six products
of an MLP's update had 560 KiB each.

For what all threads of a step write (c1, a product before its epilogue) they have to meet; then c2
may lie where c1 lay. That is under 1 us, spent where it saves enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from staticgrad.codegen.sharing import Sharing, lifetimes, phases, share
from staticgrad.ir.dim import dim_max
from staticgrad.kernels.program import Program, Step, steps_of

from .order import is_worth_it, nominal_bytes

# What is smaller is not worth a barrier.
LEAST_MET_BYTES = 1 << 16


def with_shared_scratch(program: Program) -> tuple[Program, dict[int, int]]:
    """The program with all of this, and which buffers its steps are still to take for others."""
    sharing = share(program)
    return _with_meets(program, sharing), _thread_scratch(program, phases(program, sharing))


def _thread_scratch(program: Program, phase_of: Sequence[int]) -> dict[int, int]:
    """For buffers of which each thread has its own: the one that serves in its place, with room for
    all of them."""
    users = Counter(index for step in program.steps for index in set(step.buffers))
    scratch = {i for i, b in enumerate(program.buffers) if b.per_thread and users[i] == 1}
    if len(scratch) < 2:
        return {}
    taken: dict[int, int] = {}
    at = -1
    slots: list[int] = []  # of the phase
    for step, phase in zip(program.steps, phase_of):
        if phase != at:
            slots, at = [], phase
        free = list(slots)  # less what the step has already
        for index in step.buffers:
            if index not in scratch:
                continue
            b = program.buffers[index]
            alike = (s for s in free if program.buffers[s].dtype == b.dtype)
            slot = next(alike, None)
            if slot is None:
                slots.append(index)
                continue
            free.remove(slot)
            taken[index] = slot
            program.buffers[slot].size = dim_max(program.buffers[slot].size, b.size)
    return taken


def _with_meets(program: Program, sharing: Sharing) -> Program:
    """The program where threads meet between steps of a phase that need much memory for themselves
    alone, if that saves enough."""
    found: set[int] = set()
    seen = -1  # the last phase with such a step
    outside = _steps_outside(program)
    for at, (step, phase) in enumerate(zip(program.steps, phases(program, sharing))):
        if at not in outside or not any(_is_own(program, i) for i in step.buffers):
            continue
        if phase == seen:
            found.add(at)
        seen = phase
    if not found:
        return program
    other = replace(program, meets=frozenset(found))
    held = held_bytes(program, sharing)
    return other if is_worth_it(held, held_bytes(other, share(other))) else program


def _steps_outside(program: Program) -> set[int]:
    """The numbers of the steps that are in no region."""
    numbers = accumulate((sum(1 for _ in steps_of([item])) for item in program.items), initial=0)
    return {at for item, at in zip(program.items, numbers) if isinstance(item, Step)}


def _is_own(program: Program, index: int) -> bool:
    """Whether one step alone uses a buffer, with all threads, and it is large."""
    b = program.buffers[index]
    mine = b.kind == "temp" and not b.per_thread and b.first == b.last
    return mine and nominal_bytes(b.size_bytes) >= LEAST_MET_BYTES


def held_bytes(program: Program, sharing: Sharing) -> int:
    """The most that is alive at one step, on one thread and with symbols at nominal sizes."""
    change = [0] * (len(program.steps) + 1)
    for b, (first, last) in zip(program.buffers, lifetimes(program, sharing)):
        if b.kind == "temp" and first >= 0:
            size = nominal_bytes(b.size_bytes)
            change[first] += size
            change[last + 1] -= size
    return max(accumulate(change))
