"""Functions by intervals: the tables against float64 oracles, and the lookups on every target."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import pytest
import scipy.special
from staticgrad.codegen.builder import Function, Module, vector
from staticgrad.codegen.math_functions import emit_math
from staticgrad.codegen.math_lanes import Lanes
from staticgrad.codegen.math_tables import (
    ERF,
    ERFCX,
    SOFTPLUS,
    TABLE_START,
    TANH,
    Intervals,
    lookup,
)
from staticgrad.codegen.target import Target, host_target

from tests.test_math_functions import AVX2, AVX512, NEON

TABLE = [float(i * i) - 3.5 for i in range(16)]
Oracle = Callable[[np.ndarray], np.ndarray]
TABLES = [
    pytest.param(TANH, np.tanh, 9.1, 27.7, id="tanh"),
    pytest.param(ERF, scipy.special.erf, 3.95, 26.1, id="erf"),
    pytest.param(ERFCX, scipy.special.erfcx, 10.3, 27.4, id="erfcx"),
    pytest.param(SOFTPLUS, lambda u: np.log1p(np.exp(-u)) * np.exp(u), 18.0, 26.5, id="softplus"),
]


def numbers(table: Intervals, u: np.ndarray) -> np.ndarray:
    """The columns at float32 values u, one row each, found as the generated code finds them."""
    bits = (u + np.float32(table.offset)).view(np.uint32) >> table.shift
    return np.array(table.columns, np.float32).astype(np.float64).T[bits - table.first]


@pytest.mark.parametrize(("table", "oracle", "limit", "bits"), TABLES)
def test_a_table_is_as_exact_as_it_says(
    table: Intervals, oracle: Oracle, limit: float, bits: float
) -> None:
    u = np.linspace(1e-3, limit, 200_000).astype(np.float32)
    rows = numbers(table, u)
    d = u.astype(np.float64) - rows[:, 0]
    slope = np.zeros(len(u))
    for c in rows[:, :1:-1].T:
        slope = slope * d + c
    value = rows[:, 1] + d * slope
    if table in (TANH, ERF):  # the form u + u c(u) of the first interval
        value += np.where(u < TABLE_START, u, 0.0)
    exact = oracle(u.astype(np.float64))
    assert np.log2(np.max(np.abs(value / exact - 1))) < -bits


@pytest.mark.parametrize(("table", "oracle", "limit", "bits"), TABLES)
def test_the_points_values_are_nearly_float32(
    table: Intervals, oracle: Oracle, limit: float, bits: float
) -> None:
    points, values = np.array(table.columns[:2], np.float32)
    exact = oracle(points.astype(np.float64))
    assert (np.abs(values - exact) <= 0.003 * np.spacing(values))[values > 0].all()


def lookup_module(lanes: int, target: Target) -> str:
    """`find(indices, out)`: one vector of indices."""
    module = Module(target)
    f = Function(module, "find", [("ptr", "indices"), ("ptr", "out")], linkage="")
    ty = vector("i32", lanes)
    index = Lanes(f, f.emit(f"load {ty}, ptr %indices, align 4"), ty)
    found = lookup(index, TABLE)
    f.stmt(f"store {found.ty} {found.name}, ptr %out, align 4")
    f.stmt("ret void")
    f.finish()
    return module.to_text()


def machine_of(target: Target) -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, jit=True
    )


def count_of(prefix: str, assembly: str) -> int:
    """The instructions whose names begin with `prefix`."""
    return len(re.findall(rf"(?m)^\t{prefix}", assembly))


HOSTS = [host_target(), *([AVX2] if host_target().is_x86 else [])]


@pytest.mark.parametrize("target", HOSTS, ids=["host", "avx2"][: len(HOSTS)])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
def test_a_lookup_takes_the_lowest_four_bits(lanes: int, target: Target) -> None:
    jit = llvm.create_lljit_compiler(machine_of(target))
    library = llvm.JITLibraryBuilder().add_ir(lookup_module(lanes, target))
    linked = library.export_symbol("find").link(jit, "find")
    find = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(linked["find"])
    indices = np.random.default_rng(lanes).integers(0, 1 << 31, (50, lanes), dtype=np.int32)
    indices[0] = np.arange(lanes)
    for row in indices:
        out = np.empty(lanes, np.float32)
        find(row.ctypes.data, out.ctypes.data)
        assert out.tolist() == [TABLE[i & 15] for i in row]


@pytest.mark.parametrize(
    ("target", "lanes", "instruction", "count"),
    [(AVX512, 16, "vperm", 1), (AVX2, 8, "vperm", 2), (NEON, 4, "tbl", 1)],
    ids=["avx512", "avx2", "neon"],
)
def test_a_lookup_stays_in_registers(
    target: Target, lanes: int, instruction: str, count: int
) -> None:
    text = machine_of(target).emit_assembly(llvm.parse_assembly(lookup_module(lanes, target)))
    assert count_of(instruction, text) == count


@pytest.mark.parametrize(
    ("name", "divisions", "lookups"),
    [("tanh", 0, 8), ("erf", 0, 7), ("erfc", 0, 8), ("softplus", 0, 7), ("sigmoid", 1, 0)],
)
def test_what_a_vector_of_a_function_takes(name: str, divisions: int, lookups: int) -> None:
    """One branchless body in float32: no second form to compute and choose from."""
    module = Module(AVX512)
    f = Function(module, "f", [("<16 x float>", "x")], result="<16 x float>", linkage="")
    f.stmt(f"ret <16 x float> {emit_math(f, name, '<16 x float>', '%x')}")
    f.finish()
    text = machine_of(AVX512).emit_assembly(llvm.parse_assembly(module.to_text()))
    assert count_of("vdiv", text) == divisions
    assert count_of("vperm", text) == lookups
    assert [count_of(other, text) for other in ("call", "vcvt", "j")] == [0] * 3
