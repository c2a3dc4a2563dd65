"""schedule: the order of the steps, and results computed where they are wanted.

before -> after

    step 3: v, p' = momentum(v, p, g)         step 3: v, p = momentum(v, p, g)   (in place)
    step 4: copy p' -> p

A state's new value is computed in the state's own memory if every other reader of the old value can
come first, and everything that can fail as well (the commit point). A temporary takes the memory of
an operand that dies in the same step. Both only where the kernel reads exactly the element that it
writes, so no bit can change. A loop's carries are treated like state: computed in place where every
other reader of the old value can come first.

Among the orders that this leaves, `order` chooses by what is alive at once; `scratch` has steps
share what they need for themselves. With `disable=("in_place",)` the order is as declared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from staticgrad.codegen.sharing import is_parallel
from staticgrad.ir.dim import DimLike
from staticgrad.kernels.ir import Kernel, Store, Template
from staticgrad.kernels.program import (  # fmt: skip
    Choose,
    Item,
    Program,
    ProgramBuffer,
    Repeat,
    Step,
    parts,
    steps_of,
)
from staticgrad.kernels.walk import accesses

from .lowering.scalar_loops import with_scalar_loops
from .order import Listed, Precedence, Work, best_order, declared_order, nominal_bytes
from .scratch import with_shared_scratch


def schedule(
    program: Program, *, in_place: bool = True, scalar_loops: bool = True
) -> Program:  # fmt: skip
    """Orders the steps and sets lifetimes and the commit point."""
    items = _scheduled(program, program.items, program.commit, in_place, region=0)
    if scalar_loops:
        items = with_scalar_loops(program, items)
    program = replace(program, items=items)
    writing = [i for i, s in enumerate(items) if _writes_state(program, s)]
    program.commit = min(writing, default=len(items))
    set_lifetimes(program)
    if in_place:
        _reuse_operands(program)
        set_lifetimes(program)
        program, taken = with_shared_scratch(program)
        program.items[:] = [_remapped(i, lambda b: taken.get(b, b)) for i in program.items]
        set_lifetimes(program)
    return program


def _scheduled(
    program: Program, items: Sequence[Item], first_copy: int, in_place: bool, *, region: int
) -> list[Item]:
    """The items of a region in order, those of regions in it first; from item `first_copy` on, new
    values are copied to state or carries."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, Repeat):
            number = item.number
            test = _scheduled(program, item.test, len(item.test), in_place, region=number)
            body = _scheduled(program, item.items, item.commit, in_place, region=number)
            item = replace(item, items=tuple(body), test=tuple(test))
        elif isinstance(item, Choose):
            branches = (
                _scheduled(program, b, len(b), in_place, region=item.number) for b in item.branches
            )
            item = replace(item, branches=tuple(tuple(b) for b in branches))
        found.append(item)
    before = _conflicts(program, found)
    for i, j in pairwise(_stopping(found)):  # of two failures the same one is reported
        before[j].add(i)
    if in_place:
        before = _update_in_place(program, found, first_copy, before, is_state=region == 0)
    return _ordered(program, found, before, region, in_place)


def reads(program: Program, item: Item) -> set[int]:
    """The memory that an item reads: of slices the whole buffer."""
    if isinstance(item, Step):
        return {
            program.base(i)
            for i, b in zip(item.buffers, item.kernel.buffers)
            if b.mode in ("in", "inout")
        }
    found = {program.base(_choice(item))} if _choice(item) >= 0 else set()
    for step in _inside(item):
        found |= reads(program, step)
    return found


def writes(program: Program, item: Item) -> set[int]:
    if isinstance(item, Step):
        return {
            program.base(i)
            for i, b in zip(item.buffers, item.kernel.buffers)
            if b.mode in ("out", "inout")
        }
    found: set[int] = set()
    for step in _inside(item):
        found |= writes(program, step)
    return found


def _inside(item: Repeat | Choose) -> list[Step]:
    return [s for part in parts(item) for s in steps_of(part)]


def _choice(item: Repeat | Choose) -> int:
    """The buffer that decides what runs; -1 for a loop of known length."""
    return item.predicate if isinstance(item, Repeat) else item.index


def _can_stop(item: Item) -> bool:
    """Whether a run may end in it: by data that a kernel refuses, or, in a loop, by Ctrl-C."""
    return item.can_fail if isinstance(item, Step) else True


def _stopping(items: Sequence[Item]) -> list[int]:
    return [i for i, item in enumerate(items) if _can_stop(item)]


def _writes_state(program: Program, item: Item) -> bool:
    return any(program.buffers[i].kind == "state" for i in writes(program, item))


def _conflicts(program: Program, items: Sequence[Item]) -> list[set[int]]:
    """For each item the earlier ones that must precede it: they share a buffer that one writes."""
    before: list[set[int]] = []
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        read, written = reads(program, item), writes(program, item)
        needed: set[int] = set()
        for b in read | written:
            if b in writer:
                needed.add(writer[b])
        for b in written:
            needed.update(readers.get(b, ()))
        needed.discard(i)
        before.append(needed)
        for b in written:
            writer[b] = i
            readers[b] = []
        for b in read:
            readers.setdefault(b, []).append(i)
    return before


def _ordered(
    program: Program, items: list[Item], before: list[set[int]], region: int, in_place: bool
) -> list[Item]:
    """Topological: the earlier declared first, or the order that holds the least memory."""
    last_stop = _stopping(items)[-1:]
    for i, item in enumerate(items):
        if _writes_state(program, item):
            before[i].update(j for j in last_stop if j != i)
    if not in_place:
        return [items[i] for i in declared_order(before)]
    return [items[i] for i in best_order(_listed(program, items, before, region))]


def _listed(
    program: Program, items: Sequence[Item], before: Sequence[set[int]], region: int
) -> Listed:
    """What the items use. Of a region in the list, its own temporaries count as one item's."""
    here = {region}.union(*(_numbers(i) for i in items if not isinstance(i, Step)))
    size: dict[int, int] = {}
    work = []
    for item in items:
        read, written = reads(program, item), writes(program, item)
        temps = [
            i for i in sorted(read | written)
            if program.buffers[i].kind == "temp" and program.buffers[i].region in here
        ]  # fmt: skip
        own = {i: nominal_bytes(program.buffers[i].size_bytes) for i in temps}
        per_thread = [i for i in temps if program.buffers[i].per_thread]
        own_bytes = sum(own.pop(i) for i in per_thread)
        read.difference_update(per_thread)
        written.difference_update(per_thread)
        size |= own
        shared = not isinstance(item, Step) or is_parallel(item.kernel)
        apart = not isinstance(item, Step)
        work.append(Work(list(own), own_bytes, read, written, shared, apart))
    return Listed(work, before, size)


def _numbers(item: Repeat | Choose) -> set[int]:
    """The numbers of a region and of those in it."""
    found = {item.number}
    for part in parts(item):
        for inner in part:
            if not isinstance(inner, Step):
                found |= _numbers(inner)
    return found


# --- in place -------------------------------------------------------------------------------------


def element_accesses(kernel: Kernel) -> dict[str, tuple[set[DimLike | None], set[DimLike | None]]]:
    """For each buffer the indices that are loaded and stored; None stands for an access that no
    single index describes (gathers, templates)."""
    found: dict[str, tuple[set[DimLike | None], set[DimLike | None]]] = {}
    for touch, _ in accesses(kernel.body):
        if isinstance(touch, Template):
            for b in touch.touched:
                for indices in found.setdefault(b, (set(), set())):
                    indices.add(None)
        else:
            plain = not touch.gathers and touch.guard is None
            indices = found.setdefault(touch.buffer, (set(), set()))[isinstance(touch, Store)]
            indices.add(touch.index if plain else None)
    return found


def _element_wise(program: Program, step: Step, source: int, result: int) -> bool:
    """Whether `step` may compute `result` in the memory of `source`."""
    memory = {program.base(source), program.base(result)}
    if any(i not in (source, result) and program.base(i) in memory for i in step.buffers):
        return False  # through a slice
    accesses = element_accesses(step.kernel)
    names = dict(zip(step.buffers, (b.name for b in step.kernel.buffers)))
    stored = accesses.get(names[result], (set(), set()))[1]
    if len(stored) != 1 or None in stored or step.buffers.count(result) != 1:
        return False
    if source not in names:
        return True
    return accesses.get(names[source], (set(), set()))[0] == stored


def _update_in_place(
    program: Program, items: list[Item], first_copy: int, before: list[set[int]], is_state: bool
) -> list[set[int]]:
    """Drops the copies of new values into state, or into a loop's carries, where the kernel can
    write there itself."""
    order = Precedence(before)
    readers, writers = _users(program, items)
    last_stop = _stopping(items)[-1:] if is_state else []
    slices: dict[int, list[ProgramBuffer]] = {}
    for buffer in program.buffers:
        slices.setdefault(buffer.base, []).append(buffer)
    moved: dict[int, int] = {}  # temporaries that became the memory that they were copied to
    targets: set[int] = set()
    dropped: set[int] = set()
    for copy_at in range(first_copy, len(items)):
        copy = items[copy_at]
        if not isinstance(copy, Step) or len(copy.buffers) != 2:
            continue
        temp, state = copy.buffers
        if program.buffers[temp].kind != "temp" or temp in moved or temp in targets:
            continue
        producers = {i for i in writers.get(temp, ()) if i < first_copy}
        memory = program.base(state)
        if len(producers) != 1 or not producers.isdisjoint(readers.get(temp, ())):
            continue
        (producer,) = producers
        step = items[producer]
        if not isinstance(step, Step) or not _element_wise(program, step, state, temp):
            continue
        earlier = readers.get(memory, set()).union(last_stop) - {producer, copy_at}
        if (is_state and _can_stop(step)) or producer in writers.get(memory, ()):
            continue
        if not order.follow(producer, earlier):
            continue
        dropped.add(copy_at)
        moved[temp] = state
        targets.add(memory)
        for users in (readers, writers):
            users.setdefault(memory, set()).update(users.pop(temp, set()))
            users[memory].discard(copy_at)
        for buffer in slices.pop(temp, ()):
            buffer.base = state
            slices.setdefault(state, []).append(buffer)
    items[:] = [_remapped(s, lambda b: moved.get(b, b)) for s in items]
    return _without_dropped(items, order.before, dropped)


def _users(
    program: Program, items: Sequence[Item]
) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """For each memory the items that read it and those that write it."""
    readers: dict[int, set[int]] = {}
    writers: dict[int, set[int]] = {}
    for i, item in enumerate(items):
        for used, users in ((reads(program, item), readers), (writes(program, item), writers)):
            for b in used:
                users.setdefault(b, set()).add(i)
    return readers, writers


def _remapped(item: Item, new: Callable[[int], int]) -> Item:
    """`item` with other buffers; a kernel that gets one for two keeps two parameters."""

    def each(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(_remapped(i, new) for i in items)

    if isinstance(item, Step):
        buffers = tuple(new(b) for b in item.buffers)
        return item if buffers == item.buffers else replace(item, buffers=buffers)
    if isinstance(item, Choose):
        branches = tuple(each(b) for b in item.branches)
        return replace(item, branches=branches, index=new(item.index))
    predicate = new(item.predicate) if item.predicate >= 0 else -1
    return replace(item, items=each(item.items), test=each(item.test), predicate=predicate)


def _without_dropped(
    items: list[Item], before: list[set[int]], dropped: set[int]
) -> list[set[int]]:
    kept = [i for i in range(len(items)) if i not in dropped]
    number = {i: k for k, i in enumerate(kept)}
    items[:] = [items[i] for i in kept]
    return [{number[j] for j in before[i] if j in number} for i in kept]


def set_lifetimes(program: Program) -> None:
    """The steps between which each buffer is used; of one that a loop does not make anew in each
    iteration, all steps of the loop."""
    for b in program.buffers:
        b.first = b.last = -1

    def use(index: int, first: int, last: int, loops: Sequence[tuple[int, int, int]]) -> None:
        index = program.base(index)
        b = program.buffers[index]
        for number, begin, end in loops:  # outermost first
            if number == b.region:
                continue
            if _is_outside(b.region, number, inside_of):
                first, last = begin, end
                break
        b.first = first if b.first < 0 else min(b.first, first)
        b.last = max(b.last, last)

    inside_of: dict[int, int] = {}

    def visit(items: Sequence[Item], at: int, region: int, loops: list[Any]) -> int:
        for item in items:
            if isinstance(item, Step):
                for index in item.buffers:
                    use(index, at, at, loops)
                at += 1
                continue
            inside_of[item.number] = region
            count = sum(1 for _ in _inside(item))
            begin, end = at, max(at + count - 1, at)
            within = [*loops, (item.number, begin, end)] if isinstance(item, Repeat) else loops
            if _choice(item) >= 0:
                use(_choice(item), begin, end, loops)
            for part in parts(item):
                at = visit(part, at, item.number, within)
        return at

    visit(program.items, 0, 0, [])


def _is_outside(region: int, loop: int, inside_of: dict[int, int]) -> bool:
    """Whether a buffer of `region` exists before the loop begins."""
    while region != 0:
        if region == loop:
            return False
        region = inside_of.get(region, 0)
    return True


def _reuse_operands(program: Program) -> None:
    """Element-wise results take the memory of a temporary that dies in the same step."""
    taken: dict[int, int] = {}
    used: set[int] = set()
    for at, step in enumerate(program.steps):
        for result in writes(program, step):
            out = program.buffers[result]
            if out.kind != "temp" or out.first != at or result in reads(program, step):
                continue
            for source in sorted(reads(program, step)):
                dying = program.buffers[source]
                if dying.kind != "temp" or dying.per_thread or dying.last != at or source in used:
                    continue
                same = (
                    dying.size == out.size
                    and dying.dtype.bits == out.dtype.bits
                    and dying.region == out.region
                )
                if same and source not in taken and _element_wise(program, step, source, result):
                    taken[result] = source
                    used.add(source)
                    break
    # A chain of reuse is followed when buffers are renamed.
    program.items[:] = [_remapped(i, lambda b: _final(b, taken)) for i in program.items]
    for buffer in program.buffers:
        if buffer.base >= 0:
            buffer.base = _final(buffer.base, taken)


def _final(buffer: int, taken: dict[int, int]) -> int:
    while buffer in taken:
        buffer = taken[buffer]
    return buffer
