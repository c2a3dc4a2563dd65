"""Products with a right operand packed before: the bits of the plain product, and the pass."""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.codegen.builder import Module
from staticgrad.codegen.gemm import require_gemm, workspace_bytes
from staticgrad.codegen.gemm_emit import Element
from staticgrad.codegen.gemm_kernel import tile_shape
from staticgrad.codegen.gemm_prepacked import (
    panel_count,
    prepacked,
    prepacked_bytes,
    require_prepack,
    require_prepacked,
)
from staticgrad.kernels.program import Item, Program, Repeat, Step, steps_of
from staticgrad.kernels.verify import verify_program

from .native import compiled
from .test_gemm import ARGUMENTS, EPILOGUE, TARGETS, UNMASKED, check, laid_out, values

Array = np.ndarray[Any, Any]
I64, PTR = ctypes.c_int64, ctypes.c_void_p
PACK = [I64, I64, PTR, I64, I64, PTR, I64, I64]
DTYPES = ("float32", "float64", "int8", "int16", "int64")
GUARD = 64
NOTHING = np.empty(0, np.uint8)


class Prepacked:
    """One dtype's three functions."""

    def __init__(self, dtype: str, target: Any) -> None:
        self.dtype, self.target = np.dtype(dtype), target
        module = Module(target)
        names = [f(module, dtype) for f in (require_gemm, require_prepack, require_prepacked)]
        self._engine, _ = compiled(module)
        self.gemm, self.pack, self.prepacked = (
            ctypes.CFUNCTYPE(None, *types)(self._engine.get_function_address(name))
            for name, types in zip(names, (ARGUMENTS, PACK, [*ARGUMENTS, PTR]))
        )
        self._memory = np.full(workspace_bytes(target, dtype) + 64, 255, np.uint8)
        self.workspace = -(-self._memory.ctypes.data // 64) * 64

    def packed(self, b: Array, shares: int = 1) -> Array:
        """All of b, packed by so many threads in turn; what lies around stays as it was."""
        k, n = b.shape
        size = prepacked_bytes(self.target, self.dtype.name, n, k)
        memory = np.full(size + 2 * GUARD, 255, np.uint8)
        count = panel_count(self.target, self.dtype.name, n)
        ends = [count * i // shares for i in range(shares + 1)]
        for begin, end in itertools.pairwise(ends):
            strides = [s // b.itemsize for s in b.strides]
            place = memory.ctypes.data + GUARD
            self.pack(n, k, b.ctypes.data, *strides, place, begin, end)
        assert (memory[:GUARD] == 255).all() and (memory[-GUARD:] == 255).all()
        return memory

    def __call__(
        self, a: Array, b: Array, panels: Array | None = None, rect: Any = None,
        epilogue: Any = None,
    ) -> Array:  # fmt: skip
        (m, k), n = a.shape, b.shape[1]
        c = np.full((m, n), 77, self.dtype)
        strides = [s // self.dtype.itemsize for x in (a, b) for s in x.strides]
        arguments = [
            m, n, k, a.ctypes.data, *strides[:2], b.ctypes.data, *strides[2:], c.ctypes.data, n,
            None, self.workspace, epilogue, None, 0, *(rect or (0, m, 0, n)),
        ]  # fmt: skip
        if panels is None:
            self.gemm(*arguments)
        else:
            self.prepacked(*arguments, panels.ctypes.data + GUARD if panels.size else None)
        return c


@functools.cache
def functions(dtype: str, target: str = "host") -> Prepacked:
    with pytest.MonkeyPatch.context() as patch:
        if target in UNMASKED:
            patch.setattr(Element, "has_masks", False)
        return Prepacked(dtype, TARGETS[target]())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_plain_product(dtype: str, target: str) -> None:
    run = functions(dtype, target)
    for i, (m, n, k) in enumerate(
        [(32, 96, 40), (4, 33, 70), (8, 64, 17), (31, 31, 9), (14, 130, 65), (50, 7, 30),
         (1, 40, 20), (3, 65, 31), (28, 48, 128)]
    ):  # fmt: skip
        for kind in ("row", "wide", "column", "strided", "reversed", "same_rows"):
            a, b = laid_out((m, k), dtype, "row", i), laid_out((k, n), dtype, kind, i + 1)
            got = run(a, b, run.packed(b, shares=1 + i % 3))
            check(a, b, got)
            np.testing.assert_array_equal(got, run(a, b), strict=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_few_rows(dtype: str, target: str) -> None:
    """They have kernels of their own, for whole panels; A may lie in any way."""
    run = functions(dtype, target)
    _, nr = tile_shape(run.target, dtype)
    for m in (1, 2, 3, 4, 5, 6, 7, 9):
        for a_kind in ("row", "column", "strided"):
            a = laid_out((m, 1100), dtype, a_kind, m)
            b = laid_out((1100, 2 * nr + 3), dtype, "column", m + 1)
            got = run(a, b, run.packed(b))
            check(a, b, got)
            np.testing.assert_array_equal(got, run(a, b), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_when_compiling(dtype: str) -> None:
    """As the generated code packs, byte by byte, but for the gaps."""
    run = functions(dtype)
    for k, n, kind in (
        (40, 200, "row"),
        (1100, 33, "column"),
        (17, 5, "strided"),
        (2300, 64, "row"),
    ):
        b = laid_out((k, n), dtype, kind, 1)
        native, made = run.packed(b)[GUARD:-GUARD], prepacked(run.target, b)
        written = native != 255
        assert made.shape == native.shape and written.sum() >= 0.9 * b.nbytes
        np.testing.assert_array_equal(made[written], native[written])
        a = laid_out((20, k), dtype, "row", 2)
        padded = np.concatenate([np.zeros(GUARD, np.uint8), made, np.zeros(GUARD, np.uint8)])
        np.testing.assert_array_equal(run(a, b, padded), run(a, b), strict=True)


def test_without_panels() -> None:
    """Null in their place: the product of B itself."""
    run = functions("float32")
    a, b = values((20, 50), "float32", 1), values((50, 70), "float32", 2)
    np.testing.assert_array_equal(run(a, b, NOTHING), run(a, b), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_several_blocks(dtype: str) -> None:
    """More k than a block has, more columns than the L2 cache, rows a period of the cache apart."""
    run = functions(dtype)
    for m, n, k, kind in ((33, 70, 2300, "row"), (9, 3000, 600, "column"), (40, 90, 1024, "row")):
        a, b = values((m, k), dtype, 1), laid_out((k, n), dtype, kind, 2)
        np.testing.assert_array_equal(run(a, b, run.packed(b, 2)), run(a, b), strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_a_part_of_the_result(target: str) -> None:
    """Rectangles that begin in the middle of a panel; the epilogue covers each once."""
    run = functions("float32", target)
    a, b = values((40, 50), "float32", 1), values((50, 200), "float32", 2)
    panels, whole = run.packed(b), a @ b
    for r0, r1, c0, c1 in ((0, 40, 16, 200), (8, 24, 48, 112), (16, 40, 0, 17), (5, 6, 16, 64)):
        seen = np.zeros((40, 200), int)

        def note(
            _: Any, batch: int, i: int, j: int, k: int, n: int, place: int, c_rs: int,
            seen: Array = seen,
        ) -> None:  # fmt: skip
            seen[i:j, k:n] += 1

        c = run(a, b, panels, (r0, r1, c0, c1), EPILOGUE(note))
        inside = np.zeros((40, 200), bool)
        inside[r0:r1, c0:c1] = True
        assert ((seen == 1) == inside).all() and (c[~inside] == 77).all()
        np.testing.assert_allclose(c[inside], whole[inside], rtol=1e-4, atol=1e-4)


# --- the pass -------------------------------------------------------------------------------------


def program_of(inputs: list[Any], outputs: list[Any], **options: Any) -> Program:
    program = compile_stages(sg.Graph(inputs, outputs), **options).program
    verify_program(program)
    return program


def packs(items: list[Item] | tuple[Item, ...]) -> list[Step]:
    return [s for s in steps_of(items) if s.kernel.name == "pack"]


def loop(h: Any, w: Any, steps: int = 10) -> Any:
    return sg.fori_loop(0, steps, lambda i, x: sg.tanh(x @ w), h)


def test_a_loop_packs_its_weights_once() -> None:
    h, w = sg.input("h", (32, 64)), sg.input("w", (64, 64))
    program = program_of([h, w], [loop(h, w)])
    (region,) = (i for i in program.items if isinstance(i, Repeat))
    assert not packs(region.items) and len(packs(program.items)) == 1
    (step,) = packs(program.items)
    assert program.buffers[step.buffers[1]].size >= 4 * 64 * 64  # counted in the plan
    assert not packs(program_of([h, w], [loop(h, w)], disable=("prepack",)).items)


def test_what_is_not_packed() -> None:
    h, w, s = sg.input("h", (32, 64)), sg.input("w", (64, 64)), sg.input("s", (9, 64, 64))
    moving = sg.scan(lambda c, x: (c @ x, c), h, s)[0]
    changed = sg.fori_loop(0, 9, lambda i, x: x @ x, w)
    one_row = loop(sg.input("r", (1, 64)), w)
    many_rows = loop(sg.input("m", (1000, 64)), w)
    twice = loop(h, w, steps=2)
    for inputs, outputs in (
        ([h, s], [moving]), ([w], [changed]), ([sg.input("r", (1, 64)), w], [one_row]),
        ([sg.input("m", (1000, 64)), w], [many_rows]), ([h, w], [twice]),
    ):  # fmt: skip
        assert not packs(program_of(_inputs_of(outputs, inputs), outputs).items)


def _inputs_of(outputs: list[Any], inputs: list[Any]) -> list[Any]:
    """The inputs that the outputs read, by name."""
    from staticgrad.ir.graph import reachable

    names = {i.node.attrs["name"] for i in inputs}
    found = [n.results[0] for n in reachable(outputs) if n.op == "input"]
    assert {v.node.attrs["name"] for v in found} == names
    return found


def test_a_loop_of_one_row() -> None:
    """Packed where the columns of the matrix lie unbroken: its rows are read as they are."""
    h, w = sg.input("h", (1, 128)), sg.input("w", (128, 128))
    assert not packs(program_of([h, w], [loop(h, w)]).items)
    turned = [loop(h, w.T)]
    assert len(packs(program_of([h, w], turned).items)) == 1
    run, plain = sg.compile([h, w], turned), sg.compile([h, w], turned, disable=("prepack",))
    x, m = values((1, 128), "float32", 1), values((128, 128), "float32", 2) / 8
    wanted = x
    for _ in range(10):
        wanted = np.tanh(wanted @ m.T)
    np.testing.assert_allclose(run(x, m)[0], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run(x, m)[0], plain(x, m)[0], strict=True)


def test_packed_before_the_outermost_loop() -> None:
    """And once for all products of the same matrix."""
    h, w = sg.input("h", (32, 64)), sg.input("w", (64, 64))

    def inner(i: Any, x: Any) -> Any:
        return sg.fori_loop(0, 5, lambda j, y: sg.tanh(y @ w) @ w, x)

    program = program_of([h, w], [sg.fori_loop(0, 4, inner, h)])
    assert len(packs(program.items)) == 1 and packs([program.items[0], program.items[1]])
    run = sg.compile([h, w], [sg.fori_loop(0, 4, inner, h)])
    plain = sg.compile([h, w], [sg.fori_loop(0, 4, inner, h)], disable=("prepack",))
    x, m = values((32, 64), "float32", 1), values((64, 64), "float32", 2) / 8
    np.testing.assert_array_equal(run(x, m)[0], plain(x, m)[0], strict=True)


def test_rows_of_any_number() -> None:
    """A symbolic batch, down to none; the gradient packs the transposed matrix."""
    h, w = sg.input("h", ("N", 48)), sg.input("w", (48, 48))
    y = sg.sum(loop(h, w) ** 2)
    grads = sg.gradients(y, [h, w])
    assert len(packs(program_of([h, w], grads).items)) == 2
    run, plain = (sg.compile([h, w], grads, disable=d) for d in ((), ("prepack",)))
    m = values((48, 48), "float32", 2) / 7
    for n in (0, 1, 2, 5, 16, 33):
        x = values((n, 48), "float32", n)
        for got, wanted in zip(run(x, m), plain(x, m)):
            np.testing.assert_array_equal(got, wanted, strict=True)


def test_what_a_loop_computes_for_an_inner_loop_is_packed_in_it() -> None:
    h, w = sg.input("h", (32, 64)), sg.input("w", (64, 64))

    def outer(i: Any, x: Any) -> Any:
        turned = sg.tanh(w * sg.mean(x))
        return sg.fori_loop(0, 5, lambda j, y: sg.tanh(y @ turned), x)

    end = sg.fori_loop(0, 4, outer, h)
    program = program_of([h, w], [end])
    (region,) = (i for i in program.items if isinstance(i, Repeat))
    assert len(packs(region.items)) == 1 == len(packs(program.items))
    run, plain = (sg.compile([h, w], [end], disable=d) for d in ((), ("prepack",)))
    x, m = values((32, 64), "float32", 1), values((64, 64), "float32", 2)
    np.testing.assert_array_equal(run(x, m)[0], plain(x, m)[0], strict=True)
