"""lower: graph -> program.

before -> after

    %4 = fused(%x, %w, %b) { matmul; add; relu }     step 0: matmul_add_relu(b0, b1, b2, b3; N, 256)

Every value that a kernel computes is a dense buffer; views are followed back to what they look at,
so they cost nothing. Values that a kernel needs densely (a custom kernel's operands, reshapes of
permuted views) are copied by a kernel of their own. Nodes with sub-graphs become regions, which
`control` lowers, each in a scope of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from staticgrad.codegen.target import Target
from staticgrad.ir.dim import Dim, DimLike, symbols
from staticgrad.ir.dtype import DType, int64
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import Locs, locs_text
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.ir import Expr, Index, Kernel
from staticgrad.kernels.program import Item, Program, ProgramBuffer, Step
from staticgrad.ops import registry
from staticgrad.ops.lowering import (
    Control,
    Custom,
    Generate,
    Leaf,
    Pointwise,
    Product,
    Reduction,
    View,
)

from .body import Body
from .control import lower_control
from .convolution import ConvLowering
from .custom import lower_custom
from .draft import Draft, linear
from .map import At, Output, lower_map
from .matmul import MatmulLowering
from .reduce import lower_reduce

# Views under which the elements keep their order: the dense operand is the dense result.
_SAME_ORDER = frozenset(("reshape", "expand_dims", "squeeze"))


def lower(graph: Graph, target: Target) -> Program:
    return Lowerer(graph, target).run()


Piece = tuple[Value, int, DimLike]


@dataclass
class Scope:
    """What is known of one graph: the program's own, or a region's."""

    graph: Graph
    outer: Scope | None
    region: int
    times: DimLike = 1  # how often its steps run
    items: list[Item] = field(default_factory=list)
    stored: dict[Value, int] = field(default_factory=dict)
    planned: dict[Value, int] = field(default_factory=dict)  # results with a buffer given for them
    updated: set[Value] = field(default_factory=set)  # new values of state and of carries
    # Of a region's inputs: the values outside that they are, or whose part at an index they are,
    # and the number of the iteration.
    aliases: dict[Value, Value] = field(default_factory=dict)
    slices: dict[Value, tuple[Value, Dim]] = field(default_factory=dict)
    indices: dict[Value, Dim] = field(default_factory=dict)
    # Values that their kernel stores in their place in a `concat`: the whole, the axis, and where
    # they begin. And the places where it stores them once more.
    pieces: dict[Value, Piece] = field(default_factory=dict)
    copies: dict[Value, list[Piece]] = field(default_factory=dict)


class Lowerer:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.target = target
        self.constants: dict[int, np.ndarray[Any, Any]] = {}
        self.program = Program(_dims_of(graph), [], [], 0, constants=self.constants)
        self.scope = Scope(graph, None, 0, updated={v for _, v in graph.updates})
        self.regions = 0

    @property
    def graph(self) -> Graph:
        return self.scope.graph

    @property
    def stored(self) -> dict[Value, int]:
        return self.scope.stored

    @property
    def updated(self) -> set[Value]:
        return self.scope.updated

    def run(self) -> Program:
        self._place_leaves()
        outputs = self._place_outputs()
        self.lower_nodes()
        for value, buffer in zip(self.graph.outputs, outputs):
            if self.held(value) != buffer:
                self.copy(value, buffer)
        self._update_state()
        self.program.items = self.scope.items
        return self.program

    def lower_nodes(self) -> None:
        """The steps of all nodes of the scope's graph."""
        self._place_pieces()
        for node in self.graph.nodes:
            lower = registry.get(node.op).lower
            if isinstance(lower, Control):
                lower_control(self, node, lower.kind)
            elif node.op == "concat" and self._has_pieces(node):
                self._complete(node)
            elif node.op == "fused" or not isinstance(lower, (Leaf, View)):
                self._lower_node(node)

    def _place_pieces(self) -> None:
        """Chooses the element-wise results that are stored where a `concat` wants them, or several
        do: the parts of a GRU's gradient were written, read and written again."""
        scope = self.scope
        kept = {*scope.graph.outputs, *scope.updated, *scope.planned}
        for node in scope.graph.nodes:
            if node.op != "concat":
                continue
            start: DimLike = 0
            axis = node.attrs["axis"]
            for v in node.operands:
                place = node.results[0], axis, start
                if _is_map(v.node):
                    if v not in kept and v not in scope.pieces:
                        scope.pieces[v] = place
                    else:
                        scope.copies.setdefault(v, []).append(place)
                start = start + v.shape[axis]

    def _has_pieces(self, node: Node) -> bool:
        return any(v in self.scope.pieces or v in self.scope.copies for v in node.operands)

    def _lies_in(self, v: Value, whole: Value, start: DimLike) -> bool:
        """Whether the kernel of `v` stores it at this place of a `concat`."""
        places = list(self.scope.copies.get(v, ()))
        if v in self.scope.pieces:
            places.append(self.scope.pieces[v])
        return any(at is whole and begin == start for at, _, begin in places)

    def _complete(self, node: Node) -> None:
        """Copies the operands of a `concat` that do not lie in it already."""
        whole, axis = node.results[0], node.attrs["axis"]
        buffer = self._whole_buffer(whole)
        start: DimLike = 0
        for v in node.operands:
            if not self._lies_in(v, whole, start) and v.type.size != 0:
                draft = Draft(self.program)

                def place(at: tuple[DimLike, ...], start: DimLike = start) -> DimLike:
                    return linear(_moved(at, axis, start), whole.shape)

                def value(at: tuple[DimLike, ...], v: Value = v, draft: Draft = draft) -> Expr:
                    return self.element(draft, v, at)

                locs = self.graph.locs[node]
                lower_map(
                    self, draft, "copy_concat", v.shape, [(buffer, place, value)], ("copy",), locs
                )
            start = start + v.shape[axis]

    def _whole_buffer(self, whole: Value) -> int:
        known = self.scope.stored.get(whole)
        return self.result_buffer(whole) if known is None else known

    def _update_state(self) -> None:
        """Writes every new value; all of them were computed from the old ones."""
        sources: list[tuple[Value, int, int]] = []
        for state, value in self.graph.updates:
            if value is state:
                continue
            source = self.held(value)
            if source is None or self.program.buffers[source].kind not in ("temp", "output"):
                # A view, or other state: it would change under the writes that come first.
                source = self.scratch(value.dtype, value.type.size)
                self.copy(value, source)
            sources.append((value, source, self.stored[state]))
        self.program.commit = len(self.scope.items)
        for value, source, target in sources:
            self.program.written.add(target)
            self.copy(value, target, source)

    # --- buffers ----------------------------------------------------------------------------------

    def add_buffer(self, kind: str, dtype: DType, size: DimLike, name: str) -> int:
        buffer = ProgramBuffer(kind, dtype, size, name, region=self.scope.region)
        self.program.buffers.append(buffer)
        return len(self.program.buffers) - 1

    def slice_of(self, base: int, v: Value, at: DimLike) -> int:
        """The part of a buffer that is `v`: the one with the number `at`."""
        index = self.add_buffer("slice", v.dtype, v.type.size, f"s{len(self.program.buffers)}")
        buffer = self.program.buffers[index]
        buffer.base, buffer.offset = base, at * v.type.size
        return index

    def _place_leaves(self) -> None:
        for v in self.graph.inputs:
            index = self.add_buffer("input", v.dtype, v.type.size, v.node.attrs["name"])
            self.stored[v] = index
            self.program.inputs.append(index)
        for node in self.graph.nodes:
            if node.op == "state":
                v = node.results[0]
                name = node.attrs["name"] or f"state{node.attrs['id']}"
                index = self.add_buffer("state", v.dtype, v.type.size, name)
                self.program.state[node.attrs["id"]] = index
                self.stored[v] = index
        self.place_constants()

    def place_constants(self) -> None:
        for node in self.graph.nodes:
            if node.op == "constant":
                v = node.results[0]
                index = self.add_buffer("constant", v.dtype, v.type.size, f"c{len(self.constants)}")
                self.constants[index] = node.payload
                self.stored[v] = index

    def _place_outputs(self) -> list[int]:
        for i, v in enumerate(self.graph.outputs):
            index = self.add_buffer("output", v.dtype, v.type.size, f"out{i}")
            self.program.outputs.append(index)
            self.plan(v, index)
        return self.program.outputs

    def plan(self, v: Value, buffer: int) -> None:
        """Has the kernel that computes `v`, maybe in another shape, store it in `buffer`, if there
        is one and no other is given for it already."""
        v = _same_elements(v)
        lower = registry.get(v.node.op).lower
        computed = v.node.op == "fused" or not isinstance(lower, (Leaf, View))
        if computed:
            self.scope.planned.setdefault(v, buffer)

    def held(self, v: Value) -> int | None:
        """The buffer that already holds `v`, maybe in another shape."""
        return self.stored.get(v, self.stored.get(_same_elements(v)))

    def result_buffer(self, v: Value) -> int:
        """The buffer that a kernel stores `v` in."""
        index = self.scope.planned.get(v)
        if index is None:
            index = self.add_buffer("temp", v.dtype, v.type.size, f"t{len(self.program.buffers)}")
        self.stored[v] = index
        return index

    def scratch(self, dtype: DType, size: DimLike, *, per_thread: bool = False) -> int:
        """Memory for what no value of the graph is; `per_thread` if one step alone uses it."""
        index = self.add_buffer("temp", dtype, size, f"s{len(self.program.buffers)}")
        self.program.buffers[index].per_thread = per_thread
        return index

    # --- values -----------------------------------------------------------------------------------

    def element(self, draft: Draft, v: Value, at: tuple[DimLike, ...]) -> Expr:
        """The element of a value of the graph: a load, through whatever views lie between."""
        scope = self.scope
        while v not in scope.stored:
            if v in scope.indices:
                return Index(scope.indices[v])
            below = self._below(scope, v, at)
            if below is None:
                break
            scope, v, at = below
        return draft.load(self.dense(v, scope), linear(at, v.shape), v.dtype)

    def address(self, v: Value, at: tuple[DimLike, ...]) -> tuple[int, DimLike]:
        """The buffer and the index in it of an element, for kernels that take strides."""
        scope = self.scope
        while v not in scope.stored:
            below = self._below(scope, v, at)
            if below is None:
                break
            scope, v, at = below
        return self.dense(v, scope), linear(at, v.shape)

    def _below(
        self, scope: Scope, v: Value, at: tuple[DimLike, ...]
    ) -> tuple[Scope, Value, tuple[DimLike, ...]] | None:
        """Where an element of a view, or of what a region reads from outside, is found."""
        if v in scope.aliases and scope.outer is not None:
            return scope.outer, scope.aliases[v], at
        if v in scope.slices and scope.outer is not None:
            whole, index = scope.slices[v]
            if _lies_in_buffer(whole, scope.outer):
                return None  # a slice of what lies there
            return scope.outer, whole, (index, *at)
        if v in scope.pieces:
            whole, axis, start = scope.pieces[v]
            return scope, whole, _moved(at, axis, start)
        node = v.node
        lower = registry.get(node.op).lower
        if isinstance(lower, View):
            below = lower.index(at, node.attrs, node.operands[0].type, v.type)
            if below is not None:
                return scope, node.operands[0], below
        return None

    def dense(self, v: Value, scope: Scope | None = None) -> int:
        """The buffer that holds `v` densely; a view is copied unless it keeps the order. What a
        region reads from outside is copied there, once."""
        here = self.scope
        self.scope = scope = here if scope is None else scope
        try:
            if v in scope.stored:
                return scope.stored[v]
            if v in scope.aliases:
                scope.stored[v] = self.dense(scope.aliases[v], scope.outer)
            elif v in scope.slices:
                whole, index = scope.slices[v]
                scope.stored[v] = self.slice_of(self.dense(whole, scope.outer), v, index)
            elif v in scope.indices:
                self._store_index(v)
            elif v.node.op in _SAME_ORDER:
                scope.stored[v] = self.dense(v.node.operands[0])
            else:
                self.copy(v, self.scratch(v.dtype, v.type.size))
            return scope.stored[v]
        finally:
            self.scope = here

    def _store_index(self, v: Value) -> None:
        """The number of the iteration as an array, for kernels that load it."""
        buffer, draft = self.scratch(int64, 1), Draft(self.program)
        at = self.scope.indices[v]
        store = (buffer, lambda at: linear(at, ()), lambda _: Index(at))
        lower_map(self, draft, "index", (), [store], ("index",), frozenset())
        self.stored[v] = buffer

    def copy(self, v: Value, buffer: int, source: int | None = None, *, holds: bool = True) -> None:
        """A step that stores `v` densely in `buffer` (from the dense buffer `source`, if given),
        which then `holds` it."""
        if source is None and v not in self.stored:
            v = _same_elements(v)  # else a view below is copied to memory of its own first
        draft = Draft(self.program)

        def value(at: tuple[DimLike, ...]) -> Expr:
            if source is not None:
                return draft.load(source, linear(at, v.shape), v.dtype)
            return self.element(draft, v, at)

        locs = self.graph.locs.get(v.node, frozenset())
        output = (buffer, lambda at: linear(at, v.shape), value)
        lower_map(self, draft, f"copy_{v.node.op}", v.shape, [output], ("copy",), locs)
        if holds:
            self.stored.setdefault(v, buffer)

    # --- nodes ------------------------------------------------------------------------------------

    def _lower_node(self, node: Node) -> None:
        body = Body.of(node, self.graph.locs[node])
        kinds = [registry.get(n.op).lower for n in body.inside]
        if any(isinstance(k, Product) for k in kinds):
            self._lower_product(body)
        elif any(isinstance(k, Reduction) and n.attrs["axes"] for n, k in zip(body.inside, kinds)):
            lower_reduce(self, body)
        elif all(isinstance(k, (Pointwise, Generate, View, Reduction)) for k in kinds):
            self._lower_map(body)
        elif isinstance(kinds[0], Custom):
            lower_custom(self, node)
        else:
            raise AssertionError(f"{node.op} is not expanded")

    def _lower_map(self, body: Body) -> None:
        from .pull import Puller

        draft = Draft(self.program)
        puller = Puller(body.inside, lambda v, at: self.outside(draft, body, v, at), {})
        stores: list[Output] = []
        for inner, outer in body.outputs:
            for buffer, index in self._result_places(outer):
                stores.append((buffer, index, lambda at, v=inner: puller.pull(v, at)))  # type: ignore[misc]
        shape = body.outputs[0][0].shape
        lower_map(self, draft, body.name, shape, stores, body.labels, body.locs)

    def _result_places(self, v: Value) -> list[tuple[int, Callable[[At], DimLike]]]:
        """Where an element-wise kernel stores `v`: a buffer of its own or its place in a whole, and
        its places in others."""
        places = list(self.scope.copies.get(v, ()))
        found: list[tuple[int, Callable[[At], DimLike]]] = []
        if v in self.scope.pieces:
            places.insert(0, self.scope.pieces[v])
        else:
            found.append((self.result_buffer(v), lambda at: linear(at, v.shape)))
        for whole, axis, start in places:

            def place(
                at: At, whole: Value = whole, axis: int = axis, start: DimLike = start
            ) -> DimLike:
                return linear(_moved(at, axis, start), whole.shape)

            found.append((self._whole_buffer(whole), place))
        return found

    def _lower_product(self, body: Body) -> None:
        root = next(n for n in body.inside if isinstance(registry.get(n.op).lower, Product))
        lower = registry.get(root.op).lower
        assert isinstance(lower, Product)
        if lower.kind == "matmul":
            MatmulLowering(self, body, root).run()
        else:
            ConvLowering(self, body, root, lower.kind).run()

    def outside(self, draft: Draft, body: Body, v: Value, at: tuple[DimLike, ...]) -> Expr:
        """The element of a value that a body reads from outside."""
        return self.element(draft, body.outer.get(v, v), at)

    def add_step(
        self, kernel: Kernel, buffers: tuple[int, ...], sizes: tuple[DimLike, ...],
        extent: DimLike, nodes: tuple[str, ...], locs: Locs, *, flops: DimLike = 0,
        can_fail: bool = False, moved: DimLike | None = None, riding_flops: DimLike = 0,
    ) -> None:  # fmt: skip
        if moved is None:
            used = [self.program.buffers[index] for index in buffers]
            # Scratch memory stays in the cache.
            moved = sum((b.size_bytes for b in used if not b.per_thread), start=0)
        self.scope.items.append(
            Step(kernel, buffers, sizes, extent, nodes, locs, flops, moved, can_fail,
                 self.scope.times, riding_flops=riding_flops)
        )  # fmt: skip

    def failure_code(self, node: Node) -> int:
        """A status code whose message tells what went wrong in `node`."""
        code = len(self.program.messages)
        told = registry.get(node.op).failure
        text = f"{node.op}: the data is refused" if told is None else told(node)
        self.program.messages[code] = (text, locs_text(self.graph.locs[node]))
        return code


def _lies_in_buffer(v: Value, scope: Scope) -> bool:
    """Whether a buffer holds a value densely, be it in another shape."""
    while v not in scope.stored and v.node.op in _SAME_ORDER:
        v = v.node.operands[0]
    return v in scope.stored


def _same_elements(v: Value) -> Value:
    """What has the elements of `v` in their order, in a shape that a kernel may store."""
    while v.node.op in _SAME_ORDER:
        v = v.node.operands[0]
    return v


def _moved(at: tuple[DimLike, ...], axis: int, start: DimLike) -> tuple[DimLike, ...]:
    """An index in a piece as one in the whole."""
    return (*at[:axis], at[axis] + start, *at[axis + 1 :])


def _is_map(node: Node) -> bool:
    """Whether a node becomes an element-wise kernel, which can store anywhere."""
    if node.op == "fused":
        return bool(node.attrs["kind"] == "map")
    return isinstance(registry.get(node.op).lower, (Pointwise, Generate))


def _dims_of(graph: Graph) -> list[str]:
    """The names of all sizes, those of the inputs first."""
    names: dict[str, None] = {}
    for v in graph.inputs:
        for d in v.shape:
            for s in symbols(d):
                names.setdefault(s)
    stack = [graph]
    while stack:
        for node in stack.pop().nodes:
            stack += [inner for _, inner in subgraphs(node)]
            for t in node.types:
                for d in t.shape:
                    for s in symbols(d):
                        names.setdefault(s)
    return list(names)
