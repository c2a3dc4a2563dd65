"""What one step does: calls of Python functions, native calls, kernels; and the memory it takes."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
from staticgrad_runtime.executable import Executable

from .subject import Subject


def python_calls(subject: Subject) -> dict[str, dict[str, int]]:
    """Calls of Python functions and of built-in ones in one warm step of each mode."""
    found = {}
    for mode, call in _steps(subject).items():
        with subject.unchanged():
            for _ in range(3):
                call()
            functions, builtins = _profiled(call)
        found[mode] = {"python": functions, "builtin": builtins}
    return found


def _steps(subject: Subject) -> dict[str, Callable[[], Any]]:
    static, batch = subject.static, subject.batch
    return {"static": lambda: static(*batch), "dynamic": lambda: subject.step(batch)}


def _profiled(call: Callable[[], Any]) -> tuple[int, int]:
    counts = {"call": 0, "c_call": 0}

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event in counts:
            counts[event] += 1

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    # The call of the lambda itself, and that of setprofile which ends the count.
    return counts["call"] - 1, counts["c_call"] - 1


def native_calls(subject: Subject) -> dict[str, dict[str, Any]]:
    """Native calls in one step of each mode, the kernels that they run, and the bytes of the arenas
    that their programs keep.

    Meant for a process whose entries are portable (STATICGRAD_ENTRY=portable): there each native
    call passes through Python, where it can be seen.
    """
    steps = _steps(subject)
    found: dict[str, dict[str, Any]] = {}
    with subject.unchanged():
        for call in steps.values():
            call()
        found["static"] = _counted(steps["static"])
        found["dynamic"] = _counted(steps["dynamic"])
        loss, forward = _counted_forward(subject)
        found["dynamic"]["forward"] = forward
        found["dynamic"]["backward"] = _counted(loss.backward)
    return found


def _counted_forward(subject: Subject) -> tuple[Any, dict[str, int]]:
    kept: list[Any] = []
    subject.clear_gradients()
    counts = _counted(lambda: kept.append(subject.forward(subject.batch)))
    return kept[0], counts


def _counted(call: Callable[[], Any]) -> dict[str, int]:
    counts = {"native_calls": 0, "kernels": 0}
    arenas: dict[Any, int] = {}
    entry = Executable.__call__.__code__

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is entry:
            counts["native_calls"] += 1
            called: Executable = frame.f_locals["self"]
            counts["kernels"] += len(called.manifest.kernels)
            dims = called.dims_of([np.shape(a) for a in frame.f_locals["arrays"]])
            arenas[called] = max(arenas.get(called, 0), called.peak_bytes(**dims))

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {**counts, "arena_bytes": sum(arenas.values())}


# --- memory ---------------------------------------------------------------------------------------


def memory(subject: Subject) -> dict[str, Any]:
    """Bytes: what the compiled step plans before it runs, and what a step of each mode allocates
    at its peak (arrays and Python objects, as Python's allocators count them)."""
    report = subject.static.report(**subject.dims)
    measured = {}
    for mode, call in _steps(subject).items():
        with subject.unchanged():
            call()
            measured[mode] = _allocated(call)
    return {
        "state_bytes": report["state_bytes"],
        "static": {"planned_bytes": report["peak_bytes"], "allocated_bytes": measured["static"]},
        "dynamic": {"planned_bytes": None, "allocated_bytes": measured["dynamic"]},
    }


def _allocated(call: Callable[[], Any]) -> int:
    """The peak of what one call allocates, above what was there before."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        call()
        gc.collect()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        call()
        return max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        if not was_tracing:
            tracemalloc.stop()


__all__ = ["memory", "native_calls", "python_calls"]
