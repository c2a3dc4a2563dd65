"""`jit(training=)`: the mode of layers in a traced function, as `compile` has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import nn
from staticgrad.ir.errors import ArgumentTypeError

XS = np.arange(12, dtype="float32").reshape(4, 3)
MODES = (None, True, False)


@pytest.fixture
def norm() -> nn.Module:
    """Batch norm whose statistics differ from those of `XS`."""
    return nn.BatchNorm1d(3)


def expected(training: bool | None) -> Any:
    if not training:
        return XS / np.sqrt(np.float32(1 + 1e-5))
    return (XS - XS.mean(0)) / np.sqrt(XS.var(0) + 1e-5)


@pytest.mark.parametrize("training", MODES)
def test_the_mode_and_the_statistics_are_those_of_compile(
    norm: nn.Module, training: bool | None
) -> None:
    f = sg.jit(lambda x: norm(x), training=training)
    np.testing.assert_allclose(f(XS), expected(training), rtol=1e-5, atol=1e-6)
    after = norm.state_dict()
    other = nn.BatchNorm1d(3)
    x = sg.input("x", ("N", 3))
    found = sg.compile([x], other(x), training=training)(XS)
    np.testing.assert_allclose(found, expected(training), rtol=1e-5, atol=1e-6)
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(after[name], value)
    assert int(after["num_batches_tracked"]) == bool(training)


def test_every_trace_has_the_mode(norm: nn.Module) -> None:
    f = sg.jit(lambda x: norm(x), training=True)
    for n in (4, 3, 2):  # ints, then a symbol
        f(XS[:n])
    assert int(norm.state_dict()["num_batches_tracked"]) == 3


def test_what_the_model_fixed_stays(norm: nn.Module) -> None:
    norm.eval()
    f = sg.jit(lambda x: norm(x), training=True)
    np.testing.assert_allclose(f(XS), expected(False), rtol=1e-5)
    norm.train()
    np.testing.assert_allclose(
        sg.jit(lambda x: norm(x), training=False)(XS), expected(True), rtol=1e-5, atol=1e-6
    )


def test_dropout_under_a_transform_and_as_a_decorator() -> None:
    layer = nn.Dropout(0.5)

    @sg.jit(training=True)
    def kept(x: Any) -> Any:
        return layer(x)

    x = np.ones((50, 50), "float32")
    assert set(np.unique(kept(x))) == {0.0, 2.0}
    assert (kept(x) != kept(x)).any()
    both = sg.value_and_grad(lambda x: sg.sum(layer(x)))
    value, slope = sg.jit(both, training=True)(x)
    assert set(np.unique(slope)) == {0.0, 2.0} and value == slope.sum()
    value, slope = sg.jit(both)(x)
    assert value == 2500 and (slope == 1).all()
    # Where it is a part of another function, that one's mode counts.
    assert (sg.jit(lambda x: kept(x))(x) == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_eager_tensors_take_it_too(norm: nn.Module, training: bool) -> None:
    f = sg.jit(lambda x: norm(x), training=training)
    for _ in range(2):
        x = sg.eager.tensor(XS, requires_grad=True)
        y = f(x)
        if training:
            np.testing.assert_allclose(y.detach().numpy(), expected(True), rtol=1e-5, atol=1e-6)
        y.sum().backward()
    assert int(norm.state_dict()["num_batches_tracked"]) == 2 * training


def test_other_values_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="jit: training must be True, False or None"):
        sg.jit(lambda x: x, training="yes")
