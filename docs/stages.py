"""What the documentation shows of its two models, compiled for one fixed target.

The figures and dumps must be the same on every machine, so nothing here asks the host.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import staticgrad as sg
from staticgrad.api.compile import LATE_PASSES
from staticgrad.api.dump import memory_plan_text
from staticgrad.codegen.program import emit_program
from staticgrad.codegen.target import Target
from staticgrad.inspect import to_svg
from staticgrad.ir.graph import Graph
from staticgrad.ir.printer import to_text
from staticgrad.kernels.printer import program_text
from staticgrad.kernels.program import Program
from staticgrad.passes.lowering import lower
from staticgrad.passes.lowering.manifest import build_manifest
from staticgrad.passes.pipeline import PASSES, run_pipeline
from staticgrad.passes.schedule import schedule
from staticgrad_runtime.artifact import Manifest
from staticgrad_runtime.binding import Binder

TARGET = Target("x86_64-unknown-linux-gnu", "x86-64-v3", "+avx2,+fma", 256, 16)
SHOWN_SIZE = 64  # of the symbolic dims, where a figure needs a number


@dataclass
class Lowered:
    """A graph compiled for `TARGET` as far as text goes."""

    after: list[tuple[str, Graph]]  # (name, graph): as declared, then after each pass
    program: Program
    llvm: str
    called: list[str]
    manifest: Manifest


def lowered(graph: Graph, *, scalar_loops: bool = True) -> Lowered:
    after: list[tuple[str, Graph]] = []
    final = run_pipeline(
        graph, observe=lambda index, name, g: after.append((name, g)), also=LATE_PASSES
    )
    program = schedule(lower(final, TARGET), scalar_loops=scalar_loops)
    llvm, called = emit_program(program, TARGET)
    manifest, _ = build_manifest(program, final, TARGET, called, {})
    return Lowered(after, program, llvm, called, manifest)


def run_code(code: str, file: str) -> dict[str, Any]:
    """Runs an example of the documentation as if it stood in `file`; gives its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, file, "exec"), names)
    return names


# --- the README's model ---------------------------------------------------------------------------


@dataclass
class Example:
    """The README's model: its report as printed here, its stages as they are everywhere."""

    report: str
    forward_nodes: int
    graph: Graph
    lowered: Lowered


def run_example(code: str) -> Example:
    names = run_code(code, "mlp.py")
    step = names["train_step"]
    graph = step.source[0]
    inputs = [names["x"], names["y"]]
    forward = sg.Graph(inputs, [names["loss"]])
    report = step.report(N=SHOWN_SIZE)
    return Example(fenced(str(report)), computed(forward), graph, lowered(graph))


def computed(graph: Graph) -> int:
    """The nodes that compute something: no inputs, state or constants."""
    return sum(n.op not in ("input", "state", "constant") for n in graph.nodes)


def phases(made: Lowered) -> list[str]:
    """ "forward", "backward" or "update" for each step: what the outputs need, what writes state,
    and what is between."""
    program = made.program
    wanted = set(program.outputs)
    found = ["backward"] * len(program.steps)
    for i in reversed(range(len(program.steps))):
        step = program.steps[i]
        modes = [b.mode for b in step.kernel.buffers]
        written = {b for b, mode in zip(step.buffers, modes) if mode != "in"}
        if any(program.buffers[b].kind == "state" for b in written):
            found[i] = "update"
        elif written & wanted:
            found[i] = "forward"
            wanted |= {b for b, mode in zip(step.buffers, modes) if mode != "out"}
    return found


def plan_of(manifest: Manifest) -> tuple[list[tuple[int, int, int, int]], int]:
    """(first step, last step, offset, bytes) of every temporary, and the arena's bytes."""
    binding = Binder(manifest).binding(dict.fromkeys(manifest.dims, SHOWN_SIZE))
    plan = binding.plan
    temps = [b for b in manifest.buffers if b.kind == "temp"]
    sizes = [size_bytes(b.size_bytes) for b in temps]
    places = [
        (b.first, b.last, int(offset), size)
        for b, offset, size in zip(temps, plan.offsets, sizes)
        if size
    ]
    return places, plan.peak_bytes


def size_bytes(expr: Any) -> int:
    from staticgrad_runtime.dims import evaluate_int

    return evaluate_int(expr, {"N": SHOWN_SIZE})


# --- the smallest model ---------------------------------------------------------------------------


class Stages:
    """The dumps of the smallest model, by the names of the parts of `architecture.md`."""

    def __init__(self, code: str) -> None:
        names = run_code(code, "smallest.py")
        self.forward = sg.Graph([names["x"]], [names["loss"]])
        self.declared = names["graph"]
        self.made = lowered(self.declared)

    def parts(self) -> dict[str, str]:
        kernels = program_text(self.made.program)
        head, _, bodies = kernels.partition("\nkernel ")
        return {
            "forward": fenced(graph_text(self.forward)),
            "declared": fenced(graph_text(self.declared)),
            "passes": self.passes(),
            "simplified": fenced(graph_text(self.last("dce"))),
            "fused": fenced(graph_text(self.last("fuse"))),
            "program": fenced(head),
            "kernels": fenced("kernel " + bodies),
            "memory_plan": fenced(self.memory_plan()),
            "llvm_kernel": fenced(self.update_kernel(), "llvm"),
            "llvm_driver": fenced(self.driver(), "llvm"),
        }

    @staticmethod
    def loop(code: str) -> dict[str, str]:
        """The parts of the example of a loop."""
        names = run_code(code, "descent.py")
        declared = sg.Graph([names["start"]], [names["end"]])
        program = lowered(declared, scalar_loops=False).program
        held = program_text(lowered(declared).program).partition("\nkernel loop")
        return {
            "loop_declared": fenced(graph_text(declared)),
            "loop_program": fenced(program_text(program).partition("\nkernel ")[0]),
            "loop_kernel": fenced("kernel loop" + held[2]),
        }

    def last(self, name: str) -> Graph:
        """The graph after the last run of a pass."""
        return [g for n, g in self.made.after if n == name][-1]

    def passes(self) -> str:
        """The pipeline as a table, with what it does to the smallest model."""
        lines = ["| pass | kind | nodes | what it does |", "| --- | --- | --- | --- |"]
        before = computed(self.made.after[0][1])
        for step, (_, graph) in zip(PASSES, self.made.after[1:], strict=True):
            now = computed(graph)
            change = f"{before} -> {now}" if now != before else str(now)
            lines.append(f"| `{step.name}` | {step.kind} | {change} | {summary(step.name)} |")
            before = now
        return "\n".join(lines)

    def memory_plan(self) -> str:
        names = [b.name for b in self.made.program.buffers]
        return memory_plan_text(self.made.manifest, names)

    def update_kernel(self) -> str:
        """The kernel that writes `w`, as far as its tail, which repeats it under a mask."""
        program = self.made.program
        w = next(i for i, b in enumerate(program.buffers) if b.name == "w")
        step = max(
            i for i, s in enumerate(program.steps)
            if any(b == w and p.mode != "in" for b, p in zip(s.buffers, s.kernel.buffers))
        )  # fmt: skip
        lines = function(self.made.llvm, self.made.called[step])
        tails = [i for i, line in enumerate(lines) if re.match(r"tail\d*:", line)]
        if not tails:
            return "\n".join(lines)
        return "\n".join([*lines[: tails[0] + 1], "  ; the same instructions, masked", "}"])

    def driver(self) -> str:
        """The driver, as far as its second call goes."""
        lines = function(self.made.llvm, "sg_share")
        calls = [i for i, line in enumerate(lines) if "call void @k" in line]
        return "\n".join([*lines[: calls[1] + 2], "  ; and so on, kernel by kernel", "}"])

    def picture(self) -> str:
        return to_svg(self.last("fuse"))


def graph_text(graph: Graph) -> str:
    """A graph's text without the table of files, which is the same one line each time."""
    return re.sub(r"^@.*\n", "", to_text(graph), flags=re.MULTILINE)


def function(llvm: str, name: str) -> list[str]:
    """The lines of one function of a module."""
    lines = llvm.splitlines()
    start = next(i for i, s in enumerate(lines) if s.startswith("define") and f"@{name}(" in s)
    end = next(i for i in range(start, len(lines)) if lines[i] == "}")
    return lines[start : end + 1]


def summary(pass_name: str) -> str:
    """The first line of the pass's file, without its name."""
    run: Callable[..., Graph] = next(p.run for p in PASSES if p.name == pass_name)
    function = run.__globals__[pass_name]
    module = __import__(function.__module__, fromlist=["_"])
    return str(module.__doc__).splitlines()[0].partition(": ")[2].rstrip(".")


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.strip()}\n```"
