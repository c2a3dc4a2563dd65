"""Maxima and minima of rows of floats: NaN, infinities and the sign of zero, wherever they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg

Array = np.ndarray[Any, Any]

# Whole vectors of lanes, a masked tail, one block and several, and rows too short for lanes.
LENGTHS = (2, 7, 32, 33, 100, 4096 + 5)
NAN, INF = np.nan, np.inf


def in_order(row: Array, largest: bool) -> float:
    """The definition: NaN if there is one, and -0 below +0."""
    if np.isnan(row).any():
        return NAN
    signed = [(float(v), not np.signbit(v)) for v in row]
    return (max(signed) if largest else min(signed))[0]


def expected(x: Array) -> list[Array]:
    return [np.array([in_order(r, largest) for r in x], x.dtype) for largest in (True, False)]


def rows(length: int, dtype: str) -> Array:
    """Each special value in the first, the last and a middle place among others of one sign."""
    rng = np.random.default_rng(length)
    base = np.abs(rng.standard_normal(length)) + 0.5
    found = [base, -base, np.zeros(length), -np.zeros(length)]
    for special in (NAN, -NAN, INF, -INF, 0.0, -0.0, 5e-324, -1e-45):
        for place in (0, length // 2, length - 1):
            for others in (base, -base, np.zeros(length), -np.zeros(length), np.full(length, -INF)):
                row = others.copy()
                row[place] = special
                found.append(row)
    return np.array(found).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
def test_special_values(length: int, dtype: str) -> None:
    data = rows(length, dtype)
    bits = []
    for size in (length, "K"):
        x = sg.input("x", (len(data), size), dtype)
        found = sg.compile([x], [sg.max(x, axis=1), sg.min(x, axis=1)])(data)
        for got, want in zip(found, expected(data), strict=True):
            np.testing.assert_array_equal(got, want)
            zeros = want == 0
            np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(want[zeros]))
        bits.append([y.tobytes() for y in found])
    assert bits[0] == bits[1]  # NaN too: of a declared size and of a symbolic one it is the same


def test_of_everything_in_blocks() -> None:
    x = sg.input("x", (70_000,))
    program = sg.compile([x], [sg.max(x), sg.min(x)])
    data = -np.ones(70_000, "float32")
    data[69_990] = -0.0
    assert np.signbit(program(data)[0]) and program(data)[0] == 0
    data[5] = 0.0
    assert not np.signbit(program(data)[0])
    assert program(-data)[1] == 0 and np.signbit(program(-data)[1])
    data[40_000] = NAN
    assert np.isnan(program(data)).all()


def test_several_axes() -> None:
    x = sg.input("x", (3, "N", 40))
    data = -np.abs(np.random.default_rng(0).standard_normal((3, 50, 40))).astype("float32")
    data[1, 49, 39], data[2, 20, 20] = NAN, 0.0
    largest, smallest = sg.compile([x], [sg.max(x, axis=(1, 2)), sg.min(x, axis=(1, 2))])(data)
    np.testing.assert_array_equal(largest, [data[0].max(), NAN, 0])
    np.testing.assert_array_equal(smallest, [data[0].min(), NAN, data[2].min()])


def test_lanes_take_plain_compares() -> None:
    """Of the three parts of an element's turn none is `llvm.maximum`, which is six instructions."""
    x = sg.input("x", (64, 1024))
    text = sg.compile([x], sg.softmax(x, axis=1), cache=False).llvm_ir
    assert "llvm.smax.v32i32" in text and "llvm.umax.v32i32" in text
    assert "llvm.maximum.v32f32" not in text
