"""exp, exp2, expm1, sigmoid, and the pieces of them that other functions are built from.

x = n ln 2 + r with |r| <= ln 2 / 2, and exp(x) = 2**n (1 + r + r**2 P(r)). The polynomials are
our own minimax fits (Remez exchange at 300 bits; each coefficient rounded in turn, lowest power
first, the rest fitted anew); the error that is given with each is what its rounded form has.
"""

from __future__ import annotations

import math

from .math_lanes import (
    Lanes,
    at_least,
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
# The first of EXPM1_TAIL with float64 coefficients: 2**-28.8.
_EXPM1_WIDE = (
    0.0001996256830025612, 0.0013943053005629736, 0.008334043643569355, 0.041666346478444236,
    0.16666658631814085, 0.500000004421755,
)  # fmt: skip
# (2**r - 1) / r for |r| <= 1/2, relative to 2**r: 2**-31.9.
_EXP2_SERIES = (
    1.4336726053443272e-05, 0.00015452558000106364, 0.001333791995421052, 0.009618088603019714,
    0.055504050105810165, 0.24022650718688965, 0.6931471824645996,
)  # fmt: skip
# (2**r - 1 - r ln 2) / r**2, relative to 2**r: 2**-62.5.
_EXP2_TAIL = (
    2.521558283917111e-11, 4.456398529268514e-10, 7.055272000015457e-09, 1.017805342311825e-07,
    1.3215485804794749e-06, 1.5252733849666628e-05, 0.00015403530394570705, 0.0013333558146399287,
    0.00961812910762787, 0.055504108664821646, 0.24022650695910072,
)  # fmt: skip
# Beyond these the result is 0 (or -1 for expm1), and infinity: one step past the true limits.
EXP_RANGE = {"float": (-104.0, 89.0), "double": (-745.2, 709.8)}
EXP2_RANGE = {"float": (-151.0, 129.0), "double": (-1076.0, 1025.0)}
# sigmoid is 0 below and 1 above; 2**n of the upper limit is still a normal number.
_SIGMOID_RANGE = (-104.5, 80.0)
# The bits of -126 + 1.5 * 2**23 (`round_magic`).
_LEAST_SHIFTED = 0x4B400000 - 126
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
    # The rounding of 1 + r is added back: 0.8 instead of 0.96 ULP.
    first, error = fast_two_sum(r.const(1.0), r)
    return first + fma(tail, r * r, error)


def plus_power(shifted: Lanes, factor: float = 1.0) -> Lanes:
    """factor * 2**n from the shifted n of `round_magic`; the result has to be a normal number."""
    mantissa, bias = (23, 127) if shifted.scalar == "float" else (52, 1023)
    exponent = bias + int(math.log2(factor))
    return ((shifted.bits() << mantissa) + (exponent << mantissa)).as_float()


def expm1(x: Lanes) -> Lanes:
    """2**n (expm1(r) + (1 - 2**-n)); the sign is that of x, -0 included.

    At n = 1 the sum cancels, so r and its addition are carried with their rounding errors.
    """
    shifted, n, r, tail = _reduce_with_tail(clamp(x, (EXPM1_LOW[x.scalar], EXP_RANGE[x.scalar][1])))
    mantissa, bias = (23, 127) if x.scalar == "float" else (52, 1023)
    # 2**(1 - n) and not 2**-n: the largest n is bias + 1.
    bits = shifted.bits() << mantissa
    twice = (bits.const((bias + 1) << mantissa) - bits).as_float()
    one = fma(twice, -0.5, 1.0)
    # What `one` lost: 2**-n from n = 25 (54) on, worth half an ULP there.
    lost = fma(twice, -0.5, 1.0 - one)
    total, error = fast_two_sum(one, r)
    return copysign(scale_by_power(total + (tail + (error + lost)), n), x)


def _reduce_with_tail(x: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """`reduce_exp` and tail: expm1(x - n ln 2) = r + tail, the rounding error of r included."""
    high, low = LN2[x.scalar]
    shifted, n = round_magic(x, LOG2E)
    first = fma(n, -high, x)  # exact
    r = fma(n, -low, first)
    r_low = fma(n, -low, first - r)
    # The derivative 1 + r of expm1, to first order.
    tail = fma(horner(r, EXPM1_TAIL[r.scalar]), r * r, fma(r_low, r, r_low))
    return shifted, n, r, tail


def exp_parts(x: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """exp(x) = 2**n (high + low) in float64: shifted n, n, high, low; right to about 0.1 ULP."""
    shifted, n, r, tail = _reduce_with_tail(x)
    first, error = fast_two_sum(r.const(1.0), r)
    high, low = fast_two_sum(first, error + tail)
    return shifted, n, high, low


def expm1_parts(x: Lanes, factor: float) -> tuple[Lanes, Lanes]:
    """factor * expm1(x) in float64 as an unevaluated sum, x >= 0; factor: a power of two."""
    shifted, _, r, tail = _reduce_with_tail(x)
    s = plus_power(shifted, factor)
    first, lost = fast_two_sum(s, s.const(-factor))
    high, error = two_sum(first, s * r)
    return fast_two_sum(high, fma(s, tail, error + lost))


def exp_wide(x: Lanes) -> Lanes:
    """exp in float64 lanes, |x| <= 700, to 2**-28: what a float32 result needs."""
    shifted, n = round_magic(x, LOG2E)
    r = fma(n, -LN2["double"][0], x)
    value = fma(fma(horner(r, EXP_TAIL["float"]), r, 1.0), r, 1.0)
    return (value.bits() + (shifted.bits() << 52)).as_float()


def sigmoid(x: Lanes) -> Lanes:
    return _sigmoid32(x) if x.scalar == "float" else _sigmoid64(x)


def _sigmoid32(x: Lanes) -> Lanes:
    """m / (m + q) with exp(-x) = q / m, m = 2**-n: the one form for either sign, as m scales the
    quotient exactly. 1 / (m + q) is divided once, and its residual takes in what the sum lost."""
    high, low = LN2["float"]
    v = clamp(x, _SIGMOID_RANGE)
    shifted, n = round_magic(v, LOG2E)  # -n
    r = fma(n, -low, fma(n, -high, v))  # minus the r of exp(-x)
    tail = horner(r, [c * (-1.0) ** (i % 2) for i, c in enumerate(EXP_TAIL["float"])])
    # Not below 2**-126, where it is long lost: a subnormal would need more work.
    m = ((at_least(shifted.bits(), _LEAST_SHIFTED) << 23) + (127 << 23)).as_float()
    # m + q = (m + 1) + t; the first addend is above |t|.
    t = fma(tail, r * r, -r)
    first = m + 1.0
    total = first + t
    # `m + 1` loses m below 2**-24; above 2**24 nothing else counts.
    rest = ((first - total) + t) + (m - (first - 1.0))
    inverse = 1.0 / total
    residual = fma(-inverse, rest, fma(-inverse, total, 1.0))
    return scale_by_power(fma(inverse, residual, inverse), n)


def _sigmoid64(x: Lanes) -> Lanes:
    """1 / (1 + e) for x >= 0 and e / (1 + e) for x < 0, e = exp(-|x|) = 2**n (high + low)."""
    _, n, high, low = exp_parts(-at_most(fabs(x), -EXP_RANGE["double"][0]))
    e = scale_by_power(high, n)
    z, error = fast_two_sum(x.const(1.0), e)
    y, y_low = divide_parts(x.const(1.0), x.const(0.0), z, error + scale_by_power(low, n))
    negative = x.lt(0.0)
    high, low = negative.where(high, 1.0), negative.where(low, 0.0)
    product, rest = two_product(y, high)
    value = product + (rest + fma(y, low, y_low * high))
    return scale_by_power(value, negative.where(n, 0.0))


def exp2(x: Lanes) -> Lanes:
    """2**n 2**r with r = x - n, which is exact."""
    clamped = clamp(x, EXP2_RANGE[x.scalar])
    _, n = round_magic(clamped, 1.0)
    r = clamped - n
    if x.scalar == "float":
        return scale_by_power(fma(horner(r, _EXP2_SERIES), r, 1.0), n)
    tail = fma(horner(r, _EXP2_TAIL), r * r, r * LN2["double"][1])
    return scale_by_power(fma(r, LN2["double"][0], tail) + 1.0, n)


def expm1_wide(x: Lanes) -> Lanes:
    """expm1(x) in float64 lanes, 0 <= x <= 700, to 2**-28: what a float32 result needs."""
    shifted, n = round_magic(x, LOG2E)
    r = fma(n, -LN2["double"][0], x)
    s = plus_power(shifted)
    return fma(s, fma(horner(r, _EXPM1_WIDE), r * r, r), s - 1.0)
