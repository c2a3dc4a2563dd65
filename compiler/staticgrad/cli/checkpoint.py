"""Checkpoints: all state of a program, the order of its data, and how far training has come.

A safetensors file: one tensor for each state cell (parameters, statistics, optimiser, random
generator), and metadata with the epoch, the seed and the state of the data-order generator. It is
written to a temporary name and renamed, so that the file is always that of a complete epoch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from staticgrad_runtime import checkpoint
from staticgrad_runtime.state import StateCell

from staticgrad.ir.errors import StateError

from .console import UsageError, shown

FORMAT = "1"
_MARK = "staticgrad_checkpoint"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Progress:
    """How far training has come, beside the state itself."""

    epoch: int
    seed: int
    data_order: Mapping[str, Any]  # numpy.random.Generator's bit_generator.state
    scheduler: Mapping[str, Any] | None = None

    def to_metadata(self) -> dict[str, str]:
        try:
            scheduler = json.dumps(self.scheduler)
        except TypeError as error:
            raise UsageError(
                f"the scheduler's state_dict() must be plain data for a checkpoint: {error}"
            ) from error
        return {
            _MARK: FORMAT,
            "epoch": str(self.epoch),
            "seed": str(self.seed),
            "data_order": json.dumps(self.data_order),
            "scheduler": scheduler,
        }


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: arrays by name, and the progress."""

    path: str  # as shown
    real_path: str
    arrays: Mapping[str, Array]
    progress: Progress

    def restore(self, cells: Mapping[str, StateCell]) -> None:
        """Writes the arrays into the state. Nothing is written unless everything fits: `StateError`
        names every tensor that is missing, surplus or of another type."""
        problems = [f"missing: {name}" for name in cells if name not in self.arrays]
        problems += [f"surplus: {name}" for name in self.arrays if name not in cells]
        for name, cell in cells.items():
            array = self.arrays.get(name)
            if array is None or (array.shape == cell.shape and array.dtype == cell.dtype):
                continue
            expected, came = _type(cell.dtype, cell.shape), _type(array.dtype, array.shape)
            problems.append(f"wrong type: {name}: expected {expected}, got {came}")
        if problems:
            lines = "\n  ".join(problems)
            raise StateError(f"the checkpoint {self.path} does not fit the model:\n  {lines}")
        for name, cell in cells.items():
            cell.assign(self.arrays[name])


class Writer:
    """Writes the state after each epoch to one file, which always is that of a whole epoch.

    Epochs shorter than `INTERVAL_S` share a write, since one takes some 20 ms until it is on the
    disk: 500 short epochs took 14 s, of which 3 were training. The newest epoch is kept in memory
    until the next write, and `flush` at the end, an interrupt included, writes it.
    """

    INTERVAL_S = 1.0

    def __init__(self, path: str, cells: Mapping[str, StateCell]) -> None:
        self.path, self.cells = path, cells
        self.saved = 0  # the epoch that the file holds
        self._pending: tuple[int, dict[str, Array], dict[str, str]] | None = None
        self._due = 0.0

    def add(self, progress: Progress) -> None:
        """Takes the state as it is now."""
        arrays = {name: cell.numpy() for name, cell in self.cells.items()}
        self._pending = progress.epoch, arrays, progress.to_metadata()
        if time.perf_counter() >= self._due:
            self.flush()
            self._due = time.perf_counter() + self.INTERVAL_S

    def flush(self) -> None:
        """Writes what was added last, if it isn't written yet."""
        if self._pending is not None:
            epoch, arrays, metadata = self._pending
            checkpoint.save(self.path, arrays, metadata)
            self._pending, self.saved = None, epoch


def load(path: str) -> Checkpoint:
    """Reads a checkpoint. `UsageError` where there is none, `StateError` where it is damaged or
    none of staticgrad's."""
    if not os.path.isfile(path):
        raise UsageError(f"there is no checkpoint {shown(path)}")
    arrays, metadata = checkpoint.load(path)
    if metadata.get(_MARK) != FORMAT:
        found = metadata.get(_MARK)
        what = f"of format {found}, expected {FORMAT}" if found else "was not written by training"
        raise StateError(f"{shown(path)}: this safetensors file {what}")
    try:
        scheduler = json.loads(metadata["scheduler"])
        order = json.loads(metadata["data_order"])
        progress = Progress(int(metadata["epoch"]), int(metadata["seed"]), order, scheduler)
    except (KeyError, ValueError) as error:
        raise StateError(f"{shown(path)}: damaged metadata: {error!r}") from error
    return Checkpoint(shown(path), os.path.realpath(path), arrays, progress)


def check_target(path: str) -> None:
    """Refuses, before anything is trained, a path that can't be written or that holds something
    else than a checkpoint."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"checkpoint: the folder {shown(folder)} does not exist")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"checkpoint: the folder {shown(folder)} can't be written to")
    if os.path.lexists(path) and not _is_checkpoint(path):
        raise UsageError(
            f"checkpoint: {shown(path)} exists and is no checkpoint, so it is not overwritten; "
            "choose another file by --checkpoint"
        )


def _is_checkpoint(path: str) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return _MARK in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def restore_order(rng: np.random.Generator, state: Mapping[str, Any], path: str) -> None:
    """Sets the data-order generator."""
    try:
        rng.bit_generator.state = dict(state)
    except (KeyError, ValueError, TypeError) as error:
        raise StateError(f"{path}: damaged data order: {error!r}") from error


def _type(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"
