"""x² from 5 at rate 0.3: one `GD`, its derivative from five places.

    python samples/from_other_frameworks/descent_five_ways.py

By hand (NumPy), by a tape (TensorFlow 2), by `backward` (PyTorch), by `grad` (JAX), and by a
compiled graph (TensorFlow 1, Theano).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import staticgrad as sg

Derivative = Callable[[Any], Any]


def GD(x_start: float, df: Derivative, epochs: int, lr: float) -> np.ndarray:
    """The points that gradient descent visits, the start first. What `df` returns may be a float,
    an array or a tensor, which x then is too; a NumPy element takes any of them."""
    xs = np.zeros(epochs + 1)
    x = x_start
    xs[0] = x
    for i in range(epochs):
        x -= df(x) * lr
        xs[i + 1] = x
    return xs


def f(x):
    return x**2


def by_hand(x: float) -> float:
    return 2 * x


def by_tape(x: Any) -> Any:
    x = sg.eager.Variable(x, dtype="float64")
    with sg.eager.GradientTape() as tape:
        y = f(x)
    return tape.gradient(y, x)


def by_backward(x: Any) -> Any:
    x = sg.eager.tensor(x, dtype="float64", requires_grad=True)
    f(x).backward()
    return x.grad


def by_grad(x: Any) -> Any:
    return sg.grad(f)(np.float64(x))


def compiled_derivative() -> Derivative:
    x = sg.input("x", (), dtype="float64")
    program = sg.compile([x], sg.gradients(f(x), x))
    return lambda value: program(np.float64(value))


by_graph = compiled_derivative()
WAYS = {
    "by hand": by_hand, "by tape": by_tape, "by backward": by_backward, "by sg.grad": by_grad,
    "by a compiled graph": by_graph,
}  # fmt: skip


def paths(epochs: int = 15, lr: float = 0.3) -> dict[str, np.ndarray]:
    return {name: GD(5.0, df, epochs, lr) for name, df in WAYS.items()}


def main() -> None:
    for name, w in paths().items():
        print(f"{name:20s}", *(f"{v:g}" for v in np.around(w, 2)))


if __name__ == "__main__":
    main()
