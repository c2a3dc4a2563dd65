"""Optimisers as objects: updates, groups, rates, clipping, checkpoints, errors. (Their figures are
compared with PyTorch's in `test_nn_torch.py`.)"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DifferentiationError,
    GraphError,
    StateError,
)
from staticgrad.ir.graph import Graph
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter
from staticgrad.optim import lr_scheduler

from .oracle import evaluate


def quadratic() -> tuple[Any, Any]:
    """A parameter and the loss |w - 3|**2 / 2, whose gradient is w - 3."""
    w = parameter(np.array([1.0, 5.0]), "w")
    d = w - 3.0
    return w, (d * d).sum() * 0.5


def step(updates: Any, inputs: Any = (), arrays: Any = ()) -> None:
    _, new = run_graph(Graph(inputs, [], updates), list(arrays))
    for state, value in new.items():
        state.assign(value)


def test_updates_are_pairs_of_state_and_new_value() -> None:
    w, loss = quadratic()
    optimizer = optim.Adam([w], lr=0.1)
    updates = optimizer.minimize(loss)
    assert [s.name for s, _ in updates] == ["w", "w.exp_avg", "w.exp_avg_sq", "step"]
    assert all(s.type == new.type for s, new in updates)
    assert not any(s.trainable for s, _ in updates if s is not w)
    assert len(updates[1:]) == 3 and repr(updates).startswith("Updates('w', 'w.exp_avg'")
    other = parameter(np.zeros(()), "other")
    joined = updates + [(other, other + 1.0)]  # noqa: RUF005
    assert isinstance(joined, optim.Updates) and len(joined) == 5


def test_updates_are_checked_by_name() -> None:
    w, loss = quadratic()
    x = declare("x", (2,), "float64")
    with pytest.raises(GraphError, match=r"'x' .* is no state"):
        optim.Updates([(x, x + 1.0)])
    with pytest.raises(GraphError, match="'w' is updated twice"):
        optim.Updates([(w, w + 1.0), (w, w + 2.0)])
    with pytest.raises(GraphError, match=r"'w' has type float64\[2\], its new value float64\[\]"):
        optim.Updates([(w, loss)])
    with pytest.raises(GraphError, match="no tensor"):
        optim.Updates([(w, np.zeros(2))])


def test_the_rate_is_state() -> None:
    w, loss = quadratic()
    optimizer = optim.SGD([w], lr=0.1)
    program = sg.compile([], [loss], optimizer.minimize(loss))
    program()
    np.testing.assert_allclose(w.numpy(), [1.2, 4.8])
    optimizer.lr = 0.5
    program()
    np.testing.assert_allclose(w.numpy(), [2.1, 3.9])
    optimizer.lr *= 0.2
    assert optimizer.lr == pytest.approx(0.1) and isinstance(optimizer.lr, float)
    assert optimizer.lr.numpy() == pytest.approx(0.1)
    optimizer.lr.assign(0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.param_groups[0]["lr"] = 1.0
    program()
    np.testing.assert_allclose(w.numpy(), [3.0, 3.0])
    for bad in (-1.0, math.nan, [0.1]):
        with pytest.raises(ArgumentError, match="at least 0"):
            optimizer.lr = bad
    with pytest.raises(ArgumentTypeError, match="not to a tensor"):
        optimizer.lr = loss
    with pytest.raises(ArgumentError, match="'momentum' is fixed"):
        optimizer.param_groups[0]["momentum"] = 0.5


def test_groups_have_options_of_their_own() -> None:
    a, b = parameter(np.array(1.0), "a"), parameter(np.array(1.0), "b")
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 0.5, "momentum": 0.9}], lr=0.1)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5]
    assert optimizer.param_groups[1].get("momentum") == 0.9
    assert dict(optimizer.param_groups[1].items())["lr"] == 0.5
    updates = optimizer.minimize(a * 2.0 + b * 4.0)
    step(updates)
    assert a.numpy() == pytest.approx(0.8) and b.numpy() == pytest.approx(-1.0)
    c = parameter(np.array(1.0), "c")
    optimizer.add_param_group({"params": [c], "lr": 0.3})
    assert optimizer.parameters[2] is c and "lr: 0.3" in repr(optimizer)
    optimizer.lr = 0.2
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.2, 0.2]


def test_a_step_along_given_gradients() -> None:
    a, b = parameter(np.array(1.0), "a"), parameter(np.array(1.0), "b")
    optimizer = optim.SGD([a, b], lr=0.1)
    step(optimizer.apply_gradients([a * 10.0, b * 0.0]))
    assert (a.numpy(), b.numpy()) == (0.0, 1.0)
    updates = optimizer.apply_gradients([(b * 10.0, b)])
    assert len(updates) == 1
    step(updates)
    assert b.numpy() == 0.0
    with pytest.raises(ArgumentError, match="1 gradients for 2 parameters"):
        optimizer.apply_gradients([a])
    with pytest.raises(ArgumentError, match="gradient of 'b' must have the type"):
        optimizer.apply_gradients([a, np.zeros(())])
    with pytest.raises(ArgumentError, match="'other' is not among"):
        other = parameter(np.array(1.0), "other")
        optimizer.apply_gradients([(a, other)])


def test_parameters_that_the_loss_does_not_reach() -> None:
    w, loss = quadratic()
    idle = parameter(np.ones(2), "idle")
    optimizer = optim.SGD([w, idle], lr=0.1, weight_decay=0.5)
    with pytest.raises(DifferentiationError, match=r"SGD.minimize: .*idle"):
        optimizer.minimize(loss)
    assert [s.name for s, _ in optimizer.minimize(loss, [w])] == ["w"]
    step(optimizer.minimize(loss, unreachable="zeros"))
    np.testing.assert_allclose(idle.numpy(), [0.95, 0.95])  # the decay alone
    with pytest.raises(ArgumentError, match="'x' is not among"):
        optimizer.minimize(loss, [declare("x", (2,))])


def test_what_optimisers_refuse() -> None:
    w, _ = quadratic()
    buffer = parameter(np.zeros(2), "buffer", trainable=False)
    with pytest.raises(ArgumentError, match="empty list"):
        optim.SGD([], lr=0.1)
    with pytest.raises(ArgumentError, match="empty list"):
        optim.SGD(nn.ReLU().parameters(), lr=0.1)
    with pytest.raises(ArgumentTypeError, match="list of parameters, not one tensor"):
        optim.SGD(w, lr=0.1)
    with pytest.raises(ArgumentTypeError, match="list of parameters, got int"):
        optim.SGD(3, lr=0.1)
    with pytest.raises(ArgumentTypeError, match="expected parameters"):
        optim.SGD([declare("x", (2,))], lr=0.1)
    with pytest.raises(ArgumentError, match=r"'buffer' of type .* is not trainable"):
        optim.SGD([buffer], lr=0.1)
    with pytest.raises(ArgumentError, match="twice"):
        optim.SGD([w, w], lr=0.1)
    with pytest.raises(ArgumentError, match="more than one parameter group"):
        optim.SGD([{"params": [w]}, {"params": [w]}], lr=0.1)
    with pytest.raises(ArgumentError, match=r"unknown options \['beta'\]"):
        optim.SGD([{"params": [w], "beta": 1}], lr=0.1)
    with pytest.raises(ArgumentError, match='"params"'):
        optim.SGD([{"lr": 1}], lr=0.1)
    with pytest.raises(ArgumentError, match="nesterov"):
        optim.SGD([w], lr=0.1, nesterov=True)
    with pytest.raises(ArgumentError, match="at least 0"):
        optim.SGD([w], lr=-0.1)
    with pytest.raises(ArgumentError, match=r"betas\[1\]"):
        optim.Adam([w], betas=(0.9, 1.0))
    with pytest.raises(ArgumentError, match="weight_decay"):
        optim.AdamW([w], weight_decay=-1.0)
    with pytest.raises(ArgumentError, match="alpha"):
        optim.RMSprop([w], alpha=-1.0)
    with pytest.raises(ArgumentError, match="initial_accumulator_value"):
        optim.Adagrad([w], initial_accumulator_value=-1.0)


def test_dampening_of_a_later_group_is_refused() -> None:
    a, b = parameter(np.array(1.0), "a"), parameter(np.array(1.0), "b")
    plain = optim.SGD([a], lr=0.1)
    with pytest.raises(ArgumentError, match="when the optimiser is made"):
        plain.add_param_group({"params": [b], "momentum": 0.9, "dampening": 0.5})
    mixed = optim.SGD([{"params": [a]}, {"params": [b], "momentum": 0.5, "dampening": 0.5}], 1.0)
    updates = mixed.minimize(a + b)
    step(updates)
    assert b.numpy() == 0.0  # the first step takes the gradient whole
    step(updates)
    assert b.numpy() == -1.0  # 0.5*1 + (1 - 0.5)*1


def test_checkpoints_continue_a_run() -> None:
    w, loss = quadratic()
    optimizer = optim.Adam([w], lr=0.1, amsgrad=True)
    updates = optimizer.minimize(loss)
    step(updates)
    saved, value = optimizer.state_dict(), w.numpy()
    assert list(saved) == [
        "step", "param_groups.0.lr", "state.0.exp_avg", "state.0.exp_avg_sq",
        "state.0.max_exp_avg_sq",
    ]  # fmt: skip
    step(updates)
    expected = w.numpy()
    w2, loss2 = quadratic()
    again = optim.Adam([w2], lr=0.7, amsgrad=True)
    w2.assign(value)
    again.load_state_dict(saved)
    assert again.lr == 0.1
    step(again.minimize(loss2))
    np.testing.assert_array_equal(w2.numpy(), expected)


def test_checkpoints_that_do_not_fit() -> None:
    w, _ = quadratic()
    optimizer = optim.SGD([w], lr=0.1, momentum=0.9)
    state = optimizer.state_dict()
    with pytest.raises(StateError, match=r"missing key: state\.0\.momentum_buffer"):
        optimizer.load_state_dict({"param_groups.0.lr": 0.5})
    with pytest.raises(StateError, match="surplus key: step"):
        optimizer.load_state_dict({**state, "step": 1})
    with pytest.raises(StateError, match=r"momentum_buffer: expected float64\[2\], got"):
        optimizer.load_state_dict(
            {"param_groups.0.lr": 0.5, "state.0.momentum_buffer": np.zeros(3)}
        )
    assert optimizer.lr == 0.1


def test_clipping() -> None:
    g, h = declare("g", (2,)), declare("h", (3,), "float64")
    arrays = [np.array([3.0, 0.0], "float32"), np.array([0.0, 4.0, 0.0])]
    norm = optim.global_norm([g, h])
    assert norm.dtype == "float64"
    clipped = optim.clip_by_global_norm([g, h], 1.0)
    assert [c.dtype for c in clipped] == ["float32", "float64"]
    found = evaluate([norm, *clipped], [g, h], arrays)
    assert found[0] == 5.0
    np.testing.assert_allclose(found[1], arrays[0] / 5.000001, rtol=1e-6)
    np.testing.assert_allclose(found[2], arrays[1] / 5.000001, rtol=1e-12)
    (same,) = evaluate(optim.clip_by_global_norm([h], 10.0), [g, h], arrays)
    np.testing.assert_array_equal(same, arrays[1])
    (largest,) = evaluate([optim.global_norm([g, h], math.inf)], [g, h], arrays)
    (total,) = evaluate([optim.global_norm([g, h], 1.0)], [g, h], arrays)
    assert (largest, total) == (4.0, 7.0)
    (held,) = evaluate(optim.clip_by_value([h], 0.5), [g, h], arrays)
    np.testing.assert_array_equal(held, [0.0, 0.5, 0.0])
    for bad in (0.0, -1.0):
        with pytest.raises(ArgumentError, match="must be positive"):
            optim.clip_by_global_norm([g], bad)
        with pytest.raises(ArgumentError, match="must be positive"):
            optim.clip_by_value([g], bad)
    with pytest.raises(ArgumentError, match="no gradients"):
        optim.global_norm([])
    with pytest.raises(ArgumentTypeError, match="floating tensors"):
        optim.global_norm([np.zeros(3)])


def test_a_program_trains() -> None:
    sg.random.seed(0)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((64, 2)).astype("float32")
    labels = (data[:, 0] * data[:, 1] > 0).astype("int64")
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 2))
    x, y = declare("x", ("N", 2)), declare("y", ("N",), "int64")
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    train = sg.compile([x, y], [loss], optimizer.minimize(loss, clip_norm=1.0))
    first = float(train(data, labels)[0])
    for _ in range(60):
        (last,) = train(data, labels)
    assert float(last) < 0.2 * first
    predict = sg.compile([x], model(x))
    accuracy = (predict(data).argmax(1) == labels).mean()
    assert accuracy > 0.9
    assert model[2].num_batches_tracked.numpy() == 61
    assert optimizer.state_dict()["step"] == 61


# --- schedules ------------------------------------------------------------------------------------


def optimizer_with(lr: float = 1.0) -> optim.Optimizer:
    return optim.SGD([parameter(np.zeros(1))], lr=lr)


def test_lambda_and_sequential_schedules() -> None:
    optimizer = optimizer_with(0.5)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 / (t + 1))
    schedule.step()
    assert optimizer.lr == 0.25 and schedule.get_last_lr() == [0.25]
    optimizer = optimizer_with()
    warm = lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
    decay = lr_scheduler.ExponentialLR(optimizer, 0.5)
    both = lr_scheduler.SequentialLR(optimizer, [warm, decay], [3])
    rates = [both.get_last_lr()[0]]
    for _ in range(5):
        both.step()
        rates.append(both.get_last_lr()[0])
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 0.5, 0.25])


def test_schedules_are_saved_and_taken_up() -> None:
    a, b = optimizer_with(0.3), optimizer_with(0.9)
    first = lr_scheduler.CosineAnnealingLR(a, 10)
    for _ in range(4):
        first.step()
    second = lr_scheduler.CosineAnnealingLR(b, 10)
    second.load_state_dict(first.state_dict())
    assert b.lr == a.lr
    with pytest.raises(StateError, match="CosineAnnealingLR"):
        second.load_state_dict({"last_epoch": 1})
    plateau = lr_scheduler.ReduceLROnPlateau(a)
    plateau.step(1.0)
    again = lr_scheduler.ReduceLROnPlateau(b)
    again.load_state_dict(plateau.state_dict())
    assert again.best == 1.0
    with pytest.raises(StateError, match="ReduceLROnPlateau"):
        again.load_state_dict({})


def test_schedules_check_their_arguments() -> None:
    optimizer = optimizer_with()
    with pytest.raises(ArgumentTypeError, match="expected an optimiser"):
        lr_scheduler.StepLR(3, 1)
    with pytest.raises(ArgumentError, match="step_size"):
        lr_scheduler.StepLR(optimizer, 0)
    with pytest.raises(ArgumentError, match="one function or 1"):
        lr_scheduler.LambdaLR(optimizer, [abs, abs])
    with pytest.raises(ArgumentError, match="factors"):
        lr_scheduler.LinearLR(optimizer, start_factor=0.0)
    with pytest.raises(ArgumentError, match="T_max"):
        lr_scheduler.CosineAnnealingLR(optimizer, 0)
    with pytest.raises(ArgumentError, match="T_0"):
        lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 0)
    with pytest.raises(ArgumentError, match="total_iters"):
        lr_scheduler.PolynomialLR(optimizer, 0)
    with pytest.raises(ArgumentError, match="total_steps"):
        lr_scheduler.OneCycleLR(optimizer, 0.1)
    with pytest.raises(ArgumentError, match="pct_start"):
        lr_scheduler.OneCycleLR(optimizer, 0.1, 10, pct_start=2.0)
    with pytest.raises(ArgumentError, match="milestones"):
        lr_scheduler.SequentialLR(optimizer, [lr_scheduler.ExponentialLR(optimizer, 0.5)], [3])
    with pytest.raises(ArgumentError, match="factor must be below 1"):
        lr_scheduler.ReduceLROnPlateau(optimizer, factor=1.0)
    with pytest.raises(ArgumentError, match="mode must be"):
        lr_scheduler.ReduceLROnPlateau(optimizer, mode="best")
    cycle = lr_scheduler.OneCycleLR(optimizer, 0.1, 2)
    cycle.step()
    cycle.step()
    with pytest.raises(ArgumentError, match="called 3 times"):
        cycle.step()
