"""Joining and repeating: concat, stack, split, roll, tile, repeat. One record, `concat`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from staticgrad.ir.dim import (
    Dim,
    DimLike,
    as_dim,
    dim_max,
    dim_min,
    equal_dims,
    floor_div,
    is_index,
    modulo,
    product,
)
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import KernelBuilder

from .convert import as_tensor, promoted
from .elementwise import zeros_as
from .lowering import Custom
from .registry import Attrs, JvpContext, Op, Sample, Types, apply, register, require_equal
from .rules import batch_axes
from .samples import random_array
from .shape import (
    broadcast_to,
    expand_dims,
    normalize_axis,
    reshape,
    shape_arguments,
    squeeze,
    with_size,
)
from .slicing import CHUNK, narrow
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, manipulation functions"
FEW = 8  # elements: a vector loop over fewer is mostly its masked tail; they are written out

# --- concat ---------------------------------------------------------------------------------------


def _infer_concat(types: Types, attrs: Attrs) -> Types:
    axis, first = attrs["axis"], types[0]
    if not 0 <= axis < first.ndim:
        raise ShapeError(f"axis {axis} is out of range for {first}")
    shape = list(first.shape)
    for t in types[1:]:
        if t.dtype != first.dtype:
            raise DTypeError(f"operands differ in dtype: {first} and {t}")
        if t.ndim != first.ndim:
            raise ShapeError(f"operands differ in rank: {first} and {t}")
        for a, d in enumerate(t.shape):
            if a == axis:
                shape[a] = shape[a] + d
            else:
                shape[a] = require_equal(shape[a], d, f"{first} and {t} differ in axis {a}")
    return (TensorType(first.dtype, tuple(shape)),)


def _vjp_concat(c: Any, ct: Tensor) -> list[Tensor | None]:
    axis = c.attrs["axis"]
    found: list[Tensor | None] = []
    offset: DimLike = 0
    for x, needed in zip(c.operands, c.needed):
        found.append(narrow(ct, axis, offset, x.shape[axis]) if needed else None)
        offset = offset + x.shape[axis]
    return found


def _jvp_concat(c: JvpContext, tangents: Any) -> Tensor:
    parts = [zeros_as(x) if t is None else t for x, t in zip(c.operands, tangents)]
    found: Tensor = apply("concat", *parts, **c.attrs)
    return found


def _emit_concat(k: KernelBuilder) -> None:
    """Row by row over the dims before the axis; along the first axis by pieces of the result."""
    axis = k.attrs["axis"]
    shape = k.results[0].shape
    outer, unit = product(shape[:axis]), product(shape[axis + 1 :])
    widths = [x.shape[axis] * unit for x in k.operands]
    operands = [replace(x, shape=(outer, w)) for x, w in zip(k.operands, widths)]
    y = replace(k.results[0], shape=(outer, shape[axis] * unit))
    if isinstance(outer, int) and outer == 1:
        _emit_pieces(k, operands, y, widths)
        return
    with k.parallel(outer) as i:
        offset: DimLike = 0
        for x, width in zip(operands, widths):
            if isinstance(width, int) and width < FEW:
                for j in range(width):
                    k.store(y, (i, offset + j), k.load(x, (i, j)))
            else:
                with k.vector(width) as j:
                    k.store(y, (i, offset + j), k.load(x, (i, j)))
            offset = offset + width


def _emit_pieces(k: KernelBuilder, operands: Any, y: Any, widths: Sequence[DimLike]) -> None:
    total = y.shape[1]
    with k.parallel(floor_div(total + (CHUNK - 1), CHUNK)) as c:
        first = c * CHUNK
        end = dim_min(first + CHUNK, total)
        offset: DimLike = 0
        for x, width in zip(operands, widths):
            low, high = dim_max(first, offset), dim_min(end, offset + width)
            with k.vector(dim_max(high - low, 0)) as j:
                k.store(y, (0, low + j), k.load(x, (0, low - offset + j)))
            offset = offset + width


def _concat_sample(axis: int, dtype: str, *shapes: tuple[int, ...]) -> Sample:
    arrays = tuple(random_array(s, dtype, i) for i, s in enumerate(shapes))
    return Sample(arrays, {"axis": axis})


register(
    Op(
        name="concat",
        summary="the operands one after another along an axis",
        infer=_infer_concat,
        reference=lambda *arrays, axis: np.concatenate(arrays, axis=axis),
        vjp=_vjp_concat,
        jvp=_jvp_concat,
        batch=batch_axes("axis"),
        lower=Custom(_emit_concat),
        samples=lambda: [
            _concat_sample(0, "float64", (2, 5), (3, 5), (0, 5)),
            _concat_sample(1, "float32", (5, 33), (5, 2), (5, 17)),
            _concat_sample(1, "float64", (2, 3, 4), (2, 1, 4)),
            _concat_sample(2, "int32", (2, 3, 1), (2, 3, 1)),
            _concat_sample(0, "float64", (5000,), (17,), (4096,)),
            _concat_sample(0, "bool", (3,), (0,), (20,)),
            _concat_sample(0, "uint8", (4, 3)),
            _concat_sample(1, "float64", (0, 2), (0, 3)),
        ],
        source=_STANDARD,
    )
)


def _tensors(arrays: Any, what: str) -> list[Tensor]:
    if isinstance(arrays, Tensor) or not isinstance(arrays, (tuple, list)):
        raise ArgumentTypeError(f"{what}: expected a tuple or list of tensors, got {arrays!r}")
    if not arrays:
        raise ArgumentError(f"{what}: expected at least one tensor")
    return list(promoted(*(as_tensor(a, what) for a in arrays)))


def concat(arrays: Any, /, *, axis: int | None = 0) -> Tensor:
    """The tensors one after another along `axis`; flattened first where it is None.

    x_i: [.., N_i, ..] -> [.., sum N_i, ..]; the other dims must agree. dtypes are promoted.
    """
    tensors = _tensors(arrays, "concat")
    if axis is None:
        tensors, axis = [reshape(t, (t.size,)) for t in tensors], 0
    if any(t.ndim == 0 for t in tensors):
        raise ShapeError("concat: 0-d tensors can't be joined; use stack")
    at = normalize_axis(axis, tensors[0].ndim, "concat")
    return tensors[0] if len(tensors) == 1 else apply("concat", *tensors, axis=at)


def stack(arrays: Any, /, *, axis: int = 0) -> Tensor:
    """The tensors, all of one shape, along a new dim at `axis` of the result.

    k tensors of [N, M] -> [k, N, M] for axis 0. dtypes are promoted.
    """
    tensors = _tensors(arrays, "stack")
    at = normalize_axis(axis, tensors[0].ndim + 1, "stack")
    for t in tensors[1:]:
        if t.ndim != tensors[0].ndim or any(
            equal_dims(a, b) is False for a, b in zip(t.shape, tensors[0].shape)
        ):
            raise ShapeError(f"stack: {tensors[0].type} and {t.type} differ in shape")
    return concat([expand_dims(t, axis=at) for t in tensors], axis=at)


# --- taking apart ---------------------------------------------------------------------------------


def split(x: Any, split_size_or_sections: Any, /, axis: int = 0) -> tuple[Tensor, ...]:
    """`x` cut along `axis` into pieces of the sizes given, or of one size (the last may differ).

    As PyTorch's split. Sizes may be symbolic; their sum must be the axis's size.
    """
    x = as_tensor(x, "split")
    at = normalize_axis(axis, x.ndim, "split")
    total = x.shape[at]
    if isinstance(split_size_or_sections, (tuple, list)):
        sizes = [as_dim(s) for s in split_size_or_sections]
    else:
        sizes = _even_sizes(total, as_dim(split_size_or_sections), "split")
    whole: DimLike = 0
    for s in sizes:
        whole = whole + s
    x = with_size(x, at, whole, f"split: the sizes {sizes} sum to {whole}")
    pieces = []
    offset: DimLike = 0
    for s in sizes:
        pieces.append(narrow(x, at, offset, s))
        offset = offset + s
    return tuple(pieces)


def _even_sizes(total: DimLike, size: DimLike, what: str) -> list[DimLike]:
    if size == 0:
        raise ArgumentError(f"{what}: the size of a piece must be positive")
    count = floor_div(total, size)
    if isinstance(count, Dim):
        raise ShapeError(
            f"{what}: how many pieces of {size} an axis of size {total} has is known only at run "
            "time; give a list of sizes"
        )
    rest = total - size * count
    return [*([size] * count), *([] if rest == 0 else [rest])]


def chunk(x: Any, chunks: int, /, axis: int = 0) -> tuple[Tensor, ...]:
    """`x` cut along `axis` into `chunks` pieces of one size (the last may be smaller, and there are
    fewer where the axis is too short), as PyTorch's chunk. A symbolic size must be a multiple."""
    x = as_tensor(x, "chunk")
    at = normalize_axis(axis, x.ndim, "chunk")
    if chunks < 1:
        raise ArgumentError(f"chunk: expected a positive number of pieces, got {chunks!r}")
    count, total = int(chunks), x.shape[at]
    if isinstance(total, int):
        return split(x, max(-(-total // count), 1), axis=at) if total else (x,) * count
    if modulo(total, count) != 0:
        raise ShapeError(
            f"chunk: the size {total} of axis {at} is no known multiple of {count}; use split with "
            "a list of sizes"
        )
    return split(x, [floor_div(total, count)] * count, axis=at)


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along `axis`, without that dim. Its size must be an int."""
    x = as_tensor(x, "unstack")
    at = normalize_axis(axis, x.ndim, "unstack")
    size = x.shape[at]
    if isinstance(size, Dim):
        raise ShapeError(f"unstack: the size {size} of axis {at} is known only at run time")
    return tuple(squeeze(narrow(x, at, i, 1), axis=at) for i in range(size))


# --- repeating ------------------------------------------------------------------------------------


def roll(x: Any, /, shift: Any, *, axis: Any = None) -> Tensor:
    """`x` with its elements moved by `shift` along `axis`; what leaves at the end enters in front.

    Several shifts go with several axes. Without an axis the flattened array is rolled.
    """
    x = as_tensor(x, "roll")
    if axis is None:
        if isinstance(shift, (tuple, list)):
            raise ArgumentError("roll: several shifts need as many axes")
        return reshape(roll(reshape(x, (x.size,)), shift, axis=0), x.shape)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    shifts = shift if isinstance(shift, (tuple, list)) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise ArgumentError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for s, a in zip(shifts, axes):
        if not isinstance(s, Dim) and not is_index(s):
            raise ArgumentTypeError(f"roll: a shift is an int, got {s!r}")
        x = _roll_one(x, s if isinstance(s, Dim) else int(s), normalize_axis(a, x.ndim, "roll"))
    return x


def _roll_one(x: Tensor, shift: DimLike, axis: int) -> Tensor:
    size = x.shape[axis]
    moved = modulo(_positive_shift(shift, size), dim_max(size, 1))
    if moved == 0:
        return x
    kept = size - moved
    parts = [narrow(x, axis, kept, moved), narrow(x, axis, 0, kept)]
    return concat(parts, axis=axis)


def _positive_shift(shift: DimLike, size: DimLike) -> DimLike:
    """The shift plus a multiple of the size that makes it non-negative: sizes are computed with
    unsigned division in kernels."""
    if isinstance(shift, int) and shift < 0 and isinstance(size, Dim):
        return shift + size * -shift
    return shift


@method("tile")
def tile(x: Any, repetitions: Any, /) -> Tensor:
    """`x` repeated as a whole along each dim; ranks are filled up with ones in front.

    x: [N, M] -> [r0*N, r1*M]. Source: Python array API standard 2023.12.
    """
    x = as_tensor(x, "tile")
    given = [as_dim(r) for r in shape_arguments((repetitions,))]
    rank = max(len(given), x.ndim)
    times = [1] * (rank - len(given)) + given
    shape = (1,) * (rank - x.ndim) + x.shape
    spread: list[DimLike] = []
    repeated: list[DimLike] = []
    for r, d in zip(times, shape):
        if r != 1:
            spread, repeated = [*spread, 1], [*repeated, r]
        spread, repeated = [*spread, d], [*repeated, d]
    wide = broadcast_to(reshape(x, tuple(spread)), tuple(repeated))
    return reshape(wide, tuple(r * d for r, d in zip(times, shape)))


def repeat(x: Any, repeats: Any, /, *, axis: int | None = None) -> Tensor:
    """`x` with every element repeated `repeats` times along `axis`; flattened where it is None.

    x: [N] -> [N*repeats]. `repeats` is one int or dim for all elements.
    """
    x = as_tensor(x, "repeat")
    if isinstance(repeats, (Tensor, tuple, list, np.ndarray)):
        raise ArgumentTypeError(
            f"repeat: expected one int or dim, got {repeats!r}; repeat each element by its own "
            "number with take and an array of indices"
        )
    times = as_dim(repeats)
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    at = normalize_axis(axis, x.ndim, "repeat")
    before, size, after = x.shape[:at], x.shape[at], x.shape[at + 1 :]
    wide = broadcast_to(reshape(x, (*before, size, 1, *after)), (*before, size, times, *after))
    return reshape(wide, (*before, size * times, *after))


method("split")(split)
method("chunk")(chunk)
method("roll")(roll)
method("repeat_interleave")(lambda self, repeats, dim=None: repeat(self, repeats, axis=dim))

__all__ = ["chunk", "concat", "repeat", "roll", "split", "stack", "tile", "unstack"]
