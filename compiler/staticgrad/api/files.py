"""Saving and loading: arrays as safetensors, graphs as text with their tensors beside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from staticgrad_runtime import checkpoint

from staticgrad.ir import graph as ir
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ParseError, StateError
from staticgrad.ops import registry
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import public, shown

from .graph import Graph

Array = np.ndarray[Any, Any]


@public
def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes named arrays (or parameters) in the safetensors format, atomically: to a temporary
    file that is then renamed.

    A dict may hold dicts, and beside them numbers, strs, None and lists of all these:

        sg.save(path, {"model": model.state_dict(), "opt": optimizer.state_dict(), "epoch": 3})

    The file then has each array by its dotted path, "model.hidden.weight", which other programs
    read, and in its metadata what `load` puts together again. Raises `ArgumentTypeError` for other
    objects, `ArgumentError` where two arrays have one name.
    """
    if not isinstance(arrays, Mapping):
        raise ArgumentTypeError(
            f"save: expected a dict of arrays, e.g. model.state_dict(), got {type(arrays).__name__}"
        )
    _check_path(path, "save")
    plain: dict[str, Array] = {}
    if any(isinstance(v, Mapping) for v in arrays.values()):
        form = _stored(arrays, "", plain)
        checkpoint.save(path, plain, {_FORM: json.dumps(form)})
        return
    for name, value in arrays.items():
        _check_name(name)
        plain[name] = _plain(value, name)
    checkpoint.save(path, plain, {})


@public
def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` wrote: arrays by name, or the nested dict with numbers and strs. Raises
    `FileNotFoundError`, and `StateError` for a file that is damaged."""
    _check_path(path, "load")
    arrays, metadata = checkpoint.load(path)
    if _FORM not in metadata:
        return dict(arrays)
    try:
        found = dict(_restored(json.loads(metadata[_FORM]), arrays))
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{os.fspath(path)}: its nested form is damaged: {type(error).__name__}: {error}"
        ) from None
    return found


# The entry of a file's metadata that says how its arrays are nested. Each place is a pair of its
# kind and what is there: a dict or list of places, the name of an array, a number or str.
_FORM = "staticgrad.form"
_VALUES = (bool, int, float, str, type(None))


def _stored(value: Any, name: str, arrays: dict[str, Array]) -> list[Any]:
    """The form of a value, whose arrays are added to `arrays`."""
    if isinstance(value, Mapping):
        for key in value:
            _check_name(key)
        return ["dict", {k: _stored(v, f"{name}.{k}" if name else k, arrays)
                         for k, v in value.items()}]  # fmt: skip
    if isinstance(value, (list, tuple)):
        items = [_stored(v, f"{name}.{i}", arrays) for i, v in enumerate(value)]
        return ["tuple" if isinstance(value, tuple) else "list", items]
    if isinstance(value, _VALUES) and not isinstance(value, np.generic):
        return ["value", value if not isinstance(value, float) else float(value)]
    if name in arrays:
        raise ArgumentError(f"save: two arrays have the name {name!r}; rename one of them")
    arrays[name] = _plain(value, name)
    return ["array", name]


def _restored(form: Any, arrays: Mapping[str, Array]) -> Any:
    kind, held = form
    if kind == "dict":
        return {k: _restored(v, arrays) for k, v in held.items()}
    if kind in ("list", "tuple"):
        items = [_restored(v, arrays) for v in held]
        return tuple(items) if kind == "tuple" else items
    return arrays[held] if kind == "array" else held


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"save: the names of arrays must be strs, got {name!r}")


def _plain(value: Any, name: str) -> Array:
    array = value.numpy() if isinstance(value, Parameter) else np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise ArgumentTypeError(
            f"save: {name!r} is {shown(value)}; expected arrays, dicts of them, numbers and strs "
            "beside such dicts. Of a model or an optimiser save its state_dict()"
        )
    found: Array = array
    return found


def _check_path(path: Any, what: str) -> None:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ArgumentTypeError(f"{what}: path must be a path, got {shown(path)}")


def parse(text: str) -> Graph:
    """The graph that `Graph.to_text` printed, of new nodes; its state starts as zeros.

    Raises `ParseError` with line and column; also where the text names constants that are too
    large for it: `load_graph` reads those from the file beside the text.
    """
    from staticgrad.ir import parser  # 20 ms, which not every import should pay

    if not isinstance(text, str):
        raise ArgumentTypeError(f"from_text: expected a str, got {type(text).__name__}")
    return _public(parser.parse_graph(text, registry))


def save_graph(graph: ir.Graph, path: str | os.PathLike[str]) -> None:
    """Writes a graph's text to `path`, and its large constants and the values of its state to a
    safetensors file beside it: `model.sgir` and `model.safetensors`. Both are replaced at once."""
    from staticgrad.ir import printer

    printer.save_graph(graph, path)


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """The graph that `save_graph` wrote, with the values of its state.

    Raises `FileNotFoundError`, `ParseError` with line and column, `StateError` where the file
    beside it is damaged.
    """
    from staticgrad.ir import parser

    if os.path.isdir(path):
        raise ParseError(f"{os.fspath(path)} is a directory; expected a graph's text")
    return _public(parser.load_graph(path, registry))


def _public(graph: ir.Graph) -> Graph:
    """The same graph with the methods that users know."""
    found = Graph.__new__(Graph)
    ir.Graph.__init__(
        found, graph.inputs, graph.outputs, graph.updates, order=graph.nodes, locs=graph.locs,
        constraints=graph.constraints, single=graph.single,
    )  # fmt: skip
    return found


__all__ = ["load", "load_graph", "parse", "save", "save_graph"]
