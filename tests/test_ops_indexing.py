"""Indexing against NumPy: slices of int and symbolic axes, integer tensors, take, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim, parse_dim
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    BindError,
    DTypeError,
    ExecutionError,
    ShapeError,
)
from staticgrad.kernels.builder import KernelBuilder
from staticgrad.kernels.ir import Check, Loop, Stmt
from staticgrad.ops.indexing import index_add, index_update, take, take_along_axis
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.registry import all_ops, make

from .oracle import check_gradient, check_record, declared, evaluate

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("name", ["gather", "scatter_add"])
def test_record(name: str) -> None:
    op = all_ops()[name]
    check_record(op)
    check_gradient(op, order=3)


# --- basic indexing -------------------------------------------------------------------------------

bounds = st.none() | st.integers(-9, 9)
slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, 3, -1, -2, -4]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(slices, st.integers(0, 7))
def test_slice_of_a_symbolic_axis_is_clamped_as_numpy_does(s: slice, size: int) -> None:
    x = declare("x", ("N", 2))
    a = np.arange(2 * size, dtype="float32").reshape(size, 2)
    y = x[s]
    (g,) = gradients((y * y).sum(), [x])
    got, grad = evaluate([y, g], [x], [a])
    np.testing.assert_array_equal(got, a[s])
    expected = np.zeros_like(a)
    expected[s] = 2 * a[s]
    np.testing.assert_array_equal(grad, expected)


parts = slices | st.integers(-4, 3) | st.none()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(parts, max_size=5), st.integers(0, 5), st.booleans())
def test_basic_keys_on_int_axes(key: list[Any], dots: int, ellipsis: bool) -> None:
    a = np.arange(4 * 5 * 4).reshape(4, 5, 4)
    if sum(p is not None for p in key) > 3:
        key = key[:3]
    if ellipsis:
        key.insert(min(dots, len(key)), Ellipsis)
    x = declare("x", a.shape, "int64")
    (got,) = evaluate([x[tuple(key)]], [x], [a])
    assert got.shape == a[tuple(key)].shape
    np.testing.assert_array_equal(got, a[tuple(key)])


def test_shapes_of_symbolic_slices() -> None:
    n = Dim.symbol("N")
    x = declare("x", ("N", 4))
    assert x[1:].shape == x[:-1].shape == (parse_dim("max(N-1, 0)"), 4)
    assert x[1:][1:].shape[0] == parse_dim("max(N-2, 0)")
    assert x[1:-1].shape[0] == parse_dim("max(N-2, 0)")
    assert x[::2].shape[0] == parse_dim("(N+1)//2")
    assert x[:5].shape[0] == x[-5:].shape[0] == parse_dim("min(5, N)")
    assert x[::-1].shape == (n, 4) and x[-1].shape == (4,) and x[:n].shape == (n, 4)
    assert x[:"M"].shape[0] == parse_dim("min(M, N)")
    assert x[:] is x and x[...] is x


def test_common_symbolic_slices_ask_nothing_at_the_call() -> None:
    x = declare("x", ("N", 4))
    for y in (x[1:], x[:-1], x[:5], x[-3:], x[::-1], x[::2], x[1::2], x[1:-1], x[3:8], x[::-2],
              x[:"M"], x[0:0]):  # fmt: skip
        assert not y.node.constraints
        if y.node.op == "slice":
            (g,) = gradients(y.sum(), [x])
            assert not g.node.constraints


def test_dims_as_bounds() -> None:
    x, k = declare("x", ("N",)), declare("k", ("K",))
    a = np.arange(6, dtype="float32")
    outputs = [x[: k.shape[0]], x[k.shape[0] :], x["K":], x[x.shape[0] - 2 :]]
    for count in (0, 2, 6, 9):
        got = evaluate(outputs, [x, k], [a, np.zeros(count, "float32")])
        for g, e in zip(got, (a[:count], a[count:], a[count:], a[4:])):
            np.testing.assert_array_equal(g, e)
    last = x[x.shape[0] - 1]
    assert evaluate([last], [x], [a])[0] == 5


def test_int_index_of_a_symbolic_axis_is_checked_at_the_call() -> None:
    x = declare("x", ("N",))
    for index, least in ((0, 1), (3, 4), (-1, 1), (-4, 4)):
        y = x[index]
        for size in range(6):
            a = np.arange(size, dtype="float32")
            if size < least:
                with pytest.raises(BindError, match="out of range"):
                    evaluate([y], [x], [a])
            else:
                assert evaluate([y], [x], [a])[0] == a[index]


def test_keys_that_are_refused() -> None:
    x = declare("x", (3, 4))
    for key in (3, -4, (0, 4)):
        with pytest.raises(ShapeError, match=r"out of range.*\n  at test_ops_indexing"):
            x[key]
    with pytest.raises(ShapeError, match="3 indices"):
        x[0, 0, 0]
    with pytest.raises(ArgumentTypeError, match="Ellipsis"):
        x[..., 0, ...]
    with pytest.raises(ArgumentError, match="can't be 0"):
        x[::0]
    with pytest.raises(ArgumentTypeError, match="the step of a slice is an int"):
        x[0:1:1.5]  # type: ignore[misc]
    with pytest.raises(ArgumentTypeError, match="index with an integer tensor"):
        x[1.5:]  # type: ignore[misc]
    for bad in (1.5, object(), {}):
        with pytest.raises(ArgumentTypeError, match="an index is an int"):
            x[bad]
    with pytest.raises(ArgumentTypeError, match="index with an integer tensor"):
        x[: declare("i", (), "int64")]
    for mask in (True, np.ones(3, bool), [True, False, True], declare("m", (3,), "bool")):
        with pytest.raises(DTypeError, match="boolean mask"):
            x[mask]
    with pytest.raises(DTypeError, match="integer dtype"):
        x[declare("f", (2,))]
    with pytest.raises(ShapeError, match="index 3 is out of range for axis 0 of size 3"):
        x[[0, 3]]
    with pytest.raises(ShapeError, match="index -5 is out of range for axis 1"):
        x[:, np.array([-5])]


def test_unpacking_and_iteration() -> None:
    x = declare("x", (2, 3))
    w, b = x
    assert w.shape == b.shape == (3,)
    with pytest.raises(ShapeError, match="symbolic"):
        _w, _b = declare("y", ("N", 3))


# --- integer tensors ------------------------------------------------------------------------------

I2 = np.array([[0, -1], [2, 1]])
I1 = np.array([1, 0, -2], "int32")
S = np.array(1)


@pytest.mark.parametrize(
    "key",
    [
        (I1,), (I2,), (S,), (slice(None), I1), (slice(None), I2), (..., I1), (I1, I1),
        (slice(None), I1, I1), (I1, slice(None), I1), (I1, slice(1, None), I1, slice(None, 2)),
        (I2[:, :1], I1), (I2[:, :1], slice(None), I1), (0, I1), (0, slice(None), I1),
        (slice(None), 0, I1), (slice(None), I1, 0), (I1, 0), (I1, slice(None), 0), (None, I1),
        (I1, None), (I1, None, I1), (None, slice(None), I1, I1, None), (slice(None), None, I2),
        (S, S), (S, slice(None), S), (slice(None), S, S), (I1, S), (I1, slice(None), S),
        (..., I1, None, 0), (slice(None, None, -1), I1), (slice(1, 3), I2, slice(None, None, 2)),
        (I1, I1, I1, I1), (0, I2[:, :1], slice(None), I1), (np.zeros((0,), "int64"),), (S, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("symbolic", [False, True])
def test_integer_tensors_as_numpy_has_them(key: tuple[Any, ...], symbolic: bool) -> None:
    a = RNG.standard_normal((4, 3, 5, 3))
    indices = [p for p in key if isinstance(p, np.ndarray)]
    x, *tensors = inputs = declared([a, *indices], symbolic=symbolic)
    left = iter(tensors)
    y = x[tuple(next(left) if isinstance(p, np.ndarray) else p for p in key)]
    expected = a[tuple(p.astype("int64") if isinstance(p, np.ndarray) else p for p in key)]
    (g,) = gradients((y * y).sum(), [x])
    got, grad = evaluate([y, g], inputs, [a, *indices])
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)
    want = np.zeros_like(a)
    np.add.at(want, key, 2 * expected)
    np.testing.assert_allclose(grad, want, rtol=1e-14)


def test_lists_and_arrays_as_indices() -> None:
    a = RNG.standard_normal((4, 3))
    x = declare("x", a.shape, "float64")
    outputs = [x[[0, 2]], x[np.array([[1], [-1]])], x[[]], x[np.int8(2)], x[np.array(2)]]
    got = evaluate(outputs, [x], [a])
    expected = (a[[0, 2]], a[np.array([[1], [-1]])], a[[]], a[2], a[2])
    for g, e in zip(got, expected):
        np.testing.assert_array_equal(g, e)
    # uint64 beside a signed index
    u, i = declare("u", (2,), "uint64"), declare("i", (2,), "int8")
    (got1,) = evaluate([x[u, i]], [x, u, i], [a, np.uint64([1, 3]), np.int8([-1, 0])])
    np.testing.assert_array_equal(got1, a[[1, 3], [-1, 0]])


# --- updates --------------------------------------------------------------------------------------

KEYS = (
    (0,), (slice(1, 3),), (slice(None, None, -2), 1), (..., None, slice(0, 2)),
    (-1, slice(None), 2), (slice(3, 1),), (Ellipsis,),
)  # fmt: skip


@pytest.mark.parametrize("key", [*KEYS, (I1,), (slice(None), I1, S), (I1, slice(None), I1)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_index_add_and_update(key: tuple[Any, ...], symbolic: bool) -> None:
    a = RNG.standard_normal((4, 3, 5))
    value = RNG.standard_normal(a[key].shape)
    indices = [p for p in key if isinstance(p, np.ndarray)]
    inputs = declared([a, value, *indices], symbolic=symbolic)
    x, v, *tensors = inputs
    left = iter(tensors)
    parts = tuple(next(left) if isinstance(p, np.ndarray) else p for p in key)
    y = index_add(x, parts, v)
    gx, gv = gradients((y * y).sum(), [x, v])
    got, grad, grad_v = evaluate([y, gx, gv], inputs, [a, value, *indices])
    expected = a.copy()
    np.add.at(expected, key, value)
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    np.testing.assert_allclose(grad, 2 * expected, rtol=1e-14)
    np.testing.assert_allclose(grad_v, 2 * expected[key], rtol=1e-14)
    if indices:
        with pytest.raises(ArgumentTypeError, match="name a place twice"):
            index_update(x, parts, v)
        return
    z = index_update(x, parts, v)
    gx, gv = gradients((z * z).sum(), [x, v], unreachable="zeros")
    got, grad, grad_v = evaluate([z, gx, gv], inputs, [a, value])
    expected = a.copy()
    expected[key] = value
    np.testing.assert_array_equal(got, expected)
    kept = a.copy()
    kept[key] = 0
    np.testing.assert_array_equal(grad, 2 * kept)
    np.testing.assert_array_equal(grad_v, 2 * value)


def test_updates_broadcast_and_keep_the_dtype() -> None:
    x = declare("x", (3, 4), "int32")
    a = np.arange(12, dtype="int32").reshape(3, 4)
    got = evaluate([index_update(x, 1, 7), index_add(x, (..., 0), np.int8([1, 2, 3]))], [x], [a])
    expected = a.copy()
    expected[1] = 7
    np.testing.assert_array_equal(got[0], expected)
    assert got[0].dtype == got[1].dtype == a.dtype
    np.testing.assert_array_equal(got[1][:, 0], a[:, 0] + [1, 2, 3])
    with pytest.raises(DTypeError, match="does not fit into"):
        index_update(x, 0, np.ones(4))
    with pytest.raises(ShapeError, match="broadcast"):
        index_add(x, 0, np.ones(3, "int32"))


# --- take -----------------------------------------------------------------------------------------


def test_embedding_lookup_and_its_gradient() -> None:
    table, ids = declare("w", ("V", 8), "float64"), declare("i", ("N", "T"), "int64")
    y = take(table, ids, axis=0)
    assert [str(d) for d in y.shape] == ["N", "T", "8"] and y.node.op == "gather"
    (g,) = gradients((y * y).sum(), [table])
    w, i = RNG.standard_normal((5, 8)), np.array([[4, 0, 4], [4, -1, 0]])
    got, grad = evaluate([y, g], [table, ids], [w, i])
    np.testing.assert_array_equal(got, w[i])
    expected = np.zeros_like(w)
    np.add.at(expected, i, 2 * w[i])
    np.testing.assert_allclose(grad, expected, rtol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_take(axis: int | None) -> None:
    a, i = RNG.standard_normal((2, 3, 4)), np.array([[1, 0], [-1, 1]])
    x, index = declared([a, i])
    got, method = evaluate([take(x, index, axis=axis), x.take(i, axis=axis)], [x, index], [a, i])
    np.testing.assert_array_equal(got, np.take(a, i, axis=axis))
    np.testing.assert_array_equal(method, got)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("symbolic", [False, True])
def test_take_along_axis(axis: int, symbolic: bool) -> None:
    a = RNG.standard_normal((2, 3, 4))
    order = np.argsort(a, axis=axis)
    one = np.argmax(a, axis=axis, keepdims=True).astype("int32")
    for index in (order, one):
        inputs = declared([a, index], symbolic=symbolic)
        x, i = inputs
        y = take_along_axis(x, i, axis=axis)
        (g,) = gradients((y * y).sum(), [x])
        got, grad = evaluate([y, g], inputs, [a, index])
        expected = np.take_along_axis(a, index.astype("int64"), axis)
        np.testing.assert_array_equal(got, expected)
        want = np.zeros_like(a)
        np.put_along_axis(want, index.astype("int64"), 2 * expected, axis)
        np.testing.assert_allclose(grad, want, rtol=1e-14)


def test_take_along_axis_broadcasts() -> None:
    a, i = RNG.standard_normal((2, 3, 4)), np.array([[[3, 0]]])
    for x0, i0 in ((a, i), (a[:1, :1], np.broadcast_to(i, (2, 3, 2)))):
        x, index = declared([x0, i0])
        (got,) = evaluate([take_along_axis(x, index)], [x, index], [x0, i0])
        wide = np.broadcast_to(x0, (2, 3, 4))
        np.testing.assert_array_equal(
            got, np.take_along_axis(wide, np.broadcast_to(i0, (2, 3, 2)), -1)
        )
    with pytest.raises(ShapeError, match="differ in rank"):
        take_along_axis(declare("x", (2, 3)), [0])
    with pytest.raises(DTypeError, match="integer dtype"):
        take(declare("x", (2, 3)), [0.5], axis=0)


# --- out of range ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "uint64"])
def test_an_index_out_of_range_fails_the_run(dtype: str) -> None:
    x, i = declare("x", ("N", 2)), declare("i", ("M",), dtype)
    y = x[i]
    (g,) = gradients((y * y).sum(), [x])
    a = np.ones((3, 2), "float32")
    bad = {"int8": [3, -4], "int64": [3, -4, 2**63 - 1, -(2**63)], "uint8": [3, 255],
           "uint64": [3, 2**64 - 1]}[dtype]  # fmt: skip
    for value in bad:
        with pytest.raises(ExecutionError, match=f"index {value} .* size 3") as failure:
            evaluate([g], [x, i], [a, np.array([0, 2, value, value], dtype)])
        assert failure.value.element == 2 and failure.value.value == value
    with pytest.raises(ExecutionError, match="size 0"):
        evaluate([y], [x, i], [a[:0], np.array([0], dtype)])
    (got,) = evaluate([y], [x, i], [a[:0], np.zeros(0, dtype)])
    assert got.shape == (0, 2)


def statements(body: tuple[Stmt, ...]) -> list[Stmt]:
    found: list[Stmt] = []
    for s in body:
        found.append(s)
        if isinstance(s, Loop):
            found += statements(s.body)
    return found


@pytest.mark.parametrize("name", ["gather", "scatter_add"])
def test_kernels_check_every_index_outside_of_vector_loops(name: str) -> None:
    op = all_ops()[name]
    for sample in op.samples():
        inputs = declared([np.asarray(a) for a in sample.operands])
        node = make(name, inputs, sample.attrs)
        k = KernelBuilder([v.type for v in node.operands], node.types, node.attrs, 5)
        lower: Any = op.lower
        lower.emit(k)
        found = statements(k.finish(name, ()).body)
        checks = [s for s in found if isinstance(s, Check)]
        assert len(checks) == len(inputs) - 1 and all(s.code == 5 for s in checks)
        for s in found:
            if isinstance(s, Loop) and s.kind == "vector":
                assert not any(isinstance(inner, Check) for inner in s.body)
