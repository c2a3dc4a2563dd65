"""simplify: computations that have a shorter form -> that form.

before -> after

    %2 = add(%0, 0.0)                       (gone)
    %3 = where(%c, %2, %2)                  (gone)
    %4 = broadcast_to(%0){shape=(8, 5)}     %5 = multiply(%0, 8.0)
    %5 = sum(%4){axes=(0)}

Matches the canonical form only. Values stay, infinities and NaN included, with two exceptions: the
sign of a zero may change (`x + 0.0`, sums of paddings), and a sum of equal terms is rounded once,
one of terms that are mostly zeros in the order of the others (`pools`). What the zeros
between the maxima of a max pooling would be multiplied by does not matter (there as well).
Nothing is multiplied by 0 or subtracted from itself unless it is an integer: `inf * 0` is NaN.
What is no longer needed is not run, nor are its checks, as with every value that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import product
from staticgrad.ir.dtype import integer_range
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction
from staticgrad.rewrite.driver import Rule, rewrite, rule_table
from staticgrad.rewrite.pattern import (
    Numbering,
    constant_of,
    fitted,
    make,
    number,
    numbered,
    spread,
)

from . import joints
from .attention_scale import scales_into_attention
from .picks import pick_first
from .places import Places
from .pools import Pools, behind_convolutions
from .views import reduced_ones

Found = Sequence[Value] | None


def simplify(graph: Graph) -> Graph:
    numbering = Numbering()
    graph = rewrite(graph, numbered(numbering, rule_table(_rules(numbering))))
    return scales_into_attention(behind_convolutions(graph))


def _rules(numbering: Numbering) -> Callable[[str], list[Rule]]:
    equality = _WithEquality(numbering)
    places, pools = Places(numbering), Pools(numbering)
    own: dict[str, list[Rule]] = {
        "add": [_plus_zero, joints.sum_of_pads],
        "subtract": [equality.difference],
        "multiply": [_times_zero],
        "maximum": [equality.either, _least],
        "minimum": [equality.either, _greatest],
        "clip": [_one_bound],
        "logical_and": [equality.either, _and],
        "logical_or": [equality.either, _or],
        "logical_xor": [equality.exclusive, _xor],
        "bitwise_and": [equality.either],
        "bitwise_or": [equality.either],
        "bitwise_xor": [equality.exclusive],
        "equal": [equality.compared],
        "not_equal": [equality.compared],
        "less": [equality.compared],
        "less_equal": [equality.compared],
        "greater": [equality.compared],
        "greater_equal": [equality.compared],
        "where": [
            _known_choice,
            equality.no_choice,
            equality.same_choice,
            _choice_of_numbers,
            pools.relu_before,
        ],
        "relu": [_relu_twice],
        "reciprocal": [_reciprocal_twice],
        "sum": [_sum_of_broadcast, _sum_of_negative, places.sum_of_row],
        "gather": [pick_first, places.note_gather],
        "scatter_add": [places.one_in_a_row],
        "concat": [joints.flat, joints.adjacent_slices],
        "slice": [joints.slice_of_concat, joints.slice_of_pad],
        "pad": [joints.pad_of_nothing, joints.pad_of_number],
    }

    def rules_of(op: str) -> list[Rule]:
        found = list(own.get(op, ()))
        if isinstance(registry.get(op).lower, Reduction):
            found += [reduced_ones, _reduced_view]
            if op in _IDEMPOTENT:
                found += [_extremum_of_broadcast]
        return found

    return rules_of


# --- neutral elements -----------------------------------------------------------------------------


def _plus_zero(node: Node) -> Found:
    """add(x, 0.0) -> x"""
    x, zero = node.operands
    return fitted(x, node) if number(zero) == 0 else None


def _times_zero(node: Node) -> Found:
    """multiply(x, 0) -> 0 for integers"""
    x, zero = node.operands
    if not x.dtype.is_integer or number(zero) != 0:
        return None
    return fitted(constant_of(0, x.dtype), node)


def _least(node: Node) -> Found:
    """maximum(x, -inf) -> x; of integers their least value"""
    x, bound = node.operands
    low = -np.inf if x.dtype.is_float else integer_range(x.dtype)[0]
    return fitted(x, node) if number(bound) == low else None


def _greatest(node: Node) -> Found:
    """minimum(x, inf) -> x; of integers their greatest value"""
    x, bound = node.operands
    high = np.inf if x.dtype.is_float else integer_range(x.dtype)[1]
    return fitted(x, node) if number(bound) == high else None


def _one_bound(node: Node) -> Found:
    """clip(x, -inf, high) -> minimum(x, high); clip(x, low, inf) -> maximum(x, low)"""
    x, low, high = node.operands
    ends = (-np.inf, np.inf) if x.dtype.is_float else integer_range(x.dtype)
    if number(low) == ends[0]:
        return fitted(make("minimum", x, high), node)
    return fitted(make("maximum", x, low), node) if number(high) == ends[1] else None


def _and(node: Node) -> Found:
    """logical_and(x, true) -> x; logical_and(x, false) -> false"""
    x, other = node.operands
    c = number(other)
    return None if c is None else fitted(x if c else other, node)


def _or(node: Node) -> Found:
    """logical_or(x, false) -> x; logical_or(x, true) -> true"""
    x, other = node.operands
    c = number(other)
    return None if c is None else fitted(other if c else x, node)


def _xor(node: Node) -> Found:
    """logical_xor(x, false) -> x; logical_xor(x, true) -> logical_not(x)"""
    x, other = node.operands
    c = number(other)
    return None if c is None else fitted(make("logical_not", x) if c else x, node)


def _relu_twice(node: Node) -> Found:
    """relu(relu(x)) -> relu(x)"""
    return [node.operands[0]] if node.operands[0].node.op == "relu" else None


def _reciprocal_twice(node: Node) -> Found:
    """reciprocal(reciprocal(x)) -> x"""
    inner = node.operands[0].node
    return [inner.operands[0]] if inner.op == "reciprocal" else None


# --- choices --------------------------------------------------------------------------------------


def _known_choice(node: Node) -> Found:
    """where(true, a, b) -> a; where(false, a, b) -> b"""
    condition, a, b = node.operands
    c = number(condition)
    return None if c is None else fitted(a if c else b, node)


def _choice_of_numbers(node: Node) -> Found:
    """where(c, 1.0, 0.0) -> astype(c); where(c, 0.0, 1.0) -> astype(logical_not(c))"""
    condition, a, b = node.operands
    x, y = number(a), number(b)
    if x is None or y is None or np.signbit(np.float64(x)) or np.signbit(np.float64(y)):
        return None
    if (x, y) == (0, 1):
        condition = make("logical_not", condition)
    elif (x, y) != (1, 0):
        return None
    if a.dtype.kind != "b":
        condition = make("astype", condition, dtype=a.dtype)
    return fitted(condition, node)


class _WithEquality:
    """The rules that ask whether two values are equal."""

    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering

    def _equal(self, node: Node) -> bool:
        return self.numbering.same(node.operands[0], node.operands[1])

    def difference(self, node: Node) -> Found:
        """subtract(x, x) -> 0 for integers"""
        if not node.types[0].dtype.is_integer or not self._equal(node):
            return None
        return fitted(constant_of(0, node.types[0].dtype), node)

    def either(self, node: Node) -> Found:
        """maximum(x, x) -> x; likewise minimum, and, or"""
        return [node.operands[0]] if self._equal(node) else None

    def exclusive(self, node: Node) -> Found:
        """bitwise_xor(x, x) -> 0; logical_xor(x, x) -> false"""
        if not self._equal(node):
            return None
        return fitted(constant_of(0, node.types[0].dtype), node)

    def compared(self, node: Node) -> Found:
        """less(x, x) -> false; equal(x, x) -> true, unless x can be NaN"""
        if not self._equal(node):
            return None
        result = node.op in ("equal", "less_equal", "greater_equal")
        if node.operands[0].dtype.is_float and node.op not in ("less", "greater"):
            return None
        return fitted(constant_of(result, node.types[0].dtype), node)

    def no_choice(self, node: Node) -> Found:
        """where(c, x, x) -> x"""
        if not self.numbering.same(node.operands[1], node.operands[2]):
            return None
        return fitted(node.operands[1], node)

    def same_choice(self, node: Node) -> Found:
        """where(c, where(c, a, b), d) -> where(c, a, d); where(c, a, where(c, b, d)) ->
        where(c, a, d)"""
        condition, a, b = node.operands
        if a.node.op == "where" and self.numbering.same(a.node.operands[0], condition):
            return fitted(make("where", condition, a.node.operands[1], b), node)
        if b.node.op == "where" and self.numbering.same(b.node.operands[0], condition):
            return fitted(make("where", condition, a, b.node.operands[2]), node)
        return None


# --- reductions -----------------------------------------------------------------------------------

_IDEMPOTENT = frozenset(("all", "any", "max", "min"))


def _repeated(node: Node) -> tuple[int, ...]:
    """Of a reduction of broadcast_to(x): the reduced axes along which x is repeated."""
    inner = node.operands[0].node
    if inner.op != "broadcast_to":
        return ()
    x, shape = inner.operands[0], inner.types[0].shape
    own = (1,) * (len(shape) - x.ndim) + x.shape
    return tuple(a for a in node.attrs["axes"] if own[a] == 1 and shape[a] != 1)


def _over_the_rest(node: Node, repeated: tuple[int, ...]) -> Value:
    """The reduction of x over the other axes, before it is broadcast, dims of 1 kept."""
    inner = node.operands[0].node
    x = inner.operands[0]
    extra = inner.types[0].ndim - x.ndim
    left = tuple(a - extra for a in node.attrs["axes"] if a not in repeated)
    return make(node.op, x, axes=left, keepdims=True) if left else x


def _in_place_of(node: Node, v: Value) -> list[Value]:
    """`v`, of the dims of x, in the place of a reduction that may drop the reduced ones."""
    if not node.attrs["keepdims"]:
        extra = node.operands[0].ndim - v.ndim
        gone = {a - extra for a in node.attrs["axes"]}
        shape = tuple(d for a, d in enumerate(v.shape) if a not in gone)
        v = v if v.shape == shape else make("reshape", v, shape=shape)
    return fitted(v, node)


def _sum_of_broadcast(node: Node) -> Found:
    """sum(broadcast_to(x)) over n repetitions -> multiply(x, n). Where n is known only at run time
    it may be 0, so then x must be a finite number: 0 * inf is not the sum of nothing."""
    repeated = _repeated(node)
    if not repeated:
        return None
    n = product(tuple(node.operands[0].shape[a] for a in repeated))
    dtype = node.types[0].dtype
    if isinstance(n, int):
        if n == 0:
            return fitted(constant_of(0, dtype), node)
        count = constant_of(_wrapped(n, dtype), dtype)
        return _in_place_of(node, make("multiply", _over_the_rest(node, repeated), count))
    c = number(node.operands[0])
    if c is None or not np.isfinite(c) or len(repeated) < len(node.attrs["axes"]):
        return None
    count = make("dim_size", dim=n, dtype=dtype)
    total = count if c == 1 else make("multiply", count, constant_of(c, dtype))
    return fitted(total, node)


def _wrapped(n: int, dtype: Any) -> int:
    return n if dtype.is_float else int(np.array(n % 2**dtype.bits, "uint64").astype(dtype.numpy))


def _extremum_of_broadcast(node: Node) -> Found:
    """max(broadcast_to(x)) -> max(x), without the axes of repetition; likewise min, any, all"""
    repeated = _repeated(node)
    sizes = [node.operands[0].shape[a] for a in repeated]
    if not repeated or not all(isinstance(d, int) and d > 0 for d in sizes):
        return None
    return _in_place_of(node, _over_the_rest(node, repeated))


def _sum_of_negative(node: Node) -> Found:
    """sum(negative(x)) -> negative(sum(x))"""
    inner = node.operands[0].node
    if inner.op != "negative":
        return None
    return [make("negative", make("sum", inner.operands[0], **node.attrs))]


def _reduced_view(node: Node) -> Found:
    """sum(permute_dims(x)) -> sum(x) over the axes where they came from, unless the dims that stay
    are permuted; a reduction of all of reshape(x) -> of all of x"""
    inner, axes = node.operands[0].node, node.attrs["axes"]
    if inner.op == "permute_dims":
        source, order = inner.operands[0], inner.attrs["axes"]
        stay = [order[a] for a in range(len(order)) if a not in axes]
        moved = tuple(sorted(order[a] for a in axes))
        if stay != sorted(stay) or (node.attrs["keepdims"] and moved != axes):
            return None
        return [make(node.op, source, axes=moved, keepdims=node.attrs["keepdims"])]
    if inner.op == "reshape" and len(axes) == inner.types[0].ndim:
        source = inner.operands[0]
        total = make(node.op, source, axes=tuple(range(source.ndim)), keepdims=False)
        return [spread(total, node.types[0].shape)]
    return None


__all__ = ["simplify"]
