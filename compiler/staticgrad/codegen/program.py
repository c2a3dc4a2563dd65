"""A program -> one LLVM module: a function a distinct kernel, and the driver that calls them."""

from __future__ import annotations

from staticgrad_runtime.arena import ALIGN_BYTES
from staticgrad_runtime.context import RUN_SYMBOL, STATUS_OK, Word

from staticgrad.ir.dim import Dim, DimCall, DimLike
from staticgrad.kernels.key import kernel_key
from staticgrad.kernels.program import Program, Step

from .builder import Function, Module
from .loops import emit_kernel
from .sharing import Sharing, share, share_unit
from .target import Target

SHARE = "sg_share"
SPLIT = "sg_split"


def emit_program(program: Program, target: Target) -> tuple[str, list[str]]:
    """The module's text, and the function that each step calls.

    `i32 @sg_run(ptr context)` runs the steps in order; after the last that can fail it returns 1 if
    one did, so that no state has been written. Where the context asks for several threads, all of
    them go through `@sg_share`, each with its part of every shared step.
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
    sharing = share(program)
    if any(sharing.shared):
        _emit_split(module)
    _emit_share(module, program, sharing, called)
    _emit_run(module)
    return module.to_text(), called


def _emit_run(module: Module) -> None:
    f = Function(module, RUN_SYMBOL, [("ptr", "context")], "i32", linkage="")
    threads = _load_word(f, Word.THREADS, "i64")
    f.branch_if(f.emit(f"icmp sgt i64 {threads}, 1"), "several", "one")
    f.label("several")
    dispatch = _load_word(f, Word.DISPATCH, "ptr")
    f.stmt(f"ret i32 {f.emit(f'tail call i32 {dispatch}(ptr %context, ptr @{SHARE})')}")
    f.label("one")
    f.stmt(f"ret i32 {f.emit(f'tail call i32 @{SHARE}(ptr %context, i64 0, i64 1)')}")
    f.finish()


def _load_word(f: Function, word: Word, ty: str) -> str:
    place = f.emit(f"getelementptr i64, ptr %context, i64 {int(word)}")
    return f.emit(f"load {ty}, ptr {place}")


def _emit_split(module: Module) -> None:
    """`{begin, end} @sg_split(extent, tid, n, unit)`: as even parts as multiples of `unit` allow.
    They depend on nothing else, so what a thread wrote in one step is near it in the next."""
    params = [("i64", name) for name in ("extent", "tid", "n", "unit")]
    f = Function(module, SPLIT, params, "{ i64, i64 }")
    f.branch_if(f.emit("icmp eq i64 %n, 1"), "whole", "part")
    f.label("whole")
    f.stmt(f"ret {{ i64, i64 }} {_pair(f, '0', '%extent')}")
    f.label("part")
    up = f.emit(f"add i64 %extent, {f.emit('sub i64 %unit, 1')}")
    units = f.emit(f"udiv i64 {up}, %unit")
    ends = []
    for which in ("%tid", f.emit("add i64 %tid, 1")):
        at = f.emit(f"udiv i64 {f.emit(f'mul i64 {units}, {which}')}, %n")
        at = f.emit(f"mul i64 {at}, %unit")
        ends.append(f.call_intrinsic("llvm.smin", "i64", at, "%extent"))
    f.stmt(f"ret {{ i64, i64 }} {_pair(f, *ends)}")
    f.finish()


def _pair(f: Function, first: str, second: str) -> str:
    one = f.emit(f"insertvalue {{ i64, i64 }} poison, i64 {first}, 0")
    return f.emit(f"insertvalue {{ i64, i64 }} {one}, i64 {second}, 1")


def _emit_share(module: Module, program: Program, sharing: Sharing, called: list[str]) -> None:
    """`i32 @sg_share(ptr context, i64 tid, i64 n)`: thread `tid`'s part of all steps."""
    f = Function(module, SHARE, [("ptr", "context"), ("i64", "tid"), ("i64", "n")], "i32")
    driver = _Driver(f, program)
    can_fail = any(s.can_fail for s in program.steps)
    for i, (step, name) in enumerate(zip(program.steps, called)):
        if i == program.commit and can_fail:
            driver.check_status()
        elif sharing.barrier[i]:
            driver.barrier()
        if sharing.shared[i]:
            driver.shared_step(step, name)
        else:
            driver.lone_step(step, name)
    if program.commit >= len(program.steps) and can_fail:
        driver.check_status()
    f.stmt("ret i32 0")
    f.finish()


class _Driver:
    """Emits the steps. Values that more than one step uses are emitted outside of branches."""

    def __init__(self, f: Function, program: Program) -> None:
        self.f = f
        self.program = program
        self.slots = {name: i for i, name in enumerate(program.dims)}
        self.table = _load_word(f, Word.BUFFERS, "ptr")
        self.dims = _load_word(f, Word.DIMS, "ptr") if program.dims else ""
        self.first = f.emit("icmp eq i64 %tid, 0")
        self.alone = f.emit("icmp eq i64 %n, 1")
        self._sizes: dict[object, str] = {}

    # Steps

    def shared_step(self, step: Step, name: str) -> None:
        """Every thread does a part, unless it is empty."""
        f = self.f
        extent = self.size(step.extent)
        part = f.emit(
            f"call {{ i64, i64 }} @{SPLIT}(i64 {extent}, i64 %tid, i64 %n, "
            f"i64 {share_unit(step.kernel)})"
        )
        begin, end = (f.emit(f"extractvalue {{ i64, i64 }} {part}, {i}") for i in (0, 1))
        self._guarded(f.emit(f"icmp slt i64 {begin}, {end}"), step, name, begin, end)

    def lone_step(self, step: Step, name: str) -> None:
        """Thread 0 does all of it."""
        self._guarded(self.first, step, name, "0", self.size(step.extent))

    def _guarded(self, condition: str, step: Step, name: str, begin: str, end: str) -> None:
        f = self.f
        sizes = [self.size(d) for d in step.sizes]
        owned = {b: self._own_bytes(b) for b in step.buffers if self.program.buffers[b].per_thread}
        inside, after = f.new_label("step"), f.new_label("next")
        f.branch_if(condition, inside, after)
        f.label(inside)
        arguments = [f"ptr {self._buffer(b, owned.get(b))}" for b in step.buffers]
        arguments += [f"i64 {size}" for size in sizes]
        arguments += ["ptr %context", f"i64 {begin}", f"i64 {end}"]
        f.stmt(f"call void @{name}({', '.join(arguments)})")
        f.branch(after)
        f.label(after)

    def _buffer(self, index: int, own_bytes: str | None) -> str:
        place = self.f.emit(f"getelementptr ptr, ptr {self.table}, i64 {index}")
        base = self.f.emit(f"load ptr, ptr {place}")
        if own_bytes is None:
            return base
        offset = self.f.emit(f"mul i64 %tid, {own_bytes}")
        return self.f.emit(f"getelementptr i8, ptr {base}, i64 {offset}")

    def _own_bytes(self, index: int) -> str:
        """The distance between two threads' memory: whole alignments, as the runtime plans it."""
        size = self.program.buffers[index].size_bytes
        if isinstance(size, int):
            return str(-(-size // ALIGN_BYTES) * ALIGN_BYTES)
        up = self.f.emit(f"add i64 {self.size(size)}, {ALIGN_BYTES - 1}")
        return self.f.emit(f"and i64 {up}, {-ALIGN_BYTES}")

    # Meeting

    def barrier(self) -> None:
        f = self.f
        meet, after = f.new_label("meet"), f.new_label("met")
        f.branch_if(self.alone, after, meet)
        f.label(meet)
        self._meet("0")
        f.branch(after)
        f.label(after)

    def _meet(self, vote: str) -> str:
        function = _load_word(self.f, Word.BARRIER, "ptr")
        return self.f.emit(f"call i64 {function}(ptr %context, i64 %n, i64 {vote})")

    def check_status(self) -> None:
        """Returns 1, on every thread, if any of them has recorded a failure."""
        f = self.f
        status = _load_word(f, Word.STATUS, "i64")
        mine = f.emit(f"zext i1 {f.emit(f'icmp ne i64 {status}, {STATUS_OK}')} to i64")
        meet, decide = f.new_label("meet"), f.new_label("decide")
        before = f.block
        f.branch_if(self.alone, decide, meet)
        f.label(meet)
        all_votes = self._meet(mine)
        f.branch(decide)
        f.label(decide)
        votes = f.emit(f"phi i64 [ {mine}, %{before} ], [ {all_votes}, %{meet} ]")
        failed, fine = f.new_label("failed"), f.new_label("commit")
        f.branch_if(f.emit(f"icmp eq i64 {votes}, 0"), fine, failed)
        f.label(failed)
        f.stmt("ret i32 1")
        f.label(fine)

    # Sizes

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
            b = self.f.call_intrinsic("llvm.smax", "i64", b, "1")
        if atom.op == "%":
            return self.f.emit(f"srem i64 {a}, {b}")
        # Floor division of a numerator that may be negative: subtract one where bits were lost.
        quotient, rest = self.f.emit(f"sdiv i64 {a}, {b}"), self.f.emit(f"srem i64 {a}, {b}")
        below = self.f.emit(f"icmp slt i64 {rest}, 0")
        step = self.f.emit(f"sext i1 {below} to i64")
        return self.f.emit(f"add i64 {quotient}, {step}")
