"""What each optimisation of the static graph saves: the same step compiled without it."""

from __future__ import annotations

from functools import partial
from typing import Any

from staticgrad.api.compile import LATE_PASSES
from staticgrad.passes.pipeline import PASSES

from .clock import medians_ns
from .subject import Subject

# One line each, for readers who don't know compilers.
MEANINGS = {
    "merge_loops": "loops over the same steps become one",
    "canonicalize": "one spelling for each formula",
    "stabilize": "formulas that overflow are replaced by ones that don't",
    "simplify": "x * 1, double transposes and the like vanish",
    "fold": "what depends on constants alone is computed once, when compiling",
    "cse": "what is written twice is computed once",
    "dce": "what nothing reads is not computed",
    "layout": "transposed copies are not made: products read their operands as they lie",
    "fuse": "neighbouring operations share one sweep over memory",
    "prepack": "what calls or iterations multiply with again and again is rearranged once",
    "in_place": "a result takes the memory of an operand that nobody needs any more",
    "scalar_loops": "a loop over a few numbers keeps them in registers",
    "by_rows": "threads that keep to rows of their own don't wait for each other in a loop",
    "nontemporal": "large results that nothing reads any more are stored past the caches",
}


def optimisations(subject: Subject, repetitions: int) -> list[dict[str, Any]]:
    """Entries with kernels, planned and moved bytes and the time of a warm step: the whole
    compiler first, then without each pass that can be left out, then without all of them."""
    optional = dict.fromkeys(p.name for p in PASSES if p.kind != "required")
    names = [*optional, *LATE_PASSES]
    graph = subject.static_graph()
    off: dict[str, list[str]] = {"": [], **{n: [n] for n in names}, "all": names}
    programs = {name: subject.compiled(graph, disable=disable) for name, disable in off.items()}
    cells = [(cell, cell.numpy()) for cell in subject.program.cells().values()]

    def restore() -> None:
        for cell, value in cells:
            cell.assign(value)

    with subject.unchanged():
        times = medians_ns(
            {name: partial(program, *subject.batch) for name, program in programs.items()},
            repetitions, restore,
        )  # fmt: skip
    found = []
    for name, program in programs.items():
        report = program.report(**subject.dims)
        found.append({
            "without": name or None,
            "meaning": MEANINGS.get(name, ""),
            "kernels": len(report["kernels"]),
            "planned_bytes": report["peak_bytes"],
            "moved_bytes": report["bytes"],
            "step_ms": times[name] / 1e6,
        })  # fmt: skip
    return found


__all__ = ["MEANINGS", "optimisations"]
