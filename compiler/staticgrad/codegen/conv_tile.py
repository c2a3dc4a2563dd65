"""The tile of a convolution on planes: elements broadcast against a vector of channels.

One accumulator a row and nothing packed but the vectors: 20 to 28 rows of one vector run at 116
GFLOP/s where the peak is 117 (float32, 512-bit vectors), each multiply-add with its element from
memory. Tiles of two vectors a row took each element twice and ran at 76 to 89.
"""

from __future__ import annotations

from .builder import Module
from .conv_emit import Code, multiply_add
from .gemm_emit import Element, emit_add, emit_broadcast, emit_in_memory, emit_vector
from .target import Target

MOST_ROWS = 28  # of a tile, in 32 registers; spare entries of tables and accumulators


def tile_rows(target: Target, extent: object, halved: bool = False) -> int:
    """Rows of the tile, of vectors that may be `halved`: the number that leaves the fewest of
    `extent` rows to a last, partly needless tile. It changes no bit."""
    most, least = (MOST_ROWS, 20) if target.vector_registers >= 32 else (13, 8)
    if halved:
        most, least = 10, 8
    if not isinstance(extent, int) or extent < 1:
        return max(most - 4, least)
    return min(range(most, least - 1, -1), key=lambda rows: -(-extent // rows) * rows)


def require_tile(module: Module, element: Element, rows: int) -> str:
    """Makes sure of `void @sg_conv_tile_<rows>_<dtype>(terms, x, row_table, term_table, b, out,
    accumulate)`: out[r, lane] (+)= sum over t < terms of x[row_table[r] + term_table[t]] *
    b[t, lane], ascending by fma. Tables count bytes; b and out are one vector a row."""
    name = f"sg_conv_tile_{rows}_{element.dtype}"
    if module.has(name):
        return name
    params = "i64 terms, ptr x, ptr row_table, ptr term_table, ptr b, ptr out, i64 accumulate"
    f = Code(module, name, params, element)
    ty = element.register_vector
    offsets = [f.slot("%row_table", r) for r in range(rows)]
    zeros = [(ty, "zeroinitializer")] * rows
    with f.carrying(0, "%terms", ("ptr", "%b"), ("ptr", "%term_table"), *zeros) as turn:
        b, term, *sums = turn.values
        x = f.at_byte("%x", f.slot(term, 0))
        vector = emit_vector(f, b)
        new = []
        for offset, total in zip(offsets, sums):
            value = emit_broadcast(f, f.at_byte(x, offset))
            new.append(f.emit(f"freeze {ty} {multiply_add(f, ty, value, vector, total)}"))
        turn.following = [f.at(b, element.lanes), f.at_byte(term, 8), *new]
    sums = turn.after[2:]
    places = [f.at("%out", r * element.lanes) for r in range(rows)]
    with f.choice(f.compare("ne", "%accumulate", 0)) as adding:
        totals = [emit_add(f, ty, emit_vector(f, p), s) for p, s in zip(places, sums)]
    sums = [adding.phi(ty, total, value) for total, value in zip(totals, sums)]
    for place, value in zip(places, sums):
        f.store(element.memory_vector, emit_in_memory(f, value), place)
    f.leave()
    f.finish()
    return name
