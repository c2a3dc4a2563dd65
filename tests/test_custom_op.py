"""`sg.custom_op`: C functions of all three signatures, Python callbacks, the cache, wrong input."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import compile as driver
from staticgrad.autodiff.batching import batched
from staticgrad.autodiff.forward import push
from staticgrad.ops import registry

from .oracle import check_gradient, check_record

LIBRARY = ctypes.CDLL(None)
DOUBLES = ctypes.POINTER(ctypes.c_double)
X = np.array([-2.0, -0.5, 0.25, 1.0, 30.0])


@pytest.fixture(autouse=True)
def no_ops_left_behind() -> Iterator[None]:
    before = set(registry.all_ops())
    yield
    for name in set(registry.all_ops()) - before:
        registry.unregister(name)


def scalar(name: str = "test_cbrt", function: Any = None, **given: Any) -> Any:
    """The C library's cube root, or another function of one element."""
    arguments: dict[str, Any] = {
        "c_functions": {"float64": function or LIBRARY.cbrt},
        "reference": np.cbrt,
        "vjp": lambda c, ct: (ct / (c.results[0] ** 2 * 3.0),),
        "samples": [(X,), (np.zeros((0, 3)),)],
        "signature": "scalar",
    }
    return sg.custom_op(name, **{**arguments, **given})


def array(pointer: Any, size: int) -> Any:
    return np.ctypeslib.as_array(pointer, (size,)) if size else np.zeros(0)


@ctypes.CFUNCTYPE(None, DOUBLES, DOUBLES, DOUBLES, ctypes.c_int64)
def scaled_sum(a: Any, b: Any, y: Any, n: int) -> None:
    array(y, n)[:] = 2 * array(a, n) + array(b, n)


def elementwise(name: str = "test_scaled_sum") -> Any:
    return sg.custom_op(
        name, c_functions={"float64": scaled_sum}, reference=lambda a, b: 2 * a + b,
        vjp=lambda c, ct: (ct * 2.0, ct), samples=[(X, X[::-1]), (np.zeros((0,)),) * 2],
    )  # fmt: skip


@ctypes.CFUNCTYPE(None, DOUBLES, DOUBLES, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(
    ctypes.c_int64))  # fmt: skip
def row_maxima(x: Any, largest: Any, place: Any, dims: Any) -> None:
    rows, columns = dims[0], dims[1]
    assert [dims[2], dims[3]] == [rows, rows]
    values = array(x, rows * columns).reshape(rows, columns)
    array(largest, rows)[:] = values.max(axis=1)
    array(place, rows)[:] = values.argmax(axis=1)


def vjp_row_maxima(c: Any, cts: Any) -> tuple[Any]:
    hit = sg.arange(c.operands[0].shape[1]) == sg.expand_dims(c.results[1], axis=1)
    return (sg.where(hit, sg.expand_dims(cts[0], axis=1), 0.0),)


def general(name: str = "test_row_maxima", **given: Any) -> Any:
    arguments: dict[str, Any] = {
        "signature": "general", "c_functions": {"float64": row_maxima},
        "infer": lambda x: [(x.dtype, x.shape[:1]), ("int64", x.shape[:1])],
        "reference": lambda x: (x.max(axis=1), x.argmax(axis=1)),
        "vjp": vjp_row_maxima, "samples": [(np.sin(np.arange(12.0)).reshape(3, 4),)],
    }  # fmt: skip
    return sg.custom_op(name, **{**arguments, **given})


@pytest.mark.parametrize("make", [scalar, elementwise, general])
def test_records_are_sound_and_compiled_values_agree(make: Any) -> None:
    apply = make()
    op = registry.get(apply.__name__)
    check_record(op)
    assert check_gradient(op) > 0
    for sample in op.samples():
        inputs = [
            sg.input(f"x{i}", tuple(f"D{i}{k}" for k in range(a.ndim)), "float64")
            for i, a in enumerate(sample.operands)
        ]
        if len(inputs) > 1:
            inputs[1] = sg.input("x1", inputs[0].shape, "float64")
        made = apply(*inputs)
        outputs = list(made) if isinstance(made, tuple) else [made]
        loss = (outputs[0] * outputs[0]).sum()
        outputs += sg.gradients(loss, inputs)
        native = sg.compile(inputs, outputs)
        expected = sg.compile(inputs, outputs, mode="reference")(*sample.operands)
        for got, want in zip(native(*sample.operands), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-13)


def test_operands_are_promoted_and_broadcast() -> None:
    apply = elementwise()
    a, b = sg.input("a", ("N", 3), "float64"), sg.input("b", (3,), "float32")
    y = apply(a, b)
    ga, gb = sg.gradients(y.sum(), [a, b])
    program = sg.compile([a, b], [y, ga, gb])
    left, right = np.arange(6.0).reshape(2, 3), np.array([0.5, 1.0, 1.5], "float32")
    y_value, ga_value, gb_value = program(left, right)
    np.testing.assert_array_equal(y_value, 2 * left + right)
    np.testing.assert_array_equal(ga_value, np.full((2, 3), 2.0))
    np.testing.assert_array_equal(gb_value, np.full(3, 2.0, "float32"))
    np.testing.assert_array_equal(sg.compile([a], apply(a, 1.0))(left), 2 * left + 1)


# --- forward mode and batching --------------------------------------------------------------------


def test_rules_of_functions_of_single_elements_are_derived() -> None:
    a, b = sg.input("a", (5,), "float64"), sg.input("b", (5,), "float64")
    y = elementwise()(a, b) + scalar()(a)
    (ta,) = push([y], [a, b], [sg.constant(X), None])
    (tb,) = push([y], [a, b], [None, sg.constant(X)])
    found_a, found_b = sg.compile([a, b], [ta, tb])(X, X)
    np.testing.assert_allclose(found_a, 2 * X + X / (3 * np.cbrt(X) ** 2), 1e-14)
    np.testing.assert_array_equal(found_b, X)


@pytest.mark.parametrize("size", [2, "B"])
def test_functions_of_single_elements_are_batched(size: Any) -> None:
    apply = elementwise()
    a, b = sg.input("a", (5,), "float64"), sg.input("b", (5,), "float64")
    many = sg.input("many", (size, 5), "float64")
    rows = np.stack([X, X[::-1]])
    outputs = [apply(a, b), apply(b, a), scalar()(a)]
    found = [t for t, _ in batched(outputs, {a: many}, many.shape[0])]
    got = sg.compile([many, b], found)(rows, X)
    for g, e in zip(got, (2 * rows + X, 2 * X + rows, np.cbrt(rows)), strict=True):
        np.testing.assert_allclose(g, e, 1e-14)


def test_general_functions_take_rules_of_their_own() -> None:
    def jvp(c: Any, tangents: Any) -> Any:
        hit = sg.arange(c.operands[0].shape[1]) == sg.expand_dims(c.results[1], axis=1)
        return [sg.where(hit, tangents[0], 0.0).sum(axis=1), None]

    def batch(c: Any) -> Any:
        (x,) = c.operands
        maxima = apply(x.reshape((-1, x.shape[-1])))
        return [y.reshape(x.shape[:-1]) for y in maxima]

    apply = general(jvp=jvp, batch=batch)
    x = sg.input("x", (3, 4), "float64")
    at = np.sin(np.arange(12.0)).reshape(3, 4)
    found = push(apply(x), [x], [sg.constant(np.arange(12.0).reshape(3, 4))])
    assert found[1] is None
    expected = np.arange(12.0).reshape(3, 4)[np.arange(3), at.argmax(axis=1)]
    np.testing.assert_array_equal(sg.compile([x], found[0])(at), expected)

    xs = sg.input("xs", (2, 3, 4), "float64")
    together = [t for t, _ in batched(apply(x), {x: xs}, 2)]
    values, places = sg.compile([xs], together)(np.stack([at, -at]))
    np.testing.assert_array_equal(values, [at.max(axis=1), (-at).max(axis=1)])
    np.testing.assert_array_equal(places, [at.argmax(axis=1), (-at).argmax(axis=1)])


def test_general_functions_without_those_rules_say_how_to_give_them() -> None:
    apply = general()
    x, xs = sg.input("x", (3, 4), "float64"), sg.input("xs", (2, 3, 4), "float64")
    with pytest.raises(sg.UnsupportedError, match=r"test_row_maxima.*jvp=lambda"):
        push(apply(x), [x], [x])
    with pytest.raises(sg.UnsupportedError, match=r"test_row_maxima.*batch=lambda"):
        batched(apply(x), {x: xs}, 2)


def test_an_op_without_a_gradient_has_no_tangent_either() -> None:
    step = scalar(vjp=sg.NotDifferentiable("a step"))
    x = sg.input("x", (5,), "float64")
    assert push([step(x)], [x], [x]) == [None]
    still = general(vjp=sg.NotDifferentiable("places"))
    y = sg.input("y", (3, 4), "float64")
    assert push(still(y), [y], [y]) == [None, None]


def test_only_c_functions_take_the_native_entry() -> None:
    x = sg.input("x", ("N",), "float64")
    compiled = sg.compile([x], scalar()(x))
    called_back = sg.compile([x], elementwise()(x, x))
    plain = sg.compile([x], x + 1.0)
    assert compiled.is_native == plain.is_native
    assert not called_back.is_native
    np.testing.assert_array_equal(called_back(X), 3 * X)


def test_object_code_holds_a_name_and_the_cache_stays_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code, bound to another function, calls the other one."""
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path))
    x = sg.input("x", ("N",), "float64")
    first = sg.compile([x], scalar("test_rebound")(x))
    count = driver.compilations
    second = sg.compile([x], scalar("test_rebound", LIBRARY.sin, reference=np.sin)(x))
    assert driver.compilations == count
    np.testing.assert_allclose(first(X), np.cbrt(X), rtol=1e-15)
    np.testing.assert_allclose(second(X), np.sin(X), rtol=1e-15)
    assert "@sgc_test_rebound_float64(" in second.llvm_ir


def test_a_python_function_lives_as_long_as_its_program() -> None:
    def make() -> Any:
        plus = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: x + 40)
        apply = scalar("test_short_lived", plus, reference=lambda x: x + 40)
        x = sg.input("x", (), "float64")
        return sg.compile([x], apply(x))

    program = make()
    scalar("test_short_lived")  # replaces the record, which held the function too
    assert program(np.float64(2.0)) == 42


def test_several_dtypes_have_functions_of_their_own() -> None:
    apply = scalar(c_functions={"float64": LIBRARY.cbrt, "float32": LIBRARY.cbrtf})
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-15)):
        x = sg.input("x", ("N",), dtype)
        got = sg.compile([x], apply(x))(X.astype(dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, np.cbrt(X), rtol=tolerance)


def test_the_state_is_updated_after_the_call() -> None:
    w = sg.parameter(np.float64(27.0), name="w")
    step = sg.compile([], [w], updates=[(w, scalar()(w))])
    assert step()[0] == 27.0
    assert w.numpy() == pytest.approx(3.0, rel=1e-15)


# --- wrong input ----------------------------------------------------------------------------------


def test_wrong_operands_are_refused_at_the_users_line() -> None:
    apply = scalar()
    with pytest.raises(sg.DTypeError, match=r"functions for float64, got int32(.|\n)*test_custom"):
        apply(sg.input("x", (3,), "int32"))
    with pytest.raises(sg.ArgumentTypeError, match="expected 1 operands, got 2"):
        apply(1.0, 2.0)
    with pytest.raises(sg.ShapeError, match="broadcast"):
        elementwise()(sg.input("a", (3,), "float64"), sg.input("b", (4,), "float64"))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"name": "立方根"}, sg.ArgumentError, "ASCII identifier"),
        ({"name": "multiply"}, sg.ArgumentError, "built-in"),
        ({"signature": "vector"}, sg.ArgumentError, "must be one of"),
        ({"signature": "general"}, sg.ArgumentError, "infer="),
        ({"infer": lambda x: (x.dtype, x.shape)}, sg.ArgumentError, "infer="),
        ({"samples": []}, sg.ArgumentError, "samples"),
        ({"samples": [(X,), (X, X)]}, sg.ArgumentError, "one length"),
        ({"vjp": None}, sg.ArgumentTypeError, "NotDifferentiable"),
        ({"jvp": 3}, sg.ArgumentTypeError, "jvp must be a function"),
        ({"batch": 3}, sg.ArgumentTypeError, "batch must be a function"),
        ({"reference": 3}, sg.ArgumentTypeError, "must be functions"),
        ({"c_functions": LIBRARY.cbrt}, sg.ArgumentTypeError, "dtype -> ctypes function"),
        ({"c_functions": {"float64": np.cbrt}}, sg.ArgumentTypeError, "got ufunc"),
        ({"c_functions": {"int8": LIBRARY.cbrt}}, sg.ArgumentError, "elementwise"),
        ({"c_functions": {"float16": LIBRARY.cbrt}}, sg.UnsupportedError, "float16"),
        (
            {"c_functions": {"float64": ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)()}},
            sg.ArgumentError,
            "null",
        ),
        (
            {"c_functions": {"float64": ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float)(float)}},
            sg.ArgumentTypeError,
            r"expected the prototype \(c_double\) -> c_double",
        ),
        ({"c_functions": {"float64": scaled_sum}}, sg.ArgumentTypeError, "prototype"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    given: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        scalar(**{"name": "test_refused", **given})
    assert "test_refused" not in registry.all_ops()


def test_an_infer_that_gives_no_types_is_refused() -> None:
    apply = sg.custom_op(
        "test_bad_infer", signature="general", c_functions={"float64": LIBRARY.cbrt},
        infer=lambda x: x.shape, reference=np.cbrt, vjp=sg.NotDifferentiable("a test"),
        samples=[(X,)],
    )  # fmt: skip
    with pytest.raises(sg.ArgumentTypeError, match="dtype, shape"):
        apply(sg.input("x", (1, 2, 3), "float64"))
