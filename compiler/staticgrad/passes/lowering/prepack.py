"""prepack: what a loop's products multiply with in every iteration is packed once, before the loop.

before -> after

    repeat _i0 in 0..100 {                    step 0: pack(w -> p)
      step 0: matmul(h, w -> g)               repeat _i0 in 0..100 {
    }                                           step 1: matmul(h, w, p -> g)
                                              }

A pass over the program, before its steps are ordered. The packed copy is a temporary of the plan,
as large as the matrix. Preserving: `sg_prepacked` computes the bits of `sg_gemm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from staticgrad.codegen.gemm_prepacked import panel_count, prepacked_bytes, reads_panels
from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim, DimLike, substitute, symbols
from staticgrad.ir.dtype import dtype
from staticgrad.kernels.ir import Buffer, Kernel, Template
from staticgrad.kernels.program import (
    Choose,
    Item,
    Program,
    ProgramBuffer,
    Repeat,
    Step,
    parts,
    steps_of,
)
from staticgrad.kernels.rewrite import SizeParameters

# Packing an element takes as long as multiplying it with some six rows: with more rows than this it
# is less than 3 % of the product, and the copy is not worth its memory.
MOST_ROWS = 256
LEAST_ITERATIONS = 3


@dataclass(frozen=True)
class _Matrix:
    """The right operand of a product: where it lies and its sizes."""

    buffer: int
    dtype: str
    n: int
    k: int
    start: DimLike
    rs: DimLike
    cs: DimLike


def prepack(program: Program, target: Target) -> Program:
    """The program with the packing of loops' constant operands before the loops."""
    packer = _Packer(program, target)
    items, commit = packer.visit(program.items, program.commit, 0, 1)
    return replace(program, items=list(items), commit=commit)


class _Packer:
    def __init__(self, program: Program, target: Target) -> None:
        self.program, self.target = program, target

    def visit(
        self, items: Sequence[Item], commit: int, region: int, times: DimLike
    ) -> tuple[tuple[Item, ...], int]:
        """The items with what is packed before them, and the new place of item `commit`."""
        found: list[Item] = []
        place = commit
        for i, item in enumerate(items):
            if isinstance(item, Repeat):
                packed: dict[_Matrix, tuple[int, Step]] = {}
                item = self._hoist(item, packed, region, times)
                found += [step for _, step in packed.values()]
                place += len(packed) if i < commit else 0
                inner = times * (1 if item.length is None else item.length)
                body, at = self.visit(item.items, item.commit, item.number, inner)
                item = replace(item, items=body, commit=at)
            elif isinstance(item, Choose):
                branches = (self.visit(b, len(b), item.number, times)[0] for b in item.branches)
                item = replace(item, branches=tuple(branches))
            found.append(item)
        return tuple(found), place

    def _hoist(
        self, loop: Repeat, packed: dict[_Matrix, tuple[int, Step]], region: int, times: DimLike
    ) -> Repeat:
        """The loop with products of packed matrices, which are added to `packed`."""
        if isinstance(loop.length, int) and loop.length < LEAST_ITERATIONS:
            return loop
        written = {
            self.program.base(b)
            for part in parts(loop)
            for step in steps_of(part)
            for b, parameter in zip(step.buffers, step.kernel.buffers)
            if parameter.mode != "in"
        }
        moving = {loop.symbol, *_symbols_inside(loop)}

        def each(items: Sequence[Item]) -> tuple[Item, ...]:
            return tuple(one(item) for item in items)

        def one(item: Item) -> Item:
            if isinstance(item, Repeat):
                return replace(item, items=each(item.items), test=each(item.test))
            if isinstance(item, Choose):
                return item  # a branch may never run
            matrix = self._matrix(item)
            if matrix is None or self.program.base(matrix.buffer) in written:
                return item
            if moving & self._symbols(matrix):
                return item
            if matrix not in packed:
                packed[matrix] = self._pack(matrix, item, region, times)
            return _with_panels(item, packed[matrix][0])

        return replace(loop, items=each(loop.items), test=each(loop.test))

    def _matrix(self, step: Step) -> _Matrix | None:
        """What a step multiplies with, if packing it apart can pay."""
        body = step.kernel.body
        template = body[0]
        if len(body) != 1 or not isinstance(template, Template) or template.name != "matmul":
            return None
        if len(template.buffers) != 4:
            return None
        values = dict(zip(step.kernel.sizes, step.sizes))
        m, n, k, _, _, _, start, rs, cs, _, _, batch, *_ = (
            substitute(d, values) for d in template.sizes
        )
        if not isinstance(n, int) or not isinstance(k, int) or n * k == 0 or batch != 0:
            return None
        if isinstance(m, int) and (m > MOST_ROWS or not reads_panels(m, n, k)):
            return None
        buffer = step.buffers[[b.name for b in step.kernel.buffers].index(template.buffers[1])]
        return _Matrix(buffer, template.attrs["dtype"], n, k, start, rs, cs)

    def _symbols(self, matrix: _Matrix) -> set[str]:
        """The variables on which the place of a matrix depends."""
        found = {*symbols(matrix.start), *symbols(matrix.rs), *symbols(matrix.cs)}
        index = matrix.buffer
        while self.program.buffers[index].base >= 0:
            found.update(symbols(self.program.buffers[index].offset))
            index = self.program.buffers[index].base
        return found

    def _pack(self, matrix: _Matrix, like: Step, region: int, times: DimLike) -> tuple[int, Step]:
        """A buffer for the packed matrix, and the step that fills it."""
        count = panel_count(self.target, matrix.dtype, matrix.n)
        size = prepacked_bytes(self.target, matrix.dtype, matrix.n, matrix.k)
        buffers = self.program.buffers
        buffers.append(
            ProgramBuffer("temp", dtype("uint8"), size, f"s{len(buffers)}", region=region)
        )
        names = SizeParameters(["begin", "end"])
        sizes = [names.size(d) for d in (matrix.n, matrix.k, matrix.start, matrix.rs, matrix.cs)]
        share = (Dim.symbol("begin"), Dim.symbol("end"))
        template = Template("matmul_pack", ("b0", "b1"), (*sizes, *share), {"dtype": matrix.dtype})
        parameters = (
            Buffer("b0", dtype(matrix.dtype), "in", 0), Buffer("b1", dtype("uint8"), "out", 0)
        )  # fmt: skip
        kernel = Kernel("pack", parameters, tuple(names.names), (template,))
        moved = matrix.n * matrix.k * dtype(matrix.dtype).itemsize_bytes + size
        step = Step(
            kernel, (matrix.buffer, len(buffers) - 1), tuple(names.values), count, ("pack",),
            like.locs, bytes=moved, times=times,
        )  # fmt: skip
        return len(buffers) - 1, step


def _with_panels(step: Step, panels: int) -> Step:
    (template,) = step.kernel.body
    assert isinstance(template, Template)
    name = f"b{len(step.kernel.buffers)}"
    assert all(b.name != name for b in step.kernel.buffers)
    kernel = replace(
        step.kernel,
        buffers=(*step.kernel.buffers, Buffer(name, dtype("uint8"), "in", 0)),
        body=(replace(template, buffers=(*template.buffers, name)),),
    )
    return replace(step, kernel=kernel, buffers=(*step.buffers, panels))


def _symbols_inside(loop: Repeat) -> Iterator[str]:
    """The iteration numbers of the loops inside of one."""
    stack: list[Item] = [item for part in parts(loop) for item in part]
    while stack:
        item = stack.pop()
        if isinstance(item, Step):
            continue
        if isinstance(item, Repeat):
            yield item.symbol
        stack += [i for part in parts(item) for i in part]
