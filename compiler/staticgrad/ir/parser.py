"""Text -> graph: reads what `printer` prints, and what people write by hand.

Types may be left out; where they stand they are compared with what the op infers. Everything else
that can be wrong is a `ParseError` with line and column.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from staticgrad_runtime import checkpoint
from staticgrad_runtime.state import StateCell

from .dtype import BY_NAME, DType
from .errors import ParseError, StaticgradError
from .graph import Graph
from .lexer import Lexer, Token, suggestion
from .literal import Array, default_dtype, scalar
from .loc import NOWHERE, Locs
from .node import DimEquality, Node, Value
from .printer import VERSION, CellKeys, constant_key, tensors_path
from .types import TensorType
from .verify import OpTable, call_problem

# The ids of declared inputs count up from 0; those of inputs that were read count down.
_input_ids = itertools.count(-1, -1)


def parse_graph(text: str, ops: OpTable, tensors: Mapping[str, Array] | None = None) -> Graph:
    """The graph that `text` describes, of new nodes and new state cells.

    `tensors` are the arrays that lie beside a saved text: large constants and the values of state.
    State that is not among them starts as zeros. Raises `ParseError`.
    """
    return _Reader(text, ops, tensors or {}).file()


def load_graph(path: str | os.PathLike[str], ops: OpTable) -> Graph:
    """The graph that `save_graph` wrote to `path`, with its arrays from the file beside it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(f"{os.fspath(path)} is no UTF-8 text: {error}") from None
    beside = tensors_path(path)
    tensors = checkpoint.load(beside)[0] if beside.exists() else {}
    try:
        return parse_graph(text, ops, tensors)
    except ParseError as error:
        raise ParseError(f"{os.fspath(path)}: {error}") from None


@dataclass
class _Number:
    """An operand that is written in place."""

    text: str
    dtype: DType
    at: int
    locs: Locs | None


@dataclass
class _Call:
    """`op(operands){attrs}` as it was read, before it is a node."""

    token: Token
    operands: list[Value | _Number]
    attrs: dict[str, Any]
    array: Any = None  # of a constant: nested lists of numbers, or a _Splat, or a _Named


@dataclass
class _Splat:
    number: str


@dataclass
class _Named:
    key: str


class _Reader:
    def __init__(self, text: str, ops: OpTable, tensors: Mapping[str, Array]) -> None:
        self.lex = Lexer(text)
        self.ops = ops
        self.tensors = tensors
        self.files: dict[str, str] = {}
        self.keys = CellKeys()
        self.cells: dict[str, StateCell] = {}

    def file(self) -> Graph:
        lex = self.lex
        if lex.accept("sgir"):
            at = lex.token.at
            version = lex.integer("the version of the text")
            if version > VERSION:
                lex.fail(f"version {version} is newer than this program's, {VERSION}", at)
        while lex.token.kind == "file":
            alias = lex.file("a file's short name")
            lex.expect("=", "and the path that the short name stands for")
            self.files[alias] = lex.string("a path in quotes")
        lex.expect("graph", "that opens the graph")
        graph = _GraphReader(self).read()
        if lex.token.kind != "end":
            lex.expected("the end of the text")
        return graph

    def locs(self) -> Locs:
        return self.lex.places(self.files)

    def make(
        self, token: Token, operands: Sequence[Value], attrs: Mapping[str, Any], locs: Locs,
        payload: Any = None,
    ) -> Node:  # fmt: skip
        """A node whose op refuses nothing; what it refuses is an error at its place."""
        op = token.text
        try:
            record = self.ops.get(op)
        except KeyError:
            self.lex.fail(f"unknown op {op!r}{suggestion(op, self.ops.all_ops())}", token.at)
        problem = call_problem(record, len(operands), frozenset(attrs))
        if problem is not None:
            self.lex.fail(f"{op}: {problem}", token.at)
        try:
            return self.ops.make(op, operands, attrs, payload=payload, locs=locs)
        except StaticgradError as error:
            self.lex.fail(str(error), token.at)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            # A rule of types is written for attributes that the public function has normalised.
            self.lex.fail(f"{op}: its attributes do not fit: {error}", token.at)

    def constant(self, token: Token, array: Array, attrs: Mapping[str, Any], locs: Locs) -> Node:
        held = np.array(array, order="C", copy=True)
        held.flags.writeable = False
        types = {"dtype": BY_NAME[held.dtype.name], "shape": held.shape}
        return self.make(token, (), {**types, **attrs}, locs, held)


class _GraphReader:
    """Reads one graph of the nest."""

    def __init__(self, reader: _Reader) -> None:
        self.reader, self.lex = reader, reader.lex
        self.values: dict[str, Value] = {}
        self.order: list[Node] = []
        self.inputs: list[Value] = []
        self.outputs: list[Value] | None = None
        self.single = False
        self.updates: list[tuple[Value, Value]] = []
        self.constraints: list[DimEquality] = []

    def read(self) -> Graph:
        lex = self.lex
        lex.expect("(", "before the inputs")
        lex.listed(")", self._input)
        opened = lex.expect("{")
        while not lex.accept("}"):
            self._statement(opened)
        if self.outputs is None:
            lex.fail("the graph has no `return`", opened.at)
        try:
            return Graph(
                self.inputs, self.outputs, self.updates, order=self.order,
                locs={n: n.locs for n in self.order}, constraints=self.constraints,
                single=self.single,
            )  # fmt: skip
        except StaticgradError as error:
            lex.fail(str(error), opened.at)

    def _statement(self, opened: Token) -> None:
        lex = self.lex
        if lex.token.kind == "value":
            self._node()
        elif lex.accept("state"):
            self._state()
        elif lex.at("return"):
            self._return()
        elif lex.accept("update"):
            self._update()
        elif lex.accept("require"):
            left = lex.dim()
            lex.expect("==")
            right = lex.dim()
            message = lex.string("a message in quotes")
            self.constraints.append(DimEquality(left, right, message, self.reader.locs()))
        elif lex.token.kind == "end":
            lex.fail("this `{` is not closed", opened.at)
        else:
            lex.expected("a statement: %name = op(..), state, return, update, require or '}'")

    # --- leaves -----------------------------------------------------------------------------------

    def _bind(self, token: Token, value: Value) -> None:
        if token.text in self.values:
            self.lex.fail(f"{token.text} is defined twice", token.at)
        self.values[token.text] = value

    def _leaf(self, what: str) -> tuple[Token, str | None, dict[str, Any], TensorType]:
        """`%word "name"{attrs}: type`."""
        lex = self.lex
        token = lex.take("value", f"{what} such as %x")
        name: str | None = token.text[1:]
        if lex.token.kind == "string":
            name = lex.string("a name")
        elif lex.accept("unnamed"):
            name = None
        attrs = lex.attrs()
        lex.expect(":", f"and the type of {token.text}")
        return token, name, attrs, lex.type()

    def _input(self) -> None:
        token, name, extra, t = self._leaf("an input")
        attrs = {"name": name, "id": next(_input_ids), "dtype": t.dtype, "shape": t.shape}
        node = self._made(Token("name", "input", token.at), {**attrs, **extra}, None)
        self._bind(token, node.results[0])
        self.inputs.append(node.results[0])

    def _made(self, token: Token, attrs: dict[str, Any], payload: Any) -> Node:
        node = self.reader.make(token, (), attrs, self.reader.locs(), payload)
        self.order.append(node)
        return node

    def _state(self) -> None:
        lex, reader = self.lex, self.reader
        token, name, extra, t = self._leaf("a state")
        extra.setdefault("trainable", False)
        if lex.accept("same"):
            at = lex.token.at
            key = lex.string("the name of a state that is declared above")
            if key not in reader.cells:
                lex.fail(f"no state {key!r} is declared above", at)
            cell = reader.cells[key]
        else:
            key = reader.keys.add(token.text[1:])
            cell = reader.cells[key] = self._cell(token, key, name, t)
        attrs = {"name": name, "id": cell.id, "dtype": t.dtype, "shape": t.shape, **extra}
        node = self._made(Token("name", "state", token.at), attrs, cell)
        self._bind(token, node.results[0])

    def _cell(self, token: Token, key: str, name: Any, t: TensorType) -> StateCell:
        shape = tuple(d for d in t.shape if isinstance(d, int))
        if len(shape) != len(t.shape):
            self.lex.fail(f"state has a size of its own, not a symbolic one: {t}", token.at)
        value = self.reader.tensors.get(key)
        if value is None:
            return StateCell(np.zeros(shape, t.dtype.numpy), name)
        if value.shape != shape or value.dtype != t.dtype.numpy:
            came = f"{value.dtype}{list(value.shape)}"
            self.lex.fail(f"the saved value of {token.text} is {came}, not {t}", token.at)
        return StateCell(value, name)

    # --- nodes ------------------------------------------------------------------------------------

    def _node(self) -> None:
        lex = self.lex
        results = [lex.take("value", "a result such as %1")]
        while lex.accept(","):
            results.append(lex.take("value", "a result such as %1"))
        lex.expect("=")
        call = self._call()
        types_at = lex.token.at
        types: list[TensorType] | None = None
        if lex.accept(":"):
            types = [lex.type()]
            while lex.accept(","):
                types.append(lex.type())
        locs = self.reader.locs()
        while lex.token.kind == "name" and lex.following() == "graph":
            name = lex.advance().text
            lex.expect("graph")
            call.attrs[name] = _GraphReader(self.reader).read()
        node = self._build(call, types, types_at, locs)
        if types is not None and tuple(types) != node.types:
            shown = ", ".join(str(t) for t in node.types)
            lex.fail(f"{node.op}: the inferred type is {shown}", types_at)
        if len(results) != len(node.results):
            lex.fail(
                f"{node.op} has {len(node.results)} results, here are {len(results)}",
                results[0].at,
            )
        for token, value in zip(results, node.results):
            self._bind(token, value)
        self.order.append(node)

    def _call(self) -> _Call:
        lex = self.lex
        token = lex.take("name", "an op")
        lex.expect("(", f"after {token.text}")
        if token.text == "constant":
            array = self._array()
            lex.expect(")")
            return _Call(token, [], lex.attrs(), array)
        if token.text in ("input", "state"):
            lex.fail("inputs stand in the graph's head, state is declared by `state %w: type`",
                     token.at)  # fmt: skip
        operands = lex.listed(")", self._operand)
        return _Call(token, operands, lex.attrs())

    def _operand(self) -> Value | _Number:
        lex = self.lex
        if lex.token.kind == "value":
            return self._value()
        if not lex.at_literal():
            lex.expected("an operand: a value such as %x, or a number")
        at = lex.token.at
        text = lex.literal()
        dtype = lex.dtype() if lex.accept(":") else default_dtype(text)
        locs: Locs | None = None
        if lex.token.text == "@nowhere" and lex.following() != ":":
            lex.advance()
            locs = NOWHERE
        elif lex.token.kind == "file":
            locs = self.reader.locs()
        return _Number(text, dtype, at, locs)

    def _value(self) -> Value:
        token = self.lex.take("value", "a value such as %x")
        found = self.values.get(token.text)
        if found is None:
            self.lex.fail(f"{token.text} is not defined above", token.at)
        return found

    def _build(
        self, call: _Call, types: list[TensorType] | None, types_at: int, locs: Locs
    ) -> Node:
        if call.token.text == "constant":
            if types is None or len(types) != 1:
                self.lex.fail("a constant needs its type, as in `: float32[3]`", types_at)
            array = self._constant_array(call, types[0])
            return self.reader.constant(call.token, array, call.attrs, locs)
        operands = []
        for o in call.operands:
            if isinstance(o, _Number):
                node = self._number(o, locs)
                self.order.append(node)
                operands.append(node.results[0])
            else:
                operands.append(o)
        return self.reader.make(call.token, operands, call.attrs, locs)

    def _number(self, o: _Number, locs: Locs) -> Node:
        array = self._scalar(o.text, o.dtype, o.at)
        token = Token("name", "constant", o.at)
        return self.reader.constant(token, array, {}, locs if o.locs is None else o.locs)

    def _scalar(self, text: str, dtype: DType, at: int) -> Array:
        try:
            return scalar(text, dtype)
        except ValueError as error:
            self.lex.fail(str(error), at)

    # --- constants --------------------------------------------------------------------------------

    def _array(self) -> Any:
        lex = self.lex
        if lex.accept("splat"):
            return _Splat(lex.literal())
        if lex.token.kind == "string":
            return _Named(lex.string("a name"))
        return self._nested()

    def _nested(self) -> Any:
        if self.lex.accept("["):
            return self.lex.listed("]", self._nested)
        return self.lex.literal("a number or a list of numbers")

    def _constant_array(self, call: _Call, t: TensorType) -> Array:
        lex, at = self.lex, call.token.at
        shape = tuple(d for d in t.shape if isinstance(d, int))
        if len(shape) != len(t.shape):
            lex.fail(f"a constant has sizes, not symbolic ones: {t}", at)
        if isinstance(call.array, _Named):
            return self._named(call.array.key, shape, t, at)
        if isinstance(call.array, _Splat):
            return np.broadcast_to(self._scalar(call.array.number, t.dtype, at), shape)
        flat: list[str] = []
        if not (0 in shape and call.array == []) and not _flatten(call.array, shape, flat):
            lex.fail(f"the numbers do not make a {t}", at)
        result = np.empty(len(flat), t.dtype.numpy)
        for i, text in enumerate(flat):
            result[i : i + 1] = self._scalar(text, t.dtype, at)
        return result.reshape(shape)

    def _named(self, key: str, shape: tuple[int, ...], t: TensorType, at: int) -> Array:
        array = self.reader.tensors.get(key)
        if array is None:
            self.lex.fail(
                f"the array {key!r} lies beside the text, in a safetensors file; load the graph "
                "from its file",
                at,
            )
        if array.shape != shape or array.dtype != t.dtype.numpy or constant_key(array) != key:
            self.lex.fail(
                f"the array {key!r} beside the text is not the one that was saved with it", at
            )
        return array

    # --- results ----------------------------------------------------------------------------------

    def _return(self) -> None:
        token = self.lex.expect("return")
        if self.outputs is not None:
            self.lex.fail("a second `return`", token.at)
        if self.lex.accept("("):
            self.outputs = self.lex.listed(")", self._value)
        else:
            self.outputs, self.single = [self._value()], True

    def _update(self) -> None:
        lex = self.lex
        at = lex.token.at
        state = self._value()
        if state.node.op != "state":
            lex.fail("only state can be updated", at)
        lex.expect("<-")
        value = self._value()
        if value.type != state.type:
            lex.fail(f"the new value is {value.type}, the state {state.type}", at)
        if any(s is state for s, _ in self.updates):
            lex.fail("this state is updated twice", at)
        self.updates.append((state, value))


def _flatten(nested: Any, shape: tuple[int, ...], flat: list[str]) -> bool:
    """Whether nested lists have this shape; their numbers are appended to `flat`."""
    if not shape:
        if isinstance(nested, str):
            flat.append(nested)
        return isinstance(nested, str)
    if not isinstance(nested, list) or len(nested) != shape[0]:
        return False
    return all(_flatten(n, shape[1:], flat) for n in nested)
