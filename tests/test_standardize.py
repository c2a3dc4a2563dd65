"""Batch normalisation's own record: how many sums its gradient takes, and its values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.passes.pipeline import run_pipeline

F = sg.nn.functional
Array = np.ndarray[Any, Any]


def declared(n: Any) -> tuple[list[sg.Tensor], list[sg.Tensor]]:
    x, ct = sg.input("x", (n, 3, 4, 5), "float64"), sg.input("ct", (n, 3, 4, 5), "float64")
    w, b = sg.input("w", (3,), "float64"), sg.input("b", (3,), "float64")
    y = F.batch_norm(x, None, None, w, b, True)
    return [x, ct, w, b], [y, *sg.gradients(y, [x, w, b], cotangent=ct)]


def expected(x: Array, ct: Array, w: Array) -> list[Array]:
    """The derivative of each element by each, added up."""
    axes, n = (0, 2, 3), x.size // 3
    centred = x - x.mean(axes, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)
    g = ct * w[:, None, None]
    of_r = (g * centred).sum(axes, keepdims=True) * -0.5 * r**3
    of_centred = g * r + of_r * 2 * centred / n
    of_x = of_centred - of_centred.mean(axes, keepdims=True)
    return [of_x, (ct * centred * r).sum(axes), ct.sum(axes)]


@pytest.mark.parametrize("n", [6, "N"])
def test_gradients(n: Any) -> None:
    rng = np.random.default_rng(0)
    inputs, outputs = declared(n)
    x, ct = (rng.standard_normal((6, 3, 4, 5)) + 2 for _ in range(2))
    w, b = rng.standard_normal(3), rng.standard_normal(3)
    _, *got = sg.compile(inputs, outputs)(x, ct, w, b)
    for a, e in zip(got, expected(x, ct, w), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_input_adds_up_what_those_of_weight_and_bias_do() -> None:
    after = run_pipeline(Graph(*declared(6)), disable=["fuse"])
    sums = [n for n in after.nodes if n.op == "sum"]
    assert len(sums) == 4  # of the mean and the variance, of the bias and the weight
