"""log, log2, log10, log1p, softplus, logaddexp.

x = 2**k m with 3/4 <= m <= 3/2, f = m - 1, and log(x) = k ln 2 + log1p(f). In float32
log1p(f) is a polynomial; in float64 it goes through s = f / (2 + f), log1p(f) = 2 atanh(s)
(fdlibm's e_log.c has the same form; the coefficients here are our own minimax fits).
"""

from __future__ import annotations

from .math_exp import LN2, LOG2E, exp_parts, plus_power
from .math_lanes import (
    Lanes,
    at_least,
    at_most,
    copysign,
    exponent_and_mantissa,
    fabs,
    fast_two_sum,
    fma,
    horner,
    round_magic,
    scale_by_power,
    two_product,
    two_sum,
)
from .math_tables import SOFTPLUS

# ln 2 in two parts of which the first has 42 bits: k times it is exact.
LN2_HEAD = 0.6931471805598903
LN2_REST = 5.497923018708371e-14
# The first of LOG_SERIES: 2**-35.3.
_LOG_WIDE = (0.24101140374064353, 0.28506972012307963, 0.40000863412209026, 0.6666666308420814)
INF = float("inf")
NAN = float("nan")
# The number after 3/4, as bits: subtracting them makes the exponent field count from there. With m
# in (3/4, 3/2] the f of log1p is exact but for one x next to -1/4 (from sqrt(1/2) on it is inexact
# for many x, which costs half an ULP).
_THREE_QUARTERS = {"float": 0x3F400001, "double": 0x3FE8000000000001}
# In `split` 3/4 itself begins the interval, as with AVX-512's `getmant`: f is exact there anyway.
_LEAST_MANTISSA = {"float": 0x3F400000, "double": 0x3FE8000000000000}
_EXPONENT = {"float": -(1 << 23), "double": -(1 << 52)}
_SMALLEST_NORMAL = {"float": 2.0**-126, "double": 2.0**-1022}
_LIFT = {"float": 23, "double": 54}
# (log1p(f) - f + f**2 / 2) / f**3, relative to log1p(f): 2**-26.7.
_LOG_TAIL = (
    -0.03992130979895592, 0.09860003739595413, -0.1301388442516327, 0.14529919624328613,
    -0.1666688323020935, 0.19989871978759766, -0.24999569356441498, 0.3333345055580139,
)  # fmt: skip
# (2 atanh(s) / s - 2) / s**2 in powers of s**2, relative to 2 atanh(s): 2**-62.6.
LOG_SERIES = (
    0.13843204197700404, 0.131735805394417, 0.1539111270634729, 0.18181665863880944,
    0.22222224296477655, 0.2857142855582968, 0.4000000000005667, 0.666666666666666,
)  # fmt: skip


def split(x: Lanes) -> tuple[Lanes, Lanes]:
    """k and m of a positive finite x = 2**k m, 3/4 <= m < 3/2; subnormals too.

    k comes as a float holding k * 2**23 in float32 (a power of two less work), k in float64.
    """
    small = x.lt(_SMALLEST_NORMAL[x.scalar])
    lift = _LIFT[x.scalar]
    bits = small.where(x * 2.0**lift, x).bits()
    exponent = (bits - _LEAST_MANTISSA[x.scalar]) & _EXPONENT[x.scalar]
    m = (bits - exponent).as_float()
    if x.scalar == "float":
        return (exponent - small.where(x.bits().const(lift << 23), 0)).to_float("float"), m
    k = (exponent >> 52).resize("i32").to_float("double")
    return k - small.where(x.const(float(lift)), 0.0), m


def log_specials(x: Lanes, value: Lanes) -> Lanes:
    """`value` for positive finite x; -inf at 0, NaN below, infinity and NaN as they are."""
    value = x.lt(INF).where(value, x)
    return x.le(0.0).where(x.lt(0.0).where(x.const(NAN), -INF), value)


def log(x: Lanes) -> Lanes:
    parts = exponent_and_mantissa(x) if x.scalar == "float" else None
    if parts is not None:  # an infinite k and a NaN m bring the special values
        k, m = parts
        return _log_sum(k, m - 1.0, unit=1.0)
    k, m = split(x)
    return log_specials(x, _log_sum(k, m - 1.0))


def _log_sum(k: Lanes, f: Lanes, f_low: Lanes | None = None, unit: float = 2.0**-23) -> Lanes:
    """k ln 2 + log1p(f + f_low), -1/4 <= f <= 1/2; in float32 k is in units of `unit`."""
    if f.scalar == "double":
        high, low = log_parts(k, f, f_low)
        return high + low
    tail = fma(horner(f, _LOG_TAIL), f, -0.5)
    if f_low is None:
        value = fma(tail, f * f, f)
    else:
        value = f + fma(tail, f * f, f_low)
    return fma(k, LN2["float"][0] * unit, value)


def log_parts(k: Lanes, f: Lanes, f_low: Lanes | None = None) -> tuple[Lanes, Lanes]:
    """The same in float64 as an unevaluated sum, right to about 0.1 ULP of its high part.

    log1p(f) = f - f**2 / 2 + s (f**2 / 2 + R), R a polynomial in s**2 (fdlibm's e_log.c).
    """
    s = f / (f + 2.0)
    z = s * s
    half = f * 0.5
    half_square = half * f
    rest = fma(s, fma(horner(z, LOG_SERIES), z, half_square), k * LN2_REST)
    # f - f**2 / 2 with its errors: up to 0.4 ULP of a result near log(3/2).
    head, head_error = fast_two_sum(f, -half_square)
    rest = rest + (head_error - fma(half, f, -half_square))
    high, error = fast_two_sum(k * LN2_HEAD, head)
    rest = rest + error
    if f_low is not None:
        # The derivative of log1p: 1 / (1 + f) = 1 - f + ..., of a term of 2**-54 at most.
        rest = rest + (f_low - f * f_low)
    return high, rest


def log1p(x: Lanes) -> Lanes:
    k, f, f_low = split_log1p(x)
    value = copysign(_log_sum(k, f, f_low), x)
    value = x.lt(INF).where(value, x)
    return x.le(-1.0).where(x.lt(-1.0).where(x.const(NAN), -INF), value)


def split_log1p(x: Lanes, x_low: Lanes | None = None) -> tuple[Lanes, Lanes, Lanes]:
    """k (as `split`), f, f_low of 1 + x + x_low = 2**k (1 + f + f_low), for finite x > -1.

    f = 2**-k x + (2**-k - 1), where k alone comes from the rounded 1 + x. The scaling of x is a
    subtraction from its exponent field, which cannot overflow since k = 0 for small x (the form
    of N. Juffa's log1pf). f is exact but for a few x next to -1/4, for which there is f_low.
    """
    exponent = ((x + 1.0).bits() - _THREE_QUARTERS[x.scalar]) & _EXPONENT[x.scalar]
    four = 0x40800000 if x.scalar == "float" else 0x4010000000000000
    inverse = (exponent.const(four) - exponent).as_float()
    scaled = (x.bits() - exponent).as_float()
    offset = fma(inverse, 0.25, -1.0)
    f = scaled + offset
    f_low = scaled - (f - offset)
    if x_low is not None:
        f, f_low = fast_two_sum(f, f_low + x_low * (inverse * 0.25))
    if x.scalar == "float":
        return exponent.to_float("float"), f, f_low
    return (exponent >> 52).resize("i32").to_float("double"), f, f_low


def log1p_parts(x: Lanes, x_low: Lanes) -> tuple[Lanes, Lanes]:
    """log1p(x + x_low) in float64 as an unevaluated sum, for finite x >= 0."""
    return log_parts(*split_log1p(x, x_low))


def log1p_wide(x: Lanes) -> Lanes:
    """log1p(x) in float64 lanes, finite x >= 0, to 2**-35: what a float32 result needs."""
    k, f, _ = split_log1p(x)
    return _wide_sum(k, f)


def log_wide(x: Lanes, series: tuple[float, ...] = _LOG_WIDE) -> Lanes:
    """log(x) in float64 lanes for a positive float32, subnormals included, to 2**-35 (to 2**-51
    with LOG_SERIES)."""
    bits = x.bits()
    exponent = (bits - _THREE_QUARTERS["double"]) & _EXPONENT["double"]
    k = (exponent >> 52).resize("i32").to_float("double")
    return _wide_sum(k, (bits - exponent).as_float() - 1.0, series)


def _wide_sum(k: Lanes, f: Lanes, series: tuple[float, ...] = _LOG_WIDE) -> Lanes:
    s = f / (f + 2.0)
    z = s * s
    return fma(k, LN2["double"][0], fma(horner(z, series), z * s, s + s))


def log2(x: Lanes) -> Lanes:
    return _log_base(x, (1.4426950408889634, 2.0355273740931033e-17))


def log10(x: Lanes) -> Lanes:
    return _log_base(x, (0.4342944819032518, 1.098319650216765e-17))


def _log_base(x: Lanes, factor: tuple[float, float]) -> Lanes:
    """log(x) times 1 / log(base), given in two parts."""
    if x.scalar == "float":
        return log_specials(x, (log_wide(x.widen()) * factor[0]).narrow())
    k, m = split(x)
    high, low = fast_two_sum(*log_parts(k, m - 1.0))
    product, rest = two_product(high, high.const(factor[0]))
    return log_specials(x, product + (rest + fma(high, factor[1], low * factor[0])))


def softplus(x: Lanes) -> Lanes:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    if x.scalar == "float":
        return _softplus32(x)
    return _plus_log1p_exp(at_least(x, 0.0), at_most(fabs(x), 746.0), x.const(0.0))


def _softplus32(x: Lanes) -> Lanes:
    """log1p(exp(-u)) = 2**n (first + rest) with u = |x|; added to u where x is positive."""
    high, low = LN2["float"]
    u = at_most(fabs(x), 104.0)
    shifted, n = round_magic(u, -LOG2E)
    first, rest = SOFTPLUS.times_exp(at_most(u, 18.0), fma(n, -high, -u), n * low)
    below = scale_by_power(first + rest, n)
    power = plus_power(shifted)
    scaled = first * power
    total, error = two_sum(u, scaled)
    above = total + fma(rest, power, error)
    # From 18 on x itself, where the power may be none.
    return x.lt(0.0).where(below, x.lt(18.0).where(above, x))


def logaddexp(x: Lanes, y: Lanes) -> Lanes:
    """log(exp(x) + exp(y)) = max(x, y) + log1p(exp(-|x - y|)).

    Where the sum cancels (a result near 0, so operands within -1 and 0) the error of the terms
    remains: 2**-56 absolute. Elsewhere 1 ULP holds.
    """
    if x.scalar == "float":
        return logaddexp(x.widen(), y.widen()).narrow()
    swap = y.gt(x)
    larger, smaller = swap.where(y, x), swap.where(x, y)
    difference, error = two_sum(larger, -smaller)
    # Equal infinities have the distance 0; far operands and their NaN errors do not matter.
    near = difference.lt(746.0)
    distance = x.eq(y).where(0.0, near.where(difference, 746.0))
    value = _plus_log1p_exp(larger, distance, near.where(error, 0.0))
    return x.is_unordered(y).where(x + y, value)


def _plus_log1p_exp(base: Lanes, distance: Lanes, error: Lanes) -> Lanes:
    """base + log1p(exp(-(distance + error))) in float64, distance >= 0 and error tiny."""
    _, n, high, low = exp_parts(-distance)
    low = fma(-high, error, low)
    tail, tail_low = log1p_parts(scale_by_power(high, n), scale_by_power(low, n))
    total, rest = two_sum(base, tail)
    # An infinite base makes the rest NaN.
    finite = fabs(base).lt(INF)
    return total + finite.where(rest + tail_low, 0.0)
