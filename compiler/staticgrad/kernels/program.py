"""A program: kernels in order, over buffers with lifetimes. What is compiled and planned.

Its items are steps, and regions that hold items themselves: a `Repeat` runs them again and again, a
`Choose` one list of several. Steps are numbered through, whatever region they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from staticgrad.ir.dim import DimLike
from staticgrad.ir.dtype import DType
from staticgrad.ir.loc import NOWHERE, Locs

from .ir import Kernel


@dataclass
class ProgramBuffer:
    """Memory of the program: kind input, output, state, constant, packed (a `Pack`'s, null in calls
    for which it is not filled) or temp; `size` in elements.

    `first` and `last` are the steps between which a temp lives, both included. Of `per_thread`
    memory every thread has `size` elements of its own, one after another. A buffer of kind slice is
    a part of the buffer `base` from element `offset` on, where loops' iterations may count.
    `region` is the region that makes it anew each time it runs, 0 for the program.
    """

    kind: str
    dtype: DType
    size: DimLike
    name: str
    first: int = -1
    last: int = -1
    per_thread: bool = False
    base: int = -1
    offset: DimLike = 0
    region: int = 0

    @property
    def size_bytes(self) -> DimLike:
        return self.size * self.dtype.itemsize_bytes


@dataclass(frozen=True)
class Step:
    """One kernel call: `buffers` are indices into the program's, `sizes` the values of the
    kernel's size parameters, `extent` that of its parallel loop (1 without one). `flops` and
    `bytes` are those of one run, of which there are `times`. Threads' shares begin at multiples of
    `unit`, 0 for what suits the kernel. `riding_flops` are those of a product's prologues and
    epilogue, which reports count and the cost of a product does not."""

    kernel: Kernel
    buffers: tuple[int, ...]
    sizes: tuple[DimLike, ...]
    extent: DimLike
    nodes: tuple[str, ...] = ()
    locs: Locs = NOWHERE
    flops: DimLike = 0
    bytes: DimLike = 0
    can_fail: bool = False
    times: DimLike = 1
    unit: DimLike = 0
    riding_flops: DimLike = 0


@dataclass(frozen=True)
class Repeat:
    """Items that run `length` times (`test` is then empty), or while the bool in `predicate` holds
    after `test` has run. `symbol` is the number of the iteration in sizes and offsets; `reverse`
    counts it down. From item `commit` on carries are copied. `by_rows` is 1 where threads have the
    same shares of all steps in all iterations, and none needs what another computes in the loop;
    a symbolic one tells at run time whether that is so. `pieces`: each iteration is a part of a
    long loop, behind which it asks whether it is interrupted."""

    symbol: str
    number: int
    items: tuple[Item, ...]
    commit: int
    length: DimLike | None = None
    reverse: bool = False
    test: tuple[Item, ...] = ()
    predicate: int = -1
    locs: Locs = NOWHERE
    by_rows: DimLike = 0
    pieces: bool = False


@dataclass(frozen=True)
class Choose:
    """One of several lists of items: that of the number in the buffer `index` (a bool or an int64),
    the first or last for a number beyond."""

    index: int
    number: int
    branches: tuple[tuple[Item, ...], ...]
    locs: Locs = NOWHERE


Item = Step | Repeat | Choose


def parts(item: Repeat | Choose) -> tuple[tuple[Item, ...], ...]:
    """The lists of items that a region holds, in order."""
    return (item.test, item.items) if isinstance(item, Repeat) else item.branches


def steps_of(items: Sequence[Item]) -> Iterator[Step]:
    """All steps of a list of items, in order of their numbers."""
    for item in items:
        if isinstance(item, Step):
            yield item
        else:
            for part in parts(item):
                yield from steps_of(part)


@dataclass(frozen=True)
class Pack:
    """A packed copy of a matrix in `state`, a buffer that the program only reads: `step` fills
    `buffer`, which keeps it from call to call, and runs when the state has changed. `rows` are the
    fewest of the products that read it; calls do without unless they are within `useful`."""

    step: Step
    state: int
    buffer: int
    rows: DimLike
    useful: tuple[int, int]


@dataclass
class Program:
    """Items in order. Everything that can fail comes before item `commit`; state is written by it
    and the items after it only."""

    dims: list[str]
    buffers: list[ProgramBuffer]
    items: list[Item]
    commit: int
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    state: dict[int, int] = field(default_factory=dict)  # state id -> buffer
    written: set[int] = field(default_factory=set)  # buffers of state that the program writes
    constants: Mapping[int, Any] = field(default_factory=dict)  # buffer -> array
    messages: dict[int, tuple[str, str]] = field(default_factory=dict)  # code -> text, location
    names: Mapping[str, str] = field(default_factory=dict)  # of sizes -> what the user calls them
    # Steps before which all threads meet though they need not: memory of one phase is for the next.
    meets: frozenset[int] = frozenset()
    packs: tuple[Pack, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, those of regions too, by their numbers."""
        return tuple(steps_of(self.items))

    def base(self, index: int) -> int:
        """The memory that a buffer is part of."""
        found = self.buffers[index].base
        return index if found < 0 else self.base(found)

    @property
    def commit_step(self) -> int:
        """The number of the first step that may write state."""
        return sum(1 for _ in steps_of(self.items[: self.commit]))
