"""Graphs of many nodes, by what the passes over them must be linear in: a chain, branches that are
joined again, and a training step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import staticgrad as sg

F = sg.nn.functional
Shape = Callable[[int], sg.Graph]


def chain(size: int) -> sg.Graph:
    """Each node reads the one before it."""
    x = y = sg.input("x", ("N",))
    for _ in range(10 * size):
        y = sg.tanh(y) * 1.5
    return sg.Graph([x], [y])


def tree(size: int) -> sg.Graph:
    """Branches that are joined again, pair by pair."""
    x = sg.input("x", ("N",))
    level = [sg.exp(x * float(i)) for i in range(8 * size)]
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2])] + level[len(level) // 2 * 2 :]
    return sg.Graph([x], level)


def training(size: int) -> sg.Graph:
    """A training step of so many layers with Adam: one loss, four gradients and updates a layer."""
    x, y = sg.input("x", ("N", 16)), sg.input("y", ("N",), "int64")
    h, parameters = x, []
    for _ in range(size):
        w, *rest = (sg.parameter(np.ones((16, 16)[: 2 - (i > 0)], "float32")) for i in range(4))
        parameters += [w, *rest]
        h = h + F.gelu(F.layer_norm(h @ w + rest[0], (16,), rest[1], rest[2]))
    optimizer = sg.optim.Adam(parameters, lr=0.01)
    loss = F.cross_entropy(h, y)
    return sg.Graph([x, y], [loss], updates=optimizer.minimize(loss))


SHAPES: dict[str, Shape] = {"chain": chain, "tree": tree, "training": training}


def of_nodes(shape: Shape, nodes: int) -> sg.Graph:
    """A graph of that shape with about so many nodes."""
    unit = 8
    return shape(max(1, round(unit * nodes / len(shape(unit)))))
