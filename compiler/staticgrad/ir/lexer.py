"""The tokens of IR text, and what both languages (graphs and kernels) are made of.

Line ends mean nothing, `#` starts a comment. Errors name the line, the column and what was
expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from .dim import Dim, DimCall, DimLike, dim_max, dim_min, floor_div, modulo
from .dtype import BY_NAME, DType
from .errors import ParseError
from .loc import NOWHERE, Loc, Locs
from .types import TensorType

_TOKEN = re.compile(
    r"""
    (?: [ \t\r\n\f]+ | \#[^\n]* )*                                       # skipped
    (?:
      (?P<value>  %[A-Za-z0-9_.\x80-\U0010ffff]+ )
    | (?P<name>   [A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]* )
    | (?P<number> 0x[0-9a-fA-F]+ | \d+\.(?!\.)\d*(?:[eE][+-]?\d+)? | \d+[eE][+-]?\d+ | \d+ )
    | (?P<string> "(?:[^"\\\n]|\\.)*" )
    | (?P<file>   @(?:"(?:[^"\\\n]|\\.)*"|[A-Za-z0-9_.+/\x80-\U0010ffff-]+) )
    | (?P<punct>  //|<-|==|\.\.|[-+*/%(){}\[\]=:;,<>$] )
    | (?P<end>    \Z )
    )""",
    re.VERBOSE,
)

_TYPE = re.compile(r"[a-z0-9]+\[[^\[\]#]*\]")

_PLACES = re.compile(r"(?:[ ]*@[^\s\":=,#()]+:[0-9]+)+(?![^\s,(){}])")

_RAW_CALLS = {"//": floor_div, "%": modulo, "max": dim_max, "min": dim_min}


class Token:
    __slots__ = ("at", "kind", "text")

    def __init__(self, kind: str, text: str, at: int) -> None:
        self.kind, self.text, self.at = kind, text, at


class Lexer:
    """A text and a place in it; `token` is the next token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._end = 0
        self._types: dict[str, TensorType] = {}
        self._places: dict[str, Locs] = {}
        self.token = Token("end", "", 0)
        self.advance()

    def advance(self) -> Token:
        """Steps over the next token and gives it."""
        taken = self.token
        m = _TOKEN.match(self.text, self._end)
        if m is None:
            start = re.compile(r"(?:[ \t\r\n\f]+|#[^\n]*)*").match(self.text, self._end)
            at = start.end() if start else self._end
            what = "a string without its end" if self.text[at] == '"' else repr(self.text[at])
            self.fail(f"unexpected {what}", at)
        kind = m.lastgroup or "end"
        self.token = Token(kind, m[kind], m.start(kind))
        self._end = m.end()
        return taken

    def rewind(self, at: int) -> None:
        """Reads on from a place in the text."""
        self._end = at
        self.advance()

    def following(self) -> str:
        """The text of the token after the next one."""
        m = _TOKEN.match(self.text, self._end)
        return m[m.lastgroup] if m and m.lastgroup else ""

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        where = self.token.at if at is None else at
        line = self.text.count("\n", 0, where) + 1
        start = self.text.rfind("\n", 0, where) + 1
        shown = self.text[start : start + 200].split("\n", 1)[0]
        raise ParseError(f"line {line}, column {where - start + 1}: {message}\n    {shown}")

    def expected(self, what: str) -> NoReturn:
        came = repr(self.token.text) if self.token.kind != "end" else "the end of the text"
        self.fail(f"expected {what}, got {came}")

    # --- tokens -----------------------------------------------------------------------------------

    def at(self, text: str) -> bool:
        """Whether the next token is this punctuation or word."""
        return self.token.text == text and self.token.kind in ("punct", "name")

    def accept(self, text: str) -> bool:
        if self.at(text):
            self.advance()
            return True
        return False

    def expect(self, text: str, what: str = "") -> Token:
        if not self.at(text):
            self.expected(f"{text!r}{what and ' '}{what}")
        return self.advance()

    def take(self, kind: str, what: str) -> Token:
        if self.token.kind != kind:
            self.expected(what)
        return self.advance()

    def name(self, what: str) -> str:
        return self.take("name", what).text

    def string(self, what: str) -> str:
        token = self.take("string", what)
        return self.unquote(token.text, token.at)

    def unquote(self, text: str, at: int) -> str:
        try:
            found: str = json.loads(text)
        except ValueError as error:
            self.fail(f"this is no string: {error}", at)
        return found

    def integer(self, what: str) -> int:
        negative = self.accept("-")
        token = self.take("number", what)
        if not token.text.isdecimal():
            self.fail(f"expected {what}, got {token.text!r}", token.at)
        return -int(token.text) if negative else int(token.text)

    # --- numbers ----------------------------------------------------------------------------------

    def at_literal(self) -> bool:
        return self.token.kind == "number" or self.token.text in (
            "-", "nan", "inf", "True", "False",
        )  # fmt: skip

    def literal(self, what: str = "a number") -> str:
        """A number as text: `-2.5`, `nan`, `nan(0x7fc00001)`, `True`."""
        sign = "-" if self.accept("-") else ""
        token = self.advance()
        if token.kind == "name" and token.text == "nan" and self.at("("):
            self.advance()
            bits = self.take("number", "the bits of a NaN, such as 0x7fc00001").text
            self.expect(")")
            return f"nan({bits})"
        words = ("nan", "inf") if sign else ("nan", "inf", "True", "False")
        if token.kind == "number" or (token.kind == "name" and token.text in words):
            return sign + token.text
        return self.fail(f"expected {what}, got {token.text!r}", token.at)

    def dtype(self) -> DType:
        token = self.take("name", "a dtype such as float32")
        found = BY_NAME.get(token.text)
        if found is None:
            self.fail(f"expected a dtype ({', '.join(BY_NAME)}), got {token.text!r}", token.at)
        return found

    # --- dims -------------------------------------------------------------------------------------

    def dim(self) -> DimLike:
        """A size or an index: `2*N+1`, `(N+1)//(2)`, `max(N, 4)`."""
        total = self._term() * -1 if self.accept("-") else self._term()
        while self.at("+") or self.at("-"):
            sign = 1 if self.advance().text == "+" else -1
            total = total + self._term() * sign
        return total

    def _term(self) -> DimLike:
        left = self._factor()
        while True:
            if self.accept("*"):
                left = left * self._factor()
            elif self.accept("//"):
                left = floor_div(left, self._factor())
            elif self.accept("%"):
                left = modulo(left, self._factor())
            elif self.token.kind == "value":  # `N%4`, which looks like a value's name
                self.rewind(self.token.at + 1)
                left = modulo(left, self._factor())
            else:
                return left

    def _factor(self) -> DimLike:
        token = self.token
        if token.kind == "number":
            return self.integer("a whole number")
        if token.kind == "name":
            self.advance()
            if token.text in ("max", "min") and self.at("("):
                self.advance()
                left = self.dim()
                self.expect(",")
                right = self.dim()
                self.expect(")")
                return _raw_call(token.text, left, right)
            if not token.text.isidentifier():
                self.fail(f"expected a size, got {token.text!r}", token.at)
            return Dim.symbol(token.text)
        if token.kind == "punct" and token.text == "(":
            return self._parenthesised()
        return self.expected("a size: a whole number, a name or arithmetic on them")

    def _parenthesised(self) -> DimLike:
        """`(a)`, or `(a)//(b)` as a dim prints its quotients, which then bind tighter than `*`."""
        self.expect("(")
        left = self.dim()
        self.expect(")")
        if self.token.text in ("//", "%") and self.following() == "(":
            op = self.advance().text
            self.expect("(")
            right = self.dim()
            self.expect(")")
            return _raw_call(op, left, right)
        return left

    def shape(self) -> tuple[DimLike, ...]:
        self.expect("[", "that opens a shape")
        return tuple(self.listed("]", self.dim))

    def type(self) -> TensorType:
        start = self.token.at
        m = _TYPE.match(self.text, start)
        known = self._types.get(m[0]) if m else None
        if m and known is not None:  # most types of a long graph occur many times
            self.rewind(m.end())
            return known
        dtype = self.dtype()
        found = TensorType(dtype, self.shape())
        if m:
            self._types[m[0]] = found
        return found

    def listed(self, close: str, item: Any) -> list[Any]:
        """Items between commas up to `close`, which is read too."""
        found: list[Any] = []
        while not self.accept(close):
            if found:
                self.expect(",", f"or {close!r}")
                if self.accept(close):
                    break
            found.append(item())
        return found

    # --- attributes -------------------------------------------------------------------------------

    def attrs(self) -> dict[str, Any]:
        """`{axes=(1,), keepdims}`, or nothing."""
        found: dict[str, Any] = {}
        if not self.accept("{"):
            return found

        def entry() -> None:
            token = self.take("name", "an attribute's name")
            if token.text in found:
                self.fail(f"the attribute {token.text!r} is given twice", token.at)
            found[token.text] = self.attr_value() if self.accept("=") else True

        self.listed("}", entry)
        return found

    def attr_value(self) -> Any:
        token = self.token
        if token.kind == "string":
            return self.string("a string")
        if self.at("<"):
            self.fail("this value is no plain data (a function, say): it can't be read from text")
        if self.accept("("):
            return tuple(self.listed(")", self.attr_value))
        if token.kind == "name":
            if token.text == "dim" and self.following() == "(":
                self.advance()
                self.expect("(")
                inside = self.dim()
                self.expect(")")
                return inside
            if token.text in _WORDS:
                self.advance()
                return _WORDS[token.text]
        if self._at_float():
            return float(self.literal())
        return self.dim()

    def _at_float(self) -> bool:
        negative = self.at("-")
        text = self.following() if negative else self.token.text
        return text == "inf" or (text[:1].isdigit() and any(c in text for c in ".eE"))

    # --- locations --------------------------------------------------------------------------------

    def file(self, what: str) -> str:
        token = self.take("file", what)
        text = token.text[1:]
        return self.unquote(text, token.at) if text.startswith('"') else text

    def places(self, files: Mapping[str, str]) -> Locs:
        """`@model.py:12 @model.py:13`, or nothing; `files` says what short names stand for."""
        found = NOWHERE
        while self.token.kind == "file":
            m = _PLACES.match(self.text, self.token.at)
            known = self._places.get(m[0]) if m else None
            if m and known is not None:
                self.rewind(m.end())
            else:
                known = frozenset((self._place(files),))
                if m:
                    while self.token.kind == "file" and self.token.at < m.end():
                        known |= {self._place(files)}
                    self._places[m[0]] = known
            found = found | known if found else known
        return found

    def _place(self, files: Mapping[str, str]) -> Loc:
        file = self.file("a file")
        self.expect(":", "and a line number")
        return Loc(files.get(file, file), self.integer("a line number"))


def _raw_call(op: str, left: DimLike, right: DimLike) -> DimLike:
    """As written: a kernel's index may hold quotients that arithmetic would simplify."""
    if isinstance(left, int) and isinstance(right, int):
        return _RAW_CALLS[op](left, right)
    return Dim((((DimCall(op, left, right),), 1),))


_WORDS: dict[str, Any] = {
    "True": True, "False": False, "None": None, "nan": float("nan"), "inf": float("inf"),
    **BY_NAME,
}  # fmt: skip


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'matmul'?)`, or nothing."""
    import difflib

    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
