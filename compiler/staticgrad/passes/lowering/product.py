"""What matrix products and convolutions share: element-wise consumers in an epilogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from staticgrad.ir.dim import Dim, DimLike, product, substitute
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.ir import TILE, TILE_STRIDE, Buffer, Expr, Kernel, Load, Loop, Stmt
from staticgrad.kernels.rewrite import IndexMapper, SizeParameters, numbered, replaced
from staticgrad.ops import registry
from staticgrad.ops.lowering import Pointwise

from .body import Body
from .draft import Draft, linear
from .pull import At, Puller

if TYPE_CHECKING:
    from .lower import Lowerer

Called = tuple[Kernel, list[DimLike]]  # a kernel that a product calls, and the values of its sizes

BATCH, ROW, COLUMN = (Dim.symbol(s) for s in ("batch", "row", "column"))


class ProductLowering:
    def __init__(self, lowerer: Lowerer, body: Body, root: Node) -> None:
        self.lowerer, self.body, self.root = lowerer, body, root
        self.draft = Draft(lowerer.program)
        self.result = root.results[0]
        self.riders = [(i, o) for i, o in body.outputs if i is not self.result]
        self.tiled = False  # whether the result is only ever in the epilogue's tile

    @cached_property
    def c(self) -> int:
        """The buffer that the product is computed in."""
        outputs = dict(self.body.outputs)
        held = outputs.get(self.result, self.c_shared)
        if held is not None:
            return self.lowerer.result_buffer(held)
        return self.lowerer.scratch(self.result.dtype, self.result.type.size)

    @cached_property
    def c_shared(self) -> Value | None:
        """An output that the product can be computed in before the epilogue overwrites it. Not the
        new value of a state, which may itself take the place of the old one that is read here."""
        if len(self.riders) < len(self.body.outputs):
            return None  # the product is an output itself
        for inner, outer in self.riders:
            if inner.dtype == self.result.dtype and outer not in self.lowerer.updated:
                return outer
        return None

    def outer(self, v: Value) -> Value:
        return self.body.outer.get(v, v)

    def puller(self, known: Mapping[Value, Callable[[At], Expr]] | None = None) -> Puller:
        """For what the body computes beside the product."""

        def outside(v: Value, at: At) -> Expr:
            return self.lowerer.outside(self.draft, self.body, v, at)

        return Puller(self.body.inside, outside, known or {})

    def epilogue(
        self, groups: tuple[Sequence[int], Sequence[int], Sequence[int]], c_name: str
    ) -> Called | None:
        """The kernel that runs on each finished block; `groups` are the result's dims that are
        numbered by batch, row and column."""
        if not self.riders:
            return None
        shape = self.result.shape
        at: list[DimLike] = [Dim.symbol(f"d{i}") for i in range(len(shape))]
        at = [0 if d == 1 else i for d, i in zip(shape, at)]
        draft = self.draft

        def root_element(index: At) -> Expr:
            if self.tiled:
                return Load(TILE, ROW * Dim.symbol(TILE_STRIDE) + COLUMN, self.result.dtype)
            return Load(draft.buffer(self.c, "inout"), linear(index, shape), self.result.dtype)

        puller = self.puller({self.result: root_element})
        stores: tuple[Stmt, ...] = tuple(
            draft.store(
                self.lowerer.stored[o] if o is self.c_shared else self.lowerer.result_buffer(o),
                linear(tuple(at), shape),
                puller.pull(i, tuple(at)),
            )
            for i, o in self.riders
        )
        for flat, dims in zip((BATCH, ROW, COLUMN), groups):
            stores = flatten(stores, flat, [d for d in dims if shape[d] != 1], shape)
        loops = Loop("row", 1, (Loop("column", product(tuple(shape[d] for d in groups[2])), stores,
                                      "columns"),), "rows")  # fmt: skip
        buffers = tuple(
            Buffer(name, self.lowerer.program.buffers[i].dtype, mode, 0)
            for i, name, mode in draft.entries()
        )
        if self.tiled:
            buffers = (Buffer(TILE, self.result.dtype, "in", 0), *buffers)
        return called("epilogue", "e", buffers, (loops,))

    def finish(
        self, body: Sequence[Stmt], extent: DimLike, inner: Sequence[Called | None], flops: DimLike
    ) -> None:
        """`inner`: the prologues and the epilogue."""
        kernel, buffers, sizes = self.draft.finish(self.body.name, body)
        for pair in inner:
            if pair is None:
                continue
            function, values = pair
            names = (*kernel.sizes, *(n for n in function.sizes if n != TILE_STRIDE))
            kernel = Kernel(kernel.name, kernel.buffers, names, kernel.body)
            sizes = (*sizes, *values)
        self.lowerer.add_step(
            kernel, buffers, sizes, extent, self.body.labels, self.body.locs, flops=flops,
            riding_flops=self._riding_flops(),
        )  # fmt: skip

    def _riding_flops(self) -> DimLike:
        """Those of the prologues and the epilogue: one for each element that a node computes, as
        sweeps count them."""
        riding: DimLike = 0
        for n in self.body.inside:
            if n is not self.root and isinstance(registry.get(n.op).lower, Pointwise):
                riding = riding + product(n.results[0].shape)
        return riding


def called(name: str, letter: str, buffers: tuple[Buffer, ...], body: tuple[Stmt, ...]) -> Called:
    """A kernel that a product calls, whose sizes are called by a letter of its own."""
    sizes = SizeParameters(["batch", "row", "column", TILE_STRIDE])
    mapped = IndexMapper(sizes.index, sizes.index).body(body)
    renamed = {n: f"{letter}{n[1:]}" for n in sizes.names}
    table = {old: Dim.symbol(new) for old, new in renamed.items()}
    rename = IndexMapper(lambda d: substitute(d, table), lambda d: substitute(d, table))
    tile = tuple(TILE_STRIDE for b in buffers if b.name == TILE)
    names = (*(renamed[n] for n in sizes.names), *tile)
    return Kernel(name, buffers, names, rename.body(mapped)), sizes.values


def flatten(
    body: tuple[Stmt, ...], flat: Dim, dims: Sequence[int], shape: tuple[DimLike, ...]
) -> tuple[Stmt, ...]:
    """Replaces the variables of `dims` by one that numbers them row-major."""
    if not dims:
        return body
    return replaced(body, numbered(flat, [(f"d{d}", shape[d]) for d in dims]))
