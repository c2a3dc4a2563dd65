"""The error function and its complement, element by element. Floating only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .elementwise import elementwise, floating
from .exponential import exp
from .registry import Sample, apply
from .samples import FLOATS, singles
from .tensor import Tensor, method

_SLOPE = 2.0 / math.sqrt(math.pi)  # erf'(0)
_SOURCE = "NIST DLMF 7.2"


def by_element(function: Any) -> Any:
    """A function of Python floats over an array, in float64 and rounded once: NumPy has no erf."""

    def apply_to(x: Any) -> Any:
        values = [function(v) for v in x.ravel().tolist()]
        return np.array(values, np.float64).reshape(x.shape).astype(x.dtype)

    return apply_to


reference_erf = by_element(math.erf)
reference_erfc = by_element(math.erfc)


def _vjp_erf(c: Any, ct: Tensor) -> tuple[Tensor]:
    x = c.operands[0]
    return (ct * (exp(-(x * x)) * _SLOPE),)


def _vjp_erfc(c: Any, ct: Tensor) -> tuple[Tensor]:
    x = c.operands[0]
    return (ct * (exp(-(x * x)) * -_SLOPE),)


def _samples() -> list[Sample]:
    return singles(FLOATS)


elementwise(
    "erf", "2/sqrt(pi) times the integral of exp(-t**2) from 0 to x", reference_erf, _vjp_erf,
    _samples, source=_SOURCE,
)  # fmt: skip
elementwise(
    "erfc", "1 - erf(x), accurate where that is small", reference_erfc, _vjp_erfc, _samples,
    source=_SOURCE,
)  # fmt: skip


@method("erf")
def erf(x: Any, /) -> Tensor:
    """The error function `2/sqrt(pi) int_0^x exp(-t**2) dt`, element by element. Floating only."""
    return apply("erf", *floating(x))


@method("erfc")
def erfc(x: Any, /) -> Tensor:
    """`1 - erf(x)`, element by element, without cancellation for large x. Floating only."""
    return apply("erfc", *floating(x))


__all__ = ["erf", "erfc"]
