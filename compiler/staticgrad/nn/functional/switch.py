"""What differs between training and evaluation, for layers of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staticgrad.ops import mode
from staticgrad.ops.tensor import Tensor

from ..mode import mode_of


def training_switch(
    train: Any, evaluation: Any, updates: Sequence[tuple[Any, Any]] = (), *, training: Any = None
) -> Tensor:
    """`train` in training, `evaluation` else, and new values of buffers in training.

    train, evaluation  tensors of one shape; gradients go through the one that is chosen
    updates            pairs (buffer, new value), which each step of `fit` or of another program
                       that trains writes at its end, with the parameters
    training           `self.training` of the layer. Where its mode is symbolic, both values are
                       recorded, and compiling chooses

        mean = x.mean(axis=0)
        new = 0.9 * self.mean + 0.1 * mean
        x - training_switch(mean, self.mean, [(self.mean, new)], training=self.training)

    Raises `ShapeError` and `DTypeError` for values that differ in type, `ArgumentTypeError` where
    what is updated is no state.
    """
    return mode.training_switch(train, evaluation, updates, training=mode_of(training))


__all__ = ["training_switch"]
