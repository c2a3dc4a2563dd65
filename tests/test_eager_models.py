"""Layers, parameters and optimisers in the dynamic mode: the same model object runs in either."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DifferentiationError

eager = sg.eager
nn = sg.nn
F = sg.nn.functional

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype("float32")


LAYERS: list[tuple[Any, list[Any]]] = [
    (lambda: nn.Linear(5, 3), [floats(4, 5)]),
    (lambda: nn.Bilinear(3, 4, 2), [floats(5, 3), floats(5, 4)]),
    (lambda: nn.Embedding(7, 3), [np.array([[1, 2], [3, 6]])]),
    (lambda: nn.Conv2d(3, 4, 3, padding=1), [floats(2, 3, 6, 5)]),
    (lambda: nn.ConvTranspose1d(3, 4, 2, stride=2), [floats(2, 3, 5)]),
    (lambda: nn.MaxPool2d(2), [floats(2, 3, 4, 5)]),
    (lambda: nn.AdaptiveAvgPool2d((2, 3)), [floats(2, 3, 4, 5)]),
    (lambda: nn.BatchNorm1d(3), [floats(5, 3)]),
    (lambda: nn.BatchNorm2d(3, momentum=None), [floats(2, 3, 2, 4)]),
    (lambda: nn.LayerNorm(5), [floats(3, 5)]),
    (lambda: nn.GroupNorm(2, 4), [floats(2, 4, 3)]),
    (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [floats(2, 5, 8)] * 3),
    (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        [floats(2, 5, 8)],
    ),
    (lambda: nn.GRU(4, 3, batch_first=True), [floats(2, 3, 4)]),
    (lambda: nn.LSTM(4, 3, batch_first=True), [floats(2, 3, 4)]),
    (lambda: nn.Sequential(nn.Flatten(), nn.PReLU(), nn.Softmax(-1)), [floats(2, 3, 2)]),
    (lambda: nn.CrossEntropyLoss(label_smoothing=0.1), [floats(3, 4), np.array([1, 0, 3])]),
    (lambda: nn.SmoothL1Loss(), [floats(3, 4), floats(3, 4)]),
]


@pytest.mark.parametrize("number", range(len(LAYERS)))
@pytest.mark.parametrize("training", [True, False])
def test_layers_give_what_the_compiled_graph_gives(number: int, training: bool) -> None:
    make, arrays = LAYERS[number]
    model = make().train(training)
    again = copy.deepcopy(model)
    inputs = [sg.input(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
    found = model(*inputs)
    out = found[0] if isinstance(found, tuple) else found
    wrt = [*model.parameters(), *(x for x in inputs if x.dtype.is_float)]
    grads = sg.gradients((out * out).sum(), wrt, unreachable="zeros")
    expected = sg.compile(inputs, [out, *grads], training=training)(*arrays)

    tensors = [eager.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    result = again(*tensors)
    result = result[0] if isinstance(result, tuple) else result
    (result * result).sum().backward()
    np.testing.assert_allclose(result.detach().numpy(), expected[0], rtol=1e-5, atol=1e-6)
    leaves = [*again.parameters(), *(t for t in tensors if t.dtype.is_float)]
    for t, e in zip(leaves, expected[1:], strict=True):
        g = np.zeros_like(e) if t.grad is None else t.grad.numpy()
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)
    for a, b in zip(model.buffers(), again.buffers(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)


def test_layers_train_until_eval() -> None:
    """PyTorch's rule: the batch's statistics and dropout, until `eval()`."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    x = eager.tensor(floats(64, 4) + 3)
    sg.random.seed(1)
    first, second = model(x), model(x)
    assert (first == 0).sum().item() > 50 and not (first == second).all()
    mean = model[0].running_mean.numpy()
    assert mean.mean() == pytest.approx(0.19 * 3, abs=0.1)
    assert model[0].num_batches_tracked.item() == 2
    model.eval()
    third = model(x)
    assert (third == model(x)).all() and model[0].running_mean.numpy().tolist() == mean.tolist()
    sg.random.seed(1)
    model.train()
    assert (model(x) == first).all()


def test_a_module_of_ones_own_sees_values() -> None:
    seen: list[float] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(np.full((2, 2), 0.5, np.float32))
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            h = x @ self.weight.T + self.weight[0] * sg.ones((2,))
            seen.append(h.sum().item())
            if h.sum() > 0:  # a Python choice by a value
                h = self.inner(h).relu()
            assert self.training is True
            return h * self.weight.sum()

    net = Net()
    x = eager.tensor([[1.0, 2.0]])
    net(x).sum().backward()
    assert seen == [4.0] and net.weight.grad.shape == (2, 2) and net.inner.weight.grad is not None
    net.zero_grad()
    assert net.weight.grad is None
    net(-2 * x).sum().backward()
    assert seen[1] < 0 and net.inner.weight.grad is None


def test_training_in_turns_by_both_modes() -> None:
    """One model: eager steps, compiled steps, and each sees what the other did."""
    model = nn.Linear(3, 1)
    twin = copy.deepcopy(model)
    x, y = floats(8, 3), floats(8, 1)
    inputs = [sg.input("x", ("N", 3)), sg.input("y", ("N", 1))]

    def program(m: Any) -> Any:
        loss = F.mse_loss(m(inputs[0]), inputs[1])
        return sg.compile(inputs, loss, sg.optim.SGD(m.parameters(), lr=0.1).minimize(loss))

    compiled, other = program(model), program(twin)
    optimizer = sg.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        compiled(x, y)
        optimizer.zero_grad()
        F.mse_loss(model(eager.tensor(x)), eager.tensor(y)).backward()
        optimizer.step()
    for _ in range(6):
        other(x, y)
    np.testing.assert_allclose(model.weight.numpy(), twin.weight.numpy(), rtol=1e-5)


def test_a_compiled_step_between_forward_and_backward_is_seen() -> None:
    w = sg.parameter(np.float32([2.0, 3.0]))
    step = sg.compile([], w.sum(), [(w, w * 2)])
    loss = (w * eager.ones(2) * w).sum()
    step()
    with pytest.raises(DifferentiationError, match="changed in place"):
        loss.backward()


def test_parameters_as_leaves() -> None:
    w = sg.parameter(np.float32([1.0, 2.0]))
    x = eager.tensor([3.0, 4.0])
    assert w.grad is None and w.requires_grad and w.is_leaf
    (w * x).sum().backward()
    assert w.grad.tolist() == [3.0, 4.0]
    with eager.no_grad():
        w -= 0.5 * w.grad
    assert w.numpy().tolist() == [-0.5, 0.0] and isinstance(w, sg.parameter(0.0).__class__)
    w.data.fill_(1.0)
    w.data[0] = 5.0
    assert w.tolist() == [5.0, 1.0] and w.data.numpy() is not w.cell.view()
    with pytest.raises(DifferentiationError, match="no_grad"):
        w.add_(1.0)
    w.grad = None
    w.requires_grad = False
    assert not (w * x).requires_grad
    assert (w - 0.5).node.op == "subtract"  # by itself it is graph


def test_a_static_step_sees_a_new_value() -> None:
    w = sg.parameter(np.float32([1.0, 2.0]))
    total = sg.compile([], w.sum())
    assert total() == 3.0
    w.data.mul_(2.0)
    assert total() == 6.0


# --- optimisers -----------------------------------------------------------------------------------


def test_schedulers_and_clearing() -> None:
    w = eager.tensor([1.0], requires_grad=True)
    optimizer = sg.optim.SGD([w], lr=1.0)
    scheduler = sg.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        (w * 1.0).sum().backward()
        optimizer.step()
        scheduler.step()
        values.append(w.item())
    np.testing.assert_allclose(values, [0.0, -0.1, -0.11], atol=1e-6)
    optimizer.zero_grad(set_to_none=False)
    assert w.grad.tolist() == [0.0]
    optimizer.zero_grad()
    assert w.grad is None
    optimizer.step()
    assert w.item() == pytest.approx(-0.11)


def test_only_what_has_a_gradient_moves() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    before = b.weight.numpy()
    optimizer = sg.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1, momentum=0.9)
    a(eager.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (b.weight.numpy() == before).all()


def test_a_closure_and_the_state() -> None:
    w = eager.tensor([1.0, 2.0], requires_grad=True)
    optimizer = sg.optim.Adam([w], lr=0.1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 5.0
    state = optimizer.state_dict()
    assert state["step"] == 1 and len(state["state.0.exp_avg"]) == 2
    other = sg.optim.Adam([w], lr=0.5)
    other.load_state_dict(state)
    assert other.lr == 0.1


def test_a_step_is_one_program_whatever_the_rate() -> None:
    from staticgrad.api import compile as compiling

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = sg.optim.SGD(model.parameters(), lr=0.1)
    for n in (3, 5, 6):
        model(eager.ones(n, 4)).sum().backward()
        optimizer.step()
        if n == 5:
            before = compiling.compilations
        optimizer.lr = 0.01 * n
    assert compiling.compilations == before


def test_what_an_optimiser_does_not_take() -> None:
    w = eager.tensor([1.0], requires_grad=True)
    with pytest.raises(ArgumentError, match="only leaves"):
        sg.optim.SGD([w * 2], lr=0.1)
    with pytest.raises(ArgumentError, match="not trainable"):
        sg.optim.SGD([eager.tensor([1])], lr=0.1)
    with pytest.raises(ArgumentTypeError, match="a list of parameters"):
        sg.optim.SGD(w, lr=0.1)
    optimizer = sg.optim.SGD([w], lr=0.1)
    with pytest.raises(ArgumentError, match=r"loss.backward\(\) and step"):
        optimizer.minimize(sg.parameter(1.0) * 2)
    model = nn.Linear(1, 1)
    with pytest.raises(ArgumentTypeError, match="an eager tensor"):
        sg.optim.SGD(model.parameters(), lr=0.1).minimize(model(w).sum())
    with pytest.raises(ArgumentTypeError, match="static tensor"):
        model(sg.input("x", (1, 1))).backward()


# --- transforms -----------------------------------------------------------------------------------


def test_a_compiled_function_is_on_the_tape() -> None:
    model = nn.Linear(3, 2)
    fast = sg.jit(lambda x: (model(x) ** 2).sum())
    x = eager.tensor(floats(4, 3), requires_grad=True)
    fast(x).backward()
    grads = [x.grad.numpy().copy(), model.weight.grad.numpy().copy()]
    x.grad, model.weight.grad = None, None
    (model(x) ** 2).sum().backward()
    for a, t in zip(grads, (x, model.weight), strict=True):
        np.testing.assert_allclose(a, t.grad.numpy(), rtol=1e-4, atol=1e-6)
    slope = sg.grad(lambda v: (v**3).sum())(x)
    np.testing.assert_allclose(slope.detach().numpy(), 3 * x.detach().numpy() ** 2, rtol=1e-6)
