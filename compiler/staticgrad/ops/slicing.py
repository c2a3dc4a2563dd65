"""Slices and their adjoint: `slice` reads every step-th element of a box, `pad` puts elements back.

The two records are each other's gradient, so they can be differentiated any number of times. Sizes
may be symbolic: what cannot be proved here to lie inside of the array is checked at bind time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from staticgrad.ir.dim import (
    Dim,
    DimCall,
    DimLike,
    Shape,
    as_dim,
    dim_max,
    dim_min,
    floor_div,
    is_index,
    modulo,
    shape_text,
)
from staticgrad.ir.dtype import DType, bool_, integer_range
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import Array, KernelBuilder
from staticgrad.kernels.ir import Expr

from .convert import as_tensor
from .lowering import Custom, Indices, View
from .registry import (
    Attrs,
    BatchContext,
    JvpContext,
    Op,
    Sample,
    Types,
    apply,
    register,
    require_equal,
)
from .rules import jvp_linear
from .samples import random_array
from .shape import axis_list
from .tensor import Tensor, method

CHUNK = 4096  # elements to a thread's turn where only one long axis is left

_FAR = 2**62

# --- proofs about sizes ---------------------------------------------------------------------------


def never_negative(d: DimLike, depth: int = 8) -> bool:
    """Can `d >= 0` be proved for all sizes? Names are sizes, so they are never negative.

    Calls of max, min and // that stand alone in a term are replaced by a bound (by both of their
    operands where the value may be either); what is left must be a sum of products of names.
    """
    if isinstance(d, int):
        return d >= 0
    for monomial, factor in d.terms:
        if len(monomial) == 1 and isinstance(monomial[0], DimCall) and depth:
            rest = d - Dim(((monomial, factor),))
            return _bounded(monomial[0], factor, rest, depth - 1)
    return all(
        factor > 0 and all(isinstance(a, str) for a in monomial) for monomial, factor in d.terms
    )


def _bounded(call: DimCall, factor: int, rest: DimLike, depth: int) -> bool:
    """Is `factor * call + rest >= 0`?"""
    left, right = call.left, call.right
    if call.op in ("max", "min"):
        # max(a, b) >= a and >= b: with a positive factor one of them is enough.
        either = any if (call.op == "max") == (factor > 0) else all
        return either(never_negative(rest + side * factor, depth) for side in (left, right))
    if isinstance(right, int) and right > 0:
        if call.op == "//":  # (a - b + 1) <= (a//b) * b <= a
            bound = left - (right - 1) if factor > 0 else left
            return never_negative(rest * right + bound * factor, depth)
        return never_negative(rest + (0 if factor > 0 else (right - 1) * factor), depth)
    return call.op == "%" and factor > 0 and never_negative(rest, depth)


def _clamped(d: DimLike) -> DimLike | None:
    """`e` of `max(e, 0)`."""
    if isinstance(d, Dim) and len(d.terms) == 1:
        (monomial, factor) = d.terms[0]
        call = monomial[0] if len(monomial) == 1 and factor == 1 else None
        if isinstance(call, DimCall) and call.op == "max" and 0 in (call.left, call.right):
            return call.left if call.right == 0 else call.right
    return None


def _if_positive(n: DimLike) -> DimLike:
    """What the extent `n` is where it is positive: `max(e, 0) -> e`, and with a step s
    `(max(e, 0) + s - 1)//s -> (e + s - 1)//s`."""
    inner = _clamped(n)
    if inner is not None:
        return inner
    if isinstance(n, Dim) and len(n.terms) == 1 and len(n.terms[0][0]) == 1:
        call, factor = n.terms[0][0][0], n.terms[0][1]
        if isinstance(call, DimCall) and call.op == "//" and factor == 1:
            constant = dict(call.left.terms).get((), 0) if isinstance(call.left, Dim) else 0
            inner = _clamped(call.left - constant)
            if inner is not None and isinstance(call.right, int) and constant < call.right:
                return floor_div(inner + constant, call.right)
    return n


def require_inside(start: DimLike, step: int, n: DimLike, size: DimLike, what: str) -> None:
    """Asks that n indices `start`, `start + step`, .. be inside of an axis of `size` elements."""
    if isinstance(n, int) and n == 0:
        return
    last = start + (_if_positive(n) - 1) * step
    low, high = (start, last) if step > 0 else (last, start)
    if isinstance(low, int) and low < 0:
        raise ShapeError(f"{what}: index {low} is out of range for an axis of size {size}")
    beyond = high - (size - 1)
    if isinstance(beyond, int) and beyond > 0:
        raise ShapeError(f"{what}: index {high} is out of range for an axis of size {size}")
    some = dim_min(n, 1)  # nothing is asked of an empty slice
    if not never_negative(low):
        require_equal(dim_min(low, 0) * some, 0, f"{what}: index {low} is out of range")
    if not never_negative(size - 1 - high):
        reached = dim_max(high + 1, size)
        require_equal(reached * some, size * some, f"{what}: index {high} is out of range")


# --- slice ----------------------------------------------------------------------------------------


def _infer_slice(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    start, step, shape = attrs["start"], attrs["step"], attrs["shape"]
    if not len(start) == len(step) == len(shape) == x.ndim:
        raise ShapeError(f"a slice of {x} needs {x.ndim} starts, steps and sizes")
    for axis, (i, s, n, size) in enumerate(zip(start, step, shape, x.shape)):
        if s == 0:
            raise ShapeError(f"axis {axis}: the step of a slice can't be 0")
        require_inside(i, s, n, size, f"axis {axis} of {x}")
    return (TensorType(x.dtype, shape),)


def _places(start: Iterable[int], step: Iterable[int], shape: Iterable[int]) -> Any:
    return np.ix_(*(i + s * np.arange(n) for i, s, n in zip(start, step, shape)))


def _index_slice(at: Indices, attrs: Attrs, x: TensorType, y: TensorType) -> Indices:
    return tuple(i + at_i * s for i, s, at_i in zip(attrs["start"], attrs["step"], at))


def unbox(
    y: Tensor, start: tuple[DimLike, ...], step: tuple[int, ...], shape: Shape
) -> Tensor:  # fmt: skip
    """Zeros of `shape` with `y` at the places of a slice: the adjoint of `slice`."""
    backwards = tuple(a for a, s in enumerate(step) if s < 0)
    if backwards:
        start = tuple(i + (n - 1) * s if s < 0 else i for i, s, n in zip(start, step, y.shape))
        y = flip(y, axis=backwards)
    return put(y, start, tuple(abs(s) for s in step), shape)


def _vjp_slice(c: Any, ct: Tensor) -> tuple[Tensor]:
    return (unbox(ct, c.attrs["start"], c.attrs["step"], c.operands[0].shape),)


def _batch_box(c: BatchContext) -> Tensor:
    """Of `slice` and of `pad`: the whole batch axis, in order."""
    boxes = {"start": (0, *c.attrs["start"]), "step": (1, *c.attrs["step"]),
             "shape": (c.size, *c.attrs["shape"])}  # fmt: skip
    found: Tensor = apply(c.node.op, c.operands[0], **{**c.attrs, **boxes})
    return found


def _slice_sample(shape: tuple[int, ...], dtype: str, *slices: tuple[int, int, int]) -> Sample:
    start, step, size = zip(*slices) if slices else ((), (), ())
    return Sample(
        (random_array(shape, dtype),),
        {"start": tuple(start), "step": tuple(step), "shape": tuple(size)},
    )


register(
    Op(
        name="slice",
        summary="y[i] = x[start + i*step] along every axis",
        infer=_infer_slice,
        reference=lambda x, start, step, shape: x[_places(start, step, shape)],
        vjp=_vjp_slice,
        jvp=jvp_linear,
        batch=_batch_box,
        lower=View(_index_slice),
        samples=lambda: [
            _slice_sample((5, 33), "float64", (1, 1, 3), (0, 1, 33)),
            _slice_sample((5, 33), "float32", (4, -1, 5), (32, -2, 17)),
            _slice_sample((5, 33), "float64", (0, 2, 3), (3, 7, 5)),
            _slice_sample((7,), "float64", (6, -1, 7)),
            _slice_sample((7,), "bool", (2, 1, 0)),
            _slice_sample((0, 3), "int32", (0, 1, 0), (1, 1, 2)),
            _slice_sample((2, 3, 17), "int8", (1, 1, 1), (2, -1, 3), (16, -1, 17)),
            _slice_sample((), "float64"),
        ],
        source="this project: NumPy's basic slicing with explicit sizes",
    )
)


def box(x: Tensor, start: Indices, step: tuple[int, ...], shape: Shape) -> Tensor:
    """The `slice` record; the tensor itself where everything is taken in order."""
    if shape == x.shape and all(s == 1 for s in step) and all(i == 0 for i in start):
        return x
    return apply("slice", x, start=start, step=step, shape=shape)


def narrow(x: Tensor, axis: int, start: DimLike, size: DimLike) -> Tensor:
    """`size` elements of one axis from `start` on."""
    starts = tuple(start if a == axis else 0 for a in range(x.ndim))
    shape = tuple(size if a == axis else d for a, d in enumerate(x.shape))
    return box(x, starts, (1,) * x.ndim, shape)


@method("flip")
def flip(x: Any, /, *, axis: Any = None) -> Tensor:
    """`x` with its elements in reverse order along `axis` (default: along all)."""
    x = as_tensor(x, "flip")
    axes = tuple(range(x.ndim)) if axis is None else axis_list(axis, x.ndim, "flip")
    start = tuple(d - 1 if a in axes else 0 for a, d in enumerate(x.shape))
    step = tuple(-1 if a in axes else 1 for a in range(x.ndim))
    return box(x, start, step, x.shape)


# --- pad ------------------------------------------------------------------------------------------


def _infer_pad(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    start, step, shape = attrs["start"], attrs["step"], attrs["shape"]
    if not len(start) == len(step) == len(shape) == x.ndim:
        raise ShapeError(f"padding of {x} needs {x.ndim} starts, steps and sizes")
    for axis, (i, s, n, size) in enumerate(zip(start, step, x.shape, shape)):
        if s < 1:
            raise ShapeError(f"axis {axis}: the step of a padding must be positive, got {s}")
        require_inside(i, s, n, size, f"axis {axis} of {shape_text(shape)}")
    return (TensorType(x.dtype, shape),)


def _reference_pad(x: Any, start: Any, step: Any, shape: Any, value: Any) -> Any:
    result = np.full(shape, value, dtype=x.dtype)
    result[_places(start, step, x.shape)] = x
    return result


def _vjp_pad(c: Any, ct: Tensor) -> tuple[Tensor]:
    return (box(ct, c.attrs["start"], c.attrs["step"], c.operands[0].shape),)


def _jvp_pad(c: JvpContext, tangents: Any) -> Tensor:
    return put(tangents[0], c.attrs["start"], c.attrs["step"], c.attrs["shape"])


Group = tuple[DimLike, DimLike, int, DimLike]  # n, start, step, size


def _groups(x: Shape, attrs: Attrs) -> list[Group]:
    """Axes merged where the result's memory allows it: what is not padded joins the axis before."""
    found: list[Group] = [(1, 0, 1, 1)]
    for n, start, step, size in zip(x, attrs["start"], attrs["step"], attrs["shape"]):
        whole = n == size and start == 0 and step == 1
        n0, start0, step0, size0 = found[-1]
        if whole and step0 == 1:
            found[-1] = (n0 * n, start0 * n, 1, size0 * n)
        else:
            found.append((n, start, step, size))
    return found if len(found) == 1 or found[0][3] != 1 else found[1:]


def _inside(k: KernelBuilder, at: DimLike, group: Group) -> tuple[Expr, DimLike]:
    """Whether the result's index `at` holds an element of the operand, and which one."""
    n, start, step, _ = group
    offset = dim_max(at - start, 0) if step > 1 else at - start
    low = k.call("greater_equal", k.index(at), k.index(start), dtype=bool_)
    high = k.call("less", k.index(at), k.index(start + n * step), dtype=bool_)
    found = k.call("logical_and", low, high)
    if step == 1:
        return found, offset
    on = k.call("equal", k.index(modulo(offset, step)), k.index(0), dtype=bool_)
    return k.call("logical_and", found, on), floor_div(offset, step)


def _emit_pad_row(
    k: KernelBuilder, x: Array, y: Array, rows: list[tuple[DimLike, DimLike, Expr]], group: Group,
    first: DimLike, count: DimLike,
) -> None:  # fmt: skip
    """`count` elements of a row of the result from `first` on; `rows` are the outer axes' indices
    of result and operand with their guards."""
    value = k.attrs["value"]
    above, below = tuple(r[0] for r in rows), tuple(r[1] for r in rows)
    guard: Expr | None = None
    for r in rows:
        guard = r[2] if guard is None else k.call("logical_and", guard, r[2])
    n, start, step, _ = group
    if step == 1:
        with k.vector(count) as j:
            here, source = _inside(k, first + j, group)
            both = here if guard is None else k.call("logical_and", guard, here)
            k.store(y, (*above, first + j), k.load(x, (*below, source), guard=both, fill=value))
        return
    with k.vector(count) as j:
        k.store(y, (*above, first + j), k.literal(value, y.dtype))
    with k.vector(n) as j:
        k.store(y, (*above, start + j * step), k.load(x, (*below, j), guard=guard), guard=guard)


def _emit_pad(k: KernelBuilder) -> None:
    groups = _groups(k.operands[0].shape, k.attrs)
    x = replace(k.operands[0], shape=tuple(g[0] for g in groups))
    y = replace(k.results[0], shape=tuple(g[3] for g in groups))
    *outer, last = groups
    size = last[3]

    def nest(rows: list[tuple[DimLike, DimLike, Expr]], left: list[Group]) -> None:
        if not left:
            _emit_pad_row(k, x, y, rows, last, 0, size)
            return
        with k.loop(left[0][3]) if rows else k.parallel(left[0][3]) as i:
            here, source = _inside(k, i, left[0])
            nest([*rows, (i, source, here)], left[1:])

    if outer:
        nest([], outer)
    elif last[2] == 1:
        with k.parallel(floor_div(size + (CHUNK - 1), CHUNK)) as c:
            _emit_pad_row(k, x, y, [], last, c * CHUNK, dim_min(CHUNK, size - c * CHUNK))
    else:
        _emit_pad_row(k, x, y, [], last, 0, size)


def _pad_sample(
    shape: tuple[int, ...], dtype: str, target: tuple[int, ...], start: tuple[int, ...],
    step: tuple[int, ...], value: Any = 0,
) -> Sample:  # fmt: skip
    attrs = {"start": start, "step": step, "shape": target, "value": value}
    return Sample((random_array(shape, dtype),), attrs)


register(
    Op(
        name="pad",
        summary="y[start + i*step] = x[i] along every axis, value elsewhere",
        infer=_infer_pad,
        reference=_reference_pad,
        vjp=_vjp_pad,
        jvp=_jvp_pad,
        batch=_batch_box,
        lower=Custom(_emit_pad),
        samples=lambda: [
            _pad_sample((3, 17), "float64", (5, 33), (1, 4), (1, 1), 0.5),
            _pad_sample((3, 17), "float32", (5, 33), (0, 0), (2, 2), 0.0),
            _pad_sample((3, 33), "float64", (7, 33), (2, 0), (2, 1), 0.0),
            _pad_sample((2, 3, 5), "float32", (2, 4, 9), (0, 1, 2), (1, 1, 1), float("-inf")),
            _pad_sample((2, 3, 5), "float64", (2, 3, 11), (0, 0, 1), (1, 1, 2), 0.0),
            _pad_sample((2, 2, 3, 4), "int32", (3, 5, 3, 4), (1, 0, 0, 0), (1, 3, 1, 1), 7),
            _pad_sample((4,), "bool", (7,), (2,), (1,), True),
            _pad_sample((4,), "uint8", (11,), (1,), (3,), 255),
            _pad_sample((0, 3), "float64", (2, 3), (0, 0), (1, 1), 1.5),
            _pad_sample((9000,), "float64", (9100,), (60,), (1,), 0.0),
            _pad_sample((), "float64", (), (), ()),
        ],
        source="this project: NumPy's pad in constant mode, and the adjoint of `slice`",
    )
)


def put(x: Tensor, start: Indices, step: tuple[int, ...], shape: Shape, value: Any = 0) -> Tensor:
    """The `pad` record; the tensor itself where nothing is added."""
    if shape == x.shape and all(s == 1 for s in step) and all(i == 0 for i in start):
        return x
    return apply("pad", x, start=start, step=step, shape=shape, value=value)


def _pad_value(value: Any, dtype: DType) -> float | int | bool:
    """`value` as a plain number of the dtype."""
    if isinstance(value, Tensor) or not isinstance(value, (bool, int, float, np.generic)):
        raise ArgumentTypeError(f"pad: the value is a number, got {value!r}")
    if dtype.is_float:
        return float(value)
    if int(value) != value:
        raise DTypeError(f"pad: the value {value} is no {dtype}")
    low, high = integer_range(dtype)
    if not low <= int(value) <= high:
        raise DTypeError(f"pad: the value {value} does not fit {dtype} ({low} to {high})")
    return bool(value) if dtype.kind == "b" else int(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, (str, Dim)) or is_index(value)


def _pad_widths(pad_width: Any, ndim: int) -> list[tuple[DimLike, DimLike]]:
    """NumPy's forms: one size, one pair for all axes, or a pair for each axis."""
    if isinstance(pad_width, np.ndarray):
        pad_width = pad_width.tolist()
    if _is_size(pad_width):
        pairs = [(pad_width, pad_width)] * ndim
    elif isinstance(pad_width, (tuple, list)):
        if len(pad_width) == 2 and all(_is_size(w) for w in pad_width):
            pairs = [tuple(pad_width)] * ndim
        else:
            pairs = [(w, w) if _is_size(w) else w for w in pad_width]
            if not all(isinstance(p, (tuple, list)) for p in pairs):
                raise ArgumentTypeError(f"pad: expected sizes or pairs of them, got {pad_width!r}")
            if len(pairs) == 1:
                pairs = pairs * ndim
    else:
        raise ArgumentTypeError(f"pad: expected sizes or pairs of them, got {pad_width!r}")
    if len(pairs) != ndim or any(len(p) != 2 for p in pairs):
        raise ShapeError(f"pad: expected {ndim} pairs (before, after), got {pad_width!r}")
    return [(as_dim(before), as_dim(after)) for before, after in pairs]


def pad(x: Any, /, pad_width: Any, mode: str = "constant", value: Any = 0) -> Tensor:
    """`x` with `value` added around it.

    `pad_width` is one size for all sides, one pair (before, after) for all axes, or a pair for each
    axis; sizes may be symbolic. Only `mode="constant"` exists. Source: NumPy's pad.
    """
    x = as_tensor(x, "pad")
    if mode != "constant":
        raise UnsupportedError(f'pad: mode {mode!r} is not supported, only "constant"')
    widths = _pad_widths(pad_width, x.ndim)
    shape = tuple(before + d + after for d, (before, after) in zip(x.shape, widths))
    start = tuple(before for before, _ in widths)
    return put(x, start, (1,) * x.ndim, shape, _pad_value(value, x.dtype))


# --- Python's slices as starts, steps and sizes ---------------------------------------------------


def _not_below_zero(d: DimLike) -> DimLike:
    """`max(d, 0)`, with `max(max(e, 0) - c, 0)` as `max(e - c, 0)`."""
    if isinstance(d, int):
        return max(d, 0)
    if never_negative(d):
        return d
    constant = dict(d.terms).get((), 0)
    inner = _clamped(d - constant) if constant <= 0 else None
    return dim_max(d if inner is None else inner + constant, 0)


def _bound(value: Any, size: DimLike, beyond: int) -> DimLike:
    """A start or stop as a position from the front, at most `size`. `beyond` is 1 where positions
    are counted after the element (negative steps)."""
    if isinstance(value, str):
        value = as_dim(value)
    if not isinstance(value, Dim) and not is_index(value):
        raise ArgumentTypeError(
            f"the bounds of a slice are ints or dims, got {value!r}; for bounds known only when "
            "the program runs, index with an integer tensor"
        )
    if isinstance(value, Dim):
        return dim_min(_not_below_zero(value) + beyond, size)
    # Clamped: no axis is that long, and nothing overflows beside a symbolic size.
    at = max(-_FAR, min(int(value.__index__()), _FAR)) + beyond
    if at < beyond:
        return _not_below_zero(size + at)
    return dim_min(at, size)


def slice_bounds(given: slice, size: DimLike) -> tuple[DimLike, int, DimLike]:
    """(start, step, count) of a slice of an axis, clamped as Python does. A dim as a bound is a
    position counted from the front."""
    if given.step is not None and not is_index(given.step):
        raise ArgumentTypeError(f"the step of a slice is an int, got {given.step!r}")
    step = 1 if given.step is None else max(-_FAR, min(int(given.step.__index__()), _FAR))
    if step == 0:
        raise ArgumentError("the step of a slice can't be 0")
    if step > 0:
        stop = size if given.stop is None else _bound(given.stop, size, 0)
        start: DimLike = 0 if given.start is None else _bound(given.start, size, 0)
        if isinstance(given.start, int) and given.start < 0 and given.stop is None:
            count = dim_min(-given.start, size)  # the last ones
            start = size - count
        elif isinstance(given.start, int) and given.start >= 0:
            start = given.start  # beyond the end the count is 0, wherever it starts
            count = _not_below_zero(stop - start)
        else:
            count = _not_below_zero(stop - start)
    else:
        above = size if given.start is None else _bound(given.start, size, 1)
        below = 0 if given.stop is None else _bound(given.stop, size, 1)
        count, start = _not_below_zero(above - below), above - 1
    if abs(step) != 1:
        count = floor_div(count + (abs(step) - 1), abs(step))
    return (start, step, count) if count != 0 else (0, 1, 0)


def index_bounds(given: Any, size: DimLike, axis: int) -> DimLike:
    """An integer index of an axis as a position from the front; raises where it is known to be out
    of range."""
    if isinstance(given, Dim):
        return given
    at = int(given.__index__())
    if not -_FAR < at < _FAR:
        raise ShapeError(f"index {at} is out of range for axis {axis} of size {size}")
    if isinstance(size, int) and not -size <= at < size:
        raise ShapeError(f"index {at} is out of range for axis {axis} of size {size}")
    return size + at if at < 0 else at


__all__ = ["flip", "pad"]
