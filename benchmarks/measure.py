"""A run: workers started, values compared, repetitions taken in turn, fresh processes timed."""

from __future__ import annotations

import datetime
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .client import WorkerError, WorkerProcess
from .drivers import CACHE_VARIABLES, OURS, PEERS
from .results import (
    SCHEMA,
    VERSION,
    Document,
    Result,
    host,
    largest_difference,
    load,
    spread,
    usable_cores,
)
from .workload import Array, Workload, least_bytes, working_set

Note = Callable[[str], None]
_FEWEST = 5  # repetitions, however slow


@dataclass(frozen=True)
class Options:
    """How to run. python and peer_python are the interpreters of staticgrad and NumPy, and of the
    others; `patience_s` what one framework's repetitions of a workload may take before it does
    with fewer; `fresh` how many fresh processes tell a first call; `small` is for tests."""

    python: str
    peer_python: str
    peers: tuple[str, ...] = PEERS
    threads: tuple[int, ...] | None = None
    repetitions: int = 30
    repetition_s: float = 0.02
    patience_s: float = 20.0
    fresh: int = 3
    fresh_calls: int = 5
    ceiling_s: float = 0.05
    ceiling_bytes: int = 1 << 28
    timeout_s: float = 900.0
    quick: bool = False
    small: bool = False

    def python_of(self, framework: str) -> str:
        return self.python if framework in (OURS, "numpy") else self.peer_python

    def threads_of(self, workload: Workload) -> tuple[int, ...]:
        if self.threads is not None:
            return self.threads
        every = usable_cores()
        return (1, every) if workload.one_thread and every > 1 else (every,)


class Workers:
    """The workers of a run, by framework and threads; started when first asked for, and again
    where one has died."""

    def __init__(self, options: Options, directory: Path, note: Note) -> None:
        self._options = options
        self._directory = directory
        self._note = note
        self._running: dict[tuple[str, int], WorkerProcess] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.absent: dict[str, str] = {}

    def get(self, framework: str, threads: int) -> WorkerProcess | None:
        """A worker; None where the framework does not start (then `absent` says why)."""
        key = (framework, threads)
        found = self._running.get(key)
        if found is not None and found.alive:
            return found
        if found is not None:
            found.stop()
            del self._running[key]
        if framework in self.absent:
            return None
        try:
            made = self.fresh(framework, threads, self._directory / f"cache-{framework}")
        except WorkerError as error:
            self.absent[framework] = str(error)
            self._note(f"{framework} does not take part: {error}")
            return None
        self._running[key] = made
        self.versions[framework] = made.versions
        return made

    def fresh(self, framework: str, threads: int, cache: Path) -> WorkerProcess:
        """A new process, with what it keeps on disk in `cache`. Raises WorkerError."""
        variable = CACHE_VARIABLES.get(framework)
        return WorkerProcess(
            framework, self._options.python_of(framework), threads,
            timeout_s=self._options.timeout_s, extra={variable: str(cache)} if variable else None,
        )  # fmt: skip

    def stop(self) -> None:
        for worker in self._running.values():
            worker.stop()
        self._running.clear()


def run(
    workloads: Sequence[Workload], options: Options, note: Note,
    keep: Callable[[Document], None] = lambda document: None,
) -> Document:  # fmt: skip
    """Everything, as the document that is written; `keep` is given what there is after each
    workload, for a run takes long. Raises WorkerError where staticgrad or NumPy does not start."""
    document: Document = {
        "schema": SCHEMA,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": host(),
        "load": [load(), None],
        "quick": options.quick,
        "repetitions": options.repetitions,
        "repetition_s": options.repetition_s,
    }
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as name:
        workers = Workers(options, Path(name), note)
        cases = [(w, n) for w in workloads for n in options.threads_of(w)]
        results: list[Result] = []
        try:
            counts = sorted({threads for _, threads in cases})
            document["ceilings"] = {str(n): _ceiling(workers, n, options, note) for n in counts}
            for w, threads in cases:
                note(f"[{len(results) + 1}/{len(cases)}] {w.name}, {threads} thread(s): {w.about}")
                case = Case(w, threads, options, workers, Path(name), note)
                results.append(case.result())
                document["load"][1] = load()
                document |= {"versions": workers.versions, "absent": workers.absent,
                             "results": results}  # fmt: skip
                keep(document)
        finally:
            workers.stop()
    return document


def _ceiling(workers: Workers, threads: int, options: Options, note: Note) -> dict[str, Any]:
    note(f"ceilings of this machine, {threads} thread(s)")
    ours = workers.get(OURS, threads)
    if ours is None:
        raise WorkerError(workers.absent[OURS])
    answer = ours.ask("ceilings", seconds=options.ceiling_s, largest=options.ceiling_bytes)
    found: dict[str, Any] = answer["ceilings"]
    return found


class Case:
    """One workload at one number of threads."""

    def __init__(
        self, workload: Workload, threads: int, options: Options, workers: Workers,
        directory: Path, note: Note,
    ) -> None:  # fmt: skip
        self.workload = workload.shrunk() if options.small else workload
        self.threads = threads
        self.options = options
        self.workers = workers
        self.directory = directory / f"{workload.name}-{threads}"
        self.note = note
        self.parameters, self.inputs = self.workload.arrays()
        self.request: dict[str, Any] = {}
        self.found: dict[str, dict[str, Any]] = {}

    def result(self) -> Result:
        w = self.workload
        self._store_arrays()
        expected = self._reference()
        outputs = self._outputs(expected)
        ready = self._opened(expected)
        self._repeat(ready)
        self._close(ready)
        if w.headline and self.options.fresh and self.threads == max(self.options.threads_of(w)):
            self._first_calls(sum(a.nbytes for a in outputs))
        return {
            "workload": w.name,
            "group": w.group,
            "about": w.about,
            "headline": w.headline,
            "threads": self.threads,
            "flops": w.flops(w.sizes),
            "bytes": least_bytes(w.kind, self.parameters, self.inputs, outputs),
            "held_bytes": working_set(w.kind, self.parameters, self.inputs, outputs),
            "tolerance": w.tolerance,
            "frameworks": self.found,
        }

    # --- arrays and values ------------------------------------------------------------------------

    def _store_arrays(self) -> None:
        self.directory.mkdir()
        paths: dict[str, list[str]] = {"parameters": [], "inputs": []}
        for kind, arrays in (("parameters", self.parameters), ("inputs", self.inputs)):
            for i, array in enumerate(arrays):
                paths[kind].append(str(self.directory / f"{kind}-{i}.npy"))
                np.save(paths[kind][-1], array, allow_pickle=False)
        self.request = {"workload": self.workload.name, "small": self.options.small, **paths}

    def _values_directory(self, name: str) -> str:
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return str(path)

    def _reference(self) -> list[Array]:
        """The values in float64 by NumPy. Raises WorkerError: nothing can be compared without."""
        worker = self.workers.get("numpy", self.threads)
        if worker is None:
            raise WorkerError(self.workers.absent["numpy"])
        directory = self._values_directory("reference")
        return _loaded(worker.ask("reference", **self.request, directory=directory))

    def _outputs(self, expected: Sequence[Array]) -> list[Array]:
        """What a call returns, in float32: of a training step, the loss."""
        returned = expected[:1] if self.workload.kind == "train" else expected
        return [a.astype(np.float32) for a in returned]

    def _opened(self, expected: Sequence[Array]) -> dict[str, WorkerProcess]:
        """The workers that have the workload at hand, with the right values."""
        ready = {}
        for name in self._frameworks():
            worker = self.workers.get(name, self.threads)
            if worker is None:
                self.found[name] = {"status": "absent", "why": self.workers.absent[name]}
                continue
            if self._guarded(name, self._open, worker, expected):
                ready[name] = worker
        return ready

    def _close(self, ready: dict[str, WorkerProcess]) -> None:
        for name, worker in ready.items():
            try:
                worker.ask("close")
            except WorkerError as error:  # what was measured stands; the next asks for a new one
                self.note(f"  {name}: {error}")
                worker.kill()

    def _open(self, name: str, worker: WorkerProcess, expected: Sequence[Array]) -> None:
        why = worker.ask("lacks", workload=self.workload.name)["why"]
        if why is not None:
            self.found[name] = {"status": "absent", "why": why}
            return
        directory = self._values_directory(name)
        values = _loaded(worker.ask("open", **self.request, directory=directory))
        started = self.parameters if self.workload.kind == "train" else ()
        difference = largest_difference(values, expected, started)
        self.found[name] = {
            "status": "ok" if difference <= self.workload.tolerance else "differs",
            "difference": difference if math.isfinite(difference) else None,
        }
        if name == OURS:
            self.found[name]["figures"] = worker.ask("figures")["figures"]
        if self.found[name]["status"] == "differs":
            self.note(f"  {name}: values differ by {difference:.1e}; it is not timed")

    def _frameworks(self) -> list[str]:
        """Those that take part. Those that cannot, on principle, are noted."""
        w = self.workload
        asked = self.options.peers
        for name in [n for n in asked if n in w.without]:
            self.found[name] = {"status": "absent", "why": w.without[name]}
        return [OURS, *(n for n in asked if n not in w.without)]

    # --- time -------------------------------------------------------------------------------------

    def _repeat(self, ready: dict[str, WorkerProcess]) -> None:
        """Repetitions in turn, each round beginning with another framework."""
        samples: dict[str, list[float]] = {name: [] for name in ready}
        calls: dict[str, int] = {}
        spent = dict.fromkeys(ready, 0.0)
        restless = set()

        def calibrate(name: str) -> None:
            answer = ready[name].ask("calibrate", seconds=self.options.repetition_s)
            calls[name] = answer["calls"]

        def repeat(name: str) -> None:
            start = time.perf_counter()
            answer = ready[name].ask("repeat", calls=calls[name])
            spent[name] += time.perf_counter() - start
            samples[name].append(answer["seconds"])
            if answer["settled_s"] < 0:
                restless.add(name)

        for name in list(ready):
            self._guarded(name, calibrate)
        order = [name for name in ready if self.found[name]["status"] == "ok"]
        for turn in range(self.options.repetitions):
            first = turn % max(1, len(order))
            for name in order[first:] + order[:first]:
                slow = len(samples[name]) >= _FEWEST and spent[name] > self.options.patience_s
                if self.found[name]["status"] == "ok" and not slow:
                    self._guarded(name, repeat)
        for name in order:
            if self.found[name]["status"] == "ok":
                taken = {"calls": calls[name], "repetitions": len(samples[name])}
                self.found[name]["time"] = {**spread(samples[name]), **taken}
                self.found[name]["sleeps"] = name not in restless

    def _first_calls(self, output_bytes: int) -> None:
        """Fresh processes in turn: cold, and where code is kept on disk once more, warm."""
        answers: dict[str, dict[str, list[dict[str, Any]]]] = {}
        right = [n for n, found in self.found.items() if found["status"] == "ok"]
        for turn in range(self.options.fresh):
            for name in right:
                for kind in ("cold", "warm") if name in CACHE_VARIABLES else ("cold",):
                    cache = self.directory / f"cache-{name}-{turn}"
                    found = answers.setdefault(name, {}).setdefault(kind, [])
                    try:
                        found.append(self._first_call(name, cache))
                    except WorkerError as error:
                        self.note(f"  {name}, first call: {error}")
        for name, kinds in answers.items():
            first = {
                kind: spread([a["declare_s"] + a["call_s"] for a in found])
                for kind, found in kinds.items()
                if found
            }
            if first:
                self.found[name]["first"] = first
            if kinds["cold"]:
                self.found[name]["memory"] = _memory(kinds["cold"], output_bytes)

    def _first_call(self, name: str, cache: Path) -> dict[str, Any]:
        worker = self.workers.fresh(name, self.threads, cache)
        try:
            return worker.ask("first", **self.request, calls=self.options.fresh_calls)
        finally:
            worker.stop()

    def _guarded(self, name: str, action: Callable[..., None], *arguments: Any) -> bool:
        """Whether a framework could do something and still takes part; a failure is noted."""
        try:
            action(name, *arguments)
        except WorkerError as error:
            self.found[name] = {"status": "failed", "why": str(error)}
            self.note(f"  {name} failed: {error}")
        return bool(self.found[name]["status"] == "ok")


def _loaded(answer: dict[str, Any]) -> list[Array]:
    return [np.load(path, allow_pickle=False) for path in answer["values"]]


def _memory(answers: Sequence[dict[str, Any]], output_bytes: int) -> dict[str, Any]:
    """Medians over fresh processes, in bytes.

    growth      resident memory at its peak while it runs, over that before declaring
    compiling   the same, at its peak from declaring to the first result
    own         what it has grown by of memory that is not mapped from files
    temporary   what the framework says that a call takes beside arguments, state and results
    planned     what the framework says that a call needs (ours): the arena, and the results
    bound       the most that is alive at one step of a call, which no plan of the arena can be
                below (ours)
    state       parameters and what the optimiser keeps (ours)
    over_plan   resident memory at its peak while it runs, over that before the first call and over
                the plan (ours)
    """

    def median(values: Iterable[int | None]) -> int | None:
        known = [v for v in values if v is not None]
        return int(np.median(known)) if known else None

    found: dict[str, Any] = {}
    for name in ("growth_bytes", "compiling_bytes", "own_bytes"):
        found[name] = median(a[name] for a in answers)
    figures = answers[0]["figures"]
    if "temporary_bytes" in figures:
        found["temporary_bytes"] = figures["temporary_bytes"]
    if "peak_bytes" in figures:
        found["planned_bytes"] = figures["peak_bytes"] + output_bytes
        found["temporary_bytes"] = figures["peak_bytes"]
        found["bound_bytes"] = figures["bound_bytes"]
        found["state_bytes"] = figures["state_bytes"]
        grown = median(a["called_bytes"] for a in answers)
        if grown is not None:
            found["over_plan_bytes"] = grown - found["planned_bytes"]
    return found
