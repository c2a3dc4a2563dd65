"""The kernel of `attention`, and what it has in common with those of its gradients.

for each block of queries of each item of the batch         (shared among threads)
    s = (q scale) k^T           rows of scores, in memory of the thread's own
    for each row: s = softmax(s + mask)
    y = s v
"""

from __future__ import annotations

import math

import numpy as np

from staticgrad.ir.dim import DimLike, dim_max, dim_min, floor_div, modulo, product
from staticgrad.ir.dtype import bool_, float32, int32, uint32
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import Array, KernelBuilder
from staticgrad.kernels.ir import Expr, Ref, cast

from .random import emit_bits
from .registry import Attrs

# Queries to a block. The more, the less often the keys are packed: 128 take 4 % less time than 64.
# But where a query sees the keys up to its own, they compute more of what is cut off: 64 take 7 %
# less then (4 heads of 512 x 64, forward and backward, Zen 4), and leave more in the L2 cache.
BLOCK = 128
CAUSAL_BLOCK = 64
# Elements between rows of scores: with a stride of whole pages a column lies on one cache set.
GAP = 16


def block_of(causal: bool) -> int:
    """How many queries a block has: up to so many, the plain form computes the same bits."""
    return CAUSAL_BLOCK if causal else BLOCK


Place = tuple[DimLike, DimLike, DimLike]  # where a matrix begins, strides of rows and columns
Rows = tuple[Array, Place]


def scale_of(attrs: Attrs) -> float:
    """By what queries are multiplied; where it is 1 no attribute says so."""
    return float(attrs.get("scale", 1.0))


class Attention:
    """What all kernels have: sizes, memory, scaled queries, and the rows of weights."""

    def __init__(self, k: KernelBuilder) -> None:
        self.k = k
        q, key, v, *rest = k.operands
        self.items = product(q.shape[:-2])
        self.queries, self.width = q.shape[-2:]
        self.keys, self.value_width = v.shape[-2:]
        self.batch = q.shape[:-2]
        self.q, self.key, self.v = q, key, v
        self.causal = bool(k.attrs["causal"])
        self.allowed = rest.pop(0) if k.attrs["allowed"] else None
        self.added = rest.pop(0) if k.attrs["added"] else None
        self.key_of_bits = rest.pop(0) if k.attrs["dropout"] else None
        self.rest = rest
        self.block = block_of(self.causal)
        self.row = self.keys + GAP
        self.weights = k.scratch(q.dtype, (self.block, self.row))
        self.scale = scale_of(k.attrs)
        self.scaled_q = self.room_for_scaled()
        rows, widest = dim_min(self.block, self.queries), dim_max(self.width, self.value_width)
        sizes = [(rows, self.keys, widest), (rows, widest, self.keys), (self.keys, widest, rows)]
        self.workspace = k.workspace(q.dtype, sizes)
        self.blocks = floor_div(self.queries + (self.block - 1), self.block)

    def place(self, i: DimLike) -> tuple[DimLike, DimLike]:
        """The item and the block of turn i. Of causal ones the first, the last, the second, ..: any
        share of them is about as much work."""
        blocks = divisor(self.blocks)
        item, block = floor_div(i, blocks), modulo(i, blocks)
        if self.causal:
            half, odd = floor_div(block, 2), modulo(block, 2)
            block = half + odd * (blocks - 1 - half * 2)
        return item, block

    def open(self, item: DimLike, block: DimLike) -> None:
        """The block that is at hand: its item, its rows, and how many keys it sees."""
        self.item = item
        self.first = block * self.block
        self.rows = dim_min(self.block, self.queries - self.first)
        self.seen = dim_min(self.keys, self.first + self.block) if self.causal else self.keys

    def visible(self, r: DimLike) -> DimLike:
        """The keys that row `r` of the block sees, as far as its place says."""
        return dim_min(self.keys, self.first + r + 1) if self.causal else self.keys

    # --- products ---------------------------------------------------------------------------------

    def of_queries(self, x: Array) -> Place:
        """The rows of the block in an array [.., queries, columns]."""
        columns = x.shape[-1]
        return (self.item * self.queries + self.first) * columns, columns, 1

    def room_for_scaled(self) -> Array | None:
        """Memory for a block's rows of queries, or of their tangents, times the scale."""
        return None if self.scale == 1.0 else self.k.scratch(self.q.dtype, (self.block, self.width))

    def scaled(self, x: Array, into: Array | None) -> Rows:
        """The block's rows of x times the scale, which are in the cache when they are multiplied.
        Scaled before, 4 x 8 heads of 512 x 64 are two sweeps more, 0.4 of 26 ms."""
        k, place = self.k, self.of_queries(x)
        if into is None:
            return x, place
        size = self.block * self.width
        source, target = x.reshaped((product(x.shape),)), into.reshaped((size,))
        with k.vector(self.rows * self.width) as j:
            factor = k.literal(self.scale, x.dtype)
            k.store(target, (j,), k.call("multiply", k.load(source, (place[0] + j,)), factor))
        return into, (0, self.width, 1)

    def rows_of(self, x: Array) -> Rows:
        return x, self.of_queries(x)

    def of_keys(self, x: Array) -> Place:
        columns = x.shape[-1]
        return self.item * self.keys * columns, columns, 1

    def product(
        self, m: DimLike, n: DimLike, k: DimLike, a: Rows, b: Rows,
        c: tuple[Array, DimLike, DimLike],
    ) -> None:  # fmt: skip
        """c[m, n] = a[m, k] b[k, n]."""
        sizes = (m, n, k, *a[1], *b[1], *c[1:], 0, 0, dim_max(m, n))
        arrays = (a[0], b[0], c[0], self.workspace)
        self.k.template("matmul", arrays, sizes, dtype=str(self.q.dtype))

    def scores(self, into: Array, left: Rows, right: Array) -> None:
        """into[r, j] = the product of row r of `left` and row j of `right`."""
        start, stride, _ = self.of_keys(right)
        self.product(
            self.rows, self.seen, right.shape[-1], left, (right, (start, 1, stride)),
            (into, 0, self.row),
        )  # fmt: skip

    def weighted(self, weights: Array, x: Array, into: Array) -> None:
        """into's rows of the block = weights x, for x [.., keys, columns]."""
        start, stride, _ = self.of_queries(into)
        self.product(
            self.rows, x.shape[-1], self.seen, (weights, (0, self.row, 1)), (x, self.of_keys(x)),
            (into, start, stride),
        )  # fmt: skip

    # --- rows -------------------------------------------------------------------------------------

    def mask(self, mask: Array, r: DimLike, j: DimLike) -> Expr:
        """The element of a mask whose dims of 1 are broadcast."""
        at = (*self._batch_at(), self.first + r, j)
        return self.k.load(mask, [0 if d == 1 else i for d, i in zip(mask.shape, at)])

    def _batch_at(self) -> tuple[DimLike, ...]:
        """The item's index in each dim of the batch."""
        at: list[DimLike] = []
        rest = self.item
        for size in reversed(self.batch):
            at.append(modulo(rest, divisor(size)))
            rest = floor_div(rest, divisor(size))
        return tuple(reversed(at))

    def is_kept(self, r: DimLike, j: DimLike) -> Expr:
        """Whether dropout keeps a weight: what `dropped` in `attention` draws for it."""
        k, key = self.k, self.key_of_bits
        assert key is not None
        outer = len(key.shape) - 1
        at = (*self._batch_at(), self.first + r, j)
        shape = (*self.batch[outer:], self.queries, self.keys)

        def load(operand: int, index: tuple[DimLike, ...]) -> Expr:
            return k.load(key, [0 if d == 1 else i for d, i in zip(key.shape, index)])

        attrs = {"site": 0, "shape": shape, "word": 0}
        bits = emit_bits(at, attrs, TensorType(uint32, (*self.batch[:outer], *shape)), load)
        upper = k.call("bitwise_right_shift", bits, k.literal(8, uint32))
        unit = k.call("multiply", cast(cast(upper, int32), float32), k.literal(2.0**-24, float32))
        chance = float(np.float32(1.0 - k.attrs["dropout"]))
        return k.call("less", unit, k.literal(chance, float32), dtype=bool_)

    def enlarged(self, x: Expr) -> Expr:
        """x / (1 - p)"""
        factor = self.k.literal(1.0 / (1.0 - self.k.attrs["dropout"]), x.dtype)
        return self.k.call("multiply", x, factor)

    def or_zero(self, kept: Expr, x: Expr) -> Expr:
        return self.k.call("select", kept, x, self.k.literal(0.0, x.dtype), dtype=x.dtype)

    def is_allowed(self, r: DimLike, j: DimLike) -> Expr:
        assert self.allowed is not None
        return self.mask(self.allowed, r, j)

    def exponentials(self, r: DimLike) -> Ref:
        """Row r of the scores -> exp(score - maximum); gives the reciprocal of their sum. Done in
        the order of `softmax`: its lanes, and zeros for what is not seen, change no sum."""
        k, w = self.k, self.weights

        def score(j: DimLike) -> Expr:
            s: Expr = k.load(w, (r, j))
            if self.added is not None:
                s = k.call("add", s, self.mask(self.added, r, j))
            if self.allowed is not None:
                low = k.literal(-math.inf, w.dtype)
                s = k.call("select", self.is_allowed(r, j), s, low, dtype=w.dtype)
            if self.added is None and self.allowed is None:
                return s
            s = k.let(s)
            k.store(w, (r, j), s)
            return s

        largest = k.reduce("max", (self.visible(r),), score, vector=True)

        def exponential(j: DimLike) -> Expr:
            e = k.let(k.call("exp", k.call("subtract", k.load(w, (r, j)), largest)))
            k.store(w, (r, j), e)
            return e

        total = k.reduce("sum", (self.visible(r),), exponential, vector=True)
        return k.let(k.call("reciprocal", total))

    def clear(self, x: Array, r: DimLike) -> None:
        """Zeros for the keys of the block that row r does not see."""
        if self.causal:
            with self.k.vector(self.seen - self.visible(r)) as j:
                zero = self.k.literal(0.0, x.dtype)
                self.k.store(x, (r, self.visible(r) + j), zero)


def divisor(size: DimLike) -> DimLike:
    """Where a dim is 0 nothing is computed, and any divisor will do."""
    return 1 if isinstance(size, int) and size == 0 else size


def emit_attention(k: KernelBuilder) -> None:
    a = Attention(k)
    y, w = k.results[0], a.weights
    with k.parallel(a.items * a.blocks) as i:
        a.open(*a.place(i))
        a.scores(w, a.scaled(a.q, a.scaled_q), a.key)
        with k.loop(a.rows) as r:
            reciprocal = a.exponentials(r)
            with k.vector(a.visible(r)) as j:
                weight: Expr = k.call("multiply", k.load(w, (r, j)), reciprocal)
                if a.key_of_bits is not None:
                    weight = a.or_zero(a.is_kept(r, j), a.enlarged(weight))
                k.store(w, (r, j), weight)
            a.clear(w, r)
        a.weighted(w, a.v, y)


__all__ = [
    "BLOCK", "CAUSAL_BLOCK", "Attention", "Rows", "block_of", "divisor", "emit_attention",
    "scale_of",
]  # fmt: skip
