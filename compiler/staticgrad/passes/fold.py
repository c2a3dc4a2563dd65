"""fold: what depends on constants alone -> a constant.

before -> after

    %1 = constant([[1, 2], [3, 4]])            %3 = constant([[2, 6], [4, 8]])
    %2 = permute_dims(%1){axes=(1, 0)}
    %3 = multiply(%2, 2.0)

Two ways: ops whose bits IEEE 754 or integer arithmetic fixes are done here and now by NumPy, where
the result is no larger than the constants that it comes from. For anything else the generated
kernels are run (`evaluate`), since NumPy's bits may be others; that costs a compilation, so it is
done only for work that takes longer than `LEAST_WORK` and gives at most `MOST_BYTES`. Never folded:
random draws, ops that can fail, state, and scalars, which canonicalisation does and fusion hides.

Preserving: the constant is what the program would have computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.cost import COST
from staticgrad.ops import registry
from staticgrad.ops.convert import constant_array
from staticgrad.ops.lowering import Custom, Leaf, Product
from staticgrad.rewrite.driver import rewrite

Evaluate = Callable[[Graph], Sequence[np.ndarray[Any, Any]]]

MOST_BYTES = 64 * 1024

# In vector instructions times elements. A table of sines of 510,000 takes 9 us a call more
# than reading it (measured: float32, 16 lanes); compiling it takes 49 ms, won back in 5,000 calls.
LEAST_WORK = 500_000

# Ops that give the same bits wherever they run: correctly rounded, or moving elements only.
EXACT = frozenset((
    "abs", "add", "astype", "bitwise_and", "bitwise_invert", "bitwise_or", "bitwise_xor", "ceil",
    "concat", "diagonal", "divide", "equal", "floor", "greater", "greater_equal", "isfinite",
    "isinf", "isnan", "less", "less_equal", "logical_and", "logical_not", "logical_or",
    "logical_xor", "maximum", "minimum", "multiply", "negative", "not_equal", "pad", "permute_dims",
    "reciprocal", "reshape", "slice", "sqrt", "square", "subtract", "trunc", "where",
))  # fmt: skip


def fold(graph: Graph, evaluate: Evaluate | None = None) -> Graph:
    found = any(_of_constants(n) or subgraphs(n) for n in graph.nodes)
    folded = rewrite(graph, _fold_exact) if found else graph
    return folded if evaluate is None else _fold_heavy(folded, evaluate)


def _of_constants(node: Node) -> bool:
    return bool(node.operands) and all(v.node.op == "constant" for v in node.operands)


def _fold_exact(node: Node) -> Sequence[Value] | None:
    """permute_dims(constant) -> constant"""
    if node.op not in EXACT or not _of_constants(node):
        return None
    arrays = [v.node.payload for v in node.operands]
    size = _bytes(node)
    if size is None or size > min(MOST_BYTES, sum(a.nbytes for a in arrays)):
        return None
    with np.errstate(all="ignore"):
        result = np.asarray(registry.get(node.op).reference(*arrays, **node.attrs))
    if result.dtype.kind == "f" and np.isnan(result).any():
        return None  # the sign of a NaN is the hardware's
    return [constant_array(result)]


def _bytes(node: Node) -> int | None:
    """The size of the node's only result; None where it is not known, or there are several."""
    if len(node.types) != 1:
        return None
    size = node.types[0].size_bytes
    return size if isinstance(size, int) else None


# --- by generated kernels -------------------------------------------------------------------------


def _fold_heavy(graph: Graph, evaluate: Evaluate) -> Graph:
    """Regions that read constants and indices only, if they are much work."""
    work: dict[Node, int] = {}  # of the nodes that could be folded, with all that they read
    for node in graph.nodes:
        if _can_fold(node) and all(v.node in work for v in node.operands):
            below = {v.node for v in node.operands}
            work[node] = _own_work(node) + sum(work[n] for n in below)
    if not any(w >= LEAST_WORK for w in work.values()):
        return graph
    uses, roots = graph.uses(), set(graph.roots)
    chosen = [
        n.results[0] for n, w in work.items()
        if w >= LEAST_WORK and (size := _bytes(n)) is not None and size <= MOST_BYTES
        and (n.results[0] in roots or any(u not in work for u in uses.get(n.results[0], ())))
    ]  # fmt: skip
    if not chosen:
        return graph
    arrays = evaluate(Graph([], chosen))
    found = {
        v.node: constant_array(np.ascontiguousarray(a).reshape(a.shape))
        for v, a in zip(chosen, arrays, strict=True)
    }
    return rewrite(graph, lambda node: [found[node]] if node in found else None)


def _can_fold(node: Node) -> bool:
    record = registry.get(node.op)
    if node.op == "constant":
        return True
    if isinstance(record.lower, Leaf) or subgraphs(node) or node.payload is not None:
        return False
    if record.traits & {"random", "can_fail"}:
        return False
    return not any(isinstance(d, Dim) for t in node.types for d in t.shape) and not any(
        isinstance(a, Dim) for a in node.attrs.values()
    )


def _own_work(node: Node) -> int:
    """Instructions on one element, times elements."""
    if node.op == "constant":
        return 0
    size = int(np.prod([int(d) for t in node.types for d in t.shape], dtype=np.int64))
    read = max((int(v.type.size) for v in node.operands), default=0)
    lower = registry.get(node.op).lower
    if isinstance(lower, Product):
        return size * int(node.operands[0].shape[-1])
    return max(size, read) * (32 if isinstance(lower, Custom) else COST.get(node.op, 1))


__all__ = ["fold"]
