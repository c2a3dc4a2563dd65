"""`fit`: callbacks, history, progress, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

from .fit_models import LABELS, QUIET, Loader, X, Y, classifier, linear, sgd

# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks_are_called_in_keras_order() -> None:
    calls: list[Any] = []

    class Recorder(sg.nn.Callback):
        def on_train_begin(self, logs: Any) -> None:
            calls.append(("train", dict(self.params), type(self.optimizer).__name__))

        def on_train_end(self, logs: Any) -> None:
            calls.append(("end", list(logs)))

        def on_epoch_begin(self, epoch: int, logs: Any) -> None:
            calls.append(("epoch", epoch))

        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            logs["extra"] = 10.0 * epoch
            calls.append(("epoch end", epoch, sorted(logs)))

        def on_batch_begin(self, batch: int, logs: Any) -> None:
            calls.append(("batch", batch, logs["size"]))

        def on_batch_end(self, batch: int, logs: Any) -> None:
            calls.append(("batch end", batch, sorted(logs)))

    model, seen = linear(), []
    history = model.fit(
        X, Y, loss="mse", epochs=2, batch_size=30, validation_split=0.2, **QUIET,
        callbacks=[Recorder(), lambda epoch, logs: seen.append((epoch, logs["extra"]))],
    )  # fmt: skip
    batches = [("batch", 0, 30), ("batch end", 0, ["loss", "size"]),
               ("batch", 1, 10), ("batch end", 1, ["loss", "size"])]  # fmt: skip
    names = ["extra", "loss", "val_loss"]
    params = {"epochs": 2, "steps": 2, "metrics": ["loss"], "validation": True}
    assert calls == [
        ("train", params, "Adam"),
        ("epoch", 0), *batches, ("epoch end", 0, names),
        ("epoch", 1), *batches, ("epoch end", 1, names),
        ("end", ["loss", "val_loss", "extra"]),
    ]  # fmt: skip
    assert history["extra"] == [0.0, 10.0] and seen == [(0, 0.0), (1, 10.0)]
    assert history.params == params


def test_early_stopping_restores_the_best_state() -> None:
    model = linear()
    rates = [0.1, 0.1, 0.1, 1.5, 1.5, 1.5, 1.5]  # the last ones diverge
    states: list[Any] = []
    stop = sg.nn.EarlyStopping(monitor="loss", patience=2, restore_best_weights=True)
    history = model.fit(
        X, Y, loss="mse", optimizer=sgd(model), epochs=7, batch_size=50, **QUIET,
        callbacks=[sg.nn.LearningRateScheduler(lambda epoch: rates[epoch]), stop,
                   lambda epoch, logs: states.append(model.state_dict())],
    )  # fmt: skip
    losses = history["loss"]
    best = int(np.argmin(losses))
    assert stop.best_epoch == best and stop.best == losses[best]
    assert stop.stopped_epoch == best + 2 == len(losses) - 1 < 6
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, states[best][name])
    assert history["learning_rate"] == rates[: len(losses)]
    up = sg.nn.EarlyStopping(monitor="val_accuracy")
    assert up.mode == "max" and sg.nn.EarlyStopping(monitor="val_loss").mode == "min"


def test_early_stopping_waits_for_a_real_improvement() -> None:
    stop = sg.nn.EarlyStopping(monitor="a", min_delta=0.5, patience=2)
    stop.params, stop.model = {"validation": False}, linear()
    stop.on_train_begin({})
    stopped = []
    for epoch, value in enumerate([5.0, 4.8, 4.4, 4.0, 3.95]):
        stop.model.stop_training = False
        stop.on_epoch_end(epoch, {"a": value})
        stopped.append(stop.model.stop_training)
    assert stopped == [False, False, False, False, True] and stop.best == 4.4


def test_checkpoints_hold_the_state_of_their_epoch(tmp_path: Path) -> None:
    model, states = linear(), []
    path = tmp_path / "new" / "m-{epoch:02d}-{loss:.3f}.safetensors"
    every = sg.nn.ModelCheckpoint(path, monitor="loss")
    best = sg.nn.ModelCheckpoint(tmp_path / "best.safetensors", monitor="loss", save_best_only=True)
    history = model.fit(
        X, Y, loss="mse", optimizer=sgd(model), epochs=3, batch_size=50, **QUIET,
        callbacks=[every, best, lambda epoch, logs: states.append(model.state_dict()),
                   sg.nn.LearningRateScheduler(lambda epoch, rate: [rate, rate, 50.0][epoch])],
    )  # fmt: skip
    files = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert files == [f"m-{i + 1:02d}-{v:.3f}.safetensors" for i, v in enumerate(history["loss"])]
    assert every.last_path == str(tmp_path / "new" / files[-1])
    for i, name in enumerate(files):
        loaded = sg.load(tmp_path / "new" / name)
        np.testing.assert_array_equal(loaded["weight"], states[i]["weight"])
    kept = int(np.argmin(history["loss"]))
    np.testing.assert_array_equal(
        sg.load(tmp_path / "best.safetensors")["weight"], states[kept]["weight"]
    )


def test_schedules_of_the_optimiser_step_once_an_epoch() -> None:
    model = linear()
    optimizer = sgd(model, lr=0.08)
    schedule = sg.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    history = model.fit(X, Y, loss="mse", optimizer=optimizer, epochs=5, callbacks=schedule,
                        **QUIET)  # fmt: skip
    assert history["learning_rate"] == [0.08, 0.08, 0.04, 0.04, 0.02]
    plateau = sg.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)
    history = model.fit(X, Y, loss="mse", optimizer=optimizer, epochs=3, callbacks=[plateau],
                        **QUIET)  # fmt: skip
    np.testing.assert_allclose(history["learning_rate"], [0.02, 0.02, 0.002], rtol=1e-12)
    with pytest.raises(sg.ArgumentError, match="belongs to another optimiser"):
        model.fit(X, Y, optimizer=sgd(model), callbacks=[schedule], **QUIET)


def test_stop_training_ends_after_the_batch() -> None:
    class Stop(sg.nn.Callback):
        count = 0

        def on_batch_end(self, batch: int, logs: Any) -> None:
            self.count += 1
            self.model.stop_training = self.count == 5

    model, stop = linear(), Stop()
    history = model.fit(X, Y, loss="mse", epochs=9, batch_size=20, callbacks=[stop], **QUIET)
    assert stop.count == 5 and history.epoch == [0, 1]
    model.fit(X, Y, epochs=2, batch_size=50, callbacks=[stop], **QUIET)
    assert stop.count == 7


def test_an_interrupt_leaves_the_state_of_the_last_step() -> None:
    def interrupted(steps: int) -> Any:
        class Interrupt(sg.nn.Callback):
            def on_batch_end(self, batch: int, logs: Any) -> None:
                if batch == steps - 1:
                    raise KeyboardInterrupt

        model = linear()
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, Y, loss="mse", optimizer=sgd(model), batch_size=10, seed=1, **QUIET,
                      callbacks=[Interrupt()])  # fmt: skip
        return model

    model, w, b = interrupted(3), linear().weight.numpy()[0], linear().bias.numpy()[0]
    order = np.random.default_rng(1).permutation(50)
    for start in (0, 10, 20):
        at = order[start : start + 10]
        e = X[at] @ w + b - Y[at]
        w, b = w - 0.2 * X[at].T @ e / 10, b - 0.2 * np.mean(e)
    np.testing.assert_allclose(model.weight.numpy()[0], w, rtol=1e-10)
    model.fit(X, Y, **QUIET)  # goes on


# --- NaN ------------------------------------------------------------------------------------------


def test_a_nan_is_reported_once_and_can_be_found() -> None:
    x = X.copy()
    x[7] = np.nan
    model = linear()
    with pytest.warns(RuntimeWarning, match="the loss is NaN in epoch 1, batch 2") as caught:
        history = model.fit(x, Y, loss="mse", epochs=2, batch_size=5, shuffle=False, **QUIET)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert math.isnan(history["loss"][0])
    model = linear()
    with pytest.raises(sg.ExecutionError, match=r"NaN in the input 'x'"):
        model.fit(x, Y, loss="mse", batch_size=5, shuffle=False, check="nan", **QUIET)
    assert np.isfinite(model.predict(X)).all()
    model = linear()
    with pytest.warns(RuntimeWarning):
        history = model.fit(x, Y, loss="mse", epochs=3, batch_size=5, shuffle=False, **QUIET,
                            callbacks=sg.nn.TerminateOnNaN())  # fmt: skip
    assert history.epoch == [0]


# --- history and progress -------------------------------------------------------------------------


def _history(epochs: int = 3) -> Any:
    history = sg.nn.History()
    for e in range(epochs):
        history.add(e, {"loss": 1.0 / (e + 1), "accuracy": 0.5, "val_loss": 2.0})
    return history


def test_the_history_is_a_mapping_and_prints_a_table() -> None:
    history = _history()
    assert history["loss"] == history.history["loss"] == [1.0, 0.5, 1 / 3]
    assert history.epoch == [0, 1, 2] and list(history) == ["loss", "accuracy", "val_loss"]
    assert "loss" in history and len(history) == 3 and dict(history)["val_loss"] == [2.0] * 3
    assert str(history).splitlines() == [
        "epoch    loss  accuracy  val_loss",
        "    1       1       0.5         2",
        "    2     0.5       0.5         2",
        "    3  0.3333       0.5         2",
    ]
    long = str(_history(100)).splitlines()
    assert len(long) == 22 and "..." in long[11] and long[-1].split()[0] == "100"
    assert history._repr_html_().count("<tr>") == 4 and "<th>val_loss</th>" in history._repr_html_()
    assert str(sg.nn.History()) == "History: no epochs"
    with pytest.raises(KeyError, match="'mae'; there are loss, accuracy, val_loss"):
        history["mae"]
    history.add(3, {"loss": 0.2, "late": 1.0})
    assert np.isnan(history["late"][:3]).all() and math.isnan(history["accuracy"][3])


def test_the_history_plots_itself(tmp_path: Path) -> None:
    figure = _history().plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [a.get_title() for a in figure.axes] == ["loss", "accuracy"]
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["training", "validation"]
    np.testing.assert_allclose(lines[0].get_ydata(), [1, 0.5, 1 / 3])
    assert _history()._repr_png_()[:4] == b"\x89PNG"
    assert [a.get_title() for a in _history().plot(names="loss").axes] == ["loss"]
    with pytest.raises(sg.ArgumentError, match="there is no 'mae'; there are loss, accuracy"):
        _history().plot(names=["mae"])
    with pytest.raises(sg.ArgumentError, match="no epochs"):
        sg.nn.History().plot()


def test_progress_is_a_line_an_epoch_without_a_terminal(capsys: Any) -> None:
    linear().fit(X, Y, loss="mse", epochs=2, validation_split=0.5)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and len(lines) == 2
    assert lines[0].startswith("epoch 1/2: loss ") and ", val_loss " in lines[0]
    linear().fit(X, Y, loss="mse", epochs=2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_on_a_terminal(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    linear().fit(X, Y, loss="mse", epochs=2, batch_size=10)
    err = capsys.readouterr().err
    assert "epoch 2/2" in err and "5/5" in err and "loss " in err and "\r" in err


def test_scores_have_names() -> None:
    scores = classifier().evaluate(X, LABELS, loss="cross_entropy")
    loss, accuracy = scores
    assert scores["loss"] == loss == scores[0] == float(scores)
    assert dict(scores) == {"loss": loss, "accuracy": accuracy}
    assert f"{scores:.2f}" == f"loss {loss:.2f}, accuracy {accuracy:.2f}"
    assert str(scores) == f"Scores(loss={loss!r}, accuracy={accuracy!r})"
    alone = classifier().evaluate(X, LABELS, loss="cross_entropy", metrics=())
    assert f"{alone:.3f}" == f"{loss:.3f}"
    with pytest.raises(KeyError, match="'mae'; there are loss, accuracy"):
        scores["mae"]


# --- wrong use ------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Any, str]] = {
    "no loss": (lambda m: m.fit(X, Y), 'fit: say what the loss is, e.g. loss="cross_entropy"'),
    "no loss yet": (lambda m: m.evaluate(X, Y), "evaluate: say what the loss is"),
    "loss name": (lambda m: m.fit(X, Y, loss="rms"), "no loss 'rms'; the names are cross_entropy"),
    "Keras's": (
        lambda m: m.fit(X, LABELS, loss="sparse_categorical_crossentropy"),
        'leave the softmax out and use "cross_entropy"',
    ),
    "loss kind": (lambda m: m.fit(X, Y, loss=3), "loss: expected a name, .* got 3"),
    "loss shape": (lambda m: m.fit(X, Y, loss=lambda p, t: p - t), "expected a scalar, got float"),
    "loss value": (lambda m: m.fit(X, Y, loss=lambda p, t: 1.0), "expected a scalar tensor"),
    "no reduction": (
        lambda m: m.fit(X, Y, loss=sg.nn.MSELoss(reduction="none")), "expected a scalar"
    ),
    "optimizer name": (
        lambda m: m.fit(X, Y, loss="mse", optimizer="lion"), "no optimizer 'lion'; the names are"
    ),
    "optimizer kind": (
        lambda m: m.fit(X, Y, loss="mse", optimizer=sg.optim.SGD), "expected a name or an optimiser"
    ),
    "optimizer of another model": (
        lambda m: m.fit(X, Y, loss="mse", optimizer=sgd(linear())),
        "this SGD was made for other parameters",
    ),
    "metric": (lambda m: m.fit(X, Y, loss="mse", metrics=["auc"]), "there is no metric 'auc'; the"),
    "metric kind": (lambda m: m.fit(X, Y, loss="mse", metrics=[3]), "expected names or functions"),
    "metric twice": (lambda m: m.fit(X, Y, loss="mse", metrics=["mae", "mae"]), "taken twice"),
    "metric value": (
        lambda m: m.fit(X, Y, loss="mse", metrics=[lambda p, t: p]), "must give a number"
    ),
    "lengths": (lambda m: m.fit(X, Y[:9], loss="mse"), "x has 50, y has 9"),
    "empty": (lambda m: m.fit(X[:0], Y[:0], loss="mse"), "no samples"),
    "no batches": (lambda m: m.fit(Loader(), loss="mse"), "the data gave no batch"),
    "empty evaluation": (lambda m: m.evaluate(X[:0], Y[:0], loss="mse"), "there are no samples"),
    "no predictions": (lambda m: m.predict(iter(())), "the data gave no batch"),
    "no targets": (lambda m: m.fit(X, loss="mse"), "expected targets ys beside the arrays xs"),
    "batches": (lambda m: m.fit([X, Y], loss="mse"), r"a pair \(inputs, targets\), got an object"),
    "a long batch": (lambda m: m.fit([(X, Y, Y)], loss="mse"), "got a tuple of 3"),
    "generator": (
        lambda m: m.fit(((X, Y) for _ in range(2)), loss="mse", epochs=2), "its batches once"
    ),
    "generator of validation": (
        lambda m: m.fit(X, Y, loss="mse", validation_data=iter([(X, Y)])), "its batches once"
    ),
    "scalar": (lambda m: m.fit(3.0, 4.0, loss="mse"), "got the number 3.0"),
    "text": (lambda m: m.fit(np.array(["a"]), Y[:1], loss="mse"), "expected numbers"),
    "half": (lambda m: m.predict(X.astype("float16")), "float16"),
    "tensor": (lambda m: m.predict(sg.input("z", ("N", 3))), "got the tensor .* has no values"),
    "columns": (lambda m: m.predict(X[:, :2]), r"float64\[N, 2\]"),
    "batch size": (lambda m: m.fit(X, Y, loss="mse", batch_size=0), "batch_size must be at least"),
    "epochs": (lambda m: m.fit(X, Y, loss="mse", epochs=-1), "epochs can't be negative"),
    "epochs kind": (lambda m: m.fit(X, Y, loss="mse", epochs=2.5), "epochs must be an int"),
    "seed": (lambda m: m.fit(X, Y, loss="mse", seed=-1), "seed must be at least 0"),
    "split": (lambda m: m.fit(X, Y, loss="mse", validation_split=1.0), r"must be in \[0, 1\)"),
    "empty split": (lambda m: m.fit(X, Y, loss="mse", validation_split=0.999), "no samples on one"),
    "both": (
        lambda m: m.fit(X, Y, loss="mse", validation_split=0.5, validation_data=(X, Y)), "not both"
    ),
    "split of a loader": (
        lambda m: m.fit(Loader(9), loss="mse", validation_split=0.5), "a loader can't be split"
    ),
    "validation": (
        lambda m: m.fit(X, Y, loss="mse", validation_data=(X, Y, Y)), "got a tuple of 3"
    ),
    "callback": (lambda m: m.fit(X, Y, loss="mse", callbacks=[3]), "callbacks: expected objects"),
    "callback class": (
        lambda m: m.fit(X, Y, loss="mse", callbacks=[sg.nn.EarlyStopping]), "got an object of type"
    ),
    "monitor": (
        lambda m: m.fit(X, Y, loss="mse", callbacks=sg.nn.EarlyStopping()), "needs validation_data"
    ),
    "monitored": (
        lambda m: m.fit(X, Y, loss="mse", callbacks=[sg.nn.EarlyStopping("acc")]),
        "no figure 'acc' to monitor; there are loss",
    ),
    "path": (
        lambda m: m.fit(X, Y, loss="mse", callbacks=[sg.nn.ModelCheckpoint("{acc}.st")]),
        "can't be filled in .*; there are epoch, loss",
    ),
    "mode": (lambda m: sg.nn.EarlyStopping(mode="up"), 'mode must be "auto", "min" or "max"'),
    "patience": (lambda m: sg.nn.EarlyStopping(patience=-1), "patience can't be negative"),
    "rate": (
        lambda m: m.fit(X, Y, loss="mse", callbacks=sg.nn.LearningRateScheduler(lambda e: "a")),
        "the rate must be a number",
    ),
    "check": (lambda m: m.fit(X, Y, loss="mse", check="inf"), 'check must be None or "nan"'),
    "rows": (lambda m: sg.data.TensorDataset(X, Y[:3]), r"different numbers of rows: \[50, 3\]"),
    "no rows": (lambda m: sg.data.TensorDataset(), "at least one array"),
    "loader": (lambda m: sg.data.DataLoader(3), "expected a dataset"),
    "loader size": (lambda m: sg.data.DataLoader(X, batch_size=0), "batch_size must be at least 1"),
    "ragged": (
        lambda m: list(sg.data.DataLoader([np.ones(2), np.ones(3)], batch_size=2)), "do not stack"
    ),
    "no parameters": (lambda m: sg.nn.ReLU().fit(X, X, loss="mse"), "ReLU has no parameters"),
    "forward": (lambda m: sg.nn.Module().predict(X), "does not define `forward`"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_names_the_line(case: str) -> None:
    call, message = WRONG[case]
    model = linear()
    state = model.state_dict()
    with pytest.raises(sg.StaticgradError, match=message) as error:
        call(model)
    assert "test_fit_callbacks.py" in str(error.value)
    if case not in ("metric value", "monitored", "path"):  # those are seen after a step
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, state[name])


def test_a_label_out_of_range_is_named_and_changes_nothing() -> None:
    model = linear(out=2)
    before = model.predict(X)
    with pytest.raises(sg.ExecutionError, match="2") as error:
        model.fit(X, LABELS, loss="cross_entropy", batch_size=50, **QUIET)
    assert "test_fit_callbacks.py" in str(error.value)
    np.testing.assert_array_equal(model.predict(X), before)


def test_labels_that_are_no_integers_are_refused() -> None:
    with pytest.raises(sg.DTypeError, match="class labels must be integers"):
        linear(out=3).fit(X, LABELS.astype("float64"), loss="cross_entropy", **QUIET)
