"""`python -m benchmarks threads`: what further threads bring to each kernel of the workloads,
beside what they bring to this machine's own ceilings.

A kernel is bound by memory where a stream of its bytes, on one thread, would take at least half of
its time: then two threads can't double it, and what counts is how much faster they are at that
stream. Any other kernel is held against the multiply-adds. Each piece of memory counts at the rate
of the stream whose arrays are as large as what is touched between two uses of that piece, and of
the stream whose last use is as long ago: other guests of a host use the caches that they share.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import ceilings, results
from .report import Table, ceiling_lines, digits, duration
from .suite import BY_NAME
from .workload import Array, Workload

SCHEMA, VERSION = "staticgrad-threads", 1
LEAST_S = 50e-6  # what a kernel takes in a call, on one thread, to be told of
ENOUGH = 0.8  # of the ceiling's speed-up
SLOWER = 0.95  # a speed-up below this is no noise
_MEMORY_BOUND = 0.5  # of a kernel's time
AGED_BYTES = 4 << 20  # more than a core has of its own, less than cores share
AGES_S = (0.0, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
_OWN_CACHE_BYTES = 1 << 20

Kernel = dict[str, Any]
Ceilings = dict[str, Any]
Document = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How often and how long one thread and all take turns; at most how many turns, those that
    other work disturbed included; how long a ceiling is measured, and up to which size."""

    rounds: int = 7
    seconds: float = 0.03
    attempts: int = 28
    ceiling_s: float = 0.02
    ceiling_bytes: int = ceilings.STREAM_BYTES[-1]


QUICK = Effort(1, 1e-3, 2, 1e-3, 1 << 22)


def run(
    workloads: Iterable[Workload], threads: int, note: Callable[[str], None], effort: Effort,
    least_s: float = LEAST_S,
) -> Document:  # fmt: skip
    """The kernels of all workloads, as a document."""
    before = results.load()
    note(f"ceilings of this machine, 1 and {threads} threads")
    one, several = (
        {**ceilings.measure(n, effort.ceiling_s, effort.ceiling_bytes), "aged": aged}
        for n, aged in zip((1, threads), aged_streams(threads, effort))
    )
    probe = ceilings.Probe(threads)
    kernels: list[Kernel] = []
    names, disturbed = [], []
    for w in workloads:
        names.append(w.name)
        note(f"{w.name}: {w.about}")
        found, is_disturbed = timed_kernels(w, (one, several), effort, probe)
        if is_disturbed:
            note("  other work had a core in every round")
            disturbed.append(w.name)
        kernels += [kernel for kernel in found if kernel["one_s"] >= least_s]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": results.host(),
        "load": before,
        "quick": effort.rounds < Effort.rounds,
        "threads": threads,
        "least_s": least_s,
        "ceilings": {"1": one, str(threads): several},
        "workloads": names,
        "disturbed": disturbed,
        "kernels": kernels,
    }


def timed_kernels(
    w: Workload, limits: tuple[Ceilings, Ceilings], effort: Effort, probe: ceilings.Probe
) -> tuple[list[Kernel], bool]:
    """Each step of a workload's program: its name, how often it runs in a call, its work, the
    seconds of a call that it takes on one thread and on all at best of the rounds, as the ceilings
    are; what bounds it; and whether other work disturbed all rounds. Else only those count that it
    did not."""
    from staticgrad.api.graph import Graph

    from .staticgrad_driver import declared
    from .step_times import TimedProgram

    threads = limits[1]["threads"]
    parameters, inputs = w.arrays()
    program = TimedProgram(Graph(*declared(w, parameters, inputs)[:3]), (1, threads))
    arrays = inputs if w.kind == "train" else [*parameters, *inputs]
    rounds: dict[bool, list[tuple[Array | None, ...]]] = {False: [], True: []}
    for _ in range(effort.attempts):
        before = probe.disturbed()
        blocks = tuple(_block(program, n, arrays, effort.seconds) for n in (1, threads))
        rounds[probe.disturbed() or before].append(blocks)
        if len(rounds[False]) == effort.rounds:
            break
    is_disturbed = not rounds[False]
    one, several = (
        np.min(known, axis=0) if (known := [b for b in blocks if b is not None]) else None
        for blocks in zip(*rounds[is_disturbed])
    )
    assert one is not None
    kernels = [
        {
            "workload": w.name, "kernel": kernel["name"], "step": i, "runs": kernel["times"],
            "flops": kernel["flops"], "bytes": kernel["bytes"], "one_s": float(one[i]),
            # A program that runs on one thread whatever it may use gains nothing.
            "all_s": float((one if several is None else several)[i]),
            **_ceiling(kernel["bytes"], reuse.sizes, reuse.ages(i, one), float(one[i]), limits),
        }
        for i, (kernel, reuse) in enumerate(zip(program.kernels, program.reuses))
    ]  # fmt: skip
    return kernels, is_disturbed


def _block(program: Any, threads: int, arrays: Sequence[Array], seconds: float) -> Array | None:
    """The median time of each step over calls in a row; None if none ran on so many threads. The
    first calls are not counted: the caches and the workers' cores were another's."""
    found, spent = [], 0.0
    for i in range(1000):
        used, steps = program.seconds(threads, arrays)
        spent += sum(steps)
        if i >= 2 and used == threads:
            found.append(steps)
        if i >= 3 and spent >= seconds:
            break
    return np.median(found, axis=0) if found else None


def _ceiling(
    count: int, sizes: Array, ages: Array, one_s: float, limits: tuple[Ceilings, Ceilings]
) -> dict[str, Any]:
    """What bounds a kernel that moves `count` bytes and takes so long on one thread, and how much
    faster more threads are at just that."""
    one, several = limits
    fma = several["fma_flops"] / one["fma_flops"]
    streams = [count * _seconds_a_byte(found, sizes, ages) for found in limits]
    if streams[0] < _MEMORY_BOUND * one_s:
        return {"bound": "fma", "ceiling": fma}
    # Caches add up in the stream; between two kernels they may hold what belongs to others.
    return {"bound": "stream", "ceiling": min(fma, streams[0] / streams[1])}


def _seconds_a_byte(found: Ceilings, sizes: Array, ages: Array) -> float:
    """On average over memory with so much touched, and so much time gone, since its last use."""

    def between(name: str, at: Array, points: list[dict[str, float]]) -> Array:
        known = [p[name] for p in points]
        return np.interp(at, known, [1 / p["bytes_per_s"] for p in points])

    logs = [{**s, "bytes": math.log(s["bytes"])} for s in found["stream"]]
    by_size = between("bytes", np.log(sizes), logs)
    by_age = between("age_s", ages, found["aged"])
    return float(np.where(sizes > _OWN_CACHE_BYTES, np.maximum(by_size, by_age), by_size).mean())


def aged_streams(threads: int, effort: Effort) -> tuple[list[dict[str, float]], ...]:
    """What a stream of AGED_BYTES does on one thread and on all when its last use was so long ago,
    though nothing else was touched: other guests of a host use the caches that they share."""
    from staticgrad import input as declare
    from staticgrad.api.graph import Graph

    from .step_times import TimedProgram

    elements = AGED_BYTES // 12
    b, c = (declare(name, (elements,)) for name in "bc")
    program = TimedProgram(Graph([b, c], [b + 0.5 * c]), (1, threads))
    arrays = [np.ones(elements, np.float32) for _ in range(3)]
    found: tuple[list[dict[str, float]], ...] = ([], [])
    for age in AGES_S:
        times: tuple[list[float], ...] = ([], [])
        for _ in range(effort.rounds + 1):
            for n, taken in zip((1, threads), times):
                end = time.perf_counter() + age
                while time.perf_counter() < end:
                    pass
                taken.append(sum(program.seconds(n, arrays[:2], arrays[2:])[1]))
        for taken, points in zip(times, found):
            points.append({"age_s": age, "bytes_per_s": AGED_BYTES / float(np.median(taken[1:]))})
    return found


def gain(kernel: Kernel) -> float:
    """How much faster all threads are than one."""
    return float(kernel["one_s"] / kernel["all_s"]) if kernel["all_s"] else math.inf


def share(kernel: Kernel) -> float:
    """The gain by that of the ceiling."""
    return gain(kernel) / float(kernel["ceiling"])


def verdict(kernel: Kernel) -> str:
    """What is wrong with a kernel's gain: "slower", "below" or nothing."""
    if gain(kernel) < SLOWER:
        return "slower"
    return "below" if share(kernel) < ENOUGH else ""


def table(document: Document) -> Table:
    rows = [
        [
            f"{k['workload']}: {k['kernel']}", str(k["runs"]), duration(k["one_s"]),
            duration(k["all_s"]), f"{gain(k):.2f}", f"{k['ceiling']:.2f}", k["bound"],
            f"{share(k):.0%}", digits(1e-9 * k["bytes"] / (k["all_s"] or math.inf)), verdict(k),
        ]
        for k in document["kernels"]
    ]  # fmt: skip
    header = ["kernel", "runs", "one thread", f"{document['threads']} threads", "faster by",
              "the ceiling", "of", "share", "GB/s", ""]  # fmt: skip
    return Table(
        f"Kernels over {1e6 * document['least_s']:g} µs a call, on one thread and on "
        f"{document['threads']}", header, rows,
    )  # fmt: skip


def summary(document: Document) -> list[str]:
    """What it comes to, a line each."""
    kernels = document["kernels"]
    if not kernels:
        return [f"no kernel takes {1e6 * document['least_s']:g} µs"]
    enough = sum(not verdict(k) for k in kernels)
    lines = [
        f"other work had a core in every round of {name}" for name in document["disturbed"]
    ] + [
        f"{enough} of {len(kernels)} kernels over {1e6 * document['least_s']:g} µs gain at least "
        f"{ENOUGH:.0%} of what the ceiling gains by {document['threads']} threads"
    ]
    for which, words in (("below", "gain less"), ("slower", "slower than on one thread")):
        found = [k for k in kernels if verdict(k) == which]
        if found:
            names = (f"{k['workload']}: {k['kernel']} ({share(k):.0%})" for k in found)
            lines.append(f"{words}: {', '.join(names)}")
    return lines


def text(document: Document) -> str:
    limits = "\n".join(["ceilings", *(f"  {line}" for line in ceiling_lines(document))])
    return "\n\n".join([limits, table(document).text(), "\n".join(summary(document))]) + "\n"


def merged(documents: Sequence[Document]) -> Document:
    """Runs over different workloads as one, in the suite's order; of a workload that several have,
    the last counts. Raises DocumentError for runs that do not go together."""
    results.require_alike(documents, ("threads", "least_s"), "threads")
    last = {name: i for i, document in enumerate(documents) for name in document["workloads"]}
    kernels = [
        kernel
        for name in sorted(last, key=[*BY_NAME, *last].index)
        for kernel in documents[last[name]]["kernels"]
        if kernel["workload"] == name
    ]
    disturbed = [name for name in last if name in documents[last[name]]["disturbed"]]
    quick = any(document["quick"] for document in documents)
    created = ", ".join(dict.fromkeys(documents[i]["created"] for i in sorted(last.values())))
    return {**documents[-1], "created": created, "workloads": list(last), "disturbed": disturbed,
            "kernels": kernels, "quick": quick}  # fmt: skip


def read(paths: Sequence[str]) -> Document:
    """The documents of some files as one. Raises DocumentError."""
    return merged([results.read(path, SCHEMA, VERSION) for path in paths])
