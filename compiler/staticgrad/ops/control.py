"""Control flow: nodes that hold closed sub-graphs, which the compiled program repeats or chooses.

`scan` repeats its body a known number of times, `while_loop` as long as its condition holds, `cond`
and `switch` run one of several graphs; `checkpoint` runs one graph, whose values are computed again
when a gradient wants them. What a body reads from outside are operands of the node (`closing`).

The rules that differentiate these nodes stand in `control_rules`, those that batch them in
`control_batching`; they are given the functions of `autodiff` through their contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, substitute
from staticgrad.ir.dtype import bool_, int64
from staticgrad.ir.errors import DTypeError, GraphError, ShapeError
from staticgrad.ir.graph import Graph
from staticgrad.ir.types import TensorType

from . import control_batching as batching
from . import control_rules as rules
from . import control_samples as samples
from .lowering import Control, Expand, View
from .registry import Attrs, Op, Sample, Types, register, require_equal

_SOURCE = "this project; the semantics of jax.lax"
INDEX = TensorType(int64, ())


def same_type(a: TensorType, b: TensorType, what: str) -> None:
    """Asks that two types be equal, at bind time where that can't be known before."""
    if a.dtype != b.dtype or a.ndim != b.ndim:
        raise DTypeError(f"{what}: {a} and {b} differ")
    for x, y in zip(a.shape, b.shape):
        require_equal(x, y, f"{what}: {a} and {b} differ")


def _inputs(graph: Graph, types: Sequence[TensorType], what: str) -> None:
    """Checks that a closed graph takes operands of these types; its own questions of sizes are
    asked with the node's."""
    if len(graph.inputs) != len(types):
        raise GraphError(f"{what} has {len(graph.inputs)} inputs, expected {len(types)}")
    for i, (v, t) in enumerate(zip(graph.inputs, types)):
        same_type(v.type, t, f"input {i} of {what}")
    for c in graph.constraints:
        require_equal(c.left, c.right, c.message)


# --- scan -----------------------------------------------------------------------------------------


def _infer_scan(types: Types, attrs: Attrs) -> Types:
    body, length, nc, nx = attrs["body"], attrs["length"], attrs["carries"], attrs["xs"]
    carries, xs, captured = types[:nc], types[nc : nc + nx], types[nc + nx :]
    slices = []
    for x in xs:
        if not x.ndim:
            raise ShapeError(f"scan: expected arrays with a first axis to go along, got {x}")
        require_equal(x.shape[0], length, "scan: the arrays that are gone along differ in length")
        slices.append(TensorType(x.dtype, x.shape[1:]))
    _inputs(body, (INDEX, *carries, *slices, *captured), "the body")
    for i, (v, t) in enumerate(zip(body.outputs[:nc], carries, strict=True)):
        same_type(v.type, t, f"carry {i}")
    stacked = (TensorType(v.dtype, (length, *v.shape)) for v in body.outputs[nc:])
    return (*carries, *stacked)


def _reference_scan(
    *operands: Any, body: Graph, length: int, carries: int, xs: int, reverse: bool, remat: bool,
    dims: Any,
) -> tuple[Any, ...]:  # fmt: skip
    from .interpret import run_graph

    state = list(operands[:carries])
    along, captured = operands[carries : carries + xs], operands[carries + xs :]
    rows: dict[int, list[Any]] = {}
    for t in range(length - 1, -1, -1) if reverse else range(length):
        inputs = [np.int64(t), *state, *(x[t] for x in along), *captured]
        found, _ = run_graph(body, [np.asarray(a) for a in inputs], dims=dims)
        state, rows[t] = found[:carries], found[carries:]
    stacked = []
    for k, v in enumerate(body.outputs[carries:]):
        shape = tuple(substitute(d, dims) for d in v.shape)
        result = np.empty((length, *shape), v.dtype.numpy)
        for t, row in rows.items():
            result[t] = row[k]
        stacked.append(result)
    return (*state, *stacked)


register(
    Op(
        name="scan",
        summary="a body repeated `length` times: (index, carry, x[index]) -> (carry, y[index])",
        infer=_infer_scan,
        reference=_reference_scan,
        vjp=rules.vjp_scan,
        jvp=rules.jvp_scan,
        batch=batching.batch_scan,
        lower=Control("scan"),
        samples=samples.scans,
        source=_SOURCE,
    )
)

# --- while ----------------------------------------------------------------------------------------


def _infer_while(types: Types, attrs: Attrs) -> Types:
    condition, body, nc = attrs["condition"], attrs["body"], attrs["carries"]
    split = attrs["condition_captures"]
    carries = types[:nc]
    _inputs(condition, (INDEX, *carries, *types[nc : nc + split]), "the condition")
    _inputs(body, (INDEX, *carries, *types[nc + split :]), "the body")
    (test,) = condition.outputs
    if test.dtype != bool_ or test.shape != ():
        raise DTypeError(f"while_loop: the condition must be a bool, got {test.type}")
    for i, (v, t) in enumerate(zip(body.outputs, carries, strict=True)):
        same_type(v.type, t, f"carry {i}")
    return carries


def _reference_while(
    *operands: Any, condition: Graph, body: Graph, carries: int, condition_captures: int, dims: Any
) -> tuple[Any, ...]:
    from .interpret import run_graph

    state = list(operands[:carries])
    tested = operands[carries : carries + condition_captures]
    captured = operands[carries + condition_captures :]
    index = 0
    while True:
        at = np.asarray(index, np.int64)
        if not run_graph(condition, [at, *state, *tested], dims=dims)[0][0]:
            return tuple(state)
        state = run_graph(body, [at, *state, *captured], dims=dims)[0]
        index += 1


register(
    Op(
        name="while_loop",
        summary="a body repeated while a condition holds: (index, carry) -> carry",
        infer=_infer_while,
        reference=_reference_while,
        vjp=rules.vjp_while,
        jvp=rules.jvp_while,
        batch=batching.batch_while,
        lower=Control("while"),
        samples=samples.whiles,
        source=_SOURCE,
    )
)

# --- cond, switch ---------------------------------------------------------------------------------


def _infer_branches(types: Types, attrs: Attrs) -> Types:
    branches = [g for g in attrs.values() if isinstance(g, Graph)]
    for g in branches:
        _inputs(g, types[1:], "a branch")
    first = branches[0]
    for g in branches[1:]:
        for a, b in zip(first.outputs, g.outputs, strict=True):
            same_type(a.type, b.type, "the branches' results")
    return tuple(v.type for v in first.outputs)


def _infer_cond(types: Types, attrs: Attrs) -> Types:
    if types[0].dtype != bool_ or types[0].shape != ():
        raise DTypeError(f"cond: the predicate must be a bool without axes, got {types[0]}")
    return _infer_branches(types, attrs)


def _infer_switch(types: Types, attrs: Attrs) -> Types:
    if types[0].dtype != int64 or types[0].shape != ():
        raise DTypeError(f"switch: the index must be an int64 without axes, got {types[0]}")
    return _infer_branches(types, attrs)


def _run(graph: Graph, operands: Sequence[Any], dims: Any) -> tuple[Any, ...]:
    from .interpret import run_graph

    return tuple(run_graph(graph, operands, dims=dims)[0])


def _reference_cond(predicate: Any, *operands: Any, dims: Any, **branches: Any) -> tuple[Any, ...]:
    return _run(branches["true" if predicate else "false"], operands, dims)


def _reference_switch(index: Any, *operands: Any, dims: Any, **branches: Any) -> tuple[Any, ...]:
    graphs = list(branches.values())
    return _run(graphs[min(max(int(index), 0), len(graphs) - 1)], operands, dims)


for _name, _infer, _reference, _samples, _summary in (
    ("cond", _infer_cond, _reference_cond, samples.conds,
     "one of two graphs, `true` or `false`"),
    ("switch", _infer_switch, _reference_switch, samples.switches,
     "the graph of an index, clamped to those given"),
):  # fmt: skip
    register(
        Op(
            name=_name,
            summary=_summary,
            infer=_infer,
            reference=_reference,
            vjp=rules.vjp_branches,
            jvp=rules.jvp_branches,
            batch=batching.batch_branches,
            lower=Control("branch"),
            samples=_samples,
            source=_SOURCE,
        )
    )

# --- checkpoint -----------------------------------------------------------------------------------


def _infer_checkpoint(types: Types, attrs: Attrs) -> Types:
    _inputs(attrs["body"], types, "the body")
    return tuple(v.type for v in attrs["body"].outputs)


def _reference_checkpoint(*operands: Any, body: Graph, dims: Any) -> tuple[Any, ...]:
    return _run(body, operands, dims)


def _inlined(operands: tuple[Any, ...], attrs: Attrs) -> Any:
    from .closing import inline

    return tuple(inline(attrs["body"], operands))


register(
    Op(
        name="checkpoint",
        summary="a graph whose values are computed again where a gradient wants them",
        infer=_infer_checkpoint,
        reference=_reference_checkpoint,
        vjp=rules.vjp_checkpoint,
        jvp=rules.jvp_checkpoint,
        batch=batching.batch_checkpoint,
        lower=Expand(_inlined),
        samples=samples.checkpoints,
        source="Griewank, Walther 2000, Revolve; jax.checkpoint",
    )
)


def _infer_recompute(types: Types, attrs: Attrs) -> Types:
    return (types[0],)


def _same_place(at: tuple[DimLike, ...], attrs: Attrs, source: Any, result: Any) -> Any:
    return at


def _samples_recompute() -> list[Sample]:
    x = np.arange(6.0).reshape(2, 3)
    return [Sample((x, np.ones(3)), {"region": 1})]


register(
    Op(
        name="recompute",
        summary="the first operand, for what is computed again once the others are known",
        infer=_infer_recompute,
        reference=lambda x, *others, region: x,
        vjp=lambda c, ct: (ct, *(None for _ in c.operands[1:])),
        jvp=lambda c, tangents: tangents[0],
        batch=batching.batch_recompute,
        lower=View(_same_place),
        samples=_samples_recompute,
        source="this project: a barrier to common subexpression elimination",
    )
)

__all__ = ["INDEX", "same_type"]
