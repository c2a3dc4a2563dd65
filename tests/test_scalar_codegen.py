"""Scalar operations, compiled in small loops: values against NumPy, equal bits at every width."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import pytest
from staticgrad.codegen import scalar
from staticgrad.codegen.builder import Function, Module, memory_type, register_type, vector
from staticgrad.codegen.scalar import emit_scalar
from staticgrad.codegen.target import host_target
from staticgrad.ir.dtype import ALL, dtype
from staticgrad.ir.errors import UnsupportedError
from staticgrad.kernels.cost import COST
from staticgrad.kernels.ir import Call, Expr, Ref
from staticgrad.ops.convert import reference_astype
from staticgrad.ops.lowering import Pointwise
from staticgrad.ops.registry import Op, all_ops
from staticgrad.ops.samples import FLOATS, INTEGERS
from staticgrad_runtime.loader import Library

from tests.oracle import assert_close, run_op

WIDTHS = (1, 4, 8, 16)
# (op, operand dtypes, result dtype)
Key = tuple[str, tuple[str, ...], str]


Emit = Callable[[Function, Key, int, list[str]], str]


def _emit_key(f: Function, key: Key, lanes: int, args: list[str]) -> str:
    op, operands, result = key
    return emit_scalar(f, op, result, operands, lanes, args)


def _define(module: Module, name: str, key: Key, lanes: int, emit: Emit) -> None:
    """`name(in0.., out, n)`: the operation over n elements, a multiple of `lanes`."""
    _, operands, result = key
    pointers = [f"in{i}" for i in range(len(operands))]
    params = [("ptr", p) for p in (*pointers, "out")] + [("i64", "n")]
    f = Function(module, name, params, linkage="")
    head, body, done = "head", "body", "done"
    i, following = f.reserve(), f.reserve()
    f.branch(head)
    f.label(head)
    f.assign(i, f"phi i64 [ 0, %entry ], [ {following}, %next ]")
    f.branch_if(f.emit(f"icmp ult i64 {i}, %n"), body, done)
    f.label(body)
    args = []
    for p, d in zip(pointers, operands):
        address = f.emit(f"getelementptr {memory_type(d)}, ptr %{p}, i64 {i}")
        ty = vector(memory_type(d), lanes)
        value = f.emit(f"load {ty}, ptr {address}, align 1")
        if d == "bool":
            value = f.emit(f"trunc {ty} {value} to {vector('i1', lanes)}")
        args.append(value)
    value = emit(f, key, lanes, args)
    ty = vector(memory_type(result), lanes)
    if result == "bool":
        value = f.emit(f"zext {vector(register_type(result), lanes)} {value} to {ty}")
    address = f.emit(f"getelementptr {memory_type(result)}, ptr %out, i64 {i}")
    f.stmt(f"store {ty} {value}, ptr {address}, align 1")
    f.branch("next")
    f.label("next")
    f.assign(following, f"add i64 {i}, {lanes}")
    f.branch(head)
    f.label(done)
    f.stmt("ret void")
    f.finish()


@functools.cache
def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = host_target()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1, reloc="pic"
    )


class Compiled:
    """Scalar operations at every width, in one JIT-compiled module."""

    def __init__(self, keys: list[Key], emit: Emit = _emit_key) -> None:
        module = Module(host_target())
        names = {}
        for k, key in enumerate(keys):
            for lanes in WIDTHS:
                names[key, lanes] = f"op{k}_w{lanes}"
                _define(module, names[key, lanes], key, lanes, emit)
        code = _machine().emit_object(llvm.parse_assembly(module.to_text()))
        # The loader refuses every symbol that is not defined: no operation may call libm.
        self._library = Library([code], names.values(), {})
        self._names = names

    def run(self, key: Key, *arrays: np.ndarray) -> np.ndarray:
        """The results for 1-d arrays; the bits are asserted to be the same at every width."""
        size = len(arrays[0])
        padded = -(-size // 16) * 16
        inputs = [np.zeros(padded, a.dtype) for a in arrays]
        for copy, array in zip(inputs, arrays):
            copy[:size] = array
        results = []
        for lanes in WIDTHS:
            out = np.empty(padded, dtype(key[2]).numpy)
            call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(inputs) + 1), ctypes.c_int64)(
                self._library.address(self._names[key, lanes])
            )
            call(*(a.ctypes.data for a in (*inputs, out)), padded)
            results.append(out[:size])
        for lanes, other in zip(WIDTHS[1:], results[1:]):
            differ = np.flatnonzero(_bits(other) != _bits(results[0]))
            assert not len(differ), (
                f"{key}: {lanes} lanes give {other[differ[:4]]}, one gives "
                f"{results[0][differ[:4]]} at {[a[differ[:4]] for a in arrays]}"
            )
        return results[0]


def _bits(a: np.ndarray) -> np.ndarray:
    """The bits; all NaNs count as one, whose sign and payload nothing defines."""
    if a.dtype.kind != "f":
        return a
    return np.where(np.isnan(a), np.array(np.nan, a.dtype), a).view(f"u{a.itemsize}")


def run(op: str, result: str, *arrays: np.ndarray) -> np.ndarray:
    key = (op, tuple(str(a.dtype) for a in arrays), result)
    return Compiled([key]).run(key, *arrays)


def assert_same(got: np.ndarray, expected: np.ndarray, *arrays: np.ndarray) -> None:
    """Equal bits, zeros' signs included."""
    assert got.dtype == expected.dtype
    differ = np.flatnonzero(_bits(got) != _bits(expected))
    at = differ[:5]
    assert not len(differ), (
        f"{len(differ)} of {len(got)} differ: got {got[at]}, expected {expected[at]} "
        f"at {[a[at] for a in arrays]}"
    )


def every_pair(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.meshgrid(values, values)
    return np.ascontiguousarray(a.ravel()), np.ascontiguousarray(b.ravel())


def integer_values(d: str) -> np.ndarray:
    info = np.iinfo(d)
    rng = np.random.default_rng(7)
    ends = [info.min, info.min + 1, info.max - 1, info.max, info.max // 2, info.max // 3]
    near = (-9, -8, -7, -3, -2, -1, 0, 1, 2, 3, 7, 8, 9, 15, 31, 63, 64, 100)
    inside = [v for v in near if info.min <= v <= info.max]
    spread = rng.integers(info.min, info.max, 12, dtype=d, endpoint=True).tolist()
    return np.array([*ends, *inside, *spread], d)


def float_values(d: str) -> np.ndarray:
    info = np.finfo(d)
    rng = np.random.default_rng(8)
    special = [np.nan, np.inf, 0.0, info.tiny, info.smallest_subnormal, info.max, 0.5, 1.0, 1.5,
               2.0, 2.5, 3.0, 0.1, 1 - info.epsneg, 1 + info.eps, 1e10, 2.0**31, 2.0**32, 2.0**63,
               2.0**64, 127.5, 255.9, 32768.0, 65535.5]  # fmt: skip
    spread = np.ldexp(rng.uniform(1, 2, 12), rng.integers(info.minexp, info.maxexp, 12))
    values = np.array([*special, *spread, *rng.uniform(0, 10, 6)], d)
    return np.concatenate([values, -values])


@pytest.mark.parametrize("source", [str(d) for d in ALL])
def test_cast(source: str) -> None:
    x = np.array([False, True]) if source == "bool" else (
        float_values(source) if source in FLOATS else integer_values(source)
    )  # fmt: skip
    keys = [("cast", (source,), str(d)) for d in ALL]
    compiled = Compiled(keys)
    for key in keys:
        with np.errstate(all="ignore"):
            expected = reference_astype(x, dtype(key[2]))
        assert_same(compiled.run(key, x), expected, x)


def _floor_divmod(a: int, b: int) -> tuple[int, int]:
    return (a // b, a % b) if b else (0, 0)


def _integer_power(a: int, b: int) -> int:
    if b >= 0:
        return pow(a, b, 2**64)
    return {1: 1, -1: -1 if b % 2 else 1}.get(a, 0)


def _left(a: int, n: int, bits: int) -> int:
    return a << n if 0 <= n < bits else 0


def _right(a: int, n: int, bits: int) -> int:
    return a >> (n if 0 <= n < bits else bits)


INTEGER_PAIRS = {
    "add": lambda a, b, bits: a + b,
    "subtract": lambda a, b, bits: a - b,
    "multiply": lambda a, b, bits: a * b,
    "floor_divide": lambda a, b, bits: _floor_divmod(a, b)[0],
    "remainder": lambda a, b, bits: _floor_divmod(a, b)[1],
    "pow": lambda a, b, bits: _integer_power(a, b),
    "maximum": lambda a, b, bits: max(a, b),
    "minimum": lambda a, b, bits: min(a, b),
    "bitwise_left_shift": _left,
    "bitwise_right_shift": _right,
    "bitwise_and": lambda a, b, bits: a & b,
    "bitwise_or": lambda a, b, bits: a | b,
    "bitwise_xor": lambda a, b, bits: a ^ b,
    "less": lambda a, b, bits: a < b,
    "less_equal": lambda a, b, bits: a <= b,
    "greater": lambda a, b, bits: a > b,
    "greater_equal": lambda a, b, bits: a >= b,
    "equal": lambda a, b, bits: a == b,
    "not_equal": lambda a, b, bits: a != b,
}
PREDICATES = frozenset(
    ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "isnan", "isinf",
     "isfinite", "signbit")
)  # fmt: skip


def _wrap(values: list[int], d: str) -> np.ndarray:
    return np.array([v % 2**64 for v in values], "uint64").astype(d)


@pytest.mark.parametrize("d", INTEGERS)
def test_integer_pairs(d: str) -> None:
    a, b = every_pair(integer_values(d))
    keys = [(op, (d, d), "bool" if op in PREDICATES else d) for op in INTEGER_PAIRS]
    compiled = Compiled(keys)
    bits = dtype(d).bits
    for key in keys:
        rule = INTEGER_PAIRS[key[0]]
        exact = [rule(x, y, bits) for x, y in zip(a.tolist(), b.tolist())]
        expected = np.array(exact) if key[2] == "bool" else _wrap(exact, d)
        assert_same(compiled.run(key, a, b), expected, a, b)


INTEGER_SINGLES = {
    "abs": abs,
    "negative": lambda x: -x,
    "square": lambda x: x * x,
    "sign": lambda x: (x > 0) - (x < 0),
    "relu": lambda x: max(x, 0),
    "bitwise_invert": lambda x: ~x,
    "floor": lambda x: x,
    "ceil": lambda x: x,
    "trunc": lambda x: x,
    "round": lambda x: x,
    "signbit": lambda x: x < 0,
    "isnan": lambda x: False,
    "isinf": lambda x: False,
    "isfinite": lambda x: True,
}


@pytest.mark.parametrize("d", INTEGERS)
def test_integer_singles(d: str) -> None:
    x = integer_values(d)
    keys = [(op, (d,), "bool" if op in PREDICATES else d) for op in INTEGER_SINGLES]
    compiled = Compiled(keys)
    for key in keys:
        exact = [INTEGER_SINGLES[key[0]](v) for v in x.tolist()]
        expected = np.array(exact) if key[2] == "bool" else _wrap(exact, d)
        assert_same(compiled.run(key, x), expected, x)


def test_booleans() -> None:
    a, b = every_pair(np.array([False, True]))
    pairs = {
        "logical_and": a & b, "logical_or": a | b, "logical_xor": a ^ b, "bitwise_and": a & b,
        "bitwise_or": a | b, "bitwise_xor": a ^ b, "equal": a == b, "not_equal": a != b,
        "less": a < b, "maximum": a | b, "minimum": a & b,
    }  # fmt: skip
    for op, expected in pairs.items():
        assert_same(run(op, "bool", a, b), expected, a, b)
    for op in ("logical_not", "bitwise_invert"):
        assert_same(run(op, "bool", a), ~a, a)


def _maximum(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if a == b:
        return a if math.copysign(1, a) > 0 else b
    return max(a, b)


def _python_floor(a: float, b: float) -> tuple[float, float]:
    """CPython's own divmod, with IEEE results where Python raises."""
    if math.isnan(a) or math.isnan(b) or b == 0 or math.isinf(a):
        with np.errstate(all="ignore"):
            return float(np.float64(a) / np.float64(b)) if b == 0 else math.nan, math.nan
    quotient, rest = divmod(a, b)
    return quotient, rest


FLOAT_PAIRS = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "copysign": np.copysign,
    "nextafter": np.nextafter,
    "remainder": np.remainder,
    "floor_divide": np.floor_divide,
    "maximum": np.vectorize(_maximum),
    "minimum": np.vectorize(lambda a, b: -_maximum(-a, -b)),
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
}


@pytest.mark.parametrize("d", FLOATS)
def test_float_pairs(d: str) -> None:
    a, b = every_pair(float_values(d))
    keys = [(op, (d, d), "bool" if op in PREDICATES else d) for op in FLOAT_PAIRS]
    compiled = Compiled(keys)
    for key in keys:
        with np.errstate(all="ignore"):
            expected = np.asarray(FLOAT_PAIRS[key[0]](a, b)).astype(key[2])
        assert_same(compiled.run(key, a, b), expected, a, b)


def test_remainder_is_exact_over_the_whole_range() -> None:
    """Exponents differ by up to 2,100: the loop that reduces 52 bits at a time."""
    rng = np.random.default_rng(3)
    a = np.ldexp(rng.uniform(-1, 1, 3000), rng.integers(-1070, 1024, 3000))
    b = np.ldexp(rng.uniform(-1, 1, 3000), rng.integers(-1070, 1024, 3000))
    expected = np.array([_python_floor(x, y)[1] for x, y in zip(a.tolist(), b.tolist())])
    assert_same(run("remainder", "float64", a, b), expected, a, b)
    quotients = np.array([_python_floor(x, y)[0] for x, y in zip(a.tolist(), b.tolist())])
    assert_same(run("floor_divide", "float64", a, b), quotients, a, b)


FLOAT_SINGLES = {
    "negative": np.negative,
    "abs": np.abs,
    "square": np.square,
    "reciprocal": np.reciprocal,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "sqrt": np.sqrt,
    "sign": np.sign,
    "relu": lambda x: np.where(x < 0, x.dtype.type(0), x),
    "signbit": np.signbit,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
}


@pytest.mark.parametrize("d", FLOATS)
def test_float_singles(d: str) -> None:
    x = float_values(d)
    keys = [(op, (d,), "bool" if op in PREDICATES else d) for op in FLOAT_SINGLES]
    compiled = Compiled(keys)
    for key in keys:
        with np.errstate(all="ignore"):
            expected = FLOAT_SINGLES[key[0]](x)
        assert_same(compiled.run(key, x), expected, x)


def test_select_and_bitcast() -> None:
    a, b = every_pair(float_values("float32"))
    assert_same(run("select", "float32", a < b, a, b), np.where(a < b, a, b), a, b)
    assert_same(run("bitcast", "uint32", a), a.view("uint32"), a)
    assert_same(run("bitcast", "float32", a.view("int32")), a, a)


# --- the records ----------------------------------------------------------------------------------


def _emit_tree(f: Function, expr: Expr, lanes: int, bound: dict[str, str]) -> str:
    if isinstance(expr, Ref):
        return bound[expr.name]
    assert isinstance(expr, Call)
    args = [_emit_tree(f, a, lanes, bound) for a in expr.args]
    return emit_scalar(f, expr.op, str(expr.dtype), [str(a.dtype) for a in expr.args], lanes, args)


def _emit_record(op: Op, attrs: dict[str, object]) -> Emit:
    """The element's value as the record's `lower` says it."""

    def emit(f: Function, key: Key, lanes: int, args: list[str]) -> str:
        assert isinstance(op.lower, Pointwise)
        if op.lower.emit is None:
            return emit_scalar(f, op.name, key[2], key[1], lanes, args)
        refs = [Ref(f"x{i}", dtype(d)) for i, d in enumerate(key[1])]
        expr = op.lower.emit(refs, attrs, dtype(key[2]))
        return _emit_tree(f, expr, lanes, {f"x{i}": a for i, a in enumerate(args)})

    return emit


POINTWISE = [
    op for op in all_ops().values() if isinstance(op.lower, Pointwise) and op.name != "astype"
]


@pytest.mark.parametrize("op", POINTWISE, ids=lambda op: op.name)
def test_record(op: Op) -> None:
    """Every pointwise record over all of its samples, at every width, against its reference."""
    flat: dict[Key, list[list[np.ndarray]]] = {}
    for sample in op.samples():
        assert not sample.attrs
        arrays = np.broadcast_arrays(*sample.operands)
        (expected,) = run_op(op, sample)
        key = (op.name, tuple(str(a.dtype) for a in arrays), str(expected.dtype))
        flat.setdefault(key, []).append([a.ravel() for a in (*arrays, expected)])
    compiled = Compiled(list(flat), _emit_record(op, {}))
    for key, rows in flat.items():
        *arrays, expected = (np.concatenate(column) for column in zip(*rows))
        got = compiled.run(key, *arrays)
        assert_close(got, expected, op, str(key[1]))
        if got.dtype.kind == "f" and op.name not in ("maximum", "minimum"):
            zero = (got == 0) & (expected == 0)
            wrong = zero & (np.signbit(got) != np.signbit(expected))
            assert not wrong.any(), f"{op.name}: a zero's sign at {[a[wrong] for a in arrays]}"


def test_costs_are_of_known_operations() -> None:
    unknown = [op for op in COST if not scalar.is_known(op)]
    unpriced = [op for op in scalar.FUNCTIONS if op not in COST]
    assert not unknown and not unpriced
    assert all(c >= 1 for c in COST.values())


@pytest.mark.parametrize(
    "op, operands",
    [
        ("divide", ("int32", "int32")),
        ("add", ("bool", "bool")),
        ("exp", ("int64",)),
        ("bitwise_and", ("float32", "float32")),
        ("logical_not", ("int32",)),
        ("nonesuch", ("float32",)),
    ],
)
def test_refuses(op: str, operands: tuple[str, ...]) -> None:
    f = Function(Module(host_target()), "f", [])
    with pytest.raises(UnsupportedError, match=op):
        emit_scalar(f, op, operands[0], operands, 4, [f"%x{i}" for i in range(len(operands))])
