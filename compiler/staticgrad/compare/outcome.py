"""An error as a comparison shows it: its type, what it says, and the user's line."""

from __future__ import annotations

import os
import re
import traceback
from typing import Any

import numpy as np

_AT = re.compile(r"\n  at (.+)\Z")
_IN_PARENTHESES = re.compile(r" \(([^()\s]+\.py:\d+(?:, [^()\s]+\.py:\d+)*)\)\Z")


def described(error: BaseException) -> dict[str, Any]:
    """`type`, `message` without the line, and `line`: `file:line` of the user's program, None where
    the error is about an argument of a call and names none."""
    text = str(error)
    line = getattr(error, "location", None)
    for pattern in (_AT, _IN_PARENTHESES):
        found = pattern.search(text)
        if found:
            line, text = line or found[1], text[: found.start()]
    if line is None:
        line = _users_line(error)
    return {"type": type(error).__name__, "message": text, "line": line}


def _users_line(error: BaseException) -> str | None:
    """The last line of the traceback that is neither this project's nor NumPy's."""
    found = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("staticgrad", "staticgrad_runtime", np.__name__):
            found = f"{os.path.basename(frame.f_code.co_filename)}:{number}"
    return found


__all__ = ["described"]
