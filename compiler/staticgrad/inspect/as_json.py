"""Graphs as plain data: one versioned JSON document."""

from __future__ import annotations

import json
import math
from typing import Any

from staticgrad.ir.dim import Dim, DimLike
from staticgrad.ir.dtype import DType
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.literal import list_text, readable_path
from staticgrad.ir.loc import NOWHERE, Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ir.printer import INLINE_ELEMS, Names, constant_key
from staticgrad.ir.types import TensorType

from .drawing import listed_nodes

VERSION = 1


def to_json(graph: Graph) -> str:
    """The graph as a JSON document of ASCII characters, so that no locale can harm it.

    Nodes are numbered in topological order; a value is `[node, result]`. Sub-graphs are nested
    documents of the same form, with numbers of their own.
    """
    document = {"format": "staticgrad.graph", "version": VERSION, **plain_graph(graph)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def plain_graph(graph: Graph) -> dict[str, Any]:
    """The graph as dicts, lists, strings and numbers."""
    nodes = listed_nodes(graph)
    names = Names(graph)
    number = {n: i for i, n in enumerate(nodes)}

    def ref(v: Value) -> list[int]:
        return [number[v.node], v.index]

    return {
        "inputs": [ref(v) for v in graph.inputs],
        "state": [number[n] for n in nodes if n.op == "state"],
        "nodes": [_node(graph, names, n, i, ref) for i, n in enumerate(nodes)],
        "outputs": [ref(v) for v in graph.outputs],
        "single": graph.single,
        "updates": [{"state": ref(s), "value": ref(v)} for s, v in graph.updates],
        "constraints": [
            {"left": _dim(c.left), "right": _dim(c.right), "message": c.message,
             "locs": _locs(c.locs)}
            for c in graph.constraints
        ],
    }  # fmt: skip


def _node(graph: Graph, names: Names, node: Node, number: int, ref: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": number,
        "op": node.op,
        "names": [names.of.get(v) for v in node.results],
        "operands": [ref(v) for v in node.operands],
        # The ids of inputs and state differ from process to process.
        "attrs": {
            k: attr_data(v)
            for k, v in node.attrs.items()
            if not isinstance(v, Graph) and not (k == "id" and node.op in ("input", "state"))
        },
        "types": [_type(t) for t in node.types],
        "locs": _locs(graph.locs.get(node, node.locs)),
    }
    if node.op == "constant":
        small = node.payload.size <= INLINE_ELEMS
        found["value" if small else "digest"] = (
            list_text(node.payload) if small else constant_key(node.payload)
        )
    held = subgraphs(node)
    if held:
        found["graphs"] = {name: plain_graph(inner) for name, inner in held}
    return found


def attr_data(value: Any) -> Any:
    """An attribute as JSON data: what JSON has no form for is an object with one key."""
    match value:
        case None | bool():
            return value
        case DType():
            return {"dtype": str(value)}
        case Dim():
            return {"dim": str(value)}
        case int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case tuple():
            return [attr_data(v) for v in value]
    return {"opaque": getattr(value, "__name__", None) or type(value).__name__}


def _dim(d: DimLike) -> int | str:
    return d if isinstance(d, int) else str(d)


def _type(t: TensorType) -> dict[str, Any]:
    return {"dtype": str(t.dtype), "shape": [_dim(d) for d in t.shape]}


def _locs(locs: Locs = NOWHERE) -> list[dict[str, Any]]:
    return [{"file": readable_path(x.file), "line": x.line} for x in sorted(locs)]
