"""The model that is compared, both ways: as a compiled step and as a step of the dynamic mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from staticgrad.api.compile import Executable, compile_graph
from staticgrad.api.program import Program
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim, substitute, symbols
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.loc import use_locs
from staticgrad.ir.node import Value
from staticgrad.ops.interpret import bind_dims
from staticgrad.ops.leaves import Parameter, state_of
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.public import shown
from staticgrad.ops.random import default_generator
from staticgrad.ops.tensor import Tensor

from .graphs import at_sizes, training_form, with_draws_in_turn
from .replay import Replay

Array = np.ndarray[Any, Any]
Batch = tuple[Array, ...]


@dataclass(frozen=True)
class Subject:
    """A program with one of its batches.

    A step is forward, backward and the optimiser's update where the model file gives `loss` and
    `optimizer`; without an optimiser it ends with the gradients. Without `loss` the dynamic mode
    replays the declared graph node by node.
    """

    program: Program
    batch: Batch

    # --- what the program is made of --------------------------------------------------------------

    @property
    def train(self) -> Graph:
        assert self.program.train is not None
        return self.program.train

    @property
    def replays(self) -> bool:
        return self.program.loss is None

    @property
    def updates(self) -> bool:
        """Whether a step includes the optimiser's update."""
        return not self.replays and self.program.optimizer is not None

    @cached_property
    def parameters(self) -> list[Parameter]:
        """The trainable state that the loss depends on, in order of declaration."""
        loss = self.train.outputs[0]
        found = [
            state_of(n.payload, True)
            for n in reachable([loss])
            if n.op == "state" and n.attrs["trainable"] and n.results[0].dtype.is_float
        ]
        if not found:
            raise ArgumentError(
                "compare: the loss of the training graph depends on no trainable parameter, so "
                "there is no gradient to compare"
            )
        return found

    @cached_property
    def names(self) -> list[str]:
        """The parameters' names, each another one."""
        found: list[str] = []
        for i, p in enumerate(self.parameters):
            name = p.cell.name or f"parameter{i}"
            found.append(name if name not in found else f"{name}#{i}")
        return found

    @cached_property
    def dims(self) -> dict[str, int]:
        """The sizes of the declared symbolic dims in this batch."""
        return bind_dims(self.train, self.batch)

    # --- static -----------------------------------------------------------------------------------

    def static_graph(self) -> Graph:
        """The step as it was declared: the loss alone is its output."""
        loss = self.train.outputs[0]
        if self.updates:
            return Graph(self.train.inputs, [loss], self.train.updates, locs=self.train.locs)
        return Graph(self.train.inputs, [loss, *self._gradients(loss, self._states())])

    def declared(self, sizes: Mapping[str, int] | None = None) -> Graph:
        """The step declared anew, with symbolic dims or with the sizes given for them."""
        if self.replays:
            graph = self.static_graph()
            return graph if sizes is None else at_sizes(graph, sizes)
        inputs = [declare_like(v, _sized(v.shape, sizes)) for v in self.train.inputs]
        loss = first(self.program.loss(*inputs))  # type: ignore[misc]
        if self.updates:
            updates = list(self.program.optimizer.minimize(loss))
            return Graph(inputs, [loss], updates)
        return Graph(inputs, [loss, *self._gradients(loss, self.parameters)])

    def _states(self) -> list[Value]:
        """The parameters as the values that the training graph reads."""
        by_cell = {n.payload: n.results[0] for n in self.train.nodes if n.op == "state"}
        return [by_cell[p.cell] for p in self.parameters]

    def _gradients(self, loss: Value, states: Sequence[Value]) -> list[Tensor]:
        assert isinstance(loss, Tensor)
        found: list[Tensor] = gradients(loss, list(states))  # type: ignore[arg-type]
        return found

    def compiled(self, graph: Graph, *, cache: bool = True, disable: Sequence[str] = ()) -> Any:
        """An executable of a step: training mode, whether it updates anything or not."""
        return compile_graph(graph, training=True, cache=cache, disable=disable)

    @cached_property
    def static(self) -> Executable:
        """The compiled step of the declared graph."""
        found: Executable = self.compiled(self.static_graph())
        return found

    # --- dynamic ----------------------------------------------------------------------------------

    @cached_property
    def _replay(self) -> Replay:
        loss = self.train.outputs[0]
        form = training_form(Graph(self.train.inputs, [loss], locs=self.train.locs))
        return Replay(with_draws_in_turn(form, form.outputs))

    def forward(self, batch: Sequence[Array], *, located: bool = False) -> Any:
        """The loss of a batch as an eager tensor, recorded on the tape."""
        from staticgrad import eager

        tensors = [eager.from_numpy(a) for a in batch]
        if self.program.loss is not None:
            loss = first(self.program.loss(*tensors))
            if not eager.is_tensor(loss):
                raise ArgumentTypeError(
                    "compare: loss, called with eager tensors, must return the loss as an eager "
                    f"tensor, got {shown(loss)}"
                )
            return loss
        return self._replay(tensors, located=located)[0]

    def step(self, batch: Sequence[Array], at_loss: Callable[[], Any] | None = None) -> Any:
        """One step of the dynamic mode; returns the loss, and calls `at_loss` once it is known.
        Without an update the gradients stay in the parameters until the next step clears them."""
        if not self.updates:
            self.clear_gradients()
        loss = self.forward(batch)
        if at_loss is not None:
            at_loss()
        loss.backward()
        if self.updates:
            self.program.optimizer.step()
            self.program.optimizer.zero_grad()
        return loss

    def clear_gradients(self) -> None:
        for p in self.parameters:
            p.grad = None

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """All state, gradients too, is afterwards as before."""
        cells = {*self.program.cells().values(), default_generator().cell}
        before = {cell: cell.numpy() for cell in cells}
        try:
            yield
        finally:
            for cell, value in before.items():
                cell.assign(value)
            self.clear_gradients()

    def keeping_state(self, call: Callable[[], Any]) -> Any:
        """What `call` returns, with the state as it was before."""
        with self.unchanged():
            return call()

    # --- other batches ----------------------------------------------------------------------------

    def axes(self) -> list[tuple[str, list[tuple[int, int]], bool]]:
        """What may change in a batch's shape: (label, its places (input, axis), whether it is
        symbolic). A symbol is one axis wherever it stands."""
        found: dict[str, tuple[list[tuple[int, int]], bool]] = {}
        for i, v in enumerate(self.train.inputs):
            for axis, d in enumerate(v.shape):
                is_name = isinstance(d, Dim) and symbols(d) == [str(d)]
                if isinstance(d, Dim) and not is_name:
                    continue  # follows from others
                label = str(d) if is_name else f"{v.node.attrs['name']}[{axis}]"
                found.setdefault(label, ([], is_name))[0].append((i, axis))
        return [(label, places, free) for label, (places, free) in found.items()]

    def resized(self, places: Sequence[tuple[int, int]], size: int) -> Batch:
        """The batch with another size along some axes: its elements in turn, again from the first
        where there are too few."""
        found = list(self.batch)
        for i, axis in places:
            index = np.arange(size) % max(1, found[i].shape[axis])
            found[i] = np.ascontiguousarray(np.take(found[i], index, axis))
        return tuple(found)


def _sized(shape: Any, sizes: Mapping[str, int] | None) -> Any:
    return shape if sizes is None else tuple(substitute(d, sizes) for d in shape)


def declare_like(v: Value, shape: Any) -> Tensor:
    """An input of another shape, as if it had been declared at the same line."""
    with use_locs(v.node.locs):
        return declare(v.node.attrs["name"], shape, v.dtype)


def first(value: Any) -> Any:
    """The loss of what `loss` returned: it alone, or the first of a tuple."""
    return value[0] if isinstance(value, (tuple, list)) else value


__all__ = ["Array", "Batch", "Subject", "declare_like", "first"]
