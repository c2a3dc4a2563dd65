"""Generated convolution against loops in float64: geometries, bits, bounds, epilogues."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from staticgrad.codegen.builder import Module
from staticgrad.codegen.conv import (
    image_parts,
    require_conv_forward,
    require_conv_grad_input,
    require_conv_grad_weight,
    tile_rows,
    weight_parts,
    weight_tile,
    wide_rows,
    workspace_bytes,
)
from staticgrad.codegen.conv_depthwise import (
    require_depthwise_forward,
    require_depthwise_grad_input,
    require_depthwise_grad_weight,
)
from staticgrad.codegen.conv_depthwise_window import (
    depthwise_parts,
    depthwise_window,
    depthwise_workspace_bytes,
)
from staticgrad.codegen.gemm_emit import Element
from staticgrad.codegen.target import Target, host_target

KINDS = {
    "forward": require_conv_forward,
    "grad_input": require_conv_grad_input,
    "grad_weight": require_conv_grad_weight,
}
DEPTHWISE_KINDS = {
    "forward": require_depthwise_forward,
    "grad_input": require_depthwise_grad_input,
    "grad_weight": require_depthwise_grad_weight,
}
OUTPUT = {"forward": 2, "grad_input": 0, "grad_weight": 1}  # which of (x, w, y) is written
PARAMS = ("ptr %g, ptr %x, ptr %w, ptr %y, ptr %workspace, ptr %epilogue, ptr %context, "
          "i64 %begin, i64 %end")  # fmt: skip
EPILOGUE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 5)
PAGE = mmap.PAGESIZE
Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One convolution; `pad` is (top, left, bottom, right). `out` overrides the output's size."""

    n: int
    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out(self) -> tuple[int, int]:
        top, left, bottom, right = self.pad
        spans = (
            (self.h + top + bottom, self.kh, self.stride[0], self.dilation[0]),
            (self.w + left + right, self.kw, self.stride[1], self.dilation[1]),
        )
        high, wide = (max((size - d * (k - 1) - 1) // s + 1, 0) for size, k, s, d in spans)
        return high, wide

    def shapes(self) -> list[tuple[int, int, int, int]]:
        return [
            (self.n, self.c, self.h, self.w),
            (self.o, self.c // self.groups, self.kh, self.kw),
            (self.n, self.o, *self.out),
        ]

    def array(self) -> Array:
        values = [*self.shapes()[0], self.o, self.kh, self.kw, *self.out, *self.stride]
        return np.array([*values, *self.pad[:2], *self.dilation, self.groups], np.int64)

    def taps(self) -> Iterator[tuple[tuple[Array, ...], tuple[Array, ...], tuple[Any, ...]]]:
        """For each group and tap (indices into x, into y, into w) of all that meets there."""
        cs, os = self.c // self.groups, self.o // self.groups
        for g, a, b in np.ndindex(self.groups, self.kh, self.kw):
            i, j = (np.arange(extent) for extent in self.out)
            row = i * self.stride[0] - self.pad[0] + a * self.dilation[0]
            col = j * self.stride[1] - self.pad[1] + b * self.dilation[1]
            rows, cols = (row >= 0) & (row < self.h), (col >= 0) & (col < self.w)
            n, c, o = np.arange(self.n), np.arange(g * cs, g * cs + cs), np.arange(os) + g * os
            yield (
                np.ix_(n, c, row[rows], col[cols]),
                np.ix_(n, o, i[rows], j[cols]),
                (slice(g * os, g * os + os), slice(None), a, b),
            )


def reference(kind: str, geometry: Geometry, operands: list[Array]) -> Array:
    """The definition, tap by tap, in the arrays' own dtype."""
    x, w, y = operands
    out = np.zeros_like(operands[OUTPUT[kind]])
    for in_x, in_y, in_w in geometry.taps():
        if kind == "forward":
            out[in_y] += np.einsum("ncij,oc->noij", x[in_x], w[in_w])
        elif kind == "grad_input":
            out[in_x] += np.einsum("noij,oc->ncij", y[in_y], w[in_w])
        else:
            out[in_w] += np.einsum("noij,ncij->oc", y[in_y], x[in_x])
    return out


def narrowed(bits: int) -> Target:
    """The host with narrower vectors and 16 registers, as AVX2 has."""
    return dataclasses.replace(host_target(), vector_bits=bits, vector_registers=16)


class Maskless(Target):
    """A CPU that has to be spared masked loads and stores, as AArch64's vectors have none."""

    @property
    def is_x86(self) -> bool:
        return False


def without_masks(bits: int = 128) -> Target:
    """The host's instructions, used as on such a CPU."""
    fields = dataclasses.asdict(host_target())
    return Maskless(**{**fields, "vector_bits": min(bits, fields["vector_bits"])})


class Compiled:
    """The three functions of one dtype, compiled together; with `window` depthwise ones."""

    def __init__(
        self, dtype: str, target: Target, wide: bool, lanes: int, window: tuple[int, ...]
    ) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = Module(target)
        rows = tile_rows(target, None) if wide else 0
        if window:
            names = {k: r(module, dtype, window, lanes) for k, r in DEPTHWISE_KINDS.items()}
        else:
            names = {k: r(module, dtype, rows=rows) for k, r in KINDS.items()}
        if lanes and not window:
            names["grad_weight"] = require_conv_grad_weight(module, dtype, rows=9, lanes=lanes)
        text = module.to_text()
        for kind, name in names.items():
            text += f"define void @run_{kind}({PARAMS}) {{\n"
            text += f"  call void @{name}({PARAMS})\n  ret void\n}}\n"
        parsed = llvm.parse_assembly(text)
        parsed.verify()
        machine = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=1
        )
        self.dtype, self.target, self.window = np.dtype(dtype), target, window
        self.rows, self.lanes = rows, lanes
        self.names, self.text = names, text
        self._jit = llvm.create_lljit_compiler(machine)
        library = llvm.JITLibraryBuilder().add_ir(parsed).add_current_process()
        for kind in KINDS:
            library = library.export_symbol(f"run_{kind}")
        self._library = library.link(self._jit, "convolution")
        signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 7, *[ctypes.c_int64] * 2)
        self._functions = {kind: signature(self._library[f"run_{kind}"]) for kind in KINDS}
        size = workspace_bytes(target, dtype)
        if window:
            size = depthwise_workspace_bytes(target, dtype, window, lanes)
        self._workspace = np.zeros(size, np.uint8)

    def run(
        self, kind: str, geometry: Geometry, operands: list[Array],
        begin: int = 0, end: int | None = None, epilogue: Any = None,
    ) -> None:  # fmt: skip
        if end is None:
            end = self.extent(kind, geometry)
        # What an earlier call left behind must not matter: all of it is NaN, or -1.
        self._workspace[:] = 255
        sizes, (x, w, y) = geometry.array(), operands
        self._functions[kind](
            sizes.ctypes.data, x.ctypes.data, w.ctypes.data, y.ctypes.data,
            self._workspace.ctypes.data, epilogue, None, begin, end,
        )  # fmt: skip

    def extent(self, kind: str, geometry: Geometry) -> int:
        """How many parts the work has."""
        dtype, groups = str(self.dtype), geometry.groups
        if self.window:
            more = (self.lanes, geometry.n, groups, f"conv_{kind}")
            return int(str(depthwise_parts(self.target, dtype, self.window, *more)))
        if kind != "grad_weight":
            channels = (geometry.o if kind == "forward" else geometry.c) // groups
            parts = image_parts(self.target, dtype, geometry.n, groups, channels, self.rows)
            return int(str(parts))
        taps = geometry.c // geometry.groups * geometry.kh * geometry.kw
        parts = weight_parts(self.target, dtype, geometry.o, groups, taps)
        return int(str(parts))

    def result(self, kind: str, geometry: Geometry, operands: list[Array], **more: Any) -> Array:
        """A fresh output, which held NaN (or -1) before."""
        operands = list(operands)
        out = np.empty_like(operands[OUTPUT[kind]])
        out.view(np.uint8)[...] = 255
        operands[OUTPUT[kind]] = out
        self.run(kind, geometry, operands, **more)
        return out


@functools.cache
def compiled(
    dtype: str = "float32", target: Target | None = None, wide: bool = True, lanes: int = 0,
    window: tuple[int, ...] = (),
) -> Compiled:  # fmt: skip
    return Compiled(dtype, target or host_target(), wide, lanes, window)


def compiled_for(
    geometry: Geometry, dtype: str = "float32", target: Target | None = None, lanes: int = 0
) -> Compiled:
    """The depthwise functions for a geometry's window."""
    target = target or host_target()
    kernel = (geometry.kh, geometry.kw)
    group = (geometry.c // geometry.groups, geometry.o // geometry.groups)
    window = depthwise_window(target, dtype, kernel, geometry.stride, geometry.dilation, group)
    assert window
    return compiled(dtype, target, window=window, lanes=lanes)


def random_operands(geometry: Geometry, dtype: str, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return [rng.standard_normal(s).astype(dtype) for s in geometry.shapes()]
    info = np.iinfo(dtype)
    return [rng.integers(info.min, info.max, s, dtype, endpoint=True) for s in geometry.shapes()]


def check(
    kind: str, geometry: Geometry, dtype: str = "float32", target: Any = None,
    depthwise: bool = False, wide: bool = True,
) -> None:  # fmt: skip
    operands = random_operands(geometry, dtype)
    if depthwise:
        functions = compiled_for(geometry, dtype, target)
    else:
        functions = compiled(dtype, target, wide)
    got = functions.result(kind, geometry, operands)
    if got.dtype.kind != "f":
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(got, reference(kind, geometry, operands))
        return
    wide = [a.astype("float64") for a in operands]
    exact = reference(kind, geometry, wide)
    # A sum of k products in any order errs by at most k * eps * (the sum of their magnitudes).
    magnitudes = reference(kind, geometry, [np.abs(a) for a in wide])
    terms = reference(kind, geometry, [np.ones_like(a) for a in wide])
    bound = (terms + 2) * np.finfo(dtype).eps * magnitudes
    assert np.all(np.abs(got - exact) <= bound), np.abs(got - exact).max()


GEOMETRIES = {
    "plain": Geometry(2, 3, 8, 9, 4, 3, 3),
    "same_5x5_one_channel": Geometry(3, 1, 28, 28, 16, 5, 5, pad=(2, 2, 2, 2)),
    "same_5x5": Geometry(3, 16, 14, 14, 32, 5, 5, pad=(2, 2, 2, 2)),
    "strided": Geometry(2, 5, 13, 17, 7, 3, 3, stride=(2, 2), pad=(1, 1, 1, 1)),
    "strides_differ": Geometry(2, 3, 11, 19, 5, 3, 4, stride=(3, 2), pad=(0, 2, 1, 1)),
    "stride_3_dilation_2": Geometry(2, 4, 20, 23, 6, 3, 3, (3, 3), (2, 1, 0, 3), (2, 2)),
    "stride_2_dilation_2": Geometry(2, 3, 15, 16, 4, 3, 3, (2, 2), (2, 2, 2, 2), (2, 2)),
    "stride_4_dilation_6": Geometry(1, 2, 17, 33, 3, 2, 3, (4, 4), (3, 1, 3, 1), (6, 6)),
    "stride_over_kernel": Geometry(2, 2, 14, 15, 3, 2, 1, (3, 4), (0, 1, 0, 0)),
    "dilated": Geometry(2, 3, 12, 14, 4, 3, 3, (1, 1), (1, 3, 3, 0), (3, 2)),
    "asymmetric_padding": Geometry(2, 2, 6, 7, 3, 3, 3, pad=(2, 0, 1, 4)),
    "padding_over_kernel": Geometry(1, 2, 3, 4, 2, 2, 2, pad=(4, 5, 3, 6)),
    "kernel_over_image": Geometry(2, 3, 3, 2, 4, 5, 7, pad=(1, 3, 1, 3)),
    "shared_rows": Geometry(2, 3, 9, 16, 9, 3, 3, pad=(1, 1, 1, 1)),
    "shared_rows_dilated": Geometry(2, 3, 20, 16, 5, 3, 3, (1, 1), (3, 3, 3, 3), (3, 3)),
    "shared_rows_in_blocks": Geometry(1, 40, 34, 67, 3, 5, 3, pad=(2, 1, 2, 1)),
    "shared_rows_stride_w": Geometry(2, 3, 14, 63, 9, 4, 3, (1, 2), (2, 1, 1, 1)),
    "shared_rows_of_many_taps": Geometry(1, 2, 40, 24, 3, 30, 20, pad=(14, 9, 15, 10)),
    "two_groups": Geometry(2, 6, 9, 10, 8, 3, 3, pad=(1, 1, 1, 1), groups=2),
    "depthwise": Geometry(2, 7, 11, 13, 7, 3, 3, pad=(1, 1, 1, 1), groups=7),
    "depthwise_strided": Geometry(2, 5, 12, 9, 10, 3, 3, (2, 2), (1, 1, 1, 1), groups=5),
    "depthwise_wide": Geometry(1, 3, 4, 70, 3, 3, 5, (1, 1), (1, 2, 1, 2), groups=3),
    "depthwise_dilated": Geometry(2, 4, 9, 40, 4, 3, 3, (1, 1), (2, 3, 2, 3), (2, 3), groups=4),
    "depthwise_tall": Geometry(1, 2, 140, 5, 2, 130, 4, (1, 1), (1, 0, 1, 1), groups=2),
    "depthwise_broad": Geometry(1, 2, 3, 30, 2, 2, 17, (1, 1), (0, 4, 0, 4), groups=2),
    "depthwise_stride_3": Geometry(2, 3, 13, 50, 3, 3, 4, (2, 3), (1, 2, 1, 2), groups=3),
    "depthwise_stride_2": Geometry(2, 3, 13, 75, 3, 3, 5, (2, 2), (1, 2, 1, 2), (2, 1), groups=3),
    "depthwise_long": Geometry(2, 2, 2, 2100, 2, 1, 3, (1, 1), (0, 1, 0, 1), groups=2),
    "depthwise_over_image": Geometry(1, 2, 3, 2, 2, 5, 7, pad=(3, 4, 3, 4), groups=2),
    "one_by_one": Geometry(2, 19, 7, 9, 33, 1, 1),
    "one_by_one_strided": Geometry(2, 9, 7, 9, 5, 1, 1, stride=(2, 3)),
    "one_dimension": Geometry(3, 4, 1, 50, 6, 1, 5, pad=(0, 2, 0, 2)),
    "one_dimension_strided": Geometry(2, 3, 1, 65, 4, 1, 4, (1, 3), (0, 1, 0, 0), (1, 2)),
    "long_kernel": Geometry(1, 2, 1, 1300, 2, 1, 1100, pad=(0, 30, 0, 0)),
    "tall_kernel": Geometry(1, 2, 64, 11, 2, 60, 9, pad=(1, 1, 1, 1)),
    "one_output": Geometry(70, 3, 4, 4, 5, 4, 4),
    "tiny_image": Geometry(40, 3, 2, 3, 5, 1, 2),
    "one_everything": Geometry(1, 1, 1, 1, 1, 1, 1),
    "one_column": Geometry(2, 3, 9, 1, 4, 3, 1, stride=(1, 2)),
    "many_channels": Geometry(1, 130, 5, 6, 20, 3, 3, pad=(1, 1, 1, 1)),
    "many_outputs": Geometry(1, 2, 3, 5, 300, 2, 2),
    "many_inputs": Geometry(1, 300, 3, 5, 2, 2, 2),
    "planeless": Geometry(2, 2, 300, 500, 3, 3, 3, dilation=(140, 230)),
    "planeless_strided": Geometry(2, 40, 70, 90, 3, 3, 2, (4, 3), (1, 1, 0, 2), (30, 40)),
    "thousands_of_terms": Geometry(3, 260, 6, 9, 5, 3, 3, pad=(1, 1, 1, 1)),
    "rows_in_parts": Geometry(1, 3, 3, 1300, 4, 3, 2, pad=(1, 1, 1, 0)),
    "images_in_parts": Geometry(1, 3, 61, 47, 4, 3, 2, pad=(1, 1, 1, 0)),
    "no_image": Geometry(0, 3, 5, 5, 4, 3, 3),
    "no_channel": Geometry(2, 0, 5, 5, 4, 3, 3),
    "no_output_channel": Geometry(2, 3, 5, 5, 0, 3, 3),
    "no_position": Geometry(2, 3, 2, 5, 4, 3, 3),
    "no_pixel": Geometry(2, 3, 0, 5, 4, 3, 3, pad=(2, 1, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_agrees_with_loops_in_float64(name: str, kind: str) -> None:
    check(kind, GEOMETRIES[name])


# Few channels are computed along positions: `wide_rows` is then 0.
NARROW = ["forward", "grad_input"]


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_along_positions_agrees_with_loops_in_float64(name: str, kind: str) -> None:
    check(kind, GEOMETRIES[name], wide=False)


PART = ("same_5x5", "shared_rows_dilated", "strided", "stride_3_dilation_2", "depthwise",
        "depthwise_strided", "one_by_one", "one_dimension_strided", "one_output",
        "padding_over_kernel", "no_channel", "no_image")  # fmt: skip


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_ways_give_the_same_bits(kind: str, dtype: str) -> None:
    for name, geometry in GEOMETRIES.items():
        operands = random_operands(geometry, dtype)
        results = [compiled(dtype, wide=w).result(kind, geometry, operands) for w in (True, False)]
        assert results[0].tobytes() == results[1].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_halved_vectors_of_channels_give_the_same_bits(dtype: str) -> None:
    half = Element.of(dtype, host_target()).lanes // 2
    for name, geometry in GEOMETRIES.items():
        if 0 < geometry.o // geometry.groups <= half:
            operands = random_operands(geometry, dtype)
            results = [
                compiled(dtype, lanes=lanes).result("grad_weight", geometry, operands)
                for lanes in (0, half)
            ]
            assert results[0].tobytes() == results[1].tobytes(), name


def test_few_channels_of_weights_take_halved_vectors() -> None:
    wide = dataclasses.replace(host_target(), vector_bits=512, vector_registers=32)
    assert weight_tile(wide, "float32", 16, 25) == {"rows": 13, "lanes": 16}  # a tile a thread
    assert weight_tile(wide, "float32", 16, 50) == {"rows": 25, "lanes": 16}
    assert weight_tile(wide, "float32", 16, 9) == {"rows": 9, "lanes": 16}
    assert weight_tile(wide, "float32", 16, 1) == {"rows": 8, "lanes": 16}
    assert weight_tile(wide, "float32", 8, 27) == {"rows": 9, "lanes": 8}
    assert weight_tile(wide, "float64", 4, None) == {"rows": 8, "lanes": 4}
    assert weight_tile(narrowed(256), "float32", 4, 27)["lanes"] == 8


def test_long_sums_of_many_channels_go_along_channels() -> None:
    wide = dataclasses.replace(host_target(), vector_bits=512, vector_registers=32)

    def along_channels(channels: Any, terms: Any, size: Any = 28) -> bool:
        return wide_rows(wide, "float32", channels, ("N", size, size), terms) > 0

    assert along_channels(64, 576) and along_channels(16, 72) and along_channels(31, 288)
    assert along_channels("O", 9, "H") and along_channels(16, "K")
    assert not along_channels(64, 27) and not along_channels(16, 25)
    assert not along_channels(8, 576) and not along_channels(24, 288)
    # For few images it is not worth another way.
    assert wide_rows(wide, "float32", 16, (64, 28, 28), 25) == 28
    assert wide_rows(wide, "float32", 64, (64, 28, 28), 25) == 0


def test_one_image_is_shared_by_groups_and_by_blocks_of_channels() -> None:
    wide = dataclasses.replace(host_target(), vector_bits=512, vector_registers=32)
    assert image_parts(wide, "float32", 1, 1, 64, 28) == 4  # vectors of channels
    assert image_parts(wide, "float32", 1, 1, 17, 28) == 2
    assert image_parts(wide, "float32", 3, 32, 4, 0) == 96
    assert image_parts(wide, "float32", 0, 1, 64, 28) == 0


PLANELESS = [name for name in GEOMETRIES if name.startswith("planeless")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_loops_on_random_geometries(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high))

    groups = draw(1, 4)
    stride, dilation = (draw(1, 4), draw(1, 4)), (draw(1, 4), draw(1, 4))
    kernel = (draw(1, 5), draw(1, 5))
    h, w = (draw(1, 24) + d * (k - 1) for d, k in zip(dilation, kernel))
    pad = (draw(0, 4), draw(0, 4), draw(0, 4), draw(0, 4))
    geometry = Geometry(
        draw(1, 4), groups * draw(1, 7), h, w, groups * draw(1, 7), *kernel, stride, pad, dilation,
        groups,
    )  # fmt: skip
    check(kind, geometry, "float64")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "int8", "uint16", "int32", "int64"])
def test_other_dtypes(dtype: str, kind: str) -> None:
    for name in (*PART[1:], *PLANELESS):
        check(kind, GEOMETRIES[name], dtype)
        check(kind, GEOMETRIES[name], dtype, wide=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [128, 256])
def test_narrower_vectors_and_fewer_registers(bits: int, kind: str) -> None:
    for name in (*PART, *PLANELESS):
        check(kind, GEOMETRIES[name], target=narrowed(bits))
        check(kind, GEOMETRIES[name], target=narrowed(bits), wide=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_code_for_cpus_without_masks(dtype: str, kind: str) -> None:
    for name in PART[1:]:
        for wide in (True, False):
            check(kind, GEOMETRIES[name], dtype, without_masks(), wide=wide)
            check(kind, GEOMETRIES[name], dtype, without_masks(512), wide=wide)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [*PART, "two_groups", "many_channels", "many_outputs", "many_inputs", "stride_over_kernel"],
)
def test_a_split_changes_no_bit(name: str, kind: str) -> None:
    for n in (1, 7):
        for wide in (True, False):
            check_split(compiled(wide=wide), kind, dataclasses.replace(GEOMETRIES[name], n=n))


def check_split(functions: Compiled, kind: str, geometry: Geometry) -> None:
    """Parts of any size, from any one on: none of an image, some, whole images and some."""
    operands = random_operands(geometry, "float32")
    whole = functions.result(kind, geometry, operands)
    extent = functions.extent(kind, geometry)
    cuts = sorted({0, 1, extent // 3, extent // 2 + 1, extent})
    operands[OUTPUT[kind]] = out = np.full_like(whole, np.nan)
    for begin, end in itertools.pairwise(cuts):
        functions.run(kind, geometry, operands, begin=begin, end=end)
    assert out.tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", ["forward", "grad_input"])
@pytest.mark.parametrize("name", [*PART, "many_channels", "tiny_image", "depthwise_stride_2"])
def test_an_image_alone_has_the_bits_it_has_in_a_batch(name: str, kind: str) -> None:
    check_alone(compiled(), kind, dataclasses.replace(GEOMETRIES[name], n=5))


def check_alone(functions: Compiled, kind: str, geometry: Geometry) -> None:
    operands = random_operands(geometry, "float32")
    whole = functions.result(kind, geometry, operands)
    for n in range(geometry.n):
        alone = [operands[0][n : n + 1], operands[1], operands[2][n : n + 1]]
        got = functions.result(kind, dataclasses.replace(geometry, n=1), alone)
        assert got.tobytes() == whole[n : n + 1].tobytes()


Call = tuple[int, int, int, int, int]


def doubling_epilogue(kind: str, out: Array, calls: list[Call]) -> Any:
    """An epilogue that doubles its block of the result and notes what it was called with."""
    result = as_blocks(kind, out)

    def call(context: Any, batch: int, r0: int, r1: int, c0: int, c1: int) -> None:
        calls.append((batch, r0, r1, c0, c1))
        result[batch, r0:r1, c0:c1] *= 2

    return EPILOGUE(call)


def as_blocks(kind: str, out: Array) -> Array:
    """The result as an epilogue numbers it: [batch, rows, columns]."""
    batch = 1 if kind == "grad_weight" else out.shape[0]
    rows = out.shape[0 if kind == "grad_weight" else 1]
    return out.reshape(batch, rows, int(np.prod(out.shape[2 - (kind == "grad_weight") :])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [*PART, "two_groups", "many_channels", "many_outputs", "many_inputs", "long_kernel",
             "stride_over_kernel", "no_position", "no_output_channel", "no_pixel"],
)  # fmt: skip
def test_the_epilogue_gets_each_finished_element_once(name: str, kind: str) -> None:
    check_epilogue(compiled(), kind, GEOMETRIES[name])


def check_epilogue(functions: Compiled, kind: str, geometry: Geometry) -> None:
    operands = random_operands(geometry, "float32")
    plain = functions.result(kind, geometry, operands)
    operands[OUTPUT[kind]] = out = np.full_like(plain, np.nan)
    calls: list[Call] = []
    functions.run(kind, geometry, operands, epilogue=doubling_epilogue(kind, out, calls))
    counts = np.zeros_like(as_blocks(kind, out), np.int64)
    for batch, r0, r1, c0, c1 in calls:
        block = counts[batch, r0:r1, c0:c1]
        assert block.shape == (r1 - r0, c1 - c0) and block.size > 0
        block += 1
    np.testing.assert_array_equal(counts, 1)
    np.testing.assert_array_equal(out, 2 * plain)


class Guarded:
    """Arrays whose memory ends (or begins) at a page that can't be touched."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._protect: Callable[..., int] = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def copy(self, array: Array, at_end: bool) -> Array:
        pages = -(-array.nbytes // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        self._maps.append(memory)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (0, pages + 1):
            assert self._protect(base + page * PAGE, PAGE, 0) == 0
        offset = PAGE + (pages * PAGE - array.nbytes if at_end else 0)
        view = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
        view[...] = array
        return view


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_nothing_outside_of_the_operands_is_touched(dtype: str, kind: str, at_end: bool) -> None:
    for target in (None, narrowed(256), without_masks()):
        for name in GEOMETRIES:
            if dtype == "int8" and name not in PART:
                continue
            check_bounds(compiled(dtype, target), kind, GEOMETRIES[name], at_end)


def check_bounds(functions: Compiled, kind: str, geometry: Geometry, at_end: bool) -> None:
    guarded = Guarded()
    operands = random_operands(geometry, str(functions.dtype))
    expected = functions.result(kind, geometry, operands)
    fenced = [guarded.copy(a, at_end) for a in operands]
    functions.run(kind, geometry, fenced)
    assert fenced[OUTPUT[kind]].tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_unaligned_operands_give_the_same_bits(kind: str) -> None:
    geometry = GEOMETRIES["strided"]
    operands = random_operands(geometry, "float32")
    expected = compiled().result(kind, geometry, operands)
    moved = []
    for array in operands:
        memory = np.empty(array.size + 1, array.dtype)
        moved.append(memory[1:].reshape(array.shape))
        moved[-1][...] = array
    compiled().run(kind, geometry, moved)
    assert moved[OUTPUT[kind]].tobytes() == expected.tobytes()


def test_infinity_outside_of_the_window_does_not_leak() -> None:
    geometry = Geometry(1, 2, 9, 40, 3, 3, 3)
    x, w, y = random_operands(geometry, "float32")
    x[0, 1, 4, 20] = np.inf
    got = compiled().result("forward", geometry, [x, w, y])
    hit = np.zeros((7, 38), bool)
    hit[2:5, 18:21] = True
    assert np.all(np.isfinite(got[0][:, ~hit])) and not np.any(np.isfinite(got[0][:, hit]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_are_shared_and_their_workspace_is_bounded(dtype: str) -> None:
    functions = compiled(dtype)
    for kind, name in functions.names.items():
        assert name.startswith(f"sg_conv_{kind}_") and name.endswith(dtype)
        assert functions.text.count(f"@{name}(ptr %geometry") == 1
    module = Module(host_target())
    assert [r(module, dtype) for r in KINDS.values()] == [r(module, dtype) for r in KINDS.values()]
    assert workspace_bytes(host_target(), dtype) <= 4 << 20


def test_other_dtypes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="bool"):
        require_conv_forward(Module(host_target()), "bool")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_it_compiles_for_aarch64(dtype: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon", 128, 32)
    module = Module(target)
    for require in KINDS.values():
        require(module, dtype)
    parsed = llvm.parse_assembly(module.to_text())
    parsed.verify()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1
    )
    assert "sg_conv_grad_weight" in machine.emit_assembly(parsed)


def test_no_function_is_called_from_outside_but_intrinsics() -> None:
    declared = [line for line in compiled().text.splitlines() if line.startswith("declare")]
    assert declared and all("@llvm." in line for line in declared)
