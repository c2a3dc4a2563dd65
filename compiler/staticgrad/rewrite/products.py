"""Products and quotients as lists of factors, in which what under- or overflows is cancelled.

The backward graph of `log(softmax(x))` is built from the form that was written: the cotangent is
divided by a softmax that may have underflowed to 0, then multiplied by it again. As factors,

    ct / softmax(x) * softmax(x)              ct
    ct / sum(exp(x)) * exp(x)                 ct * softmax(x)
    ct / (1 + exp(x)) * exp(x)                ct * sigmoid(x)
    ct / (1 + exp(x))                         ct * sigmoid(-x)
    ct / (exp(x) + exp(y)) * exp(x)           ct * sigmoid(x - y)

are identities of the reals, as exp, softmax, sigmoid and their sums are never 0; what they become
holds where the written form is 0 * inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from staticgrad.ir.dim import Shape
from staticgrad.ir.node import Node, Value

from .pattern import Numbering, constant_of, make, number

MOST_FACTORS = 12  # a longer product is looked at in parts, which keeps the work per node bounded
_SPLITS = frozenset(("multiply", "divide", "negative", "reciprocal", "square"))
_CANCELS = frozenset(("exp", "softmax", "sigmoid"))


@dataclass(eq=False)
class Factor:
    """One factor. `kind` is "exp", "softmax", "sigmoid", "sum" (of exp), "one_plus" (exp), "pair"
    (of exp, added) or "other"; of all but the last `x` is the argument, times `scale` for sigmoid
    and one_plus, and for a pair both arguments.

    `value` is None for factors that the graph doesn't have yet. `shape` is that of a reshape which
    restores reduced dims.
    """

    kind: str
    value: Value | None
    x: Any = None
    axes: tuple[int, ...] = ()
    scale: float = 1.0
    shape: Shape | None = None

    def built(self) -> Value:
        if self.value is not None:
            v = self.value
            return v if self.shape is None else make("reshape", v, shape=self.shape)
        if self.kind == "softmax":
            return make("softmax", self.x, axes=self.axes)
        return make("sigmoid", scaled(self.x, self.scale))


@dataclass
class Factors:
    """`-1**minus * above / below`."""

    above: list[Factor] = field(default_factory=list)
    below: list[Factor] = field(default_factory=list)
    minus: bool = False

    def times(self, other: Factors) -> Factors:
        return Factors(
            [*self.above, *other.above], [*self.below, *other.below], self.minus != other.minus
        )

    def built(self, like: Value) -> Value:
        """The value, of the dtype of `like`: a product, divided by what is below, then the sign."""
        result: Value | None = None
        for f in self.above:
            v = f.built()
            result = v if result is None else make("multiply", result, v)
        for f in self.below:
            v = f.built()
            result = make("reciprocal", v) if result is None else make("divide", result, v)
        if result is None:
            result = constant_of(1, like.dtype)
        return make("negative", result) if self.minus else result


def scaled(x: Value, scale: float) -> Value:
    if scale == 1.0:
        return x
    if scale == -1.0:
        return make("negative", x)
    return make("multiply", x, constant_of(scale, x.dtype))


def split_scale(x: Value) -> tuple[Value, float]:
    """x = y * c as (y, c), with c = 1 where there is no number."""
    node = x.node
    if node.op == "negative":
        return node.operands[0], -1.0
    if node.op == "multiply" and node.operands[0].shape == x.shape:
        c = number(node.operands[1])
        if c is not None:
            return node.operands[0], float(c)
    return x, 1.0


def is_one_plus_exp(v: Value) -> bool:
    """add(exp(x), 1.0)"""
    node = v.node
    return node.op == "add" and node.operands[0].node.op == "exp" and number(node.operands[1]) == 1


def sum_of_exp(v: Value) -> Value | None:
    """x, if `v` is sum(exp(x))."""
    node = v.node
    if node.op != "sum" or node.operands[0].node.op != "exp":
        return None
    return node.operands[0].node.operands[0]


def gather(v: Value, room: int = MOST_FACTORS) -> Factors:
    """The factors of `v`, which may be a product, a quotient or neither."""
    found = Factors()
    stack: list[tuple[Value, bool, Shape | None]] = [(v, False, None)]
    while stack:
        value, inverse, shape = stack.pop()
        node = value.node
        if node.op == "reshape" and shape is None and _opens(value):
            stack.append((node.operands[0], inverse, value.shape))
            continue
        if node.op in _SPLITS and len(stack) < room and _fits(value, shape):
            found.minus ^= node.op == "negative"
            turned = inverse != (node.op in ("divide", "reciprocal"))
            parts = [(node.operands[-1], turned)]
            if len(node.operands) == 2 or node.op == "square":
                parts.append((node.operands[0], inverse))
            stack += [(v, turn, shape if v.ndim else None) for v, turn in parts]
            room -= 1
            continue
        (found.below if inverse else found.above).append(_factor(value, shape))
    return found


def _opens(v: Value) -> bool:
    """A reshape of a product that only puts dims of 1 in."""
    source = v.node.operands[0]
    return source.node.op in _SPLITS and tuple(d for d in v.shape if d != 1) == tuple(
        d for d in source.shape if d != 1
    )


def _fits(v: Value, shape: Shape | None) -> bool:
    """Below a reshape only factors that are not broadcast can be reshaped by themselves."""
    return shape is None or all(not o.ndim or o.shape == v.shape for o in v.node.operands)


def _factor(v: Value, shape: Shape | None) -> Factor:
    node = v.node
    op = node.op
    if shape is None:
        if op == "exp":
            return Factor("exp", v, node.operands[0])
        if op == "softmax":
            return Factor("softmax", v, node.operands[0], node.attrs["axes"])
        if op == "sigmoid":
            x, scale = split_scale(node.operands[0])
            return Factor("sigmoid", v, x, scale=scale)
        if is_one_plus_exp(v):
            x, scale = split_scale(node.operands[0].node.operands[0])
            return Factor("one_plus", v, x, scale=scale)
        if node.op == "add" and all(o.node.op == "exp" for o in node.operands):
            return Factor("pair", v, tuple(o.node.operands[0] for o in node.operands))
    exponent = sum_of_exp(v)
    if exponent is not None:
        axes: tuple[int, ...] = node.attrs["axes"]
        kept = tuple(1 if a in axes else d for a, d in enumerate(exponent.shape))
        if _without_front(v.shape if shape is None else shape) == _without_front(kept):
            return Factor("sum", v, exponent, axes, shape=shape)
    return Factor("other", v, shape=shape)


def _without_front(shape: Shape) -> Shape:
    i = 0
    while i < len(shape) and shape[i] == 1:
        i += 1
    return shape[i:]


class Cancelling:
    """Cancels factors, comparing values by number."""

    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering

    def equal(self, a: Factor, b: Factor) -> bool:
        if a.kind != b.kind or a.kind == "other":
            return False
        if a.kind == "pair":
            return all(self.numbering.same(v, w) for v, w in zip(a.x, b.x))
        return a.axes == b.axes and a.scale == b.scale and self.numbering.same(a.x, b.x)

    def reduced(self, f: Factors) -> Factors | None:
        """`f` with everything cancelled that can be; None if that is nothing."""
        above, below = list(f.above), []
        changed = self._join(above)
        # Sums first: the softmax or sigmoid that comes of one may cancel with another factor.
        for d in sorted(f.below, key=lambda d: d.kind not in ("sum", "one_plus")):
            if self._cancel(d, above):
                changed = True
            else:
                below.append(d)
        return Factors(above, below, f.minus) if changed else None

    def _join(self, above: list[Factor]) -> bool:
        """exp(x) * sigmoid(-x) is sigmoid(x): what a quotient by 1 + exp(x) may have left."""
        changed = False
        for e in [a for a in above if a.kind == "exp"]:
            x, scale = split_scale(e.x)
            for i, a in enumerate(above):
                if a.kind == "sigmoid" and a.scale == -scale and self.numbering.same(a.x, x):
                    above[i] = Factor("sigmoid", None, x, scale=scale)
                    above.remove(e)
                    changed = True
                    break
        return changed

    def _cancel(self, d: Factor, above: list[Factor]) -> bool:
        """Takes `d`, a factor below, out, if `above` allows; changes `above`."""
        if d.kind == "other":
            return False
        for i, a in enumerate(above):
            if self.equal(a, d):
                del above[i]
                return True
        if d.kind == "sum":
            for i, a in enumerate(above):
                if a.kind == "exp" and self.numbering.same(a.x, d.x):
                    above[i] = Factor("softmax", None, d.x, d.axes)
                    return True
        if d.kind == "pair":
            return self._share(d, above)
        if d.kind == "one_plus":
            for i, a in enumerate(above):
                if a.kind == "exp":
                    x, scale = split_scale(a.x)
                    if scale == d.scale and self.numbering.same(x, d.x):
                        above[i] = Factor("sigmoid", None, x, scale=scale)
                        return True
            above.append(Factor("sigmoid", None, d.x, scale=-d.scale))
            return True
        return False

    def _share(self, d: Factor, above: list[Factor]) -> bool:
        """exp(x) / (exp(x) + exp(y)) is sigmoid(x - y)."""
        for x, y in (d.x, d.x[::-1]):
            for i, a in enumerate(above):
                if a.kind == "exp" and self.numbering.same(a.x, x):
                    above[i] = Factor("other", make("sigmoid", make("subtract", x, y)))
                    return True
        return False

    def distributed(self, f: Factors) -> list[tuple[Factors, bool]] | None:
        """`f` with a sum among its factors multiplied out, if that lets a term's factors cancel:
        `y * (a / y - b)` -> `a - y * b`. The terms with their signs (True: minus); else None."""
        for i, s in enumerate(f.above):
            if s.value is None or s.shape is not None or s.value.node.op not in _SUMS:
                continue
            others = Factors([*f.above[:i], *f.above[i + 1 :]], f.below, f.minus)
            if not any(o.kind in _CANCELS for o in others.above):
                continue
            terms = [(gather(v), minus) for v, minus in _terms(s.value)]
            products = [others.times(t) for t, _ in terms]
            reduced = [self.reduced(p) for p in products]
            gained = [r is not None and t.below for r, (t, _) in zip(reduced, terms)]
            if any(gained):
                return [
                    (p if r is None else r, minus)
                    for p, r, (_, minus) in zip(products, reduced, terms)
                ]
        return None


_SUMS = frozenset(("add", "subtract"))
_MOST_TERMS = 6


def _terms(v: Value) -> list[tuple[Value, bool]]:
    """The terms of a sum, each with its sign."""
    found: list[tuple[Value, bool]] = []
    stack = [(v, False)]
    while stack:
        value, minus = stack.pop()
        node = value.node
        if node.op in _SUMS and len(stack) + len(found) < _MOST_TERMS:
            a, b = node.operands
            stack.append((b, minus != (node.op == "subtract")))
            stack.append((a, minus))
        else:
            found.append((value, minus))
    return found


def total(terms: Sequence[tuple[Factors, bool]], like: Value) -> Value:
    """The sum of products, a positive one first if there is any."""
    result: Value | None = None
    signed = [(f.minus != minus, f) for f, minus in terms]
    for negative, f in sorted(signed, key=lambda t: t[0]):
        v = Factors(f.above, f.below).built(like)
        if result is None:
            result = make("negative", v) if negative else v
        else:
            result = make("subtract" if negative else "add", result, v)
    assert result is not None
    return result


def hoisted(node: Node, numbering: Numbering) -> Value | None:
    """sum(a / s) -> sum(a) / s for s = sum(exp(x)) over the axes that are summed here."""
    f = gather(node.operands[0])
    axes = node.attrs["axes"]
    outside = [d for d in f.below if d.kind == "sum" and d.axes == axes]
    if not outside:
        return None
    inside = Factors(f.above, [d for d in f.below if d not in outside])
    operand = inside.built(node.operands[0])
    if operand.shape != node.operands[0].shape:
        return None
    result = make("sum", operand, axes=axes, keepdims=node.attrs["keepdims"])
    for d in outside:
        assert d.value is not None
        s = d.value
        if s.shape != result.shape:
            s = make("reshape", s, shape=result.shape)
        result = make("divide", result, s)
    return make("negative", result) if f.minus else result


__all__ = [
    "Cancelling",
    "Factors",
    "gather",
    "hoisted",
    "is_one_plus_exp",
    "scaled",
    "split_scale",
    "sum_of_exp",
    "total",
]
