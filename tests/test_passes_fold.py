"""fold: what becomes a constant, what does not, and that the bits are the compiled program's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_graph
from staticgrad.ir.graph import Graph
from staticgrad.ops import registry
from staticgrad.passes.fold import EXACT, MOST_BYTES, fold
from staticgrad.passes.pipeline import run_pipeline

from .pass_checks import assert_same_bits, ops_of, run, verified

TABLE = np.arange(12, dtype="float32").reshape(3, 4) / 7


def evaluate(graph: Graph) -> Any:
    return compile_graph(graph, cache=False, disable=["fold"])()


def test_exact_ops_on_constants_are_done_here() -> None:
    x = sg.input("x", ("N", 3))
    c = sg.constant(TABLE)
    y = x @ (sg.reshape((c.T * 3.0)[::-1], (3, 4)) - 1.0)
    before = Graph([x], [y])
    after = verified(fold(before))
    assert ops_of(after) == ["matmul"]
    rows = np.arange(6, dtype="float32").reshape(2, 3)
    assert_same_bits(run(after, [rows]), run(before, [rows]))
    assert fold(after) is after


@pytest.mark.parametrize(
    "build",
    [
        lambda c: sg.exp(c),  # NumPy's bits are not those of the kernels
        lambda c: sg.sum(c, axis=0),
        lambda c: c @ c.T,
        lambda c: sg.broadcast_to(c, (1000, 3, 4)),  # a repetition costs nothing as it is
        lambda c: sg.sqrt(c - 1.0),  # NaN: its sign is the hardware's
        lambda c: c + sg.random.normal((3, 4)),
        lambda c: sg.take(c, sg.constant([2, 0]), axis=0),  # it checks its index when it runs
    ],
)
def test_others_are_left(build: Any) -> None:
    g = Graph([], [build(sg.constant(TABLE))])
    kept = fold(g).outputs[0].node.op
    assert kept != "constant"


def test_results_that_would_be_large_are_left() -> None:
    c = sg.constant(np.arange(MOST_BYTES, dtype="float64"))
    g = Graph([], [c.reshape(-1, 2).T + 1.0])
    assert fold(g) is g


def test_indices_alone_are_not_stored() -> None:
    g = Graph([], [sg.arange(100) * 2, sg.eye(30), sg.zeros((10, 10)) + 1.0])
    assert fold(g, evaluate) is g


def positions(rows: int, columns: int) -> Any:
    """The table of sines of a transformer."""
    place = sg.arange(0, rows, dtype="float32")
    rate = sg.exp(sg.arange(0, columns, dtype="float32") * -0.1)
    return sg.sin(sg.expand_dims(place, axis=1) * rate)


def test_heavy_work_on_constants_is_run_by_generated_kernels() -> None:
    x = sg.input("x", (128, 128))
    before = Graph([x], [x + positions(128, 128)])
    calls: list[Graph] = []

    def counted(graph: Graph) -> Any:
        calls.append(graph)
        return evaluate(graph)

    after = verified(fold(before, counted))
    assert ops_of(after) == ["add"] and len(calls) == 1
    row = np.random.default_rng(0).standard_normal((128, 128)).astype("float32")
    folded = compile_graph(after, cache=False)(row)
    plain = compile_graph(before, cache=False, disable=["fold"])(row)
    assert_same_bits(folded, plain)


def test_light_work_is_left_to_the_program() -> None:
    x = sg.input("x", (8, 8))
    g = Graph([x], [x + positions(8, 8)])
    assert fold(g, lambda _: pytest.fail("compiled for nothing")) is g


def test_symbolic_sizes_state_and_inputs_are_no_constants() -> None:
    p = sg.parameter(np.ones((300, 300), "float32"))
    x = sg.input("x", ("N", 300))
    g = Graph([x], [sg.sin(p) @ p.T, sg.sin(sg.ones(("N", 300)) * 2.0), sg.sin(x)])
    assert fold(g, lambda _: pytest.fail("compiled for nothing")) is g


def test_the_pipeline_folds() -> None:
    x = sg.input("x", (128, 128))
    g = Graph([x], [x + positions(128, 128)])
    assert "sin" not in ops_of(run_pipeline(g, evaluate=evaluate, disable=["fuse"]))
    assert "sin" in ops_of(run_pipeline(g, disable=["fuse"]))
    assert "sin" in ops_of(run_pipeline(g, evaluate=evaluate, disable=["fold", "fuse"]))


@pytest.mark.parametrize("name", sorted(EXACT))
def test_exact_ops_have_the_bits_of_their_kernels(name: str) -> None:
    """Folded by NumPy or computed by the program: the samples of the record, special values
    included, give the same bits; that is what lets fold do these ops here."""
    graphs: list[Any] = []
    for s in registry.get(name).samples():
        operands = [sg.constant(np.asarray(a)) for a in s.operands]
        graphs += registry.make(name, operands, s.attrs).results
    before = Graph([], graphs)
    compiled = compile_graph(before, cache=False, disable=["fold", "canonicalize", "simplify"])()
    assert_same_bits(compiled, run(before, []), name)
