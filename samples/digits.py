"""What the two models of handwritten digits share: data, training by hand, accuracy.

The data are scikit-learn's 1,797 images of 8 x 8 pixels (from the UCI repository's test set of
Optical Recognition of Handwritten Digits); a stratified third is held out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import staticgrad as sg
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BATCH = 32

Batch = tuple[np.ndarray, np.ndarray]


@functools.cache
def data() -> tuple[Batch, Batch]:
    """(images [n, 8, 8] from 0 to 1, labels [n]) to train on, and those held out."""
    digits = load_digits()
    images = (digits.images / 16).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target.astype("int64"), test_size=1 / 3, stratify=digits.target,
        random_state=0,
    )  # fmt: skip
    return (x_train, y_train), (x_test, y_test)


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to half a pixel along both axes: interpolated with its neighbours.

    The worst of five seeds of the perceptron goes from 97.7 to 98.7 % of the held-out images.
    """
    for axis in (1, 2):
        by = rng.uniform(-0.5, 0.5, (len(images), 1, 1)).astype("float32")
        neighbours = np.where(by > 0, np.roll(images, 1, axis), np.roll(images, -1, axis))
        images = images + abs(by) * (neighbours - images)
    return images


def train_batches(copies: int) -> Callable[[np.random.Generator], list[Batch]]:
    """What gives an epoch: `copies` of all training images, each shifted anew, in random order."""

    def epoch(rng: np.random.Generator) -> list[Batch]:
        images, labels = data()[0]
        order = rng.permutation(copies * len(labels)) % len(labels)
        images, labels = shifted(images[order], rng), labels[order]
        starts = range(0, len(order), BATCH)
        return [(images[i : i + BATCH], labels[i : i + BATCH]) for i in starts]

    return epoch


def annealing(optimizer: sg.optim.Optimizer, epochs: int) -> sg.optim.lr_scheduler.LRScheduler:
    """The rate goes down half a cosine, and stays where it is in the last of `epochs`.

    So a longer training (`--epochs 20 --resume`) goes on with small steps. `CosineAnnealingLR`
    alone would climb the cosine's other half and undo what was learnt.
    """
    return sg.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: (1 + math.cos(math.pi * min(t, epochs - 1) / epochs)) / 2
    )


def test_batches() -> list[Batch]:
    return [data()[1]]


def accuracy(logits: np.ndarray, batch: Batch) -> float:
    return float(np.mean(logits.argmax(axis=1) == batch[1]))


def train(build: Callable[[], sg.Program], seed: int) -> float:
    """The test accuracy after a training: what `staticgrad train --seed` does, by hand."""
    sg.random.seed(seed)
    program = build()
    step = sg.compile(program.train.inputs, program.train.outputs, program.train.updates)
    predict = sg.compile(program.predict.inputs, program.predict.outputs[0])
    rng = np.random.default_rng(seed)
    for _ in range(program.epochs):
        for images, labels in program.train_batches(rng):
            step(images, labels)  # forward, backward and the optimiser's step: one native call
        program.scheduler.step()
    ((images, labels),) = program.test_batches()
    return accuracy(predict(images), (images, labels))


def train_five(build: Callable[[], sg.Program], promised: float) -> None:
    """Trains from five seeds and prints how each did."""
    found = []
    for seed in range(5):
        found.append(train(build, seed))
        print(f"seed {seed}: test accuracy {found[-1]:.2%}")
    print(f"worst of {len(found)}: {min(found):.2%} (promised: {promised:.1%})")
