"""Python numbers while a function is traced: values of the graph that stay weak and can be read.

A traced function gets a `WeakNumber` for each Python number of the call. Beside a tensor it takes
the tensor's dtype, as the number itself would (so a float32 stays float32); among themselves such
numbers compute as Python does, in float64 and int64. Where Python needs the number itself
(`range(n)`, `if n > 3`, `math.sqrt(rate)`), it reads the present one, and the trace holds for calls
that read the same. Only `if` on what follows from a float is refused, as for any tensor: each value
would be traced again.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, size_reader
from staticgrad.ir.dtype import DType, bool_, float32, float64, int64
from staticgrad.ir.errors import ArgumentTypeError
from staticgrad.ir.node import Node
from staticgrad.ir.types import TensorType

from . import registry
from .tensor import Tensor

Number = bool | int | float
Evaluate = Callable[[Any], Number]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a weak number comes from: how it follows from a call's arguments, what hears of it
    being read (`note(text, evaluate, value)`), and whether it follows from a float."""

    text: str
    evaluate: Evaluate
    note: Callable[[str, Evaluate, Number], None]
    of_float: bool = False


class WeakNumber(Tensor):
    """A 0-d value that stands for a Python number, whose present value is `number`."""

    __slots__ = ("number", "origin")
    number: Number
    origin: Origin

    def strong(self) -> Tensor:
        """The number as an ordinary tensor: float32, int64 or bool, as bare Python numbers are."""
        return _cast(self, float32 if self.dtype.is_float else self.dtype)

    def read(self) -> Number:
        """The present number: the trace holds for calls where it is the same."""
        o = self.origin
        o.note(o.text, o.evaluate, self.number)
        return self.number

    def __bool__(self) -> bool:
        if self.origin.of_float:
            raise ArgumentTypeError(
                f"{self.origin.text} is a value of the program that is being traced, so it can't "
                "be used in `if`, `while` or `and`; use sg.cond(condition, f, g, x) or "
                "sg.where(condition, a, b), name the argument in static_argnames for a trace of "
                "each value, or use the dynamic mode (sg.eager)"
            )
        return bool(self.read())

    def __int__(self) -> int:
        return int(self.read())

    def __float__(self) -> float:
        return float(self.read())

    def __index__(self) -> int:
        value = self.read()
        if isinstance(value, float):
            raise TypeError("a float can't be used as an int here; convert it with int(...)")
        return value

    def item(self) -> Any:
        return self.read()

    tolist = item

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.read(), digits)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.read(), dtype)

    def __format__(self, spec: str) -> str:
        return format(self.read(), spec) if spec else repr(self)

    __hash__ = Tensor.__hash__


# `math.sqrt(n)`, and arguments annotated `float`, take a number of any class.
numbers.Real.register(WeakNumber)


def weak(node: Node, number: Number, origin: Origin) -> WeakNumber:
    """The node again, with a weak number as its result."""
    made = Node(node.op, node.operands, node.attrs, node.types, node.locs, node.payload,
                node.constraints, WeakNumber)  # fmt: skip
    found = made.results[0]
    assert isinstance(found, WeakNumber)
    found.number, found.origin = number, origin
    return found


def weak_type(number: Number) -> TensorType:
    """The type in which a Python number is computed with."""
    dtype = bool_ if isinstance(number, bool) else int64 if isinstance(number, int) else float64
    return TensorType(dtype, ())


def _symbols() -> dict[str, tuple[str, Callable[..., Any]]]:
    """Of each operator: how it is written, and Python's function."""
    return {
        "add": ("+", operator.add), "sub": ("-", operator.sub), "mul": ("*", operator.mul),
        "truediv": ("/", operator.truediv), "floordiv": ("//", operator.floordiv),
        "mod": ("%", operator.mod), "pow": ("**", operator.pow), "lt": ("<", operator.lt),
        "le": ("<=", operator.le), "gt": (">", operator.gt), "ge": (">=", operator.ge),
        "eq": ("==", operator.eq), "ne": ("!=", operator.ne), "and": ("&", operator.and_),
        "or": ("|", operator.or_), "xor": ("^", operator.xor),
    }  # fmt: skip


def _partner(value: Any) -> Any:
    """The other operand as a Python number or a weak one; None where it is neither."""
    if isinstance(value, WeakNumber):
        return value
    if isinstance(value, Dim):
        reader = size_reader.get()
        return None if reader is None else reader.number(value)
    plain = isinstance(value, (bool, int, float)) and not hasattr(value, "dtype")
    return value if plain else None


def _number(v: Any) -> Number:
    return v.number if isinstance(v, WeakNumber) else v  # type: ignore[no-any-return]


def _evaluator(v: Any) -> Evaluate:
    return v.origin.evaluate if isinstance(v, WeakNumber) else lambda call: v  # type: ignore[no-any-return]


def _binary(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The operator and its reflected form."""
    symbol, function = _symbols()[name]

    def combined(a: Any, b: Any) -> WeakNumber:
        number = function(_number(a), _number(b))
        first, second = _evaluator(a), _evaluator(b)
        note = (a if isinstance(a, WeakNumber) else b).origin.note
        origin = Origin(
            f"({_shown(a)} {symbol} {_shown(b)})",
            lambda call: function(first(call), second(call)),
            note,
            _of_float(a) or _of_float(b),
        )
        return weak(_computed(name, function, a, b).node, number, origin)

    def forward(self: WeakNumber, other: Any) -> Any:
        partner = _partner(other)
        if partner is None:
            return getattr(Tensor, f"__{name}__")(self, other)
        return combined(self, partner)

    def reflected(self: WeakNumber, other: Any) -> Any:
        partner = _partner(other)
        if partner is None:
            return getattr(Tensor, f"__r{name}__")(self, other)
        return combined(partner, self)

    return forward, reflected


def _of_float(v: Any) -> bool:
    return isinstance(v, WeakNumber) and v.origin.of_float


def _shown(v: Any) -> str:
    return v.origin.text if isinstance(v, WeakNumber) else repr(v)


def _computed(name: str, function: Callable[..., Any], a: Any, b: Any) -> Tensor:
    """`a op b` in the dtypes of Python's numbers."""
    types = [weak_type(_number(v)).dtype for v in (a, b)]
    wide = float64 if float64 in types else int64
    if name == "truediv":
        wide = float64
    elif name == "pow" and wide == int64 and not isinstance(b, int):
        b = int(b)  # whether the result is an int depends on its sign: it is read
    if name == "pow" and wide == int64 and b < 0:
        wide = float64
    if name in ("and", "or", "xor") and types == [bool_, bool_]:
        wide = bool_
    x, y = (_cast(v, wide) if isinstance(v, WeakNumber) else _constant(v, wide) for v in (a, b))
    found: Tensor = getattr(Tensor, f"__{name}__")(x, y)
    return found


def _constant(number: Number, dtype: DType) -> Tensor:
    from .convert import constant_array

    return constant_array(np.asarray(number, dtype.numpy))


def _cast(v: WeakNumber, dtype: Any) -> Tensor:
    """The number as an ordinary tensor, which is not weak, whatever its dtype was."""
    found: Tensor = registry.apply("astype", v, dtype=dtype)
    return found


def _unary(name: str, text: str, function: Callable[[Any], Any]) -> Callable[[WeakNumber], Any]:
    def method(self: WeakNumber) -> WeakNumber:
        inner = self.origin
        origin = Origin(
            text.format(inner.text),
            lambda call: function(inner.evaluate(call)),
            inner.note,
            inner.of_float,
        )
        plain = _cast(self, int64 if self.dtype == bool_ else self.dtype)
        result = getattr(Tensor, f"__{name}__")(plain)
        return weak(result.node, function(self.number), origin)

    return method


for _name in _symbols():
    _forward, _reflected = _binary(_name)
    setattr(WeakNumber, f"__{_name}__", _forward)
    if _name not in ("lt", "le", "gt", "ge", "eq", "ne"):  # Python swaps these by itself
        setattr(WeakNumber, f"__r{_name}__", _reflected)
for _name, _text, _function in (
    ("neg", "-{}", operator.neg), ("abs", "abs({})", abs), ("pos", "+{}", operator.pos),
):  # fmt: skip
    setattr(WeakNumber, f"__{_name}__", _unary(_name, _text, _function))


__all__ = ["Origin", "WeakNumber", "weak", "weak_type"]
