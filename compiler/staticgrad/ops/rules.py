"""Forward and batch rules that families of structured operations share.

A forward rule gets a `JvpContext` and one tangent (or None) for each operand; a batch rule gets a
`BatchContext`, in which the batch axis is in front. See `registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staticgrad.ir.dim import product

from .registry import Batch, BatchContext, JvpContext, apply
from .tensor import Tensor


def jvp_linear(c: JvpContext, tangents: Sequence[Any]) -> Any:
    """Of an op that is linear in its first operand, the others integers: itself, on the tangent."""
    return apply(c.results[0].node.op, tangents[0], *c.operands[1:], **c.attrs)


def jvp_bilinear(c: JvpContext, tangents: Sequence[Any]) -> Any:
    """The product rule of an op that is linear in each of its two operands: f(ta, b) + f(a, tb)."""
    (a, b), (ta, tb) = c.operands, tangents
    op = c.results[0].node.op
    if ta is None:
        return apply(op, a, tb, **c.attrs)
    first = apply(op, ta, b, **c.attrs)
    return first if tb is None else first + apply(op, a, tb, **c.attrs)


def in_front(c: BatchContext, first: int = 0) -> list[Tensor]:
    """The operands from the `first` on with the batch axis in front: one that is the same for all
    items is repeated, by a broadcast."""
    return [
        x if batched else apply("broadcast_to", x, shape=(c.size, *x.shape))
        for x, batched in zip(c.operands[first:], c.batched[first:])
    ]


def batch_axes(*names: str) -> Batch:
    """The rule of an op whose attributes `names` are axes, counted from the front, and that treats
    all others alike: itself, with the axes one further."""

    def rule(c: BatchContext) -> Any:
        attrs = dict(c.attrs)
        for name in names:
            axes = attrs[name]
            attrs[name] = tuple(a + 1 for a in axes) if isinstance(axes, tuple) else axes + 1
        return apply(c.node.op, *in_front(c), **attrs)

    return rule


def batch_folded(c: BatchContext) -> Any:
    """Of an op whose operands' first dim counts items that do not see each other, and that is the
    result's first dim too: the batch is folded into it."""
    items = [apply("reshape", x, shape=(product(x.shape[:2]), *x.shape[2:])) for x in in_front(c)]
    found = apply(c.node.op, *items, **c.attrs)
    return apply("reshape", found, shape=(c.size, *c.result_types[0].shape))
