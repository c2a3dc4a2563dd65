"""Products with few rows or columns, `codegen.gemm_vector`: bits equal to the general product's,
whatever the strides and the k; what takes that path, and that nothing else is touched."""

from __future__ import annotations

import ctypes
import functools
import itertools
import re

import llvmlite.binding as llvm
import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import _products, compile_stages
from staticgrad.codegen.builder import Module
from staticgrad.codegen.gemm_emit import Element
from staticgrad.codegen.gemm_vector import (
    MOST_ROWS,
    products_text,
    require_gemm_vector,
    vectors_of,
)
from staticgrad.codegen.split import shared_units
from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim

from . import test_gemm
from .test_gemm import (
    DTYPES,
    EPILOGUE,
    KINDS,
    PTR,
    TARGETS,
    UNMASKED,
    Guarded,
    Product,
    check,
    laid_out,
    product,
    summed_in_order,
    values,
)

DEPTHS = [1, 15, 16, 17, 63, 64, 1023, 1024, 1025, 2048, 4096, 5000, 9001]
WIDE = ["float32", "float64", "int32", "int64"]


@pytest.fixture(scope="module", autouse=True)
def _llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def vector(dtype: str, target: str = "host", rows: int = 1) -> Product:
    """The product that takes `rows` at once of few."""
    with pytest.MonkeyPatch.context() as patch:
        if target in UNMASKED:
            patch.setattr(Element, "has_masks", False)
        patch.setattr(
            test_gemm, "require_gemm", lambda module, d: require_gemm_vector(module, d, rows)
        )
        return Product(dtype, TARGETS[target]())


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a, b)
    if a.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


# ---- bits and values


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", WIDE)
def test_bits_are_those_of_the_general_product(dtype: str, target: str, rows: int) -> None:
    run, general = vector(dtype, target, rows), product(dtype, target)
    for k in DEPTHS:
        for few, many in itertools.product((1, 2, 3, 4), (1, 2, 5, 8, 9, 23, 40)):
            if few * many * k > 200_000:
                continue
            a, b = laid_out((few, k), dtype, "row", k), laid_out((k, many), dtype, "column", 2)
            expected = general(a, b)
            check(a, b, expected)
            same_bits(run(a, b), expected)
            same_bits(run(b.T, a.T), expected.T)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("k", [700, 1025, 5003])
def test_bits_are_those_of_a_column_of_many(dtype: str, k: int) -> None:
    run, general = vector(dtype), product(dtype)
    a, b = values((50, k), dtype, 1), values((k, 70), dtype, 2)
    whole = general(a, b)
    for j in (0, 33, 69):
        column = np.ascontiguousarray(b[:, j : j + 1])
        same_bits(run(a, column), whole[:, j : j + 1])
        same_bits(run(a[j % 50 : j % 50 + 1], column), whole[j % 50 : j % 50 + 1, j : j + 1])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_any_strides(dtype: str, rows: int) -> None:
    """Of the few; of the many those that leave k unbroken."""
    run, general = vector(dtype, rows=rows), product(dtype)
    for few, many, k in [(1, 1, 4999), (1, 33, 70), (3, 12, 1300), (2, 9, 5)]:
        for kinds in itertools.product(KINDS, ("row", "wide", "same_rows")):
            a, b = laid_out((few, k), dtype, kinds[0], 3), laid_out((many, k), dtype, kinds[1], 4).T
            expected = general(a, b)
            same_bits(run(a, b), expected)
            same_bits(run(b.T, a.T), expected.T)


@pytest.mark.parametrize("k", [1000, 4100, 100_003])
def test_bits_are_those_of_the_stated_order(k: int) -> None:
    """See `test_gemm`: products of 12 bits, summed in blocks of ceil(k / ceil(k / 1024))."""
    rng = np.random.default_rng(k)
    a = (rng.integers(-(2**12), 2**12, (1, k)) / 2**6).astype(np.float32)
    b = (rng.integers(-(2**12), 2**12, (k, 1)) / 2**9).astype(np.float32)
    got = vector("float32")(a, b)
    assert got[0, 0] == summed_in_order(a[0], b[:, 0], -(-k // -(-k // 1024)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_products_against_numpy(dtype: str) -> None:
    """The longest is asked for ahead."""
    run, general = vector(dtype), product(dtype)
    for m, k in [(1, 2_200_000), (1, 100_003), (10, 30_011), (40, 9_000)]:
        a, b = values((m, k), dtype, 1), values((k, 1), dtype, 2)
        got = run(a, b)
        check(a, b, got)
        same_bits(got, general(a, b))


def test_far_columns() -> None:
    """Short columns of a B that is asked for ahead."""
    run, general = vector("float32"), product("float32")
    a, b = values((70_000, 61), "float32", 1), values((61, 1), "float32", 2)
    same_bits(run(a, b), general(a, b))


def test_special_values() -> None:
    """Infinities and NaN in one block, element or column, and sums that are a negative zero."""
    for m, k in [(1, 5000), (1, 40), (9, 1030), (20, 100)]:
        run, general = vector("float32"), product("float32")
        a, b = values((m, k), "float32", 1), values((k, 1), "float32", 2)
        for place, value in [(0, np.inf), (k - 1, -np.inf), (k // 2, np.nan)]:
            x = a.copy()
            x[m - 1, place] = value
            got = run(x, b)
            same_bits(got, general(x, b))
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(np.isnan(got), np.isnan(x @ b))
        zeros = np.full((m, k), -0.0, np.float32)
        same_bits(run(zeros, np.abs(b)), general(zeros, np.abs(b)))


# ---- memory and epilogues


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_outside_the_operands_is_touched(dtype: str, target: str) -> None:
    areas = [Guarded(350_000) for _ in range(3)]
    shapes = [(1, 1, 37), (1, 1, 8200), (1, 3, 9003), (37, 1, 70), (2, 11, 1030), (8, 1, 16),
              (4, 50, 90), (1, 31, 1100)]  # fmt: skip
    for rows, (m, n, k) in itertools.product((1, 2), shapes):
        for at_end in (True, False):
            a = areas[0].array((m, k), dtype, "C", at_end)
            b = areas[1].array((k, n), dtype, "F", at_end)
            c = areas[2].array((m, n), dtype, "C", at_end)
            a[...], b[...] = values((m, k), dtype, 1), values((k, n), dtype, 2)
            check(a, b, vector(dtype, target, rows)(a, b, c))


@pytest.mark.parametrize("rows", [1, 2])
def test_rectangles_and_epilogues(rows: int) -> None:
    run = vector("float32", rows=rows)
    for m, n, k in [(3, 50, 1100), (50, 3, 1100), (1, 9, 5000), (9, 1, 5000), (5, 1, 0), (1, 1, 3)]:
        a, b = laid_out((m, k), "float32", "row", 1), laid_out((k, n), "float32", "column", 2)
        expected = product("float32")(a, b)
        r0, c0 = m // 3, n // 4
        c, seen = np.full((m, n + 3), 77, np.float32)[:, :n], np.zeros((m, n), int)

        def note(
            context: int, batch: int, r0: int, r1: int, c0: int, c1: int, place: int, c_rs: int,
            c: np.ndarray = c, seen: np.ndarray = seen, expected: np.ndarray = expected,
        ) -> None:  # fmt: skip
            same_bits(c[r0:r1, c0:c1], expected[r0:r1, c0:c1])
            seen[r0:r1, c0:c1] += 1

        run(a, b, c, (r0, m, c0, n), ctypes.cast(EPILOGUE(note), PTR), 4242, 3)
        inside = np.zeros((m, n), int)
        inside[r0:, c0:] = 1
        np.testing.assert_array_equal(seen, inside)
        assert (c[inside == 0] == 77).all()
    guard = np.full((4, 4), 77, np.float32)
    for k, rect in itertools.product((0, 30), [(2, 2, 0, 4), (0, 4, 3, 3), (4, 4, 4, 4)]):
        run(np.ones((4, k), np.float32), np.ones((k, 4), np.float32, "F"), guard, rect)
    assert (guard == 77).all()


def test_aarch64_compiles() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = Target("aarch64-unknown-linux-gnu", "cortex-a76", "+neon", 128, 32)
    module = Module(target)
    for dtype, rows in itertools.product(WIDE, (1, 2)):
        require_gemm_vector(module, dtype, rows)
    parsed = llvm.parse_assembly(module.to_text())
    parsed.verify()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1
    )
    assert machine.emit_assembly(parsed).count("sg_gemv1_columns_float32:") == 1


# ---- programs


def compiled(a: tuple[object, ...], b: tuple[object, ...], dtype: str, **options: object):
    x, y = sg.input("x", a, getattr(sg, dtype)), sg.input("y", b, getattr(sg, dtype))
    return sg.compile([x, y], [x @ y], **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("a", "b"),
    [((5003,), (5003,)), ((40, 1100), (1100,)), ((70, 130), (130, 3)), ((2, 300), (300, 9)),
     ((3, 20, 700), (700,))],
)  # fmt: skip
def test_declared_and_symbolic_sizes_have_the_same_bits(
    dtype: str, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    x, y = values(a, dtype, 1), values(b, dtype, 2)
    (declared,) = compiled(a, b, dtype, threads=1)(x, y)
    (shared,) = compiled(a, b, dtype, threads=2)(x, y)
    matrix = (*a[:-1], a[-1]), (b if len(b) == 2 else (*b, 1))
    symbolic = compiled((*a[:-1], "K"), ("K", "N"), dtype)
    (general,) = symbolic(x, y.reshape(matrix[1]))
    same_bits(declared, general.reshape(declared.shape))
    same_bits(shared, declared)


def test_declared_few_rows_or_columns_take_the_unit() -> None:
    """Programs of such products alone have no other code for products, and what is begun early is
    what they have."""

    def taken(a: tuple[object, ...], b: tuple[object, ...], dtype: str = "float32") -> list[str]:
        text = compiled(a, b, dtype).llvm_ir
        return sorted(
            set(re.findall(r"define [^@]*@(sg_gemv\d|sg_gemm)_(?:float32|int16)\(", text))
        )

    assert taken((500,), (500,)) == ["sg_gemv1"]
    assert taken((100, 500), (500,)) == taken((100, "K"), ("K",)) == ["sg_gemv1"]
    assert taken((100, 500), (500, 3)) == taken(("M", 500), (500, 3)) == ["sg_gemv2"]
    assert taken((500,), (500, 100)) == ["sg_gemm"]  # rows of B lie unbroken: `gemm_skinny`
    assert taken((100, 500), (500, MOST_ROWS + 1)) == ["sg_gemm"]
    assert taken((100, 500), (500, "N")) == taken(("M", 500), (500, 100)) == ["sg_gemm"]
    assert taken((500,), (500,), "int16") == ["sg_gemm"]


@pytest.mark.parametrize(
    ("a", "b"),
    [((100, 500), (500,)), ((100, 500), (500, 3)), ((100, 500), (500, 70)), ((40_000,), (40_000,)),
     ((5, 40_000), (40_000,)), (("K",), ("K",)), ((40, 9000), (9000, 30))],
)  # fmt: skip
def test_what_is_begun_early_is_what_the_program_needs(
    a: tuple[object, ...], b: tuple[object, ...]
) -> None:
    x, y = sg.input("x", a), sg.input("y", b)
    graph = sg.Graph([x, y], [x @ y])
    made = compile_stages(graph)
    early = shared_units(products_text(made.target, _products(graph)))
    assert early and set(early) == set(shared_units(made.text))


def test_they_want_no_workspace() -> None:
    """But for what may find its right operand packed, or not yet."""

    def planned(a: tuple[object, ...], w: sg.Tensor, *inputs: sg.Tensor) -> object:
        x = sg.input("x", a)
        program = compile_stages(sg.Graph([x, *inputs], [x @ w])).program
        return sum(b.size_bytes for b in program.buffers if b.per_thread)

    rows = values((40, 500), "float32", 1)
    assert planned((500,), sg.constant(rows[0])) == planned((100, 500), sg.constant(rows[0])) == 0
    assert planned(("M", 500), sg.parameter(rows[0])) == planned((3, 500), sg.constant(rows).T) == 0
    assert planned((3, 500), sg.parameter(rows).T) > 0
    w = sg.input("w", (500, 40))
    assert planned((30, 500), w, w) > 0


TAKEN = [  # dtype, (m, n, k), column stride of a, row stride of b, how many at once
    ("float32", (100, 1, "N"), 1, 100, 1), ("int64", (1, "N", 8), 7, 1, 1),
    ("float32", (100, 3, 32), 1, 100, 2), ("float64", (4, 2, "N"), 1, 1, 2),
    ("float32", (100, 1, 100), None, 100, 0), ("int8", (1, 1, 100), 1, 1, 0),
    ("float32", ("N", 9, 100), 1, 1, 0), ("float32", (0, 9, 100), 1, 1, 0),
    ("float32", (3, 1, 3), 1, 1, 0), ("float32", (4, 4, 4), 1, 1, 0),  # the small product's
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "sizes", "a_cs", "b_rs", "expected"), TAKEN, ids=str)
def test_what_is_taken_at_once(
    dtype: str, sizes: tuple[int | str, ...], a_cs: int | None, b_rs: int, expected: int
) -> None:
    m, n, k = (Dim.symbol(s) if isinstance(s, str) else s for s in sizes)
    assert vectors_of(dtype, (m, n, k), a_cs, b_rs) == expected
