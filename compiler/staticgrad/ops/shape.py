"""Manipulation of shapes: reshape, broadcast, permute, and their kin. No element changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import (
    DimLike,
    Shape,
    as_dim,
    as_shape,
    equal_dims,
    floor_div,
    is_index,
    product,
    shape_text,
)
from staticgrad.ir.errors import ArgumentTypeError, ShapeError
from staticgrad.ir.types import TensorType

from .convert import as_tensor
from .lowering import Indices, View
from .registry import (
    Attrs,
    BatchContext,
    Op,
    Sample,
    Types,
    apply,
    broadcast_shapes,
    register,
    require_equal,
)
from .rules import jvp_linear
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


def _batch_broadcast(c: BatchContext) -> Tensor:
    (x,), shape = c.operands, c.attrs["shape"]
    ones = (1,) * (len(shape) - len(c.types[0].shape))
    return broadcast_to(reshape(x, (c.size, *ones, *x.shape[1:])), (c.size, *shape))


register(
    Op(
        name="broadcast_to",
        summary="x repeated along new dims and dims of 1",
        infer=_infer_broadcast,
        reference=lambda x, shape: np.broadcast_to(x, shape),
        vjp=lambda c, ct: (ct,),  # the repeated axes are summed by autodiff.reverse
        jvp=jvp_linear,
        batch=_batch_broadcast,
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
    """Affine where each dim of the operand is one dim of the result or is split into several;
    dims of 1 come and go freely."""
    found = [(size, i) for size, i in zip(y.shape, at) if size != 1]
    result: list[DimLike] = []
    j = 0
    for size in x.shape:
        covered: DimLike = 1
        index: DimLike = 0
        while covered != size:
            if j == len(found) or found[j][0] == 0:
                return None
            extent, i = found[j]
            index = index * extent + i
            covered = covered * extent
            j += 1
            if isinstance(covered, int) and isinstance(size, int) and covered > size:
                return None
        result.append(index)
    return tuple(result) if j == len(found) else None


def _batch_reshape(c: BatchContext) -> Tensor:
    return reshape(c.operands[0], (c.size, *c.attrs["shape"]))


register(
    Op(
        name="reshape",
        summary="the same elements in row-major order, in another shape",
        infer=_infer_reshape,
        reference=lambda x, shape: np.reshape(x, shape),
        vjp=lambda c, ct: (ct.reshape(c.operands[0].shape),),
        jvp=jvp_linear,
        batch=_batch_reshape,
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


def shape_arguments(given: tuple[Any, ...]) -> list[Any]:
    """The dims of a call that takes them one by one or as one sequence: `f(2, "N")`, `f((2, "N"))`.

    Ints become plain ints, so that -1 can be told from the rest."""
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    return [int(d) if is_index(d) else d for d in given]


def reshape_dims(total: DimLike, wanted: list[Any], what: str) -> Shape:
    """Dims with the product `total`; one may be -1 and is worked out."""
    unknown = [i for i, d in enumerate(wanted) if isinstance(d, int) and d == -1]
    dims = [-1 if i in unknown else as_dim(d) for i, d in enumerate(wanted)]
    if len(unknown) > 1:
        raise ShapeError(f"{what}: only one dim can be -1, got {tuple(wanted)}")
    if unknown:
        rest = product(tuple(d for i, d in enumerate(dims) if i != unknown[0]))
        if isinstance(rest, int) and rest == 0:
            raise ShapeError(f"{what}: -1 is ambiguous beside a dim of 0 in {tuple(wanted)}")
        dims[unknown[0]] = floor_div(total, rest)
    return tuple(dims)


@method("reshape")
@method("view")
def reshape(x: Any, /, *shape: Any, copy: bool | None = None) -> Tensor:
    """`x` in another shape; one dim may be -1 and is worked out. `x.reshape(2, 3)` works too.

    With symbolic dims the element counts must be provably equal or are checked at the call. `copy`
    is accepted for the standard's sake: tensors of a graph are values.
    """
    x = as_tensor(x, "reshape")
    target = reshape_dims(product(x.shape), shape_arguments(shape), "reshape")
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
        jvp=jvp_linear,
        batch=lambda c: permute_dims(c.operands[0], (0, *(a + 1 for a in c.attrs["axes"]))),
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


def normalize_axis(axis: Any, ndim: int, what: str) -> int:
    """One `axis` argument as a non-negative int."""
    if not is_index(axis):
        raise ArgumentTypeError(f"{what}: an axis is an int, got {axis!r}")
    at = int(axis.__index__())
    if not -ndim <= at < ndim:
        raise ShapeError(f"{what}: axis {at} is out of range for an array with {ndim} dims")
    return at % ndim


def axis_list(axes: Any, ndim: int, what: str) -> tuple[int, ...]:
    """Axes in the order given, each once; one int stands for itself alone."""
    listed = axes if isinstance(axes, (tuple, list)) else (axes,)
    found = tuple(normalize_axis(a, ndim, what) for a in listed)
    if len(set(found)) != len(found):
        raise ShapeError(f"{what}: an axis is given twice in {axes}")
    return found


def permute_dims(x: Any, /, axes: Any) -> Tensor:
    """`x` with its dims in the order `axes`: result dim i is operand dim `axes[i]`."""
    x = as_tensor(x, "permute_dims")
    order = axis_list(axes, x.ndim, "permute_dims")
    return x if order == tuple(range(x.ndim)) else apply("permute_dims", x, axes=order)


def expand_dims(x: Any, /, *, axis: Any = 0) -> Tensor:
    """`x` with a new dim of 1 at `axis` of the result (an int, or several).

    x: [N, M] -> [1, N, M] for axis 0, [N, M, 1] for axis -1.
    """
    x = as_tensor(x, "expand_dims")
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    new = axis_list(axis, x.ndim + count, "expand_dims")
    old = iter(x.shape)
    return reshape(x, tuple(1 if i in new else next(old) for i in range(x.ndim + count)))


@method("squeeze")
def squeeze(x: Any, /, axis: Any = None) -> Tensor:
    """`x` without the dims `axis`, which must be 1; by default without all dims known to be 1.

    A symbolic dim named in `axis` must be 1 when the program is called.
    """
    x = as_tensor(x, "squeeze")
    if axis is None:
        gone = tuple(i for i, d in enumerate(x.shape) if isinstance(d, int) and d == 1)
    else:
        gone = axis_list(axis, x.ndim, "squeeze")
    for a in gone:
        if isinstance(x.shape[a], int) and x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of {x.type} is {x.shape[a]}, not 1")
    return reshape(x, tuple(d for i, d in enumerate(x.shape) if i not in gone))


def moveaxis(x: Any, source: Any, destination: Any, /) -> Tensor:
    """`x` with the dims `source` moved to `destination`; the others keep their order."""
    x = as_tensor(x, "moveaxis")
    start = axis_list(source, x.ndim, "moveaxis")
    end = axis_list(destination, x.ndim, "moveaxis")
    if len(start) != len(end):
        raise ShapeError(f"moveaxis: {len(start)} axes to move to {len(end)} places")
    rest = iter(i for i in range(x.ndim) if i not in start)
    moved = dict(zip(end, start))
    return permute_dims(x, tuple(moved[i] if i in moved else next(rest) for i in range(x.ndim)))


@method("swapaxes")
@method("transpose")
def swapaxes(x: Any, axis1: int, axis2: int, /) -> Tensor:
    """`x` with two dims exchanged; as a method also `x.transpose(a, b)`."""
    x = as_tensor(x, "swapaxes")
    a, b = (normalize_axis(axis, x.ndim, "swapaxes") for axis in (axis1, axis2))
    order = list(range(x.ndim))
    order[a], order[b] = b, a
    return permute_dims(x, tuple(order))


def matrix_transpose(x: Any, /) -> Tensor:
    """`x` with its last two dims exchanged. x: [..., M, N] -> [..., N, M]."""
    x = as_tensor(x, "matrix_transpose")
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: expected at least 2 dims, got {x.type}")
    return swapaxes(x, -1, -2)


@method("flatten")
def flatten(x: Any, /, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """`x` with the dims `start_dim` to `end_dim` (inclusive) merged into one.

    x: [N, C, H, W] -> [N, C*H*W] for start_dim 1. A 0-d array becomes [1].
    """
    x = as_tensor(x, "flatten")
    if not x.ndim:
        return reshape(x, (1,))
    first = normalize_axis(start_dim, x.ndim, "flatten")
    last = normalize_axis(end_dim, x.ndim, "flatten")
    if first > last:
        raise ShapeError(f"flatten: start_dim {first} comes after end_dim {last}")
    merged = product(x.shape[first : last + 1])
    return reshape(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))


def unflatten(x: Any, /, dim: int, sizes: Any) -> Tensor:
    """`x` with the dim `dim` split into `sizes`, one of which may be -1: flatten's inverse."""
    x = as_tensor(x, "unflatten")
    at = normalize_axis(dim, x.ndim, "unflatten")
    inner = reshape_dims(x.shape[at], shape_arguments((sizes,)), "unflatten")
    if equal_dims(product(inner), x.shape[at]) is False:
        raise ShapeError(
            f"unflatten: the sizes {shape_text(inner)} do not multiply to {x.shape[at]}, the size "
            f"of axis {at} of {x.type}"
        )
    return reshape(x, (*x.shape[:at], *inner, *x.shape[at + 1 :]))


def with_size(x: Tensor, axis: int, size: DimLike, what: str) -> Tensor:
    """`x`, whose dim `axis` must have this size: raises where it can't; where that is not known, a
    reshape carries the question to bind time."""
    have = x.shape[axis]
    same = equal_dims(have, size)
    if same is False:
        raise ShapeError(f"{what}: axis {axis} of {x.type} must have the size {size}")
    return x if same else reshape(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def may_equal(a: DimLike, b: DimLike) -> bool:
    """Whether two sizes can be equal as they stand: 1 is equal to 1 only, it is not repeated."""
    return equal_dims(a, b) is not False and (a == 1) == (b == 1)


def require_broadcast(x: Tensor, to: Tensor, what: str, name: str) -> None:
    """Raises unless `x` broadcasts to the shape of `to`, and does not enlarge it."""
    pairs = zip(reversed(x.shape), reversed(to.shape))
    if x.ndim > to.ndim or not all(a == 1 or may_equal(a, b) for a, b in pairs):
        raise ShapeError(f"{what}: the {name} {x.type} does not broadcast to {to.type}")


def broadcast_arrays(*arrays: Any) -> list[Tensor]:
    """The arrays, each broadcast to their common shape; dtypes stay."""
    tensors = [as_tensor(a, "broadcast_arrays") for a in arrays]
    shape = broadcast_shapes(*(t.shape for t in tensors))
    return [broadcast_to(t, shape) for t in tensors]


def _expand(x: Tensor, *shape: Any) -> Tensor:
    """`x.expand(2, -1)`: broadcast to the shape, where -1 keeps the dim, as PyTorch has it."""
    wanted = shape_arguments(shape)
    offset = len(wanted) - x.ndim
    dims = []
    for i, d in enumerate(wanted):
        if isinstance(d, int) and d == -1:
            if i < offset:
                raise ShapeError(f"expand: -1 stands for a new dim in {tuple(wanted)}")
            d = x.shape[i - offset]
        dims.append(d)
    return broadcast_to(x, tuple(dims))


def _transposed(x: Tensor) -> Tensor:
    """`x.T` of a matrix; of other ranks use `.mT` or `.permute(...)`."""
    if x.ndim != 2:
        raise ShapeError(f"x.T is for 2 dims, got {x.type}; use x.mT or x.permute(...)")
    return matrix_transpose(x)


method("T")(property(_transposed))
method("mT")(property(matrix_transpose))
method("expand")(_expand)
method("unsqueeze")(lambda self, dim: expand_dims(self, axis=dim))
method("permute")(lambda self, *axes: permute_dims(self, shape_arguments(axes)))

__all__ = [
    "broadcast_arrays",
    "broadcast_to",
    "expand_dims",
    "flatten",
    "matrix_transpose",
    "moveaxis",
    "permute_dims",
    "reshape",
    "squeeze",
    "swapaxes",
    "unflatten",
]
