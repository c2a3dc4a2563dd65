"""Activation functions, element by element: what `nn.functional` is made of.

sigmoid, relu and softplus are scalar operations of their own; the others are formulas in other ops.
At kinks the gradients are PyTorch's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError

from .convert import promoted
from .elementwise import elementwise, floating, infer_floating, infer_numeric
from .exponential import exp, expm1
from .lowering import Expand
from .registry import Sample, apply
from .rounding import abs
from .samples import FLOATS, NUMERIC, away_from_zero, off_halves, random_array, singles
from .selection import clip, where
from .special import erfc, reference_erfc
from .tensor import Tensor, method
from .trigonometric import tanh

_TORCH = "PyTorch's torch.nn.functional"
_SQRT_HALF = math.sqrt(0.5)
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)  # of the normal distribution at 0
_SQRT_8_OVER_PI = math.sqrt(8.0 / math.pi)
_CUBIC = 0.044715
# Klambauer et al., Self-Normalizing Neural Networks, 2017, appendix 1.
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


def _smooth(**attrs: Any) -> Any:
    return lambda: [Sample(s.operands, attrs, s.differentiable) for s in singles(FLOATS)]


def _kinked(*attrs: dict[str, Any]) -> Any:
    """Values off the kinks, for each set of attributes."""
    return lambda: [
        Sample(s.operands, a, s.differentiable)
        for a in (attrs or ({},))
        for s in singles(FLOATS, make=off_halves)
    ]


# --- sigmoid, relu, softplus ----------------------------------------------------------------------


def _reference_sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def _reference_softplus(x: Any) -> Any:
    return np.logaddexp(x, x.dtype.type(0))


elementwise(
    "sigmoid", "1 / (1 + e**-x)", _reference_sigmoid,
    lambda c, ct: (ct * (c.results[0] * (1.0 - c.results[0])),), _smooth(), source=_TORCH,
)  # fmt: skip
elementwise(
    "relu", "x where x > 0, else 0; NaN stays",
    lambda x: np.where(x < 0, x.dtype.type(0), x),
    lambda c, ct: (where(c.operands[0] > 0.0, ct, 0.0),),
    lambda: singles(NUMERIC, make=_moved), infer=infer_numeric, source=_TORCH,
)  # fmt: skip
elementwise(
    "softplus", "log(1 + e**x)", _reference_softplus,
    lambda c, ct: (ct * c.operands[0].sigmoid(),), _smooth(), source=_TORCH,
)  # fmt: skip


def _moved(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    return (
        away_from_zero(shape, dtype, seed) if dtype in FLOATS else random_array(shape, dtype, seed)
    )


@method("sigmoid")
def sigmoid(x: Any, /) -> Tensor:
    """The logistic function `1 / (1 + exp(-x))`, element by element. Floating only."""
    return apply("sigmoid", *floating(x))


@method("relu")
def relu(x: Any, /) -> Tensor:
    """`max(x, 0)`, element by element. Numbers only; NaN stays; the gradient at 0 is 0."""
    return apply("relu", *promoted(x))


@method("softplus")
def softplus(x: Any, /) -> Tensor:
    """`log(1 + exp(x))`, element by element, without overflow. Floating only."""
    return apply("softplus", *floating(x))


# --- formulas -------------------------------------------------------------------------------------


def _number(name: str, argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ArgumentTypeError(f"{name}: {argument} must be a number, got {value!r}")
    return float(value)


def _composed(name: str, summary: str, reference: Any, vjp: Any, build: Any, samples: Any,
              source: str = _TORCH) -> None:  # fmt: skip
    """Registers an op whose lowering is a formula `build(x, attrs)` in other ops."""
    elementwise(
        name, summary, reference, vjp, samples, infer=infer_floating,
        lower=Expand(lambda operands, attrs: build(operands[0], attrs)), source=source,
    )  # fmt: skip


def _probability(x: Any) -> Any:
    """The normal distribution function; by erfc, since 1 + erf cancels for negative x."""
    return erfc(x * -_SQRT_HALF) * 0.5


def _cubic(x: Any) -> Any:
    """2u of gelu's tanh form: (1 + tanh u) / 2 is sigmoid(2u), without the cancellation."""
    return (x * x * _CUBIC + 1.0) * x * _SQRT_8_OVER_PI


def _build_gelu(x: Any, attrs: Any) -> Any:
    if attrs["approximate"] == "tanh":
        return x * sigmoid(_cubic(x))
    return x * _probability(x)


def _vjp_gelu(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    if c.attrs["approximate"] == "tanh":
        s: Any = sigmoid(_cubic(x))
        # Beyond 1e4 s is exactly 0 or 1, and x**2, which overflows from 1.9e19, is kept out.
        inner: Any = where(abs(x) < 1e4, x, 0.0)
        slope = (inner * inner * (3.0 * _CUBIC) + 1.0) * _SQRT_8_OVER_PI
        return (ct * (s + x * (s * (1.0 - s)) * slope),)
    return (ct * (_probability(x) + x * (exp(x * x * -0.5) * _DENSITY)),)


def _reference_gelu(x: Any, approximate: str) -> Any:
    if approximate == "tanh":
        return x / (1 + np.exp(-_SQRT_8_OVER_PI * (x + _CUBIC * x * x * x)))
    return (x * 0.5 * reference_erfc(-x.astype("float64") * _SQRT_HALF)).astype(x.dtype)


_composed(
    "gelu", "x times the normal distribution function, or its tanh approximation",
    _reference_gelu, _vjp_gelu, _build_gelu,
    lambda: [*_smooth(approximate="none")(), *_smooth(approximate="tanh")()],
    source="Hendrycks and Gimpel, Gaussian Error Linear Units, 2016",
)  # fmt: skip


def gelu(x: Any, /, *, approximate: str = "none") -> Tensor:
    """`x * Phi(x)` with the normal distribution function Phi, element by element. Floating only.

    `approximate="tanh"`: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3)))`. Raises ArgumentError for
    another `approximate`.
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return apply("gelu", *floating(x), approximate=approximate)


def _vjp_silu(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    s: Any = sigmoid(x)
    return (ct * (s * (x * (1.0 - s) + 1.0)),)


_composed(
    "silu", "x sigmoid(x)", lambda x: x * _reference_sigmoid(x), _vjp_silu,
    lambda x, attrs: x * sigmoid(x), _smooth(),
)  # fmt: skip


def silu(x: Any, /) -> Tensor:
    """`x * sigmoid(x)`, also called swish, element by element. Floating only."""
    return apply("silu", *floating(x))


def _vjp_mish(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    t: Any = tanh(softplus(x))
    return (ct * (t + x * sigmoid(x) * ((1.0 - t) * (1.0 + t))),)


_composed(
    "mish", "x tanh(softplus(x))", lambda x: x * np.tanh(_reference_softplus(x)), _vjp_mish,
    lambda x, attrs: x * tanh(softplus(x)), _smooth(),
)  # fmt: skip


def mish(x: Any, /) -> Tensor:
    """`x * tanh(softplus(x))`, element by element. Floating only."""
    return apply("mish", *floating(x))


_composed(
    "logsigmoid", "log(sigmoid(x))", lambda x: -_reference_softplus(-x),
    lambda c, ct: (ct * sigmoid(-c.operands[0]),), lambda x, attrs: -softplus(-x), _smooth(),
)  # fmt: skip


def logsigmoid(x: Any, /) -> Tensor:
    """`log(sigmoid(x)) = -softplus(-x)`, element by element, without underflow. Floating only."""
    return apply("logsigmoid", *floating(x))


def _vjp_softsign(c: Any, ct: Any) -> tuple[Any, ...]:
    size: Any = abs(c.operands[0]) + 1.0
    return (ct / size / size,)


_composed(
    "softsign", "x / (1 + |x|)", lambda x: x / (1 + np.abs(x)), _vjp_softsign,
    lambda x, attrs: x / (abs(x) + 1.0), _kinked(),
)  # fmt: skip


def softsign(x: Any, /) -> Tensor:
    """`x / (1 + |x|)`, element by element. Floating only."""
    return apply("softsign", *floating(x))


# --- with a linear half ---------------------------------------------------------------------------


def _negative_part(x: Any) -> Any:
    """x where it is not positive, else 0: keeps what is not chosen from overflowing."""
    return where(x > 0.0, 0.0, x)


def _build_elu(x: Any, attrs: Any) -> Any:
    return where(x > 0.0, x, expm1(_negative_part(x)) * attrs["alpha"])


def _vjp_elu(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    return (where(x > 0.0, ct, ct * (exp(_negative_part(x)) * c.attrs["alpha"])),)


_composed(
    "elu", "x where x > 0, else alpha (e**x - 1)",
    lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.where(x > 0, x.dtype.type(0), x))),
    _vjp_elu, _build_elu, _kinked({"alpha": 1.0}, {"alpha": 0.5}),
    source="Clevert et al., Exponential Linear Units, 2015",
)  # fmt: skip


def elu(x: Any, /, *, alpha: float = 1.0) -> Tensor:
    """`x` where x > 0, else `alpha * (exp(x) - 1)`, element by element. Floating only."""
    return apply("elu", *floating(x), alpha=_number("elu", "alpha", alpha))


def _vjp_selu(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    below = ct * (exp(_negative_part(x)) * (_SELU_SCALE * _SELU_ALPHA))
    return (where(x > 0.0, ct * _SELU_SCALE, below),)


_composed(
    "selu", "1.0507 elu(x, alpha=1.67326)",
    lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    _vjp_selu,
    lambda x, attrs: _build_elu(x, {"alpha": _SELU_ALPHA}) * _SELU_SCALE,
    _kinked(), source="Klambauer et al., Self-Normalizing Neural Networks, 2017",
)  # fmt: skip


def selu(x: Any, /) -> Tensor:
    """`scale * elu(x, alpha)` with the paper's constants, element by element. Floating only."""
    return apply("selu", *floating(x))


def _vjp_leaky_relu(c: Any, ct: Any) -> tuple[Any, ...]:
    return (where(c.operands[0] > 0.0, ct, ct * c.attrs["negative_slope"]),)


_composed(
    "leaky_relu", "x where x > 0, else negative_slope x",
    lambda x, negative_slope: np.where(x > 0, x, x * negative_slope).astype(x.dtype),
    _vjp_leaky_relu,
    lambda x, attrs: where(x > 0.0, x, x * attrs["negative_slope"]),
    _kinked({"negative_slope": 0.01}, {"negative_slope": -0.5}),
)  # fmt: skip


def leaky_relu(x: Any, /, *, negative_slope: float = 0.01) -> Tensor:
    """`x` where x > 0, else `negative_slope * x`, element by element. Floating only."""
    slope = _number("leaky_relu", "negative_slope", negative_slope)
    return apply("leaky_relu", *floating(x), negative_slope=slope)


# --- piecewise linear -----------------------------------------------------------------------------


def _vjp_hardtanh(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    inside = (x > c.attrs["min_val"]) & (x < c.attrs["max_val"])
    return (where(inside, ct, 0.0),)


_composed(
    "hardtanh", "x held between min_val and max_val",
    lambda x, min_val, max_val: np.clip(x, min_val, max_val).astype(x.dtype),
    _vjp_hardtanh, lambda x, attrs: clip(x, attrs["min_val"], attrs["max_val"]),
    _kinked({"min_val": -1.0, "max_val": 1.0}, {"min_val": 0.0, "max_val": 6.0}),
)  # fmt: skip


def hardtanh(x: Any, /, *, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """`x` held between `min_val` and `max_val`, element by element. Floating only.

    Unlike `clip` it passes no gradient at the bounds themselves. Raises ArgumentError unless
    `min_val < max_val`.
    """
    low, high = _number("hardtanh", "min_val", min_val), _number("hardtanh", "max_val", max_val)
    if not low < high:
        raise ArgumentError(f"hardtanh: min_val must be below max_val, got {low} and {high}")
    return apply("hardtanh", *floating(x), min_val=low, max_val=high)


def relu6(x: Any, /) -> Tensor:
    """`min(max(x, 0), 6)`, element by element: `hardtanh` from 0 to 6. Floating only."""
    return hardtanh(x, min_val=0.0, max_val=6.0)


def _vjp_hardsigmoid(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    return (where((x > -3.0) & (x < 3.0), ct * (1.0 / 6.0), 0.0),)


_composed(
    "hardsigmoid", "x/6 + 1/2 held between 0 and 1",
    lambda x: (np.clip(x + 3, 0, 6) / 6).astype(x.dtype), _vjp_hardsigmoid,
    lambda x, attrs: clip(x + 3.0, 0.0, 6.0) / 6.0, _kinked(),
    source="Howard et al., Searching for MobileNetV3, 2019",
)  # fmt: skip


def hardsigmoid(x: Any, /) -> Tensor:
    """`min(max(x + 3, 0), 6) / 6`, element by element. Floating only."""
    return apply("hardsigmoid", *floating(x))


def _vjp_hardswish(c: Any, ct: Any) -> tuple[Any, ...]:
    x = c.operands[0]
    return (where(x <= -3.0, 0.0, where(x < 3.0, ct * (x * (1.0 / 3.0) + 0.5), ct)),)


_composed(
    "hardswish", "x hardsigmoid(x)",
    lambda x: (x * (np.clip(x + 3, 0, 6) / 6)).astype(x.dtype), _vjp_hardswish,
    lambda x, attrs: x * (clip(x + 3.0, 0.0, 6.0) / 6.0), _kinked(),
    source="Howard et al., Searching for MobileNetV3, 2019",
)  # fmt: skip


def hardswish(x: Any, /) -> Tensor:
    """`x * hardsigmoid(x)`, element by element. Floating only."""
    return apply("hardswish", *floating(x))


__all__ = [
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
]
