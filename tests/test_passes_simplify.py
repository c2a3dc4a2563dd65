"""simplify: each rule by structure and by value, special values and symbolic dims included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.passes.canonicalize import canonicalize
from staticgrad.passes.cse import cse
from staticgrad.passes.simplify import simplify

from .pass_checks import (
    assert_close,
    assert_same_bits,
    formula,
    ops_of,
    run,
    special_arrays,
    verified,
)


def simple(before: Graph) -> Graph:
    return verified(simplify(canonicalize(before)))


FLOATS: list[tuple[Any, str]] = [
    (lambda x, y: x + 0.0, "x"),
    (lambda x, y: x - 0.0, "x"),
    (lambda x, y: 0.0 + x, "x"),
    (lambda x, y: x + sg.zeros_like(y), "x"),
    (lambda x, y: x * 0.0, "multiply(x, 0.0)"),  # 0 * inf is NaN
    (lambda x, y: x - x, "subtract(x, x)"),  # inf - inf too
    (lambda x, y: sg.maximum(x, x), "x"),
    (lambda x, y: sg.minimum(sg.sin(x), sg.sin(x)), "sin(x)"),
    (lambda x, y: sg.maximum(x, -np.inf), "x"),
    (lambda x, y: sg.minimum(x, np.inf), "x"),
    (lambda x, y: sg.clip(x, None, 2.0), "minimum(x, 2.0)"),
    (lambda x, y: sg.clip(x, -2.0, None), "maximum(x, -2.0)"),
    (lambda x, y: sg.relu(sg.relu(x)), "relu(x)"),
    (lambda x, y: sg.where(sg.constant(True), x, y), "x"),
    (lambda x, y: sg.where(sg.zeros((3,), dtype="bool"), x, y), "y"),
    (lambda x, y: sg.where(x > 0, y, y), "y"),
    (lambda x, y: sg.where(x > y, sg.where(x > y, x, 2.0), y), "where(greater(x, y), x, y)"),
    (lambda x, y: sg.where(x > y, x, sg.where(x > y, 2.0, y)), "where(greater(x, y), x, y)"),
    (lambda x, y: sg.where(x > y, 1.0, 0.0), "astype(greater(x, y), dtype=float32)"),
    (lambda x, y: sg.where(x > y, 0.0, 1.0),
     "astype(logical_not(greater(x, y)), dtype=float32)"),
    (lambda x, y: sg.where(x > y, 1.0, -0.0), "where(greater(x, y), 1.0, -0.0)"),
    (lambda x, y: sg.less(x, x), "broadcast_to(False, shape=(N, 3))"),
    (lambda x, y: sg.equal(x, x), "equal(x, x)"),  # NaN
    # reductions
    (lambda x, y: sg.sum(-x, axis=1), "negative(sum(x, axes=(1)))"),
    (lambda x, y: sg.sum(sg.broadcast_to(x, (4, "N", 3)), axis=0), "multiply(x, 4.0)"),
    (lambda x, y: sg.sum(sg.broadcast_to(x, (4, "N", 3)), axis=(0, 2)),
     "reshape(multiply(sum(x, axes=(1), keepdims=True), 4.0), shape=(N))"),
    (lambda x, y: sg.max(sg.broadcast_to(x, (4, "N", 3)), axis=0), "x"),
    (lambda x, y: sg.sum(sg.broadcast_to(x, (0, "N", 3)), axis=0),
     "broadcast_to(0.0, shape=(N, 3))"),
    (lambda x, y: sg.sum(sg.ones(("N", 3)), axis=0),
     "broadcast_to(dim_size(dtype=float32), shape=(3))"),
    (lambda x, y: sg.sum(x.T, axis=0), "sum(x, axes=(1))"),
    (lambda x, y: sg.sum(x[:, :1], axis=1),
     "reshape(slice(x, shape=(N, 1), start=(0, 0), step=(1, 1)), shape=(N))"),
    (lambda x, y: sg.max(x.T, axis=1), "max(x, axes=(0))"),
    (lambda x, y: sg.sum(sg.reshape(x, (-1,))), "sum(x, axes=(0, 1))"),
    # joining and taking apart
    (lambda x, y: sg.concat([x[:, :1], x[:, 1:]], axis=1), "x"),
    (lambda x, y: sg.concat([x[:, :1], x[:, 1:2], y], axis=1),
     "concat(slice(x, shape=(N, 2), start=(0, 0), step=(1, 1)), y, axis=1)"),
    (lambda x, y: sg.concat([sg.concat([x, y]), x]), "concat(x, y, x, axis=0)"),
    (lambda x, y: sg.concat([x, sg.zeros((0, 3)), y]), "concat(x, y, axis=0)"),
    (lambda x, y: sg.concat([x, y], axis=1)[:, 3:], "y"),
    (lambda x, y: sg.concat([x, y], axis=1)[:, 4:6],
     "slice(y, shape=(N, 2), start=(0, 1), step=(1, 1))"),
    (lambda x, y: sg.concat([x, y], axis=1)[:, 2:4],
     "slice(concat(x, y, axis=1), shape=(N, 2), start=(0, 2), step=(1, 1))"),
    (lambda x, y: sg.concat([x, y], axis=0)[2 * 0 :][:, ::-1],
     "slice(concat(x, y, axis=0), shape=(2*N, 3), start=(0, 2), step=(1, -1))"),
    (lambda x, y: sg.pad(x, ((0, 0), (1, 2)))[:, 1:4], "x"),
    (lambda x, y: sg.pad(x, ((0, 0), (1, 2)))[:, 2:4],
     "slice(x, shape=(N, 2), start=(0, 1), step=(1, 1))"),
    (lambda x, y: sg.pad(x, ((0, 0), (0, 3))) + sg.pad(y, ((0, 0), (3, 0))),
     "concat(x, y, axis=1)"),
    (lambda x, y: sg.pad(y, ((0, 0), (3, 3))) + sg.pad(x, ((0, 0), (0, 6))),
     "pad(concat(x, y, axis=1), shape=(N, 9), start=(0, 0), step=(1, 1))"),
    (lambda x, y: sg.pad(sg.zeros((2,)), (1, 1)), "broadcast_to(0.0, shape=(4))"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "expected"), FLOATS, ids=[f"{i}-{e}" for i, (_, e) in
                                                             enumerate(FLOATS)])  # fmt: skip
def test_rule(build: Any, expected: str) -> None:
    x, y = sg.input("x", ("N", 3)), sg.input("y", ("N", 3))
    before = Graph([x, y], [build(x, y)])
    after = simple(before)
    assert formula(after.outputs[0]) == expected
    arrays = special_arrays("float32", 2)
    assert_close(run(after, arrays), run(before, arrays), expected)
    assert simplify(after) is after, "not idempotent"
    empty = [a[:0] for a in arrays]
    assert_close(run(after, empty), run(before, empty), f"{expected}, N = 0")


INTEGERS: list[tuple[Any, str]] = [
    (lambda i, j: i * 0, "broadcast_to(0, shape=(N, 3))"),
    (lambda i, j: i - i, "broadcast_to(0, shape=(N, 3))"),
    (lambda i, j: i ^ i, "broadcast_to(0, shape=(N, 3))"),
    (lambda i, j: i & i, "i"),
    (lambda i, j: i | i, "i"),
    (lambda i, j: sg.equal(i, i), "broadcast_to(True, shape=(N, 3))"),
    (lambda i, j: i < i, "broadcast_to(False, shape=(N, 3))"),
    (lambda i, j: sg.maximum(i, np.iinfo("int32").min), "i"),
    (lambda i, j: sg.minimum(i, np.iinfo("int32").max), "i"),
    (lambda i, j: sg.sum(sg.broadcast_to(i, (5, "N", 3)), axis=0, dtype="int32"),
     "multiply(i, 5)"),
    (lambda i, j: sg.sum(sg.ones(("N", 3), dtype="int32"), axis=0, dtype="int32"),
     "broadcast_to(dim_size(dtype=int32), shape=(3))"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "expected"), INTEGERS, ids=[e for _, e in INTEGERS])
def test_integer_rule(build: Any, expected: str) -> None:
    i, j = sg.input("i", ("N", 3), "int32"), sg.input("j", ("N", 3), "int32")
    before = Graph([i, j], [build(i, j)])
    after = simple(before)
    assert formula(after.outputs[0]) == expected
    arrays = special_arrays("int32", 2)
    with np.errstate(over="ignore"):
        assert_same_bits(run(after, arrays), run(before, arrays), expected)


BOOLS: list[tuple[Any, str]] = [
    (lambda c, d: c & True, "c"),
    (lambda c, d: c & False, "broadcast_to(False, shape=(4))"),
    (lambda c, d: c | False, "c"),
    (lambda c, d: c | True, "broadcast_to(True, shape=(4))"),
    (lambda c, d: c ^ False, "c"),
    (lambda c, d: c ^ True, "logical_not(c)"),
    (lambda c, d: c & c, "c"),
    (lambda c, d: c ^ c, "broadcast_to(False, shape=(4))"),
    (lambda c, d: sg.where(c, True, False), "c"),
    (lambda c, d: sg.where(c, False, True), "logical_not(c)"),
    (lambda c, d: sg.any(sg.broadcast_to(c, (3, 4)), axis=0), "c"),
]


@pytest.mark.parametrize(("build", "expected"), BOOLS, ids=[f"{i}-{e}" for i, (_, e) in
                                                            enumerate(BOOLS)])  # fmt: skip
def test_rule_on_bools(build: Any, expected: str) -> None:
    c, d = sg.input("c", (4,), "bool"), sg.input("d", (4,), "bool")
    before = Graph([c, d], [build(c, d)])
    after = simple(before)
    assert formula(after.outputs[0]) == expected
    arrays = [np.array([False, False, True, True]), np.array([False, True, False, True])]
    assert_same_bits(run(after, arrays), run(before, arrays), expected)


@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_gradient_of_split_is_one_concat(pieces: int) -> None:
    x = sg.input("x", ("N", 21))
    size = 21 // pieces
    parts = sg.split(x, size, axis=1)
    g = sg.gradients(sum(sg.sum(sg.sin(p) * (k + 1.0)) for k, p in enumerate(parts)), x)
    before = Graph([x], [g])
    after = cse(simple(before))
    assert ops_of(after).count("concat") == 1
    assert not {"pad", "add"} & set(ops_of(after))
    arrays = [np.random.default_rng(0).standard_normal((4, 21)).astype("float32")]
    assert_close(run(after, arrays), run(before, arrays))


def test_gradient_of_concat_of_slices() -> None:
    x = sg.input("x", ("N", 8))
    y = sg.concat([sg.sin(x[:, :5]), sg.cos(x[:, 5:])], axis=1)
    g = sg.gradients(sg.sum(y * y), x)
    before = Graph([x], [y, g, sg.gradients(sg.sum(g * g), x)])
    after = simple(before)
    arrays = [np.random.default_rng(0).standard_normal((3, 8))]
    arrays = [a.astype("float32") for a in arrays]
    assert_close(run(after, arrays), run(before, arrays), ulps=64)
    assert "pad" not in ops_of(after)


def test_an_infinite_term_is_not_multiplied_by_an_empty_size() -> None:
    """The sum of no terms is 0, whatever the term is."""
    s, x = sg.input("s", ()), sg.input("x", ("N",))
    before = Graph([s, x], [sg.sum(sg.broadcast_to(s, ("N",)))])
    arrays = [np.array(np.inf, "float32"), np.zeros(0, "float32")]
    assert run(simple(before), arrays)[0] == 0.0


def test_symbolic_slices_of_a_concat() -> None:
    x, y = sg.input("x", ("N", 2)), sg.input("y", ("M", 2))
    z = sg.concat([x, y])
    first, rest = sg.split(z, [x.shape[0], y.shape[0]])
    before = Graph([x, y], [first, rest])
    after = simple(before)
    assert [formula(v) for v in after.outputs] == ["x", "y"]


def test_long_sums_of_pads_stay_linear() -> None:
    """Beyond 64 pieces there are several concats, not ever longer ones."""
    x = sg.input("x", (400,))
    g = sg.gradients(sum(sg.sum(sg.sin(p)) for p in sg.split(x, 2)), x)
    after = simple(Graph([x], [g]))
    assert max(len(n.operands) for n in after) <= 64
    row = np.linspace(0, 1, 400, dtype="float32")
    assert_close(run(after, [row]), [np.cos(row)])


def picked(index: Any) -> tuple[Graph, Any]:
    """-sum(log_softmax(x)[row, index[row]]), its gradient and the gradient's row sums."""
    x = sg.input("x", ("N", 5))
    chosen = sg.take_along_axis(sg.log_softmax(x), sg.expand_dims(index, axis=1), axis=1)
    g = sg.gradients(-sg.sum(chosen), x)
    return Graph([x, index], [chosen, g]), x


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_gradient_of_picking_one_element_of_each_row_is_a_choice(dtype: str) -> None:
    before, _ = picked(sg.input("i", ("N",), dtype))
    after = simple(before)
    assert "scatter_add" not in ops_of(after)
    rows = np.random.default_rng(0).standard_normal((4, 5)).astype("float32")
    places = np.array([0, 4, -1 if dtype[0] == "i" else 2, 1], dtype)
    for arrays in ([rows, places], [rows[:0], places[:0]]):
        assert_close(run(after, arrays), run(before, arrays))


def test_the_sum_of_a_row_of_one_element_is_the_element() -> None:
    x, i = sg.input("x", ("N", 5)), sg.input("i", ("N", 1), "int64")
    taken = sg.take_along_axis(x, i, axis=1)
    g = sg.gradients(sg.sum(sg.sin(taken)), x)
    before = Graph([x, i], [sg.sum(g, axis=1), sg.sum(g, axis=1, keepdims=True), sg.sum(g)])
    # The gather stays, as cos reads its value; it is what checks the index.
    after = cse(simple(before))
    assert "scatter_add" not in ops_of(after) and "gather" in ops_of(after)
    rows = np.random.default_rng(0).standard_normal((4, 5)).astype("float32")
    arrays = [rows, np.array([[0], [4], [2], [1]])]
    assert_close(run(after, arrays), run(before, arrays))


def test_an_index_that_nothing_else_checks_keeps_its_scatter() -> None:
    x, i = sg.input("x", ("N", 5)), sg.input("i", ("N", 1), "int64")
    g = sg.gradients(sg.sum(sg.take_along_axis(x, i, axis=1)), x)
    after = simple(Graph([x, i], [g]))
    assert "scatter_add" in ops_of(after)


def test_scatters_of_many_places_stay() -> None:
    table, i = sg.input("table", (7, 3)), sg.input("i", ("N",), "int64")
    rows = sg.take(table, i, axis=0)
    g = sg.gradients(sg.sum(rows * rows), table)
    after = simple(Graph([table, i], [rows, g]))
    assert "scatter_add" in ops_of(after)


def test_one_row_of_a_table() -> None:
    table, i = sg.input("table", (7, 3)), sg.input("i", (1,), "int32")
    row = sg.take(table, i, axis=0)
    g = sg.gradients(sg.sum(row * row), table)
    before = Graph([table, i], [row, g])
    after = simple(before)
    assert "scatter_add" not in ops_of(after)
    arrays = [np.arange(21, dtype="float32").reshape(7, 3), np.array([-2], "int32")]
    assert_close(run(after, arrays), run(before, arrays))
