"""The effects that `sg.debug` registers on values: which there are, and which of them a graph has.

They hang on the nodes that they watch, beside the graph: no pass, text or key knows of them, and
they go when the node goes.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.loc import Locs, current_locs
from staticgrad.ir.node import Node, Value

from . import registry

Effect = Callable[[np.ndarray[Any, Any]], Any]


class Tap:
    """One effect on one result of a node; `number` is its place in the order of declaration."""

    __slots__ = ("__weakref__", "index", "locs", "number", "run")

    def __init__(self, number: int, index: int, run: Effect, locs: Locs) -> None:
        self.number, self.index, self.run, self.locs = number, index, run, locs
        _living.add(self)


class EachStep:
    """An effect on what all steps of a loop gave, along `axis`: that of each, in the order in which
    they ran."""

    def __init__(self, run: Effect, reverse: bool, axis: int = 0) -> None:
        self.run, self.reverse, self.axis = run, reverse, axis

    def __call__(self, stacked: np.ndarray[Any, Any]) -> None:
        rows = np.moveaxis(stacked, self.axis, 0)
        for row in rows[::-1] if self.reverse else rows:
            self.run(row)


class Watch:
    """What hangs on a node: the effects on its results and, on an input, the watched values that
    are computed from it. Those live as long as the input, so that what nobody else holds, as in
    `debug.print(h.mean())`, is not lost."""

    __slots__ = ("derived", "taps")

    def __init__(self) -> None:
        self.taps: tuple[Tap, ...] = ()
        self.derived: list[Value] = []


# While the body of a loop or a choice is traced: what it watches.
_body: ContextVar[list[tuple[Value, Tap]] | None] = ContextVar("body_taps", default=None)
_numbers = itertools.count(1)
_living: weakref.WeakSet[Tap] = weakref.WeakSet()
_changes = 0
_cleared = 0  # taps up to this number are removed


def _watch(node: Node) -> Watch:
    if node.watch is None:
        node.watch = Watch()
    found: Watch = node.watch
    return found


def _taps(node: Node) -> Sequence[Tap]:
    return () if node.watch is None else [t for t in node.watch.taps if t.number > _cleared]


def add(value: Value, run: Effect) -> None:
    """Registers an effect. On state, which one model's declarations share, a second one from the
    same line takes the place of the first."""
    global _changes
    _changes += 1
    node, locs = value.node, current_locs()
    kept = [
        t for t in _taps(node) if node.op != "state" or (t.index, t.locs) != (value.index, locs)
    ]
    made = Tap(next(_numbers), value.index, run, locs)
    _watch(node).taps = (*kept, made)
    _note(value, [made])


def _note(value: Value, made: Sequence[Tap]) -> None:
    """Tells who traces a body, and the first input of the value, of new taps on it."""
    pass_on([(value, tap) for tap in made])
    inputs = [n for n in reachable((value,)) if n.op == "input" and n is not value.node]
    if inputs:
        _watch(inputs[0]).derived.append(value)


def pass_on(found: Sequence[tuple[Value, Tap]]) -> None:
    """Tells who traces the body around of taps in it."""
    body = _body.get()
    if body is not None:
        body.extend(found)


@contextlib.contextmanager
def of_body() -> Iterator[list[tuple[Value, Tap]]]:
    """The taps that are added inside, for who makes a closed graph of what is traced there."""
    found: list[tuple[Value, Tap]] = []
    token = _body.set(found)
    try:
        yield found
    finally:
        _body.reset(token)


def remove(value: Value) -> None:
    """Removes the effects on a value."""
    global _changes
    _changes += 1
    if value.node.watch is not None:
        value.node.watch.taps = tuple(t for t in _taps(value.node) if t.index != value.index)


def remove_all() -> None:
    """Removes all effects."""
    global _changes, _cleared
    _changes += 1
    _cleared = next(_numbers)


def carry(old: Value, new: Value, *, rows: bool = False) -> None:
    """A value that takes another's place takes over its taps; with `rows` it has an axis more in
    front, of as many values."""
    found = [t for t in _taps(old.node) if t.index == old.index]
    if found and old is not new:
        moved = [
            Tap(t.number, new.index, _of_rows(t.run) if rows else t.run, t.locs) for t in found
        ]
        _watch(new.node).taps = (*_taps(new.node), *moved)
        if rows:
            _note(new, moved)


def _of_rows(run: Effect) -> Effect:
    if isinstance(run, EachStep):
        return EachStep(_of_rows(run.run), run.reverse, run.axis + 1)
    return run


def changes() -> int:
    """How often taps were added or removed: what was compiled at another count may lack some."""
    return _changes


def living() -> int:
    """How many taps there are."""
    return sum(t.number > _cleared for t in _living)


def taps_of(
    graph: Graph, training: bool | None = None, *, derived: bool = True
) -> list[tuple[Value, Tap]]:
    """The taps of a graph in this mode, in the order of their declaration: those on values that it
    computes and, with `derived`, on values that follow from these and its inputs without drawing
    random numbers or touching the state of layers."""
    if not _living:
        return []
    computed = _computed(graph, training)
    found = [(node.results[tap.index], tap) for node in computed for tap in _taps(node)]
    if derived:
        values = {v for i in graph.inputs if i.node.watch is not None for v in i.node.watch.derived}
        # What the graph holds and does not compute is the branch of another mode.
        left_out = {*graph.nodes} - computed
        more = {v.node for v in values if _follows(v, computed, left_out)} - computed
        found += [(node.results[tap.index], tap) for node in more for tap in _taps(node)]
    return sorted(found, key=lambda pair: pair[1].number)


def _computed(graph: Graph, training: bool | None) -> set[Node]:
    """The nodes that are left when the mode is bound: a tap in a layer's training branch must not
    make an evaluation compute it."""
    mode = bool(graph.updates) if training is None else training
    seen: set[Node] = set()
    stack = [v.node for v in (*graph.inputs, *graph.roots)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        needed: Sequence[Value] = node.operands
        if node.op == "training_switch":
            bound = node.attrs["training"]
            trains = mode if bound is None else bound
            # In training also the new values of the state that the layer updates.
            needed = (needed[0], *needed[3::2]) if trains else needed[1:2]
        stack.extend(v.node for v in needed)
    return seen


def _follows(value: Value, computed: set[Node], left_out: set[Node]) -> bool:
    """Whether a value can be computed from those of a graph without any effect of its own."""
    seen: set[Node] = set()
    stack = [value.node]
    while stack:
        node = stack.pop()
        if node in computed or node in seen:
            continue
        seen.add(node)
        if node in left_out or node.op in ("input", "training_switch"):
            return False
        if "random" in registry.get(node.op).traits:
            return False
        stack.extend(v.node for v in node.operands)
    return True


__all__ = [
    "EachStep", "Tap", "add", "carry", "changes", "living", "of_body", "pass_on", "remove",
    "remove_all", "taps_of",
]  # fmt: skip
