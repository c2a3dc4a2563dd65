"""The scalar operations of kernel IR as LLVM: one entry per name, for every dtype and width.

An operation gives the same bits for every number of lanes. No instruction carries a fast-math,
`nsw` or `nuw` flag, and nothing is contracted across operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from staticgrad.ir.dtype import BY_NAME
from staticgrad.ir.errors import UnsupportedError

from . import scalar_convert, scalar_integer
from .builder import Function, constant, register_type, vector
from .math_functions import FUNCTIONS, emit_math
from .math_lanes import Lanes, fabs


class Operands(NamedTuple):
    """The operands of one scalar operation: values, their dtypes, and the result's dtype."""

    x: tuple[Lanes, ...]
    dtypes: tuple[str, ...]
    result: str

    @property
    def kind(self) -> str:
        """Of the last operand, which has the type that is computed in: "b", "i", "u" or "f"."""
        return BY_NAME[self.dtypes[-1]].kind


Emitter = Callable[[Operands], Lanes]


def emit_scalar(
    f: Function, op: str, result: str, operands: Sequence[str], lanes: int, args: Sequence[str]
) -> str:
    """Emits the scalar operation `op` (`kernels.ir.Call.op`) and returns its value's name.

    `result` and `operands` are dtype names, `args` the operands' value names; in registers a bool
    is one bit, the other dtypes are as in memory. `lanes` 1 means scalars, else vectors. Operands
    have one dtype, but for `select` (whose condition is bool), `cast` and `bitcast`.

    Raises `UnsupportedError` for unknown operations and for dtypes that one does not take.
    """
    values = tuple(
        Lanes(f, a, vector(register_type(d), lanes)) for a, d in zip(args, operands, strict=True)
    )
    found = EMITTERS.get(op)
    if found is not None:
        kinds, emit = found
        call = Operands(values, tuple(operands), result)
        if call.kind in kinds:
            return emit(call).name
    elif op in FUNCTIONS and all(BY_NAME[d].is_float for d in operands):
        return emit_math(f, op, values[0].ty, *args)
    known = "" if is_known(op) else " (there is no such scalar operation)"
    raise UnsupportedError(f"scalar {op} of {', '.join(operands)} -> {result}{known}")


def is_known(op: str) -> bool:
    """Is there a scalar operation of this name?"""
    return op in EMITTERS or op in FUNCTIONS


def _math(name: str) -> Emitter:
    """A function that is also defined for integers, for which it is something else."""

    def emit(o: Operands) -> Lanes:
        x = o.x[0]
        return Lanes(x.f, emit_math(x.f, name, x.ty, *(v.name for v in o.x)), x.ty)

    return emit


def _intrinsic(name: str) -> Emitter:
    def emit(o: Operands) -> Lanes:
        x = o.x[0]
        return Lanes(x.f, x.f.call_intrinsic(name, x.ty, *(v.name for v in o.x)), x.ty)

    return emit


def _by_kind(**emitters: Emitter) -> tuple[str, Emitter]:
    """One emitter for each group of kinds: `_by_kind(iu=..., f=...)`."""
    table = {kind: e for kinds, e in emitters.items() for kind in kinds}
    return "".join(table), lambda o: table[o.kind](o)


def _compare(floating: str, signed: str, unsigned: str) -> tuple[str, Emitter]:
    predicates = {"f": f"fcmp {floating}", "i": f"icmp {signed}"}

    def emit(o: Operands) -> Lanes:
        a, b = o.x
        text = f"{predicates.get(o.kind, f'icmp {unsigned}')} {a.ty} {a.name}, {b.name}"
        return Lanes(a.f, a.f.emit(text), a.typed("i1"))

    return "biuf", emit


def _constant(value: bool) -> Emitter:
    """The answer of a predicate on dtypes that have no such values."""

    def emit(o: Operands) -> Lanes:
        ty = o.x[0].typed("i1")
        return Lanes(o.x[0].f, constant(value, ty), ty)

    return emit


def _same(o: Operands) -> Lanes:
    return o.x[0]


def _integer_extremum(o: Operands, name: str) -> Lanes:
    a, b = o.x
    if o.kind == "b":
        return a | b if name == "max" else a & b
    base = f"llvm.{'s' if o.kind == 'i' else 'u'}{name}"
    return Lanes(a.f, a.f.call_intrinsic(base, a.ty, a.name, b.name), a.ty)


def _integer_sign(o: Operands) -> Lanes:
    (x,) = o.x
    positive = x.ne(0).where(x.const(1), 0)
    return x.lt(0).where(-1, positive) if o.kind == "i" else positive


INF = float("inf")
_BITS = "biu"  # kinds that bitwise operations take

# name -> (kinds of the computed operand that it takes, emitter)
EMITTERS: dict[str, tuple[str, Emitter]] = {
    "cast": ("biuf", lambda o: scalar_convert.cast(o.x[0], o.dtypes[0], o.result)),
    "bitcast": ("iuf", lambda o: scalar_convert.bitcast(o.x[0], o.dtypes[0], o.result)),
    "select": ("biuf", lambda o: o.x[0].where(o.x[1], o.x[2])),
    # arithmetic
    "add": ("iuf", lambda o: o.x[0] + o.x[1]),
    "subtract": ("iuf", lambda o: o.x[0] - o.x[1]),
    "multiply": ("iuf", lambda o: o.x[0] * o.x[1]),
    "divide": ("f", lambda o: o.x[0] / o.x[1]),
    "negative": ("iuf", lambda o: -o.x[0]),
    "square": ("iuf", lambda o: o.x[0] * o.x[0]),
    "reciprocal": ("f", lambda o: 1.0 / o.x[0]),
    "abs": _by_kind(
        i=lambda o: o.x[0].lt(0).where(-o.x[0], o.x[0]), u=_same, f=_intrinsic("llvm.fabs")
    ),
    "floor_divide": _by_kind(
        iu=lambda o: scalar_integer.floor_divide(*o.x, signed=o.kind == "i"),
        f=_math("floor_divide"),
    ),
    "remainder": _by_kind(
        iu=lambda o: scalar_integer.remainder(*o.x, signed=o.kind == "i"),
        f=_math("remainder"),
    ),
    "pow": _by_kind(iu=lambda o: scalar_integer.power(*o.x, signed=o.kind == "i"), f=_math("pow")),
    # IEEE 754-2019 maximum and minimum: NaN wins, and -0 is below +0.
    "maximum": _by_kind(biu=lambda o: _integer_extremum(o, "max"), f=_intrinsic("llvm.maximum")),
    "minimum": _by_kind(biu=lambda o: _integer_extremum(o, "min"), f=_intrinsic("llvm.minimum")),
    # relu(NaN) is NaN: one maxps with the constant first.
    "relu": _by_kind(
        i=lambda o: o.x[0].lt(0).where(0, o.x[0]),
        u=_same,
        f=lambda o: o.x[0].lt(0.0).where(0.0, o.x[0]),
    ),
    # rounding and signs
    "floor": _by_kind(iu=_same, f=_intrinsic("llvm.floor")),
    "ceil": _by_kind(iu=_same, f=_intrinsic("llvm.ceil")),
    "trunc": _by_kind(iu=_same, f=_intrinsic("llvm.trunc")),
    "round": _by_kind(iu=_same, f=_intrinsic("llvm.roundeven")),
    "sqrt": ("f", _intrinsic("llvm.sqrt")),
    "copysign": ("f", _intrinsic("llvm.copysign")),
    "sign": _by_kind(iu=_integer_sign, f=_math("sign")),
    "signbit": _by_kind(
        i=lambda o: o.x[0].lt(0), bu=_constant(False), f=lambda o: o.x[0].bits().lt(0)
    ),
    "isnan": _by_kind(biu=_constant(False), f=lambda o: o.x[0].is_nan()),
    "isinf": _by_kind(biu=_constant(False), f=lambda o: fabs(o.x[0]).eq(INF)),
    "isfinite": _by_kind(biu=_constant(True), f=lambda o: fabs(o.x[0]).lt(INF)),
    # comparisons: false for NaN, but for not_equal
    "equal": _compare("oeq", "eq", "eq"),
    "not_equal": _compare("une", "ne", "ne"),
    "less": _compare("olt", "slt", "ult"),
    "less_equal": _compare("ole", "sle", "ule"),
    "greater": _compare("ogt", "sgt", "ugt"),
    "greater_equal": _compare("oge", "sge", "uge"),
    # bits and truth
    "bitwise_and": (_BITS, lambda o: o.x[0] & o.x[1]),
    "bitwise_or": (_BITS, lambda o: o.x[0] | o.x[1]),
    "bitwise_xor": (_BITS, lambda o: o.x[0] ^ o.x[1]),
    "bitwise_invert": (_BITS, lambda o: ~o.x[0]),
    "bitwise_left_shift": ("iu", lambda o: scalar_integer.shift_left(*o.x)),
    "bitwise_right_shift": ("iu", lambda o: scalar_integer.shift_right(*o.x, signed=o.kind == "i")),
    "logical_and": ("b", lambda o: o.x[0] & o.x[1]),
    "logical_or": ("b", lambda o: o.x[0] | o.x[1]),
    "logical_xor": ("b", lambda o: o.x[0] ^ o.x[1]),
    "logical_not": ("b", lambda o: ~o.x[0]),
}
