"""Saving and loading: arrays as safetensors, graphs as text with their tensors beside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from staticgrad_runtime import checkpoint

from staticgrad.ir import graph as ir
from staticgrad.ir.errors import ArgumentTypeError, ParseError
from staticgrad.ops import registry
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import public, shown

from .graph import Graph

Array = np.ndarray[Any, Any]


@public
def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes named arrays (or parameters) in the safetensors format, atomically: to a temporary
    file that is then renamed."""
    if not isinstance(arrays, Mapping):
        raise ArgumentTypeError(
            f"save: expected a dict of arrays, e.g. model.state_dict(), got {type(arrays).__name__}"
        )
    _check_path(path, "save")
    plain = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise ArgumentTypeError(f"save: the names of arrays must be strs, got {name!r}")
        plain[name] = value.numpy() if isinstance(value, Parameter) else np.asarray(value)
    checkpoint.save(path, plain, {})


@public
def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays that `save` wrote, by name. Raises `FileNotFoundError`, and `StateError` for a
    file that is damaged."""
    _check_path(path, "load")
    return dict(checkpoint.load(path)[0])


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
