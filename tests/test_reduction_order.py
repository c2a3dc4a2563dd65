"""Sums of many elements keep their digits, whatever the shape that they lie in."""

from __future__ import annotations

import numpy as np
import pytest
import staticgrad as sg


@pytest.mark.parametrize("last", [1, 2, 3, 4, 7, 33, 784])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-6), ("float64", 1e-14)])
def test_sums_over_every_axis(last: int, dtype: str, bound: float) -> None:
    rows = 1_000_000 // last
    x = sg.input("x", ("N", last), dtype)
    program = sg.compile([x], [x.sum(), x.sum(axis=0), sg.mean(x), sg.var(x)], cache=False)
    a = np.full((rows, last), 0.1, dtype)
    one = float(a[0, 0])
    total, columns, mean, variance = program(a)
    np.testing.assert_allclose(total, one * rows * last, rtol=bound)
    np.testing.assert_allclose(columns, one * rows, rtol=bound)
    np.testing.assert_allclose(mean, one, rtol=bound)
    assert float(variance) < (bound * one) ** 2 * 4


def test_three_axes_and_one_long_axis() -> None:
    x = sg.input("x", ("N", "M", 3))
    flat = sg.input("flat", ("L",))
    program = sg.compile([x, flat], [x.sum(), x.sum(axis=(0, 1)), flat.sum()], cache=False)
    a = np.random.default_rng(0).random((700, 300, 3), "float32")
    whole, kept, line = program(a, a.reshape(-1))
    np.testing.assert_allclose(whole, a.sum(dtype="float64"), rtol=2e-6)
    np.testing.assert_allclose(kept, a.sum(axis=(0, 1), dtype="float64"), rtol=2e-6)
    np.testing.assert_allclose(line, a.sum(dtype="float64"), rtol=2e-6)


def test_infinities_nothing_and_the_sign_of_zero() -> None:
    x = sg.input("x", ("N", 3))
    program = sg.compile([x], [x.sum(), x.sum(axis=0), x.sum(axis=1)], cache=False)
    a = np.ones((5000, 3), "float32")
    a[17, 1] = np.inf
    whole, columns, rows = program(a)
    assert whole == np.inf and columns.tolist() == [5000, np.inf, 5000] and rows[17] == np.inf
    a[4000, 1] = -np.inf
    assert np.isnan(program(a)[0])
    whole, columns, rows = program(np.zeros((0, 3), "float32"))
    assert not np.signbit(whole) and not np.signbit(columns).any() and rows.shape == (0,)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("last", range(2, 12))
def test_a_declared_size_gives_the_bits_of_a_symbolic_one(last: int, dtype: str) -> None:
    a = (np.random.default_rng(last).normal(size=(5, 20, last)) * 100).astype(dtype)
    bits = []
    for size in (last, "K"):
        x = sg.input("x", (5, 20, size), dtype)
        outputs = [x.sum(axis=2), x.max(axis=2), x.sum(axis=(1, 2)), x.sum(axis=1), x.prod(axis=2)]
        if dtype != "int32":
            outputs += [sg.softmax(x, axis=2), sg.logsumexp(x, axis=2), sg.var(x, axis=2)]
        bits.append([y.tobytes() for y in sg.compile([x], outputs)(a)])
    assert bits[0] == bits[1]


def test_reductions_of_no_elements_compile() -> None:
    x = sg.input("x", ("N", 0, "M"))
    assert (
        sg.compile([x], sg.sum(x, axis=(0, 1)))(np.ones((2, 0, 3), "float32")).tolist() == [0] * 3
    )
    y = sg.input("y", (3, 1, 0, 1))
    gradient = sg.gradients(sg.sum(sg.std(y, axis=(1, 2, 3))), y)
    assert sg.compile([y], gradient)(np.ones((3, 1, 0, 1), "float32")).shape == (3, 1, 0, 1)
    both = sg.grad(lambda a, b: sg.sum(sg.minimum(a, b)), argnums=(0, 1))
    a, b = sg.vmap(both, in_axes=(None, 3))(np.ones(1, "f4"), np.ones((0, 1, 1, 3), "f4"))
    assert a.tolist() == [[0.0]] * 3 and b.shape == (3, 0, 1, 1)
