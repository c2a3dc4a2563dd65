"""A small classifier with dropout, momentum and a schedule: all that a checkpoint must hold."""

import numpy as np
import staticgrad as sg


def data(seed, count):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, count)
    angle = rng.uniform(0, np.pi, count) + np.pi * label
    points = np.stack([np.cos(angle) + label, np.sin(angle) + 0.5 * label], 1)
    return (points + 0.1 * rng.standard_normal((count, 2))).astype("float32"), label


def batches(points, labels, order, size=16):
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield points[chosen], labels[chosen]


def accuracy(logits, batch):
    return (logits.argmax(1) == batch[1]).mean()


def build():
    x = sg.input("x", ("N", 2))
    y = sg.input("y", ("N",), dtype="int64")
    model = sg.nn.Sequential(
        sg.nn.Linear(2, 16), sg.nn.ReLU(), sg.nn.Dropout(0.1), sg.nn.Linear(16, 2)
    )
    logits = model(x)
    loss = sg.nn.functional.cross_entropy(logits, y)
    optimizer = sg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    points, labels = data(1, 100)
    held_out = data(2, 40)
    return sg.Program(
        train=sg.Graph([x, y], [loss, logits], updates=optimizer.minimize(loss)),
        predict=sg.Graph([x], logits),
        train_batches=lambda rng: batches(points, labels, rng.permutation(len(points))),
        test_batches=lambda: [held_out],
        metrics={"accuracy": accuracy},
        scheduler=sg.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        epochs=3,
    )
