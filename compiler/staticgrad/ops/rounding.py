"""Rounding, signs and neighbours, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from .convert import promoted
from .elementwise import (
    elementwise,
    floating,
    infer_floating,
    infer_numeric,
    vjp_zero,
    zeros_as,
)
from .registry import NotDifferentiable, Sample, apply
from .samples import (
    FLOATS,
    NUMERIC,
    away_from_zero,
    off_halves,
    random_array,
    singles,
    special_pairs,
    special_values,
)
from .tensor import Tensor, method


def _rounded() -> list[Sample]:
    """Values off the jumps; and halves, where the rounding mode shows."""
    halves = [Sample((np.arange(-5, 6, dtype=d) / 2,), differentiable=False) for d in FLOATS]
    return [*singles(FLOATS, make=off_halves), *halves]


for _name, _summary, _reference in (
    ("floor", "the largest whole number <= x", np.floor),
    ("ceil", "the smallest whole number >= x", np.ceil),
    ("trunc", "x without its fraction", np.trunc),
    ("round", "the nearest whole number, halves to even", np.rint),
):
    elementwise(_name, _summary, _reference, vjp_zero, _rounded)


def _whole(name: str, x: Any) -> Tensor:
    """Integers are whole: the tensor itself, as the standard has it."""
    (x,) = promoted(x)
    if x.dtype.is_integer:
        return x
    return apply(name, x)


@method("floor")
def floor(x: Any, /) -> Tensor:
    """The largest whole number <= x, element by element, of x's dtype. Numbers only.

    The gradient is 0, here and in the other rounding functions.
    """
    return _whole("floor", x)


@method("ceil")
def ceil(x: Any, /) -> Tensor:
    """The smallest whole number >= x, element by element, of x's dtype. Numbers only."""
    return _whole("ceil", x)


@method("trunc")
def trunc(x: Any, /) -> Tensor:
    """x without its fraction, element by element, of x's dtype. Numbers only."""
    return _whole("trunc", x)


@method("round")
def round(x: Any, /) -> Tensor:
    """The nearest whole number, halves to the even one, element by element. Numbers only."""
    return _whole("round", x)


# --- magnitude and sign ---------------------------------------------------------------------------


def _reference_sign(x: Any) -> Any:
    return (
        (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype) + np.where(x != x, x, 0).astype(x.dtype)
    )


def _vjp_copysign(c: Any, ct: Tensor) -> tuple[Any, ...]:
    """The sign that was given over the sign that was there; 0 where x1 is 0 (the kink of |x|)."""
    x1, x2 = c.operands
    turn = copysign(1.0, x2) * sign(x1)
    return (ct * turn, zeros_as(ct) if c.needed[1] else None)


def _signed() -> list[Sample]:
    found = [Sample((away_from_zero((4, 17), d, 3), away_from_zero((4, 17), d, 4))) for d in FLOATS]
    wide = (away_from_zero((3, 1), "float64", 5), away_from_zero((1, 5), "float64", 6))
    return [*found, Sample(wide), *special_pairs(FLOATS)]


def _neighbours() -> list[Sample]:
    found = [Sample((random_array((4, 17), d, 3), random_array((4, 17), d, 4))) for d in FLOATS]
    equal = [Sample((special_values(d), special_values(d))) for d in FLOATS]
    wide = (random_array((3, 1), "float64", 5), random_array((1, 5), "float64", 6))
    return [*found, *equal, Sample(wide), *special_pairs(FLOATS)]


elementwise(
    "abs", "|x|", np.abs, lambda c, ct: (ct * c.operands[0].sign(),),
    lambda: singles(NUMERIC), infer=infer_numeric,
)  # fmt: skip
elementwise(
    "sign", "1, 0 or -1 by the sign of x; NaN stays", _reference_sign, vjp_zero,
    lambda: singles(NUMERIC), infer=infer_numeric,
)  # fmt: skip
elementwise(
    "copysign", "|x1| with the sign of x2", np.copysign, _vjp_copysign, _signed,
    infer=infer_floating,
)  # fmt: skip
elementwise(
    "nextafter", "the float next to x1 towards x2", np.nextafter,
    NotDifferentiable("nextafter steps between floats; it is no function of real numbers"),
    _neighbours, infer=infer_floating,
)  # fmt: skip


@method("__abs__")
def abs(x: Any, /) -> Tensor:
    """`|x|`, element by element. Numbers only; the lowest integer wraps to itself.

    The gradient is the sign, 0 at 0.
    """
    return apply("abs", *promoted(x))


@method("sign")
def sign(x: Any, /) -> Tensor:
    """1 where x > 0, -1 where x < 0, 0 where x is 0, NaN where it is NaN. Numbers only."""
    return apply("sign", *promoted(x))


def copysign(x1: Any, x2: Any, /) -> Tensor:
    """`|x1|` with the sign of `x2` (zeros and NaNs have one), element by element. Floating only."""
    return apply("copysign", *floating(x1, x2))


def nextafter(x1: Any, x2: Any, /) -> Tensor:
    """The float next to `x1` on the way to `x2`, element by element. Floating only.

    `x2` where the two are equal, NaN where either is NaN. It has no gradient.
    """
    return apply("nextafter", *floating(x1, x2))


method("abs")(abs)

__all__ = [
    "abs",
    "ceil",
    "copysign",
    "floor",
    "nextafter",
    "round",
    "sign",
    "trunc",
]
