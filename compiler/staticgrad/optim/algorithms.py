"""SGD, Adam, AdamW, RMSprop and Adagrad, with PyTorch's formulas, arguments and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ops.convert import constant
from staticgrad.ops.exponential import sqrt
from staticgrad.ops.public import checked_scalar
from staticgrad.ops.selection import maximum, where
from staticgrad.ops.tensor import Tensor

from .optimizer import Optimizer, Scalars, Slots

Group = Mapping[str, Any]


def _require(condition: bool, name: str, option: str, value: Any, wanted: str) -> None:
    if not condition:
        raise ArgumentError(f"{name}: {option} must be {wanted}, got {value!r}")


def _not_negative(group: Group, name: str, *options: str) -> None:
    for option in options:
        value = checked_scalar(group[option], ("float",), f"{name}: {option}")
        _require(0 <= value < math.inf, name, option, value, "finite and at least 0")


def _below_one(name: str, option: str, value: float) -> None:
    _require(0 <= value < 1, name, option, value, "in [0, 1)")


def _directed(group: Group, p: Tensor, g: Tensor) -> Tensor:
    """The gradient to go down: turned round to maximise, with the decay of the weights."""
    if group["maximize"]:
        g = -g
    return g + p * group["weight_decay"] if group["weight_decay"] else g


class SGD(Optimizer):
    """`buf = momentum*buf + (1 - dampening)*g;  p = p - lr*buf`, with g the gradient plus
    `weight_decay*p`. The first step takes `buf = g`. With `nesterov` the step is along
    `g + momentum*buf`. Source: Sutskever et al., 2013."""

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        }  # fmt: skip
        # A dampened first step differs from later ones; a group may ask for it when added.
        self.counts_steps = bool(dampening) or _any_option(params, "dampening")
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        _not_negative(group, "SGD", "momentum", "weight_decay")
        dampening = checked_scalar(group["dampening"], ("float",), "SGD: dampening")
        _require(math.isfinite(dampening), "SGD", "dampening", dampening, "finite")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ArgumentError("SGD: nesterov needs a momentum and no dampening")
        if group["dampening"] and self._step is None:
            raise ArgumentError("SGD: dampening must be set when the optimiser is made")

    def slots(self, group: Group, p: Any) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def scalars(self, group: Group, lr: Tensor, step: Tensor | None) -> Scalars:
        if step is None or not group["dampening"]:
            return {"lr": lr}
        # The factor of the gradient: 1 in the first step.
        damped = constant(np.float64(1.0 - group["dampening"]))
        return {"lr": lr, "fresh": where(step > 1.0, damped, 1.0)}

    def rule(
        self, group: Group, p: Tensor, g: Tensor, slots: Slots, scalars: Scalars
    ) -> tuple[Tensor, Slots]:
        g = _directed(group, p, g)
        new: Slots = {}
        if group["momentum"]:
            fresh = g * scalars["fresh"] if "fresh" in scalars else g
            buf = new["momentum_buffer"] = slots["momentum_buffer"] * group["momentum"] + fresh
            g = g + buf * group["momentum"] if group["nesterov"] else buf
        return p - g * scalars["lr"], new


def _any_option(params: Any, option: str) -> bool:
    return isinstance(params, (list, tuple)) and any(
        isinstance(g, Mapping) and g.get(option) for g in params
    )


class Adam(Optimizer):
    """`m = b1*m + (1 - b1)*g;  v = b2*v + (1 - b2)*g**2;
    p = p - lr * (m/(1 - b1**t)) / (sqrt(v/(1 - b2**t)) + eps)`, t the number of the step.

    `weight_decay` adds `weight_decay*p` to the gradient; `amsgrad` uses the greatest v so far.
    Source: Kingma and Ba, arXiv 1412.6980; Reddi et al., arXiv 1904.09237.
    """

    counts_steps = True
    _decoupled = False

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0, amsgrad: bool = False, *,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        name = type(self).__name__
        _not_negative(group, name, "eps", "weight_decay")
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ArgumentTypeError(f"{name}: betas must be two numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            _below_one(name, f"betas[{i}]", checked_scalar(beta, ("float",), f"{name}: betas[{i}]"))

    def slots(self, group: Group, p: Any) -> dict[str, float]:
        names = ("exp_avg", "exp_avg_sq") + ("max_exp_avg_sq",) * bool(group["amsgrad"])
        return dict.fromkeys(names, 0.0)

    def scalars(self, group: Group, lr: Tensor, step: Tensor | None) -> Scalars:
        assert step is not None
        beta1, beta2 = group["betas"]
        found = {
            "step_size": lr / (1.0 - beta1**step),
            "root_correction": sqrt(1.0 - beta2**step),
        }
        if self._decoupled:
            found["keep"] = 1.0 - lr * group["weight_decay"]
        return found

    def rule(
        self, group: Group, p: Tensor, g: Tensor, slots: Slots, scalars: Scalars
    ) -> tuple[Tensor, Slots]:
        if self._decoupled:
            g = -g if group["maximize"] else g
            p = p * scalars["keep"]
        else:
            g = _directed(group, p, g)
        beta1, beta2 = group["betas"]
        m, v = slots["exp_avg"], slots["exp_avg_sq"]
        m = m + (g - m) * (1.0 - beta1)
        v = v * beta2 + g * g * (1.0 - beta2)
        new = {"exp_avg": m, "exp_avg_sq": v}
        if group["amsgrad"]:
            v = new["max_exp_avg_sq"] = maximum(slots["max_exp_avg_sq"], v)
        denominator = sqrt(v) / scalars["root_correction"] + group["eps"]
        return p - m / denominator * scalars["step_size"], new


class AdamW(Adam):
    """`Adam` whose decay is apart from the gradient: `p = p*(1 - lr*weight_decay)` first.

    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """

    _decoupled = True

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2, amsgrad: bool = False, *,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


class RMSprop(Optimizer):
    """`v = alpha*v + (1 - alpha)*g**2;  p = p - lr * g/(sqrt(v) + eps)`.

    `centered` subtracts the square of the mean gradient from v; with `momentum` the quotient is
    accumulated in `buf = momentum*buf + quotient`. Source: Hinton, Neural Networks for Machine
    Learning, lecture 6; Graves, arXiv 1308.0850.
    """

    def __init__(
        self, params: Any, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False, *,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay,
            "momentum": momentum, "centered": centered, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        _not_negative(group, "RMSprop", "alpha", "eps", "weight_decay", "momentum")

    def slots(self, group: Group, p: Any) -> dict[str, float]:
        names = ["square_avg"]
        names += ["grad_avg"] if group["centered"] else []
        names += ["momentum_buffer"] if group["momentum"] else []
        return dict.fromkeys(names, 0.0)

    def rule(
        self, group: Group, p: Tensor, g: Tensor, slots: Slots, scalars: Scalars
    ) -> tuple[Tensor, Slots]:
        g = _directed(group, p, g)
        alpha = group["alpha"]
        square = slots["square_avg"] * alpha + g * g * (1.0 - alpha)
        new = {"square_avg": square}
        if group["centered"]:
            average = new["grad_avg"] = slots["grad_avg"] + (g - slots["grad_avg"]) * (1.0 - alpha)
            square = square - average * average
        quotient = g / (sqrt(square) + group["eps"])
        if group["momentum"]:
            quotient = slots["momentum_buffer"] * group["momentum"] + quotient
            new["momentum_buffer"] = quotient
        return p - quotient * scalars["lr"], new


class Adagrad(Optimizer):
    """`s = s + g**2;  p = p - lr/(1 + (t - 1)*lr_decay) * g/(sqrt(s) + eps)`, t the number of the
    step. Source: Duchi et al., 2011."""

    counts_steps = True

    def __init__(
        self, params: Any, lr: float = 1e-2, lr_decay: float = 0.0, weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0, eps: float = 1e-10, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "eps": eps,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        _not_negative(
            group, "Adagrad", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"
        )

    def slots(self, group: Group, p: Any) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}

    def scalars(self, group: Group, lr: Tensor, step: Tensor | None) -> Scalars:
        assert step is not None
        return {"lr": lr / (1.0 + (step - 1.0) * group["lr_decay"])}

    def rule(
        self, group: Group, p: Tensor, g: Tensor, slots: Slots, scalars: Scalars
    ) -> tuple[Tensor, Slots]:
        g = _directed(group, p, g)
        total = slots["sum"] + g * g
        return p - g / (sqrt(total) + group["eps"]) * scalars["lr"], {"sum": total}


__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop"]
