"""expand: formulas in other ops -> those ops.

before -> after

    %1 = softmax(%0){axis=1}        %1 = max(%0){axes=(1), keepdims}
                                    %2 = subtract(%0, %1)
                                    %3 = exp(%2)
                                    %4 = sum(%3){axes=(1), keepdims}
                                    %5 = divide(%3, %4)

Part of every pipeline: without it these ops have no kernel. Each has one expansion, so a softmax is
evaluated in one order, fused or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Expand
from staticgrad.rewrite.driver import rewrite


def expand(graph: Graph) -> Graph:
    return rewrite(graph, _expand_node)


def _expand_node(node: Node) -> Sequence[Value] | None:
    lower = registry.get(node.op).lower
    if not isinstance(lower, Expand):
        return None
    found = lower.build(node.operands, node.attrs)
    results = found if isinstance(found, tuple) else (found,)
    for got, want in zip(results, node.types, strict=True):
        if got.dtype != want.dtype or got.ndim != len(want.shape):
            raise AssertionError(f"{node.op} expands to {got.type}, its type is {want}")
    return results
