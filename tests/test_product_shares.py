"""What of a matrix product each thread computes: rows or columns of the result."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import staticgrad as sg
from staticgrad_runtime import binding, frames, workers

from .threaded_programs import InTurn, Threaded, bits, random

MARK = 77.0


class FirstAlone(InTurn):
    """Runs the part of the first of two threads, and none of the other's."""

    def _run(self, context: int, share: int) -> int:
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        return int(kind(share)(context, 0, 2))


@pytest.fixture(autouse=True)
def _threads_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    monkeypatch.setattr(workers, "WAKE_NS", 0)


@pytest.mark.parametrize(
    ("m", "n", "k", "shared"),
    [(64, 64, 40, "rows"), (1024, 1024, 140, "columns"), (1040, 1024, 140, "rows"),
     (64, 80, 40, "columns"), (1024, 1024, 40, "rows"), (256, 800, 16, "rows"),
     (256, 800, 40, "columns"), (112, 800, 3, "columns")],
)  # fmt: skip
@pytest.mark.parametrize("symbolic", [False, True])
def test_the_longer_side_columns_of_large_squares_and_rows_of_a_short_k(
    m: int, n: int, k: int, shared: str, symbolic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = sg.input("x", ("M" if symbolic else m, k)), sg.input("y", (k, n))
    made = Threaded.of([x, y], [x @ y])
    half = made.on(2)
    monkeypatch.setattr(frames, "pool", lambda threads: FirstAlone((0, 1)))
    out = np.full((m, n), MARK, np.float32)
    half(random((m, k), 1), random((k, n), 2), out=[out])
    missing = out == MARK
    assert missing.sum() * 2 == pytest.approx(m * n, rel=0.25)
    along = (0, 1) if shared == "rows" else (1, 0)
    assert missing.all(axis=along[1]).sum() == missing.any(axis=along[1]).sum()
    assert missing.any(axis=along[0]).all()


def test_a_large_square_on_any_number_of_threads() -> None:
    """With an epilogue; rows of x are 4096 bytes apart, and copied."""
    x, y, bias = (sg.input(name, shape) for name, shape in
                  (("x", (1024, 1024)), ("y", (1024, 1024)), ("bias", (1024,))))  # fmt: skip
    made = Threaded.of([x, y, bias], [sg.relu(x @ y + bias)])
    arrays = random((1024, 1024), 1), random((1024, 1024), 2), random((1024,), 3)
    expected = made.on(1)(*arrays)
    for n in (2, 3):
        assert bits(made.on(n)(*arrays)) == bits(expected), n
    a, b, c = (v.astype(np.float64) for v in arrays)
    np.testing.assert_allclose(expected[0], np.maximum(a @ b + c, 0), rtol=1e-4, atol=1e-3)
