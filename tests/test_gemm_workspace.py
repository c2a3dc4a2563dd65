"""What a matrix product needs for itself: no more than `workspace_bytes` says for its sizes."""

from __future__ import annotations

import itertools

import llvmlite.binding as llvm
import numpy as np
import pytest
from staticgrad.codegen.gemm import ROW_COLS, block_bounds, workspace_bytes
from staticgrad.codegen.gemm_emit import Element
from staticgrad.ir.dim import Dim, substitute

from .test_gemm import TARGETS, UNMASKED, laid_out, product

SIZES = (1, 2, 3, 5, 8, 9, 14, 15, 33, 130)
BEHIND = 1 << 14
MARK = 0xAB


@pytest.fixture(scope="module", autouse=True)
def _llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param in UNMASKED:
        monkeypatch.setattr(Element, "has_masks", False)
    return str(request.param)


def check(target: str, dtype: str, m: int, n: int, k: int, kinds: tuple[str, str]) -> None:
    """Runs a product, whole and by parts of its longer side, of a square's columns, or of its rows,
    with room for what it says and marks behind that."""
    run = product(dtype, target)
    a, b = laid_out((m, k), dtype, kinds[0], 1), laid_out((k, n), dtype, kinds[1], 2)
    unbroken = b.strides[1] == b.itemsize
    size = workspace_bytes(run.target, dtype, (m, n, k), unbroken=unbroken)
    assert size <= workspace_bytes(run.target, dtype)
    memory = np.full(size + BEHIND + 64, MARK, np.uint8)
    start = -memory.ctypes.data % 64
    run.workspace = memory.ctypes.data + start
    expected = a.astype(np.float64) @ b.astype(np.float64)
    try:
        for by_rows, part in itertools.product((n < m, True), (max(m, n), 1, 7, 16)):
            c = np.zeros((m, n), dtype)
            side = m if by_rows else n
            for begin in range(0, side, part):
                end = min(begin + part, side)
                run(a, b, c, (begin, end, 0, n) if by_rows else (0, m, begin, end))
                if begin > 3 * part:  # the parts are alike
                    break
            else:
                np.testing.assert_allclose(c, expected, rtol=1e-3, atol=1e-3)
            assert np.all(memory[start + size :] == MARK), (m, n, k, kinds, part)
    finally:
        run.new_workspace()


@pytest.mark.parametrize("kinds", list(itertools.product(("row", "column", "strided"), repeat=2)))
def test_products_stay_in_what_their_sizes_need(target: str, kinds: tuple[str, str]) -> None:
    for m, n in itertools.product(SIZES, repeat=2):
        for k in (1, 4, 70, 1025):
            if m * n * k < 1 << 19:
                check(target, "float32", m, n, k, kinds)
    check(target, "float64", 15, 130, 70, kinds)
    check(target, "float32", 200, 300, 40, kinds)


def test_large_operands_have_larger_blocks() -> None:
    host = TARGETS["host"]()
    least, most = block_bounds(host)
    assert workspace_bytes(host, "float32", (64, 512, 512)) < 2 * least
    assert workspace_bytes(host, "float32", (4096, 4096, 512)) > most
    check("host", "float32", 530, 700, 1025, ("row", "row"))


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("kind", ["row", "column"])
def test_few_rows_of_many_columns_do(m: int, kind: str) -> None:
    """The sums of 2 x 1 x 70,000 once took 256 KiB where 57 were."""
    for k in (1, 3, 7):
        check("host", "float32", m, 70_000, k, ("row", kind))


def test_one_row_needs_next_to_nothing() -> None:
    host = TARGETS["host"]()
    most = workspace_bytes(host, "float32")
    assert workspace_bytes(host, "float32", (4096, 4096, 4096)) == most
    if Element.of("float32", host).has_masks:
        assert workspace_bytes(host, "float32", (1, 512, 784), unbroken=True) == 4 * 512
        assert workspace_bytes(host, "float32", (1, 9999, 784), unbroken=True) == 4 * ROW_COLS


@pytest.mark.parametrize("unbroken", [False, True])
def test_the_most_that_smaller_products_need(target: str, unbroken: bool) -> None:
    made = TARGETS[target]()
    sizes = list(itertools.product((1, 2, 15, 300), (1, 8, 9, 70), (1, 20, 1024, 1025, 2100)))
    needed = {s: workspace_bytes(made, "float32", s, unbroken=unbroken) for s in sizes}
    for most in sizes:
        bound = workspace_bytes(made, "float32", most, unbroken=unbroken, up_to=True)
        smaller = [n for s, n in needed.items() if all(a <= b for a, b in zip(s, most))]
        assert max(smaller) <= bound <= workspace_bytes(made, "float32"), most  # type: ignore


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unknown_sizes_need_no_more_than_known_ones(target: str, dtype: str) -> None:
    """Whichever of the sizes are symbols, their values give what the values themselves do."""
    made = TARGETS[target]()
    names = [Dim.symbol(name) for name in "MNK"]
    for unbroken in (False, True):
        for unknown in itertools.product((False, True), repeat=3):
            for known in itertools.product((1, 2, 14, 31, 500), (1, 3, 9, 300), (1, 70, 2049)):
                sizes = tuple(s if u else d for s, d, u in zip(names, known, unknown))
                found = workspace_bytes(made, dtype, sizes, unbroken=unbroken)  # type: ignore
                at = substitute(found, dict(zip("MNK", known)))
                expected = workspace_bytes(made, dtype, known, unbroken=unbroken)
                assert at == expected, (sizes, known)
