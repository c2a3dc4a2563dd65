"""Every layer, loss and optimiser against what PyTorch computed (`torch_data/record.py`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
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
# PyTorch's gradient of hardsigmoid multiplies by 1/6 rounded to float32, in float64 too.
HARDSIGMOID = {"rtol": 1e-7, "atol": 1e-12}


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


class Declared:
    """A case as graph: its inputs with their arrays, its outputs and gradients by name."""

    def __init__(self, case: c.Case, number: int = 0) -> None:
        self.case, self.number = case, number
        self.inputs: dict[str, Any] = {}
        self.arrays: list[np.ndarray] = []
        wanted: dict[str, Any] = {}

        def wrap(name: str, spec: c.T, values: np.ndarray) -> Any:
            x = self.inputs[name] = declare(f"{name}_{number}", values.shape, values.dtype)
            self.arrays.append(values)
            if spec.differentiable:
                wanted[name] = x
            return x

        result, self.module = build(case, *c.arguments(case, wrap))
        results = c.results(result)
        if self.module is not None:
            wanted |= dict(self.module.named_parameters())
        self.outputs = {f"out{i}": r for i, r in enumerate(results)}
        if wanted:
            grads = gradients(self._loss(results), list(wanted.values()), unreachable="zeros")
            self.outputs |= {f"grad.{n}": g for n, g in zip(wanted, grads)}
        self.updates = state_updates(results, training=False)

    def _loss(self, results: list[Any]) -> Any:
        total: Any = None
        for i, r in enumerate(results):
            term = (r * constant(c.random_array(f"{self.case.name}.ct{i}", c.T(r.shape)))).sum()
            total = term if total is None else total + term
        return total

    def buffers(self) -> list[tuple[str, Any]]:
        if self.module is None or not self.case.training:
            return []
        return [(f"new.{name}", b) for name, b in self.module.named_buffers()]

    def check(self, values: dict[str, np.ndarray]) -> None:
        expected = recorded()[self.case.name]
        assert set(values) == set(expected)
        tolerance = HARDSIGMOID if self.case.target == "hardsigmoid" else TOLERANCE
        for what, value in values.items():
            message = f"{self.case.name}: {what}"
            np.testing.assert_allclose(value, expected[what], **tolerance, err_msg=message)


@pytest.mark.parametrize("case", c.CASES, ids=lambda case: case.name)
def test_layer(case: c.Case) -> None:
    d = Declared(case)
    graph = Graph(list(d.inputs.values()), list(d.outputs.values()), d.updates)
    found, new_state = run_graph(graph, d.arrays)
    d.check(dict(zip(d.outputs, found)) | {what: new_state[b] for what, b in d.buffers()})


# Compiled together, since a program costs about 0.1 s whatever is in it.
GROUPS = [c.CASES[i : i + 24] for i in range(0, len(c.CASES), 24)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"from {group[0].name}")
def test_compiled_layers(group: list[c.Case]) -> None:
    cases = [Declared(case, number) for number, case in enumerate(group)]
    program = sg.compile(
        [x for d in cases for x in d.inputs.values()],
        [y for d in cases for y in d.outputs.values()],
        [pair for d in cases for pair in d.updates],
        cache=False,
    )
    found = iter(program(*(a for d in cases for a in d.arrays)))
    for d in cases:
        values = {what: next(found) for what in d.outputs}
        d.check(values | {what: b.numpy() for what, b in d.buffers()})


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
