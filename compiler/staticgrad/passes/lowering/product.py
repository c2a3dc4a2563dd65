"""Matrix products and convolutions, with the element-wise consumers in their epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from staticgrad.codegen import gemm
from staticgrad.ir.dim import Dim, DimLike, dim_max, floor_div, modulo, product, substitute
from staticgrad.ir.dtype import dtype
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.ir import Buffer, Expr, Kernel, Load, Loop, Stmt, Template
from staticgrad.kernels.rewrite import (
    IndexMapper,
    SizeParameters,
    all_indices,
    factor_of,
    merges,
    replaced,
)
from staticgrad.ops import registry
from staticgrad.ops.lowering import Product

from .body import Body
from .draft import Draft, linear
from .pull import At, Puller

if TYPE_CHECKING:
    from .lower import Lowerer

BATCH, ROW, COLUMN = (Dim.symbol(s) for s in ("batch", "row", "column"))


def lower_product(lowerer: Lowerer, body: Body) -> None:
    root = next(n for n in body.inside if isinstance(registry.get(n.op).lower, Product))
    lower = registry.get(root.op).lower
    assert isinstance(lower, Product)
    if lower.kind == "matmul":
        MatmulLowering(lowerer, body, root).run()
    else:
        ConvLowering(lowerer, body, root, lower.kind).run()


class ProductLowering:
    def __init__(self, lowerer: Lowerer, body: Body, root: Node) -> None:
        self.lowerer, self.body, self.root = lowerer, body, root
        self.draft = Draft(lowerer.program)
        self.result = root.results[0]
        outputs = dict(body.outputs)
        self.riders = [(i, o) for i, o in body.outputs if i is not self.result]
        if self.result in outputs:
            self.c = lowerer.result_buffer(outputs[self.result])
            self.c_shared = None
        else:
            self.c_shared = self._shared_output()
            self.c = (
                lowerer.result_buffer(self.c_shared)
                if self.c_shared is not None
                else lowerer.scratch(self.result.dtype, self.result.type.size)
            )

    def _shared_output(self) -> Value | None:
        """An output that the product can be computed in before the epilogue overwrites it. Not the
        new value of a state, which may itself take the place of the old one that is read here."""
        for inner, outer in self.riders:
            if inner.dtype == self.result.dtype and outer not in self.lowerer.updated:
                return outer
        return None

    def outer(self, v: Value) -> Value:
        return self.body.outer.get(v, v)

    def epilogue(
        self, groups: tuple[Sequence[int], Sequence[int], Sequence[int]], c_name: str
    ) -> tuple[Kernel, list[DimLike]] | None:
        """The kernel that runs on each finished block; `groups` are the result's dims that are
        numbered by batch, row and column. Gives the values of its sizes too."""
        if not self.riders:
            return None
        shape = self.result.shape
        at: list[DimLike] = [Dim.symbol(f"d{i}") for i in range(len(shape))]
        at = [0 if d == 1 else i for d, i in zip(shape, at)]
        draft = self.draft

        def root_element(index: At) -> Expr:
            return Load(draft.buffer(self.c, "inout"), linear(index, shape), self.result.dtype)

        puller = Puller(
            self.body.inside, lambda v, i: self.lowerer.outside(draft, self.body, v, i),
            {self.result: root_element},
        )  # fmt: skip
        stores: tuple[Stmt, ...] = tuple(
            draft.store(
                self.lowerer.stored[o] if o is self.c_shared else self.lowerer.result_buffer(o),
                linear(tuple(at), shape),
                puller.pull(i, tuple(at)),
            )
            for i, o in self.riders
        )
        for flat, dims in zip((BATCH, ROW, COLUMN), groups):
            stores = _flatten(stores, flat, [d for d in dims if shape[d] != 1], shape)
        loops = Loop("row", 1, (Loop("column", product(tuple(shape[d] for d in groups[2])), stores,
                                      "columns"),), "rows")  # fmt: skip
        return self._epilogue_kernel((loops,))

    def _epilogue_kernel(self, loops: tuple[Stmt, ...]) -> tuple[Kernel, list[DimLike]]:
        sizes = SizeParameters(["batch", "row", "column"])
        mapped = IndexMapper(sizes.index, sizes.index).body(loops)
        renamed = {n: f"e{n[1:]}" for n in sizes.names}
        table = {old: Dim.symbol(new) for old, new in renamed.items()}
        mapped = IndexMapper(lambda d: substitute(d, table), lambda d: substitute(d, table)).body(
            mapped
        )
        buffers = tuple(
            Buffer(name, self.lowerer.program.buffers[i].dtype, mode, 0)
            for i, name, mode in self.draft.entries()
        )
        kernel = Kernel("epilogue", buffers, tuple(renamed[n] for n in sizes.names), mapped)
        return kernel, sizes.values

    def finish(
        self, body: Sequence[Stmt], extent: DimLike,
        epilogue: tuple[Kernel, list[DimLike]] | None, flops: DimLike,
    ) -> None:  # fmt: skip
        kernel, buffers, sizes = self.draft.finish(self.body.name, body)
        if epilogue is not None:
            inner, values = epilogue
            names = (*kernel.sizes, *inner.sizes)
            kernel = Kernel(kernel.name, kernel.buffers, names, kernel.body)
            sizes = (*sizes, *values)
        self.lowerer.add_step(
            kernel, buffers, sizes, extent, self.body.labels, self.body.locs, flops=flops
        )


def _flatten(
    body: tuple[Stmt, ...], flat: Dim, dims: Sequence[int], shape: tuple[DimLike, ...]
) -> tuple[Stmt, ...]:
    """Replaces the variables of `dims` by one that numbers them row-major."""
    if not dims:
        return body
    names = [f"d{d}" for d in dims]
    indices = all_indices(body)
    chained = all(merges(indices, a, b, shape[d]) for a, b, d in zip(names, names[1:], dims[1:]))
    table: dict[str, DimLike] = {}
    if chained:
        # The strides of all the others follow from the last one's.
        table = dict.fromkeys(names[:-1], 0) | {names[-1]: flat}
    else:
        rest: DimLike = flat
        for i in range(len(dims) - 1, -1, -1):
            size = _divisor(shape[dims[i]])
            table[names[i]] = modulo(rest, size) if i else rest
            rest = floor_div(rest, size)
    return replaced(body, table)


def _divisor(size: DimLike) -> DimLike:
    """Where a dim is 0 nothing is computed, and any divisor will do."""
    return 1 if size == 0 else size


class MatmulLowering(ProductLowering):
    """`c[.., i, j] = sum over k of a[.., i, k] b[.., k, j]`, for any views of a and b."""

    def run(self) -> None:
        a, b = (self.outer(v) for v in self.root.operands)
        shape = self.result.shape
        rank = len(shape)
        n, k = shape[-1], a.shape[-1]
        names = [f"d{i}" for i in range(rank)]
        at = [Dim.symbol(s) for s in names]
        i, j, kk = at[-2], at[-1], Dim.symbol("k")
        batch = at[:-2]
        a_buffer, a_at = self._operand(a, batch, i, kk, [*names[:-1], "k"])
        b_buffer, b_at = self._operand(b, batch, kk, j, [*names[:-2], "k", names[-1]])
        c_at = linear(at, shape)
        rows, batch_dims = self._merge_rows(shape, a_at, b_at, c_at)
        flops = product(shape) * k * 2
        strides = []
        for index, r, c in ((a_at, names[-2], "k"), (b_at, "k", names[-1]), (c_at, names[-2], "")):
            start = substitute(index, {names[-2]: 0, names[-1]: 0, "k": 0})
            start = self._batch_start(start, batch_dims, shape)
            strides += [start, factor_of(index, r)]
            if c:
                strides.append(factor_of(index, c))
        draft = self.draft
        needed = gemm.workspace_bytes(
            self.lowerer.target, str(self.result.dtype), (rows, n, k),
            unbroken=factor_of(b_at, names[-1]) == 1,
        )  # fmt: skip
        workspace = self.lowerer.scratch(dtype("uint8"), needed, per_thread=True)
        buffers = (
            draft.buffer(a_buffer, "in"), draft.buffer(b_buffer, "in"),
            draft.buffer(self.c, "inout"), draft.buffer(workspace, "inout"),
        )  # fmt: skip
        merged = [d for d in range(rank - 2) if d not in batch_dims]
        groups = (batch_dims, [*merged, rank - 2], [rank - 1])
        epilogue = self.epilogue(groups, buffers[2])
        # Threads share the batch, or else the longer side of the result: what has to be packed for
        # each of them again is the shorter operand (64 x 1568 x 128: 155 us by rows, 130 so; 8 x
        # 1024 x 1024: 257 and 132).
        split, longer = not batch_dims, dim_max(rows, n)
        begin, end = Dim.symbol("begin"), Dim.symbol("end")
        sizes = (
            rows, n, k, *strides, 0 if split else BATCH,
            begin if split else 0, end if split else longer,
        )  # fmt: skip
        template = Template(
            "matmul", buffers, sizes, {"dtype": str(self.result.dtype)},  # type: ignore[arg-type]
            epilogue[0] if epilogue else None,
        )  # fmt: skip
        body: tuple[Stmt, ...] = (template,)
        extent: DimLike = longer
        if not split:
            extent = product(tuple(shape[d] for d in batch_dims))
            body = (Loop("batch", extent, body, "parallel"),)
        self.finish(body, extent, epilogue, flops)

    def _operand(
        self, v: Value, batch: list[Dim], r: Dim, c: Dim, names: list[str]
    ) -> tuple[int, DimLike]:
        """The buffer of an operand and the index of its element, affine in all of `names`."""
        from ..fuse import broadcast_index

        at = broadcast_index((*batch, r, c), v.shape)
        buffer, index = self.lowerer.address(v, at)
        if any(factor_of(index, name) is None for name in names):
            buffer, index = self.lowerer.dense(v), linear(at, v.shape)
        return buffer, index

    def _merge_rows(
        self, shape: tuple[DimLike, ...], a: DimLike, b: DimLike, c: DimLike
    ) -> tuple[DimLike, list[int]]:
        """Batch dims that only the rows of a and c run through are rows themselves."""
        rows = shape[-2]
        batch_dims = [d for d in range(len(shape) - 2) if shape[d] != 1]
        inner = f"d{len(shape) - 2}"
        if shape[-2] == 1 and batch_dims:
            return rows, batch_dims
        while batch_dims:
            d = batch_dims[-1]
            outer = f"d{d}"
            covered = floor_div(rows, shape[-2]) if rows != shape[-2] else 1
            step_a = factor_of(a, inner)
            step_c = factor_of(c, inner)
            assert step_a is not None and step_c is not None
            fits = (
                factor_of(b, outer) == 0
                and factor_of(a, outer) == step_a * shape[-2] * covered
                and factor_of(c, outer) == step_c * shape[-2] * covered
            )
            if not fits:
                break
            rows = rows * shape[d]
            batch_dims.pop()
        return rows, batch_dims

    def _batch_start(
        self, start: DimLike, batch_dims: list[int], shape: tuple[DimLike, ...]
    ) -> DimLike:
        table: dict[str, DimLike] = {f"d{d}": 0 for d in range(len(shape))}
        rest: DimLike = BATCH
        for position, d in reversed(list(enumerate(batch_dims))):
            size = _divisor(shape[d])
            table[f"d{d}"] = modulo(rest, size) if position else rest
            rest = floor_div(rest, size)
        return substitute(start, table)


class ConvLowering(ProductLowering):
    """Convolution of any rank up to 2 and its gradients: operands and result are dense."""

    def __init__(self, lowerer: Lowerer, body: Body, root: Node, kind: str) -> None:
        super().__init__(lowerer, body, root)
        self.kind = kind

    def run(self) -> None:
        from staticgrad.codegen import conv  # a dozen modules, which few programs need

        first, second = (self.outer(v) for v in self.root.operands)
        result = self.result
        if self.kind == "conv":
            x, w, y = first.type, second.type, result.type
        elif self.kind == "conv_grad_input":
            x, w, y = result.type, second.type, first.type
        else:
            x, w, y = first.type, result.type, second.type
        attrs = self.root.attrs
        one = len(x.shape) == 3
        pick = (lambda t: (1, t[0])) if one else (lambda t: t)
        low = tuple(p[0] for p in attrs["padding"])
        geometry = (
            x.shape[0], x.shape[1], *pick(x.shape[2:]), w.shape[0], *pick(w.shape[2:]),
            *pick(y.shape[2:]), *pick(attrs["stride"]), *((0, low[0]) if one else low),
            *pick(attrs["dilation"]), attrs["groups"],
        )  # fmt: skip
        draft = self.draft
        place = {}
        for v in (first, second):
            place[v] = draft.buffer(self.lowerer.dense(v), "in")
        c_name = draft.buffer(self.c, "inout")
        workspace = self.lowerer.scratch(
            dtype("uint8"),
            conv.workspace_bytes(self.lowerer.target, str(result.dtype)),
            per_thread=True,
        )
        buffers = {
            "conv": (place[first], place[second], c_name),
            "conv_grad_input": (c_name, place[second], place[first]),
            "conv_grad_weight": (place[first], c_name, place[second]),
        }[self.kind]
        every = (*buffers, draft.buffer(workspace, "inout"))
        rank = len(result.shape)
        weight = self.kind == "conv_grad_weight"
        groups = ([], [0], list(range(1, rank))) if weight else ([0], [1], list(range(2, rank)))
        epilogue = self.epilogue(groups, c_name)
        begin, end = Dim.symbol("begin"), Dim.symbol("end")
        # Another order of the sum, so a function of the declared shapes alone.
        depthwise = w.shape[1] == 1 and w.shape[0] == x.shape[1] == attrs["groups"]
        described: dict[str, Any] = {"dtype": str(result.dtype), "depthwise": depthwise}
        per_output = product(tuple(w.shape[1:]))
        extent = result.shape[0]
        target = self.lowerer.target
        if weight:
            extent = conv.weight_parts(
                target, str(result.dtype), extent, attrs["groups"], per_output, depthwise
            )
            outputs = floor_div(result.shape[0], attrs["groups"])
            described |= conv.weight_tile(target, str(result.dtype), outputs, per_output)
        elif not depthwise:
            outputs = floor_div(w.shape[0], attrs["groups"])
            channels, terms, sizes = outputs, per_output, (y.shape[0], *y.shape[2:])
            if self.kind == "conv_grad_input":
                channels, sizes = w.shape[1], (x.shape[0], *x.shape[2:])
                terms = floor_div(outputs * product(w.shape[2:]), product(attrs["stride"]))
            described["rows"] = conv.wide_rows(target, str(result.dtype), channels, sizes, terms)
        template = Template(
            self.kind, every, (*geometry, begin, end), described,
            epilogue[0] if epilogue else None,
        )  # fmt: skip
        flops = product(y.shape) * per_output * 2
        self.finish((template,), extent, epilogue, flops)
