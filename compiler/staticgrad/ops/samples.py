"""Sample inputs that records share: over dtypes, shapes, broadcasts, zero sizes and specials."""

from __future__ import annotations

from typing import Any

import numpy as np

from .registry import Sample

FLOATS = ("float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMERIC = (*INTEGERS, *FLOATS)

# Vector tails matter: 0, 1, fewer than one vector, one vector and one, several and a tail.
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (7,), (17,), (2, 3), (5, 33), (3, 0, 2))
BROADCASTS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((3, 4), (4,)),
    ((3, 1), (1, 5)),
    ((), (2, 3)),
    ((2, 3, 17), (3, 1)),
)


def random_array(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """Moderate values: floats normal, integers small (both signs where there are two)."""
    rng = np.random.default_rng([seed, *shape])
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in FLOATS:
        return rng.standard_normal(shape).astype(dtype)
    low = 0 if dtype.startswith("u") else -9
    return rng.integers(low, 10, shape).astype(dtype)


def pairs(dtypes: tuple[str, ...]) -> list[Sample]:
    """Two operands: every dtype on one shape, every shape and broadcast in float64 or the first."""
    found = [Sample((random_array((5, 33), d, 1), random_array((5, 33), d, 2))) for d in dtypes]
    wide = "float64" if "float64" in dtypes else dtypes[0]
    for shape in SHAPES:
        found.append(Sample((random_array(shape, wide, 3), random_array(shape, wide, 4))))
    for a, b in BROADCASTS:
        found.append(Sample((random_array(a, wide, 5), random_array(b, wide, 6))))
    return found


def uniform_array(
    shape: tuple[int, ...], dtype: str, low: float, high: float, seed: int = 0
) -> np.ndarray[Any, Any]:
    """Values between `low` and `high`: for functions with a bounded domain."""
    rng = np.random.default_rng([seed, *shape])
    return rng.uniform(low, high, shape).astype(dtype)


def away_from_zero(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """Normal values moved off 0 by 0.3: for denominators and for functions singular at 0."""
    x = random_array(shape, dtype, seed)
    return (x + np.copysign(0.3, x)).astype(dtype)


def off_halves(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """Values from -8 to 8 at least 0.05 from every multiple of 1/2: off jumps and kinks."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.integers(-16, 16, shape) / 2 + rng.uniform(0.05, 0.45, shape)).astype(dtype)


def special_values(dtype: str) -> np.ndarray[Any, Any]:
    """Both signs of NaN, infinity, zero, the extremes, subnormals and some exact values."""
    if dtype == "bool":
        return np.array([False, True])
    if dtype not in FLOATS:
        ends = np.iinfo(dtype)
        near = [v for v in (-8, -3, -2, -1, 0, 1, 2, 3, 7, 31, 63, 64) if v >= ends.min]
        return np.array([ends.min, ends.max, ends.max // 3, *near], dtype)
    info = np.finfo(dtype)
    extremes = [np.nan, np.inf, 0.0, info.tiny, info.smallest_subnormal, info.max]
    values = np.array([*extremes, 0.5, 1.0, 1.5, 2.5, 3.0, 100.0], dtype)
    return np.concatenate([values, -values])


def singles(
    dtypes: tuple[str, ...], low: float | None = None, high: float | None = None,
    make: Any = None,
) -> list[Sample]:  # fmt: skip
    """One operand: every dtype on one shape, every shape in float64 or the first, and specials.

    Values lie between `low` and `high` where given, or come from `make(shape, dtype, seed)`.
    """
    if make is None:
        make = random_array
        if low is not None and high is not None:
            make = lambda shape, dtype, seed: uniform_array(shape, dtype, low, high, seed)  # noqa: E731
    wide = "float64" if "float64" in dtypes else dtypes[0]
    found = [Sample((make((5, 33), d, 1),)) for d in dtypes]
    found += [Sample((make(shape, wide, 2),)) for shape in SHAPES]
    return found + [Sample((special_values(d),), differentiable=False) for d in dtypes]


def special_pairs(dtypes: tuple[str, ...]) -> list[Sample]:
    """Every special value beside every other."""
    found = []
    for d in dtypes:
        values = special_values(d)
        found.append(Sample((values[:, None], values[None, :]), differentiable=False))
    return found
