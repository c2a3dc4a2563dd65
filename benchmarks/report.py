"""The figures of a run as tables: for the terminal, and for docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
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
FMA_WORKLOAD = "matmul_512x512x512"  # large enough for the ceiling, and in every core's caches


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


def most_threads(document: Document) -> int:
    """Those of results whose names don't tell."""
    return max((int(r["threads"]) for r in document["results"]), default=1)


def _name(document: Document, result: Result) -> str:
    name = str(result["workload"])
    most = most_threads(document)
    return name if result["threads"] == most else f"{name}, {result['threads']} thr."


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
        cells.append(_own_over_plan(ours))
        cells += [of[n].get("growth_bytes") for n in names]
        rows.append([_name(document, r), *(size(c) for c in cells)])
    header = ["workload", "temporaries", "bound"]
    header += [f"{LABELS[n]}'s temporaries" for n in names if n in _TELLING]
    header += ["planned", "state", "over the plan", "own over the plan"]
    header += [f"{LABELS[n]} grows" for n in names]
    return Table(MEMORY, header, rows)


def _own_over_plan(memory: Mapping[str, int | None]) -> int | None:
    """What the process has grown by since before declaring, but for files' pages, plan and state:
    the compiler's objects, the code, the parameters' copies."""
    parts = [memory.get(name) for name in ("own_bytes", "planned_bytes", "state_bytes")]
    known = [part for part in parts if part is not None]
    return known[0] - known[1] - known[2] if len(known) == 3 else None


def threads_table(document: Document) -> Table:
    """What more threads bring, where a workload was run with one and with more."""
    by_name: dict[tuple[str, str | None], dict[int, Result]] = {}
    for r in document["results"]:
        if seconds_of(r, OURS) is not None:
            # Times of one run only: the machine is not equally fast in two.
            by_name.setdefault((r["workload"], r.get("run")), {})[r["threads"]] = r
    rows = []
    for (name, _), runs in by_name.items():
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


def first_calls(document: Document) -> list[Result]:
    """The results that tell of fresh processes."""
    return [r for r in document["results"] if "first" in r["frameworks"].get(OURS, {})]


def tables(document: Document) -> list[Table]:
    """All of them, those without rows left out."""
    results = document["results"]
    headline = first_calls(document)
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
    lines = _rated(document)
    for r in document["results"]:
        shares = _fma_shares(document, r) if r["workload"] == FMA_WORKLOAD else {}
        if OURS in shares and len(shares) > 1:
            told = ", ".join(f"{LABELS[n]} {share:.0%}" for n, share in shares.items())
            lines.append(
                f"share of the FMA ceiling, {r['workload']}, {r['threads']} thread(s): {told}; "
                f"time, ours / NumPy's: {shares['numpy'] / shares[OURS]:.3f}"
            )
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


def _rated(document: Document) -> list[str]:
    """How our times compare with the best peer's, for each number of threads."""
    lines = []
    for threads in sorted({r["threads"] for r in document["results"]}, reverse=True):
        rated = [
            (x, r)
            for r in document["results"]
            if r["threads"] == threads and (x := ratio(r)) is not None
        ]
        if not rated:
            continue
        mean = statistics.geometric_mean(x for x, _ in rated)
        lines.append(
            f"ours / best peer, {threads} thread(s): geometric mean {mean:.3f} over {len(rated)} "
            f"workloads, {sum(x < 1 for x, _ in rated)} of them below 1"
        )
        slow = [
            f"{r['workload']} {x:.2f} ({LABELS[best[0]]})"
            for x, r in sorted(rated, key=lambda pair: -pair[0])
            if x >= 1 and (best := best_peer(r))
        ]
        if slow:
            lines.append(f"slower than the best peer, {threads} thread(s): {', '.join(slow)}")
    return lines


def _fma_shares(document: Document, result: Result) -> dict[str, float]:
    """What of the machine's multiply-adds ours and NumPy's operations are."""
    ceiling = document["ceilings"].get(str(result["threads"]))
    times = {name: seconds_of(result, name) for name in (OURS, "numpy")}
    return {
        name: result["flops"] / seconds / ceiling["fma_flops"]
        for name, seconds in times.items()
        if seconds and ceiling
    }


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


def threads_line(document: Document) -> str:
    return f"{most_threads(document)} thread(s) where a row doesn't tell"


def versions_line(document: Document) -> str:
    found: dict[str, str] = {}
    for versions in document["versions"].values():
        found = {**versions, **found}
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def text(document: Document) -> str:
    """The whole report, for a terminal."""
    host = document["host"]
    parts = [
        f"{host['cpu']}, {host['usable_cores']} cores, {host['system']}; {threads_line(document)}",
        versions_line(document),
        "\n".join(["ceilings", *(f"  {line}" for line in ceiling_lines(document))]),
        *(table.text() for table in tables(document)),
        "\n".join(summary(document)),
        "\n".join(remarks(document)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
