"""What statements and expressions are made of, and the memory that they touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from staticgrad.ir.dim import DimLike

from .ir import Call, Check, Expr, Let, Load, Loop, Next, Reduce, Stmt, Store, Template

Extents = Mapping[str, DimLike]


def children(e: Expr) -> tuple[Expr, ...]:
    """The expressions that `e` is made of."""
    match e:
        case Load():
            guard = () if e.guard is None else (e.guard,)
            return (*(g for g, _ in e.gathers), *guard)
        case Call():
            return e.args
    return ()


def roots(s: Stmt) -> tuple[Expr, ...]:
    """The expressions of a statement itself, without those of its body."""
    match s:
        case Let() | Next():
            return (s.value,)
        case Store():
            guard = () if s.guard is None else (s.guard,)
            return (*(g for g, _ in s.gathers), s.value, *guard)
        case Check():
            return (s.condition, s.value)
        case Loop():
            return tuple(c.init for c in s.carries)
        case Reduce():
            return tuple(a.value for a in s.accumulators)
    return ()


def accesses(
    statements: Sequence[Stmt], extents: Extents | None = None
) -> Iterator[tuple[Load | Store | Template, Extents]]:
    """Every load, store and template, epilogues included, each once in a list of statements, with
    the extents of the variables that it may depend on. What prologues load is the template's
    (`Template.touched`)."""
    around = extents or {}
    seen: set[int] = set()
    for s in statements:
        inside = around
        if isinstance(s, Loop):
            inside = {**around, s.var: s.extent}
        elif isinstance(s, Reduce):
            inside = {**around, **dict(zip(s.vars, s.extents))}
        elif isinstance(s, (Store, Template)):
            yield s, around
        pending = list(roots(s))
        while pending:
            e = pending.pop()
            if id(e) not in seen:
                seen.add(id(e))
                if isinstance(e, Load):
                    yield e, inside
                pending += children(e)
        if isinstance(s, (Loop, Reduce)):
            yield from accesses(s.body, inside)
        elif isinstance(s, Template) and s.epilogue is not None:
            yield from accesses(s.epilogue.body)
