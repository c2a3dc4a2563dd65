"""A call's leaves: which are arrays, numbers or static, and what a call's kind is.

The kind is what decides which trace serves a call: of arrays dtype and rank (and sizes, by
`family`), of Python numbers the type, of anything else the value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from staticgrad_runtime.arrays import is_masked

from staticgrad.ir.dtype import BY_NAME
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, UnsupportedError
from staticgrad.ops.public import shown

from . import pytree
from .captured import exact
from .family import Sizes

NUMBERS = (bool, int, float)
# Types of leaves that say all about their kind: Python's numbers, and NumPy's scalars.
BY_TYPE = frozenset((*NUMBERS, *(d.numpy.type for d in map(as_dtype, BY_NAME))))
_DTYPES = frozenset(d.numpy for d in map(as_dtype, BY_NAME))


@dataclass(frozen=True)
class Arguments:
    """A call: its leaves as arrays, Python numbers and `Static`s, the structure of (args, kwargs),
    and how a user would write each leaf. `compiled`: whether a compiled program is to run it."""

    leaves: list[Any]
    form: pytree.Structure
    paths: list[str]
    compiled: bool = True

    @property
    def shapes(self) -> Sizes:
        return tuple(v.shape for v in self.leaves if isinstance(v, np.ndarray))

    @property
    def inputs(self) -> list[Any]:
        """The leaves that are inputs of the program."""
        return [v for v in self.leaves if not isinstance(v, Static)]

    @property
    def array_names(self) -> list[str]:
        return [p for p, v in zip(self.paths, self.leaves) if isinstance(v, np.ndarray)]

    @property
    def kinds(self) -> tuple[Hashable, ...]:
        return tuple(kind(v) for v in self.leaves)


class Static:
    """An argument that the trace takes as it is; calls with an equal one share it."""

    __slots__ = ("_key", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self._key = exact(value)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and bool(self._key == other._key)

    def __repr__(self) -> str:
        return repr(self.value)


def glance(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """What is known of a call at a glance: of arrays dtype and shape, of numbers the type."""
    return tuple([
        (v.dtype, v.shape) if type(v) is np.ndarray
        else type(v) if type(v) in BY_TYPE else (type(v), v)
        for v in leaves
    ])  # fmt: skip


def as_static(value: Any, label: str, name: str) -> Static:
    try:
        hash(value)
    except TypeError:
        raise ArgumentTypeError(
            f"{label}: the static argument {name} must be hashable, got {shown(value)}"
        ) from None
    return Static(value)


def unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, Static) else value


def normal(value: Any, path: str, label: str) -> Any:
    """A leaf as an array of a supported dtype, a Python number, or something static."""
    if type(value) is np.ndarray and value.dtype in _DTYPES:
        return value
    if isinstance(value, (Static, *NUMBERS)) and not isinstance(value, np.generic):
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise DTypeError(f"{label}: argument {path}: the number {value} does not fit int64")
        return value
    if is_masked(value):
        raise ArgumentTypeError(f"{label}: argument {path} is a masked array; fill it first")
    if isinstance(value, np.ndarray) or (
        hasattr(value, "__array__") and not isinstance(value, (type, np.dtype))
    ):
        array = np.asarray(value)
        try:
            dtype = as_dtype(array.dtype).numpy
        except (DTypeError, UnsupportedError) as error:
            raise type(error)(f"{label}: argument {path}: {error}") from None
        return array.astype(dtype, copy=False)
    try:
        hash(value)
    except TypeError:
        raise ArgumentTypeError(
            f"{label}: argument {path} is {shown(value)}: neither an array or a number, nor "
            "hashable, nor a tree (sg.tree.register makes trees of a class)"
        ) from None
    return Static(value)


def kind(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return (value.dtype, value.ndim)
    if isinstance(value, Static):
        return value
    found: Any = type(value)
    return found  # type: ignore[no-any-return]


def kind_text(kind: Any) -> str:
    if isinstance(kind, tuple):
        return f"{kind[0]} of rank {kind[1]}"
    return repr(kind) if isinstance(kind, Static) else f"a Python {kind.__name__}"


def parameters(fn: Callable[..., Any]) -> tuple[tuple[str, ...], str | None]:
    """The names of positional parameters, and that of `*args`."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # built-in functions have none
        return (), None
    kinds = inspect.Parameter
    names = tuple(
        p.name for p in signature.parameters.values()
        if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    )  # fmt: skip
    rest = next(
        (p.name for p in signature.parameters.values() if p.kind is kinds.VAR_POSITIONAL), None
    )
    return names, rest


def keywords(fn: Callable[..., Any]) -> tuple[str, ...] | None:
    """The names that `fn` takes arguments by; None where it takes any."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return None
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    return tuple(signature.parameters)


def name_at(known: tuple[tuple[str, ...], str | None], position: int) -> str:
    """How a user would write the argument at a position, given `parameters` of the function."""
    names, rest = known
    if position < len(names):
        return names[position]
    return f"{rest}[{position - len(names)}]" if rest else f"argument {position}"


def namer(fn: Callable[..., Any]) -> Callable[[int], str]:
    """The names of the function's arguments by position; looked up when one is wanted."""
    return lambda position: name_at(parameters(fn), position)


def static_places(
    label: str, fn: Callable[..., Any], numbers: tuple[int, ...], names: tuple[str, ...]
) -> tuple[frozenset[int], frozenset[str]]:
    """Positions and names of static arguments; each is known by both where it has both."""
    known, rest = parameters(fn)
    by_name = keywords(fn) if names else None
    positions = set()
    for n in numbers:
        if type(n) is not int:
            raise ArgumentTypeError(f"{label}: static_argnums must be ints, got {n!r}")
        at = n + len(known) if n < 0 else n
        if at < 0 or (at >= len(known) and rest is None and known):
            raise ArgumentError(
                f"{label}: static_argnums has {n}, but the function takes {len(known)} arguments"
            )
        positions.add(at)
    for name in names:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{label}: static_argnames must be strs, got {name!r}")
        if by_name is not None and name not in by_name:
            raise ArgumentError(
                f"{label}: static_argnames has {name!r}, but the function's arguments are "
                f"{', '.join(by_name) or 'none'}"
            )
    both = {known[i] for i in positions if i < len(known)} | set(names)
    positions |= {known.index(name) for name in names if name in known}
    return frozenset(positions), frozenset(both)


__all__ = [
    "BY_TYPE", "NUMBERS", "Arguments", "Static", "as_static", "glance", "kind", "kind_text",
    "name_at", "namer", "normal", "parameters", "static_places", "unwrapped",
]  # fmt: skip
