"""Nodes and values: the graph's only parts. A node is frozen; equality is identity."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dim import DimLike, Shape
from .dtype import DType
from .loc import NOWHERE, Locs
from .types import TensorType

_ids = itertools.count(1)
_NO_ATTRS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class DimEquality:
    """Two sizes that must be equal, which only the call's arrays can tell; asked at bind time."""

    left: DimLike
    right: DimLike
    message: str
    locs: Locs = NOWHERE


class Value:
    """One result of a node: `(node, index)`. The operands of nodes are values."""

    __slots__ = ("index", "node")

    def __init__(self, node: Node, index: int) -> None:
        self.node = node
        self.index = index

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def dtype(self) -> DType:
        return self.node.types[self.index].dtype

    @property
    def shape(self) -> Shape:
        return self.node.types[self.index].shape

    @property
    def ndim(self) -> int:
        return len(self.node.types[self.index].shape)


class Node:
    """An operation applied to values: `results = op(operands, attrs)`.

    `attrs` holds plain immutable data (ints, strings, tuples, dtypes, dims) and closed sub-graphs.
    `payload` is what is no part of the text: the array of a constant, the cell of a state.
    `id` grows with creation, so sorting declared nodes by it is a topological order.
    """

    __slots__ = ("__weakref__", "attrs", "constraints", "id", "locs", "op", "operands", "payload",
                 "results", "types", "watch")  # fmt: skip

    def __init__(
        self, op: str, operands: Sequence[Value], attrs: Mapping[str, Any] | None,
        types: Sequence[TensorType], locs: Locs = NOWHERE, payload: Any = None,
        constraints: tuple[DimEquality, ...] = (), value_class: type[Value] = Value,
    ) -> None:  # fmt: skip
        self.op = op
        self.operands = tuple(operands)
        self.attrs = attrs or _NO_ATTRS
        self.types = tuple(types)
        self.locs = locs
        self.payload = payload
        self.constraints = constraints
        self.watch: Any = (
            None  # what looks at its values (ops/taps.py); no part of what it computes
        )
        self.id = next(_ids)
        self.results = tuple(value_class(self, i) for i in range(len(self.types)))

    def __repr__(self) -> str:
        types = ", ".join(str(t) for t in self.types)
        return f"<{self.op} #{self.id}: {types}>"
