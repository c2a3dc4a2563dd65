"""nontemporal: large results that nothing reads any more are stored past the caches.

before -> after

    step 2: softmax(x -> y)      b2: out       step 2: softmax(x -> y)      b2: out nontemporal

A store to a line that no cache has reads it from memory first, and then pushes out another. Of a
result larger than what the caches keep until somebody looks at it, both are in vain: softmax of
4096 x 1024 moves 32 MiB instead of 48, and its argument stays in the third cache. Where other
programs use that cache as well, 1.22 ms became 0.68 (two threads, Zen 4); alone it is the same.

A pass over the program, after its steps are ordered. Preserving: the same values are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim, DimLike, dim_min, floor_div
from staticgrad.kernels.ir import Loop, Reduce, Stmt, Template
from staticgrad.kernels.program import Item, Program, Step

from .schedule import reads, writes

# What is larger than this part of the third cache: others, and the other results, want some too.
SHARE_OF_CACHE = 8
SIZE_NAME = "nontemporal"  # the parameter that tells at run time, of results of symbolic sizes


def nontemporal(program: Program, target: Target) -> Program:
    """The program with kernels that store such results so."""
    users: Counter[int] = Counter()
    for item in program.items:
        users.update(reads(program, item) | writes(program, item))
    least = target.l3_bytes // SHARE_OF_CACHE

    def changed(item: Item) -> Item:
        if not isinstance(item, Step) or _has_template(item.kernel.body):
            return item
        for i, (index, b) in enumerate(zip(item.buffers, item.kernel.buffers)):
            held = program.buffers[index]
            alone = b.mode == "out" and users[index] == 1 and item.buffers.count(index) == 1
            if held.kind == "output" and alone:
                item = _marked(item, i, _is_large(held.size_bytes, least))
        return item

    return replace(program, items=[changed(item) for item in program.items])


def _is_large(size: DimLike, least: int) -> DimLike:
    """1 or 0, at the latest at run time."""
    return dim_min(1, floor_div(size, least))


def _marked(step: Step, place: int, large: DimLike) -> Step:
    """The step with its buffer at `place` nontemporal where `large` is 1."""
    if large == 0:
        return step
    kernel, sizes = step.kernel, step.sizes
    if isinstance(large, Dim):
        name = f"{SIZE_NAME}{place}"
        kernel, sizes = replace(kernel, sizes=(*kernel.sizes, name)), (*sizes, large)
        large = Dim.symbol(name)
    buffers = list(kernel.buffers)
    buffers[place] = replace(buffers[place], nontemporal=large)
    return replace(step, kernel=replace(kernel, buffers=tuple(buffers)), sizes=sizes)


def _has_template(body: Sequence[Stmt]) -> bool:
    """A template stores its result in an order of its own, and may read it again."""
    return any(
        isinstance(s, Template) or (isinstance(s, (Loop, Reduce)) and _has_template(s.body))
        for s in body
    )
