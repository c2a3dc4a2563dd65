"""A result that is wanted in another shape is computed where it is wanted: outputs, new values of
state, and what loops stack and carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

F = sg.nn.functional
Array = np.ndarray[Any, Any]
X = np.random.default_rng(0).standard_normal((64, 128)).astype("f4")
W = np.random.default_rng(1).standard_normal((128, 32)).astype("f4")


def _nodes(program: Any) -> list[list[str]]:
    return [k["nodes"] for k in program.report().to_dict()["kernels"]]


def _copies(program: Any) -> int:
    return sum(nodes == ["copy"] for nodes in _nodes(program))


def _softmax(x: Array) -> Array:
    e = np.exp(x.astype("f8") - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# What is computed, what NumPy says, and the shape that is wanted.
RESULTS: dict[str, tuple[Callable[[Any, Any], Any], Array, tuple[int, ...]]] = {
    "map": (lambda x, w: sg.tanh(x), np.tanh(X.astype("f8")), (128, 64)),
    "rows": (lambda x, w: F.softmax(x, axis=1), _softmax(X), (8, 8, 128)),
    "reduction": (lambda x, w: sg.sum(x, axis=1), X.astype("f8").sum(1), (8, 8)),
    "product": (lambda x, w: sg.matmul(x, w), X.astype("f8") @ W, (8, 8, 32)),
    "kernel": (lambda x, w: sg.cumulative_sum(x, axis=1), np.cumsum(X, 1, "f8"), (128, 64)),
}


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("name", RESULTS)
def test_an_output_of_another_shape_is_no_copy(name: str, symbolic: bool) -> None:
    build, want, shape = RESULTS[name]
    x, w = sg.input("x", ("N" if symbolic else 64, 128)), sg.input("w", W.shape)
    y = build(x, w)
    reshaped = sg.reshape(y, (-1, *shape[1:]))
    program = sg.compile([x, w], sg.expand_dims(reshaped, axis=0))
    assert len(_nodes(program)) == 1
    assert _copies(program) == 0
    np.testing.assert_allclose(program(X, W)[0], want.reshape(shape), rtol=2e-5, atol=1e-5)
    plain = sg.compile([x, w], y)
    assert program(X, W).tobytes() == plain(X, W).tobytes()


def test_others_read_the_result_in_the_output() -> None:
    x, w = sg.input("x", X.shape), sg.input("w", W.shape)
    t = sg.tanh(x)
    program = sg.compile([x, w], [sg.reshape(t, (128, 64)), sg.matmul(t, w)])
    assert _copies(program) == 0
    found, product = program(X, W)
    np.testing.assert_allclose(found, np.tanh(X).reshape(128, 64), rtol=1e-6)
    np.testing.assert_allclose(product, np.tanh(X) @ W, rtol=1e-4, atol=1e-5)
    twice = sg.compile([x], [sg.reshape(t, (128, 64)), t, sg.reshape(t, (-1,))])
    assert _copies(twice) == 2  # each output is an array of its own
    for y in twice(X):
        assert y.tobytes() == found.tobytes()


def test_a_permuted_result_is_copied_once() -> None:
    x = sg.input("x", ("N", 2, 150, 4))
    a = np.random.default_rng(2).standard_normal((3, 2, 150, 4)).astype("f4")
    y = F.scaled_dot_product_attention(x, x, x)
    merged = sg.reshape(sg.permute_dims(y, (0, 2, 1, 3)), (-1, 150, 8))
    program = sg.compile([x], merged)
    assert _copies(program) == 1
    whole = sg.compile([x], y)(a)
    assert program(a).tobytes() == whole.transpose(0, 2, 1, 3).tobytes()


def test_sizes_that_are_only_known_to_agree_at_run_time() -> None:
    x, like = sg.input("x", ("N", 6)), sg.input("like", ("K", 3))
    program = sg.compile([x, like], sg.reshape(sg.exp(x), like.shape))
    a = X[:4, :6].copy()
    found = program(a, np.zeros((8, 3), "f4"))
    np.testing.assert_allclose(found, np.exp(a).reshape(8, 3), rtol=1e-6)
    with pytest.raises(sg.StaticgradError):
        program(a, np.zeros((7, 3), "f4"))


def test_new_state_of_another_shape_is_no_copy() -> None:
    x = sg.input("x", X.shape)
    s, r = (sg.parameter(np.ones(X.shape, "f4"), name=name) for name in "sr")
    flat = sg.reshape(s, (-1,)) * 0.5 + sg.tanh(sg.reshape(x, (-1,)))
    rows = F.softmax(sg.reshape(x, (128, 64)), axis=1)
    updates = {s: sg.reshape(flat, X.shape), r: sg.reshape(rows, X.shape)}
    step = sg.compile([x], [sg.sum(x)], updates=updates)
    assert _copies(step) == 0
    step(X)
    step(X)
    np.testing.assert_allclose(s.numpy(), 0.25 + 1.5 * np.tanh(X), rtol=1e-5, atol=1e-6)
    want = _softmax(X.reshape(128, 64)).reshape(X.shape)
    np.testing.assert_allclose(r.numpy(), want, rtol=1e-5)


def test_state_that_swaps_its_old_values_in_other_shapes() -> None:
    a, b = (sg.parameter(np.full(s, i, "f4"), name=n) for i, (n, s) in
            enumerate({"a": (2, 6), "b": (3, 4)}.items()))  # fmt: skip
    step = sg.compile([], [sg.sum(a)], updates={a: sg.reshape(b, (2, 6)), b: sg.reshape(a, (3, 4))})
    step()
    assert a.numpy().tolist() == np.ones((2, 6)).tolist()
    assert b.numpy().tolist() == np.zeros((3, 4)).tolist()


def test_loops_and_choices_store_results_of_another_shape() -> None:
    x = sg.input("x", X.shape)

    def body(carry: Any, row: Any) -> Any:
        y = sg.reshape(sg.tanh(carry + row), (16, 8))
        return sg.reshape(y, (128,)), y

    program = sg.compile([x], [*sg.scan(body, sg.zeros((128,)), x)])
    carried, stacked = np.zeros(128, "f4"), []
    for row in X:
        carried = np.tanh(carried + row)
        stacked.append(carried.reshape(16, 8))
    last, found = program(X)
    np.testing.assert_allclose(found, np.stack(stacked), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, carried, rtol=1e-4, atol=1e-5)

    def chosen(sign: float) -> Any:
        return lambda v: sg.reshape(sg.tanh(v) * sign, (128, 64))

    choice = sg.compile([x], sg.cond(sg.sum(x) > 0, chosen(1.0), chosen(-1.0), x))
    assert _copies(choice) == 0
    for a, sign in ((np.abs(X), 1), (-np.abs(X), -1)):
        np.testing.assert_allclose(choice(a), np.tanh(a).reshape(128, 64) * sign, rtol=1e-6)
