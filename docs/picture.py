"""The picture of the README: a model on its way to one native call, drawn from its real stages."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

from stages import Example, computed, phases, plan_of
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.node import Node

SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


@dataclass(frozen=True)
class Palette:
    card: str
    border: str
    text: str
    faint: str
    edge: str
    forward: str
    backward: str
    update: str

    def phase(self, name: str) -> str:
        return {"forward": self.forward, "backward": self.backward, "update": self.update}[name]


# GitHub's own colours, so that the cards look like part of its page.
LIGHT = Palette(
    "#f6f8fa", "#d0d7de", "#1f2328", "#59636e", "#afb8c1", "#0969da", "#bc4c00", "#1a7f37"
)
DARK = Palette(
    "#151b23", "#3d444d", "#f0f6fc", "#9198a1", "#59636e", "#4493f8", "#f0883e", "#3fb950"
)

WIDTH, HEIGHT = 1000, 560
CARD_WIDTH, CARD_HEIGHT, GAP, MARGIN = 300, 262, 40, 10
CODE = """\
x = sg.input("x", ("N", 784))
y = sg.input("y", ("N",), "int64")
model = Sequential(
    Linear(784, 256), ReLU(),
    Linear(256, 10))
loss = cross_entropy(model(x), y)

sgd = SGD(model.parameters(), lr=0.1,
          momentum=0.9)
updates = sgd.minimize(loss)"""


def overview(example: Example, colors: Palette) -> str:
    """Declare, differentiate, optimise; below, the one call with its memory plan."""
    draw = _Drawing(colors)
    kernels = len(example.lowered.program.steps)
    lefts = [MARGIN + i * (CARD_WIDTH + GAP) for i in range(3)]
    titles = ("declare", "differentiate", "optimise")
    notes = (
        f"{example.forward_nodes} operations to the loss; nothing runs yet",
        f"{computed(example.graph)} operations with gradients and update",
        f"fused to {kernels} kernels",
    )
    for i, (left, title, note) in enumerate(zip(lefts, titles, notes)):
        draw.card(left, MARGIN, CARD_WIDTH, CARD_HEIGHT, f"{i + 1}  {title}")
        draw.text(left + 16, MARGIN + CARD_HEIGHT - 14, note, 12, colors.faint)
        if i:
            middle = MARGIN + CARD_HEIGHT / 2
            draw.arrow(left - GAP + 6, middle, left - 8, middle)
    draw.code(lefts[0] + 16, MARGIN + 58, CODE)
    _graph(draw, example.graph, lefts[1] + 16, MARGIN + 44, CARD_WIDTH - 32, CARD_HEIGHT - 80)
    _kernels(draw, example, lefts[2] + 16, MARGIN + 52)
    top = MARGIN + CARD_HEIGHT + GAP
    middle = lefts[2] + CARD_WIDTH / 2
    draw.arrow(middle, top - GAP + 6, middle, top - 8)
    _call(draw, example, MARGIN, top, WIDTH - 2 * MARGIN, HEIGHT - top - MARGIN)
    return draw.svg()


def _phase_of_nodes(graph: Graph) -> dict[Node, str]:
    """Forward is what the outputs need; of the rest, what was declared at no line of the forward
    pass is the update (gradients carry the line of what they are the gradient of)."""
    forward = set(reachable(graph.outputs))
    lines = {loc for node in forward for loc in graph.locs[node]}
    found = {}
    for node in graph.nodes:
        if node in forward:
            found[node] = "forward"
        else:
            found[node] = "backward" if graph.locs[node] & lines else "update"
    return found


def _graph(
    draw: _Drawing, graph: Graph, left: float, top: float, width: float, height: float
) -> None:
    """Every operation a dot, in columns by depth."""
    phase = _phase_of_nodes(graph)
    nodes = [n for n in graph.nodes if n.op not in ("input", "state", "constant")]
    depth: dict[Node, int] = {}
    for node in nodes:
        depth[node] = 1 + max((depth.get(v.node, -1) for v in node.operands), default=-1)
    columns: dict[int, list[Node]] = {}
    for node in nodes:
        columns.setdefault(depth[node], []).append(node)
    step = width / max(columns)
    order = {"forward": 0, "backward": 1, "update": 2}
    at: dict[Node, tuple[float, float]] = {}
    for column, members in columns.items():
        members.sort(key=lambda n: order[phase[n]])
        for row, node in enumerate(members):
            share = (row + 1) / (len(members) + 1)
            # Columns of one node would lie on one line; the wave keeps arrows over several apart.
            wave = 0.13 * height * (1 if column % 2 else -1) if len(members) == 1 else 0.0
            at[node] = (left + column * step, top + height * share + wave)
    for node in nodes:
        for v in node.operands:
            if v.node in at:
                draw.curve(at[v.node], at[node])
    for node in nodes:
        draw.dot(at[node], draw.colors.phase(phase[node]))


def _kernels(draw: _Drawing, example: Example, left: float, top: float) -> None:
    steps = example.lowered.program.steps
    pitch = min(13.0, (CARD_HEIGHT - 92) / max(1, len(steps) - 1))
    for i, (step, phase) in enumerate(zip(steps, phases(example.lowered))):
        y = top + i * pitch
        draw.box(left, y - 5, 9, 8, draw.colors.phase(phase), radius=2)
        draw.text(left + 18, y + 3, shortened(step.kernel.name), 10, draw.colors.text, mono=True)


def shortened(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def _call(
    draw: _Drawing, example: Example, left: float, top: float, width: float, height: float
) -> None:
    colors = draw.colors
    draw.card(left, top, width, height, "4  run")
    draw.text(left + 96, top + 27, "(l,) = train_step(xb, yb)", 13, colors.text, mono=True)
    draw.text(
        left + 310, top + 27, "one native call: forward, backward and update, no Python between",
        12, colors.faint,
    )  # fmt: skip
    found = phases(example.lowered)
    start, room = left + 16, width - 32
    step = room / len(found)
    for i, phase in enumerate(found):
        draw.box(start + i * step, top + 42, step - 2, 16, colors.phase(phase), radius=3)
    for phase, right in (("forward", 220), ("backward", 150), ("update", 72)):
        draw.box(left + width - right, top + 18, 9, 9, colors.phase(phase), radius=2)
        draw.text(left + width - right + 14, top + 27, phase, 11, colors.faint)
    places, peak_bytes = plan_of(example.lowered.manifest)
    floor, space = top + height - 34, height - 108
    for first, last, offset, size in sorted(places, key=lambda p: -p[3]):
        tall = space * size / peak_bytes
        y = floor - space * offset / peak_bytes - tall
        fill = colors.phase(found[first])
        long = (last - first + 1) * step - 2
        draw.box(start + first * step, y, long, max(tall - 1, 1.0), fill, radius=1.5, opacity=0.5)
    draw.line(start, floor + 0.5, start + room - 2, floor + 0.5)
    draw.text(
        start, floor + 20,
        f"memory: each temporary has its place in one arena of {peak_bytes / 2**20:.1f} MiB "
        "(batch of 64), planned before the first run",
        12, colors.faint,
    )  # fmt: skip


class _Drawing:
    """SVG elements, in order."""

    def __init__(self, colors: Palette) -> None:
        self.colors = colors
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, radius: float = 0,
        opacity: float = 1,
    ) -> None:  # fmt: skip
        more = f' rx="{radius:g}"' if radius else ""
        more += f' fill-opacity="{opacity:g}"' if opacity != 1 else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{fill}"{more}/>'
        )

    def card(self, x: float, y: float, width: float, height: float, title: str) -> None:
        c = self.colors
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="10" '
            f'fill="{c.card}" stroke="{c.border}"/>'
        )
        self.text(x + 16, y + 28, title, 16, c.text, bold=True)

    def text(
        self, x: float, y: float, text: str, size: float, fill: str, *, mono: bool = False,
        bold: bool = False,
    ) -> None:  # fmt: skip
        family = ' class="m"' if mono else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{family}{weight} '
            f'xml:space="preserve">{escape(text)}</text>'
        )

    def code(self, x: float, y: float, code: str) -> None:
        for i, line in enumerate(code.splitlines()):
            if line:
                self.text(x, y + 17 * i, line, 12, self.colors.text, mono=True)

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(
            f'<path d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}" stroke="{self.colors.faint}" '
            'stroke-width="2" fill="none" marker-end="url(#tip)"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(
            f'<path d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}" stroke="{self.colors.border}" '
            'fill="none"/>'
        )

    def curve(self, a: tuple[float, float], b: tuple[float, float]) -> None:
        middle = (a[0] + b[0]) / 2
        self.parts.append(
            f'<path d="M{a[0]:.1f},{a[1]:.1f}C{middle:.1f},{a[1]:.1f} {middle:.1f},{b[1]:.1f} '
            f'{b[0]:.1f},{b[1]:.1f}" stroke="{self.colors.edge}" stroke-width="0.7" '
            'stroke-opacity="0.8" fill="none"/>'
        )

    def dot(self, at: tuple[float, float], fill: str) -> None:
        self.parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3.2" fill="{fill}"/>')

    def svg(self) -> str:
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" '
            f'markerHeight="5" orient="auto"><path d="M0,0L8,4L0,8z" fill="{self.colors.faint}"/>'
            "</marker></defs>"
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{SANS}">'
        )
        style = f"<style>.m{{font-family:{MONO}}}</style>"
        title = "<title>From a declared model to one native call</title>"
        return "\n".join([head, title, style, tip, *self.parts, "</svg>"]) + "\n"
