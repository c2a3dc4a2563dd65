"""Symbolic dims as plain data: evaluated, solved for a symbol, and printed.

A dim is an int, a symbol's name, or a list in prefix form: `["+", a, b, ...]`, `["*", a, b, ...]`,
`["//", a, b]`, `["%", a, b]`, `["max", a, b, ...]`, `["min", a, b, ...]`. Division rounds down, as
Python's does. Cost formulas use the same form and may hold floats.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .errors import ArtifactError, BindError

# Recursive aliases do not survive json typing; `validate_dim` checks what comes from outside.
Dim: TypeAlias = "int | float | str | list[Any]"

OPERATORS = ("+", "*", "//", "%", "max", "min")
_BINARY = ("//", "%")


class UnboundSymbol(LookupError):
    """A dim expression names a symbol that has no value yet; `args[0]` is its name."""


def validate_dim(dim: Any, symbols: Iterable[str]) -> None:
    """Refuses anything that is no dim expression over `symbols` with an ArtifactError."""
    known = frozenset(symbols)
    pending = [dim]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if item not in known:
                raise ArtifactError(f"dim expression {dim!r} names the unknown symbol {item!r}")
        elif isinstance(item, list):
            ok = len(item) >= 2 and item[0] in OPERATORS
            if not ok or (item[0] in _BINARY and len(item) != 3):
                raise ArtifactError(f"not a dim expression: {item!r}")
            pending.extend(item[1:])
        elif isinstance(item, bool) or not isinstance(item, (int, float)):
            raise ArtifactError(f"not a dim expression: {item!r}")


_APPLY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "max": max,
    "min": min,
}


def evaluate(dim: Dim, values: Mapping[str, int]) -> Any:
    """The value of a dim expression; UnboundSymbol where `values` lacks one of its symbols."""
    if isinstance(dim, str):
        try:
            return values[dim]
        except KeyError:
            raise UnboundSymbol(dim) from None
    if not isinstance(dim, list):
        return dim
    operands = [evaluate(operand, values) for operand in dim[1:]]
    if dim[0] in _BINARY and operands[1] == 0:
        raise BindError(f"dim expression {dim_text(dim)} divides by zero")
    return functools.reduce(_APPLY[dim[0]], operands)


def evaluate_int(dim: Dim, values: Mapping[str, int]) -> int:
    """`evaluate` for shapes and sizes, which are whole numbers."""
    return int(evaluate(dim, values))


def symbols_of(dim: Dim) -> set[str]:
    """The names in a dim expression."""
    found: set[str] = set()
    pending: list[Any] = [dim]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            found.add(item)
        elif isinstance(item, list):
            pending.extend(item[1:])
    return found


def linear(dim: Dim, symbol: str, values: Mapping[str, int]) -> tuple[int, int] | None:
    """(a, b) with dim == a * symbol + b, every other symbol taken from `values`.

    None where the expression is not linear in `symbol` or another symbol is unbound.
    """
    if dim == symbol:
        return 1, 0
    if not isinstance(dim, list) or symbol not in symbols_of(dim):
        try:
            return 0, evaluate_int(dim, values)
        except UnboundSymbol:
            return None
    parts = [linear(operand, symbol, values) for operand in dim[1:]]
    if dim[0] not in ("+", "*") or any(part is None for part in parts):
        return None
    slope, offset = (0, 0) if dim[0] == "+" else (0, 1)
    for part in parts:
        assert part is not None
        a, b = part
        if dim[0] == "+":
            slope, offset = slope + a, offset + b
        elif slope and a:
            return None
        else:
            slope, offset = slope * b + offset * a, offset * b
    return slope, offset


def solve(dim: Dim, symbol: str, value: int, values: Mapping[str, int]) -> int | None:
    """The whole `symbol` for which a linear dim expression has the value `value`, if there is one.

    `2*N + 1` at 7 gives N = 3; at 8, or where N would be negative, None.
    """
    found = linear(dim, symbol, values)
    if found is None or found[0] == 0:
        return None
    slope, offset = found
    quotient, remainder = divmod(value - offset, slope)
    return quotient if remainder == 0 and quotient >= 0 else None


_PRECEDENCE = {"+": 1, "*": 2, "//": 2, "%": 2}


def dim_text(dim: Dim, outer: int = 0) -> str:
    """A dim as a person writes it: `["+", ["*", 2, "N"], 1]` -> `2*N + 1`."""
    if not isinstance(dim, list):
        return str(dim)
    if dim[0] in ("max", "min"):
        return f"{dim[0]}({', '.join(dim_text(operand) for operand in dim[1:])})"
    level = _PRECEDENCE[dim[0]]
    joint = dim[0] if dim[0] == "*" else f" {dim[0]} "
    # `//` and `%` bind like `*` but do not associate, so their operands keep parentheses
    inner = level + 1 if dim[0] in _BINARY else level
    text = joint.join(
        dim_text(operand, inner if i == 0 else level + 1) for i, operand in enumerate(dim[1:])
    )
    return f"({text})" if level < outer else text


def shape_text(shape: Sequence[Dim]) -> str:
    """A shape as Python prints tuples, symbols bare: `(N, 784)`, `(N,)`, `()`."""
    inner = ", ".join(dim_text(dim) for dim in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


class DimTable:
    """Many dim expressions evaluated together, each distinct part of them once.

    The sizes of a training step's 50 buffers have 20 distinct expressions, which `evaluate` takes
    150 us for, one by one; their parts are some 100 steps here, at 0.07 us each.
    """

    def __init__(self, dims: Iterable[Dim], symbols: Sequence[str]) -> None:
        self._dims = list(dims)
        self._symbols = tuple(symbols)
        self._template: list[Any] = [None] * len(self._symbols)  # symbols, numbers, results
        self._steps: list[tuple[Callable[[Any, Any], Any], int, int, int]] = []
        places: dict[Any, int] = {name: i for i, name in enumerate(self._symbols)}
        known: dict[str, int] = {}  # by text: a program's 400 sizes are some 40 different ones
        self._which = []
        for dim in self._dims:
            key = repr(dim)
            if key not in known:
                known[key] = self._place(dim, places)
            self._which.append(known[key])

    def _place(self, dim: Dim, places: dict[Any, int]) -> int:
        """Where the value of an expression will stand."""
        if isinstance(dim, str):
            return places[dim]
        if not isinstance(dim, list):
            return self._put((type(dim), dim), dim, places)
        first, *rest = (self._place(operand, places) for operand in dim[1:])
        for operand in rest:
            key = (dim[0], first, operand)
            if key not in places:
                step = (_APPLY[dim[0]], first, operand, len(self._template))
                self._steps.append(step)
            first = self._put(key, None, places)
        return first

    def _put(self, key: Any, value: Any, places: dict[Any, int]) -> int:
        if key not in places:
            places[key] = len(self._template)
            self._template.append(value)
        return places[key]

    def evaluate(self, values: Mapping[str, int]) -> list[Any]:
        """The values, in the order of the expressions given. Raises BindError where one divides by
        zero."""
        found = self._template.copy()
        for i, name in enumerate(self._symbols):
            found[i] = values[name]
        try:
            for apply, a, b, place in self._steps:
                found[place] = apply(found[a], found[b])
        except ZeroDivisionError:
            for dim in self._dims:
                evaluate(dim, values)  # names the expression
            raise
        return [found[i] for i in self._which]
