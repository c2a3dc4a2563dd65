"""The register tile of a convolution pass: weights broadcast against vectors of positions.

The tile of the matrix product is 14 x 2 vectors, and channel counts are powers of two: k = 400 with
packed operands runs at 77, 97 and 111 GFLOP/s for 16, 32 and 64 rows there, and at 114 in this one
of 8 x 3 (float32, 512-bit vectors, a peak of 117).
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import Code, multiply_add
from .gemm_emit import Element
from .target import Target

VECTORS = 3  # vectors of positions to a tile


def full_height(target: Target) -> int:
    """Rows of the tile: 8 x 3 accumulators in 32 registers, 4 x 3 in 16."""
    return 8 if target.vector_registers >= 32 else 4


def require_tile(module: Module, element: Element, rows: int, vectors: int) -> str:
    """Makes sure of `void @sg_conv_tile_<dtype>_<rows>x<vectors>(k, a, a_rs, a_cs, b, b_rs, c,
    c_rs, count)`: c[r, j] = sum over i < k of a[r, i] * b[i, j] for r < rows, in ascending order
    by fma. b and c have unit column stride; strides of a and b are in bytes, c's is in elements.

    Only `count` rows of a are there; rows from `count` on are the last one over again.
    """
    name = f"sg_conv_tile_{element.dtype}_{rows}x{vectors}"
    if module.has(name):
        return name
    params = "i64 k, ptr a, i64 a_rs, i64 a_cs, ptr b, i64 b_rs, ptr c, i64 c_rs, i64 count"
    f = Code(module, name, params, element)
    ty = element.register_vector
    last = f.sub("%count", 1)
    offsets = [f.mul(f.minimum(last, r), "%a_rs") for r in range(1, rows)]
    zeros = [(ty, "zeroinitializer")] * (rows * vectors)
    with f.carrying(0, "%k", ("ptr", "%a"), ("ptr", "%b"), *zeros) as turn:
        a, b, *sums = turn.values
        of_b = [emit_vector(f, f.at(b, v * element.lanes)) for v in range(vectors)]
        for r in range(rows):
            value = emit_broadcast(f, f.at_byte(a, offsets[r - 1]) if r else a)
            for v in range(vectors):
                at = r * vectors + v
                sums[at] = multiply_add(f, ty, value, of_b[v], sums[at])
        turn.following = [f.at_byte(a, "%a_cs"), f.at_byte(b, "%b_rs"), *sums]
    sums = turn.after[2:]
    row = "%c"
    for r in range(rows):
        for v in range(vectors):
            value = emit_to_memory(f, sums[r * vectors + v])
            f.store(element.memory_vector, value, f.at(row, v * element.lanes))
        row = f.at(row, "%c_rs")
    f.leave()
    f.finish()
    return name


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
