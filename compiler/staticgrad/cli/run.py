"""`staticgrad run MODEL`: compile a graph and call it once."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.graph import Graph

from . import checkpoint
from .arrays import parse_input
from .console import Result, UsageError, shown
from .model import Model, load_model

_EXAMPLES = """\
examples:
  staticgrad run samples/digits_mlp.py --input x=@x.npy --checkpoint digits_mlp.safetensors
  staticgrad run model.py --input x=@data.npz#images --input scale=3.5 --output out.npz
  staticgrad run model.py --input 'x=[[1, 2], [3, 4]]' --json
  staticgrad run graph.sgir --input x=@x.csv --output y.npy
  staticgrad run model.py --input x=@x.npy --profile

An input is a JSON value or @FILE: .npy, .npz (FILE#NAME where it holds several) or .csv. Outputs
are called out0, out1, ... in the order of the graph.
"""

# Longer arrays are summarised for people, and left out of the JSON document.
_PRINTED_ELEMS = 1000


def add_parser(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "run",
        parents=[common],
        help="compile a graph and call it once",
        description="Compiles a model's graph and calls it once with the given inputs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a Python file with build(), or .sgir")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE", help="an input; repeat it"
    )
    parser.add_argument("--output", metavar="FILE", help="write the outputs: .npz, or .npy for one")
    parser.add_argument("--checkpoint", metavar="PATH", help="take parameters from a checkpoint")
    parser.add_argument(
        "--graph", choices=("predict", "train"), help="which graph (default: predict if there)"
    )
    parser.add_argument(
        "--profile", action="store_true",
        help="print instead of the outputs where the time of a call goes, kernel by kernel",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Result:
    """Compiles, calls, and prints or writes the outputs."""
    from staticgrad.api.compile import compile_graph

    _check_output_path(options.output)
    model = load_model(options.model)
    which, graph = model.graph(options.graph, "predict")
    inputs = _inputs(graph, options.input)
    _check_output_count(options.output, graph)
    _load_state(model, graph, options.checkpoint)
    program = compile_graph(graph)
    outputs = program(**inputs)
    profile = program.profile(**inputs) if options.profile else None
    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    named = {f"out{i}": array for i, array in enumerate(arrays)}
    if options.output is not None:
        _write(options.output, named)
    written = None if options.output is None else shown(options.output)
    fields: dict[str, Any] = {
        "model": model.name,
        "graph": which,
        "outputs": [_plain(name, a, written is None) for name, a in named.items()],
        "output": written,
    }
    if profile is not None:
        fields["profile"] = profile.to_dict()
    if written is not None:
        kinds = ", ".join(f"{name} {_kind(a)}" for name, a in named.items())
        text = f"{model.name}: {kinds} -> {written}"
    else:
        text = "\n".join(_text(name, a) for name, a in named.items())
    if profile is not None:
        text = str(profile) if written is None else f"{text}\n{profile}"
    return Result(fields, text)


def _inputs(graph: Graph, given: Sequence[str]) -> dict[str, Any]:
    """The values by name. Says at once which inputs are unknown and which are missing."""
    declared = {v.node.attrs["name"]: v for v in graph.inputs}
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = shown(name)  # as the model's source has it, whatever the locale
        if not equals or not name:
            raise UsageError(f"--input {shown(text)}: expected NAME=VALUE or NAME=@FILE")
        if name in pairs:
            raise UsageError(f"--input {name}: given twice")
        pairs[name] = value
    unknown = [name for name in pairs if name not in declared]
    missing = [name for name in declared if name not in pairs]
    if unknown or missing:
        problems = [f"unknown: {', '.join(unknown)}"] if unknown else []
        problems += [f"missing: {', '.join(missing)}"] if missing else []
        takes = ", ".join(f"{name}: {v.type}" for name, v in declared.items()) or "none"
        raise UsageError(f"inputs {'; '.join(problems)}; the graph takes {takes}")
    return {name: parse_input(name, pairs[name], v.type) for name, v in declared.items()}


def _load_state(model: Model, graph: Graph, path: str | None) -> None:
    if path is not None:
        checkpoint.load(path).restore(model.cells())
    elif model.program is not None and graph.state:
        print("staticgrad: no --checkpoint: parameters are as build() made them", file=sys.stderr)


# --- outputs --------------------------------------------------------------------------------------


def _check_output_path(path: str | None) -> None:
    if path is None:
        return
    if os.path.splitext(path)[1] not in (".npz", ".npy"):
        raise UsageError(f"--output {shown(path)}: expected a name that ends in .npz or .npy")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"--output {shown(path)}: the folder {shown(folder)} does not exist")


def _check_output_count(path: str | None, graph: Graph) -> None:
    if path is not None and path.endswith(".npy") and len(graph.outputs) != 1:
        raise UsageError(
            f"--output {shown(path)}: .npy holds one array, the graph has {len(graph.outputs)} "
            "outputs; use .npz"
        )


def _write(path: str, named: dict[str, np.ndarray[Any, Any]]) -> None:
    """To a temporary name, then renamed: no reader sees a part of the file."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            if path.endswith(".npz"):
                np.savez(file, allow_pickle=False, **named)  # type: ignore[arg-type]
            else:
                np.save(file, named["out0"], allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, leaves no half-written file
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _kind(array: np.ndarray[Any, Any]) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


def _text(name: str, array: np.ndarray[Any, Any]) -> str:
    value = np.array2string(array, threshold=_PRINTED_ELEMS, separator=", ")
    return f"{name}: {_kind(array)}{chr(10) if array.ndim > 1 else ' '}{value}"


def _plain(name: str, array: np.ndarray[Any, Any], with_values: bool) -> dict[str, Any]:
    listed = with_values and array.size <= _PRINTED_ELEMS
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "values": array.tolist() if listed else None,
    }


__all__ = ["add_parser", "run"]
