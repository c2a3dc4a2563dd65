"""Sizes known only at run time: integer polynomials over named dims.

A dim of a shape is an `int` or a `Dim`. A `Dim` is a sum of integer multiples of products of atoms;
an atom is a name ("N") or a call of `//`, `%`, `max` or `min`. The form is canonical, so equal
polynomials are equal objects by `==`, and arithmetic that ends in a constant gives an `int`.
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, Union

from .errors import ArgumentError, ShapeError

DimLike = Union[int, "Dim"]
Shape = tuple[DimLike, ...]


@dataclass(frozen=True, slots=True)
class DimCall:
    """An atom that is no polynomial: `(N + 1)//2`, `N % 4`, `max(N, M)`, `min(N, M)`."""

    op: str
    left: DimLike
    right: DimLike

    def __str__(self) -> str:
        if self.op in ("max", "min"):
            return f"{self.op}({self.left}, {self.right})"
        return f"(({self.left}){self.op}({self.right}))"


Atom = str | DimCall
Monomial = tuple[Atom, ...]


class SizeReader(Protocol):
    """Who knows the present sizes of symbols while a function is traced, and remembers what the
    function asked about them: the traced graph holds where the answers are the same."""

    def ask(self, op: str, left: DimLike, right: DimLike) -> bool | None:
        """The answer to `left op right` (op: ==, <, <=), or None where a symbol is unknown."""

    def size(self, dim: Dim) -> int | None:
        """A size that is read as an int, or None where a symbol is unknown."""

    def number(self, dim: Dim) -> Any:
        """A size as a number of the graph, which is not read."""

    def equal(self, dim: Dim, other: DimLike) -> bool:
        """The answer to `dim == other`, which are no equal polynomials."""

    def hashed(self, dim: Dim, own: int) -> int:
        """The hash of a size that may be looked up as an int; `own` is that of the polynomial."""


# Set while a function is traced with symbolic sizes; else an int can't be had of a symbol.
size_reader: ContextVar[SizeReader | None] = ContextVar("size_reader", default=None)


class Dim:
    """A symbolic size. Built by `Dim.symbol("N")`, by arithmetic, or by `parse_dim("2*N+1")`."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    @staticmethod
    def symbol(name: str) -> Dim:
        if not name.isidentifier():
            raise ArgumentError(f"a dim's name must be an identifier, got {name!r}")
        return Dim((((name,), 1),))

    def __hash__(self) -> int:
        reader = size_reader.get()
        return self._hash if reader is None else reader.hashed(self, self._hash)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dim):
            if self.terms == other.terms:
                return True
        elif not isinstance(other, int):
            return False
        reader = size_reader.get()
        return False if reader is None else reader.equal(self, other)

    def __lt__(self, other: DimLike) -> bool:
        return self._asked("<", self, other)

    def __le__(self, other: DimLike) -> bool:
        return self._asked("<=", self, other)

    def __gt__(self, other: DimLike) -> bool:
        return self._asked("<", other, self)

    def __ge__(self, other: DimLike) -> bool:
        return self._asked("<=", other, self)

    @staticmethod
    def _asked(op: str, left: DimLike, right: DimLike) -> bool:
        if not isinstance(left, (int, Dim)) or not isinstance(right, (int, Dim)):
            return NotImplemented
        reader = size_reader.get()
        answer = None if reader is None else reader.ask(op, left, right)
        if answer is None:
            raise ShapeError(
                f"{left} {op} {right} can't be told: the size is known only at run time"
            )
        return answer

    def __add__(self, other: DimLike) -> DimLike:
        if not isinstance(other, (int, Dim)):
            return self._as_number(operator.add, other)
        if not isinstance(other, Dim):
            return self._plus(int(other))
        total = dict(_terms(self))
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _make(total)

    __radd__ = __add__

    def _plus(self, number: int) -> Dim:
        """With another constant, which is the last term."""
        terms = self.terms
        if not terms[-1][0]:
            number += terms[-1][1]
            terms = terms[:-1]
        return Dim((*terms, ((), number)) if number else terms)

    def __mul__(self, other: DimLike) -> DimLike:
        if not isinstance(other, (int, Dim)):
            return self._as_number(operator.mul, other)
        if not isinstance(other, Dim):
            number = int(other)
            if number == 1:
                return self
            return Dim(tuple((m, f * number) for m, f in self.terms)) if number else 0
        total: dict[Monomial, int] = {}
        for m1, f1 in _terms(self):
            for m2, f2 in _terms(other):
                monomial = tuple(sorted((*m1, *m2), key=str))
                total[monomial] = total.get(monomial, 0) + f1 * f2
        return _make(total)

    __rmul__ = __mul__

    def __neg__(self) -> DimLike:
        return self * -1

    def __sub__(self, other: DimLike) -> DimLike:
        return self + other * -1

    def __rsub__(self, other: DimLike) -> DimLike:
        return (self * -1) + other

    def __floordiv__(self, other: DimLike) -> DimLike:
        return floor_div(self, other)

    def __rfloordiv__(self, other: int) -> DimLike:
        return floor_div(other, self)

    def __mod__(self, other: DimLike) -> DimLike:
        return modulo(self, other)

    def __rmod__(self, other: int) -> DimLike:
        return modulo(other, self)

    def _as_number(self, function: Callable[[Any, Any], Any], other: Any) -> Any:
        """What is no size, but a float; other classes (tensors) are asked themselves."""
        reader = size_reader.get()
        known = reader is not None and isinstance(other, (int, float, Dim))
        return function(reader.number(self), other) if reader and known else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        return self._as_number(operator.truediv, other)

    def __pow__(self, other: Any) -> Any:
        return self._as_number(operator.pow, other)

    def __rtruediv__(self, other: Any) -> Any:
        reader = size_reader.get()
        return NotImplemented if reader is None else other / reader.number(self)

    def __bool__(self) -> bool:
        reader = size_reader.get()
        empty = None if reader is None else reader.ask("==", self, 0)
        if empty is None:
            raise ShapeError(f"the size {self} is known only at run time; it has no truth value")
        return not empty

    def __index__(self) -> int:
        reader = size_reader.get()
        size = None if reader is None else reader.size(self)
        if size is not None:
            return size
        raise ShapeError(
            f"the size {self} is known only at run time; an int is needed here. "
            "Declare the input with an int dim to fix it."
        )

    __int__ = __index__

    def __format__(self, spec: str) -> str:
        """In an f-string of a traced function the present size, which is thereby read."""
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if size_reader.get() is not None and not caller.startswith("staticgrad"):
            return format(int(self), spec)
        return format(str(self), spec)

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, factor in self.terms:
            names = "*".join(str(a) for a in monomial)
            if not names:
                text = str(abs(factor))
            elif abs(factor) == 1:
                text = names
            else:
                text = f"{abs(factor)}*{names}"
            sign = "-" if factor < 0 else ("+" if parts else "")
            parts.append(sign + text)
        return "".join(parts)

    def __repr__(self) -> str:
        return f"Dim({str(self)!r})"


def _terms(d: DimLike) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(d, Dim):
        return d.terms
    return (((), int(d)),) if d else ()


def _order(monomial: Monomial) -> tuple[int, str]:
    # Higher degree first, the constant last: `N*M+2*N+1`.
    try:
        return -len(monomial), "*".join(monomial)  # type: ignore[arg-type]  # names, mostly
    except TypeError:
        return -len(monomial), "*".join(str(a) for a in monomial)


def _make(total: Mapping[Monomial, int]) -> DimLike:
    kept = [(m, f) for m, f in total.items() if f]
    if not kept:
        return 0
    if len(kept) == 1:
        return Dim(tuple(kept)) if kept[0][0] else kept[0][1]
    return Dim(tuple(sorted(kept, key=lambda item: _order(item[0]))))


def _atom(op: str, left: DimLike, right: DimLike) -> Dim:
    return Dim((((DimCall(op, left, right),), 1),))


def floor_div(a: DimLike, b: DimLike) -> DimLike:
    """`a // b`, exact where it can be proved: `(2*N+1)//2 -> N`, `(N*M)//N -> M`."""
    if isinstance(b, int):
        if b == 0:
            raise ShapeError(f"division of the size {a} by zero")
        if isinstance(a, int):
            return a // b
        whole = {m: f // b for m, f in a.terms if f % b == 0}
        rest = {m: f for m, f in a.terms if f % b != 0}
        if not rest:
            return _make(whole)
        if set(rest) == {()}:
            whole[()] = rest[()] // b
            return _make(whole)
        low = rest.pop((), 0)
        rest[()] = low % b
        whole[()] = whole.get((), 0) + low // b
        return _make(whole) + _atom("//", _make(rest), b)
    if len(b.terms) == 1 and isinstance(a, Dim):
        (divisor, factor) = b.terms[0]
        quotient = {_without(m, divisor): f for m, f in a.terms}
        if None not in quotient and all(f % factor == 0 for f in quotient.values()):
            return _make({m: f // factor for m, f in quotient.items() if m is not None})
    if a == b:
        return 1
    if isinstance(a, int) and a == 0:
        return 0
    return _atom("//", a, b)


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in divisor:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def modulo(a: DimLike, b: DimLike) -> DimLike:
    if isinstance(b, int) and b == 0:
        raise ShapeError(f"the size {a} modulo zero")
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if isinstance(b, int) and isinstance(a, Dim) and all(f % b == 0 for _, f in a.terms):
        return 0
    return _atom("%", a, b)


def dim_max(a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    difference = a - b
    if isinstance(difference, int):
        return a if difference >= 0 else b
    return _atom("max", a, b)


def dim_min(a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    difference = a - b
    if isinstance(difference, int):
        return a if difference <= 0 else b
    return _atom("min", a, b)


def equal_dims(a: DimLike, b: DimLike) -> bool | None:
    """True or False where it can be proved, else None (a question for bind time)."""
    if a == b:
        return True
    difference = a - b
    if isinstance(difference, int):
        return False
    # N+3 == 0 and the like: sizes are never negative, so such a sum can't vanish.
    factors = [f for _, f in difference.terms]
    constant = dict(difference.terms).get((), 0)
    if constant and (all(f > 0 for f in factors) or all(f < 0 for f in factors)):
        return False
    divisor = math.gcd(*[f for m, f in difference.terms if m])
    return False if constant % divisor else None


def product(dims: Shape) -> DimLike:
    total: DimLike = 1
    for d in dims:
        total = total * d
    return total


def symbols(d: DimLike) -> list[str]:
    """The names in a dim, in order of appearance."""
    if not isinstance(d, Dim):
        return []
    found: dict[str, None] = {}
    _find_symbols(d, found)
    return list(found)


def _find_symbols(d: Dim, found: dict[str, None]) -> None:
    for monomial, _ in d.terms:
        for atom in monomial:
            if isinstance(atom, str):
                found.setdefault(atom)
                continue
            for side in (atom.left, atom.right):
                if isinstance(side, Dim):
                    _find_symbols(side, found)


def substitute(d: DimLike, values: Mapping[str, DimLike]) -> DimLike:
    """`d` with names replaced by sizes; names that are not in `values` stay."""
    if isinstance(d, int):
        return d
    if not any(a.__class__ is not str or a in values for m, _ in d.terms for a in m):
        return d
    total: DimLike = 0
    for monomial, factor in d.terms:
        term: DimLike = factor
        for atom in monomial:
            term = term * _substitute_atom(atom, values)
        total = total + term
    return total


def _substitute_atom(atom: Atom, values: Mapping[str, DimLike]) -> DimLike:
    if isinstance(atom, str):
        return values.get(atom, Dim((((atom,), 1),)))
    left, right = substitute(atom.left, values), substitute(atom.right, values)
    return _CALLS[atom.op](left, right)


_CALLS = {"//": floor_div, "%": modulo, "max": dim_max, "min": dim_min}


def to_json(d: DimLike) -> Any:
    """The form of the manifest: an int, a name, or `[op, operand, ...]` in prefix order."""
    if isinstance(d, int):
        return d
    terms = []
    for monomial, factor in d.terms:
        parts: list[Any] = [a if isinstance(a, str) else _call_json(a) for a in monomial]
        if factor != 1 or not parts:
            parts.insert(0, factor)
        terms.append(parts[0] if len(parts) == 1 else ["*", *parts])
    return terms[0] if len(terms) == 1 else ["+", *terms]


def _call_json(atom: DimCall) -> Any:
    return [atom.op, to_json(atom.left), to_json(atom.right)]


def parse_dim(text: str) -> DimLike:
    """Reads `N`, `2*N+1`, `N*M`, `(N+1)//2`, `max(N, 4)`. Raises `ArgumentError`."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ArgumentError(
            f"a dim is an int, a name, or arithmetic on names such as '2*N+1'; got {text[:80]!r}"
        ) from None
    return _from_ast(tree.body, text)


def _from_ast(node: ast.expr, text: str) -> DimLike:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return Dim.symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _from_ast(operand, text) * -1
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _from_ast(left, text), _from_ast(right, text)
            if isinstance(op, ast.Add):
                return a + b
            if isinstance(op, ast.Sub):
                return a - b
            if isinstance(op, ast.Mult):
                return a * b
            if isinstance(op, ast.FloorDiv):
                return floor_div(a, b)
            if isinstance(op, ast.Mod):
                return modulo(a, b)
        case ast.Call(func=ast.Name(id=("max" | "min") as name), args=[x, y], keywords=[]):
            return _CALLS[name](_from_ast(x, text), _from_ast(y, text))
    raise ArgumentError(
        f"a dim is an int, a name, or +, -, *, //, %, max and min on them; got {text[:80]!r}"
    )


def is_index(value: Any) -> bool:
    """Whether a value is an int, one of NumPy's or a 0-d integer array; bools and dims are none.

    Asked by conversion: every array and the class `int` itself have an `__index__`, which raises.
    """
    if isinstance(value, (bool, Dim)):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def as_dim(spec: Any) -> DimLike:
    """One entry of a declared shape: a non-negative int, a str such as "N", or a Dim."""
    if isinstance(spec, Dim):
        return spec
    if isinstance(spec, str):
        spec = parse_dim(spec)
        if isinstance(spec, Dim):
            return spec
    if not is_index(spec):
        raise ArgumentError(
            f"a dim is an int or a str such as 'N', got {spec!r} of type {type(spec).__name__}"
        )
    size = int(spec.__index__())
    if not 0 <= size < 2**63:
        raise ShapeError(f"a dim can't be negative or more than 2**63 - 1, got {size}")
    return size


def as_shape(spec: Any) -> Shape:
    """A declared shape: a sequence of dims, or one dim alone."""
    if isinstance(spec, (str, Dim)) or is_index(spec):
        return (as_dim(spec),)
    given = spec.tolist() if type(spec).__module__ == "numpy" else spec
    if not isinstance(given, (tuple, list, range)):
        raise ArgumentError(f"a shape is a tuple of dims, got {spec!r}")
    if any(d is None for d in given):
        named = tuple("N" if d is None else d for d in given)
        raise ArgumentError(
            f"a size that each call brings has a name here, not None: {named!r} in place of "
            f"{tuple(given)!r}; axes of one name have one size"
        )
    return tuple(as_dim(d) for d in given)


def shape_text(shape: Shape) -> str:
    return "[" + ", ".join(str(d) for d in shape) + "]"
