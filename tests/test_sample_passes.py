"""Every sample's training step with passes switched off: a preserving pass keeps every bit of the
outputs and of the new state, a defining one their values up to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import LATE_PASSES, compile_graph
from staticgrad.passes.pipeline import PASSES

from .sample_files import MODELS, sample

Arrays = list[np.ndarray[Any, Any]]

STEPS = 2
PRESERVING = tuple(dict.fromkeys([*(p.name for p in PASSES if p.kind == "preserving"),
                                  *LATE_PASSES]))  # fmt: skip
DEFINING = tuple(dict.fromkeys(p.name for p in PASSES if p.kind == "defining"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATICGRAD_NUM_THREADS", "1")


class Step:
    """A sample's training step, to be run from the same state again and again."""

    def __init__(self, program: sg.Program) -> None:
        assert program.train is not None
        self.graph = program.train
        batches = (program.train_batches or (lambda rng: [()] * STEPS))(np.random.default_rng(0))
        self.batches = list(itertools.islice(itertools.cycle(batches), STEPS))
        self.cells = program.cells()
        self.first = {name: cell.numpy() for name, cell in self.cells.items()}

    def run(self, disable: Sequence[str] = ()) -> list[Arrays]:
        """After each of the steps: the outputs, then all state."""
        for name, cell in self.cells.items():
            cell.assign(self.first[name])
        step = compile_graph(self.graph, cache=False, disable=disable)
        found = []
        for batch in self.batches:
            outputs = step(*batch)
            found.append([*outputs, *(cell.numpy() for cell in self.cells.values())])
        return found


def step_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Step:
    module = sample(name)
    if name == "char_transformer":  # the same graph at a fraction of the compile time
        for constant, value in {"LAYERS": 1, "WIDTH": 16, "HIDDEN": 32, "CONTEXT": 8}.items():
            monkeypatch.setattr(module, constant, value)
    sg.random.seed(0)
    return Step(module.build())


@pytest.mark.parametrize("name", MODELS)
def test_preserving_passes_keep_every_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of(name, monkeypatch)
    expected = step.run()
    assert len(expected) == STEPS and PRESERVING
    for off in [*((p,) for p in PRESERVING), PRESERVING]:
        for number, (got, want) in enumerate(zip(step.run(off), expected, strict=True)):
            for i, (a, b) in enumerate(zip(got, want, strict=True)):
                assert a.tobytes() == b.tobytes(), f"without {off}: step {number}, value {i}"


@pytest.mark.parametrize("name", MODELS)
def test_defining_passes_change_rounding_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values relative to the largest of their array: sums may cancel. Parameters are compared in
    the first step's outputs and the second's, since Adam divides a gradient by its own size, and so
    makes a step of rounding noise where a gradient is 0. So is that of a bias before batch norm: it
    sums what its layer's weight's gradient does, and is compared with that one's scale."""
    step = step_of(name, monkeypatch)
    expected = step.run()
    names = [None] * (len(expected[0]) - len(step.cells)) + list(step.cells)
    moved = {n for n in step.cells if f"{n}.exp_avg" in step.cells}
    for off in [*((p,) for p in DEFINING), DEFINING]:
        for number, (got, want) in enumerate(zip(step.run(off), expected, strict=True)):
            scales = {n: np.max(np.abs(b), initial=0.0) for n, b in zip(names, want) if n}
            for n, a, b in zip(names, got, want, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                if n in moved:
                    continue
                tolerance = (2e-5, 2e-3)[number] if b.dtype == np.float32 else 1e-11
                beside = (n or "").replace(".bias.", ".weight.")
                scale = max(np.max(np.abs(b), initial=0.0), scales.get(beside, 0.0))
                np.testing.assert_allclose(
                    a, b, rtol=tolerance, atol=tolerance * scale,
                    err_msg=f"without {off}: step {number}, {n or 'an output'}",
                )  # fmt: skip
