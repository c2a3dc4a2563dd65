"""Rules of `simplify` about joining and taking apart: concat, slice and pad undo each other."""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.dim import DimLike
from staticgrad.ir.node import Node, Value
from staticgrad.ops.slicing import never_negative
from staticgrad.rewrite.pattern import constant_of, fitted, make, number

Found = Sequence[Value] | None

# Of a concat: looking through longer ones for every slice of them would cost the square.
MOST_OPERANDS = 64


def _is_zero(d: DimLike) -> bool:
    return isinstance(d, int) and d == 0


def _boxed(x: Value, start: Sequence[DimLike], step: Sequence[int], node: Node) -> Value:
    """The slice of `x` that has the node's shape; `x` where that is all of it."""
    shape = node.types[0].shape
    if x.shape == shape and all(s == 1 and _is_zero(i) for i, s in zip(start, step)):
        return x
    return make("slice", x, start=tuple(start), step=tuple(step), shape=shape)


# --- concat ---------------------------------------------------------------------------------------


def flat(node: Node) -> Found:
    """concat(concat(a, b), c) -> concat(a, b, c); operands of size 0 are dropped, one alone -> x"""
    axis = node.attrs["axis"]
    parts: list[Value] = []
    for v in node.operands:
        inner = v.node
        if inner.op == "concat" and inner.attrs["axis"] == axis:
            parts += inner.operands
        elif not _is_zero(v.shape[axis]):
            parts.append(v)
    if len(parts) == len(node.operands) or len(parts) > MOST_OPERANDS:
        return None
    if not parts:
        return [node.operands[0]]
    return [parts[0] if len(parts) == 1 else make("concat", *parts, axis=axis)]


def adjacent_slices(node: Node) -> Found:
    """concat(slice(x, 0:3), slice(x, 3:5)) -> slice(x, 0:5)"""
    axis = node.attrs["axis"]
    parts: list[Value] = []
    for v in node.operands:
        joined = _joined(parts[-1], v, axis) if parts else None
        if joined is None:
            parts.append(v)
        else:
            parts[-1] = joined
    if len(parts) == len(node.operands):
        return None
    if len(parts) > 1:
        return [make("concat", *parts, axis=axis)]
    inner = parts[0].node
    return [_boxed(inner.operands[0], inner.attrs["start"], inner.attrs["step"], node)]


def _joined(a: Value, b: Value, axis: int) -> Value | None:
    """The slice that two slices are which follow each other along `axis`."""
    first, second = a.node, b.node
    if first.op != "slice" or second.op != "slice":
        return None
    if first.operands[0] is not second.operands[0] or first.attrs["step"] != second.attrs["step"]:
        return None
    start, step = first.attrs["start"], first.attrs["step"]
    for i, (p, q) in enumerate(zip(start, second.attrs["start"])):
        if i == axis:
            p = p + a.shape[i] * step[i]
        elif a.shape[i] != b.shape[i]:
            return None
        if p != q:
            return None
    shape = tuple(m + n if i == axis else m for i, (m, n) in enumerate(zip(a.shape, b.shape)))
    return make("slice", first.operands[0], start=start, step=step, shape=shape)


# --- slice ----------------------------------------------------------------------------------------


def slice_of_concat(node: Node) -> Found:
    """slice(concat(a, b)) that lies in one operand -> a slice of that"""
    inner = node.operands[0].node
    if inner.op != "concat" or len(inner.operands) > MOST_OPERANDS:
        return None
    axis = inner.attrs["axis"]
    start, step, n = node.attrs["start"], node.attrs["step"], node.types[0].shape[axis]
    if _is_zero(n):
        return None
    first, last = start[axis], start[axis] + (n - 1) * step[axis]
    low, high = (first, last) if step[axis] > 0 else (last, first)
    offset: DimLike = 0
    for v in inner.operands:
        size = v.shape[axis]
        if never_negative(low - offset) and never_negative(offset + size - 1 - high):
            moved = [i - offset if a == axis else i for a, i in enumerate(start)]
            return [_boxed(v, moved, step, node)]
        offset = offset + size
    return None


def slice_of_pad(node: Node) -> Found:
    """slice(pad(x)) that takes elements of x only -> a slice of x"""
    inner = node.operands[0].node
    if inner.op != "pad":
        return None
    x, attrs, given = inner.operands[0], inner.attrs, node.attrs
    shape = node.types[0].shape
    if x.shape == shape and all(attrs[k] == given[k] for k in ("start", "step")):
        return [x]
    if any(s != 1 for s in attrs["step"]) or any(_is_zero(n) for n in shape):
        return None
    start = [i - j for i, j in zip(given["start"], attrs["start"])]
    for i, s, n, size in zip(start, given["step"], shape, x.shape):
        last = i + (n - 1) * s
        low, high = (i, last) if s > 0 else (last, i)
        if not (never_negative(low) and never_negative(size - 1 - high)):
            return None
    return [_boxed(x, start, given["step"], node)]


# --- pad ------------------------------------------------------------------------------------------


def pad_of_nothing(node: Node) -> Found:
    """pad(x) to the shape that x has -> x"""
    x, attrs = node.operands[0], node.attrs
    plain = all(s == 1 and _is_zero(i) for i, s in zip(attrs["start"], attrs["step"]))
    return [x] if plain and x.shape == node.types[0].shape else None


def pad_of_number(node: Node) -> Found:
    """pad(0.0){value=0.0} -> 0.0"""
    c = number(node.operands[0])
    dtype = node.types[0].dtype
    if c is None or c.tobytes() != dtype.numpy.type(node.attrs["value"]).tobytes():
        return None
    return fitted(constant_of(c, dtype), node)


def sum_of_pads(node: Node) -> Found:
    """add(pad(a), pad(b)) that lie side by side -> pad(concat(a, b)): the gradient of split"""
    first, second = (v.node for v in node.operands)
    if first.op != "pad" or second.op != "pad":
        return None
    if first.types[0].shape != second.types[0].shape:
        return None
    if any(n.attrs["value"] != 0 or any(s != 1 for s in n.attrs["step"]) for n in (first, second)):
        return None
    for a, b in ((first, second), (second, first)):
        axis = _side_by_side(a, b)
        if axis is not None:
            parts = [p for n in (a, b) for p in _parts(n.operands[0], axis)]
            if len(parts) > MOST_OPERANDS:
                return None
            return [make("pad", make("concat", *parts, axis=axis), **a.attrs)]
    return None


def _parts(v: Value, axis: int) -> Sequence[Value]:
    joined = v.node.op == "concat" and v.node.attrs["axis"] == axis
    return v.node.operands if joined else (v,)


def _side_by_side(a: Node, b: Node) -> int | None:
    """The axis along which the padded `b` begins where `a` ends, all else being equal."""
    found = None
    places = zip(a.attrs["start"], b.attrs["start"], a.operands[0].shape, b.operands[0].shape)
    for axis, (i, j, m, n) in enumerate(places):
        if i == j and m == n:
            continue
        if found is not None or i + m != j:
            return None
        found = axis
    return found


__all__ = [
    "adjacent_slices",
    "flat",
    "pad_of_nothing",
    "pad_of_number",
    "slice_of_concat",
    "slice_of_pad",
    "sum_of_pads",
]
