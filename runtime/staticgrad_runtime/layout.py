"""Whether this interpreter and this NumPy look as the native entry assumes, and their addresses.

Nothing is taken on trust: each offset of `context.py` is compared with live objects once, when the
first program is loaded. Where one differs (a free-threaded build, another interpreter, another
array struct) `native_interface()` is None and the portable path through ctypes serves.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from . import context

# Indices in NumPy's C API table; part of its stable ABI.
_API = {"PyArray_Type": 2, "PyArray_New": 93, "PyDataMem_SetHandler": 304}

# CPython's C API, stable since 3.0 (vectorcall: 3.9).
_T_PYSSIZET, _READONLY = 19, 1
_TP_MEMBERS = 72
_HAVE_VECTORCALL = 1 << 11
_POINTER = ctypes.sizeof(ctypes.c_void_p)


@dataclass(frozen=True)
class NativeInterface:
    """Process addresses that a context hands to the native entry."""

    ndarray_type: int
    array_new: int
    method_new: int
    vectorcall: int
    dec_ref: int
    inc_ref: int
    tuple_new: int
    tuple_set_item: int
    long_new: int
    save_thread: int
    restore_thread: int


class Head:
    """The base of executables: its one slot lies right behind the object header, where the
    native entry finds the published context words."""

    __slots__ = ("_words",)
    _words: Any


class _MemberDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class _TypeSlot(ctypes.Structure):
    _fields_ = (("slot", ctypes.c_int), ("value", ctypes.c_void_p))


class _TypeSpec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(_TypeSlot)),
    )


def native_class(cls: type) -> type:
    """A subclass of `cls` whose instances are called through a function pointer of their own.

    The pointer is the last word of the instance (`set_call`). While it is null, and for
    `cls.__call__`, calls take the ordinary way through `cls.__call__`. CPython does not hand the
    vectorcall flag down to classes made by a `class` statement, hence a type spec.
    """
    found: type | None = cls.__dict__.get("_native_class")
    if found is not None:
        return found
    offset = cls.__basicsize__
    members = (_MemberDef * 2)(
        _MemberDef(b"__vectorcalloffset__", _T_PYSSIZET, offset, _READONLY, None)
    )
    slots = (_TypeSlot * 2)(_TypeSlot(_TP_MEMBERS, ctypes.addressof(members)))
    name = f"{cls.__module__}.{cls.__qualname__}".encode()
    spec = _TypeSpec(name, offset + _POINTER, 0, _HAVE_VECTORCALL, slots)
    make = ctypes.pythonapi.PyType_FromSpecWithBases
    make.restype, make.argtypes = ctypes.py_object, [ctypes.POINTER(_TypeSpec), ctypes.py_object]
    made: Any = make(ctypes.byref(spec), (cls,))
    made.__doc__ = cls.__doc__
    made._native_spec = (members, slots, spec, name)  # CPython may keep pointers into it
    made._native_class = made
    cls._native_class = made  # type: ignore[attr-defined]
    return cast(type, made)


def is_native_class(cls: type) -> bool:
    """Whether `cls` was made by `native_class`."""
    return cls.__dict__.get("_native_class") is cls


def set_call(instance: object, function: int) -> None:
    """Sets the vectorcall pointer of an instance of a native class."""
    offset = type(instance).__basicsize__ - _POINTER
    ctypes.c_void_p.from_address(id(instance) + offset).value = function


def descriptor_address(dtype: str) -> int:
    """The address of NumPy's one descriptor object of a native dtype."""
    return id(np.dtype(dtype))


def _word(at: int) -> int:
    return ctypes.c_void_p.from_address(at).value or 0


def _array_fields_match(array: np.ndarray[Any, Any]) -> bool:
    at, flags = id(array), array.flags
    (ndim,) = struct.unpack("i", ctypes.string_at(at + context.NDARRAY_NDIM, 4))
    (bits,) = struct.unpack("i", ctypes.string_at(at + context.NDARRAY_FLAGS, 4))
    if ndim != array.ndim:
        return False
    shape = _word(at + context.NDARRAY_SHAPE)
    return (
        _word(at + context.OBJECT_TYPE) == id(type(array))
        and _word(at + context.NDARRAY_DATA) == array.ctypes.data
        and [_word(shape + 8 * i) for i in range(ndim)] == list(array.shape)
        and _word(at + context.NDARRAY_DESCR) == id(array.dtype)
        and bool(bits & context.FLAG_C_CONTIGUOUS) == flags.c_contiguous
        and bool(bits & context.FLAG_ALIGNED) == flags.aligned
        and bool(bits & context.FLAG_WRITEABLE) == flags.writeable
    )


def _arrays_match() -> bool:
    raw = np.zeros(65, np.uint8)
    samples: list[np.ndarray[Any, Any]] = [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3), np.float64).T,
        np.zeros((3, 4, 5), np.int32)[:, ::2],
        np.array(1, np.int64),
        np.zeros((0, 7), np.bool_),
        raw[1:].view(np.float64),
    ]
    samples[0].flags.writeable = False
    pair, listed = (samples, raw), [samples, raw]
    for sequence, items in (
        (pair, id(pair) + context.TUPLE_ITEMS),
        (listed, _word(id(listed) + context.LIST_ITEMS)),
    ):
        if _word(id(sequence) + context.SEQUENCE_SIZE) != 2:
            return False
        if [_word(items + 8 * i) for i in range(2)] != [id(samples), id(raw)]:
            return False
    same_descriptor = all(np.empty(1, a.dtype).dtype is np.dtype(a.dtype.name) for a in samples)
    return same_descriptor and all(_array_fields_match(array) for array in samples)


@functools.cache
def array_api() -> dict[str, int] | None:
    """The entries of NumPy's C API table that we use, by name; None where there is no table."""
    try:
        from numpy._core._multiarray_umath import _ARRAY_API
    except ImportError:
        return None
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = get(_ARRAY_API, None)
    return {name: _word(table + 8 * index) for name, index in _API.items()}


def new_array(function: int, shape: tuple[int, ...], dtype: str) -> Any:
    """Calls a function of PyArray_New's signature as the native entry does."""
    prototype = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.py_object, ctypes.c_int, ctypes.c_void_p, ctypes.c_int,
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
    )  # fmt: skip
    dims = (ctypes.c_int64 * len(shape))(*shape)
    number = np.dtype(dtype).num
    return prototype(function)(np.ndarray, len(shape), ctypes.addressof(dims), number, None, None,
                               0, 0, None)  # fmt: skip


def _array_new_works(function: int) -> bool:
    made = new_array(function, (3, 5), "float32")
    return (
        type(made) is np.ndarray
        and made.shape == (3, 5)
        and made.dtype is np.dtype(np.float32)
        and made.flags.c_contiguous
        and made.flags.owndata
    )


def _calls_work() -> bool:
    """Makes a native class over a slotted one and calls it, without and with a pointer."""

    class Probe(Head):
        __slots__ = ("__weakref__", "other")

        def __call__(self, *args: int) -> tuple[int, ...]:
            return args

    probe: Any = object.__new__(native_class(Probe))
    probe._words = marker = object()
    if _word(id(probe) + context.EXECUTABLE_CONTEXT) != id(marker) or probe(1, 2) != (1, 2):
        return False
    seen: list[tuple[int, int]] = []

    def vectorcall(callee: int, args: int, nargsf: int, names: int | None) -> Any:
        seen.append((callee, nargsf & (context.VECTORCALL_OFFSET_FLAG - 1)))
        return "native"

    prototype = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    )
    function = prototype(vectorcall)
    set_call(probe, ctypes.cast(function, ctypes.c_void_p).value or 0)
    answer = probe(1, 2)
    set_call(probe, 0)
    return bool(answer == "native" and seen == [(id(probe), 2)])


@functools.cache
def native_interface() -> NativeInterface | None:
    """The addresses that the native entry needs, or None where it must not be used."""
    ordinary = (
        sys.implementation.name == "cpython"
        and "free-threading" not in sys.version  # asking sysconfig takes 2 ms
        and _POINTER == 8
        and sys.byteorder == "little"
        and object.__basicsize__ == 16
    )
    if not ordinary or not _arrays_match():
        return None
    api = array_api()
    if api is None or api["PyArray_Type"] != id(np.ndarray):
        return None
    if not _array_new_works(api["PyArray_New"]):
        return None
    if not _calls_work():
        return None
    python: Any = ctypes.pythonapi
    functions = (
        python.PyMethod_New, python.PyObject_Vectorcall, python.Py_DecRef, python.Py_IncRef,
        python.PyTuple_New, python.PyTuple_SetItem, python.PyLong_FromLongLong,
        python.PyEval_SaveThread, python.PyEval_RestoreThread,
    )  # fmt: skip
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    return NativeInterface(api["PyArray_Type"], api["PyArray_New"], *addresses)


def data_address(array: np.ndarray[Any, Any]) -> int:
    """Where an array's data starts: 200 ns by its probed field, 1,000 ns by `array.ctypes`."""
    if native_interface() is None:
        return int(array.ctypes.data)
    return ctypes.c_void_p.from_address(id(array) + context.NDARRAY_DATA).value or 0
