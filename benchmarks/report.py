"""The figures of a run as tables: for the terminal, and for docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .drivers import LABELS, OURS
from .results import (
    Document,
    Result,
    best_peer,
    failures,
    first_call_ratio,
    first_seconds,
    least_seconds,
    ratio,
    seconds_of,
)

NONE = "-"
_TELLING = ("jax",)  # other frameworks that tell what a call takes
STEPS = "Time of a call, median of repetitions taken in turn"
MEMORY = "Memory of a fresh process, MiB"


@dataclass(frozen=True)
class Table:
    """A table; all columns but the first are figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in (self.header, *self.rows)
        ]
        return "\n".join([self.title, *lines])

    def markdown(self) -> str:
        aligned = [":--", *["--:"] * (len(self.header) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.header, aligned, *self.rows))


def duration(seconds: float | None) -> str:
    """Three digits, in the unit that suits."""
    if seconds is None:
        return NONE
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds * 1e9)} ns"


def size(count: float | None) -> str:
    return NONE if count is None else f"{count / 2**20:.1f}"


def digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _number(value: float | None, form: Callable[[float], str]) -> str:
    return NONE if value is None else form(value)


def frameworks(document: Document) -> list[str]:
    """Those that have a time of anything, in the usual order."""
    return [n for n in LABELS if any(seconds_of(r, n) is not None for r in document["results"])]


def _share(document: Document, result: Result) -> float | None:
    least, ours = least_seconds(document, result), seconds_of(result, OURS)
    return None if least is None or not ours else least / ours


def _threads(document: Document) -> bool:
    """Whether tables need to say how many threads."""
    return len({r["threads"] for r in document["results"]}) > 1


def _name(document: Document, result: Result) -> str:
    name = str(result["workload"])
    return f"{name}, {result['threads']} thr." if _threads(document) else name


def _cell(result: Result, framework: str) -> str:
    found = result["frameworks"].get(framework)
    if found is not None and found["status"] in ("differs", "failed"):
        return str(found["status"])
    return duration(seconds_of(result, framework))


def step_table(document: Document, results: Sequence[Result]) -> Table:
    """Time from call to result, and what of the machine that is."""
    names = [n for n in frameworks(document) if any(n in r["frameworks"] for r in results)]
    rows = []
    for r in results:
        ours, share = seconds_of(r, OURS), _share(document, r)
        rows.append([
            _name(document, r), *(_cell(r, n) for n in names),
            _number(ratio(r), lambda x: f"{x:.3f}"),
            NONE if ours is None else digits(r["flops"] / ours / 1e9),
            NONE if ours is None else digits(r["bytes"] / ours / 1e9),
            _number(share, lambda x: f"{x:.0%}"),
        ])  # fmt: skip
    header = ["workload", *(LABELS[n] for n in names), "ours / best peer", "GFLOP/s", "GB/s",
              "of the roofline"]  # fmt: skip
    return Table(STEPS, header, rows)


def first_table(document: Document, results: Sequence[Result]) -> Table:
    """From declaring to the first result, in a fresh process."""
    names = frameworks(document)
    rows = [
        [
            _name(document, r),
            duration(first_seconds(r, OURS)),
            duration(first_seconds(r, OURS, "warm")),
            *(duration(first_seconds(r, n)) for n in names if n != OURS),
        ]
        for r in results
    ]
    peers = (LABELS[n] for n in names if n != OURS)
    header = ["workload", "staticgrad, cold", "warm cache", *peers]
    return Table("First call: from declaring to the first result, fresh process", header, rows)


def memory_table(document: Document, results: Sequence[Result]) -> Table:
    """What calls take, and resident memory, in MiB."""
    names = frameworks(document)
    rows = []
    for r in results:
        of = {n: r["frameworks"].get(n, {}).get("memory", {}) for n in names}
        ours = of.get(OURS, {})
        cells = [ours.get("temporary_bytes"), ours.get("bound_bytes")]
        cells += [of[n].get("temporary_bytes") for n in names if n in _TELLING]
        cells += [ours.get(k) for k in ("planned_bytes", "state_bytes", "over_plan_bytes")]
        cells += [of[n].get("growth_bytes") for n in names]
        rows.append([_name(document, r), *(size(c) for c in cells)])
    header = ["workload", "temporaries", "bound"]
    header += [f"{LABELS[n]}'s temporaries" for n in names if n in _TELLING]
    header += ["planned", "state", "over the plan", *(f"{LABELS[n]} grows" for n in names)]
    return Table(MEMORY, header, rows)


def threads_table(document: Document) -> Table:
    """What more threads bring, where a workload was run with one and with more."""
    by_name: dict[str, dict[int, Result]] = {}
    for r in document["results"]:
        if seconds_of(r, OURS) is not None:
            by_name.setdefault(r["workload"], {})[r["threads"]] = r
    rows = []
    for name, runs in by_name.items():
        for threads in sorted(runs.keys() - {1}) if 1 in runs else ():
            times = [seconds_of(runs[n], OURS) for n in (1, threads)]
            bounds = [least_seconds(document, runs[n]) for n in (1, threads)]
            assert times[0] and times[1]
            gain = times[0] / times[1]
            most = bounds[0] / bounds[1] if bounds[0] and bounds[1] else None
            rows.append([
                name, str(threads), duration(times[0]), duration(times[1]), digits(gain),
                _number(most, digits), NONE if most is None else f"{gain / most:.0%}",
            ])  # fmt: skip
    header = ["workload", "threads", "one thread", "all these", "faster by", "the machine's",
              "of it"]  # fmt: skip
    return Table("What threads bring; the machine's: the same of its ceilings", header, rows)


def tables(document: Document) -> list[Table]:
    """All of them, those without rows left out."""
    results = document["results"]
    headline = [r for r in results if "first" in r["frameworks"].get(OURS, {})]
    made = [
        step_table(document, [r for r in results if r["group"] != "matmul"]),
        step_table(document, [r for r in results if r["group"] == "matmul"]),
        first_table(document, headline),
        memory_table(document, headline),
        threads_table(document),
    ]
    return [table for table in made if table.rows]


def summary(document: Document) -> list[str]:
    """What it comes to, a line each."""
    lines = []
    rated = [(x, r) for r in document["results"] if (x := ratio(r)) is not None]
    if rated:
        mean = statistics.geometric_mean(x for x, _ in rated)
        lines.append(
            f"ours / best peer: geometric mean {mean:.3f} over {len(rated)} workloads, "
            f"{sum(x < 1 for x, _ in rated)} of them below 1"
        )
        slow = [
            f"{_name(document, r)} {x:.2f} ({LABELS[best[0]]})"
            for x, r in sorted(rated, key=lambda pair: -pair[0])
            if x >= 1 and (best := best_peer(r))
        ]
        if slow:
            lines.append("slower than the best peer: " + ", ".join(slow))
    for kind, words in (
        ("cold", "cold"),
        ("warm", "with our warm disk cache (JAX keeps none by itself)"),
    ):
        found = first_call_ratio(document, kind)
        if found is not None:
            lines.append(
                f"first call, {words}, ours / JAX: geometric mean {found[0]:.3f} over "
                f"{', '.join(found[1])}"
            )
    return lines


def remarks(document: Document) -> list[str]:
    """What a reader must know of how these figures came about."""
    lines = [f"{name} took no part: {why}" for name, why in document["absent"].items()]
    for result, name, found in failures(document):
        what = found.get("why")
        if what is None:
            by = found["difference"]
            what = "NaN or another shape" if by is None else f"a difference of {by:.1e}"
            what += f"; at most {result['tolerance']:.0e} is right"
        lines.append(f"{name}, {_name(document, result)}: {found['status']}: {what}")
    restless = sorted({
        name for r in document["results"] for name, f in r["frameworks"].items()
        if f.get("sleeps") is False
    })  # fmt: skip
    if restless:
        lines.append(f"kept spinning during the others' turns: {', '.join(restless)}")
    before = document["load"][0]
    if before is not None and before > 0.5:
        lines.append(f"other work was running on this machine (load {before:.1f} at the start)")
    if document["quick"]:
        lines.append("a quick run: few repetitions, no figures to rely on")
    return lines


def ceiling_lines(document: Document) -> list[str]:
    """What this machine does at best."""
    lines = []
    for threads, found in document["ceilings"].items():
        stream: list[dict[str, Any]] = found["stream"]
        rates = ", ".join(
            f"{s['bytes_per_s'] / 1e9:.0f} at {_short(s['bytes'])}" for s in stream[::2]
        )
        lines.append(
            f"{threads} thread(s): {found['fma_flops'] / 1e9:.0f} GFLOP/s; stream, GB/s: {rates}"
        )
    return lines


def _short(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def versions_line(document: Document) -> str:
    found: dict[str, str] = {}
    for versions in document["versions"].values():
        found = {**versions, **found}
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def text(document: Document) -> str:
    """The whole report, for a terminal."""
    host = document["host"]
    parts = [
        f"{host['cpu']}, {host['usable_cores']} cores, {host['system']}",
        versions_line(document),
        "\n".join(["ceilings", *(f"  {line}" for line in ceiling_lines(document))]),
        *(table.text() for table in tables(document)),
        "\n".join(summary(document)),
        "\n".join(remarks(document)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
