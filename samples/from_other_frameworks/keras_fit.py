"""Keras: `fit`, `evaluate`, `predict`, each one line, with a `History` that plots itself.

    python samples/from_other_frameworks/keras_fit.py [FILE.png]

Points inside and outside a ring are told apart by a perceptron. The layers are `sg.nn`'s, loss and
optimiser are given to `fit` (Keras: to `compile`); a progress bar appears on a terminal.
"""

from __future__ import annotations

import sys

import numpy as np
import staticgrad as sg

Data = tuple[np.ndarray, np.ndarray]


def data() -> tuple[Data, Data, Data]:
    """Points of the square [-1, 1]² with the label 1 between two circles: to train on, to validate
    with, and to test."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1500, 2)).astype("float32")
    radius = np.hypot(x[:, 0], x[:, 1])
    y = ((radius > 0.4) & (radius < 0.9)).astype("int64")
    return (x[:1000], y[:1000]), (x[1000:1250], y[1000:1250]), (x[1250:], y[1250:])


def build() -> sg.nn.Module:
    sg.random.seed(0)
    return sg.nn.Sequential(
        sg.nn.Linear(2, 32), sg.nn.ReLU(), sg.nn.Linear(32, 32), sg.nn.ReLU(), sg.nn.Linear(32, 2)
    )


def three_lines() -> tuple[float, float, np.ndarray]:
    """The shortest form: loss, accuracy and predicted classes of the test points after 5 epochs."""
    (x_train, y_train), _, (x_test, y_test) = data()
    model = build()
    model.fit(x_train, y_train, loss="cross_entropy", optimizer="adam", epochs=5, progress=False)
    loss, accuracy = model.evaluate(x_test, y_test)
    return loss, accuracy, model.predict(x_test).argmax(axis=1)


def run(progress: bool = True) -> dict:
    """The history, loss and accuracy on the test points, the classes that are predicted, and after
    which epoch (from 0) training stopped early."""
    (x_train, y_train), validation, (x_test, y_test) = data()
    model = build()
    optimizer = sg.optim.Adam(model.parameters(), lr=0.01)
    stop = sg.nn.EarlyStopping(monitor="val_loss", patience=3, restore_best_weights=True)
    history = model.fit(
        x_train, y_train, loss="cross_entropy", optimizer=optimizer, metrics=["accuracy"],
        epochs=60, batch_size=32, validation_data=validation, callbacks=[stop], progress=progress,
        seed=0,
    )  # fmt: skip
    loss, accuracy = model.evaluate(x_test, y_test)
    classes = model.predict(x_test).argmax(axis=1)
    return {
        "history": history, "loss": loss, "accuracy": accuracy, "classes": classes,
        "stopped": stop.stopped_epoch, "best": stop.best_epoch, "best_loss": stop.best,
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    loss, accuracy, _ = three_lines()
    print(f"after 5 epochs: loss {loss:.4f}, accuracy {accuracy:.4f}")
    found = run()
    print(found["history"])
    print(f"stopped after epoch {found['stopped'] + 1}; the best was {found['best'] + 1}")
    print(f"test: loss {found['loss']:.4f}, accuracy {found['accuracy']:.4f}")
    print("first predictions:", found["classes"][:10], "labels:", data()[2][1][:10])
    if arguments:
        found["history"].plot(arguments[0])
        print(f"plot: {arguments[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
