"""Padding with PyTorch's arguments."""

from __future__ import annotations

from typing import Any

from staticgrad.ir.dim import Dim, is_index
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ops.convert import as_tensor
from staticgrad.ops.joining import concat
from staticgrad.ops.shape import broadcast_to
from staticgrad.ops.slicing import flip, narrow
from staticgrad.ops.slicing import pad as ops_pad
from staticgrad.ops.tensor import Tensor

_MODES = ("constant", "reflect", "replicate", "circular")


def _pairs(pad: Any, ndim: int) -> dict[int, tuple[int, int]]:
    """PyTorch's order, the last dim first, as {axis: (before, after)}."""
    if not isinstance(pad, (tuple, list)) or not all(is_index(p) for p in pad):
        raise ArgumentTypeError(f"pad: expected a tuple of ints, got {pad!r}")
    if len(pad) % 2 or len(pad) > 2 * ndim:
        raise ShapeError(
            f"pad: expected pairs (before, after) for at most {ndim} dims, the last dim first, "
            f"got {pad!r}"
        )
    sizes = [int(p) for p in pad]
    return {ndim - 1 - i // 2: (sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)}


def _edges(x: Tensor, axis: int, before: int, after: int, mode: str) -> tuple[Tensor, Tensor]:
    size = x.shape[axis]
    if mode == "replicate":
        ends = []
        for start, count in ((0, before), (size - 1, after)):
            shape = tuple(count if i == axis else d for i, d in enumerate(x.shape))
            ends.append(broadcast_to(narrow(x, axis, start, 1), shape))
        return ends[0], ends[1]
    if mode == "reflect":
        left = flip(narrow(x, axis, 1, before), axis=axis)
        return left, flip(narrow(x, axis, size - 1 - after, after), axis=axis)
    return narrow(x, axis, size - before, before), narrow(x, axis, 0, after)


def _check_reach(x: Tensor, axis: int, before: int, after: int, mode: str) -> None:
    size = x.shape[axis]
    if min(before, after) < 0:
        raise ArgumentError(f"pad: mode {mode!r} takes no negative sizes, got {(before, after)}")
    if isinstance(size, Dim):
        return
    most = {"reflect": size - 1, "circular": size}.get(mode, None if size else 0)
    if most is not None and max(before, after) > most:
        raise ShapeError(
            f"pad: mode {mode!r} can add at most {most} elements to dim {axis} of {x.type}, got "
            f"{(before, after)}"
        )


def pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """The input with elements added around it. `pad` has pairs (before, after), the last dim first.

    `mode`: "constant" (`value`, 0 by default; negative sizes cut off), "reflect" (without the
    edge), "replicate" (the edge), "circular".
    """
    x = as_tensor(input, "pad")
    if mode not in _MODES:
        raise ArgumentError(f"pad: mode must be one of {_MODES}, got {mode!r}")
    pairs = _pairs(pad, x.ndim)
    if mode != "constant":
        if value is not None:
            raise ArgumentError(f"pad: mode {mode!r} takes no value")
        for axis, (before, after) in sorted(pairs.items()):
            _check_reach(x, axis, before, after, mode)
            if before or after:
                left, right = _edges(x, axis, before, after, mode)
                x = concat([left, x, right], axis=axis)
        return x
    for axis, (before, after) in pairs.items():
        cut_before, cut_after = max(-before, 0), max(-after, 0)
        if cut_before or cut_after:
            left_over = x.shape[axis] - cut_before - cut_after
            if isinstance(left_over, int) and left_over < 0:
                raise ShapeError(
                    f"pad: {(before, after)} cuts off more than dim {axis} of {x.type}"
                )
            x = narrow(x, axis, cut_before, left_over)
    widths = [pairs.get(axis, (0, 0)) for axis in range(x.ndim)]
    added = [(max(b, 0), max(a, 0)) for b, a in widths]
    if not any(b or a for b, a in added):
        return x
    return ops_pad(x, added, value=0 if value is None else value)


__all__ = ["pad"]
