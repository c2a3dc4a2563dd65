"""Tensors of the dynamic mode as arguments of transforms and control flow, which stand below it.

A traced function that is called with them runs as one operation of that mode, so that its results
are on the tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staticgrad.ir.graph import Graph
from staticgrad.ops.public import dynamic


class Foreign:
    """The dynamic mode, as transforms see it."""

    def run(self, graph: Graph, inputs: Sequence[Any]) -> Sequence[Any]:
        """A graph's outputs on inputs in its order: tensors of the mode, arrays, Python numbers."""
        if not graph.outputs:
            return ()
        # In a module that runs on values parameters are values; the graph's are its state.
        inside = dynamic.inside.set(False)
        try:
            found = dynamic.package().call_graph(graph, inputs)
        finally:
            dynamic.inside.reset(inside)
        return (found,) if graph.single else tuple(found)

    def array_of(self, value: Any) -> Any:
        """A tensor of the mode as an array, for its dtype and shape; anything else as it is."""
        return value.detach().numpy() if dynamic.is_tensor(value) else value


_FOREIGN = Foreign()


def foreign_of(leaves: Sequence[Any]) -> Foreign | None:
    """What runs a call with these leaves, where one of them is a tensor of the dynamic mode."""
    if not dynamic.types or not any(dynamic.is_tensor(v) for v in leaves):
        return None
    return _FOREIGN


__all__ = ["Foreign", "foreign_of"]
