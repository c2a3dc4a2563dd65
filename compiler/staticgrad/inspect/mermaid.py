"""Graphs for Mermaid, which Markdown viewers draw: a fenced block of the language `mermaid`."""

from __future__ import annotations

from staticgrad.ir.graph import Graph

from .drawing import COLORS, Box, Frame, draw

_SHAPES = {"input": ("([", "])"), "output": ("([", "])"), "parameter": ("[(", ")]"),
           "state": ("[(", ")]"), "update": ("[/", "/]")}  # fmt: skip
_SPECIAL = str.maketrans({c: f"#{ord(c)};" for c in '"#&<>`\\;'} | {"\n": "<br/>"})


def to_mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart. Fused nodes are subgraphs."""
    drawing = draw(graph)
    boxes: dict[str, list[Box]] = {}
    frames: dict[str, list[Frame]] = {}
    for b in drawing.boxes:
        boxes.setdefault(b.frame, []).append(b)
    for f in drawing.frames:
        frames.setdefault(f.outer, []).append(f)
    lines = ["flowchart TD"]
    stack: list[str | Frame] = [*reversed(frames.get("", []))]
    lines += [f"  {_box(b)}" for b in boxes.get("", [])]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            lines.append("  end")
            continue
        lines.append(f"  subgraph {item.id}[{_quoted(item.label)}]")
        lines += [f"    {_box(b)}" for b in boxes.get(item.id, [])]
        stack.append("end")
        stack += reversed(frames.get(item.id, []))
    for a in drawing.arrows:
        line = "-.->" if a.dashed else "-->"
        label = f"|{_quoted(a.label)}|" if a.label else ""
        lines.append(f"  {a.source} {line}{label} {a.target}")
    for kind in sorted({b.kind for b in drawing.boxes}):
        fill, stroke = COLORS[kind]
        lines.append(f"  classDef {kind} fill:{fill},stroke:{stroke},color:#222222")
    return "\n".join(lines) + "\n"


def _box(b: Box) -> str:
    opened, closed = _SHAPES.get(b.kind, ("[", "]"))
    return f"{b.id}{opened}{_quoted(chr(10).join(b.lines))}{closed}:::{b.kind}"


def _quoted(text: str) -> str:
    return '"' + text.translate(_SPECIAL) + '"'
