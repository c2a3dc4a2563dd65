"""Passes are linear in the nodes: counted in calls, not in time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import staticgrad as sg
from staticgrad.api.graph_key import graph_key
from staticgrad.codegen.target import host_target
from staticgrad.ir.graph import Graph
from staticgrad.passes.lowering import lower
from staticgrad.passes.names import with_free_names
from staticgrad.passes.pipeline import run_pipeline
from staticgrad.passes.schedule import schedule

from benchmarks.graphs import chain, training, tree


def rows(size: int) -> Graph:
    """All read one input, and what they compute is summed over its rows."""
    x = sg.input("x", ("N", 64))
    return sg.Graph([x], [sg.sum(sg.exp(x * float(i)), axis=1) for i in range(4 * size)])


def columns(size: int) -> Graph:
    """The same over its columns."""
    x = sg.input("x", ("N", 64))
    return sg.Graph([x], [sg.sum(sg.exp(x * float(i)), axis=0) for i in range(4 * size)])


def calls(work: Callable[[], Any]) -> int:
    """How many functions are called, Python's and built-in ones."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


SHAPES = [chain, rows, columns, tree, training]
# What is quadratic in the nodes takes 3 times as many calls a node in a graph 3 times as large.
LINEAR = 1.3


def compared(shape: Callable[[int], Graph], work: Callable[[Graph], Any]) -> float:
    """Calls for a node of a graph against those of one a third as large."""
    small, large = shape(8), shape(24)
    work(small)  # what is computed once and kept
    return (calls(lambda: work(large)) / len(large)) / (calls(lambda: work(small)) / len(small))


@pytest.mark.parametrize("shape", SHAPES)
def test_graph_passes_are_linear(shape: Callable[[int], Graph]) -> None:
    assert compared(shape, run_pipeline) < LINEAR


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_are_linear(shape: Callable[[int], Graph]) -> None:
    assert compared(shape, lambda graph: graph_key(graph, None, (), host_target())) < LINEAR


@pytest.mark.parametrize("shape", SHAPES)
def test_lowering_and_scheduling_are_linear(shape: Callable[[int], Graph]) -> None:
    def lowered(graph: Graph) -> Any:
        return schedule(lower(with_free_names(run_pipeline(graph))[0], host_target()))

    assert compared(shape, lowered) < LINEAR
