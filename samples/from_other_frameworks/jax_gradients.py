"""JAX: `grad` of one argument, of several, of dicts and pytrees; what fails, and why.

    python samples/from_other_frameworks/jax_gradients.py

`jax.grad` becomes `sg.grad`, `jnp` becomes `sg`. The functions are traced and compiled; arrays that
are passed keep their dtype, Python floats are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import staticgrad as sg

X = np.array([1.0, 2.0, 3.0])
Y = np.array([2.0, 4.0, 1.0])


def squared(x, y):
    return (x - y) ** 2


def mean_squared(x, y):
    return sg.mean((x - y) ** 2)


def p_norm(order, x, y):
    return sg.sum(sg.abs(x - y) ** order) ** (1 / order)


def distance_of_order(x, y, order):
    return p_norm(order, x, y)


def of_one_argument() -> dict[str, Any]:
    return {
        "grad of (x - y)² at 3, 1": sg.grad(squared)(3.0, 1.0),
        "grad of mean((x - y)²)": sg.grad(mean_squared)(X, Y),
        "its value and gradient": sg.value_and_grad(mean_squared)(X, Y),
        "the second derivative": sg.grad(sg.grad(squared))(3.0, 1.0),
    }


def of_chosen_arguments(order: int = 2) -> dict[str, Any]:
    """With the order first, x and y are the arguments 1 and 2; an int has no gradient. With the
    order last they are 0 and 1, and 2 is the order, as a floating number."""
    last = sg.grad(distance_of_order, argnums=(1, 2))
    return {
        "order first, argnums=1": sg.grad(p_norm, argnums=1)(order, X, Y),
        "order first, argnums=(1, 2)": sg.grad(p_norm, argnums=(1, 2))(order, X, Y),
        "order last, argnums=1": sg.grad(distance_of_order, argnums=1)(X, Y, order),
        "order last, argnums=(1, 2)": last(X, Y, np.float64(order)),
    }


# --- trees ----------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Any
    y: Any


def distance(points):
    """(x - y)² of a dict: its gradient is a dict."""
    return (points["x"] - points["y"]) ** 2


def nested(tree):
    """Sums of squares of a tuple in a dict, a list, a named tuple."""
    (a, b), (c,), p = tree["pair"], tree["list"], tree["point"]
    return a**2 + 2 * b**2 + 3 * c**2 + p.x * p.y


def of_trees() -> dict[str, Any]:
    tree = {"pair": (1.0, 2.0), "list": [3.0], "point": Point(4.0, 5.0)}
    return {
        "of a dict": sg.grad(distance)({"x": 3.0, "y": 1.0}),
        "of a tree": sg.grad(nested)(tree),
    }


def line(theta, x):
    w, b = theta  # a tensor whose first size is an int is unpacked like a tuple
    return w * x + b


def line_loss(theta, x, y):
    return sg.mean((line(theta, x) - y) ** 2)


def unpacked() -> dict[str, Any]:
    theta = np.array([1.0, 1.0])
    return {"grad by theta of w, b = theta": sg.grad(line_loss)(theta, X, 3 * X - 1)}


# --- what fails -----------------------------------------------------------------------------------


def three_arguments() -> Any:
    """As it is often printed: a function of two arguments is called with three."""
    return sg.grad(mean_squared)(X, Y, 2)


def dict_minus_dict() -> Any:
    """A dict is a tree, not an array: it has no minus."""
    return sg.grad(squared)({"x": 3.0}, {"x": 1.0})


def with_predictions(theta, x, y):
    predictions = line(theta, x)
    return sg.mean((predictions - y) ** 2), predictions


def tuple_without_has_aux() -> Any:
    """The loss and more are returned, and `grad` is not told."""
    return sg.grad(with_predictions)(np.array([1.0, 1.0]), X, Y)


FAILING: tuple[Callable[[], Any], ...] = (three_arguments, dict_minus_dict, tuple_without_has_aux)


def main() -> None:
    for part in (of_one_argument(), of_chosen_arguments(), of_trees(), unpacked()):
        for name, found in part.items():
            print(f"{name:32s} {found}")
    for failing in FAILING:
        try:
            failing()
        except (sg.StaticgradError, TypeError) as error:
            print(f"\n{failing.__name__}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
