"""What `fit`, `evaluate` and `predict` take as data: arrays, or loaders that give batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """Some samples; `y` is None where only a prediction is wanted, `weight` where all samples count
    alike."""

    x: Part
    y: Part | None
    size: int
    weight: Part | None = None

    @staticmethod
    def of(x: Part, y: Part | None, what: str, weight: Part | None = None) -> Batch:
        parts = [p for p in (x, y, weight) if p is not None]
        sizes = {n: len(a) for part in parts for n, a in zip(part.names, part.arrays)}
        if len(set(sizes.values())) != 1:
            text = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise ShapeError(f"{what}: arrays of different numbers of samples: {text}")
        return Batch(x, y, len(x.arrays[0]), weight)

    def rows(self, index: Any) -> Batch:
        x, y, weight = (None if p is None else p.rows(index) for p in (self.x, self.y, self.weight))
        assert x is not None
        return Batch(x, y, len(x.arrays[0]), weight)

    @property
    def parts(self) -> list[Part]:
        return [p for p in (self.x, self.y, self.weight) if p is not None]

    @property
    def arrays(self) -> list[Array]:
        return [a for p in self.parts for a in p.arrays]


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


def several_inputs(forward: Callable[..., Any], xs: Any) -> Any:
    """Keras's list of arrays, one for each input, as the tuple that it is here. Else a list is one
    array, so `forward` must take several inputs for it to be meant."""
    if not isinstance(xs, list) or not all(isinstance(a, np.ndarray) and a.ndim for a in xs):
        return xs
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [p for p in inspect.signature(forward).parameters.values() if p.kind in kinds]
    needed = sum(p.default is p.empty for p in taken)
    return tuple(xs) if 1 < needed <= len(xs) <= len(taken) else xs


def with_weights(data: Data, given: Any, what: str) -> Data:
    """The samples with a weight each."""
    if given is None:
        return data
    if isinstance(data, LoaderData):
        raise ArgumentError(
            f"{what}: sample_weight needs the samples as arrays xs, ys; for a loader give a loss "
            "function (prediction, target) that reads the weights from the targets"
        )
    part = Part.of(given, "sample_weight", what)
    if len(part.arrays) != 1 or part.arrays[0].ndim != 1 or part.arrays[0].dtype.kind not in "biuf":
        raise ShapeError(
            f"{what}: sample_weight: expected one number for each sample, got {shown(given)}"
        )
    array = part.arrays[0].astype(np.float64, copy=False)
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ArgumentError(f"{what}: sample_weight: expected finite weights of at least 0")
    x, y = data.samples.x, data.samples.y
    samples = Batch.of(x, y, what, Part([array], part.form, "sample_weight"))
    return ArrayData(samples, data.batch_size)


def class_weights(data: Data, given: Any, what: str) -> Any:
    """A weight for each sample, that of its class; 1 for classes that are not named."""
    if isinstance(data, LoaderData):
        raise ArgumentError(f"{what}: class_weight needs the samples as arrays xs, ys")
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(
            f"{what}: class_weight: expected a dict of weights by class, e.g. {{0: 1.0, 1: 5.0}}, "
            f"got {shown(given)}"
        )
    arrays = data.samples.y.arrays if data.samples.y is not None else []
    labels = arrays[0] if len(arrays) == 1 else np.zeros((0, 0, 0))
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(axis=1)
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise ArgumentError(f"{what}: class_weight needs one label, or one row, for each sample")
    weight = np.ones(len(labels))
    for label, value in given.items():
        weight[labels == label] = value
    return weight


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


__all__ = [
    "ArrayData", "Batch", "Data", "LoaderData", "Part", "class_weights", "data_of", "inputs_of",
    "several_inputs", "with_weights",
]  # fmt: skip
