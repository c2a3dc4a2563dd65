"""Pooling with PyTorch's arguments, over the records of `ops.pooling`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike
from staticgrad.ir.errors import ArgumentError, ShapeError, UnsupportedError
from staticgrad.ops import pooling as ops
from staticgrad.ops.convert import as_tensor, constant_array
from staticgrad.ops.reduction import max as reduce_max
from staticgrad.ops.reduction import mean
from staticgrad.ops.shape import permute_dims, reshape
from staticgrad.ops.tensor import Tensor

from .convolution import ints


def _planes(input: Any, dims: int, what: str) -> tuple[Tensor, tuple[DimLike, ...]]:
    """The input as [N, C, H, W] (one spatial dim gets a height of 1), and its leading dims."""
    x = as_tensor(input, what)
    if x.ndim not in (dims + 1, dims + 2):
        sizes = "L" if dims == 1 else "H, W"
        raise ShapeError(f"{what}: expected [N, C, {sizes}] or [C, {sizes}], got {x.type}")
    lead = x.shape[:-dims]
    first = lead if len(lead) == 2 else (1, *lead)
    return reshape(x, (*first, *(1,) * (2 - dims), *x.shape[-dims:])), lead


def _unplane(y: Tensor, lead: tuple[DimLike, ...], dims: int) -> Tensor:
    return reshape(y, (*lead, *y.shape[4 - dims :]))


def _two(value: tuple[int, ...], fill: int) -> tuple[int, int]:
    return (value[0], value[1]) if len(value) == 2 else (fill, value[0])


def _geometry(kernel_size: Any, stride: Any, padding: Any, dims: int, what: str) -> dict[str, Any]:
    kernel = ints(kernel_size, dims, f"{what}: kernel_size", 1)
    if stride is None or (isinstance(stride, (tuple, list)) and not stride):
        steps = kernel
    else:
        steps = ints(stride, dims, f"{what}: stride", 1)
    low, high = _two(ints(padding, dims, f"{what}: padding"), 0)
    return {
        "kernel": _two(kernel, 1),
        "stride": _two(steps, 1),
        "padding": ((low, low), (high, high)),
    }


def _max_pool(
    input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool,
    return_indices: bool, dims: int,
) -> Tensor:  # fmt: skip
    what = f"max_pool{dims}d"
    if return_indices:
        raise UnsupportedError(f"{what}: return_indices=True is not supported")
    x, lead = _planes(input, dims, what)
    geometry = _geometry(kernel_size, stride, padding, dims, what)
    dilations = _two(ints(dilation, dims, f"{what}: dilation", 1), 1)
    y = ops.max_pool(x, **geometry, dilation=dilations, ceil_mode=bool(ceil_mode))
    return _unplane(y, lead, dims)


def max_pool1d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    """The maximum of each window along the last dim of [N, C, L] or [C, L].

    `stride` is `kernel_size` by default. The gradient goes to the first maximum of a window.
    """
    return _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 1)


def max_pool2d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    """The maximum of each window over the last two dims of [N, C, H, W] or [C, H, W].

    `stride` is `kernel_size` by default. Padding is never a maximum; NaN propagates. The gradient
    goes to the first maximum of a window, row by row.
    """
    return _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 2)


def avg_pool1d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """The mean of each window along the last dim of [N, C, L] or [C, L]."""
    x, lead = _planes(input, 1, "avg_pool1d")
    geometry = _geometry(kernel_size, stride, padding, 1, "avg_pool1d")
    y = ops.avg_pool(
        x, **geometry, ceil_mode=bool(ceil_mode), count_include_pad=bool(count_include_pad)
    )
    return _unplane(y, lead, 1)


def avg_pool2d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean of each window over the last two dims of [N, C, H, W] or [C, H, W].

    The divisor is `divisor_override`, or the number of the window's elements, with padding or, for
    `count_include_pad=False`, without.
    """
    x, lead = _planes(input, 2, "avg_pool2d")
    geometry = _geometry(kernel_size, stride, padding, 2, "avg_pool2d")
    y = ops.avg_pool(
        x, **geometry, ceil_mode=bool(ceil_mode), count_include_pad=bool(count_include_pad),
        divisor=divisor_override,
    )  # fmt: skip
    return _unplane(y, lead, 2)


def _targets(output_size: Any, sizes: tuple[DimLike, ...], dims: int) -> tuple[DimLike, ...]:
    """The wanted sizes; None keeps a dim's own."""
    given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * dims
    if len(given) != dims:
        raise ShapeError(f"output_size must be one int or {dims}, got {output_size!r}")
    wanted = tuple(
        size if g is None else ints(g, 1, "output_size")[0] for g, size in zip(given, sizes)
    )
    for w, size in zip(wanted, sizes):
        if isinstance(w, int) and isinstance(size, int) and w > max(size, 1) * 2**16:
            raise ArgumentError(f"output_size {w} is far beyond the input's size {size}")
    return wanted


def _averaging(size: int, wanted: int) -> np.ndarray[Any, Any]:
    """The matrix [wanted, size] whose row i averages the elements from floor(i*size/wanted) to
    ceil((i+1)*size/wanted)."""
    matrix = np.zeros((wanted, size))
    for i in range(wanted):
        start, end = i * size // wanted, -((-(i + 1) * size) // wanted)
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix


def _adaptive_window(size: DimLike, wanted: DimLike, what: str) -> int | None:
    """The window of an even division, or None."""
    if isinstance(size, Dim) or isinstance(wanted, Dim):
        if size == wanted:
            return 1
        raise ShapeError(
            f"{what}: a symbolic size {size} can be pooled to 1 only, got {wanted}; declare the "
            "input with int dims"
        )
    return size // wanted if wanted and size % wanted == 0 else None


def _average_axis(x: Tensor, axis: int, wanted: int) -> Tensor:
    """Averaging along one dim, as a product with a constant matrix."""
    from staticgrad.ops.linalg import matmul

    last = x.ndim - 1
    order = (*(i for i in range(x.ndim) if i != axis), axis)
    moved = permute_dims(x, order)
    matrix = _averaging(int(x.shape[axis]), wanted).T.astype(x.dtype.numpy)
    y = matmul(moved, constant_array(np.ascontiguousarray(matrix)))
    back = tuple(last if i == axis else i - (i > axis) for i in range(x.ndim))
    return permute_dims(y, back)


def _adaptive_avg_pool(input: Any, output_size: Any, dims: int) -> Tensor:
    what = f"adaptive_avg_pool{dims}d"
    x = as_tensor(input, what)
    spatial = tuple(range(x.ndim - dims, x.ndim))
    _planes(x, dims, what)
    wanted = _targets(output_size, x.shape[-dims:], dims)
    if all(w == 1 for w in wanted):
        return mean(x, axis=spatial, keepdims=True)
    windows = [_adaptive_window(s, w, what) for s, w in zip(x.shape[-dims:], wanted)]
    if all(w is not None for w in windows):
        pool = avg_pool1d if dims == 1 else avg_pool2d
        return pool(x, tuple(windows))
    for axis, w in zip(spatial, wanted):
        if w != x.shape[axis]:
            x = _average_axis(x, axis, int(w))
    return x


def adaptive_avg_pool1d(input: Any, output_size: Any) -> Tensor:
    """The mean of windows that divide the last dim into `output_size` parts, evenly or nearly so.

    A symbolic size can be pooled to 1 only.
    """
    return _adaptive_avg_pool(input, output_size, 1)


def adaptive_avg_pool2d(input: Any, output_size: Any) -> Tensor:
    """The mean of windows that divide the last two dims into `output_size` parts, evenly or nearly
    so; an int, a pair, or None for a dim that stays. A symbolic size can be pooled to 1 only."""
    return _adaptive_avg_pool(input, output_size, 2)


def _adaptive_max_pool(input: Any, output_size: Any, dims: int) -> Tensor:
    what = f"adaptive_max_pool{dims}d"
    x = as_tensor(input, what)
    _planes(x, dims, what)
    wanted = _targets(output_size, x.shape[-dims:], dims)
    if all(w == 1 for w in wanted) and any(isinstance(s, Dim) for s in x.shape[-dims:]):
        return reduce_max(x, axis=tuple(range(x.ndim - dims, x.ndim)), keepdims=True)
    windows = [_adaptive_window(s, w, what) for s, w in zip(x.shape[-dims:], wanted)]
    if any(w is None for w in windows):
        raise UnsupportedError(
            f"{what}: sizes {x.shape[-dims:]} are no multiples of output_size {wanted}"
        )
    pool = max_pool1d if dims == 1 else max_pool2d
    return pool(x, tuple(windows))


def adaptive_max_pool1d(input: Any, output_size: Any) -> Tensor:
    """The maximum of windows that divide the last dim evenly into `output_size` parts."""
    return _adaptive_max_pool(input, output_size, 1)


def adaptive_max_pool2d(input: Any, output_size: Any) -> Tensor:
    """The maximum of windows that divide the last two dims evenly into `output_size` parts."""
    return _adaptive_max_pool(input, output_size, 2)


def unfold(
    input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """The windows of [N, C, H, W] as columns: [N, C*KH*KW, OH*OW]."""
    x = as_tensor(input, "unfold")
    kernel = ints(kernel_size, 2, "unfold: kernel_size", 1)
    pads = ints(padding, 2, "unfold: padding")
    if any(pads):
        from staticgrad.ops.slicing import pad

        x = pad(x, ((0, 0), (0, 0), *((p, p) for p in pads)))
    w = ops.windows(
        x,
        kernel=_two(kernel, 1),
        stride=_two(ints(stride, 2, "unfold: stride", 1), 1),
        dilation=_two(ints(dilation, 2, "unfold: dilation", 1), 1),
    )
    n, c, oh, ow = w.shape[:4]
    taps = c * math.prod(kernel)
    return reshape(permute_dims(w, (0, 1, 4, 5, 2, 3)), (n, taps, oh * ow))


__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "max_pool1d",
    "max_pool2d",
    "unfold",
]
