"""Sorting along an axis: sort and argsort, both always stable."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import product
from staticgrad.ir.dtype import ALL, int64
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import KernelBuilder

from .convert import as_tensor
from .cumulative import one_axis
from .lowering import Custom
from .registry import Attrs, JvpContext, NotDifferentiable, Op, Sample, Types, apply, register
from .rules import batch_axes
from .samples import random_array, special_values
from .tensor import Tensor, method

_STANDARD = "Python array API standard 2023.12, sorting functions"


def _emit(indices: bool, k: KernelBuilder) -> None:
    """A line at a time by the template "sort" (`codegen/sort.py`)."""
    x, y = k.operands[0], k.results[0]
    axis = k.attrs["axis"]
    outer, n, inner = product(x.shape[:axis]), x.shape[axis], product(x.shape[axis + 1 :])
    arrays = [x, y, k.scratch(x.dtype, (2 * n,))]
    if indices:
        arrays.append(k.scratch(int64, (2 * n,)))

    def line(start: Any) -> None:
        k.template("sort", arrays, (n, start, inner, start, inner), dtype=x.dtype, indices=indices,
                   descending=k.attrs["descending"])  # fmt: skip

    if isinstance(outer, int) and outer == 1:
        with k.parallel(inner) as b:
            line(b)
    elif isinstance(inner, int) and inner == 1:
        with k.parallel(outer) as a:
            line(a * n)
    else:
        with k.parallel(outer) as a, k.loop(inner) as b:
            line(a * n * inner + b)


def _reference_argsort(x: Any, axis: int, descending: bool) -> Any:
    if not descending:
        return np.argsort(x, axis=axis, kind="stable").astype(np.int64, copy=False)
    # Descending and stable: ascending on the reversed input, reversed.
    places = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.ascontiguousarray(np.flip(places, axis)).astype(np.int64)


def _reference_sort(x: Any, axis: int, descending: bool) -> Any:
    return np.take_along_axis(x, _reference_argsort(x, axis, descending), axis)


def _vjp_sort(c: Any, ct: Tensor) -> tuple[Tensor]:
    """Each cotangent goes back to the place that its element came from."""
    from .shape import moveaxis

    axis, last = c.attrs["axis"], ct.ndim - 1
    places = apply("argsort", c.operands[0], **c.attrs)
    lines, at = moveaxis(ct, axis, -1), moveaxis(places, axis, -1)
    back = apply("scatter_add", lines, at, shape=lines.shape, batch=last, axis=last)
    return (moveaxis(back, -1, axis),)


def _jvp_sort(c: JvpContext, tangents: Any) -> Tensor:
    """The tangents in the order of their elements."""
    from .shape import moveaxis

    axis, last = c.attrs["axis"], c.operands[0].ndim - 1
    places = apply("argsort", c.operands[0], **c.attrs)
    lines, at = moveaxis(tangents[0], axis, -1), moveaxis(places, axis, -1)
    return moveaxis(apply("gather", lines, at, batch=last, axis=last), -1, axis)


def _apart(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Values in random order that differ by 0.1 at least: no kink of the order is near."""
    rng = np.random.default_rng([seed, *shape])
    size = int(np.prod(shape))
    return (rng.permutation(size).reshape(shape) / 10 - size / 20).astype(dtype)


def _samples() -> list[Sample]:
    found = []
    for d in ALL:
        for descending in (False, True):
            attrs = {"axis": 1, "descending": descending}
            x = (_apart if d.is_float else random_array)((5, 33), str(d), 1)
            found.append(Sample((x,), attrs))
            special = np.tile(special_values(str(d)), (2, 2))
            found.append(Sample((special,), attrs, differentiable=False))
    for shape, axis in (((7,), 0), ((1,), 0), ((0,), 0), ((3, 0), 1), ((0, 3), 1), ((19, 5), 0),
                        ((2, 9, 3), 1), ((3, 130), 1)):  # fmt: skip
        for descending in (False, True):
            attrs = {"axis": axis, "descending": descending}
            found.append(Sample((_apart(shape, "float64", 2),), attrs))
    return found


def _infer_argsort(types: Types, attrs: Attrs) -> Types:
    return (TensorType(int64, types[0].shape),)


register(
    Op(
        name="sort",
        summary="elements in order along an axis, stable, NaN as the greatest value",
        infer=lambda types, attrs: types,
        reference=_reference_sort,
        vjp=_vjp_sort,
        jvp=_jvp_sort,
        batch=batch_axes("axis"),
        lower=Custom(lambda k: _emit(False, k)),
        samples=_samples,
        source=_STANDARD,
    )
)
register(
    Op(
        name="argsort",
        summary="the places of the elements in order along an axis, stable, NaN as the greatest",
        infer=_infer_argsort,
        reference=_reference_argsort,
        vjp=NotDifferentiable("places are integers"),
        jvp=NotDifferentiable("places are integers"),
        batch=batch_axes("axis"),
        lower=Custom(lambda k: _emit(True, k)),
        samples=_samples,
        source=_STANDARD,
    )
)


def _sorted(name: str, x: Any, axis: Any, descending: bool) -> Tensor:
    x = as_tensor(x, name)
    at = one_axis(axis, x, name)
    result: Tensor = apply(name, x, axis=at, descending=bool(descending))
    return result


@method("sort")
def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The elements of `x` in order along `axis`, ascending unless `descending`.

    x: [.., n, ..] -> the same shape. NaN is the greatest value: last ascending, first descending.
    -0 and +0 are equal. Equal elements always keep their order, whatever `stable` says; it is
    accepted for the standard's sake. The gradient goes to where each element came from.
    """
    return _sorted("sort", x, axis, descending)


@method("argsort")
def argsort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The places of the elements of `x` in order along `axis`, int64: `x[argsort(x)]` is sorted.

    x: [.., n, ..] -> the same shape. The order is that of `sort`.
    """
    return _sorted("argsort", x, axis, descending)


__all__ = ["argsort", "sort"]
