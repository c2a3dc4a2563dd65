"""The index of generated math functions: `emit_math` puts one into a function being built.

No libm is called. Every function is written once for all vector widths with lane-wise operations
(`math_lanes`), so that a value has the same bits in a scalar, a short and a full vector.

Largest errors in ULP. float32, over all 2**32 inputs (`tests/exhaustive_math.py`): log 0.98,
log1p 0.97, sigmoid 0.97, erfc 0.94, exp 0.89, exp2 0.87, expm1 0.86, softplus 0.84, erf 0.82, tanh
0.78; the other unary functions, which are rounded from float64 or have a correction, 0.57. float64,
2.8 million points of each unary function against 80-bit arithmetic: expm1 0.87, cbrt 0.83, exp2
0.83, tan 0.82, the others 0.78; pow 0.76, atan2 0.71, hypot 0.51.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from staticgrad.ir.errors import UnsupportedError

from . import (
    math_exp,
    math_hyperbolic,
    math_inverse_trig,
    math_lanes,
    math_log,
    math_pow,
    math_rounding,
    math_special,
    math_trig,
)
from .builder import Function, element, mangled
from .math_lanes import Lanes


class MathFunction(NamedTuple):
    """How one function is emitted: inline for the scalars in `inline`, where it has up to 70
    instructions, else as a call of a shared function. Calls clobber the vector registers: gelu
    takes 37 cycles a vector with erfc inline, 41 without."""

    emit: Callable[..., Lanes]
    arity: int = 1
    inline: frozenset[str] = frozenset()


_BOTH = frozenset({"float", "double"})
_FLOAT = frozenset({"float"})

FUNCTIONS: dict[str, MathFunction] = {
    "exp": MathFunction(math_exp.exp, inline=_BOTH),
    "exp2": MathFunction(math_exp.exp2, inline=_BOTH),
    "expm1": MathFunction(math_exp.expm1, inline=_FLOAT),
    "sigmoid": MathFunction(math_exp.sigmoid, inline=_FLOAT),
    "log": MathFunction(math_log.log, inline=_FLOAT),
    "log2": MathFunction(math_log.log2),
    "log10": MathFunction(math_log.log10),
    "log1p": MathFunction(math_log.log1p, inline=_FLOAT),
    "softplus": MathFunction(math_log.softplus, inline=_FLOAT),
    "logaddexp": MathFunction(math_log.logaddexp, 2),
    "sin": MathFunction(math_trig.sin),
    "cos": MathFunction(math_trig.cos),
    "tan": MathFunction(math_trig.tan),
    "asin": MathFunction(math_inverse_trig.asin),
    "acos": MathFunction(math_inverse_trig.acos),
    "atan": MathFunction(math_inverse_trig.atan),
    "atan2": MathFunction(math_inverse_trig.atan2, 2),
    "sinh": MathFunction(math_hyperbolic.sinh),
    "cosh": MathFunction(math_hyperbolic.cosh),
    "tanh": MathFunction(math_hyperbolic.tanh, inline=_FLOAT),
    "asinh": MathFunction(math_hyperbolic.asinh),
    "acosh": MathFunction(math_hyperbolic.acosh),
    "atanh": MathFunction(math_hyperbolic.atanh),
    "erf": MathFunction(math_special.erf, inline=_FLOAT),
    "erfc": MathFunction(math_special.erfc, inline=_FLOAT),
    "pow": MathFunction(math_pow.pow_, 2),
    "hypot": MathFunction(math_pow.hypot, 2),
    "cbrt": MathFunction(math_pow.cbrt),
    "sqrt": MathFunction(math_lanes.sqrt, inline=_BOTH),
    "rsqrt": MathFunction(math_pow.rsqrt, inline=_BOTH),
    "round": MathFunction(math_lanes.round_even, inline=_BOTH),
    "trunc": MathFunction(math_lanes.trunc, inline=_BOTH),
    "floor": MathFunction(math_lanes.floor, inline=_BOTH),
    "ceil": MathFunction(math_lanes.ceil, inline=_BOTH),
    "sign": MathFunction(math_rounding.sign, inline=_BOTH),
    "nextafter": MathFunction(math_rounding.nextafter, 2, inline=_BOTH),
    "fmod": MathFunction(math_rounding.fmod, 2),
    "remainder": MathFunction(math_rounding.remainder, 2),
    "floor_divide": MathFunction(math_rounding.floor_divide, 2),
}


def emit_math(f: Function, name: str, ty: str, *args: str) -> str:
    """Emits the code of function `name` on operands of type `ty`; returns the result's value name.

    `ty` is `float`, `double` or a vector of a power of two of them. Long functions are emitted
    as a call of one internal function per (name, ty), which is defined in `f.module` once.
    """
    function = FUNCTIONS.get(name)
    if function is None:
        raise UnsupportedError(f"there is no math function {name!r}; known: {', '.join(FUNCTIONS)}")
    if element(ty) not in ("float", "double"):
        raise UnsupportedError(f"{name} is defined for float and double lanes, not for {ty}")
    if len(args) != function.arity:
        raise UnsupportedError(f"{name} takes {function.arity} operands, not {len(args)}")
    if element(ty) in function.inline:
        return function.emit(*(Lanes(f, a, ty) for a in args)).name
    symbol = f"math_{name}_{mangled(ty)}"
    if not f.module.has(symbol):
        params = [(ty, f"x{i}") for i in range(function.arity)]
        shared = Function(f.module, symbol, params, result=ty)
        value = function.emit(*(Lanes(shared, f"%x{i}", ty) for i in range(function.arity)))
        shared.stmt(f"ret {ty} {value.name}")
        shared.finish()
    return f.emit(f"call {ty} @{symbol}({', '.join(f'{ty} {a}' for a in args)})")
