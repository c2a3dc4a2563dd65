"""`training_switch` under differentiation and batching: the choice stays open until compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.autodiff.batching import batched
from staticgrad.autodiff.forward import push
from staticgrad.ops.mode import training_switch

Many = tuple[Any, Any, Any]


@pytest.mark.parametrize("training", [None, True, False])
def test_the_mode_is_bound_for_values_and_tangents_alike(training: bool | None) -> None:
    x = sg.input("x", (2,))
    state = sg.parameter(np.zeros(2, "float32"), trainable=False)
    updates = [] if training is False else [(state, x)]
    y = training_switch(x * 2.0, x * x, updates, training=training)
    (t,) = push([y], [x], [sg.ones_like(x)])
    for bound in (True, False):
        program = sg.compile([x], [y, t], training=bound)
        value, tangent = program(np.float32([3, 5]))
        trains = bound if training is None else training
        assert value.tolist() == ([6, 10] if trains else [9, 25])
        assert tangent.tolist() == ([2, 2] if trains else [6, 10])


def test_a_branch_that_does_not_move_has_the_tangent_zero() -> None:
    x, still = sg.input("x", (2,)), sg.input("still", (2,))
    for training in (True, False):
        for branches, moves in (((x, still), training), ((still, x), not training)):
            (t,) = push([training_switch(*branches)], [x], [sg.ones_like(x)])
            found = sg.compile([x, still], [t], training=training)(*np.zeros((2, 2), "float32"))
            assert found[0].tolist() == ([1, 1] if moves else [0, 0])


# --- batched --------------------------------------------------------------------------------------


@pytest.fixture
def row() -> Many:
    """A row, a tensor of three rows to take its place, and state."""
    state = sg.parameter(np.zeros(2, "float32"), name="running", trainable=False)
    return sg.input("x", (2,)), sg.input("xs", (3, 2)), state


XS = np.arange(6, dtype="float32").reshape(3, 2)


@pytest.mark.parametrize("training", [None, True, False])
def test_one_branch_alone_may_be_batched(row: Many, training: bool | None) -> None:
    x, xs, _ = row
    for branches, whole in (((x, x[::-1]), True), ((x, sg.zeros(2)), False)):
        y = training_switch(*branches, training=training)
        ((found, is_batched),) = batched([y], {x: xs}, 3)
        for bound in (True, False):
            got = sg.compile([xs], found, training=bound)(XS)
            trains = bound if training is None else training
            expected = XS if trains else XS[:, ::-1] if whole else np.zeros((3, 2), "float32")
            assert is_batched or training is False
            np.testing.assert_array_equal(np.broadcast_to(got, (3, 2)), expected)


def test_updates_that_all_rows_share_are_kept(row: Many) -> None:
    x, xs, state = row
    y = training_switch(x, x * 2.0, [(state, state + 1.0)])
    ((found, _),) = batched([y], {x: xs}, 3)
    program = sg.compile([xs], found, training=True)
    np.testing.assert_array_equal(program(XS), XS)
    np.testing.assert_array_equal(state.numpy(), [1, 1])


@pytest.mark.parametrize("training", [None, True])
def test_state_that_would_differ_from_row_to_row_is_refused(
    row: Many, training: bool | None
) -> None:
    x, xs, state = row
    y = training_switch(x, x * 2.0, [(state, state + x)], training=training)
    with pytest.raises(sg.UnsupportedError, match=r"'running'.*each of the 3 rows.*model.eval\(\)"):
        batched([y], {x: xs}, 3)


def test_batch_norm_in_evaluation_is_batched(row: Many) -> None:
    layer = sg.nn.BatchNorm1d(2).eval()
    x, xs = sg.input("x", (4, 2)), sg.input("xs", (3, 4, 2))
    ((found, _),) = batched([layer(x)], {x: xs}, 3)
    at = np.random.default_rng(0).standard_normal((3, 4, 2)).astype("float32")
    one = sg.compile([x], layer(x))
    np.testing.assert_array_equal(sg.compile([xs], found)(at), [one(a) for a in at])


def _norm_model() -> tuple[Any, Any, Any]:
    x = sg.input("x", ("N", 3), "float32")
    norm = sg.nn.BatchNorm1d(3)
    return x, norm, sg.nn.Linear(3, 3)


def test_batch_norm_in_a_checkpoint_updates_its_statistics() -> None:
    x, norm, linear = _norm_model()
    a = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    results = []
    for wrap in (lambda f: f, sg.checkpoint):
        norm.running_mean.assign(np.zeros(3, "float32"))
        loss = wrap(lambda v: norm(linear(v)))(x).square().mean()
        grads = sg.gradients(loss, [linear.weight])
        step = sg.compile([x], [loss, *grads], training=True)
        results.append([*step(a), norm.running_mean.numpy()])
    for plain, again in zip(*results):
        np.testing.assert_allclose(plain, again, rtol=1e-6, atol=1e-7)
    assert np.abs(results[0][-1]).max() > 0


def test_batch_norm_trained_in_a_loop_is_refused() -> None:
    x, norm, _ = _norm_model()
    y = sg.fori_loop(0, 3, lambda i, v: norm(v), x)
    with pytest.raises(sg.UnsupportedError, match=r"running statistics(.|\n)*test_mode.py"):
        sg.compile([x], y, training=True)
    sg.compile([x], y, training=False)


def test_draws_in_a_checkpoint_differ_from_call_to_call() -> None:
    x = sg.input("x", (5,))
    loss = sg.checkpoint(lambda v: v * sg.random.uniform((5,)))(x).sum()
    step = sg.compile([x], sg.gradients(loss, x))
    a, b = step(np.ones(5, "float32")), step(np.ones(5, "float32"))
    assert (a != b).all()
