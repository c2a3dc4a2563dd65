"""Colour images of any size by a small convolutional network.

staticgrad train samples/rgb_convnet.py      one training, with progress bar and checkpoint
staticgrad compare samples/rgb_convnet.py    the same model as a static graph and as it is called

A batch is [N, 3, H, W]: the number of images, three colours, height and width. The convolutions
slide over whatever height and width there is and the mean over all places follows them, so N, H and
W are symbolic: one compiled program serves every batch. The training batches do have three sizes.
"""

from __future__ import annotations

import numpy as np
import staticgrad as sg
from staticgrad import nn

EPOCHS = 6
IMAGES = 400
BATCH = 20
SIZES = ((18, 22), (14, 26), (26, 14))  # height, width
CLASSES = ("plain", "stripes across", "stripes down", "chequered")
PROMISED = 0.97  # test accuracy after EPOCHS, whatever the seed

Batch = tuple[np.ndarray, np.ndarray]


def images(rng: np.random.Generator, count: int, height: int, width: int) -> Batch:
    """Synthetic images [count, 3, height, width] in random colours with noise, and their classes.

    What tells the classes apart is the pattern alone: which way the colour alternates, if it does.
    """
    label = rng.integers(0, len(CLASSES), count)
    rows, columns = np.arange(height)[:, None] // 2 % 2, np.arange(width)[None, :] // 2 % 2
    patterns = np.stack([0 * (rows + columns), rows + 0 * columns, columns + 0 * rows,
                         rows ^ columns])  # fmt: skip
    colours = rng.uniform(-1, 1, (2, count, 3, 1, 1))
    colours[1] = colours[0] - np.sign(colours[0]) * rng.uniform(0.6, 1, (count, 3, 1, 1))
    mask = patterns[label][:, None]
    clean = np.where(mask == 1, colours[1], colours[0])
    noisy = clean + 0.2 * rng.standard_normal(clean.shape)
    return noisy.astype("float32"), label.astype("int64")


def train_batches(rng: np.random.Generator) -> list[Batch]:
    """New images in every epoch; batch by batch another size."""
    return [images(rng, BATCH, *SIZES[i % len(SIZES)]) for i in range(IMAGES // BATCH)]


def test_batches() -> list[Batch]:
    """The same in every process; sizes that training has not seen among them."""
    rng = np.random.default_rng(1)
    return [images(rng, 64, *size) for size in (*SIZES, (14, 24))]


def accuracy(logits: np.ndarray, batch: Batch) -> float:
    return float(np.mean(logits.argmax(axis=1) == batch[1]))


def network() -> nn.Module:
    """Two convolutions, the mean over all places, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),  # [N, 32, H', W'] -> [N, 32]
        nn.Linear(32, len(CLASSES)),
    )  # fmt: skip


def build() -> sg.Program:
    """The model with its data: what `staticgrad train` takes."""
    x = sg.input("x", ("N", 3, "H", "W"))
    y = sg.input("y", ("N",), dtype="int64")
    model = network()

    def loss_of(images, labels):
        """Of declared inputs, or of tensors that have values: the same code."""
        logits = model(images)
        return nn.functional.cross_entropy(logits, labels), logits

    loss, logits = loss_of(x, y)
    optimizer = sg.optim.Adam(model.parameters(), lr=1e-2)
    return sg.Program(
        train=sg.Graph([x, y], [loss, logits], updates=optimizer.minimize(loss)),
        predict=sg.Graph([x], logits),
        train_batches=train_batches,
        test_batches=test_batches,
        metrics={"accuracy": accuracy},
        epochs=EPOCHS,
        loss=loss_of,
        optimizer=optimizer,
    )


def main() -> None:
    """Trains by hand and prints the accuracy for each size of image."""
    sg.random.seed(0)
    program = build()
    step = sg.compile(program.train.inputs, program.train.outputs, program.train.updates)
    predict = sg.compile(program.predict.inputs, program.predict.outputs[0])
    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for batch in train_batches(rng):
            step(*batch)
    for x, y in test_batches():
        print(f"{x.shape[2]:2d} x {x.shape[3]:2d}: accuracy {accuracy(predict(x), (x, y)):.1%}")


if __name__ == "__main__":
    main()
