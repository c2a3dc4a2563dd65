"""A workload: what is computed, on which arrays, and how much work that is at least.

Its body is written once, over a namespace `X` that each framework's driver provides, so that all
of them compute the same thing. This module needs NumPy alone: workers of other Python
installations import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]
Draw = Callable[[np.random.Generator, Sizes], tuple[list[Array], list[Array]]]

# call      y = body(X, [], *inputs)                      the result is y
# gradient  the body is a scalar loss of the parameters   the result is their gradients
# vjp       y = body(X, parameters, *inputs)              y, and the parameters' gradients
# train     the body is a scalar loss                     one SGD step with momentum; the loss
# descent   the body is a scalar objective of one scalar  it, after so many steps down
Kind = Literal["call", "gradient", "vjp", "train", "descent"]

LEARNING_RATE, MOMENTUM = 0.01, 0.9  # of the kind "train"
DESCENT_RATE = 0.02  # of the kind "descent"
SEED = 20240229


@dataclass(frozen=True)
class Workload:
    """One thing to compute.

    sizes       what the benchmark runs; `small` is for tests of the benchmark itself
    draw        (generator, sizes) -> (parameters, inputs), float32 and int64
    flops       operations that the result needs: 2 for a multiply-add of a product or convolution,
                1 for any other arithmetic operation or function of an element
    cotangent   of the kind "vjp": whether the last input is what y's gradient starts from (ones,
                if not); the body does not see it
    tolerance   the largest difference to the reference that counts as equal, as a part of the
                largest magnitude in the array (see `results.largest_difference`)
    headline    measured from a fresh process too (first call, memory)
    without     framework -> why it does not take part
    one_thread  also run with one thread where the run was not told how many to use
    """

    name: str
    group: str
    about: str
    kind: Kind
    sizes: Sizes
    small: Sizes
    draw: Draw
    body: Callable[..., Any]
    flops: Callable[[Sizes], int]
    cotangent: bool = False
    tolerance: float = 1e-4
    headline: bool = True
    without: Mapping[str, str] = field(default_factory=dict)
    one_thread: bool = False

    def arrays(self) -> tuple[list[Array], list[Array]]:
        """Parameters and inputs, the same ones every time."""
        return self.draw(np.random.default_rng(SEED), self.sizes)

    def shrunk(self) -> Workload:
        """The same at its small sizes."""
        return replace(self, sizes=self.small)


def least_bytes(kind: Kind, parameters: Sequence[Array], inputs: Sequence[Array],
                outputs: Sequence[Array]) -> int:  # fmt: skip
    """What a call must read and write at least, nothing twice: its arguments, its results, and
    for a training step its parameters and their momentum, each of which is read and written."""
    times = 4 if kind == "train" else 1
    given = times * sum(p.nbytes for p in parameters) + sum(a.nbytes for a in inputs)
    return int(given + sum(a.nbytes for a in outputs))


def working_set(kind: Kind, parameters: Sequence[Array], inputs: Sequence[Array],
                outputs: Sequence[Array]) -> int:  # fmt: skip
    """The memory of those arrays, which tells from which cache they can come."""
    times = 2 if kind == "train" else 1
    held = times * sum(p.nbytes for p in parameters) + sum(a.nbytes for a in inputs)
    return int(held + sum(a.nbytes for a in outputs))


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def product(sizes: Sizes, names: str) -> int:
    """The product of named sizes: `product(s, "B T D")`."""
    return math.prod(sizes[name] for name in names.split())
