"""Matrix products, with the element-wise producers of their operands in prologues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staticgrad.codegen import gemm, gemm_vector
from staticgrad.ir.dim import Dim, DimLike, dim_max, product, substitute
from staticgrad.ir.dtype import dtype
from staticgrad.ir.node import Value
from staticgrad.kernels.ir import TILE, TILE_STRIDE, Buffer, Loop, Stmt, Store, Template
from staticgrad.kernels.rewrite import all_indices, buffer_names, factor_of, numbered, replaced

from ..groups import broadcast_index
from .draft import linear
from .matmul_blocks import BlockedProduct, in_blocks
from .prepack import may_pack
from .product import BATCH, COLUMN, ROW, Called, ProductLowering, called, flatten

# Rows from which on threads share them whatever the columns, if k is short: so many rows to one of
# k. What a product then takes is to store its result, which goes better by whole rows; each thread
# packs all of the right side, which is little. 2048 x 16 x 2048 on two threads: 766 us by columns,
# 690 so; 1024 x 16 x 2048: 910 and 343; 1024 x 64 x 1024: 656 and 609; but 256 x 64 x 4096: 613 and
# 625, and from 1024 x 256 x 1024 on it is the same.
LEAST_FLAT_ROWS, ROWS_TO_K = 128, 8


def _is_flat(rows: DimLike, n: DimLike, k: DimLike) -> DimLike:
    """1 where that is so, else 0; 0 too where it makes no difference, as there are more rows than
    columns."""
    if not isinstance(k, int):
        return 0
    least = max(LEAST_FLAT_ROWS, ROWS_TO_K * k)
    if isinstance(n, int) and n < least:
        return 0
    return gemm.above(rows, least - 1)


# Results of fewer bytes stay in the cache anyway, and of fewer tiles, one a thread, memory is not
# saved.
LEAST_TILED_BYTES, LEAST_TILES = 1 << 16, 4


class MatmulLowering(ProductLowering):
    """`c[.., i, j] = sum over k of a[.., i, k] b[.., k, j]`, for any views of a and b."""

    def run(self) -> None:
        a, b = self.root.operands
        shape = self.result.shape
        rank = len(shape)
        n, k = shape[-1], a.shape[-1]
        names = [f"d{i}" for i in range(rank)]
        at = [Dim.symbol(s) for s in names]
        batch, kk = at[:-2], Dim.symbol("k")
        a_place, b_place = (*batch, at[-2], kk), (*batch, kk, at[-1])
        a_buffer, a_at = self._operand(a, a_place, [*names[:-1], "k"])
        b_buffer, b_at = self._operand(b, b_place, [*names[:-2], "k", names[-1]])
        c_at = linear(at, shape)
        row_dims, batch_dims = self._rows(shape, a_at, b_at, c_at)
        few = self._are_few(shape[row_dims[-1]], n)
        if a_buffer is not None and few and self._share_right(batch_dims, b_at):
            a_buffer = self.lowerer.dense(self.outer(a))
            a_at = linear(broadcast_index(a_place, a.shape), a.shape)
            row_dims, batch_dims = self._rows(shape, a_at, b_at, c_at)
        rows = product(tuple(shape[d] for d in row_dims))
        row, column = f"d{row_dims[-1]}", names[-1]
        left = right = None
        if a_buffer is None:
            left, a_at = self._prologue(a, a_place, batch_dims, row_dims, row, "k")
        if b_buffer is None:
            right, b_at = self._prologue(b, b_place, batch_dims, [rank - 1], "k", column)
        strides: list[DimLike | None] = []
        for index, moving in ((a_at, (row, "k")), (b_at, ("k", column)), (c_at, (row,))):
            strides.append(self._batch_start(index, batch_dims, shape))
            strides += [factor_of(index, name) for name in moving]
        draft, target, held = self.draft, self.lowerer.target, str(self.result.dtype)
        if (
            a_buffer is not None and b_buffer is not None and not batch_dims
            and in_blocks(self.result.dtype, (rows, n, k))
        ):  # fmt: skip
            blocked = BlockedProduct(self, (rows, n, k), (a_buffer, b_buffer), strides)
            if not blocked.is_kept_packed():
                blocked.run()
                return
        if left is None and right is None:
            unbroken = factor_of(b_at, column) == 1
            needed = gemm.workspace_bytes(target, held, (rows, n, k), unbroken=unbroken)
            vectors = gemm_vector.vectors_of(held, (rows, n, k), strides[2], strides[4])
            if vectors and not may_pack(self.lowerer.program, target, b_buffer, held, rows, n, k):
                needed = 0  # what computes those has no use for it
        else:
            needed = gemm.prologue_workspace_bytes(target, held, (rows, n, k))
            vectors = 0
        tile = 0 if vectors else self._tile_bytes(rows, n)
        workspace = self.lowerer.scratch(dtype("uint8"), needed + tile, per_thread=True)
        if tile:
            self.tiled, self.c = True, self._long_result(k, workspace)
        buffers = (
            draft.buffer(workspace if a_buffer is None else a_buffer, "in"),
            draft.buffer(workspace if b_buffer is None else b_buffer, "in"),
            draft.buffer(self.c, "inout"), draft.buffer(workspace, "inout"),
        )  # fmt: skip
        epilogue = self.epilogue((batch_dims, row_dims, [rank - 1]), buffers[2])
        # Threads share the batch, or else the longer side of the result: what has to be packed for
        # each of them again is the shorter operand (64 x 1568 x 128: 155 us by rows, 130 so; 8 x
        # 1024 x 1024: 257 and 132).
        split, longer = not batch_dims, dim_max(rows, n)
        most: tuple[DimLike, ...] = ()
        if split and right is None and (flat := _is_flat(rows, n, k)) != 0:
            longer, most = flat * rows + (1 - flat) * longer, (rows + flat * n,)
        begin, end = Dim.symbol("begin"), Dim.symbol("end")
        sizes = (
            rows, n, k, *strides, 0 if split else BATCH,
            begin if split else 0, end if split else longer, *most,
        )  # fmt: skip
        attrs: dict[str, Any] = {"dtype": held}
        attrs.update({name: n for name, n in (("vectors", vectors), ("tile", tile)) if n})
        template = Template(
            "matmul", buffers, sizes, attrs,  # type: ignore[arg-type]
            epilogue[0] if epilogue else None,
            (left[0] if left else None, right[0] if right else None),
        )  # fmt: skip
        body: tuple[Stmt, ...] = (template,)
        extent: DimLike = longer
        if not split:
            extent = product(tuple(shape[d] for d in batch_dims))
            body = (Loop("batch", extent, body, "parallel"),)
        flops = product(shape) * k * 2
        self.finish(body, extent, (left, right, epilogue), flops)

    def _operand(
        self, v: Value, place: Sequence[Dim], names: list[str]
    ) -> tuple[int | None, DimLike]:
        """The buffer of an operand and the index of its element, affine in all of `names`; no
        buffer for one that is computed here, and the index that it had in one."""
        at = broadcast_index(place, v.shape)
        if v.node in self.body.inside:
            return None, linear(at, v.shape)
        v = self.outer(v)
        buffer, index = self.lowerer.address(v, at)
        if any(factor_of(index, name) is None for name in names):
            buffer, index = self.lowerer.dense(v), linear(at, v.shape)
        return buffer, index

    def _prologue(
        self, v: Value, place: Sequence[Dim], batch_dims: list[int], dims: list[int],
        row: str, column: str,
    ) -> tuple[Called, DimLike]:  # fmt: skip
        """The kernel that computes an operand whose indices are `row` and `column`, one of them k
        and the other that of the result's `dims`, or its transpose if less of what it loads has
        strides so. And an index that tells which."""
        shape, puller = self.result.shape, self.puller()
        value = puller.pull(v, broadcast_index(place, v.shape))
        index = Dim.symbol("row") * Dim.symbol(TILE_STRIDE) + COLUMN
        stores: tuple[Stmt, ...] = (Store(TILE, index, value),)
        loaded = all_indices(stores)
        strided = [sum(factor_of(i, name) not in (0, 1) for i in loaded) for name in (row, column)]
        last, other = (column, row) if strided[1] <= strided[0] else (row, column)
        flat = COLUMN if other == "k" else ROW
        stores = flatten(stores, BATCH, batch_dims, shape)
        stores = flatten(stores, flat, [d for d in dims if shape[d] != 1], shape)
        stores = replaced(stores, {"k": COLUMN if last == "k" else ROW})
        extent = v.shape[-1] if last == column else v.shape[-2]
        loops = Loop("row", 1, (Loop("column", extent, stores, "columns"),), "rows")
        used = buffer_names(stores)
        buffers = tuple(
            Buffer(name, self.lowerer.program.buffers[i].dtype, "in", 0)
            for i, name, _ in self.draft.entries() if name in used
        )  # fmt: skip
        buffers = (Buffer(TILE, v.dtype, "out", 0), *buffers)
        letter = "l" if row != "k" else "r"
        return called("prologue", letter, buffers, (loops,)), Dim.symbol(last)

    def _tile_bytes(self, rows: DimLike, columns: DimLike) -> int:
        """Room for what the epilogue has not read yet, if nothing else reads the result, and it is
        much larger; else 0. A weights' gradient is so never in memory as a whole."""
        if len(self.riders) < len(self.body.outputs) or self.c_shared is not None:
            return 0
        if not isinstance(rows, int) or not isinstance(columns, int):
            return 0
        held = self.result.dtype
        tile = gemm.tile_bytes(self.lowerer.target, str(held), rows, columns)
        whole = rows * columns * held.itemsize_bytes
        return tile if whole >= LEAST_TILED_BYTES and tile * LEAST_TILES <= whole else 0

    def _long_result(self, k: DimLike, workspace: int) -> int:
        """Where the result lies if k takes several blocks, whose sums are added to it."""
        longest = gemm.longest_k_block(self.result.dtype.itemsize_bytes)
        size = gemm.above(k, longest) * self.result.type.size
        return workspace if size == 0 else self.lowerer.scratch(self.result.dtype, size)

    def _rows(
        self, shape: tuple[DimLike, ...], a: DimLike, b: DimLike, c: DimLike
    ) -> tuple[list[int], list[int]]:
        """The dims of the result that number its rows, and those of the batch: dims of the batch
        that only the rows of a and c run through are rows themselves. Where there is one row, the
        last such dim is the rows: 64 matrices of one row by 1024 x 1024 took 10.3 ms one by one,
        1.4 so."""
        last = len(shape) - 2
        batch_dims, row_dims = [d for d in range(last) if shape[d] != 1], [last]
        if shape[last] == 1:
            if not batch_dims or factor_of(b, f"d{batch_dims[-1]}") != 0:
                return row_dims, batch_dims
            row_dims = [batch_dims.pop()]
        row, rows = f"d{row_dims[0]}", shape[row_dims[0]]
        step_a, step_c = factor_of(a, row), factor_of(c, row)
        assert step_a is not None and step_c is not None
        while batch_dims:
            outer = f"d{batch_dims[-1]}"
            fits = (
                factor_of(b, outer) == 0
                and factor_of(a, outer) == step_a * rows
                and factor_of(c, outer) == step_c * rows
            )
            if not fits:
                break
            rows = rows * shape[batch_dims[-1]]
            row_dims.insert(0, batch_dims.pop())
        return row_dims, batch_dims

    def _share_right(self, batch_dims: list[int], b: DimLike) -> bool:
        """Whether matrices have one right side, and are no rows of one since the left one lies
        otherwise. A copy costs less than packing the right side for each of few rows: 64 of 4 x
        1024 by 1024 x 1024 took 23.0 ms one by one, 5.2 with the copy."""
        return bool(batch_dims) and factor_of(b, f"d{batch_dims[-1]}") == 0

    def _are_few(self, rows: DimLike, columns: DimLike) -> bool:
        """Whether there may be no more rows than columns."""
        more = dim_max(0, rows - columns)
        return more == 0 or not isinstance(more, int)

    def _batch_start(
        self, index: DimLike, batch_dims: list[int], shape: tuple[DimLike, ...]
    ) -> DimLike:
        """Where the matrix with the number BATCH begins."""
        zeros: dict[str, DimLike] = dict.fromkeys([*(f"d{d}" for d in range(len(shape))), "k"], 0)
        return substitute(index, zeros | numbered(BATCH, [(f"d{d}", shape[d]) for d in batch_dims]))
