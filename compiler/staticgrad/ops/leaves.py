"""The leaves of a graph: inputs and state. (Constants stand in `convert`.)"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from staticgrad_runtime.state import StateCell

from staticgrad.ir.dim import as_shape
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ir.types import TensorType

from .convert import to_array
from .lowering import Leaf
from .registry import NotDifferentiable, Op, apply, register
from .tensor import Tensor

_input_ids = itertools.count()


def input(name: str, shape: Any, dtype: Any = "float32") -> Tensor:
    """Declares an input: an array that each call brings.

    `shape` is a tuple of ints and symbolic dims: a str such as "N" accepts any size, 0 and 1
    included, and arithmetic such as "2*N+1" is checked when the program is called. The same name
    stands for the same size everywhere in a graph.
    """
    if not isinstance(name, str) or not name:
        raise ArgumentTypeError(f"input: the name must be a non-empty str, got {name!r}")
    attrs = {
        "name": name,
        "id": next(_input_ids),
        "dtype": as_dtype(dtype),
        "shape": as_shape(shape),
    }
    return apply("input", **attrs)


class Parameter(Tensor):
    """A state value with an owner's handle: a trainable parameter or a buffer."""

    __slots__ = ()

    @property
    def cell(self) -> StateCell:
        cell: StateCell = self.node.payload
        return cell

    @property
    def trainable(self) -> bool:
        return bool(self.node.attrs["trainable"])

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy of the current value."""
        return self.cell.numpy()

    def assign(self, value: Any) -> None:
        """Sets the value; shape and dtype must fit. Programs compiled before see it."""
        self.cell.assign(to_array(value, None))


def parameter(value: Any, name: str | None = None, *, trainable: bool = True) -> Parameter:
    """State with a first value: an array that programs read and update in place.

    The array's values are copied. `trainable=False` makes a buffer (a running statistic, a step
    count), which optimisers leave alone.
    """
    array = to_array(value)
    cell = StateCell(np.ascontiguousarray(array).reshape(array.shape), name=name)
    return state_of(cell, trainable)


def state_of(cell: StateCell, trainable: bool = True) -> Parameter:
    """The graph value of a state cell."""
    if not isinstance(cell, StateCell):
        raise ArgumentError(f"expected a StateCell, got {type(cell).__name__}")
    attrs = {
        "name": cell.name,
        "id": cell.id,
        "dtype": as_dtype(str(cell.dtype)),
        "shape": tuple(cell.shape),
        "trainable": trainable,
    }
    result = apply("state", payload=cell, **attrs)
    parameter: Parameter = result
    return parameter


def _leaf(name: str, summary: str, reason: str) -> None:
    register(
        Op(
            name=name,
            summary=summary,
            infer=lambda types, attrs: (TensorType(attrs["dtype"], attrs["shape"]),),
            reference=lambda **attrs: attrs["payload"],
            vjp=NotDifferentiable(reason),
            lower=Leaf(),
            samples=lambda: [],
            source="this project",
        )
    )


_leaf("input", "an array that each call brings", "an input has no operands")
_leaf("state", "an array that the program owns and may update", "state has no operands")
