"""From the shapes of a call to the values of the symbols, and to everything that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import workers
from .arena import ALIGN_BYTES
from .artifact import InputSpec, Manifest, OutputSpec
from .context import GIL_RELEASE_NS
from .dims import (
    DimTable,
    dim_text,
    evaluate,
    linear,
    shape_text,
    solve,
    symbols_of,
)
from .errors import BindError
from .plan import Plan, Planner

Shape = tuple[int, ...]

# Threads must promise to gain so much; their dispatch and the last barrier take some 0.4 us, and
# what they read of each other's work comes from the other core's cache. Where another process has
# that core, `sg_dispatch` finds out by itself that the caller alone is faster.
LEAST_GAIN_NS = 10_000
BARRIER_NS = 500
# And so much for each time they meet: a small loop meets hundreds of times to win little, and pays
# for it on a busy machine.
LEAST_GAIN_A_BARRIER_NS = 4_000
# And as many as have so much to do each.
LEAST_PART_NS = 8_000
MAX_BYTES = 1 << 47  # what an address space holds; also keeps every sum inside 64 bits


@dataclass(slots=True, eq=False)
class Binding:
    """A program at given sizes. `frame` is what contexts copy of it (`frames`), once one has."""

    dims: dict[str, int]
    input_shapes: list[Shape]
    output_shapes: list[Shape]
    input_bytes: list[int]
    output_bytes: list[int]
    plan: Plan
    flops: int
    bytes: int
    ns: float
    threads: int
    patient: bool  # waits for workers that sleep
    frame: NDArray[np.int64] | None = None
    frame_address: int = 0

    @property
    def release_gil(self) -> bool:
        # A worker that has only just been started needs the GIL once more.
        return self.threads > 1 or self.ns > GIL_RELEASE_NS


def input_text(spec: InputSpec) -> str:
    """An input as errors name it: `input 'x' (model.py:12)`."""
    return f"input {spec.name!r}" + (f" ({spec.location})" if spec.location else "")


class Binder:
    """Binds the symbols of one manifest; keeps no state of a call. Programs get at most `threads`
    threads."""

    def __init__(self, manifest: Manifest, threads: int = 1) -> None:
        self._manifest = manifest
        self._threads = threads
        temps = [buffer for buffer in manifest.buffers if buffer.kind == "temp"]
        self._planner = Planner([b.first for b in temps], [b.last for b in temps])
        self._per_thread = [i for i, buffer in enumerate(temps) if buffer.per_thread]
        inputs = [dim for spec in manifest.inputs for dim in spec.shape]
        outputs = [dim for spec in manifest.outputs for dim in spec.shape]
        sizes = [buffer.size_bytes for buffer in temps]
        cost = manifest.cost
        costs = [cost.flops, cost.bytes, cost.ns, cost.shared_ns, cost.barriers]
        sides = [side for c in manifest.constraints for side in (c.left, c.right)]
        self._inputs = DimTable(inputs, manifest.dims)
        self._sides = DimTable(sides, manifest.dims)
        self._all = DimTable([*inputs, *outputs, *sizes, *costs], manifest.dims)
        self._alone = _alone(manifest)
        self._ranks = [len(spec.shape) for spec in manifest.inputs]

    def bind_shapes(self, shapes: Sequence[Shape]) -> dict[str, int]:
        """The symbols' values for the inputs' shapes (one per input, in order).

        Symbols that stand alone come first; then expressions linear in one unknown symbol are
        solved; then every dim is checked. Raises BindError.
        """
        manifest = self._manifest
        key = self.key_of(shapes)
        if key is not None:
            values = dict(zip(manifest.dims, key))
            if self._inputs.evaluate(values) == [size for shape in shapes for size in shape]:
                self.check(values)
                return values
        values = {}
        source: dict[str, tuple[InputSpec, int]] = {}
        for spec, shape in zip(manifest.inputs, shapes):
            if len(spec.shape) != len(shape):
                raise BindError(
                    f"{input_text(spec)}: expected {len(spec.shape)} dims "
                    f"{shape_text(spec.shape)}, got {len(shape)}: {shape_text(shape)}"
                )
            for axis, (dim, size) in enumerate(zip(spec.shape, shape)):
                if isinstance(dim, str) and dim not in values:
                    values[dim], source[dim] = size, (spec, axis)
        self._solve_rest(shapes, values, source)
        for spec, shape in zip(manifest.inputs, shapes):
            for axis, (dim, size) in enumerate(zip(spec.shape, shape)):
                if evaluate(dim, values) != size:
                    raise BindError(_mismatch(spec, shape, axis, values, source))
        self.check(values)
        return values

    def key_of(self, shapes: Sequence[Shape]) -> tuple[int, ...] | None:
        """The symbols' values, in the manifest's order, where each stands alone in some shape: the
        only ones that these shapes can have. None where one doesn't, or where ranks differ."""
        if self._alone is None or [len(shape) for shape in shapes] != self._ranks:
            return None
        return tuple([shapes[i][axis] for i, axis in self._alone])

    def _solve_rest(
        self,
        shapes: Sequence[Shape],
        values: dict[str, int],
        source: dict[str, tuple[InputSpec, int]],
    ) -> None:
        """Solves dims like `2*N + 1` for the one symbol in them that has no value yet."""
        progress = True
        while progress and len(values) < len(self._manifest.dims):
            progress = False
            for spec, shape in zip(self._manifest.inputs, shapes):
                for axis, (dim, size) in enumerate(zip(spec.shape, shape)):
                    unknown = symbols_of(dim) - values.keys()
                    if len(unknown) != 1:
                        continue
                    (symbol,) = unknown
                    found = linear(dim, symbol, values)
                    if found is None or found[0] == 0:
                        continue
                    value = solve(dim, symbol, size, values)
                    if value is None:
                        raise BindError(
                            f"{input_text(spec)}: expected shape {shape_text(spec.shape)}, got "
                            f"{shape_text(shape)}: no {symbol} makes dim {axis}, "
                            f"{dim_text(dim)}, equal {size}"
                        )
                    values[symbol], source[symbol] = value, (spec, axis)
                    progress = True
        missing = [name for name in self._manifest.dims if name not in values]
        if missing:
            raise BindError(f"the inputs' shapes do not determine {', '.join(missing)}")

    def check(self, values: Mapping[str, int]) -> None:
        """Checks that each symbol has a value and that all constraints hold; else BindError."""
        unknown = sorted(values.keys() - set(self._manifest.dims))
        if unknown:
            known = ", ".join(self._manifest.dims) or "none"
            raise BindError(f"no symbol is called {', '.join(unknown)}; known: {known}")
        for name in self._manifest.dims:
            if name not in values:
                raise BindError(f"symbol {name} has no value")
            if isinstance(values[name], bool) or not isinstance(values[name], int):
                raise BindError(f"symbol {name}: expected an int, got {values[name]!r}")
            if values[name] < 0:
                raise BindError(f"symbol {name} is {values[name]}; a dim is at least 0")
        sides = iter(self._sides.evaluate(values))
        for constraint, left, right in zip(self._manifest.constraints, sides, sides):
            if left != right:
                raise BindError(
                    f"{constraint.message}: {dim_text(constraint.left)} is {left}, "
                    f"{dim_text(constraint.right)} is {right}"
                )

    def binding(self, values: Mapping[str, int]) -> Binding:
        """Sizes, the memory plan and costs for values that `check` has passed."""
        manifest, dims = self._manifest, dict(values)
        found = self._all.evaluate(dims)
        flops, traffic, ns, shared_ns, barriers = found[-5:]
        left = iter(found)
        shapes = [
            [_shape(spec, [int(next(left)) for _ in spec.shape], dims) for spec in specs]
            for specs in (manifest.inputs, manifest.outputs)
        ]
        sizes = [int(size) for size in left][:-5]
        threads = threads_for(self._threads, shared_ns, barriers)
        for i in self._per_thread:
            sizes[i] = -(-sizes[i] // ALIGN_BYTES) * ALIGN_BYTES * threads
        if sum(sizes) > MAX_BYTES:
            raise MemoryError(f"temporaries of {sum(sizes)} bytes at {dims}")
        if min(sizes, default=0) < 0:
            raise BindError(f"a temporary of {min(sizes)} bytes at {dims}")
        return Binding(
            dims,
            shapes[0],
            shapes[1],
            _bytes(manifest.inputs, shapes[0]),
            _bytes(manifest.outputs, shapes[1]),
            self._planner.solve(sizes),
            int(flops),
            int(traffic),
            float(ns),
            threads,
            shared_ns >= workers.WAKE_NS,
        )


def threads_for(most: int, shared_ns: float, barriers: float) -> int:
    """Several threads, at most `most`, or one: whichever the estimates say is faster."""
    threads = int(min(most, shared_ns // LEAST_PART_NS))
    if threads <= 1:
        return 1
    gain = shared_ns * (1 - 1 / threads) - BARRIER_NS * barriers
    if gain < LEAST_GAIN_A_BARRIER_NS * barriers:
        return 1
    # Threads without a core each sleep at every barrier.
    least = LEAST_GAIN_NS if threads <= workers.usable_cpus() else workers.WAKE_NS
    return threads if gain >= least else 1


def _alone(manifest: Manifest) -> list[tuple[int, int]] | None:
    """For each symbol an input and the axis of it that the symbol is the size of; None where one
    stands in expressions only."""
    places: dict[str, tuple[int, int]] = {}
    for i, spec in enumerate(manifest.inputs):
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                places.setdefault(dim, (i, axis))
    found = [places.get(name) for name in manifest.dims]
    return None if None in found else [place for place in found if place is not None]


def _shape(spec: InputSpec | OutputSpec, sizes: Sequence[int], values: Mapping[str, int]) -> Shape:
    if min(sizes, default=0) < 0:
        raise BindError(
            f"{spec.name!r}: shape {shape_text(spec.shape)} is {tuple(sizes)} at {dict(values)}"
        )
    return tuple(sizes)


def _bytes(specs: Sequence[InputSpec | OutputSpec], shapes: Sequence[Shape]) -> list[int]:
    return [math.prod(shape) * np.dtype(spec.dtype).itemsize for spec, shape in zip(specs, shapes)]


def _mismatch(
    spec: InputSpec,
    shape: Shape,
    axis: int,
    values: Mapping[str, int],
    source: Mapping[str, tuple[InputSpec, int]],
) -> str:
    """Says which dim differs, and which inputs fixed the symbols in it."""
    dim = spec.shape[axis]
    text = (
        f"{input_text(spec)}: expected shape {shape_text(spec.shape)}, got {shape_text(shape)}: "
        f"dim {axis} is {shape[axis]}, expected {dim_text(dim)}"
    )
    names = sorted(symbols_of(dim))
    if not names:
        return text
    if not isinstance(dim, str):
        text += f" = {evaluate(dim, values)}"
    fixed = [
        f"{name} is {values[name]} from {input_text(source[name][0])}, dim {source[name][1]}"
        for name in names
    ]
    return f"{text}, where {' and '.join(fixed)}"


def dims_key(values: Mapping[str, int], order: Sequence[str]) -> tuple[int, ...]:
    """Values in the manifest's order: what bindings are remembered by."""
    return tuple(values[name] for name in order)
