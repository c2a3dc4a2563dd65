"""Nodes with a derivative of the user's own: `custom_vjp` and `custom_jvp`.

Such a node holds the graph of the function itself, which takes its place before kernels are made,
and in its payload the user's rules, which are traced when the node is differentiated. The payload
is no part of the graph's text: a graph that was read from text runs, but has lost its rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from staticgrad.ir.errors import DifferentiationError, GraphError
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.node import Value
from staticgrad.ir.types import TensorType

from .closing import inline, placeholders
from .control import same_type
from .elementwise import zeros_as
from .leaves import input as graph_input
from .lowering import Expand
from .reduction import sum as reduce_sum
from .registry import (
    Attrs,
    BatchContext,
    JvpContext,
    Op,
    Sample,
    Types,
    VjpContext,
    apply,
    make,
    register,
    require_equal,
)
from .shape import broadcast_to
from .tensor import Tensor

Tensors = Sequence[Tensor]
Batch = Callable[..., list[tuple[Any, bool]]]  # autodiff.batching.batched


@dataclass
class VjpRule:
    """A user's reverse rule on flat lists.

    forward   operands -> results, residuals, and what backward needs to know of their structure
    backward  structure, residuals, cotangents of the results -> one cotangent (or None) an operand
    """

    name: str
    forward: Callable[[Tensors], tuple[list[Tensor], list[Any], Any]]
    backward: Callable[[Any, Sequence[Any], Tensors], list[Tensor | None]]
    # Set once the rule served a reverse pass. Forward mode over that pass (a Hessian) meets the
    # node where the loss and the residuals read its value, and goes through the function itself.
    reversed: bool = False
    needed = False  # by the graph's text


@dataclass
class JvpRule:
    """A user's forward rule on flat lists: operands, tangents -> tangents of the results."""

    name: str
    push: Callable[[Tensors, Tensors], list[Tensor]]
    needed = False  # by the graph's text


def _infer(types: Types, attrs: Attrs) -> Types:
    body: Graph = attrs["body"]
    if len(body.inputs) != len(types):
        raise GraphError(f"the body has {len(body.inputs)} inputs, got {len(types)} operands")
    for i, (v, t) in enumerate(zip(body.inputs, types)):
        same_type(v.type, t, f"input {i} of the body")
    for c in body.constraints:
        require_equal(c.left, c.right, c.message)
    return tuple(v.type for v in body.outputs)


def _reference(*operands: Any, body: Graph, arguments: int, dims: Any, payload: Any = None) -> Any:
    from .interpret import run_graph

    return tuple(run_graph(body, operands, dims=dims)[0])


def _rule(c: Any, kind: str) -> Any:
    rule = c.results[0].node.payload
    if rule is None:
        raise DifferentiationError(
            f"{kind}: the graph was read from text, which does not hold the function's own rule; "
            "differentiate before it is saved"
        )
    return rule


def _captures_stay(rule: Any, moving: Sequence[Any], captures: Sequence[Value]) -> None:
    """A rule gives derivatives by arguments; there is none by what the function reads besides."""
    for moves, v in zip(moving, captures):
        if moves:
            raise DifferentiationError(
                f"{rule.name} reads {v!r} from outside, and its own rule gives no derivative by "
                "it; make it an argument of the function, or pass it through sg.stop_gradient"
            )


# --- custom_vjp -----------------------------------------------------------------------------------


def _vjp_by_rule(c: VjpContext, arriving: Any) -> list[Tensor | None]:
    rule: VjpRule = _rule(c, "custom_vjp")
    n = c.attrs["arguments"]
    _captures_stay(rule, c.needed[n:], c.operands[n:])
    seeds = arriving if isinstance(arriving, (list, tuple)) else [arriving]
    cotangents = [zeros_as(r.type) if ct is None else ct for r, ct in zip(c.results, seeds)]
    outputs, residuals, form = rule.forward(c.operands[:n])
    rule.reversed = True
    known = c.results[0].node.id
    for node in reachable([*outputs, *(r for r in residuals if isinstance(r, Tensor))]):
        if node.id > known and isinstance(node.payload, VjpRule):
            node.payload.reversed = True  # forward rules call the function itself
    found = rule.backward(form, residuals, cotangents)
    return [*found, *(None for _ in c.operands[n:])]


def _jvp_of_reverse(c: JvpContext, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    rule: VjpRule = _rule(c, "custom_vjp")
    n = c.attrs["arguments"]
    if not rule.reversed:
        raise DifferentiationError(
            f"forward mode through {rule.name}, whose derivative custom_vjp defines for reverse "
            'mode alone; use sg.grad, sg.vjp or sg.jacobian(mode="reverse"), or define it by '
            "sg.custom_jvp"
        )
    _captures_stay(rule, [t is not None for t in tangents[n:]], c.operands[n:])
    # Values of their own: an operand may depend on another one, and its tangent holds that already.
    own = [apply("astype", v, dtype=v.dtype) for v in c.operands[:n]]
    results = inline(c.attrs["body"], [*own, *c.operands[n:]])
    assert c.push is not None
    found: list[Tensor | None] = c.push(results, own, list(tangents[:n]))
    return found


def _batch_vjp(c: BatchContext) -> Any:
    rule: VjpRule | None = c.node.payload
    body = _batched_body(c)
    new = None if rule is None else _BatchedVjp(c, rule).rule()
    return list(make("custom_vjp", c.operands, {**c.attrs, "body": body}, payload=new).results)


class _BatchedVjp:
    """A reverse rule for one item as a rule for many."""

    def __init__(self, c: BatchContext, rule: VjpRule) -> None:
        assert c.batch is not None
        n = c.attrs["arguments"]
        self.one, self.size, self.batch = rule, c.size, c.batch
        self.flags, self.types, self.results = c.batched[:n], c.types[:n], c.result_types

    def rule(self) -> VjpRule:
        return VjpRule(self.one.name, self.forward, self.backward)

    def forward(self, operands: Tensors) -> tuple[list[Tensor], list[Any], Any]:
        items = [
            item_of(t) if f else v for v, f, t in zip(operands, self.flags, self.types)
        ]  # fmt: skip
        outputs, residuals, form = self.one.forward(items)
        at = [i for i, r in enumerate(residuals) if isinstance(r, Tensor)]
        replaced = {i: v for i, v, f in zip(items, operands, self.flags) if f}
        found = self.batch([*outputs, *(residuals[i] for i in at)], replaced, self.size)
        many = [rows(v, f, self.size) for v, f in found[: len(outputs)]]
        kept: list[Any] = list(residuals)
        flags = dict.fromkeys(range(len(residuals)), False)
        for i, (v, f) in zip(at, found[len(outputs) :]):
            kept[i], flags[i] = v, f
        return many, kept, (form, flags)

    def backward(
        self, known: Any, residuals: Sequence[Any], cotangents: Tensors
    ) -> list[Tensor | None]:
        form, flags = known
        replaced: dict[Value, Tensor] = {}
        items = []
        for i, r in enumerate(residuals):
            if flags[i]:
                item = item_of(TensorType(r.dtype, r.shape[1:]))
                replaced[item] = r
                r = item
            items.append(r)
        seeds = [item_of(t) for t in self.results]
        replaced.update(zip(seeds, cotangents))
        found = self.one.backward(form, items, seeds)
        known_at = [i for i, g in enumerate(found) if g is not None]
        many = self.batch([found[i] for i in known_at], replaced, self.size)
        result: list[Tensor | None] = [None] * len(found)
        for i, (g, is_batched) in zip(known_at, many):
            g = rows(g, is_batched, self.size)
            result[i] = g if self.flags[i] else reduce_sum(g, axis=0)
        return result


# --- custom_jvp -----------------------------------------------------------------------------------


def _jvp_by_rule(c: JvpContext, tangents: Sequence[Tensor | None]) -> list[Tensor]:
    rule: JvpRule = _rule(c, "custom_jvp")
    n = c.attrs["arguments"]
    _captures_stay(rule, [t is not None for t in tangents[n:]], c.operands[n:])
    filled = [zeros_as(v.type) if t is None else t for v, t in zip(c.operands, tangents[:n])]
    return rule.push(c.operands[:n], filled)


def _vjp_by_transposition(c: VjpContext, arriving: Any) -> list[Tensor | None]:
    """The tangent map is linear in the tangents, so its derivative by them is its transpose."""
    rule: JvpRule = _rule(c, "custom_jvp")
    n = c.attrs["arguments"]
    _captures_stay(rule, c.needed[n:], c.operands[n:])
    moving = [item_of(v.type) if need else None for v, need in zip(c.operands[:n], c.needed)]
    filled = [
        zeros_as(v.type) if t is None else t for v, t in zip(c.operands[:n], moving)
    ]  # fmt: skip
    pushed = rule.push(c.operands[:n], filled)
    seeds = arriving if isinstance(arriving, (list, tuple)) else [arriving]
    pairs = [(t, ct) for t, ct in zip(pushed, seeds) if ct is not None]
    targets = [t for t in moving if t is not None]
    assert c.backward is not None
    found = iter(c.backward([t for t, _ in pairs], [ct for _, ct in pairs], targets))
    cotangents = [None if t is None else next(found) for t in moving]
    kept = {t.node for t in targets}
    if any(node in kept for node in reachable([g for g in cotangents if g is not None])):
        raise DifferentiationError(
            f"the rule that custom_jvp has for {rule.name} is not linear in the tangents, so it "
            "can't be turned around for reverse mode"
        )
    return [*cotangents, *(None for _ in c.operands[n:])]


def _batch_jvp(c: BatchContext) -> Any:
    rule: JvpRule | None = c.node.payload
    body = _batched_body(c)
    new = None if rule is None else _batched_jvp_rule(c, rule)
    return list(make("custom_jvp", c.operands, {**c.attrs, "body": body}, payload=new).results)


def _batched_jvp_rule(c: BatchContext, rule: JvpRule) -> JvpRule:
    """A forward rule for one item as a rule for many."""
    n = c.attrs["arguments"]
    flags, types, size, batch = c.batched[:n], c.types[:n], c.size, c.batch
    assert batch is not None

    def push(operands: Tensors, tangents: Tensors) -> list[Tensor]:
        items = [item_of(t) if f else v for v, f, t in zip(operands, flags, types)]
        moves = [item_of(t) if f else v for v, f, t in zip(tangents, flags, types)]
        replaced = {
            i: v for i, v, f in zip((*items, *moves), (*operands, *tangents), (*flags, *flags)) if f
        }
        return [rows(v, f, size) for v, f in batch(rule.push(items, moves), replaced, size)]

    return JvpRule(rule.name, push)


# --- shared ---------------------------------------------------------------------------------------


def item_of(type: TensorType) -> Tensor:
    """A value that stands for one item, or for a tangent."""
    return graph_input("item", type.shape, type.dtype)


def rows(v: Tensor, is_batched: bool, size: Any) -> Tensor:
    """`v` with the batch axis in front, repeated where it has none."""
    return v if is_batched else broadcast_to(v, (size, *v.shape))


def _batched_body(c: BatchContext) -> Graph:
    """The function's graph for many items."""
    body: Graph = c.attrs["body"]
    assert c.batch is not None
    types = [
        TensorType(v.dtype, (c.size, *v.shape)) if f else v.type
        for v, f in zip(body.inputs, c.batched)
    ]
    inputs = placeholders("p", types)
    items = [item_of(v.type) if f else new for v, f, new in zip(body.inputs, c.batched, inputs)]
    outputs = inline(body, items)
    replaced = {i: new for i, new, f in zip(items, inputs, c.batched) if f}
    found = c.batch(outputs, replaced, c.size)
    return Graph(inputs, [rows(v, f, c.size) for v, f in found])


def _samples() -> list[Sample]:
    return []  # a node needs the rules of a user's function: tests/test_custom_derivatives.py


for _name, _vjp, _jvp, _batch, _summary in (
    ("custom_vjp", _vjp_by_rule, _jvp_of_reverse, _batch_vjp, "a reverse rule"),
    ("custom_jvp", _vjp_by_transposition, _jvp_by_rule, _batch_jvp, "a forward rule"),
):
    register(
        Op(
            name=_name,
            summary=f"a function with {_summary} of the user's own",
            infer=_infer,
            reference=_reference,
            vjp=_vjp,
            jvp=_jvp,
            batch=_batch,
            lower=Expand(lambda operands, attrs: tuple(inline(attrs["body"], operands))),
            samples=_samples,
            source=f"the user; the semantics of jax.{_name}",
        )
    )

__all__ = ["JvpRule", "VjpRule"]
