"""Workloads bound by call overhead or by memory: element-wise chains, reductions, norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from .workload import Array, Sizes, Workload, normal, product

Generator = np.random.Generator
Drawn = tuple[list[Array], list[Array]]

_UNROLLED = "its loop would be unrolled while tracing"


def _draw_tiny(rng: Generator, s: Sizes) -> Drawn:
    return [], [normal(rng, s["N"])]


def _tiny_hundred(X: Any, P: Any, x: Any) -> Any:
    for _ in range(50):
        x = x * 0.75 + 0.25
    return x


def _draw_many(rng: Generator, s: Sizes) -> Drawn:
    return [], [normal(rng, s["N"]) for _ in range(s["arrays"])]


def _tiny_many(X: Any, P: Any, *arrays: Any) -> Any:
    return tuple(x * 2.0 + y for x, y in zip(arrays, (*arrays[1:], arrays[0])))


def _draw_linreg(rng: Generator, s: Sizes) -> Drawn:
    return [normal(rng, 2)], [normal(rng, s["N"]), normal(rng, s["N"])]


def _linreg(X: Any, P: Any, x: Any, y: Any) -> Any:
    (w,) = P
    error = w[0] * x + w[1] - y
    return X.mean(error * error)


def _draw_descent(rng: Generator, s: Sizes) -> Drawn:
    return [np.array(10.0, np.float32)], []


def _parabola(X: Any, P: Any) -> Any:
    (x,) = P
    return x * x - 4.0 * x


def _draw_lorenz(rng: Generator, s: Sizes) -> Drawn:
    start, constants = np.ones(3, np.float32), np.array([10.0, 28.0, 8 / 3], np.float32)
    return [start, constants], [normal(rng, s["steps"], 3)]


def _lorenz(X: Any, P: Any, force: Any) -> Any:
    """Runge-Kutta steps of 0.002, a force at each. Source: Lorenz, J. Atmos. Sci. 20, 1963."""
    start, constants = P
    sigma, rho, beta = constants[0], constants[1], constants[2]

    def slope(state: Any, force: Any) -> Any:
        x, y, z = state[0], state[1], state[2]
        return X.stack(sigma * (y - x), x * (rho - z) - y, x * y - beta * z) + force

    def step(state: Any, force: Any) -> Any:
        k1 = slope(state, force)
        k2 = slope(state + 0.001 * k1, force)
        k3 = slope(state + 0.001 * k2, force)
        k4 = slope(state + 0.002 * k3, force)
        return state + (0.002 / 6) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    end = X.scan(step, start, force)
    return X.mean(end * end)


def _draw_pair(rng: Generator, s: Sizes) -> Drawn:
    return [], [normal(rng, s["N"]), normal(rng, s["N"])]


def _chain(X: Any, P: Any, x: Any, y: Any) -> Any:
    return X.tanh(x * y + 1.0) * X.sigmoid(x - y) + X.exp(-x * x) * y


def _draw_broadcast(rng: Generator, s: Sizes) -> Drawn:
    return [], [normal(rng, s["N"], s["D"]), normal(rng, s["D"]), normal(rng, s["N"], 1)]


def _broadcast(X: Any, P: Any, x: Any, row: Any, column: Any) -> Any:
    return X.relu(x * row + column) - column


def _draw_matrix(rng: Generator, s: Sizes) -> Drawn:
    return [], [normal(rng, s["N"], s["D"])]


def _softmax(X: Any, P: Any, x: Any) -> Any:
    return X.softmax(x)


def _draw_layer_norm(rng: Generator, s: Sizes) -> Drawn:
    n, d = s["N"], s["D"]
    parameters = [normal(rng, n, d), 1.0 + normal(rng, d, scale=0.1), normal(rng, d, scale=0.1)]
    return [p.astype(np.float32) for p in parameters], [normal(rng, n, d)]


def _layer_norm(X: Any, P: Any) -> Any:
    return X.layer_norm(*P)


def _draw_options(rng: Generator, s: Sizes) -> Drawn:
    ranges = ((80.0, 120.0), (80.0, 120.0), (0.25, 2.0), (0.1, 0.4))
    return [rng.uniform(low, high, s["N"]).astype(np.float32) for low, high in ranges], []


def _black_scholes(X: Any, P: Any) -> Any:
    """A European call's price. Source: Black, Scholes, J. Political Economy 81 (3), 1973."""
    spot, strike, time, volatility = P
    rate = 0.03

    def normal_cdf(x: Any) -> Any:
        return 0.5 * (1.0 + X.erf(x * 0.7071067811865476))

    spread = volatility * X.sqrt(time)
    d1 = (X.log(spot / strike) + (rate + 0.5 * volatility * volatility) * time) / spread
    d2 = d1 - spread
    return spot * normal_cdf(d1) - strike * X.exp(-rate * time) * normal_cdf(d2)


def _draw_cube(rng: Generator, s: Sizes) -> Drawn:
    return [], [normal(rng, s["A"], s["B"], s["C"])]


def _sum_over(axis: int | None) -> Workload:
    name = "sum_all" if axis is None else f"sum_axis{axis}"
    over = "all axes" if axis is None else f"axis {axis}"
    return Workload(
        name, "reduction", f"sum of 64 x 512 x 512 over {over}", "call",
        {"A": 64, "B": 512, "C": 512}, {"A": 3, "B": 5, "C": 7}, _draw_cube,
        lambda X, P, x: X.sum(x, axis), lambda s: product(s, "A B C"), headline=False,
        # A mean of 16 million numbers around 0: the sum is small against what is summed.
        tolerance=1e-3 if axis is None else 1e-4,
    )  # fmt: skip


CALLS = (
    Workload(
        "tiny", "overhead", "x * 2 + 1, 4 elements", "call", {"N": 4}, {"N": 4}, _draw_tiny,
        lambda X, P, x: x * 2.0 + 1.0, lambda s: 2 * s["N"],
    ),
    Workload(
        "tiny_100", "overhead", "100 operations in a row, 64 elements", "call", {"N": 64},
        {"N": 5}, _draw_tiny, _tiny_hundred, lambda s: 100 * s["N"],
    ),
    Workload(
        "tiny_many", "overhead", "40 arrays of 4 elements, x[i] * 2 + x[i + 1] of each", "call",
        {"arrays": 40, "N": 4}, {"arrays": 5, "N": 3}, _draw_many, _tiny_many,
        lambda s: 2 * product(s, "arrays N"), headline=False,
    ),
    Workload(
        "linreg", "overhead", "gradient of a mean square, 64 points", "gradient", {"N": 64},
        {"N": 9}, _draw_linreg, _linreg, lambda s: 9 * s["N"],
    ),
    Workload(
        "gd", "overhead", "1000 steps of gradient descent on x² - 4x", "descent", {"steps": 1000},
        {"steps": 20}, _draw_descent, _parabola, lambda s: 4 * s["steps"],
        without={"torch_compile": _UNROLLED},
    ),
    Workload(
        "lorenz", "overhead", "gradients of 1000 Runge-Kutta steps of three equations", "gradient",
        {"steps": 1000}, {"steps": 10}, _draw_lorenz, _lorenz, lambda s: 260 * s["steps"],
        tolerance=1e-3, without={"torch_compile": _UNROLLED},
    ),
)  # fmt: skip

MEMORY_BOUND = (
    Workload(
        "chain", "elementwise", "tanh(xy+1) sigmoid(x-y) + exp(-x²) y, 1M elements", "call",
        {"N": 1_000_000}, {"N": 1003}, _draw_pair, _chain, lambda s: 11 * s["N"],
    ),
    Workload(
        "broadcast", "elementwise", "relu(x * row + column) - column, 4096 x 1024", "call",
        {"N": 4096, "D": 1024}, {"N": 7, "D": 33}, _draw_broadcast, _broadcast,
        lambda s: 4 * product(s, "N D"),
    ),
    Workload(
        "black_scholes", "elementwise", "1M call prices and their gradients by 4 variables", "vjp",
        {"N": 1_000_000}, {"N": 101}, _draw_options, _black_scholes, lambda s: 70 * s["N"],
    ),
    Workload(
        "softmax", "norm", "softmax of 4096 rows of 1024", "call", {"N": 4096, "D": 1024},
        {"N": 5, "D": 37}, _draw_matrix, _softmax, lambda s: 5 * product(s, "N D"),
    ),
    Workload(
        "layer_norm", "norm", "layer norm forward and backward, 4096 rows of 1024", "vjp",
        {"N": 4096, "D": 1024}, {"N": 5, "D": 37}, _draw_layer_norm, _layer_norm,
        lambda s: 18 * product(s, "N D"), cotangent=True,
    ),
    *(_sum_over(axis) for axis in (0, 1, 2, None)),
)  # fmt: skip
