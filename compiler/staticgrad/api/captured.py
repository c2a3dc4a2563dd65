"""What a traced function reads besides its arguments: variables from outside, and attributes of
objects.

Their values are constants of the trace. When one is bound to something else, the trace does not
serve any more: `loss` that reads the global `batch` is traced again for the next batch. Watched are
the variables and attributes whose names stand in the function and in the user's functions that it
calls (not in installed libraries); of layers their modes, parameters, inner layers and settings;
of arrays the elements as well, but for `jit`.
"""

from __future__ import annotations

import dis
import functools
import operator
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from . import pytree
from .watch import Watch, watched

_NUMBERS = (bool, int, float, complex, str, bytes)
_SETTINGS = frozenset((*_NUMBERS, tuple))
_PACKAGES = ("staticgrad", "staticgrad_runtime", "numpy")
_PYTHON = os.path.dirname(os.__file__) + os.sep  # its own library
_MISSING = object()
_MOST_TRIES = 8  # to watch what turned out to have changed, in a row
Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Captured:
    """One variable and what it was bound to: the object, and its leaves if it is a tree; of layers
    what they are made of; of arrays copies, where elements count."""

    name: str
    read: Callable[[], Any]
    value: Any
    leaves: tuple[Any, ...] | None = None
    parts: tuple[Any, ...] | None = None
    copies: tuple[tuple[Array, Array], ...] = ()  # array, copy
    _watch: Watch | None = field(default=None, init=False)
    _tries: int = field(default=_MOST_TRIES, init=False)

    def unchanged(self) -> bool:
        now, then = self.read(), self.value
        if now is not then:
            return isinstance(then, _NUMBERS) and exact(now) == exact(then)
        if (self.leaves is not None or self.parts is not None) and not self._same_inside(now):
            return False
        return not self.copies or all(_same_elements(a, copy) for a, copy in self.copies)

    def _same_inside(self, now: Any) -> bool:
        """Whether what the object is made of is the same: it is where all tables behind it are,
        which a glance tells; else it is taken apart."""
        if self._watch is not None and self._watch.holds():
            self._tries = _MOST_TRIES
            return True
        if self.leaves is not None and not _all_same(pytree.leaves(now), self.leaves):
            return False
        if self.parts is not None and not _all_same(_parts(now) or (), self.parts):
            return False
        if self._tries:  # else something changes with each call, such as a counter
            self._tries -= 1
            self._watch = watched(now, self.parts is not None, _of_library)
        return True


def exact(value: Any) -> Hashable:
    """What two values share that a trace can't tell apart: `==`, but 1, 1.0 and True differ, and so
    do 0.0 and -0.0, alone or in tuples; NaN is NaN."""
    if isinstance(value, tuple):
        return (type(value), *map(exact, value))
    return (type(value), repr(value) if type(value) is float else value)


def _all_same(now: Sequence[Any], then: Sequence[Any]) -> bool:
    return len(now) == len(then) and all(map(operator.is_, now, then))


def _same_elements(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=b.dtype.kind == "f")


def captured_by(
    fn: Any, elements: bool, objects: Iterable[tuple[str, Any]] = ()
) -> list[Captured]:  # fmt: skip
    """What `fn` and the user's functions that it calls read: variables, and attributes of objects,
    `objects` (static arguments) and a layer that is `fn` itself, or whose method it is, among them.
    `elements`: those of arrays count as well."""
    search = _Search(elements)
    search.values.append(fn)
    layers = [(type(v).__name__, v) for v in (fn, getattr(fn, "__self__", None)) if _parts(v)]
    for name, value in (*objects, *layers):
        search.values.append(value)
        search.add_object(name, value)
        parts = _parts(value)
        if parts is not None:
            read = functools.partial(_same, value)
            search.found[id(value), ""] = Captured(name, read, value, parts=parts)
    search.run()
    return [c for key, c in search.found.items() if key not in search.stored]


class _Search:
    """The functions, variables and objects that a function leads to."""

    def __init__(self, elements: bool) -> None:
        self.elements = elements
        self.values: list[Any] = []  # to be looked at
        self.objects: list[tuple[str, Any]] = []  # whose attributes may be read
        self.attributes: set[str] = set()  # the names of all attributes that are read
        self.found: dict[tuple[int, str], Captured] = {}
        self.stored: set[tuple[int, str]] = set()
        self.seen: set[int] = set()

    def run(self) -> None:
        while self.values:
            while self.values:
                value = self.values.pop()
                for name, held in _held(value):
                    self.add_object(name, held)
                    self.values += [held] if callable(held) else []
                for f in _functions(value):
                    self._function(f)
            for name, value in self.objects:  # grows meanwhile
                self._object(name, value)

    def _function(self, f: FunctionType) -> None:
        if id(f) in self.seen or _of_library(f.__module__):
            return
        self.seen.add(id(f))
        self.attributes |= _names(f.__code__)[2]
        for key, name, read, stores in _variables(f):
            if stores:  # what the function counts or keeps itself is no input of it
                self.stored.add(key)
            self._value(key, name, read)

    def _object(self, label: str, value: Any) -> None:
        space = vars(value)
        for name in self.attributes:
            if name in space:
                read = functools.partial(space.get, name, _MISSING)
                self._value((id(space), name), f"{label}.{name}", read)
            else:
                method = getattr(type(value), name, None)
                if isinstance(method, FunctionType) and id(method) not in self.seen:
                    self.values.append(method)

    def _value(self, key: tuple[int, str], name: str, read: Callable[[], Any]) -> None:
        value = read()
        if value is _MISSING or isinstance(value, (ModuleType, type)) or key in self.found:
            return
        self.found[key] = _captured(name, read, value, self.elements)
        self.values.append(value)
        self.add_object(name, value)

    def add_object(self, name: str, value: Any) -> None:
        if _is_watched(value) and all(value is not v for _, v in self.objects):
            self.objects.append((name, value))


def _held(value: Any) -> list[tuple[str, Any]]:
    """What a bound method, a partial function or a function with rules of its own holds."""
    if isinstance(value, MethodType):
        return [("self", value.__self__)]
    if isinstance(value, functools.partial):
        return [("partial", v) for v in (*value.args, *value.keywords.values())]
    rules = getattr(type(value), "rules", None)
    return [("rule", f) for f in value.rules] if isinstance(rules, property) else []


def _is_watched(value: Any) -> bool:
    """Whether a value is an object of the user's, whose attributes are watched."""
    return hasattr(value, "__dict__") and not (
        isinstance(
            value, (FunctionType, MethodType, ModuleType, type, np.ndarray, functools.partial)
        )
        or _of_library(type(value).__module__)
    )


@functools.cache
def _of_library(module: str | None) -> bool:
    """Whether a module is no part of the user's program: this package, an installed one, Python."""
    if (module or "").partition(".")[0] in _PACKAGES:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        return module in sys.builtin_module_names
    return "site-packages" in file or "dist-packages" in file or file.startswith(_PYTHON)


def _same(value: Any) -> Any:
    return value


def _captured(name: str, read: Callable[[], Any], value: Any, elements: bool) -> Captured:
    is_tree = isinstance(value, (tuple, list, dict))
    leaves = tuple(pytree.leaves(value)) if is_tree else (value,)
    arrays = [v for v in leaves if elements and isinstance(v, np.ndarray)]
    copies = tuple((v, np.array(v)) for v in arrays)
    return Captured(name, read, value, leaves if is_tree else None, _parts(value), copies)


def _parts(value: Any) -> tuple[Any, ...] | None:
    """What a layer (`nn.Module`, which stands above this package) is made of: layers, their modes
    and parameters, and of the library's own layers settings such as a rate of dropout."""
    if not hasattr(type(value), "modules") or not hasattr(type(value), "training"):
        return None
    found: list[Any] = []
    for m in value.modules():
        held = vars(m)
        found += (m, m.training, *held["_parameters"].values(), *held["_buffers"].values())
        if _of_library(type(m).__module__):
            found += [v for v in held.values() if type(v) in _SETTINGS]
    return tuple(found)


def _functions(value: Any) -> Iterator[FunctionType]:
    """The Python functions inside a callable."""
    for _ in range(100):  # wrappers of wrappers
        if isinstance(value, FunctionType):
            yield value
            value = getattr(value, "__wrapped__", None)
        elif isinstance(value, MethodType):
            value = value.__func__
        elif isinstance(value, functools.partial):
            value = value.func
        elif callable(value) and not isinstance(value, type):
            value = getattr(value, "__wrapped__", None)
        else:
            return


def _variables(f: FunctionType) -> Iterator[tuple[tuple[int, str], str, Callable[[], Any], bool]]:
    """Of each variable from outside: a key, its name, how it is read, whether `f` stores it."""
    loaded, stored, _ = _names(f.__code__)
    for name in sorted(loaded):
        space = f.__globals__
        if name in space:
            read = functools.partial(space.get, name, _MISSING)
            yield (id(space), name), name, read, name in stored
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
        yield (id(cell), name), name, functools.partial(_contents, cell), name in stored


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return _MISSING


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Global names that code reads, names outside of it that it stores, and attributes that it
    reads; those of inner functions as well."""
    loaded, stored, attributes = set(), set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            loaded.add(step.argval)
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"):
            stored.add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _names(inner)
            loaded |= more[0]
            stored |= more[1]
            attributes |= more[2]
    return frozenset(loaded), frozenset(stored), frozenset(attributes)


__all__ = ["Captured", "captured_by", "exact"]
