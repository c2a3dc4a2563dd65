"""`dump_stages`: every stage of a compilation as files, numbered in the order of the stages.

00_declared.txt .dot .mmd .json     the graph as it was declared
01_bind_mode.txt ...                the graph after each pass, those switched off included
07_program.txt                      the buffers with their lifetimes, the steps, the kernel IR
08_memory_plan.txt                  where the temporaries lie in the arena
09_llvm.ll  10_assembly.s           the code
report.json                         the report, the passes, and the list of these files
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from staticgrad_runtime.artifact import Manifest

from staticgrad.codegen.assemble import assembly_text
from staticgrad.ir.errors import BindError
from staticgrad.ir.graph import Graph
from staticgrad.ops.public import listed

REPORT = "report.json"
REPORT_VERSION = 1
# Sizes that only a call knows: the memory plan is shown for this one.
SHOWN_SIZE = 64

_OWN_NAME = re.compile(r"\d\d_[a-z0-9_]+\.(txt|dot|mmd|json|ll|s)\Z")


def dump_stages(
    graph: Graph, directory: str | os.PathLike[str], *, training: bool | None = None,
    disable: Iterable[str] = (),
) -> list[str]:  # fmt: skip
    """Compiles `graph` and writes every stage to `directory`, which is made if need be.

    A file is written as soon as its stage is done, so that what came before a failure is there.
    Files of an earlier dump that this one does not write are removed. Returns the paths.
    """
    from .compile import compile_graph, compile_stages

    off = listed(disable, "disable", "names of passes")
    out = _Directory(os.fspath(directory))
    passes: list[dict[str, Any]] = []

    def observe(index: int, name: str, after: Graph) -> None:
        out.graph(index, name, after)
        passes.append({
            "index": index, "name": name, "nodes": len(after), "disabled": name in off
        })  # fmt: skip

    made = compile_stages(graph, training=training, disable=off, observe=observe)
    executable = compile_graph(graph, training=training, disable=off)
    after = passes[-1]["index"] + 1
    from staticgrad.kernels.printer import program_text

    out.write(f"{after:02d}_program.txt", program_text(made.program))
    names = [b.name for b in made.program.buffers]
    out.write(f"{after + 1:02d}_memory_plan.txt", memory_plan_text(executable.manifest, names))
    out.write(f"{after + 2:02d}_llvm.ll", made.text)
    out.write(f"{after + 3:02d}_assembly.s", assembly_text(made.text, made.target))
    out.finish({"passes": passes, "report": executable.report().to_dict()})
    return out.paths


def memory_plan_text(manifest: Manifest, names: list[str]) -> str:
    """The arena's temporaries by their place: offset, bytes, and the steps that they live in.

    With symbolic sizes the plan depends on the call; it is shown with all of them `SHOWN_SIZE`.
    """
    from staticgrad_runtime.binding import Binder

    dims = dict.fromkeys(manifest.dims, SHOWN_SIZE)
    at = ", ".join(f"{name}={size}" for name, size in dims.items())
    binder = Binder(manifest)
    try:
        binder.check(dims)
    except BindError as error:
        return f"no plan at {at}: {error}\n"
    plan = binder.binding(dims).plan
    temps = [(i, b) for i, b in enumerate(manifest.buffers) if b.kind == "temp"]
    head = f"arena of {plan.peak_bytes} bytes" + (f" at {at}" if at else "")
    lines = [f"{head}; alive at once: at most {plan.lower_bound_bytes} bytes"]
    from staticgrad_runtime.dims import evaluate_int

    placed = sorted(
        (int(offset), i, evaluate_int(b.size_bytes, dims), b)
        for offset, (i, b) in zip(plan.offsets, temps)
    )
    width = max((len(names[i]) for _, i, _, _ in placed), default=0)
    for offset, i, size, b in placed:
        span = f"steps {b.first} to {b.last}" if b.last > b.first else f"step {b.first}"
        lines.append(f"  {offset:10d}  {size:10d} bytes  {names[i]:{width}s}  {span}")
    return "\n".join(lines) + "\n"


class _Directory:
    """The files of one dump."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.paths: list[str] = []
        os.makedirs(path, exist_ok=True)
        self._remove_old()

    def _remove_old(self) -> None:
        """Removes what an earlier dump lists as its own; other files stay."""
        try:
            with open(os.path.join(self.path, REPORT), encoding="utf-8") as file:
                files = json.load(file)["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        for name in files if isinstance(files, list) else ():
            full = os.path.join(self.path, str(name))
            if _OWN_NAME.match(str(name)) and os.path.isfile(full):
                os.unlink(full)

    def graph(self, index: int, name: str, graph: Graph) -> None:
        from staticgrad.inspect import to_dot, to_json, to_mermaid
        from staticgrad.ir.printer import to_text

        for suffix, text in (
            ("txt", to_text), ("dot", to_dot), ("mmd", to_mermaid), ("json", to_json)
        ):  # fmt: skip
            self.write(f"{index:02d}_{name}.{suffix}", text(graph))

    def write(self, name: str, text: str) -> None:
        path = os.path.join(self.path, name)
        # Lone surrogates (a file name's undecodable bytes) are the only text without UTF-8.
        with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text if text.endswith("\n") else text + "\n")
        self.paths.append(path)

    def finish(self, report: dict[str, Any]) -> None:
        names = [os.path.basename(p) for p in self.paths]
        document = {"version": REPORT_VERSION, **report, "files": [*names, REPORT]}
        self.write(REPORT, json.dumps(document, indent=2, ensure_ascii=False))
