"""Training epoch by epoch: batches into the compiled step, evaluation, checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from staticgrad.api.program import Program
from staticgrad.api.progress import EpochProgress, figures

from . import checkpoint
from .checkpoint import Checkpoint, Progress, Writer
from .console import UsageError
from .model import ModelFileError, call_user, iterate


class Means:
    """Means over samples of named numbers, batch by batch."""

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[str, float] = {}

    def add(self, values: Mapping[str, float], samples: int) -> None:
        self.samples += samples
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * samples

    def means(self) -> dict[str, float]:
        weight = max(self.samples, 1)
        return {name: total / weight for name, total in self._sums.items()}


@dataclass
class Epoch:
    """What one epoch gave: means over training and held-out samples."""

    number: int
    samples: int
    seconds: float
    train: dict[str, float]
    test: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {
            "epoch": self.number,
            "train": self.train,
            "test": self.test,
            "samples": self.samples,
            "seconds": self.seconds,
        }


def samples_of(batch: Sequence[Any]) -> int:
    """The first size of the first array; 1 where there is none."""
    return int(np.shape(batch[0])[0]) if batch and np.ndim(batch[0]) else 1


class Trainer:
    """A program being trained: its compiled steps, its data order and its progress.

    `done` epochs are trained; `writer` keeps the checkpoint, None where none is wanted.
    """

    def __init__(
        self, program: Program, seed: int, target: str | None, limit_batches: int | None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        from staticgrad.api.compile import compile_graph
        from staticgrad.ir.graph import Graph

        assert program.train is not None
        self.program, self.seed = program, seed
        self.limit = limit_batches
        self.cells = program.cells()
        self.writer = None if target is None else Writer(target, self.cells)
        self.rng = np.random.default_rng(seed)
        self.done = 0
        self.resumed_from: int | None = None
        self.history: list[Epoch] = []
        self.unit = "samples" if program.train.inputs else "steps"
        self.step = compile_graph(program.train, threads=threads)
        self.predict: Any = None
        self.test_loss: Any = None  # what is evaluated where there are no metrics
        if program.test_batches is not None:
            if program.predict is not None and program.metrics:
                self.predict = compile_graph(program.predict, training=False, threads=threads)
            else:
                loss = Graph(program.train.inputs, program.train.outputs[:1], single=True)
                self.test_loss = compile_graph(loss, training=False, threads=threads)
        # Outputs of `predict` that follow the loss: metrics of training batches cost no other run.
        predicted = 0 if program.predict is None else len(program.predict.outputs)
        self._with_metrics = predicted > 0 and len(program.train.outputs) == 1 + predicted
        self._batches_seen: int | None = None

    def resume(self, found: Checkpoint) -> None:
        """Takes up state, data order and progress of a checkpoint."""
        scheduler, known = self.program.scheduler, found.progress.scheduler
        if (scheduler is None) != (known is None):
            which = "without" if known is None else "with"
            raise UsageError(f"the checkpoint {found.path} was written {which} a scheduler")
        found.restore(self.cells)
        checkpoint.restore_order(self.rng, found.progress.data_order, found.path)
        if scheduler is not None:
            call_user(scheduler.load_state_dict, known)
        self.done = self.resumed_from = found.progress.epoch
        if self.writer is not None and os.path.realpath(self.writer.path) == found.real_path:
            self.writer.saved = self.done

    def train(self, epochs: int) -> None:
        """Trains up to an epoch. However it ends, the checkpoint is the last whole epoch's."""
        try:
            for number in range(self.done + 1, epochs + 1):
                self._train_one(number, epochs)
        finally:
            if self.writer is not None:
                self.writer.flush()

    def _train_one(self, number: int, epochs: int) -> None:
        with EpochProgress(number, epochs, self._batches_seen) as progress:
            epoch = self._epoch(number, progress)
            epoch.test = self.evaluate()
            progress.finish(", ".join(self._summary(epoch, progress.narrow)))
        self._step_scheduler(epoch)
        if self.writer is not None:
            self.writer.add(self._progress(number))
        self.history.append(epoch)
        self.done = number

    def _epoch(self, number: int, progress: EpochProgress) -> Epoch:
        means, count = Means(), 0
        start = time.perf_counter()
        for batch in self._batches(progress):
            outputs = self.step(*batch)
            listed = outputs if isinstance(outputs, tuple) else (outputs,)
            values = {"loss": float(listed[0])}
            if self._with_metrics:
                values |= self._metrics(listed[1:], batch)
            means.add(values, samples_of(batch))
            count += 1
            if progress.advance():
                rate = self._rate(means.samples, time.perf_counter() - start)
                progress.show(", ".join([*figures(means.means()), rate]))
        if not count:
            raise ModelFileError("train_batches gave no batch")
        self._batches_seen = count
        return Epoch(number, means.samples, time.perf_counter() - start, means.means())

    def _summary(self, epoch: Epoch, short: bool) -> list[str]:
        """An epoch's figures; of those of training, `short` keeps what held-out ones don't tell."""
        train = {"loss": epoch.train["loss"]} if short and epoch.test else epoch.train
        rate = self._rate(epoch.samples, epoch.seconds)
        return [*figures(train), *figures(epoch.test, "test "), rate]

    def _rate(self, samples: int, seconds: float) -> str:
        return f"{samples / max(seconds, 1e-9):,.0f} {self.unit}/s"

    def _batches(self, progress: EpochProgress) -> Iterator[tuple[Any, ...]]:
        """The batches of one epoch, at most `limit`."""
        if self.program.train_batches is None:
            progress.set_total(1)
            yield ()
            return
        batches = call_user(self.program.train_batches, self.rng)
        if hasattr(batches, "__len__"):
            progress.set_total(min(len(batches), self.limit or len(batches)))
        for count, batch in enumerate(iterate(batches), 1):
            yield _checked(batch, "train_batches")
            if count == self.limit:
                return

    def _metrics(self, outputs: tuple[Any, ...], batch: tuple[Any, ...]) -> dict[str, float]:
        assert self.program.predict is not None
        given = outputs[0] if self.program.predict.single else outputs
        found = {}
        for name, metric in self.program.metrics.items():
            value = call_user(metric, given, batch)
            try:
                found[name] = float(value)
            except (TypeError, ValueError):
                raise ModelFileError(
                    f"the metric {name!r} must give a number, got {type(value).__name__}"
                ) from None
        return found

    def evaluate(self) -> dict[str, float]:
        """The metrics of the held-out batches; the loss where there are none."""
        if self.program.test_batches is None:
            return {}
        means = Means()
        for batch in iterate(call_user(self.program.test_batches)):
            checked = _checked(batch, "test_batches")
            if self.predict is None:
                means.add({"loss": float(self.test_loss(*checked))}, samples_of(checked))
                continue
            outputs = self.predict(*self._predict_inputs(checked))
            listed = outputs if isinstance(outputs, tuple) else (outputs,)
            means.add(self._metrics(listed, checked), samples_of(checked))
        return means.means()

    def _predict_inputs(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arrays of a batch that `predict` takes: by name, else the first ones."""
        assert self.program.train is not None and self.program.predict is not None
        known = [v.node.attrs["name"] for v in self.program.train.inputs]
        wanted = [v.node.attrs["name"] for v in self.program.predict.inputs]
        named = set(wanted) <= set(known)
        places = [known.index(n) for n in wanted] if named else list(range(len(wanted)))
        if places and max(places) >= len(batch):
            raise ModelFileError(
                f"test_batches: a batch has {len(batch)} arrays; predict takes "
                f"{', '.join(wanted)} from {', '.join(known)}"
            )
        return tuple(batch[i] for i in places)

    def _step_scheduler(self, epoch: Epoch) -> None:
        from staticgrad.optim.lr_scheduler import ReduceLROnPlateau

        scheduler = self.program.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(epoch.train["loss"])
        elif scheduler is not None:
            call_user(scheduler.step)

    def _progress(self, epoch: int) -> Progress:
        scheduler = self.program.scheduler
        position = None if scheduler is None else call_user(scheduler.state_dict)
        return Progress(epoch, self.seed, self.rng.bit_generator.state, position)


def _checked(batch: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(batch, (tuple, list)):
        raise ModelFileError(f"{what}: a batch is a tuple of arrays, got {type(batch).__name__}")
    return tuple(batch)
