"""`vmap`: equal to a loop, for any axes, nested, with other transforms; and wrong use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

rng = np.random.default_rng(0)
A = rng.standard_normal((5, 3))
B = rng.standard_normal((3, 5))
M = rng.standard_normal((5, 3, 4))
V = rng.standard_normal(3)


def test_a_loop_over_the_first_axis() -> None:
    f = sg.vmap(lambda a, b: (a * b).sum())
    np.testing.assert_allclose(f(A, 2 * A), (A * 2 * A).sum(1), rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("out", [0, 1, -1])
def test_any_axis_in_and_out(axis: int, out: int) -> None:
    f = sg.vmap(lambda m: sg.softmax(m, axis=-1).sum(0), in_axes=axis, out_axes=out)
    items = np.moveaxis(M, axis, 0)
    e = np.exp(items - items.max(-1, keepdims=True))
    expected = (e / e.sum(-1, keepdims=True)).sum(1)
    np.testing.assert_allclose(f(M), np.moveaxis(expected, 0, out), rtol=1e-12)


def test_arguments_that_are_the_same_for_all() -> None:
    f = sg.vmap(lambda w, x: w @ x, in_axes=(None, 0))
    np.testing.assert_allclose(f(B.T, A), A @ B, rtol=1e-12)
    g = sg.vmap(lambda x, n, kind: getattr(x, kind)() * n, in_axes=(0, None, None))
    np.testing.assert_allclose(g(A, 3, "sum"), A.sum(1) * 3, rtol=1e-12)
    np.testing.assert_allclose(sg.vmap(lambda x, y: x + y, (0, None))(V, 1.0), V + 1)


def test_axes_of_trees() -> None:
    def f(p: Any, x: Any) -> Any:
        return {"y": p["w"] @ x + p["b"], "w": p["w"]}

    p = {"w": M.transpose(1, 2, 0), "b": V}  # items of w along its last axis, b for all
    x = rng.standard_normal((4, 5))
    mapped = sg.vmap(f, in_axes=({"w": -1, "b": None}, 1), out_axes={"y": 0, "w": 2})
    found = mapped(p, x)
    expected = np.stack([M[i] @ x[:, i] + V for i in range(5)])
    np.testing.assert_allclose(found["y"], expected, rtol=1e-12)
    np.testing.assert_array_equal(found["w"], p["w"])
    np.testing.assert_allclose(sg.vmap(lambda p: p["a"] * p["b"][0])({"a": V, "b": (V,)}), V * V)
    np.testing.assert_allclose(sg.vmap(lambda x, *, y: x * y)(V, y=V), V * V)


def test_results_that_are_the_same_for_all() -> None:
    mean, zero = sg.vmap(lambda x, y: (x, y.sum()), in_axes=(0, None), out_axes=(0, None))(A, V)
    np.testing.assert_array_equal(mean, A)
    np.testing.assert_allclose(zero, V.sum())
    repeated, one = sg.vmap(lambda x, y: (y, 1), in_axes=(0, None))(A, V)
    np.testing.assert_array_equal(repeated, np.broadcast_to(V, (5, 3)))
    np.testing.assert_array_equal(one, np.ones(5, int))


def test_nested() -> None:
    outer = sg.vmap(sg.vmap(lambda a, b: a * b, (0, None)), (None, 0))
    np.testing.assert_allclose(outer(V, V[:2]), np.outer(V[:2], V))
    distances = sg.vmap(lambda a: sg.vmap(lambda b: ((a - b) ** 2).sum())(A))(A)
    expected = ((A[:, None] - A[None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances, expected, rtol=1e-12)
    np.testing.assert_allclose(
        sg.vmap(sg.vmap(sg.vmap(sg.sin)))(M), np.sin(M), rtol=1e-12
    )  # fmt: skip


def loss(w: Any, x: Any, y: Any) -> Any:
    return (sg.tanh(x @ w) - y) ** 2


def test_gradients_of_each_example() -> None:
    y = np.cos(np.arange(5.0))
    each = sg.jit(sg.vmap(sg.grad(loss), in_axes=(None, 0, 0)))
    t = np.tanh(A @ V)
    expected = (2 * (t - y) * (1 - t**2))[:, None] * A
    np.testing.assert_allclose(each(V, A, y), expected, rtol=1e-12)
    total = sg.grad(lambda w: sg.vmap(loss, (None, 0, 0))(w, A, y).sum())
    np.testing.assert_allclose(total(V), expected.sum(0), rtol=1e-12)


def test_with_other_transforms() -> None:
    def f(x: Any) -> Any:
        return sg.sin(x) * x.sum()

    def jacobian(x: Any) -> Any:
        return np.diag(np.cos(x) * x.sum()) + np.sin(x)[:, None]

    rows = np.stack([jacobian(a) for a in A])
    for transform in (sg.jacobian(f), sg.jacfwd(f), sg.jacrev(f), sg.jit(sg.jacrev(f))):
        np.testing.assert_allclose(sg.vmap(transform)(A), rows, rtol=1e-12)
    many = sg.jacobian(sg.vmap(f))(A)  # [5, 3, 5, 3]: zero between different items
    np.testing.assert_allclose(many[range(5), :, range(5)], rows, rtol=1e-12)
    assert np.count_nonzero(many) == np.count_nonzero(rows)
    h = sg.hessian(sg.vmap(lambda x: x**3))(V)
    expected = np.zeros((3, 3, 3))
    expected[range(3), range(3), range(3)] = 6 * V
    np.testing.assert_allclose(h, expected, rtol=1e-12)
    _, tangent = sg.vmap(lambda x, t: sg.jvp(f, (x,), (t,)))(A, A)
    np.testing.assert_allclose(tangent, np.stack([jacobian(a) @ a for a in A]), rtol=1e-12)


def test_symbolic_sizes() -> None:
    f = sg.jit(sg.vmap(lambda x: (x * x.sum())[::-1]))
    for shape in ((2, 3), (4, 3), (5, 6), (1, 3), (0, 3)):
        x = rng.standard_normal(shape)
        np.testing.assert_allclose(f(x), (x * x.sum(1, keepdims=True))[:, ::-1], rtol=1e-12)


def test_in_a_declared_graph() -> None:
    x, w = sg.input("x", ("N", 3), "float64"), sg.input("w", ("M", 3), "float64")
    y = sg.vmap(lambda a, b: (a * b).sum())(x, w)  # N and M must be equal
    program = sg.compile([x, w], y)
    np.testing.assert_allclose(program(A, A), (A * A).sum(1), rtol=1e-12)
    with pytest.raises(sg.BindError):
        program(A, A[:2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sg.vmap(lambda a: a, in_axes=2)(A), sg.ShapeError,
         r"argument a is float64\[5, 3\], which has no axis 2 to go along"),
        (lambda: sg.vmap(lambda a: a, in_axes=-3)(A), sg.ShapeError, "no axis -3"),
        (lambda: sg.vmap(lambda a: a)(3.0), sg.ShapeError, r"argument a is float32\[\]"),
        (lambda: sg.vmap(lambda p, q: p)({"x": A}, V), sg.ShapeError,
         r"different numbers of items: p\['x'\] has 5 \(axis 0\), q has 3 \(axis 0\)"),
        (lambda: sg.vmap(lambda a, b: a, in_axes=(None, None))(A, V), sg.ArgumentError,
         "no argument has items"),
        (lambda: sg.vmap(lambda: 1)(), sg.ArgumentError, "no argument has items"),
        (lambda: sg.vmap(lambda a, b: a, in_axes=(0,))(A, V), sg.ArgumentError,
         r"in_axes has 1 entries \(0,\), but the function was called with 2"),
        (lambda: sg.vmap(lambda p: p, in_axes=({"b": 0},))({"a": A}), sg.ArgumentError,
         r"in_axes\[0\] is a dict with the keys \['b'\].*keys \['a'\]"),
        (lambda: sg.vmap(lambda a: a, out_axes=None)(A), sg.ArgumentError,
         "result differs from item to item"),
        (lambda: sg.vmap(lambda a: a.sum(), out_axes=1)(A), sg.ShapeError, "along axis 1"),
        (lambda: sg.vmap(lambda a, s: a)(A, "text"), sg.ArgumentTypeError, "argument s is 'text'"),
        (lambda: sg.vmap(lambda a: a, in_axes=None), sg.ArgumentTypeError, "in_axes must be"),
        (lambda: sg.vmap(lambda a: a, in_axes=(1.5,)), sg.ArgumentTypeError, "ints and None"),
        (lambda: sg.vmap("f"), sg.ArgumentTypeError, "must be a function"),
        (lambda: sg.vmap(lambda a: "x")(A), sg.ArgumentTypeError, "result is 'x'"),
    ],
)  # fmt: skip
def test_wrong_use(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        call()
