"""The pipeline: order, names, dumps, failures; and all passes on random graphs."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from hypothesis import given, settings
from hypothesis import strategies as st
from staticgrad.ir.errors import ArgumentError, ShapeError, VerifyError
from staticgrad.ir.graph import Graph
from staticgrad.passes import pipeline
from staticgrad.passes.canonicalize import canonicalize
from staticgrad.passes.cse import cse
from staticgrad.passes.dce import dce
from staticgrad.passes.fold import fold
from staticgrad.passes.layout import layout
from staticgrad.passes.pipeline import PASSES, Pass, PassError, checked_names, run_pipeline
from staticgrad.passes.simplify import simplify
from staticgrad.passes.stabilize import stabilize

from .pass_checks import assert_same_bits, ops_of, run, verified
from .random_graphs import RandomGraph

SWITCHABLE = list(dict.fromkeys(p.name for p in PASSES if p.kind != "required"))


def test_the_list_reads_as_documented() -> None:
    assert [p.name for p in PASSES] == [
        "bind_mode", "merge_loops", "canonicalize", "stabilize", "expand", "canonicalize",
        "simplify", "fold", "cse", "dce", "layout", "fuse",
    ]  # fmt: skip
    kinds = {p.name: p.kind for p in PASSES}
    assert {n for n, k in kinds.items() if k == "required"} == {"bind_mode", "expand"}
    assert {n for n, k in kinds.items() if k == "defining"} == {
        "canonicalize", "stabilize", "simplify",
    }  # fmt: skip


def test_observe_sees_the_declared_graph_and_every_pass() -> None:
    x = sg.input("x", (3,))
    g = Graph([x], [x * x + 0.0])
    seen: list[tuple[int, str]] = []
    after = run_pipeline(g, observe=lambda i, name, graph: seen.append((i, name)))
    assert seen == [(0, "declared"), *enumerate([p.name for p in PASSES], 1)]
    assert ops_of(after) == ["square"]


@pytest.mark.parametrize("name", SWITCHABLE)
def test_each_pass_is_switched_off_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Graph, options: Any) -> Graph:
        raise AssertionError("not switched off")

    monkeypatch.setattr(pipeline, "PASSES", tuple(
        Pass(p.name, p.kind, broken) if p.name == name else p for p in PASSES
    ))  # fmt: skip
    x = sg.input("x", (3,))
    g = Graph([x], [x * 1.0 + sg.softmax(x)])
    run_pipeline(g, disable=[name], verify=True)


def test_names_that_cannot_be_left_out() -> None:
    x = sg.input("x", (3,))
    g = Graph([x], [x + 1.0])
    with pytest.raises(ArgumentError, match=r"no pass 'fusing'.*canonicalize.*fuse"):
        run_pipeline(g, disable=["fusing"])
    with pytest.raises(ArgumentError, match="'expand' can't be left out"):
        run_pipeline(g, disable=["expand"])
    with pytest.raises(ArgumentError, match="list of names"):
        run_pipeline(g, disable="fuse")
    with pytest.raises(ArgumentError, match="in_place"):
        run_pipeline(g, disable=["schedule"], also=["in_place"])
    assert checked_names(["in_place", "cse"], also=["in_place"]) == {"in_place", "cse"}


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(graph: Graph, options: Any) -> Graph:
        raise error

    steps = tuple(Pass(p.name, p.kind, broken) if p.name == "layout" else p for p in PASSES)
    monkeypatch.setattr(pipeline, "PASSES", steps)


def test_a_failure_inside_says_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, p = sg.input("x", ("N", 3)), sg.parameter(np.ones((3, 3), "float32"), name="p")
    table = sg.constant(np.arange(300.0, dtype="float32").reshape(3, 100))
    g = Graph([x], [(x @ p).T + table.sum()])
    with monkeypatch.context() as patch:
        fails(patch, ZeroDivisionError("a bug"))
        with pytest.raises(PassError, match="'layout' failed: ZeroDivisionError: a bug") as caught:
            run_pipeline(g)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    found = re.search(r'python -c "(.*)"', str(caught.value))
    assert found is not None
    # The passes of this process are whole again, and so are those of another one.
    code = found.group(1)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_of_the_user_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, ShapeError("the user's"))
    x = sg.input("x", ("N", 3))
    with pytest.raises(ShapeError, match="the user's"):
        run_pipeline(Graph([x], [x + 1.0]))


def test_the_verifier_runs_after_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(graph: Graph, options: Any) -> Graph:
        made = Graph(graph.inputs, graph.outputs)
        made.nodes = tuple(reversed(made.nodes))
        return made

    steps = (*PASSES[:3], Pass("cse", "preserving", breaks), *PASSES[3:])
    monkeypatch.setattr(pipeline, "PASSES", steps)
    x = sg.input("x", ("N", 3))
    g = Graph([x], [sg.sin(x) + 1.0])
    with pytest.raises(PassError, match="'cse' failed: VerifyError") as caught:
        run_pipeline(g, verify=True)
    assert isinstance(caught.value.__cause__, VerifyError)
    monkeypatch.setenv("STATICGRAD_VERIFY", "1")
    with pytest.raises(PassError, match="VerifyError"):
        run_pipeline(g)


def test_repeat_refuses_unknown_passes(tmp_path: Any) -> None:
    from staticgrad.ir.printer import save_graph

    x = sg.input("x", (3,))
    save_graph(Graph([x], [x + 1.0]), tmp_path / "g.sgir")
    with pytest.raises(ArgumentError, match="no pass 'x'"):
        pipeline.repeat(str(tmp_path / "g.sgir"), "x")


# --- all passes on random graphs ------------------------------------------------------------------


def close(got: Any, expected: Any) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        # Sums of hundreds of terms of both signs, in another order: relative to the largest.
        scale = float(np.max(np.abs(b), initial=1.0))
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * scale)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10**6))
def test_passes_keep_values_on_random_graphs(seed: int) -> None:
    r = RandomGraph(seed)
    declared = Graph(r.inputs, r.outputs())
    expected = run(declared, r.arrays)
    graph = declared
    for defining in (canonicalize, stabilize, canonicalize, simplify):
        graph = verified(defining(graph))
        close(run(graph, r.arrays), expected)
        if defining is not stabilize:
            assert defining(graph) is graph, f"{defining.__name__} is not idempotent"
    before = run(graph, r.arrays)
    for preserving in (fold, cse, dce, layout):
        graph = verified(preserving(graph))
        # NumPy's matrix product and sums depend on strides, the compiled ones do not: so here the
        # interpreter's bits are asked of the passes that move nothing.
        found = run(graph, r.arrays)
        if preserving is layout:
            close(found, before)
        else:
            assert_same_bits(found, before, preserving.__name__)


@pytest.mark.parametrize("seed", range(4))
def test_preserving_passes_keep_bits_of_the_compiled_program(seed: int) -> None:
    r = RandomGraph(1000 + seed, steps=9)
    outputs = r.outputs()
    whole = sg.compile(r.inputs, outputs, cache=False)(*r.arrays)
    for off in (["fold", "cse", "dce", "layout"], ["fold", "cse", "dce", "layout", "fuse"]):
        found = sg.compile(r.inputs, outputs, cache=False, disable=off)(*r.arrays)
        assert_same_bits(found, whole, f"{seed} without {off}")


@pytest.mark.parametrize("name", [p.name for p in PASSES if p.kind == "defining"][:3])
def test_defining_passes_agree_to_tolerance(name: str) -> None:
    r = RandomGraph(77, steps=10)
    outputs = r.outputs()
    whole = sg.compile(r.inputs, outputs, cache=False)(*r.arrays)
    found = sg.compile(r.inputs, outputs, cache=False, disable=[name])(*r.arrays)
    close(found, whole)


def test_a_long_chain() -> None:
    x, y = sg.input("x", ("N",)), sg.input("y", ("N",))
    v = x
    for i in range(10_000):
        v = v + y if i % 4 else v * 0.5
    after = run_pipeline(Graph([x, y], [v]), disable=["fuse"])
    assert len(after) == 10_003  # one addend, one factor
