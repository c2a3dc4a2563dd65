"""Packing for the matrix product: a block of B into panels [k][NR], a strip of A, whose rows would
fall on the same cache sets, into [k][MR]. Strides are in bytes here.

Panels are read whole by the micro-kernel; columns that B does not have keep whatever the workspace
held, and what is computed from them is never stored.
"""

from __future__ import annotations

from staticgrad.ir.dim import DimLike, floor_div

from .builder import Module
from .gemm_emit import LINE_BYTES, Element, Emitter
from .gemm_kernel import set_field, tile_shape

PACK_PARAMS = "ptr source, i64 rs, i64 cs, ptr panel, i64 k, i64 cols"
BLOCK_PARAMS = "ptr source, i64 rs, ptr panels, i64 panel_bytes, i64 k, i64 count"


def require_pack(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_gemm_pack_<dtype>(source, rs, cs, panel, k, cols)`:
    panel[p, j] = source[p, j] for p < k, j < cols <= NR, for any strides.

    Unit row stride: squares of 16 bytes a side are transposed within 128-bit lanes, as many at a
    time as a vector has lanes. What is no whole square is copied element by element.
    """
    name = f"sg_gemm_pack_{element.dtype}"
    if module.has(name):
        return name
    scalar = require_pack_scalar(module, element)
    _, nr = tile_shape(module.target, element.dtype)
    size, lanes, side = element.itemsize, element.lanes, 16 // element.itemsize
    ld = nr * size
    f = Emitter(module, name, PACK_PARAMS, element)
    if size < 4:
        f.call(scalar, ("ptr", "%source"), ("i64", "%rs"), ("i64", "%cs"), ("ptr", "%panel"),
               ("i64", "%k"), ("i64", "%cols"), ("i64", ld))  # fmt: skip
        f.leave()
        f.finish()
        return name
    unit = f.compare("eq", "%rs", size)
    whole_k = f.emit(f"and i64 %k, {-side}")
    whole_cols = f.select(unit, f.emit(f"and i64 %cols, {-lanes}"), 0)
    offsets = [f.mul("%cs", j) for j in range(lanes)]
    with f.loop(0, whole_cols, lanes) as j:
        columns, out_columns = f.at_byte("%source", f.mul(j, "%cs")), f.at("%panel", j)
        with f.loop(0, whole_k, side) as p:
            here = f.at(columns, p)
            out = f.at_byte(out_columns, f.mul(p, ld))
            for q, value in enumerate(emit_transposed_load(f, here, offsets)):
                f.store(element.memory_vector, value, f.at_byte(out, q * ld))
    f.call(scalar, ("ptr", f.at("%source", whole_k)), ("i64", "%rs"), ("i64", "%cs"),
           ("ptr", f.at_byte("%panel", f.mul(whole_k, ld))), ("i64", f.sub("%k", whole_k)),
           ("i64", whole_cols), ("i64", ld))  # fmt: skip
    f.call(scalar, ("ptr", f.at_byte("%source", f.mul(whole_cols, "%cs"))), ("i64", "%rs"),
           ("i64", "%cs"), ("ptr", f.at("%panel", whole_cols)), ("i64", "%k"),
           ("i64", f.sub("%cols", whole_cols)), ("i64", ld))  # fmt: skip
    f.leave()
    f.finish()
    return name


def require_pack_block(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_gemm_pack_block_<dtype>(source, rs, panels, panel_bytes, k, count)`:
    packs a B of unit column stride into `count` whole panels, `panel_bytes` apart.

    Goes row by row through all panels, so that B is read in the order in which it lies: a block of
    1024 x 1024 took 190 us so, 300 us panel by panel.
    """
    name = f"sg_gemm_pack_block_{element.dtype}"
    if module.has(name):
        return name
    _, nr = tile_shape(module.target, element.dtype)
    f = Emitter(module, name, BLOCK_PARAMS, element)
    ty, size = element.memory_vector, element.itemsize
    starts = range(0, nr, element.lanes)
    with f.loop(0, "%k") as p:
        row = f.at_byte("%source", f.mul(p, "%rs"))
        out = f.at_byte("%panels", f.mul(p, nr * size))
        with f.loop(0, "%count") as j:
            here, there = f.at(row, f.mul(j, nr)), f.at_byte(out, f.mul(j, "%panel_bytes"))
            values = [f.load(ty, f.at(here, s)) for s in starts]
            for s, value in zip(starts, values):
                f.store(ty, value, f.at(there, s))
    f.leave()
    f.finish()
    return name


def require_pack_scalar(module: Module, element: Element) -> str:
    """Any strides: `(source, rs, cs, panel, k, cols, ld)`, four elements to a turn of the loop;
    `ld` is the byte distance of the panel's rows."""
    name = f"sg_gemm_pack_scalar_{element.dtype}"
    if module.has(name):
        return name
    f = Emitter(module, name, PACK_PARAMS + ", i64 ld", element)
    offsets: list[str | int] = [0, "%cs", f.mul("%cs", 2), f.mul("%cs", 3)]
    whole = f.emit("and i64 %cols, -4")
    with f.loop(0, "%k") as p:
        row = f.at_byte("%source", f.mul(p, "%rs"))
        out = f.at_byte("%panel", f.mul(p, "%ld"))
        for start, stop, count in ((0, whole, 4), (whole, "%cols", 1)):
            with f.loop(start, stop, count) as j:
                here, there = f.at_byte(row, f.mul(j, "%cs")), f.at(out, j)
                for u in range(count):
                    value = f.load(element.memory, f.at_byte(here, offsets[u]))
                    f.store(element.memory, value, f.at(there, u))
    f.leave()
    f.finish()
    return name


def emit_transposed_load(f: Emitter, here: str, offsets: list[str]) -> list[str]:
    """Column j begins at here + offsets[j]; -> what `emit_transposed` gives."""
    return emit_transposed(f, [f.at_byte(here, o) for o in offsets])


def emit_transposed(f: Emitter, columns: list[str]) -> list[str]:
    """For each of the next 16 // itemsize elements of all columns the vector over the columns."""
    element = f.element
    side = 16 // element.itemsize
    chunk = f"<{side} x {element.memory}>"
    rows = []
    for r in range(side):
        parts = [f.load(chunk, column) for column in columns[r::side]]
        rows.append(_emit_joined(f, parts, side))
    return _emit_transposed_parts(f, rows)


def _emit_transposed(f: Emitter, rows: list[str]) -> list[str]:
    """The columns of a square of vectors."""
    side, n = 16 // f.element.itemsize, f.element.lanes
    parts = [_emit_transposed_parts(f, rows[i : i + side]) for i in range(0, n, side)]
    columns = [list(column) for column in zip(*parts)]  # what is left is a square of 128-bit lanes
    width = 1
    while width * side < n:
        step = width * side
        low = [b + h + x for b in range(0, n, 2 * step) for h in (0, n) for x in range(step)]
        high = [i + step for i in low]
        for column in columns:
            for i in (i for i in range(len(column)) if not i & width):
                pair = column[i], column[i + width]
                column[i], column[i + width] = (_emit_shuffle(f, *pair, m) for m in (low, high))
        width *= 2
    return [columns[i % side][i // side] for i in range(n)]


def _emit_transposed_parts(f: Emitter, rows: list[str]) -> list[str]:
    """Of as many rows as a 128-bit lane has elements: each such square of them transposed."""
    side, n = len(rows), f.element.lanes
    lanes = range(0, n, side)
    if side == 2:
        return [_emit_shuffle(f, rows[0], rows[1], [b + q + h * n for b in lanes for h in (0, 1)])
                for q in (0, 1)]  # fmt: skip
    low = [b + x for b in lanes for x in (0, n, 1, n + 1)]
    high = [i + 2 for i in low]
    pairs = [_emit_shuffle(f, rows[i], rows[i + 1], m) for m in (low, high) for i in (0, 2)]
    first = [b + x for b in lanes for x in (0, 1, n, n + 1)]
    second = [i + 2 for i in first]
    return [_emit_shuffle(f, pairs[i], pairs[i + 1], m) for i in (0, 2) for m in (first, second)]


def _emit_joined(f: Emitter, parts: list[str], width: int) -> str:
    """The concatenation of equally wide vectors, by halves."""
    while len(parts) > 1:
        ty = f"<{width} x {f.element.memory}>"
        mask = ", ".join(f"i32 {i}" for i in range(2 * width))
        parts = [
            f.emit(f"shufflevector {ty} {a}, {ty} {b}, <{2 * width} x i32> <{mask}>")
            for a, b in zip(parts[::2], parts[1::2])
        ]
        width *= 2
    return parts[0]


def _emit_shuffle(f: Emitter, a: str, b: str, lanes: list[int]) -> str:
    ty = f.element.memory_vector
    mask = ", ".join(f"i32 {i}" for i in lanes)
    return f.emit(f"shufflevector {ty} {a}, {ty} {b}, <{len(lanes)} x i32> <{mask}>")


def strip_bytes(element: Element, k: DimLike) -> DimLike:
    """Room for a packed strip of A of k columns, see `require_pack_strip`."""
    mr, _ = tile_shape(element.target, element.dtype)
    return (floor_div(k * element.itemsize, LINE_BYTES) + 2) * (mr * LINE_BYTES)


def require_pack_strip(module: Module, element: Element) -> str:
    """Makes sure of `void @sg_gemm_pack_strip_<dtype>(ptr desc, ptr a, i64 a_rs, i64 a_cs, ptr out,
    i64 k)`: copies MR rows of A to [k][MR] and puts the copy's strides into the descriptor.

    Rows of unit column stride go a vector of all rows at a time, squares of them transposed: 2.4 us
    for 14 x 1024 of a large A, 3.2 us row after row, as each row is on another page, where the
    processor begins anew to fetch ahead. (From the L2 cache it is 1.5 and 1.0 us.) Rows of elements
    below four bytes, which are no such squares, are copied as rows.
    """
    name = f"sg_gemm_pack_strip_{element.dtype}"
    if module.has(name):
        return name
    scalar = require_pack_scalar(module, element)
    mr, _ = tile_shape(module.target, element.dtype)
    size = element.itemsize
    ld = mr * size
    f = Emitter(module, name, "ptr desc, ptr a, i64 a_rs, i64 a_cs, ptr out, i64 k", element)
    unit = f.compare("eq", "%a_cs", size)
    done = "0"
    if size >= 4:
        done = _emit_transposed_rows(f, unit, mr)
    else:
        with f.when(unit):
            _emit_copied_rows(f, mr)
            f.leave()
    set_field(f, "%desc", "a_rs", size)
    set_field(f, "%desc", "a_cs", ld)
    a, out = f.at_byte("%a", f.mul(done, "%a_cs")), f.at_byte("%out", f.mul(done, ld))
    f.call(scalar, ("ptr", a), ("i64", "%a_cs"), ("i64", "%a_rs"), ("ptr", out),
           ("i64", f.sub("%k", done)), ("i64", mr), ("i64", ld))  # fmt: skip
    f.leave()
    f.finish()
    return name


def _emit_transposed_rows(f: Emitter, unit: str, mr: int) -> str:
    """Transposes the strip's columns as far as whole vectors of its rows go, if column strides are
    `unit`; -> how far."""
    element, lanes = f.element, f.element.lanes
    size = element.itemsize
    ld = mr * size
    whole = f.select(unit, f.emit(f"and i64 %k, {-lanes}"), 0)
    offsets = [f.mul("%a_rs", i) for i in range(mr)]
    with f.loop(0, whole, lanes) as p:
        here, out = f.at("%a", p), f.at_byte("%out", f.mul(p, ld))
        rows = [f.load(element.memory_vector, f.at_byte(here, o)) for o in offsets]
        # The last square takes rows from the one before it. Where rows are fewer than lanes, it has
        # one of them several times, which is stored where the next k goes, and that comes later.
        rows += rows[-1:] * (lanes - mr)
        for i in range(0, mr, lanes):
            start = min(i, len(rows) - lanes)
            for q, column in enumerate(_emit_transposed(f, rows[start : start + lanes])):
                there = f.at_byte(out, q * ld + start * size)
                f.store(element.memory_vector, column, there)
    return whole


def _emit_copied_rows(f: Emitter, mr: int) -> None:
    """Copies rows of unit column stride as rows, 64 bytes further apart than they are long."""
    size = f.element.itemsize
    length = f.mul("%k", size)
    ld = f.emit(f"and i64 {f.add(length, 127)}, -64")
    f.module.intrinsic("llvm.memcpy.p0.p0.i64", "void", "ptr", "ptr", "i64", "i1")
    with f.loop(0, mr) as i:
        row, copy = f.at_byte("%a", f.mul(i, "%a_rs")), f.at_byte("%out", f.mul(i, ld))
        f.call("llvm.memcpy.p0.p0.i64", ("ptr", copy), ("ptr", row), ("i64", length),
               ("i1", "false"))  # fmt: skip
    set_field(f, "%desc", "a_rs", ld)
    set_field(f, "%desc", "a_cs", size)
