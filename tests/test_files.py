"""`sg.save` and `sg.load`: flat dicts of arrays, and nested ones with numbers beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad_runtime import checkpoint


def test_a_flat_dict_comes_back_as_arrays(tmp_path: Path) -> None:
    path = tmp_path / "flat.safetensors"
    sg.save(path, {"a.b": np.ones(2), "epoch": 3, "p": sg.parameter([1.0, 2.0])})
    found = sg.load(path)
    assert sorted(found) == ["a.b", "epoch", "p"]
    assert isinstance(found["epoch"], np.ndarray) and found["epoch"] == 3
    assert checkpoint.load(path)[1] == {}


def test_a_checkpoint_of_everything_comes_back_nested(tmp_path: Path) -> None:
    model, other = sg.nn.Linear(3, 2), sg.nn.Linear(3, 2)
    optimizer, its = (sg.optim.Adam(m.parameters()) for m in (model, other))
    schedule = sg.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    xs, ys = np.ones((4, 3)), np.zeros((4, 2))
    model.fit(xs, ys, loss="mse", optimizer=optimizer, callbacks=[schedule], progress=False)
    path = tmp_path / "all.safetensors"
    sg.save(
        path,
        {
            "model": model.state_dict(), "opt": optimizer.state_dict(), "epoch": 3,
            "schedule": schedule.state_dict(), "best": None, "done": True, "note": "é",
            "loss": float("inf"), "more": {"sizes": (1, [2, np.arange(2)]), "empty": {}},
        },
    )  # fmt: skip
    found = sg.load(path)
    assert {k: found[k] for k in ("epoch", "best", "done", "note", "loss")} == {
        "epoch": 3, "best": None, "done": True, "note": "é", "loss": float("inf"),
    }  # fmt: skip
    one, (two, array) = found["more"]["sizes"]
    assert (one, two, array.tolist(), found["more"]["empty"]) == (1, 2, [0, 1], {})
    other.load_state_dict(found["model"])
    its.load_state_dict(found["opt"])
    sg.optim.lr_scheduler.StepLR(its, 2).load_state_dict(found["schedule"])
    np.testing.assert_array_equal(other.predict(xs), model.predict(xs))
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(its.state_dict()[name], value)
    assert "model.weight" in checkpoint.load(path)[0]  # what other programs see


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"m": sg.nn.Linear(1, 1)}, sg.ArgumentTypeError, "'m' is .*Linear.*save its state_dict"),
        ({"s": {"m": object()}}, sg.ArgumentTypeError, "'s.m' is an object"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, sg.ArgumentError, "two arrays .*'a.b'"),
        ({"a": {1: np.ones(1)}}, sg.ArgumentTypeError, "must be strs, got 1"),
        ({"a": "text"}, sg.ArgumentTypeError, "'a' is 'text'"),
    ],
)
def test_what_can_not_be_saved(tmp_path: Path, arrays: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        sg.save(tmp_path / "x.safetensors", arrays)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "form",
    ["{", json.dumps(["dict", {"a": ["array", "gone"]}]), "[1]", "3", json.dumps(["value", 3])],
)
def test_a_damaged_form_is_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": np.ones(1)}, {"staticgrad.form": form})
    with pytest.raises(sg.StateError, match="its nested form is damaged"):
        sg.load(path)
