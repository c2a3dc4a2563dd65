"""`python -m benchmarks sweep`: one workload over many sizes, and what an element or an operation
costs at each. Once calls no longer dominate, cost is linear in work; where work spills from a
cache, or another way of computing sets in, a cliff may show.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .report import Table, digits, duration
from .suite import BY_NAME
from .workload import Sizes, Workload, product

SCHEMA, VERSION = "staticgrad-sweep", 1
# A point stands out where a unit of work costs so much more than at the size before.
CLIFF = 1.3
# Below this a call's overhead is most of its time.
SMALLEST_S = 2e-6


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
    """A workload and the sizes that it runs at, smallest first. `work` counts `unit`s."""

    name: str
    workload: str
    about: str
    unit: str
    sizes: tuple[Sizes, ...]
    work: Callable[[Sizes], int]

    def at(self, sizes: Sizes) -> Workload:
        base = BY_NAME[self.workload]
        return dataclasses.replace(base, sizes={**base.sizes, **sizes})


def _geometric(first: int, last: int, per_doubling: int = 1) -> list[int]:
    """Powers of two, and numbers between them, from `first` to `last`."""
    count = per_doubling * round(math.log2(last / first))
    return list(dict.fromkeys(round(first * 2 ** (i / per_doubling)) for i in range(count + 1)))


_ROWS = _geometric(1, 1 << 14)
_ELEMENTS = 1 << 20
_COLUMNS = _geometric(8, 1 << 17)


def _rows(name: str, workload: str, about: str) -> tuple[Sweep, Sweep]:
    """A workload over rows: more and more rows of 256; and the same elements in longer rows."""

    def elements(s: Sizes) -> int:
        return product(s, "N D")

    return (
        Sweep(f"{name}_rows", workload, f"{about}, N rows of 256", "element",
              tuple({"N": n, "D": 256} for n in _ROWS), elements),
        Sweep(f"{name}_columns", workload, f"{about}, 1M elements in rows of D", "element",
              tuple({"N": _ELEMENTS // d, "D": d} for d in _COLUMNS), elements),
    )  # fmt: skip


SWEEPS = (
    Sweep("chain", "chain", BY_NAME["chain"].about.partition(",")[0] + ", N elements", "element",
          tuple({"N": n} for n in _geometric(16, 1 << 24)), lambda s: s["N"]),
    *_rows("softmax", "softmax", "softmax"),
    *_rows("layer_norm", "layer_norm", "layer norm forward and backward"),
    Sweep("matmul", "matmul_512x512x512", "[n, n] @ [n, n]", "operation",
          tuple(dict.fromkeys("MNK", n) for n in _geometric(2, 2048, 2)),
          BY_NAME["matmul_512x512x512"].flops),
    Sweep("mlp", "mlp", "784-512-256-10, batch B, training step", "operation",
          tuple({"B": n} for n in _geometric(1, 4096)), BY_NAME["mlp"].flops),
)  # fmt: skip


def chosen(names: Sequence[str]) -> list[Sweep]:
    """Raises ValueError for a name that is none."""
    known = {s.name: s for s in SWEEPS}
    for name in names:
        if name not in known:
            raise ValueError(f"{name}: no sweep is called so; there are {', '.join(known)}")
    return [known[name] for name in names] or list(SWEEPS)


def point(sweep: Sweep, sizes: Sizes, threads: int, effort: Effort) -> dict[str, Any]:
    """The best time of a call at some sizes."""
    from .staticgrad_driver import StaticgradDriver
    from .worker import timed

    workload = sweep.at(sizes)
    program = StaticgradDriver(threads).prepare(workload, *workload.arrays())
    once = min(timed(program, 1) for _ in range(3))
    calls = max(1, round(effort.seconds / once))
    best = min(timed(program, calls) for _ in range(effort.repetitions))
    return {"sizes": dict(sizes), "work": sweep.work(workload.sizes), "best_s": best}


def run(
    sweeps: Iterable[Sweep], threads: int, note: Callable[[str], None], effort: Effort
) -> dict[str, Any]:
    """All points of all sweeps, as a document."""
    found = []
    for s in sweeps:
        note(f"{s.name}: {s.about}")
        points = [point(s, sizes, threads, effort) for sizes in s.sizes[: effort.points]]
        found.append({"name": s.name, "about": s.about, "unit": s.unit, "points": points})
    return {"schema": SCHEMA, "version": VERSION, "threads": threads, "sweeps": found}


def cliffs(points: Sequence[Any]) -> list[bool]:
    """Whether each point stands out from the one before."""
    found = [False]
    for a, b in itertools.pairwise(points):
        dearer = (b["best_s"] / b["work"]) / (a["best_s"] / a["work"])
        found.append(b["best_s"] > SMALLEST_S and dearer > CLIFF)
    return found[: len(points)]


def tables(document: dict[str, Any]) -> list[Table]:
    made = []
    for s in document["sweeps"]:
        rows = []
        for p, stands_out in zip(s["points"], cliffs(s["points"])):
            ns = 1e9 * p["best_s"] / p["work"]
            sizes = ", ".join(f"{name} {n}" for name, n in p["sizes"].items())
            rows.append([sizes, duration(p["best_s"]), f"{ns:.4f}", digits(1 / ns),
                         "cliff" if stands_out else ""])  # fmt: skip
        header = ["sizes", "time", f"ns an {s['unit']}", f"{s['unit']}s a ns", ""]
        made.append(Table(f"{s['name']}: {s['about']}", header, rows))
    return made


def text(document: dict[str, Any]) -> str:
    head = f"{document['threads']} thread(s); best of repetitions"
    return "\n\n".join([head, *(table.text() for table in tables(document))]) + "\n"
