"""Kernel IR -> one LLVM function: statements and loops (`values` has what they compute with).

Vector loops run whole vectors first and then, if the extent is not a known multiple, the same code
once more under a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from staticgrad.ir.dim import DimLike, product
from staticgrad.ir.dtype import DType
from staticgrad.kernels.ir import (
    Call,
    Check,
    Expr,
    Kernel,
    Let,
    Loop,
    Next,
    Reduce,
    Stmt,
    Store,
    Template,
)

from .builder import Function, Module, memory_type, register_type, vector
from .math_functions import FUNCTIONS
from .strided import is_pair, masked_store, store_pair
from .values import Lane, Scope, ValueEmitter, short_type

# Bands of columns: for reductions longer than this, of at most so many operations an element.
MOST_UNROLLED = 16
MOST_IN_BAND = 12
# A body with so many of these takes two vectors at a time: the prices and gradients of Black and
# Scholes (12 of them) 187 instead of 216 cycles a vector, for a third more code generation;
# tanh(xy+1) sigmoid(x-y) + exp(-x**2) y, of 3, only 50 instead of 52.
MANY_SLOW_CALLS = 8
_SLOW = {*FUNCTIONS, "divide", "reciprocal"} - {"round", "trunc", "floor", "ceil", "sign"}


def _size(e: Expr) -> int:
    """The operations in an expression."""
    return 1 + sum(map(_size, e.args)) if isinstance(e, Call) else 0


def _slow_calls(loop: Loop) -> int:
    """The divisions, roots and math functions in the loop's own body."""
    found: dict[int, Expr] = {}
    todo = [s.value for s in loop.body if isinstance(s, (Let, Store))]
    while todo:
        e = todo.pop()
        if isinstance(e, Call) and id(e) not in found:
            found[id(e)] = e
            todo += e.args
    return sum(e.op in _SLOW for e in found.values() if isinstance(e, Call))


def emit_kernel(module: Module, kernel: Kernel, name: str) -> None:
    """Defines `void @name(ptr buffers.., i64 sizes.., ptr context, i64 begin, i64 end)`.

    `[begin, end)` is the share of the outermost parallel loop; a kernel without one ignores it.
    """
    params = [("ptr", f"b_{b.name}") for b in kernel.buffers]
    params += [("i64", f"n_{s}") for s in kernel.sizes]
    params += [("ptr", "context"), ("i64", "begin"), ("i64", "end")]
    emitter = KernelEmitter(module, kernel, Function(module, name, params, holds=True))
    emitter.scopes[0].vars.update(begin="%begin", end="%end")
    emitter.run()


class KernelEmitter(ValueEmitter):
    """Emits the body of a kernel into a function whose parameters `%b_<buffer>` and `%n_<size>`
    are defined."""

    fences = False

    def run(self) -> None:
        self.f.open_list(self.scopes[0].prelude)
        self.body(self.kernel.body)
        if self.fences:
            self.module.intrinsic("llvm.x86.sse.sfence", "void")
            self.f.stmt("call void @llvm.x86.sse.sfence()")
        self.f.stmt("ret void")
        self.f.finish()

    # --- statements -------------------------------------------------------------------------------

    def body(self, statements: tuple[Stmt, ...]) -> None:
        paired: Store | None = None
        for i, s in enumerate(statements):
            match s:
                case Store() if s is paired:
                    pass
                case Let(name=name, value=value):
                    self.scopes[-1].names[name] = self.value(value)
                case Store():
                    # What neighbouring stores need is loaded before the first of them: a result may
                    # lie where an operand lay.
                    for following in statements[i + 1 :]:
                        if not isinstance(following, Store):
                            break
                        self.value(following.value)
                    paired = self._store_with(s, statements[i + 1] if statements[i + 1 :] else None)
                case Check():
                    self._check(s)
                case Next(name=name, value=value):
                    self._next(name, value)
                case Loop(kind="vector" | "parallel_vector" | "columns"):
                    self._vector_loop(s)
                case Loop():
                    self._serial_loop(s)
                case Reduce():
                    from .reduce import emit_reduce

                    emit_reduce(self, s)
                case Template():
                    from .templates import emit_template

                    emit_template(self, s)

    def _store_with(self, s: Store, following: Stmt | None) -> Store | None:
        """Stores, and where the next statement stores the other elements of every lane's two, does
        that too; -> that statement."""
        if not (isinstance(following, Store) and is_pair(self, s, following)):
            self._store(s)
            return None
        dtype, w = self.buffers[s.buffer].dtype, self.lanes
        first, second = (
            self._to_memory(self.spread(self.value(each.value)), dtype, w)
            for each in (s, following)
        )
        address = self._address(s.buffer, self.integer(s.index), dtype)
        store_pair(self, f"<{w} x {memory_type(dtype)}>", address, first, second)
        return following

    def _store(self, s: Store) -> None:
        value = self.value(s.value)
        gathers = [(self.value(g), stride) for g, stride in s.gathers]
        guard = self.value(s.guard) if s.guard is not None else None
        dtype = self.buffers[s.buffer].dtype
        mem = memory_type(dtype)
        if self.lanes == 1 or not (self._varies(s.index) or any(g.lanes > 1 for g, _ in gathers)):
            name = self._to_memory(value.name, dtype, 1)
            address = self._address(s.buffer, self._offset_one(s.index, gathers), dtype)
            self._store_one(name, mem, address, dtype, guard)
            return
        w = self.lanes
        ty = f"<{w} x {mem}>"
        name = self._to_memory(self.spread(value), dtype, w)
        mask = self._combined_mask(guard)
        factor, affine = self.coefficient(s.index)
        if affine and factor == 1 and all(g.lanes == 1 for g, _ in gathers):
            address = self._address(s.buffer, self._offset_one(s.index, gathers), dtype)
            if mask is None:
                self._store_vector(s.buffer, ty, name, address, dtype.itemsize_bytes)
                return
            masked_store(self.f, ty, name, address, mask)
            return
        pointers = self._pointers(s.buffer, dtype, s.index, gathers)
        intrinsic = f"llvm.masked.scatter.v{w}{short_type(dtype)}.v{w}p0"
        self.module.intrinsic(intrinsic, "void", ty, f"<{w} x ptr>", f"<{w} x i1>")
        self.f.stmt(
            f"call void @{intrinsic}({ty} {name}, <{w} x ptr> align {dtype.itemsize_bytes} "
            f"{pointers}, <{w} x i1> {mask or 'splat (i1 true)'})"
        )

    def _store_vector(self, buffer: str, ty: str, name: str, address: str, itemsize: int) -> None:
        """Past the caches where that is asked for and the address fits whole vectors: 64-byte
        lines, or parts of them that follow one another."""
        f, large = self.f, self.buffers[buffer].nontemporal
        plain = f"store {ty} {name}, ptr {address}, align {itemsize}"
        step = min(self.lanes * itemsize, 64)
        if large == 0 or step < 16:
            f.stmt(plain)
            return
        # Where it is not asked for at run time all bits are looked at, and no address is 0.
        bits = self.integer(large * step - 1)
        past, through, after = (f.new_label(hint) for hint in ("past", "through", "stored"))
        place = f.emit(f"ptrtoint ptr {address} to i64")
        f.branch_if(f.emit(f"icmp eq i64 {f.emit(f'and i64 {place}, {bits}')}, 0"), past, through)
        f.label(past)
        f.stmt(f"store {ty} {name}, ptr {address}, align {step}, !nontemporal !{{i32 1}}")
        f.branch(after)
        f.label(through)
        f.stmt(plain)
        f.branch(after)
        f.label(after)
        self.fences = self.module.target.is_x86  # there such stores keep no order among others

    def _store_one(
        self, name: str, mem: str, address: str, dtype: DType, guard: Lane | None
    ) -> None:
        if guard is None:
            self.f.stmt(f"store {mem} {name}, ptr {address}, align {dtype.itemsize_bytes}")
            return
        then, after = self.f.new_label("store"), self.f.new_label("stored")
        self.f.branch_if(guard.name, then, after)
        self.f.label(then)
        self.f.stmt(f"store {mem} {name}, ptr {address}, align {dtype.itemsize_bytes}")
        self.f.branch(after)
        self.f.label(after)

    def _to_memory(self, name: str, dtype: DType, lanes: int) -> str:
        if dtype.kind != "b":
            return name
        return self.f.emit(f"zext {vector('i1', lanes)} {name} to {vector('i8', lanes)}")

    def _check(self, s: Check) -> None:
        """Leaves the smallest (code, element) in the context's words 2 and 3, the value in 4."""
        condition = self.value(s.condition)
        if condition.lanes > 1:
            raise ValueError(f"{self.kernel.name}: a check inside a vector loop")
        element, value = self.integer(s.element), self.value(s.value)
        bad, after = self.f.new_label("bad"), self.f.new_label("checked")
        self.f.branch_if(condition.name, after, bad)
        self.f.label(bad)
        words = [self.f.emit(f"getelementptr i64, ptr %context, i64 {w}") for w in (2, 3, 4)]
        code = self.f.emit(f"load i64, ptr {words[0]}")
        known = self.f.emit(f"load i64, ptr {words[1]}")
        lower = self.f.emit(f"icmp slt i64 {s.code}, {code}")
        same = self.f.emit(f"icmp eq i64 {s.code}, {code}")
        earlier = self.f.emit(f"icmp slt i64 {element}, {known}")
        first = self.f.emit(f"and i1 {same}, {earlier}")
        wins = self.f.emit(f"or i1 {lower}, {first}")
        record = self.f.new_label("record")
        self.f.branch_if(wins, record, after)
        self.f.label(record)
        for word, content in zip(words, (str(s.code), element, value.name)):
            self.f.stmt(f"store i64 {content}, ptr {word}")
        self.f.branch(after)
        self.f.label(after)

    # --- loops ------------------------------------------------------------------------------------

    def _bounds(self, loop: Loop) -> tuple[str, str]:
        if loop.kind.startswith("parallel"):
            return "%begin", "%end"
        if loop.kind == "rows":
            return "%r0", "%r1"
        if loop.kind == "columns":
            return "%c0", "%c1"
        return "0", self.integer(loop.extent)

    def open_loop(
        self, var: str, begin: str, end: str, step: int | str, carried: list[tuple[str, str]]
    ) -> OpenLoop:
        """Starts `for (i = begin; i < end; i += step)` with loop-carried values (type, init)."""
        f = self.f
        scope = Scope([])
        f.open_list(scope.prelude)
        head, inside, after = f.new_label("loop"), f.new_label("body"), f.new_label("done")
        entry = f.block
        f.branch(head)
        f.label(head)
        i, following = f.reserve(), f.reserve()
        phis = [f.reserve() for _ in carried]
        # The latch's label is only known when the loop is closed: the phis are written then.
        slot: list[str] = []
        f.open_list(slot)
        go = f.emit(f"icmp slt i64 {i}, {end}")
        f.branch_if(go, inside, after)
        f.label(inside)
        scope.vars[var] = i
        self.scopes.append(scope)
        return OpenLoop(i, following, begin, step, carried, phis, entry, head, after, slot)

    def close_loop(self, loop: OpenLoop, values: list[str]) -> None:
        f = self.f
        latch = f.block
        loop.slot.append(f"  {loop.i} = phi i64 [{loop.begin}, %{loop.entry}], "
                         f"[{loop.following}, %{latch}]")  # fmt: skip
        for phi, (ty, init), value in zip(loop.phis, loop.carried, values):
            loop.slot.append(f"  {phi} = phi {ty} [{init}, %{loop.entry}], [{value}, %{latch}]")
        f.assign(loop.following, f"add i64 {loop.i}, {loop.step}")
        f.branch(loop.head)
        f.label(loop.after)
        self.scopes.pop()

    def _serial_loop(self, loop: Loop) -> None:
        begin, end = self._bounds(loop)
        inits = [self.value(c.init) for c in loop.carries]
        if loop.extent == 0:  # of no elements stores need not even have a place of their own
            self.scopes[-1].names.update(zip((c.name for c in loop.carries), inits))
            return
        lanes = self.lanes if self.vector_var is not None else 1
        carried = []
        for lane in inits:
            name = self.spread(lane) if lanes > 1 else lane.name
            carried.append((vector(register_type(lane.dtype), lanes), name))
        opened = self.open_loop(loop.var, begin, end, 1, carried)
        scope = self.scopes[-1]
        for c, lane, phi in zip(loop.carries, inits, opened.phis):
            scope.names[c.name] = Lane(phi, lane.dtype, lanes, self.level)
            scope.names["next " + c.name] = scope.names[c.name]
        self.body(loop.body)
        values = []
        for c in loop.carries:
            final = scope.names["next " + c.name]
            values.append(self.spread(final) if lanes > 1 else final.name)
        self.close_loop(opened, values)
        for c, lane, phi in zip(loop.carries, inits, opened.phis):
            self.scopes[-1].names[c.name] = Lane(phi, lane.dtype, lanes, self.level)

    def _next(self, name: str, value: Expr) -> None:
        key = "next " + name
        for scope in reversed(self.scopes):
            if key in scope.names:
                # The value may have been computed at an outer level or in this body: either way
                # it dominates the latch.
                scope.names[key] = self.value(value)
                return
        raise KeyError(f"{self.kernel.name}: no loop carries {name!r}")

    def _vector_loop(self, loop: Loop) -> None:
        if self.vector_var is not None:
            raise ValueError(f"{self.kernel.name}: a vector loop inside a vector loop")
        begin, end = self._bounds(loop)
        width = self.vector_width(loop)
        band = self.band(loop, [s for s in loop.body if isinstance(s, Reduce)], width)
        if band > width:
            self._banded_loop(loop, begin, end, width, band)
            return
        self.run_vector(loop.var, begin, end, loop.extent, width, lambda: self.body(loop.body),
                        whole=loop.kind == "vector" and begin == "0")  # fmt: skip

    def _banded_loop(self, loop: Loop, begin: str, end: str, width: int, band: int) -> None:
        """The columns of a reduction, in bands of whole cache lines side by side; then what is left
        of less than a band, all under masks: that spares a third of the code.

        A vector alone takes one line of each row, and the next row lies in another page: 4096 x
        1024 floats took 1600 us, as long as PyTorch, where memory gives them in 230.
        """
        f = self.f
        count = f.emit(f"sub i64 {end}, {begin}")
        stop = f.emit(f"add i64 {begin}, {f.emit(f'and i64 {count}, {-band}')}")
        self.lanes, self.vector_var = band, loop.var
        bands = self.open_loop(loop.var, begin, stop, band, [])
        self.body(loop.body)
        self.close_loop(bands, [])
        self.lanes = width
        rest = self.open_loop(loop.var, stop, end, width, [])
        self.mask = self.tail_mask(rest.i, end, width)
        self.body(loop.body)
        self.close_loop(rest, [])
        self.lanes, self.vector_var, self.mask = 1, None, None

    def band(self, loop: Loop, reductions: list[Reduce], width: int) -> int:
        """Lanes of a band: as many as leave registers for three values of each, where little else
        is computed; `width` where bands are not worth it: few rows, or short ones, which lie near
        each other. Of twice as many LLVM made its code in 17 ms, not 9, for at most 6 % of the
        time of a sum that long."""
        if len(reductions) != 1 or reductions[0].vector:
            return width
        (r,) = reductions
        values = [a.value for a in r.accumulators]
        values += [s.value for s in loop.body if isinstance(s, Store)]
        if r.body or len(r.accumulators) > 2 or sum(map(_size, values)) > MOST_IN_BAND:
            return width
        band = width * (self.module.target.vector_registers // (8 * len(r.accumulators)))
        rows = product(r.extents)
        few = isinstance(rows, int) and rows <= MOST_UNROLLED
        return width if few or (isinstance(loop.extent, int) and loop.extent < 2 * band) else band

    def run_vector(
        self, var: str, begin: str, end: str, extent: DimLike, width: int,
        body: Callable[[], None], whole: bool,
    ) -> None:  # fmt: skip
        """Whole vectors, then the masked tail (left out where the extent is a known multiple)."""
        f = self.f
        known = extent if isinstance(extent, int) and whole else None
        if known is not None and known <= 0:
            return
        start = begin
        self.lanes, self.vector_var = width, var
        if known is None or known >= width:
            count = f.emit(f"sub i64 {end}, {begin}")
            whole_count = f.emit(f"and i64 {count}, {-width}")
            stop = f.emit(f"add i64 {begin}, {whole_count}")
            opened = self.open_loop(var, begin, stop, width, [])
            body()
            self.close_loop(opened, [])
            start = stop
        if known is None or known % width:
            self._tail(var, start, end, width, body, skip=known is None)
        self.lanes, self.vector_var, self.mask = 1, None, None

    def _tail(
        self, var: str, start: str, end: str, width: int, body: Callable[[], None], skip: bool
    ) -> None:
        f = self.f
        scope = Scope([])
        f.open_list(scope.prelude)
        after = f.new_label("whole")
        if skip:
            inside = f.new_label("tail")
            f.branch_if(f.emit(f"icmp slt i64 {start}, {end}"), inside, after)
            f.label(inside)
        scope.vars[var] = start
        self.scopes.append(scope)
        self.mask = self.tail_mask(start, end, width)
        body()
        self.mask = None
        self.scopes.pop()
        if skip:
            f.branch(after)
            f.label(after)

    def tail_mask(self, start: str, end: str, width: int) -> str:
        f = self.f
        ty = vector("i32", width)
        left = f.emit(f"trunc i64 {f.emit(f'sub i64 {end}, {start}')} to i32")
        iota = "<" + ", ".join(f"i32 {i}" for i in range(width)) + ">"
        return f.emit(f"icmp slt {ty} {iota}, {f.splat(left, ty)}")

    def vector_width(self, loop: Loop) -> int:
        """Lanes of a loop: one register of its widest float, or of its widest integer."""
        sizes = [b.dtype.itemsize_bytes for b in self.kernel.buffers if b.dtype.is_float]
        if not sizes:
            sizes = [b.dtype.itemsize_bytes for b in self.kernel.buffers] or [4]
        lanes = self.module.target.lanes(max(sizes))
        # Lanes that a column reduction adds one after another hide no latency: two registers do.
        # Nor does one iteration overlap with the next where it is as long as what the processor
        # looks ahead (320 instructions).
        if any(isinstance(s, Reduce) for s in loop.body) or _slow_calls(loop) >= MANY_SLOW_CALLS:
            return 2 * lanes
        return max(lanes, 4)


class OpenLoop(NamedTuple):
    i: str
    following: str
    begin: str
    step: int | str
    carried: list[tuple[str, str]]
    phis: list[str]
    entry: str
    head: str
    after: str
    slot: list[str]
