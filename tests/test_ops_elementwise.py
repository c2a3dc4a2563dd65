"""Element-wise operations: records, gradients, kinks, promotion, operators and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad.ops
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DifferentiationError,
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ops import (
    activation,
    arithmetic,
    comparison,
    exponential,
    logical,
    rounding,
    selection,
    special,
    trigonometric,
)
from staticgrad.ops.convert import astype
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.lowering import Expand
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import NotDifferentiable, Op, all_ops, get
from staticgrad.ops.selection import where
from staticgrad.ops.tensor import Tensor

from tests.oracle import (
    check_expansion,
    check_gradient,
    check_no_gradient,
    check_record,
    declared,
    evaluate,
)

FAMILIES = (
    activation,
    arithmetic,
    comparison,
    exponential,
    logical,
    rounding,
    selection,
    special,
    trigonometric,
)
OPS = [op for op in all_ops().values() if "elementwise" in op.traits]
SMOOTH = [op for op in OPS if not isinstance(op.vjp, NotDifferentiable) and op.name != "astype"]
STOPPED = [op for op in OPS if isinstance(op.vjp, NotDifferentiable)]

# Python array API standard 2023.12, element-wise functions.
STANDARD = [
    "abs",
    "acos",
    "acosh",
    "add",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_left_shift",
    "bitwise_invert",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "ceil",
    "clip",
    "conj",
    "copysign",
    "cos",
    "cosh",
    "divide",
    "equal",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "greater",
    "greater_equal",
    "hypot",
    "imag",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "positive",
    "pow",
    "real",
    "remainder",
    "round",
    "sign",
    "signbit",
    "sin",
    "sinh",
    "square",
    "sqrt",
    "subtract",
    "tan",
    "tanh",
    "trunc",
    "nextafter",
    "reciprocal",
]


def by_name(op: Op) -> str:
    return op.name


def value(build: Callable[..., Any], *arrays: Any) -> np.ndarray:
    """`build` of inputs, evaluated by the reference interpreter."""
    held = [np.asarray(a) for a in arrays]
    inputs = declared(held)
    return evaluate([build(*inputs)], inputs, held)[0]


def gradient(build: Callable[..., Any], *arrays: Any, order: int = 1) -> list[np.ndarray]:
    """The gradients of the sum of `build` by each float64 operand (of order 2: of the gradients'
    sum)."""
    held = [np.asarray(a, "float64") for a in arrays]
    inputs = declared(held)
    scalar = reduce_sum(build(*inputs))
    for _ in range(order - 1):
        found = gradients(scalar, inputs, unreachable="zeros")
        scalar = sum((reduce_sum(g) for g in found[1:]), reduce_sum(found[0]))
    return evaluate(gradients(scalar, inputs, unreachable="zeros"), inputs, held)


# --- what derives from the records ----------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=by_name)
def test_record(op: Op) -> None:
    check_record(op)


@pytest.mark.parametrize("op", SMOOTH, ids=by_name)
def test_gradient(op: Op) -> None:
    check_gradient(op, order=3 if op.name in ("pow", "divide", "tanh", "where") else 2)


@pytest.mark.parametrize("op", STOPPED, ids=by_name)
def test_no_gradient(op: Op) -> None:
    check_no_gradient(op)


@pytest.mark.parametrize("op", [op for op in OPS if isinstance(op.lower, Expand)], ids=by_name)
def test_expansion(op: Op) -> None:
    check_expansion(op)


def test_every_function_of_the_standard_is_there() -> None:
    offered = {name for family in FAMILIES for name in family.__all__}
    assert not set(STANDARD) - offered
    assert {
        "where",
        "erf",
        "erfc",
        "sigmoid",
        "relu",
        "softplus",
        "exp2",
        "rsqrt",
        "cbrt",
    } < offered
    for family in FAMILIES:
        for name in family.__all__:
            assert getattr(family, name).__doc__, name


def test_a_float32_gradient_is_float32() -> None:
    for op in SMOOTH:
        sample = next(s for s in op.samples() if np.asarray(s.operands[-1]).dtype == np.float32)
        inputs = declared([np.asarray(a) for a in sample.operands])
        moving = [x for x in inputs if x.dtype.is_float]
        scalar = reduce_sum(staticgrad.ops.registry.apply(op.name, *inputs, **sample.attrs))
        for g, x in zip(gradients(scalar, moving, unreachable="zeros"), moving):
            assert g.type == x.type, op.name


# --- gradients at kinks, jumps and singular points ------------------------------------------------

KINKS = [
    ("abs", {}, [0.0, -0.0], [0.0, 0.0]),
    ("sign", {}, [0.0, 2.0], [0.0, 0.0]),
    ("floor", {}, [1.0, 1.5], [0.0, 0.0]),
    ("round", {}, [0.5, 1.5], [0.0, 0.0]),
    ("relu", {}, [0.0, 1.0, -1.0], [0.0, 1.0, 0.0]),
    ("leaky_relu", {"negative_slope": 0.25}, [0.0, 1.0], [0.25, 1.0]),
    ("elu", {"alpha": 0.5}, [0.0, 1.0], [0.5, 1.0]),
    ("hardtanh", {"min_val": -1.0, "max_val": 1.0}, [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]),
    ("hardsigmoid", {}, [-3.0, 3.0], [0.0, 0.0]),
    ("hardswish", {}, [-3.0, 3.0], [0.0, 1.0]),
    ("sqrt", {}, [0.0], [math.inf]),
    ("cbrt", {}, [0.0], [math.inf]),
    ("softsign", {}, [0.0], [1.0]),
    ("expm1", {}, [-50.0], [math.exp(-50.0)]),
    ("gelu", {"approximate": "tanh"}, [1e30, -1e30, 1e200], [1.0, 0.0, 1.0]),
    ("gelu", {"approximate": "none"}, [1e30, -1e30], [1.0, 0.0]),
    ("silu", {}, [1e3, -1e3], [1.0, 0.0]),
    ("mish", {}, [1e3, -1e3], [1.0, 0.0]),
    ("softplus", {}, [1e3, -1e3], [1.0, 0.0]),
    ("logsigmoid", {}, [1e3, -1e3], [0.0, 1.0]),
    ("asinh", {}, [1e200], [1e-200]),
    ("acosh", {}, [1e200], [1e-200]),
]


@pytest.mark.parametrize("name, attrs, x, expected", KINKS)
def test_unary_kinks(name: str, attrs: dict[str, Any], x: list[float], expected: Any) -> None:
    (got,) = gradient(lambda t: staticgrad.ops.registry.apply(name, t, **attrs), x)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=0)


PAIR_KINKS: list[tuple[Callable[..., Any], float, float, tuple[float, float]]] = [
    (selection.maximum, 2.0, 2.0, (0.5, 0.5)),
    (selection.minimum, 2.0, 2.0, (0.5, 0.5)),
    (selection.maximum, 1.0, 2.0, (0.0, 1.0)),
    (exponential.hypot, 0.0, 0.0, (0.0, 0.0)),
    (exponential.hypot, 3e200, 4e200, (0.6, 0.8)),
    (trigonometric.atan2, 0.0, 0.0, (0.0, 0.0)),
    (trigonometric.atan2, 0.0, -1e200, (-1e-200, 0.0)),
    (exponential.logaddexp, math.inf, math.inf, (0.5, 0.5)),
    (exponential.logaddexp, -math.inf, -math.inf, (0.5, 0.5)),
    (exponential.logaddexp, 1e4, -1e4, (1.0, 0.0)),
    (rounding.copysign, 0.0, -1.0, (0.0, 0.0)),
    (rounding.copysign, -2.0, -1.0, (1.0, 0.0)),
    (rounding.copysign, 2.0, -0.0, (-1.0, 0.0)),
    (arithmetic.remainder, 7.5, 2.0, (1.0, -3.0)),
    (arithmetic.floor_divide, 7.5, 2.0, (0.0, 0.0)),
]


@pytest.mark.parametrize("build, a, b, expected", PAIR_KINKS)
def test_binary_kinks(
    build: Callable[..., Any], a: float, b: float, expected: tuple[float, float]
) -> None:
    got = gradient(build, a, b)
    np.testing.assert_allclose([float(g) for g in got], expected, rtol=1e-12, atol=0)


def test_clip_passes_the_gradient_to_what_was_chosen() -> None:
    x = np.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    dx, low, high = gradient(selection.clip, x, -1.0, 1.0)
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 0])
    assert (float(low), float(high)) == (1.0, 1.0)
    # Bounds that cross: the upper one is the result, whatever x is.
    dx, low, high = gradient(selection.clip, x, 2.0, 1.0)
    np.testing.assert_array_equal(dx, np.zeros(5))
    assert (float(low), float(high)) == (0.0, 5.0)


@pytest.mark.parametrize("order", [1, 2])
def test_where_hides_the_nan_that_is_not_chosen(order: int) -> None:
    x = np.array([-1.0, 0.0, 4.0])
    (got,) = gradient(lambda t: where(t > 0, exponential.sqrt(where(t > 0, t, 1.0)), t), x,
                      order=order)  # fmt: skip
    np.testing.assert_allclose(got, [1, 1, 0.25] if order == 1 else [0, 0, -1 / 32])


POWERS = [
    # base, exponent, d/dbase, d/dexponent
    (0.0, 2.0, 0.0, 0.0),
    (0.0, 1.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 0.5, math.inf, 0.0),
    (2.0, 0.0, 0.0, math.log(2.0)),
    (3.0, 2.0, 6.0, 9 * math.log(3.0)),
    (-3.0, 2.0, -6.0, math.nan),
    (-2.0, -1.0, -0.25, math.nan),
    (math.inf, 0.0, 0.0, math.inf),
]


@pytest.mark.parametrize("x, n, dx, dn", POWERS)
def test_power_of_a_tensor_exponent(x: float, n: float, dx: float, dn: float) -> None:
    got = [float(g) for g in gradient(arithmetic.pow, x, n)]
    np.testing.assert_allclose(got, [dx, dn], rtol=1e-14)


@pytest.mark.parametrize("n", [-1, 0, 1, 2, 3, 2.0, 0.5])
def test_power_of_a_number(n: float) -> None:
    x = np.array([0.5, 2.0, -1.5] if n != 0.5 else [0.5, 2.0])
    for order, slope in ((1, n * x ** (n - 1)), (2, n * (n - 1) * x ** (n - 2.0))):
        (got,) = gradient(lambda t: t**n, x, order=order)
        np.testing.assert_allclose(got, slope, rtol=1e-14)


def test_whole_powers_have_all_derivatives_at_zero() -> None:
    for order, expected in ((1, 0.0), (2, 0.0), (3, 6.0)):
        for build in (lambda t: t**3, lambda t: arithmetic.pow(t, where(t < 5, 3.0, t))):
            (got,) = gradient(build, 0.0, order=order)
            assert float(got) == expected, order


def test_a_number_as_the_exponent_stays_one_node() -> None:
    y = declare("x", ("N",)) ** 2
    assert y.node.op == "pow" and y.node.operands[1].node.op == "constant"
    assert y.node.operands[1].type.dtype == "float32"


def test_steps_do_not_cut_the_path() -> None:
    x = declare("x", (3,))
    assert gradients(reduce_sum(rounding.floor(x)), x).shape == (3,)
    with pytest.raises(DifferentiationError, match="does not depend"):
        gradients(reduce_sum(selection.stop_gradient(x)), x)
    with pytest.raises(DifferentiationError, match="does not depend"):
        gradients(reduce_sum(astype(x > 0, "float32")), x)


def test_stop_gradient_cuts_one_of_two_paths() -> None:
    (got,) = gradient(lambda t: t * selection.stop_gradient(t), [3.0, -2.0])
    np.testing.assert_array_equal(got, [3.0, -2.0])


def test_gradient_through_a_narrower_dtype() -> None:
    (got,) = gradient(lambda t: astype(t, "float32") * 0.1, [1.0, 2.0])
    np.testing.assert_array_equal(got, np.full(2, np.float32(0.1), "float64"))


# --- values that NumPy leaves open ----------------------------------------------------------------


def test_signed_zeros_and_nan() -> None:
    big, small = value(selection.maximum, -0.0, 0.0), value(selection.minimum, 0.0, -0.0)
    assert not np.signbit(big) and np.signbit(small)
    assert np.isnan(value(selection.maximum, np.nan, 1.0))
    assert np.isnan(value(activation.relu, np.nan))
    assert value(rounding.sign, -0.0) == 0 and np.isnan(value(rounding.sign, np.nan))
    assert np.signbit(value(rounding.round, -0.5))
    np.testing.assert_array_equal(value(rounding.round, [0.5, 1.5, 2.5]), [0, 2, 2])


def test_integer_edges() -> None:
    low = np.int32(-(2**31))
    ints = np.array([7, -7, low], "int32")
    np.testing.assert_array_equal(value(arithmetic.floor_divide, ints, np.int32(0)), [0, 0, 0])
    np.testing.assert_array_equal(value(arithmetic.remainder, ints, np.int32(0)), [0, 0, 0])
    np.testing.assert_array_equal(value(arithmetic.floor_divide, ints, np.int32(-1)), [-7, 7, low])
    np.testing.assert_array_equal(value(arithmetic.remainder, ints, np.int32(-4)), [-1, -3, 0])
    np.testing.assert_array_equal(value(arithmetic.pow, ints, np.int32(-1)), [0, 0, 0])
    np.testing.assert_array_equal(
        value(arithmetic.pow, np.array([1, -1, -1], "int8"), np.array([-5, -5, -4], "int8")),
        [1, -1, 1],
    )
    np.testing.assert_array_equal(value(rounding.abs, low), low)
    np.testing.assert_array_equal(
        value(logical.bitwise_right_shift, ints, np.array([-1, 99, 31], "int32")), [0, -1, -1]
    )


# --- promotion and weak scalars -------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, dtypes, expected",
    [
        (arithmetic.add, ("int8", "int32"), "int32"),
        (arithmetic.add, ("int8", "uint8"), "int16"),
        (arithmetic.add, ("float32", "float64"), "float64"),
        (arithmetic.multiply, ("int64", "float32"), "float32"),
        (arithmetic.multiply, ("bool", "uint8"), "uint8"),
        (arithmetic.divide, ("int64", "int64"), "float32"),
        (arithmetic.divide, ("int64", "float64"), "float64"),
        (arithmetic.floor_divide, ("int16", "int16"), "int16"),
        (comparison.less, ("uint8", "int8"), "bool"),
        (selection.maximum, ("float32", "int64"), "float32"),
        (logical.bitwise_and, ("bool", "bool"), "bool"),
        (logical.bitwise_left_shift, ("uint8", "uint8"), "uint8"),
        (logical.logical_and, ("float32", "int8"), "bool"),
    ],
)
def test_promotion(build: Callable[..., Any], dtypes: tuple[str, str], expected: str) -> None:
    a, b = (declare(n, ("N",), d) for n, d in zip("ab", dtypes))
    assert build(a, b).type.dtype == expected


@pytest.mark.parametrize(
    "dtype, number, expected",
    [
        ("float32", 2, "float32"),
        ("float32", 2.5, "float32"),
        ("float64", 2.5, "float64"),
        ("int8", 2, "int8"),
        ("int8", 2.5, "float32"),
        ("int8", True, "int8"),
        ("bool", 2, "int64"),
    ],
)
def test_weak_scalars(dtype: str, number: float, expected: str) -> None:
    x = declare("x", (2,), dtype)
    assert (x + number).dtype == (number + x).dtype == expected
    assert (x == number).dtype == "bool"


def test_numbers_alone_are_float32() -> None:
    assert exponential.sqrt(2).dtype == exponential.hypot(3, 4).dtype == "float32"
    assert exponential.exp(1.0).dtype == "float32"
    assert exponential.exp(np.float64(1.0)).dtype == "float64"


# --- operators and methods ------------------------------------------------------------------------

_A, _B = np.array([7, -7, 12], "int32"), np.array([2, 3, 5], "int32")
OPERATORS = {
    "+": (lambda a, b: a + b, np.add), "-": (lambda a, b: a - b, np.subtract),
    "*": (lambda a, b: a * b, np.multiply), "//": (lambda a, b: a // b, np.floor_divide),
    "%": (lambda a, b: a % b, np.remainder), "**": (lambda a, b: a**b, np.power),
    "&": (lambda a, b: a & b, np.bitwise_and), "|": (lambda a, b: a | b, np.bitwise_or),
    "^": (lambda a, b: a ^ b, np.bitwise_xor), "<<": (lambda a, b: a << b, np.left_shift),
    ">>": (lambda a, b: a >> b, np.right_shift), "==": (lambda a, b: a == b, np.equal),
    "!=": (lambda a, b: a != b, np.not_equal), "<": (lambda a, b: a < b, np.less),
    "<=": (lambda a, b: a <= b, np.less_equal), ">": (lambda a, b: a > b, np.greater),
    ">=": (lambda a, b: a >= b, np.greater_equal),
}  # fmt: skip


@pytest.mark.parametrize("symbol", OPERATORS)
def test_operators(symbol: str) -> None:
    """Tensor beside tensor, NumPy array on either side, Python numbers on either side."""
    apply, expected = OPERATORS[symbol]
    np.testing.assert_array_equal(value(apply, _A, _B), expected(_A, _B))
    for got in (value(lambda t: apply(t, _B), _A), value(lambda t: apply(_A, t), _B)):
        np.testing.assert_array_equal(got, expected(_A, _B))
    np.testing.assert_array_equal(value(lambda t: apply(t, 3), _A), expected(_A, np.int32(3)))
    np.testing.assert_array_equal(value(lambda t: apply(3, t), _B), expected(np.int32(3), _B))
    np.testing.assert_array_equal(
        value(lambda t: apply(np.int32(3), t), _B), expected(np.int32(3), _B)
    )


def test_true_division_and_unary_operators() -> None:
    np.testing.assert_array_equal(value(lambda t: 1 / t, np.array([2.0, 4.0])), [0.5, 0.25])
    np.testing.assert_array_equal(value(lambda t: t / 2, _A), (_A / 2).astype("float32"))
    np.testing.assert_array_equal(value(lambda t: -t, _A), -_A)
    np.testing.assert_array_equal(value(lambda t: abs(t), _A), abs(_A))
    np.testing.assert_array_equal(value(lambda t: ~t, _A), ~_A)
    x = declare("x", (3,))
    assert +x is x


def test_methods_are_the_functions() -> None:
    x = declare("x", ("N",))
    for name in [
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "tanh",
        "sin",
        "cos",
        "sigmoid",
        "relu",
        "abs",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "erf",
        "square",
        "reciprocal",
        "log1p",
        "expm1",
        "isnan",
        "isfinite",
        "softplus",
    ]:
        y = getattr(x, name)()
        assert y.node.op == name and y.node.operands[0] is x
    assert x.clip(0.0, 1.0).node.op == x.clamp(min=0).node.op == "clip"
    assert x.pow(2).node.op == "pow" and x.detach().node.op == "stop_gradient"
    assert x.maximum(0.0).node.op == "maximum"


def test_equality_with_other_objects_is_identity() -> None:
    x = declare("x", (2,))
    assert (x == None) is False and (x != None) is True and (x == "x") is False  # noqa: E711
    assert len({x, x}) == 1 and isinstance(x == x, Tensor)


def test_whole_numbers_are_not_rounded() -> None:
    x = declare("x", ("N",), "int16")
    for name in ("floor", "ceil", "trunc", "round"):
        assert getattr(rounding, name)(x) is x
    assert arithmetic.positive(x) is x


# --- clip -----------------------------------------------------------------------------------------


def test_clip_bounds() -> None:
    x = declare("x", ("N", 3))
    assert selection.clip(x) is x
    for y in (selection.clip(x, 0), selection.clip(x, max=1.5), selection.clip(x, np.zeros(3), 1)):
        assert y.type == x.type
    ints = np.array([-200, 0, 200], "int16")
    np.testing.assert_array_equal(value(lambda t: t.clip(-5), ints), [-5, 0, 200])
    np.testing.assert_array_equal(value(lambda t: t.clip(max=5), ints), [-200, 0, 5])
    np.testing.assert_array_equal(
        value(lambda t: t.clip(min=0.0), np.array([np.nan, -np.inf, np.inf])), [np.nan, 0, np.inf]
    )


# --- errors ---------------------------------------------------------------------------------------

F32 = ("float32", (3,))
ERRORS: list[tuple[Callable[..., Any], list[tuple[str, Any]], type, str]] = [
    (arithmetic.add, [("bool", (3,)), ("bool", (3,))], DTypeError, "add: expected numbers"),
    (arithmetic.negative, [("bool", (3,))], DTypeError, "negative: expected numbers"),
    (arithmetic.positive, [("bool", (3,))], DTypeError, "expected numbers"),
    (arithmetic.add, [("uint64", (3,)), ("int8", (3,))], DTypeError, "no integer type holds"),
    (arithmetic.multiply, [F32, ("float32", (4,))], ShapeError, "multiply: shapes"),
    (arithmetic.pow, [("bool", ()), ("bool", ())], DTypeError, "pow: expected numbers"),
    (exponential.exp, [("int32", (3,))], DTypeError, r"exp: expected a floating dtype.*int32\[3\]"),
    (exponential.logaddexp, [("int8", ()), ("int8", ())], DTypeError, "floating"),
    (trigonometric.sin, [("bool", (3,))], DTypeError, "sin: expected a floating dtype"),
    (special.erf, [("uint8", (3,))], DTypeError, "erf: expected a floating dtype"),
    (rounding.floor, [("bool", (3,))], DTypeError, "floor: expected a floating dtype"),
    (rounding.sign, [("bool", (3,))], DTypeError, "sign: expected numbers"),
    (activation.gelu, [("int64", (3,))], DTypeError, "gelu: expected a floating dtype"),
    (activation.relu, [("bool", (3,))], DTypeError, "relu: expected numbers"),
    (logical.bitwise_and, [F32, F32], DTypeError, "bitwise_and: expected bools or integers"),
    (logical.bitwise_left_shift, [("bool", ()), ("bool", ())], DTypeError, "expected integers"),
    (comparison.less, [("float32", (2, 3)), ("float32", (2,))], ShapeError, "do not broadcast"),
    (where, [F32, F32, F32], DTypeError, "where: the condition must be bool"),
    (where, [("bool", (2,)), F32, F32], ShapeError, "do not broadcast"),
    (selection.maximum, [("bool", ()), ("bool", ())], DTypeError, "maximum: expected numbers"),
    (selection.clip, [("bool", (3,))], DTypeError, "clip: expected numbers"),
    (lambda x: selection.clip(x, 0.5), [("int32", (3,))], DTypeError, "clip: a bound of float32"),
    (lambda x: selection.clamp(x), [F32], ArgumentError, "at least one"),
    (lambda x: x + None, [F32], ArgumentTypeError, "NoneType"),
    (lambda x: x + "a", [F32], ArgumentTypeError, "str"),
    (lambda x: x + 1j, [F32], ArgumentTypeError, "complex"),
    (lambda x: x + 300, [("uint8", (3,))], DTypeError, "300 does not fit uint8"),
    (lambda x: activation.gelu(x, approximate="erf"), [F32], ArgumentError, "approximate"),
    (lambda x: activation.elu(x, alpha="1"), [F32], ArgumentTypeError, "alpha must be a number"),
    (lambda x: activation.hardtanh(x, min_val=1, max_val=1), [F32], ArgumentError, "min_val"),
    (arithmetic.conj, [F32], UnsupportedError, "conj: complex dtypes are not supported"),
    (arithmetic.imag, [F32], UnsupportedError, "complex"),
    (arithmetic.real, [F32], UnsupportedError, "complex"),
]


@pytest.mark.parametrize("build, operands, error, message", ERRORS)
def test_errors(
    build: Callable[..., Any], operands: list[tuple[str, Any]], error: type, message: str
) -> None:
    inputs = [declare(f"x{i}", shape, dtype) for i, (dtype, shape) in enumerate(operands)]
    with pytest.raises(error, match=message):
        build(*inputs)


def test_an_error_names_the_users_line() -> None:
    with pytest.raises(DTypeError, match=r"test_ops_elementwise\.py:\d+"):
        exponential.exp(declare("x", (3,), "int32"))


def test_records_of_one_name_do_not_differ_from_their_function() -> None:
    for family in FAMILIES:
        for name in set(family.__all__) & set(all_ops()):
            assert get(name).name == name == getattr(family, name).__name__
