"""schedule: the order of the steps, and results computed where they are wanted.

before -> after

    step 3: v, p' = momentum(v, p, g)         step 3: v, p = momentum(v, p, g)   (in place)
    step 4: copy p' -> p

A state's new value is computed in the state's own memory if every other reader of the old value can
come first, and everything that can fail as well (the commit point). A temporary takes the memory of
an operand that dies in the same step. Both only where the kernel reads exactly the element that it
writes, so no bit can change.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

from staticgrad.ir.dim import DimLike
from staticgrad.kernels.ir import (  # fmt: skip
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


def schedule(program: Program, *, in_place: bool = True) -> Program:
    """Orders the steps and sets lifetimes and the commit point."""
    before = _conflicts(program.steps)
    if in_place:
        before = _update_in_place(program, before)
    steps = _ordered(program.steps, before)
    program = replace(program, steps=steps)
    writes = [i for i, s in enumerate(steps) if _writes_state(program, s)]
    program.commit = min(writes, default=len(steps))
    set_lifetimes(program)
    if in_place:
        _reuse_operands(program)
        set_lifetimes(program)
    return program


def reads(step: Step) -> set[int]:
    return {i for i, b in zip(step.buffers, step.kernel.buffers) if b.mode in ("in", "inout")}


def writes(step: Step) -> set[int]:
    return {i for i, b in zip(step.buffers, step.kernel.buffers) if b.mode in ("out", "inout")}


def _writes_state(program: Program, step: Step) -> bool:
    return any(program.buffers[i].kind == "state" for i in writes(step))


def _conflicts(steps: list[Step]) -> list[set[int]]:
    """For each step the earlier ones that must precede it: they share a buffer that one writes."""
    before: list[set[int]] = []
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        needed: set[int] = set()
        for b in reads(step) | writes(step):
            if b in writer:
                needed.add(writer[b])
        for b in writes(step):
            needed.update(readers.get(b, ()))
        needed.discard(i)
        before.append(needed)
        for b in writes(step):
            writer[b] = i
            readers[b] = []
        for b in reads(step):
            readers.setdefault(b, []).append(i)
    return before


def _ordered(steps: list[Step], before: list[set[int]]) -> list[Step]:
    """Topological, the earlier declared first."""
    followers: dict[int, list[int]] = {}
    waiting = [len(b) for b in before]
    for i, b in enumerate(before):
        for j in b:
            followers.setdefault(j, []).append(i)
    ready = [i for i, w in enumerate(waiting) if not w]
    heapq.heapify(ready)
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(steps[i])
        for j in followers.get(i, ()):
            waiting[j] -= 1
            if not waiting[j]:
                heapq.heappush(ready, j)
    assert len(order) == len(steps), "schedule: a cycle among the steps"
    return order


# --- in place -------------------------------------------------------------------------------------


def element_accesses(kernel: Kernel) -> dict[str, tuple[set[DimLike | None], set[DimLike | None]]]:
    """For each buffer the indices that are loaded and stored; None stands for an access that no
    single index describes (gathers, templates)."""
    found: dict[str, tuple[set[DimLike | None], set[DimLike | None]]] = {}
    seen: set[int] = set()

    def note(buffer: str, which: int, index: DimLike | None) -> None:
        found.setdefault(buffer, (set(), set()))[which].add(index)

    def expr(e: Expr) -> None:
        if id(e) in seen:
            return
        seen.add(id(e))
        if isinstance(e, Load):
            plain = not e.gathers and e.guard is None
            note(e.buffer, 0, e.index if plain else None)
            for g, _ in e.gathers:
                expr(g)
            if e.guard is not None:
                expr(e.guard)
        elif isinstance(e, Call):
            for a in e.args:
                expr(a)

    def body(statements: tuple[Stmt, ...]) -> None:
        for s in statements:
            match s:
                case Let() | Next():
                    expr(s.value)
                case Store():
                    plain = not s.gathers and s.guard is None
                    note(s.buffer, 1, s.index if plain else None)
                    expr(s.value)
                    for g, _ in s.gathers:
                        expr(g)
                    if s.guard is not None:
                        expr(s.guard)
                case Check():
                    expr(s.condition)
                    expr(s.value)
                case Loop():
                    for c in s.carries:
                        expr(c.init)
                    body(s.body)
                case Reduce():
                    body(s.body)
                    for a in s.accumulators:
                        expr(a.value)
                case Template():
                    for b in s.buffers:
                        note(b, 0, None)
                        note(b, 1, None)
                    if s.epilogue is not None:
                        body(s.epilogue.body)

    body(kernel.body)
    return found


def _element_wise(step: Step, source: int, result: int) -> bool:
    """Whether `step` may compute `result` in the memory of `source`."""
    accesses = element_accesses(step.kernel)
    names = dict(zip(step.buffers, (b.name for b in step.kernel.buffers)))
    stored = accesses.get(names[result], (set(), set()))[1]
    if len(stored) != 1 or None in stored or step.buffers.count(result) != 1:
        return False
    if source not in names:
        return True
    return accesses.get(names[source], (set(), set()))[0] == stored


def _update_in_place(program: Program, before: list[set[int]]) -> list[set[int]]:
    """Drops the copies of new values into state where the kernel can write there itself."""
    steps = program.steps
    first_copy = program.commit
    for copy_at in range(first_copy, len(steps)):
        copy = steps[copy_at]
        if len(copy.buffers) != 2:
            continue
        temp, state = copy.buffers
        if program.buffers[temp].kind != "temp":
            continue
        producers = [i for i, s in enumerate(steps[:first_copy]) if temp in writes(s)]
        if len(producers) != 1 or temp in reads(steps[producers[0]]):
            continue
        producer = producers[0]
        if not _element_wise(steps[producer], state, temp):
            continue
        earlier = {
            i for i, s in enumerate(steps)
            if i not in (producer, copy_at) and (state in reads(s) or s.can_fail)
        }  # fmt: skip
        if state in writes(steps[producer]) or _reaches(before, producer, earlier):
            continue
        before[producer] |= earlier
        for i, s in enumerate(steps):
            if i == copy_at:
                steps[i] = _nothing(s)
            elif temp in s.buffers:
                steps[i] = _renamed(s, temp, state)
    return _without_dropped(program, before)


def _reaches(before: list[set[int]], start: int, targets: set[int]) -> bool:
    """Whether any of `targets` must come after `start`."""
    stack, seen = list(targets), set(targets)
    while stack:
        i = stack.pop()
        if i == start:
            return True
        for j in before[i]:
            if j not in seen:
                seen.add(j)
                stack.append(j)
    return False


def _nothing(step: Step) -> Step:
    return replace(step, buffers=())


def _renamed(step: Step, old: int, new: int) -> Step:
    """`step` with a buffer replaced; a kernel that had both keeps two parameters for one."""
    return replace(step, buffers=tuple(new if b == old else b for b in step.buffers))


def _without_dropped(program: Program, before: list[set[int]]) -> list[set[int]]:
    kept = [i for i, s in enumerate(program.steps) if s.buffers]
    number = {i: k for k, i in enumerate(kept)}
    program.steps[:] = [program.steps[i] for i in kept]
    return [{number[j] for j in before[i] if j in number} for i in kept]


def set_lifetimes(program: Program) -> None:
    for b in program.buffers:
        b.first = b.last = -1
    for i, step in enumerate(program.steps):
        for index in step.buffers:
            b = program.buffers[index]
            if b.first < 0:
                b.first = i
            b.last = i


def _reuse_operands(program: Program) -> None:
    """Element-wise results take the memory of a temporary that dies in the same step."""
    taken: dict[int, int] = {}
    used: set[int] = set()
    for at, step in enumerate(program.steps):
        for result in writes(step):
            out = program.buffers[result]
            if out.kind != "temp" or out.first != at or result in reads(step):
                continue
            for source in sorted(reads(step)):
                dying = program.buffers[source]
                if dying.kind != "temp" or dying.per_thread or dying.last != at or source in used:
                    continue
                same = dying.size == out.size and dying.dtype.bits == out.dtype.bits
                if same and source not in taken and _element_wise(step, source, result):
                    taken[result] = source
                    used.add(source)
                    break
        # A chain of reuse is followed when buffers are renamed below.
    for i, step in enumerate(program.steps):
        buffers = tuple(_final(b, taken) for b in step.buffers)
        program.steps[i] = replace(step, buffers=buffers)


def _final(buffer: int, taken: dict[int, int]) -> int:
    while buffer in taken:
        buffer = taken[buffer]
    return buffer
