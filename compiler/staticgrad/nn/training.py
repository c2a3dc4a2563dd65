"""`fit`, `evaluate` and `predict`: a model that trains itself, one native call a step.

The model is declared on a symbolic batch ("N", ...) with the other sizes of the data, and compiled
once for each of training, evaluation and prediction. When another axis comes with a second size it
becomes symbolic too, so that data of many sizes costs one compilation more, not one each.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from staticgrad import optim
from staticgrad.api import pytree
from staticgrad.api.compile import Executable
from staticgrad.api.compile import compile as compile_tensors
from staticgrad.api.progress import EpochProgress, figures
from staticgrad.ir.dim import symbols
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError, StaticgradError
from staticgrad.ir.loc import current_locs, without_locs
from staticgrad.ops import taps
from staticgrad.ops.convert import astype
from staticgrad.ops.leaves import input as declare_input
from staticgrad.ops.public import shown
from staticgrad.ops.tensor import Tensor

from .batches import (
    ArrayData,
    Batch,
    Data,
    LoaderData,
    Part,
    class_weights,
    data_of,
    inputs_of,
    several_inputs,
    validation_of,
    with_weights,
)
from .callbacks import Callback, callbacks_of
from .data import order_of_batches
from .history import History
from .metrics import Loss, Means, Metrics, Scores
from .module import Module

Array = np.ndarray[Any, Any]
Sizes = tuple[int, ...]
Clip = tuple[float | None, float | None]  # the bounds on the gradients' norm and on elements

_OPTIMIZERS = {
    "sgd": optim.SGD,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad,
}

# Programs that a model keeps; a loss that is a new function at every call makes new ones.
_KEPT = 16


# --- programs -------------------------------------------------------------------------------------


class _Sized:
    """The program of one role, built for the sizes that it meets.

    `build` takes the dims of each array. Sizes that were the same so far are ints; the others are
    symbols, one for those that changed together (so the lengths of inputs and targets are one). A
    model that can't be declared so gets a program for each set of sizes.
    """

    def __init__(self, build: Callable[[list[tuple[Any, ...]]], Program]) -> None:
        self._build = build
        self._seen: list[Sizes] = []  # of all axes but the first, array after array
        self._columns: list[Sizes] = []  # for each axis its sizes so far
        self._program: Program | None = None
        self._fixed: dict[Sizes, Program] = {}

    def __call__(self, arrays: Sequence[Array]) -> Program:
        sizes = tuple(size for a in arrays for size in a.shape[1:])
        if sizes in self._fixed:
            return self._fixed[sizes]
        if self._program is not None and self._fits(sizes):
            return self._program
        columns: list[Sizes] = list(zip(*self._seen, sizes))
        try:
            made = self._build(_by_array(arrays, _dims(columns)))
        except StaticgradError:
            if not self._seen:
                raise
            made = self._fixed[sizes] = self._build(_by_array(arrays, list(sizes)))
            return made
        self._seen.append(sizes)
        self._columns, self._program = columns, made
        return made

    def _fits(self, sizes: Sizes) -> bool:
        values: dict[Sizes, int] = {}
        for column, size in zip(self._columns, sizes):
            if len(set(column)) == 1 and column[0] != size:
                return False
            if values.setdefault(column, size) != size:
                return False
        return True


def _dims(columns: list[Sizes]) -> list[Any]:
    """An int for an axis of one size, for the others a name for each history of sizes."""
    names: dict[Sizes, str] = {}
    return [
        c[0] if len(set(c)) == 1 else names.setdefault(c, f"D{len(names) + 1}") for c in columns
    ]


def _by_array(arrays: Sequence[Array], dims: list[Any]) -> list[tuple[Any, ...]]:
    found, at = [], 0
    for a in arrays:
        found.append(("N", *dims[at : at + a.ndim - 1]))
        at += a.ndim - 1
    return found


class Program:
    """A compiled role of a model and how its outputs are read."""

    def __init__(
        self, run: Executable, weighted: Sequence[bool], form: pytree.Structure | None,
        other: str = "",
    ) -> None:  # fmt: skip
        self.run = run
        self.other = other  # the first result whose rows are not those of samples
        self.weighted = weighted  # for each named metric whether its weight follows
        self.form = form  # of the prediction, if it is given

    def figures(self, batch: Batch, metrics: Metrics, means: Means) -> dict[str, float]:
        """Runs a batch and adds its loss and metrics, which are returned too."""
        outputs = iter(self.run(*batch.arrays))
        found = {"loss": float(next(outputs))}
        means.add("loss", found["loss"], batch.size)
        for name, has_weight in zip(metrics.names, self.weighted):
            found[name] = float(next(outputs))
            means.add(name, found[name], float(next(outputs)) if has_weight else batch.size)
        if self.form is not None and batch.y is not None:
            prediction = pytree.unflatten(self.form, list(outputs))
            for name, value in metrics.call(prediction, batch.y.tree()).items():
                found[name] = value
                means.add(name, value, batch.size)
        return found


class Trainer:
    """What a model remembers between calls: loss, metrics, optimiser, compiled programs."""

    def __init__(self) -> None:
        self.loss: Loss | None = None
        self.metrics: Metrics | None = None
        self.optimizer: optim.Optimizer | None = None
        self._optimizer_name: str | None = None
        self._programs: dict[Any, _Sized] = {}
        self._fingerprint: Any = None
        self._parameters: tuple[tuple[int, bool], ...] = ()
        self._changes = 0

    def refresh(self, model: Module) -> None:
        """Forgets programs that were compiled for another model than this one is now: with other
        layers, parameters, modes or plain attributes, or with other values watched."""
        fingerprint = _fingerprint(model)
        if fingerprint != self._fingerprint or self._changes != taps.changes():
            self._programs.clear()
        parameters = tuple((p.node.id, p.requires_grad) for p in model.parameters())
        if parameters != self._parameters and self._optimizer_name is not None:
            # It was made for the old parameters; and the statistics of one that was frozen until
            # now are behind the count of steps that Adam corrects them by.
            self.optimizer = None
        self._fingerprint, self._parameters = fingerprint, parameters
        self._changes = taps.changes()

    def choose_loss(self, given: Any, metrics: Any, what: str) -> tuple[Loss, Metrics]:
        """The loss and the metrics of this call; those of the last `fit` where none are given."""
        if given is None:
            if self.loss is None:
                raise ArgumentError(
                    f'{what}: say what the loss is, e.g. loss="cross_entropy" or loss="mse"'
                )
            given = self.loss.given
            if metrics is None and self.metrics is not None:
                return _loss(given), self.metrics
        loss = _loss(given)
        return loss, Metrics(metrics, loss)

    def choose_optimizer(self, model: Module, given: Any) -> optim.Optimizer:
        """An optimiser goes on where it was, unless another one is given."""
        if isinstance(given, optim.Optimizer):
            own = {*model.parameters()}
            if own and own.isdisjoint(given.parameters):
                name = type(given).__name__
                raise ArgumentError(
                    f"fit: this {name} was made for other parameters than those of this "
                    f"{type(model).__name__}: another model's, or the model's before to() or "
                    f"double(); make one of its own: sg.optim.{name}(model.parameters())"
                )
            self.optimizer, self._optimizer_name = given, None
            return given
        if given is None and self.optimizer is not None:
            return self.optimizer
        name = self._optimizer_name or "adam" if given is None else given
        if not isinstance(name, str):
            raise ArgumentTypeError(
                "fit: optimizer: expected a name or an optimiser, e.g. "
                f"sg.optim.SGD(model.parameters(), lr=0.1), got {shown(name)}"
            )
        if name.lower() not in _OPTIMIZERS:
            raise ArgumentError(
                f"fit: there is no optimizer {name!r}; the names are {', '.join(_OPTIMIZERS)}. "
                "Also an optimiser with its options: sg.optim.SGD(model.parameters(), lr=0.1)"
            )
        if self.optimizer is None or self._optimizer_name != name.lower():
            parameters = list(model.parameters())
            if not parameters:
                raise ArgumentError(f"fit: {type(model).__name__} has no parameters to train")
            self.optimizer = _OPTIMIZERS[name.lower()](parameters)
            self._optimizer_name = name.lower()
        return self.optimizer

    def program(
        self, model: Module, batch: Batch, loss: Loss | None = None,
        metrics: Metrics | None = None, optimizer: optim.Optimizer | None = None,
        check: str | None = None, clip: Clip = (None, None),
    ) -> Program:  # fmt: skip
        """The program for a batch: of a training step with an optimiser, of an evaluation with a
        loss alone, else of a prediction."""
        parts = batch.parts
        kinds = tuple((p.form, tuple((a.dtype.str, a.ndim) for a in p.arrays)) for p in parts)
        metrics_key = None if metrics is None else metrics.key
        key = (kinds, loss, metrics_key, optimizer, check, clip)
        sized = self._programs.pop(key, None)
        if sized is None:
            kept = [Part([a[:0].copy() for a in p.arrays], p.form, p.name) for p in parts]
            sized = _Sized(
                lambda shapes: _compile(model, kept, shapes, loss, metrics, optimizer, check, clip)
            )
            if len(self._programs) >= _KEPT:
                self._programs.pop(next(iter(self._programs)))
        self._programs[key] = sized
        # Not the line of this call: the program serves later ones too, and errors name theirs.
        with without_locs(current_locs()):
            found = sized(batch.arrays)
        self._changes = taps.changes()  # what the model itself taps is part of its programs
        return found


def _loss(given: Any) -> Loss:
    return Loss(given, _fingerprint(given) if isinstance(given, Module) else ())


def trainer_of(model: Module) -> Trainer:
    """What the model remembers. It is an attribute, since a loss may hold the model: a table
    elsewhere would keep both alive."""
    model._registries()  # says so if super().__init__() was forgotten
    found = model.__dict__.get("_trainer")
    if found is None:
        found = Trainer()
        object.__setattr__(model, "_trainer", found)
    found.refresh(model)
    return found


def _fingerprint(model: Module) -> tuple[Any, ...]:
    """What a compiled program of the model depends on and what can change between two calls."""
    plain = (bool, int, float, str, tuple, type(None))
    found: list[Any] = []
    for path, module in model.named_modules():
        state = [v for which in (0, 1) for _, v in module._own_state(which)]
        known = tuple(None if p is None else (p.node.id, p.requires_grad) for p in state)
        own = tuple(
            (name, repr(value))
            for name, value in module.__dict__.items()
            if isinstance(value, plain) and name != "stop_training"
        )
        found.append((path, id(module), known, own))
    return tuple(found)


@contextmanager
def _open_mode(model: Module) -> Iterator[None]:
    """The model with its mode symbolic, so that training trains and predicting predicts, whatever
    `train()` or `eval()` fixed for the whole model. A part that was fixed otherwise stays so: a
    frozen batch norm."""
    fixed = model._mode
    opened = [m for m in model.modules() if fixed is not None and m._mode == fixed]
    for m in opened:
        object.__setattr__(m, "_mode", None)
    try:
        yield
    finally:
        for m in opened:
            object.__setattr__(m, "_mode", fixed)


def _compile(
    model: Module, parts: list[Part], shapes: list[tuple[Any, ...]], loss: Loss | None,
    metrics: Metrics | None, optimizer: optim.Optimizer | None, check: str | None,
    clip: Clip,
) -> Program:  # fmt: skip
    floating = {p.dtype for p in (*model.parameters(), *model.buffers()) if p.dtype.is_float}
    inputs: list[Tensor] = []
    trees: list[Any] = []
    remaining = iter(shapes)
    for part in parts:
        tensors: list[Tensor] = []
        for name, array in zip(part.names, part.arrays):
            t = declare_input(name, next(remaining), as_dtype(array.dtype))
            inputs.append(t)
            # float64 arrays serve a float32 model: they are converted in the program.
            tensors.append(astype(t, *floating) if t.dtype.is_float and len(floating) == 1 else t)
        trees.append(pytree.unflatten(part.form, tensors))
    with _open_mode(model):
        prediction = _called(model, trees[0])
    leaves, form = pytree.flatten(prediction)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise ArgumentTypeError(
                f"{type(model).__name__}: forward must give tensors, gave {shown(leaf)}"
            )
    if loss is None or metrics is None:
        run = compile_tensors(inputs, leaves, training=False, check=check)
        others = [t for t in leaves if not t.ndim or "N" not in symbols(t.shape[0])]
        return Program(run, (), form, str(others[0].type) if others else "")
    target = loss.aligned(prediction, trees[1])
    with _open_mode(loss.given) if isinstance(loss.given, Module) else _open_mode(model):
        value = loss(prediction, target, *trees[2:])
    declared = metrics.declare(prediction, target, loss)
    outputs = [value, *(t for pair in declared for t in pair if t is not None)]
    if metrics.functions:
        outputs += leaves
    updates = None
    if optimizer is not None:
        updates = optimizer.minimize(value, clip_norm=clip[0], clip_value=clip[1])
    run = compile_tensors(
        inputs, outputs, updates, training=optimizer is not None, check=check
    )  # fmt: skip
    weighted = [weight is not None for _, weight in declared]
    return Program(run, weighted, form if metrics.functions else None)


def _called(model: Module, x: Any) -> Any:
    """Several inputs are positional arguments, a dict's are keywords."""
    if isinstance(x, tuple):
        return model(*x)
    return model(**x) if isinstance(x, dict) else model(x)


# --- the three verbs ------------------------------------------------------------------------------


class _Run:
    """One call of `fit`."""

    def __init__(
        self, model: Module, data: Data, validation: Data | None, callbacks: list[Callback],
        rng: np.random.Generator | None, progress: bool, check: str | None, clip: Clip,
    ) -> None:  # fmt: skip
        self.clip = clip
        self.model, self.data, self.validation = model, data, validation
        self.callbacks, self.rng, self.progress, self.check = callbacks, rng, progress, check
        self.trainer: Trainer
        self.loss: Loss
        self.metrics: Metrics
        self.optimizer: optim.Optimizer
        self._warned = False

    def call(self, method: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, method)(*args)

    @property
    def stops(self) -> bool:
        return bool(getattr(self.model, "stop_training", False))

    def train(self, first: int, epochs: int, history: History) -> None:
        for callback in self.callbacks:
            callback.model, callback.optimizer = self.model, self.optimizer
            callback.params = history.params
        self.model.stop_training = False
        logs: dict[str, float] = {}
        self.call("on_train_begin", logs)
        for epoch in range(first, epochs):
            if self.stops:
                break
            logs = {}
            self.call("on_epoch_begin", epoch, logs)
            with _progress(self.progress, epoch + 1, epochs, _length(self.data)) as bar:
                logs |= self._epoch(epoch, bar)
                if self.validation is not None:
                    scores = _evaluated(
                        self.trainer, self.model, self.validation, self.loss, self.metrics
                    )
                    logs |= {f"val_{name}": value for name, value in scores.items()}
                self.call("on_epoch_end", epoch, logs)
                history.add(epoch, logs)
                bar.finish(", ".join(figures(logs)))
        self.call("on_train_end", logs)

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        means, count = Means(), 0
        for batch in self.data.batches(self.rng):
            self.call("on_train_batch_begin", count, {"size": batch.size})
            program = self.trainer.program(
                self.model, batch, self.loss, self.metrics, self.optimizer, self.check, self.clip
            )
            found = program.figures(batch, self.metrics, means)
            if math.isnan(found["loss"]):
                self._warn(epoch, count)
            count += 1
            self.call("on_train_batch_end", count - 1, {**found, "size": batch.size})
            if bar.advance():
                bar.show(", ".join(figures(means.means())))
            if self.stops:
                break
        if not count:
            raise ArgumentError("fit: the data gave no batch")
        return means.means()

    def _warn(self, epoch: int, batch: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"fit: the loss is NaN in epoch {epoch + 1}, batch {batch + 1}; "
                'fit(..., check="nan") stops before such a step and names its first NaN',
                RuntimeWarning,
                stacklevel=_outside(),
            )


def _outside() -> int:
    """The stack level of the user's line, as `warnings.warn` counts from its caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(
        "staticgrad."
    ):
        level, frame = level + 1, frame.f_back
    return level


class _Silent:
    """In the place of a progress bar."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def advance(self) -> bool:
        return False

    def finish(self, figures: str) -> None:
        pass


def _progress(wanted: bool, number: int, epochs: int, total: int | None) -> Any:
    return EpochProgress(number, epochs, total) if wanted else _Silent()


def _length(data: Data) -> int | None:
    return len(data) if isinstance(data, ArrayData) or hasattr(data.loader, "__len__") else None


def fit(
    model: Module, xs: Any, ys: Any, *, loss: Any, optimizer: Any, epochs: int, batch_size: int,
    validation_data: Any, validation_split: float, callbacks: Any, metrics: Any, shuffle: bool,
    progress: bool, seed: int | None, check: str | None, initial_epoch: int, sample_weight: Any,
    class_weight: Any, clip_norm: float | None, clip_value: float | None,
) -> History:  # fmt: skip
    """`Module.fit`."""
    for name, count in (("epochs", epochs), ("initial_epoch", initial_epoch)):
        if count < 0:
            raise ArgumentError(f"fit: {name} can't be negative, got {count}")
    data = with_weights(data_of(several_inputs(model.forward, xs), ys, batch_size, "fit"),
                        sample_weight, "fit")  # fmt: skip
    if isinstance(validation_data, tuple) and len(validation_data) == 2:
        validation_data = (several_inputs(model.forward, validation_data[0]), validation_data[1])
    data, validation = _validation(data, validation_data, validation_split, batch_size)
    if class_weight is not None:
        if sample_weight is not None:
            raise ArgumentError("fit: give sample_weight or class_weight, not both")
        data = with_weights(data, class_weights(data, class_weight, "fit"), "fit")
    if isinstance(data, ArrayData) and not data.samples.size:
        raise ArgumentError("fit: there are no samples: the arrays are empty")
    if isinstance(data, LoaderData) and data.once and epochs > 1:
        raise ArgumentError(
            f"fit: {shown(data.loader)} gives its batches once, which does not serve {epochs} "
            "epochs; give sg.data.DataLoader(...), a list of batches, or another object whose "
            "__iter__ starts again"
        )
    rng = order_of_batches(seed) if shuffle and isinstance(data, ArrayData) else None
    clip = (clip_norm, clip_value)
    run = _Run(model, data, validation, callbacks_of(callbacks), rng, progress, check, clip)
    run.trainer = trainer_of(model)
    run.loss, run.metrics = run.trainer.choose_loss(loss, metrics, "fit")
    if sample_weight is not None or class_weight is not None:
        run.loss.check_weights()
    run.trainer.loss, run.trainer.metrics = run.loss, run.metrics
    run.optimizer = run.trainer.choose_optimizer(model, optimizer)
    names = ["loss", *run.metrics.names, *run.metrics.functions]
    history = History({
        "epochs": epochs, "steps": _length(data), "metrics": names,
        "validation": validation is not None,
    })  # fmt: skip
    run.train(initial_epoch, epochs, history)
    return history


def _validation(
    data: Data, given: Any, fraction: float, batch_size: int
) -> tuple[Data, Data | None]:
    if not 0.0 <= fraction < 1.0:
        raise ArgumentError(f"fit: validation_split must be in [0, 1), got {fraction}")
    if given is not None:
        if fraction:
            raise ArgumentError("fit: give validation_data or validation_split, not both")
        found = validation_of(given, batch_size, "fit: validation_data")
        if isinstance(found, LoaderData) and found.once:
            raise ArgumentError(
                "fit: validation_data gives its batches once; give arrays (xs, ys), "
                "sg.data.DataLoader(...) or a list of batches"
            )
        return data, found
    if not fraction:
        return data, None
    if isinstance(data, LoaderData):
        raise ArgumentError("fit: a loader can't be split; give validation_data")
    return data.split(fraction, "fit")


def _evaluated(
    trainer: Trainer, model: Module, data: Data, loss: Loss, metrics: Metrics,
) -> dict[str, float]:  # fmt: skip
    means, count = Means(), 0
    for batch in data.batches():
        trainer.program(model, batch, loss, metrics).figures(batch, metrics, means)
        count += 1
    if not count:
        raise ArgumentError("evaluate: there are no samples")
    return means.means()


def evaluate(
    model: Module, xs: Any, ys: Any, *, loss: Any, metrics: Any, batch_size: int
) -> Scores:
    """`Module.evaluate`."""
    data = data_of(several_inputs(model.forward, xs), ys, batch_size, "evaluate")
    trainer = trainer_of(model)
    return Scores(_evaluated(trainer, model, data, *trainer.choose_loss(loss, metrics, "evaluate")))


def predict(model: Module, xs: Any, *, batch_size: int) -> Any:
    """`Module.predict`."""
    data = inputs_of(several_inputs(model.forward, xs), batch_size, "predict")
    trainer = trainer_of(model)
    found: list[tuple[Array, ...]] = []
    program: Program | None = None
    empty = isinstance(data, ArrayData) and not data.samples.size
    batches = iter([data.samples]) if empty and isinstance(data, ArrayData) else data.batches()
    for batch in batches:
        program = trainer.program(model, batch)
        if program.other and all(a.ndim == 1 for a in batch.arrays):
            raise ShapeError(
                f"predict: a result is {program.other}, without a row for each sample: the input "
                "has rank 1, so that its elements are the samples; one sample x is x[None], the "
                "first of an array x is x[:1]"
            )
        found.append(program.run(*batch.arrays))
    if program is None or program.form is None:
        raise ArgumentError("predict: the data gave no batch")
    if program.other and len(found) > 1:
        raise ShapeError(
            f"predict: a result is {program.other}, without a row for each sample, so that those "
            f"of {len(found)} batches can't be joined; give a batch_size that takes all samples"
        )
    whole = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*found)]
    return pytree.unflatten(program.form, whole)


__all__ = ["Trainer", "evaluate", "fit", "predict", "trainer_of"]
