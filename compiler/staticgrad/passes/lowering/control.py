"""Nodes with sub-graphs -> regions of the program.

before -> after

    %3 = scan(%x0, %xs){ body }       step 0: copy(x0 -> c)
                                      repeat _i0 in 0..T
                                        step 1: body(c, xs[_i0] -> t, ys[_i0])
                                        step 2: copy(t -> c)

A carry has one buffer: its first value is copied there, the body reads it and computes the new one,
and the copies at the end of an iteration are dropped by `schedule` where the body can compute in
place. What is gone along or stacked is read and written where it lies, in slices that move with the
iteration. What a body reads from outside is computed before the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from staticgrad.ir.dim import Dim, DimLike
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.program import Choose, Repeat
from staticgrad.ops.control_rules import branches_of

if TYPE_CHECKING:
    from .lower import Lowerer, Scope


def lower_control(lowerer: Lowerer, node: Node, kind: str) -> None:
    """Adds the region of a node, with the steps around it."""
    {"scan": _scan, "while": _while, "branch": _branch}[kind](lowerer, node)


def _symbol(lowerer: Lowerer, number: int) -> Dim:
    """A name for the number of an iteration that no size of the program has."""
    name = f"_i{number}"
    while name in lowerer.program.dims:
        name = "_" + name
    return Dim.symbol(name)


def _open(lowerer: Lowerer, graph: Graph, number: int, times: DimLike) -> Scope:
    """Goes into a new scope; what the lowerer adds belongs to it."""
    from .lower import Scope

    outer = lowerer.scope
    lowerer.scope = Scope(graph, outer, number, outer.times * times)
    lowerer.place_constants()
    return lowerer.scope


def _close(lowerer: Lowerer) -> None:
    outer = lowerer.scope.outer
    assert outer is not None
    lowerer.scope = outer


def _carries(lowerer: Lowerer, node: Node, count: int) -> list[int]:
    """The buffers of the carries, with their first values."""
    buffers = []
    for first, result in zip(node.operands[:count], node.results):
        buffer = lowerer.result_buffer(result)
        lowerer.copy(first, buffer, holds=False)
        lowerer.stored[result] = buffer
        buffers.append(buffer)
    return buffers


def _number(lowerer: Lowerer) -> int:
    lowerer.regions += 1
    return lowerer.regions


def _scan(lowerer: Lowerer, node: Node) -> None:
    body: Graph = node.attrs["body"]
    nc, nx, length = node.attrs["carries"], node.attrs["xs"], node.attrs["length"]
    carries = _carries(lowerer, node, nc)
    stacks = [lowerer.result_buffer(r) for r in node.results[nc:]]
    number = _number(lowerer)
    symbol = _symbol(lowerer, number)
    scope = _open(lowerer, body, number, length)
    index, *rest = body.inputs
    scope.indices[index] = symbol
    scope.stored.update(zip(rest[:nc], carries))
    scope.slices.update(
        (v, (x, symbol)) for v, x in zip(rest[nc : nc + nx], node.operands[nc : nc + nx])
    )
    scope.aliases.update(zip(rest[nc + nx :], node.operands[nc + nx :]))
    scope.updated.update(body.outputs[:nc])
    places = [lowerer.slice_of(b, v, symbol) for b, v in zip(stacks, body.outputs[nc:])]
    for v, place in zip(body.outputs[nc:], places):
        lowerer.plan(v, place)
    lowerer.lower_nodes()
    for v, place in zip(body.outputs[nc:], places):
        if scope.stored.get(v) != place:
            lowerer.copy(v, place)
    commit = _move_carries(lowerer, body.outputs[:nc], carries)
    _close(lowerer)
    if scope.items:
        lowerer.scope.items.append(
            Repeat(
                str(symbol), number, tuple(scope.items), commit, length, node.attrs["reverse"],
                locs=lowerer.graph.locs[node],
            )
        )  # fmt: skip


def _while(lowerer: Lowerer, node: Node) -> None:
    body: Graph = node.attrs["body"]
    condition: Graph = node.attrs["condition"]
    nc, tested = node.attrs["carries"], node.attrs["condition_captures"]
    carries = _carries(lowerer, node, nc)
    number = _number(lowerer)
    symbol = _symbol(lowerer, number)
    predicate = lowerer.scratch(condition.outputs[0].dtype, 1)

    def fill(scope: Scope, graph: Graph, captured: Sequence[Value]) -> None:
        index, *rest = graph.inputs
        scope.indices[index] = symbol
        scope.stored.update(zip(rest[:nc], carries))
        scope.aliases.update(zip(rest[nc:], captured))

    test = _open(lowerer, condition, number, 1)
    fill(test, condition, node.operands[nc : nc + tested])
    lowerer.plan(condition.outputs[0], predicate)
    lowerer.lower_nodes()
    if test.stored.get(condition.outputs[0]) != predicate:
        lowerer.copy(condition.outputs[0], predicate)
    _close(lowerer)
    scope = _open(lowerer, body, number, 1)
    fill(scope, body, node.operands[nc + tested :])
    scope.updated.update(body.outputs)
    lowerer.lower_nodes()
    commit = _move_carries(lowerer, body.outputs, carries)
    _close(lowerer)
    lowerer.scope.items.append(
        Repeat(
            str(symbol), number, tuple(scope.items), commit, test=tuple(test.items),
            predicate=predicate, locs=lowerer.graph.locs[node],
        )
    )  # fmt: skip


def _move_carries(lowerer: Lowerer, values: Sequence[Value], carries: Sequence[int]) -> int:
    """Copies every new value to its carry; all of them were computed from the old ones. Returns
    the item from which on carries are written."""
    scope, program = lowerer.scope, lowerer.program
    sources: list[tuple[Value, int, int]] = []
    for v, carry in zip(values, carries):
        source = scope.stored.get(v)
        if source == carry:
            continue
        own = source is not None and program.buffers[source].region == scope.region
        if source is None or not own:
            # A view, or another carry: it would change under the copies that come first.
            source = lowerer.scratch(v.dtype, v.type.size)
            lowerer.copy(v, source)
        sources.append((v, source, carry))
    commit = len(scope.items)
    for v, source, carry in sources:
        lowerer.copy(v, carry, source)
    return commit


def _branch(lowerer: Lowerer, node: Node) -> None:
    index = lowerer.dense(node.operands[0])
    results = [lowerer.result_buffer(r) for r in node.results]
    branches = []
    number = _number(lowerer)
    for graph in branches_of(node.attrs):
        scope = _open(lowerer, graph, number, 1)
        scope.aliases.update(zip(graph.inputs, node.operands[1:]))
        for v, buffer in zip(graph.outputs, results):
            lowerer.plan(v, buffer)
        lowerer.lower_nodes()
        for v, buffer in zip(graph.outputs, results):
            if scope.stored.get(v) != buffer:
                lowerer.copy(v, buffer)
        _close(lowerer)
        branches.append(tuple(scope.items))
    if any(branches):
        lowerer.scope.items.append(Choose(index, number, tuple(branches), lowerer.graph.locs[node]))
