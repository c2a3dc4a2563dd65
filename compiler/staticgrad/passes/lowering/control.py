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

A carry whose old values are stacked, as reverse mode wants them, needs no buffer beside the stack:
it lies in the stack, one part further on in each iteration, and the stack has one part more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

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


def _carries(lowerer: Lowerer, node: Node, which: Iterable[int]) -> list[int]:
    """The buffers of the carries, with their first values."""
    buffers = []
    for i in which:
        first, result = node.operands[i], node.results[i]
        buffer = lowerer.result_buffer(result)
        lowerer.copy(first, buffer, holds=False)
        lowerer.stored[result] = buffer
        buffers.append(buffer)
    return buffers


def _number(lowerer: Lowerer) -> int:
    lowerer.regions += 1
    return lowerer.regions


class _Carry(NamedTuple):
    """Where a scan's carry lies in an iteration: what it is before and after, one buffer or parts
    of a stack. `stacks` are the scan's results that lie in that stack."""

    before: int
    after: int
    stacks: tuple[int, ...] = ()


def _scan(lowerer: Lowerer, node: Node) -> None:
    body: Graph = node.attrs["body"]
    nc, nx, length = node.attrs["carries"], node.attrs["xs"], node.attrs["length"]
    number = _number(lowerer)
    symbol = _symbol(lowerer, number)
    carries = [_place_carry(lowerer, node, i, symbol) for i in range(nc)]
    lying = {j for c in carries for j in c.stacks}
    stacks = {
        j: lowerer.result_buffer(node.results[j])
        for j in range(nc, len(node.results)) if j not in lying
    }  # fmt: skip
    scope = _open(lowerer, body, number, length)
    index, *rest = body.inputs
    scope.indices[index] = symbol
    scope.stored.update((v, c.before) for v, c in zip(rest[:nc], carries))
    scope.slices.update(
        (v, (x, symbol)) for v, x in zip(rest[nc : nc + nx], node.operands[nc : nc + nx])
    )
    scope.aliases.update(zip(rest[nc + nx :], node.operands[nc + nx :]))
    scope.updated.update(body.outputs[:nc])
    for v, c in zip(body.outputs, carries):
        if c.stacks:
            lowerer.plan(v, c.after)
    places = {j: lowerer.slice_of(b, body.outputs[j], symbol) for j, b in stacks.items()}
    for j, place in places.items():
        lowerer.plan(body.outputs[j], place)
    lowerer.lower_nodes()
    places |= {i: c.after for i, c in enumerate(carries) if c.stacks}
    for j, place in sorted(places.items()):
        if lowerer.held(body.outputs[j]) != place:
            lowerer.copy(body.outputs[j], place)
    single = [(v, c.after) for v, c in zip(body.outputs, carries) if not c.stacks]
    commit = _move_carries(lowerer, [v for v, _ in single], [place for _, place in single])
    _close(lowerer)
    if scope.items:
        lowerer.scope.items.append(
            Repeat(
                str(symbol), number, tuple(scope.items), commit, length, node.attrs["reverse"],
                locs=lowerer.graph.locs[node],
            )
        )  # fmt: skip


def _place_carry(lowerer: Lowerer, node: Node, at: int, symbol: Dim) -> _Carry:
    """Gives a scan's carry its place, with its first value, and its results theirs."""
    body: Graph = node.attrs["body"]
    nc, length = node.attrs["carries"], node.attrs["length"]
    first, old, new = node.operands[at], body.inputs[1 + at], body.outputs[at]
    planned = lowerer.scope.planned
    given = [j for j in range(nc, len(body.outputs)) if node.results[j] not in planned]
    before = [j for j in given if body.outputs[j] is old]
    if not before:
        (buffer,) = _carries(lowerer, node, [at])
        return _Carry(buffer, buffer)
    after = [j for j in given if body.outputs[j] is new and new is not old]
    size = first.type.size
    whole = lowerer.scratch(first.dtype, size * (length + 1))
    # The values before all iterations are the first parts, counted down the last ones; those after
    # them are one part further.
    reverse = int(node.attrs["reverse"])
    for found, part in ((before, reverse), (after, 1 - reverse)):
        for j in found:
            place = lowerer.slice_of(whole, first, part)
            lowerer.program.buffers[place].size = size * length
            lowerer.stored[node.results[j]] = place
    lowerer.copy(first, lowerer.slice_of(whole, first, length * reverse), holds=False)
    lowerer.stored[node.results[at]] = lowerer.slice_of(whole, first, length * (1 - reverse))
    return _Carry(
        lowerer.slice_of(whole, first, symbol + reverse),
        lowerer.slice_of(whole, first, symbol + (1 - reverse)),
        (*before, *after),
    )


def _while(lowerer: Lowerer, node: Node) -> None:
    body: Graph = node.attrs["body"]
    condition: Graph = node.attrs["condition"]
    nc, tested = node.attrs["carries"], node.attrs["condition_captures"]
    carries = _carries(lowerer, node, range(nc))
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
    if lowerer.held(condition.outputs[0]) != predicate:
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
        source = lowerer.held(v)
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
            if lowerer.held(v) != buffer:
                lowerer.copy(v, buffer)
        _close(lowerer)
        branches.append(tuple(scope.items))
    if any(branches):
        lowerer.scope.items.append(Choose(index, number, tuple(branches), lowerer.graph.locs[node]))
