"""What every graph must be, checked: passes are tested by it, hand-written text is read by it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import numpy as np

from .dim import Dim
from .dtype import DType
from .errors import StaticgradError, VerifyError
from .graph import Graph, subgraphs
from .loc import Locs, locs_text
from .node import DimEquality, Node, Value
from .types import TensorType

# What the reference interpreter adds to a node's attributes.
_CONTEXT = frozenset(("dims", "payload"))


class OpRecord(Protocol):
    """What is asked of an op's record."""

    def __hash__(self) -> int: ...

    @property
    def infer(self) -> Callable[..., tuple[TensorType, ...]]: ...
    @property
    def reference(self) -> Callable[..., Any]: ...


class OpTable(Protocol):
    """The records by name and how nodes are made: the module `ops.registry` is one."""

    def get(self, name: str) -> OpRecord: ...
    def all_ops(self) -> Mapping[str, OpRecord]: ...
    def make(
        self, name: str, operands: Any, attrs: Mapping[str, Any] | None = None, *,
        payload: Any = None, locs: Locs | None = None,
    ) -> Node: ...  # fmt: skip


Infer = Callable[[str, tuple[TensorType, ...], Mapping[str, Any]], tuple[TensorType, ...]]


def infer_by(ops: OpTable) -> Infer:
    """The rule of types that `verify_graph` asks: the record's, after a look at the number of
    operands and the names of the attributes. Raises KeyError for an op that is not there."""

    def infer(
        op: str, types: tuple[TensorType, ...], attrs: Mapping[str, Any]
    ) -> tuple[TensorType, ...]:
        record = ops.get(op)
        problem = call_problem(record, len(types), frozenset(attrs))
        if problem:
            raise VerifyError(problem)
        return record.infer(types, attrs)

    return infer


def verify_graph(graph: Graph, infer: Infer, *, located: bool = False) -> None:
    """Raises `VerifyError`, naming the node, unless the graph is well formed:

    - inputs are input nodes, each once, with names and ids of their own
    - nodes come after what they read and are known ops with fitting operands and attributes
    - every type is what the op's `infer` gives; attributes are plain data
    - outputs and new values are computed in the graph; only state is updated, once, by its own type
    - every node has an entry in the table of locations, with `located` one that is not empty
    - so are the closed sub-graphs, which read nothing from outside

    Linear in the nodes.
    """
    stack: list[tuple[Graph, str]] = [(graph, "")]
    while stack:
        g, where = stack.pop()
        _Verifier(g, where, infer, located).run()
        for node in g.nodes:
            for name, inner in subgraphs(node):
                stack.append((inner, f"{where}{node.op} #{node.id}, {name}: "))


class _Verifier:
    def __init__(self, graph: Graph, where: str, infer: Infer, located: bool) -> None:
        self.graph, self.where, self.infer, self.located = graph, where, infer, located
        self.known: set[Value] = set()
        self.inputs = set(graph.inputs)

    def fail(self, what: str, node: Node | None = None) -> NoReturn:
        place = ""
        if node is not None:
            locs = self.graph.locs.get(node, node.locs)
            place = f"{node!r}{f' (declared at {locs_text(locs)})' if locs else ''}: "
        raise VerifyError(f"{self.where}{place}{what}")

    def run(self) -> None:
        g = self.graph
        self._inputs()
        for node in g.nodes:
            self._node(node)
        for v in g.outputs:
            self._computed(v, "an output")
        self._updates()
        for c in g.constraints:
            if not isinstance(c, DimEquality):
                self.fail(f"the constraint {c!r} is no DimEquality")
        if g.single and len(g.outputs) != 1:
            self.fail(f"a graph with a single output has {len(g.outputs)}")

    def _inputs(self) -> None:
        names: set[str] = set()
        ids: set[Any] = set()
        for v in self.graph.inputs:
            if v.node.op != "input":
                self.fail("it is among the inputs but is no input", v.node)
            name, number = v.node.attrs.get("name"), v.node.attrs.get("id")
            if name in names:
                self.fail(f"the input name {name!r} is given twice", v.node)
            if number in ids:
                self.fail(f"the input id {number} is given twice", v.node)
            names.add(str(name))
            ids.add(number)

    def _node(self, node: Node) -> None:
        for i, v in enumerate(node.operands):
            if v not in self.known:
                self.fail(f"operand {i}, {v.node!r}, does not come before it in this graph", node)
        if node.op == "input" and node.results[0] not in self.inputs:
            self.fail("the graph reads an input that is not among its inputs", node)
        if any(r.node is not node or r.index != i for i, r in enumerate(node.results)):
            self.fail("its results are not its own", node)
        if len(node.results) != len(node.types):
            self.fail(f"{len(node.results)} results have {len(node.types)} types", node)
        if node.results and node.results[0] in self.known:
            self.fail("it stands in the order twice", node)
        self._attrs(node)
        self._types(node)
        if node not in self.graph.locs:
            self.fail("it has no entry in the graph's table of locations", node)
        if self.located and node.op != "input" and not self.graph.locs[node]:
            self.fail("it has lost its location", node)
        self.known.update(node.results)

    def _attrs(self, node: Node) -> None:
        for name, value in node.attrs.items():
            if not _plain(value):
                self.fail(f"the attribute {name}={value!r} is no immutable plain data", node)
        if node.op == "constant":
            array = node.payload
            t = node.types[0]
            if not isinstance(array, np.ndarray):
                self.fail("a constant without its array", node)
            elif array.dtype != t.dtype.numpy or array.shape != t.shape:
                self.fail(f"its array is {array.dtype}{list(array.shape)}", node)

    def _types(self, node: Node) -> None:
        try:
            inferred = self.infer(node.op, tuple(v.type for v in node.operands), node.attrs)
        except StaticgradError as error:
            self.fail(str(error), node)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            # A rule of types is written for what the public function has normalised.
            self.fail(f"its operands or attributes do not fit: {error}", node)
        if tuple(inferred) != node.types:
            shown = ", ".join(str(t) for t in inferred)
            self.fail(f"inferred is {shown}", node)

    def _computed(self, v: Value, what: str) -> None:
        if v not in self.known:
            self.fail(f"{what}, {v.node!r}, is not computed in the graph")

    def _updates(self) -> None:
        updated: set[Value] = set()
        for state, value in self.graph.updates:
            if state.node.op != "state":
                self.fail("it is updated but is no state", state.node)
            if state in updated:
                self.fail("it is updated twice", state.node)
            updated.add(state)
            self._computed(value, "a new value")
            if state.type != value.type:
                self.fail(f"its new value is {value.type}", state.node)


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_plain(v) for v in value)
    kinds = (bool, int, float, str, DType, Dim, Graph)
    return value is None or (isinstance(value, kinds) and not isinstance(value, np.generic))


@functools.lru_cache(maxsize=4096)
def call_problem(record: OpRecord, count: int, attrs: frozenset[str]) -> str | None:
    """Why an op can't have so many operands and these attributes; None if it can.

    The reference implementation's own parameters say what the op takes.
    """
    function = record.reference
    if isinstance(function, np.ufunc):
        if count != function.nin:
            return f"expected {_operands(function.nin)}, got {count}"
        return f"unexpected attributes {', '.join(sorted(attrs))}" if attrs else None
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function in C that does not tell
        return None
    attrs |= _CONTEXT & set(signature.parameters)
    try:
        signature.bind(*[None] * count, **dict.fromkeys(attrs))
    except TypeError as error:
        return _reason(signature, count, attrs, str(error))
    return None


def _reason(signature: inspect.Signature, count: int, attrs: frozenset[str], otherwise: str) -> str:
    parameters = signature.parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        unknown = sorted(attrs - set(signature.parameters))
        if unknown:
            return f"unexpected attributes {', '.join(unknown)}"
    positional = [
        p for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in attrs
    ]  # fmt: skip
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if count > len(positional) and not variadic:
        return f"expected {_operands(len(positional))}, got {count}"
    missing = [
        p.name for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in attrs
    ] + [p.name for p in positional[count:] if p.default is p.empty]  # fmt: skip
    if missing:
        return f"operands or attributes are missing: {', '.join(missing)}"
    return otherwise


def _operands(count: int) -> str:
    return f"{count} operand{'s' if count != 1 else ''}"
