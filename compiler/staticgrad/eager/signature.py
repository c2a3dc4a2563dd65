"""Signatures: one object for each (dtype, shape), so that a call finds its kernel by identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, Shape
from staticgrad.ir.dtype import DType
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.types import TensorType

_REMEMBERED = 100_000  # sizes; to forget one costs a look-up by value the next time


class Signature:
    """The dtype and the exact shape of an array. Equality is identity: they are interned."""

    __slots__ = ("dtype", "is_float", "numpy_dtype", "shape", "type")

    def __init__(self, numpy_dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.numpy_dtype = numpy_dtype
        self.shape = shape
        self.dtype: DType = as_dtype(numpy_dtype)
        self.is_float = self.dtype.is_float
        self.type = TensorType(self.dtype, shape)

    def __repr__(self) -> str:
        return f"Signature({self.type})"


_known: dict[tuple[Any, tuple[int, ...]], Signature] = {}


def signature_of(array: np.ndarray[Any, Any]) -> Signature:
    """The signature of an array. Raises for dtypes that are not supported."""
    key = (array.dtype, array.shape)
    found = _known.get(key)
    if found is None:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        found = _known[key] = Signature(array.dtype, array.shape)
    return found


def signature_for(dtype: DType, shape: Shape) -> Signature:
    """The signature of a dtype and a shape of ints."""
    numpy_dtype = dtype.numpy
    key = (numpy_dtype, shape)
    found = _known.get(key)  # type: ignore[arg-type]
    if found is None:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        found = _known[key] = Signature(numpy_dtype, shape)  # type: ignore[arg-type,index]
    return found


def symbolic_shapes(shapes: Sequence[tuple[int, ...]], fixed: Sequence[bool]) -> list[Shape]:
    """Shapes with symbols in place of sizes: the layout class that kernels are compiled for.

    Equal sizes have one symbol. A size of 1, which broadcasts, stays, and so does one that a fixed
    shape (a parameter's) has. Where a size is 0, of which not every function has a value, all stay.
    """
    if any(0 in shape for shape in shapes):
        return list(shapes)
    exact = {1, *(d for shape, keep in zip(shapes, fixed) if keep for d in shape)}
    names: dict[int, Dim] = {}
    return [
        tuple(d if d in exact else names.setdefault(d, Dim.symbol(f"N{len(names)}")) for d in shape)
        for shape in shapes
    ]


__all__ = ["Signature", "signature_for", "signature_of", "symbolic_shapes"]
