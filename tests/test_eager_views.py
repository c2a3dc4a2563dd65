"""Views of eager tensors: in-place writes reach the tensor that they are of, recorded or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import eager
from staticgrad.ir.errors import ArgumentTypeError, DifferentiationError, ShapeError

VIEWS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "view": (lambda t: t.view(-1), lambda a: a.reshape(-1)),
    "reshape": (lambda t: t.reshape(2, 3), lambda a: a.reshape(2, 3)),
    "reshape tuple": (lambda t: t.reshape((6, 1)), lambda a: a.reshape(6, 1)),
    "T": (lambda t: t.T, lambda a: a.T),
    "mT": (lambda t: t.mT, lambda a: a.T),
    "t": (lambda t: t.t(), lambda a: a.T),
    "transpose": (lambda t: t.transpose(0, 1), lambda a: a.T),
    "permute": (lambda t: t.permute(1, 0), lambda a: a.T),
    "flatten": (lambda t: t.flatten(), lambda a: a.reshape(-1)),
    "unsqueeze": (lambda t: t.unsqueeze(1), lambda a: a[:, None]),
    "squeeze": (lambda t: t.unsqueeze(0).squeeze(0), lambda a: a),
    "view_as": (lambda t: t.view_as(eager.zeros(2, 3)), lambda a: a.reshape(2, 3)),
    "int": (lambda t: t[1], lambda a: a[1]),
    "slice": (lambda t: t[1:], lambda a: a[1:]),
    "column": (lambda t: t[:, 1], lambda a: a[:, 1]),
    "ellipsis": (lambda t: t[..., 0], lambda a: a[..., 0]),
    "of a view": (lambda t: t.T[0], lambda a: a.T[0]),
    "of views": (lambda t: t.view(2, 3)[1:].flatten()[1:2], lambda a: a.reshape(-1)[4:5]),
    "no view": (lambda t: t.T.view(-1)[1:3], lambda a: a.T[0, 1:3]),
    "a view of no view": (
        lambda t: t.t()[:, 1:].flatten()[2:].unsqueeze(0),
        lambda a: a[1:, 1][None],
    ),
    "sg.reshape": (lambda t: sg.reshape(t, (6,)), lambda a: a.reshape(6)),
    "sg.permute_dims": (lambda t: sg.permute_dims(t, (1, 0)), lambda a: a.T),
    "sg.expand_dims": (lambda t: sg.expand_dims(t, axis=0), lambda a: a[None]),
}
A = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize("name", VIEWS)
def test_a_write_to_a_view_reaches_its_tensor(name: str) -> None:
    view, of_array = VIEWS[name]
    expected = A.copy()
    written = of_array(expected)
    written *= 10
    written[...] = written + 1
    t = eager.tensor(A)
    found = view(t)
    np.testing.assert_array_equal(found.numpy(), of_array(A))
    found.mul_(10)
    found += 1
    np.testing.assert_array_equal(t.numpy(), expected)


@pytest.mark.parametrize("name", VIEWS)
def test_a_write_to_a_recorded_view_reaches_its_tensor_and_the_tape(name: str) -> None:
    view, of_array = VIEWS[name]
    expected, factor = A.copy(), np.ones_like(A)
    of_array(expected)[...] *= 10
    of_array(factor)[...] = 10
    leaf = eager.tensor(A, requires_grad=True)
    t = leaf * 1
    found = view(t)
    found.mul_(10)
    np.testing.assert_array_equal(t.detach().numpy(), expected)
    np.testing.assert_array_equal(found.detach().numpy(), of_array(expected))
    weights = np.random.default_rng(0).normal(size=A.shape)
    (t * eager.tensor(weights)).sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), weights * factor)


def test_the_written_view_itself_has_its_gradient() -> None:
    leaf = eager.tensor(A, requires_grad=True)
    t = leaf * 1
    row = t[1]
    row.mul_(row.detach() + 1)
    (row.sum() + t.sum()).backward()
    expected = np.ones_like(A)
    expected[1] = 2 * (A[1] + 1)
    np.testing.assert_allclose(leaf.grad.numpy(), expected)


def test_augmented_assignment_and_setitem_through_views() -> None:
    leaf = eager.ones(4, requires_grad=True)
    y = leaf * 2
    y[0] *= 10
    y.view(2, 2)[1] = 7.0
    y.view(2, 2)[0, 1] += 1
    assert y.tolist() == [20, 3, 7, 7]
    y.sum().backward()
    assert leaf.grad.tolist() == [20, 2, 0, 0]
    t = eager.arange(4)
    t.view(2, 2)[0] = 9
    assert t.tolist() == [9, 9, 2, 3]


def test_a_view_that_took_its_tensors_name_is_free() -> None:
    leaf = eager.ones(4, requires_grad=True)
    z = (leaf * 2).view(2, 2)
    z += 1
    z.relu_()
    (z * z).sum().backward()
    assert leaf.grad.tolist() == [12] * 4


def test_leaves_are_protected_through_their_views() -> None:
    leaf = eager.ones(4, requires_grad=True)
    for write in (lambda: leaf[0].mul_(3), lambda: leaf.view(2, 2)[0].fill_(1)):
        with pytest.raises(DifferentiationError, match="no_grad"):
            write()
    with eager.no_grad():
        leaf[0].mul_(3)
        leaf.view(2, 2)[1] = 7
    assert leaf.tolist() == [3, 1, 7, 7] and leaf.is_leaf


def test_a_saved_value_that_changes_through_a_view_is_noticed() -> None:
    leaf = eager.ones(4, requires_grad=True)
    y = leaf * 2
    z = y * y
    with eager.no_grad():
        y.view(2, 2)[0] = 5
    with pytest.raises(DifferentiationError, match="changed in place"):
        z.sum().backward()


def test_views_of_parameters_data() -> None:
    m = sg.nn.Linear(3, 2)
    x = sg.input("x", (1, 3))
    run = sg.compile([x], m(x))
    m.bias.data.zero_()
    m.weight.data.view(-1).fill_(1.0)
    m.weight.data.T[0] = 2.0
    assert m.weight.tolist() == [[2, 1, 1]] * 2
    assert run(np.ones((1, 3), "float32")).tolist() == [[4, 4]]


def test_results_of_strided_views_are_right() -> None:
    a = np.random.default_rng(1).normal(size=(4, 6)).astype("float32")
    t = eager.tensor(a)
    np.testing.assert_allclose((t.T @ t).numpy(), a.T @ a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(t.T[::2].exp().sum(0).numpy(), np.exp(a.T[::2]).sum(0), rtol=1e-6)
    np.testing.assert_array_equal(t.T.reshape(-1).numpy(), a.T.reshape(-1))
    w = eager.tensor(a, requires_grad=True)
    (w * t.T.T).sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), a)


def test_shapes_that_do_not_fit_are_refused_as_before() -> None:
    t = eager.zeros(3, 4)
    for call in (
        lambda: t.view(5), lambda: t.squeeze(0), lambda: t.permute(0, 0), lambda: t.flatten(1, 0),
        lambda: t.transpose(0, 2), lambda: t.unsqueeze(4), lambda: eager.zeros(2, 2, 2).t(),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match=r"test_eager_views.py"):
            call()


@pytest.mark.parametrize("name", ["max", "min", "std", "var"])
def test_a_dim_by_position_is_refused_where_pytorch_means_something_else(name: str) -> None:
    t = eager.tensor(A)
    for at in (0, 1, -1):
        with pytest.raises(ArgumentTypeError, match=r"axis=(?s:.)*test_eager_views.py"):
            getattr(t, name)(at)
    expected = getattr(np, name)
    np.testing.assert_allclose(getattr(t, name)(axis=1).numpy(), expected(A, axis=1))
    np.testing.assert_allclose(getattr(sg, name)(t, axis=1).numpy(), expected(A, axis=1))
    np.testing.assert_allclose(getattr(t, name)().numpy(), expected(A))


def test_bounds_are_arguments_of_one_kernel() -> None:
    from staticgrad.eager import dispatch

    t = eager.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    counts = []
    for i in range(4):
        y = sg.clip(t, -1.0 - i, 1.0 + i)
        t.clamp(min=-0.5 * i)
        np.testing.assert_array_equal(y.detach(), np.clip([-2, 0.5, 3], -1 - i, 1 + i))
        counts.append(len(dispatch._calls))
    assert counts[0] == counts[-1]
    assert eager.tensor([1, 5]).clip(0, 3).tolist() == [1, 3]
