"""Operators and methods of eager tensors: all that the static tensor has, most by a short way.

The short way: the signatures of the operands lead, by one look-up in a table of the operator, to
the bound program, whose call is native. Whatever is not found there goes through `dispatch.call`,
and the table remembers what that found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentTypeError
from staticgrad.ops import tensor as graph
from staticgrad.ops.public import locate
from staticgrad.ops.pytorch_names import OPERATORS

from . import views
from .dispatch import bound_of, call, weak_number
from .mode import recording
from .program import Bound
from .signature import signature_of
from .tape import recorded
from .tensor import Tensor

_new = Tensor.__new__
_recording = recording.get
_array = np.array

# Sizes that an operator's table remembers.
_TABLE = 1024


def _keep(table: dict[Any, Any], key: Any, value: Any) -> None:
    if value is not None:
        if len(table) >= _TABLE:
            table.clear()
        table[key] = value


def _binary(function: Any) -> Callable[[Tensor, Any], Any]:
    table: dict[Any, Bound] = {}
    numbers: dict[Any, tuple[Bound, Any]] = {}

    def operator(self: Tensor, other: Any, /) -> Any:
        if other.__class__ is Tensor:
            bound = table.get((self._sig, other._sig))
            if bound is not None:
                a, b = self._node, other._node
                if (a is None and b is None) or not _recording():
                    result = _new(Tensor)
                    result._array = bound.call(self._array, other._array)
                    result._sig = bound.sig
                    result._node = result._store = result._leaf = None
                    return result
                mask = (1 if a is not None else 0) | (2 if b is not None else 0)
                return recorded(bound, mask, (self, other), (self._array, other._array))
        else:
            known = numbers.get((self._sig, other.__class__))
            if known is not None:
                bound, dtype = known
                try:
                    scalar = _array(other, dtype)
                except OverflowError:
                    return slow(self, other)  # which says what does not fit
                if self._node is None or not _recording():
                    result = _new(Tensor)
                    result._array = bound.call(self._array, scalar)
                    result._sig = bound.sig
                    result._node = result._store = result._leaf = None
                    return result
                return recorded(bound, 1, (self, scalar), (self._array, scalar))
        return slow(self, other)

    def slow(self: Tensor, other: Any) -> Any:
        result = call(function, (self, other), {})
        if other.__class__ is Tensor:
            _keep(table, (self._sig, other._sig), bound_of(function, self._sig, other._sig))
        else:
            scalar = weak_number(other, self._sig)
            if scalar is not None:
                bound = bound_of(function, self._sig, signature_of(scalar))
                _keep(numbers, (self._sig, other.__class__), bound and (bound, scalar.dtype))
        return result

    return operator


def _reflected(function: Any) -> Callable[[Tensor, Any], Any]:
    """`other - self`, where `other` is no tensor: a number, an array."""
    numbers: dict[Any, tuple[Bound, Any]] = {}

    def operator(self: Tensor, other: Any, /) -> Any:
        known = numbers.get((self._sig, other.__class__))
        if known is not None:
            bound, dtype = known
            try:
                scalar = _array(other, dtype)
            except OverflowError:
                return call(function, (other, self), {})
            if self._node is None or not _recording():
                result = _new(Tensor)
                result._array = bound.call(scalar, self._array)
                result._sig = bound.sig
                result._node = result._store = result._leaf = None
                return result
            return recorded(bound, 2, (scalar, self), (scalar, self._array))
        result = call(function, (other, self), {})
        number = weak_number(other, self._sig)
        if number is not None:
            made = bound_of(function, signature_of(number), self._sig)
            _keep(numbers, (self._sig, other.__class__), made and (made, number.dtype))
        return result

    return operator


def _method(function: Any) -> Callable[..., Any]:
    table: dict[Any, Bound] = {}

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs and kwargs.get("out", self) is None:  # np.sum(x) asks x.sum(axis=None, out=None)
            kwargs = {k: v for k, v in kwargs.items() if k not in _NUMPYS or v is not None}
        if kwargs or len(args) > 1 or (args and args[0].__class__ is not int):
            return call(function, (self, *args), kwargs)
        # Without arguments, or with an axis, an exponent, a size.
        key = (self._sig, *args) if args else self._sig
        bound = table.get(key)
        if bound is None:
            result = call(function, (self, *args), {})
            _keep(table, key, bound_of(function, self._sig, *((int, *args) if args else ())))
            return result
        if self._node is None or not _recording():
            result = _new(Tensor)
            result._array = bound.call(self._array)
            result._sig = bound.sig
            result._node = result._store = result._leaf = None
            return result
        return recorded(bound, 1, (self,), (self._array,))

    return method


def _viewing(function: Any, view: Any) -> Callable[..., Any]:
    plain = _method(function)

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._node is None or not _recording():
            found = views.view_of(view, self, args, kwargs)
            if found is not None:
                return found
        result = plain(self, *args, **kwargs)
        return views.note_copy(result, self, lambda a: view(a, *args, **kwargs))

    return method


# Methods whose namesakes in PyTorch give something else when they are called with a dim.
_UNLIKE = {
    "max": "PyTorch's x.max(1) gives values and places; here x.max(axis=1) gives the values and "
    "x.argmax(axis=1) the places",
    "min": "PyTorch's x.min(1) gives values and places; here x.min(axis=1) gives the values and "
    "x.argmin(axis=1) the places",
    "std": "PyTorch's x.std(1) divides by n - 1, here the default is n: say x.std(axis=1, "
    "correction=1) for PyTorch's, x.std(axis=1) for that by n",
    "var": "PyTorch's x.var(1) divides by n - 1, here the default is n: say x.var(axis=1, "
    "correction=1) for PyTorch's, x.var(axis=1) for that by n",
}


def _by_keyword(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with its axis by keyword alone."""

    def checked(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is not None:
            error = ArgumentTypeError(f"{name}: {_UNLIKE[name]}")
            locate(error)
            raise error
        return method(self, **kwargs)

    return checked


_BINARY = frozenset((
    "__add__", "__sub__", "__mul__", "__truediv__", "__floordiv__", "__mod__", "__matmul__",
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
))  # fmt: skip
# `a + 2` and `2 + a` have equal bits.
_EITHER_WAY = {"__radd__": "__add__", "__rmul__": "__mul__"}
_REFLECTED = {
    "__rsub__": "__sub__", "__rtruediv__": "__truediv__", "__rfloordiv__": "__floordiv__",
    "__rmod__": "__mod__",
}  # fmt: skip

_NUMPYS = ("out", "dtype")

# What the static tensor answers about a value that it does not have, or what is different here.
_OWN = frozenset((
    "__array__", "__array_function__", "__array_ufunc__", "__bool__", "__float__", "__format__",
    "__getattr__", "__getitem__", "__hash__", "__index__", "__int__", "__iter__", "__len__",
    "__repr__", "__setitem__", "backward", "clone", "contiguous", "cpu", "detach", "device", "dim",
    "dtype", "item", "name", "ndim", "numel", "numpy", "shape", "size", "tolist", "type",
))  # fmt: skip


def _operation(method: Any) -> Any:
    """The public function that a static tensor's method is, so that `x.exp()` and `sg.exp(x)` share
    their kernels; the method itself where there is none."""
    name = method.__name__
    found = getattr(sys.modules[method.__module__], name, None) if name.isidentifier() else None
    same = found is not None and getattr(found, "__wrapped__", None) is method.__wrapped__
    return found if same else method


def _made(name: str, value: Any) -> Any:
    if isinstance(value, property):
        getter = value.fget
        if name in views.METHODS:
            views.FUNCTIONS[getter] = views.METHODS[name]
        return property(lambda self: call(getter, (self,), {}), doc=value.__doc__)
    if name in _EITHER_WAY:
        return _made(_EITHER_WAY[name], vars(graph.Tensor)[_EITHER_WAY[name]])
    if name in _REFLECTED:
        made: Any = _reflected(_operation(vars(graph.Tensor)[_REFLECTED[name]]))
    elif name in _BINARY:
        made = _binary(_operation(value))
    else:
        function = _operation(value)
        if function.__name__ == "<lambda>":
            function.__name__ = name  # what the tape calls it
        if name in views.METHODS:
            views.FUNCTIONS[function] = views.METHODS[name]
            made = _viewing(function, views.METHODS[name])
        else:
            made = _method(function)
        if name in _UNLIKE:
            made = _by_keyword(name, made)
    made.__name__, made.__qualname__, made.__doc__ = name, f"Tensor.{name}", value.__doc__
    return made


def attach() -> None:
    """Gives eager tensors the operators and methods of the static one."""
    for name, value in list(vars(graph.Tensor).items()):
        if name in _OWN or name in OPERATORS or not isinstance(value, (property, FunctionType)):
            continue
        if isinstance(value, property) or getattr(value, "is_public", False):
            setattr(Tensor, name, _made(name, value))
    for alias, name in OPERATORS.items():
        setattr(Tensor, alias, vars(Tensor)[name])


attach()
