"""tanh (the other hyperbolic functions follow)."""

from __future__ import annotations

from .math_exp import EXP_TAIL, LN2, LOG2E, plus_power
from .math_lanes import Lanes, at_most, copysign, fabs, fma, horner, round_magic

# (tanh(x) / x - 1) / x**2 in powers of x**2 for |x| <= 0.8, relative to tanh: 2**-28.0.
_TANH_SMALL = (
    0.0015870830975472927, -0.007414232939481735, 0.021306553855538368, -0.0538536012172699,
    0.13332241773605347, -0.33333298563957214,
)  # fmt: skip
_TANH_SPLIT = 0.8
# tanh rounds to 1 from here on.
_TANH_ONE = 9.1


def tanh(x: Lanes) -> Lanes:
    """An odd polynomial up to 0.8; 1 - 2 / (exp(2|x|) + 1) beyond, where nothing cancels."""
    u = at_most(fabs(x), _TANH_ONE)
    shifted, n = round_magic(u, 2.0 * LOG2E)
    # r is half of the reduced 2u; the low part of ln 2 would change the result by 0.02 ULP.
    r = fma(n, -0.5 * LN2["float"][0], u)
    p = fma(horner(r, [c * 2.0 ** (6 - i) for i, c in enumerate(EXP_TAIL["float"])]), r, 2.0)
    s = plus_power(shifted)
    large = 1.0 - 2.0 / fma(s * r, p, s + 1.0)
    z = u * u
    small = fma(horner(z, _TANH_SMALL), z * u, u)
    return copysign(u.lt(_TANH_SPLIT).where(small, large), x)
