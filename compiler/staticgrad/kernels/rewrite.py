"""Rewriting kernels: every index of a body mapped by a function, and sizes made parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace

from staticgrad.ir.dim import Dim, DimCall, DimLike, floor_div, substitute, symbols

from .ir import (
    TILE,
    Call,
    Carry,
    Check,
    Expr,
    Index,
    Let,
    Load,
    Loop,
    Next,
    Reduce,
    Stmt,
    Store,
    Template,
)

MapDim = Callable[[DimLike], DimLike]


class IndexMapper:
    """Applies `index` to every index and `size` to every extent of statements, sharing kept."""

    def __init__(self, index: MapDim, size: MapDim) -> None:
        self._index, self._size = index, size
        self._memo: dict[int, tuple[Expr, Expr]] = {}

    def expr(self, e: Expr) -> Expr:
        known = self._memo.get(id(e))
        if known is not None:
            return known[1]
        result: Expr
        match e:
            case Load():
                gathers = tuple((self.expr(g), self._index(s)) for g, s in e.gathers)
                guard = None if e.guard is None else self.expr(e.guard)
                result = replace(e, index=self._index(e.index), gathers=gathers, guard=guard)
            case Index():
                result = Index(self._index(e.index))
            case Call():
                result = Call(e.op, tuple(self.expr(a) for a in e.args), e.dtype)
            case _:
                result = e
        self._memo[id(e)] = (e, result)  # keeps `e` alive, so that its id stays its own
        return result

    def body(self, statements: Sequence[Stmt]) -> tuple[Stmt, ...]:
        return tuple(self.stmt(s) for s in statements)

    def stmt(self, s: Stmt) -> Stmt:
        match s:
            case Let():
                return Let(s.name, self.expr(s.value))
            case Next():
                return Next(s.name, self.expr(s.value))
            case Store():
                gathers = tuple((self.expr(g), self._index(d)) for g, d in s.gathers)
                guard = None if s.guard is None else self.expr(s.guard)
                return Store(s.buffer, self._index(s.index), self.expr(s.value), gathers, guard)
            case Check():
                return Check(
                    self.expr(s.condition), s.code, self._index(s.element), self.expr(s.value)
                )
            case Loop():
                carries = tuple(Carry(c.name, self.expr(c.init)) for c in s.carries)
                return Loop(s.var, self._size(s.extent), self.body(s.body), s.kind, carries)
            case Reduce():
                accumulators = tuple(replace(a, value=self.expr(a.value)) for a in s.accumulators)
                extents = tuple(self._size(d) for d in s.extents)
                return Reduce(s.vars, extents, self.body(s.body), accumulators, s.vector)
            case Template():
                return replace(s, sizes=tuple(self._index(d) for d in s.sizes))


def replaced(statements: Sequence[Stmt], table: Mapping[str, DimLike]) -> tuple[Stmt, ...]:
    """Statements with variables replaced in every index (extents stay)."""
    return IndexMapper(lambda d: substitute(d, table), lambda d: d).body(statements)


def all_indices(statements: Sequence[Stmt]) -> list[DimLike]:
    """Every index polynomial in a body, each once."""
    found: dict[DimLike, None] = {}

    def note(d: DimLike) -> DimLike:
        found.setdefault(d)
        return d

    IndexMapper(note, lambda d: d).body(statements)
    return list(found)


def loop_vars(statements: Sequence[Stmt]) -> Iterator[str]:
    """The variables of all loops of a body."""
    for s in statements:
        if isinstance(s, Loop):
            yield s.var
            yield from loop_vars(s.body)
        elif isinstance(s, Reduce):
            yield from s.vars
            yield from loop_vars(s.body)


def buffer_names(statements: Sequence[Stmt]) -> set[str]:
    """The buffers that a body loads from, stores to or hands to a template."""
    found: set[str] = set()
    seen: set[int] = set()

    def visit(x: object) -> None:
        if isinstance(x, tuple):
            for y in x:
                visit(y)
        elif is_dataclass(x) and id(x) not in seen:
            seen.add(id(x))
            if isinstance(x, (Load, Store)) and x.buffer != TILE:
                found.add(x.buffer)
            elif isinstance(x, Template):
                found.update(x.touched)
            for f in fields(x):
                visit(getattr(x, f.name))

    visit(tuple(statements))
    return found


# Extents and strides up to this stay constants in the code; larger ones become parameters, so that
# layers of other sizes share the function.
SMALL = 64


class SizeParameters:
    """Replaces sizes by parameters `n0, n1, ...`; `values` are what the caller passes."""

    def __init__(self, variables: Sequence[str]) -> None:
        self._variables = set(variables)
        self._names: dict[DimLike, Dim] = {}

    @property
    def names(self) -> list[str]:
        return [str(d) for d in self._names.values()]

    @property
    def values(self) -> list[DimLike]:
        return list(self._names)

    def size(self, d: DimLike) -> DimLike:
        if isinstance(d, int) and -SMALL <= d <= SMALL:
            return d
        if d not in self._names:
            self._names[d] = Dim.symbol(f"n{len(self._names)}")
        return self._names[d]

    def index(self, d: DimLike) -> DimLike:
        """Sums of variables times sizes: `i*K*M+j+3` -> `i*n0+j+3`."""
        if isinstance(d, int) or not self._variables.intersection(symbols(d)):
            return self.size(d)
        by_variables: dict[tuple[str | DimCall, ...], DimLike] = {}
        for monomial, factor in d.terms:
            moving = tuple(a for a in monomial if self._moves(a))
            rest = tuple(a for a in monomial if not self._moves(a))
            term: DimLike = Dim(((rest, factor),)) if rest else factor
            by_variables[moving] = by_variables.get(moving, 0) + term
        total: DimLike = 0
        for moving, factor_dim in by_variables.items():
            term = self.size(factor_dim)
            for a in moving:
                term = term * self._atom(a)
            total = total + term
        return total

    def _moves(self, atom: str | DimCall) -> bool:
        return bool(self._variables.intersection(symbols(Dim((((atom,), 1),)))))

    def _atom(self, atom: str | DimCall) -> DimLike:
        if isinstance(atom, str):
            return Dim.symbol(atom)
        call = DimCall(atom.op, self.index(atom.left), self.index(atom.right))
        return Dim((((call,), 1),))


def factor_of(d: DimLike, variable: str) -> DimLike | None:
    """The factor of `variable` in `d`; None where `d` is not affine in it."""
    if isinstance(d, int):
        return 0
    factor: DimLike = 0
    for monomial, f in d.terms:
        if variable in monomial:
            rest = list(monomial)
            rest.remove(variable)
            if any(variable in symbols(Dim((((a,), 1),))) for a in rest):
                return None
            factor = factor + (Dim(((tuple(rest), f),)) if rest else f)
        elif variable in symbols(Dim(((monomial, 1),))):
            return None  # inside of a //, %, max or min
    return factor


def numbered(flat: DimLike, axes: Sequence[tuple[str, DimLike]]) -> dict[str, DimLike]:
    """What stands for each of several loop variables, with their extents, where `flat` numbers all
    of them, row-major. Where they run through memory as one loop would, the divisions cancel."""
    table: dict[str, DimLike] = {}
    rest = flat
    for name, extent in reversed(axes[1:]):
        size = 1 if extent == 0 else extent  # of nothing, any divisor will do
        whole = floor_div(rest, size)
        table[name] = rest - whole * size
        rest = whole
    if axes:
        table[axes[0][0]] = rest
    return table


def merges(indices: Sequence[DimLike], outer: str, inner: str, extent: DimLike) -> bool:
    """Whether loops over `outer` and `inner` can be one: every index moves by the same stride from
    the inner loop's end to the outer's next step."""
    for d in indices:
        a, b = factor_of(d, outer), factor_of(d, inner)
        if a is None or b is None or a != b * extent:
            return False
    return True
