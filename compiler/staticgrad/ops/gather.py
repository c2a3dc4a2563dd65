"""Reading and adding at places known only when the program runs: `gather` and `scatter_add`.

Both records see an array x as [batch.., outer.., sizes.., inner..] and k integer arrays as
[batch.., places..], one for each of the k `sizes`; the values at the places are
[batch.., outer.., places.., inner..]. The attributes say where the parts end: `batch` dims are
shared by x and the indices, `axis` is the first indexed axis of x. Each record is the other's
gradient. An embedding is batch 0, axis 0, k 1; `take_along_axis` is batch = axis.

`kind` says what the indices are. A negative "index" (the default) counts from the end, once. Of
"label" (a class that belongs to an input), "row" (of a table) and "class" there are only those from
0 on. Any other index out of range fails the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, Shape, dim_max, dim_min, floor_div, product
from staticgrad.ir.dtype import bool_, int64
from staticgrad.ir.errors import ArgumentError, DTypeError, ExecutionError, ShapeError
from staticgrad.ir.node import Node
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import Array, KernelBuilder
from staticgrad.kernels.ir import Expr

from .failures import size_text, type_text
from .lowering import Custom
from .registry import (
    Attrs,
    BatchContext,
    Op,
    Sample,
    Types,
    apply,
    broadcast_shapes,
    register,
    require_equal,
)
from .rules import in_front, jvp_linear
from .samples import INTEGERS, random_array
from .shape import broadcast_to, moveaxis
from .slicing import CHUNK
from .tensor import Tensor

_SOURCE = "this project: NumPy's take, take_along_axis, integer indexing and add.at"
# What a failed look-up says, by the kind of its indices.
_FAILURES = {
    "index": "index {value} is out of range for an axis of size {size}",
    "label": "label {value}: the input has {size} classes",
    "row": "index {value} is out of range for a table of {size} rows",
    "class": "class {value} is out of range for {size} classes",
}
CACHE_LINE = 64  # bytes
COLUMNS = 64  # of a row that one thread's turn adds to: 256 bytes of float32

# --- shapes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The parts of an indexed array's shape."""

    batch: Shape
    outer: Shape
    sizes: Shape
    inner: Shape
    places: Shape

    @property
    def values(self) -> Shape:
        """The shape of what is read or added."""
        return (*self.batch, *self.outer, *self.places, *self.inner)


def _kind(attrs: Attrs) -> Any:
    return attrs.get("kind", "index")


def _layout(shape: Shape, indices: Types, attrs: Attrs, ask: bool) -> Layout:
    """`shape` taken apart; with `ask`, also checks that the indices fit it."""
    batch, axis, k = attrs["batch"], attrs["axis"], len(indices)
    if _kind(attrs) not in _FAILURES:
        raise ArgumentError(f"kind must be one of {', '.join(_FAILURES)}, got {_kind(attrs)!r}")
    if not (0 <= batch <= axis and k >= 1 and axis + k <= len(shape)):
        raise ShapeError(f"{k} indices at axis {axis} with {batch} batch dims do not fit {shape}")
    first = indices[0]
    for t in indices:
        if not t.dtype.is_integer:
            raise DTypeError(f"indices must be integers, got {t}")
        if t.dtype != first.dtype or t.ndim != first.ndim or t.ndim < batch:
            raise ShapeError(f"indices must have one dtype and shape, got {first} and {t}")
        if ask:
            for a, d in enumerate(t.shape):
                wanted = shape[a] if a < batch else first.shape[a]
                require_equal(d, wanted, f"axis {a} of the indices {t}")
    return Layout(
        shape[:batch], shape[batch:axis], shape[axis : axis + k], shape[axis + k :],
        first.shape[batch:],
    )  # fmt: skip


def _infer_gather(types: Types, attrs: Attrs) -> Types:
    x, *indices = types
    return (TensorType(x.dtype, _layout(x.shape, tuple(indices), attrs, True).values),)


def _infer_scatter_add(types: Types, attrs: Attrs) -> Types:
    values, *indices = types
    if values.dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {values}")
    expected = _layout(attrs["shape"], tuple(indices), attrs, True).values
    if values.ndim != len(expected):
        raise ShapeError(f"the values {values} must have {len(expected)} dims")
    for a, (have, want) in enumerate(zip(values.shape, expected)):
        require_equal(have, want, f"axis {a} of the values {values}")
    return (TensorType(values.dtype, attrs["shape"]),)


# --- the reference --------------------------------------------------------------------------------


def _wrapped(index: Any, size: int, kind: str) -> Any:
    """Indices as non-negative int64; raises where one is out of range."""
    wide = index.astype(object)  # so that no uint64 overflows
    bad = (wide < (-size if kind == "index" else 0)) | (wide >= size)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        value = int(index.reshape(-1)[at])
        text = _FAILURES[kind].format(value=value, size=size)
        raise ExecutionError(text, element=at, value=value)
    return np.where(wide < 0, wide + size, wide).astype(np.int64)


def _reference_places(shape: Any, indices: Any, batch: int, axis: int, kind: str) -> Any:
    """A key for NumPy's integer indexing that reads [batch.., outer.., places.., inner..]."""
    k, places = len(indices), indices[0].ndim - batch
    inner = len(shape) - axis - k
    rank = axis + places + inner

    def along(result_axis: int, size: int) -> Any:
        return np.arange(size).reshape([-1 if a == result_axis else 1 for a in range(rank)])

    key = [along(a, shape[a]) for a in range(axis)]
    for index, size in zip(indices, shape[axis:]):
        i = _wrapped(index, size, kind)
        lead = (*i.shape[:batch], *([1] * (axis - batch)))
        key.append(i.reshape((*lead, *i.shape[batch:], *([1] * inner))))
    key += [along(axis + places + a, shape[axis + k + a]) for a in range(inner)]
    return tuple(key)


def _reference_gather(x: Any, *indices: Any, batch: int, axis: int, kind: str = "index") -> Any:
    return x[_reference_places(x.shape, indices, batch, axis, kind)]


def _reference_scatter_add(
    values: Any, *indices: Any, shape: Any, batch: int, axis: int, kind: str = "index"
) -> Any:
    result = np.zeros(shape, dtype=values.dtype)
    np.add.at(result, _reference_places(shape, indices, batch, axis, kind), values)
    return result


# --- kernels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Nest:
    """The loops of a kernel: sizes of the merged parts and arrays seen through them."""

    batch: DimLike
    outer: DimLike
    places: DimLike
    inner: DimLike
    sizes: Shape
    indices: tuple[Array, ...]
    dense: Array  # [batch, outer, sizes.., inner]
    values: Array  # [batch, outer, places, inner]


def _nest(k: KernelBuilder, dense: Array, values: Array) -> _Nest:
    types = tuple(TensorType(a.dtype, a.shape) for a in k.operands[1:])
    layout = _layout(dense.shape, types, k.attrs, False)
    batch, outer, places, inner = (
        product(p) for p in (layout.batch, layout.outer, layout.places, layout.inner)
    )
    return _Nest(
        batch, outer, places, inner, layout.sizes,
        tuple(replace(a, shape=(batch, places)) for a in k.operands[1:]),
        replace(dense, shape=(batch, outer, *layout.sizes, inner)),
        replace(values, shape=(batch, outer, places, inner)),
    )  # fmt: skip


def _read_places(
    k: KernelBuilder, nest: _Nest, b: DimLike, p: DimLike
) -> tuple[list[Expr], Expr]:  # fmt: skip
    """The wrapped indices of one place, and whether all are in range; failures are recorded.

    Out of range, an index reads as 0, so that only an empty axis needs the guard."""
    found: list[Expr] = []
    good: Expr | None = None
    for j, (array, size) in enumerate(zip(nest.indices, nest.sizes)):
        given = k.let(k.cast(k.load(array, (b, p)), int64))
        zero = k.literal(0, int64)
        at: Expr = given
        if array.dtype.kind == "i" and _kind(k.attrs) == "index":
            negative = k.call("less", given, zero, dtype=bool_)
            behind = k.call("add", given, k.index(size))
            at = k.let(k.call("select", negative, behind, given, dtype=int64))
        low = k.call("greater_equal", at, zero, dtype=bool_)
        high = k.call("less", at, k.index(size), dtype=bool_)
        inside = k.let(k.call("logical_and", low, high))
        k.check(inside, (j * nest.batch + b) * nest.places + p, given)
        found.append(k.let(k.call("select", inside, at, zero, dtype=int64)))
        good = inside if good is None else k.let(k.call("logical_and", good, inside))
    assert good is not None
    return found, good


def _needs_guard(nest: _Nest) -> bool:
    return not all(isinstance(s, int) and s > 0 for s in nest.sizes)


def _nested_loops(
    k: KernelBuilder, extents: tuple[DimLike, ...], body: Callable[..., None]
) -> None:  # fmt: skip
    """Loops over all extents but those of 1; the outermost is parallel."""

    def open_loop(left: tuple[DimLike, ...], at: tuple[DimLike, ...], outermost: bool) -> None:
        if not left:
            body(*at)
        elif isinstance(left[0], int) and left[0] == 1:
            open_loop(left[1:], (*at, 0), outermost)
        else:
            with k.parallel(left[0]) if outermost else k.loop(left[0]) as i:
                open_loop(left[1:], (*at, i), False)

    open_loop(extents, (), True)


def _emit_gather(k: KernelBuilder) -> None:
    """Row copies: the vector loop runs over `inner`."""
    nest = _nest(k, k.operands[0], k.results[0])
    single = isinstance(nest.inner, int) and nest.inner == 1

    def copy(b: DimLike, o: DimLike, p: DimLike) -> None:
        places, good = _read_places(k, nest, b, p)
        guard = good if _needs_guard(nest) else None
        if single:
            value = k.load(nest.dense, (b, o, *places, 0), guard=guard)
            k.store(nest.values, (b, o, p, 0), value)
            return
        with k.vector(nest.inner) as i:
            value = k.load(nest.dense, (b, o, *places, i), guard=guard)
            k.store(nest.values, (b, o, p, i), value)

    _nested_loops(k, (nest.batch, nest.outer, nest.places), copy)


def _gather_moved(types: Types, results: Types, attrs: Attrs) -> DimLike:
    """Of x only what is picked, in whole lines of the cache: one of 10,000 classes is no sweep."""
    x, *indices = types
    layout = _layout(x.shape, tuple(indices), attrs, False)
    rows = product((*layout.batch, *layout.outer, *layout.places))
    picked = rows * dim_max(CACHE_LINE, product(layout.inner) * x.dtype.itemsize_bytes)
    others = (*indices, *results)
    return dim_min(picked, x.size_bytes) + sum((t.size_bytes for t in others), start=0)


def _emit_scatter_add(k: KernelBuilder) -> None:
    """Zeros, then the values one place after another, so that equal places add in their order.

    Threads share the batch and outer dims, or else the columns of the rows.
    """
    nest = _nest(k, k.results[0], k.operands[0])
    _fill_zero(k)
    if not (_is_one(nest.batch) and _is_one(nest.outer)):
        _nested_loops(
            k, (nest.batch, nest.outer), lambda b, o: _add_rows(k, nest, b, o, 0, nest.inner)
        )
    elif _is_one(nest.inner):
        _add_rows(k, nest, 0, 0, 0, 1)
    else:
        with k.parallel(floor_div(nest.inner + (COLUMNS - 1), COLUMNS)) as c:
            first = c * COLUMNS
            _add_rows(k, nest, 0, 0, first, dim_min(COLUMNS, nest.inner - first))


def _fill_zero(k: KernelBuilder) -> None:
    y = k.results[0]
    total = product(y.shape)
    flat = replace(y, shape=(total,))
    with k.parallel(floor_div(total + (CHUNK - 1), CHUNK)) as c:
        first = c * CHUNK
        with k.vector(dim_min(CHUNK, total - first)) as i:
            k.store(flat, (first + i,), k.literal(0, y.dtype))


def _is_one(d: DimLike) -> bool:
    return isinstance(d, int) and d == 1


def _add_rows(
    k: KernelBuilder, nest: _Nest, b: DimLike, o: DimLike, first: DimLike, count: DimLike
) -> None:  # fmt: skip
    """Adds to `count` columns of the rows of one batch and outer index."""
    with k.loop(nest.places) as p:
        places, good = _read_places(k, nest, b, p)
        if _is_one(nest.inner):
            _add(k, nest, b, o, p, places, 0, good)
        else:
            with k.vector(count) as i:
                _add(k, nest, b, o, p, places, first + i, good)


def _add(
    k: KernelBuilder, nest: _Nest, b: DimLike, o: DimLike, p: DimLike, places: list[Expr],
    i: DimLike, good: Expr,
) -> None:  # fmt: skip
    value = k.load(nest.values, (b, o, p, i))
    known = k.load(nest.dense, (b, o, *places, i), guard=good)
    k.store(nest.dense, (b, o, *places, i), k.call("add", known, value), guard=good)


# --- failures -------------------------------------------------------------------------------------


def _failure(node: Node) -> str:
    axis, indices = node.attrs["axis"], len(node.operands) - 1
    shape = node.operands[0].shape if node.op == "gather" else node.attrs["shape"]
    if _kind(node.attrs) != "index":
        return _FAILURES[_kind(node.attrs)].format(value="{value}", size=size_text(shape[axis]))
    operands = f"(operands {', '.join(type_text(v.type) for v in node.operands)})"
    text = f"{node.op}: index {{value}} is out of range"
    if indices == 1:
        text += f" for an axis of size {size_text(shape[axis])}"
    return f"{text} {operands}"


# --- records --------------------------------------------------------------------------------------


def _vjp_gather(c: Any, ct: Tensor) -> list[Any]:
    x, *indices = c.operands
    back = apply("scatter_add", ct, *indices, shape=x.shape, **c.attrs)
    return [back, *([None] * len(indices))]


def _vjp_scatter_add(c: Any, ct: Tensor) -> list[Any]:
    _, *indices = c.operands
    attrs = {name: value for name, value in c.attrs.items() if name != "shape"}
    return [apply("gather", ct, *indices, **attrs), *([None] * len(indices))]


def _batch_gather(c: BatchContext) -> Tensor:
    """Where the indices are the same for all items, the batch is one more outer dim; where x is, it
    is one more dim of places; else one more dim that x and the indices share."""
    batch, axis = c.attrs["batch"], c.attrs["axis"]
    further = {**c.attrs, "axis": axis + 1}
    found: Tensor
    if not any(c.batched[1:]) and batch == 0:
        found = apply("gather", *c.operands, **further)
    elif c.batched[0]:
        found = apply("gather", *in_front(c), **{**further, "batch": batch + 1})
    else:
        x = c.operands[0]
        indices = [moveaxis(i, 0, batch) for i in in_front(c, 1)]
        found = moveaxis(apply("gather", x, *indices, **c.attrs), axis, 0)
    return found


def _batch_scatter_add(c: BatchContext) -> Tensor:
    """As of `gather`; the result always has the batch axis, so the values have it too."""
    batch, axis = c.attrs["batch"], c.attrs["axis"]
    attrs = {**c.attrs, "shape": (c.size, *c.attrs["shape"]), "axis": axis + 1}
    found: Tensor
    if not any(c.batched[1:]) and batch == 0:
        found = apply("scatter_add", *c.operands, **attrs)
    else:
        found = apply("scatter_add", *in_front(c), **{**attrs, "batch": batch + 1})
    return found


# (shape of x, shape of the indices, k, batch, axis)
_CASES: tuple[tuple[tuple[int, ...], tuple[int, ...], int, int, int], ...] = (
    ((7, 33), (2, 5), 1, 0, 0),  # an embedding
    ((7, 3), (4,), 1, 0, 0),
    ((7,), (11,), 1, 0, 0),
    ((7,), (), 1, 0, 0),
    ((3, 7, 5), (4,), 1, 0, 1),
    ((3, 7), (4, 2), 1, 0, 1),
    ((5, 7), (5,), 1, 1, 1),  # one of each row
    ((2, 3, 7), (2, 3, 6), 1, 2, 2),  # take_along_axis
    ((2, 3, 7, 4), (2, 5), 1, 1, 2),
    ((4, 5, 6), (3, 2), 2, 0, 0),
    ((2, 4, 5, 17), (3,), 2, 0, 1),
    ((4, 200), (6,), 1, 0, 0),
    ((4, 3), (0,), 1, 0, 0),
    ((4, 0), (3,), 1, 0, 0),
)


def _case(
    case: Any, dtype: str, index_dtype: str, scatter: bool, kind: str = "index"
) -> Sample:  # fmt: skip
    shape, places, k, batch, axis = case
    rng = np.random.default_rng([*shape, *places])
    wraps = kind == "index" and not index_dtype.startswith("u")
    low = [-size if wraps else 0 for size in shape[axis:]]
    indices = tuple(
        rng.integers(low[j], shape[axis + j], places).astype(index_dtype) for j in range(k)
    )
    attrs: dict[str, Any] = {"batch": batch, "axis": axis}
    if kind != "index":
        attrs["kind"] = kind
    if not scatter:
        return Sample((random_array(shape, dtype), *indices), attrs)
    values = (*shape[:axis], *places[batch:], *shape[axis + k :])
    return Sample((random_array(values, dtype), *indices), {**attrs, "shape": shape})


def _samples(scatter: bool) -> list[Sample]:
    found = [_case(case, "float64", "int64", scatter) for case in _CASES]
    found += [_case(_CASES[i], "float32", "int64", scatter) for i in (0, 2, 7, 9)]
    found += [_case(_CASES[0], "float64", d, scatter) for d in INTEGERS if d != "int64"]
    found += [_case(_CASES[0], d, "int32", scatter) for d in INTEGERS]
    found += [_case(_CASES[6], "float64", d, scatter, "label") for d in ("int64", "uint8")]
    found.append(_case(_CASES[0], "float64", "int32", scatter, "row"))
    return found if scatter else [*found, _case(_CASES[0], "bool", "int64", False)]


register(
    Op(
        name="gather",
        summary="y[b, o, p, i] = x[b, o, index[b, p], i]",
        infer=_infer_gather,
        reference=_reference_gather,
        vjp=_vjp_gather,
        jvp=jvp_linear,
        batch=_batch_gather,
        lower=Custom(_emit_gather, moved=_gather_moved),
        samples=lambda: _samples(False),
        source=_SOURCE,
        traits=frozenset(("can_fail",)),
        failure=_failure,
    )
)
register(
    Op(
        name="scatter_add",
        summary="y = 0; y[b, o, index[b, p], i] += values[b, o, p, i], in ascending order of p",
        infer=_infer_scatter_add,
        reference=_reference_scatter_add,
        vjp=_vjp_scatter_add,
        jvp=jvp_linear,
        batch=_batch_scatter_add,
        lower=Custom(_emit_scatter_add),
        samples=lambda: _samples(True),
        source=_SOURCE,
        traits=frozenset(("can_fail",)),
        failure=_failure,
    )
)


def _together(indices: list[Tensor]) -> list[Tensor]:
    """Several indices, broadcast against each other."""
    shape = broadcast_shapes(*(t.shape for t in indices))
    return [broadcast_to(t, shape) for t in indices]


def gather(
    x: Tensor, indices: list[Tensor], *, batch: int = 0, axis: int = 0, kind: str = "index"
) -> Tensor:  # fmt: skip
    """The `gather` record."""
    attrs = {"batch": batch, "axis": axis} | ({} if kind == "index" else {"kind": kind})
    found: Tensor = apply("gather", x, *_together(indices), **attrs)
    return found


def scatter_add(
    values: Tensor, indices: list[Tensor], shape: Shape, *, batch: int = 0, axis: int = 0
) -> Tensor:
    """The `scatter_add` record."""
    attrs = {"shape": shape, "batch": batch, "axis": axis}
    found: Tensor = apply("scatter_add", values, *_together(indices), **attrs)
    return found
