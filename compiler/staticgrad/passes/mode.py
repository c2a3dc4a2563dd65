"""bind_mode: layers' symbolic mode -> training or evaluation; updates of random state added.

before -> after (training)

    %5 = training_switch(%2, %3, %running_mean, %new_mean)      %2
    updates: ...                                                updates: ..., mean <- new_mean
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from staticgrad.ir.errors import UnsupportedError
from staticgrad.ir.graph import Graph, reachable, subgraphs
from staticgrad.ir.loc import locs_text, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.arithmetic import add
from staticgrad.ops.closing import has_trait, inline
from staticgrad.ops.convert import constant_array
from staticgrad.ops.mode import state_updates
from staticgrad.rewrite.driver import rewrite


def bind_mode(graph: Graph, training: bool | None) -> Graph:
    """`training` None means training where the graph has updates, else evaluation."""
    mode = bool(graph.updates) if training is None else training
    graph = rewrite(graph, _open_checkpoint)
    _refuse_inner_updates(graph, mode)
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


def _open_checkpoint(node: Node) -> Sequence[Value] | None:
    """A checkpoint whose layers update state takes its place now: the updates are the graph's."""
    if node.op != "checkpoint" or not any(_updates(n) for n in node.attrs["body"].nodes):
        return None
    return inline(node.attrs["body"], node.operands)


def _updates(node: Node) -> bool:
    return node.op == "training_switch" and len(node.operands) > 2


def _refuse_inner_updates(graph: Graph, mode: bool) -> None:
    """Refuses updates of state inside of a loop or a branch: a new value has no place there."""
    for node in graph.nodes:
        for _, inner in subgraphs(node):
            for n in inner.nodes:
                bound = n.attrs["training"] if _updates(n) else False
                if mode if bound is None else bound:
                    raise UnsupportedError(
                        f"{node.op}: batch norm, or another layer that updates its state in "
                        "training, can't be trained inside of a loop or a branch, where its "
                        "running statistics would stay what they are; use layer norm, fix it with "
                        f".eval(), or carry the statistics yourself\n  at {locs_text(n.locs)}"
                    )
            _refuse_inner_updates(inner, mode)


def _keys(node: Node) -> Sequence[Value]:
    """The generators' states that a node draws from, itself or in a graph that it holds."""
    if "random" in registry.get(node.op).traits:
        key = node.operands[0]
        while key.node.op == "recompute":
            key = key.node.operands[0]
        return (key,)
    if not has_trait(node, "random"):
        return ()
    found = []
    for v in node.operands:
        while v.node.op == "recompute":
            v = v.node.operands[0]
        if v.dtype == "uint64" and v.shape == (2,):
            found.append(v)
    return found
