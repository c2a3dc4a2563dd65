"""The reference interpreter: runs a graph op by op in NumPy, by the records' `reference` alone.

Slow and plain: it is the oracle that compiled programs are compared with, and what
`compile(..., mode="reference")` runs.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, Shape, substitute
from staticgrad.ir.errors import BindError, ExecutionError
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import locs_text
from staticgrad.ir.node import Node, Value

from . import registry

Array = np.ndarray[Any, Any]
Watch = Callable[[Node, Sequence[Array], Sequence[Array]], None]

_watching: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)


def bind_dims(graph: Graph, arrays: Sequence[Array]) -> dict[str, int]:
    """The sizes of the named dims, from the shapes of the inputs' arrays."""
    bound: dict[str, int] = {}
    for value, array in zip(graph.inputs, arrays):
        if array.ndim != value.ndim:
            raise BindError(
                f"input {value.node.attrs['name']!r}: expected {value.type}, got shape "
                f"{array.shape}"
            )
        for declared, size in zip(value.shape, array.shape):
            if isinstance(declared, Dim) and len(declared.terms) == 1:
                (monomial, factor) = declared.terms[0]
                if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], str):
                    bound.setdefault(monomial[0], size)
    for value, array in zip(graph.inputs, arrays):
        expected = tuple(substitute(d, bound) for d in value.shape)
        if expected != array.shape:
            raise BindError(
                f"input {value.node.attrs['name']!r}: expected {value.type}, got shape "
                f"{array.shape}"
            )
    for c in graph.constraints:
        left, right = substitute(c.left, bound), substitute(c.right, bound)
        if left != right:
            raise BindError(f"{c.message}: {c.left} = {left} but {c.right} = {right}")
    return bound


def concrete_attrs(attrs: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, Any]:
    """Attributes with every dim replaced by its size."""

    def fix(a: Any) -> Any:
        if isinstance(a, Dim):
            return substitute(a, dims)
        if isinstance(a, tuple):
            return tuple(fix(x) for x in a)
        return a

    return {name: fix(a) for name, a in attrs.items()}


def evaluate_node(node: Node, operands: Sequence[Array], dims: Mapping[str, int]) -> list[Array]:
    """The results of one node, checked against its inferred types."""
    attrs = concrete_attrs(node.attrs, dims)
    if subgraphs(node):
        attrs["dims"] = dims
    if node.payload is not None:
        attrs["payload"] = node.payload
    with np.errstate(all="ignore"):
        found = registry.get(node.op).reference(*operands, **attrs)
    results = [np.asarray(a) for a in (found if isinstance(found, tuple) else (found,))]
    for r, t in zip(results, node.types, strict=True):
        shape: Shape = tuple(substitute(d, dims) for d in t.shape)
        if r.shape != shape or r.dtype != t.dtype.numpy:
            raise AssertionError(
                f"{node.op}: the reference gave {r.dtype}{list(r.shape)}, inferred was {t}"
            )
    return results


def _locate(error: ExecutionError, graph: Graph, node: Node) -> None:
    """Adds the line that declared the node, as compiled programs do."""
    where = locs_text(graph.locs.get(node, node.locs))
    if where and not error.location:
        error.location = where
        error.args = (f"{error} ({where})",)


def run_graph(
    graph: Graph,
    arrays: Sequence[Array],
    state: Mapping[Value, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    watch: Watch | None = None,
) -> tuple[list[Array], dict[Value, Array]]:
    """Outputs, and the new values of the updated state (which is not written here). A closed
    sub-graph gets the sizes of the graph that holds it. `watch` sees each node's operands and
    results as they are computed, in closed sub-graphs too."""
    if watch is not None:
        token = _watching.set(watch)
        try:
            return run_graph(graph, arrays, state, dims)
        finally:
            _watching.reset(token)
    watch = _watching.get()
    if dims is None:
        dims = bind_dims(graph, arrays)
    values: dict[Value, Array] = dict(zip(graph.inputs, arrays))
    for node in graph.nodes:
        if node.op == "input":
            continue
        if node.op == "state":
            v = node.results[0]
            values[v] = state[v] if state and v in state else node.payload.numpy()
            continue
        operands = [values[v] for v in node.operands]
        try:
            results = evaluate_node(node, operands, dims)
        except ExecutionError as error:
            _locate(error, graph, node)
            raise
        if watch is not None:
            watch(node, operands, results)
        values.update(zip(node.results, results))
    new_state = {s: values[new] for s, new in graph.updates}
    return [values[v] for v in graph.outputs], new_state
