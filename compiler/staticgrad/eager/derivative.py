"""How a program differentiates itself: which values it saves, and the programs of its cotangents.

The rules are the records' own: `autodiff.reverse.backward` gives the graph of the cotangents. What
that graph reads of the forward one is saved with the call: inputs and outputs as they are, values
from the middle as further outputs, unless they follow from saved values by cheap operations, which
are then done again. A saved value may itself be differentiated, so derivatives nest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from staticgrad.autodiff.reverse import backward
from staticgrad.ir.dim import Dim, symbols
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.node import Node, Value
from staticgrad.ir.types import TensorType
from staticgrad.ops import registry
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.lowering import Expand, Leaf, Pointwise, View
from staticgrad.ops.tensor import Tensor as GraphTensor

from .program import Bound, Program, entry, rebuilt, statically

# Cheap operations that may be done again rather than their result saved.
_CHEAP = 24

# What an input of a backward program is: a cotangent, a saved value, or an empty array that only
# brings sizes; and where an input's cotangent comes from: a cotangent as it is, or an output.
CT, SAVED, SIZES, OUT = "ct", "saved", "sizes", "out"


class Derivative:
    """The derivative of a program by the inputs in `mask`.

    needed      the inputs' numbers
    interiors   values from the middle, further outputs of a recorded call
    saved       what a recorded call keeps: ("input", i), ("output", j) or ("interior", k)
    dead        whether no gradient reaches any input
    """

    def __init__(self, program: Program, mask: int) -> None:
        self.program = program
        self.needed = tuple(
            i for i, v in enumerate(program.inputs) if mask >> i & 1 and v.dtype.is_float
        )
        self._targets = [program.inputs[i] for i in self.needed]
        self._forward = set(reachable(program.outputs))
        self.interiors: tuple[Value, ...] = ()
        self._backs: dict[int, Back] = {}
        used = self._settle()
        places: dict[Value, tuple[str, int]] = {}
        for kind, values in (
            ("interior", self.interiors), ("output", program.outputs), ("input", program.inputs)
        ):  # fmt: skip
            places.update((v, (kind, i)) for i, v in enumerate(values))
        order = [*program.inputs, *program.outputs, *self.interiors]
        self.saved_values = tuple(v for v in order if v in used)
        self.saved = tuple(places[v] for v in self.saved_values)

    @property
    def roots(self) -> tuple[Value, ...]:
        """The values whose cotangents may arrive: the outputs, then the interiors."""
        return (*self.program.outputs, *self.interiors)

    def _settle(self) -> set[Value]:
        """Adds interiors until the cotangents of all roots need no further ones; returns what is
        needed of inputs, outputs and interiors."""
        while True:
            seeds, found = self._cotangents([r.dtype.is_float for r in self.roots])
            self.dead = all(ct is None for ct in found)
            used, wanted = self._read([ct for ct in found if ct is not None], seeds)
            if not wanted:
                return used
            self.interiors = (*self.interiors, *wanted)

    def _cotangents(
        self, arriving: Sequence[bool]
    ) -> tuple[dict[int, GraphTensor], list[GraphTensor | None]]:
        """Seeds for the roots where a cotangent arrives, and the cotangents of the inputs."""
        seeds = {
            j: declare(f"ct{j}", r.shape, r.dtype)
            for j, (r, there) in enumerate(zip(self.roots, arriving))
            if there
        }
        return seeds, backward([self.roots[j] for j in seeds], list(seeds.values()), self._targets)

    def _read(
        self, found: Sequence[Value], seeds: dict[int, GraphTensor]
    ) -> tuple[set[Value], list[Value]]:
        """What the cotangents read of inputs, outputs and interiors, and what else they should."""
        known = {*self.program.inputs, *self.roots}
        cost = self._costs(known)
        used: set[Value] = set()
        wanted: dict[Value, None] = {}
        stack = list(found)
        for node in reachable(found):
            if node not in self._forward:
                stack += node.operands
        seen: set[Value] = set()
        while stack:
            v = stack.pop()
            if v in seen or v.node not in self._forward:
                continue
            seen.add(v)
            if v in known:
                used.add(v)
            elif cost[v.node] <= _CHEAP:
                stack += v.node.operands
            else:
                wanted[v] = None
        return used, sorted(wanted, key=lambda v: (v.node.id, v.index))

    def _costs(self, known: set[Value]) -> dict[Node, int]:
        """For each node of the forward graph how many operations compute it from known values."""
        cost: dict[Node, int] = {}
        for node in sorted(self._forward, key=lambda n: n.id):
            below = sum(0 if v in known else cost[v.node] for v in node.operands)
            cost[node] = min(below + _own_cost(node), _CHEAP + 1)
        return cost

    def back(self, arriving: int) -> Back:
        """The program of the cotangents, where those of the roots in `arriving` are given."""
        found = self._backs.get(arriving)
        if found is None:
            found = self._backs[arriving] = statically(Back)(self, arriving)
        return found


def _own_cost(node: Node) -> int:
    record = registry.get(node.op)
    if "random" in record.traits:
        return _CHEAP + 1
    if isinstance(record.lower, (Leaf, View)) or node.op == "dim_size":
        return 0
    return 1 if isinstance(record.lower, (Pointwise, Expand)) else _CHEAP + 1


class Back:
    """The program of one set of arriving cotangents.

    feed     what its inputs are: (CT, root), (SAVED, number), (SIZES, 0)
    routes   for each needed input its cotangent: None, (CT, root) or (OUT, output)
    """

    def __init__(self, derivative: Derivative, arriving: int) -> None:
        roots = derivative.roots
        there = [bool(arriving >> j & 1) and r.dtype.is_float for j, r in enumerate(roots)]
        seeds, found = derivative._cotangents(there)
        used, _ = derivative._read([ct for ct in found if ct is not None], seeds)
        mapping: dict[Value, Value] = {}
        feed: list[tuple[str, int]] = [(CT, j) for j in seeds]
        inputs: list[Value] = list(seeds.values())
        for k, v in enumerate(derivative.saved_values):
            if v in used:
                mapping[v] = declare(f"saved{k}", v.shape, v.dtype)
                inputs.append(mapping[v])
                feed.append((SAVED, k))
        wanted = [ct for ct in found if ct is not None]
        made = dict(zip(wanted, rebuilt(wanted, mapping)))
        by_seed = {seed: j for j, seed in seeds.items()}
        outputs: dict[Value, int] = {}
        self.routes: list[tuple[str, int] | None] = []
        for ct in found:
            if ct is None:
                self.routes.append(None)
            elif ct in by_seed:
                self.routes.append((CT, by_seed[ct]))
            else:
                self.routes.append((OUT, outputs.setdefault(made[ct], len(outputs))))
        missing = _missing_sizes(inputs, outputs)
        self.sizes = tuple(missing)
        if missing:
            inputs.append(declare("sizes", (*(Dim.symbol(n) for n in missing), 0)))
            feed.append((SIZES, 0))
        self.feed = feed
        # A saved value that is itself a cotangent: the program copies it.
        self.program = Program(f"{derivative.program.name}_backward", inputs, list(outputs))


def _missing_sizes(inputs: Sequence[Value], outputs: Iterable[Value]) -> list[str]:
    """The symbols in the graph of `outputs` that no input's shape tells."""
    told = {
        d.terms[0][0][0]
        for v in inputs
        for d in v.shape
        if isinstance(d, Dim) and len(d.terms) == 1 and d.terms[0][1] == 1
        and len(d.terms[0][0]) == 1 and isinstance(d.terms[0][0][0], str)
    }  # fmt: skip
    found: dict[str, None] = {}

    def visit(a: Any) -> None:
        if isinstance(a, Dim):
            found.update(dict.fromkeys(symbols(a)))
        elif isinstance(a, (tuple, list)):
            for x in a:
                visit(x)
        elif isinstance(a, TensorType):
            visit(a.shape)
        elif isinstance(a, Graph):
            for n in a.nodes:
                visit_node(n)

    def visit_node(node: Node) -> None:
        visit(node.types)
        visit(tuple(node.attrs.values()))
        for c in node.constraints:
            visit((c.left, c.right))

    for v in inputs:
        visit(v.shape)
    for node in reachable(outputs):
        visit_node(node)
    return [name for name in found if name not in told]


class Plan:
    """What a call at exact sizes records whose inputs in a mask require a gradient.

    call     computes the outputs and the interiors
    needed   the inputs that get an edge of the tape
    saved    as the derivative's
    extra    how many interiors there are
    """

    __slots__ = ("_backs", "bound", "call", "dead", "derivative", "extra", "keeps_output", "name",
                 "needed", "outputs", "saved", "saved_inputs")  # fmt: skip

    def __init__(self, bound: Bound, mask: int) -> None:
        derivative = bound.program.derivative(mask)
        self.bound = bound
        self.derivative: Derivative = derivative
        self.name = bound.program.name
        self.dead = derivative.dead
        self.needed = derivative.needed
        self.saved = derivative.saved
        self.outputs = len(bound.program.outputs)
        self.extra = len(derivative.interiors)
        self.saved_inputs = tuple(i for kind, i in self.saved if kind == "input")
        self.keeps_output = any(kind == "output" for kind, _ in self.saved)
        self.call = bound.call
        if self.extra:
            self.call = entry(bound.program.executable(derivative.interiors), bound.dims)
        self._backs: dict[int, tuple[Back, Any]] = {}

    def back(self, arriving: int) -> tuple[Back, np.ndarray[Any, Any] | None]:
        """The backward program, and the empty array that brings its sizes."""
        found = self._backs.get(arriving)
        if found is None:
            back = self.derivative.back(arriving)
            sizes = None
            if back.sizes:
                shape = (*(self.bound.dims[n] for n in back.sizes), 0)
                sizes = np.empty(shape, np.float32)
            found = self._backs[arriving] = back, sizes
        return found


__all__ = ["CT", "OUT", "SAVED", "SIZES", "Back", "Derivative", "Plan"]
