"""names: sizes whose names kernels use themselves -> other names.

Loops of kernels are called `d0`, `i3`, `k`; their shares and blocks `begin`, `end`, `batch`. A size
that the user called so gets another name below the graph, and its own again in the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from staticgrad.ir.dim import Dim, substitute, symbols
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.node import DimEquality, Node, Value
from staticgrad.ir.types import TensorType

_TAKEN = re.compile(r"([a-z]\d+|k|begin|end|batch|_+i\d+)\Z")


def with_free_names(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph with no size of a name that kernels use, and new name -> old name."""
    names = dict.fromkeys(_names(graph))
    taken = [n for n in names if _TAKEN.match(n)]
    if not taken:
        return graph, {}
    new: dict[str, str] = {}
    for name in taken:
        fresh = f"{name}_size"
        while fresh in names:
            fresh += "_"
        names[fresh] = None
        new[name] = fresh
    renamed = _Renamer({old: Dim.symbol(fresh) for old, fresh in new.items()}).graph(graph)
    return renamed, {fresh: old for old, fresh in new.items()}


def _names(graph: Graph) -> Iterable[str]:
    for node in graph.nodes:
        for t in node.types:
            for d in t.shape:
                yield from symbols(d)
        for a in node.attrs.values():
            if isinstance(a, Dim):
                yield from symbols(a)
        for _, inner in subgraphs(node):
            yield from _names(inner)


class _Renamer:
    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def graph(self, graph: Graph) -> Graph:
        values: dict[Value, Value] = {}
        order: list[Node] = []
        locs = {}
        for node in graph.nodes:
            made = Node(
                node.op, [values[v] for v in node.operands],
                {k: self._any(a) for k, a in node.attrs.items()}, self._any(node.types), node.locs,
                node.payload, self._any(node.constraints),
                type(node.results[0]) if node.results else Value,
            )  # fmt: skip
            values.update(zip(node.results, made.results))
            order.append(made)
            locs[made] = graph.locs[node]
        return Graph(
            [values[v] for v in graph.inputs], [values[v] for v in graph.outputs],
            [(values[s], values[v]) for s, v in graph.updates], order=order, locs=locs,
            constraints=self._any(graph.constraints), single=graph.single,
        )  # fmt: skip

    def _any(self, a: Any) -> Any:
        if isinstance(a, Dim):
            return substitute(a, self.names)
        if isinstance(a, tuple):
            return tuple(self._any(x) for x in a)
        if isinstance(a, TensorType):
            return TensorType(a.dtype, self._any(a.shape))
        if isinstance(a, DimEquality):
            return DimEquality(self._any(a.left), self._any(a.right), a.message, a.locs)
        if isinstance(a, Graph):
            return self.graph(a)
        return a
