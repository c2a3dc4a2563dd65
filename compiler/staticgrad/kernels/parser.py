"""Text -> kernel: reads what `printer.kernel_text` prints, exactly (`kernel_key` is the same)."""

from __future__ import annotations

from typing import Any

from staticgrad.ir.dim import DimLike
from staticgrad.ir.dtype import DType
from staticgrad.ir.lexer import Lexer

from .ir import (
    Accumulator,
    Buffer,
    Call,
    Carry,
    Check,
    Expr,
    Index,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Next,
    Reduce,
    Ref,
    Stmt,
    Store,
    Template,
)
from .printer import call_dtype, number_dtype

MODES = ("in", "out", "inout", "scratch")
LOOP_KINDS = ("parallel", "serial", "vector", "parallel_vector", "rows", "columns")


def parse_kernel(text: str) -> Kernel:
    """The kernel that `text` describes. Raises `ParseError` with line and column."""
    lex = Lexer(text)
    lex.expect("kernel", "that opens the kernel")
    kernel = _Reader(lex).kernel()
    if lex.token.kind != "end":
        lex.expected("the end of the text")
    return kernel


class _Reader:
    """Reads one kernel; the word `kernel` has been read."""

    def __init__(self, lex: Lexer) -> None:
        self.lex = lex
        self.dtypes: dict[str, DType] = {}
        self.named: dict[str, Expr] = {}
        self.scopes: list[dict[str, DType]] = [{}]

    def kernel(self) -> Kernel:
        lex = self.lex
        if lex.token.kind == "string":
            name = lex.string("a name")
        else:
            name = lex.name("the kernel's name")
        lex.expect("(", "before the buffers")
        buffers: list[Buffer] = []
        sizes: list[str] = []
        while not lex.at(")") and not lex.at(";"):
            buffers.append(self._buffer())
            if not lex.accept(","):
                break
        if lex.accept(";"):
            sizes = lex.listed(")", lambda: lex.name("the name of a size"))
        else:
            lex.expect(")", "or ';' after the buffers")
        body, _ = self._body()
        return Kernel(name, tuple(buffers), tuple(sizes), body)

    def _buffer(self) -> Buffer:
        lex = self.lex
        at = lex.token.at
        name = lex.name("a buffer's name")
        if name in self.dtypes:
            lex.fail(f"the buffer {name!r} is given twice", at)
        lex.expect(":")
        at = lex.token.at
        mode = lex.name("a buffer's mode")
        if mode not in MODES:
            lex.fail(f"expected a mode ({', '.join(MODES)}), got {mode!r}", at)
        dtype = lex.dtype()
        size: DimLike = 0
        if lex.accept("["):
            size = lex.dim()
            lex.expect("]")
        self.dtypes[name] = dtype
        return Buffer(name, dtype, mode, size, self._nontemporal())

    def _nontemporal(self) -> DimLike:
        lex = self.lex
        if not lex.accept("nontemporal"):
            return 0
        if not lex.accept("("):
            return 1
        found: DimLike = lex.dim()
        lex.expect(")")
        return found

    # --- statements -------------------------------------------------------------------------------

    def _body(self) -> tuple[tuple[Stmt, ...], tuple[Accumulator, ...]]:
        lex = self.lex
        opened = lex.expect("{")
        found: list[Stmt] = []
        folds: list[Accumulator] = []
        while not lex.accept("}"):
            if lex.token.kind == "end":
                lex.fail("this `{` is not closed", opened.at)
            if lex.token.kind == "value":
                self._name_expression()
            elif lex.at("fold") and lex.following() != "[":
                folds.append(self._fold())
            else:
                found.append(self._stmt())
        return tuple(found), tuple(folds)

    def _name_expression(self) -> None:
        token = self.lex.advance()
        if token.text in self.named:
            self.lex.fail(f"{token.text} is defined twice", token.at)
        self.lex.expect("=")
        self.named[token.text] = self.expr()

    def _stmt(self) -> Stmt:
        lex = self.lex
        if lex.token.kind != "name":
            lex.expected("a statement")
        if lex.following() == "[":
            return self._store()
        token = lex.advance()
        match token.text:
            case "let" | "next":
                name = lex.name("a name")
                lex.expect("=")
                value = self.expr()
                if token.text == "next":
                    return Next(name, value)
                self.scopes[-1][name] = value.dtype
                return Let(name, value)
            case "check":
                return self._check()
            case "reduce":
                return self._reduce()
            case "call":
                return self._template()
        if token.text in LOOP_KINDS:
            return self._loop(token.text)
        return lex.fail(
            f"expected a statement: a store, let, next, check, reduce, call or a loop "
            f"({', '.join(LOOP_KINDS)}), got {token.text!r}",
            token.at,
        )

    def _store(self) -> Store:
        lex = self.lex
        buffer, index, gathers = self._place()
        lex.expect("=")
        value = self.expr()
        guard = self.expr() if lex.accept("if") else None
        return Store(buffer, index, value, gathers, guard)

    def _check(self) -> Check:
        lex = self.lex
        condition = self.expr()
        lex.expect("code")
        code = lex.integer("a status code")
        lex.expect("element")
        element = lex.dim()
        lex.expect("value")
        return Check(condition, code, element, self.expr())

    def _span(self) -> tuple[str, DimLike]:
        lex = self.lex
        var = lex.name("a loop variable")
        lex.expect("in")
        at = lex.token.at
        if lex.integer("0") != 0:
            lex.fail("a loop starts at 0", at)
        lex.expect("..")
        return var, lex.dim()

    def _loop(self, kind: str) -> Loop:
        lex = self.lex
        var, extent = self._span()
        carries: list[Carry] = []
        if lex.accept("carry"):
            while True:
                name = lex.name("a carry's name")
                lex.expect("=")
                carries.append(Carry(name, self.expr()))
                if not lex.accept(","):
                    break
        self.scopes[-1].update((c.name, c.init.dtype) for c in carries)
        body = self._inside_loop()
        return Loop(var, extent, body, kind, tuple(carries))

    def _inside_loop(self) -> tuple[Stmt, ...]:
        self.scopes.append({})
        at = self.lex.token.at
        body, folds = self._body()
        self.scopes.pop()
        if folds:
            self.lex.fail("`fold` stands in a reduce only", at)
        return body

    def _reduce(self) -> Reduce:
        lex = self.lex
        vector = lex.at("lanes") and lex.following() != "in"
        if vector:
            lex.advance()
        spans: list[tuple[str, DimLike]] = []
        while not lex.at("{"):
            spans.append(self._span())
            if not lex.accept(","):
                break
        self.scopes.append({})
        body, folds = self._body()
        self.scopes.pop()
        self.scopes[-1].update((a.name, a.value.dtype) for a in folds)
        return Reduce(tuple(v for v, _ in spans), tuple(d for _, d in spans), body, folds, vector)

    def _fold(self) -> Accumulator:
        lex = self.lex
        lex.expect("fold")
        name = lex.name("an accumulator's name")
        lex.expect("=")
        op = lex.name("a reduction: sum, prod, max, min, any or all")
        lex.expect("of")
        return Accumulator(name, op, self.expr())

    def _template(self) -> Template:
        lex = self.lex
        name = lex.name("the name of a shared function")
        lex.expect("(")
        buffers: list[str] = []
        while not lex.at(")") and not lex.at(";"):
            buffers.append(self._known_buffer())
            if not lex.accept(","):
                break
        sizes: list[DimLike] = []
        if lex.accept(";"):
            sizes = lex.listed(")", lex.dim)
        else:
            lex.expect(")", "or ';' after the buffers")
        attrs = lex.attrs()
        left, right = self._inner("left", "prologue"), self._inner("right", "prologue")
        epilogue = self._inner("epilogue")
        return Template(name, tuple(buffers), tuple(sizes), attrs, epilogue, (left, right))

    def _inner(self, first: str, *words: str) -> Kernel | None:
        """A kernel that a shared function calls."""
        if not self.lex.accept(first):
            return None
        for word in (*words, "kernel"):
            self.lex.expect(word)
        return _Reader(self.lex).kernel()

    def _known_buffer(self) -> str:
        at = self.lex.token.at
        name = self.lex.name("a buffer")
        if name not in self.dtypes:
            self.lex.fail(f"{name!r} is no buffer of this kernel", at)
        return name

    # --- expressions ------------------------------------------------------------------------------

    def expr(self) -> Expr:
        lex = self.lex
        token = lex.token
        if token.kind == "value":
            lex.advance()
            found = self.named.get(token.text)
            if found is None:
                lex.fail(f"{token.text} is not defined above", token.at)
            return found
        if lex.accept("("):
            return self._guarded()
        following = lex.following()
        if lex.accept("$"):
            return self._ref()
        if token.kind == "name" and following == "[":
            return self._load()
        if token.kind == "name" and following == "(" and token.text != "nan":
            return self._call()
        if lex.at_literal():
            return self._literal()
        if token.kind == "name":
            return self._ref()
        return lex.expected("an expression")

    def _suffix(self) -> DType | None:
        return self.lex.dtype() if self.lex.accept(":") else None

    def _literal(self) -> Literal:
        value = self._number()
        return Literal(value, self._suffix() or number_dtype(value))

    def _number(self) -> Any:
        lex = self.lex
        at = lex.token.at
        if not lex.at_literal():
            lex.expected("a number")
        text = lex.literal()
        if text in ("True", "False"):
            return text == "True"
        try:
            return int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            lex.fail(f"expected a number, got {text}", at)

    def _ref(self) -> Ref:
        at = self.lex.token.at
        name = self.lex.name("a name")
        dtype = self._suffix()
        if dtype is None:
            dtype = next((s[name] for s in reversed(self.scopes) if name in s), None)
        if dtype is None:
            self.lex.fail(f"{name!r} is not bound here", at)
        return Ref(name, dtype)

    def _call(self) -> Call | Index:
        lex = self.lex
        token = lex.advance()
        lex.expect("(")
        if token.text == "index":
            index = lex.dim()
            lex.expect(")")
            return Index(index)
        args = tuple(lex.listed(")", self.expr))
        dtype = self._suffix() or call_dtype(token.text, args)
        if dtype is None:
            lex.fail("a call without operands needs its dtype, as in `op():float32`", token.at)
        return Call(token.text, args, dtype)

    def _place(self) -> tuple[str, DimLike, tuple[tuple[Expr, DimLike], ...]]:
        """`b0[i*8+j; v0 * 8]`."""
        lex = self.lex
        buffer = self._known_buffer()
        lex.expect("[")
        index = lex.dim()
        gathers: list[tuple[Expr, DimLike]] = []
        if lex.accept(";"):
            gathers = lex.listed("]", self._gather)
        else:
            lex.expect("]")
        return buffer, index, tuple(gathers)

    def _gather(self) -> tuple[Expr, DimLike]:
        value = self.expr()
        self.lex.expect("*", "and a stride")
        return value, self.lex.dim()

    def _load(self) -> Load:
        buffer, index, gathers = self._place()
        return Load(buffer, index, self._suffix() or self.dtypes[buffer], gathers)

    def _guarded(self) -> Load:
        """`(b0[i] if v0 else 0.0)`; the parenthesis has been read."""
        lex = self.lex
        buffer, index, gathers = self._place()
        lex.expect("if")
        guard = self.expr()
        lex.expect("else")
        fill = self._number()
        lex.expect(")")
        dtype = self._suffix() or self.dtypes[buffer]
        return Load(buffer, index, dtype, gathers, guard, fill)
