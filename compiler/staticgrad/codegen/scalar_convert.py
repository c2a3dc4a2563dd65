"""Conversions between dtypes in registers. Every result is defined: nothing here is poison.

float -> integer truncates towards zero, saturates at the type's ends and maps NaN to 0; a wider
integer -> a narrower one wraps; anything -> bool is `x != 0` (so NaN is true).
"""

from __future__ import annotations

from staticgrad.ir.dtype import BY_NAME

from .builder import mangled, register_type
from .math_lanes import Lanes


def cast(x: Lanes, source: str, target: str) -> Lanes:
    """`x` of dtype `source` as dtype `target`, by the rules of `ops.convert.astype`."""
    if source == target:
        return x
    if target == "bool":
        return x.ne(0)
    if source == "bool":
        return _convert(x, "uitofp" if BY_NAME[target].is_float else "zext", target)
    have, want = BY_NAME[source], BY_NAME[target]
    if have.is_float and want.is_float:
        return x.widen() if want.bits > have.bits else x.narrow()
    if have.is_float:
        return _saturate(x, target)
    if want.is_float:
        return _convert(x, "sitofp" if have.kind == "i" else "uitofp", target)
    if want.bits == have.bits:
        return x
    if want.bits < have.bits:
        return _convert(x, "trunc", target)
    return _convert(x, "sext" if have.kind == "i" else "zext", target)


def bitcast(x: Lanes, source: str, target: str) -> Lanes:
    """The same bits read as another dtype of the same size."""
    if register_type(source) == register_type(target):
        return x
    return _convert(x, "bitcast", target)


def _convert(x: Lanes, instruction: str, target: str) -> Lanes:
    ty = x.typed(register_type(target))
    return Lanes(x.f, x.f.emit(f"{instruction} {x.ty} {x.name} to {ty}"), ty)


def _saturate(x: Lanes, target: str) -> Lanes:
    ty = x.typed(register_type(target))
    base = "llvm.fptosi.sat" if BY_NAME[target].kind == "i" else "llvm.fptoui.sat"
    name = f"{base}.{mangled(ty)}.{mangled(x.ty)}"
    x.f.module.intrinsic(name, ty, x.ty)
    return Lanes(x.f, x.f.emit(f"call {ty} @{name}({x.ty} {x.name})"), ty)
