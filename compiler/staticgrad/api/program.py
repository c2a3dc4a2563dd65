"""`Program`: what a model file for the command line gives from its `build()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from staticgrad.ir.graph import Graph

Batch = Sequence[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Program:
    """A model with its data, for `staticgrad train MODEL` and the other verbs.

    train          the graph of one training step; its first output is the loss
    predict        the graph of the prediction, from the first inputs of a batch
    train_batches  `train_batches(rng)` -> the batches of one epoch, arrays in the order of the
                   training graph's inputs, shuffled by the NumPy generator it is given
    test_batches   `test_batches()` -> the held-out batches, in the same form
    metrics        name -> function of (outputs of predict, batch) that gives one number per batch,
                   averaged over samples
    state          name -> parameter: what a checkpoint holds; by default all state of the graphs
    """

    train: Graph | None = None
    predict: Graph | None = None
    train_batches: Callable[[np.random.Generator], Iterable[Batch]] | None = None
    test_batches: Callable[[], Iterable[Batch]] | None = None
    metrics: Mapping[str, Callable[[Any, Batch], float]] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
