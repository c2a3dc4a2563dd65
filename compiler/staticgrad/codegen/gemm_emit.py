"""A function builder with the few integer and loop forms that the matrix product is written in,
and `Element`, the facts about a dtype that its kernels depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .builder import Function, Module, memory_type
from .target import Target

ITEMSIZE = {"float32": 4, "float64": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
            "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8}  # fmt: skip

LINE_BYTES = 64  # of a cache
# Attributes of functions that only call others: LLVM's quick path takes a third to a half of the
# time to compile them, and they run too few instructions for that to be felt.
CONTROL = "nounwind noinline optnone"


def canonical(dtype: str) -> str:
    """The dtype whose code serves `dtype`: wrapping products of signed and unsigned agree."""
    if dtype not in ITEMSIZE:
        raise ValueError(f"matrix product: dtype {dtype!r}, expected one of {sorted(ITEMSIZE)}")
    return dtype.removeprefix("u")


@dataclass(frozen=True)
class Element:
    """One dtype on one target: how an element lies in memory and how it is computed with.

    int8 is computed as int16 and truncated at the store, which wraps to the same bits: no CPU here
    multiplies vectors of bytes, and LLVM's replacement takes eight instructions.
    """

    dtype: str
    memory: str  # scalar type in memory
    register: str  # scalar type computed with
    itemsize: int
    lanes: int  # of one vector register of `register`
    target: Target

    @staticmethod
    def of(dtype: str, target: Target) -> Element:
        name = canonical(dtype)
        itemsize = ITEMSIZE[name]
        memory = memory_type(name)
        register = "i16" if name == "int8" else memory
        return Element(name, memory, register, itemsize, target.lanes(max(itemsize, 2)), target)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")

    @property
    def memory_vector(self) -> str:
        return f"<{self.lanes} x {self.memory}>"

    @property
    def register_vector(self) -> str:
        return f"<{self.lanes} x {self.register}>"

    @property
    def has_masks(self) -> bool:
        """Whether the target loads and stores under a mask without a branch for each lane."""
        features = self.target.features.split(",")
        if not self.target.is_x86:
            return False
        return self.itemsize >= 4 or ("+avx512bw" in features and "+avx512vl" in features)


def split_params(params: str) -> list[tuple[str, str]]:
    """`"i64 k, ptr a"` -> [("i64", "k"), ("ptr", "a")]"""
    return [(p.split()[0], p.split()[1]) for p in params.split(",")]


class Emitter(Function):
    """`Function` with i64 arithmetic, byte and element addressing, loops and conditionals."""

    def __init__(
        self, module: Module, name: str, params: str, element: Element,
        attributes: str = "nounwind",
    ) -> None:  # fmt: skip
        """`params` as in C: `"i64 k, ptr a"`; the values are then `%k` and `%a`."""
        super().__init__(module, name, split_params(params), attributes=attributes)
        self.element = element
        self.folded: list[str] = []  # what the last `fold` ended with

    # -- i64 arithmetic

    def add(self, a: str | int, b: str | int) -> str:
        return self.emit(f"add i64 {a}, {b}")

    def sub(self, a: str | int, b: str | int) -> str:
        return self.emit(f"sub i64 {a}, {b}")

    def mul(self, a: str | int, b: str | int) -> str:
        return self.emit(f"mul i64 {a}, {b}")

    def div(self, a: str | int, b: str | int) -> str:
        return self.emit(f"udiv i64 {a}, {b}")

    def compare(self, predicate: str, a: str | int, b: str | int) -> str:
        return self.emit(f"icmp {predicate} i64 {a}, {b}")

    def both(self, a: str, b: str) -> str:
        return self.emit(f"and i1 {a}, {b}")

    def either(self, a: str, b: str) -> str:
        return self.emit(f"or i1 {a}, {b}")

    def negate(self, condition: str) -> str:
        return self.emit(f"xor i1 {condition}, true")

    def select(self, condition: str, a: str | int, b: str | int, ty: str = "i64") -> str:
        return self.emit(f"select i1 {condition}, {ty} {a}, {ty} {b}")

    def minimum(self, a: str | int, b: str | int) -> str:
        return self.select(self.compare("slt", a, b), a, b)

    def maximum(self, a: str | int, b: str | int) -> str:
        return self.select(self.compare("sgt", a, b), a, b)

    # -- memory

    def at(self, pointer: str, index: str | int) -> str:
        """The address of element `index` after `pointer`."""
        return self.emit(f"getelementptr {self.element.memory}, ptr {pointer}, i64 {index}")

    def at_byte(self, pointer: str, offset: str | int) -> str:
        return self.emit(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def load(self, ty: str, pointer: str, align: int | None = None) -> str:
        return self.emit(f"load {ty}, ptr {pointer}, align {align or self.element.itemsize}")

    def store(self, ty: str, value: str, pointer: str, align: int | None = None) -> None:
        self.stmt(f"store {ty} {value}, ptr {pointer}, align {align or self.element.itemsize}")

    def prefetch(self, pointer: str, locality: int = 3) -> None:
        """Asks for the cache line at `pointer`, which may lie anywhere: in the L1 cache, or with 2
        in the L2 cache."""
        self.module.intrinsic("llvm.prefetch.p0", "void", "ptr", "i32", "i32", "i32")
        self.stmt(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {locality}, i32 1)")

    def mask(self, count: str) -> str:
        """A mask of one vector's lanes, on below `count` (an i64; at or below 0 all are off).

        The `freeze` keeps LLVM from comparing anew in each turn of a loop that uses the mask, where
        that takes the place of a multiply-add: 2048 x 16 x 2048 (M, N, K) on two threads 728 us
        without, 592 so."""
        lanes = self.element.lanes
        limit = self.maximum(self.minimum(count, lanes), 0)
        ty = f"i{8 * max(self.element.itemsize, 2)}"
        if ty != "i64":
            limit = self.emit(f"trunc i64 {limit} to {ty}")
        steps = ", ".join(f"{ty} {i}" for i in range(lanes))
        limits = self.splat(limit, f"<{lanes} x {ty}>")
        mask = self.emit(f"icmp slt <{lanes} x {ty}> <{steps}>, {limits}")
        return self.emit(f"freeze <{lanes} x i1> {mask}")

    def masked_load(self, pointer: str, mask: str) -> str:
        """One vector of memory elements, zero where the mask is off: nothing is read there."""
        ty, lanes = self.element.memory_vector, self.element.lanes
        name = f"llvm.masked.load.v{lanes}{_suffix(self.element.memory)}.p0"
        self.module.intrinsic(name, ty, "ptr", f"<{lanes} x i1>", ty)
        align = self.element.itemsize
        return self.emit(
            f"call {ty} @{name}(ptr align {align} {pointer}, <{lanes} x i1> {mask}, "
            f"{ty} zeroinitializer)"
        )

    def masked_store(self, value: str, pointer: str, mask: str) -> None:
        ty, lanes = self.element.memory_vector, self.element.lanes
        name = f"llvm.masked.store.v{lanes}{_suffix(self.element.memory)}.p0"
        self.module.intrinsic(name, "void", ty, "ptr", f"<{lanes} x i1>")
        align = self.element.itemsize
        self.stmt(
            f"call void @{name}({ty} {value}, ptr align {align} {pointer}, <{lanes} x i1> {mask})"
        )

    # -- control

    def advance(self, name: str, ty: str, text: str) -> None:
        """Defines what a loop carries to its next turn. The `freeze` costs no instruction; it hides
        the induction from LLVM's loop-strength reduction, which took 6 of 22 ms to compile the
        kernels and walked 14 rows by a chain of 14 additions."""
        self.assign(name, f"freeze {ty} {self.emit(text)}")

    @contextmanager
    def loop(self, start: str | int, stop: str | int, step: str | int = 1) -> Iterator[str]:
        """`for (i = start; i < stop; i += step)` over i64; yields i."""
        head, body, latch, done = (self.new_label(h) for h in ("head", "body", "latch", "done"))
        before, following = self.block, self.reserve()
        self.branch(head)
        self.label(head)
        index = self.emit(f"phi i64 [{start}, %{before}], [{following}, %{latch}]")
        self.branch_if(self.compare("slt", index, stop), body, done)
        self.label(body)
        yield index
        self.branch(latch)
        self.label(latch)
        self.advance(following, "i64", f"add i64 {index}, {step}")
        self.branch(head)
        self.label(done)

    @contextmanager
    def fold(
        self, start: str | int, stop: str | int, step: str | int, ty: str, *values: str
    ) -> Iterator[tuple[str, list[str], Callable[..., None]]]:
        """A loop that carries values of type `ty`: yields (i, the values, a function to be given
        the next values); what it ends with is in `folded`."""
        head, body, latch, done = (self.new_label(h) for h in ("head", "body", "latch", "done"))
        before, following = self.block, self.reserve()
        carried = [self.reserve() for _ in values]
        self.branch(head)
        self.label(head)
        index = self.emit(f"phi i64 [{start}, %{before}], [{following}, %{latch}]")
        results = [
            self.emit(f"phi {ty} [{v}, %{before}], [{c}, %{latch}]")
            for v, c in zip(values, carried)
        ]
        self.branch_if(self.compare("slt", index, stop), body, done)
        self.label(body)
        chosen: list[str] = []
        yield index, results, lambda *following: chosen.extend(following)
        self.branch(latch)
        self.label(latch)
        self.advance(following, "i64", f"add i64 {index}, {step}")
        for c, value in zip(carried, chosen):
            self.assign(c, f"freeze {ty} {value}")
        self.branch(head)
        self.label(done)
        self.folded = results

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """`if (condition) { ... }`; the body may end in a return of its own with `leave`."""
        then, done = self.new_label("then"), self.new_label("done")
        self.branch_if(condition, then, done)
        self.label(then)
        yield
        if self._lines[-1] != "  ret void":
            self.branch(done)
        self.label(done)

    def leave(self) -> None:
        self.stmt("ret void")

    def call(self, function: str, *args: tuple[str, str | int]) -> None:
        """Calls a void function; args are (type, value)."""
        self.stmt(f"call void @{function}({', '.join(f'{ty} {v}' for ty, v in args)})")


def emit_in_register(f: Emitter, value: str) -> str:
    """A vector of memory's type in the type that is computed with."""
    element = f.element
    if element.memory == element.register:
        return value
    return f.emit(f"zext {element.memory_vector} {value} to {element.register_vector}")


def emit_in_memory(f: Emitter, value: str) -> str:
    """A vector that was computed, in memory's type."""
    element = f.element
    if element.memory == element.register:
        return value
    return f.emit(f"trunc {element.register_vector} {value} to {element.memory_vector}")


def emit_vector(f: Emitter, pointer: str, mask: str | None = None) -> str:
    """One vector from memory, in the type that is computed with."""
    if mask is None:
        return emit_in_register(f, f.load(f.element.memory_vector, pointer))
    return emit_in_register(f, f.masked_load(pointer, mask))


def emit_broadcast(f: Emitter, pointer: str) -> str:
    """One element from memory in all lanes, in the type that is computed with."""
    element = f.element
    value = f.load(element.memory, pointer)
    if element.memory != element.register:
        value = f.emit(f"zext {element.memory} {value} to {element.register}")
    return f.splat(value, element.register_vector)


def emit_add(f: Emitter, ty: str, a: str, b: str) -> str:
    return f.emit(f"{'fadd' if f.element.is_float else 'add'} {ty} {a}, {b}")


def _suffix(scalar: str) -> str:
    return {"float": "f32", "double": "f64"}.get(scalar, scalar)
