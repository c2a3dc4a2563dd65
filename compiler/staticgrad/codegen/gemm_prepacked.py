"""Matrix products whose B was packed before: a loop packs the weights of its products once, and not
in every iteration (32 x 128 x 384 took 39 us with the packing, 6 of them for that); constants are
packed when compiling, parameters once for many calls.

All of B is packed as one product packs a block of it (`gemm_pack`): for each block of k its panels,
one after another. The bits are those of `sg_gemm`: the same blocks of k, the same micro-kernels.
Few rows gain most where the columns of B lie unbroken, as in `x @ weight.T`: 1 x 1024 x 1024 took
156 us and takes 60, 4 x 1024 x 1024 took 352 and takes 76.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, dim_min, floor_div

from .builder import Module
from .gemm import (
    GEMM_PARAMS,
    PANEL_GAP,
    SMALL_PRODUCT,
    Frame,
    block_bounds,
    emit_block_bytes,
    emit_finished,
    emit_is_copied,
    emit_k_block,
    emit_strip_of_a,
    emit_strips,
    emit_tiled_rows,
    k_block,
    require_gemm,
    require_gemm_prologue,
)
from .gemm_emit import CONTROL, Element, Emitter, split_params
from .gemm_kernel import EDGE_ROWS, require_few_rows_kernel, require_strip, tile_shape
from .gemm_pack import require_pack, require_pack_block, strip_bytes
from .gemm_prologue import PROLOGUE_PARAMS, emit_row_count, rows_bytes
from .target import Target

# Rows that are no tile, of `EDGE_ROWS` either, go through a panel by so many at a time.
FEW_ROWS = 4

PACK_PARAMS = "i64 n, i64 k, ptr b, i64 b_rs, i64 b_cs, ptr panels, i64 begin, i64 end"


def panel_count(target: Target, dtype: str, n: int) -> int:
    """The panels of one block of k: what threads share when they pack."""
    _, nr = tile_shape(target, dtype)
    return -(-n // nr)


def needs_panels(target: Target, dtype: str, m: int | None, n: int, k: int) -> bool:
    """Whether a product of these sizes (`m` rows, or any number) would pack B, or read it worse
    than its panels. Less than half a panel gains nothing, and takes more memory than it is worth.

    One row by a B whose rows lie unbroken gains too: threads take parts of each row, which panels
    have in one piece (1 x 1024 x 1024 on two threads: 30.6 us, 23.2 so; on one 51.0, 45.1; 512 x
    512 on one, from the L2 cache, 10.9, 12.1). Small products of few rows go through B's columns
    once more: 1 x 64 x 64 takes 540 ns, 280 so."""
    _, nr = tile_shape(target, dtype)
    if 2 * n < nr:
        return False
    return m is None or m * n * k > SMALL_PRODUCT or (m <= FEW_ROWS and n >= nr)


def prepacked_bytes(target: Target, dtype: str, n: int, k: int) -> int:
    """Room for a packed B of [k, n], k > 0."""
    kc, panel_bytes = _block(target, dtype, k)
    return -(-k // kc) * panel_count(target, dtype, n) * panel_bytes


def strips_bytes(
    target: Target, dtype: str, m: DimLike, k: int, *, computed: bool = False
) -> DimLike:
    """The workspace of a product with panels: for the copy of a strip of A, if m rows make one, or
    for rows that are `computed`."""
    mr, _ = tile_shape(target, dtype)
    kc, _ = _block(target, dtype, k)
    element = Element.of(dtype, target)
    if computed:
        return rows_bytes(element, m, kc)
    return dim_min(1, floor_div(m, mr)) * strip_bytes(element, kc)


def _block(target: Target, dtype: str, k: int) -> tuple[int, int]:
    """The k of a block (`emit_k_block`), and the distance of its panels."""
    itemsize, (_, nr) = Element.of(dtype, target).itemsize, tile_shape(target, dtype)
    kc = k_block(itemsize, k)
    assert isinstance(kc, int)
    return kc, kc * nr * itemsize + PANEL_GAP


def prepacked(target: Target, b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What `sg_prepack` makes of a B [k, n], with zeros in the gaps: for constants."""
    (k, n), dtype = b.shape, b.dtype.name
    kc, panel_bytes = _block(target, dtype, k)
    _, nr = tile_shape(target, dtype)
    memory = np.zeros(prepacked_bytes(target, dtype, n, k), np.uint8)
    row_bytes, at = nr * b.itemsize, 0
    for pc in range(0, k, kc):
        rows = b[pc : pc + kc]
        for j in range(0, n, nr):
            part = rows[:, j : j + nr]
            strides = (row_bytes, b.itemsize)
            np.copyto(np.ndarray(part.shape, b.dtype, memory.data, at, strides), part)
            at += panel_bytes
    return memory


def require_prepack(module: Module, dtype: str) -> str:
    """Makes sure of `void @sg_prepack_<dtype>(n, k, b, b_rs, b_cs, panels, begin, end)`: packs the
    panels from `begin` up to `end` of a B [k, n] of any strides (in elements), in all blocks of k.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_prepack_{element.dtype}"
    if module.has(name):
        return name
    size, (_, nr) = element.itemsize, tile_shape(module.target, dtype)
    f = Emitter(module, name, PACK_PARAMS, element, CONTROL)
    kc = emit_k_block(f)
    b_rs, b_cs = f.mul("%b_rs", size), f.mul("%b_cs", size)
    panel_bytes = f.add(f.mul(kc, nr * size), PANEL_GAP)
    count = f.div(f.add("%n", nr - 1), nr)
    whole = f.minimum("%end", f.div("%n", nr))
    unit = f.both(f.compare("eq", b_cs, size), f.compare("slt", "%begin", whole))
    start = f.select(unit, whole, "%begin")  # of what is packed panel by panel
    with f.loop(0, "%k", kc) as pc:
        left = f.minimum(kc, f.sub("%k", pc))
        row = f.at_byte("%b", f.mul(pc, b_rs))
        block = f.at_byte("%panels", f.mul(f.mul(f.div(pc, kc), count), panel_bytes))
        with f.when(unit):
            f.call(require_pack_block(module, element),
                   ("ptr", f.at(row, f.mul("%begin", nr))), ("i64", b_rs),
                   ("ptr", f.at_byte(block, f.mul("%begin", panel_bytes))), ("i64", panel_bytes),
                   ("i64", left), ("i64", f.sub(whole, "%begin")))  # fmt: skip
        with f.loop(start, "%end") as j:
            column = f.mul(j, nr)
            f.call(require_pack(module, element), ("ptr", f.at_byte(row, f.mul(column, b_cs))),
                   ("i64", b_rs), ("i64", b_cs), ("ptr", f.at_byte(block, f.mul(j, panel_bytes))),
                   ("i64", left), ("i64", f.minimum(f.sub("%n", column), nr)))  # fmt: skip
    f.leave()
    f.finish()
    return name


def require_prepacked(module: Module, dtype: str, *, prologue: bool = False) -> str:
    """Makes sure of `sg_prepacked_<dtype>`, which has the parameters and the meaning of `sg_gemm`
    (`gemm.require_gemm`), for k > 0, and one more, `ptr panels`: all of B, packed by `sg_prepack`.
    Where that is null, the product is computed from B itself, which otherwise is not read. C is
    always written: `tile` has to be null.

    With `prologue`, of `sg_prepacked_prologue_<dtype>`, whose A may be computed, as
    `gemm.require_gemm_prologue` has it."""
    element = Element.of(dtype, module.target)
    name = f"sg_prepacked_{'prologue_' if prologue else ''}{element.dtype}"
    if module.has(name):
        return name
    params = f"{GEMM_PARAMS}, {PROLOGUE_PARAMS}" if prologue else GEMM_PARAMS
    plain = (require_gemm_prologue if prologue else require_gemm)(module, dtype)
    f = Emitter(module, name, f"{params}, ptr panels", element, CONTROL)
    args = ", ".join(f"{ty} %{p}" for ty, p in split_params(params))
    with f.when(f.emit("icmp eq ptr %panels, null")):
        f.stmt(f"call void @{plain}({args})")
        f.leave()
    x = Frame(f, "block", prologue=prologue)
    _emit_setup(f, x)
    if prologue:
        x["fill_a"], x["table_a"], x["first_a"] = "%prologue_a", "%table_a", "%r0"
        emit_row_count(f, x, x["kc"])
    with f.loop(x["start"], "%c1", x["nc"]) as jc:
        x["cols"] = f.minimum(x["nc"], f.sub("%c1", jc))
        with f.loop(0, "%k", x["kc"]) as pc:
            x["k"] = f.minimum(x["kc"], f.sub("%k", pc))
            x["accumulate"] = pc
            x["block_a"] = f.at_byte(x["a"], f.mul(pc, x["a_col"]))
            _, nr = tile_shape(f.module.target, dtype)
            block = f.mul(f.div(pc, x["kc"]), f.div(f.add("%n", nr - 1), nr))
            panel = f.mul(f.add(block, f.div(jc, nr)), x["panel_bytes"])
            x["block"] = f.at_byte("%panels", panel)
            emit_strips(
                f, x, pc, "%k", lambda i, count, _: _emit_strip(f, x, i, count, jc),
                lambda first, stop: _emit_finish(f, x, jc, first, stop),
            )  # fmt: skip
    f.leave()
    f.finish()
    return name


def _emit_setup(f: Emitter, x: Frame) -> None:
    """Fills in the frame's fields that stay. `start` is the first column of the first panel that
    is needed; of that panel the columns from c0 on are."""
    size, rows = f.element.itemsize, f.sub("%r1", "%r0")
    _, nr = tile_shape(f.module.target, f.element.dtype)
    x["a_row"], x["a_col"] = f.mul("%a_rs", size), f.mul("%a_cs", size)
    x["a"] = f.at_byte("%a", f.mul("%r0", x["a_row"]))
    x["c"] = f.at("%c", f.mul("%r0", "%c_rs"))
    x["m"], x["n"], x["c_rs"], x["c_cs"] = rows, f.sub("%c1", "%c0"), "%c_rs", 1
    x["b_rs"], x["workspace"] = nr * size, "%workspace"
    x["tiled_rows"] = emit_tiled_rows(f, rows, x["n"])
    x["copied"] = emit_is_copied(f, x)
    kc = emit_k_block(f)
    panel_bytes = f.add(f.mul(kc, nr * size), PANEL_GAP)
    x["kc"], x["panel_bytes"] = kc, panel_bytes
    # A block that is not copied costs no memory: a computed A has as few as may be.
    block = block_bounds(f.module.target)[1] if x.prologue else emit_block_bytes(f, rows)
    x["nc"] = f.mul(f.div(block, panel_bytes), nr)
    x["start"] = f.mul(f.div("%c0", nr), nr)


def _emit_finish(f: Emitter, x: Frame, jc: str, first: str, stop: str) -> None:
    r0, c0 = f.add("%r0", first), f.maximum(jc, "%c0")
    rectangle = (r0, f.add("%r0", stop), c0, f.add(jc, x["cols"]))
    emit_finished(f, rectangle, f.at(f.at("%c", f.mul(r0, "%c_rs")), c0), "%c_rs")


def _emit_strip(f: Emitter, x: Frame, i: str, rows: str, jc: str) -> None:
    """A strip of A, from row i, times the panels of the columns jc on."""
    element = f.element
    mr, nr = tile_shape(f.module.target, element.dtype)
    a = emit_strip_of_a(f, x, i, rows)
    c = f.at(x["c"], f.mul(i, "%c_rs"))
    one, few = (require_few_rows_kernel(f.module, element, most) for most in (1, FEW_ROWS))
    few = f.select(f.compare("eq", rows, 1), f"@{one}", f"@{few}", "ptr")
    is_few = f.compare("slt", rows, min(mr, EDGE_ROWS))
    with f.loop(0, x["cols"], nr) as j:
        first = f.maximum(f.add(jc, j), "%c0")
        skipped = f.sub(first, f.add(jc, j))
        width = f.sub(f.minimum(f.sub(x["cols"], j), nr), skipped)
        panel = f.at_byte(x["block"], f.mul(f.div(j, nr), x["panel_bytes"]))
        by_few = f.both(is_few, f.compare("eq", width, nr))
        with f.loop(0, f.select(by_few, rows, 0), FEW_ROWS) as row:
            here, there = f.at_byte(a, f.mul(row, x["a_rs"])), f.at(c, f.mul(row, "%c_rs"))
            f.stmt(
                f"call void {few}(ptr {x.pointer}, ptr {here}, ptr {panel}, "
                f"ptr {f.at(there, first)}, i64 {f.minimum(f.sub(rows, row), FEW_ROWS)}, i64 {nr})"
            )
        with f.when(f.negate(by_few)):
            f.call(require_strip(f.module, element.dtype), ("ptr", x.pointer), ("ptr", a),
                   ("ptr", f.at(panel, skipped)), ("ptr", f.at(c, first)), ("i64", rows),
                   ("i64", width))  # fmt: skip
