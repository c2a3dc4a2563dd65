"""Programs whose steps are timed: the same values, every step told of, and no trace without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.api.graph import Graph
from staticgrad.codegen.program import emit_program
from staticgrad.codegen.step_clock import TICK, ClockedDriver

from benchmarks import footprints
from benchmarks.step_times import TimedProgram


def sweeps_and_products() -> tuple[Graph, list[Any]]:
    x, w = sg.input("x", (256, 128)), sg.input("w", (128, 256))
    a = np.random.default_rng(0).standard_normal((256, 128)).astype("float32")
    return Graph([x, w], [sg.softmax(sg.relu(x @ w), -1), sg.sum(x, axis=0)]), [a, a.T.copy()]


def loops() -> tuple[Graph, list[Any]]:
    """A loop by rows, one whose threads meet, one of thread 0 alone, and a choice."""
    x, w = sg.input("x", (64, 64)), sg.input("w", (64, 64))
    by_rows = sg.fori_loop(0, 5, lambda i, h: sg.tanh(h @ w), x)
    met = sg.fori_loop(0, 3, lambda i, h: sg.tanh(h.T @ w), by_rows)
    alone = sg.fori_loop(0, 4, lambda i, s: s * 0.5 + 1.0, x[0, 0])
    chosen = sg.cond(alone > 0, lambda: sg.exp(met), lambda: met * 2.0)
    a = np.random.default_rng(1).standard_normal((64, 64)).astype("float32")
    return Graph([x, w], [chosen, alone]), [a, 0.1 * a.T]


@pytest.mark.parametrize("make", [sweeps_and_products, loops])
def test_a_timed_program_computes_the_same_and_tells_of_every_step(make: Any) -> None:
    graph, arrays = make()
    expected = sg.compile(graph.inputs, list(graph.outputs), threads=1)(*arrays)
    program = TimedProgram(graph, (1, 3))
    for threads in (1, 3):
        timed = program._programs[threads]
        for found, wanted in zip(timed(*arrays), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        used, seconds = program.seconds(threads, arrays)
        assert 1 <= used <= threads and len(seconds) == len(program.kernels)
        skipped = [k["name"] for k, s in zip(program.kernels, seconds) if s <= 0]
        assert len(skipped) <= (1 if make is loops else 0)  # the branch that was not taken


def test_each_step_of_a_loop_is_summed_over_its_iterations() -> None:
    graph, _ = loops()
    text, called = emit_program(
        (made := compile_stages(graph)).program, made.target, driver=ClockedDriver
    )
    ticks = text.count(f"call void @{TICK}(")
    regions = sum(not hasattr(item, "kernel") for item in made.program.items)
    assert ticks == 1 + len(called) + regions
    assert TICK not in made.text  # the ordinary program


def test_reuse_distances_are_what_the_steps_since_the_last_use_have_touched() -> None:
    n = 1 << 18
    x, y = sg.input("x", (n,)), sg.input("y", (2 * n,))
    compiled = sg.compile([x, y], [sg.exp(x) * sg.sum(x), sg.sum(y), sg.cumulative_sum(x)])
    program = compile_stages(compiled.source[0]).program
    plan = compiled.bind({}).plan
    places, count = footprints._places(program, plan)
    piece = footprints._PIECE_BYTES
    assert count * piece >= 4 * n * 5  # x, y, and two results as long as x
    used = [set(footprints._pieces(program, s, places).tolist()) for s in program.steps]
    assert len(used) >= 3
    seconds = np.arange(1.0, len(used) + 1)
    for i, found in enumerate(footprints.reuses(program, plan)):
        ages = found.ages(i, seconds)
        for p, distance, age in zip(sorted(used[i]), found.sizes, ages, strict=True):
            between: set[int] = set()
            passed = 0.0
            before = (*range(i - 1, -1, -1), *range(len(used) - 1, i - 1, -1))  # of two calls
            for j in before:
                if p in used[j]:
                    break
                between |= used[j]
                passed += seconds[j]
            own = footprints.step_bytes(program, program.steps[i])
            assert distance == max(piece * (1 + len(between)), own)
            assert age == pytest.approx(passed)
