"""Rows' cheap values are computed again where they are read, sums over the same are one kernel:
which, how much memory is moved, and the bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.kernels.program import Program, Step
from staticgrad.kernels.verify import verify_program

from .threaded_programs import random

F = sg.nn.functional


def checked(inputs: list[Any], outputs: list[Any]) -> Program:
    """A program whose results are, bit for bit, those without fusion."""
    program = compile_stages(sg.Graph(inputs, outputs)).program
    verify_program(program)
    arrays = [random(tuple(v.shape), i, str(v.dtype)) for i, v in enumerate(inputs)]
    got = sg.compile(inputs, outputs)(*arrays)
    plain = sg.compile(inputs, outputs, disable=("fuse",))(*arrays)
    for a, b in zip(got, plain, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    return program


def steps_of(inputs: list[Any], outputs: list[Any]) -> list[Step]:
    return checked(inputs, outputs).steps


def whole_arrays(program: Program, elements: int, *, written: bool = False) -> list[int]:
    """How many arrays of so many elements each kernel reads and writes, or writes."""
    return [
        sum(
            program.buffers[b].size == elements and not (written and used.mode == "in")
            for b, used in zip(s.buffers, s.kernel.buffers, strict=True)
        )
        for s in program.steps
    ]


def norm(kind: str, shape: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    x, ct = sg.input("x", shape), sg.input("ct", shape)
    w, b = sg.input("w", shape[1:2]), sg.input("b", shape[1:2])
    y = {
        "group": lambda: F.group_norm(x, 4, w, b),
        "instance": lambda: F.instance_norm(x, weight=w, bias=b),
        "batch": lambda: F.batch_norm(x, None, None, w, b, True),
    }[kind]()
    return [x, ct, w, b], [y, *sg.gradients(y, [x, w, b], cotangent=ct)]


@pytest.mark.parametrize(
    ("kind", "arrays"),
    [
        # x, y; x and ct for the sums of each channel; x, ct and x's gradient
        ("group", [2, 2, 0, 0, 3]),
        # all within the rows, whose channels are few
        ("instance", [4, 0]),
        # x for the mean, for the variance; x, y, ct; x, ct and x's gradient
        ("batch", [1, 1, 0, 3, 3]),
    ],
)
def test_a_norm_and_its_gradient_store_nothing_between(kind: str, arrays: list[int]) -> None:
    program = checked(*norm(kind, (6, 8, 7, 9)))
    assert sorted(whole_arrays(program, 6 * 8 * 7 * 9)) == sorted(arrays)


def test_sums_over_the_same_are_one_kernel() -> None:
    x, ct = sg.input("x", (8, 6, 40)), sg.input("ct", (8, 6, 40))
    y = x - sg.mean(x, axis=(1, 2), keepdims=True)
    names = [s.kernel.name for s in steps_of([x, ct], [sg.sum(ct, axis=2), sg.sum(ct * y, axis=2)])]
    assert len(names) == 2 and names[1].count("sum") == 1  # the name tells each operation once
    # Of other axes they are not.
    assert len(steps_of([x, ct], [sg.sum(ct, axis=1), sg.sum(ct * y, axis=2)])) == 3
    # What has been read can't wait: the second sum depends on it.
    first = sg.sum(ct, axis=2, keepdims=True)
    later = sg.sum(sg.sum(sg.exp(first), axis=0) * ct, axis=2)
    assert len(steps_of([x, ct], [first + x, later])) >= 3


def after_the_rows(e: Any, ct: Any) -> Any:
    """What reads `e` in a kernel of its own: the sum over all of it comes in between."""
    return ct * sg.sum(e) + e


def stored(outputs: Any) -> int:
    """How many whole arrays all kernels write."""
    x, ct = sg.input("x", (8, 50)), sg.input("ct", (8, 50))
    return sum(whole_arrays(checked([x, ct], outputs(x, ct)), 400, written=True))


def centred(x: Any) -> Any:
    return x - sg.mean(x, axis=1, keepdims=True)


def test_what_is_computed_again() -> None:
    assert stored(lambda x, ct: [after_the_rows(centred(x), ct)]) == 1
    # The product is stored for the rows in any case; it takes the place of the centred values.
    assert stored(lambda x, ct: [after_the_rows(centred(x @ sg.ones((50, 50))), ct)]) == 2


def test_what_is_stored() -> None:
    def dear(x: Any) -> Any:
        return sg.exp(x - sg.max(x, axis=1, keepdims=True))

    assert stored(lambda x, ct: [after_the_rows(dear(x), ct)]) == 2
    # What is a result is there anyway.
    assert stored(lambda x, ct: [after_the_rows(centred(x), ct), centred(x)]) == 2
    # Two arrays for one are no gain where the rows' kernel reads both for others too.
    both = lambda x, ct: centred(x) * ct  # noqa: E731
    assert stored(
        lambda x, ct: [after_the_rows(both(x, ct), x @ sg.ones((50, 50))), sg.sum(ct, axis=1)]
    ) >= 2  # fmt: skip


def test_an_output_of_another_shape_is_stored_where_it_belongs() -> None:
    x = sg.input("x", (8, 6))
    y = sg.exp(x)
    assert len(steps_of([x], [sg.reshape(y, (4, 12))])) == 1
    assert len(steps_of([x], [sg.reshape(y, (4, 12)), sg.sum(y, axis=1)])) == 1
    # One array cannot be two results.
    assert len(steps_of([x], [sg.reshape(y, (4, 12)), y])) == 2
    assert len(steps_of([x], [sg.reshape(y, (4, 12)), sg.reshape(y, (48,))])) == 2
    assert len(steps_of([x], [sg.reshape(x, (48,))])) == 1
    w = sg.parameter(np.zeros((8, 6), "float32"))
    step = sg.compile([x], [sg.reshape(w + x, (48,))], updates=[(w, w + x)])
    for i in range(1, 4):
        (got,) = step(np.ones((8, 6), "float32"))
        np.testing.assert_array_equal(got, np.full(48, i, "float32"), strict=True)
        np.testing.assert_array_equal(w.numpy(), np.full((8, 6), i, "float32"))
