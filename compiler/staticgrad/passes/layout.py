"""layout: permutations -> where they cost nothing.

before -> after

    %2 = matmul(%a, %b)                        %2 = permute_dims(%b){axes=(1, 0)}
    %3 = permute_dims(%2){axes=(1, 0)}         %3 = permute_dims(%a){axes=(1, 0)}
    %4 = multiply(%w, 0.9)                     %4 = matmul(%2, %3)
    %5 = add(%4, %3)                           %5 = multiply(%w, 0.9)
                                               %6 = add(%5, %4)

A product reads its operands with any strides, so a permutation of its operands is free while one of
its result is not: it keeps what follows from being computed in the product's epilogue. So a product
that is only read transposed is computed transposed (the gradient of `x @ w.T` for `w`), and a
permutation moves through element-wise ops towards products and towards its inverse, which it
cancels. Batch dims that are only broadcast are dropped from operands of products, and a reshape
moves behind an element-wise op, which can then ride on what is before the reshape.

Preserving: every element is computed by the same operations on the same numbers; a product's
element sums ascending k whichever operand comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.loc import NOWHERE, Locs
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Pointwise, Product, Reduction
from staticgrad.rewrite.driver import rebuilt

Axes = tuple[int, ...]

_MOVED = frozenset(("broadcast_to", "permute_dims", "reshape"))


def layout(graph: Graph) -> Graph:
    if not any(n.op in _MOVED or subgraphs(n) for n in graph.nodes):
        return graph
    return _Layout(graph).run()


def is_elementwise(node: Node) -> bool:
    return isinstance(registry.get(node.op).lower, Pointwise)


def swap_last(rank: int) -> Axes:
    """The permutation that transposes matrices."""
    return (*range(rank - 2), rank - 1, rank - 2)


class _Layout:
    """Values are known in two forms: as they are, and as a permutation of another value that may
    never have to be carried out."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uses = graph.uses()
        self.roots = set(graph.roots)
        self.absorbed = self._find_absorbed()
        self.transposed = self._find_transposed()
        self.values: dict[Value, Value] = {}
        self.permuted: dict[Value, tuple[Value, Axes]] = {}
        self.order: list[Node] = []
        self.locs: dict[Node, Locs] = {}
        self.here: Locs = NOWHERE

    def run(self) -> Graph:
        g = self.graph
        for node in g.nodes:
            self.here = g.locs[node]
            self._place(node)
        outputs = [self._value(v) for v in g.outputs]
        updates = [(self._value(s), self._value(v)) for s, v in g.updates]
        if len(self.order) == len(g.nodes) and all(a is b for a, b in zip(self.order, g.nodes)):
            return g
        return Graph(g.inputs, outputs, updates, order=self.order, locs=self.locs,
                     constraints=g.constraints, single=g.single)  # fmt: skip

    # --- which nodes ------------------------------------------------------------------------------

    def _find_absorbed(self) -> set[Node]:
        """Element-wise nodes from which a permutation can move on: all that reads them is a
        product, a permutation, or such a node itself."""
        found: set[Node] = set()
        for node in reversed(self.graph.nodes):
            if not is_elementwise(node) or node.results[0] in self.roots:
                continue
            if all(
                u in found or u.op in ("matmul", "permute_dims")
                for u in self.uses.get(node.results[0], ())
            ):
                found.add(node)
        return found

    def _find_transposed(self) -> set[Node]:
        """Matrix products whose result is only read transposed, maybe after element-wise ops with
        numbers."""
        wanted: set[Node] = set()
        for node in reversed(self.graph.nodes):
            product = node.op == "matmul"
            if not product and node not in self.absorbed:
                continue
            v = node.results[0]
            if v in self.roots or v.ndim < 2:
                continue
            if not product and sum(not _is_narrow(o) for o in node.operands) != 1:
                continue
            swap = swap_last(v.ndim)
            if all(
                (u.op == "permute_dims" and u.attrs["axes"] == swap)
                or (u in wanted and u.op != "matmul" and u.results[0].shape == v.shape)
                for u in self.uses.get(v, ())
            ):
                wanted.add(node)
        return {n for n in wanted if n.op == "matmul"}

    # --- building ---------------------------------------------------------------------------------

    def _value(self, v: Value) -> Value:
        """The new value for `v`, as it is."""
        found = self.values.get(v)
        if found is None:
            base, axes = self.permuted[v]
            found = self.values[v] = self._permute(base, axes)
        return found

    def _permute(self, base: Value, axes: Axes) -> Value:
        if axes == tuple(range(len(axes))):
            return base
        return self._add("permute_dims", (base,), axes=axes)

    def _add(self, op: str, operands: Sequence[Value], **attrs: object) -> Value:
        node = registry.make(op, operands, attrs, locs=self.here)
        self.order.append(node)
        self.locs[node] = self.here
        return node.results[0]

    def _place(self, node: Node) -> None:
        if node.op == "permute_dims":
            self._place_permute(node)
        elif node in self.transposed:
            a, b = (self._swapped(v) for v in node.operands)
            product = self._add("matmul", (b, a))
            self.permuted[node.results[0]] = (product, swap_last(product.ndim))
        elif node.op == "matmul":
            self._keep(node, self._without_batch(node))
        elif not (is_elementwise(node) and (self._sink(node) or self._sink_reshape(node))):
            self._keep(node, [self._value(v) for v in node.operands])

    def _keep(self, node: Node, operands: Sequence[Value]) -> None:
        held = subgraphs(node)
        attrs = {**node.attrs, **{name: layout(g) for name, g in held}} if held else None
        if attrs is not None and all(attrs[name] is g for name, g in held):
            attrs = None
        made = rebuilt(node, operands, attrs)
        self.order.append(made)
        self.locs[made] = self.here
        self.values.update(zip(node.results, made.results))

    def _place_permute(self, node: Node) -> None:
        source, axes = node.operands[0], node.attrs["axes"]
        if source in self.permuted:
            base, inner = self.permuted[source]
            self.permuted[node.results[0]] = (base, tuple(inner[a] for a in axes))
            return
        base = self._value(source)
        self.permuted[node.results[0]] = (base, axes)
        if base is source and self._read_as_is(node):
            # The node itself, rather than a copy made at the first use.
            self._keep(node, (base,))

    def _read_as_is(self, node: Node) -> bool:
        v = node.results[0]
        return v in self.roots or not all(
            u in self.absorbed or u.op == "permute_dims" or u in self.transposed
            for u in self.uses.get(v, ())
        )

    def _swapped(self, v: Value) -> Value:
        """`v` with its last two dims exchanged."""
        swap = swap_last(v.ndim)
        if v in self.permuted:
            base, axes = self.permuted[v]
            return self._permute(base, tuple(axes[a] for a in swap))
        return self._permute(self._value(v), swap)

    def _sink(self, node: Node) -> bool:
        """op(permute_dims(x), permute_dims(y)) -> permute_dims(op(x, y))"""
        if node not in self.absorbed:
            return False
        shape = node.types[0].shape
        moved = {self.permuted[v][1] for v in node.operands if v in self.permuted
                 and v.ndim == len(shape)}  # fmt: skip
        if len(moved) != 1:
            return False
        (axes,) = moved
        operands = []
        for v in node.operands:
            if v in self.permuted and v.ndim == len(shape):
                operands.append(self.permuted[v][0])
            elif _is_narrow(v):
                operands.append(self._turned(v, axes))
            else:
                return False
        made = registry.make(node.op, operands, node.attrs, locs=self.here)
        if tuple(made.types[0].shape[a] for a in axes) != shape:
            return False
        self.order.append(made)
        self.locs[made] = self.here
        self.permuted[node.results[0]] = (made.results[0], axes)
        return True

    def _turned(self, v: Value, axes: Axes) -> Value:
        """An operand with at most one dim that is not 1, as it is broadcast before the
        permutation."""
        value = self._value(v)
        if not v.ndim:
            return value
        padded = (1,) * (len(axes) - v.ndim) + v.shape
        shape = tuple(padded[axes.index(i)] for i in range(len(axes)))
        return value if shape == v.shape else self._add("reshape", (value,), shape=shape)

    def _sink_reshape(self, node: Node) -> bool:
        """op(reshape(x), 2.0) -> reshape(op(x, 2.0)), where x is computed for this alone, so that
        op can ride on what computes x"""
        if node.results[0] in self.roots:
            return False
        wide = [v for v in node.operands if v.ndim]
        if len(wide) != 1 or wide[0].node.op != "reshape":
            return False
        (v,) = wide
        source = v.node.operands[0]
        rides = isinstance(registry.get(source.node.op).lower, (Pointwise, Product, Reduction))
        alone = source not in self.roots and len(self.uses[source]) == 1 == len(self.uses[v])
        if not rides or not alone or v in self.roots or source in self.permuted:
            return False
        operands = [self._value(source if o is v else o) for o in node.operands]
        inner = registry.make(node.op, operands, node.attrs, locs=self.here)
        self.order.append(inner)
        self.locs[inner] = self.here
        shape = node.types[0].shape
        self.values[node.results[0]] = self._add("reshape", inner.results, shape=shape)
        return True

    def _without_batch(self, node: Node) -> list[Value]:
        """matmul(a, broadcast_to(b)) -> matmul(a, b) where only batch dims were broadcast."""
        operands = [self._value(v) for v in node.operands]
        for i, v in enumerate(operands):
            if v.node.op != "broadcast_to":
                continue
            source = v.node.operands[0]
            if source.ndim < 2 or source.shape[-2:] != v.shape[-2:]:
                continue
            other = operands[1 - i]
            batch = registry.broadcast_shapes(source.shape[:-2], other.shape[:-2])
            if batch == node.types[0].shape[:-2]:
                operands[i] = source
        return operands


def _is_narrow(v: Value) -> bool:
    return sum(d != 1 for d in v.shape) <= 1


__all__ = ["layout"]
