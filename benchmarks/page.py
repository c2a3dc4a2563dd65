"""Writes docs/performance.md, or the page that --output names, from the results of a run.

The picture goes to the folder `images` beside the page, with the page's name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from . import plot, report, sweep, threads
from .client import ROOT
from .results import Document
from .suite import WORKLOADS

PAGE = ROOT / "docs" / "performance.md"
_README_LINK = "[benchmarks/README.md](../benchmarks/README.md)"  # from the folder of PAGE
# What a reader of a table must know, by its title.
_ABOUT = {
    report.STEPS: "GFLOP/s and the share of the roofline are of a workload's nominal operations: a "
    "convolution behind max pooling skips those whose factor is zero.",
    report.MEMORY: "`temporaries` is what a framework plans for a call: ours holds the packing "
    "buffers of all threads, JAX's leaves out what its matrix library takes. `bound` is the most "
    "that is alive at one step, which no plan can be below. `planned` is our temporaries and "
    "results, `state` parameters and momentum. `over the plan` is resident memory at its peak over "
    "five calls less that before the first call and less `planned`: importing staticgrad loads "
    "LLVM, some 45 MiB of whose pages are given back once the program is compiled, so that it is "
    "below zero. `own over the plan` leaves the pages of files out: what the process has grown by "
    "since before declaring, of memory that is not mapped from files, less `planned` and `state`. "
    "`grows` is resident memory from before declaring to its peak while running.",
}


def with_first_calls(document: Document, others: Sequence[Document]) -> Document:
    """The document with the first calls and the memory of other runs, where it has none; of what
    several have, the last counts."""
    known: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for r in (r for other in others for r in other["results"]):
        told = {
            name: {k: f[k] for k in ("first", "memory") if k in f}
            for name, f in r["frameworks"].items()
        }
        if any(told.values()):
            known[r["workload"], r["threads"]] = told
    results = []
    for r in document["results"]:
        found = known.get((r["workload"], r["threads"]), {})
        frameworks = {name: {**found.get(name, {}), **f} for name, f in r["frameworks"].items()}
        results.append({**r, "frameworks": frameworks})
    when = "; ".join(_when(other, document) for other in others)
    return {**document, "results": results, "first_calls": when}


def _machine(document: Document) -> str:
    host = document["host"]
    caches = ", ".join(f"{name} {text}" for name, text in host["caches"].items())
    return f"{host['cpu']}, {host['usable_cores']} cores, {caches}; {host['system']}"


def _when(other: Document, document: Document) -> str:
    """When another run than the document's was, and on which machine if on another one."""
    elsewhere = _machine(other) != _machine(document)
    return f"{other['created']}{f' on another host: {_machine(other)}' if elsewhere else ''}"


def missing(document: Document, by_kernel: Document | None = None) -> list[str]:
    """The workloads of the suite that these runs do not have, a line each run."""
    every = [w.name for w in WORKLOADS]
    headline = [w.name for w in WORKLOADS if w.headline]
    runs: list[tuple[str, list[str], Collection[str]]] = [
        ("not run", every, {r["workload"] for r in document["results"]}),
        ("no first call", headline, {r["workload"] for r in report.first_calls(document)}),
    ]
    if by_kernel is not None:
        runs.append(("kernels not timed on one thread and more", every, by_kernel["workloads"]))
    lines = []
    for words, asked, known in runs:
        names = [name for name in asked if name not in known]
        if names:
            lines.append(f"{words}: {len(names)} of {len(asked)} workloads, {', '.join(names)}")
    return lines


def page(
    document: Document, picture: str | None, by_kernel: Document | None = None,
    readme: str = _README_LINK, *, sweeps: Document | None = None,
) -> str:  # fmt: skip
    """The page's text; `picture` is the link to the picture, `by_kernel` a document of `threads`,
    `sweeps` one of `sweep`, `readme` how to refer to the description of the measurements."""
    steps, *others = report.tables(document)
    parts = [
        "# Performance",
        "This page is made by `python -m benchmarks page RESULTS.json`; don't edit it. How the "
        f"figures are taken is told in {readme}; they can be repeated with `python -m benchmarks`.",
        _items([
            f"Host: {_machine(document)}",
            f"Versions: {report.versions_line(document)}",
            f"Run: {document['created']}; {document['repetitions']} repetitions of at least "
            f"{1e3 * document['repetition_s']:g} ms; {report.threads_line(document)}",
            *(
                [f"First calls and memory: a run of {document['first_calls']}"]
                if "first_calls" in document else []
            ),
            *(f"Ceilings, {line}" for line in report.ceiling_lines(document)),
        ]),
        "## In short",
        _items(report.summary(document)),
    ]  # fmt: skip
    if picture is not None:
        parts.append(f"![The peers' times as multiples of staticgrad's]({picture})")
    for table in (steps, *others):
        parts += [f"## {_title(table)}", _ABOUT.get(table.title, ""), table.markdown()]
    if sweeps is not None:
        when = f"A run of {_when(sweeps, document)}, {sweeps['threads']} thread(s)."
        parts += _section(sweep.table(sweeps), when, sweep.__doc__, sweep.summary(sweeps))
    if by_kernel is not None:
        when = f"A run of {_when(by_kernel, document)}."
        about = threads.summary(by_kernel)
        parts += _section(threads.table(by_kernel), when, threads.__doc__, about)
    workloads = {r["workload"]: r["about"] for r in document["results"] if r["group"] != "matmul"}
    if workloads:
        parts += ["## The workloads", _items([f"`{n}`: {about}" for n, about in workloads.items()])]
    remarks = [*missing(document, by_kernel), *report.remarks(document)]
    if remarks:
        parts += ["## Remarks", _items(remarks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(
    table: report.Table, when: str, doc: str | None, summary: list[str]
) -> list[str]:  # fmt: skip
    """The part of another command, as what its module says behind its first paragraph tells it."""
    told = (doc or "").partition("\n\n")[2].strip().replace("\n", " ")
    return [f"## {table.title}", f"{when} {told}", _items(summary), table.markdown()]


def _title(table: report.Table) -> str:
    matmul = all(row[0].startswith("matmul") for row in table.rows)
    return f"Matrix products: {table.title[0].lower()}{table.title[1:]}" if matmul else table.title


def _items(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def write(
    document: Document, path: Path = PAGE, by_kernel: Document | None = None,
    sweeps: Document | None = None,
) -> list[Path]:  # fmt: skip
    """Writes the page and its picture; the paths written. Raises OSError."""
    picture = path.parent / "images" / f"{path.stem}.svg"
    link = picture.relative_to(path.parent).as_posix() if plot.shown(document) else None
    beside = path.resolve().parent == PAGE.parent
    readme = _README_LINK if beside else "benchmarks/README.md"
    text = page(document, link, by_kernel, readme, sweeps=sweeps)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    if link is None:
        return [path]
    picture.parent.mkdir(exist_ok=True)
    plot.draw(document, [picture])
    return [path, picture]
