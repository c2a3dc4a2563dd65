"""The generated merge sort against NumPy's stable sort, bit for bit, on every dtype."""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from staticgrad.codegen.builder import Function, Module
from staticgrad.codegen.sort import emit_template_sort, require_sort
from staticgrad.codegen.target import host_target
from staticgrad.ir.dtype import ALL

DTYPES = [str(d) for d in ALL]
# Around the group of 4, and both even and uneven merges over several passes.
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 63, 64, 100, 128, 129, 1000)


def link(module: Module, names: list[str]) -> tuple[dict[str, int], Any]:
    """The addresses of a module's exported functions, and what keeps them alive."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = module.target
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="default"
    )
    parsed = llvm.parse_assembly(module.to_text())
    parsed.verify()
    jit = llvm.create_lljit_compiler(machine)
    builder = llvm.JITLibraryBuilder().add_object_img(machine.emit_object(parsed))
    libc: Any = ctypes.CDLL(None)
    builder.import_symbol("memcpy", ctypes.cast(libc.memcpy, ctypes.c_void_p).value)
    for name in names:
        builder.export_symbol(name)
    library = builder.link(jit, "sorts")
    return {name: library[name] for name in names}, (library, jit)


@pytest.fixture(scope="module")
def sorts() -> dict[tuple[str, bool], Any]:
    """Callable sorts by (dtype, with indices), with the parameters of `require_sort`."""
    module = Module(host_target())
    kinds = ("ptr", "i64") * 3 + ("ptr", "ptr", "i64", "i64")
    params = [(kind, f"a{i}") for i, kind in enumerate(kinds)]
    passed = ", ".join(f"{kind} %{name}" for kind, name in params)
    exported = {}
    for dtype in DTYPES:
        for indices in (False, True):
            f = Function(module, f"export_{dtype}_{int(indices)}", params, linkage="")
            f.stmt(f"call void @{require_sort(module, dtype, indices)}({passed})")
            f.stmt("ret void")
            f.finish()
            exported[dtype, indices] = f.name
    addresses, keep = link(module, list(exported.values()))
    types = [ctypes.c_void_p if kind == "ptr" else ctypes.c_int64 for kind in kinds]
    prototype = ctypes.CFUNCTYPE(None, *types)
    found: dict[Any, Any] = {key: prototype(addresses[name]) for key, name in exported.items()}
    found["keep"] = keep
    return found


def run(
    sorts: Any, x: np.ndarray, *, indices: bool, descending: bool = False, values: bool = True,
    strides: tuple[int, int, int] = (1, 1, 1),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sorts a 1-D array through strided memory; what lies between the elements must survive."""
    n = x.size
    source, spread_values, spread_places = (
        np.zeros(max(n * s, 1), d) for s, d in zip(strides, (x.dtype, x.dtype, np.int64))
    )
    source[: n * strides[0] : strides[0]] = x
    spread_values[:], spread_places[:] = 1, -7
    work, work_places = np.empty(2 * n + 1, x.dtype), np.empty(2 * n + 1, np.int64)
    before = source.copy()
    sorts[str(x.dtype), indices](
        source.ctypes.data, strides[0], spread_values.ctypes.data if values else None, strides[1],
        spread_places.ctypes.data if indices else None, strides[2], work.ctypes.data,
        work_places.ctypes.data if indices else None, n, int(descending),
    )  # fmt: skip
    assert source.tobytes() == before.tobytes()
    taken = np.arange(spread_values.size) % strides[1] == 0
    assert (spread_values[~taken[: spread_values.size]] == 1).all()
    return spread_values[: n * strides[1] : strides[1]], spread_places[
        : n * strides[2] : strides[2]
    ]


def expected(x: np.ndarray, descending: bool) -> np.ndarray:
    """Stable places, NaN the greatest, in terms of NumPy's stable ascending sort."""
    if not descending:
        return np.argsort(x, kind="stable")
    return x.size - 1 - np.argsort(x[::-1], kind="stable")[::-1]


def sample(dtype: str, n: int, seed: int) -> np.ndarray:
    """Many ties; for floats NaNs of two payloads and both signs, zeros of both signs, infinities
    and subnormals."""
    rng = np.random.default_rng([seed, n])
    if dtype == "bool":
        return rng.integers(0, 2, n).astype(bool)
    if dtype.startswith("float"):
        tiny = np.finfo(dtype).smallest_subnormal
        pool = np.array([np.nan, -np.nan, 0.0, -0.0, np.inf, -np.inf, tiny, -tiny, 1, -1], dtype)
        x = np.where(rng.random(n) < 0.5, rng.choice(pool, n), rng.standard_normal(n).astype(dtype))
        bits = x.view(f"uint{8 * x.itemsize}")
        bits[np.isnan(x) & (rng.random(n) < 0.5)] ^= 5
        return x
    info = np.iinfo(dtype)
    edges = np.array([info.min, info.max, 0, 1, info.max // 2 + 1], dtype)
    return np.where(rng.random(n) < 0.3, rng.choice(edges, n), rng.integers(0, 20, n).astype(dtype))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_size_sorts_stably_to_the_bit(sorts: Any, dtype: str) -> None:
    for n in SIZES:
        x = sample(dtype, n, 1)
        for descending in (False, True):
            places = expected(x, descending)
            for indices in (False, True):
                values, found = run(sorts, x, indices=indices, descending=descending)
                assert same_bits(values, x[places]), (n, descending)
                if indices:
                    assert (found == places).all(), (n, descending)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint64"])
def test_strides_and_wanted_results(sorts: Any, dtype: str) -> None:
    x = sample(dtype, 77, 2)
    for descending in (False, True):
        places = expected(x, descending)
        values, found = run(sorts, x, indices=True, descending=descending, strides=(3, 2, 5))
        assert same_bits(np.ascontiguousarray(values), x[places])
        assert (found == places).all()
        untouched, found = run(sorts, x, indices=True, descending=descending, values=False)
        assert (untouched == 1).all() and (found == places).all()


def test_ordered_reversed_and_constant_input(sorts: Any) -> None:
    for n in (4, 100, 257):
        rising = np.arange(n, dtype="float64")
        for x in (rising, rising[::-1].copy(), np.ones(n), np.repeat(rising[: n // 2], 2)):
            values, places = run(sorts, x, indices=True)
            assert same_bits(values, np.sort(x, kind="stable"))
            assert (places == np.argsort(x, kind="stable")).all()


def test_large_input(sorts: Any) -> None:
    x = sample("float32", 200_003, 3)
    values, places = run(sorts, x, indices=True)
    assert same_bits(values, x[expected(x, False)]) and (places == expected(x, False)).all()


def test_kernels_of_one_width_share_their_core() -> None:
    module = Module(host_target())
    for dtype in ("int32", "uint32", "float32", "float32"):
        require_sort(module, dtype, False)
    assert module.to_text().count("define internal i64 @sg_sort_i32_passes(") == 1


def test_the_template_maps_buffers_sizes_and_attributes() -> None:
    """Rows 2 and 3 of a matrix, sorted in place of the result's rows by the emitted call."""
    module = Module(host_target())
    for indices in (False, True):
        params = [("ptr", name) for name in ("x", "y", "w", "wi")] + [("i64", "start")]
        f = Function(module, f"rows_{int(indices)}", params, linkage="")
        pointers = ["%x", "%y", "%w", "%wi"][: 4 if indices else 3]
        attrs = {"dtype": "float32", "indices": indices, "descending": True}
        emit_template_sort(f, pointers, ["9", "%start", "1", "%start", "1"], attrs)
        f.stmt("ret void")
        f.finish()
    addresses, _keep = link(module, ["rows_0", "rows_1"])
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)
    x = np.random.default_rng(0).standard_normal((4, 9)).astype("float32")
    work, places = np.empty(18, "float32"), np.empty(18, np.int64)
    values, found = np.zeros_like(x), np.zeros(x.shape, np.int64)
    for row in (2, 3):
        for name, y in (("rows_0", values), ("rows_1", found)):
            prototype(addresses[name])(
                x.ctypes.data, y.ctypes.data, work.ctypes.data, places.ctypes.data, 9 * row
            )
    assert (values[2:] == -np.sort(-x[2:])).all() and (values[:2] == 0).all()
    assert (found[2:] == np.argsort(-x[2:])).all() and (found[:2] == 0).all()
