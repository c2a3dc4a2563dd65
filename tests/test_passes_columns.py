"""Sums over rows ride in the kernel of the rows, with the bits of a kernel of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.nn import functional as F
from staticgrad.passes import columns


@pytest.fixture(autouse=True)
def _whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LEAST_ELEMENTS", 0)
    monkeypatch.setattr(columns, "LEAST_COLUMNS_OF_ANY", 0)


def layer_norm(
    shape: tuple[int, ...], symbolic: bool, dtype: str, threads: int, **options: Any
) -> Any:
    dims = (*(["B", "T"][: len(shape) - 1] if symbolic else shape[:-1]), shape[-1])
    x, gy = sg.input("x", dims, dtype), sg.input("gy", dims, dtype)
    w, b = (sg.input(name, shape[-1:], dtype) for name in "wb")
    y = F.layer_norm(x, shape[-1:], w, b)
    results = [y, *sg.gradients(y, [x, w, b], cotangent=gy)]
    return sg.compile([x, w, b, gy], results, threads=threads, **options)


def arrays(shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=s).astype(dtype) for s in (shape, shape[-1:], shape[-1:], shape)]


def kernels(program: Any) -> list[str]:
    return [k["name"] for k in program.report().to_dict()["kernels"]]


def expected(x: np.ndarray, w: np.ndarray, b: np.ndarray, gy: np.ndarray) -> list[np.ndarray]:
    x, w, b, gy = (a.astype(np.float64) for a in (x, w, b, gy))
    centred = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    xhat, gh = centred * scale, gy * w
    gx = scale * (gh - gh.mean(-1, keepdims=True) - xhat * (gh * xhat).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return [xhat * w + b, gx, (gy * xhat).sum(rows), gy.sum(rows)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(513, 40), (9, 64, 65), (130, 5, 24), (3, 500, 16)])
def test_the_same_bits_however_it_is_compiled(shape: tuple[int, ...], dtype: str) -> None:
    given = arrays(shape, dtype)
    ways: list[dict[str, Any]] = [{}, {"disable": ("fuse",)}]
    found = []
    for options in ways:
        for symbolic in (False, True):
            for threads in (1, 3):
                program = layer_norm(shape, symbolic, dtype, threads, **options)
                results = program(*given)
                found.append([r.tobytes() for r in results])
                if not options:
                    assert len(kernels(program)) == 2
                    assert kernels(program)[1] == "column_sums"
    assert all(f == found[0] for f in found)
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    for r, e in zip(results, expected(*given)):
        assert np.max(np.abs(r - e)) <= tolerance * max(1.0, np.max(np.abs(e)))


def test_an_optimisers_update_reads_the_blocks_sums() -> None:
    """What follows a sum that has moved is a kernel of its own."""
    x = sg.input("x", (1024, 64))
    start = [np.full(64, value, np.float32) for value in (1.5, 1.0, 0.0)]
    scale, w, b = (sg.parameter(value) for value in start)
    loss = sg.mean(sg.square(F.layer_norm(x * scale, (64,), w, b) - 1.0))
    optimizer = sg.optim.SGD([scale, w, b], lr=0.1, momentum=0.9)
    updates = optimizer.minimize(loss)
    data = np.random.default_rng(0).normal(size=(1024, 64)).astype(np.float32)
    found = []
    for disable in ((), ("fuse",)):
        step = sg.compile([x], [loss], updates=updates, disable=disable, threads=2)
        for cell in step.cells:
            cell.assign(np.zeros_like(cell.numpy()))
        for parameter, value in zip((scale, w, b), start):
            parameter.assign(value)
        losses = [step(data)[0].tobytes() for _ in range(3)]
        found.append([losses, *(p.numpy().tobytes() for p in (scale, w, b))])
        assert ("column_sums" in kernels(step)) == (not disable)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "dims", [(256, 64), (1024, 8), (1024, 8192), ("N", 2048), ("N", "D")], ids=str
)
def test_few_rows_and_very_long_or_short_ones_are_left_alone(dims: tuple[Any, ...]) -> None:
    x = sg.input("x", dims)
    y = F.softmax(x, dim=-1)
    program = sg.compile([x], [y, sg.sum(y, axis=0)])
    assert "column_sums" not in kernels(program)
    given = np.random.default_rng(1).normal(size=(1024, 8)).astype(np.float32)
    if dims == (1024, 8):
        np.testing.assert_allclose(program(given)[1].sum(), 1024, rtol=1e-5)


def test_special_values() -> None:
    x = sg.input("x", (1024, 16))
    z = x - sg.max(x, axis=-1, keepdims=True)
    results = [z, sg.sum(z, axis=0), sg.sum(z, axis=0, keepdims=True)]
    plain = sg.compile([x], results, disable=("fuse",))
    fused = sg.compile([x], results)
    assert "column_sums" in kernels(fused)
    given = np.zeros((1024, 16), np.float32)
    given[:, 1] = -0.0
    given[5, 2], given[700, 3], given[701, 3] = np.nan, np.inf, -np.inf
    given[:, 4] = -3e38
    for a, b in zip(plain(given), fused(given)):
        np.testing.assert_array_equal(a, b)
        assert np.array_equal(np.signbit(a), np.signbit(b)) or np.isnan(a).any()


def test_what_else_reads_the_summed_values() -> None:
    """A sum that the rows' own results wait for must not move into their kernel."""
    x = sg.input("x", (1024, 32))
    column = sg.mean(x, axis=0)
    y = F.softmax(x - column, dim=-1)
    total = sg.sum(y * x, axis=0) + column
    ways = [sg.compile([x], [y, total], disable=d) for d in ((), ("fuse",))]
    given = np.random.default_rng(2).normal(size=(1024, 32)).astype(np.float32)
    first, second = (way(given) for way in ways)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    centred = given - given.astype(np.float64).mean(0)
    e = np.exp(centred - centred.max(1, keepdims=True))
    e /= e.sum(1, keepdims=True)
    np.testing.assert_allclose(first[1], (e * given).sum(0) + given.mean(0), rtol=2e-5, atol=2e-5)
