"""Products with few rows or few columns whose operands lie unbroken along k: matrix times vector,
the product of two vectors. `gemm` computes them too, with the same bits: where a program declares
such products alone, it has this unit of code, half as long, and not that one.

Lanes of a vector are columns of B, or blocks of k (`gemm_blocks`), transposed in registers: an
element is still one ascending chain for each block of k. A chain waits four cycles for each
multiply-add, so several vectors are under way at once. Each is in another part of k: what is taken
together lies often a multiple of 4096 bytes apart, and would else have to share eight lines of an
L1 cache.
"""

from __future__ import annotations

from collections.abc import Iterable

from staticgrad.ir.dim import DimLike

from .builder import Module
from .gemm import GEMM_PARAMS, emit_finished, emit_k_block, emit_zeros, require_gemm
from .gemm_blocks import FAR_BYTES, emit_ask, emit_blocks, emit_gathered, emit_multiples, narrow
from .gemm_emit import (
    CONTROL,
    ITEMSIZE,
    Element,
    Emitter,
    emit_broadcast,
)
from .gemm_kernel import (
    KERNEL_PARAMS,
    emit_descriptor,
    emit_store_sum,
    emit_sum,
    get_field,
    require_merge,
    set_field,
)
from .gemm_pack import emit_transposed_load
from .target import Target

# Or columns: 1024 x 1024 x 4 takes 197 us so, 346 by the edge kernel; by 8 it is 435 and 354.
MOST_ROWS = 4
STAGES = 2  # of a group of columns: 1000 x 784 x 1 takes 58 us; 105 with one, 55 with three
# Columns up to which blocks of k are the lanes, if there are some: 10 x 100,000 x 1 takes 96 us so,
# 176 with columns.
BLOCK_COLS = 31
GROUPS_AHEAD = 8  # of short columns: 100,000 x 64 x 1 takes 0.8 ms so and 2.1 without
NEAR_STRIDE = 1024  # bytes between columns that are short

DOTS_PARAMS = "i64 many, i64 k, ptr a, ptr b, i64 b_cs, ptr parts, i64 begin, i64 end"


# Shorter sums are the small product's: 3 x 3 times 3 takes 164 ns there and 200 here, 4 x 4 times
# 4 x 4 takes 129 and 260; 16 x 16 times 16 takes 249 and 183.
LEAST_K, LEAST_K_OF_ROWS = 8, 32


def vectors_of(
    dtype: str, sizes: tuple[DimLike, DimLike, DimLike], a_cs: DimLike | None,
    b_rs: DimLike | None,
) -> int:  # fmt: skip
    """What `require_gemm_vector` is to take at once of a product of `sizes` (m, n, k) and these
    strides; 0 if the product is not for it, or may be of any size."""
    if ITEMSIZE.get(dtype, 0) < 4:
        return 0
    few = [s for s, unit in zip(sizes, (b_rs, a_cs)) if unit == 1 and isinstance(s, int)]
    least = min(few, default=0)
    if not 0 < least <= MOST_ROWS:
        return 0
    k = sizes[2]
    is_short = isinstance(k, int) and k < (LEAST_K if least == 1 else LEAST_K_OF_ROWS)
    return 0 if is_short else min(least, 2)


# Stands for `require_dots` where a product is told by what `vectors_of` says.
DOTS = -1


def is_dots(vectors: int, a_cs: DimLike | None, b_rs: DimLike | None) -> bool:
    """Whether a product of which `vectors_of` is that is one vector times few for `require_dots`,
    if it is long: all lie unbroken."""
    return vectors == 1 and a_cs == 1 and b_rs == 1


def products_text(target: Target, products: Iterable[tuple[str, int]]) -> str:
    """A module of products alone: of (dtype, what `vectors_of` says, or `DOTS`)."""
    module = Module(target)
    for dtype, vectors in sorted(products):
        if vectors == DOTS:
            require_dots(module, dtype)
        elif vectors:
            require_gemm_vector(module, dtype, vectors)
        else:
            require_gemm(module, dtype)
    return module.to_text()


def require_gemm_vector(module: Module, dtype: str, rows: int) -> str:
    """Makes sure of `sg_gemv<rows>_<dtype>`, which has the parameters, the meaning and the bits of
    `gemm.require_gemm`, for products of which `vectors_of` is not 0. Takes `rows` at once of the
    few.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_gemv{rows}_{element.dtype}"
    if module.has(name):
        return name
    columns = _require_columns(module, element, rows)
    f = Emitter(module, name, GEMM_PARAMS, element, CONTROL)
    size = element.itemsize
    m, n = f.sub("%r1", "%r0"), f.sub("%c1", "%c0")
    with f.when(f.compare("eq", "%k", 0)):
        emit_zeros(f)
        f.leave()
    with f.when(f.either(f.compare("sle", m, 0), f.compare("sle", n, 0))):
        f.leave()
    # The transpose, if the columns are few and those of A lie unbroken.
    straight, across = (_emit_is_few(f, *s) for s in ((m, "%b_rs"), (n, "%a_cs")))
    swap = f.both(across, f.negate(f.both(straight, f.compare("sge", n, m))))
    a = f.at("%a", f.mul("%r0", "%a_rs"))
    b = f.at("%b", f.mul("%c0", "%b_cs"))
    c = f.at(f.at("%c", f.mul("%r0", "%c_rs")), "%c0")
    few, many = f.select(swap, n, m), f.select(swap, m, n)
    a, b = f.select(swap, b, a, "ptr"), f.select(swap, a, b, "ptr")
    a_cs = f.mul(f.select(swap, "%b_rs", "%a_cs"), size)
    desc, kc = emit_descriptor(f), emit_k_block(f)
    for field, value in (
        ("a_rs", f.mul(f.select(swap, "%b_cs", "%a_rs"), size)), ("a_cs", a_cs),
        ("b_rs", f.mul(f.select(swap, "%a_rs", "%b_cs"), size)), ("k", kc),
        ("c_rs", f.select(swap, 1, "%c_rs")), ("c_cs", f.select(swap, "%c_rs", 1)),
    ):  # fmt: skip
        set_field(f, desc, field, value)
    start = _emit_blocks(f, desc, a, b, c, (few, many, kc)) if rows == 1 else "0"
    with f.loop(start, "%k", kc) as pc:
        set_field(f, desc, "k", f.minimum(kc, f.sub("%k", pc)))
        set_field(f, desc, "accumulate", pc)
        f.call(columns, ("ptr", desc), ("ptr", f.at_byte(a, f.mul(pc, a_cs))),
               ("ptr", f.at(b, pc)), ("ptr", c), ("i64", few), ("i64", many))  # fmt: skip
    c = f.at(f.at("%c", f.mul("%r0", "%c_rs")), "%c0")
    emit_finished(f, ("%r0", "%r1", "%c0", "%c1"), c, "%c_rs")
    f.leave()
    f.finish()
    return name


def _emit_is_few(f: Emitter, count: str, stride: str) -> str:
    return f.both(f.compare("sle", count, MOST_ROWS), f.compare("eq", stride, 1))


def _emit_blocks(f: Emitter, desc: str, a: str, b: str, c: str, sizes: tuple[str, str, str]) -> str:
    """Computes the whole blocks of k, if there are enough of them, for one row by a few columns;
    -> the k up to which that went."""
    few, many, kc = sizes
    count = f.div("%k", kc)
    one = f.both(f.compare("eq", few, 1), f.compare("sle", many, BLOCK_COLS))
    unit = f.compare("eq", get_field(f, desc, "a_cs"), f.element.itemsize)
    enough = f.both(f.both(one, unit), f.compare("sge", count, 16 // f.element.itemsize))
    with f.when(enough):
        emit_blocks(f, desc, (a, b, c), "0", count, many)
    return f.select(enough, f.mul(count, kc), 0)


def require_dots(module: Module, dtype: str) -> str:
    """Makes sure of `void @sg_dots_<dtype>(many, k, a, b, b_cs, parts, begin, end)`: the products
    of a [k] with the columns of b [k, many] (`b_cs` elements apart), each block of k by itself.
    parts[block, j] is that over block number `block`, for begin <= block < end; without k, zero.
    """
    element = Element.of(dtype, module.target)
    name = f"sg_dots_{element.dtype}"
    if module.has(name):
        return name
    columns = _require_columns(module, element, 1)
    f = Emitter(module, name, DOTS_PARAMS, element, CONTROL)
    side = 16 // element.itemsize
    with f.when(f.compare("eq", "%k", 0)):
        with f.loop("0", "%many") as j:
            f.store(element.memory, "zeroinitializer", f.at("%parts", j))
        f.leave()
    desc, kc = emit_descriptor(f), emit_k_block(f)
    b_cs = f.mul("%b_cs", element.itemsize)
    for field, value in (
        ("a_rs", 0), ("a_cs", element.itemsize), ("b_rs", b_cs), ("k", kc), ("c_rs", 0),
        ("c_cs", 1), ("accumulate", 0),
    ):  # fmt: skip
        set_field(f, desc, field, value)

    def places(block: str) -> list[str]:
        first = f.mul(block, kc)
        return [f.at("%a", first), f.at("%b", first), f.at("%parts", f.mul(block, "%many"))]

    count = f.sub(f.minimum("%end", f.div("%k", kc)), "%begin")  # of whole blocks
    enough = f.compare("sge", count, side)
    with f.when(enough):
        emit_blocks(f, desc, places("%begin"), "%many", count, "%many")
    with f.loop(f.select(enough, f.add("%begin", count), "%begin"), "%end") as block:
        set_field(f, desc, "k", f.minimum(kc, f.sub("%k", f.mul(block, kc))))
        a, b, parts = places(block)
        f.call(columns, ("ptr", desc), ("ptr", a), ("ptr", b), ("ptr", parts), ("i64", 1),
               ("i64", "%many"))  # fmt: skip
    f.leave()
    f.finish()
    return name


def _require_columns(module: Module, element: Element, rows: int) -> str:
    """Makes sure of `sg_gemv<rows>_columns_<dtype>`, with the parameters of `require_strip`, where
    B has unit row stride. The descriptor's `b_rs` is the byte distance of B's columns.

    A group of columns goes through the stages, each a part of k, one stage behind the group before
    it.
    """
    name = f"sg_gemv{rows}_columns_{element.dtype}"
    if module.has(name):
        return name
    f = Emitter(module, name, KERNEL_PARAMS, narrow(element))
    lanes, ty, side = f.element.lanes, f.element.register_vector, 16 // element.itemsize
    k, a_rs, a_cs, b_cs = (get_field(f, "%desc", s) for s in ("k", "a_rs", "a_cs", "b_rs"))
    sums = f.emit(f"alloca [{rows * lanes + element.lanes} x {element.memory}], align 64")
    # With fewer columns than lanes, a group is one column, in all lanes.
    enough = f.compare("sge", "%cols", lanes)
    step, stride = f.select(enough, lanes, 1), f.select(enough, b_cs, 0)
    last_group = f.div(f.sub("%cols", 1), step)
    last_start = f.sub("%cols", step)  # that group may take columns of the one before it again
    part = f.emit(f"and i64 {f.div(k, STAGES)}, {-side}")
    offsets, steps = emit_multiples(f, stride, lanes), emit_multiples(f, a_cs, side)
    far = f.both(f.compare("sge", f.mul("%cols", b_cs), FAR_BYTES),
                 f.compare("sle", b_cs, NEAR_STRIDE))  # fmt: skip
    ahead = f.select(far, f.mul(b_cs, lanes), 0)
    with f.loop(0, "%rows", rows) as i:
        of_row = [f.minimum(f.add(i, r), f.sub("%rows", 1)) for r in range(rows)]
        of_a = [f.at_byte("%a", f.mul(r, a_rs)) for r in of_row]
        zeros = ["zeroinitializer"] * rows
        turns = f.add(last_group, STAGES)
        with f.fold(0, turns, 1, ty, *zeros * (STAGES - 1)) as (t, begun, carry_begun):
            starts = []
            for s in range(STAGES):
                group = f.maximum(f.minimum(f.sub(t, s), last_group), 0)
                starts.append(f.minimum(f.mul(group, step), last_start))
            columns = [f.at_byte("%b", f.mul(start, b_cs)) for start in starts]
            emit_ask(f, columns[:1], f.mul(ahead, GROUPS_AHEAD), ahead)
            with f.fold(0, part, side, ty, *zeros, *begun) as (p, totals, carry):
                following = []
                for s, column in enumerate(columns):
                    at, those = f.add(p, f.mul(part, s)), totals[s * rows : (s + 1) * rows]
                    values = emit_transposed_load(f, f.at(column, at), offsets)
                    here = [f.at_byte(a, f.mul(at, a_cs)) for a in of_a]
                    for value, offset in zip(values, steps):
                        of_rows = [emit_broadcast(f, f.at_byte(a, offset)) for a in here]
                        those = [emit_sum(f, a, value, sum_) for a, sum_ in zip(of_rows, those)]
                    following += those
                carry(*following)
            totals = f.folded
            carry_begun(*totals[:-rows])
            with f.fold(f.mul(part, STAGES), k, 1, ty, *totals[-rows:]) as (p, those, carry):
                value = emit_gathered(f, [f.at_byte(f.at(columns[-1], p), o) for o in offsets])
                of_rows = [emit_broadcast(f, f.at_byte(a, f.mul(p, a_cs))) for a in of_a]
                carry(*(emit_sum(f, a, value, sum_) for a, sum_ in zip(of_rows, those)))
            with f.when(f.compare("sge", t, STAGES - 1)):
                first = f.mul(f.sub(t, STAGES - 1), step)
                _emit_put_down(f, f.folded, of_row, first, starts[-1], (enough, step, sums))
    f.leave()
    f.finish()
    return name


def _emit_put_down(
    f: Emitter, totals: list[str], of_row: list[str], first: str, start: str,
    groups: tuple[str, str, str],
) -> None:  # fmt: skip
    """Puts the sums of the columns from `start` on down in C, or adds them: those from `first` on,
    as the ones before have been."""
    enough, step, sums = groups
    lanes, rows = f.element.lanes, len(totals)
    c_rs, c_cs = get_field(f, "%desc", "c_rs"), get_field(f, "%desc", "c_cs")
    plain = f.both(f.compare("eq", c_cs, 1),
                   f.compare("eq", get_field(f, "%desc", "accumulate"), 0))  # fmt: skip
    direct = f.both(enough, plain)
    with f.when(direct):
        for row, total in zip(of_row, totals):
            emit_store_sum(f, total, f.at(f.at("%c", f.mul(row, c_rs)), start))
    with f.when(f.negate(direct)):
        for r, total in enumerate(totals):
            emit_store_sum(f, total, f.at(sums, r * lanes))
        element = Element.of(f.element.dtype, f.module.target)
        c = f.at(f.at("%c", f.mul(of_row[0], c_rs)), f.mul(first, c_cs))
        f.call(require_merge(f.module, element), ("ptr", "%desc"),
               ("ptr", f.at(sums, f.sub(first, start))), ("i64", lanes), ("ptr", c),
               ("i64", f.minimum(f.sub("%rows", of_row[0]), rows)),
               ("i64", f.minimum(f.sub("%cols", first), step)))  # fmt: skip
