"""`sg.compile`: what calls return and update, whatever the graph's outline."""

from __future__ import annotations

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import compile as driver


def f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def test_a_bare_output_gives_an_array_and_a_list_gives_a_tuple() -> None:
    x = sg.input("x", ("N",))
    a = f32(5)
    bare = sg.compile([x], x + 1.0)(a)
    assert isinstance(bare, np.ndarray)
    (listed,) = sg.compile([x], [x + 1.0])(a)
    np.testing.assert_array_equal(bare, listed)
    assert sg.compile([x], [])(a) == ()


def test_inputs_parameters_and_constants_can_be_outputs() -> None:
    x, w = sg.input("x", ("N", 3)), sg.parameter(f32(3))
    a = f32(2, 3)
    got = sg.compile([x], [x, x, w, sg.constant([1, 2]), x.T])(a)
    for g, want in zip(got, (a, a, w.numpy(), np.array([1, 2]), a.T), strict=True):
        np.testing.assert_array_equal(g, want)
    assert not np.shares_memory(got[0], a) and not np.shares_memory(got[0], got[1])
    got[2][:] = 7
    assert not (w.numpy() == 7).any()


def test_one_executable_serves_every_size() -> None:
    x = sg.input("x", ("N", 5))
    w = sg.parameter(f32(5, 7))
    before = driver.compilations
    program = sg.compile([x], [sg.softmax(x @ w, axis=1), sg.mean(x)], cache=False)
    for n in (4, 0, 1, 33, 4, 500):
        a = f32(n, 5)
        probabilities, mean = program(a)
        z = a.astype("float64") @ w.numpy()
        e = np.exp(z - z.max(axis=1, keepdims=True)) if n else z
        np.testing.assert_allclose(probabilities, e / e.sum(axis=1, keepdims=True), rtol=2e-5)
        if n:
            np.testing.assert_allclose(mean, a.mean(dtype="float64"), rtol=1e-4, atol=1e-6)
        else:
            assert np.isnan(mean)
    assert driver.compilations == before + 1


def test_a_row_does_not_depend_on_its_batch() -> None:
    x = sg.input("x", ("N", 64))
    w, b = sg.parameter(f32(64, 48)), sg.parameter(f32(48))
    program = sg.compile([x], sg.log_softmax(sg.tanh(x @ w + b), axis=1), cache=False)
    a = f32(100, 64)
    whole = program(a)
    for start, stop in ((0, 1), (1, 18), (18, 100)):
        np.testing.assert_array_equal(program(a[start:stop]), whole[start:stop])


def test_updates_read_the_old_state() -> None:
    a, b = sg.parameter(f32(4), name="a"), sg.parameter(f32(4) + 1, name="b")
    old_a, old_b = a.numpy(), b.numpy()
    swap = sg.compile([], [a + b], updates=[(a, b), (b, a)], cache=False)
    (total,) = swap()
    np.testing.assert_array_equal(total, old_a + old_b)
    np.testing.assert_array_equal(a.numpy(), old_b)
    np.testing.assert_array_equal(b.numpy(), old_a)


def test_an_update_may_be_a_view_of_other_state() -> None:
    a, b = sg.parameter(f32(3, 3), name="a"), sg.parameter(np.zeros((3, 3), "float32"), name="b")
    old = a.numpy()
    step = sg.compile([], [], updates=[(a, a.T), (b, sg.flip(a, axis=0))], cache=False)
    step()
    np.testing.assert_array_equal(a.numpy(), old.T)
    np.testing.assert_array_equal(b.numpy(), old[::-1])


def test_a_parameter_that_others_read_is_written_after_them() -> None:
    w = sg.parameter(f32(6, 6), name="w")
    x = sg.input("x", (6, 6))
    old, a = w.numpy(), f32(6, 6) + 1
    (out,) = sg.compile([x], [x @ w], updates=[(w, w - 0.5 * (x.T @ x))], cache=False)(a)
    np.testing.assert_allclose(out, a @ old, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w.numpy(), old - 0.5 * (a.T @ a), rtol=1e-4, atol=1e-5)


def test_a_failed_step_changes_nothing() -> None:
    table = sg.parameter(f32(10, 4), name="table")
    steps = sg.parameter(np.zeros((), "int64"), name="steps", trainable=False)
    i = sg.input("i", ("N",), "int64")
    loss = sg.sum(table[i] ** 2)
    step = sg.compile(
        [i], [loss],
        updates=[(table, table - 0.1 * sg.gradients(loss, table)), (steps, steps + 1)],
        cache=False,
    )  # fmt: skip
    before = table.numpy()
    with pytest.raises(sg.ExecutionError, match=r"index 10 .*(\n|.)*test_compile.py"):
        step(np.array([1, 10, 3]))
    np.testing.assert_array_equal(table.numpy(), before)
    assert steps.numpy() == 0
    step(np.array([1, 9, 3]))
    assert steps.numpy() == 1 and not np.array_equal(table.numpy(), before)


def test_an_input_that_nothing_needs_is_taken_and_ignored() -> None:
    x, unused = sg.input("x", ("N",)), sg.input("unused", ("N",), "int32")
    got = sg.compile([x, unused], x * 2.0)(f32(3), np.zeros(3, "int32"))
    np.testing.assert_array_equal(got, f32(3) * 2)


@pytest.mark.parametrize("make", [
    lambda a: np.asfortranarray(a), lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    lambda a: a[::-1][::-1], lambda a: _read_only(a), lambda a: _misaligned(a),
])  # fmt: skip
def test_layout_and_alignment_of_inputs_change_no_bit(make) -> None:  # type: ignore[no-untyped-def]
    x = sg.input("x", ("N", 19))
    program = sg.compile([x], sg.sum(sg.exp(x), axis=1))
    a = f32(7, 19)
    np.testing.assert_array_equal(program(make(a)), program(a))


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _misaligned(a: np.ndarray) -> np.ndarray:
    raw = np.empty(a.nbytes + 1, np.uint8)
    view = np.frombuffer(raw.data, a.dtype, offset=1, count=a.size).reshape(a.shape)
    view[...] = a
    return view


def test_nan_and_infinity_pass_through() -> None:
    x = sg.input("x", (4,))
    a = np.array([np.nan, np.inf, -np.inf, 1.0], "float32")
    got = sg.compile([x], [sg.max(x), sg.relu(x), x - x])(a)
    assert np.isnan(got[0])
    np.testing.assert_array_equal(got[1], [np.nan, np.inf, 0.0, 1.0])
    np.testing.assert_array_equal(got[2], [np.nan, np.nan, np.nan, 0.0])


def test_reference_mode_gives_the_same() -> None:
    x, w = sg.input("x", ("N", 3)), sg.parameter(f32(3), name="w")
    out = [sg.sum(x * w)]
    updates = [(w, w * 0.5)]
    a = f32(4, 3)
    old = w.numpy()
    (slow,) = sg.compile([x], out, updates=updates, mode="reference")(a)
    np.testing.assert_array_equal(w.numpy(), old * 0.5)
    w.assign(old)
    (fast,) = sg.compile([x], out, updates=updates)(a)
    np.testing.assert_allclose(slow, fast, rtol=1e-6)
    np.testing.assert_array_equal(w.numpy(), old * 0.5)


def test_wrong_arguments_are_named() -> None:
    x, y, w = sg.input("x", ("N",)), sg.input("y", ("N",)), sg.parameter(f32(3), name="w")
    with pytest.raises(sg.GraphError, match="need the input 'y'"):
        sg.compile([x], x + y)
    with pytest.raises(sg.GraphError, match="given twice"):
        sg.compile([x, sg.input("x", (3,))], x)
    with pytest.raises(sg.ArgumentTypeError, match="is no input"):
        sg.compile([x + y], x)
    with pytest.raises(sg.ArgumentTypeError, match="expected tensors, got ndarray"):
        sg.compile([x], [f32(3)])
    with pytest.raises(sg.GraphError, match="is no state"):
        sg.compile([x], x, updates=[(x, x)])
    with pytest.raises(sg.GraphError, match="updated twice"):
        sg.compile([], w, updates=[(w, w * 2.0), (w, w * 3.0)])
    with pytest.raises(sg.ShapeError, match="its shape stays"):
        sg.compile([], w, updates=[(w, sg.sum(w))])
    with pytest.raises(sg.DTypeError, match="its dtype stays"):
        sg.compile([], w, updates=[(w, w.astype("float64"))])
    with pytest.raises(sg.ArgumentError, match="mode"):
        sg.compile([x], x, mode="fast")
    with pytest.raises(sg.ArgumentError, match="fusion"):
        sg.compile([x], x, disable=["fusion"])
    with pytest.raises(sg.ArgumentError, match="expected a list of names of passes, got 'fuse'"):
        sg.compile([x], x, disable="fuse")


def test_a_report_takes_the_program_s_symbols_and_no_others() -> None:
    x = sg.input("x", ("N", "M"))
    program = sg.compile([x], x + 1.0)
    assert program.report(N=2, M=3).to_dict()["flops"] == 6
    with pytest.raises(sg.BindError, match="report: no symbol is called Q; known: N, M"):
        program.report(N=2, Q=3)
    y = sg.input("y", (4,))
    with pytest.raises(sg.BindError, match="no symbol is called N; known: none"):
        sg.compile([y], y + 1.0).report(N=3)


def test_dims_that_must_agree_are_asked_at_the_call() -> None:
    x, y = sg.input("x", ("N", 3)), sg.input("y", ("M", 3))
    program = sg.compile([x, y], x + y)
    np.testing.assert_array_equal(program(f32(2, 3), f32(2, 3)), 2 * f32(2, 3))
    with pytest.raises(sg.BindError, match=r"do not broadcast(.|\n)*test_compile\.py"):
        program(f32(2, 3), f32(4, 3))
    doubled = sg.input("z", ("2*N+1",))
    both = sg.compile([x, doubled], [sg.sum(x), sg.sum(doubled)])
    both(f32(2, 3), f32(5))
    with pytest.raises(sg.BindError, match=r"expected 2 ?\* ?N"):
        both(f32(2, 3), f32(4))
