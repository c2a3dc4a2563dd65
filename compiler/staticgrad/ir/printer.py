"""Graphs as text: `parser.parse_graph` reads back what is printed here.

    graph(%x: float32[N, 784]  @model.py:3, %y: int64[N]  @model.py:4) {
      state %0.weight{trainable}: float32[256, 784]  @model.py:7
      %0 = permute_dims(%0.weight){axes=(1, 0)} : float32[784, 256]  @model.py:12
      %1 = matmul(%x, %0) : float32[N, 256]  @model.py:12
      %2 = maximum(%1, 0.0) : float32[N, 256]  @model.py:13
      return %2
    }

Constants of one element that are used once stand where they are used; small ones are lists; large
ones have a name and a digest, and lie beside the text in a safetensors file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ArgumentError
from .graph import Graph, subgraphs
from .literal import Array, FileTable, attrs_text, list_text, quote, scalar_text
from .loc import NOWHERE, Locs
from .node import Node, Value

VERSION = 1
# Longer constants lie beside the text: two lines of numbers still read well.
INLINE_ELEMS = 16

_LEAF_ATTRS = ("name", "id", "dtype", "shape")


def to_text(graph: Graph, *, locs: bool = True, inline_elems: int = INLINE_ELEMS) -> str:
    """The graph's text. Constants of more than `inline_elems` elements are named, not written;
    `graph_tensors` has them. Without `locs` the user's lines are left out."""
    return _Printer(graph, locs, inline_elems).text()


def graph_tensors(graph: Graph, *, inline_elems: int = INLINE_ELEMS) -> dict[str, Array]:
    """What the text of the graph leaves out: large constants, and the present values of state."""
    printer = _Printer(graph, False, inline_elems)
    printer.text()
    return printer.tensors | {name: node.payload.numpy() for node, name in printer.cells.values()}


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Writes the text to `path` (usually `.sgir`) and its arrays to a `.safetensors` file beside.

    Each file is written to a temporary name and renamed; the arrays come first.
    """
    from staticgrad_runtime import checkpoint

    target, beside = Path(path), tensors_path(path)
    tensors = graph_tensors(graph)
    text = f"sgir {VERSION}\n{to_text(graph)}"
    if tensors or beside.exists():  # an older graph's arrays must not stay beside this text
        checkpoint.save(beside, tensors)
    temporary = target.parent / f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, target)
    except BaseException:  # an interrupt, too, leaves no half-written file
        temporary.unlink(missing_ok=True)
        raise


def tensors_path(path: str | os.PathLike[str]) -> Path:
    """`model.sgir` -> `model.safetensors`."""
    text = Path(path)
    beside = text.with_suffix(".safetensors")
    if beside == text:
        raise ArgumentError(f"{text}: a graph's text can't have the suffix of its arrays' file")
    return beside


# --- names ----------------------------------------------------------------------------------------


def is_literal(node: Node) -> bool:
    """A constant of one element, which is written where it is used if that is one place."""
    return node.op == "constant" and node.types[0].shape == () and len(node.attrs) == 2


def declared_state(graph: Graph) -> list[Node]:
    """All state of a graph, what is only written included."""
    found = {v.node: None for v in graph.state}
    found.update((s.node, None) for s, _ in graph.updates)
    return list(found)


class Names:
    """What the values of a graph are called: `%x`, `%0.weight`, `%7`; stable from print to print.

    `inline` are the constants without a name, written where they are used.
    """

    def __init__(self, graph: Graph) -> None:
        self.inline = _used_once(graph)
        self.of: dict[Value, str] = {}
        self._taken: set[str] = set()
        for v in graph.inputs:
            if v not in self.of:
                self.of[v] = self._word(v.node.attrs.get("name"), "input")
        for node in declared_state(graph):
            self.of[node.results[0]] = self._word(node.attrs.get("name"), "state")
        number = 0
        for node in graph.nodes:
            if node in self.inline:
                continue
            for v in node.results:
                if v not in self.of:
                    self.of[v] = f"%{number}"
                    number += 1

    def _word(self, name: Any, kind: str) -> str:
        base = "".join(c if c in "._" or f"a{c}".isidentifier() else "_" for c in name or kind)
        if base.isdecimal():
            base = f"{kind}_{base}"
        word, count = base, 1
        while word in self._taken:
            count += 1
            word = f"{base}_{count}"
        self._taken.add(word)
        return f"%{word}"


def _used_once(graph: Graph) -> set[Node]:
    uses: dict[Node, int] = {}
    for node in graph.nodes:
        for v in node.operands:
            if v.node.op == "constant":
                uses[v.node] = uses.get(v.node, 0) + 1
    held = {v.node for v in graph.roots}
    return {n for n, count in uses.items() if count == 1 and is_literal(n) and n not in held}


def all_graphs(graph: Graph) -> Iterator[Graph]:
    """A graph and all closed sub-graphs in it, outer before inner."""
    stack = [graph]
    while stack:
        g = stack.pop()
        yield g
        inner = [sub for node in g.nodes for _, sub in subgraphs(node)]
        stack.extend(reversed(inner))


# --- printing -------------------------------------------------------------------------------------


class _Printer:
    def __init__(self, graph: Graph, locs: bool, inline_elems: int) -> None:
        self.graph = graph
        self.with_locs = locs
        self.inline_elems = inline_elems
        self.tensors: dict[str, Array] = {}
        self.cells: dict[int, tuple[Node, str]] = {}  # state cell -> who declares it, by what name
        self._keys = CellKeys()
        self._lines: list[str] = []
        self.files = FileTable(sorted(self._files()) if locs else ())

    def text(self) -> str:
        self._lines += self.files.lines()
        self._graph(self.graph, "graph", "")
        return "\n".join(self._lines) + "\n"

    def _files(self) -> set[str]:
        found: set[str] = set()
        for g in all_graphs(self.graph):
            every = [*g.locs.values(), *(c.locs for c in g.constraints)]
            every += [n.locs for n in declared_state(g) if n not in g.locs]
            found.update(x.file for locs in every for x in locs)
        return found

    def _at(self, locs: Locs) -> str:
        return f"  {self.files.text(locs)}" if self.with_locs and locs else ""

    def _graph(self, graph: Graph, head: str, indent: str) -> None:
        names = Names(graph)
        inside = indent + "  "
        inputs = ", ".join(self._input(graph, names, v) for v in graph.inputs)
        self._lines.append(f"{indent}{head}({inputs}) {{")
        for node in declared_state(graph):
            self._state(graph, names, node, inside)
        for node in graph.nodes:
            if node.op not in ("input", "state") and node not in names.inline:
                self._node(graph, names, node, inside)
        outputs = ", ".join(names.of[v] for v in graph.outputs)
        if not graph.single:
            outputs = f"({outputs},)" if len(graph.outputs) == 1 else f"({outputs})"
        self._lines.append(f"{inside}return {outputs}")
        for state, value in graph.updates:
            self._lines.append(f"{inside}update {names.of[state]} <- {names.of[value]}")
        for c in graph.constraints:
            text = f"{inside}require {c.left} == {c.right} {quote(c.message)}"
            self._lines.append(text + self._at(c.locs))
        self._lines.append(indent + "}")

    def _leaf(self, names: Names, node: Node) -> str:
        word, name = names.of[node.results[0]], node.attrs.get("name")
        label = "" if word[1:] == name else " unnamed" if name is None else f" {quote(name)}"
        # State is no parameter unless it says so.
        skip = (*_LEAF_ATTRS, *(k for k in ("trainable",) if node.attrs.get(k) is False))
        return f"{word}{label}{attrs_text(node.attrs, skip)}: {node.types[0]}"

    def _input(self, graph: Graph, names: Names, v: Value) -> str:
        return self._leaf(names, v.node) + self._at(graph.locs.get(v.node, NOWHERE))

    def _state(self, graph: Graph, names: Names, node: Node, indent: str) -> None:
        known = self.cells.get(id(node.payload)) if node.payload is not None else None
        same = ""
        if known is not None:
            same = f" same {quote(known[1])}"
        elif node.payload is not None:
            self.cells[id(node.payload)] = (node, self._keys.add(names.of[node.results[0]][1:]))
        locs = self._at(graph.locs.get(node, node.locs))
        self._lines.append(f"{indent}state {self._leaf(names, node)}{same}{locs}")

    def _node(self, graph: Graph, names: Names, node: Node, indent: str) -> None:
        locs = graph.locs.get(node, NOWHERE)
        types = ", ".join(str(t) for t in node.types)
        left = ", ".join(names.of[v] for v in node.results)
        if node.op == "constant":
            call = f"constant({self._array(node.payload)})"
            call += attrs_text(node.attrs, ("dtype", "shape"))
        else:
            operands = [self._operand(graph, names, v, locs) for v in node.operands]
            call = f"{node.op}({', '.join(operands)}){_call_attrs(node)}"
        self._lines.append(f"{indent}{left} = {call} : {types}{self._at(locs)}")
        for name, inner in subgraphs(node):
            self._graph(inner, f"{name} graph", indent + "  ")

    def _operand(self, graph: Graph, names: Names, v: Value, locs: Locs) -> str:
        if v.node not in names.inline:
            return names.of[v]
        own = graph.locs.get(v.node, NOWHERE)
        text = scalar_text(v.node.payload)
        if not self.with_locs or own == locs:
            return text
        return f"{text} {self.files.text(own) or '@nowhere'}"

    def _array(self, array: Array) -> str:
        if array.size <= self.inline_elems:
            return list_text(array)
        first = array.reshape(-1)[:1]
        if _same_bits(array, first):
            return f"splat {list_text(first.reshape(()))}"
        key = constant_key(array)
        self.tensors[key] = array
        return quote(key)


def constant_key(array: Array) -> str:
    """The name of a large constant: a digest of its type and its bytes, checked when it is read."""
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return f"constant.{digest.hexdigest()[:32]}"


class CellKeys:
    """The names of state cells beside the text: the value's own, made unique over the nest."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def add(self, word: str) -> str:
        key, count = word, 1
        while key in self._taken:
            count += 1
            key = f"{word}_{count}"
        self._taken.add(key)
        return key


def _same_bits(array: Array, first: Array) -> bool:
    bits = f"u{array.itemsize}"
    flat = np.ascontiguousarray(array).view(bits)
    return bool((flat == first.view(bits)[0]).all())


def _call_attrs(node: Node) -> str:
    """The attributes, and a mark where the node holds what no text can: a function, say.

    A payload that says `needed = False` only adds to the node, which can be read without it.
    """
    text = attrs_text(node.attrs)
    if node.payload is None or not getattr(node.payload, "needed", True):
        return text
    mark = f"payload=<{type(node.payload).__name__}>"
    return f"{text[:-1]}, {mark}}}" if text else f"{{{mark}}}"
