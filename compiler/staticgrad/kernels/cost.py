"""What scalar operations cost, for the choice of what to recompute."""

from __future__ import annotations

# Rough cost in vector instructions (float32, a full vector); what isn't listed costs 1.
COST: dict[str, int] = {
    "round": 1, "trunc": 1, "floor": 1, "ceil": 1,
    "divide": 8, "reciprocal": 8, "sqrt": 10, "rsqrt": 18, "cbrt": 30,
    "maximum": 4, "minimum": 4, "sign": 3, "nextafter": 10, "isinf": 2, "isfinite": 2,
    "floor_divide": 40, "remainder": 35, "fmod": 30, "pow": 60,
    "exp": 12, "exp2": 11, "expm1": 16, "log": 18, "log2": 20, "log10": 20, "log1p": 20,
    "sin": 30, "cos": 30, "tan": 50, "asin": 25, "acos": 25, "atan": 25, "atan2": 40,
    "sinh": 25, "cosh": 25, "tanh": 18, "asinh": 35, "acosh": 35, "atanh": 30,
    "sigmoid": 20, "softplus": 35, "logaddexp": 40, "hypot": 20, "erf": 25, "erfc": 35,
}  # fmt: skip
