"""Kernels that an op brings itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from staticgrad.codegen import gemm
from staticgrad.ir.dim import DimLike, Shape, dim_max
from staticgrad.ir.dtype import DType
from staticgrad.ir.node import Node
from staticgrad.kernels.builder import KernelBuilder
from staticgrad.kernels.ir import Buffer, Kernel, Let, Loop, Stmt
from staticgrad.kernels.rewrite import (
    IndexMapper,
    SizeParameters,
    buffer_names,
    loop_vars,
)
from staticgrad.ops import registry
from staticgrad.ops.lowering import Custom

if TYPE_CHECKING:
    from .lower import Lowerer


def lower_custom(lowerer: Lowerer, node: Node) -> None:
    """Adds the steps of an op with a kernel of its own: one for each of its outermost loops, so
    that each can be shared among threads."""
    record = registry.get(node.op)
    assert isinstance(record.lower, Custom)
    can_fail = "can_fail" in record.traits
    code = lowerer.failure_code(node) if can_fail else 0
    types = tuple(v.type for v in node.operands)

    def workspace_bytes(dtype: DType, products: Sequence[Shape]) -> DimLike:
        needed = (
            gemm.workspace_bytes(lowerer.target, str(dtype), (m, n, k), up_to=True)
            for m, n, k in products
        )
        return functools.reduce(dim_max, needed)

    k = KernelBuilder(types, node.types, node.attrs, code, workspace_bytes)
    record.lower.emit(k)
    kernel = k.finish(node.op, ())
    places = [lowerer.dense(v) for v in node.operands]
    places += [lowerer.result_buffer(v) for v in node.results]
    whole = any(isinstance(s, Let) for s in kernel.body)
    groups: list[tuple[Stmt, ...]] = [kernel.body] if whole else [(s,) for s in kernel.body]
    for b in kernel.buffers[len(places) :]:
        # What one step writes and another reads is shared; what one step alone uses is a thread's.
        steps = sum(b.name in buffer_names(body) for body in groups)
        places.append(lowerer.scratch(b.dtype, b.size, per_thread=steps == 1))
    flops = record.lower.flops(types, node.attrs) if record.lower.flops is not None else 0
    moved = record.lower.moved and record.lower.moved(types, node.types, node.attrs)
    for i, body in enumerate(groups):
        sizes = SizeParameters([*loop_vars(body), "begin", "end"])
        mapped = IndexMapper(sizes.index, sizes.index).body(body)
        name = node.op if len(groups) == 1 else f"{node.op}_{i}"
        # Every buffer that the op writes may be read again by a later part of it.
        buffers = tuple(
            b if b.mode == "in" else Buffer(b.name, b.dtype, "inout", 0) for b in kernel.buffers
        )
        part = Kernel(name, buffers, tuple(sizes.names), mapped)
        shared = [s for s in body if isinstance(s, Loop) and s.kind.startswith("parallel")]
        if len(shared) > 1 or (shared and not isinstance(body[0], Let) and len(body) > 1):
            raise AssertionError(f"{node.op}: one step with several parallel loops")
        extent: DimLike = shared[0].extent if shared else 1
        lowerer.add_step(
            part, tuple(places), tuple(sizes.values), extent, (node.op,),
            lowerer.graph.locs[node], flops=flops if i == record.lower.flops_at else 0,
            can_fail=can_fail, moved=moved,
        )  # fmt: skip
