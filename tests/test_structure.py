"""What the README model becomes: the kernels of its step, by structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    sg.random.seed(0)
    x = sg.input("x", ("N", 784))
    y = sg.input("y", ("N",), dtype="int64")
    model = sg.nn.Sequential(sg.nn.Linear(784, 256), sg.nn.ReLU(), sg.nn.Linear(256, 10))
    logits = model(x)
    loss = sg.nn.functional.cross_entropy(logits, y)
    optimizer = sg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return {
        "model": model,
        "optimizer": optimizer,
        "train_step": sg.compile([x, y], [loss], updates=optimizer.minimize(loss)),
        "predict": sg.compile([x], logits),
    }


def kernels(program: Any) -> list[tuple[str, ...]]:
    return [tuple(k["nodes"]) for k in program.report()["kernels"]]


def test_the_fused_forward_has_no_kernel_of_its_own_for_bias_activation_or_mask(
    programs: dict[str, Any],
) -> None:
    assert kernels(programs["predict"]) == [("matmul", "add", "relu"), ("matmul", "add")]
    step = kernels(programs["train_step"])
    assert {"matmul", "add", "relu", "greater"} == set(step[0])
    products = [k for k in step if "matmul" in k]
    assert len(products) == 5  # two forward, two weights' gradients, one input's gradient
    alone = {"add", "relu", "greater", "where", "multiply", "subtract"}
    assert not [k for k in step if set(k) <= alone], step


def test_parameters_are_updated_where_their_gradient_is_computed(
    programs: dict[str, Any],
) -> None:
    step = programs["train_step"]
    updates = [k for k in kernels(step) if "matmul" in k and "subtract" in k]
    assert len(updates) == 2
    assert not [k for k in kernels(step) if k == ("copy",)]  # no new value is copied into place


def test_one_call_trains_and_the_learning_rate_is_state(programs: dict[str, Any]) -> None:
    from staticgrad.api import compile as driver

    step, optimizer = programs["train_step"], programs["optimizer"]
    rng = np.random.default_rng(0)
    xb = rng.standard_normal((64, 784)).astype("float32")
    yb = rng.integers(0, 10, 64)
    before = driver.compilations
    losses = [float(step(xb, yb)[0]) for _ in range(30)]
    assert losses[-1] < 0.05 * losses[0]
    optimizer.lr = 0.0
    weight = programs["model"].state_dict()["0.weight"].copy()
    step(xb, yb)
    np.testing.assert_array_equal(programs["model"].state_dict()["0.weight"], weight)
    optimizer.lr = 0.1
    step(xb[:7], yb[:7])
    assert driver.compilations == before
