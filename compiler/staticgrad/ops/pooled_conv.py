"""Gradients of a convolution behind max pooling, without the zeros between the maxima.

The pass `simplify` makes these of `conv_grad_weight`, `conv_grad_input` and `max_pool_grad` where
windows are apart (`passes.pools`). `place` is where a window's maximum would be in a plane with its
padding and with channels innermost, counted in elements: its row times `row` plus its column times
`col`. Images lie so, in vectors of channels, while they are computed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, Shape, dim_max, product
from staticgrad.ir.dtype import bool_, int64
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import Array, KernelBuilder
from staticgrad.kernels.ir import Expr

from .conv import reference_grad_input, reference_grad_weight
from .lowering import Custom
from .pooling import infer_pool, places
from .pooling_kernels import emit_max_pool_place
from .registry import (
    Attrs,
    NotBatchable,
    NotDifferentiable,
    Op,
    Sample,
    Tolerance,
    Types,
    register,
    require_equal,
)
from .samples import random_array

GROUP = 16  # channels are padded to a multiple: a vector of float32 at most
BLOCK = 8  # output channels whose sums are kept while all images go by
_SOURCE = "the chain rule: a product with a plane of mostly zeros"
_WHY = "made by the pass `simplify`, after derivatives"


@dataclass(frozen=True)
class Planes:
    """How images [C, H, W] lie: [high * wide, channels]. `plane` is the convolution's result."""

    size: Shape
    plane: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, int]
    image_channels: int

    @property
    def channels(self) -> int:
        return -(-self.image_channels // GROUP) * GROUP

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def extents(self) -> tuple[DimLike, DimLike]:
        """Rows and columns, of what taps reach and of the image behind its padding."""
        high, wide = (
            dim_max((n - 1) * s + (k - 1) * d + 1, size + low)
            for n, s, k, d, (low, _), size in zip(
                self.plane, self.stride, self.kernel, self.dilation, self.padding, self.size
            )
        )
        return high, wide

    @property
    def elements(self) -> DimLike:
        high, wide = self.extents
        return high * wide * self.channels

    @property
    def steps(self) -> dict[str, DimLike]:
        """What a row and a column of the result are in elements: attributes of `max_pool_place`."""
        row = self.extents[1] * (self.stride[0] * self.channels)
        return {"row": row, "col": self.stride[1] * self.channels}

    def windows(
        self, k: KernelBuilder, kind: str, arrays: tuple[Array, ...], starts: tuple[DimLike, ...],
        count: DimLike,
    ) -> None:  # fmt: skip
        """Calls a function of `codegen.conv_pooled` on arrays x, ct, place and taps."""
        row = self.extents[1] * (self.dilation[0] * self.channels)
        k.template(f"pooled_{kind}", arrays, (*starts, count, self.channels, row),
                   dtype=str(arrays[0].dtype), kernel=self.kernel,
                   step=self.dilation[1] * self.channels)  # fmt: skip


def planes_of(attrs: Attrs, size: Any, kernel: Any, plane: Any, channels: Any) -> Planes:
    return Planes(
        tuple(size), tuple(plane), tuple(kernel), attrs["stride"], attrs["padding"],
        attrs["dilation"], channels,
    )  # fmt: skip


def _planes_weight(types: Types, attrs: Attrs) -> Planes:
    x = types[0]
    return planes_of(attrs, x.shape[2:], attrs["kernel"], attrs["plane"], x.shape[1])


def _planes_input(types: Types, attrs: Attrs) -> Planes:
    w = types[2]
    return planes_of(attrs, attrs["spatial"], w.shape[2:], attrs["plane"], w.shape[1])


# --- places ---------------------------------------------------------------------------------------


def _infer_place(types: Types, attrs: Attrs) -> Types:
    (y,) = infer_pool(types, attrs)
    return (TensorType(int64, y.shape),)


def _reference_place(x: Any, row: Any, col: Any, **attrs: Any) -> Any:
    at, wide = places(x, attrs), x.shape[3]
    return (at // wide * row + at % wide * col).astype(np.int64)


def _pool(kernel: tuple[int, int], stride: tuple[int, int]) -> dict[str, Any]:
    return {"kernel": kernel, "stride": stride, "padding": ((0, 0), (0, 0)), "dilation": (1, 1),
            "ceil_mode": False}  # fmt: skip


def _samples_place() -> list[Sample]:
    found = []
    for shape, kernel, stride in (
        ((2, 3, 8, 6), (2, 2), (2, 2)), ((1, 2, 9, 35), (2, 3), (3, 3)),
        ((0, 2, 4, 4), (2, 2), (2, 2)),
    ):  # fmt: skip
        for dtype in ("float32", "float64"):
            x = np.round(random_array(shape, dtype, 1) * 2)  # with ties
            found.append(Sample((x,), {**_pool(kernel, stride), "row": 640, "col": 16}))
    return found


# --- gradients ------------------------------------------------------------------------------------


def _require_windows(ct: TensorType, place: TensorType) -> None:
    for a, b in zip(ct.shape, place.shape):
        require_equal(a, b, f"{ct} and {place}")


def _infer_weight(types: Types, attrs: Attrs) -> Types:
    x, ct, place = types
    _require_windows(ct, place)
    return (TensorType(x.dtype, (ct.shape[1], x.shape[1], *attrs["kernel"])),)


def _infer_input(types: Types, attrs: Attrs) -> Types:
    ct, place, w = types
    _require_windows(ct, place)
    return (TensorType(ct.dtype, (ct.shape[0], w.shape[1], *attrs["spatial"])),)


def _scattered(ct: Any, place: Any, planes: Planes) -> Any:
    """The cotangent of the convolution's result."""
    row, col = planes.steps["row"], planes.steps["col"]
    full = np.zeros((*ct.shape[:2], *planes.plane), ct.dtype)
    lead = np.indices(place.shape)[:2]
    np.add.at(full, (*lead, place // row, place % row // col), ct)
    return full


def _conv_attrs(attrs: Attrs) -> dict[str, Any]:
    return {**{n: a for n, a in attrs.items() if n != "plane"}, "groups": 1}


def _typed(*arrays: Any) -> Types:
    from staticgrad.ir.dtype import dtype

    return tuple(TensorType(dtype(str(a.dtype)), a.shape) for a in arrays)


def _reference_weight(x: Any, ct: Any, place: Any, **attrs: Any) -> Any:
    full = _scattered(ct, place, _planes_weight(_typed(x, ct, place), attrs))
    return reference_grad_weight(x, full, **_conv_attrs(attrs))


def _reference_input(ct: Any, place: Any, w: Any, **attrs: Any) -> Any:
    full = _scattered(ct, place, _planes_input(_typed(ct, place, w), attrs))
    return reference_grad_input(full, w, **_conv_attrs(attrs))


def _windows(ct: Array | TensorType) -> DimLike:
    return product(ct.shape[2:])


Rows = tuple[Array, DimLike, DimLike]


def _transpose(
    k: KernelBuilder, source: Rows, target: Rows, rows: DimLike, cols: DimLike
) -> None:  # fmt: skip
    """target[c, r] = source[r, c]; each an array, where it starts, and its row stride."""
    (a, at, a_rs), (b, to, b_rs) = source, target
    k.template("conv_transpose", (a, b), (at, to, a_rs, b_rs, rows, cols), dtype=str(a.dtype))


def _emit_weight(k: KernelBuilder) -> None:
    (x, ct, place), w = k.operands, k.results[0]
    types = tuple(TensorType(a.dtype, a.shape) for a in k.operands)
    p = _planes_weight(types, k.attrs)
    (high, wide), (low_h, low_w) = p.extents, (low for low, _ in p.padding)
    images, channels = x.shape[:2]
    packed = k.scratch(x.dtype, (images, high * wide, p.channels))
    rows = k.scratch(x.dtype, (p.image_channels, high * wide))
    with k.parallel(images) as n:
        with k.loop(channels) as c, k.loop(high) as h, k.vector(wide) as v:
            inside: list[Expr] = []
            for at, low, size in ((h, low_h, x.shape[2]), (v, low_w, x.shape[3])):
                shifted = k.index(at - low)
                inside.append(k.call("greater_equal", shifted, k.index(0), dtype=bool_))
                inside.append(k.call("less", shifted, k.index(size), dtype=bool_))
            there = inside[0]
            for condition in inside[1:]:
                there = k.call("logical_and", there, condition, dtype=bool_)
            k.store(rows, (c, h * wide + v), k.load(x, (n, c, h - low_h, v - low_w), there, 0))
        _transpose(k, (rows, 0, high * wide), (packed, n * p.elements, p.channels), channels,
                   high * wide)  # fmt: skip
    outputs, taps = int(str(ct.shape[1])), p.taps
    block = max(b for b in range(1, BLOCK + 1) if outputs % b == 0)
    sums = k.scratch(x.dtype, (block, taps, p.channels))
    with k.parallel(outputs // block) as b:
        with k.vector(block * taps * p.channels) as e:
            k.store(sums, (0, 0, e), k.literal(0, x.dtype))
        with k.loop(images) as n, k.loop(block) as i:
            at = (n * outputs + b * block + i) * _windows(ct)
            starts = (n * p.elements, at, at, i * (taps * p.channels))
            p.windows(k, "taps", (packed, ct, place, sums), starts, _windows(ct))
        with k.loop(block) as i:
            _transpose(k, (sums, i * (taps * p.channels), p.channels),
                       (w, (b * block + i) * (channels * taps), taps), taps, channels)  # fmt: skip


def _emit_input(k: KernelBuilder) -> None:
    (ct, place, w), y = k.operands, k.results[0]
    types = tuple(TensorType(a.dtype, a.shape) for a in k.operands)
    p = _planes_input(types, k.attrs)
    (high, wide), (low_h, low_w) = p.extents, (low for low, _ in p.padding)
    outputs, channels, taps = ct.shape[1], w.shape[1], p.taps
    panel = k.scratch(w.dtype, (outputs, taps, p.channels))
    with k.parallel(outputs) as o:
        _transpose(k, (w, o * (channels * taps), taps),
                   (panel, o * (taps * p.channels), p.channels), channels, taps)  # fmt: skip
    plane = k.scratch(w.dtype, (high * wide, p.channels))
    rows = k.scratch(w.dtype, (p.image_channels, high * wide))
    with k.parallel(ct.shape[0]) as n:
        with k.vector(p.elements) as e:
            k.store(plane, (0, e), k.literal(0, w.dtype))
        with k.loop(outputs) as o:
            at = (n * outputs + o) * _windows(ct)
            starts = (0, at, at, o * (taps * p.channels))
            p.windows(k, "spread", (plane, ct, place, panel), starts, _windows(ct))
        _transpose(k, (plane, 0, p.channels), (rows, 0, high * wide), high * wide, channels)
        with k.loop(channels) as c, k.loop(y.shape[2]) as h, k.vector(y.shape[3]) as v:
            k.store(y, (n, c, h, v), k.load(rows, (c, (h + low_h) * wide + v + low_w)))


def _flops(types: Types, attrs: Attrs) -> DimLike:
    """Of the products of all windows."""
    if types[1].dtype == int64:
        ct, channels, taps = types[0], types[2].shape[1], prod(map(int, types[2].shape[2:]))
    else:
        ct, channels, taps = types[1], types[0].shape[1], prod(attrs["kernel"])
    return product(ct.shape) * channels * taps * 2


def _samples(weight: bool) -> list[Sample]:
    found = []
    for images, inputs, outputs, size, kernel, stride, padding, dilation in (
        (2, 16, 8, (8, 8), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
        (3, 19, 5, (9, 12), (3, 3), (1, 1), ((1, 0), (0, 1)), (1, 1)),
        (1, 17, 3, (13, 16), (3, 2), (2, 1), ((0, 1), (1, 1)), (2, 1)),
        (2, 16, 4, (10, 6), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        (0, 16, 2, (6, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ):
        attrs: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        plane = tuple(
            (n + sum(pad) - d * (k - 1) - 1) // s + 1
            for n, pad, d, k, s in zip(size, padding, dilation, kernel, stride)
        )
        planes = planes_of(attrs, size, kernel, plane, inputs)
        for dtype in ("float64", "float32"):
            z = random_array((images, outputs, *plane), dtype, 1)
            place = _reference_place(z, **_pool((2, 2), (2, 2)), **planes.steps)
            ct, attrs = random_array(place.shape, dtype, 2), {**attrs, "plane": plane}
            x = random_array((images, inputs, *size), dtype, 3)
            w = random_array((outputs, inputs, *kernel), dtype, 4)
            found.append(
                Sample((x, ct, place), {**attrs, "kernel": kernel}, differentiable=False)
                if weight
                else Sample((ct, place, w), {**attrs, "spatial": size}, differentiable=False)
            )
    return found


def _record(name: str, summary: str, infer: Any, reference: Any, lower: Custom, samples: Any,
            tolerance: Tolerance) -> None:  # fmt: skip
    register(
        Op(
            name=name,
            summary=summary,
            infer=infer,
            reference=reference,
            vjp=NotDifferentiable(_WHY),
            jvp=NotDifferentiable(_WHY),
            batch=NotBatchable(_WHY),
            lower=lower,
            samples=samples,
            source=_SOURCE,
            tolerance=tolerance,
        )
    )


_record("max_pool_place", "where each window has its first maximum: h * row + w * col",
        _infer_place, _reference_place, Custom(emit_max_pool_place), _samples_place, Tolerance()
        )  # fmt: skip
_record("conv_grad_weight_pooled", "conv_grad_weight of x and a cotangent of zeros but at place",
        _infer_weight, _reference_weight, Custom(_emit_weight, _flops, flops_at=1),
        lambda: _samples(True), Tolerance(1e-4, 1e-11))  # fmt: skip
_record("conv_grad_input_pooled", "conv_grad_input of a cotangent of zeros but at place, and w",
        _infer_input, _reference_input, Custom(_emit_input, _flops, flops_at=1),
        lambda: _samples(False), Tolerance(1e-4, 1e-11))  # fmt: skip
