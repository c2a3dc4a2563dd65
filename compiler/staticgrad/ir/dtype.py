"""Data types and their promotion, as the Python array API standard has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ArgumentTypeError, DTypeError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np


class DType(str):
    """A data type. It is its own name, so `x.dtype == "float32"` holds.

    `kind` is "b" (bool), "i" (signed), "u" (unsigned) or "f" (floating); `itemsize_bytes` is the
    size of one element in memory.
    """

    kind: str
    itemsize_bytes: int

    def __new__(cls, name: str, kind: str, itemsize_bytes: int) -> DType:
        self = super().__new__(cls, name)
        self.kind = kind
        self.itemsize_bytes = itemsize_bytes
        return self

    @property
    def numpy(self) -> np.dtype[Any]:
        import numpy as np

        return np.dtype(str(self))

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def bits(self) -> int:
        return 8 * self.itemsize_bytes

    def __repr__(self) -> str:
        return f"staticgrad.{self!s}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (dtype, (str(self),))


bool_ = DType("bool", "b", 1)
int8, int16, int32, int64 = (DType(f"int{8 * n}", "i", n) for n in (1, 2, 4, 8))
uint8, uint16, uint32, uint64 = (DType(f"uint{8 * n}", "u", n) for n in (1, 2, 4, 8))
float32, float64 = DType("float32", "f", 4), DType("float64", "f", 8)

ALL = (
    bool_,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
    float32,
    float64,
)
BY_NAME: dict[str, DType] = {str(d): d for d in ALL}
_ALIASES = {"bool_": bool_, "float": float32, "int": int64, "double": float64}
_REFUSED = (
    "float16",
    "bfloat16",
    "float128",
    "longdouble",
    "complex64",
    "complex128",
    "complex256",
)
_PYTHON: dict[type, DType] = {bool: bool_, int: int64, float: float32}


def dtype(spec: Any) -> DType:
    """The dtype named by `spec`: a name, a DType, a NumPy dtype or scalar type, or bool/int/float.

    Python's own `float` is float32 and `int` is int64, as bare Python numbers are here.

    Raises `UnsupportedError` for complex and half types, `DTypeError` for anything else.
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, type) and spec in _PYTHON:
        return _PYTHON[spec]
    if isinstance(spec, str):
        name = str(spec)
    else:
        import numpy as np

        # NumPy takes None for float64, and the dtype of whatever has one.
        if not isinstance(spec, (type, np.dtype)):
            raise ArgumentTypeError(f"expected a dtype, got {spec!r}")
        name = np.dtype(spec).name
    found = BY_NAME.get(name) or _ALIASES.get(name)
    if found is not None:
        return found
    if name in _REFUSED or name == "complex":
        raise UnsupportedError(f"dtype {name} is not supported; supported are {', '.join(BY_NAME)}")
    raise DTypeError(f"unknown dtype {name!r}; supported are {', '.join(BY_NAME)}")


def promote(a: DType, b: DType) -> DType:
    """The common type of two arrays.

    Inside a kind, the wider; signed with unsigned, the signed type that holds both; bool gives way
    to every number; an integer with a float takes the float's type (the standard leaves this case
    open; this is what PyTorch and JAX do). uint64 with a signed integer has no common integer type
    and is refused.
    """
    if a == b:
        return a
    if a.kind == "b":
        return b
    if b.kind == "b":
        return a
    if a.is_float != b.is_float:
        return a if a.is_float else b
    if a.kind == b.kind:
        return a if a.itemsize_bytes > b.itemsize_bytes else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    if signed.itemsize_bytes > unsigned.itemsize_bytes:
        return signed
    if unsigned.itemsize_bytes == 8:
        raise DTypeError(
            f"no integer type holds both {a} and {b}; convert one with .astype(...) first"
        )
    return BY_NAME[f"int{16 * unsigned.itemsize_bytes}"]


def weak_scalar_dtype(value: bool | int | float, other: DType) -> DType:
    """The type that a Python scalar takes beside an array of type `other`."""
    if isinstance(value, bool):
        return other
    if isinstance(value, int):
        return int64 if other.kind == "b" else other
    return other if other.is_float else float32


def integer_range(d: DType) -> tuple[int, int]:
    """The least and the greatest value of an integer type (of bool: 0 and 1)."""
    if d.kind == "b":
        return 0, 1
    if d.kind == "u":
        return 0, 2**d.bits - 1
    return -(2 ** (d.bits - 1)), 2 ** (d.bits - 1) - 1
