"""Every public function, given what it can't take: an error of this project that names the user's
line, or Python's own TypeError for a wrong call; never an error from the inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.errors import StaticgradError

JUNK: dict[str, Any] = {
    "None": None,
    "str": "text",
    "dict": {"a": 1},
    "object": object(),
    "object array": np.array([object()]),
    "complex": np.zeros(3, "complex64"),
    "half": np.zeros(3, "float16"),
    "ragged": [[1.0], [1.0, 2.0]],
    "function": len,
}


def _functions(module: Any) -> dict[str, Callable[..., Any]]:
    names = getattr(module, "__all__", None) or dir(module)
    prefix = module.__name__.rpartition(".")[2]
    return {
        f"{prefix}.{n}": getattr(module, n)
        for n in names
        if not n.startswith("_") and inspect.isfunction(getattr(module, n))
    }


FUNCTIONS = {
    **_functions(sg),
    **_functions(sg.random),
    **_functions(sg.nn.functional),
}
LAYERS = {
    n: getattr(sg.nn, n)
    for n in dir(sg.nn)
    if inspect.isclass(getattr(sg.nn, n)) and issubclass(getattr(sg.nn, n), sg.nn.Module)
}
OPTIMIZERS = {n: getattr(sg.optim, n) for n in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")}


def _required(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


def _assert_refuses_or_takes(call: Callable[[], Any]) -> None:
    try:
        call()
    except (StaticgradError, TypeError):
        return
    except FileNotFoundError:  # `load` of a path that does not exist says so as Python does
        return


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = FUNCTIONS[name]
    count = max(_required(function), 1)
    x = sg.input("x", ("N", 3))
    for junk in JUNK.values():
        _assert_refuses_or_takes(lambda junk=junk: function(*[junk] * count))
        if count > 1:  # a good first operand with bad others
            _assert_refuses_or_takes(lambda junk=junk: function(x, *[junk] * (count - 1)))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers(name: str) -> None:
    layer = LAYERS[name]
    for junk in JUNK.values():
        _assert_refuses_or_takes(lambda junk=junk: layer(*[junk] * _required(layer)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    w = sg.parameter(np.ones(3, "float32"))
    for junk in JUNK.values():
        _assert_refuses_or_takes(lambda junk=junk: OPTIMIZERS[name](junk))
        _assert_refuses_or_takes(lambda junk=junk: OPTIMIZERS[name]([w], lr=junk))


@pytest.mark.parametrize("method", ["sum", "mean", "max", "argmax", "softmax", "sort", "cumsum"])
@pytest.mark.parametrize("axis", [7, -3, 1.5, "0", (0, 0), None.__class__])
def test_axes_name_the_users_line(method: str, axis: Any) -> None:
    x = sg.input("x", ("N", 3))
    with pytest.raises(StaticgradError, match=r"test_bad_input\.py"):
        getattr(x, method)(axis=axis)


@pytest.mark.parametrize("wrong", ["complex64", "float16", "bfloat16", complex, np.complex128])
def test_unsupported_dtypes_are_refused_by_name(wrong: Any) -> None:
    with pytest.raises(sg.UnsupportedError, match=r"complex|float16|bfloat16"):
        sg.input("x", (3,), dtype=wrong)


@pytest.mark.parametrize("device", ["cuda", "gpu", "tpu"])
def test_other_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(sg.UnsupportedError, match=device):
        sg.zeros((2,), device=device)
    with pytest.raises(sg.UnsupportedError, match=device):
        sg.nn.Linear(2, 3).to(device)
