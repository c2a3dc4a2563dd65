"""How nodes with sub-graphs are batched: one node for all rows, with batched bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staticgrad.ir.dtype import bool_
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Value
from staticgrad.ir.types import TensorType

from .closing import has_trait, placeholder, replaced
from .control_rules import Scan, While, branch_op, branches_of, closed, named_branches
from .elementwise import zeros_as
from .logical import logical_not
from .reduction import any as reduce_any
from .registry import BatchContext, make
from .selection import where
from .shape import broadcast_to, moveaxis, reshape
from .tensor import Tensor


def _batched_type(type: TensorType, size: Any) -> TensorType:
    return TensorType(type.dtype, (size, *type.shape))


def _with_rows(v: Any, is_batched: bool, size: Any, type: TensorType) -> Tensor:
    """`v` with the batch axis in front, repeated where it has none."""
    return v if is_batched else broadcast_to(v, (size, *type.shape))


def _as_batched(v: Value, is_batched: bool, size: Any) -> Any:
    """A placeholder for a body's input, with a batch axis if it is batched; else the input."""
    if not is_batched:
        return v
    return placeholder(v.node.attrs["name"], v.node.attrs["id"], _batched_type(v.type, size))


def _on(
    c: BatchContext, graph: Graph, inputs: Sequence[Any], flags: Sequence[bool]
) -> list[tuple[Tensor, bool]]:
    """The outputs of a graph on inputs of which some are batched."""
    pairs = list(zip(graph.inputs, inputs, flags, strict=True))
    plain = replaced(graph.outputs, {old: new for old, new, f in pairs if not f and old is not new})
    assert c.batch is not None
    found: list[tuple[Tensor, bool]] = c.batch(plain, {o: n for o, n, f in pairs if f}, c.size)
    return found


def _all_rows(
    values: Sequence[tuple[Any, bool]], wanted: Sequence[bool], like: Sequence[Value], size: Any
) -> list[Any]:
    """Each value with the batch axis where it is wanted."""
    return [
        _with_rows(v, f, size, t.type) if w else v for (v, f), w, t in zip(values, wanted, like)
    ]


def batch_scan(c: BatchContext) -> Any:
    """One scan of batched carries: whether a carry is batched is found by repetition."""
    s = Scan(c.operands, c.attrs)
    carried, others = list(c.batched[: s.nc]), list(c.batched[s.nc :])
    rest_in = (*s.x_in, *s.p_in)
    rest = [_as_batched(v, f, c.size) for v, f in zip(rest_in, others)]
    while True:
        state = [_as_batched(v, f, c.size) for v, f in zip(s.carry_in, carried)]
        found = _on(c, s.body, [s.index, *state, *rest], [False, *carried, *others])
        now = [a or b for a, (_, b) in zip(carried, found)]
        if now == carried:
            break
        carried = now
    body = closed(
        [s.index, *state, *rest],
        [*_all_rows(found, carried, s.carry_in, c.size), *(v for v, _ in found[s.nc :])],
    )
    init = _all_rows(list(zip(s.init, c.batched)), carried, s.carry_in, c.size)
    # Batched arrays come as [rows, length, ..]; the scan goes along the length.
    xs = [moveaxis(x, 0, 1) if f else x for x, f in zip(s.xs, others)]
    results = s.other(init, xs, s.captured, body.inputs, body.outputs)
    final = _all_rows(list(zip(results, carried)), [True] * s.nc, s.carry_in, c.size)
    stacked = [
        moveaxis(r, 1, 0) if f else _with_rows(r, False, c.size, t)
        for r, (_, f), t in zip(results[s.nc :], found[s.nc :], c.result_types[s.nc :])
    ]
    return [*final, *stacked]


def batch_while(c: BatchContext) -> Any:
    """Where the condition differs from row to row, the loop runs as long as it holds for any, and
    rows for which it does not keep their state."""
    w = While(c.operands, c.attrs)
    carried, p_flags = list(c.batched[: w.nc]), list(c.batched[w.nc + w.tested :])
    test_flags = list(c.batched[w.nc : w.nc + w.tested])
    test_index, *test_in = w.condition.inputs
    captured = [_as_batched(v, f, c.size) for v, f in zip(w.p_in, p_flags)]
    tested = [_as_batched(v, f, c.size) for v, f in zip(test_in[w.nc :], test_flags)]
    while True:
        state = [_as_batched(v, f, c.size) for v, f in zip(w.carry_in, carried)]
        found = _on(c, w.body, [w.index, *state, *captured], [False, *carried, *p_flags])
        flags = [False, *carried, *test_flags]
        ((test, per_row),) = _on(c, w.condition, [test_index, *state, *tested], flags)
        now = [a or b or per_row for a, (_, b) in zip(carried, found)]
        if now == carried:
            break
        carried = now
    outputs = _all_rows(found, carried, w.carry_in, c.size)
    condition = closed([test_index, *state, *tested], [reduce_any(test) if per_row else test])
    inputs = [w.index, *state, *captured]
    extra: Sequence[Any] = ()
    if per_row:
        # The body asks again which rows still run.
        ((running, _),) = _on(c, w.condition, [w.index, *state, *tested], flags)
        if _may_fail(w.body):
            given = [w.index, *state, *captured, running]
            found = _on(c, _guarded(w.body), given, [False, *carried, *p_flags, True])
            outputs = _all_rows(found, carried, w.carry_in, c.size)
        outputs = [
            where(reshape(running, (c.size, *(1 for _ in v.shape))), new, old)
            for new, old, v in zip(outputs, state, w.carry_in)
        ]
        inputs += tested
        extra = w.condition_captured
    init = _all_rows(list(zip(w.init, c.batched)), carried, w.carry_in, c.size)
    operands = (*init, *w.condition_captured, *w.captured, *extra)
    results = w.other(operands, w.nc, condition, closed(inputs, outputs))
    return _all_rows(list(zip(results, carried)), [True] * w.nc, w.carry_in, c.size)


def batch_branches(c: BatchContext) -> Any:
    """With a choice for each row all branches are computed, and each row takes its own."""
    graphs = branches_of(c.attrs)
    choice, *operands = c.operands
    flags = c.batched[1:]
    if not c.batched[0]:
        inner = [_rows_graph(c, g, flags) for g in graphs]
        return list(make(branch_op(c.attrs), c.operands, named_branches(inner, c.attrs)).results)
    results: list[Any] = []
    for k, g in enumerate(graphs):
        if _may_fail(g):
            here = _takes(choice, k, len(graphs))
            found = _on(c, _guarded(g), [*operands, here], [*flags, True])
        else:
            found = _on(c, g, operands, flags)
        rows = [_with_rows(v, f, c.size, t) for (v, f), t in zip(found, c.result_types)]
        if k == 0:
            results = rows
            continue
        chosen = choice if choice.dtype.kind == "b" else choice >= k
        results = [
            where(reshape(chosen, (c.size, *(1 for _ in t.shape))), new, old)
            for new, old, t in zip(rows, results, c.result_types)
        ]
    return results


def _takes(choice: Tensor, k: int, count: int) -> Tensor:
    """The rows that choose branch `k` of `count`."""
    if choice.dtype.kind == "b":
        return choice if k else logical_not(choice)
    if count == 1:
        return choice == choice
    if k in (0, count - 1):
        return choice >= k if k else choice <= k
    return choice == k


def _may_fail(graph: Graph) -> bool:
    return any(has_trait(n, "can_fail") for n in graph.nodes)


def _guarded(graph: Graph) -> Graph:
    """A graph with one more input, a bool: where that is false no index is out of range.

    A batch computes branches for rows that do not choose them, and goes on with rows whose loop has
    ended. What is then looked up with their indices is not used, but must not fail the step.
    """
    live = placeholder("live", len(graph.inputs), TensorType(bool_, ()))
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        operands, attrs = [new.get(v, v) for v in node.operands], node.attrs
        if node.op in ("gather", "scatter_add"):
            operands[1:] = [where(live, i, zeros_as(TensorType(i.dtype, ()))) for i in operands[1:]]
        elif node.op in _HOLDERS and has_trait(node, "can_fail"):
            attrs = {k: _guarded(a) if isinstance(a, Graph) else a for k, a in attrs.items()}
            if node.op == "while_loop":
                asked = attrs["carries"] + attrs["condition_captures"]
                operands.insert(asked, live)
                attrs["condition_captures"] += 1
            operands.append(live)
        elif all(a is b for a, b in zip(operands, node.operands)):
            continue
        copy = make(node.op, operands, attrs, payload=node.payload, locs=node.locs)
        new.update(zip(node.results, copy.results))
    return closed([*graph.inputs, live], [new.get(v, v) for v in graph.outputs])


_HOLDERS = ("scan", "while_loop", "cond", "switch", "checkpoint")


def _rows_graph(c: BatchContext, graph: Graph, flags: Sequence[bool]) -> Graph:
    """A graph with the batch axis on some inputs and on all outputs."""
    inputs = [_as_batched(v, f, c.size) for v, f in zip(graph.inputs, flags)]
    found = _on(c, graph, inputs, flags)
    return closed(inputs, [_with_rows(v, f, c.size, t) for (v, f), t in zip(found, c.result_types)])


def batch_checkpoint(c: BatchContext) -> Any:
    inner = _rows_graph(c, c.attrs["body"], c.batched)
    return list(make("checkpoint", c.operands, {"body": inner}).results)


def batch_recompute(c: BatchContext) -> Any:
    first, *others = c.operands
    again = make("recompute", (first, *others), c.attrs).results[0]
    return _with_rows(again, c.batched[0], c.size, c.types[0])


__all__ = ["batch_branches", "batch_checkpoint", "batch_recompute", "batch_scan", "batch_while"]
