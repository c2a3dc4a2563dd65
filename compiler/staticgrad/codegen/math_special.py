"""erf and erfc."""

from __future__ import annotations

from .math_exp import LN2, LOG2E, exp_parts
from .math_lanes import (
    Lanes,
    at_most,
    copysign,
    divide_parts,
    fabs,
    fast_two_sum,
    fma,
    horner,
    round_magic,
    scale_by_power,
    two_product,
    two_sum,
)
from .math_tables import ERF, ERFCX, TABLE_START

# erf(x) / x - 1 in powers of x**2 for |x| <= 1, relative to erf: 2**-56.3.
_ERF_SMALL = (
    1.420411526533991e-10, -1.6392819980396566e-09, 1.5997416720359194e-08,
    -1.655520175005455e-07, 1.6480917016584597e-06, -1.4926875061671785e-05,
    0.00012055386022573615, -0.0008548328533418766, 0.005223977652681693,
    -0.02686617064803165, 0.112837916709711, -0.376126389031841, 0.1283791670955126,
)  # fmt: skip
# (1 + 2t) exp(t**2) erfc(t) - 1 in powers of q = (t - 4) / (t + 4), 0 <= t <= 27.4, to 2**-61.6.
_ERFCX = (
    2.8293042649447823e-10, 2.08333789232916e-09, 1.7058146273692382e-09,
    -1.6530937032293493e-08, -1.910514554641282e-08, 1.131542525182413e-07,
    7.699194897576238e-08, -8.276471131474983e-07, 2.917019895544624e-07, 5.710708975471983e-06,
    -1.1220940429224978e-05, -2.439948474966537e-05, 0.00015062132697315678,
    -0.0001992566474465795, -0.0007577732183567037, 0.005031969972851577, -0.016197734066517856,
    0.037167515537826816, -0.06633036581158828, 0.09373283499833575, -0.10103906603632765,
    0.06809705425469298, 0.01537965210262008, -0.13962111684056253, 0.2329951186255525,
)  # fmt: skip
# 1 + the last coefficient in two parts; 9.17e-18 is what its rounding left.
_ERFCX_ONE = 1.0 + _ERFCX[-1]
_ERFCX_LOW = (_ERFCX[-1] - (_ERFCX_ONE - 1.0)) + 9.173230871310592e-18
# The derivative of that polynomial to 1%, for the rounding error of q.
_ERFCX_SLOPE = (-0.9167, 0.71603, -0.085056, 0.14386, -0.012024, -0.13714)
# The second form is the more exact one, and erf(x) / x - 1 cancels little below 0.6.
_ERF_SPLIT = 0.6
# From here on erf rounds to 1 and erfc to 0.
_ERF_ONE = {"float": 3.95, "double": 6.0}
_ERFC_ZERO = {"float": 10.3, "double": 27.3}


def erf(x: Lanes) -> Lanes:
    """In float64 x + x P(x**2) up to a limit, beyond it 1 - erfc(|x|)."""
    t = at_most(fabs(x), _ERF_ONE[x.scalar])
    if x.scalar == "float":
        return copysign(ERF.odd(t, TABLE_START), x)
    small = fma(horner(t * t, _ERF_SMALL), t, t)
    n, high, low = _erfc_parts(t)
    large = _minus(1.0, scale_by_power(high, n), scale_by_power(low, n))
    return copysign(t.lt(_ERF_SPLIT).where(small, large), x)


def erfc(x: Lanes) -> Lanes:
    """exp(-t**2) (1 + P(q)) / (1 + 2t), t = |x| and q = (t - c) / (t + c); 2 minus it for x < 0
    (Shepherd and Laframboise, Math. Comp. 36, 1981). In float32 the factor of exp is a table."""
    t = at_most(fabs(x), _ERFC_ZERO[x.scalar])
    if x.scalar == "float":
        ln2, ln2_low = LN2["float"]
        square, square_low = two_product(t, t)
        _, n = round_magic(square, -LOG2E)
        first, rest = ERFCX.times_exp(t, fma(n, -ln2, -square), fma(n, ln2_low, square_low))
        scaled = scale_by_power(first + rest, n)
        return x.lt(0.0).where(2.0 - scaled, scaled)
    n, high, low = _erfc_parts(t)
    below = _minus(2.0, scale_by_power(high, n), scale_by_power(low, n))
    value = x.lt(0.0).where(below, scale_by_power(high + low, n))
    # Next to 0, where P(q) cancels: 1 - erf(x) with x apart.
    small = _minus(1.0, x, horner(x * x, _ERF_SMALL) * x)
    return t.lt(0.5).where(small, value)


def _minus(base: float, high: Lanes, low: Lanes) -> Lanes:
    """base - (high + low), rounded once; |high| <= base."""
    total, error = fast_two_sum(high.const(base), -high)
    return total + (error - low)


def _erfc_parts(t: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """n, high, low of erfc(t) = 2**n (high + low), t >= 0, in float64."""
    square, square_low = two_product(t, t)
    _, n, e, e_low = exp_parts(-square)
    e_low = fma(-e, square_low, e_low)
    # q + q_low, then 1 + P(q) as a sum, P'(q) q_low included.
    bottom, error = two_sum(t, t.const(4.0))
    top, top_error = two_sum(t, t.const(-4.0))
    q, q_low = divide_parts(top, top_error, bottom, error)
    slope = horner(q, _ERFCX_SLOPE)
    tail = fma(horner(q, _ERFCX[:-1]), q, fma(slope, q_low, _ERFCX_LOW))
    p, p_low = fast_two_sum(t.const(_ERFCX_ONE), tail)
    product, rest = two_product(e, p)
    rest = rest + fma(e, p_low, e_low * p)
    bottom, error = two_sum(t + t, t.const(1.0))
    high, low = divide_parts(product, rest, bottom, error)
    return n, high, low
