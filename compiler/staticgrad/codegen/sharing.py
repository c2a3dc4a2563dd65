"""How a program is shared among threads: which steps are split, and where the threads meet.

All threads go through the same steps. A *shared* step has a parallel loop, of which each thread
takes a part; any other step is done by thread 0 alone. Steps between two barriers make a *phase*:
within one, a thread may be steps ahead of another, so nothing in it may depend on what another
thread does in it, and memory that one of its steps uses is not given to another buffer before its
end.

A region (a loop, a choice) with a shared step in it is gone through by all threads, who meet where
each iteration begins, where what decides is known, and behind it; one without is done by thread 0.
A loop that is shared `by_rows` is one phase: nobody waits in it, or if only few rows are found at
run time, all at the places of any other loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from staticgrad.ir.dim import DimLike, floor_div, symbols
from staticgrad.kernels.cost import COST
from staticgrad.kernels.ir import Call, Expr, Kernel, Loop, Reduce, Stmt, Template
from staticgrad.kernels.program import Choose, Item, Program, Repeat, Step, parts, steps_of
from staticgrad.kernels.walk import children, roots

# What one core does in a nanosecond, for choices that only need the magnitude: matrix products run
# at 80-110 flops, sweeps at some 30 elements times vector instructions; 20 bytes is between a
# sweep from the L2 cache (40) and one from memory (10). Kernels without lanes take about 1 ns for
# an element of 4 bytes.
PRODUCT_FLOPS = 80
INSTRUCTIONS = 30
BYTES = 20
SCALAR_BYTES = 4

# A step of known size below this stays on thread 0: the barriers around it cost as much as is won.
LEAST_SHARED_NS = 1000


def is_parallel(kernel: Kernel) -> bool:
    """Whether `[begin, end)` of the kernel's function selects a part of its work."""
    return len(kernel.body) == 1 and _takes_part(kernel.body[0])


def _takes_part(s: Stmt) -> bool:
    if isinstance(s, Loop):
        return s.kind.startswith("parallel")
    return isinstance(s, Template) and any("begin" in symbols(d) for d in reversed(s.sizes))


def share_unit(step: Step) -> DimLike:
    """Shares begin at multiples of this."""
    return kernel_unit(step.kernel) if step.unit == 0 else step.unit


def kernel_unit(kernel: Kernel) -> int:
    """What suits a kernel as the unit of shares: whole cache lines where the loop counts elements
    (of one byte at least), 16 rows or columns (a vector) for a matrix product."""
    (s,) = kernel.body
    if isinstance(s, Loop):
        return 64 if s.kind == "parallel_vector" else 1
    return 16 if isinstance(s, Template) and s.name == "matmul" else 1


# --- cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Work in the units of the constants above; sums of dims stay short if kept apart."""

    product_flops: DimLike = 0
    instructions: DimLike = 0
    bytes: DimLike = 0
    scalar_bytes: DimLike = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.product_flops + other.product_flops,
            self.instructions + other.instructions,
            self.bytes + other.bytes,
            self.scalar_bytes + other.scalar_bytes,
        )

    def times(self, count: DimLike) -> Cost:
        return Cost(
            self.product_flops * count,
            self.instructions * count,
            self.bytes * count,
            self.scalar_bytes * count,
        )

    @property
    def ns(self) -> DimLike:
        """An estimate of the time on one thread."""
        parts = (
            (self.product_flops, PRODUCT_FLOPS),
            (self.instructions, INSTRUCTIONS),
            (self.bytes, BYTES),
            (self.scalar_bytes, SCALAR_BYTES),
        )
        total: DimLike = 0
        for amount, rate in parts:
            total = total + floor_div(amount, rate)
        return total


def step_cost(step: Step) -> Cost:
    """What one run of a step costs, from its flops, its bytes and the operations in its kernel."""
    traits = _Traits()
    traits.body(step.kernel.body)
    if traits.template and step.flops != 0:
        return Cost(product_flops=step.flops, bytes=step.bytes)
    if not traits.lanes:
        return Cost(scalar_bytes=step.bytes)
    elements = floor_div(step.flops, max(1, len(step.nodes)))
    return Cost(instructions=elements * traits.instructions, bytes=step.bytes)


def total_cost(steps: Iterable[Step]) -> Cost:
    total = Cost()
    for step in steps:
        cost = step_cost(step)
        total = total + (cost if step.times == 1 else cost.times(step.times))
    return total


def region_ns(region: Repeat) -> DimLike:
    """An estimate of one iteration's time on one thread."""
    total: DimLike = 0
    for part in parts(region):
        for item in part:
            if isinstance(item, Step):
                total = total + step_cost(item).ns
            elif isinstance(item, Repeat):
                total = total + region_ns(item) * (1 if item.length is None else item.length)
            else:
                total = total + total_cost(s for b in item.branches for s in steps_of(b)).ns
    return total


def has_open_loop(items: Iterable[Item]) -> bool:
    """Whether some loop runs for as long as a condition holds."""
    for item in items:
        if isinstance(item, Repeat) and item.length is None:
            return True
        if not isinstance(item, Step) and any(has_open_loop(part) for part in parts(item)):
            return True
    return False


def can_stop(program: Program) -> bool:
    """Whether a run can end before its commit point: by a step that fails, or an interrupt."""
    return any(s.can_fail for s in program.steps) or any(
        isinstance(item, (Repeat, Choose)) for item in program.items
    )


@dataclass
class _Traits:
    """What matters of a kernel's body for its cost."""

    instructions: int = 0  # vector instructions for each element
    lanes: bool = False
    template: bool = False
    _seen: set[int] = field(default_factory=set)

    def body(self, statements: tuple[Stmt, ...]) -> None:
        for s in statements:
            self._count(roots(s))
            if isinstance(s, Loop):
                self.lanes |= s.kind in ("vector", "parallel_vector")
                self.body(s.body)
            elif isinstance(s, Reduce):
                self.lanes |= s.vector
                self.body(s.body)
            elif isinstance(s, Template):
                self.template = True

    def _count(self, expressions: tuple[Expr, ...]) -> None:
        pending = list(expressions)
        while pending:
            e = pending.pop()
            if id(e) not in self._seen:
                self._seen.add(id(e))
                if isinstance(e, Call):
                    self.instructions += COST.get(e.op, 1)
                pending += children(e)


# --- sharing --------------------------------------------------------------------------------------


class Sharing(NamedTuple):
    """For each step: whether it is shared, and whether all threads meet before it; the numbers of
    the regions that thread 0 does alone, and how often the threads meet in a run."""

    shared: tuple[bool, ...]
    barrier: tuple[bool, ...]
    alone: frozenset[int]
    barriers: DimLike


def share(program: Program) -> Sharing:
    """Decides for every step. A barrier stands before a step that reads or writes what a step of
    the same phase writes, or writes what one reads, unless thread 0 alone does both; and at the
    commit point, if anything can fail before it. Phases end where regions begin and end."""
    found = _Sharer(program)
    found.visit(program.items, True, 1)
    return Sharing(
        tuple(found.shared), tuple(found.barrier), frozenset(found.alone), found.barriers
    )


class _Sharer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.can_fail = can_stop(program)
        self.shared: list[bool] = []
        self.barrier: list[bool] = []
        self.alone: set[int] = set()
        self.barriers: DimLike = 0
        self.phase = _Phase()

    def visit(self, items: Sequence[Item], is_top: bool, times: DimLike) -> None:
        """`times`: how often the items run."""
        for i, item in enumerate(items):
            at_commit = is_top and self.can_fail and i == self.program.commit
            if isinstance(item, Step):
                self._step(item, at_commit, times)
                continue
            steps = [s for part in parts(item) for s in steps_of(part)]
            if not any(is_shared(s) for s in steps):
                self.alone.add(item.number)
                self._alone(steps, at_commit, times)
                continue
            begin, before = len(self.barrier), self.barriers
            inner: DimLike = times
            if isinstance(item, Repeat) and item.length is not None:
                inner = times * item.length
            self.barriers = self.barriers + times + inner
            for part in parts(item):
                self.phase = _Phase()
                self.visit(part, False, inner)
            self.phase = _Phase()
            if isinstance(item, Repeat) and item.by_rows != 0:
                waiting = (1 - item.by_rows) * (self.barriers - before)
                self.barriers = before + times * 2 + waiting
                if item.by_rows == 1:
                    self.barrier[begin:] = [False] * len(steps)

    def _step(self, step: Step, at_commit: bool, times: DimLike) -> None:
        reads, writes = _accesses(self.program, step)
        shared = is_shared(step)
        self._add(reads, writes, shared, at_commit, times)

    def _alone(self, steps: Sequence[Step], at_commit: bool, times: DimLike) -> None:
        """A region that thread 0 does: the threads meet before all of it or not at all."""
        if not steps:
            return
        reads: set[int] = set()
        writes: set[int] = set()
        for step in steps:
            r, w = _accesses(self.program, step)
            reads, writes = reads | r, writes | w
        self._add(reads, writes, False, at_commit, times)
        self.shared += [False] * (len(steps) - 1)
        self.barrier += [False] * (len(steps) - 1)

    def _add(
        self, reads: set[int], writes: set[int], shared: bool, at_commit: bool, times: DimLike
    ) -> None:
        at = len(self.shared)
        asked = at_commit or at in self.program.meets
        needed = at > 0 and (asked or self.phase.conflicts(reads, writes, shared))
        self.shared.append(shared)
        self.barrier.append(needed)
        if needed:
            self.phase = _Phase()
            self.barriers = self.barriers + times
        self.phase.add(reads, writes, shared)


def is_shared(step: Step) -> bool:
    """Whether threads share a step: it can be, and is worth the barriers around it."""
    if step.unit != 0:
        return True
    if not is_parallel(step.kernel):
        return False
    if isinstance(step.extent, int) and step.extent <= kernel_unit(step.kernel):
        return False
    ns = step_cost(step).ns
    return not isinstance(ns, int) or ns >= LEAST_SHARED_NS


def _accesses(program: Program, step: Step) -> tuple[set[int], set[int]]:
    """The buffers that a step reads and those that it writes; a thread's own memory aside."""
    reads: set[int] = set()
    writes: set[int] = set()
    for index, parameter in zip(step.buffers, step.kernel.buffers):
        if program.buffers[index].per_thread:
            continue
        index = program.base(index)
        if parameter.mode != "out":
            reads.add(index)
        if parameter.mode != "in":
            writes.add(index)
    return reads, writes


class _Phase:
    """What the steps since the last barrier read and write: all of them, and the shared ones."""

    def __init__(self) -> None:
        self.reads: dict[bool, set[int]] = {False: set(), True: set()}
        self.writes: dict[bool, set[int]] = {False: set(), True: set()}

    def conflicts(self, reads: set[int], writes: set[int], shared: bool) -> bool:
        for other in (True, False) if shared else (True,):
            if (reads | writes) & self.writes[other] or writes & self.reads[other]:
                return True
        return False

    def add(self, reads: set[int], writes: set[int], shared: bool) -> None:
        self.reads[shared] |= reads
        self.writes[shared] |= writes


def lifetimes(program: Program, sharing: Sharing) -> list[tuple[int, int]]:
    """The steps between which each buffer's memory is its own.

    A buffer that a shared step uses in the phase in which it is born or dies has its memory for the
    whole of that phase: another thread may be at any step of it. One that only thread 0 uses there
    needs no more than its own steps.
    """
    phase_of = phases(program, sharing)
    bounds: dict[int, list[int]] = {}
    for i, phase in enumerate(phase_of):
        bounds.setdefault(phase, [i, i])[1] = i
    used = {
        (program.base(buffer), phase_of[i])
        for i, step in enumerate(program.steps)
        if sharing.shared[i]
        for buffer in step.buffers
    }
    found = []
    for index, b in enumerate(program.buffers):
        first, last = b.first, b.last
        if first >= 0:
            if (index, phase_of[first]) in used:
                first = bounds[phase_of[first]][0]
            if (index, phase_of[last]) in used:
                last = bounds[phase_of[last]][1]
        found.append((first, last))
    return found


def phases(program: Program, sharing: Sharing) -> list[int]:
    """The number of each step's phase."""
    starts = _phase_starts(program, sharing)
    return [
        n - 1 for n in accumulate(int(i in starts or i == 0) for i in range(len(sharing.shared)))
    ]


def _phase_starts(program: Program, sharing: Sharing) -> set[int]:
    """The steps with which a phase begins: those behind a barrier, and the first of each part of a
    region that all threads go through, and behind it."""
    starts = {i for i, meets in enumerate(sharing.barrier) if meets}

    def visit(items: Sequence[Item], at: int) -> int:
        for item in items:
            if isinstance(item, Step):
                at += 1
            elif item.number in sharing.alone:
                at += sum(1 for part in parts(item) for _ in steps_of(part))
            else:
                begin = at
                for part in parts(item):
                    starts.add(at)
                    at = visit(part, at)
                if isinstance(item, Repeat) and item.by_rows != 0:
                    starts.difference_update(range(begin + 1, at))
                starts.add(at)
        return at

    visit(program.items, 0)
    return starts
