"""Cheap results are computed where they are read: which, and the bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.kernels.program import Program
from staticgrad.kernels.verify import verify_program

from .threaded_programs import random


def program_of(inputs: list[Any], outputs: list[Any], **options: Any) -> Program:
    program = compile_stages(sg.Graph(inputs, outputs), **options).program
    verify_program(program)
    return program


def layers(activation: Callable[[Any], Any]) -> tuple[list[Any], list[Any]]:
    x, w, v = sg.input("x", (16, 12)), sg.input("w", (12, 40)), sg.input("v", (40, 3))
    loss = sg.mean((activation(x @ w) @ v) ** 2)
    return [x, w, v], [loss, *sg.gradients(loss, [w, v])]


def test_a_derivative_is_computed_from_the_activation() -> None:
    """One array of 16 x 40 is stored by the forward kernel, and not two."""
    inputs, outputs = layers(sg.tanh)
    forward = program_of(inputs, outputs).steps[0]
    assert forward.kernel.name == "matmul_tanh"
    written = [b for b in forward.kernel.buffers if b.mode != "in" and str(b.dtype) == "float32"]
    assert len(written) == 1
    arrays = [random((16, 12), 1), random((12, 40), 2), random((40, 3), 3)]
    got = sg.compile(inputs, outputs)(*arrays)
    plain = sg.compile(inputs, outputs, disable=("fuse",))(*arrays)
    for a, b in zip(got, plain):
        np.testing.assert_array_equal(a, b, strict=True)


def kernels(outputs: Callable[[Any], list[Any]]) -> list[str]:
    x = sg.input("x", (8, 6))
    found = outputs(x)
    arrays = random((8, 6), 1)
    got = sg.compile([x], found)(arrays)
    plain = sg.compile([x], found, disable=("fuse",))(arrays)
    for a, b in zip(got, plain):
        np.testing.assert_array_equal(a, b, strict=True)
    return [s.kernel.name for s in program_of([x], found).steps]


def test_what_stays() -> None:
    """What is wanted as a result, what several groups read, what is not cheap, what would keep a
    wider array, and what is computed from an array that is not stored."""

    def later(y: Any) -> Any:
        """Something of another group: what it reads has to wait for the sum over all of `y`."""
        return y - sg.sum(y * y)

    def wanted(x: Any) -> list[Any]:
        h = sg.exp(x)
        return [later(h) * (h + 1), h + 1]

    def not_cheap(x: Any) -> list[Any]:
        h = sg.exp(x)
        return [later(h) * sg.sin(h), h]

    def narrow(x: Any) -> list[Any]:
        h = sg.exp(x)
        return [sg.where(h > 1, later(h), 0), h]

    for case in (wanted, not_cheap, narrow):
        assert kernels(case)


def test_a_chain_moves_as_a_whole() -> None:
    x, w = sg.input("x", (16, 12)), sg.input("w", (12, 12))
    h = sg.sin(x @ w)
    weight = (1 - h) * (1 + h) * 0.5
    outputs = [h, (h @ w) * weight]
    names = [s.kernel.name for s in program_of([x, w], outputs).steps]
    assert names[0] == "matmul_sin" and len(names) == 2
    arrays = random((16, 12), 1), random((12, 12), 2) / 4
    for a, b in zip(sg.compile([x, w], outputs)(*arrays),
                    sg.compile([x, w], outputs, disable=("fuse",))(*arrays)):  # fmt: skip
        np.testing.assert_array_equal(a, b, strict=True)
