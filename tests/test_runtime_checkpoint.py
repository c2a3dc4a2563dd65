"""Checkpoints: round trips, metadata, damage, atomic replacement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from staticgrad_runtime import StateError, checkpoint
from staticgrad_runtime.artifact import DTYPES


def test_arrays_and_metadata_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"a.{dtype}": (rng.random((3, 4)) * 9).astype(dtype) for dtype in DTYPES}
    arrays |= {"scalar": np.array(2.5), "none": np.zeros((0, 3), "float32")}
    arrays |= {"strided": np.arange(12.0).reshape(3, 4).T[::2], "swapped": np.array([1.5], ">f8")}
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, arrays, {"step": "7", "ünï": "cödé"})
    loaded, metadata = checkpoint.load(path)
    assert metadata == {"step": "7", "ünï": "cödé"}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        assert loaded[name].flags.writeable


def test_nothing_at_all(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "empty", {})
    assert checkpoint.load(tmp_path / "empty") == ({}, {})


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, {"a": np.ones(3)})
    with pytest.raises(StateError, match="'b' has the unsupported dtype float16"):
        checkpoint.save(path, {"b": np.ones(3, "float16")})
    with pytest.raises(StateError, match="metadata"):
        checkpoint.save(path, {"a": np.ones(3)}, {"step": 3})  # type: ignore[dict-item]
    np.testing.assert_array_equal(checkpoint.load(path)[0]["a"], np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_interrupted_write_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, {"a": np.ones(3)})

    def no_space(_: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "_sync", no_space)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, {"a": np.zeros(3)})
    np.testing.assert_array_equal(checkpoint.load(path)[0]["a"], np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, {"a": np.ones(3)})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StateError, match="no readable checkpoint"):
        checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(StateError, match="no readable checkpoint"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        checkpoint.load(tmp_path / "missing")


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "no" / "where", {"a": np.ones(3)})
