"""Callbacks of `fit`, with Keras's names: what is called between steps and epochs."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.api.files import save
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ops.public import checked_scalar, list_of, misfit, shown
from staticgrad.optim import Optimizer
from staticgrad.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

if TYPE_CHECKING:
    from .module import Module

Logs = dict[str, float]


class Callback:
    """The base of callbacks: methods that do nothing, to be overridden.

    While `fit` runs, `self.model`, `self.optimizer` and `self.params` (a dict: epochs, steps,
    metrics, validation) are set; `self.model.stop_training = True` ends it after the current batch.
    Epochs and batches count from 0. `logs` is a dict of numbers: after a batch its loss, metrics
    and size, after an epoch the means that the history takes up, so that what a callback adds there
    is recorded and what follows it can monitor it.
    """

    model: Module
    optimizer: Optimizer
    params: dict[str, Any]

    def on_train_begin(self, logs: Logs) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Logs) -> None:
        """After the last epoch, with its logs; not where an exception ended the training."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Before an epoch."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """After an epoch, its validation included."""

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Before a step: `on_batch_begin`, by its other name."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """After a step: `on_batch_end`, by its other name."""
        self.on_batch_end(batch, logs)

    def on_batch_begin(self, batch: int, logs: Logs) -> None:
        """Before a step."""

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """After a step; the parameters are updated."""


class _Function(Callback):
    """A plain function: `fn(epoch, logs)` after every epoch."""

    def __init__(self, function: Callable[[int, Logs], Any]) -> None:
        self.function = function

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.function(epoch, logs)


class _Scheduler(Callback):
    """A schedule of `sg.optim.lr_scheduler`, one step an epoch."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def on_train_begin(self, logs: Logs) -> None:
        if self.scheduler.optimizer is not self.optimizer:
            raise ArgumentError(
                f"fit: the {type(self.scheduler).__name__} among the callbacks belongs to another "
                "optimiser; give fit the one that it was made with: fit(..., optimizer=optimizer)"
            )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        logs["learning_rate"] = float(self.optimizer.lr)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(logs.get("val_loss", logs["loss"]))
        else:
            self.scheduler.step()


def callbacks_of(given: Any) -> list[Callback]:
    """Callbacks, functions and schedules as callbacks, in order."""
    kinds = (Callback, LRScheduler, ReduceLROnPlateau)
    alone = given is not None and (isinstance(given, kinds) or callable(given))
    listed = [given] if alone else list_of(() if given is None else given, "callbacks", "callbacks")
    found: list[Callback] = []
    for c in listed:
        if isinstance(c, Callback):
            for name, arguments in _METHODS.items():
                _check_takes(getattr(c, name), arguments, f"{type(c).__name__}.{name}")
            found.append(c)
        elif isinstance(c, (LRScheduler, ReduceLROnPlateau)):
            found.append(_Scheduler(c))
        elif callable(c) and not isinstance(c, type):
            _check_takes(c, ("epoch", "logs"), getattr(c, "__name__", type(c).__name__))
            found.append(_Function(c))
        else:
            raise ArgumentTypeError(
                "callbacks: expected objects of sg.nn.Callback, functions (epoch, logs) or "
                f"schedules of sg.optim.lr_scheduler, got {shown(c)}"
            )
    return found


_METHODS = {
    f"on_{event}_{when}": ("logs",) if event == "train" else (event.split("_")[-1], "logs")
    for event in ("train", "epoch", "batch", "train_batch") for when in ("begin", "end")
}  # fmt: skip


def _check_takes(function: Callable[..., Any], arguments: tuple[str, ...], name: str) -> None:
    """Raises before the first epoch where a callback can't be called."""
    signature = misfit(function, *arguments)
    if signature is not None:
        raise ArgumentTypeError(
            f"callbacks: {name}{signature} is called with ({', '.join(arguments)})"
        )


class _Monitor(Callback):
    """What looks for the best value of one figure."""

    def _watch(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(
                f'{type(self).__name__}: mode must be "auto", "min" or "max", got {mode!r}'
            )
        if min_delta < 0:
            raise ArgumentError(f"{type(self).__name__}: min_delta can't be negative: {min_delta}")
        if mode == "auto":
            mode = "max" if monitor.endswith(("accuracy", "acc")) else "min"
        self.monitor, self.mode, self.min_delta = monitor, mode, min_delta
        self._start_watch()

    def _start_watch(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf

    def on_train_begin(self, logs: Logs) -> None:
        if self.monitor.startswith("val_") and not self.params["validation"]:
            raise ArgumentError(
                f"{type(self).__name__}: monitor={self.monitor!r} needs validation_data or "
                "validation_split"
            )

    def _value(self, logs: Mapping[str, float]) -> float:
        if self.monitor not in logs:
            raise ArgumentError(
                f"{type(self).__name__}: there is no figure {self.monitor!r} to monitor; there are "
                f"{', '.join(logs)}"
            )
        return float(logs[self.monitor])

    def _improves(self, value: float) -> bool:
        if self.mode == "min":
            return value < self.best - self.min_delta
        return value > self.best + self.min_delta


class EarlyStopping(_Monitor):
    """Ends the training when a figure has not improved for `patience` epochs.

    monitor    the figure: "val_loss", "loss", "val_accuracy", ...
    min_delta  how much better counts as better
    patience   after so many epochs without an improvement training ends; 0: after the first
    mode       "min" or "max" is better; "auto": max for accuracies, else min
    restore_best_weights  whether the model is given the state of the best epoch at the end

    `best`, `best_epoch` and `stopped_epoch` (None if it did not stop) tell how it went.
    """

    def __init__(
        self, monitor: str = "val_loss", min_delta: float = 0.0, patience: int = 0,
        mode: str = "auto", restore_best_weights: bool = False,
    ) -> None:  # fmt: skip
        if patience < 0:
            raise ArgumentError(f"EarlyStopping: patience can't be negative, got {patience}")
        self._watch(monitor, mode, min_delta)
        self.patience = patience
        self.restore_best_weights = restore_best_weights
        self.wait = 0
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self.best_weights: dict[str, np.ndarray[Any, Any]] | None = None

    def on_train_begin(self, logs: Logs) -> None:
        super().on_train_begin(logs)
        self._start_watch()
        self.wait = 0
        self.best_epoch = self.stopped_epoch = self.best_weights = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self._value(logs)
        if self._improves(value):
            self.best, self.best_epoch, self.wait = value, epoch, 0
            if self.restore_best_weights:
                self.best_weights = self.model.state_dict()
            return
        self.wait += 1
        if self.wait >= self.patience:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs) -> None:
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)


class ModelCheckpoint(_Monitor):
    """Saves the model's state (safetensors, for `sg.load`) after every epoch.

    path            may hold the epoch's number (from 1) and its figures, as str.format writes them:
                    "model-{epoch:02d}-{val_loss:.3f}.safetensors"; directories are made
    save_best_only  only where `monitor` has improved

    The file is written whole or not at all. `last_path` is the last one.
    """

    def __init__(
        self, path: Any, monitor: str = "val_loss", save_best_only: bool = False,
        mode: str = "auto",
    ) -> None:  # fmt: skip
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise ArgumentTypeError(f"ModelCheckpoint: path must be a path, got {shown(path)}")
        self._watch(monitor, mode)
        self.path = os.fspath(path)
        self.save_best_only = save_best_only
        self.last_path: str | None = None

    def on_train_begin(self, logs: Logs) -> None:
        if self.save_best_only:
            super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.save_best_only:
            value = self._value(logs)
            if not self._improves(value):
                return
            self.best = value
        try:
            path = self.path.format(epoch=epoch + 1, **logs)
        except (KeyError, IndexError, ValueError) as error:
            raise ArgumentError(
                f"ModelCheckpoint: the path {self.path!r} can't be filled in ({error}); there are "
                f"epoch, {', '.join(logs)}"
            ) from None
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        save(path, self.model.state_dict())
        self.last_path = path


class LearningRateScheduler(Callback):
    """Sets the optimiser's rate before each epoch: `schedule(epoch)` or `schedule(epoch, rate)`
    gives the new one. It is recorded as "learning_rate"; nothing is recompiled."""

    def __init__(self, schedule: Callable[..., float]) -> None:
        if not callable(schedule):
            raise ArgumentTypeError(
                f"LearningRateScheduler: expected a function, got {shown(schedule)}"
            )
        self.schedule = schedule
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        try:
            given = inspect.signature(schedule).parameters.values()
            self._takes_rate = sum(p.kind in kinds for p in given) > 1
        except ValueError:  # a built-in without a signature
            self._takes_rate = True

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        rate = float(self.optimizer.lr)
        new = self.schedule(epoch, rate) if self._takes_rate else self.schedule(epoch)
        self.optimizer.lr = checked_scalar(new, ("float",), "LearningRateScheduler: the rate")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        logs["learning_rate"] = float(self.optimizer.lr)


class TerminateOnNaN(Callback):
    """Ends the training after a batch whose loss is NaN or infinite."""

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True


__all__ = [
    "Callback",
    "EarlyStopping",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "TerminateOnNaN",
]
