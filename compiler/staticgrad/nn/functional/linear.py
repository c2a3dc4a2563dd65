"""Products, tables and random masks: linear, bilinear, embedding, one_hot, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, shape_text
from staticgrad.ir.dtype import int64
from staticgrad.ir.errors import ArgumentError, DTypeError, ShapeError
from staticgrad.ops.comparison import equal
from staticgrad.ops.convert import as_tensor, astype, promoted
from staticgrad.ops.creation import iota
from staticgrad.ops.indexing import look_up
from staticgrad.ops.linalg import matmul
from staticgrad.ops.mode import training_switch
from staticgrad.ops.random import bernoulli
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.selection import stop_gradient, where
from staticgrad.ops.shape import expand_dims, matrix_transpose, may_equal, reshape
from staticgrad.ops.tensor import Tensor

from ..mode import mode_of


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """`x @ weight.T + bias`. input: [.., K], weight: [M, K] (or [K]), bias: [M]; result [.., M]."""
    x, w = promoted(input, weight)
    if w.ndim not in (1, 2) or not x.ndim:
        raise ShapeError(
            f"linear: expected an input [.., K] and a weight [M, K], got {x.type} and {w.type}"
        )
    if w.ndim == 1:
        y = matmul(x, w)
        return y if bias is None else _biased(y, bias, "linear", False)
    y = matmul(x, matrix_transpose(w))
    return y if bias is None else _biased(y, bias, "linear", True)


def _biased(y: Tensor, bias: Any, what: str, by_output: bool) -> Tensor:
    """`y + bias`, one number for each of the last dim; nothing is broadcast by accident."""
    b = as_tensor(bias, what)
    wanted = y.shape[-1:] if by_output else ()
    if b.ndim != len(wanted) or not all(may_equal(s, w) for s, w in zip(b.shape, wanted)):
        raise ShapeError(f"{what}: a bias {shape_text(wanted)} belongs to {y.type}, got {b.type}")
    return y + b


def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Tensor:
    """`y[.., o] = sum over i, j of x1[.., i] weight[o, i, j] x2[.., j] + bias[o]`."""
    x1, x2, w = promoted(input1, input2, weight)
    if w.ndim != 3:
        raise ShapeError(f"bilinear: expected a weight [O, I, J], got {w.type}")
    out, rows, cols = w.shape
    left = linear(x1, reshape(matrix_transpose(w), (out * cols, rows)))
    pairs = reshape(left, (*x1.shape[:-1], out, cols)) * expand_dims(x2, axis=-2)
    y = reduce_sum(pairs, axis=-1)
    return y if bias is None else _biased(y, bias, "bilinear", True)


def class_index(index: Any, what: str) -> Tensor:
    """Integer classes as int64."""
    t = as_tensor(index, what)
    if not t.dtype.is_integer:
        raise DTypeError(f"{what}: expected integers, got {t.type}")
    return astype(t, int64)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """The rows of a table. input: integers [..], weight: [V, D]; the result is [.., D].

    No gradient reaches the row `padding_idx`. An index outside of 0 .. V - 1 fails the run with
    `ExecutionError`.
    """
    w = as_tensor(weight, "embedding")
    if w.ndim != 2:
        raise ShapeError(f"embedding: expected a weight [V, D], got {w.type}")
    index = class_index(input, "embedding")
    rows = look_up(w, index, "row")
    if padding_idx is None:
        return rows
    is_padding = expand_dims(equal(index, padding_row(padding_idx, w.shape[0])), axis=-1)
    return where(is_padding, stop_gradient(rows), rows)


def padding_row(padding_idx: int, rows: DimLike) -> int:
    """`padding_idx` from the start; checked against the table where its size is known."""
    if isinstance(rows, int):
        if not -rows <= padding_idx < rows:
            raise ArgumentError(f"padding_idx {padding_idx} is outside of the {rows} rows")
        return padding_idx % rows
    if padding_idx < 0:
        raise ArgumentError(f"padding_idx {padding_idx} counts from the end of {rows} rows")
    return padding_idx


def one_hot(tensor: Any, num_classes: int) -> Tensor:
    """int64 ones at the classes, zeros elsewhere: integers [..] -> [.., num_classes].

    Raises `ArgumentError` where `num_classes` is not given (-1): a shape can't depend on data. A
    class outside of 0 .. num_classes - 1 fails the run.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ArgumentError(
            f"one_hot: num_classes must be an int of at least 1, got {num_classes!r}; a shape "
            "can't depend on the data"
        )
    classes = iota(num_classes)
    checked = look_up(classes, class_index(tensor, "one_hot"), "class")
    return astype(equal(expand_dims(checked, axis=-1), classes), int64)


def checked_probability(p: Any, what: str) -> float:
    if isinstance(p, bool) or not isinstance(p, (int, float, np.number)) or not 0 <= p <= 1:
        raise ArgumentError(f"{what} must be between 0 and 1, got {p!r}")
    return float(p)


def _dropout(input: Any, p: float, training: Any, what: str, shared: int | None) -> Tensor:
    """Dropout whose mask is shared by all elements after the first `shared` dims."""
    x, p = as_tensor(input, what), checked_probability(p, f"{what}: p")
    if not x.dtype.is_float:
        raise DTypeError(f"{what}: expected a floating dtype, got {x.type}")
    mode = mode_of(training)
    if p == 0 or mode is False:
        return x
    if p == 1:
        return training_switch(x * 0.0, x, training=mode)
    shape = x.shape
    if shared is not None:
        shape = (*shape[:shared], *(1,) * (x.ndim - shared))
    kept = bernoulli(1.0 - float(p), shape)
    return training_switch(where(kept, x * (1.0 / (1.0 - p)), 0.0), x, training=mode)


def dropout(input: Any, p: float = 0.5, training: Any = True, inplace: bool = False) -> Tensor:
    """In training, each element is 0 with probability p, else divided by 1 - p; in evaluation the
    input itself. `training`: True, False, or None for what `compile` binds."""
    return _dropout(input, p, training, "dropout", None)


def _channel_dropout(input: Any, p: float, training: Any, dims: int) -> Tensor:
    what = f"dropout{dims}d"
    x = as_tensor(input, what)
    if x.ndim not in (dims + 1, dims + 2):
        raise ShapeError(f"{what}: expected {dims + 1} or {dims + 2} dims, got {x.type}")
    return _dropout(x, p, training, what, x.ndim - dims)


def dropout1d(input: Any, p: float = 0.5, training: Any = True, inplace: bool = False) -> Tensor:
    """`dropout` of whole channels of [N, C, L] or [C, L]."""
    return _channel_dropout(input, p, training, 1)


def dropout2d(input: Any, p: float = 0.5, training: Any = True, inplace: bool = False) -> Tensor:
    """`dropout` of whole channels of [N, C, H, W] or [C, H, W]."""
    return _channel_dropout(input, p, training, 2)


__all__ = [
    "bilinear",
    "dropout",
    "dropout1d",
    "dropout2d",
    "embedding",
    "linear",
    "one_hot",
]
