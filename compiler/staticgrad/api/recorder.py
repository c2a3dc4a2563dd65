"""What a trace asked of its arguments: sizes and Python numbers that were read, as guards.

While a function is traced, some axes have symbolic sizes and Python numbers are values of the
graph. Where the function needs an int (`range(x.shape[0])`, `if n > 3`), it gets the present one,
and the trace holds for later calls with the same answers alone.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from staticgrad.ir.dim import Dim, DimLike, substitute, symbols
from staticgrad.ir.loc import current_locs, locs_text
from staticgrad.ops.convert import apply
from staticgrad.ops.tensor import Tensor
from staticgrad.ops.weak import Number, Origin, WeakNumber, weak, weak_type

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "<": operator.lt, "<=": operator.le,
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """What guards are asked about: the sizes of the symbols and the call's Python numbers."""

    sizes: Mapping[str, int]
    numbers: Sequence[Any]


@dataclass(frozen=True)
class Guard:
    """A question that the trace asked, and its answer."""

    text: str
    where: str
    evaluate: Callable[[Call], Any]
    answer: Any
    of_sizes: bool  # asks about sizes alone

    def holds(self, call: Call) -> bool:
        try:
            found = self.evaluate(call)
        except ArithmeticError:  # 1 / n with n = 0, now
            return False
        return bool(found == self.answer or (found != found and self.answer != self.answer))

    def failure(self, call: Call) -> str:
        at = f" read at {self.where}" if self.where else ""
        try:
            now = repr(self.evaluate(call))
        except ArithmeticError as error:
            now = str(error)
        return f"guard failed: {self.text}{at} was {self.answer!r}, is {now}"


class Recorder:
    """The trace under way: present sizes of its symbols, and the guards."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.guards: dict[tuple[str, Any], Guard] = {}

    # Sizes, as `ir.dim.SizeReader`

    def _known(self, d: DimLike) -> bool:
        return all(name in self.sizes for name in symbols(d))

    def _value(self, d: DimLike) -> int:
        found = substitute(d, self.sizes)
        assert isinstance(found, int)
        return found

    def ask(self, op: str, left: DimLike, right: DimLike) -> bool | None:
        if not (self._known(left) and self._known(right)):
            return None
        answer = _OPERATORS[op](self._value(left), self._value(right))
        self._note_sizes(f"{left} {op} {right}", _comparison(op, left, right), answer)
        return answer

    def size(self, dim: Dim) -> int | None:
        if not self._known(dim):
            return None
        value = self._value(dim)
        self._note_sizes(f"int({dim})", lambda call: substitute(dim, call.sizes), value)
        return value

    def number(self, dim: Dim) -> WeakNumber:
        """A size as a weak Python int of the graph."""
        size: Tensor = apply("dim_size", dim=dim, dtype=weak_type(1).dtype)
        origin = Origin(str(dim), lambda call: substitute(dim, call.sizes), self.note)  # type: ignore[arg-type,return-value]
        return weak(size.node, self._value(dim), origin)

    def equal(self, dim: Dim, other: DimLike) -> bool:
        """The user's comparisons are answered for the present sizes. This package compares the
        polynomials, which is right for any sizes but for 0 and 1, where axes are treated apart.
        (A symbol alone is never 1, by `Family.pattern`.)"""
        if _asked_by_user():
            return bool(self.ask("==", dim, other))
        alone = str(dim) in self.sizes and other == 1
        if isinstance(other, int) and other in (0, 1) and not alone and self._known(dim):
            self._note_sizes(f"{dim} == {other}", _comparison("==", dim, other), False, "")
        return False

    def hashed(self, dim: Dim, own: int) -> int:
        """A user's table is asked for the int, this package's for the polynomial."""
        size = self.size(dim) if _asked_by_user() else None
        return own if size is None else hash(size)

    def _note_sizes(
        self, text: str, evaluate: Callable[[Call], Any], answer: Any, where: str | None = None
    ) -> None:
        if (text, answer) not in self.guards:
            where = _place() if where is None else where
            self.guards[text, answer] = Guard(text, where, evaluate, answer, True)

    # Python numbers

    def argument(self, name: str, at: int, value: Number, tensor: Tensor) -> WeakNumber:
        """The input of the graph that stands for a Python number of the call."""
        floating = isinstance(value, float)
        origin = Origin(name, lambda call: call.numbers[at], self.note, floating)
        return weak(tensor.node, value, origin)

    def note(self, text: str, evaluate: Callable[[Call], Any], value: Number) -> None:
        key = (text, value if value == value else "nan")
        if key not in self.guards:
            self.guards[key] = Guard(text, _place(), evaluate, value, False)


def _comparison(op: str, left: DimLike, right: DimLike) -> Callable[[Call], bool]:
    compare = _OPERATORS[op]
    return lambda call: compare(substitute(left, call.sizes), substitute(right, call.sizes))


def _asked_by_user() -> bool:
    """Whether the comparison under way stands in the user's program: the frame above the method of
    `Dim`, which called the one of `Recorder`, which called this."""
    return not str(sys._getframe(3).f_globals.get("__name__", "")).startswith("staticgrad.")


def _place() -> str:
    return locs_text(current_locs())


__all__ = ["Call", "Guard", "Recorder"]
