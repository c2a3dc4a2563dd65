"""Closed sub-graphs: a function of values becomes a graph that reads nothing from outside.

What a traced body reads from outside (parameters, inputs, values computed before it) is *captured*:
it becomes an input of the closed graph and an operand of the node that holds it. So loops compute
what does not change in them once, before they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from staticgrad.ir.graph import Graph, reachable, subgraphs
from staticgrad.ir.loc import NOWHERE
from staticgrad.ir.node import Node, Value
from staticgrad.ir.types import TensorType

from . import registry
from .random import default_generator
from .tensor import Tensor


def placeholder(name: str, number: int, type: TensorType) -> Tensor:
    """An input of a closed graph."""
    attrs = {"name": name, "id": number, "dtype": type.dtype, "shape": type.shape}
    found: Tensor = registry.make("input", (), attrs, locs=NOWHERE).results[0]  # type: ignore[assignment]
    return found


def placeholders(prefix: str, types: Sequence[TensorType], start: int = 0) -> list[Tensor]:
    return [placeholder(f"{prefix}{i}", start + i, t) for i, t in enumerate(types)]


def replaced(values: Sequence[Value], mapping: Mapping[Value, Value]) -> list[Value]:
    """`values` computed with others in place of the mapping's keys. What depends on none of them
    stays what it is."""
    new: dict[Value, Value] = dict(mapping)
    for node in reachable(values):
        if all(r in new for r in node.results):
            continue
        if any(v in new for v in node.operands):
            operands = [new.get(v, v) for v in node.operands]
            copy = registry.make(
                node.op, operands, node.attrs, payload=node.payload, locs=node.locs
            )
            for old, made in zip(node.results, copy.results):
                new.setdefault(old, made)  # the mapping may hold some of a node's results
    return [new.get(v, v) for v in values]


def inline(graph: Graph, operands: Sequence[Value]) -> list[Value]:
    """The outputs of a closed graph on these operands, as nodes of the graph around it."""
    return replaced(graph.outputs, dict(zip(graph.inputs, operands)))


def close(
    inputs: Sequence[Value], outputs: Sequence[Value], since: int,
    vary: Callable[[Value], Value] | None = None, *, lazy: bool = False,
) -> tuple[Graph, list[Value]]:  # fmt: skip
    """The closed graph of `outputs` as a function of `inputs` and of what it captures, which come
    after `inputs` among its inputs; and what is captured.

    `since` is a node id from before the body was traced: random draws that are younger belong to
    the body, even where they depend on none of its inputs, and so does what can fail when it runs:
    a body that does not run fails nothing. With `lazy` (a branch) all that is younger belongs to
    it. `vary` makes the global generator's key the loop's own in each iteration.
    """
    nodes = reachable((*inputs, *outputs))
    inside = _inside(nodes, inputs, since, lazy)
    varied: dict[Value, Value] = {}
    captured: dict[Value, Tensor] = {}
    new: dict[Value, Value] = {v: v for v in inputs}
    number = len(inputs)

    def taken(v: Value) -> Value:
        if v in new:
            return new[v]
        if v.node.op == "constant" and v.node.payload.size <= 1:
            return v
        new[v] = captured[v] = placeholder(f"p{len(captured)}", number + len(captured), v.type)
        return new[v]

    for node in nodes:
        if node not in inside or node.op == "input":
            continue
        operands = [taken(v) for v in node.operands]
        if vary is not None and has_trait(node, "random"):
            for i, v in enumerate(node.operands):
                if _is_generator(v):
                    if v not in varied:
                        varied[v] = vary(operands[i])
                    operands[i] = varied[v]
        if all(a is b for a, b in zip(operands, node.operands)):
            new.update((r, r) for r in node.results)
            continue
        copy = registry.make(node.op, operands, node.attrs, payload=node.payload, locs=node.locs)
        new.update(zip(node.results, copy.results))
    results = [taken(v) for v in outputs]
    return Graph([*inputs, *captured.values()], results), list(captured)


def _inside(
    nodes: Sequence[Node], inputs: Sequence[Value], since: int, lazy: bool
) -> set[Node]:  # fmt: skip
    """What depends on the inputs, and what is the body's own, with what depends on that."""
    inside = {v.node for v in inputs}
    for node in nodes:
        own = node.id > since and node.op not in ("input", "state", "constant")
        if own:
            own = lazy or has_trait(node, "random") or has_trait(node, "can_fail")
        if own or any(v.node in inside for v in node.operands):
            inside.add(node)
    return inside


def _is_generator(v: Value) -> bool:
    return v.node.op == "state" and v.node.payload is default_generator().cell


def has_trait(node: Node, trait: str) -> bool:
    """Whether a node has a trait, or one of a graph that it holds."""
    if trait in registry.get(node.op).traits:
        return True
    return any(has_trait(n, trait) for _, g in subgraphs(node) for n in g.nodes)


def depends(value: Value, inputs: Sequence[Value]) -> bool:
    """Whether a value is computed from one of `inputs`, or is one."""
    nodes = {v.node for v in inputs}
    behind = set(nodes)
    for node in reachable((value,)):
        if any(v.node in behind for v in node.operands):
            behind.add(node)
    return value.node in behind
