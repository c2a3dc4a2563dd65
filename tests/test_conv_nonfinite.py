"""Where a NaN or an infinity gets to: what a convolution makes of it depends on no tile, no vector
and no block, but on the geometry alone. The oracle are the records' references: an element times
the zeros of the padding counts, as it does there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.codegen.target import host_target
from staticgrad.ops.conv import reference_grad_input, reference_grad_weight
from staticgrad.ops.registry import apply, get

from .test_conv_kernels import (
    GEOMETRIES,
    Array,
    Compiled,
    Geometry,
    compiled,
    compiled_for,
    narrowed,
    random_operands,
    without_masks,
)

# Sizes are chosen so that the last vectors, rows in fours, tiles and blocks are partly filled.
PLACES: dict[str, Geometry] = {
    **{name: GEOMETRIES[name] for name in (
        "plain", "strided", "strides_differ", "stride_3_dilation_2", "dilated",
        "asymmetric_padding", "shared_rows", "shared_rows_stride_w", "two_groups", "depthwise",
        "depthwise_dilated", "depthwise_stride_2", "one_by_one_strided", "one_dimension",
        "one_dimension_strided", "stride_over_kernel", "kernel_over_image",
    )},
    "rows_not_read": Geometry(2, 3, 10, 21, 3, 2, 3, (1, 1), (0, 1, 0, 1), groups=3),
    "depthwise_six_rows": Geometry(2, 2, 8, 18, 2, 3, 3, groups=2),
    "depthwise_one_dimension": Geometry(3, 3, 1, 37, 3, 1, 4, (1, 2), (0, 1, 0, 2), groups=3),
    "last_row_skipped": Geometry(2, 4, 10, 20, 18, 3, 3, stride=(2, 2)),
}  # fmt: skip
# What a kind reads: the image, or the gradient of the output. (A weight that is NaN times what
# lies outside of an image is nothing that the two definitions of padding agree about.)
READ = [("forward", 0), ("grad_input", 2), ("grad_weight", 0), ("grad_weight", 2)]


def reference(kind: str, g: Geometry, operands: list[Array]) -> Array:
    """The record's own, in float64."""
    top, left, bottom, right = g.pad
    high, wide = g.out
    # The record takes the high padding from the sizes; here it may be more than windows need.
    attrs: dict[str, Any] = {"stride": g.stride, "dilation": g.dilation, "groups": g.groups,
                             "padding": ((top, bottom), (left, right))}  # fmt: skip
    x, w, y = (a.astype("float64") for a in operands)
    assert y.shape[2:] == (high, wide)
    with np.errstate(invalid="ignore"):
        if kind == "forward":
            return np.asarray(get("conv").reference(x, w, **attrs))
        if kind == "grad_input":
            return reference_grad_input(y, w, **attrs, spatial=x.shape[2:])
        return reference_grad_weight(x, y, **attrs, kernel=w.shape[2:])


def places(array: Array, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """The corners of the last image's last channel, and two elements anywhere."""
    n, c = array.shape[0] - 1, array.shape[1] - 1
    corners = [(n, c, i, j) for i in (0, array.shape[2] - 1) for j in (0, array.shape[3] - 1)]
    drawn = [tuple(int(rng.integers(extent)) for extent in array.shape) for _ in range(2)]
    return [*corners, *drawn]


def check(functions: Compiled, kind: str, operand: int, geometry: Geometry, dtype: str) -> None:
    operands = random_operands(geometry, dtype)
    rng = np.random.default_rng(1)
    for place, value in zip(places(operands[operand], rng), (np.nan, np.inf, -np.inf) * 2):
        given = [a.copy() for a in operands]
        given[operand][place] = value
        got = functions.result(kind, geometry, given)
        wanted = reference(kind, geometry, given)
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted), str(place))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted), str(place))


@pytest.mark.parametrize(("kind", "operand"), READ)
@pytest.mark.parametrize("way", ["channels", "positions"])
def test_it_gets_to_what_depends_on_it(way: str, kind: str, operand: int) -> None:
    functions = compiled("float32", wide=way != "positions")
    for geometry in PLACES.values():
        check(functions, kind, operand, geometry, "float32")


@pytest.mark.parametrize(("kind", "operand"), READ)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nor_does_it_depend_on_the_window(dtype: str, kind: str, operand: int) -> None:
    strided = Geometry(2, 5, 12, 9, 5, 3, 3, (2, 2), (1, 1, 1, 1), groups=5)
    depthwise = [g for g in PLACES.values() if g.groups == g.c == g.o]
    assert len(depthwise) >= 6
    for geometry in (strided, *depthwise):
        for target in (host_target(), narrowed(256)):
            check(compiled_for(geometry, dtype, target), kind, operand, geometry, dtype)


@pytest.mark.parametrize(("kind", "operand"), READ)
def test_nor_does_it_depend_on_the_vectors(kind: str, operand: int) -> None:
    for target in (narrowed(256), without_masks()):
        for name in ("strided", "shared_rows", "depthwise", "depthwise_six_rows", "rows_not_read"):
            check(compiled("float64", target), kind, operand, PLACES[name], "float64")


@pytest.mark.parametrize("name", ["conv_grad_weight_pooled", "conv_grad_input_pooled"])
def test_behind_pooling(name: str) -> None:
    """The gradient of what is no maximum is skipped, so an infinity that would meet it is too:
    what depends on an element is then told by ones."""
    record = get(name)
    for sample in record.samples():
        arrays = [np.array(a) for a in sample.operands]
        if any(a.size == 0 for a in arrays) or arrays[0].dtype == "float64":
            continue
        operands = [sg.input(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
        function = sg.compile(operands, [apply(name, *operands, **sample.attrs)])
        for which in (0, 1) if name == "conv_grad_weight_pooled" else (0,):
            for place in places(arrays[which], np.random.default_rng(2)):
                given = [a.copy() for a in arrays]
                given[which][place] = np.inf
                ones = [np.ones_like(a) if a.dtype.kind == "f" else a for a in arrays]
                ones[which] = np.isinf(given[which]).astype("float32")
                wanted = np.asarray(record.reference(*ones, **sample.attrs)) == 0
                if name == "conv_grad_weight_pooled" and which == 1:
                    # Times the zeros of the padding too, as ever: all taps of that channel.
                    wanted[place[1]] = False
                (got,) = function(*given)
                np.testing.assert_array_equal(np.isfinite(got), wanted, str(place))
