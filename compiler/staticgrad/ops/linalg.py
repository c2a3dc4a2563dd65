"""Linear algebra: matmul and what becomes of it: vecdot, tensordot, outer, diagonal, trace."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, dim_max, dim_min, is_index, product
from staticgrad.ir.errors import ArgumentError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType

from .arithmetic import multiply
from .convert import as_tensor, constant_array, promoted
from .creation import band, diagonal_number
from .lowering import Indices, Product, View
from .reduction import sum as reduce_sum
from .registry import (
    Attrs,
    BatchContext,
    Op,
    Sample,
    Tolerance,
    Types,
    apply,
    broadcast_shapes,
    register,
    require_equal,
)
from .rules import batch_axes, jvp_bilinear, jvp_linear
from .samples import NUMERIC, random_array
from .shape import (
    axis_list,
    expand_dims,
    matrix_transpose,
    normalize_axis,
    permute_dims,
    reshape,
    squeeze,
    with_size,
)
from .slicing import put
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, linear algebra functions"

# --- matmul ---------------------------------------------------------------------------------------


def _infer_matmul(types: Types, attrs: Attrs) -> Types:
    a, b = types
    if a.dtype != b.dtype or a.dtype.kind == "b":
        raise DTypeError(f"expected numbers of one dtype, got {a} and {b}")
    if a.ndim < 2 or b.ndim < 2:
        raise ShapeError(f"expected at least 2 dims, got {a} and {b}")
    require_equal(a.shape[-1], b.shape[-2], f"{a} @ {b}: the inner sizes")
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return (TensorType(a.dtype, (*batch, a.shape[-2], b.shape[-1])),)


def _rows(x: Tensor) -> Tensor:
    """[.., M, K] -> [..*M, K]."""
    return reshape(x, (product(x.shape[:-1]), x.shape[-1]))


def _vjp_matmul(c: Any, ct: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = c.operands
    grad_a = apply("matmul", ct, matrix_transpose(b)) if c.needed[0] else None
    if not c.needed[1]:
        return grad_a, None
    if b.ndim == 2 and a.ndim > 2:
        # One product over all rows of the batch, not one for each item and a sum.
        return grad_a, apply("matmul", matrix_transpose(_rows(a)), _rows(ct))
    return grad_a, apply("matmul", matrix_transpose(a), ct)


def _batch_matmul(c: BatchContext) -> Tensor:
    """The batch is one more batch dim in front of all others. One row (or column) for each item,
    times a matrix that is the same for all, are the rows of one product."""
    a, b = c.operands
    (rows, inner), columns = c.types[0].shape[-2:], c.types[1].shape[-1]
    found: Tensor
    if all(len(t.shape) == 2 for t in c.types):
        if not c.batched[1] and rows == 1:
            found = apply("matmul", reshape(a, (c.size, inner)), b)
            return reshape(found, (c.size, 1, columns))
        if not c.batched[0] and columns == 1:
            found = apply("matmul", reshape(b, (c.size, b.shape[1])), matrix_transpose(a))
            return reshape(found, (c.size, rows, 1))
    rank = max(len(t.shape) for t in c.types)
    left, right = (
        reshape(x, (c.size, *((1,) * (rank - len(t.shape))), *x.shape[1:])) if batched else x
        for x, t, batched in zip(c.operands, c.types, c.batched)
    )
    found = apply("matmul", left, right)
    return found


def _matmul_sample(a: tuple[int, ...], b: tuple[int, ...], dtype: str = "float64") -> Sample:
    return Sample((random_array(a, dtype, 1), random_array(b, dtype, 2)))


register(
    Op(
        name="matmul",
        summary="y[.., m, n] = sum over k of x1[.., m, k] * x2[.., k, n]",
        infer=_infer_matmul,
        reference=np.matmul,
        vjp=_vjp_matmul,
        jvp=jvp_bilinear,
        batch=_batch_matmul,
        lower=Product("matmul"),
        samples=lambda: [
            *(_matmul_sample((5, 7), (7, 33), d) for d in NUMERIC),
            _matmul_sample((1, 1), (1, 1)),
            _matmul_sample((1, 40), (40, 17), "float32"),
            _matmul_sample((17, 40), (40, 1), "float32"),
            _matmul_sample((3, 5, 7), (7, 2)),
            _matmul_sample((5, 7), (3, 7, 2)),
            _matmul_sample((2, 1, 5, 7), (3, 7, 4)),
            _matmul_sample((2, 3, 4, 5), (2, 3, 5, 6)),
            _matmul_sample((3, 0), (0, 4)),
            _matmul_sample((0, 3), (3, 4)),
            _matmul_sample((0, 3, 4), (1, 4, 5)),
        ],
        source=_STANDARD,
        # Sums of both signs cancel, which makes the relative error of an element larger.
        tolerance=Tolerance(1e-4, 1e-11),
    )
)


@method("__matmul__")
def matmul(x1: Any, x2: Any, /) -> Tensor:
    """The matrix product, over broadcast batch dims.

    [.., M, K] @ [.., K, N] -> [.., M, N]. A 1-d operand is a row on the left, a column on the
    right, and its dim vanishes: [K] @ [K] -> []. Numbers only, promoted; integers wrap. K = 0 gives
    zeros. Raises ShapeError for 0-d operands and for inner sizes that differ.
    """
    a, b = promoted(x1, x2)
    if not a.ndim or not b.ndim:
        raise ShapeError(f"matmul: 0-d operands are not allowed, got {a.type} and {b.type}; use *")
    row, column = a.ndim == 1, b.ndim == 1
    if row:
        a = expand_dims(a, axis=0)
    if column:
        b = expand_dims(b, axis=1)
    y = apply("matmul", a, b)
    gone = tuple(axis for axis, drop in ((-2, row), (-1, column)) if drop)
    return squeeze(y, axis=gone) if gone else y


method("__rmatmul__")(lambda self, other: matmul(other, self))
method("matmul")(matmul)

# --- products of other forms ----------------------------------------------------------------------


def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Tensor:
    """The dot product along `axis`, which counts in both operands: sum(x1 * x2, axis).

    [.., K], [.., K] -> [..]; the other dims broadcast. The result has the promoted dtype.
    """
    a, b = promoted(x1, x2)
    if a.dtype.kind == "b":
        raise DTypeError(f"vecdot: expected numbers, got {a.type} and {b.type}")
    if not a.ndim or not b.ndim:
        raise ShapeError(f"vecdot: 0-d operands are not allowed, got {a.type} and {b.type}")
    in_a, in_b = (normalize_axis(axis, t.ndim, "vecdot") for t in (a, b))
    b = with_size(b, in_b, a.shape[in_a], "vecdot")
    if axis >= 0 and a.ndim != b.ndim:
        raise ShapeError(
            f"vecdot: a non-negative axis needs operands of one rank, got {a.type} and {b.type}"
        )
    # Counted from the end, the axis is the same in the broadcast product.
    from_end = in_a - a.ndim
    return reduce_sum(multiply(a, b), axis=from_end, dtype=a.dtype)


def outer(x1: Any, x2: Any, /) -> Tensor:
    """y[i, j] = x1[i] * x2[j]: [M], [N] -> [M, N]."""
    a, b = promoted(x1, x2)
    if a.ndim != 1 or b.ndim != 1:
        raise ShapeError(f"outer: expected 1-d operands, got {a.type} and {b.type}")
    return multiply(expand_dims(a, axis=1), expand_dims(b, axis=0))


def dot(x1: Any, x2: Any, /) -> Tensor:
    """NumPy's dot: of vectors sum(x1 * x2), of matrices x1 @ x2, with a scalar x1 * x2; else the
    sum over x1's last and x2's last but one dim. [.., K], [P.., K, N] -> [.., P.., N]."""
    a, b = promoted(x1, x2)
    if not a.ndim or not b.ndim:
        return multiply(a, b)
    return tensordot(a, b, axes=((-1,), (-2 if b.ndim > 1 else -1,)))


method("dot")(dot)


def as_matrix(x: Tensor, free: tuple[int, ...], summed: tuple[int, ...], last: bool) -> Tensor:
    """`x` as a matrix of its `free` and its `summed` dims, the latter last (or first).

    Where the dims are in the other order already, the transpose of a reshape does, which costs
    nothing: products pack their operands anyway. Else the dims are permuted.
    """
    wanted, other = ((free, summed), (summed, free)) if last else ((summed, free), (free, summed))
    if (*other[0], *other[1]) == tuple(range(x.ndim)) and wanted[0] and wanted[1]:
        return matrix_transpose(_merged(x, *other))
    return _merged(permute_dims(x, (*wanted[0], *wanted[1])), *_counted(wanted))


def _counted(parts: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """The same parts as consecutive axes: what they are after the permutation."""
    first = len(parts[0])
    return tuple(range(first)), tuple(range(first, first + len(parts[1])))


def _merged(x: Tensor, rows: tuple[int, ...], cols: tuple[int, ...]) -> Tensor:
    shape = tuple(product(tuple(x.shape[a] for a in axes)) for axes in (rows, cols))
    return reshape(x, shape)


def _contracted_axes(axes: Any, a: Tensor, b: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(axes, (tuple, list)):
        if len(axes) != 2:
            raise ArgumentError(f"tensordot: axes is an int or a pair of sequences, got {axes!r}")
        in_a, in_b = (axis_list(s, t.ndim, "tensordot") for s, t in zip(axes, (a, b)))
        if len(in_a) != len(in_b):
            raise ShapeError(f"tensordot: {len(in_a)} axes of x1 but {len(in_b)} of x2")
        return in_a, in_b
    if not is_index(axes) or int(axes) < 0:
        raise ArgumentError(f"tensordot: axes is a non-negative int or a pair, got {axes!r}")
    n = int(axes)
    if n > min(a.ndim, b.ndim):
        raise ShapeError(f"tensordot: can't sum over {n} dims of {a.type} and {b.type}")
    return tuple(range(a.ndim - n, a.ndim)), tuple(range(n))


def _needs_permute(x: Tensor, free: tuple[int, ...], summed: tuple[int, ...]) -> bool:
    return tuple(range(x.ndim)) not in ((*free, *summed), (*summed, *free))


def tensordot(x1: Any, x2: Any, /, *, axes: Any = 2) -> Tensor:
    """Sums products over pairs of dims: the last `axes` of x1 with the first of x2, or the pairs
    (axes[0][i], axes[1][i]). The result has x1's other dims, then x2's.

    [M.., K..], [K.., N..] -> [M.., N..]: one matrix product. Numbers only, promoted.
    """
    a, b = promoted(x1, x2)
    in_a, in_b = _contracted_axes(axes, a, b)
    for i, j in zip(in_a, in_b):
        b = with_size(b, j, a.shape[i], "tensordot")
    free_a = tuple(i for i in range(a.ndim) if i not in in_a)
    free_b = tuple(j for j in range(b.ndim) if j not in in_b)
    shape = (*(a.shape[i] for i in free_a), *(b.shape[j] for j in free_b))
    if not in_a:
        return multiply(reshape(a, (*a.shape, *([1] * b.ndim))), b)
    # The pairs may be taken in any order: in a's, unless that permutes and b's does not.
    pairs = sorted(zip(in_a, in_b))
    by_b = sorted(pairs, key=lambda pair: pair[1])
    if _cost(a, b, free_a, free_b, by_b) < _cost(a, b, free_a, free_b, pairs):
        pairs = by_b
    left = as_matrix(a, free_a, tuple(i for i, _ in pairs), last=True)
    right = as_matrix(b, free_b, tuple(j for _, j in pairs), last=False)
    return reshape(apply("matmul", left, right), shape)


def _cost(
    a: Tensor, b: Tensor, free_a: tuple[int, ...], free_b: tuple[int, ...],
    pairs: list[tuple[int, int]],
) -> int:  # fmt: skip
    """How many operands the order of the pairs makes permute."""
    in_a, in_b = tuple(i for i, _ in pairs), tuple(j for _, j in pairs)
    return _needs_permute(a, free_a, in_a) + _needs_permute(b, free_b, in_b)


# --- diagonals ------------------------------------------------------------------------------------


def _diagonal_size(rows: DimLike, cols: DimLike, offset: int) -> DimLike:
    """Elements of the diagonal j - i = offset: below the main one rows are cut, above columns."""
    return dim_max(dim_min(rows - max(-offset, 0), cols - max(offset, 0)), 0)


def _infer_diagonal(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    if x.ndim < 2:
        raise ShapeError(f"expected at least 2 dims, got {x}")
    size = _diagonal_size(x.shape[-2], x.shape[-1], attrs["offset"])
    return (TensorType(x.dtype, (*x.shape[:-2], size)),)


def _index_diagonal(at: Indices, attrs: Attrs, x: TensorType, y: TensorType) -> Indices:
    offset = attrs["offset"]
    return (*at[:-1], at[-1] + max(-offset, 0), at[-1] + max(offset, 0))


def _vjp_diagonal(c: Any, ct: Tensor) -> tuple[Tensor]:
    x, offset = c.operands[0], c.attrs["offset"]
    rows, cols = x.shape[-2:]
    start = (*([0] * (ct.ndim - 1)), max(-offset, 0))
    column = put(ct, start, (1,) * ct.ndim, (*ct.shape[:-1], rows))
    zero = constant_array(np.zeros((), ct.dtype.numpy))
    return (apply("where", band(rows, cols, offset, offset), expand_dims(column, axis=-1), zero),)


register(
    Op(
        name="diagonal",
        summary="y[.., i] = x[.., i, i + offset]",
        infer=_infer_diagonal,
        reference=lambda x, offset: np.diagonal(x, offset, axis1=-2, axis2=-1),
        vjp=_vjp_diagonal,
        jvp=jvp_linear,
        batch=batch_axes(),
        lower=View(_index_diagonal),
        samples=lambda: [
            Sample((random_array(shape, dtype),), {"offset": offset})
            for shape, dtype, offset in (
                ((5, 5), "float64", 0), ((5, 33), "float32", 2), ((33, 5), "float64", -3),
                ((2, 3, 4), "int32", 1), ((3, 4), "float64", 7), ((3, 0), "bool", 0),
            )
        ],
        source=_STANDARD,
    )
)  # fmt: skip


@method("diagonal")
def diagonal(x: Any, /, offset: int = 0) -> Tensor:
    """The diagonal of the last two dims, [.., M, N] -> [.., min(M, N)]; `offset` > 0: above it."""
    x = as_tensor(x, "diagonal")
    at = diagonal_number(offset, "diagonal")
    if x.ndim < 2:
        raise ShapeError(f"diagonal: expected at least 2 dims, got {x.type}")
    return apply("diagonal", x, offset=at)


@method("trace")
def trace(x: Any, /, offset: int = 0, *, dtype: Any = None) -> Tensor:
    """The sum of the diagonal of the last two dims: [.., M, N] -> [..]. Small integers are summed
    in 64 bits."""
    return reduce_sum(diagonal(x, offset), axis=-1, dtype=dtype)


__all__ = ["diagonal", "dot", "matmul", "outer", "tensordot", "trace", "vecdot"]
