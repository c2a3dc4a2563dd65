"""Structured loops and integer arithmetic on top of the LLVM text builder, for convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .builder import Function, Module, element, mangled, memory_type, vector, width
from .target import Target

Operand = str | int  # a value's name or an integer constant

ITEMSIZE = {"float32": 4, "float64": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
            "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The register tile of one dtype: `rows` x (`vectors` * `lanes`) accumulators.

    8 x 3 vectors fill 24 of 32 registers and divide the channel counts that networks use (a
    14 x 2 tile spends 42 rows on 32 channels, 28 on 16); 4 x 3 vectors fill 12 of 16.
    """

    dtype: str
    scalar: str
    itemsize: int
    lanes: int
    rows: int
    vectors: int = 3

    @property
    def vector(self) -> str:
        return vector(self.scalar, self.lanes)

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    @property
    def heights(self) -> tuple[int, ...]:
        """The heights for which tiles exist: full, half, one (depthwise, a single channel)."""
        return (self.rows, self.rows // 2, 1)


def tile_of(target: Target, dtype: str) -> Shape:
    """The register tile of `dtype` on `target`."""
    if dtype not in ITEMSIZE:
        raise ValueError(f"convolution of {dtype}: expected one of {', '.join(ITEMSIZE)}")
    itemsize = ITEMSIZE[dtype]
    rows = 8 if target.vector_registers >= 32 else 4
    return Shape(dtype, memory_type(dtype), itemsize, target.lanes(itemsize), rows)


class Code(Function):
    """A function under construction with loops, conditions and i64 arithmetic.

    Parameters are named on creation and used as `%name`.
    """

    def __init__(self, module: Module, name: str, params: str) -> None:
        """`params` is e.g. `"i64 k, ptr a"`."""
        pairs = [tuple(p.split()) for p in params.split(", ")]
        super().__init__(module, name, [(ty, p) for ty, p in pairs])

    def _binary(self, op: str, a: Operand, b: Operand) -> str:
        return self.emit(f"{op} i64 {a}, {b}")

    def add(self, a: Operand, b: Operand) -> str:
        return self._binary("add", a, b)

    def sub(self, a: Operand, b: Operand) -> str:
        return self._binary("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> str:
        return self._binary("mul", a, b)

    def div(self, a: Operand, b: Operand) -> str:
        """The quotient of two non-negative values."""
        return self._binary("udiv", a, b)

    def rem(self, a: Operand, b: Operand) -> str:
        """The remainder of two non-negative values."""
        return self._binary("urem", a, b)

    def ceil_div(self, a: Operand, b: Operand) -> str:
        return self.div(self.add(a, self.sub(b, 1)), b)

    def min(self, a: Operand, b: Operand) -> str:
        return self.call_intrinsic("llvm.smin", "i64", str(a), str(b))

    def max(self, a: Operand, b: Operand) -> str:
        return self.call_intrinsic("llvm.smax", "i64", str(a), str(b))

    def compare(self, predicate: str, a: Operand, b: Operand) -> str:
        return self._binary(f"icmp {predicate}", a, b)

    def both(self, a: str, b: str) -> str:
        return self.emit(f"and i1 {a}, {b}")

    def select(self, condition: str, a: Operand, b: Operand) -> str:
        return self.emit(f"select i1 {condition}, i64 {a}, i64 {b}")

    def at(self, pointer: str, index: Operand, scalar: str = "i64") -> str:
        """The address of element `index`."""
        return self.emit(f"getelementptr {scalar}, ptr {pointer}, i64 {index}")

    def load(self, ty: str, pointer: str) -> str:
        """Loads a scalar or a vector that is aligned as its element."""
        return self.emit(f"load {ty}, ptr {pointer}, align {_align(ty)}")

    def store(self, ty: str, value: Operand, pointer: str) -> None:
        self.stmt(f"store {ty} {value}, ptr {pointer}, align {_align(ty)}")

    def load_slot(self, block: str, slot: int) -> str:
        return self.load("i64", self.at(block, slot))

    def store_slot(self, block: str, slot: int, value: Operand) -> None:
        self.store("i64", value, self.at(block, slot))

    def masked_load(self, ty: str, pointer: str, mask: str) -> str:
        """The lanes of `mask`; zero in the others, whose memory is not touched."""
        name = f"llvm.masked.load.{mangled(ty)}.p0"
        lanes = f"<{width(ty)} x i1>"
        self.module.intrinsic(name, ty, "ptr", lanes, ty)
        return self.emit(
            f"call {ty} @{name}(ptr align {_align(ty)} {pointer}, {lanes} {mask}, "
            f"{ty} zeroinitializer)"
        )

    def masked_store(self, ty: str, value: str, pointer: str, mask: str) -> None:
        name = f"llvm.masked.store.{mangled(ty)}.p0"
        lanes = f"<{width(ty)} x i1>"
        self.module.intrinsic(name, "void", ty, "ptr", lanes)
        self.stmt(
            f"call void @{name}({ty} {value}, ptr align {_align(ty)} {pointer}, {lanes} {mask})"
        )

    def lane_range(self, lanes: int, low: Operand, high: Operand, first: int = 0) -> str:
        """The mask of the lanes l for which low <= first + l < high."""
        ty = f"<{lanes} x i32>"
        iota = f"<{', '.join(f'i32 {first + i}' for i in range(lanes))}>"
        splats = [self.splat(self.emit(f"trunc i64 {v} to i32"), ty) for v in (low, high)]
        above = self.emit(f"icmp sge {ty} {iota}, {splats[0]}")
        below = self.emit(f"icmp slt {ty} {iota}, {splats[1]}")
        return self.emit(f"and <{lanes} x i1> {above}, {below}")

    def add_elements(self, ty: str, a: str, b: str) -> str:
        op = "fadd" if element(ty) in ("float", "double") else "add"
        return self.emit(f"{op} {ty} {a}, {b}")

    def multiply_add(self, ty: str, a: str, b: str, c: str) -> str:
        """a * b + c: fused for floats, wrapping for integers."""
        if element(ty) in ("float", "double"):
            return self.call_intrinsic("llvm.fma", ty, a, b, c)
        return self.emit(f"add {ty} {self.emit(f'mul {ty} {a}, {b}')}, {c}")

    @contextmanager
    def loop(self, low: Operand, high: Operand, step: Operand = 1) -> Iterator[str]:
        """`for i in range(low, high, step)`; yields i."""
        with self.loop_carrying(low, high, [], step) as (i, _, _):
            yield i

    @contextmanager
    def loop_carrying(
        self, low: Operand, high: Operand, start: list[tuple[str, str]], step: Operand = 1
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """A loop with values that live in registers from turn to turn.

        `start` lists their types and first values; yields (i, values, following): append the
        values of the next turn to `following`. The test stands at the foot: one branch a turn.
        """
        body, latch, done = (self.new_label(h) for h in ("loop", "latch", "done"))
        before = self.block
        self.branch_if(self.compare("slt", low, high), body, done)
        self.label(body)
        i, following_i = self.reserve(), self.reserve()
        self.assign(i, f"phi i64 [{low}, %{before}], [{following_i}, %{latch}]")
        values = [self.reserve() for _ in start]
        joints = [self.reserve() for _ in start]
        for name, joint, (ty, first) in zip(values, joints, start):
            self.assign(name, f"phi {ty} [{first}, %{before}], [{joint}, %{latch}]")
        following: list[str] = []
        yield i, values, following
        end = self.block
        self.branch(latch)
        self.label(latch)
        for joint, value, (ty, _) in zip(joints, following, start):
            self.assign(joint, f"phi {ty} [{value}, %{end}]")
        self.assign(following_i, f"add i64 {i}, {step}")
        self.branch_if(self.compare("slt", following_i, high), body, done)
        self.label(done)
        self.after_loop = [
            self.emit(f"phi {ty} [{first}, %{before}], [{joint}, %{latch}]")
            for joint, (ty, first) in zip(joints, start)
        ]

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """`if condition:`"""
        then, after = self.new_label("then"), self.new_label("after")
        self.branch_if(condition, then, after)
        self.label(then)
        yield
        self.branch(after)
        self.label(after)

    @contextmanager
    def choose(self, condition: str) -> Iterator[Choice]:
        """`if condition: ... else: ...`, the second part after `otherwise()`."""
        choice = Choice(self, self.new_label("then"), self.new_label("else"), self.new_label())
        self.branch_if(condition, choice.then, choice.other)
        self.label(choice.then)
        yield choice
        self.branch(choice.after)
        self.label(choice.after)

    def define(self) -> str:
        """Ends the function, adds it to the module and returns its name."""
        self.stmt("ret void")
        self.finish()
        return self.name


@dataclass
class Choice:
    """The two branches of `Code.choose`."""

    code: Code
    then: str
    other: str
    after: str

    def otherwise(self) -> None:
        self.code.branch(self.after)
        self.code.label(self.other)


def _align(ty: str) -> int:
    scalar = element(ty)
    return {"float": 4, "double": 8, "ptr": 8}.get(scalar) or int(scalar[1:]) // 8
