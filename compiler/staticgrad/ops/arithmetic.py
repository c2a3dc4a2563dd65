"""Arithmetic, element by element: add, subtract, multiply, divide, negative and their kin."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.errors import DTypeError

from .convert import promoted
from .lowering import Pointwise
from .registry import Attrs, Op, Sample, Types, apply, infer_elementwise, register
from .samples import FLOATS, NUMERIC, pairs
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, element-wise functions"


def infer_numeric(types: Types, attrs: Attrs) -> Types:
    """Same dtype, numbers only, broadcast."""
    result = infer_elementwise(types)
    if result.dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {', '.join(str(t) for t in types)}")
    return (result,)


def infer_floating(types: Types, attrs: Attrs) -> Types:
    """Same dtype, floating only, broadcast."""
    result = infer_elementwise(types)
    if not result.dtype.is_float:
        raise DTypeError(
            f"expected a floating dtype, got {', '.join(str(t) for t in types)}; "
            "convert with .astype(sg.float32) first"
        )
    return (result,)


def _binary(name: str, summary: str, reference: Any, vjp: Any, dtypes: Any = NUMERIC,
            infer: Any = infer_numeric, traits: tuple[str, ...] = ()) -> None:  # fmt: skip
    register(
        Op(
            name=name,
            summary=summary,
            infer=infer,
            reference=reference,
            vjp=vjp,
            lower=Pointwise(),
            samples=lambda: pairs(dtypes),
            source=_STANDARD,
            traits=frozenset(("elementwise", *traits)),
        )
    )


_binary("add", "x1 + x2", np.add, lambda c, ct: (ct, ct), traits=("commutative",))
_binary("subtract", "x1 - x2", np.subtract, lambda c, ct: (ct, -ct))
_binary(
    "multiply",
    "x1 * x2",
    np.multiply,
    lambda c, ct: (ct * c.operands[1], ct * c.operands[0]),
    traits=("commutative",),
)
_binary(
    "divide",
    "x1 / x2",
    np.divide,
    # d(x1/x2)/dx2 = -x1/x2**2, written with the result so that no overflow of x2**2 matters.
    lambda c, ct: (ct / c.operands[1], -(ct / c.operands[1]) * c.results[0]),
    dtypes=FLOATS,
    infer=infer_floating,
)
register(
    Op(
        name="negative",
        summary="-x",
        infer=infer_numeric,
        reference=np.negative,
        vjp=lambda c, ct: (-ct,),
        lower=Pointwise(),
        samples=lambda: [Sample((a,)) for a, _ in (s.operands for s in pairs(NUMERIC))],
        source=_STANDARD,
        traits=frozenset(("elementwise",)),
    )
)


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
        a, b = promoted(a.astype("float32"), b.astype("float32"))
    return apply("divide", a, b)


@method("__neg__")
def negative(x: Any, /) -> Tensor:
    """`-x`, element by element. Numbers only; unsigned integers wrap."""
    return apply("negative", *promoted(x))


method("__radd__")(lambda self, other: add(other, self))
method("__rsub__")(lambda self, other: subtract(other, self))
method("__rmul__")(lambda self, other: multiply(other, self))
method("__rtruediv__")(lambda self, other: divide(other, self))
