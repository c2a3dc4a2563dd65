"""Products whose operands are computed where they are packed: the bits of the product of the stored
operands, in the workspace that the formula says, whatever the path."""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from staticgrad.codegen.builder import Module
from staticgrad.codegen.gemm import prologue_workspace_bytes, require_gemm_prologue
from staticgrad.codegen.gemm_emit import Element
from staticgrad.codegen.gemm_prepacked import prepacked, require_prepacked, strips_bytes

from .native import compiled
from .test_gemm import ARGUMENTS, TARGETS, UNMASKED, product, values

I64, PTR = ctypes.c_int64, ctypes.c_void_p
PROLOGUE = ctypes.CFUNCTYPE(None, PTR, *[I64] * 5, PTR, I64)
GEMM = ctypes.CFUNCTYPE(None, *ARGUMENTS, PROLOGUE, PTR, PROLOGUE, PTR, PTR)
MARK, BEHIND, BATCH = 0xAB, 1 << 14, 5
Array = np.ndarray[Any, Any]


class Computed:
    """The prologue of an operand: elements of a stored one, those asked for noted."""

    def __init__(self, operand: Array, transposed: bool) -> None:
        self.values = operand.T if transposed else operand
        self.asked = np.zeros(self.values.shape, np.int64)
        self.strides = (1, 0) if transposed else (0, 1)
        self.function = PROLOGUE(self)

    def __call__(
        self, table: int, batch: int, r0: int, r1: int, c0: int, c1: int, tile: int, ld: int
    ) -> None:
        assert batch == BATCH and 0 <= r0 < r1 and 0 <= c0 < c1 and table == 7
        size = self.values.itemsize
        room = ((r1 - r0 - 1) * ld + c1 - c0) * size
        memory = np.frombuffer((ctypes.c_char * room).from_address(tile), self.values.dtype)
        there = np.lib.stride_tricks.as_strided(memory, (r1 - r0, c1 - c0), (ld * size, size))
        there[:] = self.values[r0:r1, c0:c1]
        self.asked[r0:r1, c0:c1] += 1


class PrologueProduct:
    """One dtype's product with prologues, plain or with panels."""

    def __init__(self, dtype: str, target: str) -> None:
        self.dtype, self.target = np.dtype(dtype), TARGETS[target]()
        module = Module(self.target)
        names = [
            require_gemm_prologue(module, dtype), require_prepacked(module, dtype, prologue=True)
        ]  # fmt: skip
        self._engine, _ = compiled(module)
        self._plain, self._packed = (GEMM(self._engine.get_function_address(n)) for n in names)

    def __call__(
        self, a: Array | Computed, b: Array | Computed, c: Array, k: int, rect: tuple[int, ...],
        panels: Array | None = None, missing: bool = False,
    ) -> None:  # fmt: skip
        """`missing`: as a product with panels that were not packed yet."""
        (m, n), size = c.shape, self.dtype.itemsize
        if panels is None:
            room = prologue_workspace_bytes(self.target, self.dtype.name, (m, n, k))
        else:
            room = strips_bytes(self.target, self.dtype.name, m, k, computed=True)
        memory = np.full(int(room) + BEHIND + 64, MARK, np.uint8)
        start = -memory.ctypes.data % 64
        words: list[Any] = []
        prologues: list[Any] = []
        for operand in (a, b):
            if isinstance(operand, Computed):
                words += [memory.ctypes.data, *operand.strides]
                prologues += [operand.function, 7]
            else:
                words += [operand.ctypes.data, *(s // size for s in operand.strides)]
                prologues += [PROLOGUE(), None]
        function = self._plain if panels is None and not missing else self._packed
        function(
            m, n, k, *words, c.ctypes.data, n, None, memory.ctypes.data + start, None, None, BATCH,
            *rect, *prologues, None if panels is None else panels.ctypes.data,
        )  # fmt: skip
        assert np.all(memory[start + int(room) :] == MARK), (m, n, k, rect)


@pytest.fixture(scope="module", autouse=True)
def _llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def with_prologues(dtype: str, target: str) -> PrologueProduct:
    with pytest.MonkeyPatch.context() as patch:
        if target in UNMASKED:
            patch.setattr(Element, "has_masks", False)
        return PrologueProduct(dtype, target)


# m, n, k around tiles, panels, single rows, few columns, chunks of rows, and blocks of k.
SIZES = [
    (1, 1, 1), (1, 40, 7), (2, 33, 70), (3, 64, 130), (14, 32, 33), (15, 31, 16), (40, 1, 90),
    (64, 3, 65), (33, 8, 200), (5, 100, 129), (100, 70, 40), (61, 47, 1), (29, 65, 1030),
    (700, 20, 20), (20, 700, 20),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int64"])
def test_bits_of_the_stored_operands(dtype: str, target: str) -> None:
    run, plain = with_prologues(dtype, target), product(dtype, target)
    for number, (m, n, k) in enumerate(SIZES):
        a, b = values((m, k), dtype, number), values((k, n), dtype, 100 + number)
        expected = plain(a, b)
        for left, right in itertools.product((None, False, True), repeat=2):
            if left is None and right is None:
                continue
            operands = (
                a if left is None else Computed(a, left),
                b if right is None else Computed(b, right),
            )
            c = np.full((m, n), 77, dtype)
            run(*operands, c, k, (0, m, 0, n))
            assert c.tobytes() == expected.tobytes(), (m, n, k, left, right)
            for operand in operands:
                if isinstance(operand, Computed):
                    assert operand.asked.min() >= 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_parts_of_rows_and_columns(dtype: str) -> None:
    run, plain = with_prologues(dtype, "host"), product(dtype, "host")
    for m, n, k in [(50, 90, 40), (90, 50, 1100), (70, 6, 64), (4, 100, 50)]:
        a, b = values((m, k), dtype, 1), values((k, n), dtype, 2)
        expected = plain(a, b)
        for left, right in itertools.product((False, True), repeat=2):
            for part, by_rows in itertools.product((1, 7, 16, 33), (False, True)):
                if not by_rows and n < m:
                    continue  # threads share the longer side, or rows
                c, side = np.full((m, n), 77, dtype), m if by_rows else n
                for begin in range(0, side, part):
                    end = min(begin + part, side)
                    rect = (begin, end, 0, n) if by_rows else (0, m, begin, end)
                    run(Computed(a, left), Computed(b, right), c, k, rect)
                assert c.tobytes() == expected.tobytes(), (m, n, k, left, right, part, by_rows)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_panels_packed_before(dtype: str, target: str) -> None:
    run, plain = with_prologues(dtype, target), product(dtype, target)
    for number, (m, n, k) in enumerate(SIZES):
        a, b = values((m, k), dtype, number), values((k, n), dtype, 100 + number)
        panels, expected = prepacked(run.target, b), plain(a, b)
        for transposed, part in itertools.product((False, True), (max(m, n), 9)):
            c, side = np.full((m, n), 77, dtype), max(m, n)
            for begin in range(0, side, part):
                end = min(begin + part, side)
                rect = (begin, end, 0, n) if n <= m else (0, m, begin, end)
                run(Computed(a, transposed), b, c, k, rect, panels)
            assert c.tobytes() == expected.tobytes(), (m, n, k, transposed, part)


def test_no_panels_yet() -> None:
    """The packed copy of state may not be there: then B is read where it lies."""
    run, plain = with_prologues("float32", "host"), product("float32", "host")
    a, b = values((40, 60), "float32", 1), values((60, 50), "float32", 2)
    c = np.zeros((40, 50), "float32")
    run(Computed(a, False), b, c, 60, (0, 40, 0, 50), missing=True)
    assert c.tobytes() == plain(a, b).tobytes()


def test_an_operand_is_computed_once_a_block() -> None:
    """Rows of A once for each block of columns, elements of B once."""
    run = with_prologues("float32", "host")
    a, b = values((200, 300), "float32", 1), values((300, 90), "float32", 2)
    left, right = Computed(a, False), Computed(b, False)
    run(left, right, np.zeros((200, 90), "float32"), 300, (0, 200, 0, 90))
    assert np.all(left.asked == 1) and np.all(right.asked == 1)


@pytest.mark.parametrize("sizes", [(3, 4, 0), (0, 4, 5), (3, 0, 5)])
def test_nothing_to_multiply(sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes
    run = with_prologues("float32", "host")
    a, b = np.zeros((m, k), "float32"), np.zeros((k, n), "float32")
    c = np.full((m, n), 77, "float32")
    run(Computed(a, False), Computed(b, False), c, k, (0, m, 0, n))
    assert not c.size or (k == 0 and np.all(c == 0))
