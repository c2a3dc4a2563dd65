"""`program.profile(..)`: where the time of a call goes, kernel by kernel."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from staticgrad_runtime.arguments import gather, to_array
from staticgrad_runtime.dims import evaluate_int

from staticgrad.ops import registry
from staticgrad.ops.lowering import Custom, Product, Reduction

from .report import Figures
from .timed import TimedProgram

if TYPE_CHECKING:
    from .compile import Executable

_FEWEST, _MOST = 5, 1000  # calls
_UNCOUNTED = 2  # the first calls: caches and the workers' cores were another's


class Profile(Figures):
    """The time of each kernel in a call.

    A kernel has `step`, `name`, `kind` (the product it is, "reduction", "element-wise", "copy", or
    the operation that has a kernel of its own), `calls` (runs in a call of the program), `us` (of
    all of them, the median of the profiled calls), `share` of the kernels' sum, `flops` and `bytes`
    of all of them with `gflop_s` and `gb_s`, and `locations`, the lines that it comes from.
    """

    def __str__(self) -> str:
        p = self._plain
        sizes = "".join(f", {name} = {size}" for name, size in p["dims"].items())
        threads = f"{p['threads']} thread{'' if p['threads'] == 1 else 's'}"
        head = (
            f"{len(p['kernels'])} kernels, {_us(p['us'])} us a call; medians of {p['calls']} calls "
            f"on {threads}{sizes}"
        )
        rows = [["step", "kernel", "kind", "calls", "us", "share", "GFLOP/s", "GB/s", "lines"]]
        for k in sorted(p["kernels"], key=lambda k: -k["us"]):
            rows.append([
                str(k["step"]), k["name"], k["kind"], f"{k['calls']:,}", _us(k["us"]),
                f"{k['share']:.1%}", _rate(k["gflop_s"]), _rate(k["gb_s"]), k["locations"],
            ])  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows)]
        left = {1, 2, 8}
        lines = (
            "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in cells)
            for cells in (enumerate(zip(row, widths)) for row in rows)
        )
        return "\n".join([head, *(line.rstrip() for line in lines)])


def _us(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def profiled(
    executable: Executable, arrays: Sequence[Any], named: Mapping[str, Any], *, threads: int,
    seconds: float,
) -> Profile:  # fmt: skip
    """The profile of calls with these inputs, on up to so many threads and for about so long."""
    graph, training, disable = executable.source
    specs = executable.manifest.inputs
    inputs = [to_array(s, v) for s, v in zip(specs, gather(specs, arrays, named))]
    dims = executable.dims_of(tuple(a.shape for a in inputs))
    program = TimedProgram(graph, (threads,), training=training, disable=disable)
    found: list[list[float]] = []
    used, start = 1, time.perf_counter()
    while len(found) < _FEWEST + _UNCOUNTED or (
        len(found) < _MOST and time.perf_counter() - start < seconds
    ):
        used, steps = program.seconds(threads, inputs)
        found.append(steps)
    times = np.median(found[_UNCOUNTED:], axis=0) if program.kernels else np.zeros(0)
    total = float(times.sum())
    kernels = [
        _kernel(k, float(taken), total, dims) for k, taken in zip(program.kernels, times)
    ]  # fmt: skip
    return Profile({
        "us": 1e6 * total, "threads": used, "calls": len(found) - _UNCOUNTED, "dims": dict(dims),
        "kernels": kernels,
    })  # fmt: skip


def _kernel(k: Mapping[str, Any], taken: float, total: float, dims: dict[str, int]) -> Any:
    flops, moved, runs = (evaluate_int(k[name], dims) for name in ("flops", "bytes", "times"))
    return {
        "step": k["step"], "name": k["name"], "kind": kind_of(k["nodes"]), "calls": runs,
        "us": 1e6 * taken, "share": taken / total if total else 0.0, "flops": flops, "bytes": moved,
        "gflop_s": 1e-9 * flops / taken if flops and taken else None,
        "gb_s": 1e-9 * moved / taken if taken else None,
        "locations": k["locations"],
    }  # fmt: skip


def kind_of(ops: Sequence[str]) -> str:
    """What sort of kernel computes these operations."""
    known = registry.all_ops()
    lowered = [(op, known[op].lower) for op in ops if op in known]
    for op, lower in lowered:
        if isinstance(lower, Product):
            return lower.kind
        if isinstance(lower, Custom):
            return op
    if any(isinstance(lower, Reduction) for _, lower in lowered):
        return "reduction"
    return "element-wise" if lowered else "copy"


__all__ = ["Profile", "kind_of", "profiled"]
