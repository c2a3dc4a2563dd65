"""`Program`: what a model file for the command line gives from its `build()`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from staticgrad_runtime.state import StateCell

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, GraphError, ShapeError
from staticgrad.ir.graph import Graph
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import misfit
from staticgrad.ops.random import default_generator

Batch = Sequence[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Program:
    """A model with its data, for `staticgrad train MODEL` and the other verbs.

    train          the graph of one training step: its first output is the loss (0-d), its updates
                   are the optimiser's. If the outputs of `predict` follow, the metrics of training
                   batches are shown as well
    predict        the graph of the prediction
    train_batches  `train_batches(rng)` -> the batches of one epoch: tuples of arrays in the order
                   of the training graph's inputs, shuffled by the NumPy generator it is given. A
                   graph without inputs needs none: an epoch is then one step
    test_batches   `test_batches()` -> the held-out batches, in the same form. `predict` takes its
                   inputs from them by name, or the first ones if the names are not train's
    metrics        name -> function of (outputs of predict, batch) that gives one number per batch;
                   what is shown is the mean over samples. Without metrics (or `predict`) the test
                   batches give the loss
    state          name -> parameter: the names in checkpoints, and state that no graph reaches.
                   A checkpoint holds all state of both graphs in any case, under its own name
    scheduler      one of `sg.optim.lr_scheduler`, stepped after each epoch
    epochs         how many epochs `train` takes if it isn't told
    loss           `loss(*batch)` -> the scalar loss, or a tuple that begins with it: the same code
                   on the static inputs and on tensors of the dynamic mode. With it and `optimizer`
                   `staticgrad compare` runs a whole training step in both modes
    optimizer      the optimiser of the training graph's updates

    Raises `ArgumentTypeError` for parts of a wrong kind, `GraphError` for a training graph without
    updates, `ShapeError` for a loss that is no scalar.
    """

    train: Graph | None = None
    predict: Graph | None = None
    train_batches: Callable[[np.random.Generator], Iterable[Batch]] | None = None
    test_batches: Callable[[], Iterable[Batch]] | None = None
    metrics: Mapping[str, Callable[[Any, Batch], float]] = field(default_factory=dict)
    state: Mapping[str, Parameter] | None = None
    scheduler: Any = None
    epochs: int = 10
    loss: Callable[..., Any] | None = None
    optimizer: Any = None

    def __post_init__(self) -> None:
        for name in ("train", "predict"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Graph):
                raise _wrong(name, "a graph: sg.Graph(inputs, outputs, updates)", given)
        if self.train is None and self.predict is None:
            raise ArgumentError("Program: expected a graph as train=, predict= or both")
        for name, what in (
            ("train_batches", "a function that gives the batches"),
            ("test_batches", "a function that gives the batches"),
            ("loss", "a function that gives the loss of a batch"),
        ):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise _wrong(name, what, given)
        _check_takes("train_batches", self.train_batches, "rng")
        _check_takes("test_batches", self.test_batches)
        self._check_tables()
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise _wrong("epochs", "a number of epochs, at least 0", self.epochs)
        for name, methods in (
            ("scheduler", ("step", "state_dict", "load_state_dict")),
            ("optimizer", ("minimize",)),
        ):
            given = getattr(self, name)
            for method in methods if given is not None else ():
                if not callable(getattr(given, method, None)):
                    raise _wrong(name, f"an object with a method {method}", given)
        if self.train is not None:
            self._check_training(self.train)

    def _check_tables(self) -> None:
        for name, kind, what in (
            ("metrics", None, "a dict: name -> function of (outputs, batch)"),
            ("state", Parameter, "a dict: name -> parameter"),
        ):
            given = getattr(self, name)
            if given is None:
                continue
            if not isinstance(given, Mapping):
                raise _wrong(name, what, given)
            for key, value in given.items():
                fits = callable(value) if kind is None else isinstance(value, kind)
                if not isinstance(key, str) or not key or not fits:
                    raise _wrong(f"{name}[{key!r}]", what, value)

    def _check_training(self, train: Graph) -> None:
        if not train.outputs:
            raise GraphError("Program: the training graph has no outputs; the first is the loss")
        loss = train.outputs[0]
        if loss.shape != () or not loss.dtype.is_float:
            raise ShapeError(
                "Program: the first output of the training graph is the loss, a floating scalar; "
                f"got {loss.type}"
            )
        if not train.updates:
            raise GraphError(
                "Program: the training graph updates nothing; give it "
                "updates=optimizer.minimize(loss)"
            )

    def cells(self) -> dict[str, StateCell]:
        """All state by its name in checkpoints: that of both graphs (parameters, statistics,
        optimiser), the random generator's, and what `state` lists.

        The order and the names depend on the declarations alone, so that the same file gives the
        same names in every process. State that shares a name gets numbers: `weight`, `weight#2`.
        """
        named = {name: p.cell for name, p in (self.state or {}).items()}
        found = [v.node.payload for g in (self.train, self.predict) if g for v in _state(g)]
        return _named([*found, default_generator().cell], named)


def graph_cells(graph: Graph) -> dict[str, StateCell]:
    """The state of one graph by its name in checkpoints."""
    return _named([v.node.payload for v in _state(graph)], {})


def _named(cells: Iterable[StateCell], named: dict[str, StateCell]) -> dict[str, StateCell]:
    """`named` with the other cells added, each once and under a name of its own."""
    known = set(named.values())
    for cell in cells:
        if cell not in known:
            known.add(cell)
            named[_free(cell.name or "state", named)] = cell
    return named


def _state(graph: Graph) -> list[Any]:
    """All state of a graph, what is only written included."""
    return list(dict.fromkeys((*graph.state, *(s for s, _ in graph.updates))))


def _free(name: str, taken: Mapping[str, Any]) -> str:
    count, chosen = 1, name
    while chosen in taken:
        count += 1
        chosen = f"{name}#{count}"
    return chosen


def _check_takes(name: str, function: Callable[..., Any] | None, *arguments: str) -> None:
    """Raises where `function` can't be called with these arguments."""
    signature = None if function is None else misfit(function, *arguments)
    if signature is not None:
        code = getattr(function, "__code__", None)
        at = f" ({os.path.basename(code.co_filename)}:{code.co_firstlineno})" if code else ""
        means = ", rng a NumPy generator to shuffle by" if arguments else ""
        raise ArgumentTypeError(
            f"Program: {name} is called as {name}({', '.join(arguments)}){means}; got "
            f"{getattr(function, '__name__', type(function).__name__)}{signature}{at}"
        )


def _wrong(name: str, expected: str, came: Any) -> ArgumentTypeError:
    shown = repr(came) if isinstance(came, (int, str)) else type(came).__name__
    return ArgumentTypeError(f"Program: {name}: expected {expected}, got {shown}")
