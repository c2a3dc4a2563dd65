"""How a program is shared among threads: which steps are split, and where the threads meet.

All threads go through the same steps. A *shared* step has a parallel loop, of which each thread
takes a part; any other step is done by thread 0 alone. Steps between two barriers make a *phase*:
within one, a thread may be steps ahead of another, so nothing in it may depend on what another
thread does in it, and memory that one of its steps uses is not given to another buffer before its
end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from staticgrad.ir.dim import DimLike, floor_div, symbols
from staticgrad.kernels.cost import COST
from staticgrad.kernels.ir import (
    Call,
    Check,
    Expr,
    Kernel,
    Let,
    Load,
    Loop,
    Next,
    Reduce,
    Stmt,
    Store,
    Template,
)
from staticgrad.kernels.program import Program, Step

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
    return isinstance(s, Template) and any("begin" in symbols(d) for d in s.sizes)


def share_unit(kernel: Kernel) -> int:
    """Shares begin at multiples of this: of whole cache lines where the loop counts elements (of
    one byte at least), of 16 rows or columns (a vector) for a matrix product."""
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
    """What a step costs, from its flops, its bytes and the operations in its kernel."""
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
        total = total + step_cost(step)
    return total


@dataclass
class _Traits:
    """What matters of a kernel's body for its cost."""

    instructions: int = 0  # vector instructions for each element
    lanes: bool = False
    template: bool = False
    _seen: set[int] = field(default_factory=set)

    def body(self, statements: tuple[Stmt, ...]) -> None:
        for s in statements:
            match s:
                case Let() | Next():
                    self._expr(s.value)
                case Store():
                    self._expr(s.value)
                    self._load(s.gathers, s.guard)
                case Check():
                    self._expr(s.condition)
                case Loop():
                    self.lanes |= s.kind in ("vector", "parallel_vector")
                    self.body(s.body)
                case Reduce():
                    self.lanes |= s.vector
                    self.body(s.body)
                    for a in s.accumulators:
                        self._expr(a.value)
                case Template():
                    self.template = True

    def _expr(self, e: Expr) -> None:
        stack = [e]
        while stack:
            e = stack.pop()
            if id(e) in self._seen:
                continue
            self._seen.add(id(e))
            if isinstance(e, Call):
                self.instructions += COST.get(e.op, 1)
                stack += e.args
            elif isinstance(e, Load):
                stack += [g for g, _ in e.gathers]
                if e.guard is not None:
                    stack.append(e.guard)

    def _load(self, gathers: tuple[tuple[Expr, DimLike], ...], guard: Expr | None) -> None:
        for g, _ in gathers:
            self._expr(g)
        if guard is not None:
            self._expr(guard)


# --- sharing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharing:
    """For each step: whether it is shared, and whether all threads meet before it."""

    shared: tuple[bool, ...]
    barrier: tuple[bool, ...]

    @property
    def barriers(self) -> int:
        return sum(self.barrier)


def share(program: Program) -> Sharing:
    """Decides both for every step. A barrier stands before a step that reads or writes what a
    step of the same phase writes, or writes what one reads, unless thread 0 alone does both; and
    at the commit point, if anything can fail before it."""
    shared = tuple(_is_shared(s) for s in program.steps)
    can_fail = any(s.can_fail for s in program.steps)
    barrier: list[bool] = []
    phase = _Phase()
    for i, step in enumerate(program.steps):
        reads, writes = _accesses(program, step)
        needed = i > 0 and (
            phase.conflicts(reads, writes, shared[i]) or (can_fail and i == program.commit)
        )
        barrier.append(needed)
        if needed:
            phase = _Phase()
        phase.add(reads, writes, shared[i])
    return Sharing(shared, tuple(barrier))


def _is_shared(step: Step) -> bool:
    if not is_parallel(step.kernel):
        return False
    if isinstance(step.extent, int) and step.extent <= share_unit(step.kernel):
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
    bounds: list[list[int]] = []
    phase_of: list[int] = []
    for i, meets in enumerate(sharing.barrier):
        if meets or not bounds:
            bounds.append([i, i])
        bounds[-1][1] = i
        phase_of.append(len(bounds) - 1)
    used = {
        (buffer, phase_of[i])
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
