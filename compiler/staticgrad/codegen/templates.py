"""Calls of the shared generated functions from kernels: matrix products, convolutions, sorting.

    matmul   buffers a, b, c, workspace, and b packed before (`matmul_pack`) or null where the pass
                     `prepack` has that done; of a constant the packed form is b as well
             sizes   m, n, k, a_start, a_rs, a_cs, b_start, b_rs, b_cs, c_start, c_rs, batch,
                     begin, end (the share of the rows, or of the columns if there are more than
                     rows, or than the size `most` behind it; of many columns as many are enough)
             attrs   dtype; vectors, if few rows or columns are declared (`gemm_vector.vectors_of`);
                     tile, the bytes with which the workspace begins, if nothing but the epilogue
                     reads c (`gemm.tile_bytes`): c is null then where one block of k is enough
    matmul_pack
             buffers b, panels
             sizes   n, k, b_start, b_rs, b_cs, begin, end (the share of the panels)
             attrs   dtype
    dots     buffers a, b, parts of `gemm_vector.require_dots`
             sizes   many, k, a_start, b_start, b_cs, begin, end (the share of the blocks of k)
             attrs   dtype
    conv, conv_grad_input, conv_grad_weight
             buffers x, w, y, workspace
             sizes   the geometry (`codegen.conv_emit.Geometry`), then begin and end of the share
             attrs   dtype; window (`conv_depthwise_window.Kind`) and lanes, for few channels
                     to a group; else rows of the tile, and their lanes (conv_grad_weight)
    pooled_taps, pooled_spread
             buffers x, ct, place, taps of `codegen.conv_pooled`
             sizes   where each of them starts; count, channels, row
             attrs   dtype, kernel, step
    conv_transpose
             buffers source, target
             sizes   where each of them starts; the row stride of each; rows, columns of the source
             attrs   dtype
    sort     as `codegen.sort` has it
    c_scalar, c_elementwise, c_general
             a call of a function of the user's (`api.custom`) on the buffers
             sizes   the element; the number of elements; all dims of all buffers
             attrs   symbol; dtype (c_scalar)

An epilogue is a kernel of its own that the product calls on each finished block; a prologue of a
matrix product one that it calls where it packs an operand, which nobody has stored. Their buffers
and sizes reach them through a table of words that the caller fills once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from staticgrad.kernels.ir import TILE, TILE_STRIDE, Buffer, Kernel, Template

from .builder import Function, Module
from .gemm import require_gemm, require_gemm_prologue

if TYPE_CHECKING:
    from .loops import KernelEmitter

# What few programs call is imported where it is called: convolutions are a dozen modules, 5 ms of
# the first compilation of a process.
_CONV = {
    "conv": "forward",
    "conv_grad_input": "grad_input",
    "conv_grad_weight": "grad_weight",
}
# Threads share the columns of a square result from this size on: each then packs a part of B only,
# and goes through A less often. 1024 x 1024 x 1024 on two threads: 10.6 ms by rows, 10.3 so; 64 x
# 64 x 4096, of one panel each: 168 us by rows, 187 so.
SQUARE_COLUMNS = 1024
EPILOGUE_PARAMS = [("ptr", "table"), ("i64", "batch"), ("i64", "r0"), ("i64", "r1"), ("i64", "c0"),
                   ("i64", "c1")]  # fmt: skip
# Of a matrix product: where the rectangle lies that its prologue computes, its epilogue reads.
TILE_PARAMS = [*EPILOGUE_PARAMS, ("ptr", "tile"), ("i64", f"n_{TILE_STRIDE}")]


def emit_template(em: KernelEmitter, s: Template) -> None:
    if s.name == "matmul":
        _emit_matmul(em, s)
    elif s.name == "matmul_pack":
        _emit_matmul_pack(em, s)
    elif s.name == "dots":
        _emit_dots(em, s)
    elif s.name in _CONV:
        _emit_conv(em, s)
    elif s.name == "sort":
        from .sort import emit_template_sort

        pointers = [f"%b_{b}" for b in s.buffers]
        emit_template_sort(em.f, pointers, [em.integer(d) for d in s.sizes], s.attrs)
    elif s.name in ("pooled_taps", "pooled_spread", "conv_transpose"):
        _emit_pooled(em, s)
    elif s.name == "c_scalar":
        _emit_c_scalar(em, s)
    elif s.name in ("c_elementwise", "c_general"):
        _emit_c_arrays(em, s)
    else:
        raise ValueError(f"{em.kernel.name}: unknown template {s.name!r}")


def require_function(module: Module, s: Template) -> str | None:
    """Makes sure of the shared function that a product calls; -> its name.

    What programs share is one unit of code generation, begun when all of it stands: one function
    that comes later and all are generated again (50 of 308 ms of a CNN's, when those behind pooling
    did)."""
    if s.name == "matmul":
        dtype, computed = s.attrs["dtype"], any(p is not None for p in s.prologues)
        if "vectors" in s.attrs and len(s.buffers) == 4:
            from .gemm_vector import require_gemm_vector

            return require_gemm_vector(module, dtype, s.attrs["vectors"])
        if len(s.buffers) == 4:
            return (require_gemm_prologue if computed else require_gemm)(module, dtype)
        from .gemm_prepacked import require_prepacked

        return require_prepacked(module, dtype, prologue=computed)
    if s.name == "matmul_pack":
        from .gemm_prepacked import require_prepack

        return require_prepack(module, s.attrs["dtype"])
    if s.name == "dots":
        from .gemm_vector import require_dots

        return require_dots(module, s.attrs["dtype"])
    if s.name in _CONV:
        kind = _CONV[s.name]
        if "window" in s.attrs:
            from . import conv_depthwise

            return str(getattr(conv_depthwise, f"require_depthwise_{kind}")(module, **s.attrs))
        from . import conv

        return str(getattr(conv, f"require_conv_{kind}")(module, **s.attrs))
    if s.name == "conv_transpose":
        from .conv_transpose import require_transpose
        from .gemm_emit import Element

        return require_transpose(module, Element.of(s.attrs["dtype"], module.target))
    if s.name in ("pooled_taps", "pooled_spread"):
        from .conv_pooled import require_pooled

        kind = s.name.removeprefix("pooled_")
        return require_pooled(module, s.attrs["dtype"], kind, s.attrs["kernel"], s.attrs["step"])
    return None


def _emit_matmul(em: KernelEmitter, s: Template) -> None:
    f = em.f
    packed = s.buffers[4:]
    name = require_function(em.module, s)
    sizes = map(em.integer, s.sizes)
    m, n, k, a0, a_rs, a_cs, b0, b_rs, b_cs, c0, c_rs, batch, begin, end, *most = sizes
    limit = most[0] if most else m
    wide = f.emit(f"icmp sgt i64 {n}, {limit}")
    if s.prologues[0] is None:  # else each thread would compute all of A
        many = f.emit(f"icmp sge i64 {n}, {SQUARE_COLUMNS}")
        wide = f.emit(f"select i1 {many}, i1 {f.emit(f'icmp sge i64 {n}, {limit}')}, i1 {wide}")
    r0, r1, first, last = (
        f.emit(f"select i1 {wide}, i64 {x}, i64 {y}")
        for x, y in (("0", begin), (m, end), (begin, "0"), (end, n))
    )
    scalar = _scalar(s.attrs["dtype"])
    a, b, c = (
        f.emit(f"getelementptr {scalar}, ptr %b_{buffer}, i64 {start}")
        for buffer, start in zip(s.buffers, (a0, b0, c0))
    )
    epilogue, table = _epilogue(em, s.epilogue, TILE_PARAMS)
    workspace, tile = f"%b_{s.buffers[3]}", "null"
    if "tile" in s.attrs:
        tile = workspace
        workspace = f.emit(f"getelementptr i8, ptr {tile}, i64 {s.attrs['tile']}")
    more: list[tuple[str, ...]] = []
    if s.prologues != (None, None):
        more += [_prologue(em, p, side) for p, side in zip(s.prologues, ("left", "right"))]
    more += [(f"%b_{buffer}",) for buffer in packed]
    pointers = "".join(f", ptr {p}" for group in more for p in group)
    f.stmt(
        f"call void @{name}(i64 {m}, i64 {n}, i64 {k}, ptr {a}, i64 {a_rs}, i64 {a_cs}, "
        f"ptr {b}, i64 {b_rs}, i64 {b_cs}, ptr {c}, i64 {c_rs}, ptr {tile}, ptr {workspace}, "
        f"ptr {epilogue}, ptr {table}, i64 {batch}, i64 {r0}, i64 {r1}, i64 {first}, i64 {last}"
        f"{pointers})"
    )


def _emit_matmul_pack(em: KernelEmitter, s: Template) -> None:
    f = em.f
    name = require_function(em.module, s)
    n, k, start, rs, cs, begin, end = map(em.integer, s.sizes)
    source, panels = s.buffers
    b = f.emit(f"getelementptr {_scalar(s.attrs['dtype'])}, ptr %b_{source}, i64 {start}")
    f.stmt(
        f"call void @{name}(i64 {n}, i64 {k}, ptr {b}, i64 {rs}, i64 {cs}, ptr %b_{panels}, "
        f"i64 {begin}, i64 {end})"
    )


def _emit_dots(em: KernelEmitter, s: Template) -> None:
    f, scalar = em.f, _scalar(s.attrs["dtype"])
    name = require_function(em.module, s)
    many, k, *starts, b_cs, begin, end = map(em.integer, s.sizes)
    *operands, parts = s.buffers
    a, b = (
        f.emit(f"getelementptr {scalar}, ptr %b_{buffer}, i64 {start}")
        for buffer, start in zip(operands, starts)
    )
    f.stmt(
        f"call void @{name}(i64 {many}, i64 {k}, ptr {a}, ptr {b}, i64 {b_cs}, ptr %b_{parts}, "
        f"i64 {begin}, i64 {end})"
    )


def _emit_conv(em: KernelEmitter, s: Template) -> None:
    f = em.f
    name = require_function(em.module, s)
    *geometry, begin, end = map(em.integer, s.sizes)
    words = _table(em, [("i64", g) for g in geometry])
    epilogue, table = _epilogue(em, s.epilogue, EPILOGUE_PARAMS)
    x, w, y, workspace = (f"%b_{b}" for b in s.buffers)
    f.stmt(
        f"call void @{name}(ptr {words}, ptr {x}, ptr {w}, ptr {y}, ptr {workspace}, "
        f"ptr {epilogue}, ptr {table}, i64 {begin}, i64 {end})"
    )


def _emit_pooled(em: KernelEmitter, s: Template) -> None:
    f, scalar, sizes = em.f, _scalar(s.attrs["dtype"]), [em.integer(d) for d in s.sizes]
    name = require_function(em.module, s)
    types = (scalar, scalar, "i64", scalar)  # the third are places; a transpose has two
    pointers = [
        f"ptr {f.emit(f'getelementptr {ty}, ptr %b_{buffer}, i64 {start}')}"
        for ty, buffer, start in zip(types, s.buffers, sizes)
    ]
    words = [*pointers, *(f"i64 {n}" for n in sizes[len(pointers) :])]
    f.stmt(f"call void @{name}({', '.join(words)})")


def _emit_c_scalar(em: KernelEmitter, s: Template) -> None:
    """`T f(T, ..)` of one element of each operand; the last buffer gets the result."""
    f, symbol, scalar = em.f, s.attrs["symbol"], _scalar(s.attrs["dtype"])
    element = em.integer(s.sizes[0])
    *operands, result = (
        f.emit(f"getelementptr {scalar}, ptr %b_{b}, i64 {element}") for b in s.buffers
    )
    values = [f"{scalar} {f.emit(f'load {scalar}, ptr {place}')}" for place in operands]
    em.module.intrinsic(symbol, scalar, *[scalar] * len(values))
    value = f.emit(f"call {scalar} @{symbol}({', '.join(values)})")
    f.stmt(f"store {scalar} {value}, ptr {result}")


def _emit_c_arrays(em: KernelEmitter, s: Template) -> None:
    """`void f(operands .., results .., int64_t n)`, or with the table of all dims in place of n."""
    f, symbol = em.f, s.attrs["symbol"]
    if s.name == "c_general":
        last = ("ptr", _table(em, [("i64", em.integer(d)) for d in s.sizes]))
    else:
        last = ("i64", em.integer(s.sizes[0]))
    em.module.intrinsic(symbol, "void", *["ptr"] * len(s.buffers), last[0])
    arguments = [*(f"ptr %b_{b}" for b in s.buffers), " ".join(last)]
    f.stmt(f"call void @{symbol}({', '.join(arguments)})")


def _scalar(dtype: str) -> str:
    from .builder import memory_type

    return memory_type(dtype)


def _table(em: KernelEmitter, words: list[tuple[str, str]]) -> str:
    """Words on the stack, filled at the function's start."""

    def build() -> str:
        table = em.f.emit(f"alloca i64, i64 {len(words)}, align 64")
        for i, (ty, word) in enumerate(words):
            place = em.f.emit(f"getelementptr i64, ptr {table}, i64 {i}")
            em.f.stmt(f"store {ty} {word}, ptr {place}")
        return table

    return em.at(0, build)


def _epilogue(
    em: KernelEmitter, kernel: Kernel | None, params: list[tuple[str, str]]
) -> tuple[str, str]:
    """The function of an epilogue and its table; the epilogue's buffers and sizes are the
    caller's, by name. Products of other sizes often have an equal one, which is theirs too."""
    if kernel is None:
        return "null", "null"
    return _called(em, kernel, Function(em.module, f"{em.f.name}.epilogue", params, once=True))


def _prologue(em: KernelEmitter, kernel: Kernel | None, side: str) -> tuple[str, str]:
    """The function of a prologue and its table."""
    if kernel is None:
        return "null", "null"
    return _called(em, kernel, Function(em.module, f"{em.f.name}.{side}", TILE_PARAMS, once=True))


def _emit_tile(function: Function, tile: Buffer) -> None:
    """The tile begins at the first row and column of the rectangle: its pointer is moved to where
    row 0 and column 0 would be."""
    begin = function.emit(f"mul i64 %r0, %n_{TILE_STRIDE}")
    begin = function.emit(f"sub i64 0, {function.emit(f'add i64 {begin}, %c0')}")
    scalar = _scalar(str(tile.dtype))
    function.assign(f"%b_{TILE}", f"getelementptr {scalar}, ptr %tile, i64 {begin}")


def _called(em: KernelEmitter, kernel: Kernel, function: Function) -> tuple[str, str]:
    """Fills in a function that a product calls; -> its name and its table."""
    from .loops import KernelEmitter

    for tile in (b for b in kernel.buffers if b.name == TILE):
        _emit_tile(function, tile)
    words = [("ptr", f"%b_{b.name}") for b in kernel.buffers if b.name != TILE]
    words += [("i64", f"%n_{s}") for s in kernel.sizes if s != TILE_STRIDE]
    for i, (ty, word) in enumerate(words):
        place = function.emit(f"getelementptr i64, ptr %table, i64 {i}")
        function.assign(word, f"load {ty}, ptr {place}")
    inner = KernelEmitter(em.module, kernel, function)
    inner.scopes[0].vars["batch"] = "%batch"
    inner.run()
    return f"@{function.name}", _table(em, words)
