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
import staticgrad as sg
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
    bits = (values.view(kind).astype(np.int64)[:, None] + np.arange(-40, 41)).ravel()
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
}
DOMAINS = {
    "log": (0.0, np.inf), "log2": (0.0, np.inf), "log10": (0.0, np.inf), "sqrt": (0.0, np.inf),
    "rsqrt": (0.0, np.inf), "log1p": (-1.0, np.inf), "asin": (-1.0, 1.0), "acos": (-1.0, 1.0),
    "atanh": (-1.0, 1.0), "acosh": (1.0, np.inf),
    "erfc": (-1000.0, 1000.0),  # mpmath raises beyond
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
    x = samples(name, 120)
    got = compiled(name, "float64", 8)(x)
    with mpmath.workprec(220):
        errors = [ulp_error64(float(g), mp_value(name, float(v))) for g, v in zip(got, x)]
    worst = int(np.argmax(errors))
    assert errors[worst] <= 1.0, (x[worst], got[worst], errors[worst])


@pytest.mark.parametrize("name", ROUNDING)
def test_float64_rounding_is_exact(name: str) -> None:
    x = np.concatenate([samples(name, 500), corners("float64")])
    with np.errstate(all="ignore"):
        expected = ORACLES[name](x)
    np.testing.assert_array_equal(compiled(name, "float64", 8)(x), expected)


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_float64_angles_next_to_multiples_of_half_pi(name: str) -> None:
    """The nearest float64 to k pi/2, for k up to 2**1000, and 6381956970095103 * 2**797: of all
    float64 numbers the one nearest to a multiple of pi/2 (Muller, Elementary Functions, 11.2)."""
    rng = np.random.default_rng(7)
    with mpmath.workprec(1300):
        multiples = [mpmath.mpf(int(k)) for k in rng.integers(1, 2**40, 200)]
        multiples += [mpmath.floor(mpmath.mpf(2) ** int(e)) for e in rng.integers(1, 1000, 200)]
        x = np.array(
            [float(k * mpmath.pi / 2) for k in multiples] + [6381956970095103.0 * 2.0**797]
        )
    got = compiled(name, "float64", 8)(x)
    with mpmath.workprec(220):
        errors = [ulp_error64(float(g), mp_value(name, float(v))) for g, v in zip(got, x)]
    assert max(errors) <= 1.0


def outcome(values: np.ndarray) -> list[str]:
    """What kind of special value each element is, with its sign."""
    kinds = []
    for v in values:
        sign = "-" if np.signbit(v) else "+"
        if np.isnan(v):
            kinds.append("nan")
        elif np.isinf(v):
            kinds.append(sign + "inf")
        else:
            kinds.append(sign + ("0" if v == 0 else "finite"))
    return kinds


@pytest.mark.parametrize("name", UNARY)
def test_float64_special_values(name: str) -> None:
    largest, smallest = np.finfo(np.float64).max, 5e-324
    signed = [0.0, np.inf, 1.0, 2.0, largest, smallest, 2.0**-1022, 1.0 - 2.0**-53, 2e-310]
    limits = [1.0 + 2.0**-52, 709.79, 710.475860073944, 1024.0, 745.13, 745.14, 1074.9, 1075.1]
    x = np.array([*signed, *limits, np.nan])
    x = np.concatenate([x, -x])
    with np.errstate(all="ignore"):
        expected = ORACLES[name](x)
    assert outcome(compiled(name, "float64", 8)(x)) == outcome(expected)


# --- functions of two operands ---------------------------------------------------------------

SPECIAL_OPERANDS = [
    0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 2.5, -2.5,
    7.0, -7.0, 1e-3, 1e10, -1e10, 1e30, -1e30, 1e-40, -1e-40, 1e300, 1e-300, 5e-324, -5e-324,
    1.7976931348623157e308, -1.7976931348623157e308, 2.0**24 + 1, 2.0**53, 2.0**53 + 2, 2.0**52 + 1,
    1 - 2.0**-24, 1 + 2.0**-23, 1 - 2.0**-53, 1 + 2.0**-52,
]  # fmt: skip


def special_pairs(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        values = np.array(SPECIAL_OPERANDS, dtype)
    x, y = np.meshgrid(values, values)
    return x.ravel(), y.ravel()


def random_pairs(name: str, dtype: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name == "pow":
        limit = 88.0 if dtype == "float32" else 709.0
        near_one = rng.uniform(-1, 1, count) * np.exp2(rng.uniform(-40, -1, count))
        x = np.concatenate(
            [np.exp2(rng.uniform(-20, 20, count)), 1 + near_one, rng.uniform(-9, 9, count)]
        )
        with np.errstate(divide="ignore"):
            scaled = rng.uniform(-limit, limit, 2 * count) / np.log(x[: 2 * count])
        y = np.concatenate([scaled, rng.integers(-30, 30, count)])
    else:
        magnitude = np.exp2(rng.uniform(-30, 30, count)) * rng.choice([-1, 1], count)
        x = np.concatenate([rng.uniform(-30, 30, count), magnitude, rng.integers(-99, 99, count)])
        y = np.concatenate(
            [
                rng.uniform(-30, 30, count),
                magnitude * rng.uniform(-3, 3, count),
                rng.integers(-20, 20, count),
            ]
        )
    return x.astype(dtype), y.astype(dtype)


BINARY_ORACLES = {
    "pow": np.power,
    "hypot": np.hypot,
    "atan2": np.arctan2,
    "logaddexp": np.logaddexp,
    "fmod": np.fmod,
    "remainder": np.remainder,
    "floor_divide": np.floor_divide,
    "nextafter": np.nextafter,
}
MP_BINARY = {
    "pow": lambda x, y: x**y,
    "hypot": mpmath.hypot,
    "atan2": mpmath.atan2,
    "logaddexp": lambda x, y: mpmath.log(mpmath.exp(x) + mpmath.exp(y)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_binary_functions_have_numpys_bits(name: str, dtype: str) -> None:
    x, y = (
        np.concatenate(parts)
        for parts in zip(special_pairs(dtype), random_pairs(name, dtype, 20000))
    )
    with np.errstate(all="ignore"):
        expected = BINARY_ORACLES[name](x, y)
    got = compiled(name, dtype, 8)(x, y)
    same = (got == expected) & (np.signbit(got) == np.signbit(expected))
    wrong = ~(same | (np.isnan(got) & np.isnan(expected)))
    assert not wrong.any(), (x[wrong][:3], y[wrong][:3], got[wrong][:3], expected[wrong][:3])


@pytest.mark.parametrize("name", list(MP_BINARY))
def test_float32_binary_is_within_one_ulp(name: str) -> None:
    x, y = random_pairs(name, "float32", 20000)
    got = compiled(name, "float32", 16)(x, y)
    with np.errstate(all="ignore"):
        expected = BINARY_ORACLES[name](x.astype(np.float64), y.astype(np.float64))
    assert ulp_errors32(got, expected).max() <= 1.0


@pytest.mark.parametrize("name", list(MP_BINARY))
def test_float64_binary_is_within_one_ulp(name: str) -> None:
    x, y = random_pairs(name, "float64", 400)
    keep = (x > 0) | (y == np.rint(y)) if name == "pow" else np.ones(len(x), bool)
    x, y = x[keep & (x != 0)], y[keep & (x != 0)]
    got = compiled(name, "float64", 8)(x, y)
    with mpmath.workprec(220):
        errors = [
            ulp_error64(float(g), MP_BINARY[name](mpmath.mpf(float(a)), mpmath.mpf(float(b))))
            for g, a, b in zip(got, x, y)
        ]
    worst = int(np.argmax(errors))
    assert errors[worst] <= 1.0, (x[worst], y[worst], got[worst])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", list(MP_BINARY))
def test_binary_special_values(name: str, dtype: str) -> None:
    x, y = special_pairs(dtype)
    with np.errstate(all="ignore"):
        expected = BINARY_ORACLES[name](x.astype(np.float64), y.astype(np.float64)).astype(dtype)
    got = compiled(name, dtype, 8)(x, y)
    kinds = list(zip(x, y, outcome(got), outcome(expected)))
    assert [k for k in kinds if k[2] != k[3]] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logaddexp_near_zero_keeps_the_error_of_its_terms(dtype: str) -> None:
    """Where max(x, y) and log1p(exp(-|x - y|)) cancel, 2**-56 of them remains in float64."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-0.9, -0.3, 500).astype(dtype)
    with mpmath.workprec(220):
        y = np.array([float(mpmath.log(1 - mpmath.exp(mpmath.mpf(float(v))))) for v in x], dtype)
        exact = [MP_BINARY["logaddexp"](*map(mpmath.mpf, map(float, p))) for p in zip(x, y)]
        got = compiled("logaddexp", dtype, 8)(x, y)
        absolute = [float(abs(mpmath.mpf(float(g)) - e)) for g, e in zip(got, exact)]
    ulp = [float(abs(e)) * np.finfo(dtype).eps for e in exact]
    assert max(a - u for a, u in zip(absolute, ulp)) <= 2.0**-55


# --- widths, targets, symbols ----------------------------------------------------------------


def all_inputs(name: str, dtype: str) -> tuple[np.ndarray, ...]:
    """Corners and random bit patterns; the same lanes hold easy and hard cases side by side."""
    if FUNCTIONS[name].arity == 2:
        x, y = special_pairs(dtype)
        return x, y
    rng = np.random.default_rng(11)
    kind = np.uint32 if dtype == "float32" else np.uint64
    random = rng.integers(0, np.iinfo(kind).max, 2000, dtype=kind).view(dtype)
    common = rng.uniform(-20, 20, 2000).astype(dtype)
    return (rng.permutation(np.concatenate([corners(dtype)[::7], random, common])),)


def assert_same_bits(left: np.ndarray, right: np.ndarray) -> None:
    """Equal bits; the sign and payload of a NaN are not a function's to promise."""
    kind = np.uint32 if left.dtype == np.float32 else np.uint64
    same = (left.view(kind) == right.view(kind)) | (np.isnan(left) & np.isnan(right))
    assert same.all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_bits_are_equal_for_all_widths(name: str, dtype: str) -> None:
    inputs = all_inputs(name, dtype)
    expected = compiled(name, dtype, 16)(*inputs)
    for lanes in (1, 4, 8, 32):
        assert_same_bits(compiled(name, dtype, lanes)(*inputs), expected)


@pytest.mark.skipif(not host_target().is_x86, reason="runs AVX2 code beside the host's")
@pytest.mark.parametrize(
    "name",
    ["exp", "expm1", "exp2", "sigmoid", "softplus", "tanh", "erf", "erfc", "pow", "sin", "log"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_are_equal_with_and_without_avx512(name: str, dtype: str) -> None:
    inputs = all_inputs(name, dtype)
    narrow = compiled(name, dtype, 8, AVX2)
    assert_same_bits(narrow(*inputs), compiled(name, dtype, 8)(*inputs))


def undefined_symbols(elf: bytes) -> set[str]:
    """The names of the undefined symbols of a 64-bit little-endian ELF object."""
    table, count = struct.unpack_from("<Q", elf, 0x28)[0], struct.unpack_from("<H", elf, 0x3C)[0]
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + 64 * i) for i in range(count)]
    names: set[str] = set()
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        strings = sections[section[6]][4]
        for at in range(section[4] + 24, section[4] + section[5], 24):
            name, _, _, index = struct.unpack_from("<IBBH", elf, at)
            if index == 0:
                start = strings + name
                names.add(elf[start : elf.index(b"\0", start)].decode())
    return names


def every_function(target: Target, dtype: str, lanes: int) -> str:
    """One module with an exported function for each math function."""
    module = Module(target)
    ty = vector(SCALARS[dtype], lanes)
    for name, function in FUNCTIONS.items():
        operands = [f"x{i}" for i in range(function.arity)]
        params = [("ptr", p) for p in (*operands, "out")]
        f = Function(module, f"use_{name}", params, linkage="")
        values = [f.emit(f"load {ty}, ptr %{p}, align 8") for p in operands]
        f.stmt(f"store {ty} {emit_math(f, name, ty, *values)}, ptr %out, align 8")
        f.stmt("ret void")
        f.finish()
    return module.to_text()


@pytest.mark.parametrize("target", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
@pytest.mark.parametrize(
    ("dtype", "lanes"), [("float32", 1), ("float32", 16), ("float64", 1), ("float64", 8)]
)
def test_object_code_calls_nothing(target: Target, dtype: str, lanes: int) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=1, reloc="pic"
    )
    module = llvm.parse_assembly(every_function(target, dtype, lanes))
    module.verify()
    assert undefined_symbols(machine.emit_object(module)) - {"_GLOBAL_OFFSET_TABLE_"} == set()


# --- emission --------------------------------------------------------------------------------


def test_a_long_function_is_shared_and_a_short_one_inline() -> None:
    module = Module(host_target())
    f = Function(module, "f", [("<16 x float>", "x")], result="<16 x float>")
    first = emit_math(f, "sin", "<16 x float>", "%x")
    second = emit_math(f, "sin", "<16 x float>", first)
    third = emit_math(f, "exp", "<16 x float>", second)
    f.stmt(f"ret <16 x float> {third}")
    f.finish()
    text = module.to_text()
    assert len(re.findall(r"^define .*@math_sin_v16f32", text, re.M)) == 1
    assert len(re.findall(r"call .*@math_sin_v16f32", text)) == 2
    assert "math_exp" not in text
    llvm.parse_assembly(text).verify()


def test_a_kernel_loads_the_constants_of_its_loops_once_on_entry() -> None:
    module = Module(host_target())
    f = Function(module, "f", [("<16 x float>", "x")], result="<16 x float>", holds=True)
    f.branch("inner")
    f.label("inner")
    value = emit_math(f, "exp", "<16 x float>", emit_math(f, "exp", "<16 x float>", "%x"))
    f.stmt(f"ret <16 x float> {value}")
    f.finish()
    entry, inner = module.to_text().split("inner:\n")
    constants = re.findall(r"= freeze <16 x float> (splat.*)", entry)
    assert len(constants) == len(set(constants)) == 12
    assert "splat (float" not in inner
    llvm.parse_assembly(module.to_text()).verify()


def test_a_long_body_takes_two_vectors_at_a_time() -> None:
    """Of no use where one iteration overlaps with the next: only where it is too long for that."""
    x = sg.input("x", ("N",))
    short = value = sg.exp(x) / (x + 2.0)
    for _ in range(3):
        value = sg.exp(-value * value) / (value + 2.0)
    two = f"<{2 * host_target().lanes(4)} x float>"
    run = sg.compile([x], value)
    assert two in run.llvm_ir
    assert two not in sg.compile([x], short).llvm_ir
    array = np.random.default_rng(5).uniform(0, 1, 101).astype("float32")
    expected = np.exp(array) / (array + 2)
    for _ in range(3):
        expected = np.exp(-expected * expected) / (expected + 2)
    np.testing.assert_allclose(run(array), expected, rtol=1e-5)
    for n in (0, 1, 16, 31, 32, 33, 100):  # no value depends on its place in a vector
        assert_same_bits(run(array[:n].copy()), run(array)[:n])


def test_no_libm_intrinsic_is_emitted() -> None:
    allowed = {"fma", "sqrt", "fabs", "copysign", "floor", "ceil", "trunc", "roundeven"}
    allowed |= {"masked", "x86.avx2.permps"}
    for dtype in SCALARS:
        for name in FUNCTIONS:
            text = map_module(name, dtype, 8, AVX2)
            assert set(re.findall(r"@llvm\.(x86\.\w+\.\w+|\w+)", text)) <= allowed


def test_bad_requests_are_refused() -> None:
    f = Function(Module(host_target()), "f", [("float", "x")])
    with pytest.raises(UnsupportedError, match="no math function 'gamma'"):
        emit_math(f, "gamma", "float", "%x")
    with pytest.raises(UnsupportedError, match="not for i32"):
        emit_math(f, "exp", "i32", "%x")
    with pytest.raises(UnsupportedError, match="takes 2 operands, not 1"):
        emit_math(f, "pow", "float", "%x")
