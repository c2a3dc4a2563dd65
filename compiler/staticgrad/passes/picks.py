"""A rule of `simplify` about a gather of one element of each row: the element is picked before it
is computed, where the other elements are only computed to be picked from.

before -> after

    %2 = max(%x){axes=(1,)}                    %2 = max(%x){axes=(1,)}
    %3 = subtract(%x, %2)                      %3 = gather(%x, %i)
    %4 = gather(%3, %i)                        %4 = subtract(%3, %2)

A cross entropy over 10,000 classes does not store the logarithms of all probabilities to read one
of each row. The element is computed by the same operations, so it has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Leaf, Pointwise
from staticgrad.rewrite.pattern import make

MOST_STEPS = 16  # that are followed back, along the rows and along what they are reduced to

# An element-wise node, and its operand that is a whole row; the others are one number a row.
Step = tuple[Node, Value]


def pick_first(node: Node) -> Sequence[Value] | None:
    """gather(subtract(x, max(x)), index) -> subtract(gather(x, index), max(x))"""
    if len(node.operands) != 2:
        return None
    source, index = node.operands
    axis, order = node.attrs["axis"], None
    if node.attrs["batch"] != axis or index.ndim != axis + 1 or index.shape[axis] != 1:
        return None
    if source.node.op == "permute_dims":  # classes that are not the last axis
        order = source.node.attrs["axes"]
        source, axis = source.node.operands[0], order[axis]
    steps = _steps(source, axis)
    if not steps:
        return None

    def turned(v: Value) -> Value:
        return v if order is None or not v.ndim else make("permute_dims", v, axes=order)

    found = make("gather", turned(steps[-1][1]), index, **node.attrs)
    for n, whole in reversed(steps):
        found = make(n.op, *(found if v is whole else turned(v) for v in n.operands), **n.attrs)
    return [found]


def _steps(v: Value, axis: int) -> list[Step]:
    """The steps back to what is best picked from, last to first: the rows that are reduced to what
    the last step combines them with, as these are in memory anyway; or an input behind them."""
    steps: list[Step] = []
    enough = 0
    while len(steps) < MOST_STEPS:
        whole = _whole_operand(v, axis)
        if whole is None:
            break
        steps.append((v.node, whole))
        if any(_is_reduced_to(whole, o) for o in v.node.operands if o is not whole):
            enough = len(steps)
        v = whole
    at_leaf = isinstance(registry.get(v.node.op).lower, Leaf)
    return steps if enough and at_leaf else steps[:enough]


def _whole_operand(v: Value, axis: int) -> Value | None:
    """The only operand of an element-wise node that is not one number a row, or one in all."""
    node = v.node
    if not isinstance(registry.get(node.op).lower, Pointwise):
        return None
    whole = {o: None for o in node.operands if o.shape == v.shape}
    rest = [o for o in node.operands if o not in whole and o.ndim]
    if len(whole) != 1 or any(o.ndim != v.ndim or o.shape[axis] != 1 for o in rest):
        return None
    (found,) = whole
    return found if found.dtype == v.dtype else None


def _is_reduced_to(whole: Value, row: Value) -> bool:
    """Whether a number a row is computed from these rows, in a few steps."""
    seen: set[Node] = set()
    stack = [row.node]
    while stack and len(seen) < MOST_STEPS:
        node = stack.pop()
        if node is whole.node:
            return True
        if node not in seen:
            seen.add(node)
            stack += [v.node for v in node.operands]
    return False


__all__ = ["pick_first"]
