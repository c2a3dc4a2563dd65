"""A key of a declared graph: what the passes and the code generator get to see, and nothing else.

Two graphs have one key only if compiling them gives the same program: every node with its
operation, operands, attributes, types and constants is in it, in the graph's order, with what is
made of it (inputs, outputs, updates), the options of the compilation, the target, and the versions
of all code that takes part. What the key leaves out is replaced when a program is found by it: the
ids of inputs and state count for their order alone, and so do the user's lines.

Whatever is not known to be plain data (a user's function, an operation of the user's own) makes a
graph one without a key, which is compiled as if there were no cache.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from staticgrad_runtime.cache import IMPORTED_NS
from staticgrad_runtime.state import StateCell

from staticgrad.ir.dim import Dim, DimCall
from staticgrad.ir.dtype import DType
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import Loc, Locs
from staticgrad.ir.node import DimEquality, Node, Value
from staticgrad.ir.types import TensorType
from staticgrad.ops import registry

if TYPE_CHECKING:
    from staticgrad.codegen.target import Target

# Constants beyond this are compiled without a key: hashing takes 0.6 ms a MiB, and an entry of the
# cache holds them.
MOST_CONSTANT_BYTES = 4 << 20
_SHORT = 64  # constants up to this many bytes stand in the key as they are


class NoKeyError(Exception):
    """The graph holds something that no key can stand for."""


class GraphKey(NamedTuple):
    """`digest` and what it leaves out: the cells of the state, by their ids, and the texts of the
    user's lines, in the order of file and line."""

    digest: str
    cells: tuple[StateCell, ...]
    locs: tuple[str, ...]


def graph_key(
    graph: Graph, training: bool | None, disable: Iterable[str], target: Target
) -> GraphKey | None:
    """The key of a compilation, None where it has none."""
    versions = code_versions()
    if versions is None:
        return None
    try:
        walk = _Walk(graph)
        text = repr(
            (versions, _plain(target), training, sorted({str(n) for n in disable}), walk.encoded)
        )
    except NoKeyError:
        return None
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return GraphKey(digest, tuple(walk.cells), tuple(str(loc) for loc in walk.locs))


@functools.cache
def code_versions() -> tuple[Any, ...] | None:
    """All code that a program depends on: versions, and of our own sources the sizes and times, so
    that whoever edits a pass gets what it makes. None where the sources are no files, or are not
    what this process has imported."""
    import llvmlite
    import staticgrad_runtime

    import staticgrad

    found: list[Any] = [staticgrad.__version__, llvmlite.__version__, np.__version__, sys.version]
    for package in (staticgrad, staticgrad_runtime):
        if package.__file__ is None:
            return None
        try:
            sources = _versions_of(Path(package.__file__).parent)
        except OSError:
            return None
        if sources is None:
            return None
        found += sources
    return tuple(found)


def _versions_of(package: Path) -> list[Any] | None:
    """Names, sizes and times of a package's sources: what Python trusts its own bytecode by.

    Where all times are the same, some packager has set them, and an edit may leave the sizes alone:
    the contents count (8 ms). None where there is only bytecode, and where a source is newer than
    this process, which runs the old one: its programs must not be found by the new one's key.
    """
    sources = list(_sources(package))
    times = {time for _, size, time in sources if size >= 0}
    if not times or max(times) >= IMPORTED_NS:
        return None
    if len(times) > 1:
        return sources
    contents = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        contents.update(path.read_bytes())
    return [*sources, contents.hexdigest()]


def _sources(directory: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of each module below."""
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.endswith(".py"):
                status = entry.stat()
                yield entry.name, status.st_size, status.st_mtime_ns
            elif entry.is_dir() and entry.name != "__pycache__":
                yield entry.name, -1, -1
                yield from _sources(Path(entry.path))


class _Walk:
    """One pass over a graph and the graphs that its nodes hold. `encoded` is made of nested tuples
    of numbers, strings and bytes, so that its `repr` says all; a tag in bytes, which no attribute
    is, tells one kind of thing from another."""

    def __init__(self, graph: Graph) -> None:
        self._constant_bytes = 0
        self._types: dict[int, Any] = {}
        self._loc_ranks: dict[Locs, tuple[int, ...]] = {}
        every = list(_with_inner(graph))
        self.locs: list[Loc] = sorted({
            loc
            for g in every
            for locs in (*g.locs.values(), *(n.locs for n in g.nodes),
                         *(c.locs for n in g.nodes for c in n.constraints),
                         *(c.locs for c in g.constraints))
            for loc in locs
        })  # fmt: skip
        self._rank = {loc: i for i, loc in enumerate(self.locs)}
        cells = {n.attrs["id"]: n.payload for g in every for n in g.nodes if n.op == "state"}
        self._places = {at: i for i, at in enumerate(sorted(cells))}
        self.cells = [cells[at] for at in self._places]
        if not all(isinstance(c, StateCell) and c.id == at for at, c in cells.items()):
            raise NoKeyError
        self.encoded = self._graph(graph)

    def _graph(self, graph: Graph) -> Any:
        places = {node: i for i, node in enumerate(graph.nodes)}
        ids = sorted(n.attrs["id"] for n in graph.nodes if n.op == "input")
        ranks = {"input": {at: i for i, at in enumerate(ids)}, "state": self._places}

        def refs(values: Iterable[Value]) -> tuple[int, ...]:
            return tuple(x for v in values for x in (places[v.node], v.index))

        nodes = []
        for n in graph.nodes:
            nodes.append((
                n.op, refs(n.operands), self._attrs(n, ranks), self._payload(n),
                tuple(self._type(t) for t in n.types),
                tuple(type(v).__qualname__ for v in n.results) if n.results else (),
                self._ranks(graph.locs[n]), self._ranks(n.locs), self._equalities(n.constraints),
            ))  # fmt: skip
        updates = (v for pair in graph.updates for v in pair)
        return (
            b"graph", tuple(nodes), refs(graph.inputs), refs(graph.outputs), refs(updates),
            graph.single, self._equalities(graph.constraints),
        )  # fmt: skip

    def _attrs(self, node: Node, ranks: Mapping[str, Mapping[int, int]]) -> Any:
        if not registry.is_builtin(node.op):
            raise NoKeyError
        found = []
        for name in sorted(node.attrs):
            value = node.attrs[name]
            if name == "id" and node.op in ranks:
                value = ranks[node.op][value]
            found.append((name, self._graph(value) if type(value) is Graph else _plain(value)))
        return tuple(found)

    def _payload(self, node: Node) -> Any:
        payload = node.payload
        if payload is None or (node.op == "state" and isinstance(payload, StateCell)):
            return None
        if node.op != "constant" or type(payload) is not np.ndarray or payload.dtype.hasobject:
            raise NoKeyError
        self._constant_bytes += payload.nbytes
        if self._constant_bytes > MOST_CONSTANT_BYTES:
            raise NoKeyError
        content = payload.tobytes()
        if len(content) > _SHORT:
            content = hashlib.sha256(content).digest()
        return payload.dtype.str, payload.shape, content

    def _type(self, t: TensorType) -> Any:
        known = self._types.get(id(t))  # the graph keeps it alive
        if known is None:
            known = self._types[id(t)] = (str(t.dtype), _plain(t.shape))
        return known

    def _ranks(self, locs: Locs) -> tuple[int, ...]:
        known = self._loc_ranks.get(locs)
        if known is None:
            known = self._loc_ranks[locs] = tuple(sorted(self._rank[loc] for loc in locs))
        return known

    def _equalities(self, equalities: Iterable[DimEquality]) -> Any:
        return tuple(
            (_plain(e.left), _plain(e.right), e.message, self._ranks(e.locs)) for e in equalities
        )


def _with_inner(graph: Graph) -> Iterator[Graph]:
    yield graph
    for n in graph.nodes:
        for a in n.attrs.values():
            if isinstance(a, Graph):
                yield from _with_inner(a)


_ITSELF = frozenset((int, bool, str, type(None)))


def _plain(value: Any) -> Any:
    """Attributes as tuples of what `repr` tells apart. Raises NoKeyError for what is no data."""
    kind = type(value)
    if kind in _ITSELF:
        return value
    if kind is tuple:
        return tuple(_plain(v) for v in value)
    if kind is float:
        return b"float", value.hex(), np.float64(value).tobytes()  # every NaN is another one
    if kind is DType:
        return b"dtype", str(value)
    if kind is Dim:
        return b"dim", _plain(value.terms)
    if kind is DimCall:
        return b"call", value.op, _plain(value.left), _plain(value.right)
    if kind is TensorType:
        return b"type", str(value.dtype), _plain(value.shape)
    if dataclasses.is_dataclass(kind) and kind.__module__.startswith("staticgrad."):
        fields = tuple((f.name, _plain(getattr(value, f.name))) for f in dataclasses.fields(value))
        return b"class", kind.__module__, kind.__qualname__, fields
    raise NoKeyError


__all__ = ["GraphKey", "graph_key"]
