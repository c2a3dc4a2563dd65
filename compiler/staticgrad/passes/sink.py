"""A step of `fuse`: what is cheap to compute is computed where it is read, and not stored.

before -> after

    %3, %4 = fused(%x, %w) { matmul; tanh; 1 - tanh**2 }   %3 = fused(%x, %w) { matmul; tanh }
    %9 = fused(.., %4) { ..; multiply }                    %9 = fused(.., %3) { 1 - tanh**2; .. }

The derivative of an activation is a few operations on its result, of which everything is known when
the forward pass computes that; so both would be stored, to be read by the reverse. Where the result
is stored anyway, one array less is written, and none more is read or kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.node import Node, Value
from staticgrad.kernels.cost import COST
from staticgrad.ops import registry
from staticgrad.ops.lowering import Pointwise

from .groups import MOST_NODES, Group, Grouping

MOST_COST = 8  # of all that is moved: less than loading an array from the L2 cache takes


def sink_cheap(fusion: Grouping) -> None:
    """Moves cheap nodes at the end of groups into the one group that reads them."""
    for g in fusion.groups:
        if g.merged is not None or g.kind == "reduce":
            continue
        for n in sorted(g.nodes, key=lambda n: -n.id):
            reader = _only_reader(fusion, g, n) if fusion.group(n) is g else None
            if reader is None:
                continue
            moved = _movable(fusion, g, n)
            if moved and len(moved) + len(reader.nodes) <= MOST_NODES:
                g.nodes = [m for m in g.nodes if m not in moved]
                reader.nodes += moved
                fusion.group_of.update(dict.fromkeys(moved, reader))


def _only_reader(fusion: Grouping, g: Group, n: Node) -> Group | None:
    """The group that reads a node of `g`, element by element, if all its readers are there."""
    if not _is_cheap(n) or n.results[0] in fusion.roots or n.types[0].shape != g.shape:
        return None
    users = fusion.uses.get(n.results[0], ())
    found = fusion.group(users[0]) if users else None
    if found is None or found is g or found.kind == "reduce" or found.shape != g.shape:
        return None
    if any(fusion.group(u) is not found or not _is_element_wise(u) for u in users):
        return None
    return found


def _movable(fusion: Grouping, g: Group, n: Node) -> list[Node]:
    """The node with what it alone is computed from; empty unless all of that is computed from one
    value which `g` stores for others anyway."""
    moved = [n]
    sources: set[Value] = set()
    stack = list(n.operands)
    while stack:
        v = stack.pop()
        if v.node in moved:
            continue
        inside = fusion.group(v.node) is g
        users = fusion.uses.get(v, ())
        alone = v not in fusion.roots and all(u in moved for u in users)
        if inside and alone and _is_cheap(v.node) and v.type.shape == g.shape:
            moved.append(v.node)
            stack += v.node.operands
        elif v.type.size != 1:
            sources.add(v)
            if not inside or not _is_stored(fusion, g, v, moved):
                return []
    cost = sum(COST.get(m.op, 1) for m in moved)
    if len(sources) != 1 or cost > MOST_COST:
        return []
    (source,) = sources
    if source.dtype.bits > n.types[0].dtype.bits or source.shape != g.shape:
        return []
    return [m for m in moved if not any(v is source for v in m.results)]


def _is_stored(fusion: Grouping, g: Group, v: Value, moved: Sequence[Node]) -> bool:
    users = (u for u in fusion.uses.get(v, ()) if u not in moved)
    return v in fusion.roots or any(fusion.group(u) is not g for u in users)


def _is_element_wise(n: Node) -> bool:
    return isinstance(registry.get(n.op).lower, Pointwise)


def _is_cheap(n: Node) -> bool:
    return _is_element_wise(n) and COST.get(n.op, 1) <= 2 and len(n.results) == 1
