"""Functions whose result holds the same elements: views, which share the memory.

Where nothing is recorded the result is NumPy's view, as of `x[1:]`. Where a gradient is recorded,
or the elements don't lie so that there is a view, it is a tensor of its own, and what is written to
it in place is written on to the tensor that it was taken from, as long as somebody holds that:
PyTorch's views.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from staticgrad.ops import shape as shapes
from staticgrad.ops.indexing import take
from staticgrad.ops.selection import where

from .mode import recording
from .tape import Leaf
from .tensor import Array, Storage, Tensor

View = Callable[[Array], Array]


def _reshape(x: Array, *shape: Any) -> Array | None:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    elif not shape:
        return None
    found = x.reshape(shape)
    return found if x.flags.c_contiguous or np.may_share_memory(found, x) else None


def _flatten(x: Array, start_dim: int = 0, end_dim: int = -1) -> Array | None:
    if not x.ndim:
        return x.reshape(1)
    first, last = range(x.ndim)[start_dim], range(x.ndim)[end_dim]
    if first > last:
        return None
    merged = int(np.prod(x.shape[first : last + 1]))
    return _reshape(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))


def _squeeze(x: Array, axis: Any = None, *, dim: Any = None) -> Array:
    axis = dim if axis is None else axis
    return x.squeeze(tuple(axis) if isinstance(axis, list) else axis)


def _unsqueeze(x: Array, dim: int) -> Array:
    return np.expand_dims(x, dim)


def _expand_dims(x: Array, *, axis: Any = 0) -> Array:
    return np.expand_dims(x, tuple(axis) if isinstance(axis, list) else axis)


def _permute(x: Array, *axes: Any) -> Array | None:
    given = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    return x.transpose(given) if given else None


def _permute_dims(x: Array, axes: Any) -> Array:
    return x.transpose(axes)


def _swapaxes(x: Array, axis1: int, axis2: int) -> Array:
    return x.swapaxes(axis1, axis2)


def _transposed(x: Array) -> Array | None:
    return x.T if x.ndim == 2 else None


def _t(x: Array) -> Array | None:
    return x.T if x.ndim <= 2 else None


def _view_as(x: Array, other: Any) -> Array | None:
    return _reshape(x, other.shape)


def _matrix_transpose(x: Array) -> Array | None:
    return x.swapaxes(-1, -2) if x.ndim >= 2 else None


# By the names of methods and properties of tensors, and of functions; filled by `operators`.
METHODS: dict[str, Callable[..., Array | None]] = {
    "reshape": _reshape, "view": _reshape, "flatten": _flatten, "squeeze": _squeeze,
    "unsqueeze": _unsqueeze, "permute": _permute, "swapaxes": _swapaxes, "transpose": _swapaxes,
    "T": _transposed, "mT": _matrix_transpose, "t": _t, "view_as": _view_as,
}  # fmt: skip
FUNCTIONS: dict[Any, Callable[..., Array | None]] = {
    shapes.reshape: _reshape, shapes.flatten: _flatten, shapes.squeeze: _squeeze,
    shapes.expand_dims: _expand_dims, shapes.permute_dims: _permute_dims,
    shapes.swapaxes: _swapaxes, shapes.matrix_transpose: _matrix_transpose,
}  # fmt: skip


def view_of(view: Callable[..., Array | None], t: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    """The view that shares the memory of `t`. None where NumPy has none: the function itself then
    says what is wrong, or makes a copy."""
    try:
        array = view(t._array, *args, **kwargs)
    except (ValueError, TypeError, IndexError):
        return None
    return None if array is None else Tensor(array, t._store or t.shared())


class CopyOf(Storage):
    """The memory of a view that is a copy: what is written to it goes on to
    `base`. `view` gives the same selection of an array."""

    __slots__ = ("_base", "_copy", "_view")

    def __init__(self, copy: Array, base: Tensor, view: View) -> None:
        super().__init__()
        self._copy = copy
        # A view between is held: the tensor that it is of may live on without it.
        self._base: Any = weakref.ref(base)
        if base._store.__class__ is CopyOf or base._array.base is not None:
            self._base = lambda: base
        self._view = view

    def base(self) -> Tensor | None:
        """The tensor that the view is of, unless it is gone."""
        found: Tensor | None = self._base()
        return found

    def _places(self, base: Tensor) -> Array:
        """Where each element of the view stands in `base`, in row-major order."""
        return self._view(np.arange(base._array.size).reshape(base.shape)).reshape(-1)

    def write_on(self, base: Tensor, t: Tensor) -> None:
        """Writes this memory, which `t` is or is a view of, to its places in `base`."""
        from .dispatch import call
        from .inplace import become

        recorded = recording.get() and (base._node is not None or t._node is not None)
        if not recorded or t._array is not self._copy:
            base.change(lambda: np.put(base._array, self._places(base), self._copy))
            written(base)
            return
        places = self._places(base)
        source = np.zeros(base._array.size, np.int64)
        mask = np.zeros(base._array.size, bool)
        mask[places] = True
        source[places] = np.arange(places.size)
        picks = Tensor(mask.reshape(base.shape)), Tensor(source.reshape(base.shape))
        become(base, call(merged, (base, t, *picks), {}), "writing to a view")


def note_copy(result: Any, base: Tensor, view: View) -> Any:
    """Has a view that was recorded, or that NumPy has none of, say what it is a copy of."""
    if result is not base and result.__class__ is Tensor and result._store is None:
        result._store = CopyOf(result._array, base, view)
    return result


def copied_from(t: Tensor) -> Tensor | None:
    """The tensor that `t` was taken from as a recorded view, if somebody holds it."""
    store = t._store
    return store.base() if store.__class__ is CopyOf else None  # type: ignore[union-attr]


def written(t: Tensor) -> None:
    """To be called when `t` was changed in place: changes what it is a view of."""
    base = copied_from(t)
    if base is not None:
        t._store.write_on(base, t)  # type: ignore[union-attr]


def leaf_below(t: Tensor) -> bool:
    """Whether a write to `t` would change a leaf that requires a gradient."""
    found: Tensor | None = t
    while found is not None:
        if found._node.__class__ is Leaf:
            return True
        found = copied_from(found)
    return False


def merged(x: Any, value: Any, mask: Any, source: Any) -> Any:
    """Traced: `value` at the places of the mask, `x` elsewhere."""
    flat = take(shapes.reshape(value, (-1,)), shapes.reshape(source, (-1,)), axis=0)
    return where(mask, shapes.reshape(flat, x.shape), x)


__all__ = [
    "FUNCTIONS", "METHODS", "copied_from", "leaf_below", "merged", "note_copy", "view_of",
    "written",
]  # fmt: skip
