"""Static tensors that depend on no input, where they meet the dynamic mode.

`0.1 * sum((p**2).sum() for p in model.parameters())` is graph, though it has a value at any time.
Its nodes are run one by one as eager operations, so that the tape leads to the parameters, and a
step of training that declares the same nodes anew finds their kernels. A node's results are kept
while what they were computed from has not changed: a tensor of random numbers has one value.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim
from staticgrad.ir.errors import ArgumentTypeError
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import Parameter, state_of
from staticgrad.ops.random import default_generator
from staticgrad.ops.tensor import Tensor as GraphTensor

from .mode import recording, tapes
from .parameters import leaf_of
from .tape import Node as TapeNode
from .tensor import CellStorage, Tensor


class _Kept:
    """A node's results, and what they hold for: the operands' versions, the tapes that record."""

    __slots__ = ("operands", "results", "scope", "versions")

    def __init__(self, results: tuple[Tensor, ...], operands: Sequence[Tensor], scope: Any) -> None:
        self.results = results
        self.operands = tuple(operands)
        self.versions = [_version(t) for t in (*operands, *results)]
        self.scope = scope

    def holds(self, operands: Sequence[Tensor], scope: Any) -> bool:
        same = len(operands) == len(self.operands) and all(
            a is b for a, b in zip(operands, self.operands)
        )
        return (
            same and scope == self.scope
            and self.versions == [_version(t) for t in (*operands, *self.results)]
            and not any(_freed(t) for t in self.results)
        )  # fmt: skip


_kept: weakref.WeakKeyDictionary[Node, _Kept] = weakref.WeakKeyDictionary()


def _version(t: Tensor) -> int:
    """How often the memory was changed; a parameter's by its `.data` too."""
    store = t._store
    return store.changes() if isinstance(store, CellStorage) else t._version


def _freed(t: Tensor) -> bool:
    """Whether a walk back has freed what the tape had saved for this result."""
    node: Any = t._node
    while node is not None and node.__class__ is not TapeNode and node.edges:
        node = node.edges[0]
    return node.__class__ is TapeNode and node.saved is None


class Fixed:
    """A value of the graph that a traced call reads as it is: the payload of a node, the generator.
    Equal for one identity."""

    __slots__ = ("identity", "value")

    def __init__(self, value: Any, identity: Any) -> None:
        self.value = value
        self.identity = identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and other.identity is self.identity

    def __hash__(self) -> int:
        return id(self.identity)


def applied(op: str, attrs: dict[str, Any], payload: Fixed, operands: Sequence[Any]) -> Any:
    """Traced: a node of the same operation on other operands."""
    given = [v.value if isinstance(v, Fixed) else v for v in operands]
    results = registry.make(op, given, attrs, payload=payload.value).results
    return results[0] if len(results) == 1 else tuple(results)


def value_of(t: GraphTensor) -> Tensor:
    """The present value of a static tensor, on the tape where parameters lead to it.

    Raises ArgumentTypeError for one that depends on an input, which has none.
    """
    nodes = sorted(reachable((t,)), key=lambda n: n.id)
    for node in nodes:
        if node.op == "input":
            raise ArgumentTypeError(
                f"a static tensor ({t!r}), which depends on the input {node.attrs['name']!r}, met "
                "a tensor of the dynamic mode: it has no value before its graph is compiled and "
                "called. Use one mode in one computation: eager.tensor(...) in place of sg.input"
            )
        if any(isinstance(d, Dim) for kind in node.types for d in kind.shape):
            raise ArgumentTypeError(
                f"a static tensor ({t!r}) of a symbolic size has no value: its size is known only "
                "when its graph is compiled and called"
            )
    scope = (recording.get(), tapes.get())
    found: dict[Node, tuple[Tensor, ...]] = {}
    live: set[Node] = set()
    for node in nodes:
        if node.op == "state" or any(v.node in live for v in node.operands):
            live.add(node)
    if t.node not in live:
        return _constant(t.node)[t.index]
    for node in nodes:
        if node not in live:
            continue
        if node.op == "state":
            found[node] = (leaf_of(_state(node.results[0])),)
        else:
            found[node] = _results(node, found, scope)
    return found[t.node][t.index]


def _constant(node: Node) -> tuple[Tensor, ...]:
    """The results of a node without state below it."""
    if node.op == "constant":
        return (Tensor(node.payload),)
    kept = _kept.get(node)
    if kept is None or not kept.holds((), None):
        arrays, _ = run_graph(Graph((), node.results), ())
        made = tuple(Tensor(np.array(a, order="C")) for a in arrays)
        kept = _kept[node] = _Kept(made, (), None)
    return kept.results


def _results(node: Node, found: dict[Node, tuple[Tensor, ...]], scope: Any) -> tuple[Tensor, ...]:
    drawn = "random" in registry.get(node.op).traits
    kept = _kept.get(node)
    if kept is not None and drawn:
        return kept.results  # numbers that were drawn stay what they are
    operands = [
        found[v.node][v.index] if v.node in found else _constant(v.node)[v.index]
        for v in node.operands
    ]
    if kept is None or not kept.holds(operands, scope):
        kept = _kept[node] = _Kept(_run(node, operands, drawn), operands, scope)
    return kept.results


def _run(node: Node, operands: Sequence[Tensor], drawn: bool) -> tuple[Tensor, ...]:
    from .dispatch import run_exactly

    generator = default_generator().cell
    given: list[Any] = []
    for v, t in zip(node.operands, operands):
        if v.node.op != "state":
            given.append(t)
        elif v.node.payload is generator:
            given.append(Fixed(v, generator))  # which the program advances
        else:
            given.append(_state(v))  # a layer may update it
    attrs = dict(node.attrs)
    if drawn and "site" in attrs:
        attrs["site"] = 0  # a program numbers its own
    payload = Fixed(node.payload, node.payload)
    made = run_exactly(applied, (node.op, attrs, payload, given))
    return made if isinstance(made, tuple) else (made,)


def _state(v: Value) -> Parameter:
    if isinstance(v, Parameter):
        return v
    return state_of(v.node.payload, bool(v.node.attrs["trainable"]))


__all__ = ["Fixed", "value_of"]
