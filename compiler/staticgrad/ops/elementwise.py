"""What the families of element-wise operations share: type rules, registration, the forward and
batch rules that hold for all of them, zero gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dtype import bool_
from staticgrad.ir.errors import DTypeError
from staticgrad.ir.types import TensorType

from .convert import astype, constant_array, promoted
from .lowering import Lowering, Pointwise
from .registry import (
    Attrs,
    BatchContext,
    Jvp,
    JvpContext,
    NotDifferentiable,
    Op,
    Sample,
    Tolerance,
    Types,
    Vjp,
    VjpContext,
    apply,
    infer_elementwise,
    register,
)
from .tensor import Tensor
from .weak import WeakNumber

STANDARD = "Python array API standard 2023.12, element-wise functions"
BOOLEAN = NotDifferentiable("the result is bool")


def types_text(types: Types) -> str:
    return ", ".join(str(t) for t in types)


def infer_numeric(types: Types, attrs: Attrs) -> Types:
    """Same dtype, numbers only, broadcast."""
    result = infer_elementwise(types)
    if result.dtype.kind == "b":
        raise DTypeError(f"expected numbers, got {types_text(types)}")
    return (result,)


def infer_floating(types: Types, attrs: Attrs) -> Types:
    """Same dtype, floating only, broadcast."""
    result = infer_elementwise(types)
    if not result.dtype.is_float:
        raise DTypeError(
            f"expected a floating dtype, got {types_text(types)}; "
            "convert with .astype(sg.float32) first"
        )
    return (result,)


def infer_predicate(types: Types, attrs: Attrs) -> Types:
    """Any one dtype, broadcast; the result is bool."""
    return (TensorType(bool_, infer_elementwise(types).shape),)


def elementwise(
    name: str, summary: str, reference: Callable[..., Any], vjp: Vjp | NotDifferentiable,
    samples: Callable[[], Iterable[Sample]], *,
    infer: Callable[[Types, Attrs], Types] = infer_floating, lower: Lowering | None = None,
    source: str = STANDARD, traits: tuple[str, ...] = (), tolerance: Tolerance | None = None,
) -> None:  # fmt: skip
    """Registers an element-wise operation; `lower` is by default the scalar operation `name`. The
    forward rule is the reverse one's, the batch rule is that of every such operation."""
    register(
        Op(
            name=name,
            summary=summary,
            infer=infer,
            reference=reference,
            vjp=vjp,
            jvp=diagonal_jvp(vjp),
            batch=batch_elementwise,
            lower=Pointwise() if lower is None else lower,
            samples=samples,
            source=source,
            traits=frozenset(("elementwise", *traits)),
            tolerance=Tolerance() if tolerance is None else tolerance,
        )
    )


def diagonal_jvp(vjp: Vjp | NotDifferentiable) -> Jvp | NotDifferentiable:
    """The forward rule of an element-wise operation, from its reverse rule.

    By each operand its Jacobian is diagonal (each result depends on the elements at its own place),
    hence its own transpose: J t is what the reverse rule gives for t in the cotangent's place. The
    tangents of several operands add up.
    """
    if isinstance(vjp, NotDifferentiable):
        return vjp

    def rule(c: JvpContext, tangents: Sequence[Any]) -> Any:
        total = None
        for i, t in enumerate(tangents):
            if t is None:
                continue
            needed = tuple(k == i for k in range(len(tangents)))
            term = vjp(VjpContext(c.operands, c.results, c.attrs, needed), t)[i]
            if term is not None:
                total = term if total is None else total + term
        return total

    return rule


def aligned(c: BatchContext) -> list[Tensor]:
    """The operands of an element-wise operation, so that they broadcast as they did one by one:
    batched ones get dims of 1 after the batch axis up to the result's rank."""
    from .shape import reshape

    rank = len(c.result_types[0].shape)
    found = []
    for v, batched, t in zip(c.operands, c.batched, c.types):
        missing = rank - len(t.shape)
        if batched and missing:
            v = reshape(v, (v.shape[0], *(1,) * missing, *v.shape[1:]))
        found.append(v)
    return found


def batch_elementwise(c: BatchContext) -> Any:
    """An element-wise operation on batches is itself, on aligned operands."""
    return apply(c.node.op, *aligned(c), **c.attrs)


def floating(*values: Any) -> tuple[Tensor, ...]:
    """Operands of one dtype, as `promoted`; Python ints alone become float32."""
    tensors = promoted(*values)
    bare = all(type(v) in (bool, int) or isinstance(v, WeakNumber) for v in values)
    if not tensors[0].dtype.is_float and bare:
        return tuple(astype(t, "float32") for t in tensors)
    return tensors


def zeros_as(v: Any) -> Tensor:
    """Zeros of the type of `v`, a value or a type itself: the gradient of what is constant almost
    everywhere."""
    from .shape import broadcast_to

    return broadcast_to(constant_array(np.zeros((), v.dtype.numpy)), v.shape)


def vjp_zero(c: Any, ct: Tensor) -> tuple[Tensor, ...]:
    """For steps (rounding, sign): their derivative is 0 almost everywhere. As in PyTorch the path
    is not cut, so a loss that passes through one has a gradient, of zeros."""
    return tuple(zeros_as(ct) for _ in c.operands)
