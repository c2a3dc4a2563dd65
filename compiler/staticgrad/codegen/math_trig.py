"""sin, cos, tan.

float32 is computed in float64 lanes; sin and cos there use sin(r) on the whole of [-pi/2, pi/2] as
one odd polynomial, so that no lane has to choose between sine and cosine. float64 carries r as
high + low and has fdlibm's kernels (k_sin.c, k_cos.c); the coefficients are our own minimax fits.
"""

from __future__ import annotations

from .math_lanes import Lanes, divide_sums, fast_two_sum, fma, horner, two_product
from .math_reduction import reduce_by_half_pi, reduce_by_part

# (sin(r) / r - 1) / r**2 in powers of r**2 for |r| <= pi/2, relative to sin: 2**-35.3.
_SIN_HALF_TURN = (
    -2.3888725430142496e-08, 2.752537494888636e-06, -0.00019840868045687123,
    0.00833333110749694, -0.16666666626124324,
)  # fmt: skip
# The same for |r| <= pi/4: 2**-57.9.
_SIN_TAIL = (
    1.5895433348068455e-10, -2.5050734390538703e-08, 2.7557313538521667e-06,
    -0.00019841269829358541, 0.00833333333332184, -0.1666666666666663,
)  # fmt: skip
# (cos(r) - 1 + r**2 / 2) / r**4 in powers of r**2 for |r| <= pi/4: 2**-63.9.
_COS_TAIL = (
    -1.1358621370346046e-11, 2.087570322503595e-09, -2.755731420369214e-07,
    2.4801587288967134e-05, -0.001388888888887331, 0.041666666666666595,
)  # fmt: skip
# (sin(r) / r - 1) / r**2 and (cos(r) - 1) / r**2 for float32 results: 2**-37.5 and 2**-33.8.
_SIN_WIDE = (
    2.7180515336996955e-06, -0.0001983930496898579, 0.008333329282358333, -0.1666666664060585,
)  # fmt: skip
_COS_WIDE = (
    2.438273403954411e-05, -0.0013886672806089127, 0.04166662007789639, -0.49999999692014185,
)  # fmt: skip


def sin(x: Lanes) -> Lanes:
    if x.scalar == "float":
        return _sin_half_turn(*reduce_by_part(x.widen()))
    return _keep_zero(x, _sin64(*reduce_by_half_pi(x)))


def cos(x: Lanes) -> Lanes:
    """sin(x + pi/2)."""
    if x.scalar == "float":
        return _sin_half_turn(*reduce_by_part(x.widen(), shift=0.5))
    high, low, n = reduce_by_half_pi(x)
    return _sin64(high, low, n + 1)


def tan(x: Lanes) -> Lanes:
    if x.scalar == "float":
        return _tan_quarter_turn(*reduce_by_part(x.widen(), parts=2))
    return _keep_zero(x, _tan64(*reduce_by_half_pi(x)))


def _keep_zero(x: Lanes, value: Lanes) -> Lanes:
    """The sums of high and low parts turn -0 into +0."""
    return x.eq(0.0).where(x, value)


def _sin_half_turn(r: Lanes, n: Lanes) -> Lanes:
    """(-1)**n sin(r) for |r| <= pi/2; of the integer n only the lowest bit is looked at."""
    z = r * r
    value = fma(horner(z, _SIN_HALF_TURN), z, 1.0) * r
    return (value.bits() ^ (n << 63)).as_float().narrow()


def _tan_quarter_turn(r: Lanes, n: Lanes) -> Lanes:
    """tan(r + n pi/2) for |r| <= pi/4, in float64 for a float32 result."""
    z = r * r
    s = fma(horner(z, _SIN_WIDE), z, 1.0) * r
    c = fma(horner(z, _COS_WIDE), z, 1.0)
    odd = (n & 1).ne(0)
    return (odd.where(-c, s) / odd.where(s, c)).narrow()


def _sin64(high: Lanes, low: Lanes, n: Lanes) -> Lanes:
    """sin(high + low + n pi/2)."""
    s, s_rest = _sin_kernel(high, low)
    c, c_rest = _cos_kernel(high, low)
    value = (n & 1).ne(0).where(c + c_rest, s + s_rest)
    return (value.bits() ^ ((n & 2) << 62)).as_float()


def _sin_kernel(r: Lanes, low: Lanes) -> tuple[Lanes, Lanes]:
    """sin(r + low), |r| <= pi/4, as r and the rest."""
    z = r * r
    tail = fma(horner(z, _SIN_TAIL), z * r, fma(z, low * -0.5, low))
    return r, tail


def _cos_kernel(r: Lanes, low: Lanes) -> tuple[Lanes, Lanes]:
    """cos(r + low), |r| <= pi/4, as a sum: 1 - r**2 / 2 rounded, and the rest."""
    half, half_error = two_product(r * 0.5, r)
    first = 1.0 - half
    rest = ((1.0 - first) - half) - half_error
    z = half * 2.0
    return first, fma(horner(z, _COS_TAIL), z * z, fma(-r, low, rest))


def _tan64(high: Lanes, low: Lanes, n: Lanes) -> Lanes:
    """tan(high + low + n pi/2) = s / c or -c / s, the quotient corrected once."""
    s, s_low = fast_two_sum(*_sin_kernel(high, low))
    c, c_low = fast_two_sum(*_cos_kernel(high, low))
    odd = (n & 1).ne(0)
    top, top_low = odd.where(-c, s), odd.where(-c_low, s_low)
    bottom, bottom_low = odd.where(s, c), odd.where(s_low, c_low)
    return divide_sums(top, top_low, bottom, bottom_low)
