"""The workloads in NumPy; `dtype=float64` is the reference of all values."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from . import numpy_tape as X
from .drivers import Program
from .workload import DESCENT_RATE, LEARNING_RATE, MOMENTUM, Array, Workload


class NumpyDriver:
    def __init__(self, threads: int, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)

    def versions(self) -> dict[str, str]:
        found = {"numpy": np.__version__}
        if importlib.util.find_spec("scipy") is not None:
            found["scipy"] = metadata.version("scipy")
        return found

    def lacks(self, workload: Workload) -> str | None:
        if workload.name == "black_scholes" and importlib.util.find_spec("scipy") is None:
            return "NumPy has no erf, and SciPy is not installed"
        return None

    def prepare(
        self, workload: Workload, parameters: Sequence[Array], inputs: Sequence[Array]
    ) -> Program:
        start = [self._cast(p) for p in parameters]
        given = [self._cast(a) for a in inputs]
        if workload.kind == "train":
            return _training(workload, start, given)
        return Program(_callable(workload, start, given), _as_arrays)

    def forget(self) -> None:
        return None

    def _cast(self, array: Array) -> Any:
        """Scalars become NumPy's scalar type, which computes faster than arrays without axes."""
        cast = array.astype(self.dtype) if array.dtype.kind == "f" else array
        return cast if cast.ndim else cast[()]


def _as_arrays(result: Any) -> list[Array]:
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part) for part in parts]


def _callable(w: Workload, start: list[Any], given: list[Any]) -> Any:
    body = w.body
    if w.kind == "call":
        return functools.partial(body, X, [], *given)
    if w.kind == "descent":
        steps, (x,) = w.sizes["steps"], start
        return lambda: _descend(body, x, steps)
    cotangent = given.pop() if w.cotangent else None

    def derived() -> Any:
        variables = [X.Var(p) for p in start]
        y = body(X, variables, *given)
        grads = X.gradients(y, variables, cotangent)
        return tuple(grads) if w.kind == "gradient" else (y.value, *grads)

    return derived


def _descend(body: Any, x: Any, steps: int) -> Any:
    """By hand, as one writes it: the derivative of x² - 4x is 2x - 4."""
    rate = x.dtype.type(DESCENT_RATE)
    for _ in range(steps):
        x = x - rate * (2 * x - 4)
    return x


def _training(w: Workload, start: list[Array], given: list[Array]) -> Program:
    held = [p.copy() for p in start]
    momenta = [np.zeros_like(p) for p in start]

    def step() -> Any:
        variables = [X.Var(p) for p in held]
        loss = w.body(X, variables, *given)
        for p, m, g in zip(held, momenta, X.gradients(loss, variables)):
            m *= MOMENTUM
            m += g
            p -= LEARNING_RATE * m
        return loss.value

    def restore() -> None:
        for p, m, first in zip(held, momenta, start):
            np.copyto(p, first)
            m.fill(0)

    return Program(step, _as_arrays, state=lambda: [p.copy() for p in held], keep=lambda: restore)
