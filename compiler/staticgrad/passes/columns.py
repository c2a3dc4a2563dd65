"""A step of `fuse`: sums over rows join the kernel that goes through the rows anyway.

before -> after

    %3, %4 = fused(%x, %gy) { .. }  one row at a time     %3, %5 = fused(%x, %gy) { .. sum(axis 0) }
    %5 = sum(%4)            axis 0

A layer norm's gradient goes through the rows of `x` and `gy`; the gradients of its scale and shift
are sums of the same over all rows, and would read or even store everything once more. The rows'
kernel adds each row, while it is in the cache, to a line of partial sums, one for each block of
rows; a small kernel adds those. Blocks and order are those of the reduction (`kernels/order.py`),
so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.dim import Dim, DimLike, product
from staticgrad.ir.node import Node
from staticgrad.kernels.order import SHORT_ROW
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction

from .groups import MOST_NODES, Group, Grouping

# Blocks are what threads share: of fewer rows there are too few of them.
LEAST_ROWS = 512
# A line of partial sums is read and written for each row, and should stay in the L1 cache; where
# the number of rows is not known, a row should be too short to share as well.
MOST_COLUMNS, MOST_COLUMNS_OF_ANY = 4096, 1024
# Less than a core's second cache holds is read once more in less time than another kernel takes.
LEAST_ELEMENTS, LEAST_COLUMNS_OF_ANY = 1 << 18, 128
MOST_READERS = 64  # of a value that are looked at, so that the pass is linear in the nodes


def attach_columns(fusion: Grouping) -> None:
    """Moves column sums into the groups of rows that read the same."""
    for h in list(fusion.groups):
        if h.merged is not None or h.kind != "reduce":
            continue
        sums = [n for n in h.nodes if isinstance(registry.get(n.op).lower, Reduction)]
        if not _are_columns(h, sums):
            continue
        moved = _movable(fusion, h, sums)
        if not moved:
            continue
        for g in _row_groups(fusion, moved):
            if g is not h and _fits(fusion, g, h, moved):
                _move(fusion, g, h, sums, moved)
                break


def _are_columns(h: Group, sums: Sequence[Node]) -> bool:
    """Whether a group's sums are those of rows that are worth a line of partial sums each."""
    depth = len(h.axes)
    if h.axes != tuple(range(depth)) or depth == len(h.shape):
        return False
    if not all(_is_float_sum(n) and n.operands[0].shape == h.shape for n in sums):
        return False
    return _worth_it(product(h.shape[:depth]), h.shape[depth:])


def _movable(fusion: Grouping, h: Group, sums: Sequence[Node]) -> list[Node]:
    """The sums of a group, with what they alone are computed from; empty where the group needs
    their operands for something else too."""
    form = h.forms.get(sums[0])
    if any(f != form for f in h.forms.values()):
        return []
    members = set(sums)
    stack = list(sums)
    while stack:
        for v in stack.pop().operands:
            if v.node not in members and v.node not in h.forms and fusion.group(v.node) is h:
                members.add(v.node)
                stack.append(v.node)
    for n in members.difference(sums):
        for v in n.results:
            if v in fusion.roots or any(u not in members for u in fusion.uses.get(v, ())):
                return []
    return [n for n in h.nodes if n in members]


def _row_groups(fusion: Grouping, moved: Sequence[Node]) -> list[Group]:
    """Groups that compute or read what the sums are computed from."""
    found: dict[Group, None] = {}
    inside = set(moved)
    for n in moved:
        for v in n.operands:
            if v.node in inside:
                continue
            for u in (v.node, *fusion.uses.get(v, ())[:MOST_READERS]):
                g = fusion.group(u)
                if g is not None and g.kind == "reduce":
                    found.setdefault(g)
    return list(found)


def _fits(fusion: Grouping, g: Group, h: Group, moved: Sequence[Node]) -> bool:
    rank = len(g.shape)
    rows = tuple(i for i in range(rank) if i not in g.axes)
    if g.shape != h.shape or h.axes != rows or g.axes != tuple(range(len(rows), rank)):
        return False
    if len(g.nodes) + len(moved) > MOST_NODES or h.level < g.level:
        return False  # of a lower level: what reads the sums might be what `g` waits for
    inside = set(moved)
    return all(
        v.node in inside or fusion.group(v.node) is g or fusion.level(v.node) < g.level
        for n in moved
        for v in n.operands
    )


def _is_float_sum(n: Node) -> bool:
    lower = registry.get(n.op).lower
    return isinstance(lower, Reduction) and lower.kind == "sum" and n.types[0].dtype.is_float


def _worth_it(rows: DimLike, row: Sequence[DimLike]) -> bool:
    columns = product(tuple(row))
    if isinstance(columns, Dim) or (isinstance(row[-1], int) and row[-1] <= SHORT_ROW):
        return False
    if isinstance(rows, Dim):
        return LEAST_COLUMNS_OF_ANY <= columns <= MOST_COLUMNS_OF_ANY
    return rows >= LEAST_ROWS and columns <= MOST_COLUMNS and rows * columns >= LEAST_ELEMENTS


def _move(
    fusion: Grouping, g: Group, h: Group, sums: Sequence[Node], moved: Sequence[Node]
) -> None:
    left = [n for n in h.nodes if n not in set(moved)]
    for n in moved:
        g.nodes.append(n)
        fusion.group_of[n] = g
    if not left:
        fusion.groups.remove(h)
        return
    h.nodes, h.kind, h.axes, h.forms = left, "map", (), {}
    h.shape = sums[0].types[0].shape
