"""What is recorded of PyTorch for the dynamic mode: arrays that are printed, optimisers that step.

`python tests/torch_data/record_eager.py` writes `eager.json`; `tests/test_eager_torch.py` compares.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def printed() -> list[np.ndarray[Any, Any]]:
    """Arrays whose printed form has something of its own."""
    rng = np.random.default_rng(0)
    nan, inf = np.nan, np.inf
    singles = [
        [8 / 3, 10 / 3, 4], 16.0, 0.0, -0.0, 3.14159, 1e10, 1e-5, [1, 2, 3], [1, -2, 3],
        [1.5, -2, 3], [1e-5, 1], [1, 1e4], [1, 1000], [1, 1001], [1e9, 2e9], [nan, 1, inf, -inf],
        [nan, 1.5, inf], [nan, inf], [0, 0], [], [1e-4, 1], [99999999, 1], [1e8], [123456.789],
        [-1e-7, 2e-7], [0.1 + i for i in range(20)],
    ]  # fmt: skip
    found = [np.array(v, np.float32) for v in singles]
    found += [np.array(v, np.int64) for v in ([1, 2, 3], 5, [-1, 20, 300], [])]
    found += [np.array(v) for v in ([True, False], True, [[True], [False]])]
    found += [np.array([1, 2], d) for d in ("int32", "uint8", "int16", "float64")]
    found += [np.array([-128, 127], np.int8), np.array(2.5), np.array([1e-4, 1]), np.array([])]
    found += [np.zeros((0, 3), np.float32), np.zeros((2, 0), np.int64)]
    found += [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
        np.arange(16).reshape(2, 2, 2, 2), np.arange(30, dtype=np.float32), np.arange(100),
        rng.normal(size=50).astype(np.float32), rng.normal(size=(5, 20)).astype(np.float32),
        np.arange(1001, dtype=np.float32), np.arange(1000), np.arange(10000).reshape(100, 100),
        rng.normal(size=(20, 20, 20)).astype(np.float32), rng.normal(size=(2, 3000)),
        np.arange(3000.0).reshape(1000, 3), rng.normal(size=(3, 12)),
        np.full((7, 7, 7), 0.5, np.float32), np.full((11, 11, 11), -0.5, np.float32),
    ]  # fmt: skip
    return found


# name, class, arguments
OPTIMIZERS: list[tuple[str, str, dict[str, Any]]] = [
    ("sgd", "SGD", {"lr": 0.1}),
    ("sgd momentum", "SGD", {"lr": 0.05, "momentum": 0.9}),
    ("sgd nesterov", "SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("sgd dampening", "SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.3}),
    ("sgd decay", "SGD", {"lr": 0.05, "weight_decay": 0.1}),
    ("sgd maximize", "SGD", {"lr": 0.001, "maximize": True}),
    ("adam", "Adam", {"lr": 0.1}),
    ("adam amsgrad", "Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.05}),
    ("adamw", "AdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ("rmsprop", "RMSprop", {"lr": 0.05}),
    ("rmsprop centered", "RMSprop", {"lr": 0.05, "centered": True, "momentum": 0.5}),
    ("adagrad", "Adagrad", {"lr": 0.5, "lr_decay": 0.1}),
]

STEPS = 5


def optimise(library: Any, tensor: Any, name: str, options: dict[str, Any]) -> list[float]:
    """Some steps on a small problem in float64; the parameters after each."""
    w = tensor([[0.5, -0.3], [0.2, 0.9], [-0.7, 0.1]])
    b = tensor([0.1, -0.2])
    x = np.array([[1.0, 2.0, -1.0], [0.5, -1.5, 2.0], [3.0, 0.25, -0.75], [-2.0, 1.0, 0.5]])
    y = np.array([[1.0, 0.0], [0.5, -1.0], [2.0, 3.0], [-1.0, 0.25]])
    xs, ys = tensor(x, False), tensor(y, False)
    optimizer = getattr(library, name)([w, b], **options)
    found: list[float] = []
    for _ in range(STEPS):
        loss = ((xs @ w + b - ys) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for p in (w, b):
            found += [float(v) for v in p.detach().numpy().ravel()]
    return found
