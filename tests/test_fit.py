"""`fit`, `evaluate`, `predict`: against closed forms and loops written in NumPy."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.nn import training

from .fit_models import LABELS, QUIET, RNG, Loader, X, Y, classifier, linear, sgd


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that were made, whether or not their code was known."""
    made: list[Any] = []

    def count(inputs: Any, *args: Any, **options: Any) -> Any:
        made.append([" ".join(map(str, t.shape)) for t in inputs])
        return real(inputs, *args, **options)

    real = training.compile_tensors
    monkeypatch.setattr(training, "compile_tensors", count)
    return made


# --- numbers --------------------------------------------------------------------------------------


def test_a_linear_model_converges_to_least_squares() -> None:
    model = linear()
    history = model.fit(X, Y, loss="mse", optimizer=sgd(model), epochs=300, batch_size=50, **QUIET)
    columns = np.hstack([X, np.ones((50, 1))])
    best, residual, *_ = np.linalg.lstsq(columns, Y, rcond=None)
    found = np.append(model.weight.numpy()[0], model.bias.numpy())
    np.testing.assert_allclose(found, best, rtol=1e-8)
    np.testing.assert_allclose(history["loss"][-1], residual[0] / 50, rtol=1e-8)
    np.testing.assert_allclose(model.predict(X)[:, 0], columns @ best, rtol=1e-8)


def test_epochs_equal_a_loop_in_numpy_with_the_same_batches() -> None:
    """Momentum, a last batch of 2, validation on the last samples."""
    model = linear()
    w, b = model.weight.numpy()[0], model.bias.numpy()[0]
    history = model.fit(
        X, Y, loss="mse", optimizer=sgd(model, momentum=0.9, lr=0.05), epochs=4, batch_size=6,
        validation_split=0.24, metrics=["mae"], seed=7, **QUIET,
    )  # fmt: skip
    order, vw, vb = np.random.default_rng(7), np.zeros(3), 0.0
    for epoch in range(4):
        losses, errors, rows = 0.0, 0.0, order.permutation(38)
        for start in range(0, 38, 6):
            at = rows[start : start + 6]
            e = X[at] @ w + b - Y[at]
            losses, errors = losses + np.sum(e**2), errors + np.sum(np.abs(e))
            vw, vb = 0.9 * vw + 2 * X[at].T @ e / len(at), 0.9 * vb + 2 * np.mean(e)
            w, b = w - 0.05 * vw, b - 0.05 * vb
        np.testing.assert_allclose(history["loss"][epoch], losses / 38, rtol=1e-10)
        np.testing.assert_allclose(history["mae"][epoch], errors / 38, rtol=1e-10)
        held = X[38:] @ w + b - Y[38:]
        np.testing.assert_allclose(history["val_loss"][epoch], np.mean(held**2), rtol=1e-10)
        np.testing.assert_allclose(history["val_mae"][epoch], np.mean(abs(held)), rtol=1e-10)
    np.testing.assert_allclose(model.weight.numpy()[0], w, rtol=1e-10)


def test_cross_entropy_and_accuracy_equal_numpy() -> None:
    model = classifier()
    history = model.fit(X, LABELS, loss="cross_entropy", optimizer="adam", epochs=2, **QUIET)
    assert list(history) == ["loss", "accuracy"]
    loss, accuracy = model.evaluate(X, LABELS, batch_size=7)
    logits = model.predict(X, batch_size=9)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(loss, -np.mean(logp[np.arange(50), LABELS]), rtol=1e-10)
    np.testing.assert_allclose(accuracy, np.mean(logits.argmax(axis=1) == LABELS), rtol=1e-12)
    state = model.state_dict()
    hidden = np.tanh(X @ state["0.weight"].T + state["0.bias"])
    np.testing.assert_allclose(logits, hidden @ state["2.weight"].T + state["2.bias"], rtol=1e-10)


def test_prediction_bits_do_not_depend_on_the_batch_size() -> None:
    model = classifier()
    whole = model.predict(X, batch_size=50)
    assert model.predict(X, batch_size=1).tobytes() == whole.tobytes()
    assert model.predict(X[:0]).shape == (0, 3)


def _bce(p: Any, t: Any) -> Any:
    return -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))


LOSSES: dict[str, Any] = {
    "mse": lambda p, t: np.mean((p - t) ** 2),
    "mean_squared_error": lambda p, t: np.mean((p - t) ** 2),
    "l1": lambda p, t: np.mean(np.abs(p - t)),
    "mae": lambda p, t: np.mean(np.abs(p - t)),
    "huber": lambda p, t: np.mean(
        np.where(abs(p - t) <= 1, (p - t) ** 2 / 2, abs(p - t) - 0.5)
    ),
    "smooth_l1": lambda p, t: np.mean(
        np.where(abs(p - t) < 1, (p - t) ** 2 / 2, abs(p - t) - 0.5)
    ),
    "bce_with_logits": lambda p, t: _bce(1 / (1 + np.exp(-p)), t),
    "binary_cross_entropy_with_logits": lambda p, t: _bce(1 / (1 + np.exp(-p)), t),
    "soft_margin": lambda p, t: np.mean(np.log1p(np.exp(-t * p))),
    "hinge_embedding": lambda p, t: np.mean(np.where(t == 1, p, np.maximum(0, 1 - p))),
    "poisson_nll": lambda p, t: np.mean(np.exp(p) - t * p),
    "kl_div": lambda p, t: np.sum(np.where(t > 0, -t * p, 0)) / len(p),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses_by_name(name: str) -> None:
    model, targets = linear(), (Y > 0).astype("int8")  # integers become floating
    if name in ("soft_margin", "hinge_embedding"):
        targets = 2 * targets - 1
    scores = model.evaluate(X, targets, loss=name, batch_size=50, metrics=[])
    prediction = model.predict(X)[:, 0]
    np.testing.assert_allclose(float(scores), LOSSES[name](prediction, targets), rtol=1e-10)


def test_losses_of_classes_by_name() -> None:
    base = linear(out=3)
    model = sg.nn.Sequential(base, sg.nn.LogSoftmax(dim=1))
    logp = model.predict(X)
    expected = -np.mean(logp[np.arange(50), LABELS])
    options: dict[str, Any] = {"metrics": (), "batch_size": 50}
    for loss in ("nll", sg.nn.NLLLoss(), "cross_entropy", sg.nn.CrossEntropyLoss()):
        scores = model.evaluate(X, LABELS, loss=loss, **options)
        np.testing.assert_allclose(float(scores), expected, rtol=1e-10)
    for targets in (np.eye(3)[LABELS], np.eye(3, dtype="int64")[LABELS], LABELS[:, None]):
        scores = model.evaluate(X, targets, loss="cross_entropy", **options)
        np.testing.assert_allclose(float(scores), expected, rtol=1e-10)
    halves = sg.nn.Sequential(linear(), sg.nn.Sigmoid())
    found = halves.evaluate(X, Y > 0, loss="bce")
    p = halves.predict(X)[:, 0]
    np.testing.assert_allclose(found["loss"], _bce(p, Y > 0), rtol=1e-10)
    np.testing.assert_allclose(found["accuracy"], np.mean((p > 0.5) == (Y > 0)), rtol=1e-12)


def test_a_loss_may_be_a_function_or_a_module() -> None:
    model = linear()
    prediction = model.predict(X)[:, 0]
    scaled = model.evaluate(X, Y, loss=lambda p, t: ((p[:, 0] - t) ** 4).sum(), batch_size=50)
    np.testing.assert_allclose(float(scaled), np.sum((prediction - Y) ** 4), rtol=1e-10)
    total = model.evaluate(X, Y, loss=sg.nn.MSELoss(reduction="sum"), batch_size=50)
    np.testing.assert_allclose(float(total), np.sum((prediction - Y) ** 2), rtol=1e-10)


def test_ignored_labels_count_nothing() -> None:
    model, labels = linear(out=3), LABELS.copy()
    labels[::3] = -100
    counted = labels != -100
    right = model.predict(X).argmax(axis=1) == labels
    # Batches with different numbers of counted labels: the accuracy is that of all counted ones.
    scores = model.evaluate(X, labels, loss="cross_entropy", batch_size=7)
    np.testing.assert_allclose(scores["accuracy"], right[counted].mean(), rtol=1e-12)


def test_accuracy_where_the_prediction_has_more_axes() -> None:
    class Pixels(sg.nn.Module):
        def forward(self, x: Any) -> Any:
            return x

    logits, labels = RNG.normal(size=(9, 4, 5)), RNG.integers(0, 4, (9, 5))
    scores = Pixels().evaluate(logits, labels, loss="cross_entropy", batch_size=4)
    np.testing.assert_allclose(scores["accuracy"], np.mean(logits.argmax(1) == labels), rtol=1e-12)
    binary = Pixels().evaluate(logits[:, 0], labels > 1, loss="bce_with_logits", batch_size=2)
    np.testing.assert_allclose(binary["accuracy"], np.mean((logits[:, 0] > 0) == (labels > 1)))
    hot = Pixels().evaluate(logits[:, :, 0], np.eye(4)[labels[:, 0]], loss="mse",
                            metrics="accuracy")  # fmt: skip
    np.testing.assert_allclose(hot["accuracy"], np.mean(logits[:, :, 0].argmax(1) == labels[:, 0]))


def test_metrics_may_be_functions_of_arrays() -> None:
    def worst(prediction: Any, target: Any) -> float:
        assert type(prediction) is np.ndarray and prediction.shape == (*target.shape, 1)
        return float(np.max(np.abs(prediction[:, 0] - target)))

    model = linear()
    history = model.fit(
        X, Y, loss="mse", optimizer=sgd(model, lr=0.0), batch_size=50, shuffle=False,
        metrics={"a": "mse", "b": worst}.items(), **QUIET,
    )  # fmt: skip
    assert list(history) == ["loss", "mse", "b"]
    worst_error = np.max(np.abs(model.predict(X)[:, 0] - Y))
    np.testing.assert_allclose(history["b"][0], worst_error, rtol=1e-10)
    halves = [worst(model.predict(X[at]), Y[at]) for at in (slice(0, 25), slice(25, 50))]
    found = model.evaluate(X, Y, metrics=[worst], batch_size=25)
    np.testing.assert_allclose(found["worst"], np.mean(halves))


# --- what is compiled -----------------------------------------------------------------------------


def test_everything_is_compiled_once(compiled: list[Any]) -> None:
    model = classifier()
    for _ in range(2):
        model.fit(X, LABELS, loss="cross_entropy", optimizer="adam", epochs=2, batch_size=16,
                  validation_data=(X[:9], LABELS[:9]), **QUIET)  # fmt: skip
        model.fit(X[:7], LABELS[:7], **QUIET)  # those of the last call
        model.evaluate(X, LABELS)
        model.predict(X)
    assert compiled == [["N 3", "N"], ["N 3", "N"], ["N 3"]]
    for _ in range(2):  # another loss for once
        assert model.evaluate(X, LABELS, loss="nll", metrics=()).keys() == ("loss",)
    assert len(compiled) == 4
    assert list(model.fit(X, LABELS, **QUIET)) == ["loss", "accuracy"]  # that of the last fit
    assert len(compiled) == 4
    model.fit(X, LABELS, loss=sg.nn.CrossEntropyLoss(), **QUIET)
    model.fit(X, LABELS, optimizer=sgd(model), **QUIET)
    assert len(compiled) == 6


def test_the_optimiser_goes_on_where_it_was() -> None:
    one, two = classifier(), classifier()
    options = {"loss": "cross_entropy", "shuffle": False, "batch_size": 50, **QUIET}
    one.fit(X, LABELS, optimizer="adam", epochs=4, **options)
    for _ in range(2):
        two.fit(X, LABELS, optimizer="Adam", epochs=2, **options)
    assert one.predict(X).tobytes() == two.predict(X).tobytes()


def test_a_second_size_makes_an_axis_symbolic(compiled: list[Any]) -> None:
    class Mean(sg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = sg.parameter(np.ones(()), name="scale")

        def forward(self, x: Any) -> Any:
            return x * self.scale

    model = Mean()
    batches = [(RNG.normal(size=(n, k)), RNG.normal(size=(n, k))) for n, k in
               [(2, 3), (4, 3), (4, 5), (1, 8), (3, 3)]]  # fmt: skip
    model.fit(batches, loss="mse", optimizer=sgd(model), epochs=2, **QUIET)
    assert compiled == [["N 3", "N 3"], ["N D1", "N D1"]]
    errors = [np.mean((x * model.scale.numpy() - y) ** 2) * len(x) for x, y in batches]
    samples = sum(len(x) for x, _ in batches)
    np.testing.assert_allclose(float(model.evaluate(batches)), sum(errors) / samples, rtol=1e-10)


def test_a_model_that_needs_int_dims_gets_a_program_for_each_size(compiled: list[Any]) -> None:
    class Unpacks(sg.nn.Module):
        def forward(self, x: Any) -> Any:
            first, *_ = x.T
            return first

    model = Unpacks()
    for k in (2, 4, 2, 4, 3):
        x = RNG.normal(size=(5, k))
        np.testing.assert_array_equal(model.predict(x), x[:, 0])
    assert compiled == [["N 2"], ["N 4"], ["N 3"]]


def test_a_changed_model_is_compiled_again() -> None:
    model = sg.nn.Sequential(sg.nn.Linear(3, 1), sg.nn.LeakyReLU(0.5))
    model.fit(X, Y, loss="mse", optimizer="adam", **QUIET)
    before = model.predict(X)
    model[1].negative_slope = 1.0
    after = model.predict(X)
    np.testing.assert_allclose(after, np.where(before < 0, 2 * before, before), rtol=1e-6)
    huber, error = sg.nn.HuberLoss(delta=1e6), np.mean((after[:, 0] - Y) ** 2)
    np.testing.assert_allclose(float(model.evaluate(X, Y, loss=huber)), error / 2, rtol=1e-5)
    huber.delta = 1e-6
    absolute = 1e-6 * np.mean(np.abs(after[:, 0] - Y))
    np.testing.assert_allclose(float(model.evaluate(X, Y, loss=huber)), absolute, rtol=1e-5)
    model[0] = sg.nn.Linear(3, 1)
    model[0].weight.assign(np.zeros((1, 3)))
    assert len(np.unique(model.predict(X))) == 1
    model.fit(X, Y, loss="mse", optimizer="adam", epochs=3, **QUIET)  # of the new parameters
    assert len(np.unique(model.predict(X))) > 1


def test_floating_data_takes_the_dtype_of_the_parameters() -> None:
    model = linear("float32")
    assert model.predict(X).dtype == "float32"
    np.testing.assert_array_equal(model.predict(X), model.predict(X.astype("float32")))
    model.fit(X, Y, loss="mse", **QUIET)


# --- modes ----------------------------------------------------------------------------------------


def test_training_trains_and_predicting_predicts_whatever_the_mode() -> None:
    model = sg.nn.Sequential(sg.nn.BatchNorm1d(3, momentum=1.0), sg.nn.Dropout(0.5))
    for mode in (None, True, False):
        model.train(mode)
        data = X + len(str(mode))
        model.fit(data, X, loss="mse", optimizer=sgd(model, 0.0), batch_size=50, **QUIET)
        np.testing.assert_allclose(
            model.state_dict()["0.running_mean"], data.mean(axis=0), rtol=1e-5
        )
        scale = np.sqrt(data.var(axis=0, ddof=1) + 1e-5)
        expected = (data - data.mean(axis=0)) / scale
        np.testing.assert_allclose(model.predict(data), expected, rtol=1e-4, atol=1e-5)
        assert model._mode is mode


def test_a_part_in_a_mode_of_its_own_keeps_it() -> None:
    model = sg.nn.Sequential(sg.nn.BatchNorm1d(3), sg.nn.Linear(3, 1))
    model[0].eval()
    model.fit(X, Y, loss="mse", **QUIET)
    np.testing.assert_array_equal(model.state_dict()["0.running_mean"], np.zeros(3))
    model.train()
    model[0].eval()
    model.fit(X, Y, loss="mse", **QUIET)
    np.testing.assert_array_equal(model.state_dict()["0.running_mean"], np.zeros(3))


# --- forms of data --------------------------------------------------------------------------------


class Two(sg.nn.Module):
    """a + 10 b, and their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = sg.parameter(np.ones(()), name="scale")

    def forward(self, a: Any, b: Any) -> Any:
        return {"sum": (a + 10.0 * b) * self.scale, "parts": (a - b, [b])}


def test_several_inputs_and_outputs() -> None:
    model, a, b = Two(), X[:, 0], X[:, 1]
    for given in ((a, b), {"b": b, "a": a}):
        found = model.predict(given, batch_size=20)
        np.testing.assert_allclose(found["sum"], a + 10 * b, rtol=1e-12)
        np.testing.assert_allclose(found["parts"][0], a - b, rtol=1e-12)
        np.testing.assert_array_equal(found["parts"][1][0], b)

    def loss(prediction: Any, target: Any) -> Any:
        return ((prediction["sum"] - target[0]) ** 2 + (prediction["parts"][0] - target[1])).mean()

    scores = model.evaluate((a, b), (a, b), loss=loss, batch_size=50)
    np.testing.assert_allclose(float(scores), np.mean((10 * b) ** 2 + a - 2 * b), rtol=1e-10)
    model.fit({"a": a, "b": b}, (a, b), loss=loss, optimizer=sgd(model, 0.001), **QUIET)
    assert model.scale.numpy() < 1.0
    with pytest.raises(sg.ArgumentTypeError, match="mse takes one prediction and one target"):
        model.fit((a, b), (a, b), loss="mse", **QUIET)


def test_lists_are_data() -> None:
    model = linear("float32")
    np.testing.assert_array_equal(
        model.predict(X.astype("float32").tolist()), model.predict(X.astype("float32"))
    )
    history = model.fit([[1.0, 2.0, 3.0], [4, 5, 6]], [1, 2], loss="mse", **QUIET)
    assert len(history["loss"]) == 1


def test_loaders_give_the_numbers_of_arrays() -> None:
    one, two, three = linear(), linear(), linear()
    options = {"loss": "mse", "epochs": 3, **QUIET}
    data = sg.data.DataLoader(sg.data.TensorDataset(X, Y), batch_size=16, shuffle=True, seed=5)
    first = one.fit(X, Y, optimizer=sgd(one), batch_size=16, seed=5, **options)
    second = two.fit(data, optimizer=sgd(two), **options)
    assert first.history == second.history
    third = three.fit(Loader(16, 16, 16, 2), optimizer=sgd(three), validation_data=Loader(20, 30),
                      **options)  # fmt: skip
    assert third["val_loss"][-1] == pytest.approx(float(three.evaluate(X, Y)), rel=1e-12)
    np.testing.assert_array_equal(one.predict(Loader(20, 30)), one.predict(X))
    np.testing.assert_array_equal(one.predict(iter([X[:9], (X[9:],)])), one.predict(X))


def test_the_data_loader_has_pytorchs_rules() -> None:
    a, b = np.arange(10), np.arange(20).reshape(10, 2)
    loader = sg.data.DataLoader((a, b), batch_size=4)
    assert len(loader) == 3 and [len(x) for x, _ in loader] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([y for _, y in loader]), b)
    whole = sg.data.DataLoader((a, b), batch_size=4, drop_last=True)
    assert len(whole) == 2 and [len(x) for x, _ in whole] == [4, 4]
    shuffled = sg.data.DataLoader(a, batch_size=4, shuffle=True, seed=3)
    rng = np.random.default_rng(3)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(shuffled)), rng.permutation(10))
    samples = sg.data.DataLoader([(np.ones(2, "float32") * i, i) for i in range(3)], batch_size=2)
    (x, y), (x2, _) = samples
    assert x.tolist() == [[0, 0], [1, 1]] and y.tolist() == [0, 1] and x2.shape == (1, 2)
    assert y.dtype == "int64" and x.dtype == "float32"
    dataset = sg.data.TensorDataset(a, b)
    assert len(dataset) == 10 and dataset[3][1].tolist() == [6, 7]
    assert repr(dataset) == "TensorDataset((10,), (10, 2))"
    assert list(sg.data.DataLoader(a[:0], batch_size=3)) == []


def test_the_order_comes_from_the_projects_seed() -> None:
    orders: list[Any] = []
    for _ in range(2):
        sg.random.seed(11)
        model = sg.nn.Linear(3, 1)
        model.fit(X, Y, loss="mse", batch_size=4, **QUIET)
        orders.append(model.predict(X).tobytes())
    assert orders[0] == orders[1]
    model.fit(X, Y, loss="mse", batch_size=4, shuffle=False, **QUIET)


# --- the model as an object -----------------------------------------------------------------------


def test_a_fitted_model_can_be_copied() -> None:
    model = linear()
    model.fit(X, Y, loss="mse", optimizer=sgd(model), **QUIET)
    other = copy.deepcopy(model)
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    before = model.predict(X)
    other.fit(X, Y, loss="mse", optimizer=sgd(other), **QUIET)
    np.testing.assert_array_equal(model.predict(X), before)
    assert not np.array_equal(other.predict(X), before)


def test_a_fitted_model_is_freed() -> None:
    def fitted() -> Any:
        model = linear()

        def loss(prediction: Any, target: Any) -> Any:  # which holds the model
            return (prediction[:, 0] - target).square().mean() + (model.weight**2).sum()

        model.fit(X, Y, loss=loss, **QUIET)
        return weakref.ref(model)

    gone = fitted()
    gc.collect()
    assert gone() is None


def test_modules_do_not_hide_methods() -> None:
    class Net(sg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = sg.nn.Linear(3, 1)

    with pytest.raises(sg.ArgumentError, match=r"Net.predict is a method, .* the Linear"):
        Net()
