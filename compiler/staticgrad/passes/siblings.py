"""A step of `fuse`: reductions that go over the same become one kernel.

before -> after

    %3 = sum(%ct)                            %3, %5 = fused(%ct, %y) { sum; multiply; sum }
    %5 = fused(%ct, %y) { multiply; sum }

The gradients of a normalisation's bias and weight are such sums, of one shape over the same axes,
but not of one level: the second waits for the statistics. What nothing has read yet can wait too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from staticgrad.ir.node import Node
from staticgrad.kernels.order import reduce_lanes
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction

from .groups import MOST_NODES, Group, Grouping

MOST_READERS = 64  # that are looked at for a reduction, so that the pass is linear in the nodes


def join_sums(fusion: Grouping, node: Node) -> None:
    """Merges the group that a reduction was placed in with another one that reads the same."""
    g = fusion.group(node)
    assert g is not None
    for u in islice(_beside(fusion, node), MOST_READERS):
        h = fusion.group(u)
        if h is None or h is g or h.kind != "reduce" or (h.shape, h.axes) != (g.shape, g.axes):
            continue
        low, high = (g, h) if g.level < h.level else (h, g)
        if low.level < high.level and (low.read or not _reads_no_more(low, high)):
            continue
        if len(g.nodes) + len(h.nodes) <= MOST_NODES and _alike(fusion, g, h):
            high.absorb(low)
            return


def _beside(fusion: Grouping, node: Node) -> Iterator[Node]:
    """What reads the same as a reduction or as its operand, or another result of the group that
    computes the operand."""
    source = node.operands[0]
    for v in (source, *source.node.operands):
        yield from fusion.uses.get(v, ())
    g = fusion.group(source.node)
    for n in () if g is None or g is fusion.group(node) else g.nodes:
        for v in n.results:
            yield from fusion.uses.get(v, ())


def _alike(fusion: Grouping, g: Group, h: Group) -> bool:
    """Whether the reductions of both need the same lanes; and sums of columns, which are shared by
    blocks where they are all that a kernel does, nothing else beside them."""
    every = [*g.nodes, *h.nodes]
    kinds = [(n, registry.get(n.op).lower) for n in every]
    lanes = {reduce_lanes(n.types[0].dtype) for n, kind in kinds if isinstance(kind, Reduction)}
    if len(lanes) > 1 or len(g.shape) - 1 in g.axes:
        return len(lanes) == 1
    inside = set(every)
    return "full" not in (*g.forms.values(), *h.forms.values()) and not any(
        v in fusion.roots or any(u not in inside for u in fusion.uses.get(v, ()))
        for n in every if n not in g.forms and n not in h.forms
        for v in n.results
    )  # fmt: skip


def _reads_no_more(low: Group, high: Group) -> bool:
    """Whether one group reads what the other one reads, or what that is computed from."""
    found = high.full_reads()
    return low.full_reads() <= found | {v for w in found for v in w.node.operands}
