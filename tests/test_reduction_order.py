"""Sums of many elements keep their digits, whatever the shape that they lie in."""

from __future__ import annotations

import itertools
from typing import Any

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


ONES = [
    ("float32", (1, 5000)), ("float32", (5000, 1)), ("float64", (1, 300, 1)),
    ("float32", (1, 70, 40)), ("float32", (70, 1, 40)), ("float32", (70, 40, 1)),
    ("float64", (3, 1, 70, 1)), ("float32", (2, 5000)), ("float64", (1, 1, 9)),
    ("float32", (5, 0, 1)), ("float32", (1, 1)), ("float32", (1, 130, 4100)),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "shape"), ONES, ids=str)
def test_sizes_that_turn_out_to_be_one(dtype: str, shape: tuple[int, ...]) -> None:
    """Over all subsets of the axes, whichever sizes are declared."""
    rng = np.random.default_rng(len(shape))
    a = (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(dtype)
    rank = len(shape)
    subsets = [s for k in range(1, rank + 1) for s in itertools.combinations(range(rank), k)]
    found = []
    for known in (range(rank), *([i] for i in range(rank)), range(rank - 1), []):
        x = sg.input("x", [n if i in known else f"N{i}" for i, n in enumerate(shape)], dtype)
        outputs = [y for s in subsets for y in (sg.sum(x, axis=s), sg.prod(x + 1, axis=s))]
        outputs += [sg.sum(x * x, axis=s, keepdims=True) for s in subsets]
        found.append([y.tobytes() for y in sg.compile([x], outputs, cache=False)(a)])
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (40, 1, 30), (1, 40, 1)], ids=str)
def test_what_has_the_full_shape_beside_sizes_of_one(shape: tuple[int, ...]) -> None:
    a = np.random.default_rng(3).normal(size=shape).astype("float32")
    found = []
    for sizes in (shape, "NMK"[: len(shape)]):
        x = sg.input("x", tuple(sizes))
        every = tuple(range(len(shape)))
        outputs = [sg.softmax(x, axis=every), sg.logsumexp(x, axis=every), sg.var(x, axis=0)]
        for axis in (0, every):
            centred = x - sg.mean(x, axis=axis, keepdims=True)
            spread = sg.mean(sg.square(centred), axis=axis, keepdims=True)
            outputs += [centred / sg.sqrt(spread + 1e-5), sg.sum(sg.exp(x) * spread)]
        program = sg.compile([x], outputs, cache=False)
        results = program(a)
        found.append([y.tobytes() for y in results])
        wide = np.exp(a.astype("float64"))
        np.testing.assert_allclose(results[0], wide / wide.sum(), rtol=1e-5)
        for threads in (1, 3):
            again = sg.compile([x], outputs, cache=False, threads=threads)(a)
            assert [y.tobytes() for y in again] == found[-1]
    assert found[0] == found[1]


def test_another_space_for_sizes_of_one_takes_no_kernel_more() -> None:
    x, y = sg.input("x", ("N", "M")), sg.input("y", ("N", 40))
    program = sg.compile([x, y], [x.sum(), x.sum(axis=0), y.sum(), y.sum(axis=0)], cache=False)
    assert len(program.report().to_dict()["kernels"]) == 4
    a, b = np.ones((200, 300), "f4"), np.ones((200, 40), "f4")
    whole, columns, *_ = program(a, b)
    assert whole == 60_000 and columns.tolist() == [200] * 300


@pytest.mark.parametrize("rows", [2, "N"])
def test_few_long_rows_are_many_blocks(rows: Any) -> None:
    """Each adds few elements to a lane, and threads share them."""
    x = sg.input("x", (rows, 1_000_000))
    program = sg.compile([x], x.sum(), cache=False)
    a = np.full((2, 1_000_000), 0.1, "float32")
    np.testing.assert_allclose(program(a), float(a[0, 0]) * 2_000_000, rtol=2e-6)
    assert program.peak_bytes(**({} if rows == 2 else {"N": 2})) == 1984  # of 2 x 245 blocks
