"""`compile(check="nan")`: found before the commit point, named by the user's line."""

from __future__ import annotations

import numpy as np
import pytest
import staticgrad as sg


def test_a_nan_is_named_by_its_line_and_nothing_is_written() -> None:
    w = sg.parameter(np.ones(3, "float32"), name="w")
    x = sg.input("x", ("N", 3))
    inside = x * w
    root = sg.sqrt(inside)  # the line that the error names
    line = root.node.locs
    loss = sg.mean(root)
    step = sg.compile(
        [x], [loss], updates=[(w, w - 0.1 * sg.gradients(loss, w))], check="nan", cache=False
    )
    step(np.ones((2, 3), "float32"))
    before = w.numpy()
    (loc,) = line
    with pytest.raises(sg.ExecutionError, match=rf"by sqrt\(.*(\n|.)*{loc.line}") as caught:
        step(np.array([[1, 1, -1], [1, 1, 1]], "float32"))
    assert "element 2" in str(caught.value)
    np.testing.assert_array_equal(w.numpy(), before)


def test_a_nan_of_the_backward_pass_is_found() -> None:
    w = sg.parameter(np.zeros(2, "float32"), name="w")
    loss = sg.sum(sg.sqrt(w * w))  # finite, but its gradient at 0 is 0 * inf
    step = sg.compile(
        [], [loss], updates=[(w, w - sg.gradients(loss, w))], check="nan", cache=False,
        disable=("canonicalize", "stabilize", "simplify"),
    )  # fmt: skip
    with pytest.raises(sg.ExecutionError, match="NaN computed by"):
        step()
    np.testing.assert_array_equal(w.numpy(), [0, 0])


def test_nan_that_was_given_is_said_to_be() -> None:
    x = sg.input("x", ("N",))
    program = sg.compile([x], [x * 2.0, sg.astype(x > 0, "int32")], check="nan", cache=False)
    np.testing.assert_array_equal(program(np.ones(3, "float32"))[0], [2, 2, 2])
    with pytest.raises(sg.ExecutionError, match="NaN in the input 'x'"):
        program(np.array([1, np.nan], "float32"))
    w = sg.parameter(np.array([np.nan], "float32"), name="weights")
    with pytest.raises(sg.ExecutionError, match="NaN in the state 'weights'"):
        sg.compile([], w * 1.5, check="nan", cache=False)()


def test_an_unknown_check_is_refused() -> None:
    x = sg.input("x", ("N",))
    with pytest.raises(sg.ArgumentError, match='"nan"'):
        sg.compile([x], x, check="inf")
