"""The register tile of `conv_im2col`: weights broadcast against vectors of positions.

The tile of the matrix product is 14 x 2 vectors, and channel counts are powers of two: 400 terms
with packed operands run at 74, 92 and 105 GFLOP/s for 16, 32 and 64 rows there, and at 106 in this
one of 8 x 3 (float32, 512-bit vectors, a peak of 117).
"""

from __future__ import annotations

from enum import IntEnum

from .builder import Module
from .conv_emit import Code, multiply_add
from .gemm_emit import Element, emit_broadcast, emit_in_memory, emit_vector
from .target import Target

VECTORS = 3  # vectors of positions to a tile


def full_height(target: Target) -> int:
    """Rows of the tile: 8 x 3 accumulators in 32 registers, 4 x 3 in 16."""
    return 8 if target.vector_registers >= 32 else 4


class Steps(IntEnum):
    """The slots of what the tiles of one block have in common (i64 each). Terms of the sum are
    channels, tap rows and tap columns, nested in this order; their strides are in bytes."""

    COUNT_C = 0
    COUNT_W = 1
    COUNT_H = 2
    A_C = 3
    A_W = 4
    A_H = 5
    B_C = 6
    B_W = 7
    B_H = 8
    A_ROW = 9  # from output channel to output channel
    # How the block is packed; the tiles do not read these.
    B_START = 10  # bytes from its start to the first term of its first position
    STRIDE = 11  # elements from packed row to packed row
    SHARED = 12  # 1: tap rows share a packed row
    SPAN = 13  # positions that a shared row has more than the block


def require_im2col_tile(module: Module, element: Element, rows: int, vectors: int) -> str:
    """Makes sure of `void @sg_conv_im2col_tile_<rows>x<vectors>_<dtype>(steps, a, b, c, c_rs,
    count)`: c[r, j] = sum over the terms of a[r, term] * b[term, j] for r < rows, in their order by
    fma. b and c have unit column stride.

    Only `count` rows of a are there; rows from `count` on are the last one over again.
    """
    name = f"sg_conv_im2col_tile_{rows}x{vectors}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, "ptr steps, ptr a, ptr b, ptr c, i64 c_rs, i64 count", element)
    a_row = f.slot("%steps", Steps.A_ROW)
    last = f.sub("%count", 1)
    offsets = [f.mul(f.minimum(last, r), a_row) for r in range(1, rows)]
    sums = _emit_terms(f, offsets, rows, vectors)
    row = "%c"
    for r in range(rows):
        for v in range(vectors):
            value = emit_in_memory(f, sums[r * vectors + v])
            f.store(element.memory_vector, value, f.at(row, v * element.lanes))
        row = f.at(row, "%c_rs")
    f.leave()
    f.finish()
    return name


def _emit_terms(f: Code, offsets: list[str], rows: int, vectors: int) -> list[str]:
    """The loop over the terms; -> the accumulators [rows, vectors] after it.

    The tap columns of one tap row are a tight loop; a second block leads on to the next row, and
    back into it. Nested loops, each of which carries the accumulators, took twice as long to
    compile; steps chosen by `select` in the loop itself made LLVM spill accumulators.
    """
    ty = f.element.register_vector
    counts = f.slots("%steps", Steps.COUNT_C, Steps.COUNT_H, Steps.COUNT_W)
    tap_rows = f.mul(counts[0], counts[1])
    some = f.compare("sgt", f.mul(tap_rows, counts[2]), 0)
    a_jumps = _emit_jumps(f, (Steps.A_C, Steps.A_H, Steps.A_W), counts)
    b_jumps = _emit_jumps(f, (Steps.B_C, Steps.B_H, Steps.B_W), counts)
    term, tap_row, done, before = (f.new_label("term"), f.new_label("tap_row"), f.new_label("done"),
                                  f.block)  # fmt: skip
    f.branch_if(some, term, done)
    f.label(term)
    new = {name: f.reserve() for name in ("a", "b", "left_w")}
    led = {name: f.reserve() for name in ("a", "b", "left_h", "tap_rows")}
    a, b, left_w = (
        f.emit(f"phi {kind} [{first}, %{before}], [{new[name]}, %{term}], [{again}, %{tap_row}]")
        for kind, name, first, again in (
            ("ptr", "a", "%a", led["a"]), ("ptr", "b", "%b", led["b"]),
            ("i64", "left_w", counts[2], counts[2]),
        )
    )  # fmt: skip
    left_h, left_rows = f.reserve(), f.reserve()
    for name, key, first in ((left_h, "left_h", counts[1]), (left_rows, "tap_rows", tap_rows)):
        f.assign(name, f"phi i64 [{first}, %{before}], [{name}, %{term}], [{led[key]}, %{tap_row}]")
    new_sums = [f.reserve() for _ in range(rows * vectors)]
    sums = [
        f.emit(f"phi {ty} [zeroinitializer, %{before}], [{s}, %{term}], [{s}, %{tap_row}]")
        for s in new_sums
    ]
    of_b = [emit_vector(f, f.at(b, v * f.element.lanes)) for v in range(vectors)]
    for r in range(rows):
        value = emit_broadcast(f, f.at_byte(a, offsets[r - 1]) if r else a)
        for v in range(vectors):
            at = r * vectors + v
            total = multiply_add(f, ty, value, of_b[v], sums[at])
            f.assign(new_sums[at], f"freeze {ty} {total}")
    f.advance(new["a"], "ptr", f"getelementptr i8, ptr {a}, i64 {a_jumps[2]}")
    f.advance(new["b"], "ptr", f"getelementptr i8, ptr {b}, i64 {b_jumps[2]}")
    f.advance(new["left_w"], "i64", f"sub i64 {left_w}, 1")
    f.branch_if(f.compare("eq", new["left_w"], 0), tap_row, term)
    f.label(tap_row)
    channel_ends = f.compare("eq", left_h, 1)
    for name, jumps in (("a", a_jumps), ("b", b_jumps)):
        jump = f.select(channel_ends, jumps[0], jumps[1])
        f.advance(led[name], "ptr", f"getelementptr i8, ptr {new[name]}, i64 {jump}")
    f.advance(led["left_h"], "i64", f"select i1 {channel_ends}, i64 {counts[1]}, "
              f"i64 {f.sub(left_h, 1)}")  # fmt: skip
    f.advance(led["tap_rows"], "i64", f"sub i64 {left_rows}, 1")
    f.branch_if(f.compare("eq", led["tap_rows"], 0), done, term)
    f.label(done)
    return [f.emit(f"phi {ty} [zeroinitializer, %{before}], [{s}, %{tap_row}]") for s in new_sums]


def _emit_jumps(
    f: Code, strides: tuple[Steps, Steps, Steps], counts: list[str]
) -> tuple[str, str, str]:
    """How far a pointer that has gone over all tap columns moves to the next channel and to the
    next tap row; how far it moves from tap column to tap column."""
    channel, row, column = f.slots("%steps", *strides)
    to_row = f.sub(row, f.mul(column, counts[2]))
    to_channel = f.sub(f.add(to_row, channel), f.mul(row, counts[1]))
    return to_channel, to_row, column
