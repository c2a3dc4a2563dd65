"""Buffers that a layer of one's own updates: by `training_switch`, else refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg

from .fit_models import QUIET

X = np.random.default_rng(3).normal(size=(20, 3))


class Centred(sg.nn.Module):
    """Subtracts the batch's mean in training, else the running one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", np.zeros(3))
        self.scale = sg.parameter(np.ones(3))

    def forward(self, x: Any) -> Any:
        mean = x.mean(axis=0)
        pairs = [(self.mean, self.mean * 0.5 + mean * 0.5)]
        used = sg.nn.functional.training_switch(mean, self.mean, pairs, training=self.training)
        return (x - used) * self.scale


def test_a_layer_updates_its_buffer_in_training_alone() -> None:
    model = Centred()
    model.fit(X, X, loss="mse", batch_size=10, shuffle=False, optimizer="sgd", **QUIET)
    expected = X[:10].mean(0) * 0.25 + X[10:].mean(0) * 0.5
    np.testing.assert_allclose(model.mean.numpy(), expected, rtol=1e-12)
    shown = model.predict(X)
    np.testing.assert_allclose(shown, (X - expected) * model.scale.numpy(), rtol=1e-12)
    np.testing.assert_allclose(model.mean.numpy(), expected, rtol=1e-12)


def test_so_it_does_in_the_dynamic_mode() -> None:
    model = Centred()
    np.testing.assert_allclose(
        model(sg.eager.tensor(X)).detach().numpy(), X - X.mean(0), rtol=1e-12
    )
    np.testing.assert_allclose(model.mean.numpy(), X.mean(0) / 2, rtol=1e-12)
    model.eval()
    np.testing.assert_allclose(
        model(sg.eager.tensor(X)).detach().numpy(), X - X.mean(0) / 2, rtol=1e-12
    )


def _assigned(m: Any, x: Any) -> None:
    m.mean = x.mean(axis=0)


def _added(m: Any, x: Any) -> None:
    m.mean += x.mean(axis=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, x: m.mean.copy_(x.mean(axis=0)), lambda m, x: m.mean.assign(x.mean(axis=0)),
        lambda m, x: m.mean.mul_(0.9), _assigned, _added,
    ],
)  # fmt: skip
def test_a_change_while_a_graph_is_declared_is_refused(change: Any) -> None:
    class Wrong(Centred):
        def forward(self, x: Any) -> Any:
            change(self, x)
            return x

    model = Wrong()
    with pytest.raises(
        sg.ArgumentTypeError, match=r"updates=\[\(state, new\)\]\).*training_switch"
    ):
        model(sg.input("x", ("N", 3), "float64"))
    assert not model.mean.numpy().any()
    model(sg.eager.tensor(X)) if change not in (_assigned, _added) else None


def test_outside_of_a_graph_they_change_in_place() -> None:
    model = Centred()
    model.mean.add_(2.0)
    model.mean.copy_(model.scale)
    model.mean.assign(sg.ones(3, dtype="float64") * 4)
    np.testing.assert_array_equal(model.mean.numpy(), [4, 4, 4])
