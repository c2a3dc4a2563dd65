"""One module's text -> several that are compiled apart and linked together.

The functions that every program of a target shares (`sg_gemm_.._float32` and their kin) are units
of their own: their text is the same in every program, so their object code is generated once and
found in the cache by all others. What is left is cut in parts of like length, for as many threads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FUNCTION = re.compile(r"(?m)^(?=define )")
_NAME = re.compile(r"@([\w.$]+)")
_HEAD = re.compile(r"define (?:internal |hidden )?(.*?) ?@([\w.$]+)\((.*?)\)([^{]*)\{")
# What every program of a target has alike: products, convolutions and sorts, by family and dtype.
_SHARED = re.compile(r"sg_(gemm|conv|sort)\w*?_(float32|float64|u?int\d+|bool)\b")

# Below this many lines a part is not worth a thread: 2 ms of code generation, 0.3 ms of linking.
LEAST_LINES = 400


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


def split(text: str, threads: int) -> list[str]:
    """The module in units; one where it is short. Calls between units are by name."""
    header, functions = _parsed(text)
    groups: dict[str, list[_Function]] = {}
    rest: list[_Function] = []
    for f in functions:
        shared = _SHARED.match(f.name)
        if shared is not None:
            groups.setdefault(f"{shared[1]}_{shared[2]}", []).append(f)
        else:
            rest.append(f)
    parts = [*groups.values(), *_cut(rest, threads)]
    if len(parts) == 1:
        return [text]
    return [_unit(part, parts, header) for part in parts]


def _parsed(text: str) -> tuple[list[str], list[_Function]]:
    first, *rest = _FUNCTION.split(text)
    header = [line for line in first.splitlines() if line]
    functions = []
    for chunk in rest:
        end = chunk.index("\n}") + 2
        body = chunk[:end]
        header += [line for line in chunk[end:].splitlines() if line]
        name, *used = _NAME.findall(body)
        functions.append(_Function(name, body, frozenset(used)))
    return header, functions


def _cut(functions: list[_Function], threads: int) -> list[list[_Function]]:
    """At most `threads` parts of like length, each of at least LEAST_LINES."""
    total = sum(f.lines for f in functions)
    count = max(1, min(threads, total // LEAST_LINES))
    parts: list[list[_Function]] = [[] for _ in range(count)]
    lengths = [0] * count
    for f in sorted(functions, key=lambda f: -f.lines):
        shortest = lengths.index(min(lengths))
        parts[shortest].append(f)
        lengths[shortest] += f.lines
    return [p for p in parts if p]


def _unit(part: list[_Function], parts: list[list[_Function]], header: list[str]) -> str:
    own = {f.name for f in part}
    used = {name for f in part for name in f.uses} - own
    elsewhere = {f.name: f for other in parts if other is not part for f in other}
    asked = {name for other in parts if other is not part for f in other for name in f.uses}
    lines = []
    for line in header:
        named = _NAME.search(line)
        if named is None or named[1] in used:
            lines.append(line)
    lines += [elsewhere[name].declaration() for name in sorted(used & elsewhere.keys())]
    lines += [f.visible() if f.name in asked or _SHARED.match(f.name) else f.text for f in part]
    return "\n".join(lines) + "\n"
