"""Generated matrix products C = A B, for operands of any strides.

One function a dtype serves every size: sizes and strides are arguments. Loops after Van Zee and
van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality" (2015): a block of B
packed for the L2 cache, strips of rows of A, and a register tile (`gemm_kernel`). A is read where
it lies unless its stride would put a strip on one cache set; B likewise when one strip of rows is
all that uses it. Very small products go straight to the edge kernel, few rows to `gemm_skinny`,
few columns to the transposed product.

Bits: an element's sum ascends k by fused multiply-add from zero, with one accumulator to a block of
k, and the blocks are added in order. The block of k depends on k, dtype and target alone, so
neither the other sizes nor the strides, the path taken, or the rectangle asked for change it.
"""

from __future__ import annotations

from .builder import Module
from .gemm_emit import CONTROL, Element, Emitter, split_params
from .gemm_kernel import (
    EDGE_ROWS,
    emit_descriptor,
    require_merge,
    require_micro_kernel,
    require_strip,
    set_field,
    tile_shape,
)
from .gemm_pack import (
    require_pack,
    require_pack_block,
    require_pack_scalar,
    require_pack_strip,
    strip_bytes,
)
from .gemm_skinny import require_row, require_row_transposed
from .target import Target

__all__ = ["GEMM_PARAMS", "require_gemm", "require_micro_kernel", "tile_shape", "workspace_bytes"]

GEMM_PARAMS = (
    "i64 m, i64 n, i64 k, ptr a, i64 a_rs, i64 a_cs, ptr b, i64 b_rs, i64 b_cs, ptr c, i64 c_rs, "
    "ptr workspace, ptr epilogue, ptr context, i64 batch, i64 r0, i64 r1, i64 c0, i64 c1"
)
# An epilogue is called when at least so many elements of C are finished (16 KiB of float32).
EPILOGUE_ELEMS = 4096
# m * n * k up to which nothing is packed (but a B without unit column stride copied plainly).
SMALL_PRODUCT = 8192
# Rows up to which each is multiplied by itself, if the rows of B lie unbroken; for the others B is
# read from the L2 cache. 3 x 256 x 256 takes 7.7 us so, 11.2 by the edge kernel.
SINGLE_ROWS = 3
# The same where its columns do. And columns up to which the transposed product is computed instead.
SINGLE_COLS = 2
# k from which on that pays for up to EDGE_ROWS columns, if the columns of A lie unbroken.
SWAP_DEPTH = 64
# Columns of a one-row product to a block: the sums stay in the L1 cache.
ROW_COLS = 2048
PANEL_GAP = 128  # bytes between packed panels, which else were whole multiples of 4096 apart
STRIDE_PERIOD = 4096  # bytes after which addresses fall on the same set of an L1 cache


def longest_k_block(element: Element) -> int:
    """Bound of the k block. Both operands then come from the L2 cache, which keeps up: 105 GFLOP/s
    with 1024, 102 with 512 where k is 768 or 784 (peak 117), as no block is added to another."""
    return min(1024, 4096 // element.itemsize)


def _block_bytes(target: Target) -> int:
    """Room for the packed block of B: half of the L2 cache."""
    return min(max(target.l2_bytes // 2, 256 * 1024), 1024 * 1024)


def workspace_bytes(target: Target, dtype: str) -> int:
    """Bytes that one call needs for itself, whatever its sizes; 64-byte aligned."""
    element = Element.of(dtype, target)
    return _block_bytes(target) + (strip_bytes(element, longest_k_block(element)) + 63) // 64 * 64


def require_gemm(module: Module, dtype: str) -> str:
    """Makes sure that the matrix product of `dtype` is in the module; -> its name.

    `void @sg_gemm_<dtype>(i64 m, i64 n, i64 k, ptr a, i64 a_rs, i64 a_cs, ptr b, i64 b_rs,
    i64 b_cs, ptr c, i64 c_rs, ptr workspace, ptr epilogue, ptr context, i64 batch, i64 r0, i64 r1,
    i64 c0, i64 c1)` sets c[i, j] = sum_p a[i, p] * b[p, j] for r0 <= i < r1, c0 <= j < c1, with
    a: [m, k], b: [k, n], c: [m, n]. Strides are in elements, any sign or zero for A and B; c has
    unit column stride and overlaps neither operand. Unsigned dtypes share the signed function.

    `workspace` has `workspace_bytes` and 64-byte alignment; two calls at a time need two.
    `epilogue` is null or a `void(ptr context, i64 batch, i64 r0, i64 r1, i64 c0, i64 c1)` which is
    called for each finished rectangle of C; those cover the asked one once.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_gemm_{element.dtype}"
    if module.has(name):
        return name
    blocked, small = _require_blocked(module, element), _require_small(module, element)
    f = Emitter(module, name, GEMM_PARAMS, element)
    rows, cols = f.sub("%r1", "%r0"), f.sub("%c1", "%c0")
    # Three factors below 2 ** 21 have a product that fits; an empty product is not for `small`.
    few = f.compare("ult", f.emit(f"or i64 {f.emit(f'or i64 {rows}, {cols}')}, %k"), 1 << 21)
    light = f.compare("ult", f.sub(f.mul(f.mul(rows, cols), "%k"), 1), SMALL_PRODUCT)
    one_block = f.compare("ule", "%k", longest_k_block(element))
    # The arguments lie where the callee wants them: these are jumps.
    args = ", ".join(f"{ty} %{p}" for ty, p in split_params(GEMM_PARAMS))
    with f.when(f.both(f.both(few, light), one_block)):
        f.stmt(f"musttail call void @{small}({args})")
        f.leave()
    f.stmt(f"musttail call void @{blocked}({args})")
    f.leave()
    f.finish()
    return name


def _require_small(module: Module, element: Element) -> str:
    """Products of 1 to `SMALL_PRODUCT` multiplications."""
    name = f"sg_gemm_small_{element.dtype}"
    size = element.itemsize
    f = Emitter(module, name, GEMM_PARAMS, element, CONTROL)
    desc = emit_descriptor(f)
    rows, cols = f.sub("%r1", "%r0"), f.sub("%c1", "%c0")
    c = f.at(f.at("%c", f.mul("%r0", "%c_rs")), "%c0")
    a_rs, a_cs, b_rs, b_cs = (f.mul(s, size) for s in ("%a_rs", "%a_cs", "%b_rs", "%b_cs"))
    a, b = f.at_byte("%a", f.mul("%r0", a_rs)), f.at_byte("%b", f.mul("%c0", b_cs))
    in_place = f.compare("eq", "%b_cs", 1) if element.has_masks else "false"
    packed_rs = f.mul(f.emit(f"and i64 {f.add(cols, element.lanes - 1)}, {-element.lanes}"), size)
    for field, value in (("k", "%k"), ("a_rs", a_rs), ("a_cs", a_cs), ("c_rs", "%c_rs"),
                         ("b_rs", f.select(in_place, b_rs, packed_rs)), ("c_cs", 1),
                         ("accumulate", 0)):  # fmt: skip
        set_field(f, desc, field, value)
    with f.when(f.emit(f"xor i1 {in_place}, true")):
        f.call(require_pack_scalar(module, element), ("ptr", b), ("i64", b_rs), ("i64", b_cs),
               ("ptr", "%workspace"), ("i64", "%k"), ("i64", cols), ("i64", packed_rs))  # fmt: skip
    b = f.select(in_place, b, "%workspace", "ptr")
    f.call(require_strip(module, element.dtype), ("ptr", desc), ("ptr", a), ("ptr", b), ("ptr", c),
           ("i64", rows), ("i64", cols))  # fmt: skip
    _emit_finished(f, "%r0", "%r1", "%c0", "%c1")
    f.leave()
    f.finish()
    return name


def _emit_zeros(f: Emitter) -> None:
    """The product over no k at all."""
    f.module.intrinsic("llvm.memset.p0.i64", "void", "ptr", "i8", "i64", "i1")
    cols = f.sub("%c1", "%c0")
    with f.when(f.compare("sgt", cols, 0)):
        with f.loop("%r0", "%r1") as i:
            row = f.at(f.at("%c", f.mul(i, "%c_rs")), "%c0")
            f.call("llvm.memset.p0.i64", ("ptr", row), ("i8", 0),
                   ("i64", f.mul(cols, f.element.itemsize)), ("i1", "false"))  # fmt: skip
        with f.when(f.compare("slt", "%r0", "%r1")):
            _emit_finished(f, "%r0", "%r1", "%c0", "%c1")


def _emit_finished(f: Emitter, r0: str, r1: str, c0: str, c1: str) -> None:
    """Calls the epilogue, if there is one."""
    with f.when(f.emit("icmp ne ptr %epilogue, null")):
        f.stmt(
            f"call void %epilogue(ptr %context, i64 %batch, i64 {r0}, i64 {r1}, i64 {c0}, i64 {c1})"
        )


class _Product:
    """The values that the blocked loops share: the rectangle as a product of its own, [m, k] times
    [k, n], transposed if that is to be (`swapped`). Pointers are at its first row and column,
    strides in bytes (`c_rs`, `c_cs` in elements)."""

    def __init__(self, f: Emitter) -> None:
        self.f = f
        rows, cols = f.sub("%r1", "%r0"), f.sub("%c1", "%c0")
        swap = _emit_is_swapped(f, rows, cols)
        size = f.element.itemsize
        a_rs, a_cs, b_rs, b_cs = (f.mul(s, size) for s in ("%a_rs", "%a_cs", "%b_rs", "%b_cs"))
        a, b = f.at_byte("%a", f.mul("%r0", a_rs)), f.at_byte("%b", f.mul("%c0", b_cs))
        self.swap = swap
        self.m, self.n = f.select(swap, cols, rows), f.select(swap, rows, cols)
        self.a, self.b = f.select(swap, b, a, "ptr"), f.select(swap, a, b, "ptr")
        self.a_rs, self.a_cs = f.select(swap, b_cs, a_rs), f.select(swap, b_rs, a_cs)
        self.b_rs, self.b_cs = f.select(swap, a_cs, b_rs), f.select(swap, a_rs, b_cs)
        self.c = f.at(f.at("%c", f.mul("%r0", "%c_rs")), "%c0")
        self.c_rs, self.c_cs = f.select(swap, 1, "%c_rs"), f.select(swap, "%c_rs", 1)
        self.unit = f.compare("eq", self.b_cs, size)
        self.desc = emit_descriptor(f)
        set_field(f, self.desc, "c_rs", self.c_rs)
        set_field(f, self.desc, "c_cs", self.c_cs)
        mr, _ = tile_shape(f.module.target, f.element.dtype)
        self.single = f.compare("sle", self.m, mr)  # all rows are one strip
        tiled = _emit_tiled_rows(f, self.m, self.n)
        self.tiled_rows = f.select(self.single, self.m, tiled)
        self.copied = _emit_is_copied(self)
        longest = longest_k_block(f.element)
        blocks = f.div(f.add("%k", longest - 1), longest)
        # As few blocks of k as fit, equally long.
        self.kc = f.div(f.sub(f.add("%k", blocks), 1), blocks)

    def finished(self, i0: str, i1: str, j0: str, j1: str) -> None:
        """Calls the epilogue for rows and columns of this product."""
        f, swap = self.f, self.swap
        r0, r1 = f.select(swap, j0, i0), f.select(swap, j1, i1)
        c0, c1 = f.select(swap, i0, j0), f.select(swap, i1, j1)
        _emit_finished(f, f.add("%r0", r0), f.add("%r0", r1), f.add("%c0", c0), f.add("%c0", c1))


def _emit_is_swapped(f: Emitter, rows: str, cols: str) -> str:
    """Whether the transposed product is computed."""
    unbroken = f.both(f.compare("eq", "%a_rs", 1), f.compare("sge", "%k", SWAP_DEPTH))
    most = f.select(unbroken, EDGE_ROWS, SINGLE_COLS)
    return f.both(f.compare("sle", cols, most), f.compare("sgt", rows, cols))


def _require_blocked(module: Module, element: Element) -> str:
    """The blocked loops, for any sizes."""
    name = f"sg_gemm_blocked_{element.dtype}"
    mr, nr = tile_shape(module.target, element.dtype)
    f = Emitter(module, name, GEMM_PARAMS, element, CONTROL)
    with f.when(f.compare("eq", "%k", 0)):
        _emit_zeros(f)
        f.leave()
    x = _Product(f)
    panel_bytes = f.add(f.mul(x.kc, nr * element.itemsize), PANEL_GAP)
    nc = f.mul(f.div(_block_bytes(module.target), panel_bytes), nr)
    nc = f.select(f.compare("eq", x.m, 1), ROW_COLS, nc)
    with f.loop(0, x.n, nc) as jc:
        cols = f.minimum(nc, f.sub(x.n, jc))
        with f.loop(0, "%k", x.kc) as pc:
            depth = f.minimum(x.kc, f.sub("%k", pc))
            set_field(f, x.desc, "k", depth)
            set_field(f, x.desc, "accumulate", pc)
            a = f.at_byte(x.a, f.mul(pc, x.a_cs))
            b = f.at_byte(f.at_byte(x.b, f.mul(pc, x.b_rs)), f.mul(jc, x.b_cs))
            c = f.at(x.c, f.mul(jc, x.c_cs))
            block = _Block(x, a, b, c, depth, cols, panel_bytes)
            done = block.emit_rows()
            block.emit_pack_unit()
            rows = f.reserve()
            with f.fold(0, x.m, rows, "i64", "0") as (i, (finished,), carry):
                most = f.select(f.compare("slt", i, x.tiled_rows), mr, EDGE_ROWS)
                left = f.sub(x.m, i)
                f.assign(rows, f"select i1 {f.compare('slt', left, most)}, i64 {left}, i64 {most}")
                block.emit_strip(i, rows, done)
                stop = f.add(i, rows)
                enough = f.compare("sge", f.mul(f.sub(stop, finished), cols), EPILOGUE_ELEMS)
                last = f.compare("sge", f.add(pc, x.kc), "%k")
                ready = f.both(last, f.either(enough, f.compare("eq", stop, x.m)))
                with f.when(ready):
                    x.finished(finished, stop, jc, f.add(jc, cols))
                carry(f.select(ready, stop, finished))
    f.leave()
    f.finish()
    return name


def _emit_tiled_rows(f: Emitter, m: str, n: str) -> str:
    """The rows that full tiles take; the rest goes by `EDGE_ROWS` at a time.

    Some tiles are given up where that fills the edge kernel better: 128 rows are 8 * 14 + 2 * 8 and
    not 9 * 14 + 2. How many, is a table over m % MR, two bits each.
    """
    mr, nr = tile_shape(f.module.target, f.element.dtype)
    table = 0
    for left in range(mr):
        cost = [-t * mr + -(-(left + t * mr) // EDGE_ROWS) * EDGE_ROWS for t in range(4)]
        table |= cost.index(min(cost)) << 2 * left
    tiles = f.div(m, mr)
    rest = f.sub(m, f.mul(tiles, mr))
    given_up = f.emit(f"and i64 {f.emit(f'lshr i64 {table}, {f.mul(rest, 2)}')}, 3")
    rows = f.mul(f.sub(tiles, f.minimum(given_up, tiles)), mr)
    return f.select(f.compare("slt", n, nr), 0, rows)


def _emit_is_copied(x: _Product) -> str:
    """Whether strips of A are copied: where the longer stride is a multiple of the cache's period,
    or neither stride is unit, and the copy is used for more than one panel."""
    f = x.f
    size = f.element.itemsize
    _, nr = tile_shape(f.module.target, f.element.dtype)
    row_unit, column_unit = f.compare("eq", x.a_rs, size), f.compare("eq", x.a_cs, size)
    near = f.emit(f"and i64 {f.add(f.select(row_unit, x.a_cs, x.a_rs), 32)}, {STRIDE_PERIOD - 1}")
    neither = f.emit(f"xor i1 {f.either(row_unit, column_unit)}, true")
    bad = f.either(f.compare("ult", near, 64), neither)
    return f.both(bad, f.compare("sgt", x.n, nr))


class _Block:
    """One block of k and of columns: `depth` of k, `cols` columns; pointers are at the block."""

    def __init__(
        self, x: _Product, a: str, b: str, c: str, depth: str, cols: str, panel_bytes: str
    ) -> None:
        self.x, self.f, self.a, self.b, self.c = x, x.f, a, b, c
        self.depth, self.cols, self.panel_bytes = depth, cols, panel_bytes
        self.element = self.f.element
        self.mr, self.nr = tile_shape(self.f.module.target, self.element.dtype)
        # After the block of B: a strip of A, or the sums of one row.
        self.room = self.f.at_byte("%workspace", _block_bytes(self.f.module.target))

    def emit_rows(self) -> str:
        """Very few rows, each by itself, as far as whole vectors of columns go; -> how far."""
        f, x, element = self.f, self.x, self.element
        row, merge = require_row(f.module, element), require_merge(f.module, element)
        function, possible = f"@{row}", f.both(x.unit, f.compare("sle", x.m, SINGLE_ROWS))
        if element.itemsize >= 4:
            transposed = require_row_transposed(f.module, element)
            function = f.select(x.unit, function, f"@{transposed}", "ptr")
            unbroken = f.compare("eq", x.b_rs, element.itemsize)
            few = f.both(unbroken, f.compare("sle", x.m, SINGLE_COLS))
            possible = f.either(possible, few)
        width = f.select(possible, f.emit(f"and i64 {self.cols}, {-element.lanes}"), 0)
        with f.loop(0, f.select(f.compare("sgt", width, 0), x.m, 0)) as i:
            a = f.at_byte(self.a, f.mul(i, x.a_rs))
            f.stmt(
                f"call void {function}(ptr {a}, i64 {x.a_cs}, ptr {self.b}, i64 {x.b_rs}, "
                f"i64 {x.b_cs}, ptr {self.room}, i64 {self.depth}, i64 {width})"
            )
            c = f.at(self.c, f.mul(i, x.c_rs))
            f.call(merge, ("ptr", x.desc), ("ptr", self.room), ("i64", 0), ("ptr", c), ("i64", 1),
                   ("i64", width))  # fmt: skip
        return width

    def emit_pack_unit(self) -> None:
        """Packs the whole panels of a B whose rows lie unbroken, if several strips use them."""
        f, x = self.f, self.x
        several = f.both(x.unit, f.emit(f"xor i1 {x.single}, true"))
        with f.when(several):
            f.call(require_pack_block(f.module, self.element), ("ptr", self.b), ("i64", x.b_rs),
                   ("ptr", "%workspace"), ("i64", self.panel_bytes), ("i64", self.depth),
                   ("i64", f.div(self.cols, self.nr)))  # fmt: skip

    def emit_strip(self, i: str, rows: str, start: str) -> None:
        """A strip of A, from row i, times all panels from column `start` on; the first strip packs
        what is neither packed yet nor read in place."""
        f, x = self.f, self.x
        a = self._emit_strip_of_a(i, rows)
        c = f.at(self.c, f.mul(i, x.c_rs))
        first = f.compare("eq", i, 0)
        with f.loop(start, self.cols, self.nr) as j:
            left = f.sub(self.cols, j)
            width = f.minimum(left, self.nr)
            whole = f.compare("sge", left, self.nr)
            if self.element.has_masks:  # what is no whole panel needs no padding
                split = f.emit(f"xor i1 {whole}, true")
                in_place, packed = f.both(x.unit, f.either(x.single, split)), x.unit
            else:
                packed = f.both(x.unit, whole)
                in_place = f.both(packed, x.single)
            panel = f.at_byte("%workspace", f.mul(f.div(j, self.nr), self.panel_bytes))
            panel = f.select(x.single, "%workspace", panel, "ptr")
            here = f.at_byte(self.b, f.mul(j, x.b_cs))
            with f.when(f.both(first, f.emit(f"xor i1 {packed}, true"))):
                pack = require_pack(f.module, self.element)
                f.call(pack, ("ptr", here), ("i64", x.b_rs), ("i64", x.b_cs), ("ptr", panel),
                       ("i64", self.depth), ("i64", width))  # fmt: skip
            ld = self.nr * self.element.itemsize
            set_field(f, x.desc, "b_rs", f.select(in_place, x.b_rs, ld))
            f.call(require_strip(f.module, self.element.dtype), ("ptr", x.desc), ("ptr", a),
                   ("ptr", f.select(in_place, here, panel, "ptr")),
                   ("ptr", f.at(c, f.mul(j, x.c_cs))), ("i64", rows), ("i64", width))  # fmt: skip

    def _emit_strip_of_a(self, i: str, rows: str) -> str:
        """The strip of A to compute with, its strides put into the descriptor."""
        f, x = self.f, self.x
        a = f.at_byte(self.a, f.mul(i, x.a_rs))
        set_field(f, x.desc, "a_rs", x.a_rs)
        set_field(f, x.desc, "a_cs", x.a_cs)
        copied = f.both(x.copied, f.compare("eq", rows, self.mr))
        with f.when(copied):
            copy = require_pack_strip(f.module, self.element)
            f.call(copy, ("ptr", x.desc), ("ptr", a), ("i64", x.a_rs), ("i64", x.a_cs),
                   ("ptr", self.room), ("i64", self.depth))  # fmt: skip
        return f.select(copied, self.room, a, "ptr")
