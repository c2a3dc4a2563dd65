"""scalar_loops: a loop over a few numbers becomes one kernel, which keeps them in registers.

before -> after

    repeat _i0 in 0..1000 {                     step 0: loop_multiply_subtract(x -> x)
      step 0: multiply_subtract(x -> x)           for i0 in 0..1000 { .. } carries x
    }

A number that an iteration stores and the next one loads goes through memory, for some 8 cycles more
than the 12 of four operations on it: 1000 steps of gradient descent took 5.9 us, 3.5 in a register.
Small vectors are as many numbers; their kernels, and the calls of these, cost more than what they
compute: 1000 Runge-Kutta steps of three equations took 100 us and take 16, with their gradients 238
and 44. What is stored or read for each iteration stays in memory. A loop that may run for long
becomes one of pieces, between which it can be interrupted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from staticgrad.codegen.sharing import SCALAR_BYTES
from staticgrad.ir.dim import Dim, DimLike, dim_min, floor_div, substitute, symbols
from staticgrad.kernels.cost import COST
from staticgrad.kernels.ir import (
    Call,
    Carry,
    Expr,
    Index,
    Let,
    Literal,
    Load,
    Loop,
    Next,
    Ref,
    Stmt,
    Store,
)
from staticgrad.kernels.program import Item, Program, Repeat, Step, steps_of
from staticgrad.kernels.walk import accesses, children

from .draft import Draft

# Elements of what is computed one by one: as many as a vector of float64 has.
MOST_ELEMENTS = 8
# Operations of an iteration, by their cost: LLVM's time grows faster than the length of a block.
MOST_OPERATIONS = 1024
# The same between two times that a loop asks whether it is interrupted: a unit of cost takes 0.3 to
# 2 ns, so that is 1 to 8 ms.
PIECE_OPERATIONS = 1 << 22
MOST_NAME = 60  # letters


def with_scalar_loops(program: Program, items: Sequence[Item]) -> list[Item]:
    """The items with such loops as steps. What they leave unused has no lifetime afterwards."""
    uses = _uses(program, items)
    return [_mapped(program, item, uses, times=1) for item in items]


def _mapped(program: Program, item: Item, uses: dict[int, int], times: DimLike) -> Item:
    if isinstance(item, Step):
        return item

    def each(part: Sequence[Item], times: DimLike) -> tuple[Item, ...]:
        return tuple(_mapped(program, i, uses, times) for i in part)

    if not isinstance(item, Repeat):
        return replace(item, branches=tuple(each(b, times) for b in item.branches))
    if item.length is not None and all(isinstance(i, Step) for i in item.items):
        merged = _Merge(program, item, uses)
        return merged.item(times) if merged.fits() else item
    inside = times if item.length is None else times * item.length
    return replace(item, items=each(item.items, inside), test=each(item.test, inside))


def _uses(program: Program, items: Sequence[Item]) -> dict[int, int]:
    """How many steps use each memory, and regions that choose by it."""
    found: dict[int, int] = {}

    def use(index: int) -> None:
        base = program.base(index)
        found[base] = found.get(base, 0) + 1

    def visit(items: Sequence[Item]) -> None:
        for item in items:
            if isinstance(item, Step):
                for index in {program.base(i) for i in item.buffers}:
                    use(index)
            elif isinstance(item, Repeat):
                if item.predicate >= 0:
                    use(item.predicate)
                visit((*item.test, *item.items))
            else:
                use(item.index)
                for branch in item.branches:
                    visit(branch)

    visit(items)
    return found


class _Line(NamedTuple):
    """A statement of a step, for one element: `at` has the values of sizes and loop variables."""

    statement: Let | Store
    at: Mapping[str, DimLike]


class _Access(NamedTuple):
    """A load or store of the loop: of the element `at` of the memory `base`."""

    base: int
    at: DimLike
    is_plain: bool  # nothing known from data alone tells where, or whether
    is_store: bool

    @property
    def place(self) -> tuple[int, DimLike]:
        return self.base, self.at


Place = tuple[int, DimLike]


class _Merge:
    """One loop on its way to a kernel."""

    def __init__(self, program: Program, region: Repeat, uses: dict[int, int]) -> None:
        self.program, self.region, self.uses = program, region, uses
        self.steps = list(steps_of(region.items))
        self.lines: list[list[_Line]] = []  # of each step
        self.accesses: list[list[_Access]] = []
        self.draft = Draft(program)
        self.var = Dim.symbol("i0")
        self.held: set[int] = set()  # memory whose elements live in registers
        self.now: dict[Place, Expr] = {}
        self.lets = 0

    # --- what fits --------------------------------------------------------------------------------

    def fits(self) -> bool:
        room = MOST_OPERATIONS
        for step in self.steps:
            lines = self._lines_of(step, room)
            if lines is None:
                return False
            room -= len(lines)
            self.lines.append(lines)
            self.accesses.append([a for line in lines for a in self._accesses(step, line)])
        if self._operations() > MOST_OPERATIONS:
            return False
        found: dict[int, list[_Access]] = {}
        for access in (a for each in self.accesses for a in each):
            found.setdefault(access.base, []).append(access)
        for base, all_of in found.items():
            if all(a.is_plain and isinstance(a.at, int) for a in all_of):
                self.held.add(base)
            elif any(a.is_store for a in all_of) and not all(map(self._moves, all_of)):
                # A kernel loads what does not change with the iteration before the loop.
                return False
        return any(a.is_store for base in self.held for a in found[base])

    def _lines_of(self, step: Step, most: int) -> list[_Line] | None:
        """A step's statements, one after another; None where that is more than straight-line code
        over few elements, in memory that threads share."""
        if step.can_fail or any(self.program.buffers[i].per_thread for i in step.buffers):
            return None
        lines: list[_Line] = []
        stored: set[str] = set()

        def visit(body: Sequence[Stmt], at: Mapping[str, DimLike], room: int) -> bool:
            for s in body:
                if isinstance(s, Loop):
                    extent = substitute(s.extent, at)
                    if s.carries or not isinstance(extent, int) or extent > room:
                        return False
                    for n in range(extent):
                        if not visit(s.body, {**at, s.var: n}, room // extent):
                            return False
                elif isinstance(s, (Let, Store)) and len(lines) < most:
                    loaded = {e.buffer for e, _ in accesses([s]) if isinstance(e, Load)}
                    if loaded & stored:
                        return False  # what a step stores is not read before the next step
                    if isinstance(s, Store):
                        stored.add(s.buffer)
                    lines.append(_Line(s, at))
                else:
                    return False
            return True

        values = dict(zip(step.kernel.sizes, step.sizes))
        return lines if visit(step.kernel.body, values, MOST_ELEMENTS) else None

    def _accesses(self, step: Step, line: _Line) -> Iterator[_Access]:
        for touch, _ in accesses([line.statement]):
            assert isinstance(touch, (Load, Store))
            base, at = self.place(step, touch, line.at)
            allowed = _decided(touch.guard, line.at)
            if allowed is not False:
                plain = not touch.gathers and allowed is True
                yield _Access(base, at, plain, isinstance(touch, Store))

    def place(self, step: Step, touch: Load | Store, values: Mapping[str, DimLike]) -> Place:
        """Where an element of a step's buffer lies: the memory, and the index there."""
        number = [b.name for b in step.kernel.buffers].index(touch.buffer)
        at, index = step.buffers[number], substitute(touch.index, values)
        while self.program.buffers[at].kind == "slice":
            index, at = index + self.program.buffers[at].offset, self.program.buffers[at].base
        return at, index

    def _moves(self, access: _Access) -> bool:
        return self.region.symbol in symbols(access.at)

    def _operations(self) -> int:
        return sum(_operations(line.statement) for lines in self.lines for line in lines)

    # --- the kernel -------------------------------------------------------------------------------

    def item(self, times: DimLike) -> Item:
        length = self.region.length
        assert length is not None
        most = 1 << ((PIECE_OPERATIONS // max(1, self._operations())).bit_length() - 1)
        if isinstance(length, int) and length <= most:
            return self._step(0, length, times, length)
        piece = Dim.symbol(self.region.symbol)
        pieces = floor_div(length + (most - 1), most)
        count = dim_min(most, length - piece * most)
        step = self._step(piece * most, count, times * pieces, most)
        return replace(
            self.region, items=(step,), commit=1, length=pieces, reverse=False, by_rows=0,
            pieces=True,
        )  # fmt: skip

    def _step(self, begin: DimLike, count: DimLike, times: DimLike, most: int) -> Step:
        """`count` iterations from number `begin` on, `most` of them at once."""
        number = begin + self.var
        if self.region.reverse:
            assert self.region.length is not None
            number = self.region.length - 1 - number
        outer, carries = self._opened()
        body: list[Stmt] = []
        for step, lines in zip(self.steps, self.lines):
            body += self._statements(step, lines, {self.region.symbol: number})
        body += [Next(c.name, self.now[place]) for place, c in carries]
        held = tuple(c for _, c in carries)
        outer.append(Loop(str(self.var), count, tuple(body), "serial", held))
        for (base, at), c in carries:
            dtype = self.program.buffers[base].dtype
            outer.append(self.draft.store(base, at, Ref(c.name, dtype)))
        kernel, buffers, sizes = self.draft.finish(self._name(), outer)
        return Step(
            kernel, buffers, sizes, 1, tuple(n for s in self.steps for n in s.nodes),
            self.region.locs.union(*(s.locs for s in self.steps)),
            flops=sum((s.flops for s in self.steps), start=0) * most,
            bytes=max(self._memory_bytes(), SCALAR_BYTES) * most, times=times,
        )  # fmt: skip

    def _opened(self) -> tuple[list[Stmt], list[tuple[Place, Carry]]]:
        """What is loaded before the loop, and what it carries."""
        first: dict[Place, _Access] = {}
        written: set[Place] = set()
        for access in (a for each in self.accesses for a in each if a.base in self.held):
            first.setdefault(access.place, access)
            if access.is_store:
                written.add(access.place)
        outer: list[Stmt] = []
        carries: list[tuple[Place, Carry]] = []
        for place, access in first.items():
            base, at = place
            load = self.draft.load(base, at, self.program.buffers[base].dtype)
            name = f"x{len(self.now)}"
            if place not in written:
                outer.append(Let(name, load))
            elif access.is_store and self._is_local(base):
                continue  # set before it is read, and nothing else needs it
            else:
                carries.append((place, Carry(name, load)))
            self.now[place] = Ref(name, load.dtype)
        return outer, carries

    def _is_local(self, base: int) -> bool:
        """Whether memory is used in this loop alone."""
        inside = sum(base in {a.base for a in each} for each in self.accesses)
        return self.program.buffers[base].kind == "temp" and self.uses[base] == inside

    def _name(self) -> str:
        name = "_".join(dict.fromkeys(s.kernel.name for s in self.steps))
        if len(name) > MOST_NAME:
            name = f"{self.steps[0].kernel.name}_and_{len(self.steps) - 1}_more"
        return f"loop_{name}"

    def _statements(
        self, step: Step, lines: Sequence[_Line], number: dict[str, DimLike]
    ) -> Iterator[Stmt]:
        """What a step does: all that it loads is loaded before it stores."""
        names: dict[str, Expr] = {}
        stores: list[tuple[Place, Expr, Store]] = []
        for line in lines:
            reader = _Reader(self, step, line.at, number, names)
            s = line.statement
            let = Let(f"v{self.lets}", reader.expr(s.value))
            self.lets += 1
            yield let
            value: Expr = Ref(let.name, let.value.dtype)
            if isinstance(s, Let):
                names[s.name] = value
                continue
            base, at = self.place(step, s, line.at)
            gathers = tuple((reader.expr(g), reader.dim(d)) for g, d in s.gathers)
            made = Store("", substitute(at, number), value, gathers, reader.guard(s))
            if _decided(s.guard, line.at) is not False:
                stores.append(((base, at), value, made))
        for place, value, made in stores:
            if place[0] in self.held:
                self.now[place] = value
            else:
                yield replace(made, buffer=self.draft.buffer(place[0], "out"))

    def _memory_bytes(self) -> int:
        """What an iteration loads and stores."""
        found = {a.place for each in self.accesses for a in each if a.base not in self.held}
        return sum(self.program.buffers[base].dtype.itemsize_bytes for base, _ in found)


class _Reader:
    """Expressions of one line as those of the loop's kernel."""

    def __init__(
        self, merge: _Merge, step: Step, at: Mapping[str, DimLike], number: dict[str, DimLike],
        names: Mapping[str, Expr],
    ) -> None:  # fmt: skip
        self.merge, self.step, self.at, self.number, self.names = merge, step, at, number, names
        self.known: dict[int, Expr] = {}

    def dim(self, d: DimLike) -> DimLike:
        return substitute(substitute(d, self.at), self.number)

    def expr(self, e: Expr) -> Expr:
        if id(e) not in self.known:
            self.known[id(e)] = self._made(e)
        return self.known[id(e)]

    def guard(self, touch: Load | Store) -> Expr | None:
        if touch.guard is None or _decided(touch.guard, self.at):
            return None
        return self.expr(touch.guard)

    def _made(self, e: Expr) -> Expr:
        match e:
            case Load():
                merge = self.merge
                if _decided(e.guard, self.at) is False:
                    return Literal(e.fill, e.dtype)
                base, at = merge.place(self.step, e, self.at)
                if base in merge.held:
                    return merge.now[base, at]
                return replace(
                    e, buffer=merge.draft.buffer(base, "in"), index=substitute(at, self.number),
                    gathers=tuple((self.expr(g), self.dim(d)) for g, d in e.gathers),
                    guard=self.guard(e),
                )  # fmt: skip
            case Index():
                return Index(self.dim(e.index))
            case Call():
                return Call(e.op, tuple(map(self.expr, e.args)), e.dtype)
            case Ref():
                return self.names[e.name]
            case _:
                return e


_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "less": operator.lt, "less_equal": operator.le, "greater": operator.gt,
    "greater_equal": operator.ge, "equal": operator.eq, "not_equal": operator.ne,
}  # fmt: skip


def _decided(guard: Expr | None, at: Mapping[str, DimLike]) -> bool | None:
    """What a guard that compares indices is for one element, None if that is not known; where there
    is none, all is allowed."""
    if guard is None:
        return True
    if not isinstance(guard, Call):
        return None
    if guard.op in ("logical_and", "logical_or"):
        parts = [_decided(a, at) for a in guard.args]
        if None in parts:
            return None
        return all(parts) if guard.op == "logical_and" else any(parts)
    indices = [substitute(a.index, at) if isinstance(a, Index) else None for a in guard.args]
    if guard.op not in _COMPARED or not all(isinstance(i, int) for i in indices):
        return None
    return _COMPARED[guard.op](*indices)  # type: ignore[arg-type]


def _operations(s: Let | Store) -> int:
    seen: dict[int, Expr] = {}
    todo = [s.value]
    while todo:
        e = todo.pop()
        if id(e) not in seen:
            seen[id(e)] = e
            todo += children(e)
    return sum(COST.get(e.op, 1) for e in seen.values() if isinstance(e, Call))
