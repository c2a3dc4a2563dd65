"""Reductions whose blocks threads share have the bits of reductions in one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.passes.lowering import blocks, reduce


def kernels(program: Any) -> list[str]:
    return [k["name"] for k in program.report().to_dict()["kernels"]]


def declared(shape: tuple[int, ...], symbolic: bool) -> tuple[Any, ...]:
    """Sizes as they are, or all but the last ones unknown."""
    known = shape[-1:] if symbolic and len(shape) > 1 else () if symbolic else shape
    return (*[f"N{i}" for i in range(len(shape) - len(known))], *known)


def data(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(len(shape))
    if dtype.startswith("float"):
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(dtype)
    return (
        rng.integers(-3, 100, shape).astype(dtype) if dtype != "bool" else rng.random(shape) > 0.4
    )


def both_ways(
    build: Callable[[Any], Any], array: np.ndarray, symbolic: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[np.ndarray], list[list[bytes]]]:
    x = sg.input("x", declared(array.shape, symbolic), str(array.dtype))
    results = build(x)
    found = []
    for limit in (0, None):
        with monkeypatch.context() as patch:
            if limit is None:
                patch.setattr(reduce, "in_blocks", lambda *_: False)
            else:
                patch.setattr(blocks, "LEAST_ELEMENTS", limit)
                patch.setattr(blocks, "LEAST_ROW", limit)
                patch.setattr(blocks, "LEAST_STREAM", limit)
                patch.setattr(blocks, "TILE_COLUMNS", 4096)
            for threads in (1, 3):
                program = sg.compile([x], results, threads=threads)
                assert any(n.endswith("_blocks") for n in kernels(program)) == (limit is not None)
                values = program(array)
                found.append([v.tobytes() for v in values])
    return list(values), found


SHAPES = [(70_001,), (300, 301), (3, 171, 129), (5,), (64, 64)]


def everything(x: Any) -> list[Any]:
    signs = sg.prod(sg.sign(x) + (x == x) * 2)
    return [sg.sum(x), sg.max(x), sg.min(x), signs, sg.any(x > 50)]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_everything(
    shape: tuple[int, ...], dtype: str, symbolic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = data(shape, dtype)
    values, found = both_ways(everything, array, symbolic, monkeypatch)
    assert all(f == found[0] for f in found)
    wide = array.astype(np.float64)
    np.testing.assert_allclose(
        values[0], array.sum(dtype=wide.dtype), rtol=2e-5 if dtype == "float32" else 1e-12
    )
    assert values[1] == array.max() and values[2] == array.min()
    assert values[4] == (array > 50).any()


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", [(70_001,), (300, 301)], ids=str)
def test_stages_and_what_has_the_full_shape(
    shape: tuple[int, ...], symbolic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).normal(3.0, 2.0, shape).astype(np.float32)

    def build(x: Any) -> list[Any]:
        centred = x - sg.mean(x)
        spread = sg.sqrt(sg.mean(sg.square(centred)))
        weights = sg.exp(x - sg.max(x))
        return [centred / spread, spread, weights / sg.sum(weights), sg.sum(weights) * 2.0]

    values, found = both_ways(build, array, symbolic, monkeypatch)
    assert all(f == found[0] for f in found)
    wide = array.astype(np.float64)
    np.testing.assert_allclose(values[0], (wide - wide.mean()) / wide.std(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values[1], wide.std(), rtol=1e-5)
    weights = np.exp(wide - wide.max())
    np.testing.assert_allclose(values[2], weights / weights.sum(), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(values[3], 2 * weights.sum(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1000, 70), 0),
        ((5, 300, 33), 1),
        ((3, 5, 257, 7), 2),
        ((40, 30, 11), (0, 1)),
        ((17, 100, 90), 0),
        ((20, 9001), 0),
        ((2, 65, 3, 8192), 1),
        ((5, 18, 4, 5000), (0, 2)),
    ],
    ids=str,
)
def test_of_columns(
    shape: tuple[int, ...], axis: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = data(shape, dtype)

    def build(x: Any) -> list[Any]:
        squares = sg.sum(x * x, axis=axis, keepdims=True)
        return [sg.sum(x, axis=axis), sg.max(x, axis=axis) * 2, squares]

    values, found = both_ways(build, array, False, monkeypatch)
    assert all(f == found[0] for f in found)
    tolerance = {"float32": 2e-5, "float64": 1e-12, "int32": 0}[dtype]
    sums = np.abs(array.astype(np.float64)).sum(axis)
    assert np.all(np.abs(values[0] - array.sum(axis, dtype=np.float64)) <= tolerance * sums)
    np.testing.assert_array_equal(values[1], array.max(axis) * 2)
    assert values[2].shape == np.sum(array, axis=axis, keepdims=True).shape


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1000, 70), 0), ((5, 300, 33), 1), ((40, 30, 11), (0, 1)), ((1, 90), 0), ((0, 9), 0)],
    ids=str,
)
def test_of_columns_of_unknown_length(
    shape: tuple[int, ...], axis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = data(shape, "float32")
    monkeypatch.setattr(blocks, "ASSUMED_ROWS", 1 << 20)

    def build(x: Any) -> list[Any]:
        return [sg.sum(x, axis=axis), sg.sum(x * x, axis=axis, keepdims=True)]

    values, found = both_ways(build, array, True, monkeypatch)
    assert all(f == found[0] for f in found)
    x = sg.input("x", shape)
    assert [v.tobytes() for v in sg.compile([x], build(x))(array)] == found[0]
    sums = np.abs(array.astype(np.float64)).sum(axis)
    assert np.all(np.abs(values[0] - array.sum(axis, dtype=np.float64)) <= 2e-5 * sums)


def test_steps_of_a_batch_of_unknown_size() -> None:
    """100 steps are many rows with any batch."""
    x, y = sg.input("x", (100, "N", 384)), sg.input("y", ("N", 384))
    assert kernels(sg.compile([x], sg.sum(x, axis=(0, 1)))) == ["sum", "sum_blocks"]
    assert kernels(sg.compile([y], sg.sum(y, axis=0))) == ["sum"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((20, 9001), 0), ((2, 67, 2, 4100), 1), ((3, 21, 4096), (0, 1))], ids=str
)
def test_long_rows_are_added_eight_at_a_time(
    shape: tuple[int, ...], axis: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = data(shape, dtype)
    values, found = both_ways(lambda x: [sg.sum(x, axis=axis)], array, False, monkeypatch)
    assert all(f == found[0] for f in found)
    monkeypatch.setattr(blocks, "LEAST_STREAM", 0)
    monkeypatch.setattr(blocks, "ROWS_AT_ONCE", 1)
    x = sg.input("x", shape, dtype)
    one_at_a_time = sg.compile([x], [sg.sum(x, axis=axis)])
    assert one_at_a_time(array)[0].tobytes() == found[0][0]
    sums = np.abs(array.astype(np.float64)).sum(axis)
    tolerance = {"float32": 2e-5, "float64": 1e-12, "int32": 0}[dtype]
    assert np.all(np.abs(values[0] - array.sum(axis, dtype=np.float64)) <= tolerance * sums)


def test_special_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for special in (np.nan, np.inf, -np.inf, -0.0, 3e38):
        array = np.full(70_000, -0.0, np.float32)
        array[[5, 69_990]] = special
        values, found = both_ways(lambda x: [sg.sum(x), sg.max(x)], array, False, monkeypatch)
        assert all(f == found[0] for f in found)
        if special == 0.0:
            assert not np.signbit(values[0])


def test_small_and_plain_ones_stay_one_kernel() -> None:
    x, y = sg.input("x", (100, 100)), sg.input("y", ("N", 10))
    z = sg.input("z", (512, 1024))
    program = sg.compile([x, y, z], [sg.sum(x), sg.mean(y), sg.sum(z, axis=1), sg.sum(x, axis=0)])
    assert not any("blocks" in name for name in kernels(program))
    large = sg.input("x", (1000, 1000))
    assert kernels(sg.compile([large], sg.sum(large))) == ["sum", "sum_blocks"]


@pytest.mark.parametrize(
    "shape", [(9, 3, 1), (1, 9, 3, 1), (9, 1, 3), (9, 1, 3, 1), (12, 1, 5)], ids=str
)
@pytest.mark.parametrize("disable", [(), ("canonicalize",), ("canonicalize", "fuse")], ids=str)
def test_short_rows_beside_axes_of_one(shape: tuple[int, ...], disable: tuple[str, ...]) -> None:
    """Without `canonicalize`, and behind what makes sums later, such axes reach the lowering."""
    array = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    axes = tuple(i for i, n in enumerate(shape) if n < 9 and i)
    x = sg.input("x", shape)
    y = sg.where(x > 0, 2 * x, 0)
    program = sg.compile([x], [y, sg.sum(y, axis=axes), sg.max(x, axis=axes)], disable=disable)
    expected = np.where(array > 0, 2 * array, 0)
    found = program(array)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_allclose(found[1], expected.sum(axes), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[2], array.max(axes))
    reference = sg.compile([x], [sg.sum(y, axis=axes)])(array)[0]
    assert reference.tobytes() == found[1].tobytes()
