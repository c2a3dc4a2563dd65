"""Linear regression on scikit-learn's diabetes data: gradient descent against the closed form.

    python samples/linear_regression.py           prints both solutions, feature by feature
    staticgrad train samples/linear_regression.py the training alone

442 patients; ten measurements predict how far the disease went on within a year (Efron et al.,
Least Angle Regression, 2004).
"""

from __future__ import annotations

import numpy as np
import staticgrad as sg
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

# The features are standardised, so the loss has the curvatures 2 * eigenvalues of their
# correlations: 0.017 to 8.0. These are the heavy ball's best figures for that span, rounded; the
# error shrinks by about 0.92 a step.
LEARNING_RATE = 0.45
MOMENTUM = 0.85
STEPS = 500

Batch = tuple[np.ndarray, np.ndarray]


def data() -> Batch:
    """Standardised features [442, 10] and the progression of the disease [442]."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return (x - x.mean(axis=0)) / x.std(axis=0), y


def r2(prediction: np.ndarray, batch: Batch) -> float:
    """The share of the variance that is explained."""
    return float(1 - np.mean((prediction - batch[1]) ** 2) / np.var(batch[1]))


def build() -> sg.Program:
    """Mean squared error of `x @ w + b`, all patients at once: an epoch is one step."""
    features = data()[0].shape[1]
    x = sg.input("x", ("N", features), dtype="float64")
    y = sg.input("y", ("N",), dtype="float64")
    w = sg.parameter(np.zeros(features), name="w")
    b = sg.parameter(np.zeros(()), name="b")

    def loss_of(features, wanted):
        """Of declared inputs, or of tensors that have values: the same code."""
        prediction = features @ w + b
        return ((prediction - wanted) ** 2).mean(), prediction

    loss, prediction = loss_of(x, y)
    optimizer = sg.optim.SGD([w, b], lr=LEARNING_RATE, momentum=MOMENTUM)
    return sg.Program(
        train=sg.Graph([x, y], [loss, prediction], updates=optimizer.minimize(loss)),
        predict=sg.Graph([x], prediction),
        train_batches=lambda rng: [data()],
        test_batches=lambda: [data()],
        metrics={"r2": r2},
        state={"w": w, "b": b},
        epochs=STEPS,
        loss=loss_of,
        optimizer=optimizer,
    )


def descend() -> tuple[np.ndarray, float]:
    """Weights and intercept after `STEPS` compiled steps."""
    program = build()
    step = sg.compile(program.train.inputs, program.train.outputs, program.train.updates)
    x, y = data()
    for _ in range(STEPS):
        step(x, y)
    return program.state["w"].numpy(), float(program.state["b"].numpy())


def main() -> None:
    names = load_diabetes().feature_names
    weights, intercept = descend()
    exact = LinearRegression().fit(*data())
    rows = [*zip(names, weights, exact.coef_), ("(intercept)", intercept, exact.intercept_)]
    print(f"{'feature':12s} {'descent':>16s} {'closed form':>16s} {'difference':>12s}")
    for name, found, wanted in rows:
        print(f"{name:12s} {found:16.9f} {wanted:16.9f} {found - wanted:12.1e}")
    x, y = data()
    print(f"R2 {r2(x @ weights + intercept, (x, y)):.6f} after {STEPS} steps")


if __name__ == "__main__":
    main()
