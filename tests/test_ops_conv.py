"""Convolution, pooling and the training switch: records, gradients, geometry, errors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim, substitute
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    BindError,
    DTypeError,
    GraphError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ir.graph import Graph
from staticgrad.nn import functional as F
from staticgrad.ops import pooling
from staticgrad.ops.conv import conv, conv_transpose
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter
from staticgrad.ops.mode import state_updates, training_switch
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import apply, get

from .oracle import check_gradient, check_record, declared, evaluate

CONVOLUTIONS = ("conv", "conv_grad_input", "conv_grad_weight")
POOLS = ("max_pool", "max_pool_grad", "max_pool_take", "sum_pool", "sum_pool_grad", "windows",
         "windows_sum")  # fmt: skip


@pytest.mark.parametrize("name", (*CONVOLUTIONS, *POOLS, "window_elements", "training_switch"))
def test_record(name: str) -> None:
    check_record(get(name))


@pytest.mark.parametrize("name", (*CONVOLUTIONS, *POOLS, "training_switch"))
def test_gradient(name: str) -> None:
    # Convolutions are bilinear: every order of derivative leads back to one of the three.
    check_gradient(get(name), order=3 if name in CONVOLUTIONS else 2)


def direct_conv(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """The definition, element by element."""
    n, c, height, width = x.shape
    o, _, kh, kw = w.shape
    out = [
        (size + sum(p) - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((height, width), (kh, kw), stride, padding, dilation)
    ]
    y = np.zeros((n, o, *out))
    for b, f, i, j in np.ndindex(*y.shape):
        for ch, a, e in itertools.product(range(c // groups), range(kh), range(kw)):
            row = i * stride[0] - padding[0][0] + a * dilation[0]
            col = j * stride[1] - padding[1][0] + e * dilation[1]
            if 0 <= row < height and 0 <= col < width:
                channel = f // (o // groups) * (c // groups) + ch
                y[b, f, i, j] += x[b, channel, row, col] * w[f, ch, a, e]
    return y


@pytest.mark.parametrize(
    "stride, padding, dilation, groups",
    [
        ((1, 1), ((0, 0), (0, 0)), (1, 1), 1),
        ((2, 3), ((1, 0), (2, 1)), (1, 1), 2),
        ((1, 2), ((2, 2), (0, 1)), (2, 1), 4),
    ],
)
def test_conv_is_its_definition(stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6, 7)), rng.standard_normal((4, 4 // groups, 3, 2))
    inputs = declared([x, w])
    y = conv(*inputs, stride=stride, padding=padding, dilation=dilation, groups=groups)
    (found,) = evaluate([y], inputs, [x, w])
    expected = direct_conv(x, w, stride, padding, dilation, groups)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_symbolic_sizes() -> None:
    x = declare("x", ("N", 3, "H", "2*W"), "float64")
    w = declare("w", (4, 3, 3, 3), "float64")
    y = F.conv2d(x, w, stride=2, padding=1)
    height, width = y.shape[2:]
    for size in (1, 2, 5, 8):
        dims = {"H": size, "W": size}
        assert substitute(height, dims) == (size + 2 - 3) // 2 + 1
        assert substitute(width, dims) == (2 * size + 2 - 3) // 2 + 1
    assert F.conv2d(x, w, padding="same").shape == (x.shape[0], 4, *x.shape[2:])
    assert F.max_pool2d(x, 2).shape[3] == Dim.symbol("W")
    x = declare("x", ("N", 3, "H", "W"), "float64")
    loss = reduce_sum(F.max_pool2d(F.conv2d(x, w, padding=1), 2))
    gx, gw = gradients(loss, [x, w])
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((4, 3, 3, 3))]
    symbolic = evaluate([loss, gx, gw], [x, w], arrays)
    fixed = declared(arrays)
    again = reduce_sum(F.max_pool2d(F.conv2d(*fixed, padding=1), 2))
    expected = evaluate([again, *gradients(again, fixed)], fixed, arrays)
    for a, b in zip(symbolic, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_windows_that_do_not_fit_fail_the_call() -> None:
    x, w = declare("x", ("N", 1, "H", 6), "float64"), np.ones((1, 1, 4, 3))
    for y in (F.conv2d(x, w).sum(), F.max_pool2d(x, 4).sum(), F.avg_pool2d(x, 4).sum()):
        for mode in ("native", "reference"):
            program = sg.compile([x], y, mode=mode)
            program(np.ones((1, 1, 4, 6)))
            for size in (0, 2, 3):
                with pytest.raises(BindError, match="a window over 4 elements does not fit"):
                    program(np.ones((1, 1, size, 6)))
    assert not F.conv2d(x, np.ones((1, 1, 3, 3)), padding=2).node.constraints


def test_conv_errors() -> None:
    x, w = declare("x", (2, 4, 8, 8)), declare("w", (6, 2, 3, 3))
    with pytest.raises(ShapeError, match="channels"):
        F.conv2d(x, w)
    with pytest.raises(ShapeError, match="groups"):
        F.conv2d(declare("x", (2, 8, 8, 8)), w, groups=4)
    with pytest.raises(ShapeError, match="reaches over 17"):
        F.conv2d(x, w, groups=2, dilation=8)
    with pytest.raises(ArgumentError, match="stride"):
        F.conv2d(x, w, groups=2, stride=0)
    with pytest.raises(ArgumentError, match="padding must be at least 0"):
        F.conv2d(x, w, groups=2, padding=-1)
    with pytest.raises(ArgumentError, match="same"):
        F.conv2d(x, w, groups=2, padding="same", stride=2)
    with pytest.raises(ArgumentError, match="valid"):
        F.conv2d(x, w, groups=2, padding="full")
    with pytest.raises(ShapeError, match=r"\[N, C, H, W\]"):
        F.conv2d(declare("x", (8, 8)), w)
    with pytest.raises(ShapeError, match="weight of 3 dims"):
        F.conv1d(declare("x", (2, 4, 8)), w)
    with pytest.raises(ArgumentTypeError, match="stride"):
        F.conv2d(x, w, groups=2, stride=1.5)
    with pytest.raises(ShapeError, match="stride"):
        F.conv2d(x, w, groups=2, stride=(1, 2, 3))
    with pytest.raises(ShapeError, match="bias"):
        F.conv2d(x, w, np.zeros((6, 1), "float32"), groups=2)
    with pytest.raises(DTypeError, match="numbers"):
        flags = declare("m", (2, 4, 8, 8), "bool")
        F.conv2d(flags, declare("k", (6, 4, 3, 3), "bool"))
    with pytest.raises(UnsupportedError, match="1 and 2 dimensions"):
        volume, kernel = declare("v", (1, 1, 4, 4, 4)), declare("k", (1, 1, 2, 2, 2))
        ones = (1, 1, 1)
        conv(volume, kernel, stride=ones, padding=((0, 0),) * 3, dilation=ones)
    with pytest.raises(ArgumentError, match="output_padding"):
        F.conv_transpose2d(declare("x", (1, 6, 4, 4)), w, stride=2, output_padding=2)
    with pytest.raises(ShapeError, match="result over"):
        conv_transpose(
            declare("x", (1, 6, 4, 4)), w, stride=(1, 1), padding=((0, 0), (0, 0)),
            dilation=(1, 1), spatial=(9, 9),
        )  # fmt: skip


def test_max_pool_takes_the_first_of_equals_and_keeps_nan() -> None:
    x = np.array([[[[3.0, 3.0, 1.0, 2.0], [3.0, 0.0, 2.0, np.nan]]]])
    (declared_x,) = declared([x])
    y = F.max_pool2d(declared_x, 2)
    value, gradient = evaluate([y, gradients(reduce_sum(y), declared_x)], [declared_x], [x])
    np.testing.assert_array_equal(value, [[[[3.0, np.nan]]]])
    np.testing.assert_array_equal(gradient, [[[[1, 0, 0, 0], [0, 0, 0, 1]]]])


def test_integers_are_pooled() -> None:
    x = np.array([[[[-5, -7], [-6, -8]]]], "int8")
    (declared_x,) = declared([x])
    y = F.max_pool2d(declared_x, 2, stride=1, padding=1)
    (found,) = evaluate([y], [declared_x], [x])
    np.testing.assert_array_equal(found[0, 0], [[-5, -5, -7], [-5, -5, -7], [-6, -6, -8]])


def test_windows_are_numpys() -> None:
    x = np.arange(2 * 5 * 6, dtype=np.float32).reshape(1, 2, 5, 6)
    (declared_x,) = declared([x])
    w = pooling.windows(declared_x, kernel=(3, 2), stride=(2, 1))
    (found,) = evaluate([w], [declared_x], [x])
    expected = np.lib.stride_tricks.sliding_window_view(x, (3, 2), (2, 3))[:, :, ::2]
    np.testing.assert_array_equal(found, expected)
    back = pooling.windows_sum(w, spatial=(5, 6), stride=(2, 1))
    ones = evaluate([back], [declared_x], [np.ones_like(x)])[0][0, 0]
    np.testing.assert_array_equal(ones[:, 0], [1, 1, 2, 1, 1])
    np.testing.assert_array_equal(ones[0], [1, 2, 2, 2, 2, 1])


def test_pooling_errors() -> None:
    x = declare("x", (2, 3, 8, 8))
    with pytest.raises(ArgumentError, match="half of the window"):
        F.max_pool2d(x, 2, padding=2)
    with pytest.raises(ShapeError, match="reaches over 9"):
        F.max_pool2d(x, 9)
    with pytest.raises(ArgumentError, match="at least 1"):
        F.avg_pool2d(x, 0)
    with pytest.raises(DTypeError, match="floating"):
        F.avg_pool2d(declare("i", (2, 3, 8, 8), "int32"), 2)
    with pytest.raises(DTypeError, match="numbers"):
        F.max_pool2d(declare("b", (2, 3, 8, 8), "bool"), 2)
    with pytest.raises(UnsupportedError, match="return_indices"):
        F.max_pool2d(x, 2, return_indices=True)
    with pytest.raises(ShapeError, match=r"\[N, C, L\]"):
        F.max_pool1d(x, 2)
    with pytest.raises(ArgumentError, match="divisor"):
        F.avg_pool2d(x, 2, divisor_override=0)
    with pytest.raises(ShapeError, match="symbolic size"):
        F.adaptive_avg_pool2d(declare("x", (2, 3, "H", 8)), 2)
    with pytest.raises(UnsupportedError, match="multiples"):
        F.adaptive_max_pool2d(x, 3)
    with pytest.raises(ArgumentError, match="pad the operand"):
        apply("windows", x, kernel=(2, 2), stride=(1, 1), padding=((1, 1), (0, 0)),
              dilation=(1, 1), ceil_mode=False)  # fmt: skip


# --- the training switch --------------------------------------------------------------------------


def test_switch_is_evaluation_unless_bound() -> None:
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    x, y = declared([a, b])
    open_, fixed = training_switch(x, y), training_switch(x, y, training=True)
    assert training_switch(x, y, training=False) is y
    assert fixed is x
    gx, gy = gradients(reduce_sum(open_), [x, y])
    value, to_x, to_y = evaluate([open_, gx, gy], [x, y], [a, b])
    np.testing.assert_array_equal(value, b)
    np.testing.assert_array_equal(to_x, [0, 0])
    np.testing.assert_array_equal(to_y, [1, 1])


def test_updates_of_a_switch() -> None:
    state = parameter(np.array(2.0), "s", trainable=False)
    x = declare("x", (3,), "float64")
    y = training_switch(x, x * 0.0, [(state, state + 1.0)])
    assert state_updates([y], training=False) == []
    ((found, new),) = state_updates([y * 2.0], training=True)
    assert found is state
    assert evaluate([new], [], [])[0] == 3.0
    z = training_switch(y, y, [(state, state * 10.0)])  # a second call of the layer
    ((_, new),) = state_updates([z], training=True)
    assert evaluate([new], [], [])[0] == 30.0
    fixed = training_switch(x, x, [(state, state + 5.0)], training=True)
    assert len(state_updates([fixed], training=False)) == 1


def test_new_values_of_a_second_call_leave_the_layers_between_alone() -> None:
    state = parameter(np.array(2.0), "s", trainable=False)
    x = declare("x", (), "float64")
    first = training_switch(x * 2.0, x + state, [(state, state + x)])
    second = training_switch(first, first + state, [(state, state + first)])
    updates = state_updates([second], training=True)
    graph = Graph([x], [second], updates)
    assert sum(node.op == "training_switch" for node in graph) == 2
    _, new = run_graph(graph, [np.array(5.0)])
    assert new[state] == 2.0 + 5.0 + (5.0 + 2.0)  # here the switch reads its evaluation


def test_switch_errors() -> None:
    x = declare("x", (3,))
    with pytest.raises(ArgumentTypeError, match="only state"):
        training_switch(x, x, [(x, x)])
    with pytest.raises(ShapeError, match="one shape"):
        training_switch(x, declare("y", (2,)))
    with pytest.raises(ShapeError, match="one shape"):
        training_switch(x, declare("y", (3, 1)))
    with pytest.raises(GraphError, match="3 operands"):
        apply("training_switch", x, x, x, training=None)
    with pytest.raises(DTypeError, match="one dtype"):
        apply("training_switch", x, declare("y", (3,), "int32"), training=None)
