"""The loops of a reduction, and what they are where sizes turn out to be 1.

A size that is declared as 1 has no loop, and lanes run along the last axis that has one. Where all
that is left is reduced, a symbolic size that is 1 has to give the same bits, and has a space of its
own: lanes along another axis than else.

    sum of [N, K] over axis 0:    K > 1: columns in lanes     K = 1: lanes along N
    sum of [N, K] over both:      K > 1: lanes along K        K = 1: lanes along N
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from staticgrad.ir.dim import Dim, DimLike, dim_max, equal_dims, product, substitute, symbols
from staticgrad.ir.node import Node
from staticgrad.kernels.order import SHORT_ROW, flattened

from .map import loop_space
from .pull import At


@dataclass
class Space:
    """The loops: kept and reduced variables with their extents, and where elements lie. Reduced
    axes are one, beside the last one where lanes run along that (`kernels/order.py`)."""

    shape: tuple[DimLike, ...]
    axes: tuple[int, ...]
    at: At
    kept: list[tuple[str, DimLike]] = field(default_factory=list)
    reduced: list[tuple[str, DimLike]] = field(default_factory=list)

    @property
    def row(self) -> At:
        return tuple(i for a, i in enumerate(self.at) if a not in self.axes)

    @property
    def rows_in_lanes(self) -> bool:
        """Lanes along the last reduced axis. A function of the shape and the axes alone, since the
        order of the sum follows from it."""
        if not self.kept:
            return True
        if not self.reduced or len(self.shape) - 1 not in self.axes:
            return False
        return not self.is_short

    @property
    def is_short(self) -> bool:
        """Whether the last axis alone is reduced, and is written out. Another one that is reduced
        beside a last one of size 1 takes lanes: the order is the same."""
        if not self.kept or [name for name, _ in self.reduced] != [f"d{len(self.shape) - 1}"]:
            return False
        extent, last_kept = self.reduced[0][1], self.kept[-1][1]
        wide = not isinstance(last_kept, int) or last_kept > SHORT_ROW
        return wide and isinstance(extent, int) and 0 < extent <= SHORT_ROW


def space_of(node: Node, ones: Collection[int] = ()) -> Space:
    """The loops of a reduction, some of whose axes are known to be 1."""
    shape, axes = node.operands[0].shape, node.attrs["axes"]
    sizes = tuple(1 if a in ones else d for a, d in enumerate(shape))
    at, variables, extents = loop_space("d", sizes)
    space = Space(shape, axes, at)
    for name, extent in zip(variables, extents):
        (space.reduced if int(name[1:]) in axes else space.kept).append((name, extent))
    if not space.reduced:  # every reduced dim is 1: one of them keeps its loop
        name = f"d{axes[-1]}"
        space.at = tuple(Dim.symbol(name) if a == axes[-1] else i for a, i in enumerate(at))
        space.reduced.append((name, 1))
    lanes = 1 if space.rows_in_lanes else 0
    rows = space.reduced[: len(space.reduced) - lanes]
    if len(rows) > 1 and all(extent != 0 for _, extent in rows):
        row, table = flattened(rows)
        space.at = tuple(substitute(i, table) for i in space.at)
        space.reduced[: len(rows)] = [row]
    return space


class OfOnes(NamedTuple):
    """A space for sizes that turn out to be 1: `when` is 1 where they do, else 0; `sizes` has the
    names of those that have one."""

    when: DimLike
    space: Space
    sizes: dict[str, DimLike]


def spaces_of_ones(node: Node) -> list[OfOnes]:
    """The spaces in which lanes run along another axis: those of all kept sizes 1, and of the last
    reduced ones. Elsewhere rows of one element are added as a column is."""
    shape, axes = node.operands[0].shape, node.attrs["axes"]
    ones = [a for a in range(len(shape)) if a not in axes]
    if 0 in shape or not all(_may_be_one(shape[a]) for a in ones):
        return []
    found: list[tuple[DimLike, list[int]]] = []
    in_lanes = len(shape) - 1 in axes or all(shape[a] == 1 for a in ones)
    for i, a in enumerate(a for a in reversed(axes) if shape[a] != 1):
        if i or not in_lanes:
            found.append((_is_one(product(tuple(shape[k] for k in ones))), list(ones)))
        if not _may_be_one(shape[a]):
            break
        ones.append(a)
    when = [condition for condition, _ in found] + [0]  # each holds where the next one does
    return [
        OfOnes(when[i] - when[i + 1], space_of(node, ones), _named([shape[a] for a in ones]))
        for i, (_, ones) in enumerate(found)
    ]


def _may_be_one(size: DimLike) -> bool:
    return equal_dims(size, 1) is not False


def _is_one(size: DimLike) -> DimLike:
    """1 if the size is 1, else 0."""
    return dim_max(0, 2 - size) - 2 * dim_max(0, 1 - size)


def _named(sizes: list[DimLike]) -> dict[str, DimLike]:
    """The ones of sizes that are a name: with them, lanes lie side by side in memory."""
    names = [name for size in sizes for name in symbols(size)]
    return {name: 1 for name in names if Dim.symbol(name) in sizes}
