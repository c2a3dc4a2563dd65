"""What the pictures of a graph have in common: boxes, the arrows between them, frames around them.

Boxes come in topological order, so an arrow always leads from an earlier box to a later one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from staticgrad.ir.graph import Graph, reachable, subgraphs
from staticgrad.ir.literal import attrs_text, list_text, readable_path, scalar_text
from staticgrad.ir.loc import Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ir.printer import Names, declared_state, is_literal

# Fill and stroke of each kind of box; readable with colour-blind eyes and in grey.
COLORS: Mapping[str, tuple[str, str]] = {
    "input": ("#d6e8fa", "#2f6fab"),
    "parameter": ("#fde9c8", "#b9770e"),
    "state": ("#f6f0dc", "#8a7a3c"),
    "constant": ("#f2f2f2", "#8c8c8c"),
    "op": ("#ffffff", "#4d4d4d"),
    "later": ("#eee6f6", "#7a4fa3"),  # computed for the new state only: backward and update
    "output": ("#d9f2dc", "#2e8540"),
    "update": ("#fbdcdc", "#b03a3a"),
}

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True)
class Box:
    """`kind` is a key of COLORS; `frame` the id of the frame around it, "" for none."""

    id: str
    kind: str
    lines: tuple[str, ...]
    tooltip: str
    frame: str = ""


@dataclass(frozen=True)
class Arrow:
    """From box to box; `label` tells which of several results it is."""

    source: str
    target: str
    label: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    id: str
    label: str
    outer: str = ""


@dataclass
class Drawing:
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


def draw(graph: Graph, *, expand: bool = True) -> Drawing:
    """The boxes and arrows of a graph. Fused nodes are frames around what they hold, or with
    `expand=False` one box that lists it."""
    drawing = Drawing()
    _Drawer(drawing, graph, "n", "", expand).run({}, {})
    return drawing


def listed_nodes(graph: Graph) -> list[Node]:
    """All nodes in order, state that is only written included; a node's place is its stable id."""
    inside = set(graph.nodes)
    return [*(n for n in declared_state(graph) if n not in inside), *graph.nodes]


def printable(text: str) -> str:
    """Text with what no document can hold (control characters, lone surrogates) as escapes."""
    return _HIDDEN.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def node_kind(node: Node) -> str:
    """The kind of a node, without a look at what it is computed for."""
    if node.op == "state":
        return "parameter" if node.attrs.get("trainable") else "state"
    return node.op if node.op in ("input", "constant") else "op"


class _Drawer:
    """Draws one graph of the nest into the whole drawing."""

    def __init__(
        self, drawing: Drawing, graph: Graph, prefix: str, frame: str, expand: bool
    ) -> None:
        self.drawing, self.graph, self.prefix = drawing, graph, prefix
        self.frame, self.expand = frame, expand
        self.names = Names(graph)
        self.places: dict[Value, tuple[str, str]] = {}  # value -> box, label of its arrows
        self.literals: dict[Value, str] = {}
        self.later: set[Node] = set()
        if graph.updates and graph.outputs:
            self.later = set(graph.nodes) - set(reachable(graph.outputs))

    def run(
        self, places: Mapping[Value, tuple[str, str]], literals: Mapping[Value, str],
        *, ends: bool = True,
    ) -> None:  # fmt: skip
        """`places` and `literals` are what inputs stand for outside, where that is known."""
        self.places.update(places)
        self.literals.update(literals)
        roots = {v.node for v in self.graph.roots}
        for i, node in enumerate(listed_nodes(self.graph)):
            if is_literal(node) and node not in roots:
                self.literals[node.results[0]] = scalar_text(node.payload)
            elif node.op == "input" and node.results[0] in {**places, **literals}:
                continue
            elif node.op == "fused" and self.expand:
                self._fused(node, f"{self.prefix}{i}")
            else:
                self._box(node, f"{self.prefix}{i}")
        if ends:
            self._ends()

    # --- boxes ------------------------------------------------------------------------------------

    def _add(self, box_id: str, kind: str, lines: list[str], tooltip: str) -> None:
        shown = tuple(printable(line) for line in lines)
        self.drawing.boxes.append(Box(box_id, kind, shown, printable(tooltip), self.frame))

    def _arrow(self, v: Value, target: str) -> None:
        if v in self.places:
            source, label = self.places[v]
            self.drawing.arrows.append(Arrow(source, target, label))

    def _box(self, node: Node, box_id: str) -> None:
        kind = node_kind(node)
        if kind == "op" and node in self.later:
            kind = "later"
        lines = [self._title(node), *(str(t) for t in node.types)]
        if not self.expand:
            lines[1:1] = _contents(node)
        self._add(box_id, kind, lines, self._tooltip(node))
        for v in node.operands:
            self._arrow(v, box_id)
        many = len(node.results) > 1
        for v in node.results:
            self.places[v] = box_id, str(v.index) if many else ""
        if self.expand:
            for name, inner in subgraphs(node):
                self._held(node, box_id, name, inner)

    def _title(self, node: Node) -> str:
        if node.op in ("input", "state"):
            return node.attrs.get("name") or node.op
        if node.op == "constant":
            array = node.payload
            return list_text(array) if array.size <= 4 else "constant"
        if node.op == "fused":
            return self._frame_label(node)
        if any(v in self.literals for v in node.operands):
            shown = [self.literals.get(v, "·") for v in node.operands]
            return f"{node.op}({', '.join(shown)})"
        return node.op

    def _tooltip(self, node: Node) -> str:
        name = ", ".join(self.names.of[v] for v in node.results)
        types = ", ".join(str(t) for t in node.types)
        if node.op in ("input", "state", "constant"):
            text = f"{node_kind(node)} {name}: {types}"
        else:
            operands = [self.literals.get(v) or self.names.of[v] for v in node.operands]
            text = f"{name} = {node.op}({', '.join(operands)}){attrs_text(node.attrs)} : {types}"
        places = places_text(self.graph.locs.get(node, node.locs))
        return f"{text}\n{places}" if places else text

    # --- closed sub-graphs ------------------------------------------------------------------------

    def _fused(self, node: Node, box_id: str) -> None:
        """A frame whose inside reads the operands themselves."""
        body = node.attrs["body"]
        self.drawing.frames.append(Frame(box_id, self._frame_label(node), self.frame))
        inner = _Drawer(self.drawing, body, f"{box_id}_", box_id, True)
        if node in self.later:
            inner.later = set(body.nodes)
        places = {b: self.places[v] for b, v in zip(body.inputs, node.operands)
                  if v in self.places}  # fmt: skip
        literals = {b: self.literals[v] for b, v in zip(body.inputs, node.operands)
                    if v in self.literals}  # fmt: skip
        inner.run(places, literals, ends=False)
        for result, v in zip(node.results, body.outputs):
            if v in inner.places:
                self.places[result] = inner.places[v]

    @staticmethod
    def _frame_label(node: Node) -> str:
        kind = node.attrs.get("kind")
        return printable(f"{node.op} ({kind})" if kind else node.op)

    def _held(self, node: Node, box_id: str, name: str, inner: Graph) -> None:
        """A frame beside the node's box, for a sub-graph that the node runs as it likes."""
        frame = f"{box_id}_{name}"
        self.drawing.frames.append(Frame(frame, printable(f"{name} of {node.op}"), self.frame))
        first = len(self.drawing.boxes)
        _Drawer(self.drawing, inner, f"{frame}_", frame, True).run({}, {})
        entered = [b.id for b in self.drawing.boxes[first:] if b.kind == "input"]
        if not entered:
            entered = [b.id for b in self.drawing.boxes[first : first + 1]]
        self.drawing.arrows += [Arrow(box_id, b, dashed=True) for b in entered]

    # --- results ----------------------------------------------------------------------------------

    def _ends(self) -> None:
        for i, v in enumerate(self.graph.outputs):
            number = f" {i}" if len(self.graph.outputs) > 1 else ""
            self._end(f"{self.prefix}_out{i}", "output", f"output{number}", v)
        for i, (state, v) in enumerate(self.graph.updates):
            name = self.names.of[state][1:]
            self._end(f"{self.prefix}_new{i}", "update", f"update {name}", v)

    def _end(self, box_id: str, kind: str, title: str, v: Value) -> None:
        name = self.names.of.get(v, "")
        self._add(box_id, kind, [title, str(v.type)], f"{title}: {name} : {v.type}")
        self._arrow(v, box_id)


def _contents(node: Node) -> list[str]:
    """The ops inside of a node that holds sub-graphs, for one box."""
    found = [
        n.op for _, inner in subgraphs(node) for n in inner.nodes
        if n.op not in ("input", "constant")
    ]  # fmt: skip
    shown = [f"  {op}" for op in found[:6]]
    return shown if len(found) <= 6 else [*shown, f"  … and {len(found) - 6} more"]


def places_text(locs: Locs) -> str:
    """Whole paths and lines, one a line."""
    return "\n".join(f"{readable_path(x.file)}:{x.line}" for x in sorted(locs))
