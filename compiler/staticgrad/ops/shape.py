"""Manipulation of shapes: reshape, broadcast, permute, and their kin. No arithmetic happens here."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, as_shape, floor_div, product, shape_text
from staticgrad.ir.errors import ShapeError
from staticgrad.ir.types import TensorType

from .convert import as_tensor
from .lowering import Indices, View
from .registry import Attrs, Op, Sample, Types, apply, register, require_equal
from .samples import random_array
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, manipulation functions"


def _infer_broadcast(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    shape = attrs["shape"]
    offset = len(shape) - x.ndim
    if offset < 0:
        raise ShapeError(f"{shape_text(x.shape)} can't be broadcast to {shape_text(shape)}")
    for have, want in zip(x.shape, shape[offset:]):
        if have != 1:
            require_equal(
                have, want, f"{shape_text(x.shape)} can't be broadcast to {shape_text(shape)}"
            )
    return (TensorType(x.dtype, shape),)


def _index_broadcast(at: Indices, attrs: Attrs, x: TensorType, y: TensorType) -> Indices:
    offset = y.ndim - x.ndim
    return tuple(0 if size == 1 else i for size, i in zip(x.shape, at[offset:]))


register(
    Op(
        name="broadcast_to",
        summary="x repeated along new dims and dims of 1",
        infer=_infer_broadcast,
        reference=lambda x, shape: np.broadcast_to(x, shape),
        vjp=lambda c, ct: (ct,),  # the repeated axes are summed by autodiff.reverse
        lower=View(_index_broadcast),
        samples=lambda: [
            Sample((random_array((3, 1), "float64"),), {"shape": (2, 3, 5)}),
            Sample((random_array((), "float32"),), {"shape": (4,)}),
            Sample((random_array((1,), "int32"),), {"shape": (0,)}),
        ],
        source=_STANDARD,
    )
)


def broadcast_to(x: Any, /, shape: Any) -> Tensor:
    """`x` repeated to `shape` by NumPy's broadcasting rule; nothing is copied."""
    x = as_tensor(x, "broadcast_to")
    shape = as_shape(shape)
    return x if x.shape == shape else apply("broadcast_to", x, shape=shape)


def _infer_reshape(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    shape = attrs["shape"]
    require_equal(
        product(x.shape),
        product(shape),
        f"{shape_text(x.shape)} can't be reshaped to {shape_text(shape)}: element counts",
    )
    return (TensorType(x.dtype, shape),)


def _index_reshape(at: Indices, attrs: Attrs, x: TensorType, y: TensorType) -> Indices | None:
    """Affine where each dim of the operand is one dim of the result or is split into several."""
    result: list[DimLike] = []
    j = 0
    for size in x.shape:
        covered: DimLike = 1
        index: DimLike = 0
        while covered != size:
            if j == y.ndim or y.shape[j] == 0:
                return None
            index = index * y.shape[j] + at[j]
            covered = covered * y.shape[j]
            j += 1
            if isinstance(covered, int) and isinstance(size, int) and covered > size:
                return None
        result.append(index)
    return tuple(result) if all(d == 1 for d in y.shape[j:]) else None


register(
    Op(
        name="reshape",
        summary="the same elements in row-major order, in another shape",
        infer=_infer_reshape,
        reference=lambda x, shape: np.reshape(x, shape),
        vjp=lambda c, ct: (reshape(ct, c.operands[0].shape),),
        lower=View(_index_reshape),
        samples=lambda: [
            Sample((random_array((2, 6), "float64"),), {"shape": (3, 4)}),
            Sample((random_array((2, 6), "float32"),), {"shape": (2, 3, 2)}),
            Sample((random_array((), "int32"),), {"shape": (1, 1)}),
            Sample((random_array((0, 3), "float64"),), {"shape": (5, 0)}),
        ],
        source=_STANDARD,
    )
)


@method("reshape")
def reshape(x: Any, /, *shape: Any, copy: bool | None = None) -> Tensor:
    """`x` in another shape; one dim may be -1 and is worked out. `x.reshape(2, 3)` works too.

    With symbolic dims the element counts must be provably equal or are checked at the call.
    """
    x = as_tensor(x, "reshape")
    wanted = shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
    if isinstance(wanted, str):
        wanted = (wanted,)
    dims = [-1 if isinstance(d, int) and d == -1 else as_shape((d,))[0] for d in wanted]
    unknown = [i for i, d in enumerate(dims) if isinstance(d, int) and d == -1]
    if len(unknown) > 1:
        raise ShapeError(f"reshape: only one dim can be -1, got {tuple(wanted)}")
    if unknown:
        rest = product(tuple(d for i, d in enumerate(dims) if i != unknown[0]))
        if isinstance(rest, int) and rest == 0:
            raise ShapeError(f"reshape: -1 is ambiguous beside a dim of 0 in {tuple(wanted)}")
        dims[unknown[0]] = floor_div(product(x.shape), rest)
    target = tuple(dims)
    return x if x.shape == target else apply("reshape", x, shape=target)


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes.index(i) for i in range(len(axes)))


def _infer_permute(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    if sorted(attrs["axes"]) != list(range(x.ndim)):
        raise ShapeError(f"axes {attrs['axes']} are no permutation of the {x.ndim} dims of {x}")
    return (TensorType(x.dtype, tuple(x.shape[a] for a in attrs["axes"])),)


register(
    Op(
        name="permute_dims",
        summary="dims in another order",
        infer=_infer_permute,
        reference=lambda x, axes: np.transpose(x, axes),
        vjp=lambda c, ct: (permute_dims(ct, _inverse(c.attrs["axes"])),),
        lower=View(lambda at, attrs, x, y: tuple(at[i] for i in _inverse(attrs["axes"]))),
        samples=lambda: [
            Sample((random_array((2, 3, 4), "float64"),), {"axes": (2, 0, 1)}),
            Sample((random_array((5, 33), "float32"),), {"axes": (1, 0)}),
            Sample((random_array((), "float64"),), {"axes": ()}),
            Sample((random_array((0, 3), "int64"),), {"axes": (1, 0)}),
        ],
        source=_STANDARD,
    )
)


def permute_dims(x: Any, /, axes: Any) -> Tensor:
    """`x` with its dims in the order `axes`: result dim i is operand dim `axes[i]`."""
    x = as_tensor(x, "permute_dims")
    order = tuple(a % x.ndim if x.ndim and -x.ndim <= a < x.ndim else a for a in axes)
    return x if order == tuple(range(x.ndim)) else apply("permute_dims", x, axes=order)
