"""Micro-kernels of the matrix product: a register tile of C from rows of A and a panel of B.

One kernel holds `rows x vectors` accumulators in registers. A is read by scalar broadcasts through
any two strides, so the same code takes A where it lies and A packed; B is rows of vectors. Row
counts that are no multiple of the tile are made of the smaller kernels (14 = 14, 13 = 8 + 4 + 1):
none of them reads or computes a row that is not there. Column edges go through a small buffer.
"""

from __future__ import annotations

from .builder import Module
from .gemm_emit import Element, Emitter
from .target import Target

VECTORS = 2  # vectors of B to a row of the tile
STRIP_PARAMS = ["i64 k", "ptr a", "i64 a_rs", "i64 a_cs", "ptr b", "i64 b_rs",
                "ptr c", "i64 c_rs", "i64 c_cs", "i64 accumulate", "i64 rows", "i64 cols"]  # fmt: skip


def tile_shape(target: Target, dtype: str) -> tuple[int, int]:
    """(MR, NR): rows and columns of the register tile. 32 registers hold 14 x 2 accumulators, two
    vectors of B and two broadcasts of A; 16 hold 6 x 2."""
    element = Element.of(dtype, target)
    return (14 if target.vector_registers >= 32 else 6), VECTORS * element.lanes


def row_steps(target: Target) -> list[int]:
    """The row counts that kernels exist for, largest first; greedily they make up any count."""
    return [14, 8, 4, 2, 1] if target.vector_registers >= 32 else [6, 4, 2, 1]


def split_params(params: list[str]) -> list[tuple[str, str]]:
    return [(p.split()[0], p.split()[1]) for p in params]


def require_micro_kernel(module: Module, dtype: str) -> str:
    """Makes sure of `void @sg_gemm_tile_<dtype>(i64 k, ptr a_panel, ptr b_panel, ptr c, i64 c_rs,
    i64 accumulate, i64 rows, i64 cols)` and returns its name.

    c[i, j] (+)= sum_k a_panel[k, i] * b_panel[k, j] for i < rows <= MR, j < cols <= NR, where
    a_panel is [k, MR], b_panel is [k, NR] and aligned to 64 bytes, k >= 1. Columns of b_panel from
    `cols` on are read (they must be there) and their products discarded; rows of a_panel from
    `rows` on are not read. `accumulate` 0 overwrites, else c = c + sum.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_gemm_tile_{element.dtype}"
    if module.has(name):
        return name
    strip = require_strip(module, dtype)
    mr, nr = tile_shape(module.target, dtype)
    params = ["i64 k", "ptr a_panel", "ptr b_panel", "ptr c", "i64 c_rs", "i64 accumulate",
              "i64 rows", "i64 cols"]  # fmt: skip
    f = Emitter(module, name, split_params(params), element)
    f.call(strip, ("i64", "%k"), ("ptr", "%a_panel"), ("i64", 1), ("i64", mr), ("ptr", "%b_panel"),
           ("i64", nr), ("ptr", "%c"), ("i64", "%c_rs"), ("i64", 1), ("i64", "%accumulate"),
           ("i64", "%rows"), ("i64", "%cols"))  # fmt: skip
    f.leave()
    f.finish()
    return name


def require_strip(module: Module, dtype: str) -> str:
    """Makes sure of the function that computes any number of rows of one panel of columns:
    `void @sg_gemm_strip_<dtype>(k, a, a_rs, a_cs, b, b_rs, c, c_rs, c_cs, accumulate, rows, cols)`.

    c[i, j] (+)= sum_k a[i, k] * b[k, j] for i < rows, j < cols <= NR; all strides in elements, b's
    column stride is 1 and its NR columns are all readable, k >= 1.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_gemm_strip_{element.dtype}"
    if module.has(name):
        return name
    steps = row_steps(module.target)
    wide = {rows: _require_kernel(module, element, rows, VECTORS) for rows in steps}
    narrow = _require_kernel(module, element, steps[0], 1)
    f = Emitter(module, name, split_params(STRIP_PARAMS), element)
    slim = f.compare("sle", "%cols", element.lanes)
    a, c, rows = "%a", "%c", "%rows"
    for step in steps:
        a, c, rows = _emit_row_loop(f, step, wide[step], narrow, slim, (a, c, rows))
    f.leave()
    f.finish()
    return name


def _emit_row_loop(
    f: Emitter, step: int, wide: str, narrow: str, slim: str, state: tuple[str, str, str]
) -> tuple[str, str, str]:
    """Calls the kernel of `step` rows while that many are left; -> (a, c, rows left)."""
    a0, c0, left0 = state
    head, body, latch, done = (f.new_label(h) for h in ("head", "rows", "latch", "done"))
    before = f.block
    a1, c1, left1 = f.reserve(), f.reserve(), f.reserve()
    f.branch(head)
    f.label(head)
    a = f.emit(f"phi ptr [{a0}, %{before}], [{a1}, %{latch}]")
    c = f.emit(f"phi ptr [{c0}, %{before}], [{c1}, %{latch}]")
    left = f.emit(f"phi i64 [{left0}, %{before}], [{left1}, %{latch}]")
    f.branch_if(f.compare("sge", left, step), body, done)
    f.label(body)
    args = [("i64", "%k"), ("ptr", a), ("i64", "%a_rs"), ("i64", "%a_cs"), ("ptr", "%b"),
            ("i64", "%b_rs"), ("ptr", c), ("i64", "%c_rs"), ("i64", "%c_cs"),
            ("i64", "%accumulate"), ("i64", "%cols")]  # fmt: skip
    if step == row_steps(f.module.target)[0]:
        slim_label, wide_label = f.new_label("slim"), f.new_label("wide")
        f.branch_if(slim, slim_label, wide_label)
        f.label(slim_label)
        f.call(narrow, *args)
        f.branch(latch)
        f.label(wide_label)
    f.call(wide, *args)
    f.branch(latch)
    f.label(latch)
    f.assign(left1, f"sub i64 {left}, {step}")
    memory = f.element.memory
    a_step, c_step = f.mul("%a_rs", step), f.mul("%c_rs", step)
    f.assign(a1, f"getelementptr {memory}, ptr {a}, i64 {a_step}")
    f.assign(c1, f"getelementptr {memory}, ptr {c}, i64 {c_step}")
    f.branch(head)
    f.label(done)
    return a, c, left


def _require_kernel(module: Module, element: Element, rows: int, vectors: int) -> str:
    name = f"sg_gemm_{element.dtype}_{rows}x{vectors}"
    if module.has(name):
        return name
    merge = require_merge(module, element)
    params = [p for p in STRIP_PARAMS if p != "i64 rows"]
    f = Emitter(module, name, split_params(params), element)
    ty, width = element.register_vector, element.lanes
    buffer = f.emit(f"alloca [{rows * vectors * width} x {element.memory}], align 64")
    sums = _emit_k_loop(f, rows, vectors)
    # A full tile goes to C; any other is put down here and merged into C afterwards.
    full = f.both(f.compare("eq", "%cols", vectors * width), f.compare("eq", "%c_cs", 1))
    out = f.select(full, "%c", buffer, "ptr")
    out_rs = f.select(full, "%c_rs", vectors * width)
    add = f.both(full, f.compare("ne", "%accumulate", 0))
    adding, writing, written = f.new_label("add"), f.new_label("write"), f.new_label("written")
    f.branch_if(add, adding, writing)
    for label, accumulate in ((adding, True), (writing, False)):
        f.label(label)
        row = out
        for i in range(rows):
            for j in range(vectors):
                pointer = f.at(row, j * width)
                value = sums[i][j]
                if element.memory != element.register:
                    value = f.emit(f"trunc {ty} {value} to {element.memory_vector}")
                if accumulate:
                    old = f.load(element.memory_vector, pointer)
                    value = emit_add(f, element.memory_vector, old, value)
                f.store(element.memory_vector, value, pointer)
            row = f.at(row, out_rs)
        f.branch(written)
    f.label(written)
    with f.when(f.emit(f"xor i1 {full}, true")):
        f.call(merge, ("ptr", buffer), ("i64", vectors * width), ("ptr", "%c"), ("i64", "%c_rs"),
               ("i64", "%c_cs"), ("i64", "%accumulate"), ("i64", rows), ("i64", "%cols"))  # fmt: skip
    f.leave()
    f.finish()
    return name


def _emit_k_loop(f: Emitter, rows: int, vectors: int) -> list[list[str]]:
    """The loop over k >= 1; -> the accumulators [rows][vectors] after it."""
    element = f.element
    ty = element.register_vector
    a_rs, a_cs, b_rs = (f.mul(s, element.itemsize) for s in ("%a_rs", "%a_cs", "%b_rs"))
    bases = _row_bases(f, rows, a_rs)
    body, done, before = f.new_label("k"), f.new_label("done"), f.block
    f.branch(body)
    f.label(body)
    left1, b1 = f.reserve(), f.reserve()
    left = f.emit(f"phi i64 [%k, %{before}], [{left1}, %{body}]")
    b = f.emit(f"phi ptr [%b, %{before}], [{b1}, %{body}]")
    moved = {base: f.reserve() for base in bases}
    here = {
        base: f.emit(f"phi ptr [{start}, %{before}], [{moved[base]}, %{body}]")
        for base, start in bases.items()
    }
    sums1 = [[f.reserve() for _ in range(vectors)] for _ in range(rows)]
    sums = [
        [f.emit(f"phi {ty} [zeroinitializer, %{before}], [{s}, %{body}]") for s in row]
        for row in sums1
    ]
    row_of_b = [_emit_vector(f, f.at(b, j * element.lanes)) for j in range(vectors)]
    offset_3 = f.mul(a_rs, 3)
    for i in range(rows):
        base, scale, by_three = ROW_ADDRESS[i]
        pointer = here[base]
        if scale:
            pointer = f.at_byte(pointer, f.mul(offset_3 if by_three else a_rs, scale))
        scalar = f.load(element.memory, pointer)
        if element.memory != element.register:
            scalar = f.emit(f"zext {element.memory} {scalar} to {element.register}")
        value = f.splat(scalar, ty)
        for j in range(vectors):
            emit_multiply_add(f, sums1[i][j], value, row_of_b[j], sums[i][j])
    for base, pointer in here.items():
        f.assign(moved[base], f"getelementptr i8, ptr {pointer}, i64 {a_cs}")
    f.assign(b1, f"getelementptr i8, ptr {b}, i64 {b_rs}")
    f.assign(left1, f"add i64 {left}, -1")
    f.branch_if(f.compare("eq", left1, 0), done, body)
    f.label(done)
    return sums1


# Row i of A is at base + scale * stride, or base + scale * (3 * stride): three moving pointers and
# two strides reach 14 rows through the scaled addressing of x86-64 (1, 2, 4, 8).
ROW_ADDRESS = {0: (0, 0, False), 1: (0, 1, False), 2: (0, 2, False), 3: (0, 1, True),
               4: (0, 4, False), 5: (5, 0, False), 6: (0, 2, True), 7: (5, 2, False),
               8: (0, 8, False), 9: (5, 4, False), 10: (10, 0, False), 11: (5, 2, True),
               12: (10, 2, False), 13: (5, 8, False)}  # fmt: skip


def _row_bases(f: Emitter, rows: int, a_rs: str) -> dict[int, str]:
    """The moving pointers that the first `rows` rows need: row of A -> its address at k = 0."""
    needed = sorted({ROW_ADDRESS[i][0] for i in range(rows)})
    return {base: f.at_byte("%a", f.mul(a_rs, base)) if base else "%a" for base in needed}


def _emit_vector(f: Emitter, pointer: str) -> str:
    element = f.element
    value = f.load(element.memory_vector, pointer)
    if element.memory != element.register:
        value = f.emit(f"zext {element.memory_vector} {value} to {element.register_vector}")
    return value


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


def emit_add(f: Emitter, ty: str, a: str, b: str) -> str:
    return f.emit(f"{'fadd' if f.element.is_float else 'add'} {ty} {a}, {b}")


def require_merge(module: Module, element: Element) -> str:
    """Makes sure of the function that puts a part of a dense tile [rows, ld] down in C:
    `void @sg_gemm_merge_<dtype>(tile, ld, c, c_rs, c_cs, accumulate, rows, cols)`."""
    name = f"sg_gemm_merge_{element.dtype}"
    if module.has(name):
        return name
    params = ["ptr tile", "i64 ld", "ptr c", "i64 c_rs", "i64 c_cs", "i64 accumulate", "i64 rows",
              "i64 cols"]  # fmt: skip
    f = Emitter(module, name, split_params(params), element)
    add = f.compare("ne", "%accumulate", 0)
    if element.has_masks:
        with f.when(f.compare("eq", "%c_cs", 1)):
            _emit_merge_vectors(f, add)
            f.leave()
    with f.loop(0, "%rows") as i:
        source = f.at("%tile", f.mul(i, "%ld"))
        row = f.at("%c", f.mul(i, "%c_rs"))
        with f.loop(0, "%cols") as j:
            value = f.load(element.memory, f.at(source, j))
            out = f.at(row, f.mul(j, "%c_cs"))
            adding, plain = f.new_label("add"), f.new_label("plain")
            before = f.block
            f.branch_if(add, adding, plain)
            f.label(adding)
            total = emit_add(f, element.memory, f.load(element.memory, out), value)
            f.branch(plain)
            f.label(plain)
            final = f.emit(f"phi {element.memory} [{total}, %{adding}], [{value}, %{before}]")
            f.store(element.memory, final, out)
    f.leave()
    f.finish()
    return name


def _emit_merge_vectors(f: Emitter, add: str) -> None:
    """The merge into a C of unit column stride, a masked vector at a time."""
    element = f.element
    with f.loop(0, "%cols", element.lanes) as j:
        mask = f.mask(f.sub("%cols", j))
        with f.loop(0, "%rows") as i:
            value = f.load(element.memory_vector, f.at(f.at("%tile", f.mul(i, "%ld")), j))
            out = f.at(f.at("%c", f.mul(i, "%c_rs")), j)
            adding, plain = f.new_label("add"), f.new_label("plain")
            before = f.block
            f.branch_if(add, adding, plain)
            f.label(adding)
            total = emit_add(f, element.memory_vector, f.masked_load(out, mask), value)
            f.branch(plain)
            f.label(plain)
            ty = element.memory_vector
            final = f.emit(f"phi {ty} [{total}, %{adding}], [{value}, %{before}]")
            f.masked_store(final, out, mask)
