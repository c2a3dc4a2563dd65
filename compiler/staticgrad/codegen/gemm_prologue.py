"""Operands of a matrix product that are computed where they are packed.

An element-wise producer that the product alone reads is a function, `prologue`, of a rectangle:

    void(ptr table, i64 batch, i64 r0, i64 r1, i64 c0, i64 c1, ptr tile, i64 ld)

sets tile[(r - r0) * ld + c - c0] to the element at row r and column c for r0 <= r < r1,
c0 <= c < c1. Its rows and columns are those of the operand, or of its transpose, whichever way
what it loads lies unbroken along the columns: an operand that is computed with unit row stride
(`a_rs` or `b_rs` of the product is 1) is the transpose.

A is computed anew for each block of columns, some rows at a time, B once. Neither is ever in memory
as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from staticgrad.ir.dim import DimLike, dim_max, dim_min, floor_div

from .gemm_emit import LINE_BYTES, Element, Emitter
from .gemm_kernel import tile_shape
from .gemm_pack import require_pack, strip_bytes

if TYPE_CHECKING:
    from .gemm import Frame

# What a product with prologues is called with, behind all else; null where there is none.
PROLOGUE_PARAMS = "ptr prologue_a, ptr table_a, ptr prologue_b, ptr table_b"
# Room for rows of A that are computed at once. A strip of short rows would be gone through before
# the processor has begun to fetch ahead.
ROWS_BYTES = 64 * 1024
# Rows of B that go through all panels before the next: they are read in the order in which they
# lie, and a call computes some hundred elements.
FILL_ROWS = 4
# k of a tile of B that is computed row by row, to be transposed into a panel: it stays in L1.
FILL_DEPTH = 128


def rows_bytes(element: Element, m: DimLike, kc: DimLike) -> DimLike:
    """Room for the rows of A that are computed at once: one strip or more, if there are m rows."""
    line = (floor_div(kc * element.itemsize + 2 * LINE_BYTES - 1, LINE_BYTES)) * LINE_BYTES
    return dim_max(strip_bytes(element, kc), dim_min(ROWS_BYTES, m * line))


def fill_bytes(element: Element, m: DimLike, kc: DimLike) -> DimLike:
    """Room for what is computed and not packed yet: rows of A, or a tile of B's transpose."""
    return dim_max(rows_bytes(element, m, kc), _tile_bytes(element))


def emit_fill_bytes(f: Emitter, x: Frame, strip: str, kc: str) -> str:
    """What `fill_bytes` computes, given the bytes of the strip."""
    rows = f.maximum(strip, f.minimum(ROWS_BYTES, f.mul(x["m"], _emit_line(f, kc))))
    return f.maximum(rows, _tile_bytes(f.element))


def emit_row_count(f: Emitter, x: Frame, kc: str) -> None:
    """Fills in how many rows of A are computed at once: strips that have room, or all."""
    mr, _ = tile_shape(f.module.target, f.element.dtype)
    strips = f.maximum(f.div(ROWS_BYTES, f.mul(_emit_line(f, kc), mr)), 1)
    x["rows"] = f.minimum(f.mul(strips, mr), x["m"])


def _emit_line(f: Emitter, k: str) -> str:
    """Bytes from one computed row of A to the next: whole lines, and one between."""
    bytes_ = f.add(f.mul(k, f.element.itemsize), 2 * LINE_BYTES - 1)
    return f.emit(f"and i64 {bytes_}, {-LINE_BYTES}")


def _tile_bytes(element: Element) -> int:
    _, nr = tile_shape(element.target, element.dtype)
    return nr * _tile_stride(element) * element.itemsize


def _tile_stride(element: Element) -> int:
    """Elements from row to row of the tile: an odd number of lines, not all on the same sets."""
    return FILL_DEPTH + LINE_BYTES // element.itemsize


def _emit_call(
    f: Emitter, x: Frame, operand: str, rows: tuple[str, str], cols: tuple[str, str], tile: str,
    ld: str | int,
) -> None:  # fmt: skip
    f.stmt(
        f"call void {x['fill_' + operand]}(ptr {x['table_' + operand]}, i64 %batch, i64 {rows[0]}, "
        f"i64 {rows[1]}, i64 {cols[0]}, i64 {cols[1]}, ptr {tile}, i64 {ld})"
    )


def emit_strip_in_rows(f: Emitter, x: Frame, i: str, rows: str, room: str) -> str:
    """Where the computed strip from row i lies; computes it with some that follow, if it is not
    there. Puts its strides into the descriptor."""
    with f.when(f.compare("sgt", f.add(i, rows), x["rows_end"])):
        stop = f.minimum(f.add(i, x["rows"]), x["m"])
        emit_rows(f, x, i, f.sub(stop, i), room)
        x["rows_begin"], x["rows_end"] = i, stop
    x["a_rs"], x["a_cs"] = x["rows_rs"], x["rows_cs"]
    return f.at_byte(room, f.mul(f.sub(i, x["rows_begin"]), x["a_rs"]))


def emit_rows(f: Emitter, x: Frame, i: str, rows: str, room: str) -> None:
    """Computes `rows` rows of A from row i on, in the block of k at hand: row by row, or for each
    k a row of the transpose. Leaves their strides in the frame."""
    size = f.element.itemsize
    first, start = f.add(x["first_a"], i), x["accumulate"]
    last, stop = f.add(first, rows), f.add(start, x["k"])
    transposed = f.compare("eq", x["a_row"], size)
    r0, r1 = f.select(transposed, start, first), f.select(transposed, stop, last)
    c0, c1 = f.select(transposed, first, start), f.select(transposed, last, stop)
    line = _emit_line(f, x["k"])
    ld = f.select(transposed, rows, f.div(line, size))
    _emit_call(f, x, "a", (r0, r1), (c0, c1), room, ld)
    x["rows_rs"] = f.select(transposed, size, line)
    x["rows_cs"] = f.select(transposed, f.mul(rows, size), size)


def emit_filled_block(f: Emitter, x: Frame, jc: str) -> None:
    """Computes the panels of a block of B, from column jc on, in the block of k at hand."""
    element = f.element
    size, stride = element.itemsize, _tile_stride(element)
    _, nr = tile_shape(f.module.target, element.dtype)
    first, start = f.add(x["first_b"], jc), x["accumulate"]
    depth = f.select(x["unit"], x["k"], 0)
    with f.loop(0, depth, FILL_ROWS) as p:
        rows = f.add(start, p), f.add(start, f.minimum(f.add(p, FILL_ROWS), x["k"]))
        with f.loop(0, x["cols"], nr) as j:
            panel = f.at_byte(x["packed"], f.mul(f.div(j, nr), x["panel_bytes"]))
            cols = f.add(first, j), f.add(first, f.minimum(f.add(j, nr), x["cols"]))
            _emit_call(f, x, "b", rows, cols, f.at(panel, f.mul(p, nr)), nr)
    with f.loop(0, f.select(x["unit"], 0, x["cols"]), nr) as j:
        panel = f.at_byte(x["packed"], f.mul(f.div(j, nr), x["panel_bytes"]))
        width = f.minimum(f.sub(x["cols"], j), nr)
        rows = f.add(first, j), f.add(f.add(first, j), width)
        with f.loop(0, x["k"], FILL_DEPTH) as p:
            length = f.minimum(f.sub(x["k"], p), FILL_DEPTH)
            cols = f.add(start, p), f.add(f.add(start, p), length)
            _emit_call(f, x, "b", rows, cols, x["workspace"], stride)
            f.call(require_pack(f.module, element), ("ptr", x["workspace"]), ("i64", size),
                   ("i64", stride * size), ("ptr", f.at(panel, f.mul(p, nr))), ("i64", length),
                   ("i64", width))  # fmt: skip
