"""Products of few elements over a long k: threads share the blocks of k.

An element's sum is that of its blocks of k, which are added in order (`codegen/gemm.py`). Where a
result has too few rows and columns to be shared, the product of each block is stored, and a small
kernel adds those and computes what is fused behind: the same bits.

    for each block of k (shared among threads): part[block] = a[:, block] b[block, :]
    for each element: c = part[0] + part[1] + ..
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from staticgrad.codegen import gemm, gemm_vector
from staticgrad.ir.dim import Dim, DimLike, dim_max, dim_min, product
from staticgrad.ir.dtype import DType, dtype
from staticgrad.kernels.ir import Carry, Expr, Literal, Loop, Next, Ref, Stmt, Template, call
from staticgrad.kernels.order import identity

from .draft import Draft, linear
from .map import collapse, loop_space, nest
from .prepack import may_pack
from .product import BATCH

if TYPE_CHECKING:
    from .matmul import MatmulLowering

# Rows and columns up to which threads share blocks: shares of rows begin at multiples of 16, and
# of 20 rows they are 16 and 4.
MOST_OF_RESULT = 48
# Elements of both operands from which on that pays for a kernel and a barrier more: 32,768 times
# 32,768 takes 4.5 us.
LEAST_ELEMENTS = 1 << 16
# Of an unknown k, elements of the result up to which a kernel more costs next to nothing should k
# be short: gradients of small layers have more, over batches that seldom fill two blocks.
MOST_IF_UNKNOWN = 16

Sizes = tuple[DimLike, DimLike, DimLike]


def in_blocks(held: DType, sizes: Sizes) -> bool:
    """Whether a product of `sizes` (m, n, k) is lowered this way. A function of the sizes alone;
    the bits are the same either way."""
    m, n, k = sizes
    if not (isinstance(m, int) and isinstance(n, int) and min(m, n) > 0):
        return False
    if max(m, n) > MOST_OF_RESULT:
        return False
    if not isinstance(k, int):
        return m * n <= MOST_IF_UNKNOWN
    return k > gemm.longest_k_block(held.itemsize_bytes) and (m + n) * k >= LEAST_ELEMENTS


class BlockedProduct:
    """Lowers one, given where the operands lie: buffers, and (start, row, column) strides."""

    def __init__(
        self, lowering: MatmulLowering, sizes: Sizes, operands: Sequence[int],
        strides: Sequence[DimLike | None],
    ) -> None:  # fmt: skip
        self.p, self.lowerer = lowering, lowering.lowerer
        self.sizes, self.operands = sizes, operands
        self.strides = [s for s in strides if s is not None]
        assert len(self.strides) == len(strides)
        self.dtype = lowering.result.dtype
        itemsize = self.dtype.itemsize_bytes
        self.step = gemm.k_block(itemsize, sizes[2])
        self.blocks = gemm.k_blocks(itemsize, sizes[2])

    def is_kept_packed(self) -> bool:
        """Whether the right operand may be packed once for all calls, which saves more than what a
        second thread would."""
        program, target, right = self.lowerer.program, self.lowerer.target, self.operands[1]
        return may_pack(program, target, right, str(self.dtype), *self.sizes)

    def run(self) -> None:
        m, n, k = self.sizes
        parts = self.lowerer.scratch(self.dtype, self.blocks * m * n)
        vectors = gemm_vector.vectors_of(
            str(self.dtype), self.sizes, self.strides[2], self.strides[4]
        )
        if gemm_vector.is_dots(vectors, self.strides[2], self.strides[4]):
            body = self._dots(parts)
        else:
            body = self._products(parts, vectors)
        self.p.finish((body,), self.blocks, (), m * n * k * 2)
        self._sums(parts)

    def _dots(self, parts: int) -> Stmt:
        """One vector times few, all of which lie unbroken."""
        m, n, k = self.sizes
        a, a_rs, _, b, _, b_cs = self.strides[:6]
        draft = self.p.draft
        one, many = ((0, a), (1, b, b_cs, n)) if m == 1 else ((1, b), (0, a, a_rs, m))
        buffers = [draft.buffer(self.operands[i], "in") for i in (one[0], many[0])]
        names = (*buffers, draft.buffer(parts, "out"))
        share = (Dim.symbol("begin"), Dim.symbol("end"))
        sizes = (many[3], k, one[1], *many[1:3], *share)
        return Template("dots", names, sizes, {"dtype": str(self.dtype)})

    def _products(self, parts: int, vectors: int) -> Stmt:
        m, n, k = self.sizes
        a, a_rs, a_cs, b, b_rs, b_cs = self.strides[:6]
        held, draft, lowerer = str(self.dtype), self.p.draft, self.lowerer
        start = BATCH * self.step
        depth = dim_max(0, dim_min(self.step, k - start))
        if isinstance(k, int) and isinstance(self.step, int) and k % self.step == 0:
            depth = self.step
        needed: DimLike = 0
        if not vectors:
            needed = gemm.workspace_bytes(
                lowerer.target, held, (m, n, self.step), unbroken=b_cs == 1, up_to=True
            )
        workspace = lowerer.scratch(dtype("uint8"), needed, per_thread=True)
        buffers = (
            *(draft.buffer(i, "in") for i in self.operands), draft.buffer(parts, "inout"),
            draft.buffer(workspace, "inout"),
        )  # fmt: skip
        sizes = (
            m, n, depth, a + start * a_cs, a_rs, a_cs, b + start * b_rs, b_rs, b_cs,
            BATCH * (m * n), n, 0, 0, dim_max(m, n),
        )  # fmt: skip
        attrs = {"dtype": held, **({"vectors": vectors} if vectors else {})}
        return Loop("batch", self.blocks, (Template("matmul", buffers, sizes, attrs),), "parallel")

    def _sums(self, parts: int) -> None:
        """The kernel that adds the blocks of each element, and stores it and what follows."""
        p, shape = self.p, self.p.result.shape
        p.draft = draft = Draft(self.lowerer.program)
        at, variables, extents = loop_space("d", shape)
        block, total = f"d{len(shape)}", Ref("total", self.dtype)
        place = Dim.symbol(block) * product(shape) + linear(at, shape)
        nothing = Literal(identity("sum", self.dtype), self.dtype)
        added = Next(total.name, call("add", total, draft.load(parts, place, self.dtype)))

        def element(index: tuple[DimLike, ...]) -> Expr:
            assert index == at
            return total

        puller = p.puller({p.result: element})
        body: Sequence[Stmt] = (
            Loop(block, self.blocks, (added,), "serial", (Carry(total.name, nothing),)),
            *(
                draft.store(self.lowerer.result_buffer(o), linear(at, shape), puller.pull(i, at))
                for i, o in p.body.outputs
            ),
        )
        extent: DimLike = 1
        if variables:
            body, variables, extents = collapse(body, variables, extents)
            body, extent = nest(body, variables, extents), extents[0]
        kernel, buffers, sizes = draft.finish(f"{p.root.op}_blocks", body)
        self.lowerer.add_step(
            kernel, buffers, sizes, extent, p.body.labels, p.body.locs,
            flops=self.blocks * product(shape),
        )  # fmt: skip
