"""Program -> manifest: what the runtime must know to run the object code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from staticgrad_runtime.artifact import (
    BufferSpec,
    ConstantSpec,
    ConstraintSpec,
    CostSpec,
    InputSpec,
    Manifest,
    MessageSpec,
    OutputSpec,
    PackSpec,
    StateSpec,
)

from staticgrad.codegen.sharing import has_open_loop, lifetimes, share, total_cost
from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim, DimLike, substitute, symbols, to_json
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import locs_text
from staticgrad.kernels.program import Program, ProgramBuffer
from staticgrad.ops.failures import with_names

OPEN_LOOP_NS = 1_000_000


def build_manifest(
    program: Program, graph: Graph, target: Target, called: list[str], report: Mapping[str, Any]
) -> tuple[Manifest, list[bytes]]:
    """The manifest and the constants' bytes."""
    own = {new: Dim.symbol(old) for new, old in program.names.items()}

    def size(d: DimLike) -> Any:
        return to_json(substitute(d, own) if own else d)

    blobs: list[bytes] = []
    constants = []
    for buffer, array in program.constants.items():
        constants.append(ConstantSpec(buffer, str(array.dtype), list(array.shape), len(blobs)))
        blobs.append(np.ascontiguousarray(array).tobytes())
    sharing = share(program)
    shared = [s for s, is_shared in zip(program.steps, sharing.shared) if is_shared]
    work = [(s.flops + s.riding_flops) * s.times for s in program.steps]
    moved = _total(s.bytes * s.times for s in program.steps)
    manifest = Manifest(
        name="program",
        triple=target.triple,
        cpu=target.cpu,
        features=target.features,
        dims=[program.names.get(n, n) for n in program.dims],
        inputs=[
            InputSpec(v.node.attrs["name"], str(v.dtype), [size(d) for d in v.shape], b,
                      locs_text(graph.locs[v.node]))
            for v, b in zip(graph.inputs, program.inputs)
        ],
        outputs=[
            OutputSpec(f"out{i}", str(v.dtype), [size(d) for d in v.shape], b,
                       locs_text(graph.locs[v.node]))
            for i, (v, b) in enumerate(zip(graph.outputs, program.outputs))
        ],
        single=graph.single,
        state=[
            StateSpec(v.node.attrs["id"], v.node.attrs["name"] or "", str(v.dtype),
                      [int(d) for d in v.shape], program.state[v.node.attrs["id"]],
                      program.state[v.node.attrs["id"]] in program.written)
            for v in graph.state
        ],
        constants=constants,
        packs=[
            PackSpec(p.buffer, p.state, size(p.rows), list(p.useful)) for p in program.packs
        ],
        buffers=[
            # A temporary that no step uses any more (a new value computed in place) has no size.
            BufferSpec("temp" if b.kind == "slice" else b.kind, size(_planned_bytes(b, first)),
                       max(first, 0), max(last, 0), per_thread=b.per_thread)
            for b, (first, last) in zip(program.buffers, lifetimes(program, sharing))
        ],
        constraints=[
            ConstraintSpec(size(c.left), size(c.right),
                           f"{c.message} (at {locs_text(c.locs)})" if c.locs else c.message)
            for c in graph.constraints
            if set(symbols(c.left)) | set(symbols(c.right)) <= set(program.dims)
        ],
        messages={
            code: MessageSpec(with_names(text, own), at)
            for code, (text, at) in program.messages.items()
        },
        cost=CostSpec(size(_total(work)), size(moved), size(_ns(program)),
                      size(total_cost(shared).ns), size(sharing.barriers)),
        kernels=[
            {"name": s.kernel.name, "symbol": name, "step": i, "flops": size(flops),
             "bytes": size(s.bytes * s.times), "times": size(s.times),
             "nodes": list(s.nodes), "locations": locs_text(s.locs)}
            for i, (s, name, flops) in enumerate(zip(program.steps, called, work))
        ],
        report=dict(report),
    )  # fmt: skip
    return manifest, blobs


def _ns(program: Program) -> DimLike:
    """The estimated time of a run. A loop of unknown length counts as long: the GIL is released."""
    ns = total_cost(program.steps).ns
    return ns + OPEN_LOOP_NS if has_open_loop(program.items) else ns


def _planned_bytes(b: ProgramBuffer, first: int) -> DimLike:
    """What the plan must find room for: nothing for a temporary that no step uses, nor for a part
    of another buffer."""
    if b.kind == "slice" or (b.kind == "temp" and first < 0):
        return 0
    return b.size_bytes


def _total(dims: Any) -> DimLike:
    total: DimLike = 0
    for d in dims:
        total = total + d
    return total
