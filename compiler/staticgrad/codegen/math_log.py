"""log, log2, log10, log1p.

x = 2**k m with sqrt(1/2) <= m < sqrt(2), f = m - 1, and log(x) = k ln 2 + log1p(f). In float32
log1p(f) is a polynomial; in float64 it goes through s = f / (2 + f), log1p(f) = 2 atanh(s)
(fdlibm's e_log.c has the same form; the coefficients here are our own minimax fits).
"""

from __future__ import annotations

from .math_exp import LN2
from .math_lanes import Lanes, copysign, fma, horner

INF = float("inf")
NAN = float("nan")
# Bits of sqrt(1/2): subtracting them makes the exponent field count from there.
_SQRT_HALF = {"float": 0x3F3504F3, "double": 0x3FE6A09E667F3BCD}
_EXPONENT = {"float": -(1 << 23), "double": -(1 << 52)}
_SMALLEST_NORMAL = {"float": 2.0**-126, "double": 2.0**-1022}
_LIFT = {"float": 23, "double": 54}
# (log1p(f) - f + f**2 / 2) / f**3, relative to log1p(f): 2**-27.2.
_LOG_TAIL = (
    -0.07644693553447723, 0.12768346071243286, -0.13159732520580292, 0.14200910925865173,
    -0.16623330116271973, 0.20001260936260223, -0.250008225440979, 0.3333333134651184,
)  # fmt: skip
# (2 atanh(s) / s - 2) / s**2 in powers of s**2, relative to 2 atanh(s): 2**-59.5.
LOG_SERIES = (
    0.14798662706355614, 0.15313797956424, 0.18183573440980666, 0.2222219841312563,
    0.2857142874378971, 0.39999999999409125, 0.6666666666666735,
)  # fmt: skip


def split(x: Lanes) -> tuple[Lanes, Lanes]:
    """k and m of a positive finite x = 2**k m, sqrt(1/2) <= m < sqrt(2); subnormals too.

    k comes as a float holding k * 2**23 in float32 (a power of two less work), k in float64.
    """
    small = x.lt(_SMALLEST_NORMAL[x.scalar])
    lift = _LIFT[x.scalar]
    bits = small.where(x * 2.0**lift, x).bits()
    exponent = (bits - _SQRT_HALF[x.scalar]) & _EXPONENT[x.scalar]
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
    k, m = split(x)
    return log_specials(x, _log_sum(k, m - 1.0))


def _log_sum(k: Lanes, f: Lanes) -> Lanes:
    """k ln 2 + log1p(f), k as `split` gives it, sqrt(1/2) - 1 <= f < sqrt(2) - 1."""
    if f.scalar == "float":
        tail = fma(horner(f, _LOG_TAIL), f, -0.5)
        return fma(k, LN2["float"][0] * 2.0**-23, fma(tail, f * f, f))
    high, low = LN2["double"]
    s = f / (f + 2.0)
    z = s * s
    half_square = (f * 0.5) * f
    series = fma(horner(z, LOG_SERIES), z, half_square)
    return fma(k, high, f - (half_square - fma(s, series, k * low)))


def log1p(x: Lanes) -> Lanes:
    """1 + x = 2**k m picks k only; f = 2**-k x + (2**-k - 1) has no rounding of 1 + x in it.

    The scaling of x is a subtraction from its exponent field, which cannot overflow: k = 0 for
    small x. The form is that of N. Juffa's log1pf.
    """
    exponent = ((x + 1.0).bits() - _SQRT_HALF[x.scalar]) & _EXPONENT[x.scalar]
    four = 0x40800000 if x.scalar == "float" else 0x4010000000000000
    inverse = (exponent.const(four) - exponent).as_float()
    f = (x.bits() - exponent).as_float() + fma(inverse, 0.25, -1.0)
    if x.scalar == "float":
        k = exponent.to_float("float")
    else:
        k = (exponent >> 52).resize("i32").to_float("double")
    value = copysign(_log_sum(k, f), x)
    value = x.lt(INF).where(value, x)
    return x.le(-1.0).where(x.lt(-1.0).where(x.const(NAN), -INF), value)
