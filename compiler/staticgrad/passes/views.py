"""Rules of `canonicalize` about views: reshape, permute_dims, broadcast_to, slice, reduced dims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction
from staticgrad.rewrite.pattern import constant_of, fitted, make, number, spread

Found = Sequence[Value] | None


def broadcast_operands(node: Node) -> Found:
    """add(broadcast_to(a), b) -> add(a, b); exp(broadcast_to(a)) -> broadcast_to(exp(a))"""
    before = [unspread(v) for v in node.operands]
    if all(a is b for a, b in zip(before, node.operands)):
        return None
    made = registry.make(node.op, before, node.attrs).results[0]
    return fitted(made, node) if made.ndim <= node.types[0].ndim else None


def unspread(v: Value) -> Value:
    """`v` before it was broadcast, or given dims of 1 in front."""
    node = v.node
    if node.op == "broadcast_to":
        return node.operands[0]
    if node.op == "reshape" and v.shape and v.shape[0] == 1:
        x = node.operands[0]
        extra = v.ndim - x.ndim
        if extra > 0 and v.shape == (1,) * extra + x.shape:
            return x
    if node.op == "constant" and v.ndim and node.payload.size == 1:
        return constant_of(node.payload.reshape(())[()], v.dtype)
    return v


def view_of_number(node: Node) -> Found:
    """reshape(broadcast_to(2.0)) -> broadcast_to(2.0); likewise permute_dims and slice"""
    if node.operands[0].node.op == "constant":
        return None  # the form that a number of dims of 1 has
    c = number(node.operands[0])
    return None if c is None else fitted(constant_of(c, node.types[0].dtype), node)


def reshape_chain(node: Node) -> Found:
    """reshape(reshape(x)) -> reshape(x); a reshape to the same shape -> x"""
    x = node.operands[0]
    if x.node.op == "reshape":
        x = x.node.operands[0]
    elif x.shape != node.types[0].shape:
        return None
    return [_reshaped(x, node.types[0].shape)]


def _reshaped(x: Value, shape: Any) -> Value:
    return x if x.shape == shape else make("reshape", x, shape=shape)


def permute_chain(node: Node) -> Found:
    """permute_dims(permute_dims(x)) -> permute_dims(x); dims of 1 that move -> reshape"""
    x, axes = node.operands[0], node.attrs["axes"]
    if x.node.op == "permute_dims":
        inner = x.node.attrs["axes"]
        return [make("permute_dims", x.node.operands[0], axes=tuple(inner[a] for a in axes))]
    moved = [a for a in axes if x.shape[a] != 1]
    if moved == sorted(moved):
        return [_reshaped(x, node.types[0].shape)]
    return None


def broadcast_chain(node: Node) -> Found:
    """broadcast_to(broadcast_to(x)) -> broadcast_to(x); to the same shape -> x; dims of 1 that a
    reshape puts in front are broadcast_to's own"""
    x, shape = node.operands[0], node.types[0].shape
    source = unspread(x)
    if source is x and spread(x, shape).node.op == "broadcast_to":
        return None
    return fitted(source, node)


def slice_chain(node: Node) -> Found:
    """slice(slice(x)) -> slice(x); a slice of everything -> x"""
    x, attrs = node.operands[0], node.attrs
    start, step = attrs["start"], attrs["step"]
    if x.shape == node.types[0].shape and all(
        s == 1 and isinstance(i, int) and i == 0 for i, s in zip(start, step)
    ):
        return [x]
    if x.node.op != "slice":
        return None
    inner = x.node.attrs
    start = tuple(i + j * s for i, s, j in zip(inner["start"], inner["step"], start))
    step = tuple(s * t for s, t in zip(inner["step"], step))
    if any(isinstance(d, int) and d == 0 for d in node.types[0].shape):
        return None  # of nothing: the composed start could lie outside
    return [make("slice", x.node.operands[0], start=start, step=step, shape=attrs["shape"])]


def axes_of_one(node: Node) -> Found:
    """sum(x, axes of size 1 and others) -> reshape(sum(x, the others))"""
    x, axes, keepdims = node.operands[0], node.attrs["axes"], node.attrs["keepdims"]
    left = tuple(a for a in axes if x.shape[a] != 1)
    if len(left) == len(axes) or not left:
        return [x] if not axes else None
    made = make(node.op, x, axes=left, keepdims=True)
    return [made if keepdims else _reshaped(made, node.types[0].shape)]


def reduced_ones(node: Node) -> Found:
    """sum(x, axes of size 1) -> reshape(x). Not before like terms are merged: those of x and of a
    sum over an axis whose size only turns out to be 1 are not."""
    x, axes = node.operands[0], node.attrs["axes"]
    return [_reshaped(x, node.types[0].shape)] if all(x.shape[a] == 1 for a in axes) else None


def reshape_reduction(node: Node) -> Found:
    """reshape(sum(x)) that restores the reduced dims -> sum(x){keepdims}, and the other way"""
    inner = node.operands[0].node
    attrs, shape = inner.attrs, node.types[0].shape
    if not isinstance(registry.get(inner.op).lower, Reduction):
        return None
    full, axes = inner.operands[0].shape, attrs["axes"]
    if attrs["keepdims"]:
        wanted = tuple(d for a, d in enumerate(full) if a not in axes)
    else:
        wanted = tuple(1 if a in axes else d for a, d in enumerate(full))
    if shape != wanted:
        return None
    return [make(inner.op, inner.operands[0], axes=axes, keepdims=not attrs["keepdims"])]


__all__ = [
    "axes_of_one",
    "broadcast_chain",
    "broadcast_operands",
    "permute_chain",
    "reduced_ones",
    "reshape_chain",
    "reshape_reduction",
    "slice_chain",
    "unspread",
    "view_of_number",
]
