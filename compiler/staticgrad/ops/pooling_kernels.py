"""The kernels of `pooling`: parallel over planes, vectors along a row of windows.

Sums and maxima are separable: windows are taken down the columns of the plane first, then along
the rows, so that most loads are contiguous ([32, 32, 28, 28], 3 x 3 by 2: 1.43 -> 0.35 ms for the
maximum, 9.4 -> 1.4 ms for the sum and its gradient). Where the place of a maximum is wanted,
windows up to `UNROLLED` elements are unrolled inside the vector loop; larger ones are taken one at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product as cartesian
from typing import Any

from staticgrad.ir.dim import Dim, DimLike, equal_dims
from staticgrad.ir.dtype import DType, bool_, int32, int64, integer_range
from staticgrad.kernels.builder import Array, KernelBuilder
from staticgrad.kernels.ir import Call, Expr, Index

# 25 (5 x 5) taps are about 100 vector operations; a function should stay below 500.
UNROLLED = 25


class Window:
    """Where the taps of window (i, j) of one plane lie, and which of them exist."""

    def __init__(self, k: KernelBuilder, spatial: tuple[DimLike, ...]) -> None:
        self.k = k
        self.height, self.width = spatial
        self.kernel = k.attrs["kernel"]
        self.stride = k.attrs["stride"]
        self.dilation = k.attrs["dilation"]
        self.padding = k.attrs["padding"]
        self.ceil = k.attrs["ceil_mode"]

    @property
    def unrolled(self) -> bool:
        return self.kernel[0] * self.kernel[1] <= UNROLLED

    @property
    def small(self) -> bool:
        """Loading each tap of a row of windows is no more than a few instructions."""
        return self.kernel[0] * self.kernel[1] <= 4 and self.stride[1] <= 2

    @property
    def disjoint(self) -> bool:
        """No element belongs to two windows."""
        return all(s >= d * (n - 1) + 1 for n, s, d in zip(self.kernel, self.stride, self.dilation))

    @property
    def guarded(self) -> bool:
        return self.ceil or any(p for pair in self.padding for p in pair)

    def row(self, i: DimLike, a: DimLike) -> DimLike:
        return i * self.stride[0] + a * self.dilation[0] - self.padding[0][0]

    def col(self, j: DimLike, b: DimLike) -> DimLike:
        return j * self.stride[1] + b * self.dilation[1] - self.padding[1][0]

    def place(self, i: DimLike, j: DimLike, a: DimLike, b: DimLike) -> tuple[DimLike, DimLike]:
        return self.row(i, a), self.col(j, b)

    def _inside(self, axis: int, at: DimLike, size: DimLike) -> list[Expr]:
        low, high = self.padding[axis]
        conditions: list[Expr] = [_compare("greater_equal", at, 0)] if low else []
        if high or self.ceil:
            conditions.append(_compare("less", at, size))
        return conditions

    def row_exists(self, row: DimLike) -> Expr | None:
        """Whether the row is inside the plane; None where that is known."""
        return _conjunction(self._inside(0, row, self.height))

    def col_exists(self, col: DimLike) -> Expr | None:
        """Whether the column is inside the plane; None where that is known."""
        return _conjunction(self._inside(1, col, self.width))

    def exists(self, place: tuple[DimLike, DimLike]) -> Expr | None:
        """Whether the element is inside the plane; None where that is known."""
        row, col = place
        return _conjunction([*self._inside(0, row, self.height), *self._inside(1, col, self.width)])

    def taps(self) -> Iterator[tuple[int, int]]:
        return cartesian(range(self.kernel[0]), range(self.kernel[1]))

    @contextmanager
    def tap_loops(self) -> Iterator[tuple[Dim, Dim]]:
        with self.k.loop(self.kernel[0]) as a, self.k.loop(self.kernel[1]) as b:
            yield a, b


def _compare(op: str, a: DimLike, b: DimLike) -> Call:
    return Call(op, (Index(a), Index(b)), bool_)


def _conjunction(conditions: list[Expr]) -> Expr | None:
    result: Expr | None = None
    for c in conditions:
        result = c if result is None else Call("logical_and", (result, c), bool_)
    return result


def _select(k: KernelBuilder, condition: Expr, a: Expr, b: Expr) -> Call:
    return k.call("select", condition, a, b, dtype=a.dtype)


def lowest(dtype: DType) -> float | int:
    return float("-inf") if dtype.is_float else integer_range(dtype)[0]


def _planes(k: KernelBuilder, array: Array) -> Any:
    """The loop over planes; plane p of an array is its index (0, p)."""
    return k.parallel(array.shape[0] * array.shape[1])


def _fill(k: KernelBuilder, array: Array, plane: Dim, value: float | int) -> None:
    with k.vector(array.shape[2] * array.shape[3]) as e:
        k.store(array, (0, plane, 0, e), k.literal(value, array.dtype))


def _emit_fold(k: KernelBuilder, op: str, fill: float | int) -> None:
    """result[window] = op over the window's elements: first down the columns of a row of windows,
    where elements are neighbours in memory, then along the row."""
    x, y = k.operands[0], k.results[0]
    window = Window(k, x.shape[2:])
    if window.small:
        _emit_small_fold(k, window, op, fill)
        return
    columns = k.scratch(x.dtype, (x.shape[3],))
    with _planes(k, x) as p, k.loop(y.shape[2]) as i:

        def down(a: DimLike, w: DimLike) -> Expr:
            row = window.row(i, a)
            return k.load(x, (0, p, row, w), window.row_exists(row), fill)

        def along(b: DimLike, j: DimLike) -> Expr:
            col = window.col(j, b)
            return k.load(columns, (col,), window.col_exists(col), fill)

        _fold(k, op, window.kernel[0], columns, (), down, fill)
        _fold(k, op, window.kernel[1], y, (0, p, i), along, fill)


def _emit_small_fold(k: KernelBuilder, window: Window, op: str, fill: float | int) -> None:
    """The same in registers: columns first, as with a row of them in memory, which takes longer to
    be read back than all the rest (2 x 2 windows of [64, 16, 28, 28]: 221 -> 72 us)."""
    x, y = k.operands[0], k.results[0]
    with _planes(k, x) as p, k.loop(y.shape[2]) as i, k.vector(y.shape[3]) as j:
        columns: list[Expr] = []
        for b in range(window.kernel[1]):
            column: Expr | None = None
            for a in range(window.kernel[0]):
                place = window.place(i, j, a, b)
                value = k.let(k.load(x, (0, p, *place), window.exists(place), fill))
                column = value if column is None else k.let(k.call(op, column, value))
            assert column is not None
            columns.append(column)
        total = columns[0]
        for column in columns[1:]:
            total = k.let(k.call(op, total, column))
        k.store(y, (0, p, i, j), total)


def _fold(
    k: KernelBuilder, op: str, count: int, target: Array, at: tuple[DimLike, ...],
    element: Callable[[DimLike, DimLike], Expr], fill: float | int,
) -> None:  # fmt: skip
    """target[at, v] = op over t < count of element(t, v), for all v of the last dim, in lanes."""
    size = target.shape[-1]
    if count <= UNROLLED:
        with k.vector(size) as v:
            total = k.let(element(0, v))
            for t in range(1, count):
                total = k.let(k.call(op, total, element(t, v)))
            k.store(target, (*at, v), total)
        return
    with k.vector(size) as v:
        k.store(target, (*at, v), k.literal(fill, target.dtype))
    with k.loop(count) as tap, k.vector(size) as v:
        known = k.load(target, (*at, v))
        k.store(target, (*at, v), k.call(op, known, element(tap, v)))


def emit_max_pool(k: KernelBuilder) -> None:
    _emit_fold(k, "maximum", lowest(k.operands[0].dtype))


def emit_sum_pool(k: KernelBuilder) -> None:
    _emit_fold(k, "add", 0)


# --- scattering sums ------------------------------------------------------------------------------


def emit_windows_sum(k: KernelBuilder) -> None:
    """result[element] = sum of what the windows that hold it have at its tap.

    For one tap, the elements of a row of windows are distinct, so that they can be added in lanes.
    """
    ct, y = k.operands[0], k.results[0]
    window = Window(k, y.shape[2:])
    with _planes(k, y) as p:
        _fill(k, y, p, 0)
        with (
            k.loop(ct.shape[2]) as i,
            window.tap_loops() as (a, b),
            k.vector(ct.shape[3]) as j,
        ):
            place = window.place(i, j, a, b)
            total = k.call("add", k.load(y, (0, p, *place)), k.load(ct, (0, p, i, j, a, b)))
            k.store(y, (0, p, *place), total)


def emit_sum_pool_grad(k: KernelBuilder) -> None:
    """result[element] = sum of the cotangents of the windows that hold it: a row of windows is
    spread over its columns once, then added to each of its rows, which are contiguous."""
    ct, y = k.operands[0], k.results[0]
    window = Window(k, y.shape[2:])
    columns = k.scratch(y.dtype, (window.width,))
    zero = k.literal(0, y.dtype)
    with _planes(k, y) as p:
        _fill(k, y, p, 0)
        with k.loop(ct.shape[2]) as i:
            with k.vector(window.width) as w:
                k.store(columns, (w,), zero)
            with k.loop(window.kernel[1]) as b, k.vector(ct.shape[3]) as j:
                col = window.col(j, b)
                guard = window.col_exists(col)
                known = k.load(columns, (col,), guard)
                total = k.call("add", known, k.load(ct, (0, p, i, j)))
                k.store(columns, (col,), total, guard)
            with k.loop(window.kernel[0]) as a, k.vector(window.width) as w:
                row = window.row(i, a)
                guard = window.row_exists(row)
                total = k.call("add", k.load(y, (0, p, row, w), guard), k.load(columns, (w,)))
                k.store(y, (0, p, row, w), total, guard)


# --- the place of the maximum ---------------------------------------------------------------------

Payload = Callable[[DimLike, DimLike], Expr]


def _better(k: KernelBuilder, value: Expr, best: Expr, unset: Expr | None, valid: Expr | None
            ) -> Expr:  # fmt: skip
    """Does this tap replace the best so far? Greater, or NaN (so the last NaN wins, as in PyTorch),
    or the first that exists."""
    better: Expr = Call("greater", (value, best), bool_)
    if value.dtype.is_float:
        better = Call("logical_or", (better, Call("isnan", (value,), bool_)), bool_)
    if unset is not None:
        better = Call("logical_or", (better, unset), bool_)
    return better if valid is None else Call("logical_and", (better, valid), bool_)


def _unrolled_at_maximum(
    window: Window, x: Array, at: tuple[Dim, Dim, Dim], payload: Payload, none: Expr
) -> Expr:
    """The payload of the tap of the first maximum, by selects; `none` where no tap exists."""
    k = window.k
    p, i, j = at
    best: Expr = k.literal(lowest(x.dtype), x.dtype)
    found = none
    seen: Expr | None = k.literal(False, bool_) if window.guarded else None
    for number, (a, b) in enumerate(window.taps()):
        place = window.place(i, j, a, b)
        valid = window.exists(place)
        valid = None if valid is None else k.let(valid)
        value = k.let(k.load(x, (0, p, *place), valid, lowest(x.dtype)))
        if number == 0 and valid is None:
            best, found = value, payload(a, b)
            continue
        unset = None if seen is None else k.call("logical_not", seen)
        better = k.let(_better(k, value, best, unset, valid))
        best = k.let(_select(k, better, value, best))
        found = k.let(_select(k, better, payload(a, b), found))
        if seen is not None:
            seen = k.let(k.call("logical_or", seen, better))
    return found


def _looped_at_maximum(
    window: Window, x: Array, at: tuple[Dim, Dim, Dim], payload: Payload, none: Expr
) -> Expr:
    """The same for one window at a time, for windows too large to be unrolled."""
    k = window.k
    p, i, j = at
    first = {
        "best": k.literal(lowest(x.dtype), x.dtype),
        "found": none,
        "seen": k.literal(False, bool_),
    }
    with k.loop(window.kernel[0], **first) as a:
        inner = {f"row_{name}": k.ref(name) for name in first}
        with k.loop(window.kernel[1], **inner) as b:
            best, found, seen = (k.ref(name) for name in inner)
            place = window.place(i, j, a, b)
            valid = window.exists(place)
            value = k.let(k.load(x, (0, p, *place), valid, lowest(x.dtype)))
            unset = k.call("logical_not", seen)
            better = k.let(_better(k, value, best, unset, valid))
            k.next("row_best", _select(k, better, value, best))
            k.next("row_found", _select(k, better, payload(a, b), found))
            k.next("row_seen", k.call("logical_or", seen, better))
        for name in first:
            k.next(name, k.ref(f"row_{name}"))
    return k.ref("found")


def emit_max_pool_take(k: KernelBuilder) -> None:
    (x, t), y = k.operands, k.results[0]
    window = Window(k, x.shape[2:])
    none = k.literal(0, t.dtype)
    along_row = k.vector if window.unrolled else k.loop
    at_maximum = _unrolled_at_maximum if window.unrolled else _looped_at_maximum
    with _planes(k, x) as p, k.loop(y.shape[2]) as i, along_row(y.shape[3]) as j:

        def payload(a: DimLike, b: DimLike) -> Expr:
            place = window.place(i, j, a, b)
            return k.load(t, (0, p, *place), window.exists(place))

        k.store(y, (0, p, i, j), at_maximum(window, x, (p, i, j), payload, none))


def emit_max_pool_place(k: KernelBuilder) -> None:
    """Where each window has its maximum, in units of the caller's: of windows that are unrolled and
    have all their taps."""
    x, y = k.operands[0], k.results[0]
    row, col = k.attrs["row"], k.attrs["col"]
    window = Window(k, x.shape[2:])
    with _planes(k, x) as p, k.loop(y.shape[2]) as i, k.vector(y.shape[3]) as j:

        def there(a: Any, b: Any) -> Expr:
            return k.index(window.row(i, a) * row + window.col(j, b) * col)

        k.store(y, (0, p, i, j), _unrolled_at_maximum(window, x, (p, i, j), there, k.index(0)))


def emit_max_pool_grad(k: KernelBuilder) -> None:
    window = Window(k, k.operands[0].shape[2:])
    if window.unrolled and window.disjoint:
        _emit_disjoint_grad(k, window)
    else:
        _emit_overlapping_grad(k, window)


def _covers(window: Window, out: tuple[DimLike, ...]) -> bool:
    """Every element of the plane belongs to a window, provably."""
    sizes = (window.height, window.width)
    return not window.guarded and all(
        d == 1 and n == s and equal_dims(count * s, size)
        for n, s, d, count, size in zip(window.kernel, window.stride, window.dilation, out, sizes)
    )


def _emit_disjoint_grad(k: KernelBuilder, window: Window) -> None:
    """Each element has at most one window: a row of windows is stored tap by tap, in lanes."""
    (x, ct), y = k.operands, k.results[0]
    numbers = {tap: n for n, tap in enumerate(window.taps())}
    zero = k.literal(0, y.dtype)
    with _planes(k, x) as p:
        if not _covers(window, ct.shape[2:]):
            _fill(k, y, p, 0)
        with k.loop(ct.shape[2]) as i, k.vector(ct.shape[3]) as j:

            def number(a: Any, b: Any) -> Expr:
                return k.literal(numbers[a, b], int32)

            none = k.literal(-1, int32)
            winner = k.let(_unrolled_at_maximum(window, x, (p, i, j), number, none))
            arriving = k.let(k.load(ct, (0, p, i, j)))
            for (a, b), n in numbers.items():
                place = window.place(i, j, a, b)
                here = k.call("equal", winner, k.literal(n, int32), dtype=bool_)
                value = _select(k, here, arriving, zero)
                k.store(y, (0, p, *place), value, window.exists(place))


def _emit_overlapping_grad(k: KernelBuilder, window: Window) -> None:
    """The places of a row of windows are found first, in lanes; then added one after another."""
    (x, ct), y = k.operands, k.results[0]
    columns = ct.shape[3]
    places = k.scratch(int64, (columns,))
    none = k.index(-1)
    along_row = k.vector if window.unrolled else k.loop
    at_maximum = _unrolled_at_maximum if window.unrolled else _looped_at_maximum
    with _planes(k, x) as p:
        _fill(k, y, p, 0)
        with k.loop(ct.shape[2]) as i:
            with along_row(columns) as j:

                def linear(a: DimLike, b: DimLike) -> Expr:
                    h, w = window.place(i, j, a, b)
                    return k.index(h * window.width + w)

                k.store(places, (j,), at_maximum(window, x, (p, i, j), linear, none))
            with k.loop(columns) as j:
                place = k.let(k.load(places, (j,)))
                exists = None
                if window.guarded:
                    exists = k.let(k.call("greater_equal", place, k.index(0), dtype=bool_))
                known = k.load(y, (0, p, 0, place), exists)
                k.store(y, (0, p, 0, place), k.call("add", known, k.load(ct, (0, p, i, j))), exists)


__all__ = [
    "emit_max_pool",
    "emit_max_pool_grad",
    "emit_max_pool_place",
    "emit_max_pool_take",
    "emit_sum_pool",
    "emit_sum_pool_grad",
    "emit_windows_sum",
]
