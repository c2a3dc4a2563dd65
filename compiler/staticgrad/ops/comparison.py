"""Comparisons and predicates, element by element: the result is bool."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dtype import ALL

from .convert import promoted
from .elementwise import BOOLEAN, elementwise, infer_predicate
from .registry import Sample, apply
from .samples import pairs, singles, special_pairs
from .tensor import Tensor, method

_ALL = tuple(str(d) for d in ALL)


def _compared() -> list[Sample]:
    return [*pairs(_ALL), *special_pairs(_ALL)]


def _tested() -> list[Sample]:
    return singles(_ALL)


_reference: Any
for _name, _summary, _reference, _commutes in (
    ("equal", "x1 == x2", np.equal, True),
    ("not_equal", "x1 != x2", np.not_equal, True),
    ("less", "x1 < x2", np.less, False),
    ("less_equal", "x1 <= x2", np.less_equal, False),
    ("greater", "x1 > x2", np.greater, False),
    ("greater_equal", "x1 >= x2", np.greater_equal, False),
):
    elementwise(
        _name, _summary, _reference, BOOLEAN, _compared, infer=infer_predicate,
        traits=("commutative",) if _commutes else (),
    )  # fmt: skip

for _name, _summary, _reference in (
    ("isnan", "is x NaN?", np.isnan),
    ("isinf", "is x infinite?", np.isinf),
    ("isfinite", "is x neither infinite nor NaN?", np.isfinite),
):
    elementwise(_name, _summary, _reference, BOOLEAN, _tested, infer=infer_predicate)

elementwise(
    "signbit", "is the sign bit of x set? (-0 and negative NaN count)",
    lambda x: np.signbit(x) if x.dtype.kind == "f" else x < 0, BOOLEAN, _tested,
    infer=infer_predicate,
)  # fmt: skip


def equal(x1: Any, x2: Any, /) -> Tensor:
    """`x1 == x2`, element by element, broadcast and promoted; false for NaN. All dtypes."""
    return apply("equal", *promoted(x1, x2))


def not_equal(x1: Any, x2: Any, /) -> Tensor:
    """`x1 != x2`, element by element, broadcast and promoted; true for NaN. All dtypes."""
    return apply("not_equal", *promoted(x1, x2))


@method("__lt__")
def less(x1: Any, x2: Any, /) -> Tensor:
    """`x1 < x2`, element by element, broadcast and promoted; false for NaN. False < True."""
    return apply("less", *promoted(x1, x2))


@method("__le__")
def less_equal(x1: Any, x2: Any, /) -> Tensor:
    """`x1 <= x2`, element by element, broadcast and promoted; false for NaN. False < True."""
    return apply("less_equal", *promoted(x1, x2))


@method("__gt__")
def greater(x1: Any, x2: Any, /) -> Tensor:
    """`x1 > x2`, element by element, broadcast and promoted; false for NaN. False < True."""
    return apply("greater", *promoted(x1, x2))


@method("__ge__")
def greater_equal(x1: Any, x2: Any, /) -> Tensor:
    """`x1 >= x2`, element by element, broadcast and promoted; false for NaN. False < True."""
    return apply("greater_equal", *promoted(x1, x2))


@method("isnan")
def isnan(x: Any, /) -> Tensor:
    """Is each element NaN? Never for integers and bools."""
    return apply("isnan", *promoted(x))


@method("isinf")
def isinf(x: Any, /) -> Tensor:
    """Is each element infinite, of either sign? Never for integers and bools."""
    return apply("isinf", *promoted(x))


@method("isfinite")
def isfinite(x: Any, /) -> Tensor:
    """Is each element neither infinite nor NaN? Always for integers and bools."""
    return apply("isfinite", *promoted(x))


@method("signbit")
def signbit(x: Any, /) -> Tensor:
    """Is each element's sign bit set? True for -0.0 and negative NaN; `x < 0` for integers."""
    return apply("signbit", *promoted(x))


_NUMBERS = (Tensor, np.ndarray, np.generic, bool, int, float, list, tuple)


@method("__eq__")
def _eq(x1: Tensor, x2: Any) -> Any:
    # Beside None, a str or any other object, `==` is Python's own: the question is of identity.
    return equal(x1, x2) if isinstance(x2, _NUMBERS) else NotImplemented


@method("__ne__")
def _ne(x1: Tensor, x2: Any) -> Any:
    return not_equal(x1, x2) if isinstance(x2, _NUMBERS) else NotImplemented


__all__ = [
    "equal",
    "greater",
    "greater_equal",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "not_equal",
    "signbit",
]
