"""Integer division, power and shifts, with a result for every operand: nothing traps or is poison.

x // 0 and x % 0 are 0; INT_MIN // -1 wraps to INT_MIN, its remainder is 0. A shift by a negative
count or by at least the width moves every bit out: 0, or the sign where the sign fills. A negative
power is 0 unless the base is 1 or -1.
"""

from __future__ import annotations

from .builder import Function, mangled, width
from .math_lanes import Lanes, any_lane


def divide(a: Lanes, b: Lanes, *, signed: bool) -> tuple[Lanes, Lanes, Lanes]:
    """Quotient towards zero, its remainder (0 where b is 0, the quotient is not) and `b == 0`."""
    bits = int(a.scalar[1:])
    zero = b.eq(0)
    safe = zero.where(1, b)
    if signed:
        # INT_MIN / -1 is an overflow that traps on x86; INT_MIN / 1 is its wrapped result.
        safe = (a.eq(-(2 ** (bits - 1))) & b.eq(-1)).where(1, safe)
    quotient = _quotient(a, safe, bits, signed=signed)
    return quotient, a - quotient * safe, zero


def _quotient(a: Lanes, b: Lanes, bits: int, *, signed: bool) -> Lanes:
    """a / b truncated. No vector unit divides integers; up to 32 bits a float division is exact:
    a quotient that is no integer is at least |1/a| (relative) below the next one, that is 2**-16
    in float32 for 16 bits and 2**-32 in float64 for 32, while division errs by 2**-25 or 2**-54.
    """
    instruction = "sdiv" if signed else "udiv"
    if width(a.ty) == 1 or bits == 64:
        return Lanes(a.f, a.f.emit(f"{instruction} {a.ty} {a.name}, {b.name}"), a.ty)
    floating = a.typed("double" if bits == 32 else "float")
    to, back = ("sitofp", "fptosi") if signed else ("uitofp", "fptoui")
    x, y = (a.f.emit(f"{to} {v.ty} {v.name} to {floating}") for v in (a, b))
    ratio = a.f.emit(f"fdiv {floating} {x}, {y}")
    return Lanes(a.f, a.f.emit(f"{back} {floating} {ratio} to {a.ty}"), a.ty)


def floor_divide(a: Lanes, b: Lanes, *, signed: bool) -> Lanes:
    """a // b rounded down; 0 where b is 0."""
    quotient, rest, zero = divide(a, b, signed=signed)
    if signed:
        below = rest.ne(0) & (rest ^ b).lt(0)
        quotient = below.where(quotient - 1, quotient)
    return zero.where(0, quotient)


def remainder(a: Lanes, b: Lanes, *, signed: bool) -> Lanes:
    """a - (a // b) * b, of the sign of b; 0 where b is 0."""
    _, rest, zero = divide(a, b, signed=signed)
    if signed:
        below = rest.ne(0) & (rest ^ b).lt(0)
        rest = below.where(rest + b, rest)
    return zero.where(0, rest)


def shift_left(a: Lanes, count: Lanes) -> Lanes:
    """a << count; 0 where the count is negative or at least the width."""
    bits = int(a.scalar[1:])
    return count.below(bits).where(a << count, 0)


def shift_right(a: Lanes, count: Lanes, *, signed: bool) -> Lanes:
    """a >> count; the sign of a (0 for unsigned) where the count is negative or too large."""
    bits = int(a.scalar[1:])
    inside = count.below(bits)
    if signed:
        return a >> inside.where(count, bits - 1)
    return inside.where(a.shift_logical(count), 0)


def power(a: Lanes, b: Lanes, *, signed: bool) -> Lanes:
    """a**b by squaring, wrapped; a call of one function for each type, since it loops."""
    f, ty = a.f, a.ty
    symbol = f"scalar_integer_power_{'s' if signed else 'u'}_{mangled(ty)}"
    if not f.module.has(symbol):
        inner = Function(f.module, symbol, [(ty, "a"), (ty, "b")], result=ty)
        value = _power(Lanes(inner, "%a", ty), Lanes(inner, "%b", ty), signed=signed)
        inner.stmt(f"ret {ty} {value.name}")
        inner.finish()
    return Lanes(f, f.emit(f"call {ty} @{symbol}({ty} {a.name}, {ty} {b.name})"), ty)


def _power(a: Lanes, b: Lanes, *, signed: bool) -> Lanes:
    f = a.f
    loop, done = f.new_label("loop"), f.new_label("done")
    before = f.block
    names = [f.reserve() for _ in range(3)]
    f.branch(loop)
    f.label(loop)
    one = a.const(1)
    result, square, left = (
        Lanes(f, f.emit(f"phi {a.ty} [ {first.name}, %{before} ], [ {later}, %{loop} ]"), a.ty)
        for first, later in zip((one, a, b), names)
    )
    product, odd = result * square, (left & 1).ne(0)
    chosen = f"{odd.ty} {odd.name}, {a.ty} {product.name}, {a.ty} {result.name}"
    f.assign(names[0], f"select {chosen}")
    f.assign(names[1], f"mul {a.ty} {square.name}, {square.name}")
    f.assign(names[2], f"lshr {a.ty} {left.name}, {left.lift(1)}")
    f.branch_if(any_lane(Lanes(f, names[2], a.ty).ne(0)), loop, done)
    f.label(done)
    value = Lanes(f, names[0], a.ty)
    if not signed:
        return value
    # a**-n = 1 / a**n rounded towards zero; squaring ran on the bits of b, whose lowest decides.
    minus_one = (b & 1).ne(0).where(a, 1)
    inverse = a.eq(1).where(1, a.eq(-1).where(minus_one, 0))
    return b.lt(0).where(inverse, value)
