"""Indexing: `x[...]` as NumPy has it, take and take_along_axis.

Ints, slices, Ellipsis and None become the `slice` record and a reshape; integer tensors become one
`gather`. Boolean masks are refused: the shape of their result depends on data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike, Shape, equal_dims, is_index
from staticgrad.ir.dtype import promote
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.loc import current_locs, locs_text

from .arithmetic import add
from .convert import as_tensor, astype, constant_array
from .gather import gather, scatter_add
from .registry import apply, broadcast_shapes
from .shape import broadcast_to, moveaxis, normalize_axis, permute_dims, reshape
from .slicing import box, index_bounds, slice_bounds, unbox
from .tensor import Tensor, method

# --- keys -----------------------------------------------------------------------------------------


@dataclass
class _Key:
    """What `x[key]` asks for. `entries` has one of "new", "slice", "int" or "array" for each part
    of the key, in order, Ellipsis written out; the others run over the axes of x."""

    entries: list[str] = field(default_factory=list)
    start: list[DimLike] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    shape: list[DimLike] = field(default_factory=list)
    arrays: list[Tensor] = field(default_factory=list)

    def take(self, start: DimLike, step: int, count: DimLike) -> None:
        self.start.append(start)
        self.step.append(step)
        self.shape.append(count)


def _is_array(part: Any) -> bool:
    return isinstance(part, (Tensor, np.ndarray, list)) and not (
        isinstance(part, np.ndarray) and part.ndim == 0 and part.dtype.kind in "iu"
    )


def _refuse_mask(part: Any) -> None:
    kind = part.dtype.kind if isinstance(part, (Tensor, np.ndarray, np.generic)) else ""
    if kind == "b" or isinstance(part, bool):
        raise DTypeError(
            "a boolean mask can't be an index: the shape of the result would depend on the data; "
            "use sg.where(mask, x, 0) or multiply by the mask"
        )


def _index_tensor(part: Any) -> Tensor:
    t = as_tensor(part, "index")
    if isinstance(part, list) and not part:
        t = astype(t, "int64")
    _refuse_mask(t)
    if not t.dtype.is_integer:
        raise DTypeError(f"an index must be of an integer dtype, got {t.type}")
    return t


def _parse(x: Tensor, key: Any) -> _Key:
    parts = list(key) if isinstance(key, tuple) else [key]
    dots = [i for i, p in enumerate(parts) if p is Ellipsis]
    if len(dots) > 1:
        raise ArgumentTypeError("an index can have only one Ellipsis ('...')")
    count = sum(1 for p in parts if p is not None and p is not Ellipsis)
    if count > x.ndim:
        raise ShapeError(f"{count} indices for {x.type}, which has {x.ndim} dims")
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = [slice(None)] * (x.ndim - count)
    found = _Key()
    for part in parts:
        _add_part(found, x, part)
    return found


def _add_part(found: _Key, x: Tensor, part: Any) -> None:
    if part is None:
        found.entries.append("new")
        return
    axis = len(found.start)
    size = x.shape[axis]
    _refuse_mask(part)
    if isinstance(part, slice):
        found.entries.append("slice")
        found.take(*slice_bounds(part, size))
    elif _is_array(part):
        found.entries.append("array")
        found.take(0, 1, size)
        found.arrays.append(_index_tensor(part))
        _check_constant(found.arrays[-1], size, axis)
    elif isinstance(part, Dim) or is_index(part):
        found.entries.append("int")
        found.take(index_bounds(part, size, axis), 1, 1)
    else:
        raise ArgumentTypeError(
            f"an index is an int, a slice, None, ... or an integer tensor, got {part!r} of type "
            f"{type(part).__name__}"
        )


def _check_constant(index: Tensor, size: DimLike, axis: int) -> None:
    """Refuses a constant index that is out of range already when the model is declared."""
    if index.node.op != "constant" or isinstance(size, Dim):
        return
    values = index.node.payload
    bad = values[(values < -size) | (values >= size)]
    if bad.size:
        raise ShapeError(
            f"index {bad.reshape(-1)[0]} is out of range for axis {axis} of size {size}"
        )


# --- x[key] ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """The steps from x to x[key], each of which can be taken back.

    The slice `box`; a reshape to `kept`, without the int axes; with indices a permutation `order`,
    a `gather` at axis `first`, its dims moved to axis `point`; a reshape to `final`."""

    box: tuple[tuple[DimLike, ...], tuple[int, ...], Shape]
    kept: Shape
    indices: list[Tensor]
    order: tuple[int, ...]
    first: int
    places: Shape
    point: int
    final: Shape

    @property
    def permuted(self) -> Shape:
        return tuple(self.kept[a] for a in self.order)

    @property
    def gathered(self) -> Shape:
        after = self.first + len(self.indices)
        return (*self.permuted[: self.first], *self.places, *self.permuted[after:])

    def moved(self, start: int) -> tuple[int, ...]:
        return tuple(range(start, start + len(self.places)))


def _plan(x: Tensor, key: Any) -> _Plan:
    try:
        found = _parse(x, key)
    except (ShapeError, DTypeError, ArgumentTypeError, ArgumentError) as error:
        raise _located(error) from None
    box = (tuple(found.start), tuple(found.step), tuple(found.shape))
    axes = [e for e in found.entries if e != "new"]
    kept = tuple(d for d, e in zip(found.shape, axes) if e != "int")
    axes = [e for e in axes if e != "int"]
    indexed = [a for a, e in enumerate(axes) if e == "array"]
    sliced = [a for a, e in enumerate(axes) if e != "array"]
    sizes = [kept[a] for a in sliced]
    order, first = tuple(range(len(axes))), indexed[0] if indexed else 0
    if indexed != list(range(first, first + len(indexed))):
        order, first = (*indexed, *sliced), 0
    indices = _common_dtype(found.arrays) if indexed else []
    places = broadcast_shapes(*(t.shape for t in indices))
    at = _place_entry(found)
    point = sum(1 for e in found.entries[:at] if e == "slice")
    return _Plan(box, kept, indices, order, first, places, point,
                 _final_shape(found, sizes, places, at))  # fmt: skip


def _place_entry(found: _Key) -> int:
    """The entry of the key where the indices' dims stand. As NumPy: what is indexed in several
    places apart goes first; 0-d arrays count as ints."""
    entries = [i for i, e in enumerate(found.entries) if e in ("int", "array")]
    if not found.arrays:
        return 0
    scalars = all(t.ndim == 0 for t in found.arrays)
    together = entries == list(range(entries[0], entries[-1] + 1))
    return entries[0] if together or scalars else 0


def _located(error: Any) -> Any:
    """The error with the user's line, as `make` adds it to those of records."""
    where = locs_text(current_locs())
    located = type(error)(f"x[...]: {error}" + (f"\n  at {where}" if where else ""))
    located.located = bool(where)
    return located


def _final_shape(found: _Key, sizes: list[DimLike], places: Shape, at: int) -> Shape:
    """The result's dims in the order of the key: `sizes` of the sliced axes, 1 for None, and the
    indices' `places` at entry `at`."""
    result: list[DimLike] = []
    left = iter(sizes)
    for i, entry in enumerate(found.entries):
        if i == at:
            result += places
        if entry == "new":
            result.append(1)
        elif entry == "slice":
            result.append(next(left))
    return tuple(result)


@method("__getitem__")
def getitem(x: Tensor, key: Any) -> Tensor:
    """`x[key]`: ints, slices with steps, Ellipsis, None and integer tensors, as NumPy has them.

    Slices are clamped to the array, also where its size is symbolic; a `Dim` in a slice is a
    position from the front. Several integer tensors are broadcast together; if they are not beside
    each other, their dims come first. An int out of range raises ShapeError when that is known,
    else the call fails; so does an index in a tensor.
    """
    plan = _plan(x, key)
    y = reshape(box(x, *plan.box), plan.kept)
    if plan.indices:
        y = gather(permute_dims(y, plan.order), plan.indices, axis=plan.first)
        y = moveaxis(y, plan.moved(plan.first), plan.moved(plan.point))
    return reshape(y, plan.final)


def _spread(x: Tensor, plan: _Plan, value: Tensor) -> Tensor:
    """Zeros of x's shape with `value`, of the shape of x[key], added at the key's places."""
    y = broadcast_to(value, plan.final)
    if plan.indices:
        sizes = list(plan.gathered)
        places = [sizes.pop(plan.first) for _ in plan.places]
        sizes[plan.point : plan.point] = places
        y = moveaxis(reshape(y, tuple(sizes)), plan.moved(plan.point), plan.moved(plan.first))
        y = scatter_add(y, plan.indices, plan.permuted, axis=plan.first)
        y = permute_dims(y, tuple(plan.order.index(a) for a in range(len(plan.order))))
    return unbox(reshape(y, plan.box[2]), *plan.box[:2], x.shape)


def index_add(x: Any, key: Any, value: Any, /) -> Tensor:
    """`x` with `value`, broadcast to x[key], added at the places of `key`; equal places add up, in
    their order. The key is any that `x[key]` takes. dtypes as in x; numbers only."""
    x, value = _operands(x, value, "index_add")
    if x.dtype.kind == "b":
        raise DTypeError(f"index_add: expected numbers, got {x.type}")
    return add(x, _spread(x, _plan(x, key), value))


def index_update(x: Any, key: Any, value: Any, /) -> Tensor:
    """`x` with `value`, broadcast to x[key], in place of x[key]. The key has ints, slices, None and
    Ellipsis; integer tensors could name a place twice and are refused."""
    x, value = _operands(x, value, "index_update")
    plan = _plan(x, key)
    if plan.indices:
        raise ArgumentTypeError(
            "index_update: an integer tensor could name a place twice; use index_add, or where "
            "with a mask"
        )
    here = _spread(x, plan, constant_array(np.ones((), "bool")))
    return apply("where", here, _spread(x, plan, value), x)


def _operands(x: Any, value: Any, what: str) -> tuple[Tensor, Tensor]:
    x = as_tensor(x, what)
    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        return x, astype(as_tensor(value), x.dtype)
    value = as_tensor(value, what)
    if promote(x.dtype, value.dtype) != x.dtype:
        raise DTypeError(f"{what}: {value.type} does not fit into {x.type}; convert it first")
    return x, astype(value, x.dtype)


def _common_dtype(indices: list[Tensor]) -> list[Tensor]:
    """Integer tensors of one dtype; of uint64 beside signed ones, int64."""
    common = indices[0].dtype
    for t in indices[1:]:
        kinds = {(t.dtype.kind, t.dtype.bits), (common.kind, common.bits)}
        mixed = ("u", 64) in kinds and any(kind == "i" for kind, _ in kinds)
        common = astype(t, "int64").dtype if mixed else promote(common, t.dtype)
    return [astype(t, common) for t in indices]


# --- take -----------------------------------------------------------------------------------------


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Tensor:
    """The elements of `x` at `indices` along `axis`; of the flattened array where it is None.

    x: [.., N, ..], integer indices [P..] -> [.., P.., ..]. A negative index counts from the end;
    one out of range fails the call with ExecutionError (a constant one at once with ShapeError).
    Rows of a table: `take(table, ids, axis=0)`, [V, D] and [N, T] -> [N, T, D].
    """
    x, index = as_tensor(x, "take"), _index_tensor(indices)
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    at = normalize_axis(axis, x.ndim, "take")
    _check_constant(index, x.shape[at], at)
    return gather(x, [index], axis=at)


def look_up(table: Tensor, index: Tensor, kind: str) -> Tensor:
    """The rows of a table at indices of a kind that `gather` knows: no negative ones."""
    return gather(table, [index], kind=kind)


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Tensor:
    """One element for each index, line by line: y[.., i, ..] = x[.., indices[.., i, ..], ..].

    x: [.., N, ..], integer indices: [.., P, ..] of the same rank -> [.., P, ..]; other dims
    broadcast. Source: Python array API standard 2024.12.
    """
    return pick_along(x, indices, axis)


def pick_along(x: Any, indices: Any, axis: int, kind: str = "index") -> Tensor:
    """`take_along_axis` of indices of a kind that `gather` knows."""
    x, index = as_tensor(x, "take_along_axis"), _index_tensor(indices)
    if x.ndim != index.ndim:
        raise ShapeError(f"take_along_axis: {x.type} and the indices {index.type} differ in rank")
    at = normalize_axis(axis, x.ndim, "take_along_axis")
    _check_constant(index, x.shape[at], at)
    x, index = moveaxis(x, at, -1), moveaxis(index, at, -1)
    lead = broadcast_shapes(x.shape[:-1], index.shape[:-1])
    if not all(equal_dims(a, b) for a, b in zip(lead, x.shape[:-1])):
        x = broadcast_to(x, (*lead, x.shape[-1]))
    if not all(equal_dims(a, b) for a, b in zip(lead, index.shape[:-1])):
        index = broadcast_to(index, (*lead, index.shape[-1]))
    found = gather(x, [index], batch=x.ndim - 1, axis=x.ndim - 1, kind=kind)
    return moveaxis(found, -1, at)


method("take")(take)
method("take_along_axis")(take_along_axis)
__all__ = ["index_add", "index_update", "take", "take_along_axis"]
