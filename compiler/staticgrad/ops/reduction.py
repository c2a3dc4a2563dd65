"""Reductions: sum, prod, max, min, any, all, mean, var, std and their kin."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, Shape
from staticgrad.ir.dtype import DType, int64, uint64
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType

from .convert import as_tensor, astype
from .lowering import Reduction
from .registry import Attrs, Op, Sample, Tolerance, Types, apply, register
from .samples import NUMERIC, random_array
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, statistical functions"


def normalize_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """An `axis` argument (None, int or tuple of ints, negatives from the end) as sorted axes."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    found = []
    for a in axes:
        if isinstance(a, bool) or not hasattr(a, "__index__"):
            raise ArgumentTypeError(f"an axis is an int, got {a!r}")
        at = a.__index__()
        if not -ndim <= at < ndim:
            raise ShapeError(f"axis {at} is out of range for an array with {ndim} dims")
        found.append(at % ndim)
    if len(set(found)) != len(found):
        raise ShapeError(f"an axis is given twice: {axis}")
    return tuple(sorted(found))


def reduced_shape(shape: Shape, axes: tuple[int, ...], keepdims: bool) -> Shape:
    """`shape` without `axes`, or with 1 in their place."""
    result: list[DimLike] = []
    for i, d in enumerate(shape):
        if i not in axes:
            result.append(d)
        elif keepdims:
            result.append(1)
    return tuple(result)


def infer_reduction(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    return (TensorType(x.dtype, reduced_shape(x.shape, attrs["axes"], attrs["keepdims"])),)


def _infer_numeric(types: Types, attrs: Attrs) -> Types:
    if types[0].dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {types[0]}")
    return infer_reduction(types, attrs)


def restore_axes(x: Tensor, c: Any) -> Tensor:
    """A reduction's result or cotangent with the reduced axes as dims of 1, for broadcasting."""
    from .shape import reshape

    if c.attrs["keepdims"]:
        return x
    return reshape(x, reduced_shape(c.operands[0].shape, c.attrs["axes"], True))


def _vjp_sum(c: Any, ct: Tensor) -> tuple[Tensor]:
    from .shape import broadcast_to

    return (broadcast_to(restore_axes(ct, c), c.operands[0].shape),)


def _reference_sum(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def reduction_samples(dtypes: tuple[str, ...]) -> list[Sample]:
    """All axes, some, none, the first, the last; zero sizes; 0-d."""
    found = [
        Sample((random_array((5, 33), d, 1),), {"axes": (1,), "keepdims": False}) for d in dtypes
    ]
    wide = "float64" if "float64" in dtypes else dtypes[0]
    for shape, axes in (
        ((), ()), ((7,), (0,)), ((5, 33), (0,)), ((5, 33), (0, 1)), ((2, 3, 19), (1,)),
        ((2, 3, 19), (0, 2)), ((2, 3, 19), ()), ((3, 300), (1,)), ((300, 3), (0,)),
    ):  # fmt: skip
        for keepdims in (False, True):
            attrs = {"axes": axes, "keepdims": keepdims}
            found.append(Sample((random_array(shape, wide, 2),), attrs))
    return found


register(
    Op(
        name="sum",
        summary="the sum over axes; of nothing 0",
        infer=_infer_numeric,
        reference=_reference_sum,
        vjp=_vjp_sum,
        lower=Reduction("sum"),
        samples=lambda: [
            *reduction_samples(NUMERIC),
            Sample((np.zeros((3, 0), "float64"),), {"axes": (1,), "keepdims": False}),
        ],
        source=_STANDARD,
        # Both sums round; cancellation makes the relative error of a sum of both signs larger.
        tolerance=Tolerance(1e-4, 1e-11),
    )
)


def accumulation_dtype(given: DType) -> DType:
    """The dtype in which `sum` and `prod` of this one are taken unless the caller says: small
    integers widen to int64 or uint64, as the standard has it."""
    if given.is_float:
        return given
    return uint64 if given.kind == "u" else int64


@method("sum")
def sum(x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (default: all). Small integers and bools are summed in 64 bits.

    x: [..]; the summed dims vanish, or stay as 1 with `keepdims`. Of zero elements: 0.
    """
    x = as_tensor(x, "sum")
    x = astype(x, accumulation_dtype(x.dtype) if dtype is None else as_dtype(dtype))
    return apply("sum", x, axes=normalize_axes(axis, x.ndim), keepdims=bool(keepdims))
