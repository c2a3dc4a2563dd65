"""Programs: what an eager operation runs. A traced function as one closed graph, compiled once.

    Program     the graph of a function for a layout class of arguments; its sizes are symbols
    Bound       a program at exact sizes, with a native entry of its own: one call, 0.1 us

A program differentiates itself (`derivative`), by the same rules as a static graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from staticgrad_runtime.forks import ForkSafeLock, no_fork

from staticgrad.api.compile import compile_graph
from staticgrad.api.failure import error_of
from staticgrad.ir.dim import substitute
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.mode import state_updates
from staticgrad.ops.public import dynamic, locate

from .signature import Signature, signature_for
from .tensor import Array

# Exact sizes that a program remembers, each with an entry of its own.
_BOUND = 256
_HELD_BYTES = 1 << 16


F = TypeVar("F", bound=Callable[..., Any])


_building = ForkSafeLock()  # threads that want the same new kernel make it once


def statically(function: F) -> F:
    """`function` builds graph, in modules that are called with eager tensors too."""

    @functools.wraps(function)
    def building(*args: Any, **kwargs: Any) -> Any:
        with _building:
            token = dynamic.inside.set(False)
            try:
                return function(*args, **kwargs)
            finally:
                dynamic.inside.reset(token)

    return building  # type: ignore[return-value]


class Program:
    """A closed graph from arrays to arrays, with the executables that serve it.

    `outputs` are distinct and none is an input; state that is left (the random generator) is
    advanced by each call.
    """

    def __init__(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._executables: dict[tuple[Value, ...], Any] = {}
        self._derivatives: dict[int, Any] = {}
        self._bounds: dict[tuple[Signature, ...], Bound] = {}

    def executable(self, extra: tuple[Value, ...] = ()) -> Any:
        """The native program that computes the outputs, and `extra` values from the middle."""
        found = self._executables.get(extra)
        if found is None:
            found = self._executables[extra] = self._compiled((*self.outputs, *extra))
        return found

    @statically
    def _compiled(self, outputs: tuple[Value, ...]) -> Any:
        made = compile_graph(Graph(self.inputs, outputs, single=len(outputs) == 1))
        made.on_failure = _failure_of(made)
        return made

    def derivative(self, mask: int) -> Any:
        """How cotangents of the outputs become those of the inputs in `mask` (a bit an input)."""
        found = self._derivatives.get(mask)
        if found is None:
            with no_fork():
                from .derivative import Derivative

            found = self._derivatives[mask] = statically(Derivative)(self, mask)
        return found

    def bound(self, sigs: tuple[Signature, ...]) -> Bound:
        """The program at exact sizes. Raises `BindError` where they do not fit."""
        found = self._bounds.get(sigs)
        if found is None:
            made = Bound(self, sigs)
            if len(self._bounds) >= _BOUND:
                self._bounds.pop(next(iter(self._bounds)), None)
            found = self._bounds[sigs] = made
        return found


class Bound:
    """A program at exact sizes. `call(*arrays)` gives the outputs: an array, or a tuple of them.

    inputs, sigs   the signatures of inputs and outputs; `sig` that of a single output
    dims           the sizes of the program's symbols
    """

    __slots__ = ("call", "dims", "inputs", "plans", "program", "sig", "sigs")

    def __init__(self, program: Program, inputs: tuple[Signature, ...]) -> None:
        executable = program.executable()
        self.program = program
        self.inputs = inputs
        self.dims: dict[str, int] = executable.dims_of([s.shape for s in inputs])
        self.sigs = tuple(
            signature_for(v.dtype, tuple(substitute(d, self.dims) for d in v.shape))
            for v in program.outputs
        )
        self.sig: Any = self.sigs[0] if len(self.sigs) == 1 else None
        self.plans: dict[int, Any] = {}
        self.call: Callable[..., Any] = entry(executable, self.dims)

    def plan(self, mask: int) -> Any:
        """What a call records whose inputs in `mask` require a gradient."""
        found = self.plans.get(mask)
        if found is None:
            with no_fork():
                from .derivative import Plan

            found = self.plans[mask] = Plan(self, mask)
        return found


def entry(executable: Any, dims: Mapping[str, int]) -> Any:
    """What calls at these sizes go through: an entry of their own, or, where it would hold much
    memory for temporaries, the one that all sizes share (which binds it to others in 0.05 us)."""
    return executable.twin() if executable.peak_bytes(**dims) <= _HELD_BYTES else executable


def _failure_of(executable: Any) -> Callable[..., None]:
    """The error of a failed call, with the line of that call: a program serves many lines."""
    manifest = executable.manifest

    def fail(code: int, element: int, value: int, arrays: Sequence[Array]) -> None:
        error = error_of(manifest, code, element, value, arrays)
        if error is not None:
            error.location = ""
            locate(error)
            raise error

    return fail


def rebuilt(
    values: Sequence[Value], mapping: dict[Value, Value], keep: Iterable[Value] = ()
) -> list[Value]:
    """`values` computed with others in place of the mapping's keys, to which it adds what it makes.

    Layers' modes, bound already, are resolved on the way, and draws from the generator are numbered
    anew: an operation's numbers then depend on the generator alone, not on what was traced before.
    Draws by a key of the user's are functions of that key, and stay what they are.
    """
    sites = 0
    for node in _up_to((*values, *keep), mapping):
        operands = tuple(mapping.get(v, v) for v in node.operands)
        if node.op == "training_switch":
            # Here an open mode is training, until `eval()`.
            mapping[node.results[0]] = operands[1 if node.attrs["training"] is False else 0]
            continue
        attrs = node.attrs
        is_draw = "site" in attrs and "random" in registry.get(node.op).traits
        if is_draw and node.operands[0].node.op == "state":
            attrs = {**attrs, "site": sites}
            sites += 1
        elif all(a is b for a, b in zip(operands, node.operands)):
            continue
        made = registry.make(node.op, operands, attrs, payload=node.payload, locs=node.locs)
        mapping.update(zip(node.results, made.results))
    return [mapping.get(v, v) for v in values]


def _up_to(values: Iterable[Value], mapping: Mapping[Value, Value]) -> list[Node]:
    """The nodes that `values` need, oldest first, without what lies behind the mapping's keys."""
    seen: set[Node] = set()
    stack = [v for v in values if v not in mapping]
    while stack:
        node = stack.pop().node
        if node not in seen:
            seen.add(node)
            stack.extend(v for v in node.operands if v not in mapping)
    return sorted(seen, key=lambda n: n.id)


def updates_of(values: Sequence[Value]) -> list[tuple[Value, Value]]:
    """The states that layers among `values` update, with their new values."""
    return state_updates(values, training=True)


__all__ = ["Bound", "Program", "rebuilt", "updates_of"]
