"""Where the user wrote it: the file and line that each node carries through every rewrite."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_PACKAGES = ("staticgrad", "staticgrad_runtime")  # their lines are nobody's program


@dataclass(frozen=True, slots=True, order=True)
class Loc:
    """A line of the user's program. `file` is a path as Python gives it, `line` counts from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


Locs = frozenset[Loc]
NOWHERE: Locs = frozenset()

_override: ContextVar[Locs | None] = ContextVar("locs", default=None)
_left_out: ContextVar[Locs | None] = ContextVar("left_out", default=None)


def current_locs() -> Locs:
    """The locations of a node made now: those set by `use_locs`, else the user's line."""
    given = _override.get()
    if given is not None:
        return given
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _PACKAGES:
            found = frozenset((Loc(frame.f_code.co_filename, frame.f_lineno),))
            return NOWHERE if found == _left_out.get() else found
        frame = frame.f_back  # type: ignore[assignment]
    return NOWHERE


@contextmanager
def use_locs(locs: Locs) -> Iterator[None]:
    """Nodes made inside get these locations: how passes carry the user's lines on."""
    token = _override.set(locs)
    try:
        yield
    finally:
        _override.reset(token)


@contextmanager
def without_locs(locs: Locs) -> Iterator[None]:
    """Nodes made inside do not get these locations: their own place is further in, or nowhere."""
    token = _left_out.set(locs)
    try:
        yield
    finally:
        _left_out.reset(token)


def locs_text(locs: Locs) -> str:
    return ", ".join(str(loc) for loc in sorted(locs))
