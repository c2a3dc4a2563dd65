"""`check_nan`: a value handed on if no element is NaN; else the step fails before its commit."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import product
from staticgrad.ir.dtype import bool_, int64
from staticgrad.ir.errors import DTypeError, ExecutionError
from staticgrad.kernels.builder import KernelBuilder

from .failures import type_text
from .lowering import Custom
from .registry import Attrs, Op, Sample, Types, apply, register
from .samples import FLOATS, random_array
from .tensor import Tensor


def _infer(types: Types, attrs: Attrs) -> Types:
    (x,) = types
    if not x.dtype.is_float:
        raise DTypeError(f"expected a floating dtype, got {x}")
    return types


def _reference(x: Any) -> Any:
    if np.isnan(x).any():
        raise ExecutionError("check_nan: a NaN was computed")
    return x


def _emit(k: KernelBuilder) -> None:
    x, y = k.operands[0], k.results[0]
    size = product(x.shape)
    flat_x, flat_y = x.reshaped((size,)), y.reshaped((size,))
    found = k.let(
        k.reduce("any", (size,), lambda i: k.call("isnan", k.load(flat_x, (i,)), dtype=bool_),
                 vector=True)
    )  # fmt: skip
    k.check(k.call("logical_not", found), 0, k.literal(0, int64))
    with k.vector(size) as i:
        k.store(flat_y, (i,), k.load(flat_x, (i,)))


register(
    Op(
        name="check_nan",
        summary="x; fails the step where an element is NaN",
        infer=_infer,
        reference=_reference,
        vjp=lambda c, ct: (ct,),
        jvp=lambda c, tangents: tangents[0],
        # A NaN anywhere in the batch fails the step, as it does in any of the calls one by one.
        batch=lambda c: apply("check_nan", *c.operands),
        lower=Custom(_emit),
        samples=lambda: [
            Sample((random_array(shape, d, 1),)) for d in FLOATS for shape in ((), (0,), (5, 33))
        ],
        source="this project",
        traits=frozenset(("can_fail",)),
        failure=lambda node: f"check_nan: a NaN in {type_text(node.types[0])}",
    )
)


def check_nan(x: Tensor) -> Tensor:
    """`x` as it is; where an element is NaN, the step that computes it fails, changing nothing."""
    return apply("check_nan", x)
