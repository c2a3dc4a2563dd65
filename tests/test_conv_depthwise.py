"""Depthwise convolution against loops in float64: windows, bits, bounds, what functions share."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.codegen.builder import Module
from staticgrad.codegen.conv_depthwise_window import depthwise_lanes, depthwise_window
from staticgrad.codegen.gemm_emit import Element
from staticgrad.codegen.target import Target, host_target

from tests.test_conv_kernels import (
    DEPTHWISE_KINDS,
    KINDS,
    Geometry,
    check,
    check_alone,
    check_bounds,
    check_epilogue,
    check_split,
    compiled_for,
    narrowed,
    random_operands,
    without_masks,
)


def depthwise(
    n: int, c: int, h: int, w: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1),
    pad: tuple[int, int, int, int] = (0, 0, 0, 0), dilation: tuple[int, int] = (1, 1),
) -> Geometry:  # fmt: skip
    return Geometry(n, c, h, w, c, *kernel, stride, pad, dilation, c)


WINDOWS = [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1), (3, 5), (2, 4), (9, 2), (1, 31)]
STRIDES = [(1, 1), (2, 2), (3, 3), (1, 2), (3, 1), (2, 4)]

# Rows in fours and a rest, images of fewer rows than that or than the window, of one row or column,
# several vectors and less than one, several stretches of columns, several bands of rows; padding on
# each side, none, more than the window; dilation that shares a factor with the stride or not.
OTHERS = {
    "rows_left": depthwise(2, 3, 18, 37, (5, 5), pad=(2, 2, 2, 2)),
    "low_padding": depthwise(1, 3, 8, 33, (5, 3), pad=(2, 0, 0, 2)),
    "other_padding": depthwise(2, 2, 11, 16, (5, 3), (2, 1), pad=(0, 2, 2, 0)),
    "much_padding": depthwise(1, 2, 2, 50, (3, 3), pad=(4, 4, 4, 4)),
    "one_pixel": depthwise(2, 1, 1, 1, (3, 3), pad=(1, 1, 1, 1)),
    "one_pixel_strided": depthwise(2, 1, 1, 1, (3, 3), (2, 2), pad=(1, 1, 1, 1)),
    "one_row": depthwise(3, 2, 1, 70, (1, 5), (1, 1), pad=(0, 2, 0, 2)),
    "one_row_of_tall_windows": depthwise(3, 2, 1, 70, (3, 5), (1, 1), pad=(1, 2, 1, 2)),
    "one_row_strided": depthwise(2, 2, 1, 95, (1, 4), (1, 2), pad=(0, 1, 0, 2)),
    "one_long_row": depthwise(2, 2, 1, 1100, (1, 5), (1, 1), pad=(0, 2, 0, 2)),
    "one_row_left": depthwise(2, 2, 7, 70, (7, 5), (1, 1), pad=(0, 2, 0, 2)),
    "one_column": depthwise(2, 2, 33, 1, (5, 1), (2, 3), pad=(2, 0, 2, 0)),
    "narrow": depthwise(2, 3, 7, 7, (7, 7), pad=(3, 3, 3, 3)),
    "narrower_than_the_window": depthwise(1, 2, 17, 2, (3, 7), pad=(1, 3, 1, 3)),
    "smaller_than_the_window": depthwise(1, 2, 3, 2, (5, 7), pad=(3, 4, 3, 4)),
    "several_stretches": depthwise(1, 1, 5, 2100, (3, 3), pad=(1, 1, 1, 1)),
    "several_stretches_strided": depthwise(2, 1, 5, 1300, (3, 4), (2, 2), pad=(1, 1, 1, 1)),
    "several_bands": depthwise(2, 1, 61, 300, (5, 5), pad=(2, 2, 2, 2)),
    "several_bands_strided": depthwise(2, 1, 150, 200, (3, 3), (2, 2), pad=(1, 1, 1, 1)),
    "dilated": depthwise(2, 4, 9, 40, (3, 3), pad=(2, 3, 2, 3), dilation=(2, 3)),
    "dilated_by_the_stride": depthwise(2, 3, 15, 36, (3, 3), (2, 2), (2, 2, 2, 2), (2, 2)),
    "dilated_by_twice_the_stride": depthwise(1, 2, 27, 45, (3, 3), (3, 2), (5, 4, 5, 4), (6, 4)),
    "dilated_across_the_stride": depthwise(1, 2, 27, 45, (3, 5), (2, 3), (3, 4, 3, 4), (3, 2)),
    "far_apart": depthwise(1, 2, 40, 40, (3, 3), pad=(18, 18, 18, 18), dilation=(18, 18)),
    "windows_apart": depthwise(2, 2, 14, 15, (2, 1), (3, 4), pad=(0, 1, 0, 0)),
    "tall": depthwise(1, 2, 60, 5, (31, 4), pad=(1, 0, 1, 1)),
    "broad": depthwise(1, 2, 3, 90, (2, 41), pad=(0, 4, 0, 4)),
    "no_image": depthwise(0, 3, 9, 9, (5, 5), pad=(2, 2, 2, 2)),
    "no_row": depthwise(2, 3, 2, 9, (3, 3)),
    "no_column": depthwise(2, 3, 9, 2, (3, 3)),
    "no_pixel": depthwise(2, 3, 0, 5, (3, 3), pad=(2, 1, 2, 1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", STRIDES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_agree_with_loops_in_float64(
    window: tuple[int, int], stride: tuple[int, int], kind: str
) -> None:
    high, wide = ((k - 1) // 2 for k in window)
    geometry = depthwise(2, 2, 14, 35, window, stride, (high, wide, high + 1, wide))
    check(kind, geometry, "float64" if sum(window) % 4 else "float32", depthwise=True)


GROUPS = {
    f"{group[0]}_to_{group[1]}_channels": Geometry(
        2, 2 * group[0], 11, 37, 2 * group[1], *window, stride, (2, 1, 1, 2), dilation, 2
    )
    for group, window, stride, dilation in (
        ((4, 4), (3, 3), (1, 1), (1, 1)), ((8, 8), (3, 3), (2, 2), (1, 1)),
        ((1, 2), (5, 5), (1, 1), (1, 1)), ((2, 1), (7, 3), (1, 2), (1, 1)),
        ((3, 5), (9, 2), (2, 1), (1, 2)), ((1, 8), (1, 1), (1, 1), (1, 1)),
        ((8, 1), (2, 2), (3, 3), (2, 1)), ((1, 18), (5, 3), (2, 1), (1, 1)),
        ((21, 2), (3, 3), (1, 1), (1, 1)),
    )
}  # fmt: skip
GROUPS |= {
    "one_group": Geometry(2, 3, 9, 20, 3, 3, 3, pad=(1, 1, 1, 1)),
    "groups_of_one_row": Geometry(2, 6, 1, 90, 8, 1, 5, pad=(0, 2, 0, 2), groups=2),
    "groups_in_bands": Geometry(1, 8, 41, 130, 8, 3, 3, pad=(1, 1, 1, 1), groups=2),
    "narrow_groups": Geometry(3, 8, 7, 7, 8, 3, 3, pad=(1, 1, 1, 1), groups=2),
}
OTHERS |= GROUPS


BITS = ("rows_left", "low_padding", "one_row", "one_long_row", "narrow", "several_bands_strided",
        "several_stretches_strided", "dilated_across_the_stride", "windows_apart",
        *GROUPS,
        "no_pixel")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHERS)
def test_geometries_agree_with_loops_in_float64(name: str, kind: str) -> None:
    for dtype in ("float32", "float64"):
        check(kind, OTHERS[name], dtype, depthwise=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_random_geometries_agree_with_loops_in_float64(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> tuple[int, int]:
        first, second = rng.integers(low, high, 2)
        return int(first), int(second)

    kernel, stride, dilation = draw(1, 8), draw(1, 4), draw(1, 4)
    h, w = (int(rng.integers(1, 40)) + d * (k - 1) for d, k in zip(dilation, kernel))
    pad = (*draw(0, 4), *draw(0, 4))
    check(kind, depthwise(2, 3, h, w, kernel, stride, pad, dilation), depthwise=True)


@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes_and_targets(kind: str) -> None:
    for name, geometry in OTHERS.items():
        check(kind, geometry, target=narrowed(256), depthwise=True)
        if name in BITS:
            check(kind, geometry, "int32", depthwise=True)
    for name in ("rows_left", "several_stretches_strided", "one_row_strided"):
        for dtype in ("int8", "uint16", "int64"):
            check(kind, OTHERS[name], dtype, depthwise=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BITS)
def test_a_split_changes_no_bit(name: str, kind: str) -> None:
    geometry = dataclasses.replace(OTHERS[name], n=7)
    check_split(compiled_for(geometry), kind, geometry)


@pytest.mark.parametrize("kind", ["forward", "grad_input"])
@pytest.mark.parametrize("name", BITS)
def test_an_image_alone_has_the_bits_it_has_in_a_batch(name: str, kind: str) -> None:
    geometry = dataclasses.replace(OTHERS[name], n=3)
    check_alone(compiled_for(geometry), kind, geometry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHERS)
def test_the_epilogue_gets_each_finished_element_once(name: str, kind: str) -> None:
    check_epilogue(compiled_for(OTHERS[name]), kind, OTHERS[name])


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_of_the_operands_is_touched(kind: str, at_end: bool) -> None:
    for target in (host_target(), narrowed(256)):
        for geometry in OTHERS.values():
            check_bounds(compiled_for(geometry, "float32", target), kind, geometry, at_end)


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_plane_left_in_the_workspace_changes_no_bit(kind: str) -> None:
    """Planes, and passes of them, follow one another in one workspace."""
    for name in ("rows_left", "several_bands", "dilated_across_the_stride"):
        geometry = dataclasses.replace(OTHERS[name], n=1)
        operands = random_operands(geometry, "float32")
        functions = compiled_for(geometry)
        whole = functions.result(kind, geometry, operands)
        one = dataclasses.replace(geometry, c=1, o=1, groups=1)
        for c in range(geometry.c):
            alone = [a[:, c : c + 1] for a in operands]
            alone[1] = operands[1][c : c + 1]
            got = functions.result(kind, one, [np.ascontiguousarray(a) for a in alone])
            part = whole[c : c + 1] if kind == "grad_weight" else whole[:, c : c + 1]
            assert got.tobytes() == part.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_halved_vectors_give_the_same_bits(dtype: str, kind: str) -> None:
    lanes = Element.of(dtype, host_target()).lanes // 2
    narrow = {name: g for name, g in OTHERS.items() if 0 < g.out[1] <= lanes}
    assert len(narrow) >= 6
    for name, geometry in narrow.items():
        whole = compiled_for(geometry, dtype)
        halved = compiled_for(geometry, dtype, lanes=lanes)
        operands = random_operands(geometry, dtype)
        # Negative zeros come from products too small for the dtype: a vector must not clear them.
        for scale in (1, 1e-30) if dtype == "float32" else (1,):
            given = [(a * scale).astype(dtype) for a in operands]
            found = [f.result(kind, geometry, given).tobytes() for f in (whole, halved)]
            assert found[0] == found[1], name
        check_bounds(halved, kind, geometry, at_end=True)


def test_rows_that_half_a_vector_holds_have_halved_ones() -> None:
    wide = dataclasses.replace(host_target(), vector_bits=512, vector_registers=32)
    window = (7, 7, 1, 1, 1, 1)

    def lanes(dtype: str, width: Any, target: Target = wide) -> int:
        return depthwise_lanes(target, dtype, window, width)

    assert lanes("float32", 8) == 8 and lanes("float64", 3) == 4
    assert lanes("float32", 9) == 0 and lanes("float32", sg.Dim("W")) == 0
    assert lanes("float32", 4, narrowed(256)) == 0


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "window"),
    [
        ((3, 3), (1, 1), (1, 1), (3, 3, 1, 1, 1, 1, 1, 1)),
        ((31,), (2,), (4,), (1, 31, 1, 2, 1, 4, 1, 1)),  # of one dim
        ((5, 4), (3, 2), (2, 1), (5, 4, 3, 2, 2, 1, 1, 1)),
        ((33, 1), (1, 1), (1, 1), ()),  # too much text
        ((30, 40), (1, 1), (1, 1), ()),  # too many taps
        ((3, 3), (1, 1), (200, 200), ()),  # no plane has room for what a row reads
        ((3, 3), (1, 5), (1, 1), ()),  # too many phases
    ],
    ids=str,
)  # fmt: skip
def test_windows_with_functions_of_their_own(
    kernel: Any, stride: Any, dilation: Any, window: Any
) -> None:
    wide = dataclasses.replace(host_target(), vector_bits=512, vector_registers=32)
    assert depthwise_window(wide, "float32", kernel, stride, dilation) == window
    assert depthwise_window(without_masks(), "float32", kernel, stride, dilation) == ()


@pytest.mark.parametrize("weight", [False, True])
def test_groups_of_few_channels_have_functions_of_their_own(weight: bool) -> None:
    def window(*group: Any) -> tuple[int, ...]:
        return depthwise_window(host_target(), "float32", (3, 3), (1, 1), (1, 1), group, weight)

    assert window(4, 8) == (3, 3, 1, 1, 1, 1, 4, 8)
    assert window(3, 16) and window(16, 3)
    assert window(9, 5) == window(1, 65) == window(sg.Dim("C"), 1) == window(0, 1) == ()
    assert bool(window(8, 8)) != weight and bool(window(3, 32)) != weight


def functions_of(*windows: tuple[int, int], stride: int = 1) -> dict[str, str]:
    module = Module(host_target())
    for window in windows:
        for require in DEPTHWISE_KINDS.values():
            require(module, "float32", (*window, stride, stride, 1, 1))
    return dict(module.functions)


def test_windows_of_one_height_share_the_function_of_their_rows() -> None:
    rows = [name for name in functions_of((3, 3), (3, 5), (3, 7)) if "_rows_" in name]
    assert rows == ["sg_conv_depthwise_rows_3_1_1_1_float32"]


def test_the_text_grows_with_the_windows_height_alone() -> None:
    """It decides the time that LLVM takes."""

    def length(window: tuple[int, int], part: str) -> int:
        return sum(len(text) for name, text in functions_of(window).items() if part in name)

    assert length((7, 7), "_rows_") == length((7, 3), "_rows_") <= 2.5 * length((3, 3), "_rows_")
    # Several columns of weights are summed at a time, at most as many as have registers.
    assert length((7, 7), "_taps_") <= 2.5 * length((3, 3), "_taps_")
    assert length((1, 768), "_taps_") <= length((1, 31), "_taps_") <= 2.5 * length((3, 3), "_taps_")


def test_no_other_function_of_convolution_is_needed() -> None:
    names = functions_of((3, 3), (7, 7), stride=2)
    others = [name for name in names if "depthwise" not in name]
    assert others == ["sg_conv_phase_float32"]


def test_windows_of_several_kinds_in_one_program() -> None:
    conv2d = sg.nn.functional.conv2d
    x = sg.input("x", (2, 4, 9, 9), dtype="float64")
    rng = np.random.default_rng(0)
    sizes = (3, 3, 5)
    ws = [
        sg.parameter(rng.standard_normal((4, 1, n, n)), name=f"w{i}") for i, n in enumerate(sizes)
    ]
    y = conv2d(x, ws[0], padding=1, groups=4)
    y = conv2d(y, ws[1], stride=2, padding=1, groups=4)
    y = conv2d(y, ws[2], padding=2, groups=4)
    outputs = sg.gradients(sg.sum(y * y), ws)
    array = rng.standard_normal((2, 4, 9, 9))
    found = sg.compile([x], outputs)(array)
    for g, expected in zip(found, sg.compile([x], outputs, mode="reference")(array)):
        np.testing.assert_allclose(g, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [7, 14, 33])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("group", [(1, 1), (3, 4)], ids=str)
def test_neither_threads_nor_symbolic_sizes_change_a_bit(
    group: tuple[int, int], stride: int, kernel: int, size: int
) -> None:
    rng = np.random.default_rng(0)
    c, o = (5 * channels for channels in group)
    shapes = (3, c, size, size), (o, group[0], kernel, kernel)
    arrays = [rng.standard_normal(s).astype("float32") for s in shapes]
    found = []
    for shape, threads in (
        ((3, c, size, size), 1), ((3, c, size, size), 2), (("N", c, "H", "W"), 1),
        (("N", c, "H", size), 2), ((3, c, size, "W"), 2),
    ):  # fmt: skip
        x, w = sg.input("x", shape), sg.input("w", shapes[1])
        y = sg.nn.functional.conv2d(x, w, stride=stride, padding=kernel // 2, groups=5)
        outputs = [y, *sg.gradients(sg.sum(y * y), [x, w])]
        results = sg.compile([x, w], outputs, threads=threads)(*arrays)
        found.append(b"".join(np.ascontiguousarray(r).tobytes() for r in results))
    assert len(set(found)) == 1
