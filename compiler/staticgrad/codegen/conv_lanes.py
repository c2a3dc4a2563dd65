"""Sums of the lanes of many accumulators, for sums that run along positions."""

from __future__ import annotations

from .builder import Module, vector, width
from .conv_emit import Code
from .conv_tile import emit_add
from .gemm_emit import Element

GROUP = 8  # accumulators whose lanes are added up together


def require_finish(module: Module, element: Element) -> str:
    """`void @sg_conv_finish_<dtype>(sums, vectors, rows, out, out_rs, accumulate, count, cols)`:
    adds up the lanes of each of `vectors` (a multiple of GROUP) accumulators [columns, rows], in
    place, and writes or adds the results to out.

    Lanes are added in pairs of neighbours, whatever the tile.
    """
    name = f"sg_conv_finish_{element.dtype}"
    if module.has(name):
        return name
    params = ("ptr sums, i64 vectors, i64 rows, ptr out, i64 out_rs, i64 accumulate, i64 count, "
              "i64 cols")  # fmt: skip
    f = Code(module, name, params, element)
    ty = element.register_vector
    with f.loop(0, "%vectors", GROUP) as first:
        values = [
            f.load(ty, f.emit(f"getelementptr {ty}, ptr %sums, i64 {f.add(first, i)}"))
            for i in range(GROUP)
        ]
        at = f.at("%sums", first)
        for result, value in _emit_lane_sums(f, values):
            f.store(result, value, at)
            at = f.at(at, width(result))
    add = f.compare("ne", "%accumulate", 0)
    start = [("ptr", "%sums"), ("ptr", "%out")]
    with f.carrying(0, "%count", *start) as r:
        with f.carrying(0, "%cols", *[("ptr", v) for v in r.values]) as c:
            source, out = c.values
            value = f.load(element.memory, source)
            with f.choice(add) as adding:
                total = emit_add(f, element.memory, f.load(element.memory, out), value)
            f.store(element.memory, adding.phi(element.memory, total, value), out)
            c.following = [f.at(source, "%rows"), f.at(out, 1)]
        r.following = [f.at(r.values[0], 1), f.at(r.values[1], "%out_rs")]
    f.leave()
    f.finish()
    return name


def _emit_lane_sums(f: Code, values: list[str]) -> list[tuple[str, str]]:
    """The sum of each vector's lanes, as vectors (type, value) of consecutive sums in memory's
    type. Each level adds neighbours: of two vectors into one while there are two, else of one."""
    element = f.element
    lanes, left = element.lanes, element.lanes
    ty = element.register_vector
    while left > 1:
        pairs = list(zip(values[::2], values[1::2])) or [(values[0], "poison")]
        span = 2 * lanes if len(values) > 1 else lanes
        even, odd = (
            f"<{span // 2} x i32> <{', '.join(f'i32 {i}' for i in range(first, span, 2))}>"
            for first in (0, 1)
        )
        result = vector(element.register, span // 2)
        values = [
            emit_add(
                f, result,
                f.emit(f"shufflevector {ty} {a}, {ty} {b}, {even}"),
                f.emit(f"shufflevector {ty} {a}, {ty} {b}, {odd}"),
            )
            for a, b in pairs
        ]  # fmt: skip
        ty, lanes, left = result, span // 2, left // 2
    if element.memory == element.register:
        return [(ty, value) for value in values]
    narrow = f"<{lanes} x {element.memory}>"
    return [(narrow, f.emit(f"trunc {ty} {value} to {narrow}")) for value in values]
