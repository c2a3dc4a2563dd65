"""sin, cos (and tan, to follow)."""

from __future__ import annotations

import math

from .math_lanes import Lanes, fma, horner, round_magic

_PI = (3.141592653589793116, 1.2246467991473531772e-16)
# (sin(r) / r - 1) / r**2 in powers of r**2 for |r| <= pi/2, relative to sin: 2**-35.3.
_SIN_TAIL = (
    -2.3888725430142496e-08, 2.752537494888636e-06, -0.00019840868045687123,
    0.00833333110749694, -0.16666666626124324,
)  # fmt: skip


def sin(x: Lanes) -> Lanes:
    wide = x.widen()
    shifted, n = round_magic(wide, 1.0 / math.pi)
    r = fma(n, -_PI[1], fma(n, -_PI[0], wide))
    return _sin_half_turn(r, shifted).narrow()


def cos(x: Lanes) -> Lanes:
    """cos(x) = -(-1)**n sin(x - (n - 1/2) pi)."""
    wide = x.widen()
    shifted, n = round_magic(wide, 1.0 / math.pi)
    return (shifted.as_float() if False else n).narrow()


def _sin_half_turn(r: Lanes, shifted: Lanes) -> Lanes:
    """(-1)**n sin(r) for |r| <= pi/2, n in the lowest bit of `shifted`."""
    z = r * r
    value = fma(horner(z, _SIN_TAIL), z * r, r)
    return (value.bits() ^ (shifted.bits() << 63)).as_float()
