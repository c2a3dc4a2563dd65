"""Parameter groups: options of parameters, and the learning rate, which is state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ops.leaves import Parameter, parameter
from staticgrad.ops.public import checked_scalar
from staticgrad.ops.tensor import Tensor


class LearningRate(float):
    """The current learning rate: a float, with the state scalar that programs read (`state`)."""

    state: Parameter

    def __new__(cls, state: Parameter) -> LearningRate:
        found = super().__new__(cls, state.numpy())
        found.state = state
        return found

    def __reduce__(self) -> Any:
        return LearningRate, (self.state,)

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.state.numpy()

    def assign(self, value: float) -> None:
        """Sets the rate of the next steps; nothing is recompiled."""
        self.state.assign(rate_of(value))


def rate_of(value: Any) -> np.ndarray[Any, Any]:
    """A learning rate as its state holds it."""
    if isinstance(value, Tensor):
        raise ArgumentTypeError(
            "the learning rate is set to a number, not to a tensor of the graph"
        )
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (list, tuple, np.ndarray)):
        raise ArgumentError(f"the learning rate must be one number of at least 0, got {value!r}")
    number = checked_scalar(value, ("float",), "the learning rate")
    if not 0 <= number < math.inf:
        raise ArgumentError(f"the learning rate must be finite and at least 0, got {number}")
    return np.asarray(number, dtype=np.float64)


FIXED = "the option {!r} is fixed when an optimiser is made; only lr can be changed"


class ParamGroup(dict[str, Any]):
    """Parameters with their options. `group["lr"]` reads and writes the group's rate."""

    def __init__(self, options: Mapping[str, Any], number: int) -> None:
        super().__init__(options)
        self.rate = parameter(rate_of(options["lr"]), f"lr.{number}", trainable=False)
        super().__setitem__("lr", None)

    def __reduce__(self) -> Any:
        # Not item by item, as dicts are copied: "lr" stands for the state.
        return _group_of, (dict(super().items()), self.rate)

    def __getitem__(self, key: str) -> Any:
        return LearningRate(self.rate) if key == "lr" else super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr":
            self.rate.assign(rate_of(value))
        elif key in self or key == "learning_rate":
            raise ArgumentError(FIXED.format(key))
        else:
            super().__setitem__(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return LearningRate(self.rate) if key == "lr" else super().get(key, default)

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def items(self) -> Any:
        return [(key, self[key]) for key in self]

    def values(self) -> Any:
        return [self[key] for key in self]


def _group_of(options: dict[str, Any], rate: Parameter) -> ParamGroup:
    """A group that was copied or pickled."""
    group = ParamGroup.__new__(ParamGroup)
    dict.update(group, options)
    group.rate = rate
    return group


__all__ = ["FIXED", "LearningRate", "ParamGroup", "rate_of"]
