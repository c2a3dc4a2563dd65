"""prepack: what products multiply with is packed once, not in every call or iteration.

before -> after, for constants (`c'` is one, packed when compiling):

    step 0: matmul(x, c -> y)                  step 0: matmul(x, c', c' -> y)

for state that the program only reads (`w'` is kept from call to call):

    step 0: matmul(x, w -> y)                  pack(w -> w') when w has changed
                                               step 0: matmul(x, w, w' -> y)

for what a loop does not change:

    repeat _i0 in 0..100 {                     step 0: pack(w -> p)
      step 0: matmul(h, w -> g)                repeat _i0 in 0..100 {
    }                                            step 1: matmul(h, w, p -> g)
                                               }

A pass over the program, before its steps are ordered. A constant that nothing else reads is only
there in packed form. Copies of state are memory of the executable, beside the state itself
(`packed_bytes` of its report); `staticgrad_runtime.packed` says when they are filled. The copy for
a loop is a temporary of the plan. Preserving: `sg_prepacked` computes the bits of `sg_gemm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from staticgrad.codegen.gemm_prepacked import (
    needs_panels,
    panel_count,
    prepacked,
    prepacked_bytes,
    strips_bytes,
)
from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim, DimLike, dim_max, dim_min, substitute, symbols
from staticgrad.ir.dtype import dtype
from staticgrad.kernels.ir import Buffer, Kernel, Template
from staticgrad.kernels.program import (
    Choose,
    Item,
    Pack,
    Program,
    ProgramBuffer,
    Repeat,
    Step,
    parts,
    steps_of,
)
from staticgrad.kernels.rewrite import SizeParameters, buffer_names

# Packing an element takes as long as multiplying it with some six rows: with more rows than this it
# is less than 3 % of the product, and the copy is not worth its memory.
MOST_ROWS = 256
# The same for a copy that stays: 5 %.
MOST_KEPT_ROWS = 128
# One row saves what packing costs in five iterations, eight rows in two.
LEAST_ITERATIONS = 4


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


Each = Callable[[Step], Step]


def prepack(program: Program, target: Target) -> Program:
    """The program with its constants packed, and the packing of what calls and loops do not change
    taken out of them."""
    packer = _Packer(replace(program, buffers=[*program.buffers]), target)
    items = _mapped(program.items, packer.with_constant)
    items = _mapped(items, packer.with_kept, loops=False)
    items, commit = packer.visit(items, program.commit, 0, 1)
    packer.drop_constants(items)
    return replace(
        packer.program, items=list(items), commit=commit, constants=packer.arrays,
        packs=tuple(packer.kept.values()),
    )  # fmt: skip


def may_pack(
    program: Program, target: Target, right: int | None, held: str, m: DimLike, n: DimLike,
    k: DimLike,
) -> bool:  # fmt: skip
    """Whether a product [m, k] [k, n] with the buffer `right` may get panels that are packed once
    for all calls."""
    if right is None or program.buffers[right].kind not in ("constant", "state"):
        return False
    if not (isinstance(n, int) and isinstance(k, int)):
        return False
    return needs_panels(target, held, m if isinstance(m, int) else None, n, k)


class _Packer:
    def __init__(self, program: Program, target: Target) -> None:
        self.program, self.target = program, target
        self.arrays = dict(program.constants)
        self.constants: dict[_Matrix, int] = {}
        self.kept: dict[_Matrix, Pack] = {}

    # --- constants --------------------------------------------------------------------------------

    def with_constant(self, step: Step) -> Step:
        """A product with a constant, packed now."""
        found = self._matrix(step, MOST_ROWS)
        if found is None or not self._is(found[0], "constant"):
            return step
        matrix, rows = found
        if 0 in (matrix.rs, matrix.cs):  # one number or one row, stored once
            return step
        if matrix not in self.constants:
            flat = np.ascontiguousarray(self.arrays[matrix.buffer]).reshape(-1)
            strides = [int(s) * flat.itemsize for s in (matrix.rs, matrix.cs)]
            b = np.lib.stride_tricks.as_strided(
                flat[int(matrix.start) :], (matrix.k, matrix.n), strides
            )
            packed = prepacked(self.target, b)
            index = self._buffer("constant", packed.size, self._packed_name(matrix))
            self.constants[matrix], self.arrays[index] = index, packed
        self._set_workspace(step, matrix, rows)
        return _with_panels(step, self.constants[matrix], instead=True)

    def drop_constants(self, items: Sequence[Item]) -> None:
        """Forgets the constants that are only used packed."""
        used = {self.program.base(b) for step in steps_of(items) for b in step.buffers}
        for index in {matrix.buffer for matrix in self.constants} - used:
            del self.arrays[index]
            self.program.buffers[index] = replace(self.program.buffers[index], kind="temp")

    # --- state ------------------------------------------------------------------------------------

    def with_kept(self, step: Step) -> Step:
        """A product with state that the program only reads, of which a packed copy is kept."""
        found = self._matrix(step, MOST_KEPT_ROWS)
        if found is None or not self._is(found[0], "state"):
            return step
        matrix, rows = found
        if matrix.buffer in self.program.written:
            return step
        if matrix in self.kept:
            pack = self.kept[matrix]
            self.kept[matrix] = replace(pack, rows=dim_min(pack.rows, rows))
        else:
            name = self._packed_name(matrix)
            index, pack_step = self._pack(matrix, step, "packed", name, 0, 1)
            useful = 1, MOST_KEPT_ROWS
            self.kept[matrix] = Pack(pack_step, matrix.buffer, index, rows, useful)
        self._set_workspace(step, matrix, rows, also_plain=True)
        return _with_panels(step, self.kept[matrix].buffer)

    # --- loops ------------------------------------------------------------------------------------

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

        def one(step: Step) -> Step:
            found = self._matrix(step, MOST_ROWS)
            if found is None:
                return step
            matrix, rows = found
            if self.program.base(matrix.buffer) in written or moving & self._symbols(matrix):
                return step
            if rows == 1 and matrix.cs == 1:
                return step  # read nearly as fast: it takes many iterations to save the packing
            if matrix not in packed:
                name = f"s{len(self.program.buffers)}"
                packed[matrix] = self._pack(matrix, step, "temp", name, region, times)
            self._set_workspace(step, matrix, rows)
            return _with_panels(step, packed[matrix][0])

        # A branch may never run.
        return replace(
            loop,
            items=_mapped(loop.items, one, branches=False),
            test=_mapped(loop.test, one, branches=False),
        )

    # --- matrices ---------------------------------------------------------------------------------

    def _matrix(self, step: Step, most_rows: int) -> tuple[_Matrix, DimLike] | None:
        """What a step multiplies with, and the rows of the product; None where packing apart
        cannot pay, or is done."""
        body = step.kernel.body
        template = body[0]
        if len(body) != 1 or not isinstance(template, Template) or template.name != "matmul":
            return None
        if len(template.buffers) != 4 or template.prologues[1] is not None:
            return None
        if "tile" in template.attrs:
            return None  # a parameter's update, which a product with panels would store C for
        values = dict(zip(step.kernel.sizes, step.sizes))
        m, n, k, _, _, _, start, rs, cs, _, _, batch, *_ = (
            substitute(d, values) for d in template.sizes
        )
        if not isinstance(n, int) or not isinstance(k, int) or n * k == 0 or batch != 0:
            return None
        held = template.attrs["dtype"]
        if isinstance(m, int) and m > most_rows:
            return None
        if not needs_panels(self.target, held, m if isinstance(m, int) else None, n, k):
            return None
        buffer = step.buffers[[b.name for b in step.kernel.buffers].index(template.buffers[1])]
        return _Matrix(buffer, held, n, k, start, rs, cs), m

    def _is(self, matrix: _Matrix, kind: str) -> bool:
        """Whether a matrix has a fixed place in a buffer of this kind."""
        return self.program.buffers[matrix.buffer].kind == kind and not self._symbols(matrix)

    def _packed_name(self, matrix: _Matrix) -> str:
        return f"{self.program.buffers[matrix.buffer].name}_packed"

    def _symbols(self, matrix: _Matrix) -> set[str]:
        """The variables on which the place of a matrix depends."""
        found = {*symbols(matrix.start), *symbols(matrix.rs), *symbols(matrix.cs)}
        index = matrix.buffer
        while self.program.buffers[index].base >= 0:
            found.update(symbols(self.program.buffers[index].offset))
            index = self.program.buffers[index].base
        return found

    def _buffer(self, kind: str, size: int, name: str, region: int = 0) -> int:
        self.program.buffers.append(ProgramBuffer(kind, dtype("uint8"), size, name, region=region))
        return len(self.program.buffers) - 1

    def _set_workspace(
        self, step: Step, matrix: _Matrix, rows: DimLike, *, also_plain: bool = False
    ) -> None:
        """The workspace that a product with panels wants, or `also_plain` without."""
        (template,) = step.kernel.body
        assert isinstance(template, Template)
        names = [b.name for b in step.kernel.buffers]
        index = step.buffers[names.index(template.buffers[3])]
        computed = template.prologues[0] is not None
        size = strips_bytes(self.target, matrix.dtype, rows, matrix.k, computed=computed)
        buffer = self.program.buffers[index]
        if also_plain:
            size = dim_max(size, buffer.size)
        self.program.buffers[index] = replace(buffer, size=size)

    def _pack(
        self, matrix: _Matrix, like: Step, kind: str, name: str, region: int, times: DimLike
    ) -> tuple[int, Step]:
        """A buffer for the packed matrix, and the step that fills it."""
        size = prepacked_bytes(self.target, matrix.dtype, matrix.n, matrix.k)
        index = self._buffer(kind, size, name, region)
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
            kernel, (matrix.buffer, index), tuple(names.values),
            panel_count(self.target, matrix.dtype, matrix.n), ("pack",), like.locs, bytes=moved,
            times=times,
        )  # fmt: skip
        return index, step


def _with_panels(step: Step, panels: int, *, instead: bool = False) -> Step:
    """The product with its right operand's panels as well, or `instead` of it (which then has no
    strides either)."""
    (template,) = step.kernel.body
    assert isinstance(template, Template)
    name = f"b{len(step.kernel.buffers)}"
    assert all(b.name != name for b in step.kernel.buffers)
    held = dict(zip((b.name for b in step.kernel.buffers), zip(step.kernel.buffers, step.buffers)))
    held[name] = Buffer(name, dtype("uint8"), "in", 0), panels
    (a, b, *rest), sizes = template.buffers, list(template.sizes)
    epilogue = template.epilogue
    if instead:
        if epilogue is not None and b not in buffer_names(epilogue.body):
            epilogue = replace(epilogue, buffers=tuple(e for e in epilogue.buffers if e.name != b))
        called = [k for k in (epilogue, *template.prologues) if k is not None]
        if b not in {a, *rest, *(e.name for k in called for e in k.buffers)}:
            del held[b]
        b = name
        sizes[6:9] = 0, 0, 0
    kernel = replace(
        step.kernel,
        buffers=tuple(parameter for parameter, _ in held.values()),
        body=(
            replace(template, buffers=(a, b, *rest, name), sizes=tuple(sizes), epilogue=epilogue),
        ),
    )
    return replace(step, kernel=kernel, buffers=tuple(index for _, index in held.values()))


def _mapped(
    items: Sequence[Item], one: Each, *, loops: bool = True, branches: bool = True
) -> tuple[Item, ...]:
    """The items with `one` of each step, of regions only those in the kinds that are named."""

    def each(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(inner(item) for item in items)

    def inner(item: Item) -> Item:
        if isinstance(item, Step):
            return one(item)
        if isinstance(item, Choose):
            if not branches:
                return item
            return replace(item, branches=tuple(each(b) for b in item.branches))
        if not loops:
            return item
        return replace(item, items=each(item.items), test=each(item.test))

    return each(items)


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
