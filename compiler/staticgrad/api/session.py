"""`Session`: declare, then run what is fetched, as TensorFlow 1 has it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from staticgrad_runtime.arrays import ConversionError, cast_checked, is_masked
from staticgrad_runtime.state import StateCell
from staticgrad_runtime.workers import thread_count

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, BindError
from staticgrad.ir.graph import reachable
from staticgrad.ir.loc import locs_text, use_locs
from staticgrad.ir.node import Value
from staticgrad.ops import registry, taps
from staticgrad.ops.leaves import input as declare_input
from staticgrad.ops.mode import state_updates
from staticgrad.ops.public import public_class, shown
from staticgrad.ops.tensor import Tensor

from . import pytree
from .compile import Executable, build
from .debug import tapped
from .graph import Graph, checked_updates

Array = np.ndarray[Any, Any]
Pair = tuple[Tensor, Tensor]

# What cells held before the first session's program that updates them was compiled.
_first_values: weakref.WeakKeyDictionary[StateCell, Array] = weakref.WeakKeyDictionary()


class Initializer:
    """What `global_variables_initializer` gives: an operation to run, whose result is None."""

    def run(self) -> None:
        for cell, value in list(_first_values.items()):
            cell.assign(value)

    def __repr__(self) -> str:
        return "global_variables_initializer()"


def global_variables_initializer() -> Initializer:
    """An operation for `Session.run` that gives state its first values back.

    Parameters have their values from the moment they are declared, so a program need not run it.
    When it is run, all state that sessions' updates have changed (parameters, statistics, slots of
    optimisers) takes the value that it had before the first of them. Random values are those that
    were drawn first, not new ones; learning rates and the random generator stay as they are.
    """
    return Initializer()


@dataclass(frozen=True)
class _Request:
    """What one run asks for, in order."""

    outputs: list[Tensor]
    updates: list[Pair]
    initializers: list[Initializer]
    places: list[int | None]  # of each leaf among the outputs; None: no value

    def key(self) -> tuple[Any, ...]:
        pairs = tuple((_id(s), _id(v)) for s, v in self.updates)
        return tuple(map(_id, self.outputs)), pairs


@dataclass(frozen=True)
class _Compiled:
    program: Executable
    feeds: list[tuple[Any, Tensor]]  # for each input: the key in feed_dict, and what is fed


def _id(v: Value) -> tuple[int, int]:
    return v.node.id, v.index


@public_class
class Session:
    """Runs parts of a declared graph: `Session().run(fetches, feed_dict={x: xb})`.

    Only what the fetches need is compiled and computed. A program is kept for each combination of
    fetches and fed tensors. State belongs to the parameters, not to the session: all sessions and
    compiled programs see the same values. A session is a context manager that closes itself.
    `threads` is how many a run may use, as `compile` has it.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        self._threads = None if threads is None else thread_count(threads)
        self._programs: dict[Any, _Compiled] = {}
        self._changes = taps.changes()
        self._closed = False

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """The values of `fetches`, in their structure.

        fetches    a tensor, updates (what an optimiser's `minimize` gives; their value is None),
                   `global_variables_initializer()`, None, or lists, tuples and dicts of these,
                   nested. All values are those from before the updates of the same run. With
                   updates layers are in training mode, without them in evaluation
        feed_dict  arrays by tensor, or by the name of an input. Numbers are converted to the
                   tensor's dtype where its kind allows it (float64 to float32, int to float) and
                   they fit. A tensor that is no input may be fed as well: it then takes the array's
                   values, and what would compute it is left out

        Raises `BindError` for an input without a value or with one that does not fit,
        `ArgumentTypeError` for fetches of another kind, `ExecutionError` as any program does.
        """
        request, form = self._request(fetches)
        feed = _checked_feed(feed_dict)
        for initializer in request.initializers:
            initializer.run()
        values: Sequence[Any] = ()
        if request.outputs or request.updates:
            made = self._compiled(request, feed)
            values = made.program(*(_fed_array(t, feed[key]) for key, t in made.feeds))
        leaves = [None if place is None else values[place] for place in request.places]
        return pytree.unflatten(form, leaves)

    def executable(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Executable:
        """The program that `run` would call, for its `report()` and `dump()`. Its outputs are the
        fetched tensors, each once. Of `feed_dict` only the keys matter; without it all inputs that
        are needed are fed.

        Raises `ArgumentError` where nothing is to be computed.
        """
        request, _ = self._request(fetches)
        if not request.outputs and not request.updates:
            raise ArgumentError("Session.executable: the fetches need no program")
        feed = _checked_feed(feed_dict)
        if feed_dict is None:
            roots = [*request.outputs, *(new for _, new in checked_updates(request.updates))]
            feed = dict.fromkeys(_inputs(roots))
        return self._compiled(request, feed).program

    def close(self) -> None:
        """Forgets the compiled programs; the session can't be used any more."""
        self._closed = True
        self._programs.clear()

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError("the session is closed; make a new one with sg.Session()")

    def _request(self, fetches: Any) -> tuple[_Request, pytree.Structure]:
        self._check_open()
        leaves, form = pytree.flatten(fetches)
        request = _Request([], [], [], [])
        known: dict[Tensor, int] = {}
        for leaf in leaves:
            place: int | None = None
            if isinstance(leaf, Tensor):
                place = known.setdefault(leaf, len(known))
                if place == len(request.outputs):
                    request.outputs.append(leaf)
            elif isinstance(leaf, Initializer):
                request.initializers.append(leaf)
            elif isinstance(leaf, Sequence) and not isinstance(leaf, (str, bytes)):
                request.updates.extend(leaf)  # lists and tuples are structure: these are updates
            else:
                raise ArgumentTypeError(
                    "Session.run: fetches are tensors, updates (what an optimiser's minimize "
                    f"gives), or lists, tuples and dicts of them, got {shown(leaf)}"
                )
            request.places.append(place)
        return request, form

    def _compiled(self, request: _Request, feed: Mapping[Any, Any]) -> _Compiled:
        if self._changes != taps.changes():
            self._programs.clear()
            self._changes = taps.changes()
        fed = frozenset(key if isinstance(key, str) else _id(key) for key in feed)
        key = (*request.key(), fed)
        made = self._programs.get(key)
        if made is None:
            made = self._programs[key] = _compile(request, feed, self._threads)
        return made


def _checked_feed(feed_dict: Any) -> dict[Any, Any]:
    if feed_dict is None:
        return {}
    if not isinstance(feed_dict, Mapping):
        raise ArgumentTypeError(
            f"Session.run: feed_dict must be a dict of arrays by tensor, got {shown(feed_dict)}"
        )
    for key in feed_dict:
        if not isinstance(key, (Tensor, str)):
            raise ArgumentTypeError(
                f"Session.run: the keys of feed_dict are tensors or names, got {shown(key)}"
            )
    return dict(feed_dict)


def _fed_array(t: Tensor, value: Any) -> Array:
    """What is fed, in the tensor's dtype."""
    if isinstance(value, Value):
        raise BindError(f"Session.run: {_label(t)}: feed an array, not the tensor {value!r}")
    if is_masked(value):
        raise BindError(
            f"Session.run: {_label(t)}: expected {t.type}, got a masked array; fill it first: "
            "`x.filled(...)`"
        )
    try:
        given = np.asarray(value)
        # An empty list is of no kind: NumPy's float64 says nothing about it.
        if given.size == 0 and not isinstance(value, np.ndarray):
            return given.astype(t.dtype.numpy)
        return cast_checked(given, t.dtype.numpy)
    except ConversionError as error:
        came = f"got {error} in {shown(value)}"
    except (ValueError, TypeError, OverflowError) as error:
        came = f"got {shown(value)}: {error}"
    raise BindError(f"Session.run: {_label(t)}: expected {t.type}, {came}")


def _label(t: Tensor) -> str:
    kind = "the input" if t.node.op == "input" else t.node.op
    name = f" {t.name!r}" if t.name else ""
    return f"{kind}{name} (declared at {locs_text(t.node.locs)})"


def _compile(request: _Request, feed: Mapping[Any, Any], threads: int | None) -> _Compiled:
    updates = checked_updates(request.updates)
    roots = [*request.outputs, *(new for _, new in updates)]
    keys = {_named_input(key, roots) if isinstance(key, str) else key: key for key in feed}
    if len(keys) < len(feed):
        raise ArgumentError("Session.run: feed_dict feeds a tensor twice, by itself and by name")
    cut = {t: _placeholder(t, keys) for t in keys if t.node.op != "input"}
    values = _substituted(roots, cut)
    outputs, new = values[: len(request.outputs)], values[len(request.outputs) :]
    pairs = [(state, value) for (state, _), value in zip(updates, new)]
    originals = {placeholder: t for t, placeholder in cut.items()}
    inputs = _inputs(values)
    for v in inputs:
        if v not in keys and v not in originals:
            raise BindError(
                f"Session.run: the fetches need {_label(v)}, {v.type}; give it a value: "
                f"feed_dict={{{v.name}: ...}}"
            )
    graph = Graph(inputs, outputs, pairs)
    # What follows from a value that is fed would be computed from its own inputs.
    program = build(*tapped(graph, derived=not cut), threads=threads)
    for state, _ in _written(graph):
        cell = state.node.payload
        if cell not in _first_values:
            _first_values[cell] = cell.numpy()
    fed = [originals.get(v, v) for v in inputs]
    return _Compiled(program, [(keys[t], t) for t in fed])


def _inputs(roots: Sequence[Tensor]) -> list[Any]:
    """The inputs that are needed, in the order of their declaration."""
    return [n.results[0] for n in reachable(roots) if n.op == "input"]


def _written(graph: Graph) -> Iterable[tuple[Value, Value]]:
    """The state that the program writes, the random generator's apart."""
    more = state_updates(graph.roots, training=True) if graph.updates else []
    return [*graph.updates, *more]


def _named_input(name: str, roots: Sequence[Tensor]) -> Tensor:
    found = {v.node.attrs["name"]: v for v in _inputs(roots)}
    if name not in found:
        raise BindError(
            f"Session.run: the fetches need no input {name!r}; they need "
            f"{', '.join(map(repr, found)) or 'none'}"
        )
    return found[name]


def _placeholder(t: Tensor, others: Mapping[Tensor, Any]) -> Tensor:
    """The input that takes the place of a fed tensor that is none."""
    taken = {v.name for v in others if v.node.op == "input"}
    name = f"fed_{t.name or t.node.op}_{t.node.id}"
    while name in taken:
        name += "_"
    with use_locs(t.node.locs):
        return declare_input(name, t.shape, t.dtype)


def _substituted(roots: Sequence[Tensor], cut: Mapping[Any, Any]) -> list[Any]:
    """The roots, computed with other tensors in place of some."""
    if not cut:
        return list(roots)
    replaced = dict(cut)
    for node in reachable(roots):
        if any(v in replaced for v in node.operands):
            again = registry.clone(node, [replaced.get(v, v) for v in node.operands], node.locs)
            for old, new in zip(node.results, again.results):
                if old not in cut:  # a result that is fed itself stays cut
                    replaced[old] = new
                    taps.carry(old, new)
    return [replaced.get(v, v) for v in roots]


__all__ = ["Initializer", "Session", "global_variables_initializer"]
