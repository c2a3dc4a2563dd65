"""scalar_loops: a loop over a few numbers becomes one kernel, which keeps them in registers.

before -> after

    repeat _i0 in 0..1000 {                     step 0: loop_multiply_subtract(x -> x)
      step 0: multiply_subtract(x -> x)           for i0 in 0..1000 { .. } carries x
    }

A number that an iteration stores and the next one loads goes through memory, for some 8 cycles more
than the 12 of four operations on it: 1000 steps of gradient descent took 5.9 us, 3.5 in a register.
What is stored or read for each iteration stays in memory. A loop that may run for long becomes one
of pieces, between which it can be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from staticgrad.codegen.sharing import SCALAR_BYTES
from staticgrad.ir.dim import Dim, DimLike, dim_min, floor_div, substitute, symbols
from staticgrad.kernels.ir import Call, Carry, Expr, Index, Let, Load, Loop, Next, Ref, Stmt, Store
from staticgrad.kernels.program import Item, Program, Repeat, Step, steps_of
from staticgrad.kernels.walk import accesses, children

from .draft import Draft

# Operations of an iteration: LLVM's time grows faster than the length of a block.
MOST_OPERATIONS = 512
# Operations between two times that a loop can be interrupted: some 20 ms, if each takes 20 ns.
PIECE_OPERATIONS = 1 << 20
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


class _Access(NamedTuple):
    """A load or store of the loop: of the element `at` of the memory `base`."""

    base: int
    at: DimLike
    is_plain: bool  # nothing known from data alone tells where, or whether
    is_store: bool


class _Merge:
    """One loop on its way to a kernel."""

    def __init__(self, program: Program, region: Repeat, uses: dict[int, int]) -> None:
        self.program, self.region, self.uses = program, region, uses
        self.steps = list(steps_of(region.items))
        self.draft = Draft(program)
        self.var = Dim.symbol("i0")
        self.held: set[int] = set()  # numbers that live in registers
        self.now: dict[int, Expr] = {}
        self.lets = 0

    # --- what fits --------------------------------------------------------------------------------

    def fits(self) -> bool:
        found: dict[int, list[_Access]] = {}
        if not all(map(self._is_simple, self.steps)):
            return False
        for step in self.steps:
            for access in self._accesses(step):
                found.setdefault(access.base, []).append(access)
        if sum(map(_operations, self.steps)) > MOST_OPERATIONS:
            return False
        for base, all_of in found.items():
            if self._is_number(base, all_of):
                self.held.add(base)
            elif any(a.is_store for a in all_of) and not all(map(self._moves, all_of)):
                # A kernel loads what does not change with the iteration before the loop.
                return False
        return any(a.is_store for base in self.held for a in found[base])

    def _is_simple(self, step: Step) -> bool:
        """Straight-line code over elements of memory that threads share."""
        stored: set[str] = set()
        for s in step.kernel.body:
            if not isinstance(s, (Let, Store)):
                return False
            loaded = {e.buffer for e in _loads(s)}
            if isinstance(s, Store):
                stored.add(s.buffer)
            elif loaded & stored:
                return False
        buffers = [self.program.buffers[i] for i in step.buffers]
        return step.extent == 1 and not step.can_fail and not any(b.per_thread for b in buffers)

    def _accesses(self, step: Step) -> Iterator[_Access]:
        place = self._places(step)
        for touch, _ in accesses(step.kernel.body):
            assert isinstance(touch, (Load, Store))
            base, index = place(touch.buffer, touch.index)
            plain = not touch.gathers and touch.guard is None
            yield _Access(base, index, plain, isinstance(touch, Store))

    def _places(self, step: Step) -> Callable[[str, DimLike], tuple[int, DimLike]]:
        """Where an element of a step's buffer lies: the memory, and the index there."""
        numbers = dict(zip((b.name for b in step.kernel.buffers), step.buffers))
        values = dict(zip(step.kernel.sizes, step.sizes))

        def place(name: str, index: DimLike) -> tuple[int, DimLike]:
            at, index = numbers[name], substitute(index, values)
            while self.program.buffers[at].kind == "slice":
                index, at = index + self.program.buffers[at].offset, self.program.buffers[at].base
            return at, index

        return place

    def _is_number(self, base: int, found: Sequence[_Access]) -> bool:
        one = self.program.buffers[base].size == 1
        return one and all(a.is_plain and a.at == 0 for a in found)

    def _moves(self, access: _Access) -> bool:
        return self.region.symbol in symbols(access.at)

    # --- the kernel -------------------------------------------------------------------------------

    def item(self, times: DimLike) -> Item:
        length = self.region.length
        assert length is not None
        operations = max(1, sum(map(_operations, self.steps)))
        most = 1 << ((PIECE_OPERATIONS // operations).bit_length() - 1)
        if isinstance(length, int) and length <= most:
            return self._step(0, length, times, length)
        piece = Dim.symbol(self.region.symbol)
        pieces = floor_div(length + (most - 1), most)
        count = dim_min(most, length - piece * most)
        step = self._step(piece * most, count, times * pieces, most)
        return replace(
            self.region, items=(step,), commit=1, length=pieces, reverse=False, by_rows=0
        )

    def _step(self, begin: DimLike, count: DimLike, times: DimLike, most: int) -> Step:
        """`count` iterations from number `begin` on, `most` of them at once."""
        number = begin + self.var
        if self.region.reverse:
            assert self.region.length is not None
            number = self.region.length - 1 - number
        written = {a.base for s in self.steps for a in self._accesses(s) if a.is_store}
        outer: list[Stmt] = []
        carries = []
        for base in sorted(self.held):
            b = self.program.buffers[base]
            name = f"x{base}"
            load = self.draft.load(base, 0, b.dtype)
            if base not in written:
                outer.append(Let(name, load))
            elif not self._is_local(base):
                carries.append((base, Carry(name, load)))
            else:
                continue
            self.now[base] = Ref(name, b.dtype)
        body: list[Stmt] = []
        for step in self.steps:
            body += self._statements(step, {self.region.symbol: number})
        body += [Next(c.name, self.now[base]) for base, c in carries]
        outer.append(
            Loop(str(self.var), count, tuple(body), "serial", tuple(c for _, c in carries))
        )
        for base, c in carries:
            b = self.program.buffers[base]
            outer.append(self.draft.store(base, 0, Ref(c.name, b.dtype)))
        name = "_".join(dict.fromkeys(s.kernel.name for s in self.steps))
        if len(name) > MOST_NAME:
            name = f"{self.steps[0].kernel.name}_and_{len(self.steps) - 1}_more"
        kernel, buffers, sizes = self.draft.finish(f"loop_{name}", outer)
        moved = sum(self._memory_bytes(s) for s in self.steps)
        return Step(
            kernel, buffers, sizes, 1, tuple(n for s in self.steps for n in s.nodes),
            self.region.locs.union(*(s.locs for s in self.steps)),
            flops=sum((s.flops for s in self.steps), start=0) * most,
            bytes=max(moved, SCALAR_BYTES) * most, times=times,
        )  # fmt: skip

    def _is_local(self, base: int) -> bool:
        """Whether a number is set in an iteration before it is read there, and nothing else needs
        it."""
        inside = sum(any(a.base == base for a in self._accesses(s)) for s in self.steps)
        if self.program.buffers[base].kind != "temp" or self.uses[base] != inside:
            return False
        first = next(s for s in self.steps if any(a.base == base for a in self._accesses(s)))
        return all(a.is_store for a in self._accesses(first) if a.base == base)

    def _statements(self, step: Step, number: dict[str, DimLike]) -> Iterator[Stmt]:
        """What a step does: all that it loads is loaded before it stores."""
        place, values = self._places(step), dict(zip(step.kernel.sizes, step.sizes))
        known: dict[int, Expr] = {}
        names: dict[str, Expr] = {}

        def dim(d: DimLike) -> DimLike:
            return substitute(substitute(d, values), number)

        def expr(e: Expr) -> Expr:
            if id(e) not in known:
                known[id(e)] = made(e)
            return known[id(e)]

        def made(e: Expr) -> Expr:
            match e:
                case Load():
                    base, index = place(e.buffer, e.index)
                    if base in self.held:
                        return self.now[base]
                    return replace(
                        e, buffer=self.draft.buffer(base, "in"), index=substitute(index, number),
                        gathers=tuple((expr(g), dim(d)) for g, d in e.gathers),
                        guard=None if e.guard is None else expr(e.guard),
                    )  # fmt: skip
                case Index():
                    return Index(dim(e.index))
                case Call():
                    return Call(e.op, tuple(map(expr, e.args)), e.dtype)
                case Ref():
                    return names[e.name]
                case _:
                    return e

        stores: list[tuple[Store, Expr]] = []
        for s in step.kernel.body:
            assert isinstance(s, (Let, Store))
            value = expr(s.value)
            let = Let(f"v{self.lets}", value)
            self.lets += 1
            yield let
            if isinstance(s, Let):
                names[s.name] = Ref(let.name, value.dtype)
            else:
                stores.append((s, Ref(let.name, value.dtype)))
        for s, value in stores:
            base, index = place(s.buffer, s.index)
            if base in self.held:
                self.now[base] = value
                continue
            yield Store(
                self.draft.buffer(base, "out"), substitute(index, number), value,
                tuple((expr(g), dim(d)) for g, d in s.gathers),
                None if s.guard is None else expr(s.guard),
            )  # fmt: skip

    def _memory_bytes(self, step: Step) -> int:
        """Of what a step loads and stores for each iteration."""
        found = {(a.base, a.at) for a in self._accesses(step) if a.base not in self.held}
        return sum(self.program.buffers[base].dtype.itemsize_bytes for base, _ in found)


def _loads(s: Let | Store) -> Iterator[Load]:
    for touch, _ in accesses([s]):
        if isinstance(touch, Load):
            yield touch


def _operations(step: Step) -> int:
    seen: dict[int, Expr] = {}
    todo = [s.value for s in step.kernel.body if isinstance(s, (Let, Store))]
    while todo:
        e = todo.pop()
        if id(e) not in seen:
            seen[id(e)] = e
            todo += children(e)
    return sum(isinstance(e, Call) for e in seen.values())
