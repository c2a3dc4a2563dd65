"""The values of static tensors that follow from constants alone, such as a random key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim
from staticgrad.ir.graph import Graph, reachable, subgraphs
from staticgrad.ir.node import Node, Value

from .interpret import run_graph

# What has no value until a program is called, or another one in each.
_OPEN = frozenset(("input", "state", "training_switch"))


def is_known(value: Value) -> bool:
    """Whether a tensor depends on no input, no state, no mode and no symbolic size."""
    return all(_is_closed(node) for node in reachable((value,)))


def _is_closed(node: Node) -> bool:
    if node.op in _OPEN or _has_dim((*(t.shape for t in node.types), *node.attrs.values())):
        return False
    inner = (n for _, g in subgraphs(node) for n in g.nodes)
    return all(n.op == "input" or _is_closed(n) for n in inner)


def _has_dim(attrs: Iterable[Any]) -> bool:
    return any(_has_dim(a) if isinstance(a, tuple) else isinstance(a, Dim) for a in attrs)


def known_values(values: Sequence[Value]) -> list[np.ndarray[Any, Any]]:
    """The values of tensors that are known, as arrays of their own."""
    found, _ = run_graph(Graph((), list(values)), ())
    return [np.array(a, copy=True) for a in found]


__all__ = ["is_known", "known_values"]
