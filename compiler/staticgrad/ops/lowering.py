"""How an op becomes kernels: the values that the `lower` field of a record can take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from staticgrad.ir.dim import DimLike
from staticgrad.ir.types import TensorType
from staticgrad.kernels.ir import Expr

Attrs = Mapping[str, Any]
Indices = tuple[DimLike, ...]


@dataclass(frozen=True)
class Leaf:
    """Inputs, state, constants: nothing to compute."""


@dataclass(frozen=True)
class Pointwise:
    """Each result element from the operands' elements at the same (broadcast) place.

    Without `emit`, a scalar operation of the op's own name and the result's dtype; with it,
    `emit(args, attrs, result dtype) -> Expr`. Attributes of ops without `emit` must not matter.
    """

    emit: Callable[[Sequence[Expr], Attrs, Any], Expr] | None = None


@dataclass(frozen=True)
class Generate:
    """Each result element from its own index alone: `emit(indices, attrs, result type, args)`.

    `args` are the 0-d or whole-array operands' loads by a function `load(operand, index)`.
    """

    emit: Callable[..., Expr]


@dataclass(frozen=True)
class Reduction:
    """Over `attrs["axes"]` (a sorted tuple of non-negative ints), dims kept as 1 if
    `attrs["keepdims"]`. `kind`: sum, prod, max, min, any, all."""

    kind: str


@dataclass(frozen=True)
class View:
    """No arithmetic: where element `index` of the result is found in the operand.

    `index(indices of the result, attrs, operand type, result type) -> indices of the operand`, each
    a polynomial that is affine in the given ones; None where no such map exists (a reshape that
    merges dims), which makes the compiler store the operand densely and read it linearly.
    """

    index: Callable[[Indices, Attrs, TensorType, TensorType], Indices | None]


@dataclass(frozen=True)
class Expand:
    """A formula in other ops: `build(operands, attrs) -> result tensor(s)`, applied by the pass
    `expand` unless a kernel of its own is chosen."""

    build: Callable[[tuple[Any, ...], Attrs], Any]


@dataclass(frozen=True)
class Product:
    """A generated product with blocked kernels of its own, whose element-wise consumers can ride in
    its epilogue. `kind`: matmul, conv, conv_grad_input, conv_grad_weight."""

    kind: str


@dataclass(frozen=True)
class Custom:
    """A kernel of its own: `emit(k)`, with `k` a `kernels.builder.KernelBuilder` that has the
    node's operands, results and attributes. One that calls shared functions says how many flops
    they do, `flops(operand types, attrs)`, and in which of its outermost loops; one that touches a
    part of its operands how many bytes, `moved(operand types, result types, attrs)`: how work is
    shared depends on it."""

    emit: Callable[[Any], None]
    flops: Callable[[tuple[TensorType, ...], Attrs], DimLike] | None = None
    flops_at: int = 0
    moved: Callable[[tuple[TensorType, ...], tuple[TensorType, ...], Attrs], DimLike] | None = None


@dataclass(frozen=True)
class Control:
    """Closed sub-graphs that the program repeats or chooses among. `kind`: scan, while, branch."""

    kind: str


Lowering = Leaf | Pointwise | Generate | Reduction | View | Expand | Product | Custom | Control
