"""The order in which reductions fold their elements: part of what a program means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from staticgrad.ir.dim import Dim, DimLike, dim_max, dim_min, floor_div, product
from staticgrad.ir.dtype import DType, float32, integer_range

from .rewrite import numbered

# A reduction's order is a function of its extents and dtype alone, so these are part of what a
# program means. Axes that are reduced count as one axis of rows, beside the last one where lanes
# run along that: an axis of size 1 more or less among the rows makes no difference.
#
# 128 bytes of lanes are two 512-bit vectors: enough to hide an add's latency of 4 cycles at one
# load a cycle from L2. Blocks bound the rounding error: a lane adds 128 elements of a row, 64 of a
# column, one after another, and blocks are added with compensation, so four million times 0.1 is
# off by 1e-6 (1e-2 without, over rows of 4). Blocks are also what threads can share.
LANE_BYTES = 128
BLOCK = 4096
COLUMN_BLOCK = 64
# Reduced rows up to this length leave most lanes idle; then lanes run along a kept dim instead, and
# each row is written out, folded as lanes are: the order does not tell whether a size is declared.
SHORT_ROW = 8

_IDENTITY: dict[str, Callable[[DType], float | int | bool]] = {
    # -0.0 is the exact identity of float addition (0.0 would turn a sum of -0.0 into 0.0).
    "sum": lambda d: -0.0 if d.is_float else 0,
    "prod": lambda d: 1,
    "max": lambda d: _extreme(d, -1),
    "min": lambda d: _extreme(d, 1),
    "any": lambda d: False,
    "all": lambda d: True,
}
COMBINE = {
    "sum": "add",
    "prod": "multiply",
    "max": "maximum",
    "min": "minimum",
    "any": "logical_or",
    "all": "logical_and",
}


def _extreme(d: DType, sign: int) -> float | int | bool:
    if d.is_float:
        return sign * float("inf")
    low, high = integer_range(d)
    return high if sign > 0 else low


def identity(op: str, dtype: DType) -> float | int | bool:
    """The value that leaves every other one as it is."""
    return _IDENTITY[op](dtype)


def combine_op(op: str) -> str:
    return COMBINE[op]


def block_rows(length: DimLike, lanes: int) -> DimLike:
    """How many rows of this length make a block in lanes: one, of which it is a piece of BLOCK
    elements, or as many as give a lane about as much; no more than of a column, so that rows of one
    element are added as a column is."""
    turns = floor_div(length + (lanes - 1), lanes)  # of a row, for one lane
    rows = dim_min(COLUMN_BLOCK, floor_div(BLOCK // lanes, dim_max(1, turns)))
    return dim_max(1, rows)


def flattened(
    axes: Sequence[tuple[str, DimLike]],
) -> tuple[tuple[str, DimLike], dict[str, DimLike]]:
    """Several loops (variable, extent) as one, which has the last one's variable; and what stands
    for each variable."""
    name = axes[-1][0]
    table = numbered(Dim.symbol(name), axes)
    return (name, product(tuple(extent for _, extent in axes))), table


def reduce_lanes(dtype: DType) -> int:
    return LANE_BYTES // max(dtype.itemsize_bytes, float32.itemsize_bytes)
