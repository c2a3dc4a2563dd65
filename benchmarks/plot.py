"""The picture of a run: each framework's time for each workload, by ours."""

from __future__ import annotations

from pathlib import Path

from .drivers import LABELS, OURS, PEERS
from .results import Document, Result, seconds_of

_COLOURS = {"numpy": "#4d77cf", "torch": "#ee4c2c", "torch_compile": "#a3300f", "jax": "#7b3fa0"}
_MARKERS = {"numpy": "s", "torch": "o", "torch_compile": "D", "jax": "^"}
_OURS = "#1a7f37"


def relative(result: Result) -> dict[str, float]:
    """The peers' times as multiples of ours; empty where ours is unknown."""
    ours = seconds_of(result, OURS)
    if not ours:
        return {}
    times = {name: seconds_of(result, name) for name in PEERS}
    return {name: t / ours for name, t in times.items() if t}


def shown(document: Document) -> list[Result]:
    """Every workload with a peer, at the most threads it was run with."""
    found = {}
    for result in sorted(document["results"], key=lambda r: int(r["threads"])):
        if relative(result):
            found[result["workload"]] = result
    order = [r["workload"] for r in document["results"]]
    return sorted(found.values(), key=lambda r: order.index(r["workload"]))


def draw(document: Document, paths: list[Path]) -> bool:
    """Writes the picture to each path, in the format of its suffix. False if there is nothing to
    show."""
    results = shown(document)
    if not results:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8.5, 1.4 + 0.26 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = range(len(results))
    for name in PEERS:
        points = [(t[name], y) for y, r in zip(rows, results) if name in (t := relative(r))]
        if points:
            multiples, places = [x for x, _ in points], [y for _, y in points]
            axes.scatter(
                multiples, places, label=LABELS[name], color=_COLOURS[name],
                marker=_MARKERS[name], s=34, zorder=3,
            )  # fmt: skip
    axes.axvline(1.0, color=_OURS, linewidth=2, label=LABELS[OURS], zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.set_yticks(rows, [r["workload"] for r in results])
    axes.invert_yaxis()
    axes.grid(axis="both", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("time of a call, as a multiple of staticgrad's (right of the line: slower)")
    axes.set_title(f"{document['host']['cpu']}, {max(r['threads'] for r in results)} threads")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / len(results) - 0.08), ncols=5,
                frameon=False)  # fmt: skip
    for path in paths:
        # No time: the same figures give the same picture.
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return True
