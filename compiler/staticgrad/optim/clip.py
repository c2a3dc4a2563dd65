"""Bounds on gradients, as functions of the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

from staticgrad.ir.dtype import DType, promote
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ops.convert import astype
from staticgrad.ops.exponential import sqrt
from staticgrad.ops.public import list_of
from staticgrad.ops.reduction import max as reduce_max
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.rounding import abs as absolute
from staticgrad.ops.selection import clip, maximum, minimum
from staticgrad.ops.tensor import Tensor


def _check(grads: Sequence[Tensor], what: str) -> list[Tensor]:
    found = list_of(grads, f"{what}: grads", "tensors")
    for g in found:
        if not isinstance(g, Tensor) or not g.dtype.is_float:
            raise ArgumentTypeError(f"{what}: expected floating tensors, got {g!r}")
    if not found:
        raise ArgumentError(f"{what}: there are no gradients")
    return found


def global_norm(grads: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of all elements of all gradients together: a scalar of their widest dtype.

    `norm_type` p > 0: `(sum |g|**p)**(1/p)`; infinity: the greatest absolute value.
    """
    found = _check(grads, "global_norm")
    if not norm_type > 0:
        raise ArgumentError(f"global_norm: norm_type must be positive, got {norm_type}")
    wide: DType = found[0].dtype
    for g in found[1:]:
        wide = promote(wide, g.dtype)
    parts = [astype(g, wide) for g in found]
    if math.isinf(norm_type):
        total = reduce_max(absolute(parts[0]))
        for g in parts[1:]:
            total = maximum(total, reduce_max(absolute(g)))
        return total
    powers = [g * g if norm_type == 2 else absolute(g) ** norm_type for g in parts]
    total = reduce_sum(powers[0])
    for power in powers[1:]:
        total = total + reduce_sum(power)
    return sqrt(total) if norm_type == 2 else total ** (1.0 / norm_type)


def clip_by_global_norm(
    grads: Sequence[Tensor], max_norm: float, norm_type: float = 2.0
) -> list[Tensor]:
    """All gradients times `min(1, max_norm / (norm + 1e-6))`, with the norm of all together.

    PyTorch's `clip_grad_norm_`. A norm that is NaN makes every gradient NaN.
    """
    found = _check(grads, "clip_by_global_norm")
    if not max_norm > 0:
        raise ArgumentError(f"clip_by_global_norm: max_norm must be positive, got {max_norm}")
    scale = minimum(max_norm / (global_norm(found, norm_type) + 1e-6), 1.0)
    return [g * astype(scale, g.dtype) for g in found]


def clip_by_value(grads: Sequence[Tensor], clip_value: float) -> list[Tensor]:
    """All elements held between -clip_value and clip_value. PyTorch's `clip_grad_value_`."""
    found = _check(grads, "clip_by_value")
    if not clip_value > 0:
        raise ArgumentError(f"clip_by_value: clip_value must be positive, got {clip_value}")
    return [clip(g, -clip_value, clip_value) for g in found]


__all__ = ["clip_by_global_norm", "clip_by_value", "global_norm"]
