"""LLVM IR as text: a module that holds each function once, and a builder for one function.

Text, not llvmlite's object builder: printing the final form is several times faster than building
objects that are printed afterwards, and what is read in a dump is what was written here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from .target import Target

INT_BITS = {"bool": 8, "int8": 8, "int16": 16, "int32": 32, "int64": 64,
            "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}  # fmt: skip


def memory_type(dtype: str) -> str:
    """The LLVM scalar type that holds one element in memory (a bool is a byte, 0 or 1)."""
    if dtype == "float32":
        return "float"
    if dtype == "float64":
        return "double"
    return f"i{INT_BITS[dtype]}"


def register_type(dtype: str) -> str:
    """The LLVM scalar type of one element in a register (a bool is one bit)."""
    return "i1" if dtype == "bool" else memory_type(dtype)


def vector(scalar: str, width: int) -> str:
    """`<width x scalar>`, and the scalar itself for width 1."""
    return scalar if width == 1 else f"<{width} x {scalar}>"


def element(ty: str) -> str:
    """The scalar type of a scalar or vector type: `<16 x float>` -> `float`."""
    return ty[ty.index(" x ") + 3 : -1] if ty.startswith("<") else ty


def width(ty: str) -> int:
    """The number of lanes of a scalar or vector type."""
    return int(ty[1 : ty.index(" x ")]) if ty.startswith("<") else 1


def mangled(ty: str) -> str:
    """The suffix of an overloaded intrinsic: `<16 x float>` -> `v16f32`, `double` -> `f64`."""
    scalar = {"float": "f32", "double": "f64"}.get(element(ty), element(ty))
    return scalar if not ty.startswith("<") else f"v{width(ty)}{scalar}"


def float_bits(value: float) -> str:
    """A floating literal as LLVM reads it back exactly: the bits of the double, in hex."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def literal(value: float | int | bool, scalar: str) -> str:
    """A scalar constant of an LLVM scalar type. A float's value is rounded to float32 first."""
    if scalar == "float":
        return float_bits(round_float32(float(value)))
    if scalar == "double":
        return float_bits(float(value))
    if scalar == "i1":
        return "true" if value else "false"
    return str(int(value))


def round_float32(value: float) -> float:
    """`value` rounded to the nearest float32, as a double; overflow gives infinity."""
    if value != value or value in (float("inf"), float("-inf")):
        return value
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def constant(value: float | int | bool, ty: str) -> str:
    """A constant operand of a scalar or vector type; a vector gets the value in every lane."""
    text = literal(value, element(ty))
    return f"splat ({element(ty)} {text})" if ty.startswith("<") else text


class Module:
    """One LLVM module under construction. Functions and declarations are kept once, by name."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._functions: dict[str, str] = {}
        self._order: list[str] = []  # their names
        self._declarations: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of functions, by their text without the name

    @property
    def functions(self) -> Mapping[str, str]:
        """The texts of the functions that are finished, by name and in their order."""
        return self._functions

    def functions_after(self, count: int) -> list[tuple[str, str]]:
        """Names and texts of the functions that were finished after the first `count`."""
        return [(name, self._functions[name]) for name in self._order[count:]]

    @property
    def declarations(self) -> list[str]:
        """What stands before the functions."""
        return [f'target triple = "{self.target.triple}"', *self._declarations.values()]

    def has(self, name: str) -> bool:
        return name in self._functions

    def define(self, name: str, text: str) -> None:
        if name in self._functions:
            raise ValueError(f"function {name} is defined twice")
        self._functions[name] = text
        self._order.append(name)

    def same(self, name: str, nameless: str) -> str:
        """The name of the function that was first told with this text, else `name`."""
        return self._names.setdefault(nameless, name)

    def declare(self, name: str, text: str) -> None:
        """Adds a declaration or a global, e.g. `declare float @llvm.fma.f32(float, ...)`."""
        self._declarations.setdefault(name, text)

    def intrinsic(self, name: str, result: str, *params: str) -> None:
        """Declares an intrinsic or an external function by its full name, once."""
        self.declare(name, f"declare {result} @{name}({', '.join(params)})")

    def to_text(self) -> str:
        return "\n".join((*self.declarations, *self._functions.values())) + "\n"


Lines = Any  # a line, or a list of Lines: a place that was reserved


def _flatten(lines: list[Any], flat: list[str]) -> None:
    for line in lines:
        if isinstance(line, str):
            flat.append(line)
        else:
            _flatten(line, flat)


class Function:
    """Builds one LLVM function as text, in final form (no pass runs after it).

    `emit` appends an instruction that has a result and returns the result's name; `stmt` appends
    one that has none. Blocks are opened with `label`; every block must end in a terminator.

    With `once` a function that is the same as a finished one but for its name is left out, and
    `name` is then that one's.
    """

    def __init__(
        self, module: Module, name: str, params: list[tuple[str, str]], result: str = "void",
        linkage: str = "internal", attributes: str = "nounwind", once: bool = False,
        holds: bool = False,
    ) -> None:  # fmt: skip
        self.module = module
        self.name = name
        self._once = once
        self._head = (
            f"define {linkage + ' ' if linkage else ''}{result} @{name}("
            + ", ".join(f"{ty} %{p}" for ty, p in params)
            + f") {attributes} {{"
        )
        self._holds = holds
        self._held: dict[tuple[str, str], str] = {}
        self._entry: list[str] = []
        self._all: list[Lines] = [self._entry]
        self._lines = self._all
        self._next = 0
        self._labels = 0
        self.block = "entry"  # the label of the block being filled: what a phi names

    def emit(self, text: str) -> str:
        name = f"%t{self._next}"
        self._next += 1
        self._lines.append(f"  {name} = {text}")
        return name

    def held(self, value: float | int | bool, ty: str) -> str:
        """A constant operand, as `constant`. With `holds`, vectors of floats (but 0, which costs
        nothing) become values of the entry block.

        LLVM takes constants out of an inner loop only while it thinks registers free: the loop of
        softmax's exp loaded 12 anew for every two vectors, 26.6 instead of 22.2 cycles a vector.
        """
        text = constant(value, ty)
        if not (self._holds and value and width(ty) >= 4 and element(ty) in ("float", "double")):
            return text
        name = self._held.get((text, ty))
        if name is None:
            name = self._held[text, ty] = f"%k{len(self._held)}"
            self._entry.append(f"  {name} = freeze {ty} {text}")
        return name

    def reserve(self) -> str:
        """A fresh value name to be defined later (the back edge of a phi) with `assign`."""
        name = f"%t{self._next}"
        self._next += 1
        return name

    def assign(self, name: str, text: str) -> None:
        self._lines.append(f"  {name} = {text}")

    def stmt(self, text: str) -> None:
        self._lines.append(f"  {text}")

    def new_label(self, hint: str = "b") -> str:
        self._labels += 1
        return f"{hint}{self._labels}"

    def label(self, name: str) -> None:
        self._lines.append(f"{name}:")
        self.block = name

    def branch(self, target: str) -> None:
        self.stmt(f"br label %{target}")

    def branch_if(self, condition: str, then: str, otherwise: str) -> None:
        self.stmt(f"br i1 {condition}, label %{then}, label %{otherwise}")

    def call_intrinsic(self, base: str, ty: str, *args: str) -> str:
        """A call of an intrinsic overloaded on one type, all of whose operands have it:
        `call_intrinsic("llvm.fma", "<16 x float>", a, b, c)`."""
        name = f"{base}.{mangled(ty)}"
        self.module.intrinsic(name, ty, *[ty] * len(args))
        return self.emit(f"call {ty} @{name}({', '.join(f'{ty} {a}' for a in args)})")

    def splat(self, scalar: str, ty: str) -> str:
        """Broadcasts a scalar value to every lane of vector type `ty`."""
        if not ty.startswith("<"):
            return scalar
        one = self.emit(f"insertelement {ty} poison, {element(ty)} {scalar}, i32 0")
        return self.emit(
            f"shufflevector {ty} {one}, {ty} poison, <{width(ty)} x i32> zeroinitializer"
        )

    def to_text(self) -> str:
        flat: list[str] = [self._head, "entry:"]
        _flatten(self._all, flat)
        flat.append("}")
        return "\n".join(flat)

    def open_list(self, lines: list[Any]) -> None:
        """Reserves a place here, to which code can be added later (see `redirect`)."""
        self._lines.append(lines)

    def redirect(self, lines: list[Any]) -> list[Any]:
        """Sends what is emitted next to a place opened before; no block may start or end there.
        Returns what `restore` needs."""
        saved = self._lines
        self._lines = lines
        return saved

    def restore(self, saved: list[Any]) -> None:
        self._lines = saved

    def finish(self) -> None:
        """Adds the finished function to the module."""
        text = self.to_text()
        if self._once:
            known = self.module.same(self.name, text.replace(f"@{self.name}(", "@(", 1))
            if known != self.name:
                self.name = known
                return
        self.module.define(self.name, text)
