"""Reductions: sum, prod, max, min, any, all, mean, var, std and their kin."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, Shape, as_dim, is_index, product
from staticgrad.ir.dtype import DType, bool_, float32, int64, integer_range, uint64
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    ShapeError,
    StaticgradError,
)
from staticgrad.ir.loc import current_locs, locs_text
from staticgrad.ir.types import TensorType
from staticgrad.kernels.ir import Index, cast

from .convert import as_tensor, astype, constant_array
from .lowering import Expand, Generate, Reduction
from .registry import (
    Attrs,
    JvpContext,
    NotBatchable,
    NotDifferentiable,
    Op,
    Sample,
    Tolerance,
    Types,
    apply,
    register,
)
from .rules import batch_axes, jvp_linear
from .samples import FLOATS, NUMERIC, random_array
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, statistical functions"
_UTILITY = "Python array API standard 2023.12, utility functions"


def at_user_line(error: StaticgradError) -> StaticgradError:
    """The error with the user's line, as `make` adds it to what an `infer` raises."""
    locs = current_locs()
    where = f"\n  at {locs_text(locs)}" if locs else ""
    located = type(error)(f"{error}{where}")
    located.located = bool(locs)  # type: ignore[attr-defined]
    return located


def normalize_axes(axis: Any, ndim: int, what: str) -> tuple[int, ...]:
    """An `axis` argument (None, int or tuple of ints, negatives from the end) as sorted axes."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    found = []
    for a in axes:
        if not is_index(a):
            raise at_user_line(ArgumentTypeError(f"{what}: an axis is an int, got {a!r}"))
        at = a.__index__()
        if not -ndim <= at < ndim:
            raise at_user_line(
                ShapeError(f"{what}: axis {at} is out of range for an array with {ndim} dims")
            )
        found.append(at % ndim)
    if len(set(found)) != len(found):
        raise at_user_line(ShapeError(f"{what}: an axis is given twice: {axis}"))
    return tuple(sorted(found))


def reduced_shape(shape: Shape, axes: tuple[int, ...], keepdims: bool) -> Shape:
    """`shape` without `axes`, or with 1 in their place."""
    result: list[DimLike] = []
    for i, d in enumerate(shape):
        if i not in axes:
            result.append(d)
        elif keepdims:
            result.append(1)
    return tuple(result)


def infer_reduction(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    return (TensorType(x.dtype, reduced_shape(x.shape, attrs["axes"], attrs["keepdims"])),)


def _infer_numeric(types: Types, attrs: Attrs) -> Types:
    if types[0].dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {types[0]}")
    return infer_reduction(types, attrs)


def infer_floating(types: Types, attrs: Attrs) -> Types:
    if not types[0].dtype.is_float:
        raise DTypeError(f"expected a floating dtype, got {types[0]}; convert with .astype first")
    return infer_reduction(types, attrs)


def require_elements(x: TensorType, axes: tuple[int, ...], what: str) -> None:
    """Refuses what is known at declaration to have no answer: the extremum of no elements."""
    for a in axes:
        if isinstance(x.shape[a], int) and x.shape[a] == 0:
            raise ShapeError(f"{what} of no elements is not defined: axis {a} of {x} has size 0")


def restore_axes(x: Tensor, c: Any) -> Tensor:
    """A reduction's result or cotangent with the reduced axes as dims of 1, for broadcasting."""
    from .shape import reshape

    if c.attrs["keepdims"]:
        return x
    return reshape(x, reduced_shape(c.operands[0].shape, c.attrs["axes"], True))


def drop_axes(x: Tensor, attrs: Attrs) -> Tensor:
    """A result that was built with the reduced axes as dims of 1, in the shape that is asked."""
    from .shape import reshape

    if attrs["keepdims"]:
        return x
    return reshape(x, reduced_shape(x.shape, attrs["axes"], False))


def _vjp_sum(c: Any, ct: Tensor) -> tuple[Tensor]:
    from .shape import broadcast_to

    return (broadcast_to(restore_axes(ct, c), c.operands[0].shape),)


def _reference_sum(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def reduction_samples(dtypes: tuple[str, ...]) -> list[Sample]:
    """All axes, some, none, the first, the last; zero sizes; 0-d."""
    found = [
        Sample((random_array((5, 33), d, 1),), {"axes": (1,), "keepdims": False}) for d in dtypes
    ]
    wide = "float64" if "float64" in dtypes else dtypes[0]
    for shape, axes in (
        ((), ()), ((7,), (0,)), ((5, 33), (0,)), ((5, 33), (0, 1)), ((2, 3, 19), (1,)),
        ((2, 3, 19), (0, 2)), ((2, 3, 19), ()), ((3, 300), (1,)), ((300, 3), (0,)),
    ):  # fmt: skip
        for keepdims in (False, True):
            attrs = {"axes": axes, "keepdims": keepdims}
            found.append(Sample((random_array(shape, wide, 2),), attrs))
    return found


register(
    Op(
        name="sum",
        summary="the sum over axes; of nothing 0",
        infer=_infer_numeric,
        reference=_reference_sum,
        vjp=_vjp_sum,
        jvp=jvp_linear,
        batch=batch_axes("axes"),
        lower=Reduction("sum"),
        samples=lambda: [
            *reduction_samples(NUMERIC),
            Sample((np.zeros((3, 0), "float64"),), {"axes": (1,), "keepdims": False}),
        ],
        source=_STANDARD,
        # Both sums round; cancellation makes the relative error of a sum of both signs larger.
        tolerance=Tolerance(1e-4, 1e-11),
    )
)


def accumulation_dtype(given: DType) -> DType:
    """The dtype in which `sum` and `prod` of this one are taken unless the caller says: small
    integers widen to int64 or uint64, as the standard has it."""
    if given.is_float:
        return given
    return uint64 if given.kind == "u" else int64


@method("sum")
def sum(x: Any, /, axis: Any = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (default: all). Small integers and bools are summed in 64 bits.

    x: [..]; the summed dims vanish, or stay as 1 with `keepdims`. Of zero elements: 0.
    """
    x = as_tensor(x, "sum")
    x = astype(x, accumulation_dtype(x.dtype) if dtype is None else as_dtype(dtype))
    return apply("sum", x, axes=normalize_axes(axis, x.ndim, "sum"), keepdims=bool(keepdims))


def _others(x: Tensor, axes: tuple[int, ...]) -> Tensor | None:
    """For each element the product over `axes` of all others, dims of 1 kept where they allow it.

    By exclusive products from both sides, not by division: right where elements are zero, and
    differentiable again by the rule of `cumulative_prod`.
    """
    from .cumulative import exclusive_prod

    if not axes:
        return None
    *rest, last = axes
    beside = exclusive_prod(x, last, reverse=False) * exclusive_prod(x, last, reverse=True)
    if not rest:
        return beside
    farther = _others(prod(x, axis=last, keepdims=True, dtype=x.dtype), tuple(rest))
    return beside * farther


def _vjp_prod(c: Any, ct: Tensor) -> tuple[Tensor]:
    others = _others(c.operands[0], c.attrs["axes"])
    return (ct if others is None else restore_axes(ct, c) * others,)


def _jvp_prod(c: JvpContext, tangents: Any) -> Tensor:
    found: Tensor = tangents[0]
    others = _others(c.operands[0], c.attrs["axes"])
    return found if others is None else apply("sum", found * others, **c.attrs)


register(
    Op(
        name="prod",
        summary="the product over axes; of nothing 1",
        infer=_infer_numeric,
        reference=lambda x, axes, keepdims: np.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype),
        vjp=_vjp_prod,
        jvp=_jvp_prod,
        batch=batch_axes("axes"),
        lower=Reduction("prod"),
        samples=lambda: [
            *reduction_samples(NUMERIC),
            Sample((np.zeros((3, 0), "float64"),), {"axes": (1,), "keepdims": False}),
            Sample((np.array([[2.0, 0, 3], [0, 0, 1], [1, 2, 3]]),), {"axes": (1,),
                                                                     "keepdims": False}),
        ],
        source=_STANDARD,
        # n factors, each rounded: n/2 ULP; the longest sample has 300.
        tolerance=Tolerance(1e-4, 1e-12),
    )
)  # fmt: skip


@method("prod")
def prod(x: Any, /, axis: Any = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product over `axis` (default: all). Small integers and bools are taken in 64 bits.

    x: [..]; the reduced dims vanish, or stay as 1 with `keepdims`. Of zero elements: 1. The
    gradient is right where elements are zero.
    """
    x = as_tensor(x, "prod")
    x = astype(x, accumulation_dtype(x.dtype) if dtype is None else as_dtype(dtype))
    return apply("prod", x, axes=normalize_axes(axis, x.ndim, "prod"), keepdims=bool(keepdims))


def least_value(dtype: DType) -> float | int:
    """What `max` gives of no elements: -inf, or the least integer."""
    return -np.inf if dtype.is_float else integer_range(dtype)[0]


def greatest_value(dtype: DType) -> float | int:
    """What `min` gives of no elements: inf, or the greatest integer."""
    return np.inf if dtype.is_float else integer_range(dtype)[1]


def _vjp_extremum(c: Any, ct: Tensor) -> tuple[Tensor]:
    """Shared evenly by all elements that equal the extremum, as JAX and PyTorch's amax do."""
    return (restore_axes(ct, c) * _share(c),) if c.attrs["axes"] else (ct,)


def _jvp_extremum(c: JvpContext, tangents: Any) -> Tensor:
    """The mean of the tangents of all elements that equal the extremum."""
    found: Tensor = tangents[0]
    return apply("sum", found * _share(c), **c.attrs) if c.attrs["axes"] else found


def _share(c: Any) -> Tensor:
    """1 divided by the number of extrema where an element is one, else 0."""
    x = c.operands[0]
    hit = astype(apply("equal", x, restore_axes(c.results[0], c)), x.dtype)
    return hit / sum(hit, axis=c.attrs["axes"], keepdims=True)


def _extremum(name: str, empty: Any, reference: Any) -> None:
    def infer(types: Types, attrs: Attrs) -> Types:
        require_elements(types[0], attrs["axes"], f"the {name}imum")
        return _infer_numeric(types, attrs)

    def evaluate(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        initial = x.dtype.type(empty(as_dtype(x.dtype)))
        return reference(x, axis=axes, keepdims=keepdims, initial=initial)

    special = np.array([[1.0, np.nan, 2], [np.inf, 3, -np.inf], [-0.0, 0, -0.0]])
    register(
        Op(
            name=name,
            summary=f"the {name}imum over axes; NaN if any element is",
            infer=infer,
            reference=evaluate,
            vjp=_vjp_extremum,
            jvp=_jvp_extremum,
            batch=batch_axes("axes"),
            lower=Reduction(name),
            samples=lambda: [
                *reduction_samples(NUMERIC),
                Sample((special,), {"axes": (1,), "keepdims": False}, differentiable=False),
                Sample((special.astype("float32"),), {"axes": (0,), "keepdims": True},
                       differentiable=False),
                Sample((np.zeros((0, 3), "float32"),), {"axes": (1,), "keepdims": False}),
            ],
            source=_STANDARD,
        )
    )  # fmt: skip


_extremum("max", least_value, np.max)
_extremum("min", greatest_value, np.min)


@method("max")
def max(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The maximum over `axis` (default: all); NaN if any element is NaN. Of bools: `any`.

    x: [..]; the reduced dims vanish, or stay as 1 with `keepdims`. The gradient is shared evenly
    by equal maxima. Raises ShapeError for an axis known to be empty; where a symbolic axis turns
    out empty, the result is -inf, of integers the dtype's least value.
    """
    x = as_tensor(x, "max")
    if x.dtype.kind == "b":
        return any(x, axis=axis, keepdims=keepdims)
    return apply("max", x, axes=normalize_axes(axis, x.ndim, "max"), keepdims=bool(keepdims))


@method("min")
def min(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The minimum over `axis` (default: all); NaN if any element is NaN. Of bools: `all`.

    x: [..]; the reduced dims vanish, or stay as 1 with `keepdims`. The gradient is shared evenly
    by equal minima. Raises ShapeError for an axis known to be empty; where a symbolic axis turns
    out empty, the result is inf, of integers the dtype's greatest value.
    """
    x = as_tensor(x, "min")
    if x.dtype.kind == "b":
        return all(x, axis=axis, keepdims=keepdims)
    return apply("min", x, axes=normalize_axes(axis, x.ndim, "min"), keepdims=bool(keepdims))


def _infer_logical(types: Types, attrs: Attrs) -> Types:
    if types[0].dtype.kind != "b":
        raise DTypeError(f"expected bools, got {types[0]}")
    return infer_reduction(types, attrs)


def _logical(name: str, summary: str, reference: Any) -> None:
    register(
        Op(
            name=name,
            summary=summary,
            infer=_infer_logical,
            reference=lambda x, axes, keepdims: reference(x, axis=axes, keepdims=keepdims),
            vjp=NotDifferentiable("bools have no gradient"),
            jvp=NotDifferentiable("bools have no gradient"),
            batch=batch_axes("axes"),
            lower=Reduction(name),
            samples=lambda: [
                *reduction_samples(("bool",)),
                Sample((np.zeros((3, 19), bool),), {"axes": (1,), "keepdims": False}),
                Sample((np.ones((3, 19), bool),), {"axes": (1,), "keepdims": False}),
                Sample((np.zeros((3, 0), bool),), {"axes": (1,), "keepdims": False}),
            ],
            source=_UTILITY,
        )
    )


_logical("any", "whether any element over axes is true; of nothing false", np.any)
_logical("all", "whether all elements over axes are true; of nothing true", np.all)


@method("any")
def any(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """Whether any element over `axis` (default: all) is true, i.e. not 0; NaN is true.

    x: [..] of any dtype -> bool. Of zero elements: False.
    """
    x = astype(as_tensor(x, "any"), bool_)
    return apply("any", x, axes=normalize_axes(axis, x.ndim, "any"), keepdims=bool(keepdims))


@method("all")
def all(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """Whether all elements over `axis` (default: all) are true, i.e. not 0; NaN is true.

    x: [..] of any dtype -> bool. Of zero elements: True.
    """
    x = astype(as_tensor(x, "all"), bool_)
    return apply("all", x, axes=normalize_axes(axis, x.ndim, "all"), keepdims=bool(keepdims))


def count_nonzero(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The number of elements over `axis` (default: all) that are not 0, as int64; NaN counts.

    Source: Python array API standard 2024.12.
    """
    x = astype(as_tensor(x, "count_nonzero"), bool_)
    return sum(x, axis=axis, keepdims=keepdims)


register(
    Op(
        name="dim_size",
        summary="a size known only at run time, as a number",
        infer=lambda types, attrs: (TensorType(attrs["dtype"], ()),),
        reference=lambda dim, dtype: np.asarray(dim, dtype=dtype.numpy),
        vjp=NotDifferentiable("a size has no operands"),
        jvp=NotDifferentiable("a size has no operands"),
        batch=NotBatchable("a size has no operands"),
        lower=Generate(lambda at, attrs, result, load: cast(Index(attrs["dim"]), result.dtype)),
        samples=lambda: [Sample((), {"dim": 7, "dtype": as_dtype(d)}) for d in NUMERIC],
        source="this project",
    )
)


def dim_size(dim: Any, dtype: Any = int64) -> Tensor:
    """A dim (an int, a name such as "N", or arithmetic on names) as a 0-d tensor of `dtype`.

    The names must be dims of an input of the program.
    """
    dim, dtype = as_dim(dim), as_dtype(dtype)
    if isinstance(dim, int):
        return constant_array(np.asarray(dim, dtype.numpy))
    return apply("dim_size", dim=dim, dtype=dtype)


def _count(x: Tensor, axes: tuple[int, ...], correction: float = 0.0) -> Tensor:
    """The number of elements over `axes` less a correction, at least 0, in x's dtype."""
    n = product(tuple(x.shape[a] for a in axes))
    if isinstance(n, int):
        left = n - correction
        return constant_array(np.asarray(left if left > 0 else 0, x.dtype.numpy))
    size = dim_size(n, x.dtype)
    if correction == 0:
        return size
    zero = constant_array(np.zeros((), x.dtype.numpy))
    return apply("maximum", size - float(correction), zero)


def _build_mean(operands: tuple[Any, ...], attrs: Attrs) -> Tensor:
    (x,) = operands
    total = apply("sum", x, axes=attrs["axes"], keepdims=attrs["keepdims"])
    return total / _count(x, attrs["axes"])


def _vjp_mean(c: Any, ct: Tensor) -> tuple[Tensor]:
    from .shape import broadcast_to

    x = c.operands[0]
    return (broadcast_to(restore_axes(ct / _count(x, c.attrs["axes"]), c), x.shape),)


def _jvp_mean(c: JvpContext, tangents: Any) -> Tensor:
    """sum(t / n), not sum(t) / n: of no elements 0, as it is the adjoint of the reverse rule."""
    x = c.operands[0]
    found: Tensor = apply("sum", tangents[0] / _count(x, c.attrs["axes"]), **c.attrs)
    return found


def _reference_mean(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    total = np.sum(x, axis=axes, keepdims=keepdims, dtype=np.float64)
    n = np.float64(np.prod([x.shape[a] for a in axes]))
    return np.asarray(total / n, dtype=x.dtype)


register(
    Op(
        name="mean",
        summary="the arithmetic mean over axes: sum(x) / n; of nothing NaN",
        infer=infer_floating,
        reference=_reference_mean,
        vjp=_vjp_mean,
        jvp=_jvp_mean,
        batch=batch_axes("axes"),
        lower=Expand(_build_mean),
        samples=lambda: [
            *reduction_samples(FLOATS),
            Sample(
                (np.zeros((3, 0), "float64"),),
                {"axes": (1,), "keepdims": False},
                differentiable=False,
            ),
        ],
        source=_STANDARD,
        tolerance=Tolerance(1e-4, 1e-11),  # as `sum`: cancellation
    )
)


def _floating(x: Any, what: str) -> Tensor:
    """`x`, converted to float32 where it is not floating."""
    x = as_tensor(x, what)
    return x if x.dtype.is_float else astype(x, float32)


@method("mean")
def mean(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over `axis` (default: all): `sum(x) / n`. Of zero elements: NaN.

    x: [..]; the reduced dims vanish, or stay as 1 with `keepdims`. Integers and bools are
    converted to float32.
    """
    x = _floating(x, "mean")
    return apply("mean", x, axes=normalize_axes(axis, x.ndim, "mean"), keepdims=bool(keepdims))


def _centred(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x - apply("mean", x, axes=axes, keepdims=True)


def _build_var(operands: tuple[Any, ...], attrs: Attrs) -> Tensor:
    (x,) = operands
    d = _centred(x, attrs["axes"])
    total = apply("sum", d * d, axes=attrs["axes"], keepdims=attrs["keepdims"])
    return total / _count(x, attrs["axes"], attrs["correction"])


def _vjp_var(c: Any, ct: Tensor) -> tuple[Tensor]:
    x, axes = c.operands[0], c.attrs["axes"]
    scale = restore_axes(ct, c) * 2.0 / _count(x, axes, c.attrs["correction"])
    return (scale * _centred(x, axes),)


def _slope_var(c: JvpContext, tangents: Any) -> Tensor:
    """Half of the variance's tangent: sum((x - mean) * t) / (n - correction)."""
    x, axes = c.operands[0], c.attrs["axes"]
    total = apply("sum", tangents[0] * _centred(x, axes), axes=axes, keepdims=c.attrs["keepdims"])
    return total / _count(x, axes, c.attrs["correction"])


def _jvp_var(c: JvpContext, tangents: Any) -> Tensor:
    return _slope_var(c, tangents) * 2.0


def _reference_var(x: Any, axes: tuple[int, ...], correction: float, keepdims: bool) -> Any:
    n = np.float64(np.prod([x.shape[a] for a in axes]))
    wide = x.astype(np.float64)
    squares = (wide - np.sum(wide, axis=axes, keepdims=True) / n) ** 2
    left = np.maximum(n - correction, 0.0)
    return np.asarray(np.sum(squares, axis=axes, keepdims=keepdims) / left, dtype=x.dtype)


def _vjp_std(c: Any, ct: Tensor) -> tuple[Tensor]:
    """d std / dx = (x - mean) / ((n - correction) * std); 0 where all elements are equal."""
    x, axes = c.operands[0], c.attrs["axes"]
    scale = restore_axes(_over_std(ct, c), c) / _count(x, axes, c.attrs["correction"])
    return (scale * _centred(x, axes),)


def _jvp_std(c: JvpContext, tangents: Any) -> Tensor:
    """The variance's tangent divided by 2 std; 0 where all elements are equal."""
    return _over_std(_slope_var(c, tangents), c)


def _over_std(v: Tensor, c: Any) -> Tensor:
    """`v` divided by the standard deviation; 0 where that is 0."""
    y = c.results[0]
    zero, one = (constant_array(np.asarray(v, y.dtype.numpy)) for v in (0, 1))
    flat = apply("equal", y, zero)
    return apply("where", flat, zero, v / apply("where", flat, one, y))


def _variance_samples() -> list[Sample]:
    found = []
    for s in reduction_samples(FLOATS):
        if s.operands[0].ndim and s.attrs["axes"]:
            for correction in (0.0, 1.0):
                found.append(Sample(s.operands, {**s.attrs, "correction": correction}))
    attrs = {"axes": (1,), "keepdims": False, "correction": 0.0}
    far = 1e4 + random_array((3, 100), "float64", 7)
    return [*found, Sample((far,), attrs), Sample((np.ones((2, 5)),), attrs, differentiable=False)]


register(
    Op(
        name="var",
        summary="the variance over axes, in two passes: sum((x - mean(x))**2) / (n - correction)",
        infer=infer_floating,
        reference=_reference_var,
        vjp=_vjp_var,
        jvp=_jvp_var,
        batch=batch_axes("axes"),
        lower=Expand(_build_var),
        samples=_variance_samples,
        source=_STANDARD,
        # The mean's rounding is relative to |x|, the result to the spread of x: 1e4 in a sample.
        tolerance=Tolerance(1e-4, 1e-10),
    )
)
register(
    Op(
        name="std",
        summary="the standard deviation over axes: sqrt(var(x))",
        infer=infer_floating,
        reference=lambda x, axes, correction, keepdims: np.asarray(
            np.sqrt(_reference_var(x.astype(np.float64), axes, correction, keepdims)), x.dtype
        ),
        vjp=_vjp_std,
        jvp=_jvp_std,
        batch=batch_axes("axes"),
        lower=Expand(lambda operands, attrs: apply("sqrt", _build_var(operands, attrs))),
        samples=_variance_samples,
        source=_STANDARD,
        tolerance=Tolerance(1e-4, 1e-10),  # as `var`
    )
)


def _correction(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise at_user_line(ArgumentTypeError(f"{what}: the correction is a number, got {value!r}"))
    if value != value or value < 0:
        raise at_user_line(
            ArgumentError(f"{what}: the correction can't be negative or NaN, got {value!r}")
        )
    return float(value)


@method("var")
def var(x: Any, /, axis: Any = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The variance over `axis` (default: all): `sum((x - mean(x))**2) / (n - correction)`.

    `correction` 0 is the variance of the elements, 1 the unbiased estimate from a sample. Taken in
    two passes, so a mean far from 0 costs no digits. n - correction at or below 0 gives inf or NaN.
    """
    x = _floating(x, "var")
    return apply("var", x, axes=normalize_axes(axis, x.ndim, "var"),
                 correction=_correction(correction, "var"), keepdims=bool(keepdims))  # fmt: skip


@method("std")
def std(x: Any, /, axis: Any = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis` (default: all): `sqrt(var(x))`; see `var`.

    Its gradient is taken as 0 where all elements are equal (there it has a kink), as in PyTorch.
    """
    x = _floating(x, "std")
    return apply("std", x, axes=normalize_axes(axis, x.ndim, "std"),
                 correction=_correction(correction, "std"), keepdims=bool(keepdims))  # fmt: skip


__all__ = [
    "all",
    "any",
    "count_nonzero",
    "dim_size",
    "max",
    "mean",
    "min",
    "prod",
    "std",
    "sum",
    "var",
]
