"""Choices, element by element: where, maximum, minimum, clip; and stop_gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dtype import ALL, integer_range
from staticgrad.ir.errors import ArgumentError, DTypeError
from staticgrad.ir.types import TensorType
from staticgrad.kernels.ir import Call, call

from .convert import as_tensor, astype, constant_array, promoted
from .elementwise import elementwise, infer_numeric, types_text
from .lowering import Pointwise
from .registry import (
    Attrs,
    NotDifferentiable,
    Sample,
    Types,
    apply,
    broadcast_shapes,
    infer_elementwise,
)
from .samples import (
    FLOATS,
    NUMERIC,
    away_from_zero,
    pairs,
    random_array,
    singles,
    special_pairs,
    special_values,
)
from .tensor import Tensor, method

_ALL = tuple(str(d) for d in ALL)

# --- where ----------------------------------------------------------------------------------------


def _infer_where(types: Types, attrs: Attrs) -> Types:
    condition, x1, x2 = types
    if condition.dtype.kind != "b":
        raise DTypeError(f"the condition must be bool, got {condition}; write e.g. x != 0")
    if x1.dtype != x2.dtype:
        raise DTypeError(f"operands differ in dtype: {types_text((x1, x2))}")
    return (TensorType(x1.dtype, broadcast_shapes(condition.shape, x1.shape, x2.shape)),)


def _vjp_where(c: Any, ct: Tensor) -> tuple[Any, ...]:
    condition = c.operands[0]
    return (
        None,
        where(condition, ct, 0.0) if c.needed[1] else None,
        where(condition, 0.0, ct) if c.needed[2] else None,
    )


def _choices() -> list[Sample]:
    found = []
    for s in [*pairs(_ALL), *special_pairs(_ALL)]:
        a, b = s.operands
        condition = random_array(np.broadcast_shapes(a.shape, b.shape), "bool", 9)
        found.append(Sample((condition, a, b), differentiable=s.differentiable))
    a, b = random_array((3, 1), "float64", 1), random_array((), "float64", 2)
    return [*found, Sample((np.array([True, False, True, True]), a, b))]


elementwise(
    "where", "x1 where the condition holds, else x2", np.where, _vjp_where, _choices,
    infer=_infer_where,
    lower=Pointwise(lambda args, attrs, dtype: Call("select", tuple(args), dtype)),
    source="Python array API standard 2023.12, searching functions",
)  # fmt: skip


def where(condition: Any, x1: Any, x2: Any, /) -> Tensor:
    """`x1` where `condition` holds, else `x2`, element by element, all three broadcast.

    `condition` is bool; `x1` and `x2` are promoted. A NaN that is not chosen does not show, also
    not in the gradient of the other operand. Raises DTypeError for a condition that is not bool.
    """
    return apply("where", as_tensor(condition, "where"), *promoted(x1, x2))


# --- maximum, minimum, clip -----------------------------------------------------------------------


def _reference_maximum(x1: Any, x2: Any) -> Any:
    """The larger; NaN wins, and +0 is above -0, which NumPy leaves open."""
    tied = np.where(np.signbit(x1), x2, x1) if x1.dtype.kind == "f" else x1
    return np.where(x1 == x2, tied, np.maximum(x1, x2))


def _reference_minimum(x1: Any, x2: Any) -> Any:
    tied = np.where(np.signbit(x1), x1, x2) if x1.dtype.kind == "f" else x1
    return np.where(x1 == x2, tied, np.minimum(x1, x2))


def _shares(ct: Any, loses: Tensor, ties: Tensor) -> Tensor:
    """The operand that loses gets nothing; equal ones get half each, as in PyTorch and JAX."""
    return where(loses, 0.0, where(ties, ct * 0.5, ct))


def _vjp_maximum(c: Any, ct: Tensor) -> tuple[Tensor, Tensor]:
    x1, x2 = c.operands
    ties = x1 == x2
    return _shares(ct, x1 < x2, ties), _shares(ct, x1 > x2, ties)


def _vjp_minimum(c: Any, ct: Tensor) -> tuple[Tensor, Tensor]:
    x1, x2 = c.operands
    ties = x1 == x2
    return _shares(ct, x1 > x2, ties), _shares(ct, x1 < x2, ties)


def _extrema() -> list[Sample]:
    """Floats that differ by 0.3 and more: off the kink."""
    found = [s for s in pairs(NUMERIC) if s.operands[0].dtype.kind != "f"]
    for d in FLOATS:
        x = random_array((5, 33), d, 3)
        found.append(Sample((x, x + away_from_zero((5, 33), d, 4))))
    x = away_from_zero((2, 3, 1), "float64", 5)
    wide = (np.concatenate([x, -x], axis=-1), np.zeros((3, 1)))
    return [*found, Sample(wide), *special_pairs(NUMERIC)]


elementwise(
    "maximum", "the larger of x1 and x2; NaN if either is", _reference_maximum, _vjp_maximum,
    _extrema, infer=infer_numeric, traits=("commutative",),
)  # fmt: skip
elementwise(
    "minimum", "the smaller of x1 and x2; NaN if either is", _reference_minimum, _vjp_minimum,
    _extrema, infer=infer_numeric, traits=("commutative",),
)  # fmt: skip


@method("maximum")
def maximum(x1: Any, x2: Any, /) -> Tensor:
    """The larger of `x1` and `x2`, element by element, broadcast and promoted. Numbers only.

    NaN where either is NaN; +0 is above -0. Where the two are equal, each gets half the gradient.
    """
    return apply("maximum", *promoted(x1, x2))


@method("minimum")
def minimum(x1: Any, x2: Any, /) -> Tensor:
    """The smaller of `x1` and `x2`, element by element, broadcast and promoted. Numbers only.

    NaN where either is NaN; -0 is below +0. Where the two are equal, each gets half the gradient.
    """
    return apply("minimum", *promoted(x1, x2))


def _vjp_clip(c: Any, ct: Tensor) -> tuple[Any, ...]:
    """To whichever operand was chosen; to x where it touches a bound, as in PyTorch's clamp."""
    x, low, high = c.operands
    return (
        where((x >= low) & (x <= high), ct, 0.0) if c.needed[0] else None,
        where((x < low) & (low <= high), ct, 0.0) if c.needed[1] else None,
        where((x > high) | (low > high), ct, 0.0) if c.needed[2] else None,
    )


def _clipped() -> list[Sample]:
    found = []
    for d in NUMERIC:
        bounds = (np.array(2, d), np.array(5, d)) if d not in FLOATS else (
            np.array(-0.7, d), np.array(0.6, d))  # fmt: skip
        found.append(Sample((random_array((5, 33), d, 3), *bounds)))
        found.append(Sample((special_values(d), *bounds), differentiable=False))
    low, high = random_array((3, 1), "float64", 4), random_array((7,), "float64", 5)
    x = random_array((2, 1, 7), "float64", 6)
    return [*found, Sample((x, low, high)), Sample((x[:0], low, high))]


elementwise(
    "clip", "min(max(x, low), high)",
    lambda x, low, high: _reference_minimum(_reference_maximum(x, low), high),
    _vjp_clip, _clipped, infer=infer_numeric,
    lower=Pointwise(
        lambda args, attrs, dtype: call("minimum", call("maximum", args[0], args[1]), args[2])
    ),
)  # fmt: skip


def _bound(x: Tensor, value: Any, upper: bool) -> Tensor:
    """A bound as an operand of x's dtype; None becomes the end of its range."""
    if value is None:
        ends = (-np.inf, np.inf) if x.dtype.is_float else integer_range(x.dtype)
        return constant_array(np.asarray(ends[upper], x.dtype.numpy))
    common, bound = promoted(x, value)
    if common.dtype != x.dtype and not (x.dtype.is_float and bound.dtype.is_float):
        raise DTypeError(
            f"clip: a bound of {bound.dtype!s} for x of {x.dtype!s}, whose dtype the result has; "
            "convert one of them with .astype(...) first"
        )
    return astype(bound, x.dtype)


@method("clip")
def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """`x` held between `min` and `max`, element by element, broadcast; of x's dtype.

    A bound of None is none. Where `min > max` the result is `max`; NaN in any operand gives NaN.
    The gradient passes to x where min <= x <= max, else to the bound. Raises DTypeError for
    floating bounds of an integer x.
    """
    (x,) = promoted(x)
    if x.dtype.kind == "b":
        raise DTypeError(f"clip: expected numbers, got {x.type}")
    if min is None and max is None:
        return x
    return apply("clip", x, _bound(x, min, False), _bound(x, max, True))


@method("clamp")
def clamp(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """PyTorch's name of `clip`; at least one bound must be given."""
    if min is None and max is None:
        raise ArgumentError("clamp: at least one of min and max must be given")
    return clip(x, min, max)


# --- stop_gradient --------------------------------------------------------------------------------

elementwise(
    "stop_gradient", "x, through which no gradient passes", lambda x: x,
    NotDifferentiable("stop_gradient asks for it"), lambda: singles(_ALL),
    infer=lambda types, attrs: (infer_elementwise(types),),
    lower=Pointwise(lambda args, attrs, dtype: args[0]), source="JAX's lax.stop_gradient",
)  # fmt: skip


@method("detach")
def stop_gradient(x: Any, /) -> Tensor:
    """`x` itself as a value, a constant to differentiation. All dtypes."""
    return apply("stop_gradient", as_tensor(x, "stop_gradient"))


__all__ = ["clamp", "clip", "maximum", "minimum", "stop_gradient", "where"]
