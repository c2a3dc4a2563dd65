"""Arithmetic, element by element: add, subtract, multiply, divide, remainder, pow and their kin."""

from __future__ import annotations

import builtins
from typing import Any, NoReturn

import numpy as np

from staticgrad.ir.errors import UnsupportedError

from .convert import astype, promoted
from .elementwise import elementwise, floating, infer_numeric, zeros_as
from .registry import Sample, apply
from .samples import (
    FLOATS,
    INTEGERS,
    NUMERIC,
    away_from_zero,
    pairs,
    random_array,
    singles,
    special_pairs,
    uniform_array,
)
from .tensor import Tensor, method

# --- sums, products, quotients --------------------------------------------------------------------


def _quotients() -> list[Sample]:
    """Denominators stay away from 0, where differences tell nothing about the gradient."""
    found = pairs(FLOATS)
    return [
        *(Sample((a, away_from_zero(b.shape, str(b.dtype), 7))) for a, b in
          (s.operands for s in found)),
        *special_pairs(FLOATS),
    ]  # fmt: skip


elementwise(
    "add", "x1 + x2", np.add, lambda c, ct: (ct, ct),
    lambda: [*pairs(NUMERIC), *special_pairs(NUMERIC)],
    infer=infer_numeric, traits=("commutative",),
)  # fmt: skip
elementwise(
    "subtract", "x1 - x2", np.subtract, lambda c, ct: (ct, -ct),
    lambda: [*pairs(NUMERIC), *special_pairs(NUMERIC)],
    infer=infer_numeric,
)  # fmt: skip
elementwise(
    "multiply", "x1 * x2", np.multiply,
    lambda c, ct: (ct * c.operands[1], ct * c.operands[0]),
    lambda: [*pairs(NUMERIC), *special_pairs(NUMERIC)],
    infer=infer_numeric, traits=("commutative",),
)  # fmt: skip
elementwise(
    "divide", "x1 / x2", np.divide,
    # d(x1/x2)/dx2 = -x1/x2**2, written with the result so that no overflow of x2**2 matters.
    lambda c, ct: (ct / c.operands[1], -(ct / c.operands[1]) * c.results[0]),
    _quotients,
)  # fmt: skip
elementwise(
    "negative", "-x", np.negative, lambda c, ct: (-ct,), lambda: singles(NUMERIC),
    infer=infer_numeric,
)  # fmt: skip
elementwise(
    "square", "x**2", np.square, lambda c, ct: (ct * (c.operands[0] * 2.0),),
    lambda: singles(NUMERIC), infer=infer_numeric,
)  # fmt: skip
elementwise(
    "reciprocal", "1/x", np.reciprocal,
    lambda c, ct: (-(ct * c.results[0]) * c.results[0],),
    lambda: singles(FLOATS, make=away_from_zero),
)  # fmt: skip


@method("__add__")
def add(x1: Any, x2: Any, /) -> Tensor:
    """`x1 + x2`, element by element, broadcast and promoted. Numbers only; integers wrap."""
    return apply("add", *promoted(x1, x2))


@method("__sub__")
def subtract(x1: Any, x2: Any, /) -> Tensor:
    """`x1 - x2`, element by element, broadcast and promoted. Numbers only; integers wrap."""
    return apply("subtract", *promoted(x1, x2))


@method("__mul__")
def multiply(x1: Any, x2: Any, /) -> Tensor:
    """`x1 * x2`, element by element, broadcast and promoted. Numbers only; integers wrap."""
    return apply("multiply", *promoted(x1, x2))


@method("__truediv__")
def divide(x1: Any, x2: Any, /) -> Tensor:
    """`x1 / x2`, element by element, broadcast and promoted.

    Integers are converted to float32 first (float64 beside a float64). Division by zero gives
    infinity or NaN, as IEEE 754 has it.
    """
    a, b = promoted(x1, x2)
    if not a.dtype.is_float:
        a, b = astype(a, "float32"), astype(b, "float32")
    return apply("divide", a, b)


@method("__neg__")
def negative(x: Any, /) -> Tensor:
    """`-x`, element by element. Numbers only; unsigned integers wrap."""
    return apply("negative", *promoted(x))


@method("__pos__")
def positive(x: Any, /) -> Tensor:
    """`+x`: the tensor itself; it makes no node. Numbers only."""
    (x,) = promoted(x)
    infer_numeric((x.type,), {})
    return x


@method("square")
def square(x: Any, /) -> Tensor:
    """`x * x`, element by element. Numbers only; integers wrap."""
    return apply("square", *promoted(x))


@method("reciprocal")
def reciprocal(x: Any, /) -> Tensor:
    """`1 / x`, element by element. Floating only; infinity at 0."""
    return apply("reciprocal", *floating(x))


# --- floored division -----------------------------------------------------------------------------


def _vjp_remainder(c: Any, ct: Any) -> tuple[Any, ...]:
    """x1 - floor(x1/x2) x2, with a floor that is constant almost everywhere."""
    x1, x2 = c.operands
    return ct, -ct * floor_divide(x1, x2) if c.needed[1] else None


def _divisions() -> list[Sample]:
    floats = (Sample((random_array((4, 17), d, 3), away_from_zero((4, 17), d, 4))) for d in FLOATS)
    return [*floats, *pairs(INTEGERS), *special_pairs(NUMERIC)]


elementwise(
    "floor_divide", "floor(x1 / x2); integers by 0 give 0", np.floor_divide,
    lambda c, ct: (zeros_as(ct), zeros_as(ct)), _divisions, infer=infer_numeric,
)  # fmt: skip
elementwise(
    "remainder", "x1 - floor(x1 / x2) * x2, of the sign of x2; integers by 0 give 0", np.remainder,
    _vjp_remainder, _divisions, infer=infer_numeric,
)  # fmt: skip


@method("__floordiv__")
def floor_divide(x1: Any, x2: Any, /) -> Tensor:
    """`floor(x1 / x2)`, element by element, broadcast and promoted: Python's `//`.

    An integer divided by zero is 0, and the lowest integer divided by -1 wraps to itself; floats
    give infinity or NaN for a zero divisor. The gradient is 0 (it is a step function). Raises
    DTypeError for bools.
    """
    return apply("floor_divide", *promoted(x1, x2))


@method("__mod__")
def remainder(x1: Any, x2: Any, /) -> Tensor:
    """`x1 - floor(x1 / x2) * x2`, exact, with the sign of `x2`: Python's `%`.

    The remainder of an integer by zero is 0, of a float NaN. d/dx1 = 1, d/dx2 = -floor(x1 / x2).
    Raises DTypeError for bools.
    """
    return apply("remainder", *promoted(x1, x2))


# --- power ----------------------------------------------------------------------------------------


def _reference_pow(x1: Any, x2: Any) -> Any:
    if x1.dtype.kind == "f":
        return np.power(x1, x2)

    def power(a: int, b: int) -> int:
        if b >= 0:
            return builtins.pow(a, b, 2**64)
        return {1: 1, -1: -1 if b % 2 else 1}.get(a, 0)

    exact = np.frompyfunc(lambda a, b: power(int(a), int(b)) % 2**64, 2, 1)(x1, x2)
    return np.asarray(exact).astype("uint64").astype(x1.dtype)


def constant_exponent(v: Any) -> float | None:
    """The value of a floating exponent that is one number written in the program, else None."""
    payload = getattr(getattr(v, "node", None), "payload", None)
    if isinstance(payload, np.ndarray) and payload.ndim == 0 and payload.dtype.kind == "f":
        return float(payload)
    return None


def _vjp_base(x: Any, n: Any, ct: Any) -> Any:
    """n x**(n-1), 0 for n = 0 whatever x is; right for x = 0 and for negative x with whole n."""
    from .selection import where

    number = constant_exponent(n)
    if number is not None:
        if number == 0.0:
            return zeros_as(ct)
        if number == 1.0:
            return ct
        slope = x if number == 2.0 else pow(x, number - 1.0)
        return ct * (slope * number)
    # 0 * x**(0-1) would be NaN at x = 0: the exponent, not the product, is what is replaced.
    return ct * n * pow(x, where(n == 0.0, 0.0, n - 1.0))


def _vjp_exponent(c: Any, ct: Any) -> Any:
    """x**n log(x); 0 at x = 0 for n >= 0, its limit from the right for n > 0."""
    from .exponential import log
    from .selection import where

    x, n = c.operands
    return ct * c.results[0] * log(where((x == 0.0) & (n >= 0.0), 1.0, x))


def _vjp_pow(c: Any, ct: Any) -> tuple[Any, ...]:
    return (
        _vjp_base(c.operands[0], c.operands[1], ct) if c.needed[0] else None,
        _vjp_exponent(c, ct) if c.needed[1] else None,
    )


def _powers() -> list[Sample]:
    found = [
        Sample((uniform_array((4, 17), d, 0.2, 2.0, 3), random_array((4, 17), d, 4)))
        for d in FLOATS
    ]
    base = uniform_array((3, 1), "float64", 0.2, 2.0, 5)
    found.append(Sample((base, random_array((1, 5), "float64", 6))))
    whole = np.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 17.0])
    # The exponent of a negative base has no gradient: NaN, as x**n is not real around it.
    found.append(Sample((away_from_zero((8,), "float64", 8), whole), differentiable=False))
    return [*found, *pairs(INTEGERS), *special_pairs(NUMERIC)]


elementwise("pow", "x1 ** x2", _reference_pow, _vjp_pow, _powers, infer=infer_numeric)


@method("__pow__")
def pow(x1: Any, x2: Any, /) -> Tensor:
    """`x1 ** x2`, element by element, broadcast and promoted. Numbers only.

    Integers wrap; a negative integer power is 0 unless the base is 1 or -1. A negative float to a
    power that is no whole number is NaN. d/dx1 = x2 x1**(x2-1), 0 for x2 = 0; d/dx2 =
    x1**x2 log(x1), 0 at x1 = 0 for x2 >= 0. Raises DTypeError for bools.
    """
    return apply("pow", *promoted(x1, x2))


# --- complex numbers ------------------------------------------------------------------------------


def _refuse_complex(name: str) -> NoReturn:
    raise UnsupportedError(
        f"{name}: complex dtypes are not supported; hold real and imaginary parts as two tensors"
    )


def conj(x: Any, /) -> NoReturn:
    """Of the standard, for complex arrays only: raises `UnsupportedError`."""
    _refuse_complex("conj")


def imag(x: Any, /) -> NoReturn:
    """Of the standard, for complex arrays only: raises `UnsupportedError`."""
    _refuse_complex("imag")


def real(x: Any, /) -> NoReturn:
    """Of the standard, for complex arrays only: raises `UnsupportedError`."""
    _refuse_complex("real")


method("__radd__")(lambda self, other: add(other, self))
method("__rsub__")(lambda self, other: subtract(other, self))
method("__rmul__")(lambda self, other: multiply(other, self))
method("__rtruediv__")(lambda self, other: divide(other, self))
method("__rfloordiv__")(lambda self, other: floor_divide(other, self))
method("__rmod__")(lambda self, other: remainder(other, self))
method("__rpow__")(lambda self, other: pow(other, self))
method("pow")(pow)

__all__ = [
    "add",
    "conj",
    "divide",
    "floor_divide",
    "imag",
    "multiply",
    "negative",
    "positive",
    "pow",
    "real",
    "reciprocal",
    "remainder",
    "square",
    "subtract",
]
