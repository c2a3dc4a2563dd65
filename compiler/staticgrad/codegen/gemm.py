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

from collections.abc import Callable

from staticgrad.ir.dim import DimLike, dim_max, dim_min, floor_div, product

from .builder import Module
from .gemm_emit import CONTROL, LINE_BYTES, Element, Emitter, split_params
from .gemm_kernel import (
    DESC,
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
from .gemm_prologue import (
    PROLOGUE_PARAMS,
    emit_fill_bytes,
    emit_filled_block,
    emit_row_count,
    emit_rows,
    emit_strip_in_rows,
    fill_bytes,
)
from .gemm_skinny import require_row, require_row_transposed
from .target import Target

__all__ = [
    "GEMM_PARAMS", "require_gemm", "require_gemm_prologue", "require_micro_kernel", "tile_bytes",
    "tile_shape", "workspace_bytes",
]  # fmt: skip

GEMM_PARAMS = (
    "i64 m, i64 n, i64 k, ptr a, i64 a_rs, i64 a_cs, ptr b, i64 b_rs, i64 b_cs, ptr c, i64 c_rs, "
    "ptr tile, ptr workspace, ptr epilogue, ptr context, i64 batch, i64 r0, i64 r1, i64 c0, i64 c1"
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
# Columns of products of so few rows to a block: the sums have room in the workspace and stay in L1.
ROW_COLS = 2048
PANEL_GAP = 128  # bytes between packed panels, which else were whole multiples of 4096 apart
_PART_OF_A, _PART_OF_B = 2, 8
# Room beyond one panel for `SINGLE_ROWS` rows that a prologue computes, which end with lines.
_FEW_ROWS_GAP = 2 * LINE_BYTES * SINGLE_ROWS
STRIDE_PERIOD = 4096  # bytes after which addresses fall on the same set of an L1 cache


def longest_k_block(itemsize: int) -> int:
    """Bound of the k block. Both operands then come from the L2 cache, which keeps up: 105 GFLOP/s
    with 1024, 102 with 512 where k is 768 or 784 (peak 117), as no block is added to another."""
    return min(1024, 4096 // itemsize)


def emit_k_block(f: Emitter) -> str:
    """The block of k: as few as fit, equally long."""
    longest = longest_k_block(f.element.itemsize)
    blocks = f.div(f.add("%k", longest - 1), longest)
    return f.div(f.sub(f.add("%k", blocks), 1), blocks)


def block_bounds(target: Target) -> tuple[int, int]:
    """Least and most room for the packed block of B.

    Up to twice the L2 cache, with a strip of A: the L3 cache keeps up, and A is gone through, and
    its strips are often copied, once a block. 2048 x 2048 x 2048 does 86 GFLOP/s with 512 KiB, 98
    with 832, 104 with 1984.
    """
    cache = min(max(target.l2_bytes, 256 * 1024), 1024 * 1024)
    return cache // 16 * 3, cache // 16 * 31


def emit_block_bytes(f: Emitter, m: str, *, prologue: bool = False) -> str:
    """Room for the block, within the bounds: half of what A has, so that a small A, which stays in
    the cache, costs no memory; and of a large B so much that its rows are read in long pieces (32 x
    4096 x 1024 on two threads: 1.9 ms with 256 KiB, 1.5 with 512). If A may be computed, once a
    block, as much as B has up to half of the cache: 100 x 512 x 512 took 5 % longer with blocks of
    64 columns than from memory."""
    least, most = block_bounds(f.module.target)
    a_bytes = f.mul(f.mul(m, "%k"), f.element.itemsize)
    b_bytes = f.mul(f.mul("%n", "%k"), f.element.itemsize)
    wanted = f.maximum(f.div(a_bytes, _PART_OF_A), f.div(b_bytes, _PART_OF_B))
    if prologue:
        wanted = f.maximum(wanted, f.minimum(b_bytes, _most_for_computed(f.element)))
    return f.minimum(f.maximum(wanted, least), most)


def emit_block_cols(f: Emitter, n: str, block_bytes: str, panel_bytes: str) -> str:
    """Columns of a block of B. Two or three blocks are equally wide: 256 columns by 1024 stay in
    the L2 cache and 480 do not, and a narrow last one would go through all of A for little. Of more
    the rows are read in the longest pieces (32 x 4096 x 1024)."""
    _, nr = tile_shape(f.module.target, f.element.dtype)
    panels, most = f.div(f.add(n, nr - 1), nr), f.div(block_bytes, panel_bytes)
    blocks = f.div(f.add(panels, f.sub(most, 1)), most)
    few = f.both(f.compare("sgt", blocks, 1), f.compare("sle", blocks, 3))
    even = f.div(f.add(panels, f.sub(blocks, 1)), f.maximum(blocks, 1))
    return f.mul(f.select(few, even, most), nr)


def _most_for_computed(element: Element) -> int:
    return block_bounds(element.target)[1] // 4


def _block_bytes(
    element: Element, m: DimLike, n: DimLike, k: DimLike, *, prologue: bool = False
) -> DimLike:
    """What `emit_block_bytes` computes, at most."""
    least: DimLike
    least, most = block_bounds(element.target)
    part_of_a = floor_div(m * k * element.itemsize, _PART_OF_A)
    part_of_b = floor_div(n * k * element.itemsize, _PART_OF_B)
    if prologue:
        b_bytes = dim_max(m, n) * k * element.itemsize  # of the transposed product too
        least = dim_max(least, dim_min(b_bytes, _most_for_computed(element)))
    return dim_min(dim_max(part_of_a, dim_max(part_of_b, least)), most)


def _room_bytes(element: Element, kc: DimLike) -> DimLike:
    """Room for a strip of A by a block of k, or the sums of one row, with which the workspace
    begins."""
    return dim_max(strip_bytes(element, kc), ROW_COLS * element.itemsize)


def _emit_room_bytes(f: Emitter, kc: str) -> str:
    """What `_room_bytes` computes."""
    lines = f.add(f.div(f.mul(kc, f.element.itemsize), LINE_BYTES), 2)
    mr, _ = tile_shape(f.module.target, f.element.dtype)
    return f.maximum(f.mul(lines, mr * LINE_BYTES), ROW_COLS * f.element.itemsize)


def workspace_bytes(
    target: Target, dtype: str, sizes: tuple[DimLike, DimLike, DimLike] | None = None, *,
    unbroken: bool = False, up_to: bool = False,
) -> DimLike:  # fmt: skip
    """Bytes that one call needs for itself. With sizes (m, n, k) no more than a product of those
    touches, or of parts of the rows, or along the longer of m and n, or with `up_to` of any smaller
    sizes; `unbroken` if B has unit column stride. Sizes may be symbolic: the result then is, and at
    their values no other."""
    element = Element.of(dtype, target)
    longest = longest_k_block(element.itemsize)
    if sizes is None:
        return _room_bytes(element, longest) + block_bounds(target)[1]
    m, n, k = sizes
    block = _block_bytes(element, m, n, k)
    (mr, nr), lanes, size = tile_shape(target, dtype), element.lanes, element.itemsize
    in_place = unbroken and element.has_masks
    depth = dim_min(k, longest)
    kc = depth if up_to else k_block(element.itemsize, k)
    panel = kc * (nr * size) + PANEL_GAP
    few = max(EDGE_ROWS, SINGLE_COLS)  # columns up to which the transposed product may be computed
    if few <= mr:  # which then is one strip: that needs one panel
        panels = 1 + above(m, mr) * (_ceil_div(n, nr) - 1)
    else:
        is_few = 1 if up_to else 1 - above(n, few)
        panels = _ceil_div(dim_max(n, is_few * m), nr)
    needed = _room_bytes(element, kc) + dim_min(panels * panel, block)
    if in_place:
        row = dim_min(n, ROW_COLS) * size
        needed = row + above(m, 1) * (needed - row)
    if product(tuple(d for d in sizes if isinstance(d, int))) <= SMALL_PRODUCT:
        blocked = dim_max(m * n * k - SMALL_PRODUCT, 0) + dim_max(k - longest, 0)
        needed = dim_min(1, blocked) * needed
    if not in_place:
        copied = dim_min(depth * _ceil_div(n, lanes) * lanes, SMALL_PRODUCT + depth * (lanes - 1))
        needed = dim_max(needed, copied * size)
    return needed


def tile_bytes(target: Target, dtype: str, m: int, n: int) -> int:
    """Room for the rows of C between two calls of an epilogue, whatever rectangle of it is asked
    for, in whole cache lines; about as much as C, at most."""
    element = Element.of(dtype, target)
    mr, _ = tile_shape(target, dtype)
    line = LINE_BYTES // element.itemsize  # by which a row may be longer
    # Rows come by strips, until there are enough elements.
    rows = EPILOGUE_ELEMS * element.itemsize // STRIDE_PERIOD + max(mr, EDGE_ROWS)
    elements = EPILOGUE_ELEMS + max(mr, EDGE_ROWS) * n + rows * line
    found = min(m * (n + line), max(SMALL_PRODUCT, elements)) * element.itemsize
    return -(-found // LINE_BYTES) * LINE_BYTES


def prologue_workspace_bytes(
    target: Target, dtype: str, sizes: tuple[DimLike, DimLike, DimLike]
) -> DimLike:
    """The same for `require_gemm_prologue`, which packs all of what it computes."""
    element = Element.of(dtype, target)
    m, n, k = sizes
    _, nr = tile_shape(target, dtype)
    kc = k_block(element.itemsize, k)
    room = dim_max(_room_bytes(element, kc), fill_bytes(element, dim_max(m, n), kc))
    few = 1 - above(n, max(EDGE_ROWS, SINGLE_COLS))  # columns: the transposed product
    panels = _ceil_div(dim_max(n, few * m), nr)
    panel = kc * (nr * element.itemsize) + PANEL_GAP
    block = dim_min(panels * panel, _block_bytes(element, *sizes, prologue=True))
    return room + block + _FEW_ROWS_GAP


def above(size: DimLike, limit: int) -> DimLike:
    """1 where a size is above the limit, else 0."""
    return dim_min(1, dim_max(0, size - limit))


def _ceil_div(a: DimLike, b: DimLike) -> DimLike:
    return floor_div(a + (b - 1), b)


def k_blocks(itemsize: int, k: DimLike) -> DimLike:
    """How many blocks of k there are; no k at all is one as well, whose products are zeros."""
    return dim_max(1, _ceil_div(k, longest_k_block(itemsize)))


def k_block(itemsize: int, k: DimLike) -> DimLike:
    """What `emit_k_block` computes."""
    return _ceil_div(k, k_blocks(itemsize, k))


def require_gemm(module: Module, dtype: str) -> str:
    """Makes sure that the matrix product of `dtype` is in the module; -> its name.

    `void @sg_gemm_<dtype>(i64 m, i64 n, i64 k, ptr a, i64 a_rs, i64 a_cs, ptr b, i64 b_rs,
    i64 b_cs, ptr c, i64 c_rs, ptr tile, ptr workspace, ptr epilogue, ptr context, i64 batch,
    i64 r0, i64 r1, i64 c0, i64 c1)` sets c[i, j] = sum_p a[i, p] * b[p, j] for r0 <= i < r1,
    c0 <= j < c1, with a: [m, k], b: [k, n], c: [m, n]. Strides are in elements, any sign or zero
    for A and B; c has unit column stride and overlaps neither operand. Unsigned dtypes share the
    signed function.

    `workspace` has `workspace_bytes` and 64-byte alignment; two calls at a time need two.
    `epilogue` is null or a `void(ptr context, i64 batch, i64 r0, i64 r1, i64 c0, i64 c1, ptr c,
    i64 c_rs)` which is called for each finished rectangle of C; those cover the asked one once.
    Nothing else may need C: then `tile` is not null, has `tile_bytes`, and where k is no longer
    than a block C is not written; the epilogue's `c` and `c_rs` tell where the rectangle lies.
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
    one_block = f.compare("ule", "%k", longest_k_block(element.itemsize))
    # The arguments lie where the callee wants them: these are jumps.
    args = ", ".join(f"{ty} %{p}" for ty, p in split_params(GEMM_PARAMS))
    with f.when(f.both(f.both(few, light), one_block)):
        f.stmt(f"musttail call void @{small}({args})")
        f.leave()
    f.stmt(f"musttail call void @{blocked}({args})")
    f.leave()
    f.finish()
    return name


def require_gemm_prologue(module: Module, dtype: str) -> str:
    """Makes sure of `sg_gemm_prologue_<dtype>`, which has the parameters and the meaning of
    `require_gemm`, and `PROLOGUE_PARAMS`: an operand whose prologue is not null is computed by it
    (`gemm_prologue`). Of such an operand the pointer does not matter; its unit stride, row or
    column, tells what the prologue computes. `workspace` has `prologue_workspace_bytes`."""
    element = Element.of(dtype, module.target)
    name = f"sg_gemm_prologue_{element.dtype}"
    return name if module.has(name) else _require_blocked(module, element, prologue=True)


def _require_small(module: Module, element: Element) -> str:
    """Products of 1 to `SMALL_PRODUCT` multiplications."""
    name = f"sg_gemm_small_{element.dtype}"
    size = element.itemsize
    f = Emitter(module, name, GEMM_PARAMS, element, CONTROL)
    desc = emit_descriptor(f)
    rows, cols = f.sub("%r1", "%r0"), f.sub("%c1", "%c0")
    tiled = emit_is_tiled(f)
    c = f.select(tiled, "%tile", f.at(f.at("%c", f.mul("%r0", "%c_rs")), "%c0"), "ptr")
    c_rs = f.select(tiled, cols, "%c_rs")
    a_rs, a_cs, b_rs, b_cs = (f.mul(s, size) for s in ("%a_rs", "%a_cs", "%b_rs", "%b_cs"))
    a, b = f.at_byte("%a", f.mul("%r0", a_rs)), f.at_byte("%b", f.mul("%c0", b_cs))
    in_place = f.compare("eq", "%b_cs", 1) if element.has_masks else "false"
    packed_rs = f.mul(f.emit(f"and i64 {f.add(cols, element.lanes - 1)}, {-element.lanes}"), size)
    for field, value in (("k", "%k"), ("a_rs", a_rs), ("a_cs", a_cs), ("c_rs", c_rs),
                         ("b_rs", f.select(in_place, b_rs, packed_rs)), ("c_cs", 1),
                         ("accumulate", 0)):  # fmt: skip
        set_field(f, desc, field, value)
    with f.when(f.negate(in_place)):
        f.call(require_pack_scalar(module, element), ("ptr", b), ("i64", b_rs), ("i64", b_cs),
               ("ptr", "%workspace"), ("i64", "%k"), ("i64", cols), ("i64", packed_rs))  # fmt: skip
    b = f.select(in_place, b, "%workspace", "ptr")
    f.call(require_strip(module, element.dtype), ("ptr", desc), ("ptr", a), ("ptr", b), ("ptr", c),
           ("i64", rows), ("i64", cols))  # fmt: skip
    emit_finished(f, ("%r0", "%r1", "%c0", "%c1"), c, c_rs)
    f.leave()
    f.finish()
    return name


def emit_zeros(f: Emitter, tiled: str = "false") -> None:
    """The product over no k at all; row by row, if it is `tiled`."""
    f.module.intrinsic("llvm.memset.p0.i64", "void", "ptr", "i8", "i64", "i1")
    rows, cols = f.sub("%r1", "%r0"), f.sub("%c1", "%c0")
    some = f.both(f.compare("sgt", rows, 0), f.compare("sgt", cols, 0))
    step = f.select(tiled, 1, rows)
    with f.when(some), f.loop("%r0", "%r1", step) as i:
        first = f.at(f.at("%c", f.mul(i, "%c_rs")), "%c0")
        first = f.select(tiled, "%tile", first, "ptr")
        with f.loop(0, step) as row:
            place = f.at(first, f.mul(row, "%c_rs"))
            f.call("llvm.memset.p0.i64", ("ptr", place), ("i8", 0),
                   ("i64", f.mul(cols, f.element.itemsize)), ("i1", "false"))  # fmt: skip
        emit_finished(f, (i, f.add(i, step), "%c0", "%c1"), first, "%c_rs")


def emit_finished(f: Emitter, rectangle: tuple[str, str, str, str], c: str, c_rs: str) -> None:
    """Calls the epilogue, if there is one, for a rectangle (r0, r1, c0, c1) that lies at `c`."""
    with f.when(f.emit("icmp ne ptr %epilogue, null")):
        bounds = ", ".join(f"i64 {x}" for x in rectangle)
        f.stmt(f"call void %epilogue(ptr %context, i64 %batch, {bounds}, ptr {c}, i64 {c_rs})")


class Frame:
    """What the blocked loops compute with, in memory: named fields of 8 bytes, of which the first
    are the kernels' descriptor. As values in registers, their allocation took LLVM half of the time
    that it spends on the loops.

    The product is the rectangle by itself, [m, n] = [m, whole_k] times [whole_k, n], or its
    transpose (`swap`). Its pointers are at the first row and column; those of `block_` at the block
    at hand, which has `k` (of the descriptor) by `cols`. Strides are in bytes, C's in elements.
    With `tiled`, `block_c` is the tile, in which unfinished rows lie, `tile_rs` apart.
    """

    FIELDS = (*DESC, "m", "n", "whole_k", "kc", "nc", "a", "b", "c", "a_row", "a_col", "b_row",
              "b_col", "r0", "c0", "swap", "unit", "single", "copied", "tiled_rows", "panel_bytes",
              "workspace", "packed", "block_a", "block_b", "block_c", "cols", "start", "tiled",
              "tile_rs")  # fmt: skip
    POINTERS = ("a", "b", "c", "workspace", "packed", "block_a", "block_b", "block_c")
    FLAGS = ("swap", "unit", "single", "copied", "tiled")

    # Computed operands: where the rectangle begins in them; how many rows of A are computed at
    # once, which of them lie in the workspace, and with what strides.
    PROLOGUE = ("first_a", "first_b", "rows", "rows_begin", "rows_end", "rows_rs", "rows_cs")
    PROLOGUE_POINTERS = ("fill_a", "table_a", "fill_b", "table_b", "strip")

    def __init__(self, f: Emitter, *more: str, prologue: bool = False) -> None:
        """`more`: names of further pointers; `prologue`: whether operands may be computed."""
        self.f, self.prologue = f, prologue
        more = (*more, *(self.PROLOGUE_POINTERS if prologue else ()))
        self.fields = (*self.FIELDS, *more, *(self.PROLOGUE if prologue else ()))
        self.pointers = (*self.POINTERS, *more)
        self.pointer = f.emit(f"alloca [{len(self.fields)} x i64], align 64")

    def __setitem__(self, field: str, value: str | int) -> None:
        f = self.f
        if field in self.FLAGS:
            value = f.emit(f"zext i1 {value} to i64")
        ty = "ptr" if field in self.pointers else "i64"
        f.store(ty, str(value), f.at_byte(self.pointer, 8 * self.fields.index(field)), 8)

    def __getitem__(self, field: str) -> str:
        """Emits the load of a field: a pointer, a flag (i1) or an i64."""
        f = self.f
        ty = "ptr" if field in self.pointers else "i64"
        value = f.load(ty, f.at_byte(self.pointer, 8 * self.fields.index(field)), 8)
        return f.compare("ne", value, 0) if field in self.FLAGS else value


def _require_blocked(module: Module, element: Element, *, prologue: bool = False) -> str:
    """The blocked loops, for any sizes."""
    name = f"sg_gemm_{'prologue' if prologue else 'blocked'}_{element.dtype}"
    params = f"{GEMM_PARAMS}, {PROLOGUE_PARAMS}" if prologue else GEMM_PARAMS
    f = Emitter(module, name, params, element, CONTROL)
    x = Frame(f, prologue=prologue)
    with f.when(f.compare("eq", "%k", 0)):
        emit_zeros(f, emit_is_tiled(f))
        f.leave()
    _emit_setup(f, x)
    with f.loop(0, x["n"], x["nc"]) as jc:
        x["cols"] = f.minimum(x["nc"], f.sub(x["n"], jc))
        with f.when(x["tiled"]):
            _emit_tile(f, x)
        with f.loop(0, x["whole_k"], x["kc"]) as pc:
            x["k"] = f.minimum(x["kc"], f.sub(x["whole_k"], pc))
            x["accumulate"] = pc
            x["block_a"] = f.at_byte(x["a"], f.mul(pc, x["a_col"]))
            row_of_b = f.at_byte(x["b"], f.mul(pc, x["b_row"]))
            x["block_b"] = f.at_byte(row_of_b, f.mul(jc, x["b_col"]))
            block_c = f.at(x["c"], f.mul(jc, x["c_cs"]))
            x["block_c"] = f.select(x["tiled"], "%tile", block_c, "ptr")
            _emit_single_rows(f, x)
            _emit_pack_unit(f, x)
            if prologue:
                with f.when(emit_is_computed(f, x, "b")):
                    emit_filled_block(f, x, jc)
            emit_strips(
                f, x, pc, x["whole_k"], lambda *rows: _emit_strip(f, x, *rows),
                lambda first, stop: _emit_finish(f, x, jc, first, stop),
            )  # fmt: skip
    f.leave()
    f.finish()
    return name


def _emit_setup(f: Emitter, x: Frame) -> None:
    """Fills in the frame's fields that stay."""
    size = f.element.itemsize
    mr, nr = tile_shape(f.module.target, f.element.dtype)
    rows, cols = f.sub("%r1", "%r0"), f.sub("%c1", "%c0")
    # Few columns: the transposed product is computed.
    unbroken = f.both(f.compare("eq", "%a_rs", 1), f.compare("sge", "%k", SWAP_DEPTH))
    few = f.compare("sle", cols, f.select(unbroken, EDGE_ROWS, SINGLE_COLS))
    swap = f.both(few, f.compare("sgt", rows, cols))
    a_rs, a_cs, b_rs, b_cs = (f.mul(s, size) for s in ("%a_rs", "%a_cs", "%b_rs", "%b_cs"))
    a, b = f.at_byte("%a", f.mul("%r0", a_rs)), f.at_byte("%b", f.mul("%c0", b_cs))
    m = f.select(swap, cols, rows)
    for field, straight, swapped in (
        ("n", cols, rows), ("a", a, b), ("b", b, a), ("a_row", a_rs, b_cs), ("a_col", a_cs, b_rs),
        ("b_row", b_rs, a_cs), ("b_col", b_cs, a_rs), ("c_rs", "%c_rs", "1"),
        ("c_cs", "1", "%c_rs"),
    ):  # fmt: skip
        x[field] = f.select(swap, swapped, straight, "ptr" if field in x.POINTERS else "i64")
    x["m"], x["whole_k"], x["swap"] = m, "%k", swap
    x["c"] = f.at(f.at("%c", f.mul("%r0", "%c_rs")), "%c0")
    x["r0"], x["c0"], x["workspace"] = "%r0", "%c0", "%workspace"
    x["unit"] = f.compare("eq", x["b_col"], size)
    single = f.compare("sle", m, mr)  # all rows are one strip
    if x.prologue:
        _emit_prologues(f, x, swap)
        single = f.both(single, f.negate(emit_is_computed(f, x, "b")))
    x["single"] = single
    x["tiled_rows"] = f.select(single, m, emit_tiled_rows(f, m, x["n"]))
    x["copied"] = emit_is_copied(f, x)
    kc = emit_k_block(f)
    room = _emit_room_bytes(f, kc)
    if x.prologue:
        room = emit_fill_bytes(f, x, room, kc)
        emit_row_count(f, x, kc)
    x["packed"] = f.at_byte("%workspace", room)
    panel_bytes = f.add(f.mul(kc, nr * size), PANEL_GAP)
    block = emit_block_bytes(f, m, prologue=x.prologue)
    nc = emit_block_cols(f, x["n"], block, panel_bytes)
    x["kc"], x["panel_bytes"] = kc, panel_bytes
    nc, tiled = f.select(single, ROW_COLS, nc), emit_is_tiled(f)
    # All rows of a transposed product may be in the tile at once, which has room for so many.
    most = f.minimum(nc, SMALL_PRODUCT // EDGE_ROWS)
    x["nc"], x["tiled"] = f.select(f.both(tiled, swap), most, nc), tiled


def emit_is_tiled(f: Emitter) -> str:
    """Whether blocks of C are only ever in the tile: as there is one block of k."""
    given = f.emit("icmp ne ptr %tile, null")
    return f.both(given, f.compare("ule", "%k", longest_k_block(f.element.itemsize)))


def _emit_tile(f: Emitter, x: Frame) -> None:
    """C's strides within the tile, whose rows are not to be on one set of the cache."""
    swap, cols = x["swap"], x["cols"]
    period = f.emit(f"and i64 {f.mul(cols, f.element.itemsize)}, {STRIDE_PERIOD - 1}")
    gap = f.select(f.compare("eq", period, 0), LINE_BYTES // f.element.itemsize, 0)
    tile_rs = f.select(swap, x["m"], f.add(cols, gap))
    x["tile_rs"] = tile_rs
    x["c_rs"], x["c_cs"] = f.select(swap, 1, tile_rs), f.select(swap, tile_rs, 1)


def _emit_prologues(f: Emitter, x: Frame, swap: str) -> None:
    for field, straight, swapped in (
        ("fill_a", "%prologue_a", "%prologue_b"), ("fill_b", "%prologue_b", "%prologue_a"),
        ("table_a", "%table_a", "%table_b"), ("table_b", "%table_b", "%table_a"),
        ("first_a", "%r0", "%c0"), ("first_b", "%c0", "%r0"),
    ):  # fmt: skip
        x[field] = f.select(swap, swapped, straight, "ptr" if field in x.pointers else "i64")


def emit_is_computed(f: Emitter, x: Frame, operand: str) -> str:
    """Whether an operand ("a" or "b") has a prologue."""
    return f.emit(f"icmp ne ptr {x['fill_' + operand]}, null")


def emit_tiled_rows(f: Emitter, m: str, n: str) -> str:
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


def emit_is_copied(f: Emitter, x: Frame) -> str:
    """Whether strips of A are copied: where rows are a multiple of the cache's period apart, or
    neither stride is unit, and the copy is used for more than one panel. A transposed A is read
    where it lies, whatever its stride: the kernel asks for its columns ahead."""
    size = f.element.itemsize
    _, nr = tile_shape(f.module.target, f.element.dtype)
    row_unit = f.compare("eq", x["a_row"], size)
    column_unit = f.compare("eq", x["a_col"], size)
    near = f.emit(f"and i64 {f.add(x['a_row'], 32)}, {STRIDE_PERIOD - 1}")
    bad = f.either(f.compare("ult", near, 64), f.negate(column_unit))
    bad = f.both(bad, f.negate(row_unit))
    return f.both(bad, f.compare("sgt", x["n"], nr))


def _emit_single_rows(f: Emitter, x: Frame) -> None:
    """Very few rows, each by itself, as far as whole vectors of columns go: to `start`."""
    element = f.element
    row, merge = require_row(f.module, element), require_merge(f.module, element)
    unit = x["unit"]
    function, possible = f"@{row}", f.both(unit, f.compare("sle", x["m"], SINGLE_ROWS))
    if element.itemsize >= 4:
        transposed = require_row_transposed(f.module, element)
        function = f.select(unit, function, f"@{transposed}", "ptr")
        unbroken = f.compare("eq", x["b_row"], element.itemsize)
        few = f.both(unbroken, f.compare("sle", x["m"], SINGLE_COLS))
        possible = f.either(possible, few)
    a_row, a_col, rows_of_a = x["a_row"], x["a_col"], x["block_a"]
    if x.prologue:
        possible = f.both(possible, f.negate(emit_is_computed(f, x, "b")))
    width = f.select(possible, f.emit(f"and i64 {x['cols']}, {-element.lanes}"), 0)
    x["start"] = width
    if x.prologue:
        x["rows_rs"], x["rows_cs"] = a_row, a_col
        computed = emit_is_computed(f, x, "a")
        with f.when(f.both(computed, f.compare("sgt", width, 0))):
            emit_rows(f, x, "0", x["m"], x["packed"])
        a_row, a_col = x["rows_rs"], x["rows_cs"]
        rows_of_a = f.select(computed, x["packed"], rows_of_a, "ptr")
    with f.loop(0, f.select(f.compare("sgt", width, 0), x["m"], 0)) as i:
        a, room = f.at_byte(rows_of_a, f.mul(i, a_row)), x["workspace"]
        f.stmt(
            f"call void {function}(ptr {a}, i64 {a_col}, ptr {x['block_b']}, "
            f"i64 {x['b_row']}, i64 {x['b_col']}, ptr {room}, i64 {x['k']}, i64 {x['start']})"
        )
        c = f.at(x["block_c"], f.mul(i, x["c_rs"]))
        f.call(merge, ("ptr", x.pointer), ("ptr", room), ("i64", 0), ("ptr", c), ("i64", 1),
               ("i64", x["start"]))  # fmt: skip


def _emit_pack_unit(f: Emitter, x: Frame) -> None:
    """Packs the whole panels of a B whose rows lie unbroken, if several strips use them."""
    _, nr = tile_shape(f.module.target, f.element.dtype)
    several = f.both(x["unit"], f.negate(x["single"]))
    if x.prologue:
        several = f.both(several, f.negate(emit_is_computed(f, x, "b")))
    with f.when(several):
        f.call(require_pack_block(f.module, f.element), ("ptr", x["block_b"]),
               ("i64", x["b_row"]), ("ptr", x["packed"]), ("i64", x["panel_bytes"]),
               ("i64", x["k"]), ("i64", f.div(x["cols"], nr)))  # fmt: skip


def emit_strips(
    f: Emitter, x: Frame, pc: str, whole_k: str,
    strip: Callable[[str, str, str], None], finish: Callable[[str, str], None],
) -> None:  # fmt: skip
    """Takes strip after strip of A through a block of B: `strip(row, rows, first)`, where rows from
    `first` on are not finished. Behind the last block of k, `finish(first, stop)`."""
    mr, _ = tile_shape(f.module.target, f.element.dtype)
    rows = f.reserve()
    if x.prologue:
        x["rows_end"] = 0
    with f.fold(0, x["m"], rows, "i64", "0") as (i, (finished,), carry):
        most = f.select(f.compare("slt", i, x["tiled_rows"]), mr, EDGE_ROWS)
        left = f.sub(x["m"], i)
        f.assign(rows, f"select i1 {f.compare('slt', left, most)}, i64 {left}, i64 {most}")
        strip(i, rows, finished)
        stop = f.add(i, rows)
        enough = f.compare("sge", f.mul(f.sub(stop, finished), x["cols"]), EPILOGUE_ELEMS)
        last = f.compare("sge", f.add(pc, x["kc"]), whole_k)
        ready = f.both(last, f.either(enough, f.compare("eq", stop, x["m"])))
        with f.when(ready):
            finish(finished, stop)
        carry(f.select(ready, stop, finished))


def emit_strip_of_a(f: Emitter, x: Frame, i: str, rows: str) -> str:
    """Where the strip of A from row i lies: in its place, or copied, or computed."""
    mr, _ = tile_shape(f.module.target, f.element.dtype)
    x["a_rs"], x["a_cs"] = x["a_row"], x["a_col"]
    lying, room = f.at_byte(x["block_a"], f.mul(i, x["a_row"])), x["workspace"]
    copied = f.both(x["copied"], f.compare("eq", rows, mr))
    if x.prologue:
        computed = emit_is_computed(f, x, "a")
        copied = f.both(copied, f.negate(computed))
    with f.when(copied):
        copy = require_pack_strip(f.module, f.element)
        f.call(copy, ("ptr", x.pointer), ("ptr", lying), ("i64", x["a_row"]), ("i64", x["a_col"]),
               ("ptr", room), ("i64", x["k"]))  # fmt: skip
    a = f.select(copied, room, lying, "ptr")
    if not x.prologue:
        return a
    x["strip"] = a
    with f.when(computed):
        x["strip"] = emit_strip_in_rows(f, x, i, rows, room)
    return x["strip"]


def _emit_finish(f: Emitter, x: Frame, jc: str, first: str, stop: str) -> None:
    swap, end = x["swap"], f.add(jc, x["cols"])
    r0, r1 = f.select(swap, jc, first), f.select(swap, end, stop)
    c0, c1 = f.select(swap, first, jc), f.select(swap, stop, end)
    r0, r1, c0, c1 = (f.add(x[of], n) for of, n in (("r0", r0), ("r0", r1), ("c0", c0), ("c0", c1)))
    tiled, c = x["tiled"], f.at(f.at("%c", f.mul(r0, "%c_rs")), c0)
    c, c_rs = f.select(tiled, "%tile", c, "ptr"), f.select(tiled, x["tile_rs"], "%c_rs")
    emit_finished(f, (r0, r1, c0, c1), c, c_rs)


def _emit_strip(f: Emitter, x: Frame, i: str, rows: str, first: str) -> None:
    """A strip of A, from row i, times all panels from column `start` on; the first strip packs what
    is neither packed yet nor read in place. A tile of C begins with the row `first`."""
    element = f.element
    _, nr = tile_shape(f.module.target, element.dtype)
    a = emit_strip_of_a(f, x, i, rows)
    with f.loop(x["start"], x["cols"], nr) as j:
        left = f.sub(x["cols"], j)
        width, whole = f.minimum(left, nr), f.compare("sge", left, nr)
        unit, single = x["unit"], x["single"]
        if element.has_masks:  # what is no whole panel needs no padding
            in_place, packed = f.both(unit, f.either(single, f.negate(whole))), unit
        else:
            packed = f.both(unit, whole)
            in_place = f.both(packed, single)
        if x.prologue:
            computed = emit_is_computed(f, x, "b")
            packed = f.either(packed, computed)
            in_place = f.both(in_place, f.negate(computed))
        # A lone strip uses each panel at once, and all of them in the same place.
        offset = f.select(single, 0, f.mul(f.div(j, nr), x["panel_bytes"]))
        panel = f.at_byte(x["packed"], offset)
        here = f.at_byte(x["block_b"], f.mul(j, x["b_col"]))
        with f.when(f.both(f.compare("eq", i, 0), f.negate(packed))):
            pack = require_pack(f.module, element)
            f.call(pack, ("ptr", here), ("i64", x["b_row"]), ("i64", x["b_col"]), ("ptr", panel),
                   ("i64", x["k"]), ("i64", width))  # fmt: skip
        x["b_rs"] = f.select(in_place, x["b_row"], nr * element.itemsize)
        row = f.sub(i, f.select(x["tiled"], first, 0))
        c = f.at(f.at(x["block_c"], f.mul(row, x["c_rs"])), f.mul(j, x["c_cs"]))
        f.call(require_strip(f.module, element.dtype), ("ptr", x.pointer), ("ptr", a),
               ("ptr", f.select(in_place, here, panel, "ptr")), ("ptr", c), ("i64", rows),
               ("i64", width))  # fmt: skip
