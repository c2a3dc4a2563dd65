"""JAX: a linear model with its parameters as array and as dict, auxiliary output, batch norm.

    python samples/from_other_frameworks/jax_models.py

State is what functions take and return: parameters go in, gradients come out, and what else a model
keeps (the running statistics of batch norm) is carried along as auxiliary output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import staticgrad as sg

STEPS = 500
W, B = np.array([2.0, -1.0, 0.5]), 3.0


def data() -> tuple[np.ndarray, np.ndarray]:
    """x [64, 3] and y = x W + B, without noise: the fit finds W and B."""
    x = np.random.default_rng(0).normal(size=(64, 3))
    return x, x @ W + B


# --- parameters as one array ----------------------------------------------------------------------


def predict_array(theta, x):
    return x @ theta[:-1] + theta[-1]


def loss_array(theta, x, y):
    return sg.mean((predict_array(theta, x) - y) ** 2)


@sg.jit
def update_array(theta, x, y, rate=0.1):
    return theta - rate * sg.grad(loss_array)(theta, x, y)


def fit_array() -> np.ndarray:
    x, y = data()
    theta = np.zeros(4)
    for _ in range(STEPS):
        theta = update_array(theta, x, y)
    return theta


# --- parameters as a dict -------------------------------------------------------------------------


def predict_dict(params, x):
    return x @ params["w"] + params["b"]


def loss_dict(params, x, y):
    return sg.mean((predict_dict(params, x) - y) ** 2)


@sg.jit
def update_dict(params, x, y, rate=0.1):
    gradients = sg.grad(loss_dict)(params, x, y)
    return sg.tree.map(lambda p, g: p - rate * g, params, gradients)


def fit_dict() -> dict[str, np.ndarray]:
    x, y = data()
    params = {"w": np.zeros(3), "b": np.zeros(())}
    for _ in range(STEPS):
        params = update_dict(params, x, y)
    return params


# --- auxiliary output -----------------------------------------------------------------------------


def loss_and_predictions(params, x, y):
    predictions = predict_dict(params, x)
    return sg.mean((predictions - y) ** 2), predictions


def auxiliary() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The gradient at zero, and the predictions made on the way."""
    params = {"w": np.zeros(3), "b": np.ones(())}
    return sg.grad(loss_and_predictions, has_aux=True)(params, *data())


def batch_norm(params, state, x, training, momentum=0.9, eps=1e-5):
    """x normalised over the batch in training, by the running statistics otherwise."""
    if training:
        mean, var = sg.mean(x, axis=0), sg.var(x, axis=0)
        state = {
            "mean": momentum * state["mean"] + (1 - momentum) * mean,
            "var": momentum * state["var"] + (1 - momentum) * var,
        }
    else:
        mean, var = state["mean"], state["var"]
    normal = (x - mean) / sg.sqrt(var + eps)
    return params["scale"] * normal + params["shift"], state


def normed_loss(params, state, x, y):
    hidden, state = batch_norm(params["norm"], state, x, training=True)
    return sg.mean((hidden @ params["w"] + params["b"] - y) ** 2), state


@sg.jit
def normed_step(params, state, x, y, rate=0.1):
    (loss, state), gradients = sg.value_and_grad(normed_loss, has_aux=True)(params, state, x, y)
    return sg.tree.map(lambda p, g: p - rate * g, params, gradients), state, loss


def fit_normed() -> tuple[Any, dict[str, np.ndarray], list[float]]:
    """Parameters, running statistics and the losses after 100 steps on shifted, stretched x."""
    x, y = data()
    x = 4 * x + np.array([1.0, -2.0, 3.0])
    params: Any = {
        "norm": {"scale": np.ones(3), "shift": np.zeros(3)}, "w": np.zeros(3), "b": np.zeros(()),
    }  # fmt: skip
    state = {"mean": np.zeros(3), "var": np.ones(3)}
    losses = []
    for _ in range(100):
        params, state, loss = normed_step(params, state, x, y)
        losses.append(float(loss))
    return params, state, losses


def main() -> None:
    np.set_printoptions(precision=6, suppress=True)
    print("theta as an array:", fit_array())
    print("params as a dict: ", fit_dict())
    gradient, predictions = auxiliary()
    print("has_aux: gradient", gradient, "first predictions", predictions[:3])
    _, state, losses = fit_normed()
    print("running mean", state["mean"], "var", state["var"])
    print(f"loss {losses[0]:.6f} -> {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
