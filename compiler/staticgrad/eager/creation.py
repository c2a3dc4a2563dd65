"""Eager tensors from data and by size."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentTypeError, DTypeError
from staticgrad.ops import creation, random
from staticgrad.ops.convert import to_array
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import dynamic, public
from staticgrad.ops.tensor import Tensor as GraphTensor

from .dispatch import call
from .methods import set_requires_grad
from .static_values import value_of
from .tensor import Tensor


@public
def tensor(data: Any, dtype: Any = None, requires_grad: bool = False, device: Any = None) -> Tensor:
    """A tensor with a copy of the data: numbers, nested lists, an array, a tensor.

    A NumPy array keeps its dtype; Python floats become float32, ints int64, bools bool. Raises
    `ArgumentTypeError` for what is no array of numbers.
    """
    _check_device(device)
    wanted = None if dtype is None else as_dtype(dtype)
    if isinstance(data, Parameter) and data.trainable:
        warnings.warn(
            "eager.tensor(parameter) copies the values and cuts them off the parameter: no "
            "gradient reaches it. In an operation use the parameter itself; for a copy that is "
            "meant, eager.tensor(parameter.numpy())",
            stacklevel=3,
        )
    array = to_array(_values(data), wanted)
    return set_requires_grad(Tensor(np.array(array, order="C", copy=True)), requires_grad)


def _values(data: Any) -> Any:
    """Tensors in nested lists as their values; one tensor as its array."""
    if isinstance(data, Parameter):
        return data.numpy()
    if isinstance(data, GraphTensor):
        return value_of(data)._array
    if dynamic.is_tensor(data):
        return data.detach()._array
    if isinstance(data, (list, tuple)) and _has_tensors(data):
        return np.array([_values(d) for d in data])
    return data


def _has_tensors(data: Any) -> bool:
    return any(
        _has_tensors(d) if isinstance(d, (list, tuple))
        else isinstance(d, GraphTensor) or dynamic.is_tensor(d)
        for d in data
    )  # fmt: skip


def _check_device(device: Any) -> None:
    from staticgrad.ir.errors import UnsupportedError

    if device is not None and str(device) not in ("cpu", "cpu:0"):
        raise UnsupportedError(
            f"device {str(device)!r} is not supported: staticgrad computes on CPUs only"
        )


@public
def from_numpy(array: Any) -> Tensor:
    """A tensor that shares the memory of a NumPy array: a change of one is seen in the other."""
    if not isinstance(array, np.ndarray):
        raise ArgumentTypeError(
            f"from_numpy: expected a NumPy array, got {type(array).__name__}; use eager.tensor"
        )
    as_dtype(array.dtype)
    if not array.dtype.isnative:
        raise DTypeError(f"from_numpy: the byte order of {array.dtype} is not this machine's")
    return Tensor(array.view(np.ndarray))


@public
def as_tensor(data: Any, dtype: Any = None) -> Tensor:
    """A tensor as it is; a NumPy array by sharing its memory, where the dtype is kept; other data
    as by `tensor`."""
    wanted = None if dtype is None else as_dtype(dtype)
    if type(data) is Tensor and wanted in (None, data.dtype):
        return data
    if isinstance(data, np.ndarray) and (wanted is None or wanted == as_dtype(data.dtype)):
        return from_numpy(data)
    if type(data) is Tensor:
        return data.to(dtype=wanted)  # type: ignore[attr-defined,no-any-return]
    return tensor(data, dtype)


def _shape(size: tuple[Any, ...]) -> tuple[int, ...]:
    if len(size) == 1 and isinstance(size[0], (tuple, list)):
        size = tuple(size[0])
    for d in size:
        if isinstance(d, bool) or not isinstance(d, (int, np.integer)) or d < 0:
            raise ArgumentTypeError(f"expected sizes, got {size!r}")
    return tuple(int(d) for d in size)


def _floating(dtype: Any) -> Any:
    return as_dtype("float32" if dtype is None else dtype)


@public
def zeros(*size: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros: `zeros(2, 3)` or `zeros((2, 3))`."""
    array = np.zeros(_shape(size), _floating(dtype).numpy)
    return set_requires_grad(Tensor(array), requires_grad)


@public
def ones(*size: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones: `ones(2, 3)` or `ones((2, 3))`."""
    array = np.ones(_shape(size), _floating(dtype).numpy)
    return set_requires_grad(Tensor(array), requires_grad)


@public
def empty(*size: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor to be filled; its first values are zeros."""
    return zeros(*size, dtype=dtype, requires_grad=requires_grad)


@public
def full(size: Any, fill_value: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of one number."""
    value = to_array(fill_value, None if dtype is None else as_dtype(dtype))
    array = np.full(_shape((size,)), value, value.dtype)
    return set_requires_grad(Tensor(array), requires_grad)


@public
def zeros_like(x: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the shape and dtype of `x`."""
    return zeros(x.shape, dtype=x.dtype if dtype is None else dtype, requires_grad=requires_grad)


@public
def ones_like(x: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the shape and dtype of `x`."""
    return ones(x.shape, dtype=x.dtype if dtype is None else dtype, requires_grad=requires_grad)


def _made(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    requires_grad = kwargs.pop("requires_grad", False)
    return set_requires_grad(call(function, args, kwargs), requires_grad)


@public
def arange(*args: Any, **kwargs: Any) -> Tensor:
    """`sg.arange` as an eager tensor."""
    return _made(creation.arange, args, kwargs)


@public
def linspace(*args: Any, **kwargs: Any) -> Tensor:
    """`sg.linspace` as an eager tensor."""
    return _made(creation.linspace, args, kwargs)


@public
def eye(*args: Any, **kwargs: Any) -> Tensor:
    """`sg.eye` as an eager tensor."""
    return _made(creation.eye, args, kwargs)


@public
def rand(*size: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Uniform numbers in [0, 1), from the global generator (`sg.random.seed`)."""
    keywords = {"dtype": _floating(dtype), "requires_grad": requires_grad}
    return _made(random.uniform, (_shape(size),), keywords)


@public
def randn(*size: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Normal numbers, from the global generator (`sg.random.seed`)."""
    keywords = {"dtype": _floating(dtype), "requires_grad": requires_grad}
    return _made(random.normal, (_shape(size),), keywords)


@public
def rand_like(x: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Uniform numbers in [0, 1), of the shape and dtype of `x`."""
    return rand(x.shape, dtype=x.dtype if dtype is None else dtype, requires_grad=requires_grad)


@public
def randn_like(x: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Normal numbers, of the shape and dtype of `x`."""
    return randn(x.shape, dtype=x.dtype if dtype is None else dtype, requires_grad=requires_grad)


@public
def randint(low: int, high: Any = None, size: Any = None, *, dtype: Any = "int64") -> Tensor:
    """Integers in [low, high), or in [0, low) as `randint(high, size)`, of a shape."""
    if size is None and isinstance(high, (tuple, list)):
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    if size is None:
        raise ArgumentTypeError("randint: expected a size, as in randint(0, 10, (2, 3))")
    return call(random.randint, (low, high, _shape((size,))), {"dtype": dtype})  # type: ignore[no-any-return]


__all__ = [
    "arange", "as_tensor", "empty", "eye", "from_numpy", "full", "linspace", "ones", "ones_like",
    "rand", "rand_like", "randint", "randn", "randn_like", "tensor", "zeros", "zeros_like",
]  # fmt: skip
