"""bind_mode: layers' symbolic mode -> training or evaluation; updates of random state added.

before -> after (training)

    %5 = training_switch(%2, %3, %running_mean, %new_mean)      %2
    updates: ...                                                updates: ..., mean <- new_mean
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from staticgrad.ir.graph import Graph, reachable, subgraphs
from staticgrad.ir.loc import use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.arithmetic import add
from staticgrad.ops.convert import constant_array
from staticgrad.ops.mode import state_updates
from staticgrad.rewrite.driver import rewrite


def bind_mode(graph: Graph, training: bool | None) -> Graph:
    """`training` None means training where the graph has updates, else evaluation."""
    mode = bool(graph.updates) if training is None else training
    updates = list(graph.updates)
    updates += state_updates(graph.roots, training=mode)

    def choose(node: Node) -> Sequence[Value] | None:
        if node.op != "training_switch":
            return None
        bound = node.attrs["training"]
        return (node.operands[0 if (mode if bound is None else bound) else 1],)

    resolved = rewrite(
        Graph(graph.inputs, graph.outputs, updates, order=graph.nodes, locs=graph.locs,
              constraints=graph.constraints, single=graph.single),
        choose,
    )  # fmt: skip
    return _advance_generators(resolved)


def _advance_generators(graph: Graph) -> Graph:
    """A call that draws random numbers moves its generator one step on."""
    updated = {s.node.attrs["id"] for s, _ in graph.updates}
    extra: list[tuple[Value, Value]] = []
    for node in reachable(graph.roots):
        for key in _keys(node):
            if key.node.op == "state" and key.node.attrs["id"] not in updated:
                updated.add(key.node.attrs["id"])
                with use_locs(graph.locs.get(node, node.locs)):
                    step = constant_array(np.array([0, 1], "uint64"))  # (seed, step + 1)
                    extra.append((key, add(key, step)))
    if not extra:
        return graph
    return Graph(graph.inputs, graph.outputs, [*graph.updates, *extra], locs=graph.locs,
                 constraints=graph.constraints, single=graph.single)  # fmt: skip


def _keys(node: Node) -> Sequence[Value]:
    """The generators' states that a node draws from, itself or in a graph that it holds."""
    if "random" in registry.get(node.op).traits:
        return node.operands[:1]
    if not any(_draws(n) for _, inner in subgraphs(node) for n in inner.nodes):
        return ()
    return [v for v in node.operands if v.dtype == "uint64" and v.shape == (2,)]


def _draws(node: Node) -> bool:
    if "random" in registry.get(node.op).traits:
        return True
    return any(_draws(n) for _, inner in subgraphs(node) for n in inner.nodes)
