"""`custom_vjp`, `custom_jvp`: the user's rules, in reverse and forward mode, batched and nested."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

X = np.array([1.0, 2.0, 3.0])
Y = np.array([4.0, 5.0, 6.0])


@sg.custom_vjp
def product(x: Any, y: Any) -> Any:
    return sg.sin(x) * y


def product_fwd(x: Any, y: Any) -> Any:
    return product(x, y), (sg.cos(x), sg.sin(x), y)


def product_bwd(residuals: Any, ct: Any) -> Any:
    cos, sin, y = residuals
    return 10.0 * cos * ct * y, sin * ct  # ten times the derivative by x: it is this rule's


product.defvjp(product_fwd, product_bwd)


@sg.custom_jvp
def scaled(x: Any, y: Any) -> Any:
    return sg.sin(x) * y


@scaled.defjvp
def scaled_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (tx, ty) = primals, tangents
    return scaled(x, y), 10.0 * sg.cos(x) * tx * y + sg.sin(x) * ty


BY_X, BY_Y = 10 * np.cos(X) * Y, np.sin(X)


@pytest.mark.parametrize("f", [product, scaled])
def test_values_are_the_function_s(f: Any) -> None:
    np.testing.assert_allclose(f(X, Y), np.sin(X) * Y, rtol=1e-12)
    np.testing.assert_allclose(f(X, y=2.0), np.sin(X) * 2, rtol=1e-12)
    np.testing.assert_allclose(sg.vmap(f, (0, None))(X, Y), np.sin(X)[:, None] * Y, rtol=1e-12)
    assert f.__name__ in ("product", "scaled")


@pytest.mark.parametrize("f", [product, scaled])
@pytest.mark.parametrize("wrap", [lambda g: g, sg.jit])
def test_reverse_mode_takes_the_rule(f: Any, wrap: Any) -> None:
    gradients = wrap(sg.grad(lambda x, y: f(x, y).sum(), argnums=(0, 1)))(X, Y)
    np.testing.assert_allclose(gradients[0], BY_X, rtol=1e-12)
    np.testing.assert_allclose(gradients[1], BY_Y, rtol=1e-12)


@pytest.mark.parametrize("f", [product, scaled])
def test_batches_in_any_order(f: Any) -> None:
    np.testing.assert_allclose(sg.vmap(sg.grad(f))(X, Y), BY_X, rtol=1e-12)
    total = sg.grad(lambda x, y: sg.vmap(f, (0, None))(x, y).sum(), argnums=(0, 1))
    dx, dy = total(X, np.float64(4.0))
    np.testing.assert_allclose(dx, 10 * np.cos(X) * 4, rtol=1e-12)
    np.testing.assert_allclose(dy, np.sin(X).sum(), rtol=1e-12)
    twice = sg.grad(lambda x: sg.vmap(sg.vmap(f, (0, None)), (0, 0))(x, Y[:2]).sum())
    x = np.stack([X, 2 * X])
    np.testing.assert_allclose(twice(x), 10 * np.cos(x) * Y[:2, None], rtol=1e-12)


def test_forward_mode_takes_a_forward_rule() -> None:
    _, tangent = sg.jvp(scaled, (X, Y), (X, Y))
    np.testing.assert_allclose(tangent, BY_X * X + BY_Y * Y, rtol=1e-12)
    j = sg.jacfwd(sg.vmap(scaled, (0, None)))(X, 2.0)
    np.testing.assert_allclose(j, np.diag(20 * np.cos(X)), rtol=1e-12)


def test_forward_mode_through_a_reverse_rule_is_refused() -> None:
    with pytest.raises(sg.DifferentiationError, match="forward mode through product, whose"):
        sg.jvp(product, (X, Y), (X, Y))


def cubed_rules() -> list[Any]:
    @sg.custom_vjp
    def reverse(x: Any) -> Any:
        return x**3

    reverse.defvjp(lambda x: (reverse(x), x), lambda x, ct: (3 * x**2 * ct,))

    @sg.custom_jvp
    def forward(x: Any) -> Any:
        return x**3

    forward.defjvps(lambda t, out, x: 3 * out / x * t)
    return [reverse, forward]


@pytest.mark.parametrize("f", cubed_rules())
def test_second_derivatives(f: Any) -> None:
    expected = np.diag(6 * X) + 0.0
    for second in (sg.hessian, lambda g: sg.jacrev(sg.jacrev(g)), lambda g: sg.jacrev(sg.grad(g))):
        found = second(lambda x: f(x).sum())(X)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    h = sg.hessian(lambda x: (f(x) * x.sum()).sum() ** 2)(X)
    np.testing.assert_allclose(
        h, sg.hessian(lambda x: (x**3 * x.sum()).sum() ** 2)(X), rtol=1e-10
    )  # fmt: skip


def test_trees_integers_and_fixed_arguments() -> None:
    @functools.partial(sg.custom_vjp, nondiff_argnums=(0, 2))
    def f(g: Any, p: Any, power: int, index: Any) -> Any:
        return {"out": g(p["a"]) ** power, "taken": p["b"][index]}

    def fwd(g: Any, p: Any, power: int, index: Any) -> Any:
        return f(g, p, power, index), (p, index)

    def bwd(g: Any, power: int, residuals: Any, ct: Any) -> Any:
        p, _ = residuals
        return {"a": ct["out"] * power * 100, "b": sg.zeros_like(p["b"]) + ct["taken"]}, None

    f.defvjp(fwd, bwd)

    def loss(p: Any) -> Any:
        found = f(sg.exp, p, 2, np.int64(1))
        return found["out"].sum() + 3 * found["taken"]

    value, gradient = sg.value_and_grad(loss)({"a": X, "b": Y})
    np.testing.assert_allclose(value, (np.exp(X) ** 2).sum() + 3 * Y[1], rtol=1e-12)
    np.testing.assert_allclose(gradient["a"], np.full(3, 200.0))
    np.testing.assert_allclose(gradient["b"], np.full(3, 3.0))


def test_a_gradient_by_hand() -> None:
    """x**2 from 5 with a clipped gradient that the user wrote."""

    @sg.custom_vjp
    def f(x: Any) -> Any:
        return x**2

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (sg.clip(2 * x, -1.0, 1.0) * ct,))
    x, step = 5.0, sg.grad(f)
    for _ in range(10):
        x = x - 0.3 * float(step(x))
    assert x == pytest.approx(2.0)


def test_what_the_rules_read_is_watched() -> None:
    factor = 3.0

    @sg.custom_vjp
    def f(x: Any) -> Any:
        return x * 1.0

    f.defvjp(lambda x: (f(x), None), lambda _, ct: (ct * factor,))

    def loss(x: Any) -> Any:
        return f(x)

    for factor in (3.0, 5.0):
        assert float(sg.grad(loss)(1.0)) == factor


def test_none_stands_for_zero() -> None:
    @sg.custom_vjp
    def f(x: Any, y: Any) -> Any:
        return x * y

    f.defvjp(lambda x, y: (x * y, y), lambda y, ct: (ct * y, None))
    dx, dy = sg.grad(lambda x, y: f(x, y).sum(), (0, 1))(X, Y)
    np.testing.assert_allclose(dx, Y)
    np.testing.assert_array_equal(dy, np.zeros(3))


def test_what_is_read_from_outside_has_no_derivative() -> None:
    def outer(w: Any, x: Any) -> Any:
        @sg.custom_vjp
        def f(x: Any) -> Any:
            return x * w

        f.defvjp(lambda x: (f(x), None), lambda r, ct: (ct * 7.0,))
        return f(x).sum()

    np.testing.assert_allclose(outer_value := sg.jit(outer)(X, Y), (X * Y).sum())
    assert outer_value.shape == ()
    np.testing.assert_allclose(sg.grad(outer, 1)(X, Y), np.full(3, 7.0))
    with pytest.raises(sg.DifferentiationError, match=r"f reads .* from outside"):
        sg.grad(outer, 0)(X, Y)


def test_the_graph_s_text_holds_the_function_but_no_rule() -> None:
    x = sg.input("x", ("N",), "float64")
    graph = sg.Graph([x], product(x, x * 2.0))
    again = sg.Graph.from_text(graph.to_text())
    assert again.to_text() == graph.to_text()
    np.testing.assert_allclose(sg.compile(again.inputs, again.outputs[0])(X), np.sin(X) * 2 * X)
    with pytest.raises(sg.DifferentiationError, match="read from text, which does not hold"):
        sg.gradients(again.outputs[0].sum(), again.inputs)
    reference = sg.compile([x], product(x, x), mode="reference")
    np.testing.assert_allclose(reference(X), np.sin(X) * X)


def test_wrong_rules() -> None:
    f = sg.custom_vjp(lambda x: x * 2)
    with pytest.raises(sg.ArgumentError, match="has no rules yet"):
        f(X)
    with pytest.raises(sg.ArgumentError, match="has no rule yet"):
        sg.custom_jvp(lambda x: x)(X)
    with pytest.raises(sg.ArgumentTypeError, match="expected a function"):
        sg.custom_vjp(3)  # type: ignore[arg-type]
    with pytest.raises(sg.ArgumentTypeError, match="expected two functions"):
        f.defvjp(1, 2)  # type: ignore[arg-type]
    for fwd, bwd, message in (
        (lambda x: x * 2, lambda r, ct: (ct,), r"must return a pair \(result, residuals\)"),
        (lambda x: (x.sum(), None), lambda r, ct: (ct,), r"returned float64\[\] where"),
        (lambda x: ((x, x), None), lambda r, ct: (ct,), "must return what the function returns"),
        (lambda x: (x * 2, None), lambda r, ct: ct, "must return a tuple with a cotangent"),
        (lambda x: (x * 2, None), lambda r, ct: (ct, ct), "for each of its 1 arguments, got 2"),
        (lambda x: (x * 2, None), lambda r, ct: (ct.sum(),), "must have its type"),
    ):
        f = sg.custom_vjp(lambda x: x * 2)
        f.defvjp(fwd, bwd)
        with pytest.raises(sg.StaticgradError, match=message):
            sg.grad(lambda x, f=f: f(x).sum())(X)
    g = sg.custom_jvp(lambda x: x * 2)
    g.defjvp(lambda p, t: (p[0] * 2, t[0] ** 2))
    with pytest.raises(sg.DifferentiationError, match="not linear in the tangents"):
        sg.grad(lambda x: g(x).sum())(X)
    g.defjvp(lambda p, t: p[0] * 2)
    with pytest.raises(sg.ArgumentTypeError, match=r"must return a pair \(result, tangent\)"):
        sg.jvp(g, (X,), (X,))
    with pytest.raises(sg.ArgumentTypeError, match="for each of 1 arguments"):
        g.defjvps(None, None)
