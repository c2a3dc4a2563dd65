"""A program: kernels in order, over buffers with lifetimes. What is compiled and planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from staticgrad.ir.dim import DimLike
from staticgrad.ir.dtype import DType
from staticgrad.ir.loc import NOWHERE, Locs

from .ir import Kernel


@dataclass
class ProgramBuffer:
    """Memory of the program: kind input, output, state, constant or temp; `size` in elements.

    `first` and `last` are the steps between which a temp lives, both included. Of `per_thread`
    memory every thread has `size` elements of its own, one after another.
    """

    kind: str
    dtype: DType
    size: DimLike
    name: str
    first: int = -1
    last: int = -1
    per_thread: bool = False

    @property
    def size_bytes(self) -> DimLike:
        return self.size * self.dtype.itemsize_bytes


@dataclass(frozen=True)
class Step:
    """One kernel call: `buffers` are indices into the program's, `sizes` the values of the
    kernel's size parameters, `extent` that of its parallel loop (1 without one)."""

    kernel: Kernel
    buffers: tuple[int, ...]
    sizes: tuple[DimLike, ...]
    extent: DimLike
    nodes: tuple[str, ...] = ()
    locs: Locs = NOWHERE
    flops: DimLike = 0
    bytes: DimLike = 0
    can_fail: bool = False


@dataclass
class Program:
    """Steps in order. Everything that can fail comes before step `commit`; state is written by it
    and the steps after it only."""

    dims: list[str]
    buffers: list[ProgramBuffer]
    steps: list[Step]
    commit: int
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    state: dict[int, int] = field(default_factory=dict)  # state id -> buffer
    written: set[int] = field(default_factory=set)  # buffers of state that the program writes
    constants: Mapping[int, Any] = field(default_factory=dict)  # buffer -> array
    messages: dict[int, tuple[str, str]] = field(default_factory=dict)  # code -> text, location
