"""Every other element: loads of stride 2 as two neighbouring vectors, stores of stride 2 in pairs.

A gather or a scatter takes its lanes one by one on many CPUs: 2 x 2 pooling of [64, 16, 28, 28]
took 220 us so and its gradient 880; a shuffle of two vectors is one instruction. Exactly the
elements of active lanes are touched, as always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from staticgrad.ir.dim import DimLike
from staticgrad.kernels.ir import Stmt, Store

from .builder import Function, element, mangled, width
from .target import Target

if TYPE_CHECKING:
    from .loops import KernelEmitter
    from .values import ValueEmitter


_ITEMSIZE = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "float": 4, "double": 8}


def masked_load(f: Function, ty: str, address: str, mask: str, fill: str) -> str:
    """A vector of memory elements; `fill` where `mask` is off, and nothing is read there."""
    w, intrinsic = width(ty), f"llvm.masked.load.{mangled(ty)}.p0"
    f.module.intrinsic(intrinsic, ty, "ptr", f"<{w} x i1>", ty)
    place = f"ptr align {_ITEMSIZE[element(ty)]} {address}"
    return f.emit(f"call {ty} @{intrinsic}({place}, <{w} x i1> {mask}, {ty} {fill})")


def masked_store(f: Function, ty: str, value: str, address: str, mask: str) -> None:
    """Stores the lanes of a vector where `mask` is on."""
    w, intrinsic = width(ty), f"llvm.masked.store.{mangled(ty)}.p0"
    f.module.intrinsic(intrinsic, "void", ty, "ptr", f"<{w} x i1>")
    place = f"ptr align {_ITEMSIZE[element(ty)]} {address}"
    f.stmt(f"call void @{intrinsic}({ty} {value}, {place}, <{w} x i1> {mask})")


def takes_pairs(target: Target, itemsize: int) -> bool:
    """Whether a vector can be loaded and stored under a mask without a branch for each lane."""
    return target.is_x86 and (itemsize >= 4 or "+avx512bw" in target.features.split(","))


def _mask(em: ValueEmitter, bits: str, half: int, both: bool) -> str:
    """The mask of one of the two vectors that lanes lie in: a lane's even element, or both."""
    w = em.lanes
    pairs = [i for k in range(w // 2) for i in (half + k, half + k if both else w)]
    return em.f.emit(
        f"shufflevector <{w} x i1> {bits}, <{w} x i1> zeroinitializer, "
        f"<{w} x i32> <{', '.join(f'i32 {i}' for i in pairs)}>"
    )


def load_even(em: ValueEmitter, address: str, ty: str, mask: str | None, fill: str) -> str:
    """The lanes address[0], address[2], ..; `fill` where `mask` is off."""
    w, f = em.lanes, em.f
    memory = element(ty)
    second = f.emit(f"getelementptr {memory}, ptr {address}, i64 {w}")
    if mask is None:
        size = _ITEMSIZE[memory]
        halves = [f.emit(f"load {ty}, ptr {address}, align {size}")]
        on = _mask(em, "splat (i1 true)", w // 2, False)
        halves.append(masked_load(f, ty, second, on, fill))
    else:
        halves = [
            masked_load(f, ty, place, _mask(em, mask, half, False), fill)
            for place, half in ((address, 0), (second, w // 2))
        ]
    even = ", ".join(f"i32 {2 * i}" for i in range(w))
    return f.emit(f"shufflevector {ty} {halves[0]}, {ty} {halves[1]}, <{w} x i32> <{even}>")


def is_pair(em: KernelEmitter, first: Store, second: Stmt | None) -> bool:
    """Whether two stores write neighbouring elements, in every lane two of their own."""
    if not isinstance(second, Store) or second.buffer != first.buffer or em.lanes == 1:
        return False
    if first.guard is not None or second.guard is not None or first.gathers or second.gathers:
        return False
    step: DimLike = second.index - first.index
    itemsize = em.buffers[first.buffer].dtype.itemsize_bytes
    return (
        em.coefficient(first.index) == (2, True)
        and step == 1
        and takes_pairs(em.module.target, itemsize)
    )


def store_pair(em: KernelEmitter, ty: str, address: str, first: str, second: str) -> None:
    """first[0], second[0], first[1], second[1], .. from `address` on; of active lanes."""
    w, f = em.lanes, em.f
    memory = element(ty)
    place = address
    for half in (0, w // 2):
        order = ", ".join(f"i32 {half + k // 2 + (k % 2) * w}" for k in range(w))
        value = f.emit(f"shufflevector {ty} {first}, {ty} {second}, <{w} x i32> <{order}>")
        if em.mask is None:
            f.stmt(f"store {ty} {value}, ptr {place}, align {_ITEMSIZE[memory]}")
        else:
            masked_store(f, ty, value, place, _mask(em, em.mask, half, True))
        place = f.emit(f"getelementptr {memory}, ptr {address}, i64 {w}")
