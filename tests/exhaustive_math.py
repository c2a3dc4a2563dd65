"""Every float32 value through the generated math functions, judged by a float64 oracle.

    python -m tests.exhaustive_math [--stride N] [name ...]

prints the largest error in ULP of each named unary function (all of them without names) over all
2**32 inputs, or over every N-th bit pattern. About half a minute for each function on one core.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np
import scipy.special
from staticgrad.codegen.builder import Function, Module, vector
from staticgrad.codegen.math_functions import FUNCTIONS, emit_math
from staticgrad.codegen.target import Target, host_target

SCALARS = {"float32": "float", "float64": "double"}


def map_module(name: str, dtype: str, lanes: int, target: Target) -> str:
    """LLVM text of `map(in0, [in1,] out, n)`: function `name` over n elements, a multiple of
    `lanes`."""
    module = Module(target)
    scalar = SCALARS[dtype]
    ty = vector(scalar, lanes)
    inputs = [f"in{i}" for i in range(FUNCTIONS[name].arity)]
    params = [("ptr", p) for p in (*inputs, "out")] + [("i64", "n")]
    f = Function(module, "map", params, linkage="")
    head, body, done = "head", "body", "done"
    i, following = f.reserve(), f.reserve()
    f.branch(head)
    f.label(head)
    f.assign(i, f"phi i64 [ 0, %entry ], [ {following}, %next ]")
    f.branch_if(f.emit(f"icmp ult i64 {i}, %n"), body, done)
    f.label(body)
    size = 4 if scalar == "float" else 8
    loads = []
    for p in inputs:
        address = f.emit(f"getelementptr {scalar}, ptr %{p}, i64 {i}")
        loads.append(f.emit(f"load {ty}, ptr {address}, align {size}"))
    value = emit_math(f, name, ty, *loads)
    address = f.emit(f"getelementptr {scalar}, ptr %out, i64 {i}")
    f.stmt(f"store {ty} {value}, ptr {address}, align {size}")
    f.branch("next")
    f.label("next")
    f.assign(following, f"add i64 {i}, {lanes}")
    f.branch(head)
    f.label(done)
    f.stmt("ret void")
    f.finish()
    return module.to_text()


class Map:
    """A JIT-compiled `map_module`, called with arrays of one shape."""

    def __init__(self, name: str, dtype: str, lanes: int, target: Target) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=3, jit=True
        )
        self.jit = llvm.create_lljit_compiler(machine)
        library = llvm.JITLibraryBuilder().add_ir(map_module(name, dtype, lanes, target))
        self.library = library.export_symbol("map").link(self.jit, name)
        self.arity = FUNCTIONS[name].arity
        pointers = [ctypes.c_void_p] * (self.arity + 1)
        self.call = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64)(self.library["map"])
        self.dtype = np.dtype(dtype)
        self.lanes = lanes

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        n = len(arrays[0])
        padded = -(-n // self.lanes) * self.lanes
        inputs = [np.ascontiguousarray(a, self.dtype) for a in arrays]
        if padded != n:
            inputs = [np.pad(a, (0, padded - n)) for a in inputs]
        out = np.empty(padded, self.dtype)
        self.call(*(a.ctypes.data for a in (*inputs, out)), padded)
        return out[:n]


@functools.cache
def compiled(
    name: str, dtype: str = "float32", lanes: int = 16, target: Target | None = None
) -> Map:
    return Map(name, dtype, lanes, target or host_target())


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without the overflow that loses subnormal results (scipy's expit does)."""
    e = np.exp(-np.abs(x))
    result: np.ndarray = np.where(x < 0, e, 1.0) / (1.0 + e)
    return result


# The float64 oracle of each unary function.
ORACLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "sigmoid": sigmoid,
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "cbrt": np.cbrt,
    "round": np.rint,
    "trunc": np.trunc,
    "floor": np.floor,
    "ceil": np.ceil,
    "sign": np.sign,
}


@dataclass
class Worst:
    """The largest error in ULP so far, and the input (as bits) where it was seen."""

    ulp: float = 0.0
    where: int = 0
    got: float = 0.0
    expected: float = 0.0


def ulp_errors32(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|got - expected| in float32 ULP of the expected float64 value; infinite where a NaN, an
    infinity or the sign of a zero differs."""
    with np.errstate(all="ignore"):
        rounded = expected.astype(np.float32)
        _, exponent = np.frexp(expected)
        spacing = np.ldexp(1.0, np.maximum(exponent - 24, -149))
        # An infinity stands for 2**128, so that a result that overflows early is measured too.
        bounded = np.where(np.isinf(got), np.copysign(2.0**128, got), got).astype(np.float64)
        limit = np.where(np.abs(expected) > 2.0**128, np.copysign(2.0**128, expected), expected)
        error = np.abs(bounded - limit) / spacing
    same = (got.view(np.uint32) == rounded.view(np.uint32)) | (np.isnan(got) & np.isnan(rounded))
    error = np.where(same, np.minimum(error, 0.5), error)
    error = np.where(np.isnan(error) & ~same, np.inf, error)
    wrong_zero = (rounded == 0) & (got == 0) & (np.signbit(got) != np.signbit(rounded))
    wrong_infinity = np.isinf(expected) & ~same
    return np.where(wrong_zero | wrong_infinity, np.inf, np.where(np.isnan(error), 0.0, error))


def judge(name: str, bits: np.ndarray, worst: Worst, screened: bool = False) -> None:
    """Runs the function on the bit patterns and keeps the worst error.

    A result that is the oracle's, rounded, is right; the others are measured. With `screened`,
    the generated float64 function (which has its own tests against mpmath) says first which ones
    to measure: the oracles take up to 30 ns a value, and much longer for NaN and infinities.
    """
    x = bits.view(np.float32)
    got = compiled(name)(x)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        first = compiled(name, "float64", 8)(wide) if screened else ORACLES[name](wide)
        rounded = first.astype(np.float32)
    differ = np.flatnonzero(got.view(np.uint32) != rounded.view(np.uint32))
    differ = differ[~(np.isnan(got[differ]) & np.isnan(rounded[differ]))]
    if not len(differ):
        return
    with np.errstate(all="ignore"):
        expected = ORACLES[name](wide[differ])
    errors = ulp_errors32(got[differ], expected)
    k = int(np.argmax(errors))
    if errors[k] > worst.ulp:
        worst.ulp, worst.where = float(errors[k]), int(bits[differ[k]])
        worst.got, worst.expected = float(got[differ[k]]), float(expected[k])


def run(name: str, stride: int = 1, chunk: int = 1 << 16, screened: bool = False) -> Worst:
    worst = Worst()
    step = min(chunk * stride, 1 << 32)
    offsets = np.arange(0, step, stride, dtype=np.uint32)
    for start in range(0, 1 << 32, step):
        # The last step of a stride that is no power of two wraps round to patterns seen before.
        judge(name, offsets + np.uint32(start), worst, screened)
    return worst


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="functions; all of the unary ones by default")
    parser.add_argument("--stride", type=int, default=1, help="take every N-th bit pattern")
    options = parser.parse_args(arguments)
    failed = False
    for name in options.names or list(ORACLES):
        begin = time.perf_counter()
        worst = run(name, options.stride, screened=True)
        value = np.uint32(worst.where).view(np.float32)
        print(
            f"{name:9s} {max(worst.ulp, 0.0):8.4f} ULP at {float(value)!r} (0x{worst.where:08x}): "
            f"got {worst.got!r}, exact {worst.expected!r}  [{time.perf_counter() - begin:.0f} s]",
            flush=True,
        )
        failed |= worst.ulp > 1.0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
