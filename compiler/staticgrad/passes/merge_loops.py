"""merge_loops: scans that carry the same -> one scan with the results of all.

before -> after

    %2, %3 = scan(%x0, %xs){ h, y }             %2, %3, %4 = scan(%x0, %xs){ h, y, r }
    %4, %5, %6 = scan(%x0, %xs){ h, y, r }

Differentiation does not change the scan that a model declared: it makes a second one, which also
stores what its reverse needs, or which carries tangents beside the values. Two scans are one if
they have the same length and direction and the carries of one are the first carries of the other:
the same first values, computed by equal bodies.

Preserving: the carries are computed once, by the same operations.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from staticgrad.ir.graph import Graph, reachable, subgraphs
from staticgrad.ir.loc import Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.closing import placeholder, replaced
from staticgrad.rewrite.driver import rebuilt
from staticgrad.rewrite.pattern import attrs_key


def merge_loops(graph: Graph) -> Graph:
    scans = [n for n in graph.nodes if n.op == "scan"]
    if len(scans) > 1:
        graph = _merged(graph, scans)
    return _inside(graph)


def _inside(graph: Graph) -> Graph:
    """The graph with the loops of its sub-graphs merged."""
    new: dict[Node, dict[str, Any]] = {}
    for node in graph.nodes:
        held = subgraphs(node)
        inner = {name: merge_loops(g) for name, g in held}
        if any(inner[name] is not g for name, g in held):
            new[node] = {**node.attrs, **inner}
    if not new:
        return graph
    return _rebuilt(graph, graph.nodes, {}, new)


def _merged(graph: Graph, scans: Sequence[Node]) -> Graph:
    position = {n: i for i, n in enumerate(graph.nodes)}
    groups: dict[Hashable, list[Node]] = {}
    for node in scans:
        key = (node.attrs["length"], node.attrs["reverse"], node.attrs["remat"])
        groups.setdefault(key, []).append(node)
    values: dict[Value, Value] = {}
    place: dict[Node, Node] = {}  # the first scan of a merged one -> the merged one
    gone: set[Node] = set()
    for members in groups.values():
        while members:
            first, *rest = members
            members = []
            whole, joined, results = first, [first], {r: r for r in first.results}
            for other in rest:
                found = _join(whole, other, position, position[first])
                if found is None:
                    members.append(other)
                    continue
                whole, of_whole, of_other = found
                results = {old: of_whole[r] for old, r in results.items()} | of_other
                joined.append(other)
            if whole is not first:
                values.update(results)
                place[first] = whole
                gone.update(joined)
    if not place:
        return graph
    order = [place.get(n, n) for n in graph.nodes if n in place or n not in gone]
    locs = {whole: graph.locs[first] for first, whole in place.items()}
    return _rebuilt(graph, order, values, {}, locs)


def _rebuilt(
    graph: Graph, order: Sequence[Node], values: Mapping[Value, Value],
    attrs: Mapping[Node, dict[str, Any]], more: Mapping[Node, Locs] | None = None,
) -> Graph:  # fmt: skip
    """The graph with values replaced and nodes' attributes changed."""
    new: dict[Value, Value] = {}
    locs: dict[Node, Locs] = {}
    nodes: list[Node] = []

    def final(v: Value) -> Value:
        v = values.get(v, v)
        return new.get(v, v)

    for node in order:
        made = rebuilt(node, [final(v) for v in node.operands], attrs.get(node))
        locs[made] = graph.locs[node] if more is None or node not in more else more[node]
        nodes.append(made)
        if made is not node:
            new.update(zip(node.results, made.results))
    return Graph(
        graph.inputs, [final(v) for v in graph.outputs],
        [(s, final(v)) for s, v in graph.updates], order=nodes, locs=locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip


class _Parts:
    """A scan's operands and its body's inputs by what they are."""

    def __init__(self, node: Node) -> None:
        self.body: Graph = node.attrs["body"]
        self.nc, nx = node.attrs["carries"], node.attrs["xs"]
        self.init = node.operands[: self.nc]
        self.xs = node.operands[self.nc : self.nc + nx]
        self.captured = node.operands[self.nc + nx :]
        self.inputs = self.body.inputs
        self.outer: dict[Value, Hashable] = {self.inputs[0]: "index"}
        for i, v in enumerate(self.inputs[1 : 1 + self.nc]):
            self.outer[v] = ("carry", i)
        for v, x in zip(self.inputs[1 + self.nc :], self.xs):
            self.outer[v] = ("x", x)
        for v, p in zip(self.inputs[1 + self.nc + nx :], self.captured):
            self.outer[v] = ("captured", p)


Joined = tuple[Node, dict[Value, Value], dict[Value, Value]]


def _join(a: Node, b: Node, position: Mapping[Node, int], at: int) -> Joined | None:
    """One scan for both, in place `at`, and what the results of each are of it; None where they
    are different loops."""
    host, guest = (a, b) if a.attrs["carries"] >= b.attrs["carries"] else (b, a)
    h, g = _Parts(host), _Parts(guest)
    if any(x is not y for x, y in zip(h.init, g.init)):
        return None
    if any(position.get(v.node, at) >= at for v in (*host.operands, *guest.operands)):
        return None
    known: dict[Hashable, int] = {}
    of_h = _numbers(h.body.outputs, h.outer, known)
    of_g = _numbers(g.body.outputs, g.outer, known)
    if of_h[: g.nc] != of_g[: g.nc]:
        return None
    there = {what: v for v, what in h.outer.items()}
    xs, captured = list(h.xs), list(h.captured)
    inputs_x = list(h.inputs[1 + h.nc : 1 + h.nc + len(xs)])
    inputs_p = list(h.inputs[1 + h.nc + len(xs) :])
    for v, what in g.outer.items():
        if what in there:
            continue
        there[what] = placeholder(f"m{len(there)}", 1000 + len(there), v.type)
        assert isinstance(what, tuple)
        kind, outside = what
        (xs if kind == "x" else captured).append(outside)
        (inputs_x if kind == "x" else inputs_p).append(there[what])
    mapping = {v: there[what] for v, what in g.outer.items()}
    # What the host stacks already is not stacked twice.
    stacked = {what: h.nc + i for i, what in enumerate(of_h[h.nc :])}
    more: list[Value] = []
    for v, what_v in zip(g.body.outputs[g.nc :], of_g[g.nc :]):
        if what_v not in stacked:
            stacked[what_v] = len(h.body.outputs) + len(more)
            more.append(v)
    rows = replaced(more, mapping)
    inputs = _numbered([*h.inputs[: 1 + h.nc], *inputs_x, *inputs_p])
    outputs = replaced([*h.body.outputs, *rows], inputs)
    attrs = {
        **host.attrs, "body": Graph(list(inputs.values()), outputs), "xs": len(xs),
    }  # fmt: skip
    made = registry.make("scan", (*h.init, *xs, *captured), attrs, locs=a.locs | b.locs)
    of_host = dict(zip(host.results, made.results))
    of_guest = dict(zip(guest.results, made.results[: g.nc]))
    of_guest.update(
        (r, made.results[stacked[what_r]]) for r, what_r in zip(guest.results[g.nc :], of_g[g.nc :])
    )
    return (made, of_host, of_guest) if host is a else (made, of_guest, of_host)


def _numbered(inputs: Sequence[Value]) -> dict[Value, Value]:
    """New inputs for old ones, each with a number of its own."""
    return {v: placeholder(f"{'icxp'[min(i, 1)]}{i}", i, v.type) for i, v in enumerate(inputs)}


def _numbers(
    outputs: Sequence[Value], outer: Mapping[Value, Hashable], known: dict[Hashable, int]
) -> list[tuple[int, int]]:
    """Numbers that are equal for values that are computed alike from the same."""
    number: dict[Node, int] = {}
    for node in reachable(outputs):
        key: Hashable
        if node.op == "input":
            key = outer[node.results[0]]
        else:
            operands = tuple((number[v.node], v.index) for v in node.operands)
            key = (*_own(node), operands)
        number[node] = known.setdefault(key, len(known))
    return [(number[v.node], v.index) for v in outputs]


def _own(node: Node) -> tuple[Hashable, ...]:
    """What a node is beside its operands, sub-graphs by their structure."""
    held = dict(subgraphs(node))
    plain = attrs_key({k: a for k, a in node.attrs.items() if k not in held})
    graphs = []
    for name, g in held.items():
        places: dict[Value, Hashable] = {v: ("input", i) for i, v in enumerate(g.inputs)}
        seen: dict[Hashable, int] = {}
        outputs = tuple(_numbers(g.outputs, places, seen))
        graphs.append((name, tuple(seen), outputs))
    payload: Hashable = None
    if node.payload is not None:
        payload = node.payload.tobytes() if node.op == "constant" else id(node.payload)
    return (node.op, plain, tuple(graphs), payload)
