"""One module's text -> several that are compiled apart and linked together.

The functions that every program of a target shares (`sg_gemm_.._float32` and their kin) are units
of their own: their text is the same in every program, so their object code is generated once and
found in the cache by all others. What is left is cut into parts of like length, in the order in
which it is emitted: a part is compiled while Python emits the next. A long driver is one more, and
compiled plainly, as are the functions that only call others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_FUNCTION = re.compile(r"(?m)^(?=define )")
_NAME = re.compile(r"@([\w.$]+)")
_LABEL = re.compile(r"(?m)^([\w.$]+):")
_BRANCH = re.compile(r"(?m)^ +(?:br|switch) .*")
_TARGET = re.compile(r"label %([\w.$]+)")
_HEAD = re.compile(r"define (?:internal |hidden )?(.*?) ?@([\w.$]+)\((.*?)\)([^{]*)\{")
# What every program of a target has alike: products, convolutions and sorts, by family and dtype;
# of convolution the tiles apart, which depend on its sizes, and the depthwise ones, which depend on
# windows: another program has others.
_SHARED = re.compile(
    r"sg_(gemm|gemv|prepack|conv_tile|conv_depthwise|conv|sort)\w*?_(float32|float64|u?int\d+|bool)(x\d+)?\b"
)

# From this many lines on a part is full: some 25 ms of code generation, 0.3 ms of linking.
PART_LINES = 600
# A driver is run once a call: from so many lines on it is compiled without optimisation. That takes
# a third of the time (of a transformer block's, 917 lines, 17 ms) and costs a call some
# nanoseconds a step; the loop of a short one may take no longer than what it repeats. What has no
# loop goes with it, which costs as little: to call a product takes 1.4 ms to compile, plainly 0.5.
DRIVER = "sg_share"
LONG_DRIVER_LINES = 200


class Unit(NamedTuple):
    """A module's text, and whether its code is worth optimising."""

    text: str
    plain: bool = False

    @property
    def effort(self) -> int:
        """How long code generation takes, by comparison."""
        return len(self.text) // (4 if self.plain else 1)


class _Function(NamedTuple):
    name: str
    text: str
    uses: frozenset[str]

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @property
    def is_straight(self) -> bool:
        """Whether no branch leads back."""
        labels = {m[1]: m.start() for m in _LABEL.finditer(self.text)}
        return all(
            labels.get(m[1], -1) > branch.start()
            for branch in _BRANCH.finditer(self.text)
            for m in _TARGET.finditer(branch[0])
        )

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
        self._straight: list[_Function] = []  # with the driver, once it stands
        self._has_long_driver = False
        self._lines = 0  # of the last part
        self._whole: list[Unit] = []  # what `complete` has told

    def add(self, functions: Iterable[tuple[str, str]]) -> None:
        """Names and texts of functions that are finished now."""
        for name, text in functions:
            f = _Function(name, text, frozenset(_NAME.findall(text)))
            self._known[name] = f
            shared = _SHARED.match(name)
            if shared is not None:
                self._groups.setdefault(f"{shared[1]}_{shared[2]}", []).append(f)
            elif name == DRIVER or f.is_straight:
                self._straight.append(f)
                self._has_long_driver |= name == DRIVER and f.lines >= LONG_DRIVER_LINES
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
        end = len(self._parts) - (self._lines < self._most_lines)
        parts = self._parts[len(self._whole) : end]
        if not parts:
            return []
        lines = _sorted(declared)
        units = [self._unit(part, lines) for part in parts]
        self._whole += units
        return units

    def all(self, declared: Iterable[str]) -> list[Unit]:
        """Every unit of a module that is finished; none where it is short, and best left whole."""
        *parts, last = self._parts[len(self._whole) :] or [[]]
        straight = self._straight
        if not self._has_long_driver:
            last, straight = last + straight, []
        rest = [part for part in (*parts, last) if part]
        if len(self._whole) + len(rest) + len(self._groups) + bool(straight) <= 1:
            return []
        lines = _sorted(declared)
        units = [*self.shared(lines), *self._whole, *(self._unit(part, lines) for part in rest)]
        if straight:
            units.append(Unit(self._unit(straight, lines).text, plain=True))
        return units

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
