"""Training steps, compiled with every pass, against the reference interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.node import Value

F = sg.nn.functional
RNG = np.random.default_rng(0)
LOSSES: dict[str, tuple[Any, Any]] = {
    "cross_entropy": (F.cross_entropy, RNG.integers(0, 5, 32)),
    "label_smoothing": (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
                        RNG.integers(0, 5, 32)),
    "probabilities": (F.cross_entropy, RNG.dirichlet(np.ones(5), 32).astype("float32")),
    "mse": (F.mse_loss, RNG.standard_normal((32, 5)).astype("float32")),
    "huber": (F.huber_loss, RNG.standard_normal((32, 5)).astype("float32")),
    "bce": (F.binary_cross_entropy_with_logits, RNG.integers(0, 2, (32, 5)).astype("float32")),
}  # fmt: skip
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: sg.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "AdamW": lambda p: sg.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: sg.optim.RMSprop(p, lr=0.005, momentum=0.5),
}


def model() -> Any:
    sg.random.seed(0)
    return sg.nn.Sequential(
        sg.nn.Linear(12, 17), sg.nn.LayerNorm(17), sg.nn.GELU(), sg.nn.Linear(17, 5)
    )


def losses_of(loss_name: str, optimizer_name: str, mode: str) -> list[float]:
    function, target = LOSSES[loss_name]
    net = model()
    x = sg.input("x", ("N", 12))
    y = sg.input("y", ("N", *target.shape[1:]), str(target.dtype))
    loss = function(net(x), y)
    assert isinstance(loss, Value)
    optimizer = OPTIMIZERS[optimizer_name](net.parameters())
    step = sg.compile([x, y], [loss], updates=optimizer.minimize(loss), mode=mode)
    batch = np.random.default_rng(1).standard_normal((32, 12)).astype("float32")
    return [float(step(batch, target)[0]) for _ in range(8)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_training_follows_the_reference(loss: str, optimizer: str) -> None:
    compiled = losses_of(loss, optimizer, "native")
    np.testing.assert_allclose(compiled, losses_of(loss, optimizer, "reference"), rtol=2e-3)
    assert compiled[-1] < compiled[0]
