"""Losses and metrics by name, as `fit` and `evaluate` take them, and their means over samples.

How targets meet predictions, so that what Keras users write works: integers become floating where
a loss compares elements; targets [N] stand for predictions [N, 1] and the other way round; labels
[N, 1] stand for [N].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from staticgrad.ir.dim import equal_dims
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ops.comparison import equal, greater, not_equal
from staticgrad.ops.convert import as_tensor, astype
from staticgrad.ops.logical import logical_and
from staticgrad.ops.public import list_of, shown
from staticgrad.ops.reduction import mean
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.rounding import abs as absolute
from staticgrad.ops.searching import argmax
from staticgrad.ops.shape import expand_dims, squeeze
from staticgrad.ops.tensor import Tensor

from . import functional as F
from . import loss as modules

Function = Callable[[Any, Any], Any]

# How a loss reads its target: class labels (or probabilities of the classes), one value for each
# element of the prediction, or in a way of its own.
LABELS, ELEMENTS, OWN = "labels", "elements", "own"

_NAMED: dict[str, tuple[str, Function]] = {
    "cross_entropy": (LABELS, F.cross_entropy),
    "nll": (LABELS, F.nll_loss),
    "mse": (ELEMENTS, F.mse_loss),
    "l1": (ELEMENTS, F.l1_loss),
    "smooth_l1": (ELEMENTS, F.smooth_l1_loss),
    "huber": (ELEMENTS, F.huber_loss),
    "bce": (ELEMENTS, F.binary_cross_entropy),
    "bce_with_logits": (ELEMENTS, F.binary_cross_entropy_with_logits),
    "kl_div": (ELEMENTS, lambda p, t: F.kl_div(p, t, reduction="batchmean")),
    "poisson_nll": (ELEMENTS, F.poisson_nll_loss),
    "soft_margin": (ELEMENTS, F.soft_margin_loss),
    "hinge_embedding": (ELEMENTS, F.hinge_embedding_loss),
}
_ALIASES = {
    "nll_loss": "nll",
    "mean_squared_error": "mse",
    "mse_loss": "mse",
    "mae": "l1",
    "mean_absolute_error": "l1",
    "l1_loss": "l1",
    "smooth_l1_loss": "smooth_l1",
    "huber_loss": "huber",
    "binary_cross_entropy": "bce",
    "binary_crossentropy": "bce",
    "binary_cross_entropy_with_logits": "bce_with_logits",
    "kl_divergence": "kl_div",
    "poisson_nll_loss": "poisson_nll",
    "soft_margin_loss": "soft_margin",
    "hinge_embedding_loss": "hinge_embedding",
}
_KERAS = (
    "it takes probabilities in Keras, where a model ends in softmax. Here models end in logits: "
    'leave the softmax out and use "cross_entropy", or end in log_softmax and use "nll"'
)
_REFUSED = dict.fromkeys(("sparse_categorical_crossentropy", "categorical_crossentropy"), _KERAS)
_MODULES: dict[type, str] = {
    modules.CrossEntropyLoss: "cross_entropy",
    modules.NLLLoss: "nll",
    modules.MSELoss: "mse",
    modules.L1Loss: "l1",
    modules.SmoothL1Loss: "smooth_l1",
    modules.HuberLoss: "huber",
    modules.BCELoss: "bce",
    modules.BCEWithLogitsLoss: "bce_with_logits",
    modules.KLDivLoss: "kl_div",
    modules.PoissonNLLLoss: "poisson_nll",
    modules.SoftMarginLoss: "soft_margin",
    modules.HingeEmbeddingLoss: "hinge_embedding",
}


class Loss:
    """What is minimised: `loss(prediction, target)` is a scalar of the graph. `version` tells an
    object that was changed from what it was."""

    def __init__(self, given: Any, version: tuple[Any, ...] = ()) -> None:
        self.given, self.version = given, version
        self.name: str | None = None
        self.kind = OWN
        self.function: Function
        if isinstance(given, str):
            self.name = _loss_name(given)
            self.kind, self.function = _NAMED[self.name]
        elif callable(given):
            self.function = given
            self.name = next((n for c, n in _MODULES.items() if isinstance(given, c)), None)
            if self.name is not None:
                self.kind = _NAMED[self.name][0]
        else:
            raise ArgumentTypeError(
                "loss: expected a name, a loss of sg.nn or a function (prediction, target) -> "
                f"scalar, got {shown(given)}"
            )

    def __eq__(self, other: object) -> bool:
        """Losses of one name, or of one object, are compiled once."""
        return isinstance(other, Loss) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> Any:
        return (self.name if isinstance(self.given, str) else id(self.given)), self.version

    @property
    def ignored(self) -> int | None:
        """The label that counts nothing."""
        if self.kind != LABELS:
            return None
        return int(getattr(self.given, "ignore_index", -100))

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Classifiers show their accuracy."""
        counted = self.kind == LABELS or self.name in ("bce", "bce_with_logits")
        return ("accuracy",) if counted else ()

    def aligned(self, prediction: Any, target: Any) -> Any:
        """The target as the loss takes it."""
        if self.kind == OWN:
            return target
        if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
            raise ArgumentTypeError(
                f"loss: {self.name} takes one prediction and one target; for a model with several "
                "give a function (prediction, target) -> scalar"
            )
        if self.kind == LABELS:
            return _aligned_labels(prediction, target)
        return _aligned_elements(prediction, astype(target, prediction.dtype))

    def check_weights(self) -> None:
        """Raises where samples can't be given weights."""
        if not isinstance(self.given, str):
            raise ArgumentError(
                'fit: sample_weight and class_weight need a loss by its name, e.g. loss="mse", '
                f"which is computed for each sample; got {shown(self.given)}"
            )

    def of_weighted(self, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """The mean of the samples' losses, each times its weight: `sum(w * l) / n`."""
        unreduced: Callable[..., Any] = F.kl_div if self.name == "kl_div" else self.function
        each = unreduced(prediction, target, reduction="none")
        inner = tuple(range(1, each.ndim))
        losses = reduce_sum(each, axis=inner) if inner else each
        total = reduce_sum(losses * astype(weight, each.dtype))
        if self.kind == LABELS and target.dtype.is_integer:
            return total / reduce_sum(astype(not_equal(target, self.ignored), each.dtype))
        parts = losses.size if self.name == "kl_div" else each.size
        return total / astype(as_tensor(parts), each.dtype)

    def __call__(self, prediction: Any, target: Any, weight: Any = None) -> Tensor:
        """The scalar; `target` is aligned."""
        if weight is not None:
            return self.of_weighted(prediction, target, weight)
        value = self.function(prediction, target)
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(f"loss: expected a scalar tensor, got {shown(value)}")
        if value.shape != ():
            raise ShapeError(
                f"loss: expected a scalar, got {value.type}; reduce it with .mean() or "
                'reduction="mean"'
            )
        return value


def _loss_name(given: str) -> str:
    name = _ALIASES.get(given, given)
    if name in _NAMED:
        return name
    if given in _REFUSED:
        raise ArgumentError(f"loss {given!r}: {_REFUSED[given]}")
    raise ArgumentError(
        f"there is no loss {given!r}; the names are {', '.join(_NAMED)}. Also a loss of sg.nn, or "
        "a function (prediction, target) -> scalar"
    )


def _same_shape(a: Tensor, b: Tensor) -> bool:
    return a.ndim == b.ndim and all(equal_dims(x, y) is True for x, y in zip(a.shape, b.shape))


def _aligned_labels(prediction: Tensor, target: Tensor) -> Tensor:
    if target.dtype.is_float:
        return target  # probabilities
    if _same_shape(prediction, target):
        return astype(target, prediction.dtype)  # one-hot rows
    if target.ndim == prediction.ndim > 1 and target.shape[1] == 1:
        target = squeeze(target, axis=1)
    return target if target.dtype.is_integer else astype(target, "int64")


def _aligned_elements(prediction: Tensor, target: Tensor) -> Tensor:
    if target.ndim == prediction.ndim - 1 and prediction.shape[-1] == 1:
        return expand_dims(target, axis=-1)
    if target.ndim - 1 == prediction.ndim and target.shape[-1] == 1:
        return squeeze(target, axis=-1)
    return target


# --- metrics --------------------------------------------------------------------------------------

Declared = tuple[Tensor, Tensor | None]  # the value, and the samples it stands for if not the batch


# Where the two classes of a loss part, in its prediction and in its target.
_MIDDLES = {"bce": (0.5, 0.5), "bce_with_logits": (0.0, 0.5), "soft_margin": (0.0, 0.0)}


def _accuracy(prediction: Tensor, target: Tensor, loss: Loss) -> Declared:
    """The share of right classes: the greatest of several, else above or below the middle."""
    if loss.kind != LABELS:
        target = _aligned_elements(prediction, target)
        alone = prediction.ndim == target.ndim and (
            prediction.ndim == 1 or prediction.shape[-1] == 1 or loss.name in _MIDDLES
        )
        if alone:
            middle, between = _MIDDLES.get(loss.name or "", (0.5, 0.5))
            truth = greater(astype(target, prediction.dtype), between)
            return mean(astype(equal(greater(prediction, middle), truth), "float64")), None
    axis = 1 if prediction.ndim > 1 else 0
    given = target.ndim < prediction.ndim
    labels = astype(target if given else argmax(target, axis=axis), "int64")
    right = equal(argmax(prediction, axis=axis), labels)
    if loss.ignored is None or not given:
        return mean(astype(right, "float64")), None
    counted = not_equal(labels, loss.ignored)
    number = reduce_sum(astype(counted, "float64"))
    found = reduce_sum(astype(logical_and(right, counted), "float64"))
    return found / number, number


def _mae(prediction: Tensor, target: Tensor, loss: Loss) -> Declared:
    return mean(absolute(prediction - _aligned_elements(prediction, target))), None


def _mse(prediction: Tensor, target: Tensor, loss: Loss) -> Declared:
    difference = prediction - _aligned_elements(prediction, target)
    return mean(difference * difference), None


_METRICS: dict[str, Callable[[Tensor, Tensor, Loss], Declared]] = {
    "accuracy": _accuracy,
    "mae": _mae,
    "mse": _mse,
}
_METRIC_ALIASES = {"acc": "accuracy", "mean_absolute_error": "mae", "mean_squared_error": "mse"}


class Metrics:
    """What is shown beside the loss: names, which the compiled program computes, and functions of
    arrays (prediction, target), which are called with each batch."""

    def __init__(self, given: Any, loss: Loss) -> None:
        listed: list[Any] = []
        if given is None:
            listed = list(loss.default_metrics)
        elif isinstance(given, Mapping):
            listed = list(given.items())
        elif isinstance(given, str) or callable(given):
            listed = [given]
        else:
            listed = list_of(given, "metrics", "names or functions")
        self.names: list[str] = []
        self.functions: dict[str, Function] = {}
        for metric in listed:
            self._add(metric)

    def _add(self, metric: Any) -> None:
        name, function = metric if isinstance(metric, tuple) and len(metric) == 2 else ("", metric)
        if isinstance(function, str):
            given, function = function, None
            found = _METRIC_ALIASES.get(given, given)
            if found not in _METRICS:
                raise ArgumentError(
                    f"there is no metric {given!r}; the names are {', '.join(_METRICS)}. Also a "
                    "function of arrays (prediction, target) -> number"
                )
            name = found
        elif not callable(function):
            raise ArgumentTypeError(
                "metrics: expected names or functions of arrays (prediction, target), got "
                f"{shown(function)}"
            )
        else:
            name = name or getattr(function, "__name__", type(function).__name__)
        if name == "loss" or name in self.names or name in self.functions:
            raise ArgumentError(f"metrics: the name {name!r} is taken twice")
        if function is None:
            self.names.append(name)
        else:
            self.functions[name] = function

    @property
    def key(self) -> tuple[Any, ...]:
        """What a compiled program depends on."""
        return (*self.names, bool(self.functions))

    def declare(self, prediction: Any, target: Any, loss: Loss) -> list[Declared]:
        if self.names and not (isinstance(prediction, Tensor) and isinstance(target, Tensor)):
            raise ArgumentTypeError(
                f"metrics: {', '.join(self.names)} take one prediction and one target; for a model "
                "with several give functions of arrays (prediction, target)"
            )
        return [_METRICS[name](prediction, target, loss) for name in self.names]

    def call(self, prediction: Any, target: Any) -> dict[str, float]:
        found = {}
        for name, function in self.functions.items():
            value = function(prediction, target)
            if np.ndim(value) != 0 or not isinstance(value, (int, float, np.number, np.ndarray)):
                raise ArgumentTypeError(f"metrics: {name!r} must give a number, got {shown(value)}")
            found[name] = float(value)
        return found


# --- means ----------------------------------------------------------------------------------------


class Means:
    """Means over samples of named numbers, batch by batch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: float, weight: float) -> None:
        if weight:
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight
        else:  # a batch without anything that counts
            self._sums.setdefault(name, 0.0)
            self._weights.setdefault(name, 0.0)

    def means(self) -> dict[str, float]:
        weights = self._weights
        return {n: s / weights[n] if weights[n] else math.nan for n, s in self._sums.items()}


class Scores(tuple[float, ...]):
    """What `evaluate` gives: the loss and the metrics, as a tuple and by name.

    `loss, accuracy = scores`, `scores["accuracy"]`, `dict(scores)`; `float(scores)` is the loss.
    """

    names: tuple[str, ...]

    def __new__(cls, values: Mapping[str, float]) -> Scores:
        found = super().__new__(cls, values.values())
        found.names = tuple(values)
        return found

    def keys(self) -> tuple[str, ...]:
        """The names, of which "loss" is the first."""
        return self.names

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"{key!r}; there are {', '.join(self.names)}")
            key = self.names.index(key)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[float]:
        return super().__iter__()

    def __float__(self) -> float:
        return float(self[0])

    def __format__(self, spec: str) -> str:
        """Each number in this format: `0.031` where there is the loss alone, else
        `loss 0.031, accuracy 0.992`."""
        if len(self) == 1:
            return format(float(self), spec)
        return ", ".join(f"{n} {v:{spec}}" for n, v in zip(self.names, self))

    def __repr__(self) -> str:
        return f"Scores({', '.join(f'{n}={v!r}' for n, v in zip(self.names, self))})"

    __str__ = __repr__


__all__ = ["Loss", "Means", "Metrics", "Scores"]
