"""How values are written in IR text, exactly: strings, numbers, arrays, attributes, locations.

A bare `2.0` is float32, `2` int64 and `True` bool, as bare Python numbers are in the API; any other
dtype is a suffix, `2.0:float64`. A float has the fewest digits that give its bits back.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .dim import Dim, symbols
from .dtype import BY_NAME, DType, bool_, float32, int64
from .graph import Graph
from .loc import Locs

Array = np.ndarray[Any, Any]

# Names that an attribute's value can't be as a size, since they mean something else there.
RESERVED = frozenset((*BY_NAME, "True", "False", "None", "nan", "inf", "dim", "max", "min"))
QUIET_NAN = {"float32": 0x7FC00000, "float64": 0x7FF8000000000000}

# Beside JSON's own escapes: what breaks lines or has no UTF-8 (a file name's undecodable bytes).
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_FILE_WORD = re.compile(r"[A-Za-z0-9_.+/\x80-\U0010ffff-]+\Z")


def quote(text: str) -> str:
    """A JSON string on one line; letters of any script stay as they are."""
    return _UNSAFE.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(text, ensure_ascii=False))


# --- numbers --------------------------------------------------------------------------------------


def default_dtype(text: str) -> DType:
    """The dtype of a literal without a suffix."""
    if text in ("True", "False"):
        return bool_
    return int64 if text.lstrip("-").isdecimal() else float32


def element_text(array: Array) -> str:
    """The value of an array with one element, without its dtype."""
    value = array.reshape(()).item()
    if array.dtype.kind != "f":
        return repr(value)
    if value != value:
        bits = int(array.reshape(1).view(f"u{array.itemsize}")[0])
        return "nan" if bits == QUIET_NAN[array.dtype.name] else f"nan({bits:#x})"
    if array.dtype.name == "float32" and np.isfinite(value):
        short = str(array.reshape(())[()])
        # Read through a double, as text is; the shortest decimal can't differ but on a midpoint.
        return short if np.float32(float(short)) == value else repr(value)
    return repr(value)


def scalar_text(array: Array) -> str:
    """A 0-d array: `2.0`, `3:int8`, `nan:float64`."""
    text = element_text(array)
    name = array.dtype.name
    return text if default_dtype(text) == name else f"{text}:{name}"


def list_text(array: Array) -> str:
    """An array as nested lists; `[]` where it has no element."""
    if array.size == 0:
        return "[]"
    if array.ndim == 0:
        return element_text(array)
    return "[" + ", ".join(list_text(row) for row in array) + "]"


def scalar(text: str, dtype: DType) -> Array:
    """A 0-d array from the text of `element_text`. Raises ValueError where it does not fit."""
    if text.startswith("nan("):
        if not dtype.is_float:
            raise ValueError(f"{text} is no {dtype!s}")
        bits = np.array(int(text[4:-1], 16), f"u{dtype.itemsize_bytes}")
        return bits.view(dtype.numpy)
    if dtype.kind == "b":
        if text not in ("True", "False"):
            raise ValueError(f"{text} is no bool")
        return np.array(text == "True")
    if text in ("True", "False"):
        raise ValueError(f"{text} is no {dtype!s}")
    if dtype.is_float:
        with np.errstate(over="ignore"):
            found = np.array(float(text), dtype.numpy)
        if np.isinf(found) and "inf" not in text:
            raise ValueError(f"{text} is too large for {dtype!s}")
        return found
    try:
        return np.array(int(text), dtype.numpy)
    except (ValueError, OverflowError):
        raise ValueError(f"{text} is no {dtype!s}") from None


# --- attributes -----------------------------------------------------------------------------------


def attr_text(value: Any) -> str:
    """An attribute's value; what is no plain data is named in angle brackets, which no parser
    takes."""
    match value:
        case None | bool():
            return repr(value)
        case DType():
            return str(value)
        case str():
            return quote(value)
        case int():
            return int.__repr__(value)
        case float():
            return float.__repr__(value)
        case Dim():
            text = str(value)
            clear = not text.startswith("(") and RESERVED.isdisjoint(symbols(value))
            return text if clear else f"dim({text})"
        case tuple():
            inner = ", ".join(attr_text(v) for v in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
    name = getattr(value, "__name__", None) or type(value).__name__
    return f"<{name}>"


def attrs_text(attrs: Mapping[str, Any], skip: Iterable[str] = ()) -> str:
    """`{axes=(1,), keepdims}`; nothing where there is none. Sub-graphs are left out."""
    left_out = frozenset(skip)
    parts = [
        name if value is True else f"{name}={attr_text(value)}"
        for name, value in attrs.items()
        if name not in left_out and not isinstance(value, Graph)
    ]
    return "{" + ", ".join(parts) + "}" if parts else ""


# --- locations ------------------------------------------------------------------------------------


def readable_path(file: str) -> str:
    """A path that an ASCII locale has read byte by byte, in the letters that it is written in."""
    try:
        return file.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:  # bytes that are no UTF-8 stay as Python escapes them
        return file


class FileTable:
    """Short names of files: as many of a path's last parts as tell it from the others."""

    def __init__(self, files: Iterable[str]) -> None:
        known = dict.fromkeys(readable_path(f) for f in files)
        parts = {f: f.replace(os.sep, "/").split("/") for f in known}
        by_base: dict[str, list[str]] = {}
        for f, p in parts.items():
            by_base.setdefault(p[-1], []).append(f)
        self.aliases: dict[str, str] = {}
        for same in by_base.values():
            for f in same:
                self.aliases[f] = self._shortest(f, [g for g in same if g != f], parts)
        taken = list(self.aliases.values())
        if len(set(taken)) < len(taken):  # paths that differ in their separators only
            self.aliases = {f: f for f in self.aliases}

    @staticmethod
    def _shortest(file: str, others: list[str], parts: Mapping[str, list[str]]) -> str:
        own = parts[file]
        for n in range(1, len(own)):
            if own[-n] and all(parts[g][-n:] != own[-n:] for g in others):
                return "/".join(own[-n:])
        return file

    def lines(self) -> list[str]:
        """What the short names stand for: `@model.py = "/home/me/model.py"`."""
        return [
            f"@{_file_word(alias)} = {quote(file)}"
            for file, alias in self.aliases.items()
            if alias != file
        ]

    def text(self, locs: Locs) -> str:
        """`@model.py:12 @model.py:13`"""
        return " ".join(
            f"@{_file_word(self.aliases[readable_path(x.file)])}:{x.line}" for x in sorted(locs)
        )


def _file_word(alias: str) -> str:
    plain = _FILE_WORD.match(alias) and not _UNSAFE.search(alias) and alias.isprintable()
    return alias if plain else quote(alias)
