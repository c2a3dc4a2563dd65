"""Graphs for Graphviz: `dot -Tsvg graph.dot -o graph.svg`."""

from __future__ import annotations

from staticgrad.ir.graph import Graph

from .drawing import COLORS, Box, Drawing, Frame, draw

_SHAPES = {"input": "ellipse", "output": "ellipse", "parameter": "cylinder", "state": "cylinder",
           "constant": "plain", "update": "note"}  # fmt: skip


def to_dot(graph: Graph) -> str:
    """The graph in the DOT language. Fused nodes are clusters; tooltips hold the text form, the
    attributes and the user's lines."""
    drawing = draw(graph)
    lines = [
        "digraph staticgrad {",
        '  graph [rankdir=TB, fontname="Helvetica", charset="UTF-8"];',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11];',
        '  edge [fontname="Helvetica", fontsize=9, color="#555555"];',
    ]
    _inside(drawing, lines)
    for a in drawing.arrows:
        parts = [f"label={_quoted(a.label)}"] if a.label else []
        parts += ["style=dashed"] if a.dashed else []
        style = f" [{', '.join(parts)}]" if parts else ""
        lines.append(f"  {a.source} -> {a.target}{style};")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _inside(drawing: Drawing, lines: list[str]) -> None:
    """The boxes, each in its frame."""
    boxes: dict[str, list[Box]] = {}
    frames: dict[str, list[Frame]] = {}
    for b in drawing.boxes:
        boxes.setdefault(b.frame, []).append(b)
    for f in drawing.frames:
        frames.setdefault(f.outer, []).append(f)
    lines += [f"  {_box(b)}" for b in boxes.get("", [])]
    stack: list[str | Frame] = [*reversed(frames.get("", []))]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            lines.append(item)
            continue
        label = f'label={_quoted(item.label)}; style="rounded"; color="#999999";'
        lines += [f"  subgraph cluster_{item.id} {{", f"    {label}"]
        lines += [f"    {_box(b)}" for b in boxes.get(item.id, [])]
        stack.append("  }")
        stack += reversed(frames.get(item.id, []))


def _box(b: Box) -> str:
    fill, stroke = COLORS[b.kind]
    shape = f", shape={_SHAPES[b.kind]}" if b.kind in _SHAPES else ""
    return (
        f"{b.id} [label={_quoted(chr(10).join(b.lines))}{shape}, "
        f'fillcolor="{fill}", color="{stroke}", tooltip={_quoted(b.tooltip)}];'
    )


def _quoted(text: str) -> str:
    """A string whose letters mean themselves: Graphviz reads backslashes and HTML entities."""
    for plain, escaped in (("\\", "\\\\"), ("&", "&amp;"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'
