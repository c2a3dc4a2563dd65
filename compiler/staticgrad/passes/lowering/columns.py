"""Sums over rows inside of the kernel that goes through the rows (`passes/columns.py`).

    for each block of rows (shared among threads)
        for the columns: part[block] = -0.0
        for each row of the block
            what is computed row by row
            for the columns: part[block] += what is summed

    for the columns (shared among threads)
        for each block: total += part[block], with what the additions round away beside it

The blocks are those of a reduction over the same axes, and so are the order and the compensation
(`codegen/reduce.py`): the same bits, whether a sum has a kernel of its own or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from staticgrad.ir.dim import Dim, DimLike, product
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.ir import Call, Loop, Ref, Stmt, Store
from staticgrad.kernels.order import COLUMN_BLOCK, flattened
from staticgrad.kernels.rewrite import replaced

from .blocks import Total, combined, no_elements, piece, pieces
from .body import Body
from .draft import Draft, linear
from .map import nest
from .pull import Puller

if TYPE_CHECKING:
    from .lower import Lowerer
    from .space import Space


@dataclass
class ColumnSums:
    """The column sums `nodes` of a kernel over the rows of `space`."""

    lowerer: Lowerer
    body: Body
    space: Space
    nodes: Sequence[Node]
    parts: dict[Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.row, self.rows = flattened(self.space.kept)
        self.blocks = pieces(COLUMN_BLOCK, self.row[1])
        self.block = f"d{len(self.space.shape)}"  # a loop's name, as `passes/names.py` knows them
        for n in self.nodes:
            size = self.blocks * n.types[0].size
            self.parts[n] = self.lowerer.scratch(n.types[0].dtype, size)

    @property
    def _columns(self) -> tuple[DimLike, tuple[DimLike, ...]]:
        """The place of a column in a line of sums, and the line's shape."""
        shape = tuple(self.space.shape[a] for a in self.space.axes)
        return linear([self.space.at[a] for a in self.space.axes], shape), shape

    def _place(self, n: Node) -> DimLike:
        column, shape = self._columns
        return Dim.symbol(self.block) * product(shape) + column

    def stores(self, draft: Draft, puller: Puller) -> list[Store]:
        """For one element of a row: what adds it to its columns' sums."""
        found = []
        for n in self.nodes:
            dtype, at = n.types[0].dtype, self._place(n)
            known = draft.load(self.parts[n], at, dtype)
            value = puller.pull(n.operands[0], self.space.at)
            found.append(draft.store(self.parts[n], at, Call("add", (known, value), dtype)))
        return found

    def loops(self, draft: Draft, statements: Sequence[Stmt]) -> tuple[tuple[Stmt, ...], DimLike]:
        """The statements of a row inside of the loops over blocks and rows; how many blocks."""
        row, extent = self.row
        begin, rows = piece(Dim.symbol(self.block), COLUMN_BLOCK, extent)
        body = replaced(replaced(statements, self.rows), {row: begin + Dim.symbol(row)})
        zeros = [
            draft.store(self.parts[n], self._place(n), no_elements("sum", n.types[0].dtype))
            for n in self.nodes
        ]
        nothing: tuple[Stmt, ...] = tuple(zeros)
        for i, (name, size) in enumerate(reversed(self.space.reduced)):
            nothing = (Loop(name, size, nothing, "serial" if i else "vector"),)
        body = (*nothing, Loop(row, rows, body, "serial"))
        return (Loop(self.block, self.blocks, body, "parallel"),), self.blocks

    def finish(self, outer: dict[Value, Value]) -> None:
        """The step that adds the blocks' sums."""
        draft = Draft(self.lowerer.program)
        totals = [Total(f"r{i}", "sum", n.types[0].dtype) for i, n in enumerate(self.nodes)]
        body = combined(
            totals, self.block, self.blocks,
            lambda i: draft.load(
                self.parts[self.nodes[i]], self._place(self.nodes[i]), totals[i].dtype
            ),
        )  # fmt: skip
        for n, t in zip(self.nodes, totals):
            value = outer[n.results[0]]
            at = linear(self._result_at(n), value.shape)
            body.append(draft.store(self.lowerer.result_buffer(value), at, Ref(t.name, t.dtype)))
        extents = [e for _, e in self.space.reduced]
        loops = nest(body, [name for name, _ in self.space.reduced], extents)
        kernel, buffers, sizes = draft.finish("column_sums", loops)
        names = tuple(n.op for n in self.nodes)
        line = product(self._columns[1])
        flops = self.blocks * line * len(self.nodes)
        self.lowerer.add_step(
            kernel, buffers, sizes, extents[0], names, self.body.locs, flops=flops
        )

    def _result_at(self, n: Node) -> tuple[DimLike, ...]:
        if n.attrs["keepdims"]:
            return tuple(0 if a in n.attrs["axes"] else i for a, i in enumerate(self.space.at))
        return tuple(i for a, i in enumerate(self.space.at) if a not in n.attrs["axes"])
