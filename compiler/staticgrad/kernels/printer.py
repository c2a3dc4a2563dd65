"""Kernels and programs as text: `parser.parse_kernel` reads kernels back.

    kernel add_exp(b0: in float32, b1: in float32, b2: out float32; n0, n1) {
      parallel d0 in 0..n0 {
        vector d1 in 0..n1 {
          %0 = add(b0[d0*n1+d1], b1[d1])
          b2[d0*n1+d1] = multiply(%0, exp(%0))
        }
      }
    }

`%0 = ..` names an expression that is used more than once (or is long); it is no statement. `let`
is one. The dtype of a call is that of its first operand (of `select` its second, of a comparison
bool), of a bare `2.0` float32, of `2` int64; any other is a suffix, as in `cast(v0):float64`.
"""

from __future__ import annotations

from typing import Any

from staticgrad.ir.dim import Dim, DimLike
from staticgrad.ir.dtype import DType, bool_, float32, int64
from staticgrad.ir.literal import attrs_text, quote
from staticgrad.ir.loc import locs_text

from .ir import (
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
from .program import Choose, Item, Program, ProgramBuffer, Repeat, Step
from .walk import children, roots

# A longer expression is split by names: a statement should fit a line of a screen.
LONGEST = 76
PREDICATES = frozenset(
    ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
     "isnan", "isinf", "isfinite", "signbit")
)  # fmt: skip
NUMBER_WORDS = frozenset(("nan", "inf", "True", "False"))


def kernel_text(kernel: Kernel) -> str:
    """The kernel's text, linear in its expressions."""
    lines: list[str] = []
    _Printer(kernel, lines, "").run("kernel")
    return "\n".join(lines) + "\n"


def number_text(value: Any) -> str:
    """A number of Python's as it was written: `2`, `2.0`, `-inf`, `True`."""
    return repr(value.item() if hasattr(value, "item") else value)


def number_dtype(value: Any) -> DType:
    """The dtype of a bare number."""
    if isinstance(value, bool):
        return bool_
    return int64 if isinstance(value, int) else float32


def call_dtype(op: str, args: tuple[Expr, ...]) -> DType | None:
    """The dtype of a call without a suffix."""
    if op in PREDICATES:
        return bool_
    if op == "select" and len(args) == 3:
        return args[1].dtype
    return args[0].dtype if args else None


class _Printer:
    """Prints one kernel; an epilogue or a prologue, which shares nothing with it, has its own."""

    def __init__(self, kernel: Kernel, lines: list[str], indent: str) -> None:
        self.kernel, self.lines, self.indent = kernel, lines, indent
        self.dtypes = {b.name: b.dtype for b in kernel.buffers}
        self.uses: dict[int, int] = {}
        self.named: dict[int, str] = {}
        self.scopes: list[dict[str, DType]] = [{}]
        self._count(kernel.body)

    def run(self, head: str) -> None:
        k = self.kernel
        name = k.name if k.name.isidentifier() else quote(k.name)
        buffers = ", ".join(_buffer_text(b) for b in k.buffers)
        sizes = f"; {', '.join(k.sizes)}" if k.sizes else ""
        self.line(f"{head} {name}({buffers}{sizes}) {{")
        self._body(k.body)
        self.line("}")

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    def _count(self, body: tuple[Stmt, ...]) -> None:
        """How many places use each expression."""
        stack: list[Expr] = []
        for s in body:
            stack += roots(s)
            if isinstance(s, (Loop, Reduce)):
                self._count(s.body)
        while stack:
            e = stack.pop()
            seen = self.uses.get(id(e), 0)
            self.uses[id(e)] = seen + 1
            if not seen:
                stack += children(e)

    # --- expressions ------------------------------------------------------------------------------

    def expr(self, root: Expr) -> str:
        """The text of `root`; what has to be named first gets lines of its own."""
        done: dict[int, str] = {}

        def known(e: Expr) -> str:
            return self.named.get(id(e)) or done[id(e)]

        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            e, ready = stack.pop()
            if id(e) in self.named:
                continue
            if not ready:
                stack.append((e, True))
                stack += [(c, False) for c in reversed(children(e))]
                continue
            text = self._form(e, [known(c) for c in children(e)])
            shared = self.uses[id(e)] > 1 and not isinstance(e, (Literal, Ref))
            if shared or (len(text) > LONGEST and e is not root):
                name = f"%{len(self.named)}"
                self.line(f"{name} = {text}")
                self.named[id(e)] = name
            else:
                done[id(e)] = text
        return known(root)

    def _form(self, e: Expr, parts: list[str]) -> str:
        match e:
            case Literal():
                suffix = "" if number_dtype(e.value) == e.dtype else f":{e.dtype!s}"
                return number_text(e.value) + suffix
            case Index():
                return f"index({e.index})"
            case Ref():
                sign = "$" if e.name in NUMBER_WORDS else ""
                known = self._bound(e.name)
                return f"{sign}{e.name}" + ("" if known == e.dtype else f":{e.dtype!s}")
            case Call():
                suffix = "" if call_dtype(e.op, e.args) == e.dtype else f":{e.dtype!s}"
                return f"{e.op}({', '.join(parts)}){suffix}"
            case Load():
                text = _place(e.buffer, e.index, e.gathers, parts)
                if e.guard is not None:
                    text = f"({text} if {parts[-1]} else {number_text(e.fill)})"
                return text + ("" if self.dtypes.get(e.buffer) == e.dtype else f":{e.dtype!s}")

    def _bound(self, name: str) -> DType | None:
        return next((s[name] for s in reversed(self.scopes) if name in s), None)

    # --- statements -------------------------------------------------------------------------------

    def _body(self, body: tuple[Stmt, ...]) -> None:
        self.indent += "  "
        for s in body:
            self._stmt(s)
        self.indent = self.indent[:-2]

    def _stmt(self, s: Stmt) -> None:
        match s:
            case Let():
                self.line(f"let {s.name} = {self.expr(s.value)}")
                self.scopes[-1][s.name] = s.value.dtype
            case Next():
                self.line(f"next {s.name} = {self.expr(s.value)}")
            case Store():
                parts = [self.expr(g) for g, _ in s.gathers]
                value = self.expr(s.value)
                guard = "" if s.guard is None else f" if {self.expr(s.guard)}"
                self.line(f"{_place(s.buffer, s.index, s.gathers, parts)} = {value}{guard}")
            case Check():
                condition, value = self.expr(s.condition), self.expr(s.value)
                self.line(f"check {condition} code {s.code} element {s.element} value {value}")
            case Loop():
                self._loop(s)
            case Reduce():
                self._reduce(s)
            case Template():
                self._template(s)

    def _loop(self, s: Loop) -> None:
        carries = ", ".join(f"{c.name} = {self.expr(c.init)}" for c in s.carries)
        carried = f" carry {carries}" if carries else ""
        self.line(f"{s.kind} {s.var} in 0..{s.extent}{carried} {{")
        self.scopes[-1].update((c.name, c.init.dtype) for c in s.carries)
        self.scopes.append({})
        self._body(s.body)
        self.scopes.pop()
        self.line("}")

    def _reduce(self, s: Reduce) -> None:
        spans = ", ".join(f"{v} in 0..{d}" for v, d in zip(s.vars, s.extents, strict=True))
        words = ("reduce", "lanes" if s.vector else "", spans, "{")
        self.line(" ".join(w for w in words if w))
        self.scopes.append({})
        self._body(s.body)
        self.indent += "  "
        for a in s.accumulators:
            self.line(f"fold {a.name} = {a.op} of {self.expr(a.value)}")
        self.indent = self.indent[:-2]
        self.scopes.pop()
        self.scopes[-1].update((a.name, a.value.dtype) for a in s.accumulators)
        self.line("}")

    def _template(self, s: Template) -> None:
        sizes = f"; {', '.join(str(d) for d in s.sizes)}" if s.sizes else ""
        self.line(f"call {s.name}({', '.join(s.buffers)}{sizes}){attrs_text(s.attrs)}")
        titles = ("left prologue kernel", "right prologue kernel", "epilogue kernel")
        for title, kernel in zip(titles, (*s.prologues, s.epilogue)):
            if kernel is not None:
                _Printer(kernel, self.lines, self.indent + "  ").run(title)


def _buffer_text(b: Buffer) -> str:
    size = "" if b.size == 0 else f"[{b.size}]"
    how = "" if b.nontemporal == 0 else " nontemporal"
    how += f"({b.nontemporal})" if isinstance(b.nontemporal, Dim) else ""
    return f"{b.name}: {b.mode} {b.dtype!s}{size}{how}"


def _place(
    buffer: str, index: DimLike, gathers: tuple[tuple[Expr, DimLike], ...], parts: list[str]
) -> str:
    """`b0[i*8+j]`, `b0[j; v0 * 8]`: an index, and values that are multiplied by strides."""
    moving = ", ".join(f"{p} * {_stride(d)}" for p, (_, d) in zip(parts, gathers))
    return f"{buffer}[{index}; {moving}]" if moving else f"{buffer}[{index}]"


def _stride(d: DimLike) -> str:
    return f"({d})" if isinstance(d, Dim) and len(d.terms) > 1 else str(d)


# --- programs -------------------------------------------------------------------------------------


def program_text(program: Program) -> str:
    """All of a program: its buffers with their lifetimes, its steps in order, then its kernels,
    each once."""
    names: dict[str, str] = {}
    kernels: list[Kernel] = []
    used: set[str] = set()
    calls: list[str] = []
    for step in (*program.steps, *(pack.step for pack in program.packs)):
        key = kernel_key(step.kernel)
        if key not in names:
            names[key] = _fresh(step.kernel.name, used)
            kernels.append(step.kernel)
        calls.append(names[key])
    lines = [f"program({', '.join(program.dims)}) {{"]
    lines += [f"  {_program_buffer(program, i, b)}" for i, b in enumerate(program.buffers)]
    for pack, name in zip(program.packs, calls[len(program.steps) :]):
        b0, b1 = (program.buffers[b].name for b in (pack.state, pack.buffer))
        least, most = pack.useful
        limit = "" if isinstance(pack.rows, int) else f", for {least} to {most} rows"
        lines.append(f"  kept: {name}(b0={b0}, b1={b1})  # made anew when {b0} changes{limit}")
    shown = _Items(program, calls, lines)
    for i, item in enumerate(program.items):
        if i == program.commit:
            lines.append("  commit  # nothing after this can fail; state is written from here on")
        shown.item(item, "  ")
    if program.commit >= len(program.items):
        lines.append("  commit")
    for code, (text, where) in program.messages.items():
        lines.append(f"  message {code}: {quote(text)}  # {where}")
    lines.append("}")
    for kernel, name in zip(kernels, names.values()):
        named = Kernel(name, kernel.buffers, kernel.sizes, kernel.body)
        lines += ["", kernel_text(named).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _fresh(name: str, used: set[str]) -> str:
    word, count = name, 1
    while word in used:
        count += 1
        word = f"{name}_{count}"
    used.add(word)
    return word


def _program_buffer(program: Program, index: int, b: ProgramBuffer) -> str:
    parts = [f"buffer {index}: {b.kind} {b.name} {b.dtype!s}[{b.size}], {b.size_bytes} bytes"]
    if b.kind == "slice":
        parts.append(f"part of {program.buffers[b.base].name} from element {b.offset} on")
    if b.kind == "temp":
        lives = "never used" if b.first < 0 else f"lives in steps {b.first} to {b.last}"
        parts.append(lives)
    ids = [str(i) for i, buffer in program.state.items() if buffer == index]
    if ids:
        written = "written" if index in program.written else "only read"
        parts.append(f"state {', '.join(ids)}, {written}")
    return ", ".join(parts)


class _Items:
    """Prints the items of a program, regions with what they hold."""

    def __init__(self, program: Program, calls: list[str], lines: list[str]) -> None:
        self.program, self.calls, self.lines = program, calls, lines
        self.at = 0

    def item(self, item: Item, indent: str) -> None:
        if self.at in self.program.meets:
            self.lines.append(f"{indent}meet  # memory of the steps before is for those behind")
        if isinstance(item, Step):
            self._step(item, indent)
        elif isinstance(item, Choose):
            self._choose(item, indent)
        else:
            self._repeat(item, indent)

    def _part(self, items: tuple[Item, ...], indent: str) -> None:
        for item in items:
            self.item(item, indent + "  ")

    def _where(self, item: Item) -> str:
        return f"  # {locs_text(item.locs)}" if item.locs else ""

    def _repeat(self, item: Repeat, indent: str) -> None:
        if item.length is not None:
            order = "downwards " if item.reverse else ""
            if item.by_rows != 0:
                order += "by rows " if item.by_rows == 1 else f"by rows if {item.by_rows} "
            head = f"repeat {item.symbol} in 0..{item.length} {order}{{"
            self.lines.append(f"{indent}{head}{self._where(item)}")
        else:
            self.lines.append(f"{indent}repeat {item.symbol} {{{self._where(item)}")
            self._part(item.test, indent)
            name = self.program.buffers[item.predicate].name
            self.lines.append(f"{indent}}} while {name} {{")
        self._part(item.items, indent)
        self.lines.append(f"{indent}}}")

    def _choose(self, item: Choose, indent: str) -> None:
        name = self.program.buffers[item.index].name
        self.lines.append(f"{indent}choose {name} {{{self._where(item)}")
        for k, branch in enumerate(item.branches):
            self.lines.append(f"{indent}case {k}:")
            self._part(branch, indent)
        self.lines.append(f"{indent}}}")

    def _step(self, step: Step, indent: str) -> None:
        name, index = self.calls[self.at], self.at
        self.at += 1
        buffers = [
            f"{inner.name}={self.program.buffers[i].name}"
            for i, inner in zip(step.buffers, step.kernel.buffers)
        ]
        sizes = [f"{n}={d}" for n, d in zip(step.kernel.sizes, step.sizes)]
        arguments = "; ".join(part for part in (", ".join(buffers), ", ".join(sizes)) if part)
        facts = [f"extent {step.extent}", f"{step.flops} flops", f"{step.bytes} bytes"]
        if step.can_fail:
            facts.append("can fail")
        notes = ", ".join(step.nodes)
        if step.locs:
            notes += f" ({locs_text(step.locs)})"
        self.lines.append(f"{indent}step {index}: {name}({arguments})")
        self.lines.append(f"{indent}    {', '.join(facts)}" + (f"  # {notes}" if notes else ""))
