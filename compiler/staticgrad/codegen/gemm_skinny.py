"""One row of A times a matrix, without tiles: `(a, a_cs, b, b_rs, b_cs, sums, k, cols)` sets
sums[j] = sum_p a[p] * b[p, j] for j < cols, a multiple of the lanes; strides in bytes."""

from __future__ import annotations

from .builder import Module
from .gemm_emit import Element, Emitter
from .gemm_kernel import (
    emit_broadcast,
    emit_multiply_add,
    emit_store_sum,
    emit_vector,
)
from .gemm_pack import emit_transposed_load, require_pack_scalar

ROW_PARAMS = "ptr a, i64 a_cs, ptr b, i64 b_rs, i64 b_cs, ptr sums, i64 k, i64 cols"
ROW_UNROLL = 4  # rows of B to one pass over the sums
# From here on B comes from memory, and the next rows are asked for in time: 1 x 4096 x 4096 takes
# 1.3 ms instead of 1.55 with two threads; rows that are in a cache would take 7 % longer.
FAR_BYTES = 16 << 20


def require_row(module: Module, element: Element) -> str:
    """Makes sure of `sg_gemm_row_<dtype>`, where B has unit column stride.

    Reads B in the order in which it lies, `ROW_UNROLL` rows at a time: 1 x 1024 x 1024 took 164 us
    by tiles of 128 bytes of a row, 90 us so.
    """
    name = f"sg_gemm_row_{element.dtype}"
    if module.has(name):
        return name
    f = Emitter(module, name, ROW_PARAMS, element)
    ty, step = element.memory_vector, element.lanes * element.itemsize
    cols_bytes = f.mul("%cols", element.itemsize)
    with f.loop(0, cols_bytes, step) as j:
        f.store(ty, "zeroinitializer", f.at_byte("%sums", j))
    whole = f.emit(f"and i64 %k, {-ROW_UNROLL}")
    bytes_of_b = f.mul("%k", "%b_rs")
    with f.when(f.compare("sge", bytes_of_b, FAR_BYTES)):
        _emit_rows(f, 0, whole, ROW_UNROLL, f.mul("%b_rs", ROW_UNROLL))
    with f.when(f.compare("slt", bytes_of_b, FAR_BYTES)):
        _emit_rows(f, 0, whole, ROW_UNROLL)
    _emit_rows(f, whole, "%k", 1)
    f.leave()
    f.finish()
    return name


def _emit_rows(
    f: Emitter, start: str | int, stop: str, count: int, ahead: str | None = None
) -> None:
    """Adds rows `[start, stop)` of B, `count` at a time, to the sums, and prefetches those `ahead`
    bytes further on."""
    element = f.element
    step = element.lanes * element.itemsize
    with f.loop(start, stop, count) as p:
        row_of_a, row = f.at_byte("%a", f.mul(p, "%a_cs")), f.at_byte("%b", f.mul(p, "%b_rs"))
        values, rows = [], []
        for _ in range(count):
            values.append(emit_broadcast(f, row_of_a))
            rows.append(row)
            row_of_a, row = f.at_byte(row_of_a, "%a_cs"), f.at_byte(row, "%b_rs")
        with f.loop(0, f.mul("%cols", element.itemsize), step) as j:
            there = f.at_byte("%sums", j)
            total = emit_vector(f, there)
            for value, row in zip(values, rows):
                if ahead is not None:
                    f.prefetch(f.at_byte(row, f.add(j, ahead)))
                following = f.reserve()
                emit_multiply_add(f, following, value, emit_vector(f, f.at_byte(row, j)), total)
                total = following
            emit_store_sum(f, total, there)


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
                following = f.reserve()
                emit_multiply_add(f, following, emit_broadcast(f, row_of_a), value, total)
                total, row_of_a = following, f.at_byte(row_of_a, "%a_cs")
            carry(total)
        f.call(scalar, ("ptr", f.at(columns, whole)), ("i64", size), ("i64", "%b_cs"),
               ("ptr", buffer), ("i64", rest), ("i64", lanes), ("i64", lanes * size))  # fmt: skip
        with f.fold(0, rest, 1, ty, *f.folded) as (p, (total,), carry):
            scalar_of_a = emit_broadcast(f, f.at_byte(a_rest, f.mul(p, "%a_cs")))
            following = f.reserve()
            value = emit_vector(f, f.at(buffer, f.mul(p, lanes)))
            emit_multiply_add(f, following, scalar_of_a, value, total)
            carry(following)
        emit_store_sum(f, f.folded[0], f.at("%sums", j))
    f.leave()
    f.finish()
    return name
