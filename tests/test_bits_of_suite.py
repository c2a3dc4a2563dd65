"""Every workload of the benchmark has the same bits on any number of threads and with any
preserving pass left out, at small sizes and at those from which on the late passes do something."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import staticgrad as sg
from staticgrad.api.compile import LATE_PASSES, Compiled, compile_stages
from staticgrad.passes.lowering.manifest import build_manifest
from staticgrad.passes.pipeline import PASSES

from benchmarks.staticgrad_driver import declared
from benchmarks.suite import BY_NAME
from benchmarks.workload import Workload

from .benchmark_runs import distinct
from .threaded_programs import Threaded, bits, share_whatever_the_size

PRESERVING = (*dict.fromkeys(p.name for p in PASSES if p.kind == "preserving"), *LATE_PASSES)
OFF = ((), *((name,) for name in PRESERVING), PRESERVING)
THREADS = (1, 2, 3)
CALLS = 2

# What is packed ahead of a loop, computed row by row or written past the caches, and the least that
# is: a GRU's loop, and a result that is larger than the second level's cache.
LARGE = {
    "gru": ({"T": 4}, {"prepack", "by_rows", "merge_loops", "layout"}),
    "broadcast": ({"N": 2048}, {"nontemporal", "fuse"}),
}


@pytest.fixture(autouse=True)
def _threads_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    share_whatever_the_size(monkeypatch)


def stages(w: Workload) -> Iterator[tuple[tuple[str, ...], Compiled]]:
    """A workload's program and those that differ from it, and from each other, with passes left
    out."""
    inputs, outputs, updates, _ = declared(w, *w.arrays())
    graph = sg.Graph(inputs, outputs, updates)
    known = set()
    for off in OFF:
        made = compile_stages(graph, disable=off)
        manifest, _ = build_manifest(made.program, made.graph, made.target, made.called, {})
        key = (made.text, repr(manifest))
        if key not in known:
            known.add(key)
            yield off, made


def found(program: Any, arrays: list[Any]) -> list[Any]:
    """The bits of each call's results, and of the state behind the last."""
    results = [bits(program(*arrays)) for _ in range(CALLS)]
    return [*results, {cell.name: bits(cell.numpy()) for cell in program.cells}]


def require_same_bits(w: Workload) -> set[str]:
    """The passes without which the program is another one."""
    parameters, inputs = w.arrays()
    arrays = inputs if w.kind == "train" else [*parameters, *inputs]
    expected: list[Any] | None = None
    told = set()
    for off, made in stages(w):
        program = Threaded.made(made)
        for threads in THREADS:
            got = found(program.on(threads), arrays)
            expected = expected or got
            assert got == expected, f"without {off}, {threads} threads"
        told.update(off if len(off) == 1 else ())
    return told


@pytest.mark.parametrize("w", distinct(), ids=lambda w: w.name)
def test_threads_and_preserving_passes_keep_every_bit(w: Workload) -> None:
    require_same_bits(w)


@pytest.mark.parametrize("name", LARGE)
def test_so_do_the_passes_that_change_larger_programs(name: str) -> None:
    base, (sizes, passes) = BY_NAME[name], LARGE[name]
    w = dataclasses.replace(base, sizes={**base.sizes, **sizes})
    assert require_same_bits(w) >= passes
