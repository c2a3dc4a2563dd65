"""Float64 data beside float32 parameters: one warning that names both; none where it is meant."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import nn
from staticgrad.ops import widening

XS = np.ones((4, 3))  # float64, as NumPy makes it


@contextmanager
def told() -> Iterator[list[str]]:
    """The texts of the warnings that a fresh program would show by default."""
    found: list[str] = []
    widening._shown.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield found
        found += [str(w.message) for w in caught if w.category is sg.PromotionWarning]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))


def test_a_traced_model_tells_it_once_with_the_input_and_the_mend() -> None:
    layers = model()
    f = sg.jit(lambda batch: layers(batch["x"]))
    with told() as found:
        for n in (4, 3, 2):
            assert f({"x": XS[:n]}).dtype == np.float64
    (text,) = found
    assert "the float32 parameter '0.weight' meets the float64 input \"batch['x']\"" in text
    assert 'x.astype("float32")' in text and 'model.to("float64")' in text


def test_a_declared_model_tells_it_at_the_user_s_line() -> None:
    x = sg.input("x", ("N", 3), dtype="float64")
    w = sg.parameter(np.ones((2, 3), "float32"), name="w")
    with pytest.warns(
        sg.PromotionWarning, match="parameter 'w' meets the float64 input 'x'"
    ) as got:
        y = (x * 2.0) @ w.T
    assert y.dtype == "float64" and got[0].filename == __file__
    with told() as found:  # known by now
        assert (x - 1.0 + w[0]).dtype == "float64"
    assert not found


def test_constants_are_told_as_data() -> None:
    w = sg.parameter(np.ones(3, "float32"), name="w")
    with pytest.warns(sg.PromotionWarning, match="parameter 'w' meets float64 data"):
        assert (w * XS).dtype == "float64"


def test_the_dynamic_mode_tells_it() -> None:
    layer = nn.Linear(3, 2)
    with told() as found:
        for n in (4, 3, 2):
            assert layer(sg.eager.tensor(XS[:n])).dtype == "float64"
    assert len(found) == 1 and "meets float64 data" in found[0]


def _declared(dtype: str) -> Any:
    return sg.input("x", ("N", 3), dtype=dtype)


MEANT: dict[str, Callable[[], Any]] = {
    "float32 data": lambda: sg.jit(model())(XS.astype("float32")),
    "float64 parameters": lambda: sg.jit(model().double())(XS),
    "a conversion": lambda: model()(sg.astype(_declared("float32"), "float64")),
    "no parameters": lambda: sg.jit(lambda p, x: p * x)(np.ones(3, "float32"), XS),
    "a buffer": lambda: sg.parameter(np.ones(3, "float32"), trainable=False) * _declared("float64"),
    "a Python number": lambda: sg.jit(lambda r: nn.Linear(3, 1).weight * r * 2.0)(0.5),
    "labels": lambda: sg.mean((model()(_declared("float32")) - _declared("float64")) ** 2),
    "fit": lambda: model().fit(XS, XS[:, :1], loss="mse", progress=False, seed=0),
    "an optimiser's float64 rate": lambda: sg.optim.AdamW([p := nn.Linear(3, 1).weight]).minimize(
        sg.sum(p)
    ),
}


@pytest.mark.parametrize("case", MEANT)
def test_what_is_meant_tells_nothing(case: str) -> None:
    with told() as found:
        MEANT[case]()
    assert not found


def test_a_deep_model_tells_it_once() -> None:
    h = _declared("float64")
    with told() as found:
        for _ in range(50):
            h = sg.tanh(h @ sg.parameter(np.ones((3, 3), "float32")))
    assert len(found) == 1 and h.dtype == "float64"


def test_in_the_body_of_a_loop_the_carry_has_no_name_to_tell() -> None:
    w = sg.parameter(np.eye(3, dtype="float32"), name="w")
    f = sg.jit(lambda x: sg.fori_loop(0, 3, lambda i, h: h @ w, x))
    with told() as found:
        assert f(XS).dtype == np.float64
    (text,) = found
    assert "the float32 parameter 'w' meets float64 data, so" in text
