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
