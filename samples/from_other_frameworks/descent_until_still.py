"""x² - 4x from 10 until f changes by at most 1e-3: a Python loop, and one `while_loop`.

    python samples/from_other_frameworks/descent_until_still.py

The Python loop asks for a gradient at each turn. The `while_loop` is part of the compiled program:
the whole descent, its test included, is one native call.
"""

from __future__ import annotations

import numpy as np
import staticgrad as sg

RATE = 0.02
PRECISION = 1e-3


def f(x):
    return x**2 - 4 * x


def python_loop() -> tuple[int, float, float]:
    """Updates, x, f(x), with `backward` for the gradient."""
    x = sg.eager.tensor(np.float64(10.0), requires_grad=True)
    updates, change = 0, np.inf
    while change > PRECISION:
        y = f(x)
        y.backward()
        with sg.eager.no_grad():
            x -= RATE * x.grad
            change = abs(f(x) - y).item()
        x.grad.zero_()
        updates += 1
    return updates, x.item(), f(x).item()


def numpy_loop() -> tuple[int, float, float]:
    """The same with the derivative by hand."""
    x, updates, change = 10.0, 0, np.inf
    while change > PRECISION:
        new = x - RATE * (2 * x - 4)
        x, change, updates = new, abs(f(new) - f(x)), updates + 1
    return updates, x, f(x)


@sg.jit
def descend(x):
    def moving(state):
        _, _, change = state
        return change > PRECISION

    def move(state):
        updates, x, _ = state
        new = x - RATE * sg.grad(f)(x)
        return updates + 1, new, sg.abs(f(new) - f(x))

    updates, x, _ = sg.while_loop(moving, move, (0, x, sg.full_like(x, np.inf)))
    return updates, x, f(x)


def one_while_loop() -> tuple[int, float, float]:
    updates, x, y = descend(np.float64(10.0))
    return int(updates), float(x), float(y)


LOOPS = (numpy_loop, python_loop, one_while_loop)


def main() -> None:
    for loop in LOOPS:
        updates, x, y = loop()
        print(f"{loop.__name__:15s} {updates} updates, x = {x:.6f}, f = {y:.6f}")


if __name__ == "__main__":
    main()
