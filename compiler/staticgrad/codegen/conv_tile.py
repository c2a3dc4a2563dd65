"""The register tile of a convolution pass: weights broadcast against vectors of positions.

The tile of the matrix product is 14 x 2 vectors, and channel counts are powers of two: k = 400 with
packed operands runs at 77, 97 and 111 GFLOP/s for 16, 32 and 64 rows there, and at 114 in this one
of 8 x 3 (float32, 512-bit vectors, a peak of 117).
"""

from __future__ import annotations

from enum import IntEnum

from .builder import Module
from .conv_emit import Code, multiply_add
from .gemm_emit import Element
from .target import Target

VECTORS = 3  # vectors of positions to a tile


def full_height(target: Target) -> int:
    """Rows of the tile: 8 x 3 accumulators in 32 registers, 4 x 3 in 16."""
    return 8 if target.vector_registers >= 32 else 4


class Steps(IntEnum):
    """The slots of what the tiles of one block have in common (i64 each). Terms of the sum are
    channels, tap columns and tap rows, nested in this order; their strides are in bytes."""

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


def require_tile(module: Module, element: Element, rows: int, vectors: int) -> str:
    """Makes sure of `void @sg_conv_tile_<dtype>_<rows>x<vectors>(steps, a, b, c, c_rs, count)`:
    c[r, j] = sum over the terms of a[r, term] * b[term, j] for r < rows, in their order by fma. b
    and c have unit column stride.

    Only `count` rows of a are there; rows from `count` on are the last one over again.
    """
    name = f"sg_conv_tile_{element.dtype}_{rows}x{vectors}"
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
            value = emit_to_memory(f, sums[r * vectors + v])
            f.store(element.memory_vector, value, f.at(row, v * element.lanes))
        row = f.at(row, "%c_rs")
    f.leave()
    f.finish()
    return name


def _emit_terms(f: Code, offsets: list[str], rows: int, vectors: int) -> list[str]:
    """The loop over the terms; -> the accumulators [rows, vectors] after it.

    It is one loop, whose pointers take one of three steps: three nested ones, each of which carries
    the accumulators, took twice as long to compile.
    """
    ty = f.element.register_vector
    count_c, count_w, count_h = f.slots("%steps", Steps.COUNT_C, Steps.COUNT_W, Steps.COUNT_H)
    a_steps = _emit_pointer_steps(f, (Steps.A_C, Steps.A_W, Steps.A_H), count_w, count_h)
    b_steps = _emit_pointer_steps(f, (Steps.B_C, Steps.B_W, Steps.B_H), count_w, count_h)
    terms = f.mul(f.mul(count_c, count_w), count_h)
    start = [("ptr", "%a"), ("ptr", "%b"), ("i64", count_h), ("i64", count_w)]
    zeros = [(ty, "zeroinitializer")] * (rows * vectors)
    with f.carrying(0, terms, *start, *zeros) as turn:
        a, b, left_h, left_w, *sums = turn.values
        of_b = [emit_vector(f, f.at(b, v * f.element.lanes)) for v in range(vectors)]
        for r in range(rows):
            value = emit_broadcast(f, f.at_byte(a, offsets[r - 1]) if r else a)
            for v in range(vectors):
                at = r * vectors + v
                sums[at] = multiply_add(f, ty, value, of_b[v], sums[at])
        column_ends = f.compare("eq", left_h, 1)
        channel_ends = f.both(column_ends, f.compare("eq", left_w, 1))
        pointers = []
        for pointer, (next_row, next_column, next_channel) in ((a, a_steps), (b, b_steps)):
            step = f.select(column_ends, next_column, next_row)
            pointers.append(f.at_byte(pointer, f.select(channel_ends, next_channel, step)))
        next_w = f.select(channel_ends, count_w, f.sub(left_w, 1))
        turn.following = [
            *pointers,
            f.select(column_ends, count_h, f.sub(left_h, 1)),
            f.select(column_ends, next_w, left_w),
            *sums,
        ]
    return turn.after[4:]


def _emit_pointer_steps(
    f: Code, strides: tuple[Steps, Steps, Steps], count_w: str, count_h: str
) -> tuple[str, str, str]:
    """How far a pointer moves to the next tap row, from the last one to the next tap column, and
    from the last of these to the next channel."""
    channel, column, row = f.slots("%steps", *strides)
    to_column = f.sub(column, f.mul(row, f.sub(count_h, 1)))
    back = f.multiply_sum((row, f.sub(count_h, 1)), (column, f.sub(count_w, 1)))
    return row, to_column, f.sub(channel, back)


def emit_vector(f: Code, pointer: str) -> str:
    """One vector from memory, in the type that is computed with."""
    return emit_in_register(f, f.load(f.element.memory_vector, pointer))


def emit_in_register(f: Code, value: str) -> str:
    """A vector of memory's type in the type that is computed with."""
    element = f.element
    if element.memory == element.register:
        return value
    return f.emit(f"zext {element.memory_vector} {value} to {element.register_vector}")


def emit_to_memory(f: Code, value: str) -> str:
    """A vector that was computed, in memory's type."""
    element = f.element
    if element.memory == element.register:
        return value
    return f.emit(f"trunc {element.register_vector} {value} to {element.memory_vector}")


def emit_broadcast(f: Code, pointer: str) -> str:
    """One element from memory in all lanes, in the type that is computed with."""
    element = f.element
    value = f.load(element.memory, pointer)
    if element.memory != element.register:
        value = f.emit(f"zext {element.memory} {value} to {element.register}")
    return f.splat(value, element.register_vector)


def emit_add(f: Code, ty: str, a: str, b: str) -> str:
    return f.emit(f"{'fadd' if f.element.is_float else 'add'} {ty} {a}, {b}")
