"""Windows over two spatial dims: maxima, sums, and the gradients of both.

Window (i, j) of a plane holds the elements x[i*stride0 + a*dilation0 - low0, j*stride1 +
b*dilation1 - low1] for tap (a, b) of the kernel. Elements outside of the plane do not exist: they
are -inf for the maximum and 0 for the sum. x: [N, C, H, W] -> [N, C, OH, OW], with `window_count`
of `conv` for each dim, or, with `ceil_mode`, one window more where a last one that starts inside
would reach over the end. One spatial dim is two with a height of 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as cartesian
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike, Shape, dim_min, floor_div
from staticgrad.ir.errors import ArgumentError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType
from staticgrad.kernels.ir import Index, call, cast

from .conv import window_count
from .convert import as_tensor
from .lowering import Custom, Generate, View
from .pooling_kernels import (
    emit_max_pool,
    emit_max_pool_grad,
    emit_max_pool_take,
    emit_sum_pool,
    emit_sum_pool_grad,
    emit_windows_sum,
)
from .registry import (
    Attrs,
    JvpContext,
    NotBatchable,
    NotDifferentiable,
    Op,
    Sample,
    Tolerance,
    Types,
    apply,
    register,
    require_equal,
)
from .rules import batch_folded, jvp_linear
from .samples import FLOATS, random_array
from .tensor import Tensor

Array = np.ndarray[Any, Any]

_SOURCE = "PyTorch 2, torch.nn.functional.max_pool2d/avg_pool2d/unfold/fold"


def pool_count(
    size: DimLike, kernel: int, stride: int, padding: tuple[int, int], dilation: int, ceil: bool
) -> DimLike:
    """The number of windows along one dim. With `ceil`, rounded up, but every window starts inside
    the dim or its leading padding. Raises `ShapeError` where not one window fits."""
    if not ceil:
        return window_count(size, kernel, stride, padding, dilation)
    extended = (padding[0], padding[1] + stride - 1)
    count = window_count(size, kernel, stride, extended, dilation)
    return dim_min(count, floor_div(size + padding[0] - 1, stride) + 1)


def _check(x: TensorType, attrs: Attrs) -> None:
    if x.ndim != 4:
        raise ShapeError(f"expected [N, C, H, W], got {x}")
    for name in ("kernel", "stride", "padding", "dilation"):
        if len(attrs[name]) != 2:
            raise ShapeError(f"{name} has {len(attrs[name])} entries for 2 spatial dims")
    if min(*attrs["kernel"], *attrs["stride"], *attrs["dilation"]) < 1:
        raise ArgumentError(
            f"kernel, stride and dilation must be at least 1, got {attrs['kernel']}, "
            f"{attrs['stride']} and {attrs['dilation']}"
        )
    for k, d, pair in zip(attrs["kernel"], attrs["dilation"], attrs["padding"]):
        if min(pair) < 0 or 2 * max(pair) > d * (k - 1) + 1:
            raise ArgumentError(
                f"padding must be between 0 and half of the window, got {pair} for a kernel of "
                f"{k} with dilation {d}"
            )


def _out(spatial: Shape, attrs: Attrs) -> Shape:
    return tuple(
        pool_count(size, k, s, p, d, attrs["ceil_mode"])
        for size, k, s, p, d in zip(
            spatial, attrs["kernel"], attrs["stride"], attrs["padding"], attrs["dilation"]
        )
    )


def _numeric(x: TensorType) -> None:
    if x.dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {x}")


def infer_pool(types: Types, attrs: Attrs) -> Types:
    x = types[0]
    _numeric(x)
    _check(x, attrs)
    return (TensorType(x.dtype, (*x.shape[:2], *_out(x.shape[2:], attrs))),)


def _require_shape(found: TensorType, shape: Shape, what: str) -> None:
    if found.ndim != len(shape):
        raise ShapeError(f"{what}: expected {len(shape)} dims, got {found}")
    for a, b in zip(found.shape, shape):
        require_equal(a, b, f"{what}: {found}")


def _infer_max_grad(types: Types, attrs: Attrs) -> Types:
    x, ct = types
    (y,) = infer_pool((x,), attrs)
    if ct.dtype != x.dtype:
        raise DTypeError(f"operands differ in dtype: {x} and {ct}")
    _require_shape(ct, y.shape, "cotangent of a max_pool")
    return (x,)


def _infer_max_take(types: Types, attrs: Attrs) -> Types:
    x, t = types
    (y,) = infer_pool((x,), attrs)
    if t.dtype != x.dtype:
        raise DTypeError(f"operands differ in dtype: {x} and {t}")
    _require_shape(t, x.shape, "second operand of max_pool_take")
    return (y,)


def _infer_sum_grad(types: Types, attrs: Attrs) -> Types:
    (ct,) = types
    _check(ct, attrs)
    x = TensorType(ct.dtype, (*ct.shape[:2], *attrs["spatial"]))
    _require_shape(ct, (*x.shape[:2], *_out(x.shape[2:], attrs)), "cotangent of a sum_pool")
    return (x,)


# --- references -----------------------------------------------------------------------------------


def _taps(x: Array, fill: Any, attrs: Attrs) -> Iterator[tuple[Array, Array, Array]]:
    """For each tap in row-major order: x's elements at it over all windows, which of them exist,
    and where they are in the plane: [N, C, OH, OW], [OH, OW], [OH, OW]."""
    height, width = x.shape[2:]
    rows, cols = (np.arange(int(n)) * s for n, s in zip(_out(x.shape[2:], attrs), attrs["stride"]))
    (dilation_h, dilation_w), ((top, _), (left, _)) = attrs["dilation"], attrs["padding"]
    for a, b in cartesian(*map(range, attrs["kernel"])):
        h, w = (rows + a * dilation_h - top)[:, None], (cols + b * dilation_w - left)[None, :]
        valid = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        at = np.where(valid, h * width + w, -1)
        flat = x.reshape(*x.shape[:2], height * width)
        found = np.full((*x.shape[:2], *at.shape), fill, x.dtype)
        found[..., valid] = flat[..., at[valid]]
        yield found, valid, at


def lowest(dtype: Any) -> Any:
    """The least value of a dtype: what padding is for a maximum."""
    kind = np.dtype(dtype)
    return -np.inf if kind.kind == "f" else np.iinfo(kind).min


def _argmax(x: Array, attrs: Attrs) -> tuple[Array, Array]:
    """The maxima and their places in the plane: the first, in row-major order, but the last NaN."""
    best: Array | None = None
    for value, valid, at in _taps(x, lowest(x.dtype), attrs):
        if best is None:
            best, place = value, np.broadcast_to(at, value.shape).copy()
            continue
        update = valid & ((place < 0) | (value > best) | (value != value))
        best, place = np.where(update, value, best), np.where(update, at, place)
    assert best is not None
    return best, place


def places(x: Array, attrs: Attrs) -> Array:
    """Where each window has its maximum in the plane, row-major."""
    return _argmax(x, attrs)[1]


def _reference_max_grad(x: Array, ct: Array, **attrs: Any) -> Array:
    _, place = _argmax(x, attrs)
    n, c, height, width = x.shape
    flat = np.zeros((n, c, height * width + 1), ct.dtype)  # the last one takes place -1
    lead = np.indices(place.shape)
    np.add.at(flat, (lead[0], lead[1], place), ct)
    return flat[..., :-1].reshape(x.shape)


def _reference_max_take(x: Array, t: Array, **attrs: Any) -> Array:
    _, place = _argmax(x, attrs)
    n, c, height, width = x.shape
    flat = np.concatenate([t.reshape(n, c, height * width), np.zeros((n, c, 1), t.dtype)], axis=2)
    lead = np.indices(place.shape)
    return flat[lead[0], lead[1], place]


def _reference_sum(x: Array, **attrs: Any) -> Array:
    total = sum(value.astype(np.float64) for value, _, _ in _taps(x, 0, attrs))
    return np.asarray(total).astype(x.dtype)


def _reference_sum_grad(ct: Array, **attrs: Any) -> Array:
    n, c = ct.shape[:2]
    height, width = attrs.pop("spatial")
    flat = np.zeros((n, c, height * width), np.float64)
    for _, valid, at in _taps(np.zeros((n, c, height, width), ct.dtype), 0, attrs):
        flat[..., at[valid]] += ct[..., valid]  # one tap's elements are distinct
    return flat.reshape(n, c, height, width).astype(ct.dtype)


def _reference_windows(x: Array, **attrs: Any) -> Array:
    taps = np.stack([v for v, _, _ in _taps(x, 0, attrs)], axis=-1)
    return taps.reshape(*taps.shape[:-1], *attrs["kernel"])


def _reference_windows_sum(ct: Array, **attrs: Any) -> Array:
    n, c = ct.shape[:2]
    height, width = attrs.pop("spatial")
    flat = np.zeros((n, c, height * width), np.float64)
    places = _taps(np.zeros((n, c, height, width), ct.dtype), 0, attrs)
    for (a, b), (_, _, at) in zip(np.ndindex(*attrs["kernel"]), places):
        flat[..., at] += ct[..., a, b]  # one tap's elements are distinct
    return flat.reshape(n, c, height, width).astype(ct.dtype)


# --- samples --------------------------------------------------------------------------------------

# x, kernel, stride, padding, dilation, ceil_mode
_CASES: tuple[tuple[Any, ...], ...] = (
    ((2, 3, 8, 6), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False),
    ((2, 2, 9, 35), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False),
    ((1, 3, 7, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), False),
    ((2, 1, 7, 20), (3, 2), (1, 3), ((1, 0), (0, 1)), (2, 1), False),
    ((1, 2, 6, 7), (3, 2), (2, 2), ((0, 0), (1, 1)), (1, 1), True),
    ((1, 1, 9, 10), (7, 6), (1, 2), ((3, 3), (0, 0)), (1, 1), False),
    ((2, 3, 1, 11), (1, 3), (1, 3), ((0, 0), (1, 1)), (1, 1), True),
    ((0, 3, 4, 4), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False),
)


def _case(
    case: tuple[Any, ...], dtype: str, distinct: bool = False
) -> tuple[Array, Array, dict[str, Any]]:
    shape, kernel, stride, padding, dilation, ceil = case
    attrs = {
        "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation,
        "ceil_mode": ceil,
    }  # fmt: skip
    x = random_array(shape, dtype, 1)
    if distinct and dtype in FLOATS:  # far apart: no small step makes another one the maximum
        x = (np.argsort(np.argsort(x, axis=None)).reshape(shape) * 0.25 - 8).astype(dtype)
    out = tuple(int(n) for n in _out(shape[2:], attrs))
    return x, random_array((*shape[:2], *out), dtype, 2), attrs


def _geometries(dtypes: tuple[str, ...] = ("float32",), distinct: bool = False) -> Iterator[Any]:
    for case in _CASES:
        yield _case(case, "float64", distinct)
    for dtype in dtypes:
        yield _case(_CASES[1], dtype)
        yield _case(_CASES[2], dtype)


def _samples_max() -> list[Sample]:
    found = [Sample((x,), a) for x, _, a in _geometries(("float32", "int32", "uint8"), True)]
    x, _, attrs = _case(_CASES[2], "float32")
    x[0, 0, 3, 3], x[0, 1] = np.nan, -np.inf
    return [*found, Sample((x,), attrs, differentiable=False)]


def _samples_max_grad() -> list[Sample]:
    found = [Sample((x, ct), a) for x, ct, a in _geometries(distinct=True)]
    for case in (_CASES[1], _CASES[2], _CASES[5]):
        x, ct, attrs = _case(case, "float32")
        ties = np.round(x)  # many equal maxima: the first counts
        ties[0, 0, 3, 3:5] = np.nan
        found.append(Sample((ties, ct), attrs, differentiable=False))
    return found


def _unpadded(dtypes: tuple[str, ...] = ("float32", "int64")) -> list[tuple[Array, dict[str, Any]]]:
    plain = {"padding": ((0, 0), (0, 0)), "ceil_mode": False}
    return [(x, {**a, **plain}) for x, _, a in _geometries(dtypes)]


def _samples_windows_sum() -> list[Sample]:
    found = []
    for x, attrs in _unpadded(("float32",)):
        shape = (*x.shape[:2], *map(int, _out(x.shape[2:], attrs)), *attrs["kernel"])
        ct = random_array(shape, str(x.dtype), 3)
        found.append(Sample((ct,), {**attrs, "spatial": x.shape[2:]}))
    return found


# --- records --------------------------------------------------------------------------------------


def _record(name: str, summary: str, infer: Any, reference: Any, vjp: Any, lower: Any,
            samples: Any, jvp: Any = jvp_linear) -> None:  # fmt: skip
    register(
        Op(
            name=name,
            summary=summary,
            infer=infer,
            reference=reference,
            vjp=vjp,
            jvp=jvp,
            batch=batch_folded,
            lower=lower,
            samples=samples,
            source=_SOURCE,
            # Sums of both signs cancel, as in `sum`.
            tolerance=Tolerance(1e-4, 1e-11) if "sum" in name else Tolerance(),
        )
    )


def _jvp_max_pool(c: JvpContext, tangents: Any) -> Any:
    return apply("max_pool_take", c.operands[0], tangents[0], **c.attrs)


def _jvp_at_maximum(c: JvpContext, tangents: Any) -> Any:
    """Linear in the second operand; the first one's maxima stay where they are."""
    if tangents[1] is None:
        return None
    return apply(c.results[0].node.op, c.operands[0], tangents[1], **c.attrs)


_record(
    "max_pool",
    "the maximum of each window; NaN where a window holds one",
    infer_pool,
    lambda x, **attrs: _argmax(x, attrs)[0],
    lambda c, ct: (apply("max_pool_grad", c.operands[0], ct, **c.attrs),),
    Custom(emit_max_pool),
    _samples_max,
    _jvp_max_pool,
)
_record(
    "max_pool_grad",
    "each window's cotangent, added at the window's first maximum",
    _infer_max_grad,
    _reference_max_grad,
    lambda c, t: (None, apply("max_pool_take", c.operands[0], t, **c.attrs)),
    Custom(emit_max_pool_grad),
    _samples_max_grad,
    _jvp_at_maximum,
)
_record(
    "max_pool_take",
    "for each window of x, the element of t where x has its first maximum",
    _infer_max_take,
    _reference_max_take,
    lambda c, ct: (None, apply("max_pool_grad", c.operands[0], ct, **c.attrs)),
    Custom(emit_max_pool_take),
    lambda: [
        Sample((s.operands[0], random_array(s.operands[0].shape, str(s.operands[0].dtype), 7)),
               s.attrs, s.differentiable)
        for s in _samples_max_grad()
    ],
    _jvp_at_maximum,
)  # fmt: skip


def _infer_sum(types: Types, attrs: Attrs) -> Types:
    if not types[0].dtype.is_float:
        raise DTypeError(f"expected a floating dtype, got {types[0]}")
    return infer_pool(types, attrs)


def _without_spatial(attrs: Attrs) -> dict[str, Any]:
    return {name: a for name, a in attrs.items() if name != "spatial"}


def _grad_record(forward: str) -> Any:
    def vjp(c: Any, ct: Tensor) -> tuple[Tensor]:
        return (apply(f"{forward}_grad", ct, **c.attrs, spatial=c.operands[0].shape[2:]),)

    return vjp


_record(
    "sum_pool",
    "the sum of each window",
    _infer_sum,
    _reference_sum,
    _grad_record("sum_pool"),
    Custom(emit_sum_pool),
    lambda: [Sample((x,), a) for x, _, a in _geometries()],
)
_record(
    "sum_pool_grad",
    "each window's cotangent, added at all of the window's elements",
    _infer_sum_grad,
    _reference_sum_grad,
    lambda c, t: (apply("sum_pool", t, **_without_spatial(c.attrs)),),
    Custom(emit_sum_pool_grad),
    lambda: [Sample((ct,), {**a, "spatial": x.shape[2:]}) for x, ct, a in _geometries()],
)


def _check_unpadded(attrs: Attrs) -> None:
    if attrs["ceil_mode"] or any(p for pair in attrs["padding"] for p in pair):
        raise ArgumentError("windows have no padding and no ceil_mode; pad the operand first")


def _infer_windows(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    _check(x, attrs)
    _check_unpadded(attrs)
    shape = (*x.shape[:2], *_out(x.shape[2:], attrs), *attrs["kernel"])
    return (TensorType(x.dtype, shape),)


def _infer_windows_sum(types: Types, attrs: Attrs) -> Types:
    (ct,) = types
    _numeric(ct)
    if ct.ndim != 6:
        raise ShapeError(f"expected [N, C, OH, OW, KH, KW], got {ct}")
    x = TensorType(ct.dtype, (*ct.shape[:2], *attrs["spatial"]))
    _require_shape(ct, _infer_windows((x,), attrs)[0].shape, "windows to be added up")
    return (x,)


def _index_windows(at: Any, attrs: Attrs, x: TensorType, y: TensorType) -> Any:
    (stride_h, stride_w), (dilation_h, dilation_w) = attrs["stride"], attrs["dilation"]
    n, c, i, j, a, b = at
    return n, c, i * stride_h + a * dilation_h, j * stride_w + b * dilation_w


_record(
    "windows",
    "the windows of x as dims of their own: [N, C, H, W] -> [N, C, OH, OW, KH, KW]",
    _infer_windows,
    _reference_windows,
    lambda c, ct: (apply("windows_sum", ct, **c.attrs, spatial=c.operands[0].shape[2:]),),
    View(_index_windows),
    lambda: [Sample((x,), a) for x, a in _unpadded()],
)
_record(
    "windows_sum",
    "overlapping windows added up: [N, C, OH, OW, KH, KW] -> [N, C, H, W]",
    _infer_windows_sum,
    _reference_windows_sum,
    lambda c, t: (apply("windows", t, **_without_spatial(c.attrs)),),
    Custom(emit_windows_sum),
    _samples_windows_sum,
)


def _infer_counts(types: Types, attrs: Attrs) -> Types:
    count = pool_count(
        attrs["size"], attrs["kernel"], attrs["stride"], attrs["padding"], 1, attrs["ceil_mode"]
    )
    return (TensorType(attrs["dtype"], (count,)),)


def _reference_counts(**attrs: Any) -> Array:
    size, kernel, (low, high) = attrs["size"], attrs["kernel"], attrs["padding"]
    count = _infer_counts((), attrs)[0].shape[0]
    start = np.arange(int(count)) * attrs["stride"] - low
    first, end = (-low, size + high) if attrs["include_padding"] else (0, size)
    found = np.minimum(start + kernel, end) - np.maximum(start, first)
    return found.astype(attrs["dtype"].numpy)


def _emit_counts(at: tuple[DimLike, ...], attrs: Attrs, y: TensorType, *args: Any) -> Any:
    (low, high), include = attrs["padding"], attrs["include_padding"]
    start = at[0] * attrs["stride"] - low
    first, end = (-low, attrs["size"] + high) if include else (0, attrs["size"])
    stop = call("minimum", Index(start + attrs["kernel"]), Index(end))
    return cast(call("subtract", stop, call("maximum", Index(start), Index(first))), y.dtype)


def _samples_counts() -> list[Sample]:
    from staticgrad.ir.dtype import float32, float64

    return [
        Sample((), {"size": size, "kernel": k, "stride": s, "padding": p, "ceil_mode": ceil,
                    "include_padding": include, "dtype": dtype})
        for size, k, s, p, ceil, include, dtype in (
            (9, 3, 2, (1, 1), False, True, float32), (9, 3, 2, (1, 1), False, False, float64),
            (40, 3, 2, (1, 1), True, True, float64), (40, 4, 3, (2, 2), True, False, float32),
        )
    ]  # fmt: skip


register(
    Op(
        name="window_elements",
        summary="the number of elements of each window along one dim",
        infer=_infer_counts,
        reference=_reference_counts,
        vjp=NotDifferentiable("counts depend on sizes alone"),
        jvp=NotDifferentiable("counts depend on sizes alone"),
        batch=NotBatchable("counts depend on sizes alone"),
        lower=Generate(_emit_counts),
        samples=_samples_counts,
        source="PyTorch 2, avg_pool2d: ceil_mode and count_include_pad",
    )
)


# --- functions ------------------------------------------------------------------------------------

Pair = tuple[int, int]
PadPairs = tuple[Pair, Pair]
_NO_PADDING: PadPairs = ((0, 0), (0, 0))


def max_pool(
    x: Any, /, *, kernel: Pair, stride: Pair, padding: PadPairs = _NO_PADDING,
    dilation: Pair = (1, 1), ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """The maximum of each window of `x: [N, C, H, W]`; NaN propagates.

    The gradient goes to the first maximum in row-major order. Padding is never a maximum. Raises
    `ArgumentError` for padding of more than half of a window.
    """
    return apply(
        "max_pool", as_tensor(x, "max_pool"), kernel=kernel, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode,
    )  # fmt: skip


def avg_pool(
    x: Any, /, *, kernel: Pair, stride: Pair, padding: PadPairs = _NO_PADDING,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean of each window of `x: [N, C, H, W]`, floating.

    The sum is divided by `divisor`, or by the number of elements of the window: with
    `count_include_pad` padding counts, but what `ceil_mode` reaches beyond it does not.
    """
    x = as_tensor(x, "avg_pool")
    total = apply(
        "sum_pool", x, kernel=kernel, stride=stride, padding=padding, dilation=(1, 1),
        ceil_mode=ceil_mode,
    )  # fmt: skip
    if divisor is not None:
        if divisor == 0:
            raise ArgumentError("avg_pool: the divisor can't be 0")
        return total / divisor
    padded = any(p for pair in padding for p in pair)
    if not ceil_mode and (count_include_pad or not padded):
        return total / (kernel[0] * kernel[1])
    from .shape import reshape

    rows, cols = (
        apply("window_elements", size=x.shape[2 + axis], kernel=kernel[axis],
              stride=stride[axis], padding=padding[axis], ceil_mode=ceil_mode,
              include_padding=count_include_pad, dtype=x.dtype)
        for axis in (0, 1)
    )  # fmt: skip
    return total / (reshape(rows, (rows.shape[0], 1)) * cols)


def windows(x: Any, /, *, kernel: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> Tensor:
    """The windows of `x: [N, C, H, W]` as [N, C, OH, OW, KH, KW]; nothing is copied."""
    return apply(
        "windows", as_tensor(x, "windows"), kernel=kernel, stride=stride, padding=_NO_PADDING,
        dilation=dilation, ceil_mode=False,
    )  # fmt: skip


def windows_sum(
    x: Any, /, *, spatial: tuple[int | Dim, int | Dim], stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
) -> Tensor:  # fmt: skip
    """The inverse way: `x: [N, C, OH, OW, KH, KW]` added up to [N, C, *spatial]."""
    x = as_tensor(x, "windows_sum")
    if x.ndim != 6 or any(isinstance(k, Dim) for k in x.shape[4:]):
        raise ShapeError(f"windows_sum: expected [N, C, OH, OW, KH, KW] with int KH, KW, got {x!r}")
    return apply(
        "windows_sum", x, kernel=x.shape[4:], stride=stride, padding=_NO_PADDING,
        dilation=dilation, ceil_mode=False, spatial=spatial,
    )  # fmt: skip


__all__ = ["avg_pool", "max_pool", "pool_count", "windows", "windows_sum"]
