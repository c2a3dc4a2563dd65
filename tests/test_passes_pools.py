"""simplify's rules about max pooling: the same bits before and after, and what is swept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.dim import product
from staticgrad.ir.graph import Graph
from staticgrad.nn import functional as F
from staticgrad.passes.canonicalize import canonicalize
from staticgrad.passes.simplify import simplify

from .pass_checks import assert_close, assert_same_bits, run, verified

WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
]


def graph_of(window: dict[str, Any], n: Any = "N") -> Graph:
    """x and w -> the gradient of what precedes the relu, and of a bias before it."""
    x, w = sg.input("x", (n, 2, 9, 8)), sg.input("w", (2, 1, 1))
    z = x + w
    y = F.max_pool2d(sg.relu(z), **window)
    return Graph([x, w], sg.gradients(sg.sum(y * y), [z, w]))


def arrays(n: int = 3) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (n, 2, 9, 8)).astype("float32")  # many ties, windows without a positive
    x.flat[:4] = np.nan, np.inf, -np.inf, -0.0
    x[1:2, 1] = -1.0
    return [x, np.array([0.0, -1.0], "float32").reshape(2, 1, 1)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_the_mask_of_a_relu_moves_behind_the_pool(window: dict[str, Any]) -> None:
    before = canonicalize(graph_of(window))
    after = verified(simplify(before))
    assert simplify(after) is after, "not idempotent"
    n, c, *windows = next(n for n in after.nodes if n.op == "max_pool").types[0].shape
    rows = (n, c, product(windows))
    assert [n.types[0].shape for n in after.nodes if n.op in ("where", "greater")] == [rows] * 2
    for n in (3, 0):
        got, expected = run(after, arrays(n)), run(before, arrays(n))
        assert_same_bits(got[:1], expected[:1])
        assert_close(got[1:], expected[1:], "bias")


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_bias_of_a_convolution_adds_up_windows(window: dict[str, Any]) -> None:
    x, w, b = sg.input("x", ("N", 2, 9, 8)), sg.input("w", (3, 2, 3, 3)), sg.input("b", (3,))
    y = F.max_pool2d(sg.relu(F.conv2d(x, w, b, padding=1)), **window)
    before = canonicalize(Graph([x, w, b], sg.gradients(sg.sum(y * y), [w, b])))
    after = verified(simplify(before))
    assert simplify(after) is after, "not idempotent"
    (total,) = (n for n in after.nodes if n.op == "sum")
    # Where windows may hold padding, one of them may hold nothing else. Else planes are rows.
    padded = window.get("padding") or window.get("ceil_mode")
    assert total.operands[0].node.op == ("max_pool_grad" if padded else "where")
    assert total.operands[0].ndim == (4 if padded else 3)
    images, weight, bias = inputs(2)
    given = [images[..., :9, :8], weight[:3], bias[:3]]
    assert_close(run(after, given), run(before, given), str(window))


def test_the_noise_behind_a_batch_norm_stays_what_it_is() -> None:
    x, b = sg.input("x", ("N", 2, 9, 8)), sg.input("b", (2, 1, 1))
    ones = sg.constant(np.ones(2, "float32"))
    y = F.max_pool2d(sg.relu(F.batch_norm(x + b, None, None, ones, ones, True)), 2)
    graph = Graph([x, b], sg.gradients(sg.sum(y * y), [b]))
    given = [arrays()[0][1:], arrays()[1]]  # the finite images
    kept = compiled(graph, disable=["simplify"])(*given)
    assert_same_bits(compiled(graph)(*given), kept)


def test_another_mask_stays() -> None:
    x = sg.input("x", ("N", 2, 9, 8))
    grad = sg.gradients(sg.sum(F.max_pool2d(sg.relu(x), 2)), x)
    other = sg.where(x > 1.0, grad, 0.0)
    after = simplify(canonicalize(Graph([x], [other])))
    assert any(n.op == "where" and n.types[0].shape == x.shape for n in after.nodes)


def test_a_training_step_goes_over_the_planes_in_four_kernels() -> None:
    x, w = sg.input("x", (4, 1, 12, 12)), sg.parameter(np.ones((3, 1, 3, 3), "float32"))
    b = sg.parameter(np.zeros(3, "float32"))
    loss = sg.mean(F.max_pool2d(sg.relu(F.conv2d(x, w, b, padding=1)), 2) ** 2)
    step = sg.compile([x], [loss], updates=sg.optim.SGD([w, b], lr=0.1).minimize(loss))
    plane = 4 * 3 * 12 * 12
    report = step.report().to_dict()
    full = [k for k in report["kernels"] if k["bytes"] >= 4 * plane]
    assert len(full) == 4, full  # convolution, pool, its gradient, the gradient of the weights


def behind_pool(n: Any, height: Any, width: Any, channels: int = 16) -> Graph:
    """x, w -> gradients of a convolution of `channels` channels whose result is pooled."""
    x = sg.input("x", (n, channels, height, width))
    w, b = sg.input("w", (6, channels, 3, 3)), sg.input("b", (6,))
    y = F.max_pool2d(sg.relu(F.conv2d(x, w, b, padding=1)), 2)
    return Graph([x, w, b], [sg.sum(y), *sg.gradients(sg.sum(y * y), [x, w, b])])


def inputs(channels: int = 16) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    shapes = ((5, channels, 10, 13), (6, channels, 3, 3), (6,))
    return [rng.standard_normal(s).astype("float32") for s in shapes]


def compiled(graph: Graph, **more: Any) -> Any:
    return sg.compile(graph.inputs, graph.outputs, **more)


def test_gradients_behind_a_pool_leave_out_the_zeros() -> None:
    before = behind_pool("N", 10, 13)
    after = verified(simplify(canonicalize(before)))
    ops = [n.op for n in after.nodes]
    assert not {"max_pool_grad", "conv_grad_input", "conv_grad_weight"} & set(ops)
    assert {"max_pool_place", "conv_grad_input_pooled", "conv_grad_weight_pooled"} <= set(ops)
    expected = compiled(before, disable=["simplify"])(*inputs())
    for got in (compiled(before)(*inputs()), run(after, inputs())):
        for a, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


def test_sizes_and_threads_change_no_bit_of_gradients_behind_a_pool() -> None:
    expected = compiled(behind_pool(5, 10, 13), threads=1)(*inputs())
    for sizes in (("N", 10, 13), ("N", "H", "W"), (5, "H", 13)):
        for threads in (1, 3):
            got = compiled(behind_pool(*sizes), threads=threads)(*inputs())
            assert_same_bits(got, expected, f"{sizes}, {threads} threads")


@pytest.mark.parametrize("channels", [3, 20])
def test_few_channels_stay_as_they_are(channels: int) -> None:
    """Vectors of 16 would be less than three quarters full."""
    after = simplify(canonicalize(behind_pool("N", 10, 13, channels)))
    assert "max_pool_grad" in [n.op for n in after.nodes]


def test_pools_of_width_one() -> None:
    """The sums over windows then have axes of size 1 beside the short one."""
    rng = np.random.default_rng(1)
    shapes = [(4, 3, 2, 2), (16, 3, 1, 1), (16,)]
    x, w, b = (sg.input(name, shape) for name, shape in zip("xwb", shapes))
    h = F.max_pool2d(F.conv2d(x, w, b), 2)
    gradients = sg.gradients(sg.sum(sg.square(sg.relu(h))), [x, w, b])
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    wanted = sg.compile([x, w, b], gradients, mode="reference")(*arrays)
    for got, want in zip(sg.compile([x, w, b], gradients)(*arrays), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
