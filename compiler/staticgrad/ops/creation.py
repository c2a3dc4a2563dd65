"""Creation: zeros, full, arange, linspace, eye, tril, meshgrid, one_hot and their kin.

Nothing here is stored: constant fills are broadcasts of a scalar, and `iota`, `linspace` and `band`
are computed from the index where they are used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike, as_dim, as_shape, dim_max, floor_div, is_index
from staticgrad.ir.dtype import DType, bool_, float32, float64, int64
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ir.types import TensorType
from staticgrad.kernels.ir import Expr, Index, Literal, call, cast

from .convert import as_tensor, astype, constant_array, to_array
from .lowering import Generate, Indices
from .public import shown
from .registry import Attrs, NotBatchable, NotDifferentiable, Op, Sample, Types, apply, register
from .samples import FLOATS, NUMERIC
from .shape import broadcast_to, expand_dims, reshape
from .tensor import Tensor, method
from .weak import WeakNumber

_STANDARD = "Python array API standard 2023.12, creation functions"
_FAR = 2**62  # beyond every diagonal, and no overflow when a row's number is added
_NO_OPERANDS = NotDifferentiable("it has no operands")
_NOT_BATCHED = NotBatchable("it has no operands")

# --- iota -----------------------------------------------------------------------------------------


def _infer_iota(types: Types, attrs: Attrs) -> Types:
    if attrs["dtype"].kind == "b":
        raise DTypeError("expected a numeric dtype, got bool")
    return (TensorType(attrs["dtype"], (attrs["size"],)),)


def _reference_iota(size: int, dtype: DType, start: Any, step: Any) -> Any:
    if isinstance(start, int) and isinstance(step, int):
        return (start + step * np.arange(size)).astype(dtype.numpy)
    return (float(start) + float(step) * np.arange(size).astype(np.float64)).astype(dtype.numpy)


def _emit_iota(at: Indices, attrs: Attrs, result: TensorType, load: Any) -> Expr:
    """Integers exactly; floats in float64, rounded once: `start + i*step`."""
    start, step = attrs["start"], attrs["step"]
    if isinstance(start, (int, Dim)) and isinstance(step, int):
        return cast(Index(start + at[0] * step), result.dtype)
    first = (
        cast(Index(start), float64) if isinstance(start, Dim) else Literal(float(start), float64)
    )
    moved = call("multiply", Literal(float(step), float64), cast(Index(at[0]), float64))
    return cast(call("add", first, moved), result.dtype)


def _iota_sample(size: int, dtype: str, start: Any = 0, step: Any = 1) -> Sample:
    attrs = {"size": size, "dtype": as_dtype(dtype), "start": start, "step": step}
    return Sample((), attrs)


register(
    Op(
        name="iota",
        summary="y[i] = start + i*step",
        infer=_infer_iota,
        reference=_reference_iota,
        vjp=_NO_OPERANDS,
        jvp=_NO_OPERANDS,
        batch=_NOT_BATCHED,
        lower=Generate(_emit_iota),
        samples=lambda: [
            *(_iota_sample(37, d) for d in NUMERIC),
            _iota_sample(33, "int64", 5, -3),
            _iota_sample(300, "int8", 0, 1),
            _iota_sample(33, "float32", 0.1, 0.3),
            _iota_sample(33, "float64", -1.5, 0.1),
            _iota_sample(0, "float64"),
        ],
        source="this project",
    )
)


def iota(size: DimLike, dtype: Any = int64, start: Any = 0, step: Any = 1) -> Tensor:
    """`start + i*step` for i in 0 .. size."""
    return apply("iota", size=size, dtype=as_dtype(dtype), start=start, step=step)


def _number(value: Any, what: str) -> Any:
    """A bound as a plain int, float or dim; a str is a dim."""
    if isinstance(value, str):
        value = as_dim(value)
    if isinstance(value, Dim):
        return value
    if isinstance(value, WeakNumber):  # decides on a shape
        value = value.read()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{what}: expected a number or a dim, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"{what}: expected a finite number, got {value!r}")
    return value


def arange(
    start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """Evenly spaced numbers from `start` (default 0) up to, not including, `stop`.

    -> [max(0, ceil((stop - start)/step))]. int64 where all are ints, else float32. `stop` (and
    `start`) may be a dim: `sg.arange("N")`; then the step must be an int.
    """
    check_device(device, "arange")
    if stop is None:
        start, stop = 0, start
    start, stop, step = (_number(v, "arange") for v in (start, stop, step))
    if isinstance(step, Dim):
        raise ArgumentTypeError(f"arange: the step must be a number, got the dim {step}")
    if step == 0:
        raise ArgumentError("arange: the step can't be 0")
    for v in (start, stop, step):
        if isinstance(v, int) and not -_FAR < v < _FAR:
            raise ArgumentError(f"arange: the number {v} is too large")
    whole = not any(isinstance(v, float) for v in (start, stop, step))
    wanted = as_dtype(dtype) if dtype is not None else int64 if whole else float32
    return iota(_arange_size(start, stop, step, whole), wanted, start, step)


def _arange_size(start: Any, stop: Any, step: Any, whole: bool) -> DimLike:
    if not whole:
        if isinstance(start, Dim) or isinstance(stop, Dim):
            raise ArgumentTypeError("arange: beside a dim the other arguments must be ints")
        return max(0, math.ceil((stop - start) / step))
    length = stop - start if step > 0 else start - stop
    return floor_div(dim_max(length, 0) + (abs(step) - 1), abs(step))


# --- linspace -------------------------------------------------------------------------------------


def _reference_linspace(
    size: int, dtype: DType, start: float, stop: float, endpoint: bool
) -> Any:  # fmt: skip
    return np.linspace(start, stop, size, endpoint=endpoint, dtype=np.float64).astype(dtype.numpy)


def _emit_linspace(at: Indices, attrs: Attrs, result: TensorType, load: Any) -> Expr:
    size, endpoint = attrs["size"], attrs["endpoint"]
    start, stop = (Literal(attrs[name], float64) for name in ("start", "stop"))
    parts = dim_max(size - 1 if endpoint else size, 1)
    step = call("divide", call("subtract", stop, start), cast(Index(parts), float64))
    value = call("add", call("multiply", cast(Index(at[0]), float64), step), start)
    if endpoint:  # exactly `stop`, unless there is only one
        last = call("equal", Index(at[0]), Index(parts), dtype=bool_)
        value = call("select", last, stop, value, dtype=float64)
    return cast(value, result.dtype)


def _linspace_sample(size: int, dtype: str, start: float, stop: float, endpoint: bool) -> Sample:
    attrs = {
        "size": size, "dtype": as_dtype(dtype), "start": start, "stop": stop, "endpoint": endpoint,
    }  # fmt: skip
    return Sample((), attrs)


register(
    Op(
        name="linspace",
        summary="y[i] = start + i*(stop - start)/(size - 1), or /size without the endpoint",
        infer=lambda types, attrs: (TensorType(attrs["dtype"], (attrs["size"],)),),
        reference=_reference_linspace,
        vjp=_NO_OPERANDS,
        jvp=_NO_OPERANDS,
        batch=_NOT_BATCHED,
        lower=Generate(_emit_linspace),
        samples=lambda: [
            *(_linspace_sample(33, d, -1.0, 2.5, e) for d in FLOATS for e in (True, False)),
            *(_linspace_sample(n, "float64", 3.0, 1.0, True) for n in (0, 1, 2)),
        ],
        source=_STANDARD,
    )
)


def linspace(
    start: float, stop: float, /, num: Any, *, dtype: Any = None, device: Any = None,
    endpoint: bool = True,
) -> Tensor:  # fmt: skip
    """`num` evenly spaced numbers from `start` to `stop`, which is the last one if `endpoint`.

    -> [num], float32 by default; computed in float64. `num` may be a dim.
    """
    check_device(device, "linspace")
    wanted = float32 if dtype is None else as_dtype(dtype)
    if not wanted.is_float:
        raise DTypeError(f"linspace: expected a floating dtype, got {wanted!s}")
    bounds = [_number(v, "linspace") for v in (start, stop)]
    if any(isinstance(b, Dim) for b in bounds):
        raise ArgumentTypeError(f"linspace: the bounds are numbers, got {start!r} and {stop!r}")
    return apply(
        "linspace", size=as_dim(num), dtype=wanted, start=float(bounds[0]), stop=float(bounds[1]),
        endpoint=bool(endpoint),
    )  # fmt: skip


# --- constant fills -------------------------------------------------------------------------------


def check_device(device: Any, what: str) -> None:
    """There is one device, the CPU."""
    if device is not None and str(device) not in ("cpu", "cpu:0"):
        raise UnsupportedError(
            f'{what}: device {shown(device)} is not supported; CPUs only, use "cpu"'
        )


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """An array of `shape` with `fill_value`, a number or a 0-d tensor, everywhere.

    The dtype is by default the value's: int64, float32 or bool of a Python number. Dims may be
    symbolic.
    """
    check_device(device, "full")
    wanted = None if dtype is None else as_dtype(dtype)
    if isinstance(fill_value, Tensor):
        value = fill_value if wanted is None else astype(fill_value, wanted)
    else:
        value = constant_array(to_array(fill_value, wanted))
    if value.shape != ():
        raise ShapeError(f"full: the fill value must be a scalar, got {value.type}")
    return broadcast_to(value, as_shape(shape))


def _filled(shape: tuple[Any, ...], number: int, dtype: Any, device: Any) -> Tensor:
    wanted = float32 if dtype is None else as_dtype(dtype)
    dims = shape[0] if len(shape) == 1 else shape
    return full(dims, number, dtype=wanted, device=device)


def zeros(*shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros of `shape` (a tuple of dims, or the dims one by one); float32 by default."""
    return _filled(shape, 0, dtype, device)


def ones(*shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones of `shape` (a tuple of dims, or the dims one by one); float32 by default."""
    return _filled(shape, 1, dtype, device)


def empty(*shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros: nothing is left uninitialised here."""
    return _filled(shape, 0, dtype, device)


def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """An array of x's shape and, by default, dtype with `fill_value` everywhere."""
    x = as_tensor(x, "full_like")
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype, device=device)


def zeros_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros of x's shape and, by default, dtype."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones of x's shape and, by default, dtype."""
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros of x's shape and, by default, dtype: nothing is left uninitialised here."""
    return full_like(x, 0, dtype=dtype, device=device)


# --- bands: identity and triangles ----------------------------------------------------------------


def _reference_band(rows: int, cols: int, lower: int | None, upper: int | None) -> Any:
    offset = np.arange(cols)[None, :] - np.arange(rows)[:, None]
    above = offset >= lower if lower is not None else True
    below = offset <= upper if upper is not None else True
    return np.ones((rows, cols), bool) & above & below


def _emit_band(at: Indices, attrs: Attrs, result: TensorType, load: Any) -> Expr:
    i, j = at
    lower, upper = attrs["lower"], attrs["upper"]
    if lower is not None and lower == upper:
        return call("equal", Index(j), Index(i + lower), dtype=bool_)
    tests = []
    if lower is not None:
        tests.append(call("greater_equal", Index(j), Index(i + lower), dtype=bool_))
    if upper is not None:
        tests.append(call("less_equal", Index(j), Index(i + upper), dtype=bool_))
    if not tests:
        return Literal(True, bool_)
    return tests[0] if len(tests) == 1 else call("logical_and", *tests)


def _band_sample(rows: int, cols: int, lower: int | None, upper: int | None) -> Sample:
    return Sample((), {"rows": rows, "cols": cols, "lower": lower, "upper": upper})


register(
    Op(
        name="band",
        summary="y[i, j] = lower <= j - i <= upper; None for no bound",
        infer=lambda types, attrs: (TensorType(bool_, (attrs["rows"], attrs["cols"])),),
        reference=_reference_band,
        vjp=_NO_OPERANDS,
        jvp=_NO_OPERANDS,
        batch=_NOT_BATCHED,
        lower=Generate(_emit_band),
        samples=lambda: [
            _band_sample(5, 33, 0, 0),
            _band_sample(33, 5, -2, -2),
            _band_sample(7, 7, None, 1),
            _band_sample(7, 19, -1, None),
            _band_sample(19, 7, -3, 2),
            _band_sample(3, 4, None, None),
            _band_sample(0, 4, 0, 0),
        ],
        source="this project",
    )
)


def band(rows: DimLike, cols: DimLike, lower: DimLike | None, upper: DimLike | None) -> Tensor:
    """bool [rows, cols]: whether `lower <= j - i <= upper`; None for no bound."""
    return apply("band", rows=rows, cols=cols, lower=lower, upper=upper)


def diagonal_number(k: Any, what: str) -> int:
    """Which diagonal: 0 the main one, above it positive."""
    if not is_index(k):
        raise ArgumentTypeError(f"{what}: the diagonal's number is an int, got {k!r}")
    return max(-_FAR, min(int(k.__index__()), _FAR))


def eye(
    n_rows: Any, n_cols: Any = None, /, *, k: int = 0, dtype: Any = None, device: Any = None
) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere: [n_rows, n_cols]; float32 by default."""
    check_device(device, "eye")
    rows = as_dim(n_rows)
    cols = rows if n_cols is None else as_dim(n_cols)
    at = diagonal_number(k, "eye")
    return astype(band(rows, cols, at, at), float32 if dtype is None else dtype)


def _triangle(x: Any, lower: int | None, upper: int | None, what: str) -> Tensor:
    x = as_tensor(x, what)
    if x.ndim < 2:
        raise ShapeError(f"{what}: expected at least 2 dims, got {x.type}")
    zero = constant_array(np.zeros((), x.dtype.numpy))
    return apply("where", band(x.shape[-2], x.shape[-1], lower, upper), x, zero)


@method("tril")
def tril(x: Any, /, k: int = 0) -> Tensor:
    """`x` with zeros above the k-th diagonal of its last two dims."""
    return _triangle(x, None, diagonal_number(k, "tril"), "tril")


@method("triu")
def triu(x: Any, /, k: int = 0) -> Tensor:
    """`x` with zeros below the k-th diagonal of its last two dims."""
    return _triangle(x, diagonal_number(k, "triu"), None, "triu")


# --- grids and classes ----------------------------------------------------------------------------


def meshgrid(*arrays: Any, indexing: str = "xy") -> list[Tensor]:
    """Coordinate arrays of a grid, one for each 1-d array: [N0, N1, ..] with "ij", the first two
    dims exchanged with "xy"."""
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f'meshgrid: indexing is "xy" or "ij", got {indexing!r}')
    tensors = [as_tensor(a, "meshgrid") for a in arrays]
    for t in tensors:
        if t.ndim != 1:
            raise ShapeError(f"meshgrid: expected 1-d arrays, got {t.type}")
    order = list(range(len(tensors)))
    if indexing == "xy" and len(order) > 1:
        order[0], order[1] = 1, 0
    shape = tuple(tensors[i].shape[0] for i in order)  # the exchange is its own inverse
    grids = []
    for i, t in enumerate(tensors):
        spread = tuple(t.shape[0] if order[a] == i else 1 for a in range(len(order)))
        grids.append(broadcast_to(reshape(t, spread), shape))
    return grids


def one_hot(labels: Any, num_classes: Any, /, *, dtype: Any = None) -> Tensor:
    """Ones at the labels, zeros elsewhere: integer labels [..] -> [.., num_classes].

    float32 by default. A label outside of 0 .. num_classes - 1 gives a row of zeros.
    """
    labels = as_tensor(labels, "one_hot")
    if not labels.dtype.is_integer:
        raise DTypeError(f"one_hot: the labels must be integers, got {labels.type}")
    classes = iota(as_dim(num_classes))
    # As int64 no small label type overflows; a uint64 beyond int64 becomes negative: no class.
    hit = apply("equal", expand_dims(astype(labels, int64), axis=-1), classes)
    return astype(hit, float32 if dtype is None else dtype)


__all__ = [
    "arange", "empty", "empty_like", "eye", "full", "full_like", "linspace", "meshgrid", "one_hot",
    "ones", "ones_like", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip
