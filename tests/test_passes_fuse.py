"""What a group may hold: values that a kernel over its elements computes as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import staticgrad as sg

from .random_graphs import RandomGraph


def test_what_others_read_is_not_computed_in_a_larger_space() -> None:
    """Two rows that one `where` of two rows' height reads, and one of them is wanted by itself: in
    the larger sweep one element of it was stored, and the rest read as it lay there."""
    mask, x, y = sg.input("mask", (2, 5), dtype="bool"), sg.input("x", (5,)), sg.input("y", (5,))
    a, b = x * 2.0, y * 3.0
    for outputs in (
        [sg.where(mask, a, b), b],
        [sg.where(mask, a, b), a],
        [sg.where(mask, b, a), a],
    ):
        run = sg.compile([mask, x, y], outputs)
        m = np.array([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]], bool)
        xv, yv = np.arange(5, dtype="float32"), np.arange(5, dtype="float32") + 10
        reference = sg.compile([mask, x, y], outputs, mode="reference")
        for found, expected in zip(run(m, xv, yv), reference(m, xv, yv)):
            np.testing.assert_array_equal(found, expected)


def test_what_one_alone_reads_still_is() -> None:
    """Both rows into the `where`: one kernel."""
    mask, x, y = sg.input("mask", (2, 5), dtype="bool"), sg.input("x", (5,)), sg.input("y", (5,))
    run = sg.compile([mask, x, y], sg.where(mask, x * 2.0, y * 3.0))
    assert len(run.report().to_dict()["kernels"]) == 1


@pytest.mark.parametrize("seed", [1435])
def test_a_random_graph_that_was_wrong(seed: int) -> None:
    made = RandomGraph(seed, steps=38, dtype="float32")
    outputs = made.outputs()
    fused = sg.compile(made.inputs, outputs)(*made.arrays)
    apart = sg.compile(made.inputs, outputs, disable=["fuse"])(*made.arrays)
    assert [v.tobytes() for v in fused] == [v.tobytes() for v in apart]
