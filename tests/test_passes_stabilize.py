"""stabilize: structure; values and gradients at inputs where the written form fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special as special
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.passes.canonicalize import canonicalize
from staticgrad.passes.cse import cse
from staticgrad.passes.stabilize import stabilize

from .pass_checks import formula, ops_of, run, verified


def stable(*outputs: Any, inputs: Any) -> Graph:
    before = Graph(inputs, outputs)
    return verified(cse(canonicalize(stabilize(canonicalize(before)))))


def softmax_by_hand(x: Any) -> Any:
    return sg.exp(x) / sg.sum(sg.exp(x), axis=1, keepdims=True)


def shifted_by_hand(x: Any) -> Any:
    e = sg.exp(x - sg.max(x, axis=1, keepdims=True))
    return e / sg.sum(e, axis=1, keepdims=True)


FORMS: list[tuple[Any, str]] = [
    (lambda x, y: sg.log(sg.softmax(x)), "log_softmax(x, axes=(1))"),
    (lambda x, y: sg.log(softmax_by_hand(x)), "log_softmax(x, axes=(1))"),
    (lambda x, y: sg.log(shifted_by_hand(x)), "log_softmax(x, axes=(1))"),
    (lambda x, y: softmax_by_hand(x), "softmax(x, axes=(1))"),
    (lambda x, y: shifted_by_hand(x), "softmax(x, axes=(1))"),
    (lambda x, y: sg.exp(x) / sg.expand_dims(sg.sum(sg.exp(x), axis=1), axis=1),
     "softmax(x, axes=(1))"),
    (lambda x, y: sg.exp(x) / sg.sum(sg.exp(x)), "softmax(x, axes=(0, 1))"),
    (lambda x, y: sg.exp(x) / sg.sum(sg.exp(x), axis=0), "softmax(x, axes=(0))"),
    (lambda x, y: sg.log(sg.sum(sg.exp(x), axis=1)), "logsumexp(x, axes=(1))"),
    (lambda x, y: sg.log(1.0 + sg.exp(x)), "softplus(x)"),
    (lambda x, y: sg.log1p(sg.exp(x)), "softplus(x)"),
    (lambda x, y: sg.log(sg.exp(x) + sg.exp(y)), "logaddexp(x, y)"),
    (lambda x, y: sg.log(1.0 + x), "log1p(x)"),
    (lambda x, y: sg.log(1.0 - x), "log1p(negative(x))"),
    (lambda x, y: sg.log(sg.exp(x)), "x"),
    (lambda x, y: sg.exp(x) - 1.0, "expm1(x)"),
    (lambda x, y: 1.0 - sg.exp(x), "negative(expm1(x))"),
    (lambda x, y: 1.0 / (1.0 + sg.exp(-x)), "sigmoid(x)"),
    (lambda x, y: sg.exp(x) / (1.0 + sg.exp(x)), "sigmoid(x)"),
    (lambda x, y: sg.exp(x) / (sg.exp(x) + sg.exp(y)), "sigmoid(subtract(x, y))"),
    (lambda x, y: 1.0 - sg.sigmoid(x), "sigmoid(negative(x))"),
    (lambda x, y: 1.0 - 1.0 / (1.0 + sg.exp(-x)), "sigmoid(negative(x))"),
    (lambda x, y: sg.log(sg.sigmoid(x)), "negative(softplus(negative(x)))"),
    (lambda x, y: sg.log(1.0 - sg.sigmoid(x)), "negative(softplus(x))"),
    (lambda x, y: sg.log1p(-sg.sigmoid(x)), "negative(softplus(x))"),
    (lambda x, y: sg.log(1.0 / (1.0 + sg.exp(-x))), "negative(softplus(negative(x)))"),
    (lambda x, y: 1.0 - sg.erf(x), "erfc(x)"),
    (lambda x, y: 1.0 + sg.erf(x), "erfc(negative(x))"),
    (lambda x, y: sg.sqrt(x * x), "abs(x)"),
    (lambda x, y: sg.log1p(sg.expm1(x)), "x"),
    # left alone
    (lambda x, y: sg.exp(x) / sg.sum(sg.exp(y), axis=1, keepdims=True),
     "divide(exp(x), sum(exp(y), axes=(1), keepdims=True))"),
    (lambda x, y: sg.log(2.0 + sg.exp(x)), "log(add(exp(x), 2.0))"),
    (lambda x, y: x / y * y, "multiply(y, divide(x, y))"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "expected"), FORMS, ids=[f"{i}-{e}" for i, (_, e) in
                                                            enumerate(FORMS)])  # fmt: skip
def test_form(build: Any, expected: str) -> None:
    """Structure; at ordinary inputs the values, gradients and second derivatives are the same."""
    x, y, w = (sg.input(n, ("N", 5), "float64") for n in "xyw")
    z = build(x, y)
    assert formula(stable(z, inputs=[x, y]).outputs[0]) == expected
    loss = sg.sum(z * w) if z.ndim == 2 else sg.sum(z * w[:, 0])
    first = sg.gradients(loss, [x, y], unreachable="zeros")
    second = sg.gradients(sg.sum(sg.sin(first[0]) * w), [x, y], unreachable="zeros")
    before = Graph([x, y, w], [z, *first, *second])
    after = stable(z, *first, *second, inputs=[x, y, w])
    rng = np.random.default_rng(3)
    arrays = [rng.uniform(-0.9, 0.9, (4, 5)) for _ in range(3)]
    for got, wanted in zip(run(after, arrays), run(before, arrays), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)


X = np.array(
    [[0.0, 1, 2, 3, 4], [1000.0, 0, -1000, 999, 1], [-200.0, 150, 100, -50, 0],
     [88.0, 89, 90, 120, -120], [1e-4, -1e-4, 0, 2e-4, 1]], "float32",
)  # fmt: skip
W = np.random.default_rng(0).standard_normal(X.shape).astype("float32")


@pytest.mark.parametrize("by_hand", [sg.softmax, softmax_by_hand, shifted_by_hand])
def test_gradient_of_log_softmax_where_softmax_underflows(by_hand: Any) -> None:
    x, w = sg.input("x", ("N", 5)), sg.input("w", ("N", 5))
    z = sg.log(by_hand(x))
    g = sg.gradients(sg.sum(z * w), x)
    after = stable(z, g, inputs=[x, w])
    value, slope = run(after, [X, W])
    wide = X.astype("float64")
    np.testing.assert_allclose(value, special.log_softmax(wide, axis=1), rtol=2e-6, atol=1e-6)
    expected = W - special.softmax(wide, axis=1) * W.sum(axis=1, keepdims=True, dtype="float64")
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)
    assert not np.isfinite(run(Graph([x, w], [g]), [X, W])[0]).all(), "the written form fails here"


def test_gradient_of_one_element_of_log_softmax() -> None:
    x = sg.input("x", (5,))
    g = sg.gradients(sg.log(sg.softmax(x))[2], x)
    after = stable(g, inputs=[x])
    row = np.array([1000.0, 0, -1000, 999, 1], "float32")
    expected = np.eye(5)[2] - special.softmax(row.astype("float64"))
    np.testing.assert_allclose(run(after, [row])[0], expected, rtol=1e-6, atol=1e-30)


def test_negative_log_likelihood_by_hand() -> None:
    """-mean(sum(onehot * log(softmax))): numbers stand between the log and the cotangent."""
    x, t = sg.input("x", ("N", 5)), sg.input("t", ("N", 5))
    loss = -sg.mean(sg.sum(t * sg.log(softmax_by_hand(x)), axis=1))
    g = sg.gradients(loss, x)
    target = np.eye(5, dtype="float32")[[0, 2, 1, 4, 3]]
    value, slope = run(stable(loss, g, inputs=[x, t]), [X, target])
    wide = X.astype("float64")
    expected = -(special.log_softmax(wide, axis=1) * target).sum(1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(
        slope, (special.softmax(wide, axis=1) - target) / 5, rtol=1e-4, atol=1e-7
    )


ROW = np.array([-1e30, -1000, -200, -100, -1, -1e-6, 0, 1e-6, 1, 50, 100, 200, 1000, 1e30])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("build", "value", "slope"),
    [
        (lambda x: sg.log(1.0 + sg.exp(x)), lambda x: np.logaddexp(0, x), special.expit),
        (lambda x: sg.log1p(sg.exp(x)), lambda x: np.logaddexp(0, x), special.expit),
        (lambda x: 1.0 / (1.0 + sg.exp(-x)), special.expit,
         lambda x: special.expit(x) * special.expit(-x)),
        (lambda x: sg.exp(x) / (1.0 + sg.exp(x)), special.expit,
         lambda x: special.expit(x) * special.expit(-x)),
        (lambda x: sg.log(sg.sigmoid(x)), special.log_expit, lambda x: special.expit(-x)),
        (lambda x: sg.log(1.0 - sg.sigmoid(x)), lambda x: -np.logaddexp(0, x),
         lambda x: -special.expit(x)),
        (lambda x: sg.log(1.0 / (1.0 + sg.exp(-x))), special.log_expit,
         lambda x: special.expit(-x)),
        (lambda x: 1.0 - sg.sigmoid(x), lambda x: special.expit(-x),
         lambda x: -special.expit(x) * special.expit(-x)),
        (lambda x: -(0.25 * sg.log(sg.sigmoid(x)) + 0.75 * sg.log(1.0 - sg.sigmoid(x))),
         lambda x: 0.25 * np.logaddexp(0, -x) + 0.75 * np.logaddexp(0, x),
         lambda x: 0.75 * special.expit(x) - 0.25 * special.expit(-x)),
        (lambda x: sg.log(sg.exp(x) + sg.exp(0.5 * x)),
         lambda x: np.logaddexp(x, 0.5 * x),
         lambda x: special.expit(0.5 * x) + 0.5 * special.expit(-0.5 * x)),
    ],
    ids=["softplus", "softplus1p", "sigmoid", "sigmoid2", "logsigmoid", "log1minus", "loghand",
         "oneminus", "bce", "logaddexp"],
)  # fmt: skip
def test_sigmoid_family_at_extreme_inputs(build: Any, value: Any, slope: Any, dtype: str) -> None:
    x = sg.input("x", ("N",), dtype)
    z = build(x)
    g = sg.gradients(sg.sum(z), x)
    row = ROW.astype(dtype)
    with np.errstate(all="ignore"):
        found, gradient = run(stable(z, g, inputs=[x]), [row])
        eps = float(np.finfo(dtype).eps)
        tiny = float(np.finfo(dtype).tiny)
        wide = row.astype("float64")
        np.testing.assert_allclose(found, value(wide), rtol=300 * eps, atol=tiny)
        np.testing.assert_allclose(gradient, slope(wide), rtol=300 * eps, atol=tiny)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_logsumexp_by_hand_and_its_gradient(axis: Any, keepdims: bool) -> None:
    x, w = sg.input("x", ("N", 5)), sg.input("w", ("N", 5))
    z = sg.log(sg.sum(sg.exp(x), axis=axis, keepdims=keepdims))
    g = sg.gradients(sg.sum(z * 2.0), x)
    after = stable(z, g, inputs=[x, w])
    assert "log" not in ops_of(after) and "divide" not in ops_of(after)
    value, slope = run(after, [X, W])
    wide = X.astype("float64")
    np.testing.assert_allclose(
        value, special.logsumexp(wide, axis=axis, keepdims=keepdims), rtol=1e-6
    )
    np.testing.assert_allclose(slope, 2 * special.softmax(wide, axis=axis), rtol=2e-4, atol=1e-30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_digits_near_zero(dtype: str) -> None:
    x = sg.input("x", ("N",), dtype)
    small = np.array([1e-12, -3e-10, 1e-20, 0.0, -1e-7], dtype)
    found = run(
        stable(sg.log(1.0 + x), sg.exp(x) - 1.0, 1.0 - sg.exp(x), sg.log(1.0 - x), inputs=[x]),
        [small],
    )
    wide = small.astype("float64")
    for got, expected in zip(found, (np.log1p(wide), np.expm1(wide), -np.expm1(wide),
                                     np.log1p(-wide))):  # fmt: skip
        np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps)


def test_erfc_keeps_its_digits() -> None:
    x = sg.input("x", ("N",), "float64")
    row = np.array([-3.0, 0.0, 3.0, 6.0, 20.0])
    found = run(stable(1.0 - sg.erf(x), 1.0 + sg.erf(-x), inputs=[x]), [row])
    for got in found:
        np.testing.assert_allclose(got, special.erfc(row), rtol=1e-13)


def test_square_root_of_square_does_not_overflow() -> None:
    x = sg.input("x", ("N",))
    row = np.array([1e30, -1e-30, np.inf, -np.inf, np.nan, -0.0], "float32")
    np.testing.assert_array_equal(run(stable(sg.sqrt(x * x), inputs=[x]), [row])[0], np.abs(row))


def test_masked_softmax_keeps_its_gradient() -> None:
    """-inf masks elements: their log is -inf, and a cotangent of 0 there stays 0."""
    x, w = sg.input("x", (1, 4)), sg.input("w", (1, 4))
    g = sg.gradients(sg.sum(sg.log(sg.softmax(x)) * w), x)
    row = np.array([[1.0, -np.inf, 2.0, -np.inf]], "float32")
    weights = np.array([[0.5, 0, -1, 0]], "float32")
    slope = run(stable(g, inputs=[x, w]), [row, weights])[0]
    expected = weights - special.softmax(row, axis=1) * weights.sum()
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_equal_nodes_need_not_be_merged() -> None:
    """What matches does not depend on cse, which keeps every bit and may be off."""
    x = sg.input("x", ("N", 5))
    z = sg.log(sg.exp(x) / sg.sum(sg.exp(x), axis=1, keepdims=True))
    assert formula(stabilize(canonicalize(Graph([x], [z]))).outputs[0]).startswith("log_softmax")


def test_a_graph_without_such_formulas_is_left_alone() -> None:
    x = sg.input("x", (3,))
    g = Graph([x], [sg.sin(x) * 2.0 / (x + 1.0)])
    assert stabilize(g) is g


def test_long_products_are_looked_at_in_parts() -> None:
    x = sg.input("x", ("N",))
    v = sg.exp(x)
    for _ in range(2_000):
        v = v * x / (x + 2.0)
    g = Graph([x], [v / (1.0 + sg.exp(x))])
    assert ops_of(stabilize(canonicalize(g))).count("sigmoid") == 1


class Sensitive:
    """Random formulas of what the rules match, on values where the written form is right too."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.x = sg.input("x", ("N", 4), "float64")
        self.w = sg.input("w", ("N", 4), "float64")
        self.pool: list[Any] = [self.x, self.w]
        for _ in range(7):
            self.pool.append(self.grow(self.pick()))

    def pick(self) -> Any:
        return self.pool[int(self.rng.integers(len(self.pool)))]

    def grow(self, v: Any) -> Any:
        small = sg.tanh(v)
        forms = [
            lambda: sg.exp(small), lambda: sg.sigmoid(v), lambda: sg.softmax(v),
            lambda: sg.log(sg.softmax(v, axis=0)), lambda: sg.log(1.0 + sg.exp(small)),
            lambda: 1.0 - sg.sigmoid(small), lambda: sg.exp(small) / (1.0 + sg.exp(small)),
            lambda: softmax_by_hand(small), lambda: sg.log(softmax_by_hand(small)),
            lambda: sg.sum(sg.exp(small), axis=1, keepdims=True) * self.w,
            lambda: self.pick() / sg.sum(sg.exp(small), axis=1, keepdims=True),
            lambda: self.pick() / (sg.exp(-small) + 1.0), lambda: self.pick() * sg.exp(small),
            lambda: self.pick() - self.pick() * sg.sigmoid(small),
            lambda: self.pick() / sg.sigmoid(small) * sg.sigmoid(small),
            lambda: sg.log(sg.sigmoid(v)), lambda: sg.exp(small) - 1.0,
            lambda: v + self.pick(), lambda: v * self.pick(), lambda: -v * 0.5,
            lambda: sg.log(sg.exp(small) + sg.exp(sg.sin(self.pick()))),
            lambda: sg.sum(v / softmax_by_hand(small), axis=1, keepdims=True) + self.w,
        ]  # fmt: skip
        return forms[int(self.rng.integers(len(forms)))]()


@pytest.mark.parametrize("seed", range(25))
def test_random_formulas_and_their_derivatives(seed: int) -> None:
    f = Sensitive(seed)
    outputs = f.pool[-3:]
    loss = sg.sum(sg.tanh(outputs[0]) * f.w + outputs[1] * outputs[2])
    first = sg.gradients(loss, f.x, unreachable="zeros")
    second = sg.gradients(sg.sum(sg.sin(first) * f.w), f.x, unreachable="zeros")
    before = Graph([f.x, f.w], [*outputs, first, second])
    after = stable(*before.outputs, inputs=[f.x, f.w])
    arrays = [f.rng.uniform(-1, 1, (3, 4)) for _ in range(2)]
    for got, expected in zip(run(after, arrays), run(before, arrays), strict=True):
        scale = float(np.max(np.abs(expected), initial=1.0))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11 * scale)
