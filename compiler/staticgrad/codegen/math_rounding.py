"""Rounding, sign, neighbours, and the exact remainders: fmod, remainder, floor_divide."""

from __future__ import annotations

from .math_lanes import (
    Lanes,
    any_lane,
    copysign,
    fabs,
    floor,
    fma,
    trunc,
)

# A quotient beyond this might overflow; the divisor is scaled up first.
_HUGE_QUOTIENT = 2.0**1000
_DIVISOR_SCALE = 2.0**900


def sign(x: Lanes) -> Lanes:
    """-1, 0 or 1; 0 for -0, NaN for NaN."""
    magnitude = x.gt(0.0).where(x.const(1.0), x.lt(0.0).where(x.const(-1.0), x))
    return x.eq(0.0).where(0.0, magnitude)


def nextafter(x: Lanes, y: Lanes) -> Lanes:
    """The neighbour of x in the direction of y; y if they are equal; NaN if either is."""
    bits = x.bits()
    away = y.gt(x)
    # Bits grow with the magnitude, so up means + 1 for positive x and - 1 for negative x.
    grows = (away & x.gt(0.0)) | (~away & x.lt(0.0))
    moved = (bits + grows.where(bits.const(1), -1)).as_float()
    # From zero: the smallest subnormal with the sign of y.
    smallest = copysign(bits.const(1).as_float(), y)
    value = x.eq(0.0).where(smallest, moved)
    value = x.eq(y).where(y, value)
    return x.is_unordered(y).where(x + y, value)


def fmod(x: Lanes, y: Lanes) -> Lanes:
    """x - trunc(x / y) y, exactly, with the sign of x; NaN for y = 0 and for infinite x."""
    if x.scalar == "float":
        return _fmod64(x.widen(), y.widen(), False).narrow()
    return _fmod64(x, y, True)


def _fmod64(x: Lanes, y: Lanes, may_overflow: bool) -> Lanes:
    """Each round takes q = trunc(rest / y), rounded to 53 bits, and rest - q y, which is exact:
    it is a multiple of the last bit of q y and below 2**-52 of it. A quotient of 53 bits is done
    in one round, the largest (2**2098) in 41. Where q was rounded up, the rest changes its sign.
    """
    f, divisor = x.f, fabs(y)
    small = fabs(x).lt(divisor)
    head, body, done = f.new_label("fmod"), f.new_label("round"), f.new_label("done")
    before, following = f.block, f.reserve()
    f.branch(head)
    f.label(head)
    rest = Lanes(f, f.reserve(), x.ty)
    f.assign(rest.name, f"phi {x.ty} [ {x.name}, %{before} ], [ {following}, %{body} ]")
    more = fabs(rest).ge(divisor)
    f.branch_if(any_lane(more), body, done)
    f.label(body)
    step = divisor
    if may_overflow:
        for _ in range(2):  # the largest quotient is 2**2098
            huge = (fabs(rest) * (1.0 / _HUGE_QUOTIENT)).gt(step)
            step = huge.where(step * _DIVISOR_SCALE, step)
    reduced = fma(-trunc(rest / step), step, rest)
    f.assign(following, f"select {more.ty} {more.name}, {x.ty} {reduced.name}, {x.ty} {rest.name}")
    f.branch(head)
    f.label(done)
    # A rest against the sign of x went one divisor too far.
    beyond = rest.lt(0.0) ^ x.lt(0.0)
    magnitude = (beyond & rest.ne(0.0)).where(divisor - fabs(rest), fabs(rest))
    value = small.where(x, copysign(magnitude, x))
    return y.is_nan().where(y, value)


def remainder(x: Lanes, y: Lanes) -> Lanes:
    """x - floor(x / y) y with the sign of y, as NumPy has it: from the exact fmod."""
    return _adjusted(fmod(x, y), y)[0]


def _adjusted(rest: Lanes, y: Lanes) -> tuple[Lanes, Lanes]:
    """The remainder from fmod's rest, and where the quotient is one less than truncated."""
    other_sign = (rest.lt(0.0) ^ y.lt(0.0)) & (rest.lt(0.0) | rest.gt(0.0))
    value = other_sign.where(rest + y, rest)
    return rest.eq(0.0).where(copysign(rest.const(0.0), y), value), other_sign


def floor_divide(x: Lanes, y: Lanes) -> Lanes:
    """floor(x / y) as NumPy computes it: (x - rest) / y, which is nearly an integer, rounded."""
    rest = fmod(x, y)
    _, other_sign = _adjusted(rest, y)
    quotient = (x - rest) / y
    quotient = other_sign.where(quotient - 1.0, quotient)
    below = floor(quotient)
    nearest = (quotient - below).gt(0.5).where(below + 1.0, below)
    plain = x / y
    value = quotient.eq(0.0).where(copysign(x.const(0.0), plain), nearest)
    return y.eq(0.0).where(plain, value)
