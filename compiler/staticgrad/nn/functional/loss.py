"""Losses with PyTorch's names, arguments and defaults.

`reduction` is "mean", "sum" or "none" everywhere. Logarithms of probabilities are taken in stable
forms: pass logits to `cross_entropy` and `binary_cross_entropy_with_logits`.
"""

from __future__ import annotations

import math
from typing import Any

from staticgrad.ir.dim import Dim, Shape, equal_dims, shape_text
from staticgrad.ir.dtype import integer_range
from staticgrad.ir.errors import ArgumentError, DTypeError, ShapeError
from staticgrad.ops.activation import logsigmoid
from staticgrad.ops.activation import softplus as ops_softplus
from staticgrad.ops.comparison import not_equal
from staticgrad.ops.convert import as_tensor, astype, promoted
from staticgrad.ops.exponential import exp, log
from staticgrad.ops.indexing import look_up, pick_along
from staticgrad.ops.reduction import dim_size, mean
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import broadcast_shapes
from staticgrad.ops.rounding import abs as absolute
from staticgrad.ops.selection import maximum, stop_gradient, where
from staticgrad.ops.shape import expand_dims, require_broadcast, reshape, squeeze
from staticgrad.ops.softmax import log_softmax
from staticgrad.ops.tensor import Tensor

from .linear import class_index


def reduce_loss(loss: Tensor, reduction: str, what: str) -> Tensor:
    """The mean, the sum, or the losses themselves."""
    if reduction == "mean":
        return mean(loss)
    if reduction == "sum":
        return reduce_sum(loss)
    if reduction == "none":
        return loss
    raise ArgumentError(f'{what}: reduction must be "mean", "sum" or "none", got {reduction!r}')


def _same_shape(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(equal_dims(x, y) for x, y in zip(a, b))


def _pair(input: Any, target: Any, what: str) -> tuple[Tensor, Tensor]:
    """Floating operands of one dtype. One may be broadcast to the other; that both are, as [N, 1]
    with [N], is nearly always a mistake that gives a wrong loss, and is refused."""
    a, b = promoted(input, target)
    if not a.dtype.is_float:
        raise DTypeError(
            f"{what}: expected floating operands, got {a.type} and {b.type}; convert with "
            ".astype(sg.float32) first"
        )
    both = broadcast_shapes(a.shape, b.shape)
    if not _same_shape(both, a.shape) and not _same_shape(both, b.shape):
        raise ShapeError(
            f"{what}: the input {a.type} and the target {b.type} would broadcast each other to "
            "another shape; give both the same shape"
        )
    return a, b


def _weighted(loss: Tensor, weight: Any, what: str) -> Tensor:
    """The losses times a weight that broadcasts to them."""
    if weight is None:
        return loss
    w = as_tensor(weight, what)
    require_broadcast(w, loss, what, "weight")
    return loss * w


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """`(input - target)**2`."""
    a, b = _pair(input, target, "mse_loss")
    d = a - b
    return reduce_loss(d * d, reduction, "mse_loss")


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """`|input - target|`."""
    a, b = _pair(input, target, "l1_loss")
    return reduce_loss(absolute(a - b), reduction, "l1_loss")


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """`d**2 / (2 beta)` where `d = |input - target| < beta`, else `d - beta/2`. beta 0 is
    `l1_loss`. Source: Girshick, Fast R-CNN, arXiv 1504.08083."""
    if not beta >= 0:
        raise ArgumentError(f"smooth_l1_loss: beta can't be negative, got {beta}")
    a, b = _pair(input, target, "smooth_l1_loss")
    d = absolute(a - b)
    loss = d if beta == 0 else where(d < beta, d * d * (0.5 / beta), d - 0.5 * beta)
    return reduce_loss(loss, reduction, "smooth_l1_loss")


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """`d**2 / 2` where `d = |input - target| <= delta`, else `delta (d - delta/2)`."""
    if not delta > 0:
        raise ArgumentError(f"huber_loss: delta must be positive, got {delta}")
    a, b = _pair(input, target, "huber_loss")
    d = absolute(a - b)
    loss = where(d <= delta, d * d * 0.5, (d - 0.5 * delta) * delta)
    return reduce_loss(loss, reduction, "huber_loss")


def _log_at_least(x: Tensor, least: float) -> Tensor:
    """`max(log(x), least)` for x >= 0; its gradient where it is held is 0."""
    positive = x > 0.0
    return where(positive, maximum(log(where(positive, x, 1.0)), least), least)


def binary_cross_entropy(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean"
) -> Tensor:
    """`-weight (t log p + (1 - t) log(1 - p))` for probabilities p in [0, 1].

    As in PyTorch the logarithms are held at -100, so that the loss stays finite. Where one is held
    its gradient is 0 (PyTorch's is up to 1e12). With logits use
    `binary_cross_entropy_with_logits`, which needs neither.
    """
    what = "binary_cross_entropy"
    p, t = _pair(input, target, what)
    # log of the complement: where p rounds to 1 it is held too.
    loss = -(t * _log_at_least(p, -100.0) + (1.0 - t) * _log_at_least(1.0 - p, -100.0))
    return reduce_loss(_weighted(loss, weight, what), reduction, what)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Tensor:
    """`-weight (pos_weight t log s(x) + (1 - t) log(1 - s(x)))` with the sigmoid s, without
    overflow: `(1 - t) x + (1 + (pos_weight - 1) t) softplus(-x)`."""
    what = "binary_cross_entropy_with_logits"
    x, t = _pair(input, target, what)
    if pos_weight is None:
        loss = ops_softplus(x) - x * t
    else:
        positive_weight = as_tensor(pos_weight, what)
        require_broadcast(positive_weight, t if t.ndim > x.ndim else x, what, "pos_weight")
        factor = (positive_weight - 1.0) * t + 1.0
        loss = (1.0 - t) * x - factor * logsigmoid(x)
    return reduce_loss(_weighted(loss, weight, what), reduction, what)


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """`t (log t - input)`, where the input holds log-probabilities and the target probabilities,
    or log-probabilities with `log_target`. Of t = 0 it is 0.

    `reduction="batchmean"` divides the sum by the first dim: the divergence as it is defined.
    """
    a, t = _pair(input, target, "kl_div")
    if log_target:
        loss = exp(t) * (t - a)
    else:
        positive = t > 0.0
        loss = where(positive, t * log(where(positive, t, 1.0)), 0.0) - t * a
    if reduction == "batchmean":
        if not a.ndim:
            raise ShapeError("kl_div: batchmean needs at least 1 dim")
        size = a.shape[0]
        count: Any = dim_size(size, a.dtype) if isinstance(size, Dim) else float(size)
        return reduce_sum(loss) / count
    return reduce_loss(loss, reduction, "kl_div")


# --- classes --------------------------------------------------------------------------------------


def _class_axis(input: Any, what: str) -> tuple[Tensor, int]:
    x = as_tensor(input, what)
    if not x.dtype.is_float:
        raise DTypeError(f"{what}: expected floating input, got {x.type}")
    if not x.ndim:
        raise ShapeError(f"{what}: expected an input [N, C, ..] or [C], got {x.type}")
    return x, 1 if x.ndim > 1 else 0


def _class_weight(weight: Any, x: Tensor, axis: int, what: str) -> Tensor | None:
    if weight is None:
        return None
    w = astype(as_tensor(weight, what), x.dtype)
    if w.ndim != 1 or equal_dims(w.shape[0], x.shape[axis]) is False:
        raise ShapeError(f"{what}: expected one weight for each class of {x.type}, got {w.type}")
    return w


def _check_labels(x: Tensor, labels: Tensor, axis: int, what: str) -> None:
    if not labels.dtype.is_integer:
        raise DTypeError(
            f"{what}: class labels must be integers, got {labels.type}; probabilities must have "
            f"the shape of the input {x.type}"
        )
    wanted = x.shape[:axis] + x.shape[axis + 1 :]
    if len(wanted) != labels.ndim or any(
        equal_dims(a, b) is False for a, b in zip(wanted, labels.shape)
    ):
        raise ShapeError(
            f"{what}: for the input {x.type} with classes in dim {axis}, the labels must have the "
            f"shape {shape_text(wanted)}, got {labels.type}"
        )


class _Labels:
    """Checked labels: which count, and what belongs to each."""

    def __init__(self, x: Tensor, target: Any, axis: int, ignore_index: int, what: str) -> None:
        labels = as_tensor(target, what)
        _check_labels(x, labels, axis, what)
        low, high = integer_range(labels.dtype)
        self.dtype, self.axis = x.dtype, axis
        self.counted: Tensor | None = None
        if low <= ignore_index <= high:
            self.counted = not_equal(labels, ignore_index)
            labels = where(self.counted, labels, 0)
        self.index = class_index(labels, what)

    def pick(self, x: Tensor) -> Tensor:
        """x at the labels, along the class axis."""
        found = pick_along(x, expand_dims(self.index, axis=self.axis), self.axis, "label")
        return squeeze(found, axis=self.axis)

    def only_counted(self, values: Tensor) -> Tensor:
        return values if self.counted is None else where(self.counted, values, 0.0)

    def total_weight(self, weight: Tensor | None) -> Tensor | None:
        """What a mean divides by; None where that is the number of labels."""
        if weight is not None:
            return reduce_sum(self.only_counted(look_up(weight, self.index, "label")))
        if self.counted is None:
            return None
        return reduce_sum(astype(self.counted, self.dtype))


def _label_losses(logp: Tensor, labels: _Labels, weight: Tensor | None) -> Tensor:
    picked = -labels.pick(logp)
    if weight is not None:
        picked = picked * look_up(weight, labels.index, "label")
    return labels.only_counted(picked)


def _reduce_labelled(
    losses: Tensor, labels: _Labels, weight: Tensor | None, reduction: str, what: str
) -> Tensor:
    total = labels.total_weight(weight) if reduction == "mean" else None
    if total is None:
        return reduce_loss(losses, reduction, what)
    return reduce_sum(losses) / total


def nll_loss(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """`-weight[t] input[t]` for log-probabilities [N, C, ..] (or [C]) and labels [N, ..] (or []).

    Labels equal to `ignore_index` count nothing; the mean divides by the sum of the weights of
    the others. Any other label outside of 0 .. C - 1 fails the run with `ExecutionError`.
    """
    x, axis = _class_axis(input, "nll_loss")
    labels = _Labels(x, target, axis, ignore_index, "nll_loss")
    w = _class_weight(weight, x, axis, "nll_loss")
    return _reduce_labelled(_label_losses(x, labels, w), labels, w, reduction, "nll_loss")


def _check_smoothing(label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(
            f"cross_entropy: label_smoothing must be between 0 and 1, got {label_smoothing}"
        )


def _by_class(weight: Tensor, x: Tensor, axis: int) -> Tensor:
    return reshape(weight, tuple(weight.shape[0] if i == axis else 1 for i in range(x.ndim)))


def _cross_entropy_probabilities(
    x: Tensor, target: Tensor, axis: int, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    what = "cross_entropy"
    if not target.dtype.is_float:
        raise DTypeError(f"{what}: class probabilities must be floating, got {target.type}")
    _, t = promoted(x, target)
    if smoothing:
        t = t * (1.0 - smoothing) + smoothing / _classes(x, axis)
    logp = log_softmax(x, axis=axis)
    if weight is not None:
        logp = logp * _by_class(weight, x, axis)
    losses = -reduce_sum(logp * t, axis=axis)
    return reduce_loss(losses, reduction, what)


def _classes(x: Tensor, axis: int) -> Any:
    size = x.shape[axis]
    return dim_size(size, x.dtype) if isinstance(size, Dim) else float(size)


def cross_entropy(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """`-log(softmax(input))` at the labels. input: [N, C, ..] (or [C]), target: integer labels
    [N, ..] (or []), or floating probabilities of the input's shape.

    `weight` [C] scales classes; a mean over labels divides by the sum of the labels' weights, one
    over probabilities by their number. Labels equal to `ignore_index` count nothing; any other
    outside of 0 .. C - 1 fails the run with `ExecutionError`. `label_smoothing` e mixes the target
    with the uniform distribution: (1 - e) target + e/C.
    """
    what = "cross_entropy"
    x, axis = _class_axis(input, what)
    _check_smoothing(label_smoothing)
    t = as_tensor(target, what)
    w = _class_weight(weight, x, axis, what)
    if t.ndim == x.ndim and _same_shape(t.shape, x.shape):
        return _cross_entropy_probabilities(x, t, axis, w, reduction, label_smoothing)
    labels = _Labels(x, t, axis, ignore_index, what)
    logp = log_softmax(x, axis=axis)
    losses = _label_losses(logp, labels, w)
    if not label_smoothing:
        return _reduce_labelled(losses, labels, w, reduction, what)
    scaled = logp if w is None else logp * _by_class(w, x, axis)
    smooth = labels.only_counted(-mean(scaled, axis=axis))
    mixed = losses * (1.0 - label_smoothing) + smooth * label_smoothing
    return _reduce_labelled(mixed, labels, w, reduction, what)


# --- other losses ---------------------------------------------------------------------------------


def soft_margin_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """`log(1 + exp(-t x))` for targets 1 and -1."""
    x, t = _pair(input, target, "soft_margin_loss")
    return reduce_loss(ops_softplus(-(t * x)), reduction, "soft_margin_loss")


def hinge_embedding_loss(
    input: Any, target: Any, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """`x` where the target is 1, `max(0, margin - x)` where it is -1."""
    x, t = _pair(input, target, "hinge_embedding_loss")
    zero = 0.0
    loss = where(not_equal(t, 1.0), maximum(margin - x, zero), zero) + where(
        not_equal(t, -1.0), x, zero
    )
    return reduce_loss(loss, reduction, "hinge_embedding_loss")


def margin_ranking_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """`max(0, -t (x1 - x2) + margin)`."""
    x1, x2 = _pair(input1, input2, "margin_ranking_loss")
    d, t = _pair(x1 - x2, target, "margin_ranking_loss")
    return reduce_loss(maximum(margin - t * d, 0.0), reduction, "margin_ranking_loss")


def poisson_nll_loss(
    input: Any, target: Any, log_input: bool = True, full: bool = False, eps: float = 1e-8,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """`exp(x) - t x`, or `x - t log(x + eps)` without `log_input`; `full` adds Stirling's
    approximation of log(t!) where t > 1."""
    x, t = _pair(input, target, "poisson_nll_loss")
    loss = exp(x) - t * x if log_input else x - t * log(x + eps)
    if full:
        many = t > 1.0
        safe = where(many, t, 1.0)
        stirling = safe * log(safe) - safe + log(safe * (2 * math.pi)) * 0.5
        loss = loss + where(many, stirling, 0.0)
    return reduce_loss(loss, reduction, "poisson_nll_loss")


def gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """`(log(v) + (x - t)**2 / v) / 2` with `v = max(var, eps)`, through whose bound the gradient
    passes unchanged; `full` adds log(2 pi)/2."""
    x, t = _pair(input, target, "gaussian_nll_loss")
    v = as_tensor(var, "gaussian_nll_loss")
    if v.ndim == x.ndim - 1:
        v = expand_dims(v, axis=-1)
    if not v.dtype.is_float:
        raise DTypeError(f"gaussian_nll_loss: expected a floating var, got {v.type}")
    require_broadcast(v, x if x.ndim >= t.ndim else t, "gaussian_nll_loss", "var")
    held = v + stop_gradient(maximum(v, eps) - v)
    d = x - t
    loss = (log(held) + d * d / held) * 0.5
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduce_loss(loss, reduction, "gaussian_nll_loss")


__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
]
