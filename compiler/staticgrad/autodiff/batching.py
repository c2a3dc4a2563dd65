"""Batching: a graph over one item becomes a graph over many, by the records' `batch` rules alone.

The batch axis is always in front. What depends on no batched value stays the very same node, so
it is computed once for all items. Nothing is remembered between calls: the batched graph is
ordinary graph, so it can be batched again, which is what nested `vmap`s do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from staticgrad.ir.dim import DimLike, equal_dims
from staticgrad.ir.graph import reachable
from staticgrad.ir.loc import use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ir.types import TensorType
from staticgrad.ops import registry, taps
from staticgrad.ops.shape import reshape
from staticgrad.ops.tensor import Tensor


def batched(
    outputs: Sequence[Value], replaced: Mapping[Any, Tensor], size: DimLike
) -> list[tuple[Any, bool]]:
    """`outputs` for `size` items at once.

    `replaced` maps values of one item to tensors that hold all items, with an extra axis of `size`
    in front. Every node that depends on one of them is rebuilt by its record's `batch` rule.

    Returns each output with whether it is batched: one that is not is the tensor itself, the same
    for all items.
    """
    found: dict[Value, Tensor] = {}
    for value, many in replaced.items():
        found[value] = _of_type(many, value.type, size, "what replaces a value")
    for node in reachable(outputs):
        flags = tuple(v in found for v in node.operands)
        if not any(flags) or all(r in found for r in node.results):
            continue
        with use_locs(node.locs):
            results = _rebuild(node, flags, found, size)
        for r, many in zip(node.results, results):
            found.setdefault(r, many)
            taps.carry(r, many, rows=True)
    return [(found[v], True) if v in found else (v, False) for v in outputs]


def _rebuild(
    node: Node, flags: tuple[bool, ...], found: Mapping[Value, Tensor], size: DimLike
) -> Sequence[Tensor]:
    rule = registry.get(node.op).batch
    context = registry.BatchContext(
        operands=tuple(found.get(v, v) for v in node.operands),
        batched=flags,
        size=size,
        attrs=node.attrs,
        types=tuple(v.type for v in node.operands),
        result_types=node.types,
        node=node,
        batch=batched,
    )
    results = rule(context)
    if isinstance(results, Tensor):
        results = (results,)
    if len(results) != len(node.types):
        raise AssertionError(f"the batch rule of {node.op} gave {len(results)} results")
    what = f"the batch rule of {node.op}"
    return [_of_type(many, one, size, what) for many, one in zip(results, node.types)]


def _of_type(many: Any, one: TensorType, size: DimLike, what: str) -> Tensor:
    """`many`, which must have the type of `one` with an axis of `size` in front. Where symbolic
    sizes are equal but written in another way, a reshape says so."""
    expected = TensorType(one.dtype, (size, *one.shape))
    if (
        not isinstance(many, Tensor)
        or many.dtype != expected.dtype
        or many.ndim != len(expected.shape)
        or any(equal_dims(a, b) is False for a, b in zip(many.shape, expected.shape))
    ):
        raise AssertionError(f"{what}: expected {expected}, got {many!r}")
    return reshape(many, expected.shape)


__all__ = ["batched"]
