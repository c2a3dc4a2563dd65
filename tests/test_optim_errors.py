"""What optimisers refuse, with what serves instead; the learning rate by Keras's name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

W = sg.parameter(np.ones(3, "float32"), name="w")
X = sg.input("x", (3,))
LOSS = sg.sum(W * X)


def sgd(**options: Any) -> sg.optim.SGD:
    return sg.optim.SGD([W], lr=0.1, **options)


def minimized(loss: Any, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: sgd().minimize(loss, *args, **options)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no scalar": (
        minimized(W * X), sg.DifferentiationError,
        r"SGD.minimize: the loss must be a floating scalar, got float32\[3\]; reduce it with",
    ),
    "an integer": (
        minimized(sg.argmax(W * X)), sg.DifferentiationError,
        r"must be a floating scalar, got int64\[\]; only floats have a gradient",
    ),
    "a function": (
        minimized(lambda: LOSS), sg.ArgumentTypeError,
        r"must be a tensor of a graph, got .*function; call it .* minimize\(f\(x, y\)\)",
    ),
    "a list": (minimized([LOSS, LOSS]), sg.ArgumentTypeError, "add the losses up"),
    "a number": (minimized(3.0), sg.ArgumentTypeError, "must be a tensor of a graph, got 3.0"),
    "no path": (minimized(sg.sum(X)), sg.DifferentiationError, "SGD.minimize: .* does not depend"),
    "a name": (minimized(LOSS, "w"), sg.ArgumentTypeError, "must be a list of parameters, got 'w'"),
    "no state": (minimized(LOSS, [X]), sg.ArgumentError, "'x' is not among this optimiser's"),
    "nothing": (minimized(LOSS, []), sg.ArgumentError, "the list of parameters is empty"),
    "TensorFlow": (minimized(LOSS, var_list=[W]), sg.ArgumentTypeError, r"use parameters=\[\.\.\]"),
    "SciPy": (minimized(LOSS, maxiter=5), sg.ArgumentTypeError, "each call .* is one step"),
    "clip_norm": (minimized(LOSS, clip_norm=0), sg.ArgumentError, "clip_norm must be positive"),
    "clip_value": (minimized(LOSS, clip_value=-1.0), sg.ArgumentError, "clip_value must be posit"),
    "a dict": (
        lambda: sg.optim.SGD({"w": W}), sg.ArgumentTypeError, r"not a dict; pass its values\(\)"
    ),
    "a model": (
        lambda: sg.optim.SGD(sg.nn.Linear(2, 2)), sg.ArgumentTypeError,
        r"got Linear; pass its parameters\(\)",
    ),
    "an int parameter": (
        lambda: sg.optim.SGD([sg.parameter(np.ones(3, "int32"), name="i")]), sg.ArgumentError,
        r"SGD: 'i' of type int32\[3\] is not trainable",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_mend(case: str) -> None:
    call, error, text = REFUSED[case]
    with pytest.raises(error, match=f"(?s){text}") as caught:
        call()
    assert str(caught.value).count("\n  at test_optim_errors.py:") == 1


def test_learning_rate_is_lr() -> None:
    optimizer = sgd()
    step = sg.compile([X], LOSS, updates=optimizer.minimize(LOSS))
    before = W.numpy()
    optimizer.learning_rate = 0.5
    assert optimizer.lr == optimizer.learning_rate == 0.5
    step(np.ones(3, "float32"))
    np.testing.assert_allclose(W.numpy(), before - 0.5)
    optimizer.learning_rate.assign(0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    with pytest.raises(sg.ArgumentTypeError, match="must be a number, got 'fast'"):
        optimizer.learning_rate = "fast"  # type: ignore[assignment]


def test_options_that_are_fixed_are_not_taken_silently() -> None:
    optimizer = sgd(momentum=0.9)
    with pytest.raises(sg.ArgumentError, match="SGD: the option 'momentum' is fixed"):
        optimizer.momentum = 0.5  # type: ignore[attr-defined]
    for name in ("momentum", "learning_rate"):
        with pytest.raises(sg.ArgumentError, match=f"the option '{name}' is fixed"):
            optimizer.param_groups[0][name] = 0.5


def test_an_optimiser_of_the_user_s_may_keep_its_options() -> None:
    class Plain(sg.optim.Optimizer):
        def __init__(self, params: Any, lr: float, rho: float) -> None:
            super().__init__(params, {"lr": lr, "rho": rho})
            self.rho = rho

        def rule(self, group: Any, p: Any, g: Any, slots: Any, scalars: Any) -> Any:
            return p - scalars["lr"] * self.rho * g, {}

    optimizer = Plain([W], 0.1, 0.5)
    assert optimizer.rho == 0.5 and len(optimizer.minimize(LOSS)) == 1
    optimizer.note = "an attribute of the user's"  # type: ignore[attr-defined]


def test_names_of_others_are_hinted_at() -> None:
    for owner in (sg, sg.optim):
        with pytest.raises(AttributeError, match="minimize': use an optimiser's minimize"):
            owner.minimize  # noqa: B018
    with pytest.raises(AttributeError, match=r"sg\.optim has no attribute 'NAdam': use sg\.optim"):
        sg.optim.NAdam  # noqa: B018
    assert "staticgrad.optim" in sys.modules
