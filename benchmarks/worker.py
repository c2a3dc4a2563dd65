"""A framework in a process of its own: `python -m benchmarks.worker FRAMEWORK THREADS`.

Requests come as lines of JSON on standard input and are answered by lines of JSON on standard
output; arrays travel as .npy files whose paths the requests name. The process sleeps between
requests, so that it takes no time from the others: it answers a timed request only once its threads
have stopped to spin. What a framework prints goes to standard error.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .drivers import Driver, Program, checked_values, driver
from .suite import BY_NAME
from .workload import Array, Workload

# A framework's threads count as asleep when the process uses less than this part of a core. The
# system adds the time of a thread that runs on another core at its ticks only, 4 ms apart: a sample
# of 2 ms found OpenBLAS asleep that went on spinning for 20 ms, and whoever was next at half speed.
_ASLEEP, _SAMPLE_S, _PATIENCE_S = 0.1, 0.015, 1.0
# Before each repetition: its caches were the others' in the meantime.
_WARM_S = 0.002
_MAX_CALLS = 1_000_000


def settle() -> float:
    """Waits until this process sleeps; the seconds that it took. -1 if it never did."""
    start = time.perf_counter()
    while time.perf_counter() - start < _PATIENCE_S:
        used, then = time.process_time(), time.perf_counter()
        time.sleep(_SAMPLE_S)
        now = time.perf_counter()
        if time.process_time() - used < _ASLEEP * (now - then):
            return then - start
    return -1.0


def timed(program: Program, calls: int) -> float:
    """Seconds a call, over `calls` of them in a row; the last result is waited for."""
    call = program.call
    result = None
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        result = call()
    program.wait(result)
    return (time.perf_counter() - start) / calls


class Memory:
    """Resident memory of this process, from Linux's /proc; None where that is not to be had."""

    @staticmethod
    def now() -> int | None:
        return Memory._field("VmRSS")

    @staticmethod
    def own() -> int | None:
        """What is not mapped from files."""
        return Memory._field("RssAnon")

    @staticmethod
    def peak() -> int | None:
        return Memory._field("VmHWM")

    @staticmethod
    def forget_peak() -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    @staticmethod
    def _field(name: str) -> int | None:
        try:
            text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        for line in text.splitlines():
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
        return None


class Worker:
    """Answers requests; each public method is one."""

    def __init__(self, threads: int, made: Driver) -> None:
        self._threads = threads
        self._driver = made
        self._program: Program | None = None
        self._restore: Callable[[], None] = lambda: None

    def hello(self) -> dict[str, Any]:
        """The framework's versions."""
        version = ".".join(map(str, sys.version_info[:3]))
        return {"versions": {**self._driver.versions(), "python": version}}

    def lacks(self, workload: str) -> dict[str, Any]:
        return {"why": self._driver.lacks(BY_NAME[workload])}

    def open(self, workload: str, small: bool, parameters: Sequence[str], inputs: Sequence[str],
             directory: str) -> dict[str, Any]:  # fmt: skip
        """Prepares a workload and writes the values that are compared to `directory`."""
        self._program = self._prepared(self._driver, workload, small, parameters, inputs)
        self._restore = self._program.keep()
        return {"values": _store(directory, self._values(workload, small, self._program))}

    def reference(self, workload: str, small: bool, parameters: Sequence[str],
                  inputs: Sequence[str], directory: str) -> dict[str, Any]:  # fmt: skip
        """The same values in NumPy's float64, from whichever worker is asked."""
        from .numpy_driver import NumpyDriver

        made = NumpyDriver(self._threads, np.float64)
        program = self._prepared(made, workload, small, parameters, inputs)
        return {"values": _store(directory, self._values(workload, small, program))}

    def calibrate(self, seconds: float) -> dict[str, Any]:
        """How many calls take so long."""
        program = self._opened()
        self._restore()
        timed(program, 1)
        calls = 1
        while True:
            took = timed(program, calls) * calls
            if took >= 0.2 * seconds or calls >= _MAX_CALLS:
                break
            calls = min(_MAX_CALLS, calls * (2 if took == 0 else max(2, int(seconds / took))))
        wanted = max(1, min(_MAX_CALLS, round(calls * seconds / took)))
        return {"calls": wanted, "settled_s": settle()}

    def repeat(self, calls: int) -> dict[str, Any]:
        """One repetition, from the same state every time."""
        program = self._opened()
        self._restore()
        gc.collect()
        gc.disable()
        end = time.perf_counter() + _WARM_S
        timed(program, 1)
        while time.perf_counter() < end:
            timed(program, 1)
        seconds = timed(program, calls)
        gc.enable()
        return {"seconds": seconds, "settled_s": settle()}

    def figures(self) -> dict[str, Any]:
        """What the framework tells of the program."""
        return {"figures": self._opened().figures()}

    def close(self) -> dict[str, Any]:
        self._program, self._restore = None, lambda: None
        self._driver.forget()
        gc.collect()
        return {}

    def first(self, workload: str, small: bool, parameters: Sequence[str], inputs: Sequence[str],
              calls: int) -> dict[str, Any]:  # fmt: skip
        """From declaring to the first result, and memory; for a process that did nothing before.

        Resident memory grows (None where the system doesn't tell):

        compiling_bytes   at its peak from declaring to the first result
        growth_bytes      at its peak during `calls` further ones, since before declaring
        called_bytes      the same, since before the first call
        own_bytes         in the end, of memory that is not mapped from files
        """
        w = _sized(workload, small)
        arrays = _load(parameters), _load(inputs)
        gc.collect()
        known = Memory.forget_peak()
        before, own_before = Memory.now(), Memory.own()
        start = time.perf_counter()
        program = self._driver.prepare(w, *arrays)
        declared = time.perf_counter() - start
        compiled = Memory.now()
        start = time.perf_counter()
        program.wait(program.call())
        called = time.perf_counter() - start
        gc.collect()
        compiling = Memory.peak() if known else None
        known = Memory.forget_peak()
        for _ in range(calls):
            program.wait(program.call())
        peak = Memory.peak() if known else None
        return {
            "declare_s": declared, "call_s": called,
            "compiling_bytes": _less(compiling, before), "growth_bytes": _less(peak, before),
            "called_bytes": _less(peak, compiled), "own_bytes": _less(Memory.own(), own_before),
            "figures": program.figures(),
        }  # fmt: skip

    def ceilings(self, seconds: float, largest: int) -> dict[str, Any]:
        """What this machine does at best (staticgrad's worker only: it needs llvmlite)."""
        from .ceilings import measure

        return {"ceilings": measure(self._threads, seconds, largest), "settled_s": settle()}

    def _opened(self) -> Program:
        if self._program is None:
            raise RuntimeError("no workload is open")
        return self._program

    @staticmethod
    def _prepared(made: Driver, workload: str, small: bool, parameters: Sequence[str],
                  inputs: Sequence[str]) -> Program:  # fmt: skip
        return made.prepare(_sized(workload, small), _load(parameters), _load(inputs))

    @staticmethod
    def _values(workload: str, small: bool, program: Program) -> list[Array]:
        return checked_values(_sized(workload, small), program)


def _less(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a - b


def _sized(name: str, small: bool) -> Workload:
    return BY_NAME[name].shrunk() if small else BY_NAME[name]


def _load(paths: Sequence[str]) -> list[Array]:
    return [np.load(path, allow_pickle=False) for path in paths]


def _store(directory: str, arrays: Sequence[Array]) -> list[str]:
    paths = [str(Path(directory) / f"{i}.npy") for i in range(len(arrays))]
    for path, array in zip(paths, arrays):
        np.save(path, array, allow_pickle=False)
    return paths


REQUESTS = frozenset(name for name in vars(Worker) if not name.startswith("_"))


def answer(worker: Worker, line: str) -> dict[str, Any]:
    """Carries out one request; an exception becomes an answer."""
    request = json.loads(line)
    what = request.pop("request")
    if what not in REQUESTS:
        return {"error": f"unknown request {what!r}"}
    try:
        return dict(getattr(worker, what)(**request))
    except Exception as error:  # of the framework: the benchmark goes on without it
        import traceback

        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def pin(threads: int) -> None:
    """Leaves this process as many cores as it may use threads: some frameworks (JAX) take a thread
    for each core that they see."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if threads < len(cores):
            os.sched_setaffinity(0, cores[:threads])


def main(framework: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    pin(threads)
    try:
        worker = Worker(threads, driver(framework, threads))
    except ImportError as error:
        print(json.dumps({"error": f"ImportError: {error}"}), file=answers, flush=True)
        return
    print(json.dumps(worker.hello()), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(worker, line)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
