"""Training or evaluation: a choice that is made when a graph is compiled, not when it is declared.

A layer that behaves differently in training (dropout, batch norm) records both values and, as
pairs of operands, the updates of its state. `compile(training=...)` picks one of them; in training
the pairs become updates of the executable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from staticgrad.ir.dim import shape_text
from staticgrad.ir.errors import (
    ArgumentTypeError,
    DTypeError,
    GraphError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ir.graph import reachable
from staticgrad.ir.node import Value

from .convert import as_tensor, promoted
from .elementwise import zeros_as
from .lowering import Expand
from .registry import (
    Attrs,
    BatchContext,
    Op,
    Sample,
    Types,
    apply,
    make,
    register,
    require_equal,
)
from .samples import random_array
from .shape import broadcast_to
from .tensor import Tensor

Updates = Sequence[tuple[Value, Value]]


def _infer(types: Types, attrs: Attrs) -> Types:
    if len(types) < 2 or len(types) % 2:
        raise GraphError(
            "expected the value in training, the value in evaluation and pairs of state and new "
            f"value, got {len(types)} operands"
        )
    for first, second in zip(types[::2], types[1::2]):
        if first.dtype != second.dtype:
            raise DTypeError(f"{first} and {second} must have one dtype")
        if first.ndim != second.ndim:
            raise ShapeError(f"{first} and {second} must have one shape")
        for a, b in zip(first.shape, second.shape):
            require_equal(
                a, b, f"{shape_text(first.shape)} and {shape_text(second.shape)} must be one shape"
            )
    return (types[0],)


def _vjp(c: Any, ct: Tensor) -> tuple[Any, ...]:
    mode = c.attrs["training"]
    rest = (None,) * (len(c.operands) - 2)
    if mode is not None:
        return (ct, None, *rest) if mode else (None, ct, *rest)
    zero = zeros_as(ct)
    return (
        apply("training_switch", ct, zero, training=None) if c.needed[0] else None,
        apply("training_switch", zero, ct, training=None) if c.needed[1] else None,
        *rest,
    )


def _jvp(c: Any, tangents: Any) -> Any:
    mode, (train, evaluation) = c.attrs["training"], tangents[:2]
    if mode is not None:
        return train if mode else evaluation
    known = train if train is not None else evaluation
    if known is None:  # only the state moves, of which the result is no function
        return None
    pair = (zeros_as(known) if t is None else t for t in (train, evaluation))
    return apply("training_switch", *pair, training=None)


def _batch(c: BatchContext) -> Tensor:
    """The switch of the batches. State has one value for the whole batch, so its new one must not
    differ from row to row."""
    mode, pairs = c.attrs["training"], c.operands[2:]
    if mode is False:
        pairs = ()  # it never writes
    elif any(c.batched[2:]):
        names = ", ".join(repr(v.node.attrs.get("name")) for v in c.node.operands[2::2])
        raise UnsupportedError(
            f"in training the state {names} would get a value of its own for each of the {c.size} "
            "rows of the batch (vmap); batch a model that is fixed to evaluation by model.eval(), "
            "or give the layer the whole batch instead of its rows"
        )
    whole = [
        v if batched else broadcast_to(v, (c.size, *v.shape))
        for v, batched in zip(c.operands[:2], c.batched)
    ]
    if mode is not None and not pairs:
        return whole[0] if mode else whole[1]
    result: Tensor = apply("training_switch", *whole, *pairs, training=mode)
    return result


def _samples() -> list[Sample]:
    a, b = random_array((3, 5), "float64", 1), random_array((3, 5), "float64", 2)
    state, new = random_array((5,), "float32", 3), random_array((5,), "float32", 4)
    return [
        Sample((a, b), {"training": None}),
        Sample((a, b, state, new), {"training": True}),
        Sample((a, b, state, new), {"training": False}),
    ]


register(
    Op(
        name="training_switch",
        summary="the first operand in training, the second in evaluation; then (state, new) pairs",
        infer=_infer,
        reference=lambda train, evaluation, *pairs, training: train if training else evaluation,
        vjp=_vjp,
        jvp=_jvp,
        batch=_batch,
        # What is left where no mode was bound is evaluation.
        lower=Expand(lambda operands, attrs: operands[0 if attrs["training"] else 1]),
        samples=_samples,
        source="this project",
    )
)


def training_switch(
    train: Any, evaluation: Any, updates: Updates = (), *, training: bool | None = None
) -> Tensor:
    """`train` in a training executable, `evaluation` in every other.

    Both are of one shape; they are promoted to one dtype. `updates` are pairs (state, new value)
    that a training executable writes with its own updates. With `training` True or False the choice
    is made now, whatever `compile` says; the updates of True are still found by `compile`.

    Raises `ArgumentTypeError` where an updated value is no state.
    """
    for state, _ in updates:
        if not isinstance(state, Value) or state.node.op != "state":
            raise ArgumentTypeError(
                f"training_switch: only state (sg.parameter) can be updated, got {state!r}"
            )
    if training is False:
        return as_tensor(evaluation, "training_switch")
    a, b = promoted(train, evaluation)
    if training and not updates:
        return a
    pairs = [v for pair in updates for v in pair]
    return apply("training_switch", a, b, *pairs, training=training)


def state_updates(roots: Iterable[Value], *, training: bool) -> list[tuple[Value, Value]]:
    """The (state, new value) pairs of all switches that `roots` reach and whose mode, bound to
    `training` where it is open, is training; each state once, in order of declaration.

    A layer that is called twice updates its state twice: the second new value is computed from the
    first one.
    """
    found: dict[Value, Value] = {}
    for node in reachable(roots):
        if node.op != "training_switch":
            continue
        mode = node.attrs["training"]
        if training if mode is None else mode:
            for state, new in zip(node.operands[2::2], node.operands[3::2]):
                if state.node.op != "state":
                    continue  # a checkpoint's second computation
                known = found.get(state)
                found[state] = new if known is None else _substituted(new, state, known)
    return list(found.items())


def _substituted(value: Value, old: Value, new: Value) -> Value:
    """`value` computed with `new` in place of `old`.

    What lies behind a switch stays: in training it does not read the state, and a copy would run
    the layers between two calls twice.
    """
    replaced = {old: new}
    for node in reachable((value,)):
        if node.op == "training_switch" or not any(v in replaced for v in node.operands):
            continue
        operands = [replaced.get(v, v) for v in node.operands]
        again = make(node.op, operands, node.attrs, payload=node.payload, locs=node.locs)
        replaced.update(zip(node.results, again.results))
    return replaced.get(value, value)


__all__ = ["state_updates", "training_switch"]
