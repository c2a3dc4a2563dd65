"""Small programs in hand-written LLVM text, for the tests of the runtime and the entry."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from staticgrad.codegen.entry import entry_object
from staticgrad.codegen.target import host_target
from staticgrad_runtime import (
    Artifact,
    BufferSpec,
    ConstantSpec,
    CostSpec,
    Executable,
    InputSpec,
    Manifest,
    MessageSpec,
    OutputSpec,
    StateCell,
    StateSpec,
)


@functools.cache
def machine() -> Any:
    target = host_target()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic"
    )


@functools.cache
def compile_text(text: str) -> bytes:
    module = llvm.parse_assembly(text)
    module.verify()
    code: bytes = machine().emit_object(module)
    return code


def manifest(name: str, **fields: Any) -> Manifest:
    target = host_target()
    return Manifest(name, target.triple, target.cpu, target.features, **fields)


def artifact(manifest: Manifest, run: str, blobs: list[bytes] | None = None) -> Artifact:
    """An artifact of `run`, LLVM text that defines `sg_run`, and the entry."""
    return Artifact(manifest, compile_text(run), blobs or [], entry_object(host_target()))


# A loop over %n elements; `body` sees %i and defines what it stores.
LOOP = """
{head}
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %next, %step ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %done
body:
{body}
  br label %step
step:
  %next = add i64 %i, 1
  br label %test
done:
{tail}
  ret i32 0
"""


def pointer(name: str, buffer: int) -> str:
    """Loads a buffer's pointer to %name; %buffers is the table."""
    return f"""  %{name}_at = getelementptr ptr, ptr %buffers, i64 {buffer}
  %{name} = load ptr, ptr %{name}_at"""


TABLES = """define i32 @sg_run(ptr %context) {
entry:
  %buffers = load ptr, ptr %context
  %dims_at = getelementptr i64, ptr %context, i64 1
  %dims = load ptr, ptr %dims_at
"""


def x2_plus_1(ns: Any = 0) -> Artifact:
    """out[N] = x[N] * 2 + 1."""
    head = TABLES + "  %n = load i64, ptr %dims\n" + pointer("x", 0) + "\n" + pointer("y", 1)
    body = """
  %xi = getelementptr float, ptr %x, i64 %i
  %v = load float, ptr %xi, align 4
  %v2 = fmul float %v, 2.0
  %v3 = fadd float %v2, 1.0
  %yi = getelementptr float, ptr %y, i64 %i
  store float %v3, ptr %yi, align 4"""
    fields = manifest(
        "x2_plus_1",
        dims=["N"],
        inputs=[InputSpec("x", "float32", ["N"], 0, "model.py:3")],
        outputs=[OutputSpec("y", "float32", ["N"], 1)],
        single=True,
        buffers=[BufferSpec("input", ["*", 4, "N"]), BufferSpec("output", ["*", 4, "N"])],
        cost=CostSpec(["*", 2, "N"], ["*", 8, "N"], ns),
    )
    return artifact(fields, LOOP.format(head=head, body=body, tail="") + "}")


def step() -> Artifact:
    """w[3] -= 0.5 * g[3]; count += 1. Returns the old count (as one of a tuple)."""
    parts = ("g", "w", "count", "out")
    head = TABLES + "  %n = add i64 0, 3\n"
    head += "\n".join(pointer(name, i) for i, name in enumerate(parts))
    body = """
  %gi = getelementptr float, ptr %g, i64 %i
  %gv = load float, ptr %gi
  %half = fmul float %gv, 0.5
  %wi = getelementptr float, ptr %w, i64 %i
  %wv = load float, ptr %wi
  %new = fsub float %wv, %half
  store float %new, ptr %wi"""
    tail = """
  %c = load i64, ptr %count
  store i64 %c, ptr %out
  %c1 = add i64 %c, 1
  store i64 %c1, ptr %count"""
    fields = manifest(
        "step",
        inputs=[InputSpec("g", "float32", [3], 0)],
        outputs=[OutputSpec("count", "int64", [], 3)],
        state=[
            StateSpec(1, "w", "float32", [3], 1, True),
            StateSpec(2, "count", "int64", [], 2, True),
        ],
        buffers=[
            BufferSpec("input", 12), BufferSpec("state", 12), BufferSpec("state", 8),
            BufferSpec("output", 8),
        ],
    )  # fmt: skip
    return artifact(fields, LOOP.format(head=head, body=body, tail=tail) + "}")


def read_state() -> Artifact:
    """Returns (w[3] copied,): reads the same kind of state that `step` writes."""
    head = TABLES + "  %n = add i64 0, 3\n" + pointer("w", 0) + "\n" + pointer("out", 1)
    body = """
  %wi = getelementptr float, ptr %w, i64 %i
  %wv = load float, ptr %wi
  %oi = getelementptr float, ptr %out, i64 %i
  store float %wv, ptr %oi"""
    fields = manifest(
        "read_state",
        outputs=[OutputSpec("w", "float32", [3], 1)],
        single=True,
        state=[StateSpec(1, "w", "float32", [3], 0)],
        buffers=[BufferSpec("state", 12), BufferSpec("output", 12)],
    )
    return artifact(fields, LOOP.format(head=head, body=body, tail="") + "}")


def gather_rows() -> Artifact:
    """out[N] = table[index[N]] for a constant table of 4; code 7 for an index out of range."""
    head = TABLES + "  %n = load i64, ptr %dims\n"
    head += "\n".join(pointer(name, i) for i, name in enumerate(("index", "table", "out")))
    body = """
  %ii = getelementptr i64, ptr %index, i64 %i
  %k = load i64, ptr %ii
  %bad = icmp uge i64 %k, 4
  br i1 %bad, label %fail, label %good
fail:
  %status = getelementptr i64, ptr %context, i64 2
  store i64 7, ptr %status
  %element = getelementptr i64, ptr %context, i64 3
  store i64 %i, ptr %element
  %value = getelementptr i64, ptr %context, i64 4
  store i64 %k, ptr %value
  ret i32 1
good:
  %ti = getelementptr double, ptr %table, i64 %k
  %tv = load double, ptr %ti
  %oi = getelementptr double, ptr %out, i64 %i
  store double %tv, ptr %oi"""
    fields = manifest(
        "gather_rows",
        dims=["N"],
        inputs=[InputSpec("index", "int64", ["N"], 0)],
        outputs=[OutputSpec("out", "float64", ["N"], 2)],
        single=True,
        constants=[ConstantSpec(1, "float64", [4], 0)],
        buffers=[
            BufferSpec("input", ["*", 8, "N"]), BufferSpec("constant", 32),
            BufferSpec("output", ["*", 8, "N"]),
        ],
        messages={7: MessageSpec("index {value} at {element} is out of range", "model.py:9")},
    )  # fmt: skip
    table = np.array([0.5, 1.5, 2.5, 3.5]).tobytes()
    return artifact(fields, LOOP.format(head=head, body=body, tail="") + "}", [table])


def with_temps() -> Artifact:
    """(a, b) = (x + y, (x + y) * (2*N + 1)) through two temporaries of N doubles; y is [2*N + 1],
    of which the first N elements count."""
    head = TABLES + "  %n = load i64, ptr %dims\n"
    names = ("x", "y", "s", "t", "a", "b")
    head += "\n".join(pointer(name, i) for i, name in enumerate(names))
    head += """
  %twice = mul i64 %n, 2
  %m = add i64 %twice, 1
  %factor = sitofp i64 %m to double"""

    def at(name: str) -> str:
        return f"  %{name}i = getelementptr double, ptr %{name}, i64 %i\n"

    body = (
        "".join(at(name) for name in names)
        + """
  %xv = load double, ptr %xi
  %yv = load double, ptr %yi
  %sum = fadd double %xv, %yv
  store double %sum, ptr %si
  %s1 = load double, ptr %si
  %scaled = fmul double %s1, %factor
  store double %scaled, ptr %ti
  %s2 = load double, ptr %si
  store double %s2, ptr %ai
  %t1 = load double, ptr %ti
  store double %t1, ptr %bi"""
    )
    size: Any = ["*", 8, "N"]
    fields = manifest(
        "with_temps",
        dims=["N"],
        inputs=[
            InputSpec("x", "float64", ["N"], 0, "model.py:5"),
            InputSpec("y", "float64", [["+", ["*", 2, "N"], 1]], 1, "model.py:6"),
        ],
        outputs=[OutputSpec("a", "float64", ["N"], 4), OutputSpec("b", "float64", ["N"], 5)],
        buffers=[
            BufferSpec("input", size), BufferSpec("input", ["*", 8, ["+", ["*", 2, "N"], 1]]),
            BufferSpec("temp", size, 0, 3), BufferSpec("temp", size, 1, 4),
            BufferSpec("output", size), BufferSpec("output", size),
        ],
    )  # fmt: skip
    return artifact(fields, LOOP.format(head=head, body=body, tail="") + "}")


def load(make: Callable[[], Artifact], *cells: StateCell, **options: Any) -> Executable:
    return Executable(make(), cells, **options)
