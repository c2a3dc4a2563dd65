"""Products whose result only the epilogue reads: the bits of the stored product, in a tile of the
size that the formula says; and that a weight's gradient takes no memory of its own."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
import staticgrad as sg
from staticgrad import optim
from staticgrad.codegen.gemm import longest_k_block, tile_bytes

from .test_gemm import EPILOGUE, PTR, TARGETS, laid_out, product

MARK = 0xAB
Array = np.ndarray[Any, Any]
# m, n, k around tiles, single rows, few columns (which are computed as the transpose), small
# products, several blocks of columns, and rows that are a multiple of 4096 bytes.
SIZES = [
    (1, 1, 1), (1, 300, 40), (3, 70, 130), (14, 32, 33), (15, 31, 16), (40, 1, 90), (5000, 2, 70),
    (900, 8, 200), (61, 47, 1), (29, 65, 700), (700, 20, 20), (70, 1024, 40), (9, 2048, 9),
    (40, 4000, 1000), (30, 9000, 1), (400, 5, 0), (13, 3000, 64),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def tiled(target: str, a: Array, b: Array, rect: tuple[int, int, int, int]) -> Array:
    """What the epilogue sees of a product whose C is nowhere."""
    run = product(a.dtype.name, target)
    (m, k), n, size = a.shape, b.shape[1], a.itemsize
    assert k <= longest_k_block(a.itemsize)
    room = tile_bytes(run.target, a.dtype.name, m, n)
    memory = np.full(room + (1 << 14), MARK, np.uint8)
    start = -memory.ctypes.data % 64
    seen, times = np.zeros((m, n), a.dtype), np.zeros((m, n), int)

    def note(
        context: int, batch: int, r0: int, r1: int, c0: int, c1: int, place: int, c_rs: int
    ) -> None:
        used = ((r1 - r0 - 1) * c_rs + c1 - c0) * size
        assert memory.ctypes.data + start == place and used <= room
        block = np.frombuffer((ctypes.c_char * used).from_address(place), a.dtype)
        seen[r0:r1, c0:c1] = np.lib.stride_tricks.as_strided(
            block, (r1 - r0, c1 - c0), (c_rs * size, size)
        )
        times[r0:r1, c0:c1] += 1

    untouched = np.broadcast_to(np.zeros((), a.dtype), (m, n))  # strides of 0
    untouched.flags.writeable = False
    run(a, b, untouched, rect, ctypes.cast(EPILOGUE(note), PTR), 7, 3,
        tile=memory.ctypes.data + start)  # fmt: skip
    inside = np.zeros((m, n), int)
    inside[rect[0] : rect[1], rect[2] : rect[3]] = 1
    np.testing.assert_array_equal(times, inside)
    assert (memory[:start] == MARK).all() and (memory[start + room :] == MARK).all()
    assert not untouched.any()
    return seen


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32"])
def test_bits_of_the_stored_product(dtype: str, target: str) -> None:
    run = product(dtype, target)
    longest = longest_k_block(np.dtype(dtype).itemsize)
    for (m, n, k), kind in zip(SIZES, itertools.cycle(("row", "column", "strided"))):
        k = min(k, longest)
        a, b = laid_out((m, k), dtype, kind, 1), laid_out((k, n), dtype, "row", 2)
        expected = run(a, b)
        assert tiled(target, a, b, (0, m, 0, n)).tobytes() == expected.tobytes(), (m, n, k, kind)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shares_of_threads(dtype: str) -> None:
    """Rows, or columns if there are more of them."""
    run = product(dtype)
    for m, n, k in [(90, 70, 40), (300, 24, 100), (30, 700, 64), (2100, 1030, 5)]:
        a, b = laid_out((m, k), dtype, "column", 1), laid_out((k, n), dtype, "row", 2)
        expected, side = run(a, b), max(m, n)
        for part in (5, 16, side // 2 + 1):
            for begin in list(range(0, side, part))[:3]:
                end = min(begin + part, side)
                rect = (begin, end, 0, n) if m >= n else (0, m, begin, end)
                inside = slice(*rect[:2]), slice(*rect[2:])
                assert tiled("host", a, b, rect)[inside].tobytes() == expected[inside].tobytes()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [2, 3, 5, 7, 8])
def test_few_columns_of_many_rows_stay_in_the_tile(n: int, target: str) -> None:
    """Their transposed product has all of its rows in the tile at once, of any share of columns."""
    for dtype, m in (("float64", 2500), ("float32", 5000), ("int8", 2100)):
        a, b = laid_out((m, 70), dtype, "column", 1), laid_out((70, n), dtype, "row", 2)
        expected = product(dtype, target)(a, b)
        assert tiled(target, a, b, (0, m, 0, n)).tobytes() == expected.tobytes()
        wide = laid_out((70, m + 50), dtype, "row", 3)
        got = tiled(target, a, wide, (0, m, 16, 16 + n))[:, 16 : 16 + n]
        expected = product(dtype, target)(a, wide)[:, 16 : 16 + n]
        assert got.tobytes() == expected.tobytes()


def test_several_blocks_of_k_are_summed_in_the_result() -> None:
    run = product("float32")
    a, b = laid_out((40, 1500), "float32", "row", 1), laid_out((1500, 50), "float32", "row", 2)
    c, seen, nowhere = np.zeros((40, 50), "float32"), [], np.full(4096, MARK, np.uint8)

    def note(
        context: int, batch: int, r0: int, r1: int, c0: int, c1: int, place: int, c_rs: int
    ) -> None:
        seen.append((place, c_rs, r0, c0))

    epilogue = ctypes.cast(EPILOGUE(note), PTR)
    run(a, b, c, None, epilogue, 7, 3, tile=nowhere.ctypes.data)
    assert c.tobytes() == run(a, b).tobytes() and (nowhere == MARK).all()
    assert seen and all((p, rs) == (c[i:, j:].ctypes.data, 50) for p, rs, i, j in seen)


# --- programs -------------------------------------------------------------------------------------


def update(batch: Any, rows: int, columns: int, optimiser: str, **options: Any) -> tuple[Any, Any]:
    """One step of `sum((x w)^2)`, whose gradient is `x^T (2 x w)`."""
    rng = np.random.default_rng(0)
    w = sg.parameter(rng.standard_normal((rows, columns)).astype("float32") / rows, "w")
    x = sg.input("x", (batch, rows))
    loss = sg.sum(sg.square(x @ w))
    method = {
        "sgd": optim.SGD([w], lr=1e-3, momentum=0.9),
        "adam": optim.Adam([w], lr=1e-3),
    }[optimiser]
    return sg.compile([x], loss, updates=method.minimize(loss), **options), w


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_gradient_takes_no_memory(optimiser: str) -> None:
    rows, columns, batch = 300, 500, 8
    step, _ = update(batch, rows, columns, optimiser, threads=1)
    gradient = 4 * rows * columns
    assert step.peak_bytes() < gradient // 2


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("batch", [1, 30, 1500])
def test_updates_have_the_bits_of_stored_gradients(optimiser: str, batch: int) -> None:
    """Whatever the threads, with a declared and with a symbolic batch, whose 1,500 are two blocks
    of k, and not fused."""
    x = np.random.default_rng(1).standard_normal((batch, 70)).astype("float32")
    found = set()
    for size, options in itertools.product(
        (batch, "N"), ({"threads": 1}, {"threads": 3}, {"disable": ("fuse",)})
    ):
        step, w = update(size, 70, 400, optimiser, **options)
        for _ in range(3):
            step(x)
        found.add(w.numpy().tobytes())
    assert len(found) == 1
