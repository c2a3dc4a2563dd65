"""Transposing: between rows of a channel's positions and vectors of a position's channels."""

from __future__ import annotations

from .builder import Module
from .conv_emit import Code
from .gemm_emit import Element


def require_transpose(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_conv_transpose_<dtype>(src, dst, src_rs, dst_rs, rows, cols)`:
    dst[c * dst_rs + r] = src[r * src_rs + c].

    Whole squares go through registers: as many stages as the vector has bits of a lane's number,
    each of which interleaves the halves (0.3 cycles an element); the rest element by element.
    """
    name = f"sg_conv_transpose_{element.dtype}"
    if module.has(name):
        return name
    params = "ptr src, ptr dst, i64 src_rs, i64 dst_rs, i64 rows, i64 cols"
    f = Code(module, name, params, element)
    lanes, ty = element.lanes, element.memory_vector
    rows, cols = (f.emit(f"and i64 {extent}, {-lanes}") for extent in ("%rows", "%cols"))
    with f.loop(0, rows, lanes) as r, f.loop(0, cols, lanes) as c:
        source = f.at("%src", f.add(f.mul(r, "%src_rs"), c))
        target = f.at("%dst", f.add(f.mul(c, "%dst_rs"), r))
        values = []
        for _ in range(lanes):
            values.append(f.load(ty, source))
            source = f.at(source, "%src_rs")
        for value in _emit_square(f, values):
            f.store(ty, value, target)
            target = f.at(target, "%dst_rs")
    with f.loop(0, "%rows") as r:
        start = f.select(f.compare("slt", r, rows), cols, 0)
        from_row, to_column = f.at("%src", f.mul(r, "%src_rs")), f.at("%dst", r)
        with f.loop(start, "%cols") as c:
            value = f.load(element.memory, f.at(from_row, c))
            f.store(element.memory, value, f.at(to_column, f.mul(c, "%dst_rs")))
    f.leave()
    f.finish()
    return name


def _emit_square(f: Code, values: list[str]) -> list[str]:
    """As many vectors as each has lanes, transposed."""
    lanes, ty = f.element.lanes, f.element.memory_vector
    pairs = [(i // 2 + (i % 2) * lanes) for i in range(2 * lanes)]
    masks = [", ".join(f"i32 {p}" for p in pairs[k : k + lanes]) for k in (0, lanes)]
    # A loop of one stage: LLVM takes 2 ms to find instructions for 16 shuffles, and 8 for 64.
    with f.carrying(0, lanes.bit_length() - 1, *[(ty, v) for v in values]) as stage:
        now = stage.values
        stage.following = [
            f.emit(f"shufflevector {ty} {a}, {ty} {b}, <{lanes} x i32> <{mask}>")
            for a, b in zip(now[: lanes // 2], now[lanes // 2 :])
            for mask in masks
        ]
    return stage.after
