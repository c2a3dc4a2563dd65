"""What the families of element-wise operations share: type rules, registration, zero gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from staticgrad.ir.dtype import bool_
from staticgrad.ir.errors import DTypeError
from staticgrad.ir.types import TensorType

from .convert import astype, constant_array, promoted
from .lowering import Lowering, Pointwise
from .registry import (
    Attrs,
    NotDifferentiable,
    Op,
    Sample,
    Tolerance,
    Types,
    Vjp,
    infer_elementwise,
    register,
)
from .tensor import Tensor

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
    """Registers an element-wise operation; `lower` is by default the scalar operation `name`."""
    register(
        Op(
            name=name,
            summary=summary,
            infer=infer,
            reference=reference,
            vjp=vjp,
            lower=Pointwise() if lower is None else lower,
            samples=samples,
            source=source,
            traits=frozenset(("elementwise", *traits)),
            tolerance=Tolerance() if tolerance is None else tolerance,
        )
    )


def floating(*values: Any) -> tuple[Tensor, ...]:
    """Operands of one dtype, as `promoted`; Python ints alone become float32."""
    tensors = promoted(*values)
    if not tensors[0].dtype.is_float and all(type(v) in (bool, int) for v in values):
        return tuple(astype(t, "float32") for t in tensors)
    return tensors


def zeros_as(v: Any) -> Tensor:
    """Zeros of the type of `v`: the gradient of what is constant almost everywhere."""
    from .shape import broadcast_to

    return broadcast_to(constant_array(np.zeros((), v.dtype.numpy)), v.shape)


def vjp_zero(c: Any, ct: Tensor) -> tuple[Tensor, ...]:
    """For steps (rounding, sign): their derivative is 0 almost everywhere. As in PyTorch the path
    is not cut, so a loss that passes through one has a gradient, of zeros."""
    return tuple(zeros_as(ct) for _ in c.operands)
