"""TensorFlow 2: `Variable`, `GradientTape`, `assign_sub`.

    python samples/from_other_frameworks/tensorflow2_tape.py

`tf.Variable` becomes `sg.eager.Variable`, `tf.GradientTape` becomes `sg.eager.GradientTape`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import staticgrad as sg


def squared_difference() -> tuple[float, float, float]:
    """(x - y)² at 3, 1 and both gradients."""
    x = sg.eager.Variable(3.0)
    y = sg.eager.Variable(1.0)
    with sg.eager.GradientTape() as tape:
        loss = (x - y) ** 2
    dx, dy = tape.gradient(loss, [x, y])
    return float(loss), float(dx), float(dy)


def persistent() -> tuple[float, float]:
    """A persistent tape is asked twice, and watches what is no variable."""
    x = sg.eager.tensor(3.0)
    with sg.eager.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = x * x
        z = y * y
    return float(tape.gradient(z, x)), float(tape.gradient(y, x))


def meet(steps: int = 20, rate: float = 0.1) -> tuple[float, float]:
    """x and y go to each other, down (x - y)²: their sum stays 4."""
    x = sg.eager.Variable(3.0)
    y = sg.eager.Variable(1.0)
    for _ in range(steps):
        with sg.eager.GradientTape() as tape:
            loss = (x - y) ** 2
        dx, dy = tape.gradient(loss, [x, y])
        x.assign_sub(rate * dx)
        y.assign_sub(rate * dy)
    return float(x), float(y)


def descent(epochs: int = 15, lr: float = 0.3) -> np.ndarray:
    """x² from 5: the values of x, the first included."""
    x = sg.eager.Variable(5.0)
    xs = [float(x)]
    for _ in range(epochs):
        with sg.eager.GradientTape() as tape:
            y = x**2
        x.assign_sub(lr * tape.gradient(y, x))
        xs.append(float(x))
    return np.array(xs)


def outside_the_tape() -> Any:
    """What was computed before the tape recorded has no gradient: None."""
    x = sg.eager.Variable(3.0)
    y = x**2
    with sg.eager.GradientTape() as tape:
        pass
    return tape.gradient(y, x)


def main() -> None:
    print("(x - y)² at 3, 1 and its gradients:", squared_difference())
    print("d(x⁴)/dx and d(x²)/dx at 3:", persistent())
    print("x and y after 20 steps down (x - y)²:", meet())
    print("x² from 5 at rate 0.3:", *(f"{v:g}" for v in np.around(descent(), 2)))
    print("computed outside the tape:", outside_the_tape())


if __name__ == "__main__":
    main()
