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

from functools import partial

from staticgrad.ir.dim import Dim, DimLike, product
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.cost import COST
from staticgrad.kernels.rewrite import factor_of
from staticgrad.ops import registry
from staticgrad.ops.lowering import Product, View

from .groups import Group, Grouping

# Vector instructions to an element: as many as multiplying it with so many columns takes.
MOST_COST = 16
# An operand that is known to be smaller stays in the first cache between its kernel and the
# product.
LEAST_BYTES = 32 * 1024
# Of each element. A product with few rows or columns reads the other operand as it lies, as fast as
# memory gives it: 1 x 1024 times 1024 x 1024 with a mask takes 340 us, 810 with a prologue.
LEAST_USES = 16


def attach_prologues(fusion: Grouping) -> None:
    """Moves "map" groups into the group of the one matrix product that reads them."""
    for g in fusion.groups:
        if g.merged is not None or g.kind != "map" or not _is_cheap(g):
            continue
        found = fusion.only_reader(g, partial(_packs, fusion, g))
        if found is not None:
            fusion.move(g, *found)


def _is_cheap(g: Group) -> bool:
    if any("random" in registry.get(n.op).traits for n in g.nodes):
        return False
    return sum(COST.get(n.op, 1) for n in g.nodes) <= MOST_COST


def _packs(fusion: Grouping, g: Group, v: Value, u: Node) -> bool:
    """Whether a reader is a matrix product that can compute the operand where it packs it."""
    lower = registry.get(u.op).lower
    is_matmul = isinstance(lower, Product) and lower.kind == "matmul"
    return is_matmul and _pays(u, v) and _is_affine(fusion, g, v)


def _pays(node: Node, v: Value) -> bool:
    """Whether an operand of a product is large enough, and used often enough."""
    size = product(v.shape)
    if isinstance(size, int) and size * v.dtype.itemsize_bytes <= LEAST_BYTES:
        return False
    a, b = node.operands
    uses = [other for operand, other in ((a, b.shape[-1]), (b, a.shape[-2])) if operand is v]
    return all(isinstance(n, int) and n >= LEAST_USES for n in uses)


def _is_affine(fusion: Grouping, g: Group, v: Value) -> bool:
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
