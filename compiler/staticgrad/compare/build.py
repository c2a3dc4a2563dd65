"""How long it takes from the model's code to the first result, and then a step.

`first_result` is meant for a new process, which has compiled nothing: it is called there with an
empty cache on disk and again with the cache that the first left.
"""

from __future__ import annotations

import time
from typing import Any

from .clock import medians_ns, timed_ms
from .subject import Subject


def first_result(subject: Subject, mode: str) -> dict[str, float]:
    """The milliseconds of each stage on the way to the first loss and to the end of the first step,
    `mode` static or dynamic. A compiled step gives its loss when all of it is done."""
    if mode == "dynamic":
        from staticgrad import eager  # noqa: F401  loading the mode is not part of a step

        times: list[float] = []
        start = time.perf_counter()
        subject.step(subject.batch, lambda: times.append(1e3 * (time.perf_counter() - start)))
        first = 1e3 * (time.perf_counter() - start)
        return {
            "declare": 0.0, "compile": 0.0, "first_step": first, "to_loss": times[0],
            "total": first,
        }  # fmt: skip
    declare, graph = timed_ms(subject.declared)
    build, program = timed_ms(lambda: subject.compiled(graph))
    first, _ = timed_ms(lambda: program(*subject.batch))
    total = declare + build + first
    return {
        "declare": declare, "compile": build, "first_step": first, "to_loss": total,
        "total": total,
    }  # fmt: skip


def _value(loss: Any) -> float:
    return float(loss.item())


def steady(subject: Subject, repetitions: int) -> dict[str, float]:
    """Milliseconds of a warm step in each mode; both get the batch and give the loss."""
    static, batch = subject.static, subject.batch
    cells = subject.program.cells().values()
    before = [(cell, cell.numpy()) for cell in cells]

    def restore() -> None:
        for cell, value in before:
            cell.assign(value)

    with subject.unchanged():
        found = medians_ns(
            {
                "static": lambda: float(static(*batch)[0]),
                "dynamic": lambda: _value(subject.step(batch)),
            },
            repetitions, restore,
        )  # fmt: skip
    return {mode: ns / 1e6 for mode, ns in found.items()}


__all__ = ["first_result", "steady"]
