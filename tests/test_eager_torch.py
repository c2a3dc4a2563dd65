"""The dynamic mode against figures recorded from PyTorch: how tensors print, what optimisers do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

from .torch_data.eager_cases import OPTIMIZERS, optimise, printed

eager = sg.eager
RECORDED = json.loads((Path(__file__).parent / "torch_data" / "eager.json").read_text("utf-8"))


def unwrapped(text: str) -> str:
    """A printed form without line breaks before notes: the dtype's name is longer here."""
    for note in ("dtype=", "requires_grad=", "grad_fn=", "size="):
        text = text.replace(f",\n       {note}", f", {note}")
    return text.replace("torch.", "staticgrad.")


@pytest.mark.parametrize("number", range(len(printed())))
def test_tensors_print_as_in_pytorch(number: int) -> None:
    array = printed()[number]
    assert unwrapped(repr(eager.tensor(array))) == unwrapped(RECORDED["printed"][number])


def test_tensors_with_gradients_print_as_in_pytorch() -> None:
    floats = [a for a in printed() if a.dtype.kind == "f"]
    for array, leaf, result in zip(floats, RECORDED["leaves"], RECORDED["results"], strict=True):
        x = eager.tensor(array, requires_grad=True)
        assert unwrapped(repr(x)) == unwrapped(leaf)
        assert unwrapped(str(x * 2.0)) == unwrapped(result)


def test_a_long_line_breaks_before_its_notes() -> None:
    text = repr(eager.tensor([0.1 + i for i in range(9)], requires_grad=True))
    assert text.splitlines() == [
        "tensor([0.1000, 1.1000, 2.1000, 3.1000, 4.1000, 5.1000, 6.1000, 7.1000, 8.1000],",
        "       requires_grad=True)",
    ]


def tensor(data: Any, requires_grad: bool = True) -> Any:
    return eager.tensor(data, dtype="float64", requires_grad=requires_grad)


@pytest.mark.parametrize(("label", "name", "options"), OPTIMIZERS)
def test_steps_on_eager_tensors_are_pytorchs(label: str, name: str, options: Any) -> None:
    found = optimise(sg.optim, tensor, name, options)
    np.testing.assert_allclose(found, RECORDED["optimizers"][label], rtol=1e-12)


@pytest.mark.parametrize(("label", "name", "options"), OPTIMIZERS)
def test_steps_on_parameters_are_the_same(label: str, name: str, options: Any) -> None:
    """The parameters of models, whose state compiled programs share."""
    recorded = RECORDED["optimizers"][label]
    w = sg.parameter(np.array([[0.5, -0.3], [0.2, 0.9], [-0.7, 0.1]]))
    b = sg.parameter(np.array([0.1, -0.2]))
    x = eager.tensor([[1.0, 2, -1], [0.5, -1.5, 2], [3, 0.25, -0.75], [-2, 1, 0.5]], "float64")
    y = eager.tensor([[1.0, 0], [0.5, -1], [2, 3], [-1, 0.25]], dtype="float64")
    optimizer = getattr(sg.optim, name)([w, b], **options)
    found: list[float] = []
    for _ in range(len(recorded) // 8):
        loss = ((x @ w + b - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found += [*w.numpy().ravel(), *b.numpy().ravel()]
    np.testing.assert_allclose(found, recorded, rtol=1e-12)
