"""Frozen parameters (`requires_grad` False) are left as they are, by every way to train."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

from .fit_models import QUIET

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))


def _model() -> Any:
    sg.random.seed(0)
    layers = sg.nn.Sequential(sg.nn.Linear(3, 4, bias=False), sg.nn.Linear(4, 2, bias=False))
    return layers.to("float64")


def _optimizer(model: Any) -> sg.optim.Optimizer:
    return sg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)


def _last_layer_trained(model: Any, steps: int) -> Any:
    """PyTorch's SGD of the second layer alone, in NumPy."""
    hidden, w = X @ model[0].weight.numpy().T, model[1].weight.numpy()
    buffer: Any = 0.0
    for _ in range(steps):
        gradient = 2 * (hidden @ w.T - Y).T @ hidden / Y.size + 0.05 * w
        buffer = 0.9 * buffer + gradient
        w = w - 0.1 * buffer
    return w


def _by_compile(model: Any, optimizer: Any, steps: int) -> None:
    x, y = sg.input("x", ("N", 3), "float64"), sg.input("y", ("N", 2), "float64")
    loss = sg.nn.functional.mse_loss(model(x), y)
    step = sg.compile([x, y], loss, updates=optimizer.minimize(loss))
    for _ in range(steps):
        step(X, Y)


def _by_session(model: Any, optimizer: Any, steps: int) -> None:
    x, y = sg.input("x", ("N", 3), "float64"), sg.input("y", ("N", 2), "float64")
    train = optimizer.minimize(sg.nn.functional.mse_loss(model(x), y))
    with sg.Session() as session:
        for _ in range(steps):
            session.run(train, {x: X, y: Y})


def _by_fit(model: Any, optimizer: Any, steps: int) -> None:
    model.fit(X, Y, loss="mse", optimizer=optimizer, epochs=steps, batch_size=12, **QUIET)


def _eagerly(model: Any, optimizer: Any, steps: int) -> None:
    x, y = sg.eager.tensor(X), sg.eager.tensor(Y)
    for _ in range(steps):
        optimizer.zero_grad()
        sg.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("train", [_by_compile, _by_session, _by_fit, _eagerly])
def test_a_frozen_layer_is_not_moved_by_gradient_decay_or_momentum(train: Any) -> None:
    model = _model()
    before, expected = model[0].weight.numpy(), _last_layer_trained(model, 5)
    optimizer = _optimizer(model)
    assert model[0].requires_grad_(False) is model[0]
    train(model, optimizer, 5)
    np.testing.assert_array_equal(model[0].weight.numpy(), before)
    np.testing.assert_allclose(model[1].weight.numpy(), expected, rtol=1e-10)
    assert not optimizer.state_dict()["state.0.momentum_buffer"].any()


def test_what_is_frozen_after_training_is_moved_by_no_momentum_of_before() -> None:
    model = _model()
    optimizer = _optimizer(model)
    _by_fit(model, optimizer, 2)
    model[0].weight.requires_grad = False
    frozen, other = model[0].weight.numpy(), model[1].weight.numpy()
    _by_fit(model, optimizer, 2)
    np.testing.assert_array_equal(model[0].weight.numpy(), frozen)
    assert (model[1].weight.numpy() != other).all()
    model.requires_grad_(True)
    _by_fit(model, optimizer, 1)
    assert (model[0].weight.numpy() != frozen).all()


def test_freezing_leaves_names_state_and_gradients_by_name_alone() -> None:
    model = _model()
    names = list(model.state_dict())
    weight = model[0].weight.requires_grad_(False)
    assert not weight.requires_grad and weight is model[0].weight
    assert list(model.state_dict()) == names
    assert [n for n, _ in model.named_parameters()] == names
    x = sg.input("x", ("N", 3), "float64")
    gradient = sg.compile([x], sg.gradients(sg.sum(model(x)), weight))(X)
    np.testing.assert_allclose(
        gradient, np.outer(model[1].weight.numpy().sum(0), X.sum(0)), rtol=1e-12
    )
    twin = copy.deepcopy(model)
    assert [p.requires_grad for p in twin.parameters()] == [False, True]
    assert [p.requires_grad for p in model.to("float32").parameters()] == [False, True]


def test_trainable_of_a_layer_is_keras_s_name_for_it() -> None:
    model = _model()
    model[0].trainable = False
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    model.trainable = True
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_of_which_nothing_is_left_to_train_is_refused() -> None:
    model = _model().requires_grad_(False)
    x = sg.input("x", ("N", 3), "float64")
    with pytest.raises(sg.ArgumentError, match=r"all parameters are frozen.*requires_grad_\(True"):
        _optimizer(model).minimize(sg.sum(model(x)))


def test_a_named_optimizer_stays_the_one_named_when_a_layer_is_unfrozen() -> None:
    """Adam's correction would make the first steps of a parameter unfrozen late too large."""
    model = _model()
    model[0].requires_grad_(False)
    model.fit(X, Y, loss="mse", optimizer="sgd", epochs=1, **QUIET)
    model.requires_grad_(True)
    before, after = model[1].weight.numpy(), model[0].weight.numpy()
    hidden = X @ after.T
    error = hidden @ before.T - Y
    model.fit(X, Y, epochs=1, **QUIET)
    expected = after - 1e-3 * before.T @ (2 * error.T @ X / Y.size)
    np.testing.assert_allclose(model[0].weight.numpy(), expected, rtol=1e-10)
