"""Products of few elements over a long k, `passes/lowering/matmul_blocks.py`: threads share the
blocks of k, with the bits of any other product."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import LATE_PASSES, compile_stages
from staticgrad.codegen.builder import Module
from staticgrad.codegen.gemm import longest_k_block
from staticgrad.codegen.gemm_emit import Element
from staticgrad.codegen.gemm_vector import require_dots
from staticgrad.codegen.sharing import share
from staticgrad.kernels.ir import Loop, Template
from staticgrad.passes.pipeline import PASSES

from .native import compiled
from .test_gemm import TARGETS, UNMASKED, Guarded, check, product, values
from .threaded_programs import Threaded, bits, random, share_whatever_the_size

Shape = tuple[Any, ...]
PRESERVING = (*dict.fromkeys(p.name for p in PASSES if p.kind == "preserving"), *LATE_PASSES)
SHAPES: list[tuple[Shape, Shape]] = [
    ((40_001,), (40_001,)), ((10, 9000), (9000,)), ((9000,), (9000, 7)), ((5, 9000), (9000, 4)),
    ((20, 5000), (5000, 33)), ((2, 3, 20_000), (20_000,)), ((48, 1500), (1500, 48)),
    ((1, 1, 40_000), (40_000, 1)), ((70, 9000), (9000, 3)), ((3, 100), (100, 3)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    share_whatever_the_size(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def declared(
    a: Shape, b: Shape, dtype: str = "float32", f: Callable[[Any], Any] = lambda c: c
) -> tuple[list[Any], list[Any]]:
    x, y = sg.input("x", a, getattr(sg, dtype)), sg.input("y", b, getattr(sg, dtype))
    return [x, y], [f(x @ y)]


def kernels(made: Threaded) -> list[str]:
    return [step.kernel.name for step in made.program.steps]


def stacked(a: Shape, b: Shape, dtype: str, arrays: list[Any]) -> Any:
    """The general product of the same elements, whatever the shapes."""
    m, n = math.prod(a[:-1]), math.prod(b[1:])
    return product(dtype)(arrays[0].reshape(m, a[-1]), arrays[1].reshape(b[0], n))


# --- bits and values ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int8"])
@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_bits_are_those_of_the_general_product(a: Shape, b: Shape, dtype: str) -> None:
    """On any number of threads, for declared and for symbolic sizes."""
    arrays = [values(a, dtype, 1), values(b, dtype, 2)]
    expected = stacked(a, b, dtype, arrays)
    check(arrays[0].reshape(-1, a[-1]), arrays[1].reshape(a[-1], -1), expected)
    in_full = Threaded.of(*declared(a, b, dtype))
    shared = Threaded.of(*declared((*a[:-1], "K"), ("K", *b[1:]), dtype))
    by_rows = Threaded.of(*declared((*("ABC"[: len(a) - 1]), "K"), ("K", *b[1:]), dtype))
    for made in (in_full, shared, by_rows):
        for threads in (1, 2, 3, 5):
            (got,) = made.on(threads)(*arrays)
            np.testing.assert_array_equal(got.reshape(expected.shape), expected)
            assert bits(got.reshape(expected.shape)) == bits(expected), threads


@pytest.mark.parametrize("k", [0, 1, 2, 1023, 1024, 1025, 4096, 4097, 5003])
def test_any_k_of_a_symbolic_size(k: int) -> None:
    """None at all is a block of zeros; less than four blocks go one by one."""
    for a, b in [((), ()), ((6,), ()), ((), (6,)), ((5,), (3,))]:
        made = Threaded.of(*declared((*a, "K"), ("K", *b)))
        assert kernels(made) == ["matmul", "matmul_blocks"]
        arrays = [random((*a, k), 1), random((k, *b), 2)]
        expected = stacked((*a, k), (k, *b), "float32", arrays)
        for threads in (1, 3):
            (got,) = made.on(threads)(*arrays)
            assert bits(got.reshape(expected.shape)) == bits(expected)


@pytest.mark.parametrize("off", [(), *((name,) for name in PRESERVING), PRESERVING], ids=str)
def test_what_follows_is_computed_where_blocks_are_added(off: tuple[str, ...]) -> None:
    """With views of the operands, a rider and the product itself, with and without each pass."""
    x, y, z = sg.input("x", (20_000, 6)), sg.input("y", (4, 20_000)), sg.input("z", (6, 4))
    v = sg.parameter(random(20_000, 4), name="v")
    c = x.T @ y.T
    outputs = [c, sg.relu(c + z) * 2, (v @ x).sum()]
    made = Threaded.made(compile_stages(sg.Graph([x, y, z], outputs, {v: v * 0.5}), disable=off))
    if not off:
        assert kernels(made)[:4:2] == ["matmul_add_relu_multiply", "matmul"]
        assert kernels(made).count("matmul_blocks") == 2
    arrays = [random((20_000, 6), 1), random((4, 20_000), 2), random((6, 4), 3)]
    a, b, d = (array.astype(np.float64) for array in arrays)
    expected = bits(plain().on(1)(*arrays))
    for threads in (1, 2, 3):
        results = made.on(threads)(*arrays)
        assert bits(results) == expected
        np.testing.assert_allclose(results[0], a.T @ b.T, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(results[1], 2 * np.maximum(a.T @ b.T + d, 0), atol=1e-3)
        weights = random(20_000, 4).astype(np.float64)
        np.testing.assert_allclose(results[2], (weights @ a).sum(), rtol=1e-4)


@functools.cache
def plain() -> Threaded:
    """The program of the test above with no pass left out."""
    x, y, z = sg.input("x", (20_000, 6)), sg.input("y", (4, 20_000)), sg.input("z", (6, 4))
    v = sg.parameter(random(20_000, 4), name="v")
    c = x.T @ y.T
    return Threaded.of([x, y, z], [c, sg.relu(c + z) * 2, (v @ x).sum()], {v: v * 0.5})


def test_special_values() -> None:
    """Blocks whose sums are a negative zero, infinite or NaN."""
    made = Threaded.of(*declared((8, 9000), (9000,)))
    a, b = random((8, 9000), 1), np.abs(random(9000, 2)) + 1
    a[0], a[1, 4000], a[2, 8999], a[3, 0] = -0.0, np.inf, -np.inf, np.nan
    a[4], a[5, :5000] = -1e-42, -0.0
    a[6, ::2], a[6, 1::2] = -np.inf, np.inf
    expected = product("float32")(a, b[:, None])[:, 0]
    for threads in (1, 2):
        (got,) = made.on(threads)(a, b)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


# --- structure ------------------------------------------------------------------------------------


def test_threads_share_the_blocks() -> None:
    for a, b in [((100_000,), (100_000,)), ((10, 9000), (9000,)), ((20, 5000), (5000, 20))]:
        made = Threaded.of(*declared(a, b))
        assert kernels(made) == ["matmul", "matmul_blocks"]
        products, sums = made.program.steps
        blocks = -(-a[-1] // longest_k_block(4))
        assert products.extent == blocks and share(made.program).shared[0]
        (parts,) = {*products.buffers} & {*sums.buffers}
        count = (a[0] if len(a) > 1 else 1) * (b[1] if len(b) > 1 else 1)
        assert made.program.buffers[parts].size == blocks * count


def called(made: Threaded) -> str:
    (s,) = made.program.steps[0].kernel.body
    while isinstance(s, Loop):
        (s,) = s.body
    assert isinstance(s, Template)
    return s.name


def test_which_products_are_lowered_so() -> None:
    def taken(a: Shape, b: Shape, dtype: str = "float32") -> str | None:
        made = Threaded.of(*declared(a, b, dtype))
        return called(made) if "matmul_blocks" in kernels(made) else None

    assert taken((40_000,), (40_000,)) == taken((9, "K"), ("K",)) == "dots"
    assert taken((9, 40_000), (40_000, 2)) == taken((3, "K"), ("K", 5)) == "matmul"
    assert taken((40_000,), (40_000,), "int16") == "matmul"
    assert taken((30_000,), (30_000,)) is None  # little to share
    assert taken((5, "K"), ("K", 4)) is None  # k is seldom long
    assert taken((49, 40_000), (40_000,)) is None  # rows enough
    assert taken(("N", 40_000), (40_000,)) is None  # rows unknown
    assert taken((4, 2, 40_000), (4, 40_000, 1)) is None  # matrices are shared


def test_panels_of_weights_stay() -> None:
    x = sg.input("x", (8, 5000))
    made = Threaded.of([x], [x @ sg.constant(random((5000, 20)))])
    assert kernels(made) == ["matmul"] and len(made.program.steps[0].kernel.body) == 1


# --- the products of vectors ----------------------------------------------------------------------

PTR = ctypes.c_void_p
DOTS = ctypes.CFUNCTYPE(
    None, ctypes.c_int64, ctypes.c_int64, PTR, PTR, ctypes.c_int64, PTR, ctypes.c_int64,
    ctypes.c_int64,
)  # fmt: skip


class Dots:
    def __init__(self, dtype: str, name: str) -> None:
        target = TARGETS[name]()
        module = Module(target)
        with pytest.MonkeyPatch.context() as patch:
            if name in UNMASKED:
                patch.setattr(Element, "has_masks", False)
            function = require_dots(module, dtype)
        self.engine, _ = compiled(module)
        self.call = DOTS(self.engine.get_function_address(function))


@functools.cache
def dots(dtype: str, target: str) -> Dots:
    return Dots(dtype, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_any_part_of_the_blocks(dtype: str, target: str) -> None:
    """Each block is the product over it alone, wherever the part begins and ends; nothing else is
    written, and nothing outside of the operands is read."""
    areas = [Guarded(400_000) for _ in range(3)]
    size = np.dtype(dtype).itemsize
    for k, many in [(1, 3), (1024, 1), (5003, 1), (9001, 3), (9001, 5), (12_000, 4)]:
        blocks = -(-k // longest_k_block(size))
        step = -(-k // blocks)
        for at_end, (begin, end) in enumerate([(0, blocks), (blocks // 3, blocks - blocks // 4)]):
            a = areas[0].array((1, k), dtype, "C", bool(at_end))
            b = areas[1].array((k, many), dtype, "F", bool(at_end))
            parts = areas[2].array((blocks, many), dtype, "C", bool(at_end))
            a[...], b[...], parts[...] = values((1, k), dtype, 1), values((k, many), dtype, 2), 77
            dots(dtype, target).call(
                many, k, a.ctypes.data, b.ctypes.data, k, parts.ctypes.data, begin, end
            )
            for block in range(blocks):
                rows = slice(block * step, (block + 1) * step)
                if begin <= block < end:
                    expected = product(dtype, target)(a[:, rows], b[rows])[0]
                    np.testing.assert_array_equal(parts[block], expected)
                else:
                    assert (parts[block] == 77).all()
