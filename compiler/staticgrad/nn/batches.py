"""What `fit`, `evaluate` and `predict` take as data: arrays, or loaders that give batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad.api import pytree
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ir.node import Value
from staticgrad.ops.convert import to_array
from staticgrad.ops.public import shown

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """The inputs or the targets of samples: one array, a tuple, a dict, or nested ones of arrays
    with samples along their first axes. Lists are data, not structure."""

    arrays: list[Array]
    form: pytree.Structure
    name: str

    @staticmethod
    def of(value: Any, name: str, what: str) -> Part:
        leaves, form = pytree.flatten(value, lambda v: isinstance(v, list))
        if not leaves:
            raise ArgumentTypeError(f"{what}: {name}: expected arrays, got {shown(value)}")
        paths = pytree.paths(form, name)
        return Part([_array(v, p, what) for v, p in zip(leaves, paths)], form, name)

    @property
    def names(self) -> list[str]:
        return pytree.paths(self.form, self.name)

    def rows(self, index: Any) -> Part:
        return Part([a[index] for a in self.arrays], self.form, self.name)

    def tree(self) -> Any:
        return pytree.unflatten(self.form, self.arrays)


def _array(value: Any, name: str, what: str) -> Array:
    if isinstance(value, Value):
        raise ArgumentTypeError(
            f"{what}: {name}: expected an array, got the tensor {value!r} of a static graph, which "
            "has no values"
        )
    if hasattr(value, "__array__") and not isinstance(value, (np.ndarray, np.generic)):
        value = np.asarray(value)  # another library's array keeps its dtype too
    array = to_array(value)
    as_dtype(array.dtype)  # refuses what has no kernels by name
    if not array.ndim:
        raise ShapeError(
            f"{what}: {name}: expected samples along the first axis, got the number {array}"
        )
    return array


@dataclass(frozen=True)
class Batch:
    """Some samples; `y` is None where only a prediction is wanted."""

    x: Part
    y: Part | None
    size: int

    @staticmethod
    def of(x: Part, y: Part | None, what: str) -> Batch:
        parts = [x] if y is None else [x, y]
        sizes = {n: len(a) for part in parts for n, a in zip(part.names, part.arrays)}
        if len(set(sizes.values())) != 1:
            text = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise ShapeError(f"{what}: arrays of different numbers of samples: {text}")
        return Batch(x, y, len(x.arrays[0]))

    def rows(self, index: Any) -> Batch:
        x, y = self.x.rows(index), None if self.y is None else self.y.rows(index)
        return Batch(x, y, len(x.arrays[0]))

    @property
    def arrays(self) -> list[Array]:
        return [*self.x.arrays, *(self.y.arrays if self.y is not None else ())]


class ArrayData:
    """Arrays that are cut into batches, in order or in the order that `rng` draws."""

    def __init__(self, samples: Batch, batch_size: int) -> None:
        self.samples, self.batch_size = samples, batch_size

    def __len__(self) -> int:
        return -(-self.samples.size // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        size, step = self.samples.size, self.batch_size
        order = None if rng is None else rng.permutation(size)
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield self.samples.rows(slice(start, stop) if order is None else order[start:stop])

    def split(self, fraction: float, what: str) -> tuple[ArrayData, ArrayData]:
        """The first samples and the last `fraction` of them."""
        count = int(self.samples.size * (1.0 - fraction))
        if not 0 < count < self.samples.size:
            raise ArgumentError(
                f"{what}: validation_split={fraction} leaves no samples on one side of "
                f"{self.samples.size}"
            )
        first, last = slice(0, count), slice(count, None)
        return (
            ArrayData(self.samples.rows(first), self.batch_size),
            ArrayData(self.samples.rows(last), self.batch_size),
        )


class LoaderData:
    """An object that gives batches each time it is iterated over; `pairs` of (inputs, targets),
    else inputs, of which a pair's targets are left out."""

    def __init__(self, loader: Iterable[Any], what: str, *, pairs: bool = True) -> None:
        self.loader, self.what, self.pairs = loader, what, pairs

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    @property
    def once(self) -> bool:
        """Whether its batches come only once, as those of a generator do."""
        return isinstance(self.loader, Iterator)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        for batch in self.loader:
            yield self._batch(batch)

    def _batch(self, batch: Any) -> Batch:
        what = f"{self.what}: a batch"
        paired = isinstance(batch, (tuple, list)) and len(batch) == 2
        if self.pairs:
            if not paired:
                raise ArgumentTypeError(f"{what} is a pair (inputs, targets), got {_came(batch)}")
            return Batch.of(Part.of(batch[0], "x", what), Part.of(batch[1], "y", what), what)
        if isinstance(batch, (tuple, list)):
            if not paired and len(batch) != 1:
                raise ArgumentTypeError(
                    f"{what} is an array, (inputs,) or (inputs, targets), got {_came(batch)}"
                )
            batch = batch[0]
        return Batch.of(Part.of(batch, "x", what), None, what)


def _came(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return shown(batch)


Data = ArrayData | LoaderData


def data_of(xs: Any, ys: Any, batch_size: int, what: str) -> Data:
    """Inputs and targets as arrays, or, without `ys`, a loader of pairs."""
    if batch_size < 1:
        raise ArgumentError(f"{what}: batch_size must be at least 1, got {batch_size}")
    if ys is None:
        if _is_array(xs) or isinstance(xs, (tuple, Mapping)) or not _iterates(xs):
            raise ArgumentTypeError(
                f"{what}: expected targets ys beside the arrays xs, or a loader of batches "
                f"(inputs, targets); got {shown(xs)} alone"
            )
        return LoaderData(xs, what)
    x, y = Part.of(xs, "x", what), Part.of(ys, "y", what)
    return ArrayData(Batch.of(x, y, what), batch_size)


def inputs_of(xs: Any, batch_size: int, what: str) -> Data:
    """Inputs alone: arrays, or a loader of them or of pairs with targets."""
    if batch_size < 1:
        raise ArgumentError(f"{what}: batch_size must be at least 1, got {batch_size}")
    if not _is_array(xs) and not isinstance(xs, (tuple, list, Mapping)) and _iterates(xs):
        return LoaderData(xs, what, pairs=False)
    x = Part.of(xs, "x", what)
    return ArrayData(Batch.of(x, None, what), batch_size)


def validation_of(given: Any, batch_size: int, what: str) -> Data:
    """`(xs, ys)`, or a loader of pairs."""
    if isinstance(given, tuple) and len(given) == 2:
        return data_of(given[0], given[1], batch_size, what)
    if isinstance(given, tuple):
        raise ArgumentTypeError(f"{what}: expected (xs, ys) or a loader, got {_came(given)}")
    return data_of(given, None, batch_size, what)


def _is_array(value: Any) -> bool:
    return isinstance(value, Value) or hasattr(value, "__array__")


def _iterates(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


__all__ = ["ArrayData", "Batch", "Data", "LoaderData", "Part", "data_of", "inputs_of"]
