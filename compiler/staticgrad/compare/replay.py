"""A declared graph in the dynamic mode: each of its nodes is called as one eager operation.

For models whose file has no function of the loss that could be called on eager tensors. Sizes stay
symbolic where a node's operands tell them, as they do in the dynamic mode itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, symbols
from staticgrad.ir.graph import LEAF_OPS, Graph, subgraphs
from staticgrad.ir.loc import use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.interpret import bind_dims
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import state_of

from .graphs import at_sizes

Array = np.ndarray[Any, Any]


class Replay:
    """`replay(tensors)` -> the graph's outputs as eager tensors, recorded on the tape.

    `states` stand for the graph's state where they are given, else the state itself does.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = tuple(n for n in graph.nodes if n.op not in LEAF_OPS)
        self._leaves = tuple(n for n in graph.nodes if n.op in ("state", "constant"))
        self._free: dict[Node, Graph | None] = {}  # an operation for any sizes, if there is one
        self._sized: dict[tuple[tuple[str, int], ...], dict[Node, Graph]] = {}
        self._constants: dict[Node, Any] = {}

    def __call__(self, tensors: Sequence[Any], *, located: bool = False) -> list[Any]:
        from staticgrad import eager

        arrays = [t.detach().numpy() for t in tensors]
        dims = bind_dims(self.graph, arrays)
        values: dict[Value, Any] = dict(zip(self.graph.inputs, tensors))
        for leaf in self._leaves:
            values[leaf.results[0]] = self._leaf(leaf)
        for node in self.nodes:
            operation = self._operation(node, dims)
            operands = [values[v] for v in node.operands]
            with _at(self.graph, node, located):
                results = eager.call_graph(operation, operands)
            values.update(zip(node.results, results if isinstance(results, tuple) else (results,)))
        return [values[v] for v in self.graph.outputs]

    def _leaf(self, node: Node) -> Any:
        from staticgrad import eager

        if node.op == "state":
            return eager.leaf_of(state_of(node.payload, bool(node.attrs["trainable"])))
        if node not in self._constants:
            self._constants[node] = eager.tensor(node.payload)
        return self._constants[node]

    def _operation(self, node: Node, dims: Mapping[str, int]) -> Graph:
        if node not in self._free:
            self._free[node] = _at_any_size(node)
        found = self._free[node]
        if found is not None:
            return found
        sized = self._sized.setdefault(tuple(sorted(dims.items())), {})
        if node not in sized:
            sized[node] = _at_these_sizes(node, dims)
        return sized[node]


@contextmanager
def _at(graph: Graph, node: Node, located: bool) -> Iterator[None]:
    """Errors get the line where the node was declared."""
    if not located:
        yield
        return
    with use_locs(graph.locs.get(node, node.locs)):
        yield


def _at_any_size(node: Node) -> Graph | None:
    """The node alone, each size of an operand a symbol of its own; None where an attribute needs
    a size that no operand has, or holds a graph that may."""
    if subgraphs(node):
        return None
    names: dict[Any, Dim] = {}

    def named(d: Any) -> Any:
        return names.setdefault(d, Dim.symbol(f"n{len(names)}")) if isinstance(d, Dim) else d

    shapes = [tuple(named(d) for d in v.shape) for v in node.operands]
    if not all(_is_told(a, names) for a in node.attrs.values()):
        return None
    attrs = {name: _renamed(a, names) for name, a in node.attrs.items()}
    return _alone(node, shapes, attrs)


def _is_told(a: Any, names: Mapping[Any, Dim]) -> bool:
    if isinstance(a, tuple):
        return all(_is_told(x, names) for x in a)
    return not isinstance(a, Dim) or a in names or not symbols(a)


def _renamed(a: Any, names: Mapping[Any, Dim]) -> Any:
    if isinstance(a, tuple):
        return tuple(_renamed(x, names) for x in a)
    return names.get(a, a) if isinstance(a, Dim) else a


def _at_these_sizes(node: Node, dims: Mapping[str, int]) -> Graph:
    return at_sizes(_alone(node, [v.shape for v in node.operands], node.attrs), dims)


def _alone(node: Node, shapes: Sequence[Any], attrs: Mapping[str, Any]) -> Graph:
    operands = [
        declare(f"x{i}", shape, v.dtype) for i, (v, shape) in enumerate(zip(node.operands, shapes))
    ]
    made = registry.make(node.op, operands, attrs, payload=node.payload, locs=node.locs)
    return Graph(operands, made.results, single=len(made.results) == 1)


__all__ = ["Replay"]
