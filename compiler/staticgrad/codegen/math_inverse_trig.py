"""asin, acos, atan, atan2. float32 is computed in float64 lanes.

float64 keeps the argument that enters a polynomial, and the final sum with a multiple of pi/2,
as unevaluated sums of two. The polynomials are our own minimax fits.
"""

from __future__ import annotations

from .math_lanes import Lanes, copysign, fabs, fast_two_sum, fma, horner, sign_bit, sqrt
from .math_log import INF
from .math_reduction import HALF_PI

# (asin(s) / s - 1) / s**2 in powers of s**2 for |s| <= 1/2, relative to asin: 2**-31.7, 2**-59.8.
_ASIN_WIDE = (
    0.03752774713095887, 0.01443121628491614, 0.031809475007716616, 0.0445167725236378,
    0.0750050495706513, 0.1666665998243059,
)  # fmt: skip
_ASIN_TAIL = (
    0.03264793288578324, -0.021028507448545612, 0.021727177996840017, 0.0036987744036291177,
    0.010782137163131889, 0.011398602966169777, 0.013980854637447474, 0.017351609527282895,
    0.022372215102277077, 0.03038194270477192, 0.044642857174645195, 0.0749999999997081,
    0.1666666666666676,
)  # fmt: skip
# (atan(t) / t - 1) / t**2 in powers of t**2 relative to atan: 2**-33.9 for 0 <= t <= 1, and
# 2**-59.4 for t <= tan(pi/8).
_ATAN_WIDE = (
    -0.0006979624159515942, 0.0049263786070644685, -0.016299486087807555, 0.034475899869504195,
    -0.05451596733093257, 0.07259437118723476, -0.08985438422108881, 0.11094503467126408,
    -0.14284167200954864, 0.1999992724152058, -0.3333333213369652,
)  # fmt: skip
_ATAN_TAIL = (
    -0.017868106101448854, 0.03802901829777019, -0.05037912150710432, 0.05847581618617254,
    -0.06663061940791751, 0.07692056525062446, -0.09090897551082316, 0.11111110776302834,
    -0.14285714280054126, 0.19999999999952184, -0.3333333333333319,
)  # fmt: skip
_TAN_EIGHTH = 0.41421356237309503
# Sums of two numbers up to here do not overflow.
_LARGE = 2.0**1000


def _half_angle(u: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """asin(s) as high + low, and whether s = sqrt((1 - u) / 2) (u > 1/2) rather than s = u.

    asin(u) = pi/2 - 2 asin(sqrt((1 - u) / 2)). u in float64, 0 <= u; beyond 1 gives NaN.
    """
    big = u.gt(0.5)
    z = big.where(fma(u, -0.5, 0.5), u * u)
    root = sqrt(z)
    s = big.where(root, u)
    missing = fma(-root, root, z) * (0.5 / root)
    low = (big & z.gt(0.0)).where(missing, 0.0)
    return s, fma(horner(z, _ASIN_TAIL), z * s, low), big


def _half_angle_wide(u: Lanes) -> tuple[Lanes, Lanes]:
    big = u.gt(0.5)
    z = big.where(fma(u, -0.5, 0.5), u * u)
    s = big.where(sqrt(z), u)
    return fma(horner(z, _ASIN_WIDE), z * s, s), big


def asin(x: Lanes) -> Lanes:
    if x.scalar == "float":
        angle, big = _half_angle_wide(fabs(x).widen())
        return copysign(big.where(fma(angle, -2.0, HALF_PI[0]), angle).narrow(), x)
    s, low, big = _half_angle(fabs(x))
    high, error = fast_two_sum(s.const(HALF_PI[0]), s * -2.0)
    large = high + (error + fma(low, -2.0, HALF_PI[1]))
    return copysign(big.where(large, s + low), x)


def acos(x: Lanes) -> Lanes:
    """2 asin(s) for x > 1/2, pi minus it for x < -1/2, pi/2 - asin(x) between."""
    negative = x.lt(0.0)
    if x.scalar == "float":
        angle, big = _half_angle_wide(fabs(x).widen())
        multiple = big.where(angle + angle, angle)
        # The sign of the angle: + for big x, - for small x, and the other way for negative x.
        signed = (negative ^ big).where(multiple, -multiple)
        base = big.where(negative.where(angle.const(2.0 * HALF_PI[0]), 0.0), HALF_PI[0])
        return (base + signed).narrow()
    s, low, big = _half_angle(fabs(x))
    high, low = big.where(s + s, s), big.where(low + low, low)
    keep = negative ^ big
    high, low = keep.where(high, -high), keep.where(low, -low)
    base = big.where(negative.where(s.const(2.0 * HALF_PI[0]), 0.0), HALF_PI[0])
    base_low = big.where(negative.where(s.const(2.0 * HALF_PI[1]), 0.0), HALF_PI[1])
    # A base of 0 is no trouble: the sum is then exact.
    total, error = fast_two_sum(base, high)
    return total + (error + (low + base_low))


def atan(x: Lanes) -> Lanes:
    one = x.const(1.0)
    return atan2(x, one)


def atan2(y: Lanes, x: Lanes) -> Lanes:
    """The angle of (x, y): atan(t) with t = min / max of |x|, |y|, and a multiple of pi/2."""
    down, across = fabs(y), fabs(x)
    if y.scalar == "float":
        down, across = down.widen(), across.widen()
    steep = down.gt(across)
    top, bottom = steep.where(across, down), steep.where(down, across)
    # 0 / 0 counts as 0 and infinity / infinity as 1; a NaN in either stays.
    bottom = bottom.eq(0.0).where(1.0, bottom)
    both = top.eq(INF) & bottom.eq(INF)
    top, bottom = both.where(1.0, top), both.where(1.0, bottom)
    left = sign_bit(x).ne(0)
    if y.scalar == "float":
        t = top / bottom
        z = t * t
        angle = fma(horner(z, _ATAN_WIDE), z * t, t)
        angle = steep.where(HALF_PI[0] - angle, angle)
        return copysign(left.where(2.0 * HALF_PI[0] - angle, angle).narrow(), y)
    high, low = _atan_parts(top, bottom)
    high, low = _from_axis(steep, high, low, 1.0)
    high, low = _from_axis(left, high, low, 2.0)
    return copysign(high + low, y)


def _atan_parts(top: Lanes, bottom: Lanes) -> tuple[Lanes, Lanes]:
    """atan(top / bottom) for 0 <= top <= bottom as an unevaluated sum.

    Above tan(pi/8): pi/4 - atan((bottom - top) / (bottom + top)).
    """
    diagonal = top.gt(bottom * _TAN_EIGHTH)
    scale = bottom.gt(_LARGE).where(bottom.const(2.0**-2), 1.0)
    top, bottom = top * scale, bottom * scale
    difference, difference_low = fast_two_sum(bottom, -top)
    total, total_low = fast_two_sum(bottom, top)
    numerator = diagonal.where(difference, top)
    denominator = diagonal.where(total, bottom)
    t = numerator / denominator
    residual = fma(-t, denominator, numerator)
    extra = diagonal.where(fma(-t, total_low, difference_low), 0.0)
    # An infinite bottom: t is 0 and has no residual.
    finite = denominator.lt(INF)
    low = finite.where(residual + extra, 0.0) / denominator
    z = t * t
    # The derivative of atan is 1 / (1 + t**2); 1 - t**2 is near enough for a term of 2**-54.
    low = fma(horner(z, _ATAN_TAIL), z * t, fma(-low, z, low))
    high, error = fast_two_sum(t.const(0.5 * HALF_PI[0]), -t)
    rest = error + (0.5 * HALF_PI[1] - low)
    return diagonal.where(high, t), diagonal.where(rest, low)


def _from_axis(mask: Lanes, high: Lanes, low: Lanes, quarters: float) -> tuple[Lanes, Lanes]:
    """quarters pi/2 - (high + low) where `mask` is set."""
    total, error = fast_two_sum(high.const(quarters * HALF_PI[0]), -high)
    rest = error + (quarters * HALF_PI[1] - low)
    return mask.where(total, high), mask.where(rest, low)
