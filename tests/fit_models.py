"""Data and small models for the tests of `fit`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import staticgrad as sg

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3))
TRUE = np.array([1.0, -2.0, 0.5])
Y = X @ TRUE + 0.3 + 0.1 * RNG.normal(size=50)
LABELS = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)
QUIET: dict[str, Any] = {"progress": False}


def linear(dtype: str = "float64", out: int = 1) -> Any:
    sg.random.seed(0)
    return sg.nn.Linear(3, out).to(dtype)


def classifier() -> Any:
    sg.random.seed(0)
    layers = (sg.nn.Linear(3, 8), sg.nn.Tanh(), sg.nn.Linear(8, 3))
    return sg.nn.Sequential(*layers).double()


def sgd(model: Any, lr: float = 0.1, **options: Any) -> Any:
    return sg.optim.SGD(model.parameters(), lr=lr, **options)


class Loader:
    """Gives its batches again at every iteration, without a length."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[Any]:
        start = 0
        for size in self.sizes:
            yield [X[start : start + size], Y[start : start + size]]
            start += size
