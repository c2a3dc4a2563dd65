"""Handwritten digits by a multi-layer perceptron.

staticgrad train samples/digits_mlp.py      one training, with progress bar and checkpoint
python samples/digits_mlp.py                five trainings from five seeds
"""

from __future__ import annotations

import digits
import staticgrad as sg
from staticgrad import nn

EPOCHS = 10
PROMISED = 0.97  # test accuracy that every seed reaches


def build() -> sg.Program:
    """The model with its data: what `staticgrad train` takes."""
    x = sg.input("x", ("N", 8, 8))
    y = sg.input("y", ("N",), dtype="int64")
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(128, 10),
    )  # fmt: skip

    def loss_of(images, labels):
        """Of declared inputs, or of tensors that have values: the same code."""
        logits = model(images)
        return nn.functional.cross_entropy(logits, labels), logits

    loss, logits = loss_of(x, y)
    optimizer = sg.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    return sg.Program(
        train=sg.Graph([x, y], [loss, logits], updates=optimizer.minimize(loss)),
        predict=sg.Graph([x], logits),
        train_batches=digits.train_batches(copies=4),
        test_batches=digits.test_batches,
        metrics={"accuracy": digits.accuracy},
        scheduler=digits.annealing(optimizer, EPOCHS),
        epochs=EPOCHS,
        loss=loss_of,
        optimizer=optimizer,
    )


if __name__ == "__main__":
    digits.train_five(build, PROMISED)
