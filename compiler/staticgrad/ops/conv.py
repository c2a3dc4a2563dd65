"""Convolution in one and two dimensions, and the gradients of its two operands.

    y[n, o, i, j] = sum over c, a, b of
        x[n, g*C/groups + c, i*stride0 - low0 + a*dilation0, j*stride1 - low1 + b*dilation1]
        * w[o, c, a, b]            with g = o // (O/groups), and x zero outside of its bounds

x: [N, C, *spatial], w: [O, C/groups, *kernel], y: [N, O, *out] with
out = (spatial + low + high - dilation*(kernel - 1) - 1) // stride + 1 for each spatial dim. A zero
of the padding counts as any other element: NaN or infinity times it is NaN. The operation is linear
in each operand, so the three records are each other's derivatives and every order exists.
`conv_grad_input` is what others call the transposed convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike, Shape, dim_max, floor_div, product
from staticgrad.ir.errors import ArgumentError, DTypeError, ShapeError, UnsupportedError
from staticgrad.ir.types import TensorType

from .convert import promoted
from .lowering import Product
from .registry import (
    Attrs,
    BatchContext,
    Op,
    Sample,
    Tolerance,
    Types,
    apply,
    register,
    require_equal,
)
from .rules import jvp_bilinear
from .samples import random_array
from .shape import matrix_transpose, moveaxis, permute_dims, reshape
from .slicing import box, never_negative, put
from .tensor import Tensor

Array = np.ndarray[Any, Any]
Padding = tuple[tuple[int, int], ...]

_SOURCE = "PyTorch 2, torch.nn.functional.conv1d/conv2d/conv_transpose1d/conv_transpose2d"


def window_count(
    size: DimLike, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> DimLike:
    """The number of windows along one dim: `(size + low + high - reach) // stride + 1`, where a
    window reaches over `dilation*(kernel - 1) + 1` elements.

    Raises `ShapeError` where the window is known to be wider than the padded dim; where that
    depends on a symbolic size, the call is asked.
    """
    reach = dilation * (kernel - 1) + 1
    room = size + sum(padding) - reach
    if isinstance(room, int) and room < 0:
        raise ShapeError(
            f"a window of {kernel} with dilation {dilation} reaches over {reach} elements, but the "
            f"padded dim has {size + sum(padding)} (size {size}, padding {padding})"
        )
    if not never_negative(room):
        require_equal(
            dim_max(room, 0), room, f"a window over {reach} elements does not fit the size {size}"
        )
    return floor_div(room, stride) + 1


def _check_geometry(attrs: Attrs, spatial: int) -> None:
    if spatial not in (1, 2):
        raise UnsupportedError(
            f"convolution is supported in 1 and 2 dimensions, got operands with {spatial}"
        )
    for name in ("stride", "dilation", "padding"):
        if len(attrs[name]) != spatial:
            raise ShapeError(f"{name} has {len(attrs[name])} entries for {spatial} spatial dims")
    if min(*attrs["stride"], *attrs["dilation"], attrs["groups"]) < 1:
        raise ArgumentError(
            f"stride, dilation and groups must be at least 1, got stride {attrs['stride']}, "
            f"dilation {attrs['dilation']}, groups {attrs['groups']}"
        )
    if min(p for pair in attrs["padding"] for p in pair) < 0:
        raise ArgumentError(f"padding can't be negative, got {attrs['padding']}")


def _check_operands(types: Types, attrs: Attrs) -> int:
    """Both operands of one numeric dtype and rank; the number of spatial dims."""
    a, b = types
    if a.dtype != b.dtype:
        raise DTypeError(f"operands differ in dtype: {a} and {b}")
    if a.dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {a} and {b}")
    if a.ndim != b.ndim or a.ndim < 3:
        raise ShapeError(
            f"expected operands of 3 dims (one spatial dim) or 4 dims (two), got {a} and {b}"
        )
    _check_geometry(attrs, a.ndim - 2)
    return a.ndim - 2


def _kernel_sizes(w: TensorType) -> tuple[int, ...]:
    sizes = w.shape[2:]
    if any(isinstance(k, Dim) or k < 1 for k in sizes):
        raise ShapeError(f"the window's sizes must be ints of at least 1, got the weight {w}")
    return tuple(int(k) for k in sizes)


def _check_groups(out_channels: DimLike, groups: int, what: TensorType) -> None:
    if isinstance(out_channels, int) and out_channels % groups:
        raise ShapeError(f"{groups} groups do not divide the {out_channels} channels of {what}")


def _out_sizes(spatial: Shape, kernel: Sequence[int], attrs: Attrs) -> Shape:
    return tuple(
        window_count(size, k, s, p, d)
        for size, k, s, p, d in zip(
            spatial, kernel, attrs["stride"], attrs["padding"], attrs["dilation"]
        )
    )


def channels_last(shape: Shape, channels: DimLike) -> str:
    """A hint where the channels of images or sequences seem to stand last, as Keras has them."""
    last = shape[-1]
    if len(shape) < 3 or not isinstance(last, int) or last != channels or shape[1] == channels:
        return ""
    order = ", ".join(map(str, (0, len(shape) - 1, *range(1, len(shape) - 1))))
    layout = "[N, C, H, W]" if len(shape) == 4 else "[N, C, ..]"
    return f" (channels stand in dim 1, {layout}, here last: sg.permute_dims(x, ({order})))"


def _infer_conv(types: Types, attrs: Attrs) -> Types:
    _check_operands(types, attrs)
    x, w = types
    groups = attrs["groups"]
    require_equal(
        x.shape[1],
        w.shape[1] * groups,
        f"channels of {x} against weight {w} with {groups} group(s)"
        f"{channels_last(x.shape, w.shape[1] * groups)}",
    )
    _check_groups(w.shape[0], groups, w)
    out = _out_sizes(x.shape[2:], _kernel_sizes(w), attrs)
    return (TensorType(x.dtype, (x.shape[0], w.shape[0], *out)),)


def _check_cotangent(ct: TensorType, out: Shape, what: str) -> None:
    for have, want in zip(ct.shape[2:], out):
        require_equal(have, want, f"{ct} as a convolution's result over {what}")


def _infer_grad_input(types: Types, attrs: Attrs) -> Types:
    spatial = _check_operands(types, attrs)
    ct, w = types
    groups, sizes = attrs["groups"], attrs["spatial"]
    if len(sizes) != spatial:
        raise ShapeError(f"spatial has {len(sizes)} entries for {spatial} spatial dims")
    require_equal(ct.shape[1], w.shape[0], f"channels of {ct} against the weight {w}")
    _check_groups(w.shape[0], groups, w)
    _check_cotangent(ct, _out_sizes(sizes, _kernel_sizes(w), attrs), f"an input of {sizes}")
    return (TensorType(ct.dtype, (ct.shape[0], w.shape[1] * groups, *sizes)),)


def _infer_grad_weight(types: Types, attrs: Attrs) -> Types:
    spatial = _check_operands(types, attrs)
    x, ct = types
    groups, kernel = attrs["groups"], attrs["kernel"]
    if len(kernel) != spatial or min(kernel) < 1:
        raise ShapeError(f"kernel {kernel} does not fit {spatial} spatial dims")
    require_equal(x.shape[0], ct.shape[0], f"batches of {x} and {ct}")
    _check_groups(x.shape[1], groups, x)
    _check_groups(ct.shape[1], groups, ct)
    _check_cotangent(ct, _out_sizes(x.shape[2:], kernel, attrs), f"an input of {x}")
    return (TensorType(x.dtype, (ct.shape[1], floor_div(x.shape[1], groups), *kernel)),)


# --- references: windows and einsum, summed in float64 --------------------------------------------


def _wide(a: Array) -> Array:
    return a.astype(np.float64) if a.dtype.kind == "f" else a


def _windows(x: Array, kernel: Sequence[int], attrs: Attrs) -> Array:
    """[N, C, *spatial] -> [N, C, *out, *kernel], zeros outside."""
    spatial = x.ndim - 2
    padded = np.pad(x, ((0, 0), (0, 0), *attrs["padding"]))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, attrs["dilation"])]
    found = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, x.ndim)))
    steps = [slice(None, None, s) for s in attrs["stride"]]
    taps = [slice(None, None, d) for d in attrs["dilation"]]
    assert found.ndim == 2 + 2 * spatial
    return found[(slice(None), slice(None), *steps, *taps)]


def _split(a: Array, axis: int, groups: int) -> Array:
    """`axis` split in (groups, rest)."""
    return a.reshape(*a.shape[:axis], groups, a.shape[axis] // groups, *a.shape[axis + 1 :])


def _reference_conv(x: Array, w: Array, **attrs: Any) -> Array:
    groups = attrs["groups"]
    windows = _split(_windows(_wide(x), w.shape[2:], attrs), 1, groups)
    letters = ("h", "k") if x.ndim == 3 else ("hi", "kl")
    out, taps = letters
    y = np.einsum(f"ngc{out}{taps},goc{taps}->ngo{out}", windows, _split(_wide(w), 0, groups))
    return y.reshape(x.shape[0], w.shape[0], *y.shape[3:]).astype(x.dtype)


def reference_grad_input(ct: Array, w: Array, **attrs: Any) -> Array:
    groups, sizes = attrs["groups"], attrs["spatial"]
    grouped_ct, grouped_w = _split(_wide(ct), 1, groups), _split(_wide(w), 0, groups)
    channels = w.shape[1]
    low = [p[0] for p in attrs["padding"]]
    padded_sizes = [size + sum(p) for size, p in zip(sizes, attrs["padding"])]
    padded = np.zeros((ct.shape[0], groups, channels, *padded_sizes), grouped_ct.dtype)
    out = "hi"[: ct.ndim - 2]
    for taps in np.ndindex(*w.shape[2:]):
        here = tuple(
            slice(t * d, t * d + s * count, s)
            for t, d, s, count in zip(taps, attrs["dilation"], attrs["stride"], ct.shape[2:])
        )
        part = np.einsum(f"ngo{out},goc->ngc{out}", grouped_ct, grouped_w[(..., *taps)])
        padded[(slice(None), slice(None), slice(None), *here)] += part
    inner = tuple(slice(lo, lo + size) for lo, size in zip(low, sizes))
    cut = padded[(slice(None), slice(None), slice(None), *inner)]
    return cut.reshape(ct.shape[0], groups * channels, *sizes).astype(ct.dtype)


def reference_grad_weight(x: Array, ct: Array, **attrs: Any) -> Array:
    groups = attrs["groups"]
    windows = _split(_windows(_wide(x), attrs["kernel"], attrs), 1, groups)
    out, taps = ("h", "k") if x.ndim == 3 else ("hi", "kl")
    g = np.einsum(f"ngc{out}{taps},ngo{out}->goc{taps}", windows, _split(_wide(ct), 1, groups))
    return g.reshape(ct.shape[1], x.shape[1] // groups, *attrs["kernel"]).astype(x.dtype)


# --- derivatives: the three are each other's ------------------------------------------------------


def _shared(attrs: Attrs) -> dict[str, Any]:
    return {name: attrs[name] for name in ("stride", "padding", "dilation", "groups")}


def _vjp_conv(c: Any, ct: Tensor) -> tuple[Any, ...]:
    x, w = c.operands
    shared = _shared(c.attrs)
    return (
        apply("conv_grad_input", ct, w, **shared, spatial=x.shape[2:]) if c.needed[0] else None,
        apply("conv_grad_weight", x, ct, **shared, kernel=w.shape[2:]) if c.needed[1] else None,
    )


def _vjp_grad_input(c: Any, ct: Tensor) -> tuple[Any, ...]:
    y, w = c.operands
    shared = _shared(c.attrs)
    return (
        apply("conv", ct, w, **shared) if c.needed[0] else None,
        apply("conv_grad_weight", ct, y, **shared, kernel=w.shape[2:]) if c.needed[1] else None,
    )


def _vjp_grad_weight(c: Any, ct: Tensor) -> tuple[Any, ...]:
    x, y = c.operands
    shared = _shared(c.attrs)
    return (
        apply("conv_grad_input", y, ct, **shared, spatial=x.shape[2:]) if c.needed[0] else None,
        apply("conv", x, ct, **shared) if c.needed[1] else None,
    )


# --- many at once ---------------------------------------------------------------------------------

# Where the batch goes if only the first, or only the second operand has it: (axis of the operand,
# axis of the result), each with whether the axis runs over the groups first. Batched weights are
# more output channels, a batched cotangent of a weight more of that weight's.
Place = tuple[int, bool]
_ONE: dict[str, tuple[tuple[Place, Place], tuple[Place, Place]]] = {
    "conv": (((0, False), (0, False)), ((0, True), (1, True))),
    "conv_grad_input": (((0, False), (0, False)), ((1, False), (1, True))),
    "conv_grad_weight": (((1, True), (1, False)), ((1, True), (0, True))),
}
# Where both have it: each item is a set of groups of its own. The axes of operands and result.
_BOTH = {"conv": (1, 0, 1), "conv_grad_input": (1, 0, 1), "conv_grad_weight": (1, 1, 0)}


def _batch(c: BatchContext) -> Tensor:
    """The batch is folded into images, channels or groups. The number of groups is an int of at
    least 1, so other numbers of items with weights of their own are products of windows."""
    kind, groups = c.node.op, c.attrs["groups"]
    if all(c.batched):
        if isinstance(c.size, Dim) or c.size < 1:
            return _PRODUCTS[kind](c)
        left, right, into = _BOTH[kind]
        a, b = _folded(c.operands[0], left, 1), _folded(c.operands[1], right, 1)
        return _unfolded(apply(kind, a, b, **{**c.attrs, "groups": groups * c.size}), c, into, 1)
    which = 0 if c.batched[0] else 1
    (axis, grouped), (into, ordered) = _ONE[kind][which]
    operands = list(c.operands)
    operands[which] = _folded(operands[which], axis, groups if grouped else 1)
    return _unfolded(apply(kind, *operands, **c.attrs), c, into, groups if ordered else 1)


def _folded(x: Tensor, axis: int, groups: int) -> Tensor:
    """[B, .., groups*n, ..] -> [.., groups*B*n, ..]; `axis` counts without the B."""
    size, *shape = x.shape
    before, n, after = shape[:axis], floor_div(shape[axis], groups), shape[axis + 1 :]
    apart = moveaxis(reshape(x, (size, *before, groups, n, *after)), 0, axis + 1)
    return reshape(apart, (*before, groups * size * n, *after))


def _unfolded(y: Tensor, c: BatchContext, axis: int, groups: int) -> Tensor:
    """[.., groups*B*n, ..] -> [B, .., groups*n, ..], the batched result."""
    shape = c.result_types[0].shape
    before, n, after = shape[:axis], floor_div(shape[axis], groups), shape[axis + 1 :]
    apart = reshape(y, (*before, groups, c.size, n, *after))
    return reshape(moveaxis(apart, axis + 1, 0), (c.size, *shape))


@dataclass(frozen=True)
class _Rows:
    """A batch of convolutions as matrices for each item and group: an image's windows are rows
    [N*out, C/groups*kernel], weights are rows [O/groups, C/groups*kernel]. In one dimension, in
    two with a height of 1."""

    size: DimLike
    attrs: Attrs
    kernel: tuple[int, ...]
    spatial: Shape
    out: Shape

    @property
    def groups(self) -> int:
        groups: int = self.attrs["groups"]
        return groups

    def _geometry(self) -> dict[str, Any]:
        given = {"kernel": self.kernel, **{n: self.attrs[n] for n in ("stride", "dilation")}}
        plain = {"padding": ((0, 0), (0, 0)), "ceil_mode": False}
        return {n: _two(a, 1) for n, a in given.items()} | plain

    def _box(self, images: DimLike, channels: DimLike) -> tuple[Any, Any, Shape]:
        """Where the unpadded images are in the padded ones: start, step, the padded shape."""
        pairs, sizes = _two(self.attrs["padding"], (0, 0)), _two(self.spatial, 1)
        padded = tuple(low + n + high for n, (low, high) in zip(sizes, pairs))
        return (0, 0, *(low for low, _ in pairs)), (1,) * 4, (images, channels, *padded)

    def of_images(self, x: Tensor) -> Tensor:
        """[B, N, C, *spatial] -> [B, groups, N*out, C/groups*kernel]."""
        n, channels = x.shape[1:3]
        images = reshape(x, (self.size * n, channels, *_two(self.spatial, 1)))
        found = apply("windows", put(images, *self._box(*images.shape[:2])), **self._geometry())
        parts = (floor_div(channels, self.groups), *_two(self.out, 1), *_two(self.kernel, 1))
        apart = reshape(found, (self.size, n, self.groups, *parts))
        rows = permute_dims(apart, (0, 2, 1, 4, 5, 3, 6, 7))
        return reshape(rows, (*rows.shape[:2], product(rows.shape[2:5]), product(rows.shape[5:])))

    def to_images(self, rows: Tensor, n: DimLike, channels: DimLike) -> Tensor:
        """The adjoint of `of_images`."""
        inner = (floor_div(channels, self.groups), *_two(self.kernel, 1))
        apart = reshape(rows, (self.size, self.groups, n, *_two(self.out, 1), *inner))
        found = reshape(
            permute_dims(apart, (0, 2, 1, 5, 3, 4, 6, 7)),
            (self.size * n, channels, *_two(self.out, 1), *_two(self.kernel, 1)),
        )
        start, step, shape = self._box(*found.shape[:2])
        added = apply("windows_sum", found, **self._geometry(), spatial=shape[2:])
        cut = box(added, start, step, (*shape[:2], *_two(self.spatial, 1)))
        return reshape(cut, (self.size, n, channels, *self.spatial))

    def of_results(self, y: Tensor) -> Tensor:
        """[B, N, O, *out] -> [B, groups, N*out, O/groups]."""
        n, channels = y.shape[1:3]
        count = product(self.out)
        apart = reshape(
            y, (self.size, n, self.groups, floor_div(channels, self.groups), count)
        )  # fmt: skip
        rows = permute_dims(apart, (0, 2, 1, 4, 3))
        return reshape(rows, (*rows.shape[:2], n * count, rows.shape[4]))

    def of_weights(self, w: Tensor) -> Tensor:
        """[B, O, C/groups, *kernel] -> [B, groups, O/groups, C/groups*kernel]."""
        channels = floor_div(w.shape[1], self.groups)
        return reshape(w, (self.size, self.groups, channels, product(w.shape[2:])))


def _two(values: tuple[Any, ...], height: Any) -> tuple[Any, ...]:
    return values if len(values) == 2 else (height, *values)


def _products_conv(c: BatchContext) -> Tensor:
    (x, w), (y,) = c.operands, c.result_types
    rows = _Rows(c.size, c.attrs, _kernel_sizes(c.types[1]), x.shape[3:], y.shape[2:])
    n, channels = y.shape[:2]
    found = apply("matmul", rows.of_images(x), matrix_transpose(rows.of_weights(w)))
    inner = floor_div(channels, rows.groups)
    apart = reshape(found, (c.size, rows.groups, n, product(y.shape[2:]), inner))
    return reshape(permute_dims(apart, (0, 2, 1, 4, 3)), (c.size, *y.shape))


def _products_grad_input(c: BatchContext) -> Tensor:
    (ct, w), (x,) = c.operands, c.result_types
    rows = _Rows(c.size, c.attrs, _kernel_sizes(c.types[1]), x.shape[2:], ct.shape[3:])
    found = apply("matmul", rows.of_results(ct), rows.of_weights(w))
    return rows.to_images(found, x.shape[0], x.shape[1])


def _products_grad_weight(c: BatchContext) -> Tensor:
    (x, ct), (w,) = c.operands, c.result_types
    rows = _Rows(c.size, c.attrs, c.attrs["kernel"], x.shape[3:], ct.shape[3:])
    found = apply("matmul", matrix_transpose(rows.of_results(ct)), rows.of_images(x))
    return reshape(found, (c.size, *w.shape))


_PRODUCTS = {
    "conv": _products_conv,
    "conv_grad_input": _products_grad_input,
    "conv_grad_weight": _products_grad_weight,
}

# --- samples --------------------------------------------------------------------------------------

# x, w, stride, padding, dilation, groups
_CASES: tuple[tuple[Any, ...], ...] = (
    ((2, 3, 7, 6), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 4, 9, 8), (6, 2, 3, 2), (2, 3), ((1, 0), (0, 2)), (2, 1), 2),
    ((1, 6, 5, 5), (6, 1, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 6),
    ((3, 2, 4, 4), (5, 2, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 5, 6, 19), (17, 5, 2, 5), (1, 2), ((0, 1), (2, 2)), (1, 1), 1),
    ((2, 3, 11), (4, 3, 3), (2,), ((1, 1),), (2,), 1),
    ((1, 4, 6), (4, 2, 2), (3,), ((0, 0),), (1,), 2),
    ((0, 2, 5, 5), (3, 2, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
)


def _case(case: tuple[Any, ...], dtype: str) -> tuple[Array, Array, Array, dict[str, Any]]:
    x_shape, w_shape, stride, padding, dilation, groups = case
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x, w = random_array(x_shape, dtype, 1), random_array(w_shape, dtype, 2)
    out = _out_sizes(x_shape[2:], w_shape[2:], attrs)
    return x, w, random_array((x_shape[0], w_shape[0], *map(int, out)), dtype, 3), attrs


def _samples(kind: str) -> list[Sample]:
    found = []
    dtypes = [(case, "float64") for case in _CASES]
    dtypes += [(_CASES[0], "float32"), (_CASES[1], "float32"), (_CASES[1], "int32")]
    for case, dtype in dtypes:
        x, w, ct, attrs = _case(case, dtype)
        if kind == "conv":
            found.append(Sample((x, w), attrs))
        elif kind == "conv_grad_input":
            found.append(Sample((ct, w), {**attrs, "spatial": x.shape[2:]}))
        else:
            found.append(Sample((x, ct), {**attrs, "kernel": w.shape[2:]}))
    return found


def _record(name: str, summary: str, infer: Any, reference: Any, vjp: Any) -> None:
    register(
        Op(
            name=name,
            summary=summary,
            infer=infer,
            reference=reference,
            vjp=vjp,
            jvp=jvp_bilinear,
            batch=_batch,
            lower=Product(name),
            samples=lambda: _samples(name),
            source=_SOURCE,
            # Sums of products of both signs: cancellation makes the relative error larger.
            tolerance=Tolerance(1e-4, 1e-11),
        )
    )


_record("conv", "convolution of x with w", _infer_conv, _reference_conv, _vjp_conv)
_record(
    "conv_grad_input",
    "the gradient of conv by its input: the transposed convolution",
    _infer_grad_input,
    reference_grad_input,
    _vjp_grad_input,
)
_record(
    "conv_grad_weight",
    "the gradient of conv by its weight",
    _infer_grad_weight,
    reference_grad_weight,
    _vjp_grad_weight,
)


def conv(
    x: Any, w: Any, /, *, stride: tuple[int, ...], padding: Padding, dilation: tuple[int, ...],
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """The convolution of `x: [N, C, *spatial]` with `w: [O, C/groups, *kernel]`, as on top of this
    page. `padding` has the zeros before and after each spatial dim. The layers' form with PyTorch's
    arguments is `nn.functional.conv1d` and `conv2d`."""
    a, b = promoted(x, w)
    return apply("conv", a, b, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose(
    x: Any, w: Any, /, *, stride: tuple[int, ...], padding: Padding, dilation: tuple[int, ...],
    spatial: Shape, groups: int = 1,
) -> Tensor:  # fmt: skip
    """The gradient of `conv` by an input of the sizes `spatial`, for the cotangent
    `x: [N, O, *out]` and `w: [O, C/groups, *kernel]`; the result is [N, C, *spatial]."""
    a, b = promoted(x, w)
    return apply(
        "conv_grad_input", a, b, stride=stride, padding=padding, dilation=dilation, groups=groups,
        spatial=spatial,
    )  # fmt: skip


__all__ = ["conv", "conv_transpose", "window_count"]
