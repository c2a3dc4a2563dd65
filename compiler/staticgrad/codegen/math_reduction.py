"""x modulo pi/2 for the trigonometric functions, for every finite x of float32 and float64.

Up to a limit x - n pi/2 is taken with pi/2 in three parts (Cody and Waite); beyond it the bits of
2/pi that matter to x are picked from a table (Payne and Hanek). In float64 r comes as an
unevaluated sum of two, since it may cancel down to 2**-62.
"""

from __future__ import annotations

import math

from .builder import constant, vector, width
from .math_lanes import (
    Lanes,
    fabs,
    fast_two_sum,
    fma,
    round_even,
    round_magic,
    two_product,
    two_sum,
    when_any,
)

PI = (3.141592653589793, 1.2246467991473532e-16)
HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
# 1 / pi in pieces of 29 bits: a float32 times a piece is exact in float64. Together they reach
# 2**-203, 2**-75 below the last bit of the largest product that matters.
_INVERSE_PI = (
    0.31830988451838493, 1.6654057369280828e-09, 1.1380050303674165e-18, 6.171781631153255e-27,
    1.1191965415417832e-35, 1.3102015890144196e-44, 1.8602374392588695e-53,
)  # fmt: skip
# Up to here n fits its 53 bits with room for the products n pi_low; larger angles are rare.
LARGE_ANGLE = 2.0**28
# floor(2/pi * 2**_TABLE_BITS).
_TABLE_BITS = 1168
_TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e0"
    "06492eea09d1921cfe1deb1cb129a73ee88235f52ebb4484e99c7026b45f7e413991d639835339f4"
    "9c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d"
    "7527bac7ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d085603",
    16,
)
# The window of the smallest large angle ends, with the last 8-byte load, at byte 153.
_TABLE_BYTES = 160
_WINDOW_BITS = 192


def reduce_by_part(x: Lanes, shift: float = 0.0, parts: int = 1) -> tuple[Lanes, Lanes]:
    """r and n (low bits of an integer) of x = (n - shift) pi / parts + r, |r| <= pi / (2 parts).

    x: a float32 held in float64; infinity and NaN give NaN. shift: 0 or 1/2; parts: 1 or 2.
    """
    shifted, n = round_magic(x, parts / math.pi, shift)
    turns = n - shift if shift else n
    r = fma(turns, -PI[1] / parts, fma(turns, -PI[0] / parts, x))
    r, n = when_any(
        fabs(x).gt(LARGE_ANGLE),
        (r, shifted.bits()),
        lambda: _reduce_large_by_part(x, shift, parts),
    )
    return r, n


def _reduce_large_by_part(x: Lanes, shift: float, parts: int) -> tuple[Lanes, Lanes]:
    """The same without a limit, for any float32 x.

    Each x * piece is exact and is reduced modulo 2 exactly; the rests are summed with their
    rounding errors, since the sum may cancel down to 2**-33.
    """
    high, low = x.const(shift), x.const(0.0)
    for piece in _INVERSE_PI:
        product = x * piece
        rest = fma(round_even(product * 0.5), -2.0, product)
        high, error = two_sum(high, rest)
        low = low + error
    shifted, n = round_magic(high, float(parts))
    fraction = fma(low, float(parts), fma(high, float(parts), -n))
    return fraction * (math.pi / parts), shifted.bits()


def reduce_by_half_pi(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """r as high + low, and n (low bits of an integer), of x = n pi/2 + r, |r| <= pi/4, for any
    float64; infinity and NaN give NaN."""
    shifted, n = round_magic(x, 2.0 / math.pi)
    first = fma(n, -HALF_PI[0], x)  # exact
    product, product_error = two_product(n, first.const(HALF_PI[1]))
    high, error = two_sum(first, -product)
    low = fma(n, -HALF_PI[2], error - product_error)
    high, low, n = when_any(
        fabs(x).gt(LARGE_ANGLE),
        (high, low, shifted.bits()),
        lambda: _reduce_large_by_half_pi(x),
    )
    return high, low, n


def _reduce_large_by_half_pi(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """The same for every finite float64 beyond `LARGE_ANGLE`; other lanes get an arbitrary r.

    |x| = m 2**e with an integer m of 53 bits. Bits of 2/pi whose product with m 2**e is a
    multiple of 4 are left out; the next 192 bits times m, modulo 2**192, hold n in the top two
    bits and r / (pi/2) in the others, to 2**-137, where |r| >= 2**-62.
    """
    bits = x.bits()
    exponent = bits.shift_logical(52) & 0x7FF
    mantissa = (bits & ((1 << 52) - 1)) | (1 << 52)
    # The window's lowest bit has the weight 2**-(e + 190), e = exponent - 1075. Lanes with small
    # angles are here too: they must not read beyond the table.
    first = _TABLE_BITS + 1075 - (_WINDOW_BITS - 2)
    position = exponent.const(first) - exponent
    last = first - (1023 + int(math.log2(LARGE_ANGLE)))
    position = position.gt(last).where(last, position)
    window = _load_window(position)
    limbs = _product_limbs(mantissa, window)
    top = (limbs[5] << 32) | limbs[4]
    n = (top + (1 << 61)).shift_logical(62)
    fraction = top - (n << 62)
    high, low = fast_two_sum(
        (fraction >> 32).to_float("double") * 2.0**-30,
        (fraction & 0xFFFFFFFF).to_float("double") * 2.0**-62,
    )
    high, error = two_sum(high, limbs[3].to_float("double") * 2.0**-94)
    low = (low + error) + limbs[2].to_float("double") * 2.0**-126
    high, low = fast_two_sum(high, low)
    product, product_error = two_product(high, high.const(HALF_PI[0]))
    rest = fma(low, HALF_PI[0], fma(high, HALF_PI[1], product_error))
    product, rest = fast_two_sum(product, rest)
    # x - x: NaN for infinity, else 0.
    product = product + (x - x)
    negative = x.lt(0.0)
    return negative.where(-product, product), negative.where(-rest, rest), negative.where(-n, n)


def _load_window(position: Lanes) -> list[Lanes]:
    """192 bits of the table from bit `position` on, as six limbs of 32, lowest first."""
    f, lanes = position.f, width(position.ty)
    text = "".join(f"\\{b:02X}" for b in _TWO_OVER_PI.to_bytes(_TABLE_BYTES, "little"))
    f.module.declare(
        "math_two_over_pi",
        f'@math_two_over_pi = internal constant [{_TABLE_BYTES} x i8] c"{text}", align 64',
    )
    start, shift = position.shift_logical(3), position & 7
    limbs = []
    for i in range(_WINDOW_BITS // 32):
        offset = start + 4 * i
        pointers = vector("ptr", lanes)
        address = f.emit(f"getelementptr i8, ptr @math_two_over_pi, {offset.ty} {offset.name}")
        if lanes == 1:
            loaded = f.emit(f"load i64, ptr {address}, align 1")
        else:
            name = f"llvm.masked.gather.v{lanes}i64.v{lanes}p0"
            mask = vector("i1", lanes)
            f.module.intrinsic(name, offset.ty, pointers, mask, offset.ty)
            loaded = f.emit(
                f"call {offset.ty} @{name}({pointers} align 1 {address}, "
                f"{mask} {constant(True, mask)}, {offset.ty} zeroinitializer)"
            )
        limbs.append(Lanes(f, loaded, offset.ty).shift_logical(shift) & 0xFFFFFFFF)
    return limbs


def _product_limbs(mantissa: Lanes, window: list[Lanes]) -> list[Lanes]:
    """mantissa * window modulo 2**192 in limbs of 32 bits; the lowest one is not filled in."""
    m_low, m_high = mantissa & 0xFFFFFFFF, mantissa.shift_logical(32)
    carry = (m_low * window[0]).shift_logical(32)
    limbs = [window[0].const(0)]
    for i in range(1, len(window)):
        one, two = m_low * window[i], m_high * window[i - 1]
        total = carry + (one & 0xFFFFFFFF) + (two & 0xFFFFFFFF)
        carry = total.shift_logical(32) + one.shift_logical(32) + two.shift_logical(32)
        limbs.append(total & 0xFFFFFFFF)
    return limbs
