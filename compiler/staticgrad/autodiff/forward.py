"""Forward-mode differentiation: tangents beside values, by the records' `jvp` rules alone.

Tangents flow from the leaves to the outputs in topological order, each value's beside the value, so
one pass gives the product of the Jacobian with one direction. Integer and stopped paths are cut, as
in `autodiff.reverse`. The result is ordinary graph: it can be differentiated again, by either mode.

Source: Wengert 1964, A simple automatic derivative evaluation program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staticgrad.ir.dim import equal_dims
from staticgrad.ir.errors import DifferentiationError
from staticgrad.ir.graph import reachable
from staticgrad.ir.loc import use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ir.types import TensorType
from staticgrad.ops import registry
from staticgrad.ops.arithmetic import add
from staticgrad.ops.shape import broadcast_to
from staticgrad.ops.tensor import Tensor


def push(
    outputs: Sequence[Value], wrt: Sequence[Value], tangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The tangents of `outputs` where the values `wrt` move along `tangents`: J @ tangents.

    wrt: any values, leaves or not; tangents: one for each, of its type, or None for zero. A value
    of `wrt` that itself depends on another moves by both, its own tangent and the one that arrives:
    so `push` is the transpose of `autodiff.reverse.backward`.

    Returns one tangent for each output, of the output's type; None where it is zero because no
    floating path leads there, and for integer and bool outputs. Raises `DifferentiationError` for a
    tangent that does not have its value's type.
    """
    known: dict[Value, Tensor] = {}
    for v, t in zip(wrt, tangents, strict=True):
        if t is not None:
            _check(v, t)
            _accumulate(known, v, t)
    for node in reachable(outputs):
        if any(v in known for v in node.operands):
            with use_locs(node.locs):
                _propagate(node, known)
    return [known.get(v) for v in outputs]


def _check(v: Value, tangent: Tensor) -> None:
    if not v.dtype.is_float:
        raise DifferentiationError(f"push: {v!r} is not floating, it has no tangent; pass None")
    fits = (
        tangent.dtype == v.dtype
        and tangent.ndim == v.ndim
        and all(equal_dims(a, b) is not False for a, b in zip(tangent.shape, v.shape))
    )
    if not fits:
        raise DifferentiationError(
            f"push: the tangent has type {tangent.type}, the value that moves along it {v.type}"
        )


def _propagate(node: Node, known: dict[Value, Tensor]) -> None:
    """Adds the tangents of a node's results to `known`."""
    rule = registry.get(node.op).jvp
    if isinstance(rule, registry.NotDifferentiable):
        return
    if not any(r.dtype.is_float for r in node.results):
        return
    context = registry.JvpContext(node.operands, node.results, node.attrs, push)
    found: Any = rule(context, [known.get(v) for v in node.operands])
    if found is None or isinstance(found, Value):
        found = (found,)
    if len(found) != len(node.results):
        raise AssertionError(f"jvp of {node.op} gave {len(found)} tangents")
    for r, t in zip(node.results, found):
        if t is not None and r.dtype.is_float:
            _accumulate(known, r, _of_type(t, r.type, node))


def _of_type(tangent: Tensor, wanted: TensorType, node: Node) -> Tensor:
    """The tangent of a rule with the result's whole shape."""
    if tangent.dtype != wanted.dtype:
        raise AssertionError(f"jvp of {node.op}: the tangent of {wanted} is {tangent.type}")
    return broadcast_to(tangent, wanted.shape)


def _accumulate(known: dict[Value, Tensor], v: Value, tangent: Tensor) -> None:
    there = known.get(v)
    known[v] = tangent if there is None else add(there, tangent)


__all__ = ["push"]
