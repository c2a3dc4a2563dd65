"""The kernels of attention's gradients: the scores' cotangents, a block of queries at a time.

    for each block of queries of an item of the batch
        q = q scale                                    rows, in memory of the thread's own
        w, moved = q k^T, ct v^T                       likewise
        for each row: w = softmax(w + mask); moved = w (moved - sum(w moved))
        dq = moved k scale; dk += moved^T q; dv += w^T ct, or: cotangent of the mask += moved

Each block of an item adds to the cotangents of all keys and values: threads share items, or groups
of an item's blocks. To the cotangent of an added mask all items add that it is the same for:
threads share its own items, and its rows.
"""

from __future__ import annotations

from staticgrad.ir.dim import DimLike, dim_max, dim_min, floor_div, modulo, product
from staticgrad.ir.dtype import bool_
from staticgrad.kernels.builder import Array, KernelBuilder
from staticgrad.kernels.ir import Expr

from .attention_kernels import GAP, Attention, Rows, divisor

# Blocks of which a group of the gradient has at least so many, and the most groups of an item.
GROUP_BLOCKS = 8
MOST_GROUPS = 4


class _Cotangents(Attention):
    """With the cotangents of the weights, and then of the scores, of a block."""

    def __init__(self, k: KernelBuilder) -> None:
        super().__init__(k)
        (self.ct,) = self.rest
        self.moved = k.scratch(self.q.dtype, (self.block, self.row))
        self.kept = k.scratch(bool_, (self.row,)) if k.attrs["dropout"] else None

    def open_with_scores(self, item: DimLike, block: DimLike) -> None:
        self.open(item, block)
        self.block_of_q = self.scaled(self.q, self.scaled_q)
        self.scores(self.weights, self.block_of_q, self.key)
        self.scores(self.moved, self.rows_of(self.ct), self.v)

    def cotangents(self, r: DimLike) -> None:
        """Row r of the weights, and the cotangents of its scores: weight * (of weight - the sum of
        both). What dropout keeps is drawn once for both sweeps."""
        k, w, moved = self.k, self.weights, self.moved
        reciprocal = self.exponentials(r)

        def by_weight(j: DimLike) -> Expr:
            weight = k.let(k.call("multiply", k.load(w, (r, j)), reciprocal))
            k.store(w, (r, j), weight)
            of_weight: Expr = k.load(moved, (r, j))
            if self.kept is None:
                return k.call("multiply", of_weight, weight)
            keeps = k.let(self.is_kept(r, j))
            k.store(self.kept, (j,), keeps)
            of_weight = k.let(self.or_zero(keeps, of_weight))
            k.store(moved, (r, j), self.enlarged(of_weight))
            # The canonical form has the constant last: (x * y) * c for (x * c) * y.
            return self.enlarged(k.call("multiply", of_weight, weight))

        total = k.reduce("sum", (self.visible(r),), by_weight, vector=True)
        with k.vector(self.visible(r)) as j:
            weight = k.load(w, (r, j))
            difference = k.call("subtract", k.load(moved, (r, j)), total)
            of_score: Expr = k.call("multiply", weight, difference)
            if self.allowed is not None:
                of_score = self.or_zero(self.is_allowed(r, j), of_score)
            k.store(moved, (r, j), of_score)
            if self.kept is not None:
                used = self.or_zero(k.load(self.kept, (j,)), self.enlarged(weight))
                k.store(w, (r, j), used)
        self.clear(w, r)
        self.clear(moved, r)


# --- of queries, keys and values ------------------------------------------------------------------


def emit_gradient(k: KernelBuilder) -> None:
    """An item's blocks are taken in groups (every second, every third, ..) whose sums are added in
    order. So the blocks of few items can be shared among threads, with the sums of all groups in
    memory, and have the bits of many items, of which each is a thread's own."""
    a = _Gradient(k)
    if a.is_one_group:
        with k.parallel(a.items) as item:
            a.group(item, 0, item, a.results)
    elif isinstance(a.items, int) and a.items < MOST_GROUPS:
        sums = a.sums(a.items * a.groups)
        with k.parallel(a.items * a.groups) as i:
            a.group(floor_div(i, a.groups), modulo(i, a.groups), i, sums)
        with k.parallel(a.items * a.keys) as i:
            for x, of_groups in zip(a.results, sums):
                _add_groups(a, i, x, of_groups)
    else:
        sums = a.sums(1)
        with k.parallel(a.items) as item:
            a.clear_sums(a.results, item)
            with k.loop(a.groups) as g:
                a.group(item, g, 0, sums)
                for x, of_group in zip(a.results, sums):
                    a.add(x, item, of_group, a.keys)


def _add_groups(a: _Gradient, i: DimLike, x: Array, sums: Array) -> None:
    """Row i of all keys = the sum over the groups of its item."""
    k, columns = a.k, x.shape[-1]
    item, row = floor_div(i, divisor(a.keys)), modulo(i, divisor(a.keys))
    rows = sums.reshaped((a.items, a.groups, a.keys, columns))
    name = f"total_{x.name}"
    with k.vector(columns) as j:
        with k.loop(a.groups, **{name: k.literal(0.0, x.dtype)}) as g:
            k.next(name, k.call("add", k.ref(name), k.load(rows, (item, g, row, j))))
        k.store(x.reshaped((a.items * a.keys, columns)), (i, j), k.ref(name))


class _Gradient(_Cotangents):
    """With the part that a block adds to the cotangents of keys and values."""

    def __init__(self, k: KernelBuilder) -> None:
        super().__init__(k)
        self.dq, *self.results = k.results
        widest = dim_max(self.width, self.value_width)
        self.part = k.scratch(self.q.dtype, (self.keys * widest + GAP,))
        whole = floor_div(self.blocks, GROUP_BLOCKS)
        self.groups = dim_max(1, dim_min(MOST_GROUPS, whole))
        self.is_one_group = isinstance(self.groups, int) and self.groups == 1

    def sums(self, count: DimLike) -> list[Array]:
        """Memory for so many sums of the cotangents of keys and values."""
        return [self.k.scratch(x.dtype, (count, self.keys, x.shape[-1])) for x in self.results]

    def group(self, item: DimLike, g: DimLike, at: DimLike, into: list[Array]) -> None:
        """The rows of dq of every block of a group, and number `at` of the sums over them."""
        k = self.k
        dk, dv = into
        self.clear_sums(into, at)
        first_of_next = self.blocks + (self.groups - 1) - g
        with k.loop(floor_div(first_of_next, self.groups)) as i:
            self.open_with_scores(item, i * self.groups + g)
            with k.loop(self.rows) as r:
                self.cotangents(r)
            self.weighted(self.moved, self.key, self.dq)
            self.scale_rows(self.dq)
            self.add_product(self.moved, self.block_of_q, dk, at)
            self.add_product(self.weights, self.rows_of(self.ct), dv, at)

    def scale_rows(self, x: Array) -> None:
        """The block's rows of x times the scale, in place."""
        k, flat = self.k, x.reshaped((product(x.shape),))
        first = self.of_queries(x)[0]
        if self.scale != 1.0:
            with k.vector(self.rows * x.shape[-1]) as j:
                factor = k.literal(self.scale, x.dtype)
                k.store(flat, (first + j,), k.call("multiply", k.load(flat, (first + j,)), factor))

    def add_product(self, left: Array, right: Rows, into: Array, at: DimLike) -> None:
        """into[at, j] += the sum over the block's rows of left[r, j] * right[r]."""
        columns = into.shape[-1]
        self.product(
            self.seen, columns, self.rows, (left, (0, 1, self.row)), right,
            (self.part, 0, columns),
        )  # fmt: skip
        self.add(into, at, self.part, self.seen)

    def add(self, into: Array, at: DimLike, x: Array, rows: DimLike) -> None:
        """into[at] += x, for so many rows."""
        k, size = self.k, self.keys * into.shape[-1]
        flat, source = (y.reshaped((product(y.shape),)) for y in (into, x))
        with k.vector(rows * into.shape[-1]) as j:
            total = k.call("add", k.load(flat, (at * size + j,)), k.load(source, (j,)))
            k.store(flat, (at * size + j,), total)

    def clear_sums(self, sums: list[Array], at: DimLike) -> None:
        for x in sums:
            size = self.keys * x.shape[-1]
            with self.k.vector(size) as j:
                flat = x.reshaped((product(x.shape),))
                self.k.store(flat, (at * size + j,), self.k.literal(0.0, x.dtype))


# --- of an added mask -----------------------------------------------------------------------------


def emit_mask_gradient(k: KernelBuilder) -> None:
    """Items and blocks that share a row of the mask add to it one after another, in their order."""
    a = _MaskGradient(k)
    blocks = a.blocks if a.has_rows else 1
    with k.parallel(a.own * blocks) as i:
        own, block = floor_div(i, divisor(blocks)), modulo(i, divisor(blocks))
        a.open(a.item_of(own, 0), block)
        with k.loop(a.rows if a.has_rows else 1) as r, k.vector(a.keys) as j:
            k.store(a.into, (own, a.row_of(r), j), k.literal(0.0, a.into.dtype))
        with k.loop(a.shared) as s:
            if a.has_rows:
                a.add_block(own, s, block)
            else:
                with k.loop(a.blocks) as b:
                    a.add_block(own, s, b)


class _MaskGradient(_Cotangents):
    """The mask's items are `own`; each is the same for `shared` items of the batch."""

    def __init__(self, k: KernelBuilder) -> None:
        super().__init__(k)
        assert self.added is not None
        shape, (result,) = self.added.shape, k.results
        self.is_own = [d != 1 for d in shape[:-2]]
        self.own = product(shape[:-2])
        self.shared = product(tuple(n for n, own in zip(self.batch, self.is_own) if not own))
        self.has_rows = shape[-2] != 1
        self.into = result.reshaped((self.own, *shape[-2:]))

    def item_of(self, own: DimLike, shared: DimLike) -> DimLike:
        """The number in the batch of an item of the mask's, of those that share it."""
        left = {True: own, False: shared}
        item: DimLike = 0
        stride: DimLike = 1
        for size, is_own in zip(reversed(self.batch), reversed(self.is_own)):
            item = item + modulo(left[is_own], divisor(size)) * stride
            left[is_own] = floor_div(left[is_own], divisor(size))
            stride = stride * size
        return item

    def row_of(self, r: DimLike) -> DimLike:
        return self.first + r if self.has_rows else 0

    def add_block(self, own: DimLike, shared: DimLike, block: DimLike) -> None:
        k, moved = self.k, self.moved
        self.open_with_scores(self.item_of(own, shared), block)
        with k.loop(self.rows) as r:
            self.cotangents(r)
            with k.vector(self.visible(r)) as j:
                at = (own, self.row_of(r), j)
                total = k.call("add", k.load(self.into, at), k.load(moved, (r, j)))
                k.store(self.into, at, total)


__all__ = ["GROUP_BLOCKS", "MOST_GROUPS", "emit_gradient", "emit_mask_gradient"]
