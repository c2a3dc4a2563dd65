"""A step of `fuse`: what reads whole rows of a row kernel's results joins it, if what else it reads
does not wait for that kernel.

before -> after

    %3 = fused(%x) { .. exp of log-softmax }      %2 = gather(%w, %y)
    %2 = gather(%w, %y)                           %5 = fused(%x, %2) { ..; exp; multiply; .. }
    %5 = fused(%3, %2) { multiply; .. }

Groups are made in the order of the graph, where the sum of the labels' weights may come after the
softmax whose gradient is divided by it: then the kernel of the rows was of too low a level. The
rows are computed where they are read, and neither stored nor read.
"""

from __future__ import annotations

from staticgrad.ir.node import Node
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction, View

from .groups import MOST_NODES, Group, Grouping, is_heavy

# Groups that are looked at before two are taken to depend on one another, so that the pass is
# linear in the nodes.
MOST_GROUPS = 64


def attach_rows(fusion: Grouping) -> None:
    """Moves groups into the groups of rows that they read, and cheap rows that one other group
    alone reads into that one."""
    for g in fusion.groups:
        if g.merged is not None:
            continue
        target = _only_rows(fusion, g)
        if target is not None and _waits(fusion, g, target):
            target = None
        target = target or _only_reader(fusion, g)
        if target is None or len(g.nodes) + len(target.nodes) > MOST_NODES:
            continue
        if _fits(fusion, g, target):
            target.absorb(g)
            _raise_level(fusion, target, g.level)


def _are_rows(g: Group) -> bool:
    first = len(g.shape) - len(g.axes)
    return g.kind == "reduce" and first > 0 and g.axes == tuple(range(first, len(g.shape)))


def _only_rows(fusion: Grouping, g: Group) -> Group | None:
    """The one group of rows whose whole rows `g` reads."""
    found = {
        h: None for n in g.nodes for v in n.operands
        if (h := fusion.group(v.node)) is not None and h is not g and h.forms.get(v.node) == "full"
    }  # fmt: skip
    h = next(iter(found), None)
    if h is None or len(found) != 1 or not _are_rows(h) or h.shape != g.shape:
        return None
    return h if g.kind == "map" or (g.kind == "reduce" and g.axes == h.axes) else None


def _only_reader(fusion: Grouping, g: Group) -> Group | None:
    """The group that alone reads rows of `g`: a smoothed label's, with their sum, for a softmax."""
    if g.kind != "reduce":
        return None
    users = {u for n in g.nodes for v in n.results for u in fusion.uses.get(v, ())}
    readers = {fusion.group(u) for u in users} - {g}
    h = next(iter(readers), None)
    if h is None or len(readers) != 1 or not _are_rows(h):
        return None
    whole = any(
        v.shape == g.shape and fusion.group(v.node) is g for n in h.nodes for v in n.operands
    )
    wanted = any(v in fusion.roots for n in g.nodes for v in n.results)
    if wanted or not whole or (g.shape, g.axes) != (h.shape, h.axes) or any(map(is_heavy, g.nodes)):
        return None
    return h


def _waits(fusion: Grouping, g: Group, h: Group) -> bool:
    """Whether anything else that `g` reads is computed from what `h` computes."""
    seen: set[Group | Node] = {g}
    stack: list[Group | Node] = [g]
    while stack:
        item = stack.pop()
        for n in item.nodes if not isinstance(item, Node) else [item]:
            for v in n.operands:
                below = fusion.group(v.node) or v.node
                if below in seen or fusion.level(v.node) < h.level:
                    continue
                if below is h and item is g:
                    continue
                if below is h or len(seen) > MOST_GROUPS:
                    return True
                seen.add(below)
                stack.append(below)
    return False


def _fits(fusion: Grouping, g: Group, h: Group) -> bool:
    """Whether all nodes of both have forms as rows of one group, which are then noted."""
    before = dict(h.forms)
    h.forms.update(g.forms)
    inside = {*g.nodes, *h.nodes}
    for n in sorted(inside, key=lambda n: n.id):
        forms = [h.forms[v.node] for v in n.operands if v.node in h.forms]
        if isinstance(registry.get(n.op).lower, Reduction):
            fits = all(form == "full" for form in forms)
        elif forms:
            fits = fusion.join_form(h, n) is not None
        else:
            fits = n.types[0].shape == h.shape or not _escapes(fusion, n, inside)
        if not fits:
            h.forms = before
            return False
    return True


def _escapes(fusion: Grouping, n: Node, inside: set[Node]) -> bool:
    return any(
        v in fusion.roots or any(u not in inside for u in fusion.uses.get(v, ())) for v in n.results
    )


def _raise_level(fusion: Grouping, g: Group, level: int) -> None:
    """Gives a group a level, and what reads it, directly or not, a higher one."""
    g.level = max(g.level, level)
    stack: list[Group | Node] = [g]
    while stack:
        item = stack.pop()
        for n in item.nodes if not isinstance(item, Node) else [item]:
            for v in n.results:
                for u in fusion.uses.get(v, ()):
                    reader = fusion.group(u)
                    if reader is item:
                        continue
                    is_view = reader is None and isinstance(registry.get(u.op).lower, View)
                    needed = fusion.level(n) + (not is_view)
                    if fusion.level(u) >= needed:
                        continue
                    if reader is None:
                        fusion.levels[u] = needed
                    else:
                        reader.level = needed
                    stack.append(u if reader is None else reader)


__all__ = ["attach_rows"]
