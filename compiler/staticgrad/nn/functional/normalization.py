"""Normalisation over the batch, a layer's features, groups of channels, or to unit length.

All of them centre first and take the variance of the centred values, which keeps its digits where
the mean is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from staticgrad.ir.dim import Dim, DimLike, as_shape, product, shape_text
from staticgrad.ir.errors import ArgumentError, DTypeError, ShapeError, UnsupportedError
from staticgrad.ir.node import Value
from staticgrad.ops.convert import as_tensor
from staticgrad.ops.exponential import rsqrt, sqrt
from staticgrad.ops.mode import training_switch
from staticgrad.ops.public import public
from staticgrad.ops.reduction import dim_size, mean
from staticgrad.ops.reduction import max as reduce_max
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import apply
from staticgrad.ops.rounding import abs as absolute
from staticgrad.ops.selection import maximum, where
from staticgrad.ops.shape import may_equal, reshape
from staticgrad.ops.tensor import Tensor

from ..mode import mode_of


def _floating(input: Any, what: str) -> Tensor:
    x = as_tensor(input, what)
    if not x.dtype.is_float:
        raise DTypeError(f"{what}: expected a floating dtype, got {x.type}")
    return x


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - mean(x, axis=axes, keepdims=True)
    return centred * rsqrt(mean(centred * centred, axis=axes, keepdims=True) + eps)


def _scaled(y: Tensor, weight: Any, bias: Any) -> Tensor:
    if weight is not None:
        y = y * as_tensor(weight)
    return y if bias is None else y + as_tensor(bias)


def layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dims, which must be
    `normalized_shape`; weight and bias have that shape. Source: Ba et al., arXiv 1607.06450."""
    x = _floating(input, "layer_norm")
    shape = as_shape(normalized_shape)
    if not shape or x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        raise ShapeError(
            f"layer_norm: expected an input whose last dims are {shape_text(shape)}, got {x.type}"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and as_tensor(value).shape != shape:
            raise ShapeError(
                f"layer_norm: the {name} must have shape {shape_text(shape)}, got "
                f"{as_tensor(value).type}"
            )
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    return _scaled(_standardised(x, axes, eps), weight, bias)


def rms_norm(
    input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dims; eps is the dtype's by default.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """
    import numpy as np

    x = _floating(input, "rms_norm")
    shape = as_shape(normalized_shape)
    if not shape or x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        raise ShapeError(
            f"rms_norm: expected an input whose last dims are {shape_text(shape)}, got {x.type}"
        )
    if weight is not None and as_tensor(weight, "rms_norm").shape != shape:
        raise ShapeError(
            f"rms_norm: the weight must have shape {shape_text(shape)}, got "
            f"{as_tensor(weight).type}"
        )
    small = float(np.finfo(x.dtype.numpy).eps) if eps is None else eps
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    return _scaled(x * rsqrt(mean(x * x, axis=axes, keepdims=True) + small), weight, None)


def _of_channels(value: Any, x: Tensor, what: str) -> Tensor:
    """[C], checked beside x: [N, C, ..]."""
    v = as_tensor(value, what)
    if v.ndim != 1 or x.ndim < 2 or not may_equal(v.shape[0], x.shape[1]):
        raise ShapeError(f"{what}: expected one value for each channel of {x.type}, got {v.type}")
    return v


def _per_channel(value: Any, x: Tensor, what: str) -> Tensor:
    """[C] as [C, 1, 1], beside x: [N, C, ..]."""
    v = _of_channels(value, x, what)
    return reshape(v, (v.shape[0], *(1,) * (x.ndim - 2)))


def _scale_of(weight: Any, bias: Any, x: Tensor, what: str) -> list[Tensor | None]:
    """Weight and bias, [C] each where they are given."""
    return [
        None if v is None else _of_channels(v, x, f"{what}: {name}")
        for name, v in (("weight", weight), ("bias", bias))
    ]


def _standardised_along(
    x: Tensor, axes: tuple[int, ...], scale: Sequence[Tensor | None], scale_axes: tuple[int, ...],
    eps: float,
) -> Tensor:  # fmt: skip
    """Standardised over `axes`; weight and bias are of x's dims at `scale_axes`."""
    given = [v for v in scale if v is not None and v.dtype == x.dtype]
    if len(given) == 2:
        result: Tensor = apply("standardize", x, *given, axes=axes, scale_axes=scale_axes, eps=eps)
        return result
    beside = tuple(x.shape[a] if a in scale_axes else 1 for a in range(scale_axes[0], x.ndim))
    return _scaled(
        apply("standardize", x, axes=axes, scale_axes=(), eps=eps),
        *(None if v is None else reshape(v, beside) for v in scale),
    )


def group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """Standardises each of `num_groups` groups of channels of [N, C, ..], then scales by channel.

    Source: Wu and He, arXiv 1803.08494.
    """
    x = _floating(input, "group_norm")
    if x.ndim < 2:
        raise ShapeError(f"group_norm: expected [N, C, ..], got {x.type}")
    channels = x.shape[1]
    if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups < 1:
        raise ArgumentError(f"group_norm: num_groups must be at least 1, got {num_groups!r}")
    if isinstance(channels, int) and channels % num_groups:
        raise ShapeError(f"group_norm: {num_groups} groups do not divide the {channels} channels")
    # A group's channels are an axis of their own, so that the scale is part of the same kernel.
    groups = (num_groups, channels // num_groups)
    scale = [
        None if v is None else reshape(v, groups) for v in _scale_of(weight, bias, x, "group_norm")
    ]
    spatial = (product(x.shape[2:]),) if x.ndim > 2 else ()
    grouped = reshape(x, (x.shape[0], *groups, *spatial))
    axes = tuple(range(2, grouped.ndim))
    return reshape(_standardised_along(grouped, axes, scale, (1, 2), eps), x.shape)


def instance_norm(
    input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Standardises each channel of each example of [N, C, ..]; with `use_input_stats=False` by the
    running statistics, which are never updated here. Source: Ulyanov et al., arXiv 1607.08022."""
    x = _floating(input, "instance_norm")
    if x.ndim < 3:
        raise ShapeError(f"instance_norm: expected [N, C, ..], got {x.type}")
    if (running_mean is None) != (running_var is None):
        raise ArgumentError("instance_norm: running_mean and running_var are given both or neither")
    if use_input_stats and running_mean is not None:
        raise UnsupportedError(
            "instance_norm: running statistics are not updated; leave them out, or pass "
            "use_input_stats=False to use them"
        )
    if not use_input_stats and running_mean is None:
        raise ArgumentError(
            "instance_norm: use_input_stats=False needs running_mean and running_var"
        )
    scale = _scale_of(weight, bias, x, "instance_norm")
    if use_input_stats:
        return _standardised_along(x, tuple(range(2, x.ndim)), scale, (1,), eps)
    y = (x - _per_channel(running_mean, x, "running_mean")) * rsqrt(
        _per_channel(running_var, x, "running_var") + eps
    )
    return _scaled_by_channel(y, x, scale, "instance_norm")


def _unbiased(var: Tensor, count: DimLike) -> Tensor:
    """`var * n / (n - 1)`; of a single value it stays 0."""
    if isinstance(count, Dim):
        n = dim_size(count, var.dtype)
        return var * (n / maximum(n - 1.0, 1.0))
    return var * (count / max(count - 1, 1))


@partial(public, eager=True)
def normalise_batch(
    x: Tensor, running: tuple[Any, Any] | None, scale: tuple[Any, Any], mode: bool | None,
    momentum: Any, eps: float, updates: Sequence[tuple[Value, Value]] = (),
) -> Tensor:  # fmt: skip
    """Batch normalisation: by the batch's statistics in training, else by the running ones, which
    training updates together with `updates`."""
    if running is None:
        return _by_batch(x, scale, eps)
    old_mean, old_var = running
    known = (x - _per_channel(old_mean, x, "batch_norm: mean")) * rsqrt(
        _per_channel(old_var, x, "batch_norm: var") + eps
    )
    known = _scaled_by_channel(known, x, scale, "batch_norm")
    if mode is False:
        return known
    axes = (0, *range(2, x.ndim))
    count = product(tuple(x.shape[a] for a in axes))
    if mode and isinstance(count, int) and count == 1:
        raise ShapeError(f"batch_norm: expected more than 1 value per channel, got {x.type}")
    flat_mean = mean(x, axis=axes)
    centred = x - _per_channel(flat_mean, x, "batch_norm")  # as in `standardize`
    keep = 1.0 - momentum
    new_mean = old_mean * keep + flat_mean * momentum
    flat_var = _unbiased(mean(centred * centred, axis=axes), count)
    new_var = old_var * keep + flat_var * momentum
    if not isinstance(count, int) or not count:  # an empty batch has no statistics
        some = dim_size(count, flat_mean.dtype) > 0.0
        new_mean, new_var = where(some, new_mean, old_mean), where(some, new_var, old_var)
    pairs = ((old_mean, new_mean), (old_var, new_var), *updates)
    return training_switch(_by_batch(x, scale, eps), known, pairs, training=mode)


def _by_batch(x: Tensor, scale: tuple[Any, Any], eps: float) -> Tensor:
    """Standardised by the batch's own statistics, and scaled."""
    checked = _scale_of(*scale, x, "batch_norm")
    return _standardised_along(x, (0, *range(2, x.ndim)), checked, (1,), eps)


def _scaled_by_channel(y: Tensor, x: Tensor, scale: Sequence[Any], what: str) -> Tensor:
    weight, bias = (
        None if v is None else _per_channel(v, x, f"{what}: {name}")
        for name, v in zip(("weight", "bias"), scale)
    )
    return _scaled(y, weight, bias)


def batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: Any = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`(x - mean) / sqrt(var + eps) * weight + bias` for each channel of [N, C, ..].

    In training mean and var are the batch's, and the running statistics (state) become
    `(1 - momentum) * running + momentum * batch`, with the unbiased variance; in evaluation they
    are the running ones. `training`: True, False, or None for what `compile` binds. Source: Ioffe
    and Szegedy, arXiv 1502.03167.
    """
    x = _floating(input, "batch_norm")
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: expected [N, C, ..], got {x.type}")
    if (running_mean is None) != (running_var is None):
        raise ArgumentError("batch_norm: running_mean and running_var are given both or not at all")
    mode = mode_of(training)
    if running_mean is None and mode is not True:
        raise ArgumentError("batch_norm: evaluation needs running_mean and running_var")
    running = None if running_mean is None else (running_mean, running_var)
    return normalise_batch(x, running, (weight, bias), mode, momentum, eps)


def _norm(x: Tensor, p: float, dim: Any) -> Tensor:
    """The p-norm along `dim`, kept as 1; its gradient at 0 is 0."""
    if p == float("inf"):
        return reduce_max(absolute(x), axis=dim, keepdims=True)
    if p <= 0:
        raise ArgumentError(f"normalize: p must be positive, got {p}")
    if p == 1:
        return reduce_sum(absolute(x), axis=dim, keepdims=True)
    power = x * x if p == 2 else absolute(x) ** p
    total = reduce_sum(power, axis=dim, keepdims=True)
    positive = total > 0.0
    inside = where(positive, total, 1.0)
    return where(positive, sqrt(inside) if p == 2 else inside ** (1.0 / p), 0.0)


def normalize(input: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Tensor:
    """`x / max(norm, eps)` with the p-norm along `dim`."""
    x = _floating(input, "normalize")
    return x / maximum(_norm(x, float(p), dim), eps)


def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """`x1 . x2 / (max(|x1|, eps) max(|x2|, eps))` along `dim`."""
    a, b = _floating(x1, "cosine_similarity"), _floating(x2, "cosine_similarity")
    return reduce_sum(
        a / maximum(_norm(a, 2.0, dim), eps) * (b / maximum(_norm(b, 2.0, dim), eps)), axis=dim
    )


__all__ = [
    "batch_norm",
    "cosine_similarity",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
]
