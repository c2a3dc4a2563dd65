"""NumPy: the gradient of a network by hand, by back-propagation by hand, and by this project.

    python samples/from_other_frameworks/numpy_backpropagation.py

A network of one hidden layer, float64: h = tanh(x w1 + b1), p = h w2 + b2, loss = mean((p - y)²).
"""

from __future__ import annotations

import numpy as np
import staticgrad as sg

Arrays = dict[str, np.ndarray]


def setup() -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Parameters, x [8, 3] and y [8, 2]."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (3, 4), "b1": (4,), "w2": (4, 2), "b2": (2,)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return params, rng.normal(size=(8, 3)), rng.normal(size=(8, 2))


def loss_of(params: Arrays, x: np.ndarray, y: np.ndarray) -> float:
    h = np.tanh(x @ params["w1"] + params["b1"])
    return float(np.mean((h @ params["w2"] + params["b2"] - y) ** 2))


def by_hand(params: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Each partial derivative written out: sums over samples n, hidden units j, outputs k."""
    h = np.tanh(x @ params["w1"] + params["b1"])
    residual = h @ params["w2"] + params["b2"] - y
    count = residual.size
    found = {name: np.zeros_like(value) for name, value in params.items()}
    for n, k in np.ndindex(residual.shape):
        d = 2 * residual[n, k] / count
        found["b2"][k] += d
        for j in range(h.shape[1]):
            found["w2"][j, k] += d * h[n, j]
            slope = d * params["w2"][j, k] * (1 - h[n, j] ** 2)
            found["b1"][j] += slope
            found["w1"][:, j] += slope * x[n]
    return found


def by_backpropagation(params: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """The chain rule backwards, layer by layer, on whole arrays."""
    h = np.tanh(x @ params["w1"] + params["b1"])
    p = h @ params["w2"] + params["b2"]
    d_p = 2 * (p - y) / p.size
    d_a = d_p @ params["w2"].T * (1 - h**2)
    return {"w1": x.T @ d_a, "b1": d_a.sum(axis=0), "w2": h.T @ d_p, "b2": d_p.sum(axis=0)}


def by_grad(params: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """The same loss, differentiated as a function."""

    def loss(params, x, y):
        h = sg.tanh(x @ params["w1"] + params["b1"])
        return sg.mean((h @ params["w2"] + params["b2"] - y) ** 2)

    found: Arrays = sg.grad(loss)(params, x, y)
    return found


def by_graph(params: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """The same loss, declared as a graph with its gradients and compiled."""
    inputs = [sg.input("x", ("N", 3), "float64"), sg.input("y", ("N", 2), "float64")]
    state = {name: sg.parameter(value, name=name) for name, value in params.items()}
    h = sg.tanh(inputs[0] @ state["w1"] + state["b1"])
    loss = sg.mean((h @ state["w2"] + state["b2"] - inputs[1]) ** 2)
    program = sg.compile(inputs, sg.gradients(loss, list(state.values())))
    return dict(zip(state, program(x, y)))


def by_differences(params: Arrays, x: np.ndarray, y: np.ndarray, step: float = 1e-6) -> Arrays:
    """Central differences: right to about ten digits, and a check on all the others."""
    found = {name: np.zeros_like(value) for name, value in params.items()}
    for name, value in params.items():
        for place in np.ndindex(value.shape):
            losses = []
            for sign in (1, -1):
                moved = {**params, name: value.copy()}
                moved[name][place] += sign * step
                losses.append(loss_of(moved, x, y))
            found[name][place] = (losses[0] - losses[1]) / (2 * step)
    return found


WAYS = (by_hand, by_backpropagation, by_grad, by_graph, by_differences)


def main() -> None:
    params, x, y = setup()
    print(f"loss {loss_of(params, x, y):.12f}")
    wanted = by_backpropagation(params, x, y)
    for way in WAYS:
        found = way(params, x, y)
        off = max(float(abs(found[name] - wanted[name]).max()) for name in wanted)
        print(f"{way.__name__:20s} d loss / d b2 = {found['b2']}  differs by {off:.1e}")


if __name__ == "__main__":
    main()
