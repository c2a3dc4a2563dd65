"""Static tensors of parameters, constants and random numbers where they meet the dynamic mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import eager
from staticgrad.eager import dispatch
from staticgrad.ir.errors import ArgumentTypeError

nn = sg.nn
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def model() -> Any:
    sg.random.seed(0)
    return nn.Linear(3, 2)


def squares(m: Any) -> float:
    return float(sum((p.numpy() ** 2).sum() for p in m.parameters()))


@pytest.mark.parametrize("left", [True, False])
def test_a_penalty_follows_the_parameters_through_training(left: bool) -> None:
    m, x = model(), eager.tensor(X)
    optimizer = sg.optim.SGD(m.parameters(), lr=0.1)
    known = []
    for _ in range(3):
        optimizer.zero_grad()
        data = m(x).mean()
        penalty = 0.1 * sum((p**2).sum() for p in m.parameters())
        loss = penalty + data if left else data + penalty
        assert loss.item() == pytest.approx(data.item() + 0.1 * squares(m), rel=1e-6)
        loss.backward()
        expected = 0.2 * m.weight.numpy() + X.mean(axis=0) / 2
        np.testing.assert_allclose(m.weight.grad.numpy(), expected, rtol=1e-5, atol=1e-7)
        before = m.weight.numpy()
        optimizer.step()
        np.testing.assert_allclose(m.weight.numpy(), before - 0.1 * expected, rtol=1e-5, atol=1e-7)
        known.append(len(dispatch._calls))
    assert known[0] == known[2]  # nodes declared anew find their kernels


def test_one_penalty_declared_once_has_fresh_values_and_serves_many_walks() -> None:
    m, x = model(), eager.tensor(X)
    penalty = (m.weight**2).sum()
    for scale in (1.0, 2.0):
        with eager.no_grad():
            m.weight.mul_(scale)
        m.zero_grad()
        for count in (1, 2):  # the first walk frees what was saved
            (m(x).sum() * 0 + penalty).backward()
            np.testing.assert_allclose(m.weight.grad.numpy(), count * 2 * m.weight.numpy())


def test_it_is_fresh_after_every_way_of_changing_a_parameter() -> None:
    m = model()
    total, zero = m.weight.sum(), eager.zeros(())
    for change in (
        lambda: m.weight.assign(np.ones((2, 3), "float32")),
        lambda: m.weight.data.fill_(2.0),
        lambda: m.weight.data[0].fill_(3.0),
        lambda: m.load_state_dict({"weight": np.full((2, 3), 4.0), "bias": np.zeros(2)}),
    ):
        assert (zero + total).item() == pytest.approx(m.weight.numpy().sum())
        change()
        assert (zero + total).item() == pytest.approx(m.weight.numpy().sum())
        assert total.item() == pytest.approx(m.weight.numpy().sum())


USES: list[Callable[[Any, Any], Any]] = [
    lambda m, x: m(x).mean() + sg.sum(sg.abs(m.weight)),
    lambda m, x: (sg.exp(m.bias) * x[:, :2]).sum(),
    lambda m, x: sg.matmul(x, sg.tanh(m.weight).T).sum(),
    lambda m, x: (x[:, :2] - m.bias / sg.sum(m.weight**2)).sum(),
    lambda m, x: sg.concat([m.weight * 2, x], axis=0).sum(),
    lambda m, x: sg.where(m.weight > 0, m.weight, -m.weight).sum() * x.mean(),
]


@pytest.mark.parametrize("number", range(len(USES)))
def test_expressions_have_the_values_and_gradients_of_the_compiled_graph(number: int) -> None:
    use, m = USES[number], model()
    static = sg.input("x", (4, 3))
    params = list(m.parameters())
    loss = use(m, static)
    grads = sg.gradients(loss, params, unreachable="zeros")
    expected = sg.compile([static], [loss, *grads])(X)
    found = use(m, eager.tensor(X))
    found.backward()
    np.testing.assert_allclose(found.item(), expected[0], rtol=1e-6)
    for p, g in zip(params, expected[1:], strict=True):
        have = np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        np.testing.assert_allclose(have, g, rtol=1e-5, atol=1e-6)


def test_a_penalty_method_of_a_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 2)

        def penalty(self) -> Any:
            return sum((p**2).sum() for p in self.parameters())

        def forward(self, x: Any) -> Any:
            return self.lin(x).mean() + self.penalty()

    net = Net()
    inside = net(eager.tensor(X))
    outside = net.lin(eager.tensor(X)).mean() + net.penalty()
    assert inside.item() == pytest.approx(outside.item())


def test_under_a_gradient_tape_as_summand_and_as_target() -> None:
    m, x = model(), eager.tensor(X)
    early = (m.weight**2).sum()
    assert (early + x.sum()).requires_grad
    for _ in range(2):
        with eager.GradientTape() as tape:
            loss = m(x).sum() * 0 + early
        np.testing.assert_allclose(tape.gradient(loss, m.weight).numpy(), 2 * m.weight.numpy())
    with eager.GradientTape() as tape:
        target = (m.weight**2).sum()
    np.testing.assert_allclose(tape.gradient(target, m.weight).numpy(), 2 * m.weight.numpy())


def test_under_no_grad_nothing_is_recorded_and_afterwards_again() -> None:
    m, zero = model(), eager.zeros(())
    total = m.weight.sum()
    with eager.no_grad():
        assert not (zero + total).requires_grad
    assert (zero + total).requires_grad


def test_values_and_walks_of_parameters_alone() -> None:
    m = model()
    mean = m.weight.mean()
    assert mean.item() == pytest.approx(m.weight.numpy().mean())
    np.testing.assert_allclose((m.weight * 2).numpy(), 2 * m.weight.numpy())
    assert m.weight[0].tolist() == pytest.approx(m.weight.numpy()[0].tolist())
    for count in (1, 2):
        (m.weight**2).sum().backward()
        np.testing.assert_allclose(m.weight.grad.numpy(), count * 2 * m.weight.numpy())
    with pytest.raises(AttributeError, match=r"p\.data\[0\]\.fill_"):
        m.weight[0].fill_(1)


def test_what_depends_on_an_input_is_refused() -> None:
    x = sg.input("x", (3,))
    with pytest.raises(ArgumentTypeError, match="depends on the input 'x'"):
        eager.zeros(3) + x * 2
    with pytest.raises(ArgumentTypeError, match="no item"):
        x.sum().item()
    with pytest.raises(ArgumentTypeError, match="symbolic size"):
        eager.zeros(()) + sg.zeros(("N",)).sum()


def test_random_numbers_have_one_value_and_advance_the_generator() -> None:
    sg.random.seed(3)
    zero, noise = eager.zeros(3), sg.random.normal((3,))
    first = (zero + noise).numpy().copy()
    np.testing.assert_array_equal((zero - noise).numpy(), -first)
    np.testing.assert_array_equal((zero + (noise * 2)).numpy(), first * 2)
    assert ((zero + sg.random.normal((3,))).numpy() != first).all()
    assert sg.random.default_generator().numpy()[1] == 2
    sg.random.seed(3)
    np.testing.assert_array_equal((zero + sg.random.normal((3,))).numpy(), first)
    np.testing.assert_array_equal((zero + sg.random.bernoulli(0.5, (3,))).shape, (3,))


def test_random_tensors_like_others_and_integers() -> None:
    x = eager.zeros(50, 2, dtype="float64")
    assert eager.rand_like(x).type == eager.randn_like(x).type == x.type
    assert eager.rand_like(x).numpy().min() >= 0 and eager.rand_like(x, dtype="float32").ndim == 2
    assert eager.randn_like(x, requires_grad=True).requires_grad
    for made in (eager.randint(2, 5, (100,)), eager.randint(5, (100,)), eager.randint(5, size=100)):
        assert made.shape == (100,) and made.dtype == "int64"
    assert set(eager.randint(2, 5, (100,)).tolist()) == {2, 3, 4}
    with pytest.raises(ArgumentTypeError, match="expected a size"):
        eager.randint(5)


def test_a_layer_applied_to_constants_updates_its_state() -> None:
    norm = nn.BatchNorm1d(2, momentum=1.0)
    rows = np.arange(6, dtype="float32").reshape(3, 2)
    out = eager.zeros(3, 2) + norm(sg.constant(rows))
    np.testing.assert_allclose(norm.running_mean.numpy(), rows.mean(axis=0))
    assert out.detach().numpy().mean() == pytest.approx(0, abs=1e-6)


def test_written_into_tensors() -> None:
    m, t = model(), eager.zeros(2)
    t[0] = m.bias.sum()
    assert t.tolist() == pytest.approx([m.bias.numpy().sum(), 0])
    t.copy_(m.bias * 3)
    np.testing.assert_allclose(t.detach().numpy(), m.bias.numpy() * 3)
    t.sum().backward()
    assert m.bias.grad.tolist() == [3, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: eager.randn(3, 2) * 0.1,
        lambda: sg.random.normal((3,)),
        lambda: sg.zeros((3,)),
        lambda: eager.Variable([1.0, 2.0]),
        lambda: model().weight * 2,
    ],
)
@pytest.mark.parametrize("state", [nn.Parameter, sg.parameter])
def test_parameters_begin_with_the_values_of_tensors(make: Any, state: Any) -> None:
    value = make()
    made = state(value)
    assert made.requires_grad and made.dtype == "float32" and made.trainable
    np.testing.assert_array_equal(made.numpy(), value.numpy())
    with pytest.raises(ArgumentTypeError, match="has no value"):
        state(sg.input("x", (3,)))


def test_a_tensor_of_a_parameter_warns_that_it_is_cut_off() -> None:
    m = model()
    with pytest.warns(UserWarning, match="no gradient reaches it") as caught:
        copied = eager.tensor(m.weight)
    assert caught[0].filename == __file__ and not copied.requires_grad


def test_a_parameter_prints_its_values() -> None:
    p = sg.parameter(np.array([[1.0, 2.5]]), "w")
    assert str(p) == repr(p) == "Parameter('w', float64[1, 2],\n[[1.0000, 2.5000]])"
    big = sg.parameter(np.zeros((1000, 1000), "float32"), trainable=False)
    assert "trainable=False" in repr(big) and len(repr(big)) < 500
