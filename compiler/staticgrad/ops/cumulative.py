"""Running sums and products along an axis, and the recurrence that differentiates them.

The three records are closed under differentiation: a running sum's cotangent is a running sum from
the other end, a running product's and a recurrence's are recurrences from the other end. None
divides, so all are right where elements are zero, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, Shape, dim_min, floor_div, product
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import Array, KernelBuilder
from staticgrad.kernels.ir import Expr

from .convert import as_tensor, astype, constant_array, promoted
from .lowering import Custom
from .reduction import accumulation_dtype, at_user_line, normalize_axes
from .registry import (
    Attrs,
    JvpContext,
    Op,
    Sample,
    Tolerance,
    Types,
    apply,
    infer_elementwise,
    register,
)
from .rules import batch_axes, jvp_linear
from .samples import NUMERIC, random_array
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12 and 2024.12, statistical functions"
CHUNK = 256  # columns to a thread's turn where lines run along the first axis: 1 KiB of float32
FEW_COLUMNS = 4  # below, vectors across columns would be mostly empty

# --- kernels along one axis -----------------------------------------------------------------------

At = Callable[[DimLike], tuple[DimLike, DimLike, DimLike]]


def folded(array: Array, axis: int) -> Array:
    """The same memory seen as [outer, n, inner], with `axis` in the middle."""
    outer, inner = product(array.shape[:axis]), product(array.shape[axis + 1 :])
    return replace(array, shape=(outer, array.shape[axis], inner))


@contextmanager
def lines(k: KernelBuilder, shape: Shape, axis: int) -> Iterator[At]:
    """Loops over every line along `axis`; yields `at(j) -> indices` into `folded` arrays.

    Lines along the last axis are taken one by one, others side by side in vector lanes.
    """
    outer, inner = product(shape[:axis]), product(shape[axis + 1 :])
    if isinstance(inner, int) and inner == 1:
        with k.parallel(outer) as a:
            yield lambda j: (a, j, 0)
    elif isinstance(inner, int) and inner < FEW_COLUMNS:
        with k.parallel(outer) as a, k.loop(inner) as b:
            yield lambda j: (a, j, b)
    elif isinstance(outer, int) and outer == 1:
        with k.parallel(floor_div(inner + (CHUNK - 1), CHUNK)) as c:
            first = c * CHUNK
            with k.vector(dim_min(CHUNK, inner - first)) as b:
                yield lambda j: (0, j, first + b)
    else:
        with k.parallel(outer) as a, k.vector(inner) as b:
            yield lambda j: (a, j, b)


def _place(step: DimLike, n: DimLike, reverse: bool) -> DimLike:
    return n - 1 - step if reverse else step


# --- running sums and products --------------------------------------------------------------------


def _emit_scan(op: str, k: KernelBuilder) -> None:
    axis, reverse, exclusive = (k.attrs[name] for name in ("axis", "reverse", "exclusive"))
    shape = k.operands[0].shape
    n = shape[axis]
    x, y = folded(k.operands[0], axis), folded(k.results[0], axis)
    identity: float = 1
    if op == "add":
        # -0.0 + x is x for every x, -0.0 too; an exclusive sum shows its start, which is +0.0.
        identity = -0.0 if x.dtype.is_float and not exclusive else 0
    with (
        lines(k, shape, axis) as at,
        k.loop(n, total=k.literal(identity, x.dtype)) as step,
    ):
        place = at(_place(step, n, reverse))
        before = k.ref("total")
        after = k.let(k.call(op, before, k.load(x, place)))
        k.next("total", after)
        k.store(y, place, before if exclusive else after)


def _reference_scan(accumulate: Any, identity: int) -> Any:
    def reference(x: Any, axis: int, reverse: bool, exclusive: bool) -> Any:
        z = np.flip(x, axis) if reverse else x
        z = accumulate(z, axis=axis, dtype=x.dtype)
        if exclusive:
            z = np.roll(z, 1, axis)
            z[(slice(None),) * axis + (slice(0, 1),)] = identity
        return np.ascontiguousarray(np.flip(z, axis)) if reverse else z

    return reference


def _infer_scan(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    if x.dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {x}")
    return types


def _vjp_cumulative_sum(c: Any, ct: Tensor) -> tuple[Tensor]:
    return (_scan("cumulative_sum", ct, c.attrs["axis"], not c.attrs["reverse"],
                  c.attrs["exclusive"]),)  # fmt: skip


def _vjp_cumulative_prod(c: Any, ct: Tensor) -> tuple[Tensor]:
    """y[t] = x[t] y[t-1]: with g[t] = ct[t] + x[t+1] g[t+1], dx[t] = g[t] y[t-1].

    Exclusive, y[t] = x[t-1] y[t-1]: g[t] = ct[t] + x[t] g[t+1] and dx[t] = g[t+1] y[t].
    """
    (x,), axis, reverse = c.operands, c.attrs["axis"], c.attrs["reverse"]
    exclusive = c.attrs["exclusive"]
    g = _recurrence(x, ct, axis, not reverse, shifted=not exclusive)
    if exclusive:
        return (_shift(g, axis, 1 if reverse else -1) * c.results[0],)
    return (g * exclusive_prod(x, axis, reverse),)


def _jvp_cumulative_prod(c: JvpContext, tangents: Any) -> Tensor:
    """y[t] = x[t] y[t-1]: dy[t] = x[t] dy[t-1] + dx[t] y[t-1].

    Exclusive, y[t] = x[t-1] y[t-1]: dy[t] = x[t-1] dy[t-1] + dx[t-1] y[t-1].
    """
    (x,), (dx,), axis, reverse = c.operands, tangents, c.attrs["axis"], c.attrs["reverse"]
    if c.attrs["exclusive"]:
        moved = _shift(dx * c.results[0], axis, -1 if reverse else 1)
        return _recurrence(x, moved, axis, reverse, shifted=True)
    return _recurrence(x, dx * exclusive_prod(x, axis, reverse), axis, reverse, shifted=False)


def _scan_samples(dtypes: tuple[str, ...]) -> list[Sample]:
    base = {"axis": 1, "reverse": False, "exclusive": False}
    found = [Sample((random_array((5, 33), d, 1),), base) for d in dtypes]
    for shape, axis in (
        ((7,), 0), ((1,), 0), ((0,), 0), ((3, 0), 1), ((0, 3), 1), ((19, 5), 0), ((300, 2), 0),
        ((2, 9, 19), 1), ((2, 9, 3), 1), ((3, 2, 40), 2),
    ):  # fmt: skip
        for reverse, exclusive in ((False, False), (True, False), (False, True), (True, True)):
            attrs = {"axis": axis, "reverse": reverse, "exclusive": exclusive}
            found.append(Sample((random_array(shape, "float64", 2),), attrs))
    with_zeros = np.array([[2.0, 0, 3, 0], [0, 1, 1, 2], [1, 2, 3, 0]])
    return [*found, Sample((with_zeros,), base), Sample((with_zeros,), {**base, "exclusive": True})]


for _name, _op, _summary, _vjp, _jvp, _reference in (
    (
        "cumulative_sum",
        "add",
        "running sums along an axis",
        _vjp_cumulative_sum,
        jvp_linear,
        _reference_scan(np.cumsum, 0),
    ),
    (
        "cumulative_prod",
        "multiply",
        "running products along an axis",
        _vjp_cumulative_prod,
        _jvp_cumulative_prod,
        _reference_scan(np.cumprod, 1),
    ),
):
    register(
        Op(
            name=_name,
            summary=f"{_summary}; exclusive: of the elements before; reverse: from the end",
            infer=_infer_scan,
            reference=_reference,
            vjp=_vjp,
            jvp=_jvp,
            batch=batch_axes("axis"),
            lower=Custom(lambda k, op=_op: _emit_scan(op, k)),  # type: ignore[misc]
            samples=lambda: _scan_samples(NUMERIC),
            source=_STANDARD,
        )
    )


def _scan(name: str, x: Tensor, axis: int, reverse: bool, exclusive: bool) -> Tensor:
    result: Tensor = apply(name, x, axis=axis, reverse=reverse, exclusive=exclusive)
    return result


def exclusive_prod(x: Tensor, axis: int, reverse: bool) -> Tensor:
    """For each element the product of those before it along `axis` (`reverse`: after it)."""
    return _scan("cumulative_prod", x, axis, reverse, True)


def one_axis(axis: Any, x: Tensor, what: str) -> int:
    """The `axis` argument of a function along one axis; None is the only axis of a 1-D array."""
    if axis is None:
        if x.ndim != 1:
            raise at_user_line(ShapeError(f"{what}: an axis is needed for {x.type}"))
        return 0
    if isinstance(axis, (tuple, list)):
        raise at_user_line(ArgumentTypeError(f"{what}: expected one axis, got {axis!r}"))
    (found,) = normalize_axes(axis, x.ndim, what)
    return found


def _cumulative(name: str, x: Any, axis: Any, dtype: Any, initial: int | None) -> Tensor:
    from .joining import concat
    from .shape import broadcast_to

    x = as_tensor(x, name)
    x = astype(x, accumulation_dtype(x.dtype) if dtype is None else as_dtype(dtype))
    at = one_axis(axis, x, name)
    y = _scan(name, x, at, False, False)
    if initial is None:
        return y
    shape = (*x.shape[:at], 1, *x.shape[at + 1 :])
    first = broadcast_to(constant_array(np.asarray(initial, x.dtype.numpy)), shape)
    result: Tensor = concat([first, y], axis=at)
    return result


@method("cumsum")
def cumulative_sum(
    x: Any, /, axis: Any = None, *, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """Running sums along `axis`, in order: `y[i] = x[0] + ... + x[i]`.

    x: [.., n, ..] -> the same shape, or n + 1 with `include_initial`, which puts a 0 first.
    `axis` may be left out for 1-D arrays. Small integers and bools are summed in 64 bits.
    """
    return _cumulative("cumulative_sum", x, axis, dtype, 0 if include_initial else None)


@method("cumprod")
def cumulative_prod(
    x: Any, /, axis: Any = None, *, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """Running products along `axis`, in order: `y[i] = x[0] * ... * x[i]`.

    x: [.., n, ..] -> the same shape, or n + 1 with `include_initial`, which puts a 1 first.
    `axis` may be left out for 1-D arrays. Small integers and bools are taken in 64 bits. The
    gradient is right where elements are zero.
    """
    return _cumulative("cumulative_prod", x, axis, dtype, 1 if include_initial else None)


# --- first-order linear recurrences ---------------------------------------------------------------


def _emit_recurrence(k: KernelBuilder) -> None:
    axis, reverse, shifted = (k.attrs[name] for name in ("axis", "reverse", "shifted"))
    shape = k.results[0].shape
    n = shape[axis]
    a, b, y = (folded(z, axis) for z in (*k.operands, *k.results))
    with (
        lines(k, shape, axis) as at,
        k.loop(n, h=k.literal(0, y.dtype)) as step,
    ):
        place = at(_place(step, n, reverse))
        # Shifted, the carry is a[t-1] h[t-1] already: nothing is read outside of the line.
        arriving: Expr = k.ref("h")
        if not shifted:
            arriving = k.call("multiply", k.load(a, place), arriving)
        h = k.let(k.call("add", arriving, k.load(b, place)))
        k.next("h", k.call("multiply", k.load(a, place), h) if shifted else h)
        k.store(y, place, h)


def _reference_recurrence(a: Any, b: Any, axis: int, reverse: bool, shifted: bool) -> Any:
    a, b = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0)
    y = np.empty_like(b)
    carried = np.zeros(b.shape[1:], b.dtype)
    order = range(len(b))
    for t in reversed(order) if reverse else order:
        y[t] = (carried if shifted else a[t] * carried) + b[t]
        carried = a[t] * y[t] if shifted else y[t]
    return np.ascontiguousarray(np.moveaxis(y, 0, axis))


def _infer_recurrence(types: Types, attrs: Attrs) -> Types:
    result = infer_elementwise(types)
    if not result.dtype.is_float:
        raise DTypeError(f"expected a floating dtype, got {types[0]}; convert with .astype first")
    if types[0].shape != types[1].shape:
        raise ShapeError(f"expected operands of one shape, got {types[0]} and {types[1]}")
    return (result,)


def _vjp_recurrence(c: Any, ct: Tensor) -> tuple[Tensor, Tensor]:
    """h[t] = a[t] h[t-1] + b[t]: db[t] = g[t] = ct[t] + a[t+1] g[t+1], da[t] = g[t] h[t-1].

    Shifted, h[t] = a[t-1] h[t-1] + b[t]: g[t] = ct[t] + a[t] g[t+1], da[t] = g[t+1] h[t].
    """
    axis, reverse, shifted = (c.attrs[name] for name in ("axis", "reverse", "shifted"))
    g = _recurrence(c.operands[0], ct, axis, not reverse, not shifted)
    (h,) = c.results
    if shifted:
        return _shift(g, axis, 1 if reverse else -1) * h, g
    return g * _shift(h, axis, -1 if reverse else 1), g


def _jvp_recurrence(c: JvpContext, tangents: Any) -> Tensor:
    """dh[t] = a[t] dh[t-1] + da[t] h[t-1] + db[t]: the same recurrence, of another b.

    Shifted: dh[t] = a[t-1] dh[t-1] + da[t-1] h[t-1] + db[t].
    """
    axis, reverse, shifted = (c.attrs[name] for name in ("axis", "reverse", "shifted"))
    (a, _), (h,), (da, db) = c.operands, c.results, tangents
    by = -1 if reverse else 1
    arriving = db
    if da is not None:
        moved = _shift(da * h, axis, by) if shifted else da * _shift(h, axis, by)
        arriving = moved if db is None else moved + db
    return _recurrence(a, arriving, axis, reverse, shifted)


def _recurrence_samples() -> list[Sample]:
    found = []
    for dtype, shape, axis in (
        ("float32", (5, 33), 1), ("float64", (7,), 0), ("float64", (19, 5), 0),
        ("float64", (2, 9, 19), 1), ("float64", (0, 3), 0), ("float64", (3, 0), 0),
    ):  # fmt: skip
        for reverse, shifted in ((False, False), (True, False), (False, True), (True, True)):
            operands = random_array(shape, dtype, 3), random_array(shape, dtype, 4)
            attrs = {"axis": axis, "reverse": reverse, "shifted": shifted}
            found.append(Sample(operands, attrs))
    return found


register(
    Op(
        name="linear_recurrence",
        summary="h[t] = a[t] * h[t-1] + b[t] along an axis, from h = 0; shifted: a[t-1] * h[t-1]",
        infer=_infer_recurrence,
        reference=_reference_recurrence,
        vjp=_vjp_recurrence,
        jvp=_jvp_recurrence,
        batch=batch_axes("axis"),
        lower=Custom(_emit_recurrence),
        samples=_recurrence_samples,
        source="this project; as an associative scan: Blelloch 1990, Prefix Sums and Their "
        "Applications, section 1.4",
        tolerance=Tolerance(1e-4, 1e-11),  # sums of both signs cancel
    )
)


def _recurrence(a: Tensor, b: Tensor, axis: int, reverse: bool, shifted: bool) -> Tensor:
    result: Tensor = apply("linear_recurrence", a, b, axis=axis, reverse=reverse, shifted=shifted)
    return result


def linear_recurrence(a: Any, b: Any, /, *, axis: int = -1, reverse: bool = False) -> Tensor:
    """`h[t] = a[t] * h[t-1] + b[t]` along `axis`, with h = 0 before the first step.

    a, b: [.., T, ..], floating, broadcast against each other -> h of the common shape. `reverse`
    runs from the end: `h[t] = a[t] * h[t+1] + b[t]`. In order, without fused multiply-add.
    """
    from .registry import broadcast_shapes
    from .shape import broadcast_to

    a, b = promoted(a, b)
    shape = broadcast_shapes(a.shape, b.shape)
    a, b = broadcast_to(a, shape), broadcast_to(b, shape)
    return _recurrence(a, b, one_axis(axis, b, "linear_recurrence"), bool(reverse), False)


def _emit_shift(k: KernelBuilder) -> None:
    axis, by = k.attrs["axis"], k.attrs["by"]
    shape = k.operands[0].shape
    n, inner = shape[axis], product(shape[axis + 1 :])
    x, y = folded(k.operands[0], axis), folded(k.results[0], axis)

    def move(a: DimLike, j: DimLike, b: DimLike) -> None:
        source = k.index(j - by)
        low = k.call("greater_equal", source, k.index(0), dtype=as_dtype("bool"))
        high = k.call("less", source, k.index(n), dtype=as_dtype("bool"))
        inside = k.call("logical_and", low, high)
        k.store(y, (a, j, b), k.load(x, (a, j - by, b), guard=inside))

    with k.parallel(product(shape[:axis])) as a:
        if isinstance(inner, int) and inner == 1:
            with k.vector(n) as j:
                move(a, j, 0)
        else:
            with k.loop(n) as j, k.vector(inner) as b:
                move(a, j, b)


def _reference_shift(x: Any, axis: int, by: int) -> Any:
    y = np.zeros_like(x)
    head = (slice(None),) * axis
    size = x.shape[axis]
    by = max(-size, min(by, size))
    into = slice(by, None) if by >= 0 else slice(None, size + by)
    source = slice(None, size - by) if by >= 0 else slice(-by, None)
    y[(*head, into)] = x[(*head, source)]
    return y


def _infer_shift(types: Types, attrs: Attrs) -> tuple[TensorType]:
    return (types[0],)


register(
    Op(
        name="shift_axis",
        summary="y[t] = x[t - by] along an axis; zeros come in at the end that is left",
        infer=_infer_shift,
        reference=_reference_shift,
        vjp=lambda c, ct: (_shift(ct, c.attrs["axis"], -c.attrs["by"]),),
        jvp=jvp_linear,
        batch=batch_axes("axis"),
        lower=Custom(_emit_shift),
        samples=lambda: [
            Sample((random_array(shape, dtype, 5),), {"axis": axis, "by": by})
            for shape, axis, dtype in (
                ((5, 33), 1, "float32"), ((19, 5), 0, "float64"), ((1,), 0, "float64"),
                ((2, 0), 1, "float64"), ((2, 9, 19), 1, "float64"),
            )
            for by in (1, -1)
        ],
        source="this project",
    )
)  # fmt: skip


def _shift(x: Tensor, axis: int, by: int) -> Tensor:
    result: Tensor = apply("shift_axis", x, axis=axis, by=by)
    return result


__all__ = ["cumulative_prod", "cumulative_sum", "linear_recurrence"]
