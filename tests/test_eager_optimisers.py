"""Optimisers on gradients of tapes and on Variables; bounds on `.grad`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import eager
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ExecutionError

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def twins() -> tuple[Any, Any]:
    sg.random.seed(0)
    a = sg.nn.Linear(3, 2)
    b = sg.nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    return a, b


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_gradients_of_a_tape_are_applied_as_those_of_backward(name: str) -> None:
    a, b = twins()
    mine = getattr(sg.optim, name)(a.parameters(), lr=0.1)
    other = getattr(sg.optim, name)(b.parameters(), lr=0.1)
    x = eager.tensor(X)
    for _ in range(3):
        params = list(a.parameters())
        with eager.GradientTape() as tape:
            loss = (a(x) ** 2).mean()
        mine.apply_gradients(zip(tape.gradient(loss, params), params))
        other.zero_grad()
        (b(x) ** 2).mean().backward()
        other.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_variables_take_the_steps_of_leaves() -> None:
    v, w = eager.Variable([1.0, 2.0]), eager.Variable(3.0)
    leaves = [eager.tensor([1.0, 2.0], requires_grad=True), eager.tensor(3.0, requires_grad=True)]
    mine, other = sg.optim.Adam([v, w], lr=0.1), sg.optim.Adam(leaves, lr=0.1)
    for _ in range(3):
        with eager.GradientTape() as tape:
            loss = (v * v).sum() * w
        before = v.numpy()
        mine.apply_gradients(zip(tape.gradient(loss, [v, w]), [v, w]))
        assert (v.numpy() != before).all()
        other.zero_grad()
        ((leaves[0] * leaves[0]).sum() * leaves[1]).backward()
        other.step()
    np.testing.assert_allclose(v.numpy(), leaves[0].detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(w.numpy(), leaves[1].detach().numpy(), rtol=1e-6)


def test_variables_step_along_what_backward_left() -> None:
    v = eager.Variable([1.0, 2.0])
    optimizer = sg.optim.SGD([v], lr=0.5)
    with eager.GradientTape():
        loss = (v * v).sum()
    loss.backward()
    assert v.grad.tolist() == [2, 4]
    optimizer.step()
    assert v.numpy().tolist() == [0, 0]
    optimizer.zero_grad()
    assert v.grad is None
    v.grad = eager.tensor([1.0, -1.0])
    optimizer.step()
    assert v.numpy().tolist() == [-0.5, 0.5]
    with pytest.raises(ArgumentTypeError, match="grad must be"):
        v.grad = 1.0


def test_gradients_that_are_none_or_out_of_order() -> None:
    a, b = eager.Variable([1.0]), eager.Variable([2.0])
    optimizer = sg.optim.SGD([a, b], lr=1.0)
    g = eager.tensor([0.5])
    optimizer.apply_gradients([(g, b), (None, a)])
    assert (a.numpy(), b.numpy()) == (1.0, 1.5)
    optimizer.apply_gradients([g, g])
    assert (a.numpy(), b.numpy()) == (0.5, 1.0)
    for wrong, said in (
        ([(None, a), (None, b)], "every gradient is None"),
        ([(g, a), (g, a)], "given twice"),
        ([(g, eager.Variable([1.0]))], "not among"),
        ([g], "1 gradients for 2 parameters"),
        ([(eager.tensor([1.0, 2.0]), a)], r"float32\[2\]"),
    ):
        with pytest.raises(ArgumentError, match=said):
            optimizer.apply_gradients(wrong)
    with pytest.raises(ArgumentTypeError, match="expected eager tensors"):
        optimizer.apply_gradients([(g, a), (1.0, b)])
    with pytest.raises(ArgumentError, match=r"tape\.gradient"):
        sg.optim.SGD([eager.Variable(1.0)], lr=1.0).step()


def _with_gradients(*arrays: Any) -> list[Any]:
    found = []
    for a in arrays:
        p = sg.parameter(np.zeros_like(a))
        p.grad = eager.tensor(a)
        found.append(p)
    return found


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6, 0.0, float("inf")])
def test_norms_are_clipped(norm_type: float, max_norm: float) -> None:
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=4).astype("float32")]
    params = [*_with_gradients(*arrays), sg.parameter([1.0])]
    norm = sg.optim.clip_grad_norm_(params, max_norm, norm_type)
    expected = np.linalg.norm(np.concatenate([a.ravel() for a in arrays]), norm_type)
    assert norm.item() == pytest.approx(expected, rel=1e-5) and not norm.requires_grad
    scale = min(1.0, max_norm / (expected + 1e-6))
    for p, a in zip(params, arrays):
        np.testing.assert_allclose(p.grad.numpy(), a * scale, rtol=1e-5)
    assert params[-1].grad is None


def test_clipping_by_value_of_one_leaf_and_of_nothing() -> None:
    leaf = eager.tensor([1.0, 2.0], requires_grad=True)
    assert sg.nn.utils.clip_grad_norm_(leaf, 1.0).item() == 0
    sg.nn.utils.clip_grad_value_(leaf, 1.0)
    assert leaf.grad is None
    (leaf * eager.tensor([-3.0, 0.25])).sum().backward()
    kept = leaf.grad
    sg.optim.clip_grad_value_([leaf], 1.0)
    assert kept.tolist() == leaf.grad.tolist() == [-1, 0.25]
    assert sg.optim.clip_grad_norm_([leaf], 0.1).item() == pytest.approx(np.hypot(1, 0.25))
    assert kept is leaf.grad


def test_norms_that_are_not_finite() -> None:
    params = _with_gradients(np.array([np.nan, 1.0], "float32"), np.ones(2, "float32"))
    with pytest.raises(ExecutionError, match="norm of the gradients is nan"):
        sg.optim.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert params[1].grad.tolist() == [1, 1]
    sg.optim.clip_grad_norm_(params, 1.0)
    assert all(np.isnan(p.grad.numpy()).all() for p in params)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ArgumentError, match="max_norm"):
            sg.optim.clip_grad_norm_(params, wrong)
    with pytest.raises(ArgumentTypeError, match="parameters"):
        sg.optim.clip_grad_norm_([1.0], 1.0)


class Spelled(sg.nn.Module):
    """A forward of PyTorch's names."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = sg.nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        x = x.contiguous().clone().view(x.size(0), -1).float().to("cpu").to(sg.float32)
        y = self.lin(x).masked_fill(x[:, :3].gt(0.5), -1.0).add(1).mul(2).sub(3).div(2).neg()
        z = y.mm(y.t()).double().type_as(x).view_as(y.mm(y.t())) + x.dim() * x.size()[0]
        both = y.ge(0).eq(y.lt(0)).long().sum() + y.le(0).int().ne(1).bool().sum()
        return z + both + y.mv(x[0, :3]).expand_as(z) + y.unsqueeze(0).bmm(y.t().unsqueeze(0))


def test_one_forward_of_pytorch_names_serves_both_modes() -> None:
    sg.random.seed(1)
    model = Spelled().eval()
    a = np.random.default_rng(3).random((4, 2, 3)).astype("float32")
    x = sg.input("x", ("N", 2, 3))
    expected = sg.compile([x], model(x))(a)
    np.testing.assert_allclose(model(eager.tensor(a)).detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(sg.jit(model)(a), expected, rtol=1e-5)
    assert str(x.size) == "6*N" and x.size(0) is x.shape[0] and x.size()[1:] == (2, 3)
    assert x.numel() == x.size and sg.ones((2, 3)).size == 6 and sg.ones((2, 3)).size(-1) == 3
    with pytest.raises(sg.UnsupportedError, match="CPUs only"):
        x.to("cuda")
    with pytest.raises(sg.ShapeError, match="at most 2"):
        x.t()
    with pytest.raises(sg.ShapeError, match="no dim 3"):
        x.size(3)
