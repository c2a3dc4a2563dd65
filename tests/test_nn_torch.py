"""Every layer, loss and optimiser against what PyTorch computed (`torch_data/record.py`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from staticgrad import nn, optim
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.graph import Graph
from staticgrad.ops.convert import constant
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter
from staticgrad.ops.mode import state_updates

from .torch_data import cases as c

DATA = Path(__file__).parent / "torch_data"
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


@cache
def recorded() -> dict[str, dict[str, np.ndarray]]:
    """{case: {what: array}}"""
    stored = np.load(DATA / "layers.npz")
    names, shapes = str(stored["names"]).split("\n"), str(stored["shapes"]).split("\n")
    found: dict[str, dict[str, np.ndarray]] = {}
    at = 0
    for name, text in zip(names, shapes, strict=True):
        shape = tuple(int(n) for n in text.split(",") if n)
        size = int(np.prod(shape))
        case, what = name.rsplit("/", 1)
        found.setdefault(case, {})[what] = stored["values"][at : at + size].reshape(shape)
        at += size
    return found


def build(case: c.Case, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if case.init is None:
        return getattr(nn.functional, case.target)(*args, **kwargs), None
    module = getattr(nn, case.target)(*case.init, **case.options)
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        module.double()
    module.train(case.training)
    module.load_state_dict(
        {n: c.parameter_value(case, n, v.shape) for n, v in module.state_dict().items()}
    )
    return module(*args, **kwargs), module


@pytest.mark.parametrize("case", c.CASES, ids=lambda case: case.name)
def test_layer(case: c.Case) -> None:
    inputs: dict[str, Any] = {}
    arrays: list[np.ndarray] = []
    wanted: dict[str, Any] = {}

    def wrap(name: str, spec: c.T, values: np.ndarray) -> Any:
        inputs[name] = declare(name, values.shape, values.dtype)
        arrays.append(values)
        if spec.differentiable:
            wanted[name] = inputs[name]
        return inputs[name]

    args, kwargs = c.arguments(case, wrap)
    result, module = build(case, args, kwargs)
    results = [r for r in (result if isinstance(result, tuple) else (result,)) if r is not None]
    if module is not None:
        wanted |= dict(module.named_parameters())
    outputs = {f"out{i}": r for i, r in enumerate(results)}
    losses = [
        (r * constant(c.random_array(f"{case.name}.ct{i}", c.T(r.shape)))).sum()
        for i, r in enumerate(results)
        if r.dtype.is_float
    ]
    if wanted:
        loss = losses[0] if len(losses) == 1 else losses[0] + losses[1]
        grads = gradients(loss, list(wanted.values()), unreachable="zeros")
        outputs |= {f"grad.{n}": g for n, g in zip(wanted, grads)}
    updates = state_updates(results, training=False)
    graph = Graph(list(inputs.values()), list(outputs.values()), updates)
    found, new_state = run_graph(graph, arrays)
    values = dict(zip(outputs, found))
    if module is not None and case.training:
        values |= {f"new.{n}": new_state[b] for n, b in module.named_buffers()}
    expected = recorded()[case.name]
    assert set(values) == set(expected)
    for what, value in values.items():
        np.testing.assert_allclose(value, expected[what], **TOLERANCE, err_msg=what)


def regression(symbolic: bool) -> tuple[Any, Any, Any, list[Any], list[np.ndarray]]:
    data = c.optimizer_data()
    w, b = parameter(data["w"], "w"), parameter(data["b"], "b")
    n = "N" if symbolic else 8
    x, y = declare("x", (n, 3), "float64"), declare("y", (n, 2), "float64")
    loss = nn.functional.mse_loss(nn.functional.tanh(nn.functional.linear(x, w.T, b)), y)
    return w, b, loss, [x, y], [data["x"], data["y"]]


@pytest.mark.parametrize("number", range(len(c.OPTIMIZERS)), ids=lambda i: str(c.OPTIMIZERS[i]))
def test_optimizer(number: int) -> None:
    name, options, (norm, value) = c.OPTIMIZERS[number]
    w, b, loss, inputs, arrays = regression(symbolic=number % 2 == 0)
    optimizer = getattr(optim, name)([w, b], **options)
    updates = optimizer.minimize(loss, clip_norm=norm, clip_value=value)
    graph = Graph(inputs, [loss], updates)
    for expected in np.load(DATA / "optim.npz")[str(number)]:
        _, new_state = run_graph(graph, arrays)
        for state, new in new_state.items():
            state.assign(new)
        found = np.concatenate([w.numpy().ravel(), b.numpy()])
        np.testing.assert_allclose(found, expected, **TOLERANCE)


def two_groups() -> optim.Optimizer:
    groups = [{"params": [parameter(np.zeros(1))], "lr": lr} for lr in c.SCHEDULER_RATES]
    return optim.SGD(groups)


@pytest.mark.parametrize("number", range(len(c.SCHEDULERS)), ids=lambda i: str(c.SCHEDULERS[i]))
def test_scheduler(number: int) -> None:
    name, options = c.SCHEDULERS[number]
    optimizer = two_groups()
    options = {k: v for k, v in options.items() if k != "cycle_momentum"}
    scheduler = getattr(optim.lr_scheduler, name)(optimizer, **options)
    rates = [scheduler.get_last_lr()]
    for _ in range(c.SCHEDULER_STEPS):
        scheduler.step()
        rates.append(scheduler.get_last_lr())
    np.testing.assert_allclose(rates, np.load(DATA / "optim.npz")[f"lr{number}"], rtol=1e-12)


def test_reduce_on_plateau() -> None:
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(two_groups(), **c.PLATEAU)
    rates = []
    for metric in c.PLATEAU_METRICS:
        scheduler.step(metric)
        rates.append(scheduler.get_last_lr())
    np.testing.assert_allclose(rates, np.load(DATA / "optim.npz")["plateau"], rtol=1e-12)
