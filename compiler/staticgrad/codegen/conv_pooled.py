"""Gradients of a convolution whose result went through max pooling: a window has one element that
counts, so of 2 x 2 windows a quarter of the products are left.

    for a vector of channels, for up to 28 taps (their sums or weights stay in registers):
        for a window: multiply and add, for each tap

An image lies as [position][channel], so that the taps of one position are vectors of channels; from
tap to tap along a row their distance is known. `place` tells, for each window, where the first tap
of its position is.
"""

from __future__ import annotations

from collections.abc import Iterator

from .builder import Module
from .conv_emit import Code, multiply_add
from .gemm_emit import Element, emit_broadcast, emit_in_memory, emit_vector

Taps = list[tuple[int, int]]  # tap row, and the distance along it

PARAMS = "ptr x, ptr ct, ptr place, ptr taps, i64 count, i64 channels, i64 row"


def require_pooled(
    module: Module, dtype: str, kind: str, kernel: tuple[int, int], step: int
) -> str:
    """Makes sure of one of `void @sg_conv_tile_pooled_<kind>_<kernel>_<step>_<dtype>(x, ct, place,
    taps, count, channels, row)`, where taps is [tap][channel], `channels` a multiple of the lanes,
    and offset(tap) = tap row * row + tap column * step.

    taps: taps[t] += sum over windows q < count of ct[q] * x[place[q] + offset(t)], by fma
    spread: x[place[q] + offset(t)] += ct[q] * taps[t], one window after another
    """
    element = Element.of(dtype, module.target)
    name = f"sg_conv_tile_pooled_{kind}_{kernel[0]}x{kernel[1]}_{step}_{element.dtype}"
    if module.has(name):
        return name
    f = Code(module, name, PARAMS, element)
    taps = [(a, b * step) for a in range(kernel[0]) for b in range(kernel[1])]
    most = module.target.vector_registers - 4
    with f.loop(0, "%channels", element.lanes) as c:
        for first in range(0, len(taps), most):
            part = taps[first : first + most]
            places = [
                f.at("%taps", f.add(f.mul("%channels", first + t), c)) for t in range(len(part))
            ]
            vectors = [emit_vector(f, p) for p in places]
            (_emit_taps if kind == "taps" else _emit_spread)(f, c, part, places, vectors)
    f.leave()
    f.finish()
    return name


def _emit_addresses(f: Code, x: str, taps: Taps) -> Iterator[str]:
    """Where the image is at each tap of the position at `x`."""
    row, at = x, taps[0][0]
    for _ in range(at):
        row = f.at(row, "%row")
    for a, distance in taps:
        while at < a:
            row, at = f.at(row, "%row"), at + 1
        yield f.at(row, distance)


def _emit_window(f: Code, c: str, place: str, ct: str) -> tuple[str, str]:
    """Where the image is at the window's position, and the window's cotangent in all lanes."""
    at = f.load("i64", place, 8)
    return f.at("%x", f.add(at, c)), emit_broadcast(f, ct)


def _emit_taps(f: Code, c: str, taps: Taps, places: list[str], vectors: list[str]) -> None:
    ty = f.element.register_vector
    start = [("ptr", "%ct"), ("ptr", "%place"), *[(ty, v) for v in vectors]]
    with f.carrying(0, "%count", *start) as q:
        ct, place, *sums = q.values
        x, value = _emit_window(f, c, place, ct)
        new = []
        for at, total in zip(_emit_addresses(f, x, taps), sums):
            term = multiply_add(f, ty, value, emit_vector(f, at), total)
            new.append(f.emit(f"freeze {ty} {term}"))
        q.following = [f.at(ct, 1), f.at_byte(place, 8), *new]
    for target, total in zip(places, q.after[2:]):
        f.store(f.element.memory_vector, emit_in_memory(f, total), target)


def _emit_spread(f: Code, c: str, taps: Taps, places: list[str], vectors: list[str]) -> None:
    ty = f.element.register_vector
    with f.carrying(0, "%count", ("ptr", "%ct"), ("ptr", "%place")) as q:
        ct, place = q.values
        x, value = _emit_window(f, c, place, ct)
        for at, weight in zip(_emit_addresses(f, x, taps), vectors):
            total = multiply_add(f, ty, value, weight, emit_vector(f, at))
            f.store(f.element.memory_vector, emit_in_memory(f, total), at)
        q.following = [f.at(ct, 1), f.at_byte(place, 8)]
