"""Parameters of models as eager leaves: a tensor that shares the memory of the state cell."""

from __future__ import annotations

import weakref
from typing import Any

from staticgrad_runtime.state import StateCell

from staticgrad.ir.errors import ArgumentTypeError
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import dynamic
from staticgrad.ops.tensor import Tensor as GraphTensor

from .tape import Leaf
from .tensor import CellStorage, Tensor

_leaves: weakref.WeakKeyDictionary[StateCell, Tensor] = weakref.WeakKeyDictionary()


def leaf_of(parameter: Parameter) -> Tensor:
    """The eager tensor of a parameter: its values, its gradient. One for each state cell."""
    try:
        found: Tensor = parameter._eager
        return found
    except AttributeError:
        pass
    cell = parameter.cell
    made = _leaves.get(cell)
    if made is None:
        made = Tensor(cell.view(), CellStorage(cell))
        if parameter.trainable and made._sig.is_float:
            made._leaf = made._node = Leaf(made._sig)
        _leaves[cell] = made
    parameter._eager = made
    return made


def eager_of(value: Any, what: str) -> Tensor:
    """An eager tensor as it is; a parameter or variable as its leaf; the value of a static tensor
    that depends on no input."""
    if isinstance(value, Parameter):
        return leaf_of(value)
    if isinstance(value, GraphTensor):
        from .static_values import value_of

        return value_of(value)
    if not dynamic.is_tensor(value):
        raise ArgumentTypeError(f"{what}: expected an eager tensor, got {type(value).__name__}")
    return value if type(value) is Tensor else value.value()  # type: ignore[no-any-return]


__all__ = ["eager_of", "leaf_of"]
