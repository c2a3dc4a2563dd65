"""Gradient descent on x^2 and x^2 - 4x: the path from a starting point, printed and drawn.

    python samples/gradient_descent.py [FILE.png]

A step is one native call: it computes f and its gradient and moves x, which the program owns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import staticgrad as sg


@dataclass(frozen=True)
class Case:
    """A function with its minimum, and where and how fast to descend."""

    formula: str
    f: Callable
    start: float
    rate: float
    steps: int
    minimum: float


# With f'' = 2 the distance to the minimum shrinks by 1 - 2 * rate a step: 0.4 and 0.96.
CASES = (
    Case("x² ", lambda x: x**2, start=5.0, rate=0.3, steps=20, minimum=0.0),
    Case("x² - 4x", lambda x: x**2 - 4 * x, start=10.0, rate=0.02, steps=200, minimum=2.0),
)


def descent(case: Case) -> tuple[sg.Tensor, sg.Graph]:
    """The state x, and the graph of a step: gives x and f(x), then moves x down the gradient."""
    x = sg.parameter(np.float64(case.start), name="x")
    y = case.f(x)
    gradient = sg.gradients(y, x)
    return x, sg.Graph([], [y, x], updates=[(x, x - case.rate * gradient)])


def build() -> sg.Program:
    """The second case for `staticgrad train`."""
    x, graph = descent(CASES[1])
    return sg.Program(train=graph, predict=sg.Graph([], x), epochs=CASES[1].steps)


def path(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """x and f(x) before the first step and after each."""
    _, graph = descent(case)
    step = sg.compile(graph.inputs, graph.outputs, graph.updates)
    visited = np.array([step() for _ in range(case.steps + 1)])
    return visited[:, 1], visited[:, 0]


def show(case: Case, xs: np.ndarray, ys: np.ndarray) -> None:
    print(f"f(x) = {case.formula.strip()} from {case.start:g}, rate {case.rate:g}")
    for k in range(0, len(xs), max(1, case.steps // 10)):
        print(f"  step {k:3d}   x {xs[k]:12.8f}   f(x) {ys[k]:12.8f}")
    print(f"  minimum at x = {case.minimum:g}; off by {abs(xs[-1] - case.minimum):.1e}\n")


def draw(paths: list[tuple[np.ndarray, np.ndarray]], file: str) -> None:
    """Each case in a row: the visited points on the curve, and f against the iteration."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(CASES), 2, figsize=(11, 8), constrained_layout=True)
    for case, (xs, ys), (left, right) in zip(CASES, paths, axes):
        formula = case.formula.strip()
        reach = 1.15 * np.max(np.abs(xs - case.minimum))
        grid = np.linspace(case.minimum - reach, case.minimum + reach, 400)
        lowest = case.f(case.minimum)
        order = np.arange(len(xs))
        left.plot(grid, case.f(grid), color="0.6", zorder=1)
        left.plot(xs, ys, color="tab:blue", linewidth=0.8, alpha=0.5, zorder=2)
        points = left.scatter(xs, ys, c=order, cmap="viridis_r", s=28, zorder=3)
        left.annotate(f"start ({xs[0]:g}, {ys[0]:g})", (xs[0], ys[0]), xytext=(-8, 0),
                      textcoords="offset points", ha="right", va="center")  # fmt: skip
        left.plot(case.minimum, lowest, "*", color="tab:red", markersize=13, zorder=4,
                  label=f"minimum ({case.minimum:g}, {lowest:g})")  # fmt: skip
        left.set(title=f"f(x) = {formula}, rate {case.rate:g}", xlabel="x", ylabel="f(x)")
        left.legend(loc="upper left")
        figure.colorbar(points, ax=left, label="iteration")
        right.plot(order, ys, "o-", color="tab:blue", markersize=3, linewidth=1)
        right.axhline(lowest, color="tab:red", linewidth=1, linestyle="--",
                      label=f"minimum f = {lowest:g}")  # fmt: skip
        right.set(title=f"f(x) = {formula} after each of {case.steps} iterations",
                  xlabel="iteration", ylabel="f(x)")  # fmt: skip
        right.legend(loc="upper right")
        right.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    file = arguments[0] if arguments else "gradient_descent.png"
    paths = [path(case) for case in CASES]
    for case, (xs, ys) in zip(CASES, paths):
        show(case, xs, ys)
    draw(paths, file)
    print(f"plot: {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
