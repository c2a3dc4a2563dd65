"""The boundary that users call through: plain arguments are checked, errors name the user's line.

What a function of the public API raises ends in the user's file and line; that is added here, once,
not at each `raise`. A parameter that is annotated `int`, `float`, `bool` or `str` (or one of these
and None) is checked before the function runs, so that no function does arithmetic on a str, takes
"false" for true, or lets a NumPy scalar, which is not weak, decide a result's dtype.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from numbers import Real
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np

from staticgrad.ir.dim import Dim, is_index, size_reader
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, StaticgradError, UnsupportedError
from staticgrad.ir.loc import current_locs, locs_text
from staticgrad.ir.node import Value

from .spelling import respelled, spellings

F = TypeVar("F")
C = TypeVar("C", bound=type)

_MISSING = object()
_NO_POSITION = 1 << 30
_TAKEN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}
_WORDS = {
    "int": "an int",
    "float": "a number",
    "bool": "True, False",
    "str": "a str",
    "None": "None",
}


class DynamicMode:
    """How the dynamic mode hears of calls with its tensors. This layer knows nothing else of it.

    types   its tensors' classes, once it is loaded: before that a static call costs one look
    call    `call(function, args, kwargs)` runs a public function on such tensors
    load    imports the mode: `load()` is its package
    inside  whether a module is running that was called with such tensors: parameters then stand for
            their values
    """

    def __init__(self) -> None:
        self.types: frozenset[type] = frozenset()
        self.call: Callable[..., Any] | None = None
        self.load: Callable[[], Any] | None = None
        self.inside: ContextVar[bool] = ContextVar("inside_eager_module", default=False)

    def is_tensor(self, value: Any) -> bool:
        """Whether `value` is a tensor of the dynamic mode."""
        return type(value) in self.types

    def among(self, values: Iterable[Any]) -> bool:
        """Whether there is such a tensor among values or in lists, tuples and dicts of them."""
        for value in values:
            kind = type(value)
            if kind in self.types:
                return True
            if kind is list or kind is tuple:
                if value and self.among(value):
                    return True
            elif kind is dict and value and self.among(value.values()):
                return True
        return False

    def package(self) -> Any:
        """The mode's package, imported when it is first wanted."""
        if self.load is None:
            raise UnsupportedError("the dynamic mode comes with `import staticgrad`")
        return self.load()


dynamic = DynamicMode()


def locate(error: StaticgradError) -> None:
    """Adds the user's line to an error's text, unless that was done before."""
    if getattr(error, "located", False):
        return
    locs = current_locs()
    if not locs:
        return  # who compiles for others, who adds a line of their own
    if locs_text(locs) != getattr(error, "location", ""):
        error.args = (f"{error}\n  at {locs_text(locs)}", *error.args[1:])
    error.located = True  # type: ignore[attr-defined]


def shown(value: Any) -> str:
    """A value in an error: short values as they are, others by their type."""
    text = repr(value) if isinstance(value, (bool, int, float, str, Value, type(None))) else ""
    return text if text and len(text) <= 80 else f"an object of type {type(value).__name__}"


def checked_scalar(value: Any, kinds: tuple[str, ...], what: str) -> Any:
    """`value` as a plain Python int, float, bool or str; NumPy's scalars are converted."""
    if value is None and "None" in kinds:
        return None
    if isinstance(value, Dim) and ("int" in kinds or "float" in kinds):
        if size_reader.get() is not None:
            return int(value)  # a traced function: the present size, guarded
        raise ArgumentTypeError(
            f"{what} must be an int, got the symbolic size {value}, known only at run time; "
            "declare the input with an int dim to fix it"
        )
    is_bool = isinstance(value, (bool, np.bool_))
    if "str" in kinds and isinstance(value, str):
        return str(value)
    if "bool" in kinds and (is_bool or (type(value) is int and value in (0, 1))):
        return bool(value)
    if "int" in kinds and is_index(value):
        return operator.index(value)
    if "float" in kinds and not is_bool and isinstance(value, (Real, np.number)):
        if isinstance(value, (int, np.integer)):
            return int(value)
        if not isinstance(value, np.complexfloating):
            return float(value)
    *others, last = ", ".join(_WORDS[k] for k in kinds).split(", ")
    expected = f"{', '.join(others)} or {last}" if others else last
    raise ArgumentTypeError(f"{what} must be {expected}, got {shown(value)}")


def listed(given: Iterable[str], name: str, what: str) -> tuple[str, ...]:
    """The strings of an argument; a str alone, which is one of its letters too, is refused."""
    if isinstance(given, str):
        raise ArgumentError(f"{name}: expected a list of {what}, got {given!r}")
    return tuple(given)


def misfit(function: Callable[..., Any], *arguments: str) -> inspect.Signature | None:
    """The signature of a function that these positional arguments do not fit, else None."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in without a signature
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        return signature
    return None


def list_of(values: Any, what: str, kind: str) -> list[Any]:
    """A list of what was given in some iterable; strs, mappings and arrays are none."""
    wrong = isinstance(values, (str, bytes, Mapping, np.ndarray, Value))
    try:
        found = [] if wrong else list(values)
    except TypeError:
        wrong = True
    if wrong:
        raise ArgumentTypeError(f"{what} must be a list of {kind}, got {shown(values)}")
    return found


def _plain_parameters(
    function: FunctionType,
) -> list[tuple[int, str, tuple[str, ...], frozenset[type]]]:
    """The parameters with plain annotations: position, name, kinds, types that need no check."""
    code = function.__code__
    found = []
    for at, name in enumerate(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]):
        kinds = tuple(k.strip() for k in str(function.__annotations__.get(name, "")).split("|"))
        if set(kinds) <= set(_TAKEN) and kinds != ("None",):
            position = at if at < code.co_argcount else _NO_POSITION
            found.append((position, name, kinds, frozenset(t for k in kinds for t in _TAKEN[k])))
    return found


def _label(function: FunctionType, args: tuple[Any, ...]) -> str:
    """`softmax`, `Linear` for its constructor, `SGD.minimize` for a method it inherits."""
    if "." not in function.__qualname__ or not args:
        return function.__name__
    owner = type(args[0]).__name__
    return owner if function.__name__ == "__init__" else f"{owner}.{function.__name__}"


def _wrong_call(error: TypeError, kwargs: Mapping[str, Any]) -> ArgumentTypeError:
    """Python's error for arguments that a function does not take, with what serves instead."""
    from staticgrad.ir.hints import KEYWORDS

    text = str(error)
    if "unexpected keyword" in text:
        named = [n for n in kwargs if n in KEYWORDS and f"'{n}'" in text]
        text += "".join(f"; use {KEYWORDS[n]}" for n in named)
    return ArgumentTypeError(text)


def public(function: F, *, eager: bool = False) -> F:
    """`function` with its plain arguments checked and its errors located.

    With `eager` it is an operation of the dynamic mode as well: called with a tensor of that mode,
    or inside a module that was, the call goes there.
    """
    if getattr(function, "is_public", False) or not isinstance(function, FunctionType):
        return function
    plain = _plain_parameters(function)
    spelled = spellings(function)

    def checked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        for position, name, kinds, taken in plain:
            if position < len(args):
                value = args[position]
                if type(value) not in taken:
                    new = checked_scalar(value, kinds, f"{_label(function, args)}: {name}")
                    args = (*args[:position], new, *args[position + 1 :])
            else:
                value = kwargs.get(name, _MISSING)
                if value is not _MISSING and type(value) not in taken:
                    kwargs[name] = checked_scalar(value, kinds, f"{_label(function, args)}: {name}")
        return args

    @functools.wraps(function)
    def at_boundary(*args: Any, **kwargs: Any) -> Any:
        types = dynamic.types
        if eager and types and (
            (args and args[0].__class__ in types) or dynamic.inside.get() or dynamic.among(args)
            or (kwargs and dynamic.among((kwargs,)))
        ):  # fmt: skip
            return dynamic.call(at_boundary, args, kwargs)  # type: ignore[misc]
        try:
            if kwargs and spelled and not spelled.keys().isdisjoint(kwargs):
                kwargs = respelled(function.__name__, kwargs, spelled)
            return function(*(checked(args, kwargs) if plain else args), **kwargs)
        except StaticgradError as error:
            locate(error)
            raise
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            found = _wrong_call(error, kwargs)  # the function itself did not begin
            locate(found)
        raise found

    at_boundary.is_public = True  # type: ignore[attr-defined]
    at_boundary.is_operation = eager  # type: ignore[attr-defined]
    return at_boundary  # type: ignore[return-value]


def public_class(cls: C) -> C:
    """A class whose constructor and public methods are boundaries."""
    for name, value in list(vars(cls).items()):
        if isinstance(value, FunctionType) and (name == "__init__" or not name.startswith("_")):
            setattr(cls, name, public(value))
    return cls


def show_only(module: ModuleType, names: Iterable[str]) -> None:
    """Makes `dir(module)`, and so completion, give these names, without imports and submodules."""
    shown = sorted({*names, *(n for n in vars(module) if n.startswith("__"))})
    vars(module)["__dir__"] = lambda: list(shown)


def publish(module: ModuleType, names: Iterable[str], *, eager: bool = True) -> None:
    """Makes boundaries of a module's functions and classes; bases of the same package too. With
    `eager` the functions are operations of the dynamic mode as well. The names are all that `dir`
    shows."""
    show_only(module, names)
    namespace: Mapping[str, Any] = vars(module)
    for name in names:
        value = namespace[name]
        if isinstance(value, FunctionType):
            setattr(module, name, public(value, eager=eager))
        elif isinstance(value, type):
            for cls in value.__mro__:
                if cls.__module__.startswith("staticgrad."):
                    public_class(cls)


__all__ = [
    "checked_scalar",
    "dynamic",
    "list_of",
    "locate",
    "misfit",
    "public",
    "public_class",
    "publish",
    "show_only",
    "shown",
]
