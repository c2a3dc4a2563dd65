"""Kernel IR: ordered loop nests over explicit buffers. Order exists here, in the graph it does not.

A `Kernel` has buffer parameters, size parameters and a body of statements. Indices are the same
polynomials as the dims of shapes (`ir.dim`), over loop variables and size parameters, so that
`i*K+j` is printed, compared and simplified like any dim. All buffers are dense; an index counts
elements from the buffer's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from staticgrad.ir.dim import DimLike
from staticgrad.ir.dtype import DType

# --- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """The element of `buffer` at `index` plus the sum of `value * stride` over `gathers`, whose
    values are int64 expressions known only from data; the writer of the kernel keeps them in
    range. With a `guard` (a bool expression), nothing is read where it is false and `fill` is the
    value."""

    buffer: str
    index: DimLike
    dtype: DType
    gathers: tuple[tuple[Expr, DimLike], ...] = ()
    guard: Expr | None = None
    fill: float | int | bool = 0


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    value: float | int | bool
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """An index as an int64 value, e.g. for `arange` or a comparison."""

    index: DimLike

    @property
    def dtype(self) -> DType:
        from staticgrad.ir.dtype import int64

        return int64


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A scalar operation by name (`codegen/scalar.py` has them all), on values of one lane."""

    op: str
    args: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """A name bound by `Let`, by a carry or by a `Reduce`."""

    name: str
    dtype: DType


Expr = Load | Literal | Index | Call | Ref

# --- statements -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Let:
    name: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    buffer: str
    index: DimLike
    value: Expr
    gathers: tuple[tuple[Expr, DimLike], ...] = ()
    guard: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """Where `condition` is false, records the failure (code, element, value); execution goes on,
    and the program stops before its commit point. The smallest (code, element) is kept."""

    condition: Expr
    code: int
    element: DimLike
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """A value that a serial loop hands from one iteration to the next; `name` is bound inside the
    body to the current value and after the loop to the last one."""

    name: str
    init: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Next:
    """Sets the carry `name` of the innermost loop that has it for the next iteration."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """`for var in 0 .. extent`. Kinds: "parallel" (outermost; iterations are independent and may be
    split over threads), "serial", "vector" (innermost; lanes are consecutive values of `var`, the
    tail is masked), "parallel_vector" (both at once: a flat kernel), and in an epilogue "rows" and
    "columns" (the block that the product just finished; columns in lanes)."""

    var: str
    extent: DimLike
    body: tuple[Stmt, ...]
    kind: str = "serial"
    carries: tuple[Carry, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Accumulator:
    """`name = op over the loop of value`. Ops: sum, prod, max, min, any, all."""

    name: str
    op: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Reduce:
    """Reduces over the index space `vars` x `extents`; after it each accumulator's name is bound.
    Reduced axes are numbered as rows: with `vector` there is an element's variable, or a row's and
    an element's; without, one.

    The order is a function of the space and the dtype alone. With `vector`, the last variable runs
    in LANES[dtype] lanes (element j goes to lane j mod LANES), in blocks of BLOCK elements that are
    folded by a fixed tree and added in order; without, elements are taken one after another, in
    blocks likewise (see `codegen/reduce.py`). `body` binds the names that the values need.
    """

    vars: tuple[str, ...]
    extents: tuple[DimLike, ...]
    body: tuple[Stmt, ...]
    accumulators: tuple[Accumulator, ...]
    vector: bool


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A call of a generated shared function (gemm, conv, sort, ...): `codegen/templates.py`.

    `buffers` are names of buffer parameters, `sizes` dims; `attrs` plain data; `epilogue` a kernel
    that runs on each finished block of the result while it is in the cache. `prologues` are kernels
    that compute the operands, left and right, where they are packed; None of one that lies in
    memory. A prologue stores to a buffer of its own, `TILE`, whose rows are `TILE_STRIDE` apart.
    """

    name: str
    buffers: tuple[str, ...]
    sizes: tuple[DimLike, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    epilogue: Kernel | None = None
    prologues: tuple[Kernel | None, Kernel | None] = (None, None)

    @property
    def touched(self) -> tuple[str, ...]:
        """The buffers that are read or written, but by the epilogue."""
        computed = (b.name for p in self.prologues if p is not None for b in p.buffers)
        return (*self.buffers, *(name for name in computed if name != TILE))


# The buffer and the size of a prologue that are not its caller's.
TILE, TILE_STRIDE = "tile", "ld"

Stmt = Let | Store | Check | Next | Loop | Reduce | Template

# --- kernels --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A parameter: a dense array. `mode` is "in", "out", "inout" or "scratch"; `size` counts
    elements and matters for scratch memory, of which each thread has its own. `nontemporal` is 1
    where vectors are stored to an "out" buffer past the caches; a size tells so at run time."""

    name: str
    dtype: DType
    mode: str
    size: DimLike
    nontemporal: DimLike = 0


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """One function of the compiled program. `sizes` are the names of its size parameters."""

    name: str
    buffers: tuple[Buffer, ...]
    sizes: tuple[str, ...]
    body: tuple[Stmt, ...]


def call(op: str, *args: Expr, dtype: DType | None = None) -> Call:
    """`Call` whose dtype is the first operand's unless given."""
    return Call(op, args, args[0].dtype if dtype is None else dtype)


def cast(x: Expr, dtype: DType) -> Expr:
    return x if x.dtype == dtype else Call("cast", (x,), dtype)
