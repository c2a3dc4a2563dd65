"""What becomes one kernel: the body of a `fused` node, or a node alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from staticgrad.ir.loc import Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Product


class Body(NamedTuple):
    """`inside` are the nodes to compute, in order; `outputs` pairs of a value inside and the
    graph's value that it is stored as; `outer` what the body's inputs are outside."""

    node: Node
    inside: Mapping[Node, None]
    outputs: list[tuple[Value, Value]]
    outer: Mapping[Value, Value]
    locs: Locs

    @staticmethod
    def of(node: Node, locs: Locs) -> Body:
        if node.op != "fused":
            return Body(node, {node: None}, [(v, v) for v in node.results], {}, locs)
        graph = node.attrs["body"]
        inside = {n: None for n in graph.nodes if n.op != "input"}
        outputs = list(zip(graph.outputs, node.results))
        return Body(node, inside, outputs, dict(zip(graph.inputs, node.operands)), locs)

    @property
    def name(self) -> str:
        """A readable name: the distinct ops in order, a product first: `matmul_add_relu`."""
        products = [n.op for n in self.inside if isinstance(registry.get(n.op).lower, Product)]
        ops = list(dict.fromkeys((*products, *(n.op for n in self.inside))))
        text = "_".join(ops[:5])
        return text if len(ops) <= 5 else f"{text}_{len(ops) - 5}_more"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(n.op for n in self.inside)
