"""`Variable` and `GradientTape`: TensorFlow 2's programs and rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DifferentiationError,
    ShapeError,
)

eager = sg.eager


def test_descent_with_assign_sub() -> None:
    x = eager.Variable(5.0)
    seen = [float(x)]
    for _ in range(14):
        with eager.GradientTape() as tape:
            y = x**2
        x.assign_sub(0.3 * tape.gradient(y, x))
        seen.append(float(x))
    assert np.around(seen, 2).tolist() == [5, 2, 0.8, 0.32, 0.13, 0.05, 0.02, 0.01] + [0] * 7


def test_two_variables() -> None:
    x, y = eager.Variable(3.0), eager.Variable(1.0)
    with eager.GradientTape() as tape:
        z = (x - y) ** 2
    gx, gy = tape.gradient(z, [x, y])
    assert (gx.item(), gy.item()) == (4.0, -4.0)


def test_sources_keep_their_structure() -> None:
    w, b = eager.Variable([[1.0, 2.0]]), eager.Variable([0.5])
    with eager.GradientTape() as tape:
        loss = (eager.ones(3, 1) @ w + b).sum()
    found = tape.gradient(loss, {"w": w, "rest": (b, [w])})
    assert found["w"].tolist() == [[3.0, 3.0]] and found["rest"][0].tolist() == [6.0]
    assert found["rest"][1][0].tolist() == [[3.0, 3.0]]


def test_what_was_computed_outside_gives_none() -> None:
    x = eager.Variable(3.0)
    y = x * x
    with eager.GradientTape() as tape:
        z = y * 2.0
        w = x * 1.0
    assert tape.gradient([z], x) is None
    with eager.GradientTape(persistent=True) as tape:
        w = x * 5.0
    after = w * w
    assert tape.gradient(after, x) is None
    assert tape.gradient(w, x).item() == 5.0
    zeros = tape.gradient(after, x, unconnected_gradients="zero")
    assert zeros.tolist() == 0.0


def test_a_tape_serves_once_unless_persistent() -> None:
    x = eager.Variable(3.0)
    with eager.GradientTape() as tape:
        y = x * x
    tape.gradient(y, x)
    with pytest.raises(DifferentiationError, match="persistent=True"):
        tape.gradient(y, x)
    with eager.GradientTape(persistent=True) as tape:
        y = x * x
        z = y * y
    assert tape.gradient(y, x).item() == 6.0 and tape.gradient(z, x).item() == 108.0
    assert tape.gradient(z, y).item() == 18.0


def test_watching() -> None:
    constant = eager.tensor(3.0)
    with eager.GradientTape() as tape:
        tape.watch(constant)
        y = constant * constant
    assert tape.gradient(y, constant).item() == 6.0 and not constant.requires_grad
    a, b = eager.Variable(2.0), eager.Variable(3.0, trainable=False)
    with eager.GradientTape(persistent=True) as tape:
        y = a * b
    assert tape.gradient(y, a).item() == 3.0 and tape.gradient(y, b) is None
    with eager.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(b)
        y = a * b
    assert tape.gradient(y, a) is None and tape.gradient(y, b).item() == 2.0


def test_stop_recording() -> None:
    x = eager.Variable(2.0)
    with eager.GradientTape(persistent=True) as tape:
        y = x * x
        with tape.stop_recording():
            z = x * y
        w = y * 3.0
    assert tape.gradient(z, x) is None and tape.gradient(w, x).item() == 12.0


def test_tapes_nest() -> None:
    x = eager.Variable(2.0)
    with eager.GradientTape() as outer:
        with eager.GradientTape() as inner:
            y = x**3
        slope = inner.gradient(y, x)
    assert slope.item() == 12.0 and outer.gradient(slope, x).item() == 12.0


def test_an_assignment_does_not_change_what_was_computed() -> None:
    x = eager.Variable(3.0)
    with eager.GradientTape(persistent=True) as tape:
        y = x * x
        x.assign(10.0)
        z = x * x
    assert (y.item(), z.item()) == (9.0, 100.0)
    assert tape.gradient(y, x).item() == 6.0 and tape.gradient(z, x).item() == 20.0


def test_output_gradients_and_jacobian() -> None:
    x = eager.Variable([1.0, 2.0, 3.0])
    with eager.GradientTape(persistent=True) as tape:
        y = x * x
        z = sg.stack([y.sum(), y.max()])
    assert tape.gradient(y, x, output_gradients=eager.tensor([1.0, 0.0, 2.0])).tolist() == [
        2.0,
        0.0,
        12.0,
    ]
    assert tape.jacobian(z, x).tolist() == [[2.0, 4.0, 6.0], [0.0, 0.0, 6.0]]


def test_parameters_of_models_are_sources() -> None:
    model = sg.nn.Linear(2, 1)
    with eager.GradientTape() as tape:
        loss = model(eager.ones(4, 2)).sum()
    grads = tape.gradient(loss, list(model.parameters()))
    assert [g.tolist() for g in grads] == [[[4.0, 4.0]], [4.0]] and model.weight.grad is None


def test_a_variable_as_a_value() -> None:
    v = eager.Variable([1.0, 2.0], name="v")
    assert v.shape == (2,) and v.dtype == "float32" and v.value().tolist() == [1.0, 2.0]
    assert (v + 1).tolist() == (1 + v).tolist() == [2.0, 3.0] and v[1].item() == 2.0
    assert v.sum().item() == 3.0 and np.asarray(v).tolist() == [1.0, 2.0]
    assert sg.exp(v).shape == (2,) and (v > 1.5).tolist() == [False, True]
    assert v.assign_add([1.0, 1.0]).numpy().tolist() == [2.0, 3.0]
    assert repr(v) == "<Variable 'v' shape=(2,) dtype=float32, numpy=[2., 3.]>"
    before: Any = v
    v.assign(before * 2.0)
    assert v.numpy().tolist() == [4.0, 6.0]


def test_wrong_uses() -> None:
    v = eager.Variable([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        v.assign([1.0])
    with pytest.raises(ArgumentTypeError, match="dtype float64"):
        v.assign(eager.tensor(np.ones(2)))
    with pytest.raises(DifferentiationError, match="no gradient"), eager.GradientTape() as tape:
        tape.watch(eager.tensor([1]))
    with pytest.raises(ArgumentTypeError, match="a source"):
        eager.GradientTape().gradient(v, [1.0])
    with pytest.raises(ArgumentError, match="unconnected"):
        eager.GradientTape().gradient(v, v, unconnected_gradients="all")
    with pytest.raises(ArgumentError, match="not recording"), eager.GradientTape().stop_recording():
        pass
    with pytest.raises(ArgumentError, match="no Variable has a gradient"):
        sg.optim.SGD([v], lr=0.1).step()
