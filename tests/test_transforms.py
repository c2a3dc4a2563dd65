"""`grad`, `vjp`, `jvp`, `jacobian`, `hessian`, `hvp`: JAX's programs, its numbers, and wrong use.

Figures called JAX's were printed by JAX 0.10 on the same program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

X = np.array([1.0, 2.0, 3.0, 4.0], "float32")
Y = np.array([1.5, 1.0, 3.5, 2.0], "float32")
FEATURES = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "float32")
TARGETS = np.array([1.0, 2.0, 2.5], "float32")
A = np.random.default_rng(0).standard_normal((3, 4))
V = np.random.default_rng(1).standard_normal(4)


def squared(x: Any, y: Any) -> Any:
    return (x - y) ** 2


def norm(order: Any, x: Any, y: Any) -> Any:
    return sg.sum(sg.abs(x - y) ** order) ** (1 / order)


def numeric(f: Callable[..., Any], x: np.ndarray[Any, Any], h: float = 1e-6) -> Any:
    """The Jacobian by central differences: result shape + x's shape."""
    columns = []
    for i in range(x.size):
        step = np.zeros(x.size)
        step[i] = h
        step = step.reshape(x.shape)
        columns.append((np.asarray(f(x + step)) - np.asarray(f(x - step))) / (2 * h))
    return np.stack(columns, -1).reshape(*np.shape(columns[0]), *x.shape)


# --- JAX's programs -------------------------------------------------------------------------------


def test_gradient_of_a_square() -> None:
    assert float(sg.grad(squared)(3.0, 2.0)) == 2.0
    assert float(sg.grad(squared, argnums=1)(3.0, 2.0)) == -2.0
    value, gradients = sg.value_and_grad(squared, argnums=(0, 1))(3.0, 2.0)
    assert (float(value), [float(g) for g in gradients]) == (1.0, [2.0, -2.0])
    assert gradients[0].dtype == np.float32 and gradients[0].shape == ()


def test_gradient_of_a_mean_over_arrays() -> None:
    gradient = sg.grad(lambda x, y: sg.mean((x - y) ** 2))(X, Y)
    np.testing.assert_array_equal(gradient, np.array([-0.25, 0.5, -0.25, 1.0], "float32"))


@pytest.mark.parametrize("wrap", [lambda f: f, sg.jit])
def test_gradient_of_the_p_norm_with_an_integer_order(wrap: Any) -> None:
    second = [-0.21320072, 0.42640144, -0.21320072, 0.8528029]  # JAX's
    third = [-0.056734286, 0.22693714, -0.056734286, 0.9077486]
    f, both = wrap(sg.grad(norm, argnums=1)), wrap(sg.grad(norm, argnums=(1, 2)))
    np.testing.assert_allclose(f(2, X, Y), second, rtol=1e-6)
    dx, dy = both(3, X, Y)
    np.testing.assert_allclose(dx, third, rtol=1e-6)
    np.testing.assert_allclose(dy, np.negative(third), rtol=1e-6)
    np.testing.assert_allclose(f(3, X, Y), third, rtol=1e-6)
    np.testing.assert_allclose(f(2.0, X, Y), second, rtol=1e-6)
    assert dx.dtype == np.float32


def test_linear_model_with_parameters_as_an_array_and_as_a_dict() -> None:
    def by_array(theta: Any, x: Any, t: Any) -> Any:
        return sg.mean((x @ theta[:2] + theta[2] - t) ** 2)

    def by_dict(p: Any, x: Any, t: Any) -> Any:
        return sg.mean((x @ p["w"] + p["b"] - t) ** 2)

    value, gradient = sg.value_and_grad(by_array)(np.array([0.1, 0.2, 0.3], "float32"),
                                                  FEATURES, TARGETS)  # fmt: skip
    np.testing.assert_allclose(value, 0.21666662, rtol=1e-6)  # JAX's
    np.testing.assert_allclose(gradient, [-3.0, -3.8666666, -0.8666667], rtol=1e-6)
    p = {"w": np.array([0.1, 0.2], "float32"), "b": np.float32(0.3)}
    value, gradients = sg.value_and_grad(by_dict)(p, FEATURES, TARGETS)
    assert list(gradients) == ["b", "w"]
    np.testing.assert_allclose(gradients["w"], [-3.0, -3.8666666], rtol=1e-6)
    np.testing.assert_allclose(gradients["b"], -0.8666667, rtol=1e-6)


def test_auxiliary_output_with_predictions() -> None:
    def loss(p: Any, x: Any, t: Any) -> Any:
        predicted = x @ p["w"] + p["b"]
        return sg.mean((predicted - t) ** 2), predicted

    p = {"w": np.array([0.1, 0.2], "float32"), "b": np.float32(0.3)}
    gradients, predicted = sg.grad(loss, has_aux=True)(p, FEATURES, TARGETS)
    np.testing.assert_allclose(gradients["w"], [-3.0, -3.8666666], rtol=1e-6)
    np.testing.assert_allclose(predicted, [0.8, 1.4000001, 2.0], rtol=1e-6)


def test_running_statistics_as_auxiliary_output() -> None:
    def loss(p: Any, state: Any, x: Any, t: Any) -> Any:
        mean, var = x.mean(0), x.var(0)
        z = (x - mean) / sg.sqrt(var + 1e-5) * p["scale"] + p["bias"]
        new = {
            "mean": 0.9 * state["mean"] + 0.1 * mean,
            "var": 0.9 * state["var"] + 0.1 * var,
            "count": state["count"] + 1,
        }
        return sg.mean((z.sum(1) - t) ** 2), new

    p = {"scale": np.array([1.0, 0.5], "float32"), "bias": np.array([0.0, 0.1], "float32")}
    state = {"mean": np.zeros(2, "float32"), "var": np.ones(2, "float32"), "count": np.int32(0)}
    step = sg.value_and_grad(loss, has_aux=True)
    (value, new), gradients = step(p, state, FEATURES, TARGETS)
    np.testing.assert_allclose(value, 3.806211, rtol=1e-6)  # JAX's
    np.testing.assert_allclose(gradients["scale"], [1.7752465, 1.7752465], rtol=1e-5)
    np.testing.assert_allclose(gradients["bias"], [-3.4666665, -3.4666665], rtol=1e-6)
    np.testing.assert_allclose(new["mean"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(new["var"], [1.1666666, 1.1666666], rtol=1e-6)
    assert new["count"] == 1 and new["count"].dtype == np.int32
    (_, newer), _ = step(p, new, FEATURES, TARGETS)  # what comes out goes in again
    assert newer["count"] == 2


def test_a_parameter_array_is_unpacked() -> None:
    def loss(theta: Any, x: Any, y: Any) -> Any:
        w, b = theta
        return sg.mean((w * x + b - y) ** 2)

    theta = np.zeros(2, "float32")
    gradient = sg.grad(loss)
    np.testing.assert_array_equal(gradient(theta, X, Y), [-11.0, -4.0])  # JAX's
    for _ in range(100):
        theta = theta - np.float32(0.05) * gradient(theta, X, Y)
    np.testing.assert_allclose(theta, [0.45828414, 0.8286374], rtol=1e-5)  # JAX's


def test_a_loss_that_reads_the_batch_as_a_global_follows_it() -> None:
    batch = X

    def loss(w: Any) -> Any:
        return sg.mean((w * batch - 1.0) ** 2)

    for batch in (X, Y, 2 * X):
        expected = np.mean(2 * (2.0 * batch - 1) * batch)
        np.testing.assert_allclose(sg.grad(loss)(2.0), expected, rtol=1e-6)
    batch[:] = 1.0
    np.testing.assert_allclose(sg.grad(loss)(2.0), 2.0, rtol=1e-6)


# --- arguments ------------------------------------------------------------------------------------


@dataclass
class Params:
    w: Any
    layers: Any


def test_gradients_have_the_structure_of_their_argument() -> None:
    p = Params(np.array([1.0, 2.0]), [{"b": np.array(3.0)}, (np.array([4.0]),), None])
    g = sg.grad(lambda p: (p.w**2).sum() * p.layers[0]["b"] + p.layers[1][0].sum() * 5)(p)
    assert isinstance(g, Params)
    np.testing.assert_array_equal(g.w, [6.0, 12.0])
    assert float(g.layers[0]["b"]) == 5.0 and g.layers[2] is None
    np.testing.assert_array_equal(g.layers[1][0], [5.0])


def test_what_is_not_reached_has_a_zero_gradient() -> None:
    dx, dy = sg.grad(lambda x, y: (x * 2).sum(), argnums=(0, 1))(A, V)
    np.testing.assert_array_equal(dx, np.full_like(A, 2.0))
    np.testing.assert_array_equal(dy, np.zeros_like(V))
    assert float(sg.grad(lambda x: 3.0)(1.0)) == 0.0
    assert float(sg.grad(lambda x: sg.stop_gradient(x) * x)(3.0)) == 3.0


def test_negative_argnums_keywords_and_static_arguments() -> None:
    def f(x: Any, y: Any, kind: str = "sum", *, scale: Any = 1.0) -> Any:
        return getattr(x * y * scale, kind)()

    np.testing.assert_allclose(sg.grad(f, argnums=-1)(V, 2 * V), V)
    np.testing.assert_allclose(sg.grad(f)(V, V, "mean", scale=2.0), V / 2)


def test_the_same_array_twice_is_two_arguments() -> None:
    dx, dy = sg.grad(lambda x, y: (x * y**2).sum(), argnums=(0, 1))(V, V)
    np.testing.assert_allclose(dx, V**2)
    np.testing.assert_allclose(dy, 2 * V * V)


def test_no_confusion_of_what_is_differentiated_by() -> None:
    assert float(sg.grad(lambda x: x * sg.grad(lambda y: x * y)(x))(3.0)) == 6.0
    assert float(sg.grad(lambda x: x * sg.grad(lambda y: x + y)(1.0))(2.0)) == 1.0
    inner = sg.grad(lambda x: sg.jvp(lambda y: x * y * y, (x,), (1.0,))[1])  # d (2 x x) / dx
    assert float(inner(3.0)) == 12.0


def test_inside_a_declared_graph_gradients_are_graph() -> None:
    x = sg.input("x", ("N",), "float64")
    g = sg.grad(lambda v: (v**3).sum())(x)
    assert isinstance(g, sg.Tensor) and g.shape == x.shape
    np.testing.assert_allclose(sg.compile([x], g)(V), 3 * V**2)
    w = sg.grad(lambda w: (w * x).sum())(2.0)  # reads a declared input
    np.testing.assert_allclose(sg.compile([x], w)(V.astype("float64")), V.sum(), rtol=1e-6)


def test_parameters_take_part() -> None:
    w = sg.parameter(np.array([1.0, 2.0]))
    f = sg.grad(lambda x: (w * x**2).sum())
    np.testing.assert_array_equal(f(np.ones(2)), [2.0, 4.0])
    w.assign(np.array([3.0, 4.0]))
    np.testing.assert_array_equal(f(np.ones(2)), [6.0, 8.0])


def test_a_transform_of_one_function_is_made_once() -> None:
    assert sg.grad(squared) is sg.grad(squared)
    assert sg.grad(squared) is not sg.grad(squared, argnums=1)
    f = sg.grad(lambda x: (x * x).sum())
    f(V), f(V)
    assert len(f.cache_entries) == 1


def test_tensors_of_the_dynamic_mode_stay_on_its_tape() -> None:
    def f(x: Any) -> Any:
        return (sg.sin(x) * x).sum()

    x = sg.eager.tensor(V, requires_grad=True)
    first = np.cos(V) * V + np.sin(V)
    second = 2 * np.cos(V) - np.sin(V) * V
    sg.jit(f)(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), first, rtol=1e-12)
    gradient = sg.grad(f)(x)
    np.testing.assert_allclose(gradient.detach().numpy(), first, rtol=1e-12)
    x.grad = None
    gradient.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), second, rtol=1e-12)
    out, pull = sg.vjp(lambda x: {"y": sg.sin(x)}, x)
    np.testing.assert_allclose(pull(out)[0].detach().numpy(), np.cos(V) * np.sin(V), rtol=1e-12)
    many = sg.vmap(lambda p, k: p["x"] * k, (0, None))({"x": x}, 2.0)
    np.testing.assert_allclose(many.detach().numpy(), 2 * V)


# --- vjp, jvp -------------------------------------------------------------------------------------


def test_vjp_pulls_cotangents_back() -> None:
    def f(x: Any, p: Any) -> Any:
        return {"y": sg.sin(x) * p["a"], "z": x.sum()}

    a = np.array([2.0, 3.0, 4.0, 5.0])
    out, pull = sg.vjp(f, V, {"a": a})
    np.testing.assert_allclose(out["y"], np.sin(V) * a)
    dx, dp = pull({"y": np.ones(4), "z": np.float64(10.0)})
    np.testing.assert_allclose(dx, np.cos(V) * a + 10)
    np.testing.assert_allclose(dp["a"], np.sin(V))
    out, pull, aux = sg.vjp(lambda x: (x**2, x.shape[0]), V, has_aux=True)
    assert int(aux) == 4
    np.testing.assert_allclose(pull(np.ones(4))[0], 2 * V)


def test_jvp_pushes_tangents_forward() -> None:
    out, tangent = sg.jvp(lambda x, y: sg.tanh(A @ x) * y, (V, 2.0 * np.ones(3)), (V, np.ones(3)))
    t = np.tanh(A @ V)
    np.testing.assert_allclose(out, 2 * t)
    np.testing.assert_allclose(tangent, 2 * (1 - t**2) * (A @ V) + t)
    out, tangent, aux = sg.jvp(lambda x: (x * 3.0, x), (V,), (V,), has_aux=True)
    np.testing.assert_allclose(tangent, 3 * V)
    np.testing.assert_allclose(aux, V)
    out, tangent = sg.jvp(lambda x: x**2, (3.0,), (1.0,))
    assert float(tangent) == 6.0 and tangent.dtype == np.float32


def test_jvp_and_vjp_are_adjoint() -> None:
    def f(x: Any) -> Any:
        return sg.softmax(A @ sg.sin(x)) * x.sum()

    direction, weight = np.cos(V), np.array([1.0, -2.0, 0.5])
    _, tangent = sg.jvp(f, (V,), (direction,))
    (pulled,) = sg.vjp(f, V)[1](weight)
    np.testing.assert_allclose(weight @ tangent, pulled @ direction, rtol=1e-12)


# --- jacobian, hessian ----------------------------------------------------------------------------


def test_jacobian_by_both_modes() -> None:
    def f(x: Any) -> Any:
        return sg.tanh(A @ x) if isinstance(x, sg.Tensor) else np.tanh(A @ x)

    expected = numeric(f, V)
    for transform in (sg.jacobian(f), sg.jacfwd(f), sg.jacrev(f), sg.jacobian(f, mode="reverse")):
        np.testing.assert_allclose(transform(V), expected, rtol=1e-7, atol=1e-9)


def test_jacobians_of_trees_are_nested() -> None:
    def f(p: Any, s: Any) -> Any:
        return {"a": p["w"] @ p["x"] * s, "b": (p["x"] * 2).sum()}

    p = {"w": A, "x": V}
    for mode in ("forward", "reverse"):
        j = sg.jacobian(f, argnums=(0, 1), mode=mode)(p, np.float64(3.0))
        assert j["a"][0]["w"].shape == (3, 3, 4) and j["b"][0]["w"].shape == (3, 4)
        np.testing.assert_allclose(j["a"][0]["x"], 3 * A)
        np.testing.assert_allclose(j["a"][1], A @ V)
        np.testing.assert_allclose(j["b"][0]["x"], np.full(4, 2.0))
        np.testing.assert_allclose(j["b"][0]["w"], np.zeros((3, 4)))
        np.testing.assert_allclose(j["a"][0]["w"], 3 * np.eye(3)[:, :, None] * V)


def test_the_mode_that_needs_fewer_directions_is_chosen() -> None:
    def directions(results: int, size: Any) -> str:
        t = sg.input("x", (size,), "float64")
        j = sg.jacobian(lambda x: sg.tanh(sg.broadcast_to(x.sum(), (results,))))(t)
        (basis,) = [n for n in sg.Graph([t], j).nodes if n.op == "band"]
        return str(basis.types[0])

    assert directions(5, 3) == "bool[3, 3]"  # forward
    assert directions(4, 4) == "bool[4, 4]"
    assert directions(3, 7) == "bool[3, 3]"  # reverse
    assert directions(3, "N") == "bool[3, 3]"


def test_hessian_and_its_product() -> None:
    def f(x: Any) -> Any:
        return (sg.sin(x) * x[0]).sum() * sg.exp(x).sum()

    h = sg.hessian(f)(V)
    np.testing.assert_allclose(h, numeric(lambda x: sg.grad(f)(x), V), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(h, h.T, rtol=1e-12)
    np.testing.assert_allclose(sg.hvp(f, V, A[0]), h @ A[0], rtol=1e-10)
    np.testing.assert_allclose(sg.hvp(f, (V,), (A[0],)), h @ A[0], rtol=1e-10)
    one, two = sg.hvp(lambda x, y: (x**2 * y).sum(), (V, V), (np.ones(4), np.zeros(4)))
    np.testing.assert_allclose(one, 2 * V)
    np.testing.assert_allclose(two, 2 * V)


def test_hessians_of_trees() -> None:
    h = sg.hessian(lambda p: (p["a"] ** 2 * p["b"]).sum())({"a": V, "b": V})
    np.testing.assert_allclose(h["a"]["a"], np.diag(2 * V))
    np.testing.assert_allclose(h["a"]["b"], np.diag(2 * V))
    np.testing.assert_allclose(h["b"]["b"], np.zeros((4, 4)))
    pairs = sg.hessian(lambda x, y: (x * y).sum(), argnums=(0, 1))(V, V)
    np.testing.assert_allclose(pairs[0][1], np.eye(4))


def test_higher_orders_and_any_nesting() -> None:
    f: Any = lambda x: x**5  # noqa: E731
    for factor in (5, 20, 60, 120):
        f = sg.grad(f)
        power = {5: 4, 20: 3, 60: 2, 120: 1}[factor]
        np.testing.assert_allclose(f(np.float64(1.5)), factor * 1.5**power, rtol=1e-12)

    def g(x: Any) -> Any:
        return (sg.sin(x) * x.sum()).sum()

    expected = sg.hessian(g)(V)
    nested = {
        "jit(jacfwd(grad))": sg.jit(sg.jacfwd(sg.grad(g))),
        "jacrev(jacfwd)": sg.jacrev(sg.jacfwd(g)),
        "jacfwd(jacfwd)": sg.jacfwd(sg.jacfwd(g)),
        "jit(grad) inside": sg.jacfwd(sg.jit(sg.grad(sg.jit(g)))),
        "vmap(hvp)": lambda x: sg.vmap(lambda t: sg.hvp(g, x, t))(np.eye(4)),
        "grad of a directional derivative": lambda x: sg.vmap(
            lambda t: sg.grad(lambda y: sg.jvp(g, (y,), (t,))[1])(x)
        )(np.eye(4)),
    }
    for name, h in nested.items():
        np.testing.assert_allclose(h(V), expected, rtol=1e-10, atol=1e-12, err_msg=name)


def test_sizes_may_change() -> None:
    f = sg.jacobian(lambda x: sg.sin(x) * x.sum())
    for n in (3, 4, 6):
        x = np.arange(1.0, n + 1)
        np.testing.assert_allclose(f(x), np.diag(np.cos(x) * x.sum()) + np.sin(x)[:, None])
    assert len(f.cache_entries) == 2


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sg.grad(squared)(3, 2), sg.DifferentiationError,
         r"argument x is int64\[\], and an integer has no gradient.*pass 3.0\n  at test_trans"),
        (lambda: sg.grad(squared, 1)(3.0, True), sg.DifferentiationError, "argument y is bool"),
        (lambda: sg.grad(lambda p: p["a"].sum())({"a": np.arange(3)}), sg.DifferentiationError,
         r"argument p\['a'\] is int64\[3\]"),
        (lambda: sg.grad(lambda p: p["a"])({"a": 1.0, "name": "x"}), sg.DifferentiationError,
         r"argument p\['name'\] is 'x', which can't be differentiated by"),
        (lambda: sg.grad(lambda x: x)(V), sg.DifferentiationError,
         r"must return a scalar, got float64\[4\]; reduce it with .sum\(\).*sg.jacobian"),
        (lambda: sg.grad(lambda x: (x.sum(), x))(V), sg.DifferentiationError, "has_aux=True"),
        (lambda: sg.grad(lambda x: {"loss": x.sum()})(V), sg.DifferentiationError, "a dict of 1"),
        (lambda: sg.grad(lambda x: x.sum(), has_aux=True)(V), sg.ArgumentTypeError,
         r"must return a pair \(value, aux\), got Tensor"),
        (lambda: sg.grad(lambda x: x.astype("int64"))(3.0), sg.DifferentiationError, "int64"),
        (lambda: sg.grad(lambda x: None)(3.0), sg.DifferentiationError, "must return one scalar"),
        (lambda: sg.grad(squared, argnums=2)(1.0, 2.0), sg.ArgumentError,
         "argnums has 2, but the function was called with 2 positional"),
        (lambda: sg.grad(squared, argnums=(0, 0)), sg.ArgumentError, "different ints"),
        (lambda: sg.grad(squared, argnums="x"), sg.ArgumentTypeError, "argnums must be an int"),
        (lambda: sg.grad(3.0), sg.ArgumentTypeError, "must be a function"),
        (lambda: sg.grad(squared)(1.0, 2.0, 3.0), TypeError,
         "takes 2 positional arguments but 3 were given"),
        (lambda: sg.grad(squared)({"a": 1.0}, {"a": 2.0}), TypeError,
         "unsupported operand type.* for -: 'dict' and 'dict'"),
        (lambda: sg.grad(lambda x: x if x > 0 else -x)(1.0), sg.ArgumentTypeError, "no value"),
        (lambda: sg.jacobian(lambda x: x, mode="both"), sg.ArgumentError, "mode must be"),
        (lambda: sg.jacobian(lambda x: x.astype("int32"))(V), sg.DifferentiationError,
         "result is int32"),
        (lambda: sg.vjp(lambda x: x * 2, V)[1](np.ones(3)), sg.ArgumentError,
         r"cotangent of result must have its type float64\[4\], got float64\[3\]"),
        (lambda: sg.vjp(lambda x: (x, x), V)[1](V), sg.ArgumentError, "cotangents must be struct"),
        (lambda: sg.vjp(lambda x: x), sg.ArgumentTypeError, "give the arguments"),
        (lambda: sg.jvp(lambda x: x, (V,), (V[:2],)), sg.ArgumentError, "tangent of x must have"),
        (lambda: sg.jvp(lambda x: x, (V,), (V.astype("float32"),)), sg.ArgumentError, "float32"),
        (lambda: sg.jvp(lambda x: x, V, V), sg.ArgumentTypeError, "primals must be a tuple"),
        (lambda: sg.jvp(lambda x: x, (1,), (1,)), sg.DifferentiationError, "integer"),
    ],
)  # fmt: skip
def test_wrong_use(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        call()
