"""The arguments of a call: order and names, conversion to arrays, output arrays. All checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import (
    Array,
    ConversionError,
    cast_checked,
    has_python_leaves,
    is_dense,
    is_masked,
)
from .artifact import InputSpec, Manifest, OutputSpec
from .binding import Shape, input_text
from .dims import shape_text
from .errors import BindError


def gather(
    specs: Sequence[InputSpec], values: Sequence[Any], named: Mapping[str, Any]
) -> Sequence[Any]:
    """The inputs in the declared order, from positional and keyword arguments."""
    if not named and len(values) == len(specs):
        return values
    names = [spec.name for spec in specs]
    inputs = f"input{'' if len(specs) == 1 else 's'} ({', '.join(names)})"
    listed = f"the program takes {len(specs)} {inputs}"
    if len(values) > len(specs):
        raise BindError(f"{listed}, got {len(values)}")
    by_name = dict(zip(names, values))
    for name, value in named.items():
        if name not in names:
            raise BindError(f"{listed}, got an unknown one called {name!r}")
        if name in by_name:
            raise BindError(f"{listed}, got {name!r} twice")
        by_name[name] = value
    missing = [name for name in names if name not in by_name]
    if missing:
        raise BindError(f"{listed}, got {len(by_name)}: {', '.join(missing)} missing")
    return [by_name[name] for name in names]


def to_array(spec: InputSpec, value: Any) -> Array:
    """`value` as a plain ndarray of the declared dtype, of any memory order.

    Arrays must have the dtype already; Python numbers and lists of them are converted where their
    kind allows it and they fit. Raises BindError.
    """
    dtype = np.dtype(spec.dtype)
    if type(value) is np.ndarray and value.dtype == dtype:
        return value
    if type(value) is float and dtype.kind == "f" and -1e38 < value < 1e38:
        return np.array(value, dtype)
    if is_masked(value):
        raise _refusal(spec, "a masked array; fill it first: `x.filled(...)`")
    try:
        array: Array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _refusal(spec, f"a {type(value).__name__} that is no array: {error}") from error
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf":
        what = "None" if value is None else f"{type(value).__name__} of dtype {array.dtype}"
        raise _refusal(spec, what)
    if not has_python_leaves(value):
        name = spec.name if spec.name.isidentifier() else "x"
        mend = f'convert it: `{name}.astype("{spec.dtype}")`'
        raise _refusal(spec, f"dtype {array.dtype}; {mend}")
    if array.size == 0:
        return array.astype(dtype)
    try:
        return cast_checked(array, dtype)
    except ConversionError as error:
        raise _refusal(spec, f"{error} in a {type(value).__name__}") from None


def _refusal(spec: InputSpec, came: str) -> BindError:
    expected = f"{input_text(spec)}: expected {spec.dtype} {shape_text(spec.shape)}"
    return BindError(f"{expected}, got {came}")


def allocate_outputs(specs: Sequence[OutputSpec], shapes: Sequence[Shape]) -> list[Array]:
    """New arrays for the results."""
    return [np.empty(shape, spec.dtype) for spec, shape in zip(specs, shapes)]


def check_out(manifest: Manifest, shapes: Sequence[Shape], out: Any) -> list[Array]:
    """The arrays of `out=`, None replaced by new ones. Raises BindError where one does not fit."""
    given = [out] if manifest.single else out
    if not isinstance(given, (list, tuple)):
        count = len(manifest.outputs)
        raise BindError(f"out: expected a sequence of {count} arrays, got {type(out).__name__}")
    if len(given) != len(manifest.outputs):
        raise BindError(f"out: expected {len(manifest.outputs)} arrays, got {len(given)}")
    return [
        np.empty(shape, spec.dtype) if array is None else _check_out(spec, shape, array)
        for spec, shape, array in zip(manifest.outputs, shapes, given)
    ]


def _check_out(spec: OutputSpec, shape: Shape, array: Any) -> Array:
    expected = f"out: output {spec.name!r} is {spec.dtype} {shape_text(shape)}"
    if not isinstance(array, np.ndarray) or is_masked(array):
        raise BindError(f"{expected}, got a {type(array).__name__}")
    if array.dtype != np.dtype(spec.dtype) or array.shape != shape:
        raise BindError(f"{expected}, got {array.dtype} {shape_text(array.shape)}")
    if not array.flags.writeable:
        raise BindError(f"{expected}, got a read-only array")
    if not is_dense(array):
        raise BindError(f"{expected}, got an array that is not C-contiguous and aligned")
    return array
