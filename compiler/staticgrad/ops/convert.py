"""From what users write to operands: arrays, Python numbers, promotion."""

from __future__ import annotations

from typing import Any

import numpy as np
from staticgrad_runtime.arrays import is_masked

from staticgrad.ir.dim import Dim
from staticgrad.ir.dtype import (
    DType,
    dtype,
    float64,
    int64,
    integer_range,
    promote,
    weak_scalar_dtype,
)
from staticgrad.ir.errors import ArgumentTypeError, DTypeError
from staticgrad.ir.types import TensorType

from .lowering import Leaf, Pointwise
from .public import dynamic
from .registry import (
    Attrs,
    NotBatchable,
    NotDifferentiable,
    Op,
    Sample,
    Types,
    apply,
    make,
    register,
)
from .tensor import Tensor, method
from .weak import WeakNumber
from .widening import tell_widened


def constant(value: Any, dtype: Any = None) -> Tensor:
    """A tensor of fixed values.

    A NumPy array or scalar keeps its dtype; a Python float or a list of floats becomes float32, an
    int int64, a bool bool. Raises `UnsupportedError` for complex and half types,
    `ArgumentTypeError` for what is no array of numbers.
    """
    if isinstance(value, Tensor):
        raise ArgumentTypeError(f"constant: expected numbers or an array, got {value!r}")
    array = to_array(value, None if dtype is None else _dtype(dtype))
    return constant_array(array)


_dtype = dtype


def constant_array(array: np.ndarray[Any, Any]) -> Tensor:
    """A constant of a NumPy array that is already of a supported dtype; the array is copied."""
    held = np.array(array, order="C", copy=True)
    held.flags.writeable = False
    attrs = {"dtype": _dtype(held.dtype), "shape": held.shape}
    return apply("constant", payload=held, **attrs)


def to_array(value: Any, wanted: DType | None = None) -> np.ndarray[Any, Any]:
    """`value` as an array of a supported dtype, by the rules of `constant`."""
    if is_masked(value):
        raise ArgumentTypeError("a masked array would lose its mask; fill it first: x.filled(...)")
    keeps = isinstance(value, (np.ndarray, np.generic))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ArgumentTypeError(f"expected numbers in a regular array: {error}") from None
    if array.dtype.kind not in "biufc":
        raise ArgumentTypeError(
            f"expected numbers, got {type(value).__name__} with elements of type {array.dtype}"
        )
    if array.dtype.kind == "c":
        dtype(array.dtype)  # refuses it: no real dtype holds the imaginary part
    if wanted is None:
        wanted = dtype(array.dtype) if keeps else _default(array)
    if wanted.is_integer and array.dtype != wanted.numpy:
        _check_fits(array, wanted)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, as by astype
        return array.astype(wanted.numpy, copy=False)


def _check_fits(array: np.ndarray[Any, Any], wanted: DType) -> None:
    """Numbers that an integer dtype does not hold are refused, not wrapped."""
    low, high = integer_range(wanted)
    if array.dtype.kind == "f":
        fits = (array > low - 1) & (array < high + 1)  # False for NaN
    else:
        # Python's ints: no integer dtype holds both ends of int64 and uint64.
        fits = np.array([low <= v <= high for v in array.ravel().tolist()], bool)
        fits = fits.reshape(array.shape)
    if not fits.all():
        raise DTypeError(
            f"the number {array[~fits].flat[0]} does not fit {wanted} ({low} to {high})"
        )


def _default(array: np.ndarray[Any, Any]) -> DType:
    kind = array.dtype.kind
    if kind == "f":
        return dtype("float32")
    return dtype("int64") if kind in "iu" and array.dtype.itemsize <= 8 else dtype(array.dtype)


def scalar_constant(value: bool | int | float, like: DType) -> Tensor:
    """A Python number beside a tensor of dtype `like`: weak, so it takes the tensor's kind."""
    chosen = weak_scalar_dtype(value, like)
    if chosen.is_integer and not isinstance(value, bool):
        low, high = integer_range(chosen)
        if not low <= value <= high:
            raise DTypeError(f"the number {value} does not fit {chosen} ({low} to {high})")
    try:
        with np.errstate(over="ignore"):
            return constant_array(np.asarray(value, dtype=chosen.numpy))
    except OverflowError:  # an int beyond the floats: 2**2000
        raise DTypeError(f"the number is too large for {chosen}") from None


def as_tensor(value: Any, what: str = "operand") -> Tensor:
    """A tensor as it is; arrays, lists and numbers as constants, a dim as its size."""
    if isinstance(value, Tensor):
        return value.strong() if isinstance(value, WeakNumber) else value
    if isinstance(value, Dim):
        return _size(value, int64)
    if isinstance(value, (np.ndarray, np.generic, bool, int, float, list, tuple)):
        return constant(value)
    if dynamic.inside.get() and dynamic.is_tensor(value):  # a layer that runs on values
        return value  # type: ignore[no-any-return]
    raise ArgumentTypeError(
        f"{what}: expected a tensor, an array or a number, got {type(value).__name__}"
    )


def promoted(*values: Any) -> tuple[Tensor, ...]:
    """Operands of one dtype: Python numbers and dims are weak, tensors and arrays are promoted."""
    strong = [None if _is_weak(v) else as_tensor(v) for v in values]
    known = [t.dtype for t in strong if t is not None]
    if not known:
        strong = [as_tensor(v) for v in values]
        known = [t.dtype for t in strong if t is not None]
    common = known[0]
    for d in known[1:]:
        common = promote(common, d)
    if common == float64 and any(d != common for d in known):
        tell_widened(strong)
    for v, t in zip(values, strong):
        if t is None:
            common = promote(common, weak_scalar_dtype(_present(v), common))
    return tuple(
        astype(t, common) if t is not None else _beside(v, common) for v, t in zip(values, strong)
    )


def _is_weak(value: Any) -> bool:
    if isinstance(value, (bool, int, float)):
        return not isinstance(value, np.generic)
    return isinstance(value, (WeakNumber, Dim))


def _present(value: Any) -> bool | int | float:
    """A Python number of the kind of a weak operand."""
    if isinstance(value, WeakNumber):
        return value.number
    return 1 if isinstance(value, Dim) else value  # type: ignore[no-any-return]


def _beside(value: Any, like: DType) -> Tensor:
    """A weak operand as a tensor beside one of dtype `like`."""
    if isinstance(value, Dim):
        return _size(value, weak_scalar_dtype(1, like))
    if isinstance(value, WeakNumber):
        return astype(value, weak_scalar_dtype(value.number, like))
    return scalar_constant(value, like)


def _size(dim: Dim, dtype: DType) -> Tensor:
    size: Tensor = apply("dim_size", dim=dim, dtype=dtype)
    return size


@method("astype")
def astype(x: Any, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """`x` with its elements converted to `dtype`; the same tensor if they have it already.

    float to integer truncates towards zero, saturates at the type's ends and maps NaN to 0; to a
    narrower integer wraps; to bool is `x != 0`. `copy` is accepted for the standard's sake: tensors
    of a graph are values.
    """
    wanted = _dtype(dtype)
    x = x if isinstance(x, Tensor) else as_tensor(x, "astype")
    same = x.dtype == wanted and not isinstance(x, WeakNumber)
    return x if same else apply("astype", x, dtype=wanted)


def reference_astype(x: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    if x.dtype.kind == "f" and dtype.is_integer:
        low, high = integer_range(dtype)
        exact = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0))
        inside = (exact > float(low)) & (exact < float(high))
        clipped = np.where(exact <= float(low), low, high).astype(dtype.numpy)
        return np.where(inside, np.where(inside, exact, 0).astype(dtype.numpy), clipped)
    with np.errstate(over="ignore"):
        return x.astype(dtype.numpy)


def _infer_astype(types: Types, attrs: Attrs) -> Types:
    return (TensorType(attrs["dtype"], types[0].shape),)


def _vjp_astype(c: Any, ct: Tensor) -> tuple[Tensor | None]:
    source = c.operands[0].dtype
    return (astype(ct, source) if source.is_float and ct.dtype.is_float else None,)


def _jvp_astype(c: Any, tangents: Any) -> Tensor:
    return astype(tangents[0], c.attrs["dtype"])


def _samples_astype() -> list[Sample]:
    from staticgrad.ir.dtype import ALL

    values = np.array([-3.7, -1.0, -0.0, 0.0, 0.5, 1.0, 2.5, 100.9, 127.0])
    found = []
    for source in ALL:
        x = reference_astype(values, source)
        found += [Sample((x,), {"dtype": d}) for d in ALL if d != source]
    special = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30], "float32")
    found += [Sample((special,), {"dtype": d}) for d in ALL if d.is_integer]
    return found


register(
    Op(
        name="astype",
        summary="elements converted to another dtype",
        infer=_infer_astype,
        reference=reference_astype,
        vjp=_vjp_astype,
        jvp=_jvp_astype,
        batch=lambda c: apply("astype", *c.operands, **c.attrs),
        lower=Pointwise(lambda args, attrs, dtype: _cast(args[0], dtype)),
        samples=_samples_astype,
        source="Python array API standard 2023.12, astype; saturating float to int as LLVM's "
        "llvm.fptosi.sat",
        traits=frozenset(("elementwise",)),
    )
)


def _cast(x: Any, to: DType) -> Any:
    from staticgrad.kernels.ir import cast

    return cast(x, to)


register(
    Op(
        name="constant",
        summary="fixed values",
        infer=lambda types, attrs: (TensorType(attrs["dtype"], attrs["shape"]),),
        reference=lambda **attrs: attrs["payload"],
        vjp=NotDifferentiable("a constant has no operands"),
        jvp=NotDifferentiable("a constant has no operands"),
        batch=NotBatchable("a constant has no operands"),
        lower=Leaf(),
        samples=lambda: [],
        source="this project",
    )
)

__all__ = [
    "as_tensor",
    "astype",
    "constant",
    "constant_array",
    "make",
    "promoted",
    "scalar_constant",
    "to_array",
]
