"""Element by element: what the element of a value at an index is, as a kernel expression."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from staticgrad.ir.dim import DimLike
from staticgrad.ir.node import Node, Value
from staticgrad.kernels.ir import Call, Expr
from staticgrad.ops import registry
from staticgrad.ops.lowering import Generate, Pointwise, Reduction, View

from ..groups import broadcast_index

At = tuple[DimLike, ...]
Source = Callable[[Value, At], Expr]


class Puller:
    """Follows values back through the element-wise nodes and views of `inside` to `source`, which
    answers for everything else; `known` answers for values that were computed already (reductions,
    kept rows) at their own place."""

    def __init__(
        self, inside: Collection[Node], source: Source,
        known: Mapping[Value, Callable[[At], Expr]],
    ) -> None:  # fmt: skip
        self._inside = inside
        self._source = source
        self._known = known
        self._memo: dict[tuple[Value, At], Expr] = {}

    def pull(self, v: Value, at: At) -> Expr:
        key = (v, at)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._compute(v, at)
        return found

    def _compute(self, v: Value, at: At) -> Expr:
        if v in self._known:
            return self._known[v](at)
        node = v.node
        if node not in self._inside:
            return self._source(v, at)
        lower = registry.get(node.op).lower
        if isinstance(lower, Pointwise):
            args = [self.pull(o, broadcast_index(at, o.shape)) for o in node.operands]
            if lower.emit is not None:
                return lower.emit(args, node.attrs, v.dtype)
            return Call(node.op, tuple(args), v.dtype)
        if isinstance(lower, Reduction):
            return self.pull(node.operands[0], at)  # over no axes: the element itself
        if isinstance(lower, Generate):
            operands = node.operands
            return lower.emit(at, node.attrs, v.type, lambda k, i: self.pull(operands[k], i))
        if isinstance(lower, View):
            below = lower.index(at, node.attrs, node.operands[0].type, v.type)
            if below is not None:
                return self.pull(node.operands[0], below)
        return self._source(v, at)
