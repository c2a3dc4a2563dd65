"""Logic and bits, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.errors import DTypeError

from .convert import as_tensor, astype, promoted
from .elementwise import BOOLEAN, elementwise, types_text
from .registry import Attrs, NotDifferentiable, Sample, Types, apply, infer_elementwise
from .samples import INTEGERS, pairs, singles, special_pairs
from .tensor import Tensor, method

_DISCRETE = NotDifferentiable("bits have no gradient")
_BITS = ("bool", *INTEGERS)


def _infer_bool(types: Types, attrs: Attrs) -> Types:
    result = infer_elementwise(types)
    if result.dtype.kind != "b":
        raise DTypeError(f"expected bools, got {types_text(types)}")
    return (result,)


def _infer_bits(types: Types, attrs: Attrs) -> Types:
    result = infer_elementwise(types)
    if result.dtype.is_float:
        raise DTypeError(f"expected bools or integers, got {types_text(types)}")
    return (result,)


def _infer_integer(types: Types, attrs: Attrs) -> Types:
    result = infer_elementwise(types)
    if not result.dtype.is_integer:
        raise DTypeError(f"expected integers, got {types_text(types)}")
    return (result,)


_reference: Any
for _name, _summary, _reference in (
    ("logical_and", "x1 and x2", np.logical_and),
    ("logical_or", "x1 or x2", np.logical_or),
    ("logical_xor", "x1 or x2, not both", np.logical_xor),
):
    elementwise(
        _name, _summary, _reference, BOOLEAN, lambda: pairs(("bool",)), infer=_infer_bool,
        traits=("commutative",),
    )  # fmt: skip
elementwise(
    "logical_not", "not x", np.logical_not, BOOLEAN, lambda: singles(("bool",)), infer=_infer_bool
)
for _name, _summary, _reference in (
    ("bitwise_and", "x1 & x2", np.bitwise_and),
    ("bitwise_or", "x1 | x2", np.bitwise_or),
    ("bitwise_xor", "x1 ^ x2", np.bitwise_xor),
):
    elementwise(
        _name, _summary, _reference, _DISCRETE, lambda: [*pairs(_BITS), *special_pairs(_BITS)],
        infer=_infer_bits, traits=("commutative",),
    )  # fmt: skip
elementwise("bitwise_invert", "~x", np.invert, _DISCRETE, lambda: singles(_BITS), infer=_infer_bits)


def _shift(a: Any, count: Any, left: bool) -> Any:
    """Shifts with every count defined: all bits leave for counts < 0 or >= the width."""
    bits = 8 * a.dtype.itemsize
    inside = (count >= 0) & (count < bits)
    safe = np.where(inside, count, 0).astype(a.dtype)
    if left:
        return np.where(inside, a << safe, a.dtype.type(0))
    sign = np.where(a < 0, -1, 0).astype(a.dtype)
    return np.where(inside, a >> safe, sign)


def _shifts() -> list[Sample]:
    return [*pairs(INTEGERS), *special_pairs(INTEGERS)]


elementwise(
    "bitwise_left_shift", "x1 << x2; 0 for counts < 0 or >= the width",
    lambda a, n: _shift(a, n, True), _DISCRETE, _shifts, infer=_infer_integer,
)  # fmt: skip
elementwise(
    "bitwise_right_shift", "x1 >> x2; the sign for counts < 0 or >= the width",
    lambda a, n: _shift(a, n, False), _DISCRETE, _shifts, infer=_infer_integer,
)  # fmt: skip


def _truth(x: Any, what: str) -> Tensor:
    return astype(as_tensor(x, what), "bool")


@method("logical_and")
def logical_and(x1: Any, x2: Any, /) -> Tensor:
    """`x1 and x2`, element by element, broadcast. Numbers count as `x != 0`."""
    return apply("logical_and", _truth(x1, "logical_and"), _truth(x2, "logical_and"))


@method("logical_or")
def logical_or(x1: Any, x2: Any, /) -> Tensor:
    """`x1 or x2`, element by element, broadcast. Numbers count as `x != 0`."""
    return apply("logical_or", _truth(x1, "logical_or"), _truth(x2, "logical_or"))


@method("logical_xor")
def logical_xor(x1: Any, x2: Any, /) -> Tensor:
    """Exactly one of `x1` and `x2`, element by element, broadcast. Numbers count as `x != 0`."""
    return apply("logical_xor", _truth(x1, "logical_xor"), _truth(x2, "logical_xor"))


@method("logical_not")
def logical_not(x: Any, /) -> Tensor:
    """`not x`, element by element. Numbers count as `x != 0`."""
    return apply("logical_not", _truth(x, "logical_not"))


@method("__and__")
def bitwise_and(x1: Any, x2: Any, /) -> Tensor:
    """`x1 & x2`, element by element, broadcast and promoted. Bools and integers only."""
    return apply("bitwise_and", *promoted(x1, x2))


@method("__or__")
def bitwise_or(x1: Any, x2: Any, /) -> Tensor:
    """`x1 | x2`, element by element, broadcast and promoted. Bools and integers only."""
    return apply("bitwise_or", *promoted(x1, x2))


@method("__xor__")
def bitwise_xor(x1: Any, x2: Any, /) -> Tensor:
    """`x1 ^ x2`, element by element, broadcast and promoted. Bools and integers only."""
    return apply("bitwise_xor", *promoted(x1, x2))


@method("__invert__")
def bitwise_invert(x: Any, /) -> Tensor:
    """`~x`, element by element: of bools `not x`. Bools and integers only."""
    return apply("bitwise_invert", *promoted(x))


@method("__lshift__")
def bitwise_left_shift(x1: Any, x2: Any, /) -> Tensor:
    """`x1 << x2`, element by element, broadcast and promoted. Integers only.

    A count that is negative or at least the width in bits gives 0.
    """
    return apply("bitwise_left_shift", *promoted(x1, x2))


@method("__rshift__")
def bitwise_right_shift(x1: Any, x2: Any, /) -> Tensor:
    """`x1 >> x2`, element by element, broadcast and promoted; the sign fills. Integers only.

    A count that is negative or at least the width in bits gives 0, or -1 for a negative x1.
    """
    return apply("bitwise_right_shift", *promoted(x1, x2))


method("__rand__")(lambda self, other: bitwise_and(other, self))
method("__ror__")(lambda self, other: bitwise_or(other, self))
method("__rxor__")(lambda self, other: bitwise_xor(other, self))
method("__rlshift__")(lambda self, other: bitwise_left_shift(other, self))
method("__rrshift__")(lambda self, other: bitwise_right_shift(other, self))

__all__ = [
    "bitwise_and",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
]
