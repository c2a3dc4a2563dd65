"""Static tensors that follow from constants alone have a value outside of traces: random keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg


def test_keys_are_used_outside_of_jit_as_in_jax() -> None:
    key = sg.random.key(7)
    first, second = sg.random.split(key)
    draw = sg.jit(lambda k: sg.random.normal((4,), key=k))
    x = sg.input("x", (2,), "uint64")
    expected = sg.compile([x], sg.random.normal((4,), key=x))
    for k in (key, first, second):
        found = draw(k)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected(np.asarray(k)))
    assert len(draw.cache_entries) == 1
    assert (draw(first) != draw(second)).all()
    rows = sg.vmap(lambda k: sg.random.normal((4,), key=k))(sg.random.split(key))
    np.testing.assert_array_equal(rows, [draw(first), draw(second)])


def test_transforms_of_constants_give_arrays() -> None:
    point = sg.constant([1.0, 2.0])

    def f(x: Any) -> Any:
        return sg.sum(x**3)

    for found, expected in (
        (sg.jit(f)(point), 9.0),
        (sg.grad(f)(point), [3.0, 12.0]),
        (sg.hessian(f)(point), [[6.0, 0.0], [0.0, 12.0]]),
        (sg.jvp(f, (point,), (sg.ones(2),))[1], 15.0),
        (sg.jit(lambda p: p["a"] + p["b"])({"a": point, "b": 1.0}), [2.0, 3.0]),
    ):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected)


def test_with_tensors_of_a_graph_beside_them_they_build_graph() -> None:
    x = sg.input("x", (2,))
    both = sg.grad(lambda a, b: sg.sum(a * b * b))(sg.ones(2), x)
    assert isinstance(both, sg.Tensor)
    np.testing.assert_array_equal(sg.compile([x], both)([2, 3]), [4, 9])
    assert isinstance(sg.jit(lambda a: a * x)(sg.ones(2)), sg.Tensor)
    limited = sg.custom_vjp(lambda a: a)
    limited.defvjp(lambda a: (a, None), lambda _, ct: (ct,))
    assert isinstance(limited(sg.ones(2)), sg.Tensor)  # an operation, as sg.sin


def test_values_of_constants() -> None:
    total = sg.sum(sg.arange(4))
    assert (int(total), float(total), total.item(), total.tolist()) == (6, 6.0, 6, 6)
    assert f"{sg.exp(0.0):.2f}" == "1.00"
    assert np.asarray(total).dtype == np.int64
    assert np.asarray(sg.eye(2), dtype="float64").dtype == np.float64
    np.testing.assert_array_equal(sg.eye(2).numpy(), np.eye(2))
    doubled = sg.fori_loop(0, 5, lambda i, v: v * 2, sg.ones(2))
    np.testing.assert_array_equal(np.asarray(doubled), [32, 32])


@pytest.mark.parametrize(
    "make",
    [
        lambda: sg.input("x", (2,)) * 2,
        lambda: sg.parameter([1.0, 2.0]) * 2,
        lambda: sg.random.normal((2,)),
        lambda: sg.zeros(("N",)),
        lambda: sg.fori_loop(0, 2, lambda i, v: v * sg.random.uniform(()), 1.0),
        lambda: sg.nn.functional.dropout(sg.ones(2), training=None),
    ],
)
def test_what_depends_on_more_has_none(make: Any) -> None:
    tensor = make()
    with pytest.raises(sg.ArgumentTypeError, match="has no value while the graph is being decl"):
        np.asarray(tensor)


def test_in_a_trace_constants_have_no_value_either() -> None:
    with pytest.raises(sg.ArgumentTypeError, match="which has no value yet"):
        sg.jit(lambda x: x * float(sg.exp(1.0)))(np.ones(2))
