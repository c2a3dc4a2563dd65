"""Handwritten digits by a small convolutional network with batch normalisation.

staticgrad train samples/digits_cnn.py      one training, with progress bar and checkpoint
python samples/digits_cnn.py                five trainings from five seeds
"""

from __future__ import annotations

import digits
import staticgrad as sg
from staticgrad import nn

EPOCHS = 10
PROMISED = 0.985  # test accuracy that every seed reaches


def build() -> sg.Program:
    """The model with its data: what `staticgrad train` takes."""
    x = sg.input("x", ("N", 8, 8))
    y = sg.input("y", ("N",), dtype="int64")
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8)),  # [N, 8, 8] -> [N, 1, 8, 8]: one channel
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(64, 10),
    )  # fmt: skip

    def loss_of(images, labels):
        """Of declared inputs, or of tensors that have values: the same code."""
        logits = model(images)
        return nn.functional.cross_entropy(logits, labels), logits

    loss, logits = loss_of(x, y)
    optimizer = sg.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    return sg.Program(
        train=sg.Graph([x, y], [loss, logits], updates=optimizer.minimize(loss)),
        predict=sg.Graph([x], logits),
        train_batches=digits.train_batches(copies=2),
        test_batches=digits.test_batches,
        metrics={"accuracy": digits.accuracy},
        scheduler=digits.annealing(optimizer, EPOCHS),
        epochs=EPOCHS,
        loss=loss_of,
        optimizer=optimizer,
    )


if __name__ == "__main__":
    digits.train_five(build, PROMISED)
