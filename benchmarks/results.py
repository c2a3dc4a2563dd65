"""The document of a run: its parts, the host, reading it back, and the figures derived from it."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .drivers import OURS, PEERS
from .workload import Array

SCHEMA, VERSION = "staticgrad-benchmarks", 1
# The first calls that are summed up, as the geometric mean over these.
FIRST_CALLS = ("mlp", "cnn", "gpt", "gru")

# Halves of a unit in the last place: three steps round a parameter three times, here and there.
_ROUNDINGS = 4

Document = dict[str, Any]
Result = dict[str, Any]


class DocumentError(Exception):
    """A file that is no document of a run."""


def largest_difference(
    found: Sequence[Array], expected: Sequence[Array], started: Sequence[Array] = ()
) -> float:
    """The largest |found - expected| of an array by the largest |expected| in it, over all arrays;
    inf where shapes or counts differ, or where there is a NaN.

    The last arrays are state that started as `started`: what counts is its change, for a step
    changes little of a parameter, and a wrong gradient must show. Of their difference, what the
    rounding of the parameters themselves to float32 explains is left out.
    """
    if len(found) != len(expected):
        return math.inf
    worst = 0.0
    starts = [None] * (len(expected) - len(started)) + list(started)
    for a, b, start in zip(found, expected, starts):
        if a.shape != b.shape or not np.all(np.isfinite(a)):
            return math.inf
        if a.size:
            worst = max(worst, _difference(a.astype(np.float64), b.astype(np.float64), start))
    return worst


def _difference(found: Array, expected: Array, start: Array | None) -> float:
    largest = float(np.abs(found - expected).max())
    scale = float(np.abs(expected).max())
    if start is not None:
        largest = max(0.0, largest - _ROUNDINGS * float(np.finfo(np.float32).eps) * scale)
        scale = float(np.abs(expected - start).max())
    return largest / (scale or 1.0)


def host() -> dict[str, Any]:
    """What the figures depend on, and nothing about whose machine it is."""
    return {
        "cpu": _cpu_model(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "caches": _caches(),
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """How many processes want a core, on average over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines()
             if line.startswith("model name")]  # fmt: skip
    return names[0] if names else platform.machine()


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size")
            )
        except OSError:
            continue
        found[f"L{level}{'' if kind == 'Unified' else kind[0].lower()}"] = size
    return found


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and smallest of repetitions."""
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return {"median_s": float(middle), "low_s": float(low), "high_s": float(high),
            "best_s": min(samples)}  # fmt: skip


def seconds_of(result: Result, framework: str) -> float | None:
    """The median of a framework whose values are right; None if there is none."""
    found = result["frameworks"].get(framework, {})
    return float(found["time"]["median_s"]) if found.get("status") == "ok" else None


def best_peer(result: Result) -> tuple[str, float] | None:
    """The fastest of the others, and its seconds."""
    times = [(t, name) for name in PEERS if (t := seconds_of(result, name)) is not None]
    return (min(times)[1], min(times)[0]) if times else None


def ratio(result: Result) -> float | None:
    """Our seconds by the best peer's."""
    ours, best = seconds_of(result, OURS), best_peer(result)
    return None if ours is None or best is None else ours / best[1]


def least_seconds(document: Document, result: Result) -> float | None:
    """The roofline's bound: what the operations take at least, or what the bytes do at the rate of
    the largest stream that is not larger than what the workload holds. None without ceilings."""
    ceiling = document["ceilings"].get(str(result["threads"]))
    if ceiling is None:
        return None
    held = result["held_bytes"]
    streams = [s for s in ceiling["stream"] if s["bytes"] <= held] or ceiling["stream"][:1]
    computing = result["flops"] / ceiling["fma_flops"]
    return float(max(computing, result["bytes"] / streams[-1]["bytes_per_s"]))


def first_seconds(result: Result, framework: str, kind: str = "cold") -> float | None:
    found = result["frameworks"].get(framework, {}).get("first")
    known = found.get(kind) if found else None
    return None if known is None else float(known["median_s"])


def first_call_ratio(document: Document, kind: str) -> tuple[float, list[str]] | None:
    """Our first call (cold, or with a warm disk cache) by JAX's: the geometric mean over
    FIRST_CALLS, or those of them that were run."""
    pairs = {}
    for result in document["results"]:
        ours, peer = first_seconds(result, OURS, kind), first_seconds(result, "jax")
        if result["workload"] in FIRST_CALLS and ours and peer:
            pairs[result["workload"]] = ours / peer
    return (statistics.geometric_mean(pairs.values()), list(pairs)) if pairs else None


def failures(document: Document) -> Iterable[tuple[Result, str, Mapping[str, Any]]]:
    """Each (result, framework, what happened) whose values differ or that failed."""
    for result in document["results"]:
        for name, found in result["frameworks"].items():
            if found["status"] in ("differs", "failed"):
                yield result, name, found


def joined(documents: Sequence[Document], order: Sequence[str]) -> Document:
    """Runs over different workloads or numbers of threads as one, the workloads in this order; of
    what several have, the last counts. Each result gets its `run`, the time when that was made.
    Raises DocumentError for runs that do not go together."""
    require_alike(documents, ("repetition_s",), "the benchmark")
    last = {(r["workload"], r["threads"]): (d, r) for d in documents for r in d["results"]}
    places = [*order, *(name for name, _ in last)]
    keys = sorted(last, key=lambda key: (places.index(key[0]), key[1]))
    used = [d for d in documents if any(d is found for found, _ in last.values())]
    loads = [d["load"][0] for d in used if d["load"][0] is not None]
    found = [{**last[key][1], "run": last[key][0]["created"]} for key in keys]
    made: Document = {**documents[-1], "results": found}
    made["created"] = ", ".join(dict.fromkeys(d["created"] for d in used))
    made["quick"] = any(d["quick"] for d in used)
    made["load"] = [max(loads, default=None), None]
    made["repetitions"] = min(d["repetitions"] for d in used)
    for name in ("ceilings", "versions"):
        made[name] = {key: value for d in used for key, value in d[name].items()}
    made["absent"] = {
        name: why for d in used for name, why in d["absent"].items() if name not in made["versions"]
    }
    return made


def require_alike(documents: Sequence[Document], names: Iterable[str], what: str) -> None:
    """Raises DocumentError for runs that were not made in the same way on the same machine."""
    told = [{**d, "cpu": d["host"]["cpu"], "cores": d["host"]["usable_cores"]} for d in documents]
    for name in (*names, "cpu", "cores"):
        if any(found[name] != told[0][name] for found in told):
            raise DocumentError(f"these runs of {what} differ in {name!r}")


def write(document: Document, path: Path) -> None:
    """In one step: no reader, and no interruption, leaves half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(dumped(document), encoding="utf-8", newline="\n")
    part.replace(path)


def dumped(document: Document) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read(path: str, schema: str = SCHEMA, version: int = VERSION) -> Document:
    """A document that `write` wrote. Raises DocumentError."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DocumentError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise DocumentError(f'{path}: not a document of the benchmark ("schema": "{schema}")')
    if document.get("version") != version:
        raise DocumentError(
            f"{path}: version {document.get('version')!r}; this program reads version {version}"
        )
    return document
