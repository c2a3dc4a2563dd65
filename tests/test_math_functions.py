"""Generated math functions: accuracy, special values, equal bits for all widths, no libm.

The full range of float32 is `python -m tests.exhaustive_math`; here it is sampled.
"""

from __future__ import annotations

import re
import struct
import zlib

import llvmlite.binding as llvm
import mpmath
import numpy as np
import pytest

from staticgrad.codegen.builder import Function, Module, vector
from staticgrad.codegen.math_functions import FUNCTIONS, emit_math
from staticgrad.codegen.target import Target, host_target
from staticgrad.ir.errors import UnsupportedError
from tests.exhaustive_math import (
    ORACLES,
    SCALARS,
    Worst,
    compiled,
    judge,
    map_module,
    run,
    ulp_errors32,
)

UNARY = [name for name, function in FUNCTIONS.items() if function.arity == 1]
BINARY = [name for name, function in FUNCTIONS.items() if function.arity == 2]
EXACT = ("fmod", "remainder", "floor_divide", "nextafter")
AVX2 = Target("x86_64-unknown-linux-gnu", "x86-64-v3", "+avx2,+fma,+f16c,+bmi2", 256, 16)
AVX512 = Target(
    "x86_64-unknown-linux-gnu",
    "x86-64-v4",
    "+avx2,+fma,+avx512f,+avx512vl,+avx512dq,+avx512bw,-prefer-256-bit",
    512,
    32,
)
NEON = Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon", 128, 32)

# Where functions change their form, overflow, underflow or have their special values.
CORNERS = [
    0.0, 5e-324, 1e-45, 2.0**-149, 2.0**-126, 2.0**-1022, 1e-40, 1e-310, 1e-30, 2.0**-28,
    2.0**-13, 0.25, 0.3465735903, 0.41421356, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0, 1.0397207708, 1.25,
    1.5, 2.0, 2.5, 3.0, 3.141592653589793, 1.5707963267948966, 0.7853981633974483, 3.95, 6.0, 8.0,
    9.1, 10.0, 10.05, 17.33, 18.0, 22.0, 24.0, 27.3, 36.7, 37.5, 53.0, 54.0, 64.0, 87.336, 88.376,
    88.722839, 89.0, 89.4159, 90.0, 100.0, 103.972, 104.0, 126.0, 127.0, 128.0, 149.0, 150.0, 151.0,
    708.4, 709.782712893384, 710.0, 710.4758600739439, 711.0, 745.13321910194, 745.2, 746.0,
    1000.0, 1022.0, 1024.0, 1074.0, 1075.0, 2.0**22, 2.0**23, 2.0**24, 2.0**28, 2.0**31, 2.0**52,
    2.0**53, 2.0**60, 2.0**63, 1e10, 1e22, 1e30, 1e38, 3.4028234663852886e38, 2.0**500, 2.0**1000,
    1e300, 1.7976931348623157e308, np.inf,
]  # fmt: skip


def corners(dtype: str) -> np.ndarray:
    """The corners with both signs, their next 40 neighbours on either side, and NaN."""
    with np.errstate(over="ignore"):
        values = np.unique(np.array(CORNERS, dtype))
    kind = np.int32 if dtype == "float32" else np.int64
    bits = (values.view(kind)[:, None] + np.arange(-40, 41)).ravel()
    near = bits[bits >= 0].astype(kind).view(dtype)
    return np.concatenate([near, -near, np.array([np.nan], dtype)])


@pytest.mark.parametrize("name", UNARY)
def test_float32_unary_is_within_one_ulp(name: str) -> None:
    worst = run(name, stride=4099)
    judge(name, corners("float32").view(np.uint32), worst)
    assert worst.ulp <= 1.0, worst


def test_exhaustive_script_covers_all_unary_functions() -> None:
    assert set(ORACLES) == set(UNARY)


def test_ulp_errors_see_wrong_results() -> None:
    got = np.array([1.0, np.inf, np.nan, 0.0, 1.0, 1.0000001], np.float32)
    expected = np.array([np.nan, 1.0, 1.0, -0.0, np.inf, 1.0])
    errors = ulp_errors32(got, expected)
    assert (errors[:5] > 1e6).all()
    assert errors[5] == 1.0
    worst = Worst()
    judge("exp", np.array([0x3F800000], np.uint32), worst)
    assert worst.ulp <= 1.0


# --- float64 against mpmath ------------------------------------------------------------------

MP_UNARY = {
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "log2": lambda x: mpmath.log(x, 2),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
    "erfc": lambda x: mpmath.erfc(x),
}
DOMAINS = {
    "log": (0.0, np.inf), "log2": (0.0, np.inf), "log10": (0.0, np.inf), "sqrt": (0.0, np.inf),
    "rsqrt": (0.0, np.inf), "log1p": (-1.0, np.inf), "asin": (-1.0, 1.0), "acos": (-1.0, 1.0),
    "atanh": (-1.0, 1.0), "acosh": (1.0, np.inf),
}  # fmt: skip
ROUNDING = ("sqrt", "round", "trunc", "floor", "ceil", "sign")


def samples(name: str, count: int) -> np.ndarray:
    """Points of every magnitude, more of them where the functions bend, within the domain."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    parts = [
        np.exp2(rng.uniform(-60, 12, count)) * rng.choice([-1, 1], count),
        rng.uniform(-1, 1, count),
        rng.uniform(-4, 4, count),
        rng.uniform(-40, 40, count),
        rng.uniform(-750, 750, count),
        np.exp2(rng.uniform(-1074, 1024, count)) * rng.choice([-1, 1], count),
        1 + rng.uniform(-1, 1, count) * np.exp2(rng.uniform(-52, 0, count)),
    ]
    x = np.concatenate(parts)
    low, high = DOMAINS.get(name, (-np.inf, np.inf))
    return x[(x > low) & (x < high)]


def mp_value(name: str, x: float) -> mpmath.mpf:
    function = MP_UNARY.get(name) or getattr(mpmath, name)
    # Sums like log1p(exp(x)) or 1 - t lose what lies 2**-precision below their largest term.
    return function(mpmath.mpf(x))


def ulp_error64(got: float, exact: mpmath.mpf) -> float:
    """|got - exact| in float64 ULP of the exact value; an infinity counts as 2**1024."""
    if exact == 0:
        return 0.0 if got == 0 else float("inf")
    _, exponent = mpmath.frexp(exact)
    spacing = mpmath.mpf(2) ** max(int(exponent) - 53, -1074)
    limit = mpmath.mpf(2) ** 1024
    value = mpmath.mpf(got) if np.isfinite(got) else limit * np.sign(got)
    bounded = exact if abs(exact) < limit else limit * mpmath.sign(exact)
    return float(abs(value - bounded) / spacing)


@pytest.mark.parametrize("name", [n for n in UNARY if n not in ROUNDING])
def test_float64_unary_is_within_one_ulp(name: str) -> None:
    x = samples(name, 60)
    got = compiled(name, "float64", 8)(x)
    # |x| up to 2**1024 in the arguments of sin, and 2**-1074 beside 1 in log1p and softplus.
    with mpmath.workprec(2300 if name in ("sin", "cos", "tan") else 220):
        if name == "softplus":
            x, got = x[x > -140], got[x > -140]
        errors = [ulp_error64(float(g), mp_value(name, float(v))) for g, v in zip(got, x)]
    worst = int(np.argmax(errors))
    assert errors[worst] <= 1.0, (x[worst], got[worst], errors[worst])
