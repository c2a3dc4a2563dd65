"""canonicalize: many ways to write a formula -> one.

before -> after

    %3 = pow(%a, 2.0)                       %3 = square(%a)
    %4 = multiply(3.0, %3)                  %4 = multiply(%3, 3.0)
    %5 = multiply(%b, %b)                   %5 = square(%b)
    %6 = subtract(%4, %5)                   %6 = subtract(%4, %5)

The canonical form, which the passes after this one match and no other:

- Operands of a commutative op stand in order of first appearance, numbers last. (A *number* is a
  constant of one element, also broadcast: `3.0`.)
- Numbers that are multiplied one after another are one; those from 1 to 2**8 stand at the root of a
  product: `multiply(multiply(a, b), 6.0)`. Smaller ones stay where they are, and products of
  different tensors are not regrouped: that could overflow where the written order does not.
- Powers of one base by 2, 3 and 4 are `square(x)`, `multiply(x, square(x))`, `square(square(x))`;
  by -1 and -2 `reciprocal(x)`, `square(reciprocal(x))`; by 1/2 `sqrt(x)`, as in NumPy and PyTorch
  (pow of -inf is inf, and of -0.0 0.0; the root is NaN and -0.0).
- Signs: no `negative` below a product or quotient, no sum with a negative operand (`subtract`), no
  difference with a number on the right (`add`), no double `negative`, no multiplication by -1.
- `x + x` is `multiply(x, 2.0)`, like terms of one sign are merged, a division by a power of two
  is a multiplication, `divide(1, x)` is `reciprocal(x)`.
- Arithmetic on numbers alone is done, where IEEE 754 fixes its result.
- A constant of equal elements is a broadcast number. Element-wise ops read operands before they are
  broadcast, and what is the same for all is computed before the broadcast.
- Chains of one view op (reshape, permute_dims, broadcast_to, slice) are one; views that change
  nothing are none; a permutation of dims of 1 is a reshape, a view of a number the number.
- Reductions have no axes of size 1 beside others; they hold `keepdims`, no reshape after them does.
- Exact chains of `astype` are one. On bools the bitwise ops are the logical ones.
- `stop_gradient` is gone: differentiation is over.

Defining: like terms and numbers that move round differently; the sign of a NaN may change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dtype import DType
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry
from staticgrad.ops.lowering import Reduction
from staticgrad.rewrite.driver import Rule, rewrite, rule_table
from staticgrad.rewrite.pattern import (
    Numbering,
    constant_of,
    fitted,
    is_normal,
    make,
    merged,
    moves_out,
    number,
    numbered,
)

from . import views

Found = Sequence[Value] | None


def canonicalize(graph: Graph) -> Graph:
    numbering = Numbering()
    return rewrite(graph, numbered(numbering, rule_table(_rules(numbering))))


def _rules(numbering: Numbering) -> Callable[[str], list[Rule]]:
    terms = _Terms(numbering)
    own: dict[str, list[Rule]] = {
        "add": [terms.like_terms, terms.negative_terms, _integer_chain],
        "subtract": [_subtracted_number, terms.negative_terms],
        "multiply": [_unit, _scaled, terms.powers, _coefficients],
        "divide": [_power_of_two, _signs_of_quotient, _one_over],
        "negative": [_double_negative],
        "square": [_even, _scaled_square],
        "abs": [_even],
        "cos": [_even],
        "cosh": [_even],
        "pow": [_pow],
        "astype": [_astype_chain],
        "stop_gradient": [_stop_gradient],
        "logical_not": [_double_not],
        "bitwise_invert": [_invert_bool],
        "where": [_where_not],
        "constant": [_uniform],
        "reshape": [views.view_of_number, views.reshape_chain, views.reshape_reduction],
        "permute_dims": [views.view_of_number, views.permute_chain],
        "broadcast_to": [views.broadcast_chain],
        "slice": [views.view_of_number, views.slice_chain],
        "bitwise_and": [_logical],
        "bitwise_or": [_logical],
        "bitwise_xor": [_logical],
    }

    def rules_of(op: str) -> list[Rule]:
        record = registry.get(op)
        found = list(own.get(op, ()))
        if "elementwise" in record.traits:
            found.insert(0, views.broadcast_operands)
            if op in _EXACT:
                found.insert(0, _numbers_alone)
            if "commutative" in record.traits:
                found.append(terms.order)
        if isinstance(record.lower, Reduction):
            found.append(views.axes_of_one)
        return found

    return rules_of


# --- numbers --------------------------------------------------------------------------------------

# Ops whose result IEEE 754 or integer arithmetic fixes: NumPy gives the bits that kernels give.
_EXACT = frozenset((
    "abs", "add", "astype", "bitwise_and", "bitwise_invert", "bitwise_or", "bitwise_xor", "ceil",
    "divide", "equal", "floor", "greater", "greater_equal", "isfinite", "isinf", "isnan", "less",
    "less_equal", "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum",
    "multiply", "negative", "not_equal", "reciprocal", "sqrt", "square", "subtract", "trunc",
    "where",
))  # fmt: skip


def _numbers_alone(node: Node) -> Found:
    """add(2.0, 3.0) -> 5.0"""
    numbers = [number(v) for v in node.operands]
    if any(n is None for n in numbers):
        return None
    with np.errstate(all="ignore"):
        result = registry.get(node.op).reference(*(np.asarray(n) for n in numbers), **node.attrs)
    return fitted(constant_of(result, node.types[0].dtype), node)


def _uniform(node: Node) -> Found:
    """constant([2.0, 2.0, 2.0]) -> broadcast_to(2.0)"""
    held = node.payload
    if not held.ndim or not held.size:
        return None
    # By bits: -0.0 == 0.0, and NaN != NaN.
    bits = held.reshape(-1).view(f"u{held.dtype.itemsize}")
    if bits[0] != bits[-1] or not bool((bits == bits[0]).all()):
        return None
    return fitted(constant_of(held.reshape(-1)[0], node.types[0].dtype), node)


def _unit(node: Node) -> Found:
    """multiply(x, 1.0) -> x; multiply(x, -1.0) -> negative(x)"""
    for x, other in (node.operands, reversed(node.operands)):
        c = number(other)
        if c is None:
            continue
        if c == 1:
            return fitted(x, node)
        if c == -1:
            return fitted(make("negative", x), node)
    return None


def _scaled(node: Node) -> Found:
    """multiply(multiply(x, 2.0), 3.0) -> multiply(x, 6.0); a negative(x) is x times -1"""
    for x, other in (node.operands, reversed(node.operands)):
        c = number(other)
        if c is None:
            continue
        inner, c2 = _coefficient(x)
        product = None if c2 is None else merged(c, c2, x.dtype)
        if product is None:
            return None
        return fitted(make("multiply", inner, constant_of(product, x.dtype)), node)
    return None


def _coefficient(x: Value) -> tuple[Value, Any]:
    """x = y * c as (y, c); c is None where there is no number."""
    node = x.node
    if node.op == "negative" and x.dtype.kind != "u":
        return node.operands[0], x.dtype.numpy.type(-1)
    if node.op == "multiply" and node.operands[0].shape == x.shape:
        c = number(node.operands[1])
        if c is not None:
            return node.operands[0], c
    return x, None


def _coefficients(node: Node) -> Found:
    """multiply(multiply(a, 2.0), b) -> multiply(multiply(a, b), 2.0), unless the operand is smaller
    than the product; multiply(negative(a), b) -> negative(multiply(a, b))"""
    a, b = node.operands
    if number(a) is not None or number(b) is not None:
        return None
    shape = node.types[0].shape
    for x, y in ((a, b), (b, a)):
        inner, c = _coefficient(x)
        if c is None or x.shape != shape or not moves_out(c, x.dtype):
            continue
        product = make("multiply", inner, y)
        if c == -1:
            return [make("negative", product)]
        return [make("multiply", product, constant_of(c, x.dtype))]
    return None


def _integer_chain(node: Node) -> Found:
    """add(add(x, 2), 3) -> add(x, 5), integers only: floats would round differently"""
    x, c = node.operands[0], number(node.operands[1])
    if c is None or not x.dtype.is_integer or x.node.op != "add":
        return None
    c2 = number(x.node.operands[1])
    if c2 is None:
        return None
    with np.errstate(over="ignore"):
        total = np.add(c, c2)
    return fitted(make("add", x.node.operands[0], constant_of(total, x.dtype)), node)


def _subtracted_number(node: Node) -> Found:
    """subtract(x, 1.0) -> add(x, -1.0)"""
    x, other = node.operands
    c = number(other)
    if c is None:
        return None
    with np.errstate(over="ignore"):
        return fitted(make("add", x, constant_of(np.negative(c), x.dtype)), node)


def _power_of_two(node: Node) -> Found:
    """divide(x, 8.0) -> multiply(x, 0.125): exact"""
    x, other = node.operands
    c = number(other)
    if c is None or c == 0 or not np.isfinite(c) or abs(math.frexp(c)[0]) != 0.5:
        return None
    with np.errstate(over="ignore"):
        inverse = np.reciprocal(c)
    if not np.isfinite(inverse):
        return None
    return fitted(make("multiply", x, constant_of(inverse, x.dtype)), node)


def _one_over(node: Node) -> Found:
    """divide(1.0, x) -> reciprocal(x)"""
    x, y = node.operands
    if number(x) != 1:
        return None
    return fitted(make("reciprocal", y), node)


# --- signs ----------------------------------------------------------------------------------------


def _double_negative(node: Node) -> Found:
    """negative(negative(x)) -> x; negative(multiply(x, 2.0)) -> multiply(x, -2.0)"""
    inner = node.operands[0].node
    if inner.op == "negative":
        return [inner.operands[0]]
    if inner.op == "multiply":
        c = number(inner.operands[1])
        if c is not None:
            with np.errstate(over="ignore"):
                minus = constant_of(np.negative(c), node.types[0].dtype)
            return fitted(make("multiply", inner.operands[0], minus), node)
    return None


def _signs_of_quotient(node: Node) -> Found:
    """divide(negative(a), b) -> negative(divide(a, b)); likewise with the sign below"""
    a, b = node.operands
    if a.node.op == "negative":
        return [make("negative", make("divide", a.node.operands[0], b))]
    if b.node.op == "negative":
        return [make("negative", make("divide", a, b.node.operands[0]))]
    return None


def _even(node: Node) -> Found:
    """square(negative(x)) -> square(x); likewise abs, cos, cosh, and an abs inside of them"""
    inner = node.operands[0].node
    if inner.op == "negative" and node.op == "abs" and node.types[0].dtype.kind == "u":
        return None  # -3 of uint8 is 253, and so is its abs
    return [make(node.op, inner.operands[0])] if inner.op in ("negative", "abs") else None


def _scaled_square(node: Node) -> Found:
    """square(multiply(x, 3.0)) -> multiply(square(x), 9.0)"""
    inner, dtype = node.operands[0].node, node.types[0].dtype
    if inner.op != "multiply":
        return None
    c = number(inner.operands[1])
    product = None if c is None else merged(c, c, dtype)
    if product is None or not moves_out(product, dtype):
        return None
    squared = make("square", inner.operands[0])
    return fitted(make("multiply", squared, constant_of(product, squared.dtype)), node)


# --- powers ---------------------------------------------------------------------------------------


def _pow(node: Node) -> Found:
    """pow(x, 2.0) -> square(x), and other exponents that have a form of their own"""
    x, other = node.operands
    exponent = number(other)
    if exponent is None:
        return None
    n = exponent.item()
    if n == 0:
        return fitted(constant_of(1, x.dtype), node)
    if n in (1, 2, 3, 4):
        return fitted(power(x, int(n)), node)
    if not x.dtype.is_float:
        return None
    if n == -1:
        return fitted(make("reciprocal", x), node)
    if n == -2:
        # Not 1/x**2: the square overflows where x**-2 is still a subnormal number.
        return fitted(make("square", make("reciprocal", x)), node)
    if n == 0.5:
        return fitted(make("sqrt", x), node)
    return None


def power(x: Value, n: int) -> Value:
    """x to the power 1 to 4, in the canonical form."""
    if n == 1:
        return x
    square = make("square", x)
    if n == 2:
        return square
    return make("multiply", x, square) if n == 3 else make("square", square)


# --- sums, order ----------------------------------------------------------------------------------


class _Terms:
    """The rules that ask whether two values are equal, or which one came first."""

    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering

    def order(self, node: Node) -> Found:
        """add(b, a) -> add(a, b), in order of appearance, numbers last"""
        a, b = node.operands
        if number(b) is not None:
            return None
        if number(a) is None and self.numbering.of(a) <= self.numbering.of(b):
            return None
        if a.type == b.type:
            return [registry.clone(node, (b, a), node.locs).results[0]]
        swapped = make(node.op, b, a)
        # Where two names stand for one size, the result's type could take the other name.
        return [swapped] if swapped.type == node.types[0] else None

    def powers(self, node: Node) -> Found:
        """multiply(x, x) -> square(x); multiply(multiply(x, square(x)), x) -> square(square(x))"""
        a, b = node.operands
        if a.shape != b.shape or number(b) is not None:
            return None
        (x, m), (y, n) = self._base(a), self._base(b)
        if not self.numbering.same(x, y) or (m, n) in ((1, 2), (2, 1)):
            return None
        if m + n > 4:
            return [make("square", a)] if m == n else None
        return [power(x, m + n)]

    def _base(self, v: Value) -> tuple[Value, int]:
        node = v.node
        if node.op == "square":
            x, n = self._base_of_square(node.operands[0])
            return x, 2 * n
        if node.op == "multiply":
            a, b = node.operands
            for x, other in ((a, b), (b, a)):
                if other.node.op == "square" and self.numbering.same(other.node.operands[0], x):
                    return x, 3
        return v, 1

    def _base_of_square(self, v: Value) -> tuple[Value, int]:
        return (v.node.operands[0], 2) if v.node.op == "square" else (v, 1)

    def negative_terms(self, node: Node) -> Found:
        """add(a, negative(b)) -> subtract(a, b); subtract(a, negative(b)) -> add(a, b); likewise
        with a product by a negative number, and for add on either side"""
        a, b = node.operands
        minus = "subtract" if node.op == "add" else "add"
        positive = _positive_part(b)
        if positive is not None:
            return [make(minus, a, positive)]
        if node.op == "add":
            positive = _positive_part(a)
            if positive is not None and number(b) is None:
                made = make("subtract", b, positive)
                return [made] if made.type == node.types[0] else None
        return None

    def like_terms(self, node: Node) -> Found:
        """add(x, x) -> multiply(x, 2.0); add(multiply(x, 2.0), multiply(x, 3.0)) ->
        multiply(x, 5.0)"""
        a, b = node.operands
        dtype = a.dtype
        if a.shape != b.shape or number(b) is not None:
            return None
        (x, cx), (y, cy) = _term(a), _term(b)
        if not self.numbering.same(x, y):
            return None
        if dtype.is_integer:
            with np.errstate(over="ignore"):
                total = np.add(cx, cy)
        else:
            # Of one sign only: else inf - inf would become 0 * inf or a finite number times inf.
            with np.errstate(over="ignore"):
                total = np.add(cx, cy)
            if not is_normal(total) or (cx < 0) != (cy < 0):
                return None
        return [make("multiply", x, constant_of(total, dtype))]


def _term(v: Value) -> tuple[Value, Any]:
    x, c = _coefficient(v)
    return (v, v.dtype.numpy.type(1)) if c is None else (x, c)


def _positive_part(v: Value) -> Value | None:
    """The positive of a term that is written as a negative one; None for any other."""
    node = v.node
    if node.op == "negative":
        return node.operands[0]
    if node.op == "multiply" and v.dtype.kind != "u":
        c = number(node.operands[1])
        if c is not None and c < 0:
            with np.errstate(over="ignore"):
                minus = np.negative(c)
            if minus > 0:
                return fitted(make("multiply", node.operands[0], constant_of(minus, v.dtype)),
                              node)[0]  # fmt: skip
    return None


# --- dtypes, bools --------------------------------------------------------------------------------


def _astype_chain(node: Node) -> Found:
    """astype(astype(x, wider), d) -> astype(x, d), where `wider` holds all values of x's dtype"""
    x = node.operands[0]
    if x.dtype == node.types[0].dtype:
        return [x]
    if x.node.op != "astype":
        return None
    source = x.node.operands[0]
    wanted = node.types[0].dtype
    if not holds(x.dtype, source.dtype):
        return None
    if (
        x.dtype.is_float
        and wanted.is_integer
        and not (source.dtype.is_float or holds(wanted, source.dtype))
    ):
        return None  # from a float it saturates, from an integer it would wrap
    return [source] if source.dtype == wanted else [make("astype", source, dtype=wanted)]


def holds(wide: DType, narrow: DType) -> bool:
    """Does `wide` represent every value of `narrow`?"""
    if wide == narrow or narrow.kind == "b":
        return True
    if wide.kind == "b" or (narrow.is_float and not wide.is_float):
        return False
    if wide.is_float:
        digits = 24 if wide.bits == 32 else 53
        return wide.bits > narrow.bits if narrow.is_float else narrow.bits <= digits
    if wide.kind == narrow.kind:
        return wide.bits > narrow.bits
    return wide.kind == "i" and wide.bits > narrow.bits


def _stop_gradient(node: Node) -> Found:
    """stop_gradient(x) -> x"""
    return [node.operands[0]]


_OPPOSITES = {"equal": "not_equal", "not_equal": "equal"}


def _double_not(node: Node) -> Found:
    """logical_not(logical_not(x)) -> x; logical_not(equal(a, b)) -> not_equal(a, b)"""
    inner = node.operands[0].node
    if inner.op == "logical_not":
        return [inner.operands[0]]
    if inner.op in _OPPOSITES:
        return [make(_OPPOSITES[inner.op], *inner.operands)]
    return None


def _invert_bool(node: Node) -> Found:
    """bitwise_invert(x) -> logical_not(x) for bools; bitwise_invert(bitwise_invert(x)) -> x"""
    x = node.operands[0]
    if x.dtype.kind == "b":
        return [make("logical_not", x)]
    return [x.node.operands[0]] if x.node.op == "bitwise_invert" else None


def _logical(node: Node) -> Found:
    """bitwise_and(a, b) -> logical_and(a, b) for bools; likewise or, xor"""
    if node.types[0].dtype.kind != "b":
        return None
    return [make(node.op.replace("bitwise", "logical"), *node.operands)]


def _where_not(node: Node) -> Found:
    """where(logical_not(c), a, b) -> where(c, b, a)"""
    condition, a, b = node.operands
    if condition.node.op != "logical_not":
        return None
    made = make("where", condition.node.operands[0], b, a)
    return [made] if made.type == node.types[0] else None


__all__ = ["canonicalize", "holds", "power"]
