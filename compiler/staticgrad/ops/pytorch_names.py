"""PyTorch's names of what tensors have under the array API's, so that one `forward` serves tensors
of both modes. The dynamic mode takes this table over, as it does all methods."""

from __future__ import annotations

from typing import Any

from staticgrad.ir.dtype import BY_NAME, DType
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ShapeError, UnsupportedError

from .convert import astype
from .selection import where
from .shape import broadcast_to, permute_dims, reshape
from .tensor import Tensor, method

# Methods that are operators.
OPERATORS = {
    "add": "__add__", "sub": "__sub__", "mul": "__mul__", "div": "__truediv__", "neg": "__neg__",
    "eq": "__eq__", "ne": "__ne__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__",
    "mm": "__matmul__", "bmm": "__matmul__", "mv": "__matmul__",
}  # fmt: skip


def check_device(device: Any) -> None:
    """Raises UnsupportedError for a device that is not the CPU."""
    if device is not None and str(device) not in ("cpu", "cpu:0"):
        raise UnsupportedError(
            f"device {str(device)!r} is not supported: staticgrad computes on CPUs only"
        )


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, DType) and value not in BY_NAME


@method("to")
def to(x: Any, *args: Any, device: Any = None, dtype: Any = None) -> Tensor:
    """`to("float64")`, `to(sg.float64)`, `to(other)`: another dtype. `to("cpu")` is no change."""
    for a in args:
        if _is_device(a):
            device = a
        else:
            dtype = getattr(a, "dtype", a)
    check_device(device)
    return x if dtype is None else astype(x, as_dtype(dtype))  # type: ignore[no-any-return]


@method("t")
def t(x: Any) -> Tensor:
    """The transpose of a matrix; fewer dims stay as they are."""
    if x.ndim > 2:
        raise ShapeError(f"x.t() is for at most 2 dims, got {x.type}; use x.mT or x.permute(...)")
    return permute_dims(x, tuple(reversed(range(x.ndim))))


@method("masked_fill")
def masked_fill(x: Any, mask: Any, value: Any) -> Tensor:
    """`value` where the mask is true, this tensor's elements elsewhere."""
    return where(mask, value, x)


@method("view_as")
def view_as(x: Any, other: Any) -> Tensor:
    """The elements in the shape of another tensor."""
    return reshape(x, other.shape)


@method("expand_as")
def expand_as(x: Any, other: Any) -> Tensor:
    """Broadcast to the shape of another tensor."""
    return broadcast_to(x, other.shape)


@method("type_as")
def type_as(x: Any, other: Any) -> Tensor:
    """In the dtype of another tensor."""
    return astype(x, other.dtype)


def _itself(x: Any) -> Any:
    """The tensor itself: values of a graph don't change, and are where they are computed."""
    return x


def _conversion(name: str, dtype: str) -> None:
    def convert(x: Any) -> Tensor:
        return astype(x, dtype)

    convert.__name__, convert.__doc__ = name, f"The tensor as {dtype}."
    method(name)(convert)


for _name, _dtype in {
    "bool": "bool", "double": "float64", "float": "float32", "int": "int32", "long": "int64",
}.items():  # fmt: skip
    _conversion(_name, _dtype)
for _name, _plain in OPERATORS.items():
    method(_name)(vars(Tensor)[_plain])
for _name in ("clone", "contiguous", "cpu"):
    setattr(Tensor, _name, _itself)
# Python objects, not tensors: the dynamic mode has its own.
setattr(Tensor, "dim", lambda self: self.ndim)  # noqa: B010
setattr(Tensor, "numel", lambda self: self.size)  # noqa: B010
Tensor.dim.__doc__, Tensor.numel.__doc__ = "The number of dims.", "The number of elements."  # type: ignore[attr-defined]

__all__ = ["OPERATORS", "check_device"]
