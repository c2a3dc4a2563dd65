"""tanh, sinh, cosh and their inverses.

float32 tanh is a table (`math_tables`); the other float32 functions are computed in float64 lanes.
float64 carries exp or expm1 as an unevaluated sum of two and rounds at the end.
"""

from __future__ import annotations

from .math_exp import exp_parts, exp_wide, expm1_parts, expm1_wide, plus_power
from .math_lanes import (
    Lanes,
    at_most,
    copysign,
    divide_parts,
    divide_sums,
    fabs,
    fast_two_sum,
    fma,
    sqrt,
    two_product,
    two_sum,
)
from .math_log import INF, NAN, log1p_parts, log1p_wide, log_parts, split_log1p
from .math_tables import TABLE_START, TANH

# tanh rounds to 1 from here on.
_TANH_ONE = {"float": 9.1, "double": 22.0}
# sinh and cosh overflow before this.
_SINH_LIMIT = {"float": 90.0, "double": 710.5}
# From here on 1 / exp(x) changes nothing in sinh and cosh, and its terms could overflow.
_HUGE = 2.0**60
# Below this sinh(x) rounds to x.
_SINH_TINY = 2.0**-28


def tanh(x: Lanes) -> Lanes:
    u = at_most(fabs(x), _TANH_ONE[x.scalar])
    return copysign(TANH.odd(u, TABLE_START) if x.scalar == "float" else _tanh64(u), x)


def _tanh64(u: Lanes) -> Lanes:
    """t / (t + 2) with t = expm1(2u) = high + low."""
    high, low = expm1_parts(u + u, 1.0)
    bottom, error = two_sum(high, high.const(2.0))
    return divide_sums(high, low, bottom, error + low)


def sinh(x: Lanes) -> Lanes:
    """(t + t / (t + 1)) / 2 with t = expm1(|x|)."""
    u = at_most(fabs(x), _SINH_LIMIT[x.scalar])
    if x.scalar == "float":
        t = expm1_wide(u.widen())
        return copysign(((t + t / (t + 1.0)) * 0.5).narrow(), x)
    # A quarter of t, since exp(710) is beyond the largest number.
    high, low = expm1_parts(u, 0.25)
    huge = high.gt(_HUGE)
    top, top_low = huge.where(_HUGE, high), huge.where(0.0, low)
    bottom, error = two_sum(top * 4.0, top.const(1.0))
    quotient, rest = divide_parts(top, top_low, bottom, fma(top_low, 4.0, error))
    total, error = fast_two_sum(high, quotient)
    value = (total + (error + (low + rest))) * 2.0
    return copysign(u.lt(_SINH_TINY).where(u, value), x)


def cosh(x: Lanes) -> Lanes:
    """(e + 1 / e) / 2 with e = exp(|x|)."""
    u = at_most(fabs(x), _SINH_LIMIT[x.scalar])
    if x.scalar == "float":
        e = exp_wide(u.widen())
        return ((e + 1.0 / e) * 0.5).narrow()
    shifted, _, high, low = exp_parts(u)
    quarter = plus_power(shifted, 0.25)
    high, low = high * quarter, low * quarter
    huge = high.gt(_HUGE)
    bottom, bottom_low = huge.where(_HUGE, high) * 16.0, huge.where(0.0, low) * 16.0
    inverse, rest = divide_parts(high.const(1.0), high.const(0.0), bottom, bottom_low)
    total, error = fast_two_sum(high, inverse)
    return (total + (error + (low + rest))) * 2.0


def asinh(x: Lanes) -> Lanes:
    """log1p(u + u**2 / (1 + sqrt(1 + u**2))) with u = |x|; log(2u) for huge u."""
    u = fabs(x)
    if x.scalar == "float":
        wide = u.widen()
        square = wide * wide
        value = log1p_wide(wide + square / (sqrt(square + 1.0) + 1.0)).narrow()
        return copysign(u.lt(INF).where(value, u), x)
    huge = u.gt(_HUGE)
    v = huge.where(1.0, u)
    square, square_low = two_product(v, v)
    inside, error = two_sum(square, v.const(1.0))
    root, root_low = _sqrt_parts(inside, error + square_low)
    bottom, error = fast_two_sum(root, v.const(1.0))
    quotient, rest = divide_parts(square, square_low, bottom, error + root_low)
    total, error = two_sum(v, quotient)
    return copysign(u.lt(INF).where(_log1p_or_log2u(u, huge, total, error + rest), u), x)


def acosh(x: Lanes) -> Lanes:
    """log1p(t + sqrt(t (t + 2))) with t = x - 1; log(2x) for huge x, NaN below 1."""
    if x.scalar == "float":
        wide = x.widen()
        t = wide - 1.0
        value = log1p_wide(t + sqrt(t * (t + 2.0))).narrow()
    else:
        huge = x.gt(_HUGE)
        t, t_low = two_sum(huge.where(2.0, x), x.const(-1.0))
        square, square_low = two_product(t, t)
        inside, error = two_sum(t + t, square)
        # The derivative of t (t + 2) is 2 t + 2; t_low is 0 next to 1.
        root, root_low = _sqrt_parts(inside, (error + square_low) + t_low * (t + t + 2.0))
        total, error = two_sum(t, root)
        value = _log1p_or_log2u(x, huge, total, (error + root_low) + t_low)
    value = x.lt(INF).where(value, x)
    return x.lt(1.0).where(x.const(NAN), value)


def atanh(x: Lanes) -> Lanes:
    """log1p(2u / (1 - u)) / 2 with u = |x|; infinite at 1, NaN beyond."""
    u = fabs(x)
    if x.scalar == "float":
        wide = u.widen()
        value = (log1p_wide(wide * 2.0 / (1.0 - wide)) * 0.5).narrow()
    else:
        bottom, error = fast_two_sum(u.const(1.0), -u)
        quotient, rest = divide_parts(u + u, u.const(0.0), bottom, error)
        high, low = log1p_parts(*fast_two_sum(quotient, rest))
        value = (high + low) * 0.5
    value = u.lt(1.0).where(value, u.eq(1.0).where(u.const(INF), x.const(NAN)))
    return copysign(x.is_nan().where(x, value), x)


def _log1p_or_log2u(u: Lanes, huge: Lanes, x: Lanes, x_low: Lanes) -> Lanes:
    """log1p(x + x_low), or log(2u) where u is huge."""
    k, f, f_low = split_log1p(huge.where(u, x), huge.where(0.0, x_low))
    high, low = log_parts(huge.where(k + 1.0, k), f, f_low)
    return high + low


def _sqrt_parts(x: Lanes, x_low: Lanes) -> tuple[Lanes, Lanes]:
    """sqrt(x + x_low) as a root and what is missing to it; 0 for 0."""
    root = sqrt(x)
    rest = (fma(-root, root, x) + x_low) * (0.5 / root)
    return root, root.gt(0.0).where(rest, 0.0)
