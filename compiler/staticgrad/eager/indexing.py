"""`x[...]` and `x[...] = v` of eager tensors.

Integers and slices select a view where nothing is recorded, as in NumPy; where a gradient is wanted
they become index arrays, so that all places share one kernel. Index tensors and lists go to the
static tensor's own indexing; a mask is turned into the places where it is true.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentTypeError, ShapeError
from staticgrad.ops.convert import astype, to_array
from staticgrad.ops.indexing import take
from staticgrad.ops.public import dynamic, public
from staticgrad.ops.shape import broadcast_to, reshape
from staticgrad.ops.tensor import Tensor as GraphTensor

from .dispatch import call
from .inplace import become, check_changeable
from .mode import recording
from .parameters import eager_of
from .tensor import Tensor
from .views import merged, note_copy, written

_BASIC = (int, slice, type(None), type(Ellipsis))
_static_getitem = vars(GraphTensor)["__getitem__"]


def _plain(part: Any) -> Any:
    """A part of an index: eager integers of one element as ints, masks and lists as arrays."""
    if isinstance(part, (bool, np.bool_)):
        return np.asarray(part)
    if isinstance(part, _BASIC):
        return part
    if isinstance(part, Tensor):
        if part._sig.dtype.kind == "b":
            return part._array
        return int(part._array) if part.ndim == 0 and part._sig.dtype.is_integer else part
    if isinstance(part, np.integer):
        return int(part)
    if isinstance(part, (list, np.ndarray)):
        array = np.asarray(part)
        return array.astype(np.int64) if array.size == 0 else array
    return part


def _parts(key: Any) -> list[Any]:
    parts = [_plain(p) for p in (key if isinstance(key, tuple) else (key,))]
    places: list[Any] = []
    for p in parts:
        if isinstance(p, np.ndarray) and p.dtype.kind == "b":
            places += list(np.nonzero(p)) if p.ndim else [p]
        else:
            places.append(p)
    return places


def _check(t: Tensor, key: Any) -> Any:
    """The view that NumPy gives for a basic index; its errors are ours."""
    try:
        return t._array[key]
    except IndexError as error:
        raise ShapeError(f"indexing {t.type}: {error}") from None


def getitem(self: Tensor, key: Any, /) -> Tensor:
    """The selected elements. A view, which shares the memory, where no gradient is recorded."""
    if (key.__class__ is int or key.__class__ is slice) and (
        self._node is None or not recording.get()
    ):  # fmt: skip
        try:
            view = self._array[key]
        except (IndexError, TypeError):
            return _indexed(self, key)  # which says what is wrong
        return Tensor(
            view if view.__class__ is np.ndarray else np.asarray(self._array[key, ...]),
            self._store or self.shared(),
        )
    return _indexed(self, key)


@public
def _indexed(self: Tensor, key: Any) -> Tensor:
    parts = _parts(key)
    if not all(isinstance(p, _BASIC) for p in parts):
        _check_masks(self, key)
        return call(_static_getitem, (self, tuple(parts) if len(parts) > 1 else parts[0]), {})  # type: ignore[no-any-return]
    index = tuple(parts)
    view = np.asarray(_check(self, (*index, Ellipsis) if Ellipsis not in index else index))
    if self._node is None or not recording.get():
        return Tensor(view, self.shared())
    full = index if Ellipsis in index else (*index, Ellipsis)
    return note_copy(_selected(self, index), self, lambda a: a[full])  # type: ignore[no-any-return]


def _check_masks(t: Tensor, key: Any) -> None:
    """A mask must have the shape of the axes that it stands for."""
    axis = 0
    for p in (_plain(p) for p in (key if isinstance(key, tuple) else (key,))):
        if isinstance(p, np.ndarray) and p.dtype.kind == "b":
            if p.shape != t.shape[axis : axis + p.ndim]:
                raise ShapeError(f"a mask of shape {p.shape} does not fit {t.type} at axis {axis}")
            axis += p.ndim
        elif p is not None and p is not Ellipsis:
            axis += 1


def _selected(t: Tensor, index: tuple[Any, ...]) -> Tensor:
    """Basic indexing that is recorded: elements are taken along each axis that the index cuts."""
    given = [p for p in index if p is not None]
    if Ellipsis not in given:
        given.append(Ellipsis)
    at = given.index(Ellipsis)
    full = [slice(None)] * (t.ndim - len(given) + 1)
    axes, places = [], []
    for axis, p in enumerate([*given[:at], *full, *given[at + 1 :]]):
        if isinstance(p, slice) and p == slice(None):
            continue
        chosen = np.arange(t.shape[axis], dtype=np.int64)[p]
        axes.append(axis)
        places.append(Tensor(np.atleast_1d(np.ascontiguousarray(chosen))))
    layout = tuple(0 if isinstance(p, int) else 1 if p is None else 2 for p in _expanded(index, t))
    return call(_taken, (t, places, tuple(axes), layout), {})  # type: ignore[no-any-return]


def _expanded(index: tuple[Any, ...], t: Tensor) -> list[Any]:
    given = list(index) if Ellipsis in index else [*index, Ellipsis]
    at = given.index(Ellipsis)
    count = t.ndim - sum(p is not None for p in given) + 1
    return [*given[:at], *[slice(None)] * count, *given[at + 1 :]]


def _taken(x: Any, places: Any, axes: tuple[int, ...], layout: tuple[int, ...]) -> Any:
    """Traced: takes along the axes; then drops those of ints (0), adds new ones (1)."""
    for axis, place in zip(axes, places):
        x = take(x, place, axis=axis)
    kept, axis = [], 0
    for kind in layout:
        if kind == 1:
            kept.append(1)
            continue
        if kind == 2:
            kept.append(x.shape[axis])
        axis += 1
    return reshape(x, tuple(kept)) if tuple(kept) != x.shape else x


@public
def setitem(self: Tensor, key: Any, value: Any, /) -> None:
    """Writes to the selected elements, in place."""
    check_changeable(self)
    parts = tuple(p._array if isinstance(p, Tensor) else p for p in _parts(key))
    _check_masks(self, key)
    if isinstance(value, GraphTensor) or dynamic.is_tensor(value):
        value = eager_of(value, "x[...] = v")
    else:
        value = Tensor(to_array(value, self._sig.dtype))
    target = np.asarray(_check(self, parts))
    try:
        np.broadcast_to(value._array, target.shape)
    except ValueError:
        raise ShapeError(
            f"x[...] = v: v is {value.type}, the selected elements have shape {target.shape}"
        ) from None
    recorded = recording.get() and (self._node is not None or value._node is not None)
    if not recorded:
        array = value._array.astype(self._sig.numpy_dtype, copy=False)

        def write() -> None:
            self._array[parts] = array

        self.change(write)
        written(self)
        return
    if self._array.dtype.kind != "f":
        raise ArgumentTypeError(f"x[...] = v: {self.type} holds no values with a gradient")
    # Where each element comes from: its own place, or a place of the value.
    places = np.arange(self.size).reshape(self.shape)
    mask = np.zeros(self.shape, bool)
    mask[parts] = True
    source = np.zeros(self.shape, np.int64)
    source[parts] = np.arange(target.size).reshape(places[parts].shape)
    spread = broadcast_to(astype(value, self.dtype), target.shape) if target.size else value
    become(self, call(merged, (self, spread, Tensor(mask), Tensor(source)), {}), "x[...] = v")


def attach() -> None:
    """Gives the class its indexing."""
    Tensor.__getitem__ = getitem  # type: ignore[method-assign]
    Tensor.__setitem__ = setitem  # type: ignore[method-assign]


attach()
