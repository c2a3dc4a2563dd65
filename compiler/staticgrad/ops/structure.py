"""The record of `fused`: a node that holds a closed sub-graph and is compiled as one kernel."""

from __future__ import annotations

from typing import Any

from staticgrad.ir.graph import Graph
from staticgrad.ir.types import TensorType

from .lowering import Leaf
from .registry import Attrs, NotBatchable, NotDifferentiable, Op, Types, register


def _infer_fused(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    body: Graph = attrs["body"]
    return tuple(v.type for v in body.outputs)


def _reference_fused(*operands: Any, body: Graph, dims: Any, **attrs: Any) -> tuple[Any, ...]:
    from .interpret import run_graph

    return tuple(run_graph(body, operands, dims=dims)[0])


register(
    Op(
        name="fused",
        summary="a sub-graph that is compiled as one kernel",
        infer=_infer_fused,
        reference=_reference_fused,
        vjp=NotDifferentiable("fusion comes after differentiation"),
        jvp=NotDifferentiable("fusion comes after differentiation"),
        batch=NotBatchable("fusion comes after batching"),
        lower=Leaf(),
        samples=lambda: [],
        source="this project",
    )
)
