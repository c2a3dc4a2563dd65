"""Activations with PyTorch's names and arguments; the formulas stand in `ops.activation`.

`inplace` is accepted for PyTorch's sake: values of a graph are never changed, and the compiler
reuses their memory by itself.
"""

from __future__ import annotations

from typing import Any

from staticgrad.ir.dim import is_index
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ops import activation as ops
from staticgrad.ops.convert import as_tensor
from staticgrad.ops.rounding import abs as absolute
from staticgrad.ops.selection import where
from staticgrad.ops.shape import normalize_axis, reshape
from staticgrad.ops.slicing import narrow
from staticgrad.ops.softmax import log_softmax as ops_log_softmax
from staticgrad.ops.softmax import softmax as ops_softmax
from staticgrad.ops.tensor import Tensor
from staticgrad.ops.trigonometric import tanh as ops_tanh


def relu(input: Any, inplace: bool = False) -> Tensor:
    """`max(x, 0)`; the gradient at 0 is 0, NaN stays."""
    return ops.relu(input)


def relu6(input: Any, inplace: bool = False) -> Tensor:
    """`min(max(x, 0), 6)`."""
    return ops.relu6(input)


def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """`x` where x > 0, else `negative_slope * x`."""
    return ops.leaky_relu(input, negative_slope=negative_slope)


def prelu(input: Any, weight: Any) -> Tensor:
    """`x` where x > 0, else `weight * x`; `weight` is [1] or [C], for the dim 1 of the input."""
    x, w = as_tensor(input, "prelu"), as_tensor(weight, "prelu")
    if w.ndim > 1:
        raise ShapeError(f"prelu: the weight must have one dim, got {w.type}")
    if w.ndim == 1 and w.shape[0] != 1:
        axis = 1 if x.ndim > 1 else 0
        w = reshape(w, tuple(w.shape[0] if i == axis else 1 for i in range(x.ndim)))
    return where(x > 0, x, x * w)


def elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """`x` where x > 0, else `alpha * (exp(x) - 1)`."""
    return ops.elu(input, alpha=alpha)


def selu(input: Any, inplace: bool = False) -> Tensor:
    """`scale * elu(x, alpha)` with the constants of self-normalising networks."""
    return ops.selu(input)


def celu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """`max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)`."""
    if alpha == 0:
        raise ArgumentError("celu: alpha can't be 0")
    return ops.elu(as_tensor(input, "celu") / alpha) * alpha


def gelu(input: Any, approximate: str = "none") -> Tensor:
    """`x * Phi(x)` with the normal distribution function Phi, or its tanh approximation."""
    return ops.gelu(input, approximate=approximate)


def silu(input: Any, inplace: bool = False) -> Tensor:
    """`x * sigmoid(x)`."""
    return ops.silu(input)


def mish(input: Any, inplace: bool = False) -> Tensor:
    """`x * tanh(softplus(x))`."""
    return ops.mish(input)


def sigmoid(input: Any) -> Tensor:
    """`1 / (1 + exp(-x))`."""
    return ops.sigmoid(input)


def logsigmoid(input: Any) -> Tensor:
    """`log(sigmoid(x))`, without underflow."""
    return ops.logsigmoid(input)


def tanh(input: Any) -> Tensor:
    """The hyperbolic tangent."""
    return ops_tanh(input)


def tanhshrink(input: Any) -> Tensor:
    """`x - tanh(x)`."""
    return as_tensor(input, "tanhshrink") - ops_tanh(input)


def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """`log(1 + exp(beta * x)) / beta`, and `x` itself where `beta * x > threshold`."""
    x = as_tensor(input, "softplus")
    if beta == 0:
        raise ArgumentError("softplus: beta can't be 0")
    scaled = x if beta == 1 else x * beta
    smooth = ops.softplus(where(scaled > threshold, 0.0, scaled))
    return where(scaled > threshold, x, smooth if beta == 1 else smooth / beta)


def softsign(input: Any) -> Tensor:
    """`x / (1 + |x|)`."""
    return ops.softsign(input)


def hardtanh(
    input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """`x` held between `min_val` and `max_val`."""
    return ops.hardtanh(input, min_val=min_val, max_val=max_val)


def hardsigmoid(input: Any, inplace: bool = False) -> Tensor:
    """`min(max(x + 3, 0), 6) / 6`."""
    return ops.hardsigmoid(input)


def hardswish(input: Any, inplace: bool = False) -> Tensor:
    """`x * hardsigmoid(x)`."""
    return ops.hardswish(input)


def hardshrink(input: Any, lambd: float = 0.5) -> Tensor:
    """`x` where |x| > lambd, else 0."""
    x = as_tensor(input, "hardshrink")
    return where(absolute(x) > lambd, x, 0.0)


def softshrink(input: Any, lambd: float = 0.5) -> Tensor:
    """`x` moved towards 0 by lambd, and 0 where |x| <= lambd."""
    x = as_tensor(input, "softshrink")
    if lambd < 0:
        raise ArgumentError(f"softshrink: lambd can't be negative, got {lambd}")
    return where(x > lambd, x - lambd, where(x < -lambd, x + lambd, 0.0))


def threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """`x` where x > threshold, else `value`."""
    x = as_tensor(input, "threshold")
    return where(x > threshold, x, value)


def glu(input: Any, dim: int = -1) -> Tensor:
    """`a * sigmoid(b)`, where a and b are the halves of the input along `dim`."""
    x = as_tensor(input, "glu")
    axis = normalize_axis(dim, x.ndim, "glu")
    size = x.shape[axis]
    if isinstance(size, int) and size % 2:
        raise ShapeError(f"glu: the dim {dim} of {x.type} must be even")
    half = size // 2
    return narrow(x, axis, 0, half) * ops.sigmoid(narrow(x, axis, half, half))


def _one_axis(dim: Any, what: str) -> int:
    if not is_index(dim):
        raise ArgumentTypeError(f"{what}: dim must be an int, got {dim!r}")
    return int(dim)


def softmax(input: Any, dim: int = -1) -> Tensor:
    """`exp(x) / sum(exp(x))` along `dim`, without overflow."""
    return ops_softmax(input, axis=_one_axis(dim, "softmax"))


def log_softmax(input: Any, dim: int = -1) -> Tensor:
    """`log(softmax(x))` along `dim`, in one stable formula."""
    return ops_log_softmax(input, axis=_one_axis(dim, "log_softmax"))


def softmin(input: Any, dim: int = -1) -> Tensor:
    """`softmax(-x)` along `dim`."""
    return ops_softmax(-as_tensor(input, "softmin"), axis=_one_axis(dim, "softmin"))


__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_softmax",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
]
