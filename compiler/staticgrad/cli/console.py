"""What all verbs share at the edges: text streams, the JSON document, errors and exit codes."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from staticgrad_runtime.errors import ArtifactError

from staticgrad.ir.errors import StaticgradError, UnsupportedError, VerifyError
from staticgrad.passes.pipeline import PassError
from staticgrad.rewrite.driver import RewriteLoopError

JSON_VERSION = 1

OK = 0
USAGE = 2
UNSUPPORTED = 3
MISMATCH = 4
MEMORY = 5
INTERNAL = 70
INTERRUPTED = 130

_SURROGATES = re.compile("[\ud800-\udfff]")


class UsageError(StaticgradError):
    """A command line that does not fit, or a file that is missing or unusable."""

    def __init__(self, message: str, *, location: str | None = None) -> None:
        super().__init__(message)
        self.location = location


class MismatchError(StaticgradError):
    """Values that differ from what they are compared with."""


class InterruptedRun(StaticgradError):
    """The user pressed Ctrl-C; says what is kept."""


def exit_code(error: BaseException) -> int:
    """The exit code that the contract gives to an error."""
    if isinstance(error, (InterruptedRun, KeyboardInterrupt)):
        return INTERRUPTED
    if isinstance(error, MismatchError):
        return MISMATCH
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, UnsupportedError):
        return UNSUPPORTED
    if isinstance(error, (VerifyError, RewriteLoopError, PassError, ArtifactError)):
        return INTERNAL
    if isinstance(error, (StaticgradError, OSError)):
        return USAGE
    return INTERNAL


# --- text -----------------------------------------------------------------------------------------


def use_utf8() -> None:
    """Standard output and error speak UTF-8 whatever the locale says, and take any text."""
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or "ascii"
        if codecs.lookup(encoding).name != "utf-8" or stream.errors != "backslashreplace":
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


def shown(path: str | os.PathLike[str]) -> str:
    """A path as people read it. Under an ASCII locale Python holds the bytes of `模型.py` as
    surrogates; they are UTF-8 all the same."""
    try:
        return os.fsencode(path).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # text already, which that locale could not have given
        return os.fsdecode(path)


# --- the JSON document ----------------------------------------------------------------------------


def json_text(document: Mapping[str, Any]) -> str:
    """Strict JSON in UTF-8: no NaN, letters as they are, lone surrogates escaped."""
    text = json.dumps(_plain(document), ensure_ascii=False, allow_nan=False)
    return _SURROGATES.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have become the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def success(verb: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"version": JSON_VERSION, "ok": True, "verb": verb, **fields}


def failure(error: BaseException, location: str | None) -> dict[str, Any]:
    found = {"type": type(error).__name__, "message": message_of(error), "location": location}
    return {"version": JSON_VERSION, "ok": False, "error": found}


def message_of(error: BaseException) -> str:
    """The error's text; OSError's without its number: `cannot open x.npy: no such file`."""
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        where = "" if name is None or isinstance(name, int) else f"{shown(name)}: "
        return f"{where}{error.strerror}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory"
    return str(error) or type(error).__name__


# --- errors ---------------------------------------------------------------------------------------


def error_text(error: BaseException, location: str | None) -> str:
    """What people see on standard error."""
    message = message_of(error)
    code = exit_code(error)
    if code == INTERNAL and not isinstance(error, PassError):
        message = (
            f"internal error: {type(error).__name__}: {message}\n"
            "  this is a bug in staticgrad; --traceback shows where"
        )
    elif isinstance(error, (UsageError, InterruptedRun, OSError, MemoryError, KeyboardInterrupt)):
        pass
    else:
        message = f"{type(error).__name__}: {message}"
    if location and os.path.basename(location) not in message:
        message += f"\n  at {location}"
    return f"staticgrad: {message}"


def location_of(error: BaseException, is_user_file: Callable[[str], bool]) -> str | None:
    """`file:line` in the user's program: what the error says, else the last line of its traceback
    in a file of the user's."""
    own = getattr(error, "location", None)
    if own:
        return str(own)
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if is_user_file(frame.f_code.co_filename):
            found = f"{shown(frame.f_code.co_filename)}:{line}"
    return found


@dataclass(frozen=True)
class Result:
    """What a verb gives: the fields of its JSON document, and the text for people."""

    fields: Mapping[str, Any]
    text: str
