"""Trigonometric and hyperbolic functions and their inverses, element by element. Floating only."""

from __future__ import annotations

from typing import Any

import numpy as np

from .elementwise import elementwise, floating
from .exponential import hypot, sqrt
from .registry import Sample, apply
from .samples import FLOATS, away_from_zero, random_array, singles, special_pairs
from .tensor import Tensor, method


def _between(low: float, high: float) -> Any:
    return lambda: singles(FLOATS, low, high)


def _normal() -> list[Sample]:
    return singles(FLOATS)


def _one_minus_square(x: Any) -> Any:
    """1 - x**2 as (1 - x)(1 + x), which keeps its digits next to 1."""
    return (1.0 - x) * (1.0 + x)


elementwise("sin", "sin x", np.sin, lambda c, ct: (ct * c.operands[0].cos(),), _normal)
elementwise("cos", "cos x", np.cos, lambda c, ct: (-ct * c.operands[0].sin(),), _normal)
elementwise(
    "tan", "tan x", np.tan, lambda c, ct: (ct * (c.results[0] * c.results[0] + 1.0),),
    _between(-1.3, 1.3),
)  # fmt: skip
elementwise(
    "asin", "arcsine of x", np.arcsin,
    lambda c, ct: (ct / sqrt(_one_minus_square(c.operands[0])),), _between(-0.9, 0.9),
)  # fmt: skip
elementwise(
    "acos", "arccosine of x", np.arccos,
    lambda c, ct: (-ct / sqrt(_one_minus_square(c.operands[0])),), _between(-0.9, 0.9),
)  # fmt: skip
elementwise(
    "atan", "arctangent of x", np.arctan,
    lambda c, ct: (ct / (c.operands[0] * c.operands[0] + 1.0),), _normal,
)  # fmt: skip
elementwise("sinh", "(e**x - e**-x) / 2", np.sinh,
            lambda c, ct: (ct * c.operands[0].cosh(),), _normal)  # fmt: skip
elementwise("cosh", "(e**x + e**-x) / 2", np.cosh,
            lambda c, ct: (ct * c.operands[0].sinh(),), _normal)  # fmt: skip
elementwise(
    "tanh", "sinh x / cosh x", np.tanh,
    lambda c, ct: (ct * _one_minus_square(c.results[0]),), _normal,
)  # fmt: skip
elementwise(
    "asinh", "ln(x + sqrt(x**2 + 1))", np.arcsinh,
    lambda c, ct: (ct / hypot(c.operands[0], 1.0),), _normal,
)  # fmt: skip
elementwise(
    "acosh", "ln(x + sqrt(x**2 - 1))", np.arccosh,
    # Two roots, since x**2 overflows from 1.9e19 in float32.
    lambda c, ct: (ct / (sqrt(c.operands[0] - 1.0) * sqrt(c.operands[0] + 1.0)),),
    _between(1.05, 4.0),
)  # fmt: skip
elementwise(
    "atanh", "ln((1 + x) / (1 - x)) / 2", np.arctanh,
    lambda c, ct: (ct / _one_minus_square(c.operands[0]),), _between(-0.9, 0.9),
)  # fmt: skip


@method("sin")
def sin(x: Any, /) -> Tensor:
    """The sine of `x` radians, element by element, accurate for every x. Floating only."""
    return apply("sin", *floating(x))


@method("cos")
def cos(x: Any, /) -> Tensor:
    """The cosine of `x` radians, element by element, accurate for every x. Floating only."""
    return apply("cos", *floating(x))


@method("tan")
def tan(x: Any, /) -> Tensor:
    """The tangent of `x` radians, element by element, accurate for every x. Floating only."""
    return apply("tan", *floating(x))


@method("asin")
def asin(x: Any, /) -> Tensor:
    """The arcsine, in [-pi/2, pi/2], element by element. Floating only; NaN outside of [-1, 1]."""
    return apply("asin", *floating(x))


@method("acos")
def acos(x: Any, /) -> Tensor:
    """The arccosine, in [0, pi], element by element. Floating only; NaN outside of [-1, 1]."""
    return apply("acos", *floating(x))


@method("atan")
def atan(x: Any, /) -> Tensor:
    """The arctangent, in [-pi/2, pi/2], element by element. Floating only."""
    return apply("atan", *floating(x))


@method("sinh")
def sinh(x: Any, /) -> Tensor:
    """The hyperbolic sine, element by element. Floating only."""
    return apply("sinh", *floating(x))


@method("cosh")
def cosh(x: Any, /) -> Tensor:
    """The hyperbolic cosine, element by element. Floating only."""
    return apply("cosh", *floating(x))


@method("tanh")
def tanh(x: Any, /) -> Tensor:
    """The hyperbolic tangent, element by element. Floating only."""
    return apply("tanh", *floating(x))


@method("asinh")
def asinh(x: Any, /) -> Tensor:
    """The inverse hyperbolic sine, element by element. Floating only."""
    return apply("asinh", *floating(x))


@method("acosh")
def acosh(x: Any, /) -> Tensor:
    """The inverse hyperbolic cosine, element by element. Floating only; NaN below 1."""
    return apply("acosh", *floating(x))


@method("atanh")
def atanh(x: Any, /) -> Tensor:
    """The inverse hyperbolic tangent, element by element. Floating only; NaN outside of [-1, 1]."""
    return apply("atanh", *floating(x))


def _vjp_atan2(c: Any, ct: Any) -> tuple[Any, ...]:
    """(x2, -x1) / (x1**2 + x2**2), divided twice by the hypotenuse, which does not overflow as the
    squares do; 0 at the origin, where there is a jump."""
    from .selection import where

    x1, x2 = c.operands
    length = hypot(x1, x2)
    safe = where(length == 0.0, 1.0, length)
    scale = ct / safe
    return scale * (x2 / safe), -scale * (x1 / safe)


def _angles() -> list[Sample]:
    found = [Sample((random_array((4, 17), d, 3), away_from_zero((4, 17), d, 4))) for d in FLOATS]
    wide = (random_array((3, 1), "float64", 5), away_from_zero((1, 5), "float64", 6))
    return [*found, Sample(wide), *special_pairs(FLOATS)]


elementwise("atan2", "the angle of the point (x2, x1)", np.arctan2, _vjp_atan2, _angles)


def atan2(x1: Any, x2: Any, /) -> Tensor:
    """The angle of the point `(x2, x1)` in [-pi, pi], element by element. Floating only.

    Zeros' signs count: atan2(-0, -1) = -pi. The gradient at the origin is 0.
    """
    return apply("atan2", *floating(x1, x2))


__all__ = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cos",
    "cosh",
    "sin",
    "sinh",
    "tan",
    "tanh",
]
