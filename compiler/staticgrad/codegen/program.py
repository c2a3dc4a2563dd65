"""A program -> one LLVM module: a function a distinct kernel, and the driver that calls them."""

from __future__ import annotations

from staticgrad.ir.dim import Dim, DimCall, DimLike
from staticgrad.kernels.key import kernel_key
from staticgrad.kernels.program import Program
from staticgrad_runtime.context import STATUS_OK, Word

from .builder import Function, Module
from .loops import emit_kernel
from .target import Target


def emit_program(program: Program, target: Target) -> tuple[str, list[str]]:
    """The module's text, and the function that each step calls.

    `i32 @sg_run(ptr context)` runs the steps in order; after the last that can fail it returns 1 if
    one did, so that no state has been written.
    """
    module = Module(target)
    functions: dict[str, str] = {}
    called: list[str] = []
    for step in program.steps:
        key = kernel_key(step.kernel)
        name = functions.get(key)
        if name is None:
            name = functions[key] = f"k{len(functions)}_{step.kernel.name}"
            emit_kernel(module, step.kernel, name)
        called.append(name)
    _emit_driver(module, program, called)
    return module.to_text(), called


def _emit_driver(module: Module, program: Program, called: list[str]) -> None:
    f = Function(module, "sg_run", [("ptr", "context")], "i32", linkage="")
    driver = _Driver(f, program)
    for i, (step, name) in enumerate(zip(program.steps, called)):
        if i == program.commit and any(s.can_fail for s in program.steps):
            driver.check_status()
        arguments = [f"ptr {driver.buffer(b)}" for b in step.buffers]
        arguments += [f"i64 {driver.size(d)}" for d in step.sizes]
        arguments += ["ptr %context", "i64 0", f"i64 {driver.size(step.extent)}"]
        f.stmt(f"call void @{name}({', '.join(arguments)})")
    if program.commit >= len(program.steps) and any(s.can_fail for s in program.steps):
        driver.check_status()
    f.stmt("ret i32 0")
    f.finish()


class _Driver:
    def __init__(self, f: Function, program: Program) -> None:
        self.f = f
        self.slots = {name: i for i, name in enumerate(program.dims)}
        self.table = self._word(Word.BUFFERS)
        self.dims = self._word(Word.DIMS) if program.dims else ""
        self._sizes: dict[object, str] = {}

    def _word(self, word: Word) -> str:
        place = self.f.emit(f"getelementptr i64, ptr %context, i64 {int(word)}")
        return self.f.emit(f"load ptr, ptr {place}")

    def buffer(self, index: int) -> str:
        place = self.f.emit(f"getelementptr ptr, ptr {self.table}, i64 {index}")
        return self.f.emit(f"load ptr, ptr {place}")

    def size(self, d: DimLike) -> str:
        if isinstance(d, int):
            return str(d)
        if d not in self._sizes:
            self._sizes[d] = self._compute(d)
        return self._sizes[d]

    def _compute(self, d: Dim) -> str:
        f = self.f
        total: str | None = None
        for monomial, factor in d.terms:
            product = str(factor) if factor != 1 or not monomial else None
            for atom in monomial:
                value = self._symbol(atom) if isinstance(atom, str) else self._call(atom)
                product = value if product is None else f.emit(f"mul i64 {product}, {value}")
            assert product is not None
            total = product if total is None else f.emit(f"add i64 {total}, {product}")
        assert total is not None
        return total

    def _symbol(self, name: str) -> str:
        if name not in self._sizes:
            place = self.f.emit(f"getelementptr i64, ptr {self.dims}, i64 {self.slots[name]}")
            self._sizes[name] = self.f.emit(f"load i64, ptr {place}")
        return self._sizes[name]

    def _call(self, atom: DimCall) -> str:
        a, b = self.size(atom.left), self.size(atom.right)
        if atom.op in ("max", "min"):
            return self.f.call_intrinsic(f"llvm.s{atom.op}", "i64", a, b)
        if not isinstance(atom.right, int):  # a size of 0 must not trap
            b = f.call_intrinsic("llvm.smax", "i64", b, "1")
        if atom.op == "%":
            return self.f.emit(f"srem i64 {a}, {b}")
        # Floor division of a numerator that may be negative: subtract one where bits were lost.
        quotient, rest = self.f.emit(f"sdiv i64 {a}, {b}"), self.f.emit(f"srem i64 {a}, {b}")
        below = self.f.emit(f"icmp slt i64 {rest}, 0")
        step = self.f.emit(f"sext i1 {below} to i64")
        return self.f.emit(f"add i64 {quotient}, {step}")

    def check_status(self) -> None:
        f = self.f
        place = f.emit(f"getelementptr i64, ptr %context, i64 {int(Word.STATUS)}")
        status = f.emit(f"load i64, ptr {place}")
        failed, fine = f.new_label("failed"), f.new_label("commit")
        f.branch_if(f.emit(f"icmp eq i64 {status}, {STATUS_OK}"), fine, failed)
        f.label(failed)
        f.stmt("ret i32 1")
        f.label(fine)
