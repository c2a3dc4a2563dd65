"""The generated matrix product against NumPy: values, bits, memory that it may touch, epilogues."""

import ctypes
import dataclasses
import functools
import itertools
import mmap
import re

import llvmlite.binding as llvm
import numpy as np
import pytest
from staticgrad.codegen.builder import Module
from staticgrad.codegen.gemm import (
    require_gemm,
    require_micro_kernel,
    tile_shape,
    workspace_bytes,
)
from staticgrad.codegen.gemm_emit import Element
from staticgrad.codegen.target import Target, host_target

from .native import compiled

FLOATS = ["float32", "float64"]
DTYPES = [*FLOATS, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
I64, PTR = ctypes.c_int64, ctypes.c_void_p
EPILOGUE = ctypes.CFUNCTYPE(None, PTR, *[I64] * 5, PTR, I64)
ARGUMENTS = [I64, I64, I64, PTR, I64, I64, PTR, I64, I64, PTR, I64, *[PTR] * 4, *[I64] * 5]
GEMM = ctypes.CFUNCTYPE(None, *ARGUMENTS)
TILE = ctypes.CFUNCTYPE(None, I64, PTR, PTR, PTR, *[I64] * 4)


def avx2_target() -> Target:
    """16 registers of 256 bits, masks for elements of at least four bytes only."""
    host = host_target()
    return dataclasses.replace(
        host, cpu="x86-64-v3", features="+avx2,+fma", vector_bits=256, vector_registers=16
    )


def sse_target() -> Target:
    """128-bit vectors: the shapes of AArch64, on the host."""
    return dataclasses.replace(host_target(), vector_bits=128)


# Compiled as if there were no masked loads and stores, the way AArch64 is.
UNMASKED = {"unmasked"}
TARGETS = {"host": host_target, "avx2": avx2_target, "sse": sse_target, "unmasked": sse_target}


class Product:
    """One dtype's compiled product, with a workspace full of NaNs to start from."""

    def __init__(self, dtype: str, target: Target) -> None:
        self.dtype, self.target = np.dtype(dtype), target
        module = Module(target)
        names = [require_gemm(module, dtype), require_micro_kernel(module, dtype)]
        self._engine, self.text = compiled(module)
        self._gemm = GEMM(self._engine.get_function_address(names[0]))
        self.tile = TILE(self._engine.get_function_address(names[1]))
        self.new_workspace()

    def new_workspace(self) -> None:
        self._memory = np.full(workspace_bytes(self.target, self.dtype.name) + 64, 255, np.uint8)
        self.workspace = -(-self._memory.ctypes.data // 64) * 64

    def __call__(
        self, a, b, c=None, rect=None, epilogue=None, context=None, batch=0, tile=None
    ):  # fmt: skip
        """c = a @ b on the rectangle; a fresh c is full of a mark that the product never gives."""
        (m, k), n = a.shape, b.shape[1]
        if c is None:
            c = np.full((m, n), 77, self.dtype)
        size = self.dtype.itemsize
        strides = [s // size for x in (a, b) for s in x.strides]
        self._gemm(
            m, n, k, a.ctypes.data, *strides[:2], b.ctypes.data, *strides[2:], c.ctypes.data,
            c.strides[0] // size, tile, self.workspace, epilogue, context, batch,
            *(rect or (0, m, 0, n)),
        )  # fmt: skip
        return c


@pytest.fixture(scope="module", autouse=True)
def _llvm():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def product(dtype: str, target: str = "host") -> Product:
    with pytest.MonkeyPatch.context() as patch:
        if target in UNMASKED:
            patch.setattr(Element, "has_masks", False)
        return Product(dtype, TARGETS[target]())


def values(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def laid_out(shape, dtype, kind, seed):
    """A matrix of the values of `seed`, of the strides of `kind`."""
    rows, cols = shape
    if kind == "row":
        return values(shape, dtype, seed)
    if kind == "wide":  # unit column stride, rows apart
        full = values((rows, cols + 5), dtype, seed)
        return full[:, 2 : 2 + cols]
    if kind == "column":
        return np.asfortranarray(values(shape, dtype, seed))
    if kind == "strided":
        return values((2 * rows + 1, 3 * cols + 1), dtype, seed)[: 2 * rows : 2, : 3 * cols : 3]
    if kind == "reversed":
        return values(shape, dtype, seed)[::-1, ::-1]
    if kind == "same_rows":
        return np.broadcast_to(values((1, cols), dtype, seed), shape)
    if kind == "same_cols":
        return np.broadcast_to(values((rows, 1), dtype, seed), shape)
    if kind == "constant":
        return np.broadcast_to(values((1, 1), dtype, seed), shape)
    raise AssertionError(kind)


KINDS = ["row", "wide", "column", "strided", "reversed", "same_rows", "same_cols", "constant"]


def check(a, b, c):
    """c against the product in float64 to k * eps * |a| |b|, or exactly for integers."""
    with np.errstate(over="ignore"):
        if c.dtype.kind != "f":
            np.testing.assert_array_equal(c, a @ b)
            return
        a, b = a.astype(np.float64), b.astype(np.float64)
        bound = a.shape[1] * np.finfo(c.dtype).eps * (np.abs(a) @ np.abs(b))
        assert np.all(np.abs(c - a @ b) <= bound)


EDGES = [1, 2, 3, 7, 8, 9, 13, 14, 15, 16, 17, 22, 28, 29, 31, 32, 33, 48, 65]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_edges_of_tiles(dtype, target):
    run = product(dtype, target)
    rng = np.random.default_rng(1)
    for m in EDGES:
        for n in EDGES:
            k = int(rng.integers(1, 70))
            a, b = values((m, k), dtype, m), values((k, n), dtype, n)
            check(a, b, run(a, b))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_strides(dtype, target):
    run = product(dtype, target)
    rng = np.random.default_rng(2)
    shapes = [(1, 1, 1), (1, 40, 100), (100, 1, 33), (2, 70, 30), (3, 45, 50), (16, 33, 600),
              (47, 61, 20), (130, 10, 40), (33, 70, 3), (40, 3, 77), (9, 9, 9)]  # fmt: skip
    for m, n, k in shapes:
        for kind_a in KINDS:
            kind_b = KINDS[int(rng.integers(len(KINDS)))]
            for pair in ((kind_a, kind_b), (kind_b, kind_a)):
                a, b = laid_out((m, k), dtype, pair[0], 3), laid_out((k, n), dtype, pair[1], 4)
                check(a, b, run(a, b))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int64"])
def test_sizes_past_all_blocks(dtype):
    run = product(dtype)
    for m, n, k, kind_a, kind_b in [
        (33, 170, 2049, "row", "row"), (45, 257, 1025, "column", "column"),
        (30, 290, 1023, "strided", "reversed"), (15, 2100, 300, "row", "column"),
        (1, 2500, 1100, "row", "row"), (2500, 1, 700, "row", "column"),
        (3, 520, 1537, "row", "column"), (64, 96, 1024, "row", "row"),
        (64, 96, 1024, "column", "wide"),
    ]:  # fmt: skip
        a, b = laid_out((m, k), dtype, kind_a, 5), laid_out((k, n), dtype, kind_b, 6)
        check(a, b, run(a, b))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int64"])
def test_copied_strips_have_the_bits_of_those_in_place(dtype, target):
    """Rows 4096 bytes apart, of whole vectors and of what is left of one."""
    run = product(dtype, target)
    lying = values((45, 4096 // np.dtype(dtype).itemsize), dtype, 1)
    for k in (3, 64, 167, lying.shape[1]):
        b = values((k, 140), dtype, 2)
        expected = run(np.asfortranarray(lying[:, :k]), b)
        run.new_workspace()
        np.testing.assert_array_equal(run(lying[:, :k], b), expected)
        check(lying[:, :k], b, expected)


def test_stride_of_a_cache_period():
    """Rows 4096 bytes apart: strips of A are copied."""
    run = product("float32")
    a, b = values((50, 1024), "float32", 1), values((1024, 70), "float32", 2)
    check(a, b, run(a, b))
    a = values((100, 1024), "float32", 1)[:, :50].T
    check(a, b[:100], run(a, b[:100]))


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_empty(dtype):
    run = product(dtype)
    for m, n in [(5, 7), (40, 90), (1, 1), (3000, 4)]:
        a, b = np.zeros((m, 0), dtype), np.zeros((0, n), dtype)
        np.testing.assert_array_equal(run(a, b), np.zeros((m, n), dtype))
    guard = np.full((4, 4), 77, dtype)
    for rect in [(2, 2, 0, 4), (0, 4, 3, 3), (4, 4, 4, 4)]:
        run(np.ones((4, 3), dtype), np.ones((3, 4), dtype), guard, rect)
    assert (guard == 77).all()


def test_special_values():
    """Infinities and NaN come out where they belong, and nowhere else."""
    run = product("float32")
    for m, n, k in [(3, 5, 4), (30, 70, 40), (1, 100, 30), (60, 2, 50)]:
        a, b = values((m, k), "float32", 1), values((k, n), "float32", 2)
        a[0, 1], b[2, n - 1] = np.inf, np.nan
        with np.errstate(invalid="ignore"):
            expected = a @ b
        got = run(a, b)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))


# ---- bits


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 37, 513, 1025])
def test_bits_do_not_depend_on_sizes(dtype, target, k):
    """Any rows and columns of a large product are the product of those rows and columns."""
    run = product(dtype, target)
    a, b = values((100, k), dtype, 1), values((k, 110), dtype, 2)
    whole = run(a, b)
    for r0, r1, c0, c1 in [(0, 1, 0, 110), (99, 100, 3, 80), (5, 7, 0, 110), (10, 14, 1, 9),
                           (20, 34, 0, 64), (0, 100, 17, 18), (0, 100, 50, 53), (3, 90, 40, 50),
                           (50, 51, 60, 61), (30, 60, 30, 70), (7, 15, 7, 23)]:  # fmt: skip
        part = run(a[r0:r1], b[:, c0:c1])
        np.testing.assert_array_equal(part, whole[r0:r1, c0:c1])


def summed_in_order(a, b, block):
    """What the rule of bits asks for, in float32 by exact float64 products and sums."""
    total = None
    for start in range(0, a.size, block):
        part = np.float32(0)
        for x, y in zip(a[start : start + block], b[start : start + block]):
            exact = np.longdouble(x) * np.longdouble(y) + np.longdouble(part)
            part = np.float32(exact)
        total = part if total is None else np.float32(total + part)
    return total


@pytest.mark.parametrize("k", [5, 1024, 1025, 2070])
def test_bits_are_those_of_the_stated_order(k):
    """Ascending k by fma from zero, in blocks of ceil(k / ceil(k / 1024)). Products of float32 with
    12 bits are exact in float64, and so rounded once here."""
    rng = np.random.default_rng(k)
    a = (rng.integers(-(2**12), 2**12, (2, k)) / 2**6).astype(np.float32)
    b = (rng.integers(-(2**12), 2**12, (k, 33)) / 2**9).astype(np.float32)
    got = product("float32")(a, b)
    block = -(-k // -(-k // 1024))
    for i, j in [(0, 0), (1, 32), (1, 7)]:
        assert got[i, j] == summed_in_order(a[i], b[:, j], block)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_do_not_depend_on_strides(dtype):
    run = product(dtype)
    for m, n, k in [
        (40, 70, 1030),
        (1, 70, 1030),
        (70, 1, 1030),
        (2, 100, 45),
        (6, 6, 6),
        (64, 64, 1024),
    ]:
        a, b = values((m, k), dtype, 1), values((k, n), dtype, 2)
        expected = run(a, b)
        for form_a in forms(a):
            for form_b in forms(b):
                np.testing.assert_array_equal(run(form_a, form_b), expected)


def forms(x):
    """The same matrix, laid out in several ways, one off its alignment to a vector."""
    wide = np.zeros((x.shape[0], x.shape[1] + 3), x.dtype)
    wide[:, 1:-2] = x
    sparse = np.zeros((2 * x.shape[0], 2 * x.shape[1]), x.dtype)
    sparse[::2, ::2] = x
    return [
        x,
        np.asfortranarray(x),
        wide[:, 1:-2],
        sparse[::2, ::2],
        x[::-1, ::-1].copy()[::-1, ::-1],
    ]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_disjoint_rectangles_make_the_whole(dtype):
    run = product(dtype)
    rng = np.random.default_rng(0)
    for m, n, k in [(60, 130, 1100), (5, 300, 40), (300, 3, 50)]:
        a, b = values((m, k), dtype, 1), values((k, n), dtype, 2)
        expected, parts = run(a, b), np.full((m, n), 77, dtype)
        cuts_m = [0, *sorted(rng.integers(0, m + 1, 2).tolist()), m]
        cuts_n = [0, *sorted(rng.integers(0, n + 1, 2).tolist()), n]
        for r0, r1 in itertools.pairwise(cuts_m):
            for c0, c1 in itertools.pairwise(cuts_n):
                before = parts.copy()
                run.new_workspace()
                run(a, b, parts, (r0, r1, c0, c1))
                outside = np.ones((m, n), bool)
                outside[r0:r1, c0:c1] = False
                np.testing.assert_array_equal(parts[outside], before[outside])
        np.testing.assert_array_equal(parts, expected)


# ---- memory


class Guarded:
    """Memory that ends (or begins) at a page which cannot be touched."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.room = -(-size // page) * page
        self._map = mmap.mmap(-1, self.room + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for start in (base, base + page + self.room):
            assert libc.mprotect(start, page, 0) == 0  # PROT_NONE
        self.start = base + page

    def array(self, shape, dtype, order, at_end):
        """An array in the memory, flush with its end or its beginning."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        address = self.start + (self.room - size if at_end else 0)
        flat = np.frombuffer((ctypes.c_char * size).from_address(address), dtype)
        return flat.reshape(shape, order=order)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_nothing_outside_the_operands_is_touched(dtype, target):
    run = product(dtype, target)
    areas = [Guarded(70_000) for _ in range(3)]
    shapes = [(1, 1, 1), (3, 5, 2), (1, 37, 70), (37, 1, 70), (2, 33, 40), (17, 47, 19),
              (29, 65, 37), (44, 10, 33), (7, 7, 7), (50, 3, 41), (15, 31, 90),
              (40, 6, 90)]  # fmt: skip
    for m, n, k in shapes:
        for orders in ("CC", "CF", "FC", "FF"):
            for at_end in (True, False):
                a = areas[0].array((m, k), dtype, orders[0], at_end)
                b = areas[1].array((k, n), dtype, orders[1], at_end)
                c = areas[2].array((m, n), dtype, "C", at_end)
                a[...], b[...] = values((m, k), dtype, 1), values((k, n), dtype, 2)
                check(a, b, run(a, b, c))


def test_gaps_between_rows_of_c_are_kept():
    run = product("float32")
    for m, n, k in [(30, 37, 20), (1, 40, 90), (40, 1, 90), (5, 5, 5), (40, 70, 600)]:
        memory = np.full((m, n + 9), 77, np.float32)
        a, b = values((m, k), "float32", 1), values((k, n), "float32", 2)
        check(a, b, run(a, b, memory[:, 4 : 4 + n]))
        assert (memory[:, :4] == 77).all() and (memory[:, 4 + n :] == 77).all()


# ---- epilogues


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_epilogue_sees_each_finished_element_once(dtype):
    run = product(dtype)
    for m, n, k in [(5, 6, 7), (300, 40, 30), (64, 600, 1030), (1, 5000, 40), (5000, 1, 40),
                    (2, 90, 70), (13, 300, 1100), (3, 4, 0), (400, 4, 33)]:  # fmt: skip
        a, b = laid_out((m, k), dtype, "row", 1), laid_out((k, n), dtype, "column", 2)
        expected = run(a, b)
        for rect in [(0, m, 0, n), (m // 3, m, n // 4, n)]:
            c, seen, calls = np.full((m, n), 77, dtype), np.zeros((m, n), int), []

            def note(
                context, batch, r0, r1, c0, c1, place, c_rs, c=c, seen=seen, calls=calls,
                expected=expected,
            ):  # fmt: skip
                assert (place, c_rs) == (c[r0:, c0:].ctypes.data, c.shape[1])
                np.testing.assert_array_equal(c[r0:r1, c0:c1], expected[r0:r1, c0:c1])
                seen[r0:r1, c0:c1] += 1
                c[r0:r1, c0:c1] = 1
                calls.append((context, batch))

            run(a, b, c, rect, ctypes.cast(EPILOGUE(note), PTR), 4242, 3)
            inside = np.zeros((m, n), int)
            inside[rect[0] : rect[1], rect[2] : rect[3]] = 1
            np.testing.assert_array_equal(seen, inside)
            np.testing.assert_array_equal(c, np.where(inside == 1, 1, 77).astype(dtype))
            assert set(calls) <= {(4242, 3)}
            assert len(calls) <= 2 + 2 * m * n // 3000


# ---- micro-kernel, text


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32"])
def test_micro_kernel(dtype, target):
    run = product(dtype, target)
    mr, nr = tile_shape(run.target, dtype)
    rng = np.random.default_rng(3)
    for _ in range(60):
        k, rows, cols = (int(rng.integers(1, top + 1)) for top in (40, mr, nr))
        if rng.integers(2):
            rows, cols = mr, nr
        a, b = values((k, mr), dtype, 1), values((k, nr), dtype, 2)
        aligned = np.zeros(b.nbytes + 64, np.uint8)
        start = -aligned.ctypes.data % 64
        panel = aligned[start : start + b.nbytes].view(dtype).reshape(k, nr)
        panel[...] = b
        for accumulate in (0, 1):
            c = values((mr + 1, nr + 3), dtype, 4)
            before = c.copy()
            run.tile(
                k, a.ctypes.data, panel.ctypes.data, c.ctypes.data, nr + 3, accumulate, rows, cols
            )
            expected = run(np.ascontiguousarray(a[:, :rows].T), panel[:, :cols])
            with np.errstate(over="ignore"):
                if accumulate:
                    expected = before[:rows, :cols] + expected
            np.testing.assert_array_equal(c[:rows, :cols], expected)
            c[:rows, :cols] = before[:rows, :cols]
            np.testing.assert_array_equal(c, before)


def test_text_has_no_flags_and_shares_unsigned():
    module = Module(host_target())
    for dtype in DTYPES:
        require_gemm(module, dtype)
    text = module.to_text()
    assert not re.search(r"\b(nsw|nuw|fast|nnan|ninf|nsz|contract|reassoc|arcp|afn)\b", text)
    assert require_gemm(module, "uint32") == require_gemm(module, "int32") == "sg_gemm_int32"


def test_aarch64_compiles():
    """128-bit vectors with 32 registers, no masked loads."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = Target("aarch64-unknown-linux-gnu", "cortex-a76", "+neon", 128, 32)
    module = Module(target)
    for dtype in ("float32", "float64", "int8", "int64"):
        require_gemm(module, dtype)
    parsed = llvm.parse_assembly(module.to_text())
    parsed.verify()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1
    )
    text = machine.emit_assembly(parsed)
    full = text[text.index("sg_gemm_full_float32:") : text.index("sg_gemm_edge_float32:")]
    inner = full[: full.index("b.ne")]
    assert inner.count("fmla") == 28  # and no accumulator in memory inside of the loop


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loops_of_the_edge_kernel_compute_no_masks(dtype):
    """LLVM moves a comparison to where its result is used, unless that is frozen."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    features = "+avx2,+fma,+avx512f,+avx512vl,+avx512dq,+avx512bw,-prefer-256-bit"
    target = Target("x86_64-unknown-linux-gnu", "x86-64-v4", features, 512, 32)
    module = Module(target)
    require_gemm(module, dtype)
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2
    )
    text = machine.emit_assembly(llvm.parse_assembly(module.to_text()))
    edge = text[text.index(f"sg_gemm_edge_{dtype}:") :].split(".size")[0]
    loops = [b for b in re.split(r"(?m)^\.L\w+:", edge) if "vfmadd" in b]
    assert sorted(b.count("vfmadd") for b in loops) == [4, 8]
    for inner in loops:
        assert re.search(r"\{%k\d\} \{z\}", inner)
        assert "vpcmp" not in inner and "vcmp" not in inner


def test_unknown_dtype():
    with pytest.raises(ValueError, match="complex64"):
        require_gemm(Module(host_target()), "complex64")


def test_workspace_is_bounded():
    for name in TARGETS:
        for dtype in DTYPES:
            assert 0 < workspace_bytes(TARGETS[name](), dtype) <= 2 << 20
