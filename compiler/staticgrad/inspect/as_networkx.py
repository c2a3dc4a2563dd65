"""Graphs for networkx, to ask them what its algorithms know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.printer import Names

from .drawing import listed_nodes, node_kind

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: Graph) -> networkx.MultiDiGraph:
    """The graph as a `networkx.MultiDiGraph`, an edge for each operand, from producer to reader.

    Nodes are numbered in topological order, with the attributes `op`, `kind` (input, parameter,
    state, constant, op), `names`, `types`, `attrs`, `locs` ((file, line) pairs) and `graphs` (the
    closed sub-graphs, in the same form). An edge's key is the operand's place; its attributes are
    `operand`, `result` and `type`. The graph's own are `inputs`, `outputs` (pairs of node and
    result), `updates` and `single`.
    """
    import networkx as nx

    nodes = listed_nodes(graph)
    names = Names(graph)
    number = {n: i for i, n in enumerate(nodes)}
    found = nx.MultiDiGraph(
        inputs=[number[v.node] for v in graph.inputs],
        outputs=[(number[v.node], v.index) for v in graph.outputs],
        updates=[(number[s.node], (number[v.node], v.index)) for s, v in graph.updates],
        single=graph.single,
    )
    for node, i in number.items():
        held = {name: to_networkx(inner) for name, inner in subgraphs(node)}
        attrs: dict[str, Any] = {k: v for k, v in node.attrs.items() if not isinstance(v, Graph)}
        locs = sorted(graph.locs.get(node, node.locs))
        found.add_node(
            i, op=node.op, kind=node_kind(node), attrs=attrs, graphs=held,
            names=tuple(names.of.get(v) for v in node.results),
            types=tuple(str(t) for t in node.types),
            locs=tuple((x.file, x.line) for x in locs),
        )  # fmt: skip
    for node, i in number.items():
        for at, v in enumerate(node.operands):
            found.add_edge(number[v.node], i, key=at, operand=at, result=v.index, type=str(v.type))
    return found
