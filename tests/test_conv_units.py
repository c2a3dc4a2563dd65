"""What a convolutional network has LLVM generate: every function of convolution once."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.codegen import assemble, conv, conv_depthwise
from staticgrad.codegen.builder import Module
from staticgrad.codegen.sharing import is_shared
from staticgrad.codegen.split import shared_units
from staticgrad.codegen.target import host_target
from staticgrad.ir.graph import Graph
from staticgrad.kernels.ir import Template
from staticgrad.nn import functional as F
from staticgrad.passes.lowering import lower
from staticgrad.passes.pipeline import run_pipeline
from staticgrad.passes.schedule import schedule


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
        assert any(re.match(f"sg_conv_(depthwise_)?{kind}_", name) for name in counts), kind
    assert set(counts.values()) == {1}, counts


def test_what_depends_on_sizes_is_a_unit_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in generated(monkeypatch):
        assert len({re.sub(r"sg_(conv(_tile)?)_.*", r"\1", name) for name in unit}) == 1


def test_no_unit_of_a_programs_own_has_a_function_of_convolution() -> None:
    module = Module(host_target())
    for require in (conv.require_conv_forward, conv.require_conv_grad_input):
        for rows in (0, 28):
            require(module, "float32", rows=rows)
    window = (5, 3, 2, 1, 1, 1)
    for require in (
        conv_depthwise.require_depthwise_forward, conv_depthwise.require_depthwise_grad_input,
        conv_depthwise.require_depthwise_grad_weight,
    ):  # fmt: skip
        require(module, "float32", window)
    conv.require_conv_grad_weight(module, "float32", rows=9, lanes=8)
    shared = "".join(unit.text for unit in shared_units(module.to_text()))
    assert set(re.findall(r"(?m)^define .*@(\w+)\(", shared)) == set(module.functions)


@pytest.mark.parametrize("groups", [1, 8, 64])
def test_threads_share_what_is_computed_of_one_image(groups: int) -> None:
    x, w = sg.input("x", (1, 64, 28, 28)), sg.input("w", (64, 64 // groups, 3, 3))
    y = F.conv2d(x, w, groups=groups)
    graph = Graph([x, w], [y, *sg.gradients(sg.sum(y * y), [x, w])])
    program = schedule(lower(run_pipeline(graph), host_target()))
    templates = [s for s in program.steps if any(isinstance(b, Template) for b in s.kernel.body)]
    assert len(templates) == 3 and all(is_shared(s) for s in templates)
