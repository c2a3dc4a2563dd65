"""A size may have any name, those of kernels' own loops too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

NAMES = ("batch", "begin", "end", "k", "d0", "d1", "i0", "i1", "r0", "e0", "n0", "n1", "_i1", "N")
PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "product": lambda x: x @ np.ones((3, 5), "float32"),
    "rows": lambda x: x.sum(axis=0),
    "columns": lambda x: sg.softmax(x, axis=1),
    "elementwise": lambda x: x * 2 + 1,
    "cumulative": lambda x: sg.cumulative_sum(x, axis=0),
    "batched product": lambda x: sg.einsum("bij,bjk->bik", x[:, None, :], x[:, :, None]),
    "gather": lambda x: sg.take(x, sg.arange(3) * 0 + 1, axis=0),
    "sort": lambda x: sg.sort(x, axis=0),
    "scan": lambda x: sg.scan(lambda c, row: (c + row, c * row), sg.zeros((3,)), x)[1],
    "mean": lambda x: x.sum() / x.shape[0],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_any_name(program: str, name: str) -> None:
    x = sg.input("x", (name, 3))
    y = PROGRAMS[program](x)
    compiled, reference = sg.compile([x], y), sg.compile([x], y, mode="reference")
    for rows in (1, 7, 100):
        a = np.random.default_rng(0).normal(size=(rows, 3)).astype("float32")
        if program == "gather" and rows == 1:
            continue
        np.testing.assert_allclose(compiled(a), reference(a), rtol=1e-5, atol=1e-6)


def test_the_user_sees_the_name_that_was_given() -> None:
    x = sg.input("x", ("batch", "d0"))
    program = sg.compile([x], x @ np.ones((4, 2), "float32"))
    assert program.manifest.dims == ["batch", "d0"]
    assert program.report(batch=8, d0=4).to_dict()["flops"] == 2 * 8 * 4 * 2
    with pytest.raises(sg.BindError, match="d0"):
        program(np.ones((3, 5), "float32"))


def test_two_names_of_which_one_is_the_others_substitute() -> None:
    x, y = sg.input("x", ("k", 2)), sg.input("y", ("k_size", 2))
    program = sg.compile([x, y], [x.sum(axis=0), y.sum(axis=0)])
    a, b = program(np.ones((3, 2), "float32"), np.ones((5, 2), "float32"))
    assert a.tolist() == [3, 3] and b.tolist() == [5, 5]


def test_none_is_answered_with_a_name() -> None:
    with pytest.raises(sg.ArgumentError, match=r"\('N', 8\) in place of \(None, 8\)"):
        sg.input("x", (None, 8))
