"""What rules ask of the nodes that they look at: numbers, equality, the forms that they match."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Shape
from staticgrad.ir.dtype import DType
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.ops import registry

from .driver import Rule

# Numbers up to this size move to the root of a product: what is below gets smaller, so nothing
# overflows that did not before, and a subnormal product loses at most half of this in last places.
# Numbers below 1 stay where they are: `x * (0.5 * y)` may be finite where `x * y` is not.
_MODERATE = 2.0**8

_SPREADS = frozenset(("broadcast_to", "reshape"))


class Numbering:
    """Numbers values so that equal computations have equal numbers, in order of appearance.

    Rules compare values by number, so what they match does not depend on whether the pass `cse`
    has merged equal nodes. A node is numbered when it is final, its operands before it.
    """

    def __init__(self) -> None:
        self._numbers: dict[Node, int] = {}
        self._known: dict[Hashable, int] = {}

    def add(self, node: Node) -> None:
        if node not in self._numbers:
            key = self._key(node)
            self._numbers[node] = self._known.setdefault(key, len(self._numbers))

    def of(self, v: Value) -> tuple[int, int]:
        return self._numbers[v.node], v.index

    def same(self, a: Value, b: Value) -> bool:
        """Whether two values are equal; of nodes that are not final yet, whether they are one."""
        if a is b or a.index != b.index:
            return a is b
        number = self._numbers.get(a.node)
        return number is not None and number == self._numbers.get(b.node)

    def _key(self, node: Node) -> Hashable:
        numbers = self._numbers
        operands = tuple(
            numbers[v.node] if v.index == 0 else (numbers[v.node], v.index) for v in node.operands
        )
        own = own_key(node)
        return node if own is None else (own, operands)


def own_key(node: Node) -> Hashable | None:
    """What equal nodes of equal operands share beside them; None for a node that is equal to itself
    only: inputs, state, random draws and nodes that hold sub-graphs."""
    op = node.op
    if op == "constant":
        return constant_key(node)
    if op in _BY_IDENTITY or node.payload is not None or "random" in registry.get(op).traits:
        return None
    if not node.attrs:
        return op
    attrs = attrs_key(node.attrs)
    return None if attrs is None else (op, attrs)


_BY_IDENTITY = frozenset(("input", "state"))
_SHORT = 256  # bytes of a constant that are kept as the key itself; of longer ones a digest


def constant_key(node: Node) -> Hashable:
    """dtype, shape and bytes."""
    data: bytes = node.payload.tobytes()
    if len(data) > _SHORT:
        import hashlib

        data = hashlib.blake2b(data).digest()
    return ("constant", node.types[0], data)


def attrs_key(attrs: Mapping[str, Any]) -> Hashable | None:
    """The attributes as a key; None where they hold a sub-graph."""
    found = []
    for name, a in attrs.items():
        if isinstance(a, Graph):
            return None
        found.append((name, _plain(a)))
    return found[0] if len(found) == 1 else tuple(sorted(found, key=_first))


def _first(item: tuple[str, Hashable]) -> str:
    return item[0]


def _plain(a: Any) -> Hashable:
    # 0.0 == -0.0 and 1 == 1.0 == True, but they are not the same attribute.
    kind = type(a)
    if kind is float:
        return (kind, a.hex())
    if kind is tuple:
        return tuple([x if type(x) is int else _plain(x) for x in a])
    return (kind, a)


def numbered(numbering: Numbering, rule: Rule) -> Rule:
    """`rule`, with every node that it leaves alone numbered."""
    add = numbering.add

    def look(node: Node) -> Sequence[Value] | None:
        found = rule(node)
        if found is None:
            add(node)
        return found

    return look


# --- numbers --------------------------------------------------------------------------------------


def number(v: Value) -> Any:
    """The one number that all elements of `v` are, as a NumPy scalar, or None: a constant of one
    element, also broadcast or reshaped."""
    node = v.node
    while node.op in _SPREADS:
        node = node.operands[0].node
    if node.op != "constant" or node.payload.size != 1:
        return None
    return node.payload.reshape(())[()]


def is_number(v: Value, value: float) -> bool:
    found = number(v)
    return found is not None and bool(found == value)


def constant_of(value: Any, dtype: DType) -> Value:
    """A 0-d constant."""
    held = np.asarray(value, dtype.numpy)
    held.flags.writeable = False
    attrs = {"dtype": dtype, "shape": ()}
    return registry.make("constant", (), attrs, payload=held).results[0]


def moves_out(c: Any, dtype: DType) -> bool:
    """Whether `(x * c) * y` may become `(x * y) * c`."""
    return dtype.is_integer or 1.0 <= abs(float(c)) <= _MODERATE


def merged(a: Any, b: Any, dtype: DType) -> Any:
    """The product of two numbers of `dtype` if `x * a * b` may become `x * (a * b)`, else None: a
    product of numbers that overflows or loses digits would, where `x` makes up for it."""
    with np.errstate(over="ignore", under="ignore"):
        product = dtype.numpy.type(np.multiply(a, b))
    return product if dtype.is_integer or is_normal(product) else None


def is_normal(c: Any) -> bool:
    """Neither zero nor subnormal, infinite or NaN."""
    return bool(np.isfinite(c)) and bool(abs(c) >= np.finfo(c.dtype).tiny)


# --- making nodes ---------------------------------------------------------------------------------


def make(op: str, *operands: Value, **attrs: Any) -> Value:
    return registry.make(op, operands, attrs).results[0]


def fitted(v: Value, node: Node) -> list[Value]:
    """`v` in the place of the node's only result: broadcast where it has fewer elements."""
    return [spread(v, node.types[0].shape)]


def spread(v: Value, shape: Shape) -> Value:
    """`v` broadcast to `shape`; a reshape where that only puts dims of 1 in front."""
    if v.shape == shape:
        return v
    extra = len(shape) - v.ndim
    if shape == (1,) * extra + v.shape:
        return make("reshape", v, shape=shape)
    return make("broadcast_to", v, shape=shape)
