"""The lanes of a vector of positions that a tap finds inside of the image: which they are, and how
they are loaded without touching the others."""

from __future__ import annotations

from .conv_emit import Code
from .gemm_emit import Element


def kinds_of(element: Element) -> list[str]:
    """The ways to load a piece: `dense` (stride 1) and `halves` (stride 2: the even elements of two
    vectors) under masks, and `each`, element by element, for all else."""
    if not element.has_masks:
        return ["each"]
    return ["dense", "halves", "each"] if element.lanes <= 16 else ["dense", "each"]


def emit_inside(f: Code, col: str, src_w: str, stride_w: str, length: str) -> tuple[str, str]:
    """The lanes [low, high) of a piece whose columns col + l * stride_w lie in [0, src_w)."""
    before, after = f.maximum(f.sub(0, col), 0), f.maximum(f.sub(src_w, col), 0)
    with f.choice(f.compare("ne", stride_w, 1)) as strided:
        low_s, high_s = f.ceil_div(before, stride_w), f.ceil_div(after, stride_w)
    low = strided.phi("i64", low_s, before)
    high = f.minimum(strided.phi("i64", high_s, after), length)
    return f.minimum(low, high), high


def emit_lane_code(f: Code, stride_w: str, low: str, high: str) -> str:
    """The lanes [low, high) as the kind of this stride reads them; 0 is none. `dense` and `halves`
    want the mask of the elements to load, `each` wants low and high in 32 bits each."""
    code = f.emit(f"or i64 {low}, {f.emit(f'shl i64 {high}, 32')}")
    kinds = kinds_of(f.element)
    if "halves" in kinds:
        low_2, high_2 = f.add(low, low), f.add(high, high)
        # The odd element after the last even one is left out: it may lie outside of the image.
        end = f.emit(f"lshr i64 {f.emit(f'shl i64 1, {high_2}')}, 1")
        bits = f.sub(end, f.emit(f"shl i64 1, {low_2}"))
        bits = f.select(f.compare("slt", low, high), bits, 0)
        code = f.select(f.compare("eq", stride_w, 2), bits, code)
    if "dense" in kinds:
        bits = f.sub(f.emit(f"shl i64 1, {high}"), f.emit(f"shl i64 1, {low}"))
        code = f.select(f.compare("eq", stride_w, 1), bits, code)
    return code


def emit_load_lanes(f: Code, kind: str, pointer: str, code: str) -> str:
    """One vector of a piece (`dense` or `halves`): zero but for the lanes of `code`."""
    lanes, ty = f.element.lanes, f.element.memory_vector
    masks = []
    for part in range(1 if kind == "dense" else 2):
        bits = f.emit(f"lshr i64 {code}, {part * lanes}") if part else code
        narrow = f.emit(f"trunc i64 {bits} to i{lanes}")
        masks.append(f.emit(f"bitcast i{lanes} {narrow} to <{lanes} x i1>"))
    first = f.masked_load(pointer, masks[0])
    if kind == "dense":
        return first
    second = f.masked_load(f.at(pointer, lanes), masks[1])
    even = ", ".join(f"i32 {2 * i}" for i in range(lanes))
    return f.emit(f"shufflevector {ty} {first}, {ty} {second}, <{lanes} x i32> <{even}>")
