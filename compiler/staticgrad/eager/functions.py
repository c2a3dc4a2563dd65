"""What other parts of the project ask of the dynamic mode."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dtype import DType
from staticgrad.ir.errors import ArgumentError
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Value
from staticgrad.ops.convert import to_array
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import state_of
from staticgrad.ops.public import dynamic
from staticgrad.ops.random import default_generator

from .dispatch import Call, Trace, run
from .mode import recording
from .parameters import eager_of, leaf_of
from .program import rebuilt, statically, updates_of
from .tensor import Tensor

_known: weakref.WeakKeyDictionary[Graph, _Called] = weakref.WeakKeyDictionary()


def is_tensor(value: Any) -> bool:
    """Whether `value` is an eager tensor."""
    return dynamic.is_tensor(value)


def meant() -> bool:
    """Whether the dynamic mode is what a statement such as `p *= 0.9` on a parameter is about: in a
    block of `no_grad`, or in a module that was called with eager tensors."""
    return not recording.get() or dynamic.inside.get()


def call_graph(graph: Graph, tensors: Sequence[Any]) -> Any:
    """Runs a closed graph (inputs -> outputs) on tensors as one eager operation.

    It is compiled once, its sizes are bound by each call, and it is recorded where a gradient is
    wanted: its derivative comes from the graph. Parameters that it reads take part with their
    present values and get their gradients. Arrays and numbers among `tensors` are taken as they
    are. Layers whose mode is open train, and their running statistics are updated, as are the
    states that the graph itself updates. The result is a tensor for a graph with a `single` output,
    else a tuple.
    """
    if len(tensors) != len(graph.inputs):
        raise ArgumentError(
            f"call_graph: the graph has {len(graph.inputs)} inputs, got {len(tensors)} tensors"
        )
    known = _known.get(graph)
    if known is None:
        known = _known[graph] = _Called(graph)
    given = [
        _taken(t, v.dtype) if isinstance(t, _DATA) else eager_of(t, "call_graph")
        for t, v in zip(tensors, graph.inputs)
    ]
    given += [leaf_of(state) for state in known.states]
    sigs = tuple(t._sig for t in given)
    found = known.calls.get(sigs)
    if found is None:
        found = known.calls[sigs] = Call(known.trace, sigs)
    return run(found, given)


class _Called:
    """A graph's trace, the parameters that became its inputs, and its calls by exact sizes."""

    @statically
    def __init__(self, graph: Graph) -> None:
        generator = default_generator().cell
        states = [s for s in graph.state if s.node.payload is not generator]
        self.states = [state_of(s.node.payload, bool(s.node.attrs["trainable"])) for s in states]
        extra = [declare(f"state{i}", s.shape, s.dtype) for i, s in enumerate(states)]
        mapping: dict[Value, Value] = dict(zip(states, extra))
        places = {s: len(graph.inputs) + i for i, s in enumerate(states)}
        updates = dict(updates_of(graph.outputs)) | dict(graph.updates)
        updates = {s: new for s, new in updates.items() if s in places}
        made = rebuilt((*graph.outputs, *updates.values()), mapping)
        outputs, new = made[: len(graph.outputs)], made[len(graph.outputs) :]
        results = outputs[0] if graph.single else tuple(outputs)
        changes = [(places[s], v) for s, v in zip(updates, new)]
        self.trace = Trace("graph", (*graph.inputs, *extra), results, changes)
        self.calls: dict[Any, Call] = {}


_DATA = (np.ndarray, np.generic, bool, int, float, list)


def _taken(data: Any, dtype: DType) -> Tensor:
    keep = isinstance(data, (np.ndarray, np.generic))
    return Tensor(np.array(to_array(data, None if keep else dtype), order="C"))


__all__ = ["call_graph", "is_tensor", "meant"]
