"""What a convolutional network has LLVM generate: every function of convolution once."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.codegen import assemble, conv
from staticgrad.codegen.builder import Module
from staticgrad.codegen.split import shared_units
from staticgrad.codegen.target import host_target
from staticgrad.nn import functional as F


def network() -> Any:
    """A training step: two convolutions with pooling behind them, the second of 16 channels."""
    x = sg.input("x", (4, 1, 12, 12))
    shapes = ((16, 1, 3, 3), (16,), (20, 16, 3, 3), (20,))
    w = [sg.parameter(np.full(s, 0.1, "float32")) for s in shapes]
    h = F.max_pool2d(sg.relu(F.conv2d(x, w[0], w[1], padding=1)), 2)
    h = F.max_pool2d(sg.relu(F.conv2d(h, w[2], w[3], padding=1)), 2)
    loss = sg.mean(h * h)
    updates = sg.optim.SGD(w, lr=0.1).minimize(loss)
    return sg.compile([x], [loss], updates=updates, cache=False)


def generated(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of convolution's functions in each unit that LLVM got."""
    units: list[list[str]] = []
    compile_unit = assemble._compile

    def record(text: str, *more: Any) -> Any:
        units.append(re.findall(r"(?m)^define .*@(sg_conv\w+)\(", text))
        return compile_unit(text, *more)

    monkeypatch.setattr(assemble, "_compile", record)
    monkeypatch.setattr(assemble, "_known", {})
    network()
    return [names for names in units if names]


def test_each_function_is_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counter(name for unit in generated(monkeypatch) for name in unit)
    for kind in ("forward", "grad_weight", "tile", "tile_pooled_taps", "tile_pooled_spread"):
        assert any(name.startswith(f"sg_conv_{kind}_") for name in counts), kind
    assert set(counts.values()) == {1}, counts


def test_what_depends_on_sizes_is_a_unit_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in generated(monkeypatch):
        assert len({re.sub(r"sg_(conv(_tile)?)_.*", r"\1", name) for name in unit}) == 1


def test_depthwise_windows_of_3_by_3_need_no_other_functions() -> None:
    for near in (1, 2):
        module = Module(host_target())
        conv.require_conv_forward(module, "float32", depthwise=True, near=near)
        conv.require_conv_grad_weight(module, "float32", depthwise=True, near=near)
        assert not [name for name in module.functions if "im2col" in name or "tile" in name]


def test_no_unit_of_a_programs_own_has_a_function_of_convolution() -> None:
    module = Module(host_target())
    for require in (conv.require_conv_forward, conv.require_conv_grad_input):
        for options in ({"rows": 0}, {"rows": 28}, {"depthwise": True}):
            require(module, "float32", **options)
        require(module, "float32", depthwise=True, near=1)
    conv.require_conv_grad_weight(module, "float32", depthwise=True)
    conv.require_conv_grad_weight(module, "float32", rows=9, lanes=8)
    shared = "".join(unit.text for unit in shared_units(module.to_text()))
    assert set(re.findall(r"(?m)^define .*@(\w+)\(", shared)) == set(module.functions)
