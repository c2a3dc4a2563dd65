"""`staticgrad compile MODEL`: the report, and every stage as files."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .console import Result, UsageError, shown
from .model import load_model

_EXAMPLES = """\
examples:
  staticgrad compile samples/digits_mlp.py
  staticgrad compile samples/digits_mlp.py --graph predict --dump-dir out/
  staticgrad compile model.py --disable fuse cse --dim N=64 --json
  staticgrad compile graph.sgir --dump-dir out/

--dump-dir gets the graph after every pass as text (.txt), Graphviz (.dot), Mermaid (.mmd) and JSON,
the kernels, the program with its memory plan, LLVM IR, assembly and report.json.
"""


def add_parser(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "compile",
        parents=[common],
        help="compile a graph, show the report, dump every stage",
        description="Compiles a model's graph and prints what came out of it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a Python file with build(), or .sgir")
    parser.add_argument("--dump-dir", metavar="DIR", help="write every stage to files in DIR")
    parser.add_argument(
        "--graph", choices=("train", "predict"), help="which graph (default: train if there)"
    )
    parser.add_argument(
        "--disable", nargs="+", action="extend", default=[], metavar="PASS",
        help="leave passes out, for comparison",
    )  # fmt: skip
    parser.add_argument(
        "--dim", action="append", default=[], metavar="NAME=SIZE",
        help="a size for the report's figures, e.g. N=64; repeat it",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Result:
    """Compiles, dumps, and gives the report."""
    from staticgrad.api.compile import compile_graph
    from staticgrad.api.dump import dump_stages

    dims = _dims(options.dim)
    model = load_model(options.model)
    which, graph = model.graph(options.graph, "train")
    files: list[str] = []
    if options.dump_dir is not None:
        if os.path.exists(options.dump_dir) and not os.path.isdir(options.dump_dir):
            raise UsageError(f"--dump-dir {shown(options.dump_dir)}: this is a file")
        # First, so that what came before a failure can be looked at.
        files = dump_stages(graph, options.dump_dir, disable=options.disable)
    compiled = compile_graph(graph, disable=options.disable)
    unknown = sorted(dims.keys() - set(compiled.manifest.dims))
    if unknown:
        known = ", ".join(compiled.manifest.dims) or "none"
        raise UsageError(f"--dim: the graph has no size {', '.join(unknown)}; it has {known}")
    report = compiled.report(**dims)
    fields = {
        "model": model.name,
        "graph": which,
        "report": report.to_dict(),
        "dump_dir": None if options.dump_dir is None else shown(options.dump_dir),
        "files": [shown(os.path.basename(f)) for f in files],
    }
    text = f"{model.name}, {which}\n{report}" if which != "graph" else f"{model.name}\n{report}"
    if files:
        text += f"\n{len(files)} files in {shown(options.dump_dir)}"
    return Result(fields, text)


def _dims(given: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in given:
        name, _, size = shown(text).partition("=")
        if not name.isidentifier() or not size.isdecimal():
            raise UsageError(f"--dim {shown(text)}: expected NAME=SIZE, e.g. N=64")
        if name in found:
            raise UsageError(f"--dim {name}: given twice")
        found[name] = int(size)
    return found
