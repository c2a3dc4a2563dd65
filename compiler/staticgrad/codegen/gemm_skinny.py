"""One row of A times a matrix, without tiles: `(a, a_cs, b, b_rs, b_cs, sums, k, cols)` sets
sums[j] = sum_p a[p] * b[p, j] for j < cols, a multiple of the lanes; strides in bytes."""

from __future__ import annotations

from collections.abc import Sequence

from .builder import Module
from .gemm_emit import LINE_BYTES, Element, Emitter, emit_broadcast, emit_vector
from .gemm_kernel import emit_store_sum, emit_sum
from .gemm_pack import emit_transposed_load, require_pack_scalar

ROW_PARAMS = "ptr a, i64 a_cs, ptr b, i64 b_rs, i64 b_cs, ptr sums, i64 k, i64 cols"
# Rows of B to one pass over the sums, as many streams as the hardware prefetches well: 64 MiB on
# two threads take 1.18 ms with 4, 0.98 with 8, 1.02 with 16. What is left goes by fewer.
ROW_UNROLLS = (8, 2, 1)
# Hardware prefetchers end at a page; the first lines of each row's next page are asked for ahead:
# 0.98 ms become 0.83 with 2 of them, 0.92 with 8. All lines a page ahead cost 1.2 ms.
PAGE_BYTES = 4096
PAGE_LINES = 2
FAR_BYTES = 4 << 20  # of B, from which on it comes from memory; in a cache they would cost 8 %


def require_row(module: Module, element: Element) -> str:
    """Makes sure of `sg_gemm_row_<dtype>`, where B has unit column stride.

    Reads B in the order in which it lies, a few rows at a time: 1 x 1024 x 1024 took 164 us by
    tiles of 128 bytes of a row, 90 us so.
    """
    name = f"sg_gemm_row_{element.dtype}"
    if module.has(name):
        return name
    f = Emitter(module, name, ROW_PARAMS, element)
    ty, step = element.memory_vector, element.lanes * element.itemsize
    cols_bytes = f.mul("%cols", element.itemsize)
    with f.loop(0, cols_bytes, step) as j:
        f.store(ty, "zeroinitializer", f.at_byte("%sums", j))
    is_far = f.compare("sge", f.mul("%k", "%b_rs"), FAR_BYTES)
    start: str | int = 0
    for count in ROW_UNROLLS:
        stop = f.emit(f"and i64 %k, {-count}")
        _emit_rows(f, start, stop, count, cols_bytes, is_far)
        start = stop
    f.leave()
    f.finish()
    return name


def _emit_rows(
    f: Emitter, start: str | int, stop: str, count: int, cols_bytes: str, is_far: str
) -> None:
    """Adds rows `[start, stop)` of B, `count` at a time, to the sums."""
    step = f.element.lanes * f.element.itemsize
    with f.loop(start, stop, count) as p:
        row_of_a, row = f.at_byte("%a", f.mul(p, "%a_cs")), f.at_byte("%b", f.mul(p, "%b_rs"))
        values, rows = [], []
        for _ in range(count):
            values.append(emit_broadcast(f, row_of_a))
            rows.append(row)
            row_of_a, row = f.at_byte(row_of_a, "%a_cs"), f.at_byte(row, "%b_rs")
        with f.loop(0, cols_bytes, PAGE_BYTES) as first:
            page_end = f.minimum(f.add(first, PAGE_BYTES), cols_bytes)
            with f.when(is_far):
                _emit_next_pages(f, rows, page_end, cols_bytes, f.mul("%b_rs", count))
            with f.loop(first, page_end, step) as j:
                there = f.at_byte("%sums", j)
                total = emit_vector(f, there)
                for value, row in zip(values, rows):
                    total = emit_sum(f, value, emit_vector(f, f.at_byte(row, j)), total)
                emit_store_sum(f, total, there)


def _emit_next_pages(
    f: Emitter, rows: Sequence[str], offset: str, cols_bytes: str, ahead: str
) -> None:
    """Asks for the first lines of the pages that the rows enter within a page from `offset` on;
    behind the last column, for those of the rows that come `ahead` bytes later."""
    goes_on = f.compare("slt", offset, cols_bytes)
    place = f.select(goes_on, offset, ahead)
    keep = f.select(goes_on, -PAGE_BYTES, -1)
    for row in rows:
        here = f.emit(f"ptrtoint ptr {f.at_byte(row, place)} to i64")
        page = f.emit(f"inttoptr i64 {f.emit(f'and i64 {here}, {keep}')} to ptr")
        for line in range(PAGE_LINES):
            f.prefetch(f.at_byte(page, line * LINE_BYTES))


def require_row_transposed(module: Module, element: Element) -> str:
    """Makes sure of `sg_gemm_row_transposed_<dtype>`, where B has unit row stride: as many columns
    at a time as a vector has lanes, transposed in registers. For dtypes of at least 4 bytes."""
    name = f"sg_gemm_row_transposed_{element.dtype}"
    if module.has(name):
        return name
    scalar = require_pack_scalar(module, element)
    f = Emitter(module, name, ROW_PARAMS, element)
    ty, size, lanes = element.register_vector, element.itemsize, element.lanes
    side = 16 // size
    buffer = f.emit(f"alloca [{lanes * side} x {element.memory}], align 64")
    whole = f.emit(f"and i64 %k, {-side}")
    rest = f.sub("%k", whole)
    a_rest = f.at_byte("%a", f.mul(whole, "%a_cs"))
    offsets = [f.mul("%b_cs", j) for j in range(lanes)]
    with f.loop(0, "%cols", lanes) as j:
        columns = f.at_byte("%b", f.mul(j, "%b_cs"))
        with f.fold(0, whole, side, ty, "zeroinitializer") as (p, (total,), carry):
            row_of_a = f.at_byte("%a", f.mul(p, "%a_cs"))
            for value in emit_transposed_load(f, f.at(columns, p), offsets):
                total = emit_sum(f, emit_broadcast(f, row_of_a), value, total)
                row_of_a = f.at_byte(row_of_a, "%a_cs")
            carry(total)
        f.call(scalar, ("ptr", f.at(columns, whole)), ("i64", size), ("i64", "%b_cs"),
               ("ptr", buffer), ("i64", rest), ("i64", lanes), ("i64", lanes * size))  # fmt: skip
        with f.fold(0, rest, 1, ty, *f.folded) as (p, (total,), carry):
            scalar_of_a = emit_broadcast(f, f.at_byte(a_rest, f.mul(p, "%a_cs")))
            carry(emit_sum(f, scalar_of_a, emit_vector(f, f.at(buffer, f.mul(p, lanes))), total))
        emit_store_sum(f, f.folded[0], f.at("%sums", j))
    f.leave()
    f.finish()
    return name
