"""Micro-kernels of the matrix product: a register tile of C from rows of A and a panel of B.

A kernel holds rows x vectors accumulators in registers. A is read by scalar broadcasts through
any two strides, so the same code takes A where it lies and A packed; B is rows of vectors. There
are three: the full tile, one of 8 rows, and one of up to 8 rows by one vector, masked, for all that
is no such tile. Few rows of a B that is packed before have kernels of their own. A sum to be
accumulated, and a C without unit column stride, go through a small buffer and `merge`; that keeps
the kernels short.

What stays the same from call to call is in a descriptor in memory (`DESC`), so that a call passes
all that varies in registers.
"""

from __future__ import annotations

from .builder import Module
from .gemm_emit import (
    LINE_BYTES,
    Element,
    Emitter,
    emit_add,
    emit_broadcast,
    emit_in_memory,
    emit_vector,
    split_params,
)
from .target import Target

VECTORS = 2  # vectors of B to a row of the tile
EDGE_ROWS = 8  # most rows of the kernel for what is no full tile
# Whole tiles ask for A so many k ahead. Of a transposed A each k is in another cache line, often in
# another page, where no prefetcher looks: 512 x 128 x 3200 went from 100 GFLOP/s to 112, and
# 1024 x 64 x 1000, whose stride is the cache's period, from 84 (copied) to 112. So do 16 and 64.
AHEAD = 32

# The descriptor: i64 fields. Strides of A and B are in bytes, those of C in elements.
DESC = ("k", "a_rs", "a_cs", "b_rs", "c_rs", "c_cs", "accumulate")
KERNEL_PARAMS = "ptr desc, ptr a, ptr b, ptr c, i64 rows, i64 cols"


def tile_shape(target: Target, dtype: str) -> tuple[int, int]:
    """(MR, NR): rows and columns of the register tile. 32 registers hold 14 x 2 accumulators, two
    vectors of B and two broadcasts of A; 16 hold 6 x 2."""
    element = Element.of(dtype, target)
    return (14 if target.vector_registers >= 32 else 6), VECTORS * element.lanes


def emit_descriptor(f: Emitter) -> str:
    return f.emit(f"alloca [{len(DESC)} x i64], align 64")


def set_field(f: Emitter, desc: str, field: str, value: str | int) -> None:
    f.store("i64", str(value), f.at_byte(desc, 8 * DESC.index(field)), 8)


def get_field(f: Emitter, desc: str, field: str) -> str:
    return f.load("i64", f.at_byte(desc, 8 * DESC.index(field)), 8)


def require_micro_kernel(module: Module, dtype: str) -> str:
    """Makes sure of `void @sg_gemm_tile_<dtype>(i64 k, ptr a_panel, ptr b_panel, ptr c, i64 c_rs,
    i64 accumulate, i64 rows, i64 cols)` and returns its name.

    c[i, j] (+)= sum_k a_panel[k, i] * b_panel[k, j] for i < rows <= MR, j < cols <= NR, where
    a_panel is [k, MR], b_panel is [k, NR], k >= 1. Columns of b_panel from `cols` on must be there
    (they may be read; their products are dropped); rows of a_panel from `rows` on are not read.
    `accumulate` 0 overwrites, else c = c + sum.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_gemm_tile_{element.dtype}"
    if module.has(name):
        return name
    strip = require_strip(module, dtype)
    mr, nr = tile_shape(module.target, dtype)
    params = "i64 k, ptr a_panel, ptr b_panel, ptr c, i64 c_rs, i64 accumulate, i64 rows, i64 cols"
    f = Emitter(module, name, params, element)
    desc = emit_descriptor(f)
    size = element.itemsize
    fields: dict[str, str | int] = {
        "k": "%k", "a_rs": size, "a_cs": size * mr, "b_rs": size * nr, "c_rs": "%c_rs", "c_cs": 1,
        "accumulate": "%accumulate",
    }  # fmt: skip
    for field, value in fields.items():
        set_field(f, desc, field, value)
    f.call(strip, ("ptr", desc), ("ptr", "%a_panel"), ("ptr", "%b_panel"), ("ptr", "%c"),
           ("i64", "%rows"), ("i64", "%cols"))  # fmt: skip
    f.leave()
    f.finish()
    return name


def require_strip(module: Module, dtype: str) -> str:
    """Makes sure of `void @sg_gemm_strip_<dtype>(ptr desc, ptr a, ptr b, ptr c, i64 rows,
    i64 cols)`: c[i, j] (+)= sum_k a[i, k] * b[k, j] for i < rows, j < cols, where k >= 1 and b has
    unit column stride.

    A full tile goes to its kernel, `EDGE_ROWS` full rows to one of theirs where there are registers
    for it, anything else, of whatever size, to the edge kernel. Where loads have no masks
    (`Element.has_masks`), the columns that fill up b's last vector must be there.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_gemm_strip_{element.dtype}"
    if module.has(name):
        return name
    mr, nr = tile_shape(module.target, dtype)
    # 32 rows, the batch of a recurrent network, are four such tiles: 8 x 512 x 512 does 113 GFLOP/s
    # of 117, and 108 by the edge kernel, which takes half of a panel's columns at a time.
    tiles = [mr, EDGE_ROWS] if module.target.vector_registers >= 32 else [mr]
    kernels = [_require_full_kernel(module, element, rows) for rows in tiles]
    edge = _require_edge_kernel(module, element)
    f = Emitter(module, name, KERNEL_PARAMS, element)
    args = ", ".join(f"{ty} %{p}" for ty, p in split_params(KERNEL_PARAMS))
    is_wide = f.compare("eq", "%cols", nr)
    for rows, kernel in zip(tiles, kernels):
        with f.when(f.both(f.compare("eq", "%rows", rows), is_wide)):
            f.stmt(f"musttail call void @{kernel}({args})")
            f.leave()
    f.stmt(f"musttail call void @{edge}({args})")
    f.leave()
    f.finish()
    return name


def _require_full_kernel(module: Module, element: Element, rows: int) -> str:
    """A whole tile of so many rows; the parameters `rows` and `cols` are known and ignored."""
    most, width = tile_shape(module.target, element.dtype)
    name = f"sg_gemm_{'full' if rows == most else f'rows{rows}'}_{element.dtype}"
    merge = require_merge(module, element)
    f = Emitter(module, name, KERNEL_PARAMS, element)
    buffer = f.emit(f"alloca [{rows * width} x {element.memory}], align 64")
    direct = _emit_is_plain(f)
    with f.when(f.negate(direct)):
        # What the sums are added to comes from L3 meanwhile.
        c_rs = get_field(f, "%desc", "c_rs")
        for i in range(rows):
            row = f.at("%c", f.mul(c_rs, i))
            for j in range(0, width * element.itemsize, LINE_BYTES):
                f.prefetch(f.at_byte(row, j))
    sums = _emit_k_loop(f, _many_rows(f, rows), "%b", VECTORS)
    row = f.select(direct, "%c", buffer, "ptr")
    row_step = f.select(direct, get_field(f, "%desc", "c_rs"), width)
    for i in range(rows):
        for j in range(VECTORS):
            emit_store_sum(f, sums[i][j], f.at(row, j * element.lanes))
        if i + 1 < rows:
            row = f.at(row, row_step)
    with f.when(f.negate(direct)):
        f.call(merge, ("ptr", "%desc"), ("ptr", buffer), ("i64", width), ("ptr", "%c"),
               ("i64", rows), ("i64", width))  # fmt: skip
    f.leave()
    f.finish()
    return name


def _require_edge_kernel(module: Module, element: Element) -> str:
    """Any rows and columns, `EDGE_ROWS` by one vector at a time, or half as many if no more are
    left."""
    name = f"sg_gemm_edge_{element.dtype}"
    merge = require_merge(module, element)
    f = Emitter(module, name, KERNEL_PARAMS, element)
    buffer = f.emit(f"alloca [{EDGE_ROWS * element.lanes} x {element.memory}], align 64")
    a_rs = get_field(f, "%desc", "a_rs")
    c_rs, c_cs = (f.mul(get_field(f, "%desc", s), element.itemsize) for s in ("c_rs", "c_cs"))
    plain = _emit_is_plain(f)
    with f.loop(0, "%cols", element.lanes) as j:
        b, c_columns = f.at("%b", j), f.at_byte("%c", f.mul(j, c_cs))
        cols = f.sub("%cols", j)
        mask = f.mask(cols) if element.has_masks else None
        with f.loop(0, "%rows", EDGE_ROWS) as i:
            a, c = f.at_byte("%a", f.mul(i, a_rs)), f.at_byte(c_columns, f.mul(i, c_rs))
            left = f.sub("%rows", i)
            many, few, next_ = (f.new_label(h) for h in ("many", "few", "next"))
            f.branch_if(f.compare("sgt", left, EDGE_ROWS // 2), many, few)
            for label, most in ((many, EDGE_ROWS), (few, EDGE_ROWS // 2)):
                f.label(label)
                sums, row_of = _emit_edge_rows(f, most, left, (a, a_rs, b), mask)
                direct, buffered = f.new_label("direct"), f.new_label("buffered")
                if mask is not None:
                    f.branch_if(plain, direct, buffered)
                    f.label(direct)
                    for row, value in zip(row_of, sums):
                        pointer = f.at_byte(c, f.mul(row, c_rs))
                        f.masked_store(emit_in_memory(f, value), pointer, mask)
                    f.branch(next_)
                else:
                    f.branch(buffered)
                f.label(buffered)
                for r, value in enumerate(sums):
                    emit_store_sum(f, value, f.at(buffer, r * element.lanes))
                f.call(merge, ("ptr", "%desc"), ("ptr", buffer), ("i64", element.lanes),
                       ("ptr", c), ("i64", f.add(row_of[-1], 1)),
                       ("i64", f.minimum(cols, element.lanes)))  # fmt: skip
                f.branch(next_)
            f.label(next_)
    f.leave()
    f.finish()
    return name


def _emit_edge_rows(
    f: Emitter, most: int, left: str, operands: tuple[str, str, str], mask: str | None
) -> tuple[list[str], list[str]]:
    """The sums of `most` rows, and the number of each: rows that are not there are the last one
    over again. What is computed for them is dropped, and nothing outside of A is read."""
    a, a_rs, b = operands
    last = f.minimum(f.sub(left, 1), most - 1)
    row_of = ["0", *(f.minimum(last, r) for r in range(1, most - 1)), last]
    address = [(a, f.mul(r, a_rs) if r != "0" else "") for r in row_of]
    return [value for (value,) in _emit_k_loop(f, address, b, 1, mask)], row_of


def require_few_rows_kernel(module: Module, element: Element, most: int) -> str:
    """Makes sure of `void @sg_prepack_rows<most>_<dtype>(..)`, with the parameters of
    `require_strip`: 1 to `most` rows by a whole panel of B, which is packed.

    Rows that are not there are the last one over again. The edge kernel goes through the panel
    twice: 4 x 1024 x 1024 took 203 us when it multiplied eight rows, 75 so.
    """
    name = f"sg_prepack_rows{most}_{element.dtype}"
    if module.has(name):
        return name
    _, width = tile_shape(module.target, element.dtype)
    f = Emitter(module, name, KERNEL_PARAMS, element)
    buffer = f.emit(f"alloca [{most * width} x {element.memory}], align 64")
    a_rs, last = get_field(f, "%desc", "a_rs"), f.sub("%rows", 1)
    offsets = ["", *(f.mul(f.minimum(last, r), a_rs) for r in range(1, most))]
    sums = _emit_k_loop(f, [("%a", offset) for offset in offsets], "%b", VECTORS)
    for i, row in enumerate(sums):
        for j, value in enumerate(row):
            emit_store_sum(f, value, f.at(buffer, i * width + j * element.lanes))
    f.call(require_merge(module, element), ("ptr", "%desc"), ("ptr", buffer), ("i64", width),
           ("ptr", "%c"), ("i64", "%rows"), ("i64", width))  # fmt: skip
    f.leave()
    f.finish()
    return name


def _emit_is_plain(f: Emitter) -> str:
    """Whether C is overwritten and has unit column stride."""
    c_cs, accumulate = get_field(f, "%desc", "c_cs"), get_field(f, "%desc", "accumulate")
    return f.both(f.compare("eq", c_cs, 1), f.compare("eq", accumulate, 0))


def emit_store_sum(f: Emitter, value: str, pointer: str) -> None:
    f.store(f.element.memory_vector, emit_in_memory(f, value), pointer)


def _emit_k_loop(
    f: Emitter, address: list[tuple[str, str]], b_start: str, vectors: int, mask: str | None = None
) -> list[list[str]]:
    """The loop over k >= 1; -> the accumulators [rows][vectors] after it. `address` is (base,
    offset) of each row of A; `mask` is for the loads of B."""
    element = f.element
    ty, rows = element.register_vector, len(address)
    k, a_cs, b_rs = (get_field(f, "%desc", s) for s in ("k", "a_cs", "b_rs"))
    bases = list(dict.fromkeys(base for base, _ in address))
    ahead = ""
    if vectors == VECTORS:  # from the first row's A to the last row's, AHEAD columns on
        ahead = f.add(f.mul(a_cs, AHEAD), f.mul(get_field(f, "%desc", "a_rs"), rows - 1))
    body, done, before = f.new_label("k"), f.new_label("done"), f.block
    f.branch(body)
    f.label(body)
    left1, b1 = f.reserve(), f.reserve()
    left = f.emit(f"phi i64 [{k}, %{before}], [{left1}, %{body}]")
    b = f.emit(f"phi ptr [{b_start}, %{before}], [{b1}, %{body}]")
    moved = {base: f.reserve() for base in bases}
    here = {
        base: f.emit(f"phi ptr [{base}, %{before}], [{moved[base]}, %{body}]") for base in bases
    }
    sums1 = [[f.reserve() for _ in range(vectors)] for _ in range(rows)]
    sums = [
        [f.emit(f"phi {ty} [zeroinitializer, %{before}], [{s}, %{body}]") for s in row]
        for row in sums1
    ]
    if ahead:
        f.prefetch(f.at_byte(here[bases[0]], ahead))
    row_of_b = [emit_vector(f, f.at(b, j * element.lanes), mask) for j in range(vectors)]
    for i in range(rows):
        base, offset = address[i]
        value = emit_broadcast(f, f.at_byte(here[base], offset) if offset else here[base])
        for j in range(vectors):
            emit_multiply_add(f, sums1[i][j], value, row_of_b[j], sums[i][j])
    for base, pointer in here.items():
        f.advance(moved[base], "ptr", f"getelementptr i8, ptr {pointer}, i64 {a_cs}")
    f.advance(b1, "ptr", f"getelementptr i8, ptr {b}, i64 {b_rs}")
    f.advance(left1, "i64", f"add i64 {left}, -1")
    f.branch_if(f.compare("eq", left1, 0), done, body)
    f.label(done)
    return sums1


# Row i of A is at base row + scale * stride, or base row + scale * (3 * stride): three moving
# pointers and two strides reach 14 rows through the scaled addressing of x86-64 (1, 2, 4, 8).
ROW_ADDRESS = {0: (0, 0, 1), 1: (0, 1, 1), 2: (0, 2, 1), 3: (0, 1, 3), 4: (0, 4, 1), 5: (5, 0, 1),
               6: (0, 2, 3), 7: (5, 2, 1), 8: (0, 8, 1), 9: (5, 4, 1), 10: (10, 0, 1),
               11: (5, 2, 3), 12: (10, 2, 1), 13: (5, 8, 1)}  # fmt: skip


def _many_rows(f: Emitter, rows: int) -> list[tuple[str, str]]:
    """(base, offset) of each row of A, all of which exist. The products by 2, 4 and 8 become a part
    of the addresses."""
    a_rs = get_field(f, "%desc", "a_rs")
    bases = {0: "%a"}
    for row in (5, 10):
        if rows > row:
            bases[row] = f.at_byte("%a", f.mul(a_rs, row))
    strides = {1: a_rs, 3: f.mul(a_rs, 3)}
    result = []
    for base, scale, times in (ROW_ADDRESS[i] for i in range(rows)):
        offset = f.mul(strides[times], scale) if scale > 1 else strides[times]
        result.append((bases[base], offset if scale else ""))
    return result


def emit_multiply_add(f: Emitter, result: str, a: str, b: str, c: str) -> None:
    """result = a * b + c: fused and rounded once for floats, wrapping for integers."""
    ty = f.element.register_vector
    if f.element.is_float:
        name = f"llvm.fma.v{f.element.lanes}{'f32' if f.element.itemsize == 4 else 'f64'}"
        f.module.intrinsic(name, ty, ty, ty, ty)
        f.assign(result, f"call {ty} @{name}({ty} {a}, {ty} {b}, {ty} {c})")
    else:
        product = f.emit(f"mul {ty} {a}, {b}")
        f.assign(result, f"add {ty} {product}, {c}")


def emit_sum(f: Emitter, a: str, b: str, total: str) -> str:
    """-> total + a * b, by `emit_multiply_add`."""
    result = f.reserve()
    emit_multiply_add(f, result, a, b, total)
    return result


def require_merge(module: Module, element: Element) -> str:
    """Makes sure of the function that puts a part of a dense tile [rows, ld] down in C:
    `void @sg_gemm_merge_<dtype>(desc, tile, ld, c, rows, cols)`."""
    name = f"sg_gemm_merge_{element.dtype}"
    if module.has(name):
        return name
    params = "ptr desc, ptr tile, i64 ld, ptr c, i64 rows, i64 cols"
    f = Emitter(module, name, params, element)
    add = f.compare("ne", get_field(f, "%desc", "accumulate"), 0)
    c_rs, c_cs = get_field(f, "%desc", "c_rs"), get_field(f, "%desc", "c_cs")
    if element.has_masks:
        with f.when(f.compare("eq", c_cs, 1)):
            _emit_merge_vectors(f, add, c_rs)
            f.leave()
    with f.loop(0, "%rows") as i:
        source = f.at("%tile", f.mul(i, "%ld"))
        row = f.at("%c", f.mul(i, c_rs))
        with f.loop(0, "%cols") as j:
            value = f.load(element.memory, f.at(source, j))
            out = f.at(row, f.mul(j, c_cs))
            total = emit_add(f, element.memory, f.load(element.memory, out), value)
            f.store(element.memory, f.select(add, total, value, element.memory), out)
    f.leave()
    f.finish()
    return name


def _emit_merge_vectors(f: Emitter, add: str, c_rs: str) -> None:
    """The merge into a C of unit column stride, a masked vector at a time."""
    element = f.element
    ty, bits = element.memory_vector, f"<{element.lanes} x i1>"
    adding = f.splat(add, bits)
    with f.loop(0, "%cols", element.lanes) as j:
        mask = f.mask(f.sub("%cols", j))
        source, target = f.at("%tile", j), f.at("%c", j)
        with f.loop(0, "%rows") as i:
            value = f.load(ty, f.at(source, f.mul(i, "%ld")))
            out = f.at(target, f.mul(i, c_rs))
            total = emit_add(f, ty, f.masked_load(out, mask), value)
            final = f.emit(f"select {bits} {adding}, {ty} {total}, {ty} {value}")
            f.masked_store(final, out, mask)
