"""Reverse-mode differentiation: a graph becomes a larger graph, by the records' `vjp` rules alone.

Cotangents flow from the loss to the leaves in reverse topological order. Fan-out is summed,
broadcast operands' cotangents are summed to the operand's shape, integer and stopped paths are cut.
The result is ordinary graph, so it can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import equal_dims
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DifferentiationError
from staticgrad.ir.graph import reachable
from staticgrad.ir.loc import locs_text, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.arithmetic import add
from staticgrad.ops.convert import constant_array
from staticgrad.ops.public import list_of, public
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.shape import broadcast_to, reshape
from staticgrad.ops.tensor import Tensor


@public
def gradients(
    loss: Tensor, wrt: Sequence[Tensor] | Tensor, *, unreachable: str = "error",
    cotangent: Tensor | None = None,
) -> Any:  # fmt: skip
    """The gradients d loss / d w for each w, as tensors of the graph.

    `loss` must be a floating scalar unless `cotangent`, of the loss's type, is given. For a tensor
    that the loss does not depend on (or only through integers or `stop_gradient`) the answer is a
    `DifferentiationError`, or zeros with `unreachable="zeros"`.

    Returns a list like `wrt`, or one tensor where `wrt` is one tensor.
    """
    single = isinstance(wrt, Value)
    targets = [wrt] if isinstance(wrt, Tensor) else list_of(wrt, "gradients: wrt", "tensors")
    _check(loss, targets, unreachable, cotangent)
    if cotangent is None:
        cotangent = constant_array(np.ones((), loss.dtype.numpy))
    found = backward([loss], [cotangent], targets)
    results = []
    for t, g in zip(targets, found):
        if g is None:
            if unreachable == "error":
                raise DifferentiationError(
                    f"gradients: the loss does not depend on {t!r} (declared at "
                    f"{locs_text(t.node.locs)}) by any differentiable path; pass "
                    'unreachable="zeros" to get zeros instead'
                )
            g = broadcast_to(constant_array(np.zeros((), t.dtype.numpy)), t.shape)
        results.append(g)
    return results[0] if single else results


def _check(loss: Any, targets: list[Tensor], unreachable: str, cotangent: Any) -> None:
    if not isinstance(loss, Tensor):
        raise ArgumentError(f"gradients: the loss must be a tensor, got {type(loss).__name__}")
    for t in targets:
        if not isinstance(t, Tensor):
            raise ArgumentError(f"gradients: expected tensors to differentiate by, got {t!r}")
        if not t.dtype.is_float:
            raise DifferentiationError(f"gradients: {t!r} is not floating, it has no gradient")
    if unreachable not in ("error", "zeros"):
        raise ArgumentError(f'unreachable must be "error" or "zeros", got {unreachable!r}')
    if not loss.dtype.is_float:
        raise DifferentiationError(f"gradients: the loss has dtype {loss.dtype!s}, not floating")
    if cotangent is None and loss.shape != ():
        raise DifferentiationError(
            f"gradients: the loss must be a scalar, got {loss.type}; reduce it with .mean() or "
            ".sum(), or pass cotangent="
        )
    if cotangent is not None and not isinstance(cotangent, Tensor):
        raise ArgumentTypeError(f"gradients: the cotangent must be a tensor, got {cotangent!r}")
    if cotangent is not None and cotangent.type != loss.type:
        raise DifferentiationError(
            f"gradients: the cotangent has type {cotangent.type}, the loss {loss.type}"
        )


def backward(
    roots: Sequence[Value], seeds: Sequence[Tensor], targets: Sequence[Value]
) -> list[Tensor | None]:
    """The cotangents of `targets`, given those of `roots`; None where no path leads."""
    nodes = reachable(roots)
    active = _active(nodes, targets)
    cotangents: dict[Value, Tensor] = {}
    for root, seed in zip(roots, seeds):
        _accumulate(cotangents, root, seed)
    wanted = set(targets)
    kept: dict[Value, Tensor] = {}
    for node in reversed(nodes):
        arriving = [cotangents.pop(r, None) for r in node.results]
        for r, ct in zip(node.results, arriving):
            if r in wanted and ct is not None:
                kept[r] = ct
        if node not in active or all(ct is None for ct in arriving):
            continue
        with use_locs(node.locs):
            _propagate(node, arriving, active, wanted, cotangents)
    return [kept.get(t) for t in targets]


def _active(nodes: Sequence[Node], targets: Sequence[Value]) -> set[Node]:
    """The nodes that lie on a floating path from a target: only those are walked back through."""
    wanted = set(targets)
    active: set[Node] = set()
    for n in nodes:
        if any((v in wanted or v.node in active) and v.dtype.is_float for v in n.operands):
            active.add(n)
    return active


def _propagate(
    node: Node, arriving: list[Tensor | None], active: set[Node], wanted: set[Value],
    cotangents: dict[Value, Tensor],
) -> None:  # fmt: skip
    rule = registry.get(node.op).vjp
    if isinstance(rule, registry.NotDifferentiable):
        return
    needed = tuple((v in wanted or v.node in active) and v.dtype.is_float for v in node.operands)
    context = registry.VjpContext(node.operands, node.results, node.attrs, needed, backward)
    found = rule(context, arriving[0] if len(arriving) == 1 else arriving)
    if len(found) != len(node.operands):
        raise AssertionError(f"vjp of {node.op} gave {len(found)} cotangents")
    for v, ct, need in zip(node.operands, found, needed):
        if ct is not None and need:
            _accumulate(cotangents, v, sum_to(ct, v))


def _accumulate(cotangents: dict[Value, Tensor], v: Value, ct: Tensor) -> None:
    known = cotangents.get(v)
    cotangents[v] = ct if known is None else add(known, ct)


def sum_to(ct: Tensor, operand: Value) -> Tensor:
    """The cotangent of a broadcast operand: summed over the axes along which it was repeated."""
    shape = operand.shape
    if ct.shape == shape:
        return ct
    extra = ct.ndim - len(shape)
    repeated = [
        a for a in range(ct.ndim)
        if a < extra or (shape[a - extra] == 1 and ct.shape[a] != 1)
    ]  # fmt: skip
    if repeated:
        ct = reduce_sum(ct, axis=tuple(repeated), keepdims=True)
    kept = ct.shape[extra:]
    same = len(kept) == len(shape) and all(equal_dims(a, b) for a, b in zip(kept, shape))
    if extra or not same:
        ct = reshape(ct, shape)
    return ct
