"""pow, hypot, cbrt, rsqrt."""

from __future__ import annotations

from .math_exp import clamp, exp_parts, exp_wide
from .math_lanes import (
    Lanes,
    copysign,
    divide_parts,
    fabs,
    fast_two_sum,
    flip_sign,
    fma,
    horner,
    power_of_two,
    scale_by_power,
    sign_bit,
    sqrt,
    trunc,
    two_product,
    two_sum,
)
from .math_log import INF, LN2_HEAD, LN2_REST, LOG_SERIES, NAN, log_wide, split

# ((2 atanh(s) / s - 2) / z - 2/3) / z in powers of z = s**2, relative to 2 atanh(s): 2**-69.
_ATANH_TAIL = (
    0.12572472698662107, 0.11592204564803152, 0.13341153583079798, 0.1538440637489301,
    0.18181821530474454, 0.22222222191211527, 0.28571428571577434, 0.39999999999999725,
)  # fmt: skip
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)
# cbrt(m) for 1/2 <= m <= 1, to 2**-22.4.
_CBRT = (
    -0.14526669658652244, 0.7849446429542163, -1.8347150283581755, 2.4469524368791897,
    -2.115006173440915, 1.5081950709122809, 0.35489557646269565,
)  # fmt: skip
# exp of anything beyond is 0 or infinity.
_EXPONENT_RANGE = (-746.0, 710.0)


def pow_(x: Lanes, y: Lanes) -> Lanes:
    """exp(y log|x|), and C99's special cases (F.9.4.4)."""
    a = fabs(x)
    if x.scalar == "float":
        magnitude = _pow32(a, y)
    else:
        magnitude = _pow64(a, y)
    integer = trunc(y).eq(y)
    half = y * 0.5
    odd = integer & trunc(half).ne(half)
    value = flip_sign(magnitude, odd.where(sign_bit(x), 0))
    # Negative finite base, exponent that is no integer (infinite ones are even integers).
    value = (x.lt(0.0) & x.gt(-INF) & y.ne(trunc(y))).where(x.const(NAN), value)
    return (x.eq(1.0) | y.eq(0.0)).where(1.0, value)


def _log_limits(a: Lanes, value: Lanes, like: Lanes) -> Lanes:
    """log's value at 0, infinity and NaN instead of `value` where `a` is one of them."""
    value = a.lt(INF).where(value, like)
    return a.eq(0.0).where(-INF, value)


def _pow32(a: Lanes, y: Lanes) -> Lanes:
    wide = a.widen()
    log = _log_limits(a, log_wide(wide, LOG_SERIES), wide)
    product = a.eq(1.0).where(0.0, log * y.widen())
    product = (a.eq(1.0) & y.is_nan()).where(y.widen(), product)
    return exp_wide(clamp(product, (-700.0, 700.0))).narrow()


def _pow64(a: Lanes, y: Lanes) -> Lanes:
    high, low = _log_accurate(a)
    high = _log_limits(a, high, a)
    low = (a.gt(0.0) & a.lt(INF)).where(low, 0.0)
    product, error = two_product(high, y)
    # |x| = 1 with an infinite y is 0 * inf; a NaN in y stays.
    product = (a.eq(1.0) & fabs(y).eq(INF)).where(0.0, product)
    inside = fabs(product).lt(800.0) & fabs(y).lt(INF)
    error = inside.where(fma(low, y, error), 0.0)
    _, n, e, e_low = exp_parts(clamp(product, _EXPONENT_RANGE))
    return scale_by_power(e + fma(e, error, e_low), n)


def _log_accurate(a: Lanes) -> tuple[Lanes, Lanes]:
    """log(a) of a positive finite float64 as high + low, to 2**-67: y log(a) up to 745 has to
    be right to 2**-56 or so.

    s = f / (2 + f) as a sum; log(1 + f) = 2 s + s**3 (2/3 + z Q(z)).
    """
    k, m = split(a)
    f = m - 1.0
    bottom, error = two_sum(f, f.const(2.0))
    s, s_low = fast_two_sum(*divide_parts(f, f.const(0.0), bottom, error))
    z, z_low = two_product(s, s)
    z_low = fma(s + s, s_low, z_low)
    q, q_low = fast_two_sum(z.const(_ATANH_TAIL[-1]), z * horner(z, _ATANH_TAIL[:-1]))
    u, u_low = two_product(z, q)
    c, c_low = fast_two_sum(z.const(_TWO_THIRDS[0]), u)
    c_low = (c_low + _TWO_THIRDS[1]) + fma(z, q_low, fma(z_low, q, u_low))
    cube, cube_low = two_product(z, s)
    cube_low = fma(z, s_low, fma(z_low, s, cube_low))
    tail, tail_low = two_product(cube, c)
    tail_low = fma(cube, c_low, fma(cube_low, c, tail_low))
    high, rest = fast_two_sum(s + s, tail)
    rest = rest + (tail_low + (s_low + s_low))
    total, error = fast_two_sum(k * LN2_HEAD, high)
    middle, middle_error = two_sum(k * LN2_REST, error)
    return fast_two_sum(total, middle + (rest + middle_error))


def hypot(x: Lanes, y: Lanes) -> Lanes:
    """sqrt(x**2 + y**2); infinite if either is infinite, even beside a NaN."""
    a, b = fabs(x), fabs(y)
    if x.scalar == "float":
        wide, other = a.widen(), b.widen()
        value = sqrt(fma(wide, wide, other * other)).narrow()
    else:
        value = _hypot64(a, b)
    return (a.eq(INF) | b.eq(INF)).where(INF, value)


def _hypot64(a: Lanes, b: Lanes) -> Lanes:
    big, small = b.gt(a).where(b, a), b.gt(a).where(a, b)
    up, down = big.lt(2.0**-500), big.gt(2.0**500)
    scale = up.where(big.const(2.0**600), down.where(big.const(2.0**-600), 1.0))
    back = up.where(big.const(2.0**-600), down.where(big.const(2.0**600), 1.0))
    big, small = big * scale, small * scale
    square, square_low = two_product(big, big)
    other, other_low = two_product(small, small)
    total, error = fast_two_sum(square, other)
    root = sqrt(total)
    rest = fma(-root, root, total) + (error + (square_low + other_low))
    value = root + rest * (0.5 / root)
    return big.gt(0.0).where(value, big + small) * back


def rsqrt(x: Lanes) -> Lanes:
    """1 / sqrt(x) with one Newton step on the product's exact residual 1 - x y**2."""
    y = 1.0 / sqrt(x)
    product, error = two_product(x, y)
    residual = fma(-product, y, 1.0) - error * y
    # 0 and infinity times their inverses: the residual is NaN there and y is right.
    return residual.is_nan().where(y, fma(y * 0.5, residual, y))


def cbrt(x: Lanes) -> Lanes:
    """|x| = m 2**(3k), 1/2 <= m < 4: a polynomial and one step of Halley's method (as fdlibm's
    s_cbrt.c; the estimate is cut to 26 bits, so that its square is exact)."""
    a = fabs(x)
    wide = a.widen() if x.scalar == "float" else a
    tiny = wide.lt(2.0**-1022)
    bits = tiny.where(wide * 2.0**54, wide).bits()
    exponent = bits.shift_logical(52).resize("i32")
    exponent = tiny.where(exponent - 54, exponent)
    # Counted from 2**-1200, so that it is positive; v * 21846 >> 16 is v // 3 up to 32767.
    count = exponent + (1200 - 1022)
    third = (count * 21846).shift_logical(16)
    left = count - third * 3
    base = ((bits & ((1 << 52) - 1)) | (1022 << 52)).as_float()
    one, two = left.eq(1), left.eq(2)
    root = two.where(base.const(2.0 ** (2 / 3)), one.where(base.const(2.0 ** (1 / 3)), 1.0))
    m = base * two.where(base.const(4.0), one.where(base.const(2.0), 1.0))
    t = ((horner(base, _CBRT) * root).bits() & ~((1 << 27) - 1)).as_float()
    r = m / (t * t)
    y = fma(t, (r - t) / ((t + t) + r), t)
    value = y * power_of_two((third - 400).resize("i64"), "double")
    if x.scalar == "float":
        value = value.narrow()
    return (x.eq(0.0) | ~a.lt(INF)).where(x, copysign(value, x))
