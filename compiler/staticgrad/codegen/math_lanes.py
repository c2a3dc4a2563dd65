"""Lane-wise arithmetic on values of any vector width: what the math functions are written in.

A `Lanes` is one LLVM value of a function under construction. Its operators emit exactly one
instruction each, so that the rounding of every step is what is read in the source: nothing is
contracted or reassociated. Only lane-wise operations exist here; a function written with them
gives the same bits for every width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .builder import Function, constant, element, mangled, vector, width

_FLOATS = {"float": "i32", "double": "i64"}
_MAGIC = {"float": 1.5 * 2.0**23, "double": 1.5 * 2.0**52}


class Lanes:
    """A value of type `<w x scalar>` (or `scalar`) in the function `f`."""

    __slots__ = ("f", "name", "scalar", "ty")

    def __init__(self, f: Function, name: str, ty: str) -> None:
        self.f = f
        self.name = name
        self.ty = ty
        self.scalar = element(ty)

    @property
    def is_float(self) -> bool:
        return self.scalar in _FLOATS

    def typed(self, scalar: str) -> str:
        """The type of as many lanes of another scalar."""
        return vector(scalar, width(self.ty))

    def lift(self, other: Lanes | float | int) -> str:
        """The operand text of `other`, a Python number becoming a constant of this type."""
        return other.name if isinstance(other, Lanes) else self.f.held(other, self.ty)

    def const(self, value: float | int) -> Lanes:
        return Lanes(self.f, constant(value, self.ty), self.ty)

    def _two(self, op: str, left: str, right: str) -> Lanes:
        return Lanes(self.f, self.f.emit(f"{op} {self.ty} {left}, {right}"), self.ty)

    def _binary(self, floating: str, integer: str, other: Lanes | float | int) -> Lanes:
        return self._two(floating if self.is_float else integer, self.name, self.lift(other))

    def _reflected(self, floating: str, integer: str, other: float | int) -> Lanes:
        return self._two(floating if self.is_float else integer, self.lift(other), self.name)

    def __add__(self, other: Lanes | float | int) -> Lanes:
        return self._binary("fadd", "add", other)

    def __radd__(self, other: float | int) -> Lanes:
        return self._reflected("fadd", "add", other)

    def __sub__(self, other: Lanes | float | int) -> Lanes:
        return self._binary("fsub", "sub", other)

    def __rsub__(self, other: float | int) -> Lanes:
        return self._reflected("fsub", "sub", other)

    def __mul__(self, other: Lanes | float | int) -> Lanes:
        return self._binary("fmul", "mul", other)

    def __rmul__(self, other: float | int) -> Lanes:
        return self._reflected("fmul", "mul", other)

    def __truediv__(self, other: Lanes | float | int) -> Lanes:
        return self._two("fdiv", self.name, self.lift(other))

    def __rtruediv__(self, other: float | int) -> Lanes:
        return self._two("fdiv", self.lift(other), self.name)

    def __neg__(self) -> Lanes:
        if not self.is_float:
            return self._two("sub", constant(0, self.ty), self.name)
        return Lanes(self.f, self.f.emit(f"fneg {self.ty} {self.name}"), self.ty)

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._two("and", self.name, self.lift(other))

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._two("or", self.name, self.lift(other))

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._two("xor", self.name, self.lift(other))

    def __invert__(self) -> Lanes:
        return self._two("xor", self.name, constant(True if self.scalar == "i1" else -1, self.ty))

    def __lshift__(self, other: Lanes | int) -> Lanes:
        return self._two("shl", self.name, self.lift(other))

    def __rshift__(self, other: Lanes | int) -> Lanes:
        """Arithmetic: the sign bit fills."""
        return self._two("ashr", self.name, self.lift(other))

    def shift_logical(self, other: Lanes | int) -> Lanes:
        return self._two("lshr", self.name, self.lift(other))

    def _compare(self, floating: str, integer: str, other: Lanes | float | int) -> Lanes:
        kind = f"fcmp {floating}" if self.is_float else f"icmp {integer}"
        text = f"{kind} {self.ty} {self.name}, {self.lift(other)}"
        return Lanes(self.f, self.f.emit(text), self.typed("i1"))

    def lt(self, other: Lanes | float | int) -> Lanes:
        """`self < other`, false for NaN. Signed for integers."""
        return self._compare("olt", "slt", other)

    def le(self, other: Lanes | float | int) -> Lanes:
        return self._compare("ole", "sle", other)

    def gt(self, other: Lanes | float | int) -> Lanes:
        return self._compare("ogt", "sgt", other)

    def ge(self, other: Lanes | float | int) -> Lanes:
        return self._compare("oge", "sge", other)

    def eq(self, other: Lanes | float | int) -> Lanes:
        return self._compare("oeq", "eq", other)

    def ne(self, other: Lanes | float | int) -> Lanes:
        """`self != other`, true for NaN."""
        return self._compare("une", "ne", other)

    def below(self, other: Lanes | int) -> Lanes:
        """Unsigned `self < other` of integers."""
        return self._compare("", "ult", other)

    def is_nan(self) -> Lanes:
        return self._compare("uno", "", self)

    def is_unordered(self, other: Lanes) -> Lanes:
        """Whether either is NaN."""
        return self._compare("uno", "", other)

    def where(self, yes: Lanes | float | int, no: Lanes | float | int) -> Lanes:
        """`yes` where this mask is set, else `no`; at least one of them is a `Lanes`."""
        like = yes if isinstance(yes, Lanes) else no
        assert isinstance(like, Lanes)
        text = (
            f"select {self.ty} {self.name}, {like.ty} {like.lift(yes)}, {like.ty} {like.lift(no)}"
        )
        return Lanes(self.f, self.f.emit(text), like.ty)

    def _convert(self, op: str, scalar: str) -> Lanes:
        ty = self.typed(scalar)
        return Lanes(self.f, self.f.emit(f"{op} {self.ty} {self.name} to {ty}"), ty)

    def bits(self) -> Lanes:
        return self._convert("bitcast", _FLOATS[self.scalar])

    def as_float(self) -> Lanes:
        """The float whose bits this integer is."""
        return self._convert("bitcast", "float" if self.scalar == "i32" else "double")

    def to_int(self, scalar: str) -> Lanes:
        """Truncated. A value that does not fit, or NaN, gives an arbitrary integer: `freeze`
        keeps the poison that LLVM makes of it out of what follows."""
        converted = self._convert("fptosi", scalar)
        text = f"freeze {converted.ty} {converted.name}"
        return Lanes(self.f, self.f.emit(text), converted.ty)

    def to_float(self, scalar: str) -> Lanes:
        return self._convert("sitofp", scalar)

    def widen(self) -> Lanes:
        return self._convert("fpext", "double")

    def narrow(self) -> Lanes:
        return self._convert("fptrunc", "float")

    def resize(self, scalar: str) -> Lanes:
        """This signed integer in another width: sign-extended or truncated."""
        if scalar == self.scalar:
            return self
        return self._convert("sext" if int(scalar[1:]) > int(self.scalar[1:]) else "trunc", scalar)


def _intrinsic(name: str, first: Lanes, *others: Lanes | float) -> Lanes:
    args = [first.name, *(first.lift(o) for o in others)]
    return Lanes(first.f, first.f.call_intrinsic(name, first.ty, *args), first.ty)


def fma(a: Lanes | float, b: Lanes | float, c: Lanes | float) -> Lanes:
    """`a * b + c`, rounded once; at least one of them is a `Lanes`."""
    like = next(v for v in (a, b, c) if isinstance(v, Lanes))
    text = [like.lift(v) for v in (a, b, c)]
    return Lanes(like.f, like.f.call_intrinsic("llvm.fma", like.ty, *text), like.ty)


def fabs(x: Lanes) -> Lanes:
    return _intrinsic("llvm.fabs", x)


def copysign(magnitude: Lanes, sign: Lanes) -> Lanes:
    return _intrinsic("llvm.copysign", magnitude, sign)


def sqrt(x: Lanes) -> Lanes:
    return _intrinsic("llvm.sqrt", x)


def floor(x: Lanes) -> Lanes:
    return _intrinsic("llvm.floor", x)


def ceil(x: Lanes) -> Lanes:
    return _intrinsic("llvm.ceil", x)


def trunc(x: Lanes) -> Lanes:
    return _intrinsic("llvm.trunc", x)


def round_even(x: Lanes) -> Lanes:
    return _intrinsic("llvm.roundeven", x)


def at_most(x: Lanes, bound: Lanes | float) -> Lanes:
    """The smaller of the two; a NaN in `x` stays (one `vminps`: bound < x ? bound : x)."""
    return x.gt(bound).where(bound, x)


def at_least(x: Lanes, bound: Lanes | float) -> Lanes:
    """The larger of the two; a NaN in `x` stays."""
    return x.lt(bound).where(bound, x)


def horner(x: Lanes, coefficients: Sequence[float | Lanes]) -> Lanes:
    """The polynomial with `coefficients`, highest power first, one fma for each after the first."""
    first, second, *rest = coefficients
    value = fma(x, first, second)
    for c in rest:
        value = fma(value, x, c)
    return value


def sign_bit(x: Lanes) -> Lanes:
    """The sign bit alone, as an integer."""
    return x.bits() & (1 << 31 if x.scalar == "float" else 1 << 63)


def flip_sign(x: Lanes, sign: Lanes) -> Lanes:
    """`x` negated where the integer `sign` has its top bit set (and no other bit)."""
    return (x.bits() ^ sign).as_float()


def two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """a + b and its rounding error, exactly, whatever their order (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fast_two_sum(a: Lanes, b: Lanes | float) -> tuple[Lanes, Lanes]:
    """a + b and its rounding error, for |a| >= |b| or a == 0 (Dekker)."""
    total = a + b
    error = total - a
    return total, (b - error)


def two_product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """a * b and its rounding error."""
    product = a * b
    return product, fma(a, b, -product)


def divide_parts(
    top: Lanes, top_low: Lanes, bottom: Lanes, bottom_low: Lanes
) -> tuple[Lanes, Lanes]:
    """(top + top_low) / (bottom + bottom_low) as a quotient and what is missing to it.

    The quotient is within a few ULP; the rest is its residual over the divisor, to first order.
    """
    inverse = 1.0 / bottom
    quotient = top * inverse
    residual = fma(-quotient, bottom, top) + fma(-quotient, bottom_low, top_low)
    return quotient, residual * inverse


def divide_sums(top: Lanes, top_low: Lanes, bottom: Lanes, bottom_low: Lanes) -> Lanes:
    quotient, rest = divide_parts(top, top_low, bottom, bottom_low)
    return quotient + rest


def round_magic(x: Lanes, scale: float, shift: float = 0.0) -> tuple[Lanes, Lanes]:
    """`x * scale + shift` rounded to an integer n, |n| < 2**22 (2**51 in float64).

    Returns the shifted sum, whose low bits hold n, and n as a float: two instructions for both
    where `shift` is 0.
    """
    if shift:
        shifted = fma(x, scale, shift) + _MAGIC[x.scalar]
    else:
        shifted = fma(x, scale, _MAGIC[x.scalar])
    return shifted, shifted - _MAGIC[x.scalar]


def power_of_two(n: Lanes, scalar: str) -> Lanes:
    """2**n of an integer within the range of normal exponents."""
    mantissa, bias = (23, 127) if scalar == "float" else (52, 1023)
    return ((n + bias) << mantissa).as_float()


def scale_by_power(x: Lanes, n: Lanes) -> Lanes:
    """`x * 2**n` rounded once, n an integer held as a float, |n| <= 2200 (300 in float32).

    One `vscalefps` on AVX-512. Elsewhere two multiplications by powers of two, of which the first
    is exact for 2**-30 <= |x| < 4, so that both give the same bits.
    """
    if has_avx512(x):
        return _scalef(x, n)
    integer = n.to_int("i32")
    if x.scalar == "double":
        integer = integer.resize("i64")
    half = integer >> 1
    return (x * power_of_two(half, x.scalar)) * power_of_two(integer - half, x.scalar)


def has_avx512(x: Lanes) -> bool:
    target = x.f.module.target
    return target.is_x86 and {"+avx512f", "+avx512vl"} <= set(target.features.split(","))


def _scalef(x: Lanes, n: Lanes) -> Lanes:
    f, total = x.f, _bits(x)
    if total > 512:
        return by_halves(_scalef, x, n)
    if total < 128:
        name = f"llvm.ldexp.{mangled(x.ty)}.{mangled(x.typed('i32'))}"
        integer = n.to_int("i32")
        f.module.intrinsic(name, x.ty, x.ty, integer.ty)
        text = f"call {x.ty} @{name}({x.ty} {x.name}, {integer.ty} {integer.name})"
        return Lanes(f, f.emit(text), x.ty)
    return _avx512("scalef", x, n)


def exponent_and_mantissa(x: Lanes) -> tuple[Lanes, Lanes] | None:
    """k and m of x = 2**k m, 3/4 <= m < 3/2, by AVX-512's instructions; None where there are none.

    k is infinite for 0 (below) and for infinity, where m is 1; m is NaN for x below 0 and NaN.
    """
    total = _bits(x)
    if not has_avx512(x) or total < 128:
        return None
    if total > 512:
        low, high = (exponent_and_mantissa(part) for part in halves(x))
        assert low is not None and high is not None
        return join(low[0], high[0]), join(low[1], high[1])
    m = _avx512("getmant", x, 0b1011)
    return _avx512("getexp", x) - _avx512("getexp", m), m


def _bits(x: Lanes) -> int:
    return width(x.ty) * (32 if x.scalar == "float" else 64)


def _avx512(name: str, x: Lanes, *others: Lanes | int) -> Lanes:
    """An AVX-512 instruction on a vector of 128, 256 or 512 bits, in the current rounding mode;
    an int is an immediate operand."""
    f, lanes = x.f, width(x.ty)
    total = _bits(x)
    mask = f"i{max(8, lanes)}"
    full = f"llvm.x86.avx512.mask.{name}.{'ps' if x.scalar == 'float' else 'pd'}.{total}"
    operands = [(x.ty, x.name)]
    operands += [("i32", str(o)) if isinstance(o, int) else (o.ty, o.name) for o in others]
    operands += [(x.ty, "zeroinitializer"), (mask, "-1")]
    if total == 512:
        operands.append(("i32", "4"))
    f.module.intrinsic(full, x.ty, *(ty for ty, _ in operands))
    text = ", ".join(f"{ty} {value}" for ty, value in operands)
    return Lanes(f, f.emit(f"call {x.ty} @{full}({text})"), x.ty)


def by_halves(function: Callable[..., Lanes], *args: Lanes) -> Lanes:
    """`function` of the lower and the upper lanes, joined again: registers, no instruction."""
    return join(*(function(*parts) for parts in zip(*map(halves, args))))


def halves(x: Lanes) -> tuple[Lanes, Lanes]:
    """The lower and the upper lanes."""
    f, half = x.f, width(x.ty) // 2
    ty = vector(x.scalar, half)
    low, high = (
        Lanes(f, f.emit(f"shufflevector {x.ty} {x.name}, {x.ty} poison, {_picks(start, half)}"), ty)
        for start in (0, half)
    )
    return low, high


def join(low: Lanes, high: Lanes) -> Lanes:
    lanes = 2 * width(low.ty)
    text = f"shufflevector {low.ty} {low.name}, {high.ty} {high.name}, {_picks(0, lanes)}"
    return Lanes(low.f, low.f.emit(text), vector(low.scalar, lanes))


def _picks(start: int, count: int) -> str:
    return f"<{count} x i32> <" + ", ".join(f"i32 {start + i}" for i in range(count)) + ">"


def any_lane(mask: Lanes) -> str:
    """An i1: whether the mask is set in any lane. For branches only, never for values."""
    f, lanes = mask.f, width(mask.ty)
    if lanes == 1:
        return mask.name
    packed = f.emit(f"bitcast {mask.ty} {mask.name} to i{lanes}")
    return f.emit(f"icmp ne i{lanes} {packed}, 0")


def when_any(
    mask: Lanes, common: tuple[Lanes, ...], rare: Callable[[], tuple[Lanes, ...]]
) -> tuple[Lanes, ...]:
    """The values of `rare()` where `mask` is set, else `common`; skipped when no lane needs it.

    Opens blocks, so it belongs into functions of their own. The bits of a lane depend on its own
    mask alone, not on which way the branch went.
    """
    f, condition = mask.f, any_lane(mask)
    slow, done = f.new_label("rare"), f.new_label("done")
    before = f.block
    f.branch_if(condition, slow, done)
    f.label(slow)
    values = [mask.where(r, c) for r, c in zip(rare(), common, strict=True)]
    after = f.block
    f.branch(done)
    f.label(done)
    joined = []
    for v, c in zip(values, common, strict=True):
        text = f"phi {c.ty} [ {c.name}, %{before} ], [ {v.name}, %{after} ]"
        joined.append(Lanes(f, f.emit(text), c.ty))
    return tuple(joined)
