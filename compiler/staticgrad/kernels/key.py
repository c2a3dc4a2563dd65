"""The content of a kernel as text, names of no importance left out: equal keys, equal code."""

from __future__ import annotations

from .ir import (  # fmt: skip
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


def kernel_key(kernel: Kernel) -> str:
    """Linear in the kernel: shared expressions are numbered, not repeated."""
    return _Key(kernel).text


class _Key:
    def __init__(self, kernel: Kernel) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[Expr] = []
        self._parts: list[str] = [
            ";".join(f"{b.name}:{b.dtype!s}:{b.mode}:{b.nontemporal}" for b in kernel.buffers),
            ",".join(kernel.sizes),
        ]
        self._body(kernel.body)
        self.text = "\n".join(self._parts)

    def _expr(self, e: Expr) -> str:
        if isinstance(e, Literal):
            return f"{e.value!r}:{e.dtype!s}"
        if isinstance(e, Ref):
            return f"${e.name}:{e.dtype!s}"
        known = self._numbers.get(id(e))
        if known is not None:
            return f"#{known}"
        match e:
            case Load():
                gathers = "".join(f"+{self._expr(g)}*({s})" for g, s in e.gathers)
                guard = "" if e.guard is None else f" if {self._expr(e.guard)} else {e.fill!r}"
                text = f"{e.buffer}[{e.index}{gathers}]{guard}"
            case Index():
                text = f"index({e.index})"
            case Call():
                text = f"{e.op}:{e.dtype!s}({','.join(self._expr(a) for a in e.args)})"
        number = self._numbers[id(e)] = len(self._numbers)
        self._kept.append(e)  # so that no other expression gets its id
        self._parts.append(f"#{number}={text}")
        return f"#{number}"

    def _body(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            self._stmt(s)

    def _stmt(self, s: Stmt) -> None:
        add = self._parts.append
        match s:
            case Let() | Next():
                add(f"{type(s).__name__} {s.name} {self._expr(s.value)}")
            case Store():
                gathers = "".join(f"+{self._expr(g)}*({d})" for g, d in s.gathers)
                guard = "" if s.guard is None else f" if {self._expr(s.guard)}"
                add(f"{s.buffer}[{s.index}{gathers}]={self._expr(s.value)}{guard}")
            case Check():
                add(f"check {self._expr(s.condition)} {s.code} {s.element} {self._expr(s.value)}")
            case Loop():
                carries = ",".join(f"{c.name}={self._expr(c.init)}" for c in s.carries)
                add(f"{s.kind} {s.var}<{s.extent} {carries} {{")
                self._body(s.body)
                add("}")
            case Reduce():
                spans = ",".join(f"{v}<{e}" for v, e in zip(s.vars, s.extents))
                add(f"reduce {spans} {s.vector} {{")
                self._body(s.body)
                for a in s.accumulators:
                    add(f"{a.name}={a.op} {self._expr(a.value)}")
                add("}")
            case Template():
                add(f"{s.name}{s.buffers}{[str(d) for d in s.sizes]}{sorted(s.attrs.items())}")
                if s.epilogue is not None:
                    add(kernel_key(s.epilogue))
                for side, inner in zip(("left", "right"), s.prologues):
                    if inner is not None:
                        add(f"{side} {kernel_key(inner)}")
