"""What every kernel and program must be, checked: for tests, and for kernels written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from staticgrad.ir.dim import DimLike, substitute, symbols
from staticgrad.ir.dtype import DType, bool_, int64, integer_range
from staticgrad.ir.errors import VerifyError

from .ir import (
    TILE,
    TILE_STRIDE,
    Buffer,
    Call,
    Check,
    Expr,
    Index,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Next,
    Reduce,
    Ref,
    Stmt,
    Store,
    Template,
)
from .key import kernel_key
from .order import reduce_lanes
from .parser import LOOP_KINDS, MODES
from .program import Program, Step
from .walk import children

LANES = frozenset(("vector", "parallel_vector", "columns"))
REDUCTIONS = frozenset(("sum", "prod", "max", "min", "any", "all"))


def verify_kernel(kernel: Kernel) -> None:
    """Raises `VerifyError`, naming the kernel and the statement, unless

    - buffers and sizes have names of their own; loads and stores name buffers, by their dtypes;
      nothing stores to an "in" buffer or loads from an "out" buffer
    - indices are made of sizes and of the variables of open loops, which are unique among them
    - names are bound before they are used, by the dtype they are used with
    - a parallel loop is outermost and the only one; inside a loop in lanes there are serial loops
      and reductions without lanes only
    - carries stand on serial loops, each set once by a `next` of its dtype in that loop's own body
    """
    _Verifier(kernel, None).run()


def verify_program(program: Program) -> None:
    """Raises `VerifyError` unless every kernel is well formed, is called with buffers and sizes
    that fit it and with the extent of its parallel loop; lifetimes cover all uses; no state is
    written before the commit point and nothing can fail after it."""
    seen: set[str] = set()
    commit = program.commit_step
    for i, step in enumerate(program.steps):
        key = kernel_key(step.kernel)
        if key not in seen:
            seen.add(key)
            verify_kernel(step.kernel)
        problem = _call_problem(program, i, step, commit)
        if problem:
            raise VerifyError(f"step {i}, {step.kernel.name}: {problem}")


def _call_problem(program: Program, at: int, step: Step, commit: int) -> str | None:
    kernel = step.kernel
    if len(step.buffers) != len(kernel.buffers) or len(step.sizes) != len(kernel.sizes):
        return (
            f"{len(step.buffers)} buffers and {len(step.sizes)} sizes for "
            f"{len(kernel.buffers)} and {len(kernel.sizes)} parameters"
        )
    for index, b in zip(step.buffers, kernel.buffers):
        if not 0 <= index < len(program.buffers):
            return f"there is no buffer {index}"
        held = program.buffers[index]
        memory = program.buffers[program.base(index)]
        # A temporary may take the memory of another of the same width.
        if held.dtype.bits != b.dtype.bits:
            return f"{b.name} is {b.dtype!s}, buffer {index} is {held.dtype!s}"
        if not memory.first <= at <= memory.last:
            return f"buffer {index} ({held.name}) lives in steps {memory.first} to {memory.last}"
        if b.mode not in ("out", "inout"):
            continue
        if memory.kind in ("input", "constant"):
            return f"writes the {memory.kind} {memory.name}"
        if memory.kind == "state" and at < commit:
            return f"writes the state {memory.name} before the commit point, step {commit}"
    if step.can_fail and at >= commit:
        return f"can fail after the commit point, step {commit}"
    values = dict(zip(kernel.sizes, step.sizes))
    for s in kernel.body:
        if isinstance(s, Loop) and s.kind.startswith("parallel"):
            extent = substitute(s.extent, values)
            if extent != step.extent:
                return f"its parallel loop runs to {extent}, the step's extent is {step.extent}"
    return None


@dataclass
class _Scope:
    """An open loop or reduction: its variables and the names that are bound in it."""

    names: dict[str, DType] = field(default_factory=dict)
    carries: dict[str, DType] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)  # carries that `next` has set


class _Verifier:
    def __init__(self, kernel: Kernel, outer: Kernel | None, role: str = "epilogue") -> None:
        """`role`: what the kernel is to `outer`, which calls it."""
        self.kernel, self.outer, self.role = kernel, outer, role
        self.buffers: dict[str, Buffer] = {}
        self.vars: set[str] = set()
        self.scopes = [_Scope()]
        self.loops: list[str] = []  # the kinds of the open loops, "reduce" among them
        self.place = ""
        self.parallel = 0
        # Of each expression the index variables and the names that it needs; `kept` keeps ids.
        self.needs: dict[int, tuple[frozenset[str], frozenset[tuple[str, DType]]]] = {}
        self.kept: list[Expr] = []

    def fail(self, what: str) -> NoReturn:
        where = f"{self.place}: " if self.place else ""
        raise VerifyError(f"kernel {self.kernel.name}: {where}{what}")

    def run(self) -> None:
        for b in self.kernel.buffers:
            if b.name in self.buffers:
                self.fail(f"two buffers are called {b.name!r}")
            if b.mode not in MODES:
                self.fail(f"the buffer {b.name} has the unknown mode {b.mode!r}")
            self.buffers[b.name] = b
        for s in self.kernel.sizes:
            self._open_var(s)
        # The share of a thread; in an epilogue the number of the matrix.
        self.vars.update(("begin", "end") if self.outer is None else ("batch",))
        if self.outer is not None:
            self._fits_outer(self.outer)
        self._body(self.kernel.body)

    def _fits_outer(self, outer: Kernel) -> None:
        """The buffers and sizes of an epilogue or a prologue are its caller's, by name."""
        theirs = {b.name: b.dtype for b in outer.buffers}
        for b in self.kernel.buffers:
            if b.name != TILE and theirs.get(b.name) != b.dtype:
                self.fail(f"the {self.role}'s buffer {b.name} is none of {outer.name}'s")
        for s in self.kernel.sizes:
            if s != TILE_STRIDE and s not in outer.sizes:
                self.fail(f"the {self.role}'s size {s} is none of {outer.name}'s")

    # --- values -----------------------------------------------------------------------------------

    def _dim(self, d: DimLike) -> None:
        for s in symbols(d):
            if s not in self.vars:
                self.fail(f"the variable {s!r} of the index {d} is not in scope")

    def _bound(self, name: str) -> DType | None:
        return next((s.names[name] for s in reversed(self.scopes) if name in s.names), None)

    def _expr(self, root: Expr, dtype: DType | None = None, what: str = "") -> None:
        """Checks an expression where it stands; its parts are looked at once for the kernel."""
        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            e, ready = stack.pop()
            if id(e) in self.needs:
                continue
            if not ready:
                stack.append((e, True))
                stack += [(c, False) for c in children(e)]
                continue
            self.kept.append(e)
            self.needs[id(e)] = self._needed(e)
        indices, names = self.needs[id(root)]
        for s in indices - self.vars:
            self.fail(f"the index variable {s!r} is not in scope")
        for name, wanted in names:
            found = self._bound(name)
            if found is None:
                self.fail(f"the name {name!r} is not bound")
            if found != wanted:
                self.fail(f"{name!r} is {found!s}, it is used as {wanted!s}")
        if dtype is not None and root.dtype != dtype:
            self.fail(f"{what} is {root.dtype!s}, expected {dtype!s}")

    def _needed(self, e: Expr) -> tuple[frozenset[str], frozenset[tuple[str, DType]]]:
        indices: set[str] = set()
        names: set[tuple[str, DType]] = set()
        for c in children(e):
            more_indices, more_names = self.needs[id(c)]
            indices |= more_indices
            names |= more_names
        match e:
            case Load():
                self._load(e)
                indices.update(symbols(e.index))
                for _, stride in e.gathers:
                    indices.update(symbols(stride))
            case Index():
                indices.update(symbols(e.index))
            case Ref():
                names.add((e.name, e.dtype))
            case Literal():
                if not _fits(e.value, e.dtype):
                    self.fail(f"the number {e.value!r} is no {e.dtype!s}")
            case Call():
                if not e.args:
                    self.fail(f"{e.op} has no operands")
        return frozenset(indices), frozenset(names)

    def _load(self, e: Load) -> None:
        buffer = self._buffer(e.buffer)
        if buffer.mode == "out":
            self.fail(f"a load from {e.buffer}, which is only written")
        if buffer.dtype != e.dtype:
            self.fail(f"{e.buffer} is {buffer.dtype!s}, it is loaded as {e.dtype!s}")
        for g, _ in e.gathers:
            if g.dtype != int64:
                self.fail(f"an index of {e.buffer} is {g.dtype!s}, expected int64")
        if e.guard is not None:
            if e.guard.dtype != bool_:
                self.fail(f"a guard is {e.guard.dtype!s}, expected bool")
            if not _fits(e.fill, e.dtype):
                self.fail(f"the number {e.fill!r} is no {e.dtype!s}")

    def _buffer(self, name: str) -> Buffer:
        found = self.buffers.get(name)
        if found is None:
            self.fail(f"unknown buffer {name!r}")
        return found

    # --- statements -------------------------------------------------------------------------------

    def _body(self, body: Iterable[Stmt]) -> None:
        for s in body:
            outside = self.place
            self._stmt(s)
            self.place = outside

    def _stmt(self, s: Stmt) -> None:
        match s:
            case Let():
                self.place = f"let {s.name}"
                self._expr(s.value)
                self._bind(s.name, s.value.dtype)
            case Store():
                self._store(s)
            case Check():
                self.place = f"check with code {s.code}"
                if self._in_lanes():
                    self.fail("a check inside a loop in lanes")
                self._expr(s.condition, bool_, "its condition")
                self._dim(s.element)
                self._expr(s.value, int64, "its value")
            case Next():
                self._next(s)
            case Loop():
                self._loop(s)
            case Reduce():
                self._reduce(s)
            case Template():
                self._template(s)

    def _bind(self, name: str, dtype: DType) -> None:
        if self._bound(name) is not None:
            self.fail(f"the name {name!r} is bound already")
        self.scopes[-1].names[name] = dtype

    def _store(self, s: Store) -> None:
        self.place = f"store to {s.buffer}[{s.index}]"
        buffer = self._buffer(s.buffer)
        if buffer.mode == "in":
            self.fail("the buffer is only read")
        self._dim(s.index)
        for g, stride in s.gathers:
            self._expr(g, int64, "an index")
            self._dim(stride)
        self._expr(s.value, buffer.dtype, "the value")
        if s.guard is not None:
            self._expr(s.guard, bool_, "the guard")

    def _next(self, s: Next) -> None:
        self.place = f"next {s.name}"
        scope = self.scopes[-1]
        if s.name not in scope.carries:
            self.fail("the loop around it has no such carry")
        if s.name in scope.settled:
            self.fail("the carry is set twice")
        scope.settled.add(s.name)
        self._expr(s.value, scope.carries[s.name], "the value")

    def _open_var(self, name: str) -> None:
        if name in self.vars:
            self.fail(f"the variable {name!r} is in use already")
        self.vars.add(name)

    def _in_lanes(self) -> bool:
        return bool(LANES.intersection(self.loops)) or "reduce lanes" in self.loops

    def _loop(self, s: Loop) -> None:
        self.place = f"{s.kind} loop over {s.var}"
        self._kind(s.kind)
        self._dim(s.extent)
        for c in s.carries:
            if s.kind != "serial":
                self.fail(f"it carries {c.name}; only a serial loop can")
            self._expr(c.init)
        carries = {c.name: c.init.dtype for c in s.carries}
        if len(carries) != len(s.carries):
            self.fail("two carries have one name")
        for name in carries:
            # A later loop may carry on under the same name.
            if self._bound(name) is not None and name not in self.scopes[-1].names:
                self.fail(f"the name {name!r} is bound already")
        self._open_var(s.var)
        self.scopes.append(_Scope(dict(carries), dict(carries)))
        self.loops.append(s.kind)
        self._body(s.body)
        self.loops.pop()
        closed = self.scopes.pop()
        self.vars.discard(s.var)
        missing = sorted(set(carries) - closed.settled)
        if missing:
            self.fail(f"the carries {', '.join(missing)} have no `next`")
        self.scopes[-1].names.update(carries)

    def _kind(self, kind: str) -> None:
        if kind not in LOOP_KINDS:
            self.fail("there is no such kind of loop")
        if kind in ("rows", "columns") and self.outer is None:
            self.fail("this kind of loop stands in an epilogue only, or in a prologue")
        if kind.startswith("parallel"):
            if self.loops or self.outer is not None:
                self.fail("a parallel loop has to be outermost")
            self.parallel += 1
            if self.parallel > 1:
                self.fail("a second parallel loop in one kernel")
        if kind == "rows" and self.loops:
            self.fail("the rows' loop has to be outermost")
        if kind in LANES and self._in_lanes():
            self.fail("a loop in lanes inside of another")

    def _reduce(self, s: Reduce) -> None:
        names = ", ".join(a.name for a in s.accumulators)
        self.place = f"reduction to {names}"
        if not s.accumulators or len(s.vars) != len(s.extents):
            self.fail("it has no accumulator, or as many variables as extents it has not")
        lanes = {reduce_lanes(a.value.dtype) for a in s.accumulators}
        if s.vector and (self._in_lanes() or len(lanes) != 1):
            self.fail("a reduction in lanes inside of lanes, or of mixed widths")
        for d in s.extents:
            self._dim(d)
        for v in s.vars:
            self._open_var(v)
        self.scopes.append(_Scope())
        self.loops.append("reduce lanes" if s.vector else "reduce")
        self._body(s.body)
        self.place = f"reduction to {names}"
        for a in s.accumulators:
            if a.op not in REDUCTIONS:
                self.fail(f"there is no reduction {a.op!r}")
            self._expr(a.value, bool_ if a.op in ("any", "all") else None, "the value")
        self.loops.pop()
        self.scopes.pop()
        self.vars.difference_update(s.vars)
        for a in s.accumulators:
            self._bind(a.name, a.value.dtype)

    def _template(self, s: Template) -> None:
        self.place = f"call of {s.name}"
        if self._in_lanes() or "reduce" in self.loops or self.outer is not None:
            self.fail("a shared function is called inside of lanes, a reduction or another")
        for b in s.buffers:
            self._buffer(b)
        for d in s.sizes:
            self._dim(d)
        for prologue in s.prologues:
            if prologue is not None:
                self._prologue(prologue)
        if s.epilogue is not None:
            _Verifier(s.epilogue, self.kernel).run()

    def _prologue(self, prologue: Kernel) -> None:
        """It stores to its tile, and to nothing else."""
        written = [b.name for b in prologue.buffers if b.mode != "in"]
        if written != [TILE] or TILE_STRIDE not in prologue.sizes:
            self.fail(
                f"a prologue writes to {', '.join(written)}, expected {TILE} by {TILE_STRIDE}"
            )
        _Verifier(prologue, self.kernel, "prologue").run()


def _fits(value: float | int | bool, dtype: DType) -> bool:
    """Whether a number of Python's can be of this dtype."""
    if dtype.is_float:
        return True
    if not math.isfinite(value) or int(value) != value:
        return False
    low, high = integer_range(dtype)
    return low <= value <= high
