"""exp, exp2, expm1, sigmoid, and the pieces of them that other functions are built from.

x = n ln 2 + r with |r| <= ln 2 / 2, and exp(x) = 2**n (1 + r + r**2 P(r)). The polynomials are
our own minimax fits (Remez exchange at 300 bits; each coefficient rounded in turn, lowest power
first, the rest fitted anew); the error that is given with each is what its rounded form has.
"""

from __future__ import annotations

from .math_lanes import (
    Lanes,
    at_least,
    at_most,
    copysign,
    fabs,
    fma,
    horner,
    round_magic,
    scale_by_power,
)

LOG2E = 1.4426950408889634
# ln 2 in two parts; n * high is exact inside the fma that subtracts it.
LN2 = {
    "float": (0.693147182464599609375, -1.904654299957767878541e-9),
    "double": (0.6931471805599453094, 2.319046813846299558e-17),
}
# (exp(r) - 1 - r) / r**2; the error relative to exp(r) is 2**-28.2 and 2**-61.0.
EXP_TAIL = {
    "float": (
        0.0013838951708748937, 0.008369197137653828, 0.04166810214519501, 0.16666516661643982,
        0.4999999403953552,
    ),
    "double": (
        2.1004931787378818e-09, 2.5114172685612645e-08, 2.7557035465266746e-07,
        2.755722838866671e-06, 2.4801587560008323e-05, 0.0001984126990339086,
        0.0013888888888777754, 0.00833333333331389, 0.041666666666666824, 0.16666666666666688, 0.5,
    ),
}  # fmt: skip
# The same, with the error relative to expm1(r): 2**-30.9 and 2**-63.7.
EXPM1_TAIL = {
    "float": (
        0.0001966459957663, 0.0013935106107965112, 0.008333643898367882, 0.04166646674275398,
        0.1666666567325592, 0.5,
    ),
    "double": (
        1.5485588518636004e-10, 2.0921488061643936e-09, 2.5055251711865086e-08,
        2.755725400939319e-07, 2.7557313370395427e-06, 2.4801587344879308e-05,
        0.00019841269846028174, 0.0013888888888876386, 0.008333333333331678, 0.04166666666666668,
        0.16666666666666669, 0.5,
    ),
}  # fmt: skip
# Beyond these the result is 0 (or -1 for expm1), and infinity: one step past the true limits.
EXP_RANGE = {"float": (-104.0, 89.0), "double": (-745.2, 709.8)}
EXP2_RANGE = {"float": (-151.0, 129.0), "double": (-1076.0, 1025.0)}
EXPM1_LOW = {"float": -18.0, "double": -38.0}


def reduce_exp(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """x = n ln 2 + r: the shifted n (`round_magic`), n as a float, and r."""
    high, low = LN2[x.scalar]
    shifted, n = round_magic(x, LOG2E)
    return shifted, n, fma(n, -low, fma(n, -high, x))


def clamp(x: Lanes, bounds: tuple[float, float]) -> Lanes:
    low, high = bounds
    return at_least(at_most(x, high), low)


def exp(x: Lanes) -> Lanes:
    _, n, r = reduce_exp(clamp(x, EXP_RANGE[x.scalar]))
    return scale_by_power(exp_reduced(r), n)


def exp_reduced(r: Lanes) -> Lanes:
    """exp(r) for |r| <= ln 2 / 2."""
    tail = horner(r, EXP_TAIL[r.scalar])
    if r.scalar == "float":
        return fma(fma(tail, r, 1.0), r, 1.0)
    return fma(tail, r * r, r) + 1.0


def expm1_reduced(r: Lanes) -> Lanes:
    """expm1(r) for |r| <= ln 2 / 2."""
    return fma(horner(r, EXPM1_TAIL[r.scalar]), r * r, r)


def minus_power(shifted: Lanes) -> Lanes:
    """2**-n from the shifted n of `round_magic`, |n| in the range of normal exponents."""
    mantissa, bias = (23, 127) if shifted.scalar == "float" else (52, 1023)
    bits = shifted.bits() << mantissa
    return (bits.const(bias << mantissa) - bits).as_float()


def plus_power(shifted: Lanes) -> Lanes:
    """2**n from the shifted n of `round_magic`, n in the range of normal exponents."""
    mantissa, bias = (23, 127) if shifted.scalar == "float" else (52, 1023)
    return ((shifted.bits() << mantissa) + (bias << mantissa)).as_float()


def expm1(x: Lanes) -> Lanes:
    """2**n (expm1(r) + (1 - 2**-n)); the sign is that of x, -0 included."""
    low, high = EXPM1_LOW[x.scalar], EXP_RANGE[x.scalar][1]
    shifted, n, r = reduce_exp(clamp(x, (low, high)))
    y = expm1_reduced(r) + (1.0 - minus_power(shifted))
    return copysign(scale_by_power(y, n), x)


def sigmoid(x: Lanes) -> Lanes:
    """1 / (1 + e) for x >= 0 and e / (1 + e) for x < 0, where e = exp(-|x|) = s (1 + q).

    The quotient 1 / (1 + e) is kept as `y + low`, so that the last addition is nearly the only
    rounding.
    """
    u = at_most(fabs(x), -EXP_RANGE[x.scalar][0])
    shifted, n, r = reduce_exp(-u)
    q = fma(horner(r, EXP_TAIL[r.scalar]), r * r, r)
    e = scale_by_power(q + 1.0, n)
    z = e + 1.0
    y = 1.0 / z
    low = y * fma(-y, e - (z - 1.0), fma(-y, z, 1.0))
    negative = x.lt(0.0)
    value = y + fma(negative.where(q, 0.0), y, low)
    return scale_by_power(value, negative.where(n, 0.0))
