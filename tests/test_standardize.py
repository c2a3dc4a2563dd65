"""The record of batch, group and instance normalisation: how many sums its gradient takes, and its
values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.passes.pipeline import run_pipeline

F = sg.nn.functional
Array = np.ndarray[Any, Any]


def declared(n: Any) -> tuple[list[sg.Tensor], list[sg.Tensor]]:
    x, ct = sg.input("x", (n, 3, 4, 5), "float64"), sg.input("ct", (n, 3, 4, 5), "float64")
    w, b = sg.input("w", (3,), "float64"), sg.input("b", (3,), "float64")
    y = F.batch_norm(x, None, None, w, b, True)
    return [x, ct, w, b], [y, *sg.gradients(y, [x, w, b], cotangent=ct)]


def expected(x: Array, ct: Array, w: Array) -> list[Array]:
    """The derivative of each element by each, added up."""
    axes, n = (0, 2, 3), x.size // 3
    centred = x - x.mean(axes, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)
    g = ct * w[:, None, None]
    of_r = (g * centred).sum(axes, keepdims=True) * -0.5 * r**3
    of_centred = g * r + of_r * 2 * centred / n
    of_x = of_centred - of_centred.mean(axes, keepdims=True)
    return [of_x, (ct * centred * r).sum(axes), ct.sum(axes)]


@pytest.mark.parametrize("n", [6, "N"])
def test_gradients(n: Any) -> None:
    rng = np.random.default_rng(0)
    inputs, outputs = declared(n)
    x, ct = (rng.standard_normal((6, 3, 4, 5)) + 2 for _ in range(2))
    w, b = rng.standard_normal(3), rng.standard_normal(3)
    _, *got = sg.compile(inputs, outputs)(x, ct, w, b)
    for a, e in zip(got, expected(x, ct, w), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_input_adds_up_what_those_of_weight_and_bias_do() -> None:
    after = run_pipeline(Graph(*declared(6)), disable=["fuse"])
    sums = [n for n in after.nodes if n.op == "sum"]
    assert len(sums) == 4  # of the mean and the variance, of the bias and the weight


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    "shape", [(5, 6, 4, 3), (5, 6), (5, 6, 1), ("N", 6, "H", 3), ("N", "C", 4)]
)
def test_gradients_of_group_norm(shape: Any, groups: int) -> None:
    """Against the derivative of each element by each, added up."""
    rng = np.random.default_rng(1)
    sizes = tuple({"N": 5, "C": 6, "H": 4}.get(d, d) for d in shape)
    x, ct = sg.input("x", shape, "float64"), sg.input("ct", shape, "float64")
    w, b = (sg.input(name, shape[1:2], "float64") for name in "wb")
    y = F.group_norm(x, groups, w, b)
    outputs = [y, *sg.gradients(y, [x, w, b], cotangent=ct)]
    xs, cts = (rng.standard_normal(sizes) + 2 for _ in range(2))
    ws, bs = rng.standard_normal(6), rng.standard_normal(6)
    got = sg.compile([x, ct, w, b], outputs)(xs, cts, ws, bs)

    rows, channels = xs.reshape(5 * groups, -1), (1, 6) + (1,) * (len(sizes) - 2)
    centred = rows - rows.mean(1, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    g = (cts * ws.reshape(channels)).reshape(rows.shape)
    of_r = (g * centred).sum(1, keepdims=True) * -0.5 * r**3
    of_centred = g * r + of_r * 2 * centred / rows.shape[1]
    of_x = (of_centred - of_centred.mean(1, keepdims=True)).reshape(sizes)
    standard = (centred * r).reshape(sizes)
    others = (0, *range(2, len(sizes)))
    wanted = [
        standard * ws.reshape(channels) + bs.reshape(channels),
        of_x, (cts * standard).sum(others), cts.sum(others),
    ]  # fmt: skip
    for a, e in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-11)


def test_a_group_norm_refuses_channels_that_its_groups_do_not_divide() -> None:
    with pytest.raises(sg.ShapeError, match="4 groups do not divide the 6 channels"):
        F.group_norm(sg.input("x", (2, 6, 3)), 4)
    x = sg.input("x", ("N", "C", 2))  # 6 x 2 elements could be put in 4 rows
    with pytest.raises(sg.BindError):
        sg.compile([x], F.group_norm(x, 4))(np.zeros((1, 6, 2), "float32"))
    w = sg.input("w", (5,))
    with pytest.raises(sg.ShapeError, match="group_norm: weight: expected one value for each"):
        F.group_norm(sg.input("x", (2, 6, 3)), 2, w)


@pytest.mark.parametrize("given", [("weight",), ("bias",), ()])
@pytest.mark.parametrize("kind", ["group_norm", "instance_norm", "batch_norm"])
def test_weight_and_bias_are_each_optional(kind: str, given: tuple[str, ...]) -> None:
    x = sg.input("x", (3, 4, 5), "float64")
    data, v = np.random.default_rng(2).standard_normal((3, 4, 5)), np.arange(1.0, 5.0)
    arguments = {
        "group_norm": lambda **s: F.group_norm(x, 2, **s),
        "instance_norm": lambda **s: F.instance_norm(x, **s),
        "batch_norm": lambda **s: F.batch_norm(x, None, None, training=True, **s),
    }[kind]
    plain = sg.compile([x], arguments())(data)
    got = sg.compile([x], arguments(**dict.fromkeys(given, sg.constant(v))))(data)
    wanted = plain * v[:, None] if "weight" in given else plain
    np.testing.assert_allclose(got, wanted + v[:, None] if "bias" in given else wanted, rtol=1e-12)
