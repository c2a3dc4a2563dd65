"""A step of `fuse`: what only a matrix product reads is computed where the product packs it.

before -> after

    %3 = fused(%x, %s) { subtract; multiply }     %4 = fused(%x, %s, %w) { subtract; multiply;
    %4 = matmul(%3, %w)                                                    matmul }

A strip of the left operand, or a block of the right one, goes from what it is computed of straight
into the packed form that the micro-kernel reads: one sweep over memory less, and an array less to
hold. Each thread computes what it packs, and a strip is packed again for each block of columns, so
this is for what is cheap to compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from staticgrad.ir.dim import Dim, DimLike, product
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.cost import COST
from staticgrad.kernels.rewrite import factor_of
from staticgrad.ops import registry
from staticgrad.ops.lowering import Product, View

if TYPE_CHECKING:
    from .fuse import Group, _Fusion

# Vector instructions to an element: as many as multiplying it with so many columns takes.
MOST_COST = 16
# An operand that is known to be smaller stays in the first cache between its kernel and the
# product.
LEAST_BYTES = 32 * 1024
# Of each element. A product with few rows or columns reads the other operand as it lies, as fast as
# memory gives it: 1 x 1024 times 1024 x 1024 with a mask takes 340 us, 810 with a prologue.
LEAST_USES = 16


def attach_prologues(fusion: _Fusion, most_nodes: int) -> None:
    """Moves "map" groups into the group of the one matrix product that reads them."""
    for g in fusion.groups:
        if g.merged is not None or g.kind != "map" or not _is_cheap(g):
            continue
        found = _only_product(fusion, g)
        if found is None:
            continue
        target, views = found
        if len(g.nodes) + len(views) + len(target.nodes) > most_nodes:
            continue
        for n in views:
            fusion.group_of[n] = target
        target.nodes += [*g.nodes, *views]
        g.merged = target


def _is_cheap(g: Group) -> bool:
    if any("random" in registry.get(n.op).traits for n in g.nodes):
        return False
    return sum(COST.get(n.op, 1) for n in g.nodes) <= MOST_COST


def _only_product(fusion: _Fusion, g: Group) -> tuple[Group, list[Node]] | None:
    """The group of the one matrix product that reads `g`, and the views through which it does."""
    products: set[Node] = set()
    views: dict[Node, None] = {}
    stack = list(g.nodes)
    while stack:
        for v in stack.pop().results:
            if v in fusion.roots:
                return None
            for u in fusion.uses.get(v, ()):
                lower = registry.get(u.op).lower
                if isinstance(lower, Product) and lower.kind == "matmul":
                    if not _pays(u, v) or not _is_affine(fusion, g, v):
                        return None
                    products.add(u)
                elif fusion.group(u) is not g:
                    if fusion.group(u) is not None or not isinstance(lower, View):
                        return None
                    if u not in views:
                        views[u] = None
                        stack.append(u)
    if len(products) != 1:
        return None
    target = fusion.group(products.pop())
    return None if target is None else (target, list(views))


def _pays(node: Node, v: Value) -> bool:
    """Whether an operand of a product is large enough, and used often enough."""
    size = product(v.shape)
    if isinstance(size, int) and size * v.dtype.itemsize_bytes <= LEAST_BYTES:
        return False
    a, b = node.operands
    uses = [other for operand, other in ((a, b.shape[-1]), (b, a.shape[-2])) if operand is v]
    return all(isinstance(n, int) and n >= LEAST_USES for n in uses)


def _is_affine(fusion: _Fusion, g: Group, v: Value) -> bool:
    """Whether row and column of an operand are followed through views without a division."""
    at: tuple[DimLike, ...] = tuple(Dim.symbol(f"d{i}") for i in range(len(v.shape)))
    names = [f"d{i}" for i in range(len(v.shape))][-2:]
    while fusion.group(v.node) is not g:
        lower = registry.get(v.node.op).lower
        if not isinstance(lower, View):
            return False
        source = v.node.operands[0]
        below = lower.index(at, v.node.attrs, source.type, v.type)
        if below is None:
            return False
        at, v = below, source
    return all(factor_of(i, name) is not None for i in at for name in names)
