"""The workloads, a run of the benchmark and one over kernels, in small sizes; and results that are
made up."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import numpy as np

from benchmarks import results, threads
from benchmarks.measure import Options, run
from benchmarks.suite import BY_NAME, WORKLOADS
from benchmarks.workload import Workload


def distinct() -> list[Workload]:
    """The workloads at their small sizes; of the matrix products, each small shape once."""
    seen, kept = set(), []
    for w in (w.shrunk() for w in WORKLOADS):
        key = (w.group, *w.sizes.values()) if w.group == "matmul" else w.name
        if key not in seen:
            seen.add(key)
            kept.append(w)
    return kept


class Zeros:
    """A generator of numbers that costs nothing: only shapes matter."""

    def standard_normal(self, shape: Any) -> Any:
        return np.zeros(shape, np.float32)

    def uniform(self, low: float, high: float, shape: Any) -> Any:
        return np.zeros(shape, np.float32)

    def integers(self, low: int, high: int, shape: Any) -> Any:
        return np.zeros(shape, np.int64)


@functools.cache
def a_run() -> results.Document:
    """A whole run with worker processes, in small sizes."""
    options = Options(
        sys.executable, sys.executable, ("numpy",), (1,), repetitions=2, repetition_s=1e-4,
        fresh=1, fresh_calls=1, ceiling_s=1e-4, ceiling_bytes=1 << 20, timeout_s=300.0,
        quick=True, small=True,
    )  # fmt: skip
    notes: list[str] = []
    kept: list[int] = []
    made = run(
        [BY_NAME["mlp"], BY_NAME["matmul_2x2x2"]], options, notes.append,
        lambda document: kept.append(len(document["results"])),
    )  # fmt: skip
    assert kept == [1, 2]
    assert "[1/2] mlp" in "".join(notes) and not [n for n in notes if "failed" in n]
    return made


@functools.cache
def kernels_run() -> threads.Document:
    """Two workloads in small sizes, every kernel however short."""
    effort = dataclasses.replace(threads.QUICK, ceiling_bytes=1 << 18)
    small = [BY_NAME[name].shrunk() for name in ("mlp", "gru")]
    return threads.run(small, 2, lambda line: None, effort, least_s=0.0)


def timed(seconds: dict[str, float | None], spread: float = 0.01) -> results.Result:
    """A result of these frameworks; None: a wrong one."""
    frameworks = {
        name: {"status": "differs"} if t is None else {"status": "ok", "time": {
            "median_s": t, "low_s": t * (1 - spread), "high_s": t * (1 + spread), "best_s": t}}
        for name, t in seconds.items()
    }  # fmt: skip
    return {"workload": "mlp", "threads": 1, "frameworks": frameworks}


def kernel(one_s: float, all_s: float, ceiling: float, **more: Any) -> dict[str, Any]:
    return {"workload": "mlp", "kernel": "matmul", "step": 0, "runs": 1, "flops": 1, "bytes": 1,
            "one_s": one_s, "all_s": all_s, "bound": "fma", "ceiling": ceiling, **more}  # fmt: skip
