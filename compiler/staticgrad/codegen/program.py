"""A program -> one LLVM module: a function a distinct kernel, and the driver that calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from staticgrad_runtime.arena import ALIGN_BYTES
from staticgrad_runtime.context import PACK_SYMBOL, RUN_SYMBOL, STATUS_OK, Word
from staticgrad_runtime.interrupt import INTERRUPTED

from staticgrad.ir.dim import Dim, DimCall, DimLike
from staticgrad.kernels.ir import Loop, Stmt, Template
from staticgrad.kernels.key import kernel_key
from staticgrad.kernels.program import Choose, Item, Program, Repeat, Step, parts, steps_of

from .builder import Function, Module, memory_type
from .loops import emit_kernel
from .sharing import Sharing, can_stop, region_ns, share, share_unit
from .target import Target
from .templates import require_function

SHARE = "sg_share"
POLL = "sg_poll"
SPLIT = "sg_split"

# A loop asks for interrupts about this often; an iteration takes at least some 10 ns.
ASK_NS = 50_000_000
LEAST_ITERATION_NS = 10
MOST_UNASKED = 1 << 20


def emit_program(
    program: Program, target: Target, finished: Callable[[Module], object] = lambda module: None,
    driver: type[Driver] | None = None,
) -> tuple[str, list[str]]:  # fmt: skip
    """The module's text, and the function that each step calls.

    `i32 @sg_run(ptr context)` runs the steps in order; after the last that can fail it returns 1 if
    one did, so that no state has been written. Where the context asks for several threads, all of
    them go through `@sg_share`, each with its part of every shared step. Programs with packed
    copies of state have `void @sg_pack(ptr context, i64 which)` to make one. `finished` is called
    with the module when the functions that programs share stand, and after each kernel. `driver`
    emits the calls of the steps (None: `Driver`).
    """
    module = Module(target)
    steps = (*program.steps, *(pack.step for pack in program.packs))
    for step in steps:
        for template in _templates(step.kernel.body):
            require_function(module, template)
    finished(module)
    functions: dict[str, str] = {}
    called: list[str] = []
    for step in steps:
        key = kernel_key(step.kernel)
        name = functions.get(key)
        if name is None:
            name = functions[key] = f"k{len(functions)}_{step.kernel.name}"
            emit_kernel(module, step.kernel, name)
            finished(module)
        called.append(name)
    called, packing = called[: len(program.steps)], called[len(program.steps) :]
    if program.packs:
        _emit_pack(module, program, packing)
    sharing = share(program)
    if any(sharing.shared):
        _emit_split(module)
    _emit_share(module, program, sharing, called, driver or Driver)
    _emit_run(module)
    return module.to_text(), called


def _templates(body: Sequence[Stmt]) -> Iterator[Template]:
    for s in body:
        if isinstance(s, Template):
            yield s
        elif isinstance(s, Loop):
            yield from _templates(s.body)


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


def _emit_pack(module: Module, program: Program, called: Sequence[str]) -> None:
    """`void @sg_pack(ptr context, i64 which)`: all of one of the program's `packs`."""
    f = Function(module, PACK_SYMBOL, [("ptr", "context"), ("i64", "which")], linkage="")
    table = _load_word(f, Word.BUFFERS, "ptr")
    labels = [f.new_label("pack") for _ in called]
    cases = " ".join(f"i64 {i}, label %{label}" for i, label in enumerate(labels[:-1]))
    f.stmt(f"switch i64 %which, label %{labels[-1]} [ {cases} ]")
    for pack, name, label in zip(program.packs, called, labels):
        f.label(label)
        step, words = pack.step, []
        for index in (pack.state, pack.buffer):
            place = f.emit(f"getelementptr ptr, ptr {table}, i64 {index}")
            words.append(f"ptr {f.emit(f'load ptr, ptr {place}')}")
        words += [f"i64 {size}" for size in step.sizes]
        words += ["ptr %context", "i64 0", f"i64 {step.extent}"]
        f.stmt(f"call void @{name}({', '.join(words)})")
        f.stmt("ret void")
    f.finish()


def _emit_poll(module: Module) -> None:
    """`i64 @sg_poll(ptr context)`: 1 where an interrupt has arrived, which it records as status."""
    f = Function(module, POLL, [("ptr", "context")], "i64")
    ensure = _load_word(f, Word.GIL_ENSURE, "ptr")
    f.branch_if(f.emit(f"icmp eq ptr {ensure}, null"), "none", "ask")
    f.label("ask")
    state = f.emit(f"call i32 {ensure}()")
    occurred = f.emit(f"call i32 {_load_word(f, Word.INTERRUPT_OCCURRED, 'ptr')}()")
    f.stmt(f"call void {_load_word(f, Word.GIL_RELEASE, 'ptr')}(i32 {state})")
    f.branch_if(f.emit(f"icmp eq i32 {occurred}, 0"), "none", "stop")
    f.label("stop")
    place = f.emit(f"getelementptr i64, ptr %context, i64 {int(Word.STATUS)}")
    f.stmt(f"store i64 {INTERRUPTED}, ptr {place}")
    f.stmt("ret i64 1")
    f.label("none")
    f.stmt("ret i64 0")
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


def _emit_share(
    module: Module, program: Program, sharing: Sharing, called: list[str], driver: type[Driver]
) -> None:
    """`i32 @sg_share(ptr context, i64 tid, i64 n)`: thread `tid`'s part of all steps."""
    f = Function(module, SHARE, [("ptr", "context"), ("i64", "tid"), ("i64", "n")], "i32")
    driver(f, program, sharing, called).program_items()
    f.stmt("ret i32 0")
    f.finish()


class Driver:
    """Emits the steps. Values that more than one step uses are emitted outside of branches."""

    def __init__(self, f: Function, program: Program, sharing: Sharing, called: list[str]) -> None:
        self.f = f
        self.program, self.sharing, self.called = program, sharing, called
        self.slots = {name: i for i, name in enumerate(program.dims)}
        self.table = _load_word(f, Word.BUFFERS, "ptr")
        self.dims = _load_word(f, Word.DIMS, "ptr") if program.dims else ""
        self.first = f.emit("icmp eq i64 %tid, 0")
        self.alone = f.emit("icmp eq i64 %n, 1")  # whether no thread waits for another
        self.can_fail = can_stop(program)
        self.at = 0  # the number of the next step
        self._sizes: dict[object, str] = {}

    # Items

    def program_items(self) -> None:
        program = self.program
        for i, item in enumerate(program.items):
            at_commit = i == program.commit and self.can_fail
            if at_commit:
                self.check_status()
            self.item(item, met=at_commit)
        if program.commit >= len(program.items) and self.can_fail:
            self.check_status()

    def items(self, items: Sequence[Item]) -> None:
        for item in items:
            self.item(item)

    def item(self, item: Item, *, met: bool = False) -> None:
        begins = isinstance(item, Step) or item.number in self.sharing.alone
        if begins and not met and self.sharing.barrier[self.at]:
            self.barrier()
        if isinstance(item, Step):
            name, shared = self.called[self.at], self.sharing.shared[self.at]
            self.at += 1
            if shared:
                self.shared_step(item, name)
            else:
                self.lone_step(item, name)
        elif item.number in self.sharing.alone:
            self._when(self.first, lambda: self._region(item, alone=True))
        else:
            self._region(item, alone=False)

    def _when(self, condition: str, emit: Callable[[], None]) -> None:
        """What `emit` emits runs where the condition holds; its sizes are its own."""
        f, known = self.f, dict(self._sizes)
        inside, after = f.new_label("region"), f.new_label("next")
        f.branch_if(condition, inside, after)
        f.label(inside)
        emit()
        f.branch(after)
        f.label(after)
        self._sizes = known

    def _part(self, items: Sequence[Item], alone: bool) -> None:
        """A list of items of a region."""
        if not alone:
            self.items(items)
            return
        for item in items:
            if isinstance(item, Step):
                name = self.called[self.at]
                self.at += 1
                self.alone_step(item, name)
            else:
                self._region(item, alone=True)

    def _region(self, region: Repeat | Choose, alone: bool) -> None:
        known = dict(self._sizes)
        if isinstance(region, Choose):
            self._choose(region, alone)
        else:
            self._repeat(region, alone)
        if not alone:
            self.barrier()
        self._sizes = known

    def _repeat(self, region: Repeat, alone: bool) -> None:
        """`for i in 0..length { items }`, or `for i in 0.. { test; while (*predicate) items }`"""
        f = self.f
        length = None if region.length is None else self.size(region.length)
        head, body, after = f.new_label("repeat"), f.new_label("iteration"), f.new_label("done")
        latch = f.new_label("again")
        asked = self._asks(region)
        count = f"%count.{head}"
        lone = self.alone
        if region.by_rows != 0:
            self.barrier()
            kept = f.emit(f"icmp ne i64 {self.size(region.by_rows)}, 0")
            free = f.emit(f"or i1 {lone}, {kept}")  # of waiting for others
        before = f.block
        f.branch(head)
        f.label(head)
        f.stmt(f"{count} = phi i64 [ 0, %{before} ], [ {count}.next, %{latch} ]")
        if length is not None:
            f.branch_if(f.emit(f"icmp slt i64 {count}, {length}"), body, after)
            f.label(body)
        number = count
        if region.reverse and length is not None:
            number = f.emit(f"sub i64 {f.emit(f'sub i64 {length}, 1')}, {count}")
        self._sizes[region.symbol] = number
        if region.by_rows != 0:
            vote = self._ask(count, asked, meet=True) if asked else ""
            self.alone = free
            if region.by_rows != 1:
                self.barrier()
        else:
            vote = self._vote(region, count, asked)
            vote = vote if alone else self.barrier(vote)
        if vote:
            going_on = f.new_label("going")
            f.branch_if(f.emit(f"icmp eq i64 {vote}, 0"), going_on, after)
            f.label(going_on)
        if length is None:
            self._part(region.test, alone)
            f.branch_if(self._going(region.predicate, alone), body, after)
            f.label(body)
        known = dict(self._sizes)
        self._part(region.items, alone)
        self._sizes, self.alone = known, lone
        f.branch(latch)
        f.label(latch)
        f.stmt(f"{count}.next = add i64 {count}, 1")
        f.branch(head)
        f.label(after)

    def _going(self, predicate: int, alone: bool) -> str:
        """Whether a loop's condition holds."""
        if not alone:
            self.barrier()
        value = self.f.emit(f"load i8, ptr {self._buffer(predicate, None)}")
        return self.f.emit(f"icmp ne i8 {value}, 0")

    def _choose(self, region: Choose, alone: bool) -> None:
        f = self.f
        if not alone:
            self.barrier()
        held = self.program.buffers[region.index].dtype
        ty = memory_type(str(held))
        value = f.emit(f"load {ty}, ptr {self._buffer(region.index, None)}")
        last = len(region.branches) - 1
        if ty == "i8":
            value = f.emit(f"zext i8 {value} to i64")
        value = f.call_intrinsic("llvm.smax", "i64", value, "0")
        value = f.call_intrinsic("llvm.smin", "i64", value, str(last))
        labels = [f.new_label("branch") for _ in region.branches]
        after = f.new_label("chosen")
        cases = " ".join(f"i64 {k}, label %{label}" for k, label in enumerate(labels[:-1]))
        f.stmt(f"switch i64 {value}, label %{labels[-1]} [ {cases} ]")
        for items, label in zip(region.branches, labels):
            known = dict(self._sizes)
            f.label(label)
            self._part(items, alone)
            f.branch(after)
            self._sizes = known
        f.label(after)

    # Steps

    def shared_step(self, step: Step, name: str) -> None:
        """Every thread does a part, unless it is empty."""
        f = self.f
        extent, unit = self.size(step.extent), self.size(share_unit(step))
        part = f.emit(f"call {{ i64, i64 }} @{SPLIT}(i64 {extent}, i64 %tid, i64 %n, i64 {unit})")
        begin, end = (f.emit(f"extractvalue {{ i64, i64 }} {part}, {i}") for i in (0, 1))
        self._guarded(f.emit(f"icmp slt i64 {begin}, {end}"), step, name, begin, end)

    def lone_step(self, step: Step, name: str) -> None:
        """Thread 0 does all of it."""
        self._guarded(self.first, step, name, "0", self.size(step.extent))

    def alone_step(self, step: Step, name: str) -> None:
        """All of it, in a region that only thread 0 goes through."""
        self._run(step, name, "0", self.size(step.extent))

    def _guarded(self, condition: str, step: Step, name: str, begin: str, end: str) -> None:
        f = self.f
        for d in (*step.sizes, *self._offsets(step)):
            self.size(d)
        owned = [self._own_bytes(b) for b in step.buffers if self.program.buffers[b].per_thread]
        inside, after = f.new_label("step"), f.new_label("next")
        f.branch_if(condition, inside, after)
        f.label(inside)
        self._run(step, name, begin, end, owned)
        f.branch(after)
        f.label(after)

    def _run(
        self, step: Step, name: str, begin: str, end: str, owned: list[str] | None = None
    ) -> None:
        if owned is None:
            owned = [self._own_bytes(b) for b in step.buffers if self.program.buffers[b].per_thread]
        sizes = [self.size(d) for d in step.sizes]
        own = iter(owned)
        arguments = [
            f"ptr {self._buffer(b, next(own) if self.program.buffers[b].per_thread else None)}"
            for b in step.buffers
        ]
        arguments += [f"i64 {size}" for size in sizes]
        arguments += ["ptr %context", f"i64 {begin}", f"i64 {end}"]
        self.f.stmt(f"call void @{name}({', '.join(arguments)})")

    def _offsets(self, step: Step) -> list[DimLike]:
        """The places of slices in what they are part of."""
        found = []
        for index in step.buffers:
            while self.program.buffers[index].kind == "slice":
                b = self.program.buffers[index]
                found.append(b.offset * b.dtype.itemsize_bytes)
                index = b.base
        return found

    def _buffer(self, index: int, own_bytes: str | None) -> str:
        b = self.program.buffers[index]
        if b.kind == "slice":
            base = self._buffer(b.base, own_bytes)
            offset = self.size(b.offset * b.dtype.itemsize_bytes)
            return self.f.emit(f"getelementptr i8, ptr {base}, i64 {offset}")
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

    def barrier(self, vote: str = "") -> str:
        """All threads meet. With a vote, the or of all votes."""
        f = self.f
        meet, after = f.new_label("meet"), f.new_label("met")
        before = f.block
        f.branch_if(self.alone, after, meet)
        f.label(meet)
        votes = self._meet(vote or "0")
        f.branch(after)
        f.label(after)
        return f.emit(f"phi i64 [ {vote}, %{before} ], [ {votes}, %{meet} ]") if vote else ""

    # Interrupts

    def _asks(self, region: Repeat) -> int:
        """Every how many iterations (a power of two) a loop asks whether it is interrupted: about
        every 50 ms by its cost; 0 for one that ends before that."""
        if region.pieces:
            return 1
        ns = region_ns(region)
        if region.length is not None:
            whole = ns * region.length
            if isinstance(whole, int) and whole < ASK_NS:
                return 0
        each = ns if isinstance(ns, int) else LEAST_ITERATION_NS
        often = max(1, ASK_NS // max(each, LEAST_ITERATION_NS))
        return 1 << (min(often, MOST_UNASKED).bit_length() - 1)

    def _vote(self, region: Repeat, count: str, asked: int) -> str:
        """Not 0 on a thread that wants the loop to end: a step of an earlier iteration has failed,
        or an interrupt has arrived. Empty where neither can be."""
        f = self.f
        vote = ""
        if any(s.can_fail for part in parts(region) for s in steps_of(part)):
            status = _load_word(f, Word.STATUS, "i64")
            vote = f.emit(f"zext i1 {f.emit(f'icmp ne i64 {status}, {STATUS_OK}')} to i64")
        if asked:
            found = self._ask(count, asked)
            vote = f.emit(f"or i64 {vote}, {found}") if vote else found
        return vote

    def _ask(self, count: str, asked: int, *, meet: bool = False) -> str:
        """1 where this iteration asks and an interrupt has arrived, else 0: on thread 0, or with
        `meet` on all, who meet where the iteration asks."""
        f = self.f
        place = f.emit(f"and i64 {count}, {asked - 1}")
        now = f.emit(f"icmp eq i64 {place}, {asked - 1}")
        if not meet:
            return self._polled(f.emit(f"and i1 {now}, {self.first}"))
        together, after = f.new_label("together"), f.new_label("decided")
        before = f.block
        f.branch_if(now, together, after)
        f.label(together)
        votes = self.barrier(self._polled(self.first))
        last = f.block
        f.branch(after)
        f.label(after)
        return f.emit(f"phi i64 [ 0, %{before} ], [ {votes}, %{last} ]")

    def _polled(self, condition: str) -> str:
        """1 where the condition holds and an interrupt has arrived, else 0."""
        f = self.f
        if not f.module.has(POLL):
            _emit_poll(f.module)
        ask, after = f.new_label("ask"), f.new_label("asked")
        before = f.block
        f.branch_if(condition, ask, after)
        f.label(ask)
        found = f.emit(f"call i64 @{POLL}(ptr %context)")
        f.branch(after)
        f.label(after)
        return f.emit(f"phi i64 [ 0, %{before} ], [ {found}, %{ask} ]")

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
        if atom not in self._sizes:
            self._sizes[atom] = self._computed_call(atom)
        return self._sizes[atom]

    def _computed_call(self, atom: DimCall) -> str:
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
