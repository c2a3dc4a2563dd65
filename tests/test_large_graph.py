"""A chain of 100,000 nodes is an ordinary graph: nothing recurses, nothing is quadratic."""

from __future__ import annotations

import numpy as np
import staticgrad as sg
from staticgrad.api.compile import compile_graph


def test_a_chain_of_100_000_nodes() -> None:
    x = sg.input("x", ("N",))
    scale, shift = sg.parameter(np.float32(0.999)), sg.parameter(np.float32(0.001))
    y, nodes = x, 0
    while nodes < 100_000:
        y = (y + shift) * scale
        nodes += 2
        if nodes % 10 == 0:
            y = sg.sin(y)
            nodes += 1
    gradient = sg.gradients(sg.sum(y), x)
    program = compile_graph(sg.Graph([x], [y, gradient]), cache=False)
    a = np.array([-3.0, 0.25, 2.0], "float32")
    value, slope = program(a)
    v, d, nodes = a.astype("float64"), np.ones(3), 0
    s, t = float(np.float32(0.999)), float(np.float32(0.001))
    while nodes < 100_000:
        v, d = (v + t) * s, d * s
        nodes += 2
        if nodes % 10 == 0:
            v, d = np.sin(v), d * np.cos(v)
            nodes += 1
    np.testing.assert_allclose(value, v, rtol=1e-4)
    np.testing.assert_allclose(slope, d, rtol=1e-2, atol=1e-30)
