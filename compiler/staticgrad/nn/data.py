"""Batches of arrays: `TensorDataset` and `DataLoader`, with PyTorch's names (`sg.data`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ir.node import Value
from staticgrad.ops.convert import to_array
from staticgrad.ops.public import public_class, shown
from staticgrad.ops.random import init_uniform
from staticgrad.ops.reduction import at_user_line

Array = np.ndarray[Any, Any]


def order_of_batches(seed: int | None) -> np.random.Generator:
    """What shuffles: `np.random.default_rng(seed)`; without a seed one that is drawn from the
    project's own generator, so that `sg.random.seed` fixes the order too."""
    if seed is None:
        seed = int(init_uniform((), 0.0, 2.0**53, "float64"))
    if seed < 0:
        raise ArgumentError(f"seed must be at least 0, got {seed}")
    return np.random.default_rng(seed)


def rows_of(value: Any, what: str) -> Any:
    """`value` with samples along its first axis: lists as arrays, anything array-like as it is."""
    if isinstance(value, Value):
        raise ArgumentTypeError(
            f"{what}: expected an array, got the tensor {value!r} of a static graph, which has no "
            "values"
        )
    if not hasattr(value, "shape") or not hasattr(value, "__getitem__"):
        value = to_array(value)
    if len(value.shape) < 1:
        raise ShapeError(f"{what}: expected samples along the first axis, got a single number")
    return value


@public_class
class TensorDataset:
    """Arrays with samples along their first axes: `dataset[i]` is the tuple of all i-th rows.

    Raises `ShapeError` where the arrays do not have the same number of samples.
    """

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ArgumentError("TensorDataset: expected at least one array")
        self.tensors = tuple(rows_of(t, "TensorDataset") for t in tensors)
        sizes = [int(t.shape[0]) for t in self.tensors]
        if len(set(sizes)) != 1:
            raise ShapeError(f"TensorDataset: the arrays have different numbers of rows: {sizes}")

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(t[index] for t in self.tensors)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors)
        return f"TensorDataset({shapes})"


@public_class
class DataLoader:
    """The batches of a dataset; every iteration is one epoch.

    dataset     a `TensorDataset`, an array, a tuple of arrays, or any sequence of samples (an
                array or a tuple of arrays each), which are stacked
    batch_size  samples a batch; the last batch has those that are left
    shuffle     whether each epoch has another order: `rng.permutation(len(dataset))`, where rng is
                one `numpy.random.default_rng(seed)` for all epochs
    drop_last   whether a last batch that is not full is left out
    seed        None: drawn from the generator that `sg.random.seed` sets

    A batch of a `TensorDataset` or a tuple is a tuple of arrays, of one array an array.
    """

    def __init__(
        self, dataset: Any, batch_size: int = 1, shuffle: bool = False, drop_last: bool = False,
        *, seed: int | None = None,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ArgumentError(f"DataLoader: batch_size must be at least 1, got {batch_size}")
        if isinstance(dataset, tuple):
            dataset = TensorDataset(*dataset)
        elif isinstance(dataset, Value):
            dataset = rows_of(dataset, "DataLoader")  # refuses it
        elif not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ArgumentTypeError(
                f"DataLoader: expected a dataset with len() and rows, got {shown(dataset)}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._rng = order_of_batches(seed) if shuffle else None

    def __len__(self) -> int:
        """The number of batches."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        order = None if self._rng is None else self._rng.permutation(len(self.dataset))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            stop = min(start + self.batch_size, len(self.dataset))
            yield self._batch(slice(start, stop) if order is None else order[start:stop])

    def _batch(self, rows: Any) -> Any:
        if isinstance(self.dataset, TensorDataset) or hasattr(self.dataset, "shape"):
            return self.dataset[rows]
        places = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
        return _stacked([self.dataset[i] for i in places])

    def __repr__(self) -> str:
        return (
            f"DataLoader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"drop_last={self.drop_last})"
        )


def _stacked(samples: Sequence[Any]) -> Any:
    """Samples side by side along a new first axis; of tuples each part for itself."""
    if isinstance(samples[0], (tuple, list)):
        return tuple(_stacked(part) for part in zip(*samples, strict=True))
    try:
        return np.stack([to_array(s) for s in samples])
    except ValueError as error:
        wrong = ShapeError(f"DataLoader: the samples do not stack: {error}")
        raise at_user_line(wrong) from None  # in a loop: no boundary adds it


__all__ = ["DataLoader", "TensorDataset"]
