"""What a new size of an axis costs: each axis of the batch in turn, in each mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.api import compile as driver
from staticgrad.ir.errors import StaticgradError

from .clock import timed_ms
from .outcome import described
from .subject import Batch, Subject


def shape_changes(subject: Subject) -> list[dict[str, Any]]:
    """One entry an axis: what a batch with half as much again along it costs."""
    with subject.unchanged():
        subject.static(*subject.batch)
        subject.step(subject.batch)  # so that what is compiled below is for the new size alone
    return [_changed(subject, *axis) for axis in subject.axes()]


def _changed(
    subject: Subject, label: str, places: Sequence[tuple[int, int]], is_symbolic: bool
) -> dict[str, Any]:
    i, axis = places[0]
    old = subject.batch[i].shape[axis]
    new = old + max(1, old // 2)
    batch = subject.resized(places, new)
    inputs = [subject.train.inputs[i].node.attrs["name"] for i, _ in places]
    found: dict[str, Any] = {
        "axis": label,
        "inputs": list(dict.fromkeys(inputs)),
        "symbolic": is_symbolic,
        "from": old,
        "to": new,
        "static_symbolic": _measured(subject, lambda: subject.static(*batch)),
        "static_fixed": None,
        "dynamic": None,
    }
    if is_symbolic or not subject.replays:
        found["dynamic"] = _measured(subject, lambda: subject.step(batch))
    if is_symbolic:
        found["static_fixed"] = _rebuilt(subject, {**subject.dims, label: new}, batch)
    return found


def _measured(subject: Subject, call: Callable[[], Any]) -> dict[str, Any]:
    """The first call at a size: its time and what was compiled for it, or how it was refused."""
    before = driver.compilations
    try:
        with subject.unchanged():
            first_ms, _ = timed_ms(call)
    except StaticgradError as error:
        return {"accepted": False, "error": described(error), "compiled": 0, "first_ms": None}
    compiled = driver.compilations - before
    return {"accepted": True, "error": None, "compiled": compiled, "first_ms": first_ms}


def _rebuilt(subject: Subject, sizes: dict[str, int], batch: Batch) -> dict[str, Any]:
    """The same model with ints in place of its symbolic dims: what refuses the new size, and what
    declaring and compiling again for it costs."""
    fixed = subject.compiled(subject.declared(subject.dims))
    refused = _measured(subject, lambda: fixed(*batch))
    declare, graph = timed_ms(lambda: subject.declared(sizes))
    build, program = timed_ms(lambda: subject.compiled(graph, cache=False))
    with subject.unchanged():
        first, _ = timed_ms(lambda: program(*batch))
    return {
        "error": refused["error"], "compiled": 1, "declare_ms": declare, "compile_ms": build,
        "first_ms": first, "rebuild_ms": declare + build + first,
    }  # fmt: skip


__all__ = ["shape_changes"]
