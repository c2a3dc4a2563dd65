"""`python -m benchmarks sweep`: one workload over many sizes, and what an element or an operation
costs at each; and graphs of more and more nodes, and what the passes over the graph cost for each
node.

Once calls no longer dominate, cost is linear in work; where work spills from a cache, or another
way of computing sets in, a cliff may show.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import results
from .report import Table, digits, duration
from .suite import BY_NAME
from .workload import Sizes, Workload, product

SCHEMA, VERSION = "staticgrad-sweep", 2
# A point stands out where a unit of work costs so much more than at the size before.
CLIFF = 1.3
# Below this a call's overhead is most of its time.
SMALLEST_S = 2e-6
# What a unit's cost is told in, and how many of those a second has; and the same of the inverse.
_COSTS = {
    "element": ("ns an element", 1e9, "elements a ns", 1e9),
    "operation": ("ns an operation", 1e9, "operations a ns", 1e9),
    "node": ("CPU ms per 1,000 nodes", 1e6, "nodes a CPU ms", 1e3),
}

TITLE = "Cost is linear in work"

Document = dict[str, Any]
Point = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How a point is timed: the best of repetitions of so many seconds each; and of how many of a
    sweep's points, the smallest first (None: all)."""

    repetitions: int = 7
    seconds: float = 0.005
    points: int | None = None


QUICK = Effort(1, 1e-4, 3)


@dataclass(frozen=True)
class Sweep:
    """What runs at each of some sizes, smallest first; work is counted in `unit`s."""

    name: str
    about: str
    unit: str
    sizes: tuple[Sizes, ...]

    def timed(self, sizes: Sizes, threads: int, effort: Effort) -> tuple[int, float]:
        """The work at some sizes, and its best time."""
        raise NotImplementedError


@dataclass(frozen=True)
class WorkloadSweep(Sweep):
    workload: str
    work: Callable[[Sizes], int]

    def at(self, sizes: Sizes) -> Workload:
        base = BY_NAME[self.workload]
        return dataclasses.replace(base, sizes={**base.sizes, **sizes})

    def timed(self, sizes: Sizes, threads: int, effort: Effort) -> tuple[int, float]:
        from .staticgrad_driver import StaticgradDriver
        from .worker import timed

        workload = self.at(sizes)
        program = StaticgradDriver(threads).prepare(workload, *workload.arrays())
        once = min(timed(program, 1) for _ in range(3))
        calls = max(1, round(effort.seconds / once))
        best = min(timed(program, calls) for _ in range(effort.repetitions))
        return self.work(workload.sizes), best


@dataclass(frozen=True)
class NodesSweep(Sweep):
    """All passes over the graph, in seconds of the CPU."""

    shape: str

    def timed(self, sizes: Sizes, threads: int, effort: Effort) -> tuple[int, float]:
        from staticgrad.passes.pipeline import run_pipeline

        from .graphs import SHAPES, of_nodes

        graph = of_nodes(SHAPES[self.shape], sizes["nodes"])
        times = []
        for _ in range(min(effort.repetitions, _PASSES)):
            gc.collect()
            gc.disable()  # as `sg.compile` does
            start = time.process_time()
            run_pipeline(graph)
            times.append(time.process_time() - start)
            gc.enable()
        return len(graph), min(times)


_PASSES = 2  # each takes 3 s at 30,000 nodes


def _geometric(first: int, last: int, per_doubling: int = 1) -> list[int]:
    """Powers of two, and numbers between them, from `first` to `last`."""
    count = per_doubling * round(math.log2(last / first))
    return list(dict.fromkeys(round(first * 2 ** (i / per_doubling)) for i in range(count + 1)))


_ROWS = _geometric(1, 1 << 14)
_ELEMENTS = 1 << 20
_COLUMNS = _geometric(8, 1 << 17)


def _rows(name: str, workload: str, about: str) -> tuple[WorkloadSweep, WorkloadSweep]:
    """A workload over rows: more and more rows of 256; and the same elements in longer rows."""

    def elements(s: Sizes) -> int:
        return product(s, "N D")

    return (
        WorkloadSweep(f"{name}_rows", f"{about}, N rows of 256", "element",
                      tuple({"N": n, "D": 256} for n in _ROWS), workload, elements),
        WorkloadSweep(f"{name}_columns", f"{about}, 1M elements in rows of D", "element",
                      tuple({"N": _ELEMENTS // d, "D": d} for d in _COLUMNS), workload, elements),
    )  # fmt: skip


def _nodes(shape: str, about: str) -> NodesSweep:
    sizes = tuple({"nodes": n} for n in (1_000, 3_000, 10_000, 30_000))
    return NodesSweep(f"nodes_{shape}", f"all passes over {about}", "node", sizes, shape)


SWEEPS: tuple[Sweep, ...] = (
    WorkloadSweep("chain", BY_NAME["chain"].about.partition(",")[0] + ", N elements", "element",
                  tuple({"N": n} for n in _geometric(16, 1 << 24)), "chain", lambda s: s["N"]),
    *_rows("softmax", "softmax", "softmax"),
    *_rows("layer_norm", "layer_norm", "layer norm forward and backward"),
    WorkloadSweep("matmul", "[n, n] @ [n, n]", "operation",
                  tuple(dict.fromkeys("MNK", n) for n in _geometric(2, 2048, 2)),
                  "matmul_512x512x512", BY_NAME["matmul_512x512x512"].flops),
    WorkloadSweep("mlp", "784-512-256-10, batch B, training step", "operation",
                  tuple({"B": n} for n in _geometric(1, 4096)), "mlp", BY_NAME["mlp"].flops),
    _nodes("chain", "a chain of nodes"),
    _nodes("tree", "branches that are joined pair by pair"),
    _nodes("training", "a training step of many layers with Adam"),
)  # fmt: skip


def chosen(names: Sequence[str]) -> list[Sweep]:
    """The sweeps of these names, or whose name begins with one, as `nodes`; all, without names.
    Raises ValueError for a name that is none."""
    found = []
    for name in names:
        fits = [s for s in SWEEPS if s.name == name] or [
            s for s in SWEEPS if s.name.startswith(f"{name}_")
        ]
        if not fits:
            known = ", ".join(s.name for s in SWEEPS)
            raise ValueError(f"{name}: no sweep is called so; there are {known}")
        found += fits
    return found or list(SWEEPS)


def point(sweep: Sweep, sizes: Sizes, threads: int, effort: Effort) -> Point:
    work, best = sweep.timed(sizes, threads, effort)
    return {"sizes": dict(sizes), "work": work, "best_s": best}


def run(
    sweeps: Iterable[Sweep], threads: int, note: Callable[[str], None], effort: Effort
) -> Document:
    """All points of all sweeps, as a document."""
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": results.host(),
        "quick": effort.repetitions < Effort.repetitions,
        "threads": threads,
    }
    found = []
    for s in sweeps:
        note(f"{s.name}: {s.about}")
        points = [point(s, sizes, threads, effort) for sizes in s.sizes[: effort.points]]
        found.append({"name": s.name, "about": s.about, "unit": s.unit, "points": points})
    return {**document, "sweeps": found}


def steps(points: Sequence[Point]) -> list[float | None]:
    """What a unit costs at each point, by what it costs at the one before; None at the first, and
    where a call's overhead tells most."""
    found: list[float | None] = [None]
    for a, b in itertools.pairwise(points):
        dearer = (b["best_s"] / b["work"]) / (a["best_s"] / a["work"])
        found.append(dearer if b["best_s"] > SMALLEST_S else None)
    return found[: len(points)]


def cliffs(points: Sequence[Point]) -> list[bool]:
    """Whether each point stands out from the one before."""
    return [step is not None and step > CLIFF for step in steps(points)]


def _sizes(point: Point) -> str:
    return ", ".join(f"{name} {n}" for name, n in point["sizes"].items())


def tables(document: Document) -> list[Table]:
    """A table of each sweep, a row of each size."""
    made = []
    for s in document["sweeps"]:
        words, scale, inverse, inverse_scale = _COSTS[s["unit"]]
        rows = []
        for p, stands_out in zip(s["points"], cliffs(s["points"])):
            a_unit = p["best_s"] / p["work"]
            rows.append([
                _sizes(p), duration(p["best_s"]), f"{scale * a_unit:.4f}",
                digits(1 / (inverse_scale * a_unit)), "cliff" if stands_out else "",
            ])  # fmt: skip
        header = ["sizes", "time", words, inverse, ""]
        made.append(Table(f"{s['name']}: {s['about']}", header, rows))
    return made


def table(document: Document) -> Table:
    """A row of each sweep: what a unit of work costs at each of its sizes."""
    rows = []
    for s in document["sweeps"]:
        words, scale, *_ = _COSTS[s["unit"]]
        costs = (scale * p["best_s"] / p["work"] for p in s["points"])
        ends = f"{_sizes(s['points'][0])} to {_sizes(s['points'][-1])}"
        told = ", ".join(digits(c) if c >= 1 else f"{c:.3g}" for c in costs)
        rows.append([f"{s['name']}: {s['about']}", ends, words, told])
    return Table(TITLE, ["sweep", "sizes", "unit", "cost at each size, smallest first"], rows)


def summary(document: Document) -> list[str]:
    """What it comes to, a line each."""
    known = [
        (s["name"], _sizes(p), step)
        for s in document["sweeps"]
        for p, step in zip(s["points"], steps(s["points"]))
        if step is not None
    ]
    dear = [(name, sizes, step) for name, sizes, step in known if step > CLIFF]
    lines = [
        f"at {len(known) - len(dear)} of {len(known)} sizes of over {1e6 * SMALLEST_S:g} µs a call "
        f"a unit of work costs at most {CLIFF - 1:.0%} more than at the size before"
    ]
    if dear:
        told = (f"{name} at {sizes} ({step:.2f} times)" for name, sizes, step in dear)
        lines.append(f"dearer: {'; '.join(told)}")
    return lines


def text(document: Document) -> str:
    head = f"{document['threads']} thread(s); best of repetitions"
    parts = [head, *(table.text() for table in tables(document)), "\n".join(summary(document))]
    return "\n\n".join(parts) + "\n"


def merged(documents: Sequence[Document]) -> Document:
    """Runs of different sweeps as one; of a sweep that several have, the last counts. Raises
    DocumentError for runs that do not go together."""
    results.require_alike(documents, ("threads",), "sweeps")
    last = {s["name"]: (d["created"], s) for d in documents for s in d["sweeps"]}
    order = [*(s.name for s in SWEEPS), *last]
    found = sorted(last.values(), key=lambda pair: order.index(pair[1]["name"]))
    return {
        **documents[-1],
        "created": ", ".join(sorted({created for created, _ in found})),
        "quick": any(d["quick"] for d in documents),
        "sweeps": [s for _, s in found],
    }


def read(paths: Sequence[str]) -> Document:
    """The documents of some files as one. Raises DocumentError."""
    return merged([results.read(path, SCHEMA, VERSION) for path in paths])
