"""Bounds on the gradients that `backward` of the dynamic mode has added up, in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ExecutionError
from staticgrad.ops.convert import astype
from staticgrad.ops.public import dynamic, public
from staticgrad.ops.selection import minimum
from staticgrad.ops.tensor import Tensor

from .clip import global_norm


def _gradients(parameters: Any, what: str) -> list[Any]:
    """The gradients of the parameters that have one."""
    one = isinstance(parameters, Tensor) or dynamic.is_tensor(parameters)
    try:
        given = [parameters] if one else list(parameters)
    except TypeError:
        raise ArgumentTypeError(
            f"{what}: expected parameters, got {type(parameters).__name__}"
        ) from None
    for p in given:
        if not (hasattr(type(p), "grad") and (isinstance(p, Tensor) or dynamic.is_tensor(p))):
            raise ArgumentTypeError(f"{what}: expected parameters with a .grad, got {p!r}")
    return [p.grad for p in given if p.grad is not None]


def _scaled(grads: list[Tensor], max_norm: Tensor, norm_type: float) -> tuple[Any, ...]:
    """Traced: the norm of all together, and the gradients scaled to at most `max_norm`."""
    norm = global_norm(grads, norm_type)
    scale = minimum(astype(max_norm, norm.dtype) / (norm + 1e-6), 1.0)
    return norm, [g * astype(scale, g.dtype) for g in grads]


@public
def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Any:
    """Scales the `.grad` of parameters, in place, by `min(1, max_norm / (norm + 1e-6))`.

    `norm` is that of all gradients together, `(sum |g|**p)**(1/p)` with `norm_type` p, which may be
    infinite; it is returned, as an eager tensor. Parameters without a gradient take no part. A norm
    that is NaN makes every gradient NaN, or with `error_if_nonfinite` raises `ExecutionError`.

    For the dynamic mode; in a graph, `minimize(loss, clip_norm=..)`. Source: PyTorch's
    `clip_grad_norm_`.
    """
    if not max_norm >= 0:
        raise ArgumentError(f"clip_grad_norm_: max_norm must be at least 0, got {max_norm}")
    if not norm_type > 0:
        raise ArgumentError(f"clip_grad_norm_: norm_type must be positive, got {norm_type}")
    grads = _gradients(parameters, "clip_grad_norm_")
    package = dynamic.package()
    if not grads:
        return package.zeros(())
    given = ([g.detach() for g in grads], np.array(max_norm, np.float64), norm_type)
    norm, scaled = dynamic.call(_scaled, given, {})  # type: ignore[misc]
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise ExecutionError(
            f"clip_grad_norm_: the norm of the gradients is {norm.item()}; without "
            "error_if_nonfinite they are scaled by it"
        )
    for g, new in zip(grads, scaled):
        g.overwrite(new.numpy())
    return norm


@public
def clip_grad_value_(parameters: Any, clip_value: float) -> None:
    """Holds the elements of the `.grad` of parameters between -clip_value and clip_value, in place.

    For the dynamic mode; in a graph, `minimize(loss, clip_value=..)`. Source: PyTorch's
    `clip_grad_value_`.
    """
    if not clip_value >= 0:
        raise ArgumentError(f"clip_grad_value_: clip_value must be at least 0, got {clip_value}")
    for g in _gradients(parameters, "clip_grad_value_"):
        g.overwrite(np.clip(g.detach().numpy(), -clip_value, clip_value))


__all__ = ["clip_grad_norm_", "clip_grad_value_"]
