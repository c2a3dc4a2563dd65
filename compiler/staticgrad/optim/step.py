"""`Step`: an optimiser's update of given gradients, as a compiled program of its own.

The formulas are those of `minimize`. State is updated in place; a parameter that is an eager tensor
goes in and comes out as an array, and is written to where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from staticgrad.api.compile import compile_graph
from staticgrad.ir.errors import ArgumentError
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Value
from staticgrad.ops.closing import replaced
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.public import dynamic

if TYPE_CHECKING:
    from .optimizer import Optimizer


class Step:
    """The program that updates some of an optimiser's parameters along their gradients."""

    def __init__(self, optimizer: Optimizer, params: Sequence[Any]) -> None:
        inside = dynamic.inside.set(False)
        try:
            self._program = self._compiled(optimizer, params)
        finally:
            dynamic.inside.reset(inside)

    def _compiled(self, optimizer: Optimizer, params: Sequence[Any]) -> Any:
        static = [optimizer._static(p) for p in params]
        grads = [declare(f"grad{i}", p.shape, p.dtype) for i, p in enumerate(static)]
        pairs = list(optimizer.apply_gradients(zip(grads, static)))
        # What is an eager tensor comes as an input and leaves as an output.
        self._eager = [i for i, p in enumerate(params) if not isinstance(p, Parameter)]
        mapping: dict[Value, Value] = {
            static[i]: declare(f"param{i}", static[i].shape, static[i].dtype) for i in self._eager
        }
        new = dict(zip((s for s, _ in pairs), replaced([v for _, v in pairs], mapping)))
        outputs = [new[static[i]] for i in self._eager]
        updates = [(s, v) for s, v in new.items() if s not in mapping]
        return compile_graph(Graph((*grads, *mapping.values()), outputs, updates))

    def run(self, params: Sequence[Any], gradients: Sequence[Any]) -> None:
        """Updates `params` along eager tensors of their types."""
        grads = [g.detach().numpy() for g in gradients]
        for p, g in zip(params, grads):
            if g.shape != p.shape or g.dtype != p.dtype.numpy:
                raise ArgumentError(f"step: the gradient of {p!r} is {g.dtype}{list(g.shape)}")
        values = [params[i].detach().numpy() for i in self._eager]
        results = self._program(*grads, *values)
        for i, array in zip(self._eager, results):
            params[i].overwrite(array)


__all__ = ["Step"]
