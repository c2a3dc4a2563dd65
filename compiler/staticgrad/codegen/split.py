"""One module's text -> several that are compiled apart and linked together.

The functions that every program of a target shares (`sg_gemm_.._float32` and their kin) are units
of their own: their text is the same in every program, so their object code is generated once and
found in the cache by all others. What is left is cut into parts of like length, in the order in
which it is emitted: a part is compiled while Python emits the next. A long driver is one more, and
compiled plainly.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_FUNCTION = re.compile(r"(?m)^(?=define )")
_NAME = re.compile(r"@([\w.$]+)")
_HEAD = re.compile(r"define (?:internal |hidden )?(.*?) ?@([\w.$]+)\((.*?)\)([^{]*)\{")
# What every program of a target has alike: products, convolutions and sorts, by family and dtype.
_SHARED = re.compile(r"sg_(gemm|prepack|conv|sort)\w*?_(float32|float64|u?int\d+|bool)\b")

# From this many lines on a part is full: some 25 ms of code generation, 0.3 ms of linking.
PART_LINES = 600
# A driver is run once a call: from so many lines on it is compiled without optimisation. That takes
# a third of the time (of a transformer block's, 917 lines, 17 ms) and costs a call some
# nanoseconds a step; the loop of a short one may take no longer than what it repeats.
DRIVER = "sg_share"
LONG_DRIVER_LINES = 200


@dataclass(frozen=True)
class Unit:
    """A module's text, and whether its code is worth optimising."""

    text: str
    plain: bool = False

    @property
    def effort(self) -> int:
        """How long code generation takes, by comparison."""
        return len(self.text) // (4 if self.plain else 1)


@dataclass(frozen=True)
class _Function:
    name: str
    text: str
    uses: frozenset[str]

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    def declaration(self) -> str:
        head = _HEAD.match(self.text)
        assert head is not None
        result, _, params, _ = head.groups()
        types = ", ".join(p.strip().rsplit(" ", 1)[0] for p in params.split(",") if p.strip())
        return f"declare {result.strip()} @{self.name}({types})"

    def visible(self) -> str:
        """The text, with the function callable from another unit."""
        return self.text.replace("define internal ", "define hidden ", 1)


class Splitter:
    """A module's units, as its functions are finished: what a function calls comes before it."""

    def __init__(self, threads: int) -> None:
        self._most_lines = PART_LINES if threads > 1 else sys.maxsize
        self._known: dict[str, _Function] = {}
        self._groups: dict[str, list[_Function]] = {}
        self._parts: list[list[_Function]] = [[]]
        self._drivers: list[list[_Function]] = []
        self._lines = 0  # of the last part
        self._given = 0  # parts that `complete` has told

    def add(self, functions: Iterable[tuple[str, str]]) -> None:
        """Names and texts of functions that are finished now."""
        for name, text in functions:
            f = _Function(name, text, frozenset(_NAME.findall(text)))
            self._known[name] = f
            shared = _SHARED.match(name)
            if shared is not None:
                self._groups.setdefault(f"{shared[1]}_{shared[2]}", []).append(f)
            elif name == DRIVER and f.lines >= LONG_DRIVER_LINES:
                self._drivers.append([f])
            else:
                if self._lines >= self._most_lines:
                    self._parts.append([])
                    self._lines = 0
                self._parts[-1].append(f)
                self._lines += f.lines

    def shared(self, declared: Iterable[str]) -> list[Unit]:
        """The units that other programs have too. `declared` are the module's declarations."""
        lines = _sorted(declared)
        groups = (sorted(group, key=lambda f: f.name) for group in self._groups.values())
        return [self._unit(group, lines) for group in groups]

    def complete(self, declared: Iterable[str]) -> list[Unit]:
        """Units of the program's own to which nothing will be added, each told once."""
        whole = len(self._parts) - (self._lines < self._most_lines)
        parts = self._parts[self._given : whole]
        if not parts:
            return []
        self._given = whole
        lines = _sorted(declared)
        return [self._unit(part, lines) for part in parts]

    def all(self, declared: Iterable[str]) -> list[Unit]:
        """Every unit of a module that is finished; none where it is short, and best left whole."""
        parts = [part for part in self._parts if part]
        if len(parts) + len(self._groups) + len(self._drivers) <= 1:
            return []
        lines = _sorted(declared)
        own = [self._unit(part, lines) for part in parts]
        plain = [Unit(self._unit(part, lines).text, plain=True) for part in self._drivers]
        return [*self.shared(lines), *own, *plain]

    def _unit(self, part: list[_Function], declared: Sequence[str]) -> Unit:
        own = {f.name for f in part}
        used = {name for f in part for name in f.uses} - own
        lines = []
        for line in declared:
            named = _NAME.search(line)
            if named is None or named[1] in used:
                lines.append(line)
        lines += [self._known[name].declaration() for name in sorted(used & self._known.keys())]
        lines += [f.visible() for f in part]
        return Unit("\n".join(lines) + "\n")


def _sorted(declared: Iterable[str]) -> list[str]:
    """In one order, whichever program they were declared in."""
    return sorted(declared, key=_NAME.findall)


def split(text: str, threads: int) -> list[Unit]:
    """The units of a module's text; one where it is short. Calls between units are by name."""
    declared, functions = _parsed(text)
    splitter = Splitter(threads)
    splitter.add(functions)
    return splitter.all(declared) or [Unit(text)]


def shared_units(text: str) -> list[Unit]:
    """Of the units of `split` those that other programs have too."""
    declared, functions = _parsed(text)
    splitter = Splitter(1)
    splitter.add(functions)
    return splitter.shared(declared)


def _parsed(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """A module's declarations, and the names and texts of its functions."""
    first, *rest = _FUNCTION.split(text)
    declared = [line for line in first.splitlines() if line]
    functions = []
    for chunk in rest:
        end = chunk.index("\n}") + 2
        body = chunk[:end]
        declared += [line for line in chunk[end:].splitlines() if line]
        named = _NAME.search(body)
        assert named is not None
        functions.append((named[1], body))
    return declared, functions
