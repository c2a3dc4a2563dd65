"""What Keras's `fit` takes beside data and loss: weights, clipping, epochs, names of callbacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg

from .fit_models import LABELS, QUIET, RNG, Loader, X, Y, classifier, linear, sgd

W = RNG.uniform(0, 2, 50)


def test_sample_weights_weigh_the_losses_of_samples() -> None:
    model = linear()
    w, b = model.weight.numpy()[0], model.bias.numpy()[0]
    history = model.fit(
        X, Y, loss="mse", optimizer=sgd(model), epochs=2, batch_size=20, shuffle=False,
        sample_weight=W, **QUIET,
    )  # fmt: skip
    shown = []
    for _ in range(2):
        total = 0.0
        for at in (slice(0, 20), slice(20, 40), slice(40, 50)):
            e, n = X[at] @ w + b - Y[at], len(Y[at])
            total += np.sum(W[at] * e**2)
            w, b = w - 0.2 * (W[at] * e) @ X[at] / n, b - 0.2 * np.sum(W[at] * e) / n
        shown.append(total / 50)
    np.testing.assert_allclose(history["loss"], shown, rtol=1e-9)
    np.testing.assert_allclose(model.weight.numpy()[0], w, rtol=1e-9)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        ("cross_entropy", LABELS),
        ("cross_entropy", np.where(np.arange(50) % 5 == 0, -100, LABELS)),
        ("cross_entropy", np.eye(3)[LABELS]),
        ("mse", RNG.normal(size=(50, 3))),
        ("huber", RNG.normal(size=(50, 3))),
        ("bce_with_logits", np.eye(3)[LABELS]),
        ("kl_div", np.full((50, 3), 1 / 3)),
    ],
)
def test_weights_of_one_are_no_weights(loss: str, targets: Any) -> None:
    found = []
    for weight in (None, np.ones(50), [1] * 50):
        model = classifier()
        history = model.fit(
            X, targets, loss=loss, optimizer=sgd(model), batch_size=16, seed=0, metrics=[],
            sample_weight=weight, **QUIET,
        )  # fmt: skip
        found.append((history["loss"][0], *model[0].weight.numpy().ravel()))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    np.testing.assert_array_equal(found[2], found[1])


def test_class_weights_are_the_weights_of_their_samples() -> None:
    by_class, by_sample, onehot = classifier(), classifier(), classifier()
    options: dict[str, Any] = {
        "loss": "cross_entropy", "optimizer": "sgd", "seed": 0, "validation_split": 0.2, **QUIET,
    }  # fmt: skip
    first = by_class.fit(X, LABELS, class_weight={0: 5.0, 2: 0.5}, **options)
    weights = np.array([5.0, 1.0, 0.5])[LABELS]
    second = by_sample.fit(X, LABELS, sample_weight=weights, **options)
    onehot.fit(X, np.eye(3)[LABELS], class_weight={0: 5.0, 2: 0.5}, **options)
    for model in (by_sample, onehot):
        np.testing.assert_allclose(model[0].weight.numpy(), by_class[0].weight.numpy(), rtol=1e-12)
    # Weights of samples go with them into the validation, those of classes do not.
    assert first["loss"] == second["loss"] and first["val_loss"] != second["val_loss"]


@pytest.mark.parametrize("options", [{"clip_norm": 0.5}, {"clip_value": 0.1}])
def test_gradients_are_clipped_as_by_minimize(options: Any) -> None:
    model, twin = linear(), linear()
    model.fit(X, Y, loss="mse", optimizer=sgd(model), epochs=3, batch_size=50, shuffle=False,
              **options, **QUIET)  # fmt: skip
    x, y = sg.input("x", ("N", 3), "float64"), sg.input("y", ("N", 1), "float64")
    loss = sg.nn.functional.mse_loss(twin(x), y)
    step = sg.compile([x, y], loss, updates=sgd(twin).minimize(loss, **options))
    for _ in range(3):
        step(X, Y[:, None])
    np.testing.assert_allclose(model.weight.numpy(), twin.weight.numpy(), rtol=1e-12)
    free = linear()
    free.fit(X, Y, loss="mse", optimizer=sgd(free), epochs=3, batch_size=50, **QUIET)
    assert (abs(free.weight.numpy() - model.weight.numpy()) > 1e-3).any()


def test_epochs_go_on_from_initial_epoch() -> None:
    seen: list[int] = []
    history = linear().fit(
        X, Y, loss="mse", epochs=5, initial_epoch=3, callbacks=lambda e, logs: seen.append(e),
        **QUIET,
    )  # fmt: skip
    assert seen == history.epoch == [3, 4]


def test_callbacks_by_keras_names_of_steps() -> None:
    class Names(sg.nn.Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.seen.append(batch)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen.append(sorted(logs))

    names = Names()
    linear().fit(X, Y, loss="mse", batch_size=25, callbacks=[names], **QUIET)
    assert names.seen == [0, ["loss", "size"], 1, ["loss", "size"]]


def test_callbacks_that_can_not_be_called_are_refused_before_the_first_epoch() -> None:
    class Wrong(sg.nn.Callback):
        def on_epoch_end(self, epoch: int) -> None:  # type: ignore[override]
            raise AssertionError

    for callback, message in (
        (Wrong(), r"Wrong.on_epoch_end\(epoch.*is called with \(epoch, logs\)"),
        (lambda logs: None, r"<lambda>\(logs\) is called with \(epoch, logs\)"),
    ):
        with pytest.raises(sg.ArgumentTypeError, match=message):
            linear().fit(X, Y, loss="mse", callbacks=[callback], **QUIET)


class Two(sg.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = linear(), linear()

    def forward(self, u: Any, v: Any) -> Any:
        return self.left(u) + self.right(v)


def test_a_list_of_arrays_is_several_inputs_where_forward_needs_them() -> None:
    model, twin = Two(), Two()
    options: dict[str, Any] = {"loss": "mse", "optimizer": "sgd", "seed": 0, **QUIET}
    both = [X, X + 1]
    first = model.fit(both, Y, validation_data=(both, Y), **options)
    second = twin.fit(tuple(both), Y, validation_data=(tuple(both), Y), **options)
    assert first.history == second.history
    np.testing.assert_array_equal(model.predict(both), twin.predict(tuple(both)))
    assert model.evaluate(both, Y) == twin.evaluate(tuple(both), Y)
    rows = linear().predict(list(X))  # a list of samples stays one array, of float32 as lists are
    np.testing.assert_allclose(rows, linear().predict(X.astype("float32")), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_weight": [1.0, 2.0]}, "x has 50, y has 50, sample_weight has 2"),
        ({"sample_weight": W[:, None]}, "expected one number for each sample"),
        ({"sample_weight": -W}, "finite weights of at least 0"),
        ({"sample_weight": W, "class_weight": {0: 1.0}}, "sample_weight or class_weight, not both"),
        ({"class_weight": [1.0, 2.0]}, "a dict of weights by class"),
        ({"sample_weight": W, "loss": lambda p, t: sg.mean(p - t)}, "a loss by its name"),
        ({"initial_epoch": -1}, "initial_epoch can't be negative"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"clipnorm": 1.0}, "use clip_norm=.. of fit"),
        (
            {"optimizer": sg.optim.Adam(sg.nn.Linear(3, 1).parameters())},
            r"this Adam was made for other parameters.*sg.optim.Adam\(model.parameters",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, message: str) -> None:
    with pytest.raises(sg.StaticgradError, match=message):
        linear().fit(X, Y, **{"loss": "mse", **options}, **QUIET)


def test_weights_of_loaders_are_refused() -> None:
    for options in ({"sample_weight": W}, {"class_weight": {0: 1.0}}):
        with pytest.raises(sg.ArgumentError, match="needs the samples as arrays"):
            linear().fit(Loader(5), loss="mse", **options, **QUIET)
