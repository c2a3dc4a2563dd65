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
    Case("x²", lambda x: x**2, start=5.0, rate=0.3, steps=20, minimum=0.0),
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
    print(f"f(x) = {case.formula} from {case.start:g}, rate {case.rate:g}")
    for k in range(0, len(xs), max(1, case.steps // 10)):
        print(f"  step {k:3d}   x {xs[k]:12.8f}   f(x) {ys[k]:12.8f}")
    print(f"  minimum at x = {case.minimum:g}; off by {abs(xs[-1] - case.minimum):.1e}\n")


def draw(paths: list[tuple[np.ndarray, np.ndarray]], file: str) -> None:
    """Each case in a row: the visited points on the curve, f against the iteration, and how far
    x is from the minimum, on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(CASES), 3)
    for case, (xs, ys), (curve, values, distances) in zip(CASES, paths, axes):
        draw_curve(figure, curve, case, xs, ys)
        iterations, lowest = np.arange(len(xs)), case.f(case.minimum)
        values.plot(iterations, ys, "o-", markersize=3, linewidth=1)
        values.axhline(lowest, color="tab:red", linestyle="--", linewidth=1,
                       label=f"minimum f = {lowest:g}")  # fmt: skip
        values.set(title=f"f(x) at each of {case.steps} iterations", ylabel="f(x)")
        values.legend(loc="upper right")
        distances.semilogy(iterations, np.abs(xs - case.minimum), "o-", markersize=3, linewidth=1)
        distances.set(title=f"distance to x* = {case.minimum:g}", ylabel="|x - x*|")
        for ax in (values, distances):
            ax.set_xlabel("iteration")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def draw_curve(figure, ax, case: Case, xs: np.ndarray, ys: np.ndarray) -> None:
    """f around its minimum, with the points that were visited, coloured by iteration."""
    reach = 1.15 * np.max(np.abs(xs - case.minimum))
    grid = np.linspace(case.minimum - reach, case.minimum + reach, 400)
    lowest = case.f(case.minimum)
    ax.plot(grid, case.f(grid), color="0.6", zorder=1)
    points = ax.scatter(xs, ys, c=np.arange(len(xs)), cmap="viridis", s=36, edgecolors="black",
                        linewidths=0.4, zorder=2)  # fmt: skip
    ax.annotate(f"start ({xs[0]:g}, {ys[0]:g})", (xs[0], ys[0]), xytext=(-9, 0),
                textcoords="offset points", ha="right", va="center")  # fmt: skip
    ax.plot(case.minimum, lowest, "*", markersize=14, markerfacecolor="none", zorder=3,
            markeredgecolor="tab:red", label=f"minimum ({case.minimum:g}, {lowest:g})")  # fmt: skip
    ax.set(title=f"f(x) = {case.formula}, rate {case.rate:g}", xlabel="x", ylabel="f(x)")
    ax.legend(loc="upper center")
    bar = figure.colorbar(points, ax=ax, label="iteration")
    bar.locator.set_params(integer=True)


def main(arguments: list[str]) -> None:
    file = arguments[0] if arguments else "gradient_descent.png"
    paths = [path(case) for case in CASES]
    for case, (xs, ys) in zip(CASES, paths):
        show(case, xs, ys)
    draw(paths, file)
    print(f"plot: {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
