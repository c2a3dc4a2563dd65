"""Sizes as polynomials against plain integers: arithmetic, one canonical form, substitution."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from staticgrad.ir.dim import (
    Dim,
    DimLike,
    dim_max,
    dim_min,
    floor_div,
    modulo,
    parse_dim,
    substitute,
    symbols,
)

NAMES = ("N", "M", "K")
OPERATIONS: dict[str, tuple[Callable[..., DimLike], Callable[[int, int], int]]] = {
    "+": (lambda a, b: a + b, lambda a, b: a + b),
    "-": (lambda a, b: a - b, lambda a, b: a - b),
    "*": (lambda a, b: a * b, lambda a, b: a * b),
    "//": (floor_div, lambda a, b: a // b),
    "%": (modulo, lambda a, b: a % b),
    "max": (dim_max, max),
    "min": (dim_min, min),
}
# Divisors are constants, which are not 0; more sums and products than the rest.
KINDS = ("+", "-", "*", "+", "-", "*", "//", "%", "max", "min")


def expression(rng: random.Random, depth: int) -> Any:
    if depth == 0:
        return rng.choice([*NAMES, -7, -1, 0, 1, 2, 3])
    kind = rng.choice(KINDS)
    right = rng.choice([1, 2, 3, 5]) if kind in ("//", "%") else expression(rng, depth - 1)
    return kind, expression(rng, depth - 1), right


def value(e: Any, of: Callable[[str], Any], which: int) -> Any:
    if not isinstance(e, tuple):
        return of(e) if isinstance(e, str) else e
    kind, left, right = e
    return OPERATIONS[kind][which](value(left, of, which), value(right, of, which))


@pytest.mark.parametrize("seed", range(200))
def test_a_polynomial_is_what_integers_give(seed: int) -> None:
    rng = random.Random(seed)
    e = expression(rng, rng.choice([1, 2, 3, 4]))
    d = value(e, Dim.symbol, 0)
    for _ in range(5):
        sizes = {name: rng.randrange(9) for name in NAMES}
        expected = value(e, sizes.__getitem__, 1)
        assert substitute(d, sizes) == expected
        some = {name: sizes[name] for name in NAMES[: rng.randrange(4)]}
        rest = substitute(d, some)
        assert not set(symbols(rest)) & set(some)
        assert substitute(rest, sizes) == expected
        assert substitute(d, {name: Dim.symbol(name) for name in NAMES}) == d
        assert substitute(d, {"unused": 3}) == d


@pytest.mark.parametrize("seed", range(100))
def test_equal_polynomials_are_equal_objects(seed: int) -> None:
    rng = random.Random(seed)
    a, b, c = (value(expression(rng, 2), Dim.symbol, 0) for _ in range(3))
    assert (a + b) + c == a + (b + c) == c + (b + a)
    assert a * (b + c) == a * b + a * c
    assert a - a == 0 and a * 0 == 0 and a * 1 == a and a + 0 == a
    assert str(a + b) == str(b + a) and str(a * b) == str(b * a)
    for d in (a, a + 1, a - 2, a * 3, a + b - b):
        assert parse_dim(str(d)) == d
    assert (a + 5) - 5 == a and hash((a + 5) - 5) == hash(a)


def test_the_written_form() -> None:
    n, m = Dim.symbol("N"), Dim.symbol("M")
    assert str(3 + n * m + 2 * n) == "M*N+2*N+3"
    assert str(n - 1) == "N-1" and str(1 - n) == "-N+1" and str(-2 * n - 3 + n) == "-N-3"
    assert symbols(m * n + n + 4) == ["M", "N"] and symbols(7) == []
    assert symbols(floor_div(n + 1, 2) + dim_max(m, 3)) == ["N", "M"]
