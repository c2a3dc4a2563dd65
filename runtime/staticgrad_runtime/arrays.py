"""Checked conversions between Python values and arrays of a declared dtype."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import data_address

Array = NDArray[Any]


def is_masked(value: Any) -> bool:
    """Whether it is one of NumPy's masked arrays, which NumPy loads when they are first asked for.
    That takes 9 ms, a fifth of a program's first call: where nobody did, there are none."""
    return "numpy.ma" in sys.modules and isinstance(value, np.ma.MaskedArray)


class ConversionError(ValueError):
    """A value that does not fit a dtype; the message completes "... expected float32, got"."""


def cast_checked(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` in `dtype`, where the kind allows it and every value fits; else ConversionError.

    Kinds rise bool -> integer -> float. An integer must be in range; a finite float must stay
    finite (rounding is accepted, as in NumPy's "same_kind" casts).
    """
    if array.dtype == dtype:
        return array
    order = {"b": 0, "u": 1, "i": 1, "f": 2}
    if array.dtype.kind not in order or order[array.dtype.kind] > order[dtype.kind]:
        raise ConversionError(f"{array.dtype}")
    if dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < info.min or high > info.max:
            raise ConversionError(f"the value {low if low < info.min else high}")
    if array.dtype.kind == "f" and array.dtype.itemsize > dtype.itemsize:
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        if not np.isfinite(cast).all() and bool(np.any(np.isinf(cast) & np.isfinite(array))):
            raise ConversionError("a finite value that overflows to infinity")
        return cast
    return array.astype(dtype)


def has_python_leaves(value: Any) -> bool:
    """True for a Python number and for lists of them: values whose dtype nobody has chosen."""
    while isinstance(value, (list, tuple)):
        if not value:
            return True
        value = value[0]
    return isinstance(value, (bool, int, float)) and not isinstance(value, np.generic)


def byte_range(array: Array) -> tuple[int, int]:
    """The [start, stop) addresses of a C-contiguous array."""
    start = data_address(array)
    return start, start + array.nbytes


def overlaps(mine: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool:
    """Whether an address range shares a byte with one of `others`, which are in order, not empty,
    and share none with each other. An empty one shares none."""
    behind = bisect_left(others, (mine[1],))  # the last to start before `mine` stops ends last too
    return mine[0] < mine[1] and behind > 0 and others[behind - 1][1] > mine[0]


def is_dense(array: Array) -> bool:
    """C-contiguous and aligned to its item: what compiled code reads in place."""
    return bool(array.flags.c_contiguous and array.flags.aligned)


def dense(array: Array) -> Array:
    """The array itself where compiled code can read it in place, else a copy that it can."""
    return array if is_dense(array) else np.array(array, order="C", copy=True)
