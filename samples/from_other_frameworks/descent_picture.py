"""The picture of a descent: the curve of f with the points that were visited.

    python samples/from_other_frameworks/descent_picture.py [FILE.png]

`descent_picture.ipynb` is the same in a notebook.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import staticgrad as sg
from descent_five_ways import GD


def f(x):
    return x**2


def visited(epochs: int = 15, lr: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """The points x and f(x) of x² from 5."""
    xs = GD(np.float64(5.0), sg.grad(f), epochs, lr)
    return xs, f(xs)


def draw(f: Callable, xs: np.ndarray, ys: np.ndarray, lr: float = 0.3) -> Any:
    """A Matplotlib figure: f around its minimum at 0, and the path of the points on it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    reach = 1.1 * abs(xs).max()
    line = np.linspace(-reach, reach, 201)
    axes.plot(line, f(line), color="0.6", label="f(x) = x²")
    axes.plot(xs, ys, "o-", color="tab:red", markersize=6, linewidth=1,
              label=f"{len(xs) - 1} steps from {xs[0]:g}, rate {lr:g}")  # fmt: skip
    for k in range(3):  # the others lie on one another
        axes.annotate(f"x{k}", (xs[k], ys[k]), xytext=(8, -12), textcoords="offset points")
    axes.set(xlabel="x", ylabel="f(x)", title="Gradient descent on x²")
    axes.legend(loc="upper center")
    axes.grid(alpha=0.3)
    return figure


def main(arguments: list[str]) -> None:
    file = arguments[0] if arguments else "descent_picture.png"
    xs, ys = visited()
    print("x:", *(f"{v:g}" for v in np.around(xs, 2)))
    draw(f, xs, ys).savefig(file, dpi=110)
    print(f"plot: {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
