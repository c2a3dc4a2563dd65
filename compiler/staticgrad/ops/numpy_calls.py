"""NumPy's functions on static tensors: operators build graph, anything else says what serves it.

`array + tensor` comes here as a call of `np.add`, and is the tensor's reflected operator. There are
no values to run `np.sin` or `np.sum` on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentTypeError

REFLECTED = {
    np.add: "__radd__", np.subtract: "__rsub__", np.multiply: "__rmul__",
    np.true_divide: "__rtruediv__", np.floor_divide: "__rfloordiv__", np.remainder: "__rmod__",
    np.power: "__rpow__", np.matmul: "__rmatmul__", np.bitwise_and: "__rand__",
    np.bitwise_or: "__ror__", np.bitwise_xor: "__rxor__", np.left_shift: "__rlshift__",
    np.right_shift: "__rrshift__", np.equal: "__eq__", np.not_equal: "__ne__",
    np.less: "__gt__", np.less_equal: "__ge__", np.greater: "__lt__", np.greater_equal: "__le__",
}  # fmt: skip

# What NumPy reads of any object with these attributes.
_READ: dict[Callable[..., Any], str] = {np.shape: "shape", np.ndim: "ndim", np.size: "size"}


def operator_of(tensor: Any, ufunc: Any, method: str, inputs: Any, kwargs: Any) -> Any:
    """`array op tensor` by the tensor's reflected operator. Raises for every other call."""
    name = REFLECTED.get(ufunc)
    if name is None or method != "__call__" or kwargs or inputs[1] is not tensor:
        if "out" in kwargs:
            raise ArgumentTypeError(
                f"np.{ufunc.__name__}(.., out=array), as `array op= tensor` is: the result is a "
                "static tensor, which a NumPy array can't hold; write `array = array op tensor`"
            )
        raise _refused(ufunc.__name__)
    return getattr(tensor, name)(inputs[0])


def read(function: Any, args: Any, kwargs: Any) -> Any:
    """What NumPy's functions of an object's shape give. Raises for the others."""
    name = _READ.get(function)
    if name is None or len(args) != 1 or kwargs:
        raise _refused(function.__name__)
    return getattr(args[0], name)


def _refused(name: str) -> ArgumentTypeError:
    import staticgrad as sg
    from staticgrad.ir.hints import FUNCTIONS

    if name in sg.__all__:
        serves = f"use sg.{name}"
    elif name in FUNCTIONS:
        serves = f"use {FUNCTIONS[name]}"
    else:
        serves = "use the functions of sg, or NumPy on the arrays that a compiled program gives"
    return ArgumentTypeError(f"np.{name} can't be used on a static tensor: {serves}")


__all__ = ["operator_of", "read"]
