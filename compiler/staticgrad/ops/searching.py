"""Searching: the place of an extremum, places in a sorted array, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from staticgrad.ir.dim import dim_min, floor_div, product
from staticgrad.ir.dtype import bool_, int64, uint8
from staticgrad.ir.errors import ArgumentError, DTypeError, ShapeError, UnsupportedError
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import KernelBuilder
from staticgrad.kernels.ir import Expr, Load

from .convert import as_tensor, astype, promoted
from .cumulative import folded, lines, one_axis
from .lowering import Custom
from .reduction import (
    at_user_line,
    greatest_value,
    least_value,
    reduced_shape,
    require_elements,
)
from .registry import (
    Attrs,
    BatchContext,
    NotDifferentiable,
    Op,
    Sample,
    Types,
    apply,
    register,
    require_equal,
)
from .rules import batch_axes, in_front
from .samples import NUMERIC, random_array
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, searching functions"
_NOWHERE = 2**63 - 1
# Elements whose extremum is found first and then searched for: 1000 x 1000 float32 took 236 us with
# 256, 265 with 512, 360 with 1024, one row of a million 145, 131 and 132.
BLOCK = 256

# --- argmax, argmin -------------------------------------------------------------------------------


def _infer_argument(types: Types, attrs: Attrs) -> Types:
    (x,), axis = types, attrs["axis"]
    if x.dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {x}")
    require_elements(x, (axis,), "the place of an extremum")
    return (TensorType(int64, reduced_shape(x.shape, (axis,), attrs["keepdims"])),)


def _is_nan(k: KernelBuilder, x: Expr) -> Expr:
    return k.call("not_equal", x, x, dtype=bool_)


def _emit_argument(kind: str, k: KernelBuilder) -> None:
    shape, axis = k.operands[0].shape, k.attrs["axis"]
    if all(isinstance(d, int) and d == 1 for d in shape[axis + 1 :]):
        _emit_argument_rows(kind, k)
    else:
        _emit_argument_columns("greater" if kind == "max" else "less", k)


def _emit_argument_rows(kind: str, k: KernelBuilder) -> None:
    """Along the last axis: the block with the first extremum, then its first place in the block.

    A NaN makes a block's extremum NaN, which wins once, and then only NaNs are candidates.
    """
    x = folded(k.operands[0], k.attrs["axis"])
    outer, n, _ = x.shape
    y = replace(k.results[0], shape=(outer,))
    worst = least_value(x.dtype) if kind == "max" else greatest_value(x.dtype)
    zero, nowhere = k.literal(0, int64), k.literal(_NOWHERE, int64)
    better = "greater" if kind == "max" else "less"
    with k.parallel(outer) as a:
        blocks = floor_div(n + (BLOCK - 1), BLOCK)
        with k.loop(blocks, best=k.literal(worst, x.dtype), start=zero) as q:
            size = dim_min(BLOCK, n - q * BLOCK)
            line = a * n + q * BLOCK

            def element(j: Any, line: Any = line) -> Expr:
                return Load(x.name, line + j, x.dtype)

            value, best = k.reduce(kind, (size,), element, vector=True), k.ref("best")
            wins = k.let(_wins(k, better, value, best))
            k.next("best", k.call("select", wins, value, best, dtype=x.dtype))
            first = k.index(q * BLOCK)
            k.next("start", k.call("select", wins, first, k.ref("start"), dtype=int64))
        best, start = k.ref("best"), k.ref("start")

        def place(j: Any) -> Expr:
            at = k.call("add", start, k.index(j))
            inside = k.call("less", at, k.index(n), dtype=bool_)
            value = Load(x.name, a * n + j, x.dtype, ((start, 1),), inside)
            found: Expr = k.call("equal", value, best, dtype=bool_)
            if x.dtype.is_float:
                found = k.call("logical_or", found, _is_nan(k, value))
            found = k.call("logical_and", found, inside)
            return k.call("select", found, at, nowhere, dtype=int64)

        found = k.reduce("min", (dim_min(BLOCK, n),), place, vector=True)
        empty = k.call("equal", found, nowhere, dtype=bool_)
        k.store(y, (a,), k.call("select", empty, zero, found, dtype=int64))


def _wins(k: KernelBuilder, better: str, value: Expr, best: Expr) -> Expr:
    """Whether a value takes the place of the best so far: it is better, or the first NaN."""
    wins: Expr = k.call(better, value, best, dtype=bool_)
    if not value.dtype.is_float:
        return wins
    fresh = k.call("logical_not", _is_nan(k, best))
    return k.call("logical_or", wins, k.call("logical_and", _is_nan(k, value), fresh))


def _emit_argument_columns(better: str, k: KernelBuilder) -> None:
    """Along another axis: the lines lie side by side in vector lanes, each with its best so far."""
    shape, axis = k.operands[0].shape, k.attrs["axis"]
    x = folded(k.operands[0], axis)
    outer, n, inner = x.shape
    y = replace(k.results[0], shape=(outer, inner))
    zero = k.literal(0, int64)
    with lines(k, shape, axis) as at:
        row, _, column = at(0)
        filled = k.call("greater", k.index(n), k.index(0), dtype=bool_)
        first = k.load(x, at(0), guard=filled)
        with k.loop(n, best=first, place=zero) as j:
            value, best = k.load(x, at(j)), k.ref("best")
            wins = k.let(_wins(k, better, value, best))
            place = k.call("select", wins, k.index(j), k.ref("place"), dtype=int64)
            k.next("place", place)
            k.next("best", k.call("select", wins, value, best, dtype=x.dtype))
        k.store(y, (row, column), k.ref("place"))


def _argument(kind: str, search: Any) -> None:
    def reference(x: Any, axis: int, keepdims: bool) -> Any:
        if x.shape[axis] == 0:
            shape = reduced_shape(x.shape, (axis,), keepdims)
            return np.zeros(shape, np.int64)
        return np.asarray(search(x, axis=axis, keepdims=keepdims), np.int64)

    register(
        Op(
            name=f"arg{kind}",
            summary=f"the first place of the {kind}imum along an axis; of a NaN if there is one",
            infer=_infer_argument,
            reference=reference,
            vjp=NotDifferentiable("the place of an extremum is an integer"),
            jvp=NotDifferentiable("the place of an extremum is an integer"),
            batch=batch_axes("axis"),
            lower=Custom(lambda k: _emit_argument(kind, k)),
            samples=_argument_samples,
            source=_STANDARD,
        )
    )


def _argument_samples() -> list[Sample]:
    attrs = [{"axis": axis, "keepdims": keep} for axis in (0, 1) for keep in (False, True)]
    found = [Sample((random_array((5, 33), d, 1),), a) for d in NUMERIC for a in attrs]
    special = np.array([[1, np.nan, 9, np.nan], [np.inf, 3, np.inf, 3], [-0.0, 0, -0.0, 0],
                        [-np.inf] * 4, [-1, np.nan, np.nan, np.inf]])  # fmt: skip
    for dtype in ("float32", "float64"):
        found += [Sample((special.astype(dtype),), a) for a in attrs]
    long = np.concatenate([random_array((2, 700), "float32", 3), np.full((2, 700), -np.inf, "f4")])
    long[1, 300], long[1, 650], long[3, 600] = np.nan, np.nan, np.inf
    found += [Sample((x,), {"axis": 1, "keepdims": False}) for x in (long, np.sign(long), -long)]
    for shape, axis in (((7,), 0), ((1,), 0), ((2, 9, 19), 1), ((2, 9, 3), 1), ((300, 2), 0),
                        ((0, 3), 1), ((3, 0), 0), ((2, 300), 1), ((2, 3, 1), 1),
                        ((2, 3000), 1)):  # fmt: skip
        found.append(Sample((random_array(shape, "float32", 2),), {"axis": axis, "keepdims": True}))
    return found


_argument("max", np.argmax)
_argument("min", np.argmin)


def _find(name: str, x: Any, axis: Any, keepdims: bool) -> Tensor:
    from .shape import reshape

    x = as_tensor(x, name)
    if x.dtype.kind == "b":
        x = astype(x, uint8)
    if axis is not None:
        return apply(name, x, axis=one_axis(axis, x, name), keepdims=bool(keepdims))
    flat = apply(name, reshape(x, -1 if x.ndim != 0 else (1,)), axis=0, keepdims=False)
    return reshape(flat, (1,) * x.ndim) if keepdims else flat


@method("argmax")
def argmax(x: Any, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The place of the maximum along `axis`, int64; without `axis`, in the flattened array.

    The first place where several are equal. NaN counts as the maximum, as in NumPy. Raises
    ShapeError for an axis known to be empty; a symbolic axis that turns out empty gives 0.
    """
    return _find("argmax", x, axis, keepdims)


@method("argmin")
def argmin(x: Any, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The place of the minimum along `axis`, int64; without `axis`, in the flattened array.

    The first place where several are equal. NaN counts as the minimum, as in NumPy. Raises
    ShapeError for an axis known to be empty; a symbolic axis that turns out empty gives 0.
    """
    return _find("argmin", x, axis, keepdims)


# --- searchsorted ---------------------------------------------------------------------------------


def _infer_searchsorted(types: Types, attrs: Attrs) -> Types:
    among, values = types
    if not among.ndim:
        raise ShapeError(f"expected sorted lines to search in, got {among}")
    lead = among.shape[:-1]
    if values.ndim < len(lead):
        raise ShapeError(f"{values} lacks the first {len(lead)} dims of {among}")
    for a, b in zip(lead, values.shape):
        require_equal(a, b, f"the first dims of {among} and {values}")
    if among.dtype != values.dtype or among.dtype.kind == "b":
        raise DTypeError(f"expected numbers of one dtype, got {among} and {values}")
    return (TensorType(int64, values.shape),)


def _emit_searchsorted(k: KernelBuilder) -> None:
    """Binary search, all values of a line abreast. `low` moves past `middle` where x1[middle] comes
    before the value (side left), or does not come after it (side right); NaN comes last."""

    right, rank = k.attrs["side"] == "right", len(k.operands[0].shape)
    outer, n = product(k.operands[0].shape[:-1]), k.operands[0].shape[-1]
    size = product(k.operands[1].shape[rank - 1 :])
    among = replace(k.operands[0], shape=(outer, n))
    values, y = (replace(z, shape=(outer, size)) for z in (k.operands[1], k.results[0]))
    # Each step halves what is left. 48 steps suffice for any array that a 64-bit CPU can address.
    steps = n.bit_length() if isinstance(n, int) else 48
    chunk = 1024
    one = k.literal(1, int64)

    def before(a: Expr, b: Expr) -> Expr:
        less: Expr = k.call("less", a, b, dtype=bool_)
        if not a.dtype.is_float:
            return less
        number = k.call("equal", a, a, dtype=bool_)
        return k.call("logical_or", less, k.call("logical_and", number, _is_nan(k, b), dtype=bool_),
                      dtype=bool_)  # fmt: skip

    def search(line: Any, first: Any, count: Any) -> None:
        with k.vector(count) as i:
            value = k.let(k.load(values, (line, first + i)))
            with k.loop(steps, low=k.literal(0, int64), high=k.index(n)) as _:
                low, high = k.ref("low"), k.ref("high")
                half = k.call("bitwise_right_shift", k.call("subtract", high, low), one)
                middle = k.let(k.call("add", low, half))
                open_ = k.let(k.call("less", low, high, dtype=bool_))
                other = k.load(among, (line, middle), guard=open_)
                past: Expr
                if right:
                    past = k.call("logical_not", before(value, other), dtype=bool_)
                else:
                    past = before(other, value)
                up = k.let(k.call("logical_and", open_, past, dtype=bool_))
                above = k.call("add", middle, one)
                k.next("low", k.call("select", up, above, low, dtype=int64))
                stays = k.call("logical_or", up, k.call("logical_not", open_, dtype=bool_))
                k.next("high", k.call("select", stays, high, middle, dtype=int64))
            k.store(y, (line, first + i), k.ref("low"))

    if isinstance(outer, int) and outer == 1:
        with k.parallel(floor_div(size + (chunk - 1), chunk)) as c:
            search(0, c * chunk, dim_min(chunk, size - c * chunk))
    else:
        with k.parallel(outer) as line:
            search(line, 0, size)


def _reference_searchsorted(among: Any, values: Any, side: Any) -> Any:
    found = np.empty(values.shape, np.int64)
    for line in np.ndindex(among.shape[:-1]):
        found[line] = np.searchsorted(among[line], values[line], side=side)
    return found


def _batch_searchsorted(c: BatchContext) -> Tensor:
    """A batch of values that are searched for in one line are more values."""
    alone = not c.batched[0] and len(c.types[0].shape) == 1
    found: Tensor = apply("searchsorted", *(c.operands if alone else in_front(c)), **c.attrs)
    return found


def _searchsorted_samples() -> list[Sample]:
    found = []
    for dtype in NUMERIC:
        for side in ("left", "right"):
            among = np.sort(random_array((33,), dtype, 1))
            values = np.concatenate([random_array((20,), dtype, 2), among[::3]])
            found.append(Sample((among, values), {"side": side}))
    special = np.array([-np.inf, -1, -0.0, 0.0, 2, np.inf, np.nan, np.nan])
    for side in ("left", "right"):
        found.append(Sample((special, np.stack([special, special[::-1]])), {"side": side}))
        for n, shape in ((0, (3,)), (1, ()), (7, (0,)), (8, (2, 3))):
            operands = np.sort(random_array((n,), "float64", 3)), random_array(shape, "float64", 4)
            found.append(Sample(operands, {"side": side}))
        for lead, n, shape in (
            ((3,), 33, (20,)), ((2, 3), 7, ()), ((2,), 0, (3, 2)), ((0,), 4, ()),
        ):  # fmt: skip
            lines = np.sort(random_array((*lead, n), "float64", 5))
            among_lines = lines, random_array((*lead, *shape), "float64", 6)
            found.append(Sample(among_lines, {"side": side}))
    return found


register(
    Op(
        name="searchsorted",
        summary="where in sorted x1 (or its sorted lines, shared dims in front) each element of x2 "
        "belongs, before (left) or after its equals",
        infer=_infer_searchsorted,
        reference=_reference_searchsorted,
        vjp=NotDifferentiable("places are integers"),
        jvp=NotDifferentiable("places are integers"),
        batch=_batch_searchsorted,
        lower=Custom(_emit_searchsorted),
        samples=_searchsorted_samples,
        source=_STANDARD,
    )
)


def searchsorted(x1: Any, x2: Any, /, *, side: str = "left", sorter: Any = None) -> Tensor:
    """For each element of `x2` the place in `x1` before which it keeps `x1` sorted, int64.

    x1: [n] in ascending order (NaNs last), or in the order that `sorter`, an integer [n], gives.
    x2: [..] -> [..]. `side` "left" is before equal elements, "right" after them.
    """
    if side not in ("left", "right"):
        raise at_user_line(
            ArgumentError(f'searchsorted: side must be "left" or "right", got {side!r}')
        )
    x1, x2 = promoted(x1, x2)
    if x1.ndim != 1:
        raise at_user_line(
            ShapeError(f"searchsorted: expected a sorted array of one dim, got {x1.type}")
        )
    if x1.dtype.kind == "b":
        x1, x2 = astype(x1, uint8), astype(x2, uint8)
    if sorter is not None:
        from .indexing import take

        x1 = take(x1, as_tensor(sorter, "searchsorted: sorter"), axis=0)
    return apply("searchsorted", x1, x2, side=side)


# --- what a static graph can't have ---------------------------------------------------------------


def _refuse(name: str, mend: str) -> NoReturn:
    raise at_user_line(
        UnsupportedError(
            f"{name}: the shape of its result depends on the data, and a static graph's memory is "
            f"planned before it runs; {mend}"
        )
    )


def nonzero(x: Any, /) -> NoReturn:
    """Refused: the number of results depends on the data. `where` and `count_nonzero` serve."""
    _refuse("nonzero", "select with sg.where(condition, a, b) or count with sg.count_nonzero(x)")


def argwhere(x: Any, /) -> NoReturn:
    """Refused: the number of results depends on the data. `where` and `count_nonzero` serve."""
    _refuse("argwhere", "select with sg.where(condition, a, b) or count with sg.count_nonzero(x)")


_UNIQUE = "sort with sg.sort(x) and compare neighbours, or call NumPy's on the array outside"


def unique_values(x: Any, /) -> NoReturn:
    """Refused: the number of results depends on the data."""
    _refuse("unique_values", _UNIQUE)


def unique_all(x: Any, /) -> NoReturn:
    """Refused: the number of results depends on the data."""
    _refuse("unique_all", _UNIQUE)


def unique_counts(x: Any, /) -> NoReturn:
    """Refused: the number of results depends on the data."""
    _refuse("unique_counts", _UNIQUE)


def unique_inverse(x: Any, /) -> NoReturn:
    """Refused: the number of results depends on the data."""
    _refuse("unique_inverse", _UNIQUE)


__all__ = [
    "argmax",
    "argmin",
    "argwhere",
    "nonzero",
    "searchsorted",
    "unique_all",
    "unique_counts",
    "unique_inverse",
    "unique_values",
]
