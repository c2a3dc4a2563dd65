"""sort and argsort: records, gradients, order of NaNs and equal elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.errors import ArgumentTypeError, ShapeError
from staticgrad.ir.graph import Graph
from staticgrad.ops import registry, sorting
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.reduction import sum as reduce_sum

from .oracle import check_gradient, check_no_gradient, check_record


def run(function: Any, x: np.ndarray, shape: Any = None) -> np.ndarray:
    t = declare("x", x.shape if shape is None else shape, str(x.dtype))
    return run_graph(Graph([t], [function(t)]), [x])[0][0]


@pytest.mark.parametrize("name", ["sort", "argsort"])
def test_record(name: str) -> None:
    check_record(registry.get(name))


def test_gradient() -> None:
    check_gradient(registry.get("sort"))
    check_no_gradient(registry.get("argsort"))


def test_nan_is_the_greatest_value() -> None:
    x = np.array([np.nan, 2.0, -np.inf, np.nan, np.inf])
    assert run(sorting.argsort, x).tolist() == [2, 1, 4, 0, 3]
    assert run(lambda t: t.argsort(descending=True), x).tolist() == [0, 3, 4, 1, 2]
    assert np.array_equal(run(sorting.sort, x), np.sort(x), equal_nan=True)


def test_equal_elements_keep_their_order_both_ways() -> None:
    x = np.array([1, 0, 1, 0, 1])
    assert run(sorting.argsort, x).tolist() == [1, 3, 0, 2, 4]
    assert run(lambda t: t.argsort(descending=True, stable=False), x).tolist() == [0, 2, 4, 1, 3]
    zeros = np.array([0.0, -0.0, 0.0])
    assert np.signbit(run(sorting.sort, zeros)).tolist() == [False, True, False]


def test_axes_and_symbolic_sizes() -> None:
    x = np.random.default_rng(0).integers(0, 9, (4, 5, 6))
    for axis in range(-3, 3):
        found = run(lambda t: t.sort(axis=axis), x, ("N", "M", "K"))  # noqa: B023
        assert (found == np.sort(x, axis)).all()
    for shape, axis, error in (((), -1, ShapeError), ((2,), 1, ShapeError),
                               ((2,), (0,), ArgumentTypeError)):  # fmt: skip
        with pytest.raises(error):
            sorting.sort(declare("x", shape), axis=axis)


def test_the_gradient_goes_to_where_each_element_came_from() -> None:
    x, weights = np.array([[3.0, 1.0, 2.0]]), np.array([[10.0, 20.0, 30.0]])
    for descending, expected in ((False, [[30, 10, 20]]), (True, [[10, 30, 20]])):
        found = run(
            lambda t: gradients(reduce_sum(t.sort(descending=descending) * weights), t),  # noqa: B023
            x,
        )
        assert found.tolist() == expected
