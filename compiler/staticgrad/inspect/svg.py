"""Graphs as pictures: SVG that needs no other program and no particular font."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from xml.sax.saxutils import escape

from staticgrad.ir.graph import Graph

from .drawing import COLORS, Box, draw, printable
from .layout import Item, layout

LINE_HEIGHT = 15.0
CHAR_WIDTH = 7.0
PADDING = 9.0
LONGEST_LINE = 44  # longer ones end in an ellipsis; the tooltip has them whole

_ROUND = {"input": 14, "output": 14}
_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#222;"
    "text-anchor:middle}"
    ".type{font-size:11px;fill:#555}"
    "path{fill:none;stroke:#888;stroke-width:1.1}"
    "path.dashed{stroke-dasharray:4 3}"
    "rect{stroke-width:1.2}"
)


def to_svg(graph: Graph) -> str:
    """The graph as an SVG document. Each box tells its whole node and the user's lines as a
    tooltip. Fused nodes are one box that lists what they hold."""
    drawing = draw(graph, expand=False)
    index = {b.id: i for i, b in enumerate(drawing.boxes)}
    shown = [_shown(b) for b in drawing.boxes]
    arrows = [(index[a.source], index[a.target]) for a in drawing.arrows]
    found = layout([_size(lines) for lines in shown], arrows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{found.width:.0f}" '
        f'height="{found.height:.0f}" viewBox="0 0 {found.width:.0f} {found.height:.0f}" '
        'role="img">',
        f"<title>{escape(_summary(graph))}</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0L8,4L0,8z" style="fill:#888;stroke:none"/>'
        "</marker></defs>",
        f'<rect width="{found.width:.0f}" height="{found.height:.0f}" fill="#ffffff"/>',
    ]
    for arrow, route in zip(drawing.arrows, found.routes):
        style = ' class="dashed"' if arrow.dashed else ""
        path = _path([found.items[n] for n in route])
        lines.append(f'<path{style} marker-end="url(#tip)" d="{path}"/>')
        if arrow.label:
            place = _label_place(found.items[route[0]], found.items[route[1]])
            lines.append(f'<text class="type" {place}>{escape(arrow.label)}</text>')
    for box, text, item in zip(drawing.boxes, shown, found.items):
        lines += _box(box, text, item)
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _summary(graph: Graph) -> str:
    names = ", ".join(printable(str(v.node.attrs.get("name"))) for v in graph.inputs)
    return f"graph({names}): {len(graph.nodes)} nodes"


def _shown(box: Box) -> list[str]:
    """The lines of a box, on one line each and not too long."""
    return [_cut(line.replace("\n", "\\n").replace("\t", " ")) for line in box.lines]


def _cut(line: str) -> str:
    if text_columns(line) <= LONGEST_LINE:
        return line
    kept = ""
    columns = 0
    for c in line:
        columns += text_columns(c)
        if columns >= LONGEST_LINE:
            break
        kept += c
    return kept + "…"


def text_columns(text: str) -> int:
    """The width in columns of a terminal: two for East Asian letters, none for combining marks."""
    total = 0
    for c in text:
        if unicodedata.category(c) not in ("Mn", "Me", "Cf"):
            total += 2 if unicodedata.east_asian_width(c) in "WF" else 1
    return total


def _size(lines: list[str]) -> tuple[float, float]:
    widest = max(text_columns(line) for line in lines)
    return widest * CHAR_WIDTH + 2 * PADDING, len(lines) * LINE_HEIGHT + 2 * PADDING


def _box(box: Box, lines: list[str], item: Item) -> list[str]:
    fill, stroke = COLORS[box.kind]
    left, top = item.x - item.width / 2, item.y - item.height / 2
    found = [
        f'<g id="{box.id}" class="{box.kind}"><title>{escape(box.tooltip)}</title>',
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{item.width:.1f}" height="{item.height:.1f}" '
        f'rx="{_ROUND.get(box.kind, 5)}" fill="{fill}" stroke="{stroke}"/>',
    ]
    for k, line in enumerate(lines):
        style = ' class="type"' if k else ""
        y = top + PADDING + LINE_HEIGHT * (k + 0.75)
        found.append(f'<text{style} x="{item.x:.1f}" y="{y:.1f}">{escape(line)}</text>')
    return [*found, "</g>"]


def _label_place(source: Item, target: Item) -> str:
    """Beside an arrow, where it has left its neighbours' common start."""
    top, bottom = source.y + source.height / 2, target.y - target.height / 2
    x = source.x + (target.x - source.x) * 0.65
    return f'x="{x + 8:.1f}" y="{top + (bottom - top) * 0.6:.1f}"'


def _path(items: list[Item]) -> str:
    """A curve from the first box's lower edge through points to the last one's upper edge."""
    first, last = items[0], items[-1]
    points = [(first.x, first.y + first.height / 2)]
    points += [(i.x, i.y) for i in items[1:-1]]
    points.append((last.x, last.y - last.height / 2 - 1))
    text = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        text += f"C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return text
