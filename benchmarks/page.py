"""docs/performance.md, made from the document of a run; its picture goes to docs/images/."""

from __future__ import annotations

from pathlib import Path

from . import plot, report, threads
from .client import ROOT
from .results import Document
from .suite import WORKLOADS

PAGE = ROOT / "docs" / "performance.md"
# What a reader of a table must know, by its title.
_ABOUT = {
    report.STEPS: "GFLOP/s and the share of the roofline are of a workload's nominal operations: a "
    "convolution behind max pooling skips those whose factor is zero.",
    report.MEMORY: "`temporaries` is what a framework plans for a call: ours holds the packing "
    "buffers of all threads, JAX's leaves out what its matrix library takes. `grows` is resident "
    "memory from before declaring to its peak while running. Importing staticgrad loads LLVM, some "
    "45 MiB of which are given back once the program is compiled, so that `over the plan` is below "
    "zero.",
}
PICTURE = ROOT / "docs" / "images" / "performance.svg"


def with_first_calls(document: Document, other: Document) -> Document:
    """The document with the first calls and the memory of another run, where it has none."""
    others = {(r["workload"], r["threads"]): r["frameworks"] for r in other["results"]}
    results = []
    for r in document["results"]:
        found = others.get((r["workload"], r["threads"]), {})
        frameworks = {
            name: {
                **{k: found[name][k] for k in ("first", "memory") if k in found.get(name, {})},
                **f,
            }
            for name, f in r["frameworks"].items()
        }
        results.append({**r, "frameworks": frameworks})
    return {**document, "results": results, "first_calls": other["created"]}


def missing(document: Document, by_kernel: Document | None = None) -> list[str]:
    """The workloads of the suite that these runs do not have, a line each run."""
    runs = [("not run", {r["workload"] for r in document["results"]})]
    if by_kernel is not None:
        runs.append(("kernels not timed on one thread and more", set(by_kernel["workloads"])))
    lines = []
    for words, known in runs:
        names = [w.name for w in WORKLOADS if w.name not in known]
        if names:
            lines.append(f"{words}: {len(names)} of {len(WORKLOADS)} workloads, {', '.join(names)}")
    return lines


def page(document: Document, picture: str | None, by_kernel: Document | None = None) -> str:
    """The page's text; `picture` is the link to the picture, `by_kernel` a document of
    `threads`."""
    host = document["host"]
    caches = ", ".join(f"{name} {text}" for name, text in host["caches"].items())
    steps, *others = report.tables(document)
    parts = [
        "# Performance",
        "This page is made by `python -m benchmarks page RESULTS.json`; don't edit it. How the "
        "figures are taken is told in [benchmarks/README.md](../benchmarks/README.md); they can be "
        "repeated with `python -m benchmarks`.",
        _items([
            f"Host: {host['cpu']}, {host['usable_cores']} cores, {caches}; {host['system']}",
            f"Versions: {report.versions_line(document)}",
            f"Run: {document['created']}; {document['repetitions']} repetitions of at least "
            f"{1e3 * document['repetition_s']:g} ms",
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
    if by_kernel is not None:
        found = threads.table(by_kernel)
        told = (threads.__doc__ or "").partition("\n\n")[2].strip().replace("\n", " ")
        parts += [
            f"## {found.title}", f"A run of {by_kernel['created']}. {told}",
            _items(threads.summary(by_kernel)), found.markdown(),
        ]  # fmt: skip
    workloads = {r["workload"]: r["about"] for r in document["results"] if r["group"] != "matmul"}
    if workloads:
        parts += ["## The workloads", _items([f"`{n}`: {about}" for n, about in workloads.items()])]
    remarks = [*missing(document, by_kernel), *report.remarks(document)]
    if remarks:
        parts += ["## Remarks", _items(remarks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(table: report.Table) -> str:
    matmul = all(row[0].startswith("matmul") for row in table.rows)
    return f"Matrix products: {table.title[0].lower()}{table.title[1:]}" if matmul else table.title


def _items(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def write(
    document: Document, path: Path = PAGE, picture: Path = PICTURE,
    by_kernel: Document | None = None,
) -> list[Path]:  # fmt: skip
    """Writes the page and its picture; the paths written."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawn = plot.draw(document, [picture])
    link = picture.relative_to(path.parent).as_posix() if drawn else None
    path.write_text(page(document, link, by_kernel), encoding="utf-8", newline="\n")
    return [path, picture] if drawn else [path]
