"""Exponentials, logarithms, roots and norms of pairs, element by element. Floating only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .elementwise import elementwise, floating
from .registry import Sample, apply
from .samples import FLOATS, away_from_zero, pairs, random_array, singles, special_pairs
from .tensor import Tensor, method

_TORCH = "PyTorch's function of this name"
_LN2, _LN10 = math.log(2.0), math.log(10.0)


def _positive(low: float = 0.1, high: float = 5.0) -> Any:
    return lambda: singles(FLOATS, low, high)


def _normal() -> list[Sample]:
    return singles(FLOATS)


elementwise("exp", "e**x", np.exp, lambda c, ct: (ct * c.results[0],), _normal)
elementwise(
    "exp2", "2**x", np.exp2, lambda c, ct: (ct * (c.results[0] * _LN2),), _normal, source=_TORCH
)
elementwise(
    "expm1", "e**x - 1, exact near 0", np.expm1,
    # Not y + 1, which for x < -37 would be 0 in float64 where e**x is not.
    lambda c, ct: (ct * c.operands[0].exp(),), _normal,
)  # fmt: skip
elementwise("log", "ln x", np.log, lambda c, ct: (ct / c.operands[0],), _positive())
elementwise(
    "log2", "log2 x", np.log2, lambda c, ct: (ct / (c.operands[0] * _LN2),), _positive()
)  # fmt: skip
elementwise(
    "log10", "log10 x", np.log10, lambda c, ct: (ct / (c.operands[0] * _LN10),), _positive()
)  # fmt: skip
elementwise(
    "log1p", "ln(1 + x), exact near 0", np.log1p,
    lambda c, ct: (ct / (c.operands[0] + 1.0),), _positive(-0.9, 4.0),
)  # fmt: skip
elementwise(
    "sqrt", "x**(1/2)", np.sqrt, lambda c, ct: (ct / (c.results[0] * 2.0),), _positive()
)  # fmt: skip
elementwise(
    "rsqrt", "x**(-1/2)", lambda x: np.reciprocal(np.sqrt(x)),
    lambda c, ct: (ct * -0.5 * (c.results[0] * c.results[0] * c.results[0]),),
    _positive(), source=_TORCH,
)  # fmt: skip
elementwise(
    "cbrt", "the real x**(1/3), negative for negative x", np.cbrt,
    lambda c, ct: (ct / (c.results[0] * c.results[0] * 3.0),),
    lambda: singles(FLOATS, make=away_from_zero), source="IEEE 754-2019, rootn(x, 3)",
)  # fmt: skip


@method("exp")
def exp(x: Any, /) -> Tensor:
    """`e**x`, element by element. Floating only; infinity where it overflows."""
    return apply("exp", *floating(x))


@method("exp2")
def exp2(x: Any, /) -> Tensor:
    """`2**x`, element by element. Floating only."""
    return apply("exp2", *floating(x))


@method("expm1")
def expm1(x: Any, /) -> Tensor:
    """`e**x - 1`, element by element, without cancellation near 0. Floating only."""
    return apply("expm1", *floating(x))


@method("log")
def log(x: Any, /) -> Tensor:
    """The natural logarithm, element by element. Floating only; -inf at 0, NaN below."""
    return apply("log", *floating(x))


@method("log2")
def log2(x: Any, /) -> Tensor:
    """The logarithm to base 2, element by element. Floating only; -inf at 0, NaN below."""
    return apply("log2", *floating(x))


@method("log10")
def log10(x: Any, /) -> Tensor:
    """The logarithm to base 10, element by element. Floating only; -inf at 0, NaN below."""
    return apply("log10", *floating(x))


@method("log1p")
def log1p(x: Any, /) -> Tensor:
    """`log(1 + x)`, element by element, without rounding of `1 + x`. Floating only; -inf at -1."""
    return apply("log1p", *floating(x))


@method("sqrt")
def sqrt(x: Any, /) -> Tensor:
    """The square root, element by element, correctly rounded. Floating only; NaN below 0.

    Its gradient at 0 is infinite, as in PyTorch.
    """
    return apply("sqrt", *floating(x))


@method("rsqrt")
def rsqrt(x: Any, /) -> Tensor:
    """`1 / sqrt(x)`, element by element. Floating only; infinity at 0, NaN below."""
    return apply("rsqrt", *floating(x))


@method("cbrt")
def cbrt(x: Any, /) -> Tensor:
    """The real cube root, element by element. Floating only; its gradient at 0 is infinite."""
    return apply("cbrt", *floating(x))


# --- of two operands ------------------------------------------------------------------------------


def _vjp_logaddexp(c: Any, ct: Any) -> tuple[Any, ...]:
    """The shares e**x1 / (e**x1 + e**x2) = sigmoid(x1 - x2); half each for equal infinities."""
    from .activation import sigmoid
    from .comparison import isinf
    from .selection import where

    x1, x2 = c.operands
    # The mask holds for infinities only: inside it the second derivative would be lost.
    difference: Any = where((x1 == x2) & isinf(x1), 0.0, x1 - x2)
    return ct * sigmoid(difference), ct * sigmoid(-difference)


def _vjp_hypot(c: Any, ct: Any) -> tuple[Any, ...]:
    """x / hypot; 0 at the origin, the smallest subgradient, where x / hypot would be NaN."""
    from .selection import where

    y = c.results[0]
    scale = ct / where(y == 0.0, 1.0, y)
    return scale * c.operands[0], scale * c.operands[1]


elementwise(
    "logaddexp", "log(e**x1 + e**x2)", np.logaddexp, _vjp_logaddexp,
    lambda: [*pairs(FLOATS), *special_pairs(FLOATS)], traits=("commutative",),
)  # fmt: skip
elementwise(
    "hypot", "sqrt(x1**2 + x2**2)", np.hypot, _vjp_hypot,
    lambda: [*_pairs_off_origin(), *special_pairs(FLOATS)], traits=("commutative",),
)  # fmt: skip


def _pairs_off_origin() -> list[Sample]:
    found = [Sample((away_from_zero((4, 17), d, 3), random_array((4, 17), d, 4))) for d in FLOATS]
    wide = (away_from_zero((3, 1), "float64", 5), random_array((1, 5), "float64", 6))
    return [*found, Sample(wide)]


def logaddexp(x1: Any, x2: Any, /) -> Tensor:
    """`log(exp(x1) + exp(x2))`, element by element, without overflow. Floating only."""
    return apply("logaddexp", *floating(x1, x2))


def hypot(x1: Any, x2: Any, /) -> Tensor:
    """`sqrt(x1**2 + x2**2)`, element by element, without overflow or underflow. Floating only.

    Infinite where either operand is, even beside a NaN. The gradient at the origin is 0.
    """
    return apply("hypot", *floating(x1, x2))


__all__ = [
    "cbrt",
    "exp",
    "exp2",
    "expm1",
    "hypot",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "rsqrt",
    "sqrt",
]
