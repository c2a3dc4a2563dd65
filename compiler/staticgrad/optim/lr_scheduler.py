"""Schedules of the learning rate, by PyTorch's names: `step()` after each epoch (or step) writes
the next rate into the optimiser's state; nothing is recompiled.

Each schedule is a closed formula of the number of calls and of the rates at its start, so that
nothing drifts. Formulas of several schedules are combined by `SequentialLR` or `LambdaLR`, not by
stepping several on one optimiser.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, StateError
from staticgrad.ops.public import checked_scalar, list_of, shown

from .optimizer import Optimizer

_MOST_STEPS = 2**53  # counted exactly by the floats of the formulas


def _count_groups(optimizer: Any, what: str) -> int:
    """How many parameter groups an optimiser has."""
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(f"{what}: expected an optimiser, got {shown(optimizer)}")
    return len(optimizer.param_groups)


def _rates(given: Any, count: int, what: str) -> list[float]:
    """One number for all groups, or a list of one for each."""
    rates = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(rates) != count:
        raise ArgumentError(f"{what}: expected one number or {count}, got {given!r}")
    return [float(checked_scalar(rate, ("float",), what)) for rate in rates]


def _milestones(given: Any, what: str) -> list[int]:
    found = list_of(given, f"{what}: milestones", "ints")
    return [checked_scalar(m, ("int",), f"{what}: a milestone") for m in found]


class LRScheduler:
    """The base: `rate(base, t)` is the rate of a group after t calls of `step`."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        _count_groups(optimizer, type(self).__name__)
        if not -1 <= last_epoch < _MOST_STEPS:
            raise ArgumentError(
                f"{type(self).__name__}: last_epoch must be at least -1, got {last_epoch}"
            )
        self.optimizer = optimizer
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch + 1
        self._write()

    def rate(self, group: int, t: int) -> float:
        """The rate of a group after t steps."""
        raise NotImplementedError

    def _write(self) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            try:
                group["lr"] = self.rate(i, self.last_epoch)
            except OverflowError:
                raise ArgumentError(
                    f"{type(self).__name__}: the rate after {self.last_epoch} steps overflows"
                ) from None

    def step(self) -> None:
        """Goes on by one and writes the new rates."""
        self.last_epoch += 1
        self._write()

    def get_last_lr(self) -> list[float]:
        """The rates that are set now, one for each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The position and the starting rates, as plain data."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes to a saved position and writes its rates. Raises `StateError` for other data."""
        own, what = self.state_dict(), type(self).__name__
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(own):
            raise StateError(
                f"{what}: expected a state with the keys {sorted(own)}, got {state_dict!r}"
            )
        try:
            last_epoch = checked_scalar(state_dict["last_epoch"], ("int",), f"{what}: last_epoch")
            base_lrs = _rates(list(state_dict["base_lrs"]), len(self.base_lrs), f"{what}: base_lrs")
        except (ArgumentError, ArgumentTypeError, TypeError) as error:
            raise StateError(f"{what}: a state that does not fit: {error}") from None
        self.last_epoch, self.base_lrs = last_epoch, base_lrs
        self._write()


class LambdaLR(LRScheduler):
    """`base * f(t)`; one function, or one for each group."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        count = _count_groups(optimizer, "LambdaLR")
        given = list(lr_lambda) if isinstance(lr_lambda, (list, tuple)) else [lr_lambda] * count
        if len(given) != count or not all(callable(f) for f in given):
            raise ArgumentError(f"LambdaLR: expected one function or {count}, got {lr_lambda!r}")
        self.lr_lambdas: list[Callable[[int], float]] = given
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        return self.base_lrs[group] * self.lr_lambdas[group](t)


class StepLR(LRScheduler):
    """`base * gamma**(t // step_size)`."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        if step_size < 1:
            raise ArgumentError(f"StepLR: step_size must be at least 1, got {step_size}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        return self.base_lrs[group] * self.gamma ** (t // self.step_size)


class MultiStepLR(LRScheduler):
    """`base * gamma**(number of milestones up to t)`."""

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.milestones = sorted(_milestones(milestones, "MultiStepLR"))
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        return self.base_lrs[group] * self.gamma ** bisect.bisect_right(self.milestones, t)


class ConstantLR(LRScheduler):
    """`base * factor` for `total_iters` steps, then `base`."""

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        return self.base_lrs[group] * (self.factor if t < self.total_iters else 1.0)


class LinearLR(LRScheduler):
    """`base` times a factor that goes from `start_factor` to `end_factor` in `total_iters`."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0,
        total_iters: int = 5, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise ArgumentError(
                f"LinearLR: factors must be in (0, 1] and [0, 1], got {start_factor} and "
                f"{end_factor}"
            )
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        done = min(t, self.total_iters) / self.total_iters if self.total_iters else 1.0
        factor = self.start_factor + (self.end_factor - self.start_factor) * done
        return self.base_lrs[group] * factor


class ExponentialLR(LRScheduler):
    """`base * gamma**t`."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        return self.base_lrs[group] * self.gamma**t


class PolynomialLR(LRScheduler):
    """`base * (1 - min(t, total_iters)/total_iters)**power`."""

    def __init__(
        self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        if total_iters < 1:
            raise ArgumentError(f"PolynomialLR: total_iters must be at least 1, got {total_iters}")
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        left = 1.0 - min(t, self.total_iters) / self.total_iters
        return self.base_lrs[group] * left**self.power


class CosineAnnealingLR(LRScheduler):
    """`eta_min + (base - eta_min) * (1 + cos(pi t / T_max)) / 2`.

    Source: Loshchilov and Hutter, arXiv 1608.03983, without the restarts.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        if T_max < 1:
            raise ArgumentError(f"CosineAnnealingLR: T_max must be at least 1, got {T_max}")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        span = self.base_lrs[group] - self.eta_min
        return self.eta_min + span * (1 + math.cos(math.pi * t / self.T_max)) / 2


class CosineAnnealingWarmRestarts(LRScheduler):
    """Cosine annealing that starts again after T_0 steps, then after T_0*T_mult, and so on.

    Source: Loshchilov and Hutter, arXiv 1608.03983.
    """

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if T_0 < 1 or T_mult < 1:
            raise ArgumentError(
                f"CosineAnnealingWarmRestarts: T_0 and T_mult must be at least 1, got {T_0} and "
                f"{T_mult}"
            )
        self.T_0 = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        length = self.T_0
        if self.T_mult == 1:
            t %= length
        while t >= length:  # at most log2(t) times
            t -= length
            length *= self.T_mult
        span = self.base_lrs[group] - self.eta_min
        return self.eta_min + span * (1 + math.cos(math.pi * t / length)) / 2


class OneCycleLR(LRScheduler):
    """From `max_lr/div_factor` up to `max_lr`, then down to `max_lr/div_factor/final_div_factor`.

    `total_steps`, or `epochs` times `steps_per_epoch`, is the length. The momentum is a constant of
    the compiled step, so that it is not cycled. Source: Smith and Topin, arXiv 1708.07120.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: Any, total_steps: int | None = None,
        epochs: int | None = None, steps_per_epoch: int | None = None, pct_start: float = 0.3,
        anneal_strategy: str = "cos", div_factor: float = 25.0, final_div_factor: float = 1e4,
        three_phase: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ArgumentError(
                    "OneCycleLR: give total_steps, or both epochs and steps_per_epoch"
                )
            total_steps = epochs * steps_per_epoch
        if total_steps < 1:
            raise ArgumentError(f"OneCycleLR: total_steps must be at least 1, got {total_steps}")
        if not 0 <= pct_start <= 1 or anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(
                'OneCycleLR: pct_start must be in [0, 1] and anneal_strategy "cos" or "linear", '
                f"got {pct_start!r} and {anneal_strategy!r}"
            )
        if not div_factor > 0 or not final_div_factor > 0:
            raise ArgumentError(
                "OneCycleLR: div_factor and final_div_factor must be positive, got "
                f"{div_factor} and {final_div_factor}"
            )
        count = _count_groups(optimizer, "OneCycleLR")
        self.max_lrs = _rates(max_lr, count, "OneCycleLR: max_lr")
        self.total_steps = total_steps
        self.anneal_strategy = anneal_strategy
        rise = float(pct_start * total_steps) - 1
        end = float(total_steps - 1)
        # (end of the phase, factor of max_lr at its start, at its end)
        low, last = 1.0 / div_factor, 1.0 / div_factor / final_div_factor
        self._phases = (
            [(rise, low, 1.0), (2 * rise, 1.0, low), (end, low, last)]
            if three_phase
            else [(rise, low, 1.0), (end, 1.0, last)]
        )
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, t: int) -> float:
        if t >= self.total_steps + 1:
            raise ArgumentError(
                f"OneCycleLR: step() was called {t} times, for {self.total_steps} steps in all"
            )
        begin = 0.0
        for i, (end, first, last) in enumerate(self._phases):
            if t <= end or i == len(self._phases) - 1:
                done = (t - begin) / (end - begin) if end != begin else 1.0
                return float(self.max_lrs[group]) * self._between(first, last, done)
            begin = end
        raise AssertionError("the last phase takes every step")

    def _between(self, first: float, last: float, done: float) -> float:
        if self.anneal_strategy == "linear":
            return first + (last - first) * done
        return last + (first - last) / 2.0 * (math.cos(math.pi * done) + 1)


class SequentialLR(LRScheduler):
    """Several schedules one after another; schedule i ends at `milestones[i]`, where the next one
    starts from 0."""

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        _count_groups(optimizer, "SequentialLR")
        parts = list_of(schedulers, "SequentialLR: schedulers", "schedules")
        milestones = _milestones(milestones, "SequentialLR")
        if len(parts) != len(milestones) + 1:
            raise ArgumentError(
                f"SequentialLR: {len(parts)} schedules need {len(parts) - 1} milestones, got "
                f"{len(milestones)}"
            )
        for part in parts:
            if not isinstance(part, LRScheduler) or part.optimizer is not optimizer:
                raise ArgumentError(
                    "SequentialLR: every schedule must be one of this optimiser, with a formula"
                )
        self.schedulers = parts
        self.milestones = milestones
        # Each schedule wrote its first rate when it was made; they all start from the first one's.
        for part in parts[1:]:
            part.base_lrs = list(parts[0].base_lrs)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = list(parts[0].base_lrs)

    def rate(self, group: int, t: int) -> float:
        at = bisect.bisect_right(self.milestones, t)
        start = self.milestones[at - 1] if at else 0
        return self.schedulers[at].rate(group, t - start)


class ReduceLROnPlateau:
    """Multiplies the rate by `factor` when a metric has not improved for `patience` epochs.

    `step(metric)` after each epoch. `mode` "min" or "max" says what is better; `threshold` is how
    much better counts, relative ("rel") or absolute ("abs"); `cooldown` epochs after a reduction
    are not counted; no rate falls below `min_lr`, and changes of less than `eps` are not made.
    """

    def __init__(
        self, optimizer: Optimizer, mode: str = "min", factor: float = 0.1, patience: int = 10,
        threshold: float = 1e-4, threshold_mode: str = "rel", cooldown: int = 0, min_lr: Any = 0,
        eps: float = 1e-8,
    ) -> None:  # fmt: skip
        count = _count_groups(optimizer, "ReduceLROnPlateau")
        if not 0.0 <= factor < 1.0:
            raise ArgumentError(
                f"ReduceLROnPlateau: factor must be below 1 and at least 0, got {factor}"
            )
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ArgumentError(
                'ReduceLROnPlateau: mode must be "min" or "max" and threshold_mode "rel" or "abs", '
                f"got {mode!r} and {threshold_mode!r}"
            )
        self.min_lrs = _rates(min_lr, count, "ReduceLROnPlateau: min_lr")
        self.optimizer = optimizer
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.eps = eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = 0
        self.cooldown_counter = 0
        self.last_epoch = 0

    def _is_better(self, value: float) -> bool:
        sign = -1.0 if self.mode == "min" else 1.0
        if self.threshold_mode == "abs":
            return sign * value > sign * self.best + self.threshold
        if math.isinf(self.best):
            return sign * value > sign * self.best
        return sign * value > sign * self.best * (1.0 + sign * self.threshold)

    def step(self, metrics: Any) -> None:
        """Takes an epoch's metric (a number) and reduces the rates where it is time."""
        given = metrics.item() if isinstance(metrics, np.ndarray) and metrics.ndim == 0 else metrics
        value = float(checked_scalar(given, ("float",), "ReduceLROnPlateau.step: metrics"))
        self.last_epoch += 1
        if self._is_better(value):
            self.best = value
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0

    def _reduce(self) -> None:
        for group, least in zip(self.optimizer.param_groups, self.min_lrs):
            old = float(group["lr"])
            new = max(old * self.factor, float(least))
            if old - new > self.eps:
                group["lr"] = new

    def get_last_lr(self) -> list[float]:
        """The rates that are set now, one for each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain data."""
        names = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a saved state. Raises `StateError` where keys are missing or surplus."""
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(self.state_dict()):
            raise StateError(
                f"ReduceLROnPlateau: expected the keys {sorted(self.state_dict())}, got "
                f"{state_dict!r}"
            )
        for name, value in state_dict.items():
            setattr(self, name, value)


__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
