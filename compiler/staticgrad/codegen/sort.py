"""Sorting: one generated function a dtype, with or without indices.

    void @sg_sort_<dtype>[_indices](ptr x, i64 x_stride, ptr values, i64 values_stride,
                                    ptr indices, i64 indices_stride, ptr work, ptr work_indices,
                                    i64 n, i64 descending)

Sorts the n elements x[0], x[x_stride], ... in ascending order, or descending where that is not 0;
equal elements keep their order either way. `values` gets the sorted elements (null: they are not
wanted), `indices` as int64 the places in x from which they came (null likewise; ignored by the form
without indices). Strides count elements. `work` has room for 2n elements, `work_indices` for 2n
int64. Results may not overlap x or the work space.

NaN is the greatest value: last ascending, as NumPy has it, first descending, as PyTorch and JAX do.
-0 and +0 are equal, so they keep their order, and so do NaNs: the bits of every element survive.

In kernel IR it is the template "sort", to be called in a loop over lines:

    buffers   x, result, work [2n], and with indices work_indices [2n] of int64
    sizes     n, x_start, x_stride, result_start, result_stride: in elements
    attrs     dtype, indices (the result gets places instead of values), descending

Elements become signed integers of their width that order as they do, so one core a width serves all
dtypes, and nothing waits for comparisons of floats that mind NaN: a million float32 took 29 ms,
with them 65. Descending is ascending on the reversed input, reversed: stable, and no second
comparison is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from staticgrad.ir.dtype import BY_NAME

from .builder import Function, Module
from .sort_core import require_core


@dataclass(frozen=True)
class _Keys:
    """How elements of a dtype map to signed integers of the same order."""

    bits: int
    kind: str  # as DType.kind

    @property
    def ty(self) -> str:
        return f"i{self.bits}"

    @property
    def sign(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def rest(self) -> int:
        """All bits but the sign."""
        return -self.sign - 1

    @property
    def infinity(self) -> int:
        return 0x7F800000 if self.bits == 32 else 0x7FF0000000000000

    def encode(self) -> str:
        """Instructions from an element's bits %value to %key and to %odd, which tells of a key
        that has lost bits: all NaNs get the greatest key, -0 gets that of +0. The other negative
        floats are mirrored."""
        ty = self.ty
        if self.kind != "f":
            flip = 0 if self.kind == "i" else self.sign
            return f"%key = xor {ty} %value, {flip}\n  %odd = and i1 false, false"
        return f"""%spread = ashr {ty} %value, {self.bits - 1}
  %flip = and {ty} %spread, {self.rest}
  %mirrored = xor {ty} %value, %flip
  %negative.zero = icmp eq {ty} %value, {self.sign}
  %key.zero = select i1 %negative.zero, {ty} 0, {ty} %mirrored
  %magnitude = and {ty} %value, {self.rest}
  %nan = icmp ugt {ty} %magnitude, {self.infinity}
  %key = select i1 %nan, {ty} {self.rest}, {ty} %key.zero
  %odd = or i1 %nan, %negative.zero"""

    def decode(self) -> str:
        """Instructions from %key to the element's bits %value, but for what `encode` has lost."""
        ty = self.ty
        if self.kind != "f":
            return f"%value = xor {ty} %key, {0 if self.kind == 'i' else self.sign}"
        return f"""%spread = ashr {ty} %key, {self.bits - 1}
  %flip = and {ty} %spread, {self.rest}
  %value = xor {ty} %key, %flip"""


def require_sort(module: Module, dtype: str, with_indices: bool) -> str:
    """Makes sure of the sorting function of a dtype (see above) and returns its name."""
    keys = _Keys(BY_NAME[dtype].bits, BY_NAME[dtype].kind)
    base = f"sg_sort_{dtype}"
    name = base + ("_indices" if with_indices else "")
    if module.has(name):
        return name
    core = require_core(module, keys.bits, with_indices)
    module.define(f"{name}_gather", _gather(f"{name}_gather", keys, with_indices))
    for part, text in (
        (f"{base}_spread", _spread(f"{base}_spread", keys.ty, keys.decode())),
        (f"{base}_restore", _restore(f"{base}_restore", keys)),
        ("sg_sort_places", _spread("sg_sort_places", "i64", "%value = xor i64 %key, 0")),
    ):
        if not module.has(part):
            module.define(part, text)
    module.define(name, _whole(name, base, core, keys.ty, with_indices))
    return name


def emit_template_sort(
    f: Function, pointers: Sequence[str], sizes: Sequence[str], attrs: Mapping[str, Any]
) -> None:
    """Emits the call that the template "sort" stands for; see above for its operands."""
    dtype, indices = str(attrs["dtype"]), bool(attrs["indices"])
    name = require_sort(f.module, dtype, indices)
    memory = f"i{BY_NAME[dtype].bits}"
    x, result, work, *rest = pointers
    n, x_start, x_stride, result_start, result_stride = sizes
    x = f.emit(f"getelementptr {memory}, ptr {x}, i64 {x_start}")
    ty = "i64" if indices else memory
    result = f.emit(f"getelementptr {ty}, ptr {result}, i64 {result_start}")
    values, places = ("null", result) if indices else (result, "null")
    arguments = [
        f"ptr {x}", f"i64 {x_stride}", f"ptr {values}", f"i64 {result_stride}", f"ptr {places}",
        f"i64 {result_stride}", f"ptr {work}", f"ptr {rest[0] if rest else 'null'}", f"i64 {n}",
        f"i64 {int(bool(attrs['descending']))}",
    ]  # fmt: skip
    f.stmt(f"call void @{name}({', '.join(arguments)})")


def _gather(name: str, keys: _Keys, indices: bool) -> str:
    """Fills `work` with the keys of a line, reversed if descending, and `work_indices` with places;
    returns how many of the keys have lost bits."""
    place = """%ip = getelementptr i64, ptr %work_indices, i64 %j
  store i64 %from, ptr %ip"""
    return f"""define internal i64 @{name}(ptr %x, i64 %x_stride, ptr %work, ptr %work_indices, \
i64 %n, i64 %descending) nounwind {{
entry:
  %backwards = icmp ne i64 %descending, 0
  %last = add i64 %n, -1
  br label %turn
turn:
  %j = phi i64 [0, %entry], [%j1, %turn]
  %lost = phi i64 [0, %entry], [%lost1, %turn]
  %mirror = sub i64 %last, %j
  %from = select i1 %backwards, i64 %mirror, i64 %j
  %offset = mul i64 %from, %x_stride
  %p = getelementptr {keys.ty}, ptr %x, i64 %offset
  %value = load {keys.ty}, ptr %p
  {keys.encode()}
  %q = getelementptr {keys.ty}, ptr %work, i64 %j
  store {keys.ty} %key, ptr %q
  {place if indices else ""}
  %one = zext i1 %odd to i64
  %lost1 = add i64 %lost, %one
  %j1 = add i64 %j, 1
  %more = icmp slt i64 %j1, %n
  br i1 %more, label %turn, label %done
done:
  ret i64 %lost1
}}"""


def _spread(name: str, ty: str, decode: str) -> str:
    """Writes what `work` holds to a line, reversed if descending."""
    return f"""define internal void @{name}(ptr %work, ptr %y, i64 %y_stride, i64 %n, \
i64 %descending) nounwind {{
entry:
  %backwards = icmp ne i64 %descending, 0
  %last = add i64 %n, -1
  br label %turn
turn:
  %j = phi i64 [0, %entry], [%j1, %turn]
  %p = getelementptr {ty}, ptr %work, i64 %j
  %key = load {ty}, ptr %p
  {decode}
  %mirror = sub i64 %last, %j
  %to = select i1 %backwards, i64 %mirror, i64 %j
  %offset = mul i64 %to, %y_stride
  %q = getelementptr {ty}, ptr %y, i64 %offset
  store {ty} %value, ptr %q
  %j1 = add i64 %j, 1
  %more = icmp slt i64 %j1, %n
  br i1 %more, label %turn, label %done
done:
  ret void
}}"""


def _restore(name: str, keys: _Keys) -> str:
    """Writes the zeros and NaNs of a line again, in their order, to the places that they have in
    the sorted line: after the negative elements, and at the end."""
    ty = keys.ty
    return f"""define internal void @{name}(ptr %x, i64 %x_stride, ptr %y, i64 %y_stride, \
i64 %n, i64 %descending) nounwind {{
entry:
  %backwards = icmp ne i64 %descending, 0
  %last = add i64 %n, -1
  br label %count
count:
  %c = phi i64 [0, %entry], [%c1, %count]
  %below = phi i64 [0, %entry], [%below1, %count]
  %numbers = phi i64 [0, %entry], [%numbers1, %count]
  %c.offset = mul i64 %c, %x_stride
  %c.p = getelementptr {ty}, ptr %x, i64 %c.offset
  %c.value = load {ty}, ptr %c.p
  %c.magnitude = and {ty} %c.value, {keys.rest}
  %c.number = icmp ule {ty} %c.magnitude, {keys.infinity}
  %c.negative = icmp slt {ty} %c.value, 0
  %c.nonzero = icmp ne {ty} %c.magnitude, 0
  %c.signed = and i1 %c.number, %c.negative
  %c.below = and i1 %c.signed, %c.nonzero
  %c.one = zext i1 %c.below to i64
  %below1 = add i64 %below, %c.one
  %c.two = zext i1 %c.number to i64
  %numbers1 = add i64 %numbers, %c.two
  %c1 = add i64 %c, 1
  %counting = icmp slt i64 %c1, %n
  br i1 %counting, label %count, label %turn
turn:
  %j = phi i64 [0, %count], [%j1, %next]
  %zeros = phi i64 [%below1, %count], [%zeros1, %next]
  %nans = phi i64 [%numbers1, %count], [%nans1, %next]
  %mirror = sub i64 %last, %j
  %from = select i1 %backwards, i64 %mirror, i64 %j
  %offset = mul i64 %from, %x_stride
  %p = getelementptr {ty}, ptr %x, i64 %offset
  %value = load {ty}, ptr %p
  %magnitude = and {ty} %value, {keys.rest}
  %zero = icmp eq {ty} %magnitude, 0
  %nan = icmp ugt {ty} %magnitude, {keys.infinity}
  %zero.step = zext i1 %zero to i64
  %nan.step = zext i1 %nan to i64
  %zeros1 = add i64 %zeros, %zero.step
  %nans1 = add i64 %nans, %nan.step
  %odd = or i1 %zero, %nan
  br i1 %odd, label %put, label %next
put:
  %at = select i1 %zero, i64 %zeros, i64 %nans
  %at.mirror = sub i64 %last, %at
  %to = select i1 %backwards, i64 %at.mirror, i64 %at
  %to.offset = mul i64 %to, %y_stride
  %q = getelementptr {ty}, ptr %y, i64 %to.offset
  store {ty} %value, ptr %q
  br label %next
next:
  %j1 = add i64 %j, 1
  %more = icmp slt i64 %j1, %n
  br i1 %more, label %turn, label %done
done:
  ret void
}}"""


def _whole(name: str, base: str, core: str, ty: str, indices: bool) -> str:
    """Gather, sort, spread; zeros and NaNs again if any key has lost bits."""
    wants_indices = "icmp ne ptr %indices, null" if indices else "and i1 false, false"
    return f"""define internal void @{name}(ptr %x, i64 %x_stride, ptr %values, \
i64 %values_stride, ptr %indices, i64 %indices_stride, ptr %work, ptr %work_indices, i64 %n, \
i64 %descending) nounwind {{
entry:
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %sort, label %done
sort:
  %lost = call i64 @{name}_gather(ptr %x, i64 %x_stride, ptr %work, ptr %work_indices, i64 %n, \
i64 %descending)
  %start = call i64 @{core}(ptr %work, ptr %work_indices, i64 %n)
  %wants.values = icmp ne ptr %values, null
  br i1 %wants.values, label %write, label %after
write:
  %sorted = getelementptr {ty}, ptr %work, i64 %start
  call void @{base}_spread(ptr %sorted, ptr %values, i64 %values_stride, i64 %n, i64 %descending)
  %odd = icmp ne i64 %lost, 0
  br i1 %odd, label %restore, label %after
restore:
  call void @{base}_restore(ptr %x, i64 %x_stride, ptr %values, i64 %values_stride, i64 %n, \
i64 %descending)
  br label %after
after:
  %wants.indices = {wants_indices}
  br i1 %wants.indices, label %place, label %done
place:
  %places = getelementptr i64, ptr %work_indices, i64 %start
  call void @sg_sort_places(ptr %places, ptr %indices, i64 %indices_stride, i64 %n, i64 %descending)
  br label %done
done:
  ret void
}}"""
