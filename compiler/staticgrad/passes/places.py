"""Rules of `simplify` about gather and scatter_add, for one place in each row: a loss that picks
the class of each sample reads one element of a row, and its gradient is one element in a row of
zeros. As a choice by index that gradient is fused with what reads it, and is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.dim import DimLike
from staticgrad.ir.dtype import int64
from staticgrad.ir.node import Node, Value
from staticgrad.rewrite.pattern import Numbering, constant_of, fitted, make

Found = Sequence[Value] | None


class Places:
    """Knows which indices a gather of the graph has checked, and which rows hold one element."""

    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering
        self.checked: set[tuple[tuple[int, int], DimLike, int, str]] = set()
        self.rows: dict[Node, tuple[Value, int]] = {}

    def note_gather(self, node: Node) -> Found:
        """Remembers that these indices are checked against this size."""
        if len(node.operands) == 2:
            x, index = node.operands
            size = x.shape[node.attrs["axis"]]
            kind = node.attrs.get("kind", "index")
            self.checked.add((self.numbering.of(index), size, node.attrs["batch"], kind))
        return None

    def one_in_a_row(self, node: Node) -> Found:
        """scatter_add(v, index) with one place in each row -> where(equal(index, iota), v, 0.0), if
        a gather checks that index: a choice can't fail. (0 + -0.0 is 0.0, the choice is -0.0.)"""
        batch, axis, shape = (node.attrs[k] for k in ("batch", "axis", "shape"))
        if len(node.operands) != 2:
            return None
        values, index = node.operands
        places = index.shape[batch:]
        if any(d != 1 for d in places) or index.shape[:batch] != shape[:batch]:
            return None
        size = shape[axis]
        kind = node.attrs.get("kind", "index")
        if (self.numbering.of(index), size, batch, kind) not in self.checked:
            return None
        inner = len(shape) - axis - 1
        at = _reshaped(index, (*shape[:batch], *([1] * (len(shape) - batch))))
        column = _reshaped(values, (*shape[:axis], 1, *shape[axis + 1 :]))
        numbers = make("iota", size=size, dtype=int64, start=0, step=1)
        hit = make("equal", _wrapped(at, size, kind), _reshaped(numbers, (size, *([1] * inner))))
        chosen = make("where", hit, column, constant_of(0, values.dtype))
        if chosen.shape != shape:
            return None
        self.rows[chosen.node] = (column, axis)
        return [chosen]

    def sum_of_row(self, node: Node) -> Found:
        """sum(rows of one element each) -> the elements"""
        inner = node.operands[0].node
        axes = node.attrs["axes"]
        if inner not in self.rows:
            return None
        column, axis = self.rows[inner]
        if axis not in axes:
            return None
        left = tuple(a for a in axes if a != axis)
        total = make("sum", column, axes=left, keepdims=True) if left else column
        return fitted(_reshaped(total, node.types[0].shape), node)


def _reshaped(v: Value, shape: tuple[DimLike, ...]) -> Value:
    return v if v.shape == shape else make("reshape", v, shape=shape)


def _wrapped(index: Value, size: DimLike, kind: str) -> Value:
    """The index as int64, a negative one counted from the end if its kind is that."""
    wraps = kind == "index" and index.dtype.kind == "i"
    if index.dtype != int64:
        index = make("astype", index, dtype=int64)
    if not wraps:
        return index
    count = (
        constant_of(size, int64) if isinstance(size, int)
        else make("dim_size", dim=size, dtype=int64)
    )  # fmt: skip
    negative = make("less", index, constant_of(0, int64))
    return make("where", negative, make("add", index, count), index)


__all__ = ["Places"]
