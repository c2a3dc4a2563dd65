"""The traces of calls that differ in sizes alone: which axes are symbolic, which entry serves.

A first call is traced with its sizes as ints. When an axis comes with a second size, it gets a
symbol; axes that were equal in every call so far share one. A size of 1 is never made symbolic,
since it broadcasts, and a call with an empty array is traced with its sizes: not every function has
a value of no elements (the maximum has none).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike, Shape, substitute
from staticgrad.ir.graph import Graph

from . import pytree
from .captured import Captured
from .recorder import Call, Guard

Sizes = tuple[tuple[int, ...], ...]  # the shapes of a call's arrays
Pattern = tuple[Shape, ...]  # the shapes of a trace's inputs
Axis = tuple[int, int]  # which array, which axis


@dataclass
class Entry:
    """One trace: a graph for calls of its pattern whose guards hold."""

    pattern: Pattern
    graph: Graph
    form: pytree.Structure  # of the result
    guards: list[Guard]
    numbers: list[tuple[int, np.dtype[Any]]]  # which inputs are Python numbers
    captured: list[Captured]
    reason: str
    executable: Any = None
    run: Any = None  # the executable for any call: it may decline those that are new to it
    bound: Graph | None = None  # the graph in the mode that the function is traced for
    number_guards: list[Guard] = field(init=False)
    _dims: list[list[int | str]] = field(init=False)  # the pattern, symbols by name

    def __post_init__(self) -> None:
        self.number_guards = [g for g in self.guards if not g.of_sizes]
        self._dims = [[d if isinstance(d, int) else str(d) for d in dims] for dims in self.pattern]

    def sizes(self, shapes: Sizes) -> dict[str, int] | None:
        """The sizes of the symbols in a call, or None where the call is of another pattern."""
        found: dict[str, int] = {}
        for wanted, shape in zip(self._dims, shapes):
            for d, size in zip(wanted, shape):
                if isinstance(d, int):
                    if d != size:
                        return None
                elif size <= 1 or found.setdefault(d, size) != size:
                    return None
        return found

    def in_mode(self, training: bool | None) -> Graph:
        """The graph for who runs it with no `training` of its own: the same one in each call."""
        if training is None:
            return self.graph
        if self.bound is None:
            from staticgrad.passes.mode import bind_mode

            self.bound = bind_mode(self.graph, training)
        return self.bound

    def changed_variable(self) -> str | None:
        """The first variable that the function reads and that is no more what it was."""
        for captured in self.captured:
            if not captured.unchanged():
                return captured.name
        return None

    def failed_guard(self, sizes: dict[str, int], numbers: Sequence[Any]) -> str | None:
        """The first question whose answer is another one in this call."""
        call = Call(sizes, numbers)
        for g in self.guards:
            if not g.holds(call):
                return g.failure(call)
        for c in self.graph.constraints:
            if substitute(c.left, sizes) != substitute(c.right, sizes):
                return f"guard failed: {c.message}"
        return None

    def arrays(self, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """The inputs with arrays in place of Python numbers; None where one does not fit."""
        if not self.numbers:
            return inputs
        found = list(inputs)
        try:
            for at, dtype in self.numbers:
                found[at] = np.array(found[at], dtype)
        except OverflowError:
            return None
        return found

    def numbers_hold(self, sizes: dict[str, int], numbers: Sequence[Any]) -> bool:
        call = Call(sizes, numbers)
        return all(g.holds(call) for g in self.number_guards)


class Family:
    """All entries of calls with the same structure, dtypes and ranks."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names  # of the arrays, for symbols and reasons
        self._identifiers = _identifiers(names)
        self.entries: list[Entry] = []
        self.exact_axes: set[Axis] = set()  # a trace with these symbolic failed
        self._first: dict[Axis, int] = {}  # the first size other than 0 and 1
        self._varied: set[Axis] = set()
        self._group: dict[Axis, int] = {}  # axes of one number were equal in every call
        self._numbers = itertools.count()

    def observe(self, shapes: Sizes) -> None:
        """Takes note of a call's sizes."""
        renamed: dict[tuple[int | None, int], int] = {}
        for i, shape in enumerate(shapes):
            for a, size in enumerate(shape):
                axis = (i, a)
                if size <= 1:
                    continue
                if self._first.setdefault(axis, size) != size:
                    self._varied.add(axis)
                key = (self._group.get(axis), size)
                if key not in renamed:
                    renamed[key] = next(self._numbers)
                self._group[axis] = renamed[key]

    def pattern(self, shapes: Sizes, exact: set[Axis] | None = None) -> Pattern:
        """The shapes of a trace for a call: ints, and a symbol for each group of axes that had
        several sizes."""
        if any(0 in shape for shape in shapes):
            return shapes
        fixed = self.exact_axes if exact is None else exact
        symbols: dict[tuple[int, int], Dim] = {}
        found: list[Shape] = []
        for i, shape in enumerate(shapes):
            dims: list[DimLike] = []
            for a, size in enumerate(shape):
                if size == 1 or (i, a) not in self._varied or (i, a) in fixed:
                    dims.append(size)
                    continue
                group = (self._group[i, a], size)
                if group not in symbols:
                    symbols[group] = Dim.symbol(f"{self._identifiers[i]}_{a}")
                dims.append(symbols[group])
            found.append(tuple(dims))
        return tuple(found)

    def change(self, shapes: Sizes, pattern: Pattern) -> str:
        """How a call's sizes differ from those known: the reason of a trace."""
        found = []
        for i, (shape, dims) in enumerate(zip(shapes, pattern)):
            for a, (size, d) in enumerate(zip(shape, dims)):
                known = self._first.get((i, a), 1)
                if isinstance(d, Dim):
                    found.append(f"argument {self.names[i]}: axis {a} was {known}, is {size} "
                                 f"-> symbolic {str(d)!r}")  # fmt: skip
                elif size != known or (size <= 1 and self._differs_from_entries(i, a, size)):
                    found.append(f"argument {self.names[i]}: axis {a} is {size}, traced as an int")
        return "; ".join(found) if found else "sizes in a new combination"

    def _differs_from_entries(self, i: int, a: int, size: int) -> bool:
        return any(e.pattern[i][a] != size for e in self.entries)


def _identifiers(names: Sequence[str]) -> list[str]:
    """Names for symbols: identifiers, each once."""
    found: dict[str, None] = {}
    for name in names:
        word = re.sub(r"\W+", "_", name).strip("_")
        word = word if word.isidentifier() else f"arg_{word}"
        tries = (word if k == 1 else f"{word}_v{k}" for k in itertools.count(1))
        found[next(t for t in tries if t not in found)] = None
    return list(found)


def symbols_of(pattern: Pattern, shapes: Sizes) -> dict[str, int]:
    """The present sizes of a pattern's symbols."""
    return {
        str(d): size
        for dims, shape in zip(pattern, shapes)
        for d, size in zip(dims, shape)
        if isinstance(d, Dim)
    }


def groups_of(pattern: Pattern) -> list[set[Axis]]:
    """The symbolic axes of a pattern, those of one symbol together."""
    found: dict[str, set[Axis]] = {}
    for i, dims in enumerate(pattern):
        for a, d in enumerate(dims):
            if isinstance(d, Dim):
                found.setdefault(str(d), set()).add((i, a))
    return list(found.values())


__all__ = ["Entry", "Family", "Pattern", "Sizes", "groups_of", "symbols_of"]
