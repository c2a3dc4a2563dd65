"""Times: medians of interleaved repetitions, so that a slow moment hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

# A sample of a fast call is as many calls as take about this long. The fastest of a few in a row is
# taken: on a machine with other work one in three is interrupted for longer than a step takes.
_SAMPLE_NS = 1_000_000
_MOST_CALLS = 2000
_IN_A_ROW = 3


def medians_ns(
    calls: Mapping[str, Callable[[], Any]], repetitions: int, between: Callable[[], Any] | None
) -> dict[str, float]:
    """The median time of each call in nanoseconds. Each has run before, so it is warm; `between`
    follows each sample, untimed."""
    counts = {name: _calls_per_sample(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            in_a_row = []
            for _ in range(_IN_A_ROW):
                in_a_row.append(_sample(call, counts[name]))
                if between is not None:
                    between()
            samples[name].append(min(in_a_row))
    return {name: median(found) for name, found in samples.items()}


def _calls_per_sample(call: Callable[[], Any]) -> int:
    once = max(1.0, min(_sample(call, 1) for _ in range(3)))
    return int(min(_MOST_CALLS, max(1, _SAMPLE_NS // once)))


def _sample(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - start) / count


def timed_ms(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long one call took in milliseconds, and what it returned."""
    start = time.perf_counter_ns()
    result = call()
    return (time.perf_counter_ns() - start) / 1e6, result


__all__ = ["medians_ns", "timed_ms"]
