"""Reductions, statistics, softmax, running sums and searching: records, gradients, rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    BindError,
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ir.graph import Graph
from staticgrad.ops import cumulative, reduction, registry, searching, softmax
from staticgrad.ops.convert import constant
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.registry import NotDifferentiable
from staticgrad.ops.tensor import Tensor

from .oracle import check_gradient, check_no_gradient, check_record

RECORDS = (
    "sum", "prod", "max", "min", "any", "all", "mean", "var", "std", "dim_size", "softmax",
    "log_softmax", "logsumexp", "cumulative_sum", "cumulative_prod", "linear_recurrence",
    "shift_axis", "argmax", "argmin", "searchsorted",
)  # fmt: skip


def run(function: Any, *arrays: Any, shapes: tuple[Any, ...] | None = None) -> np.ndarray:
    """`function` of inputs with the arrays' types (or the given symbolic shapes), evaluated."""
    arrays = tuple(np.asarray(a) for a in arrays)
    declared = shapes or tuple(a.shape for a in arrays)
    inputs = [declare(f"x{i}", s, str(a.dtype)) for i, (s, a) in enumerate(zip(declared, arrays))]
    return run_graph(Graph(inputs, [function(*inputs)]), list(arrays))[0][0]


def gradient(function: Any, x: np.ndarray) -> np.ndarray:
    return run(lambda t: gradients(reduction.sum(function(t)), t), x)


@pytest.mark.parametrize("name", RECORDS)
def test_record(name: str) -> None:
    check_record(registry.get(name))


@pytest.mark.parametrize("name", RECORDS)
def test_gradient(name: str) -> None:
    op = registry.get(name)
    if isinstance(op.vjp, NotDifferentiable):
        check_no_gradient(op)
    else:
        check_gradient(op)


@pytest.mark.parametrize("name", ["prod", "cumulative_prod", "linear_recurrence", "logsumexp"])
def test_third_order_gradient(name: str) -> None:
    check_gradient(registry.get(name), order=3, rtol=1e-5)


# --- reductions -----------------------------------------------------------------------------------


def test_axes_are_normalised_and_dims_kept_on_request() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for axis in (None, 0, -1, (0, 2), (-1, -3), ()):
        for keepdims in (False, True):
            for name in ("sum", "prod", "max", "min", "mean", "var", "std"):
                found = run(lambda t: getattr(t, name)(axis=axis, keepdims=keepdims), x)  # noqa: B023
                expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
                np.testing.assert_allclose(found, expected, rtol=1e-12)
                assert found.shape == expected.shape
    assert declare("x", (2, 3)).sum(0).shape == (3,)


@pytest.mark.parametrize(
    ("axis", "error"),
    [(2, ShapeError), (-3, ShapeError), ((0, 0), ShapeError), (1.0, ArgumentTypeError),
     (True, ArgumentTypeError), ("0", ArgumentTypeError)],
)  # fmt: skip
def test_a_wrong_axis_is_refused(axis: Any, error: type[Exception]) -> None:
    x = declare("x", (2, 3))
    for function in (reduction.sum, reduction.mean, softmax.softmax, reduction.std):
        with pytest.raises(error, match=rf"{function.__name__}: .*\n  at test_ops_reduction.py:"):
            function(x, axis=axis)


def test_small_integers_are_summed_in_64_bits() -> None:
    x = np.full(300, 100, np.int8)
    assert run(reduction.sum, x) == 30_000
    for dtype, wide in (("bool", "int64"), ("uint8", "uint64"), ("int32", "int64")):
        assert reduction.sum(declare("x", (3,), dtype)).dtype == wide
        assert reduction.prod(declare("x", (3,), dtype)).dtype == wide
    assert reduction.sum(declare("x", (3,), "int8"), dtype="int8").dtype == "int8"
    assert reduction.mean(declare("x", (3,), "int32")).dtype == "float32"


def test_extrema_of_no_elements() -> None:
    for function in (reduction.max, reduction.min, searching.argmax, searching.argmin):
        with pytest.raises(ShapeError, match="no elements"):
            function(declare("x", (3, 0)), axis=1)
        assert function(declare("x", (0, 3)), axis=1).shape == (0,)
    empty = np.zeros((2, 0), "float32")
    assert (run(lambda t: t.max(axis=1), empty, shapes=((2, "N"),)) == -np.inf).all()
    assert (run(lambda t: t.min(axis=1), empty, shapes=((2, "N"),)) == np.inf).all()
    assert (run(lambda t: t.argmax(axis=1), empty, shapes=((2, "N"),)) == 0).all()
    assert run(reduction.max, np.zeros(0, "int8"), shapes=(("N",),)) == -128


def test_extrema_propagate_nan_and_share_the_gradient_of_ties() -> None:
    assert np.isnan(run(reduction.max, np.array([1.0, np.nan, 2.0])))
    x = np.array([[3.0, 1, 3, 3], [0, 5, 5, 2]])
    for function, sign in ((reduction.max, 1.0), (reduction.min, -1.0)):
        found = gradient(lambda t: function(t, axis=1), sign * x)  # noqa: B023
        np.testing.assert_allclose(found, [[1 / 3, 0, 1 / 3, 1 / 3], [0, 0.5, 0.5, 0]])


def test_bools() -> None:
    x = np.array([[True, False], [True, True]])
    assert run(lambda t: t.all(axis=1), x).tolist() == [False, True]
    assert run(lambda t: t.max(axis=0), x).tolist() == [True, True]
    assert run(lambda t: t.min(axis=0), x).tolist() == [True, False]
    assert run(lambda t: t.any(), np.array([0.0, np.nan])) == np.True_
    assert run(reduction.count_nonzero, np.array([0.0, np.nan, 2, -0.0])) == 2
    for kind in ("max", "sum"):
        with pytest.raises(DTypeError):
            registry.make(kind, [declare("x", (2,), "bool")], {"axes": (0,), "keepdims": False})


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_the_gradient_of_a_product_with_zeros(zeros: int) -> None:
    x = np.array([[2.0, 3, 4], [5, 6, 7]])
    x.ravel()[[1, 4][:zeros]] = 0
    flat = x.ravel()
    expected = [np.prod(np.delete(flat, i)) for i in range(flat.size)]
    np.testing.assert_allclose(gradient(reduction.prod, x).ravel(), expected)


def test_statistics_with_symbolic_sizes() -> None:
    x = np.random.default_rng(1).standard_normal((5, 7))
    for correction in (0, 1, 2.5):
        found = run(lambda t: t.var(axis=0, correction=correction), x, shapes=(("N", 7),))  # noqa: B023
        expected = ((x - x.mean(0)) ** 2).sum(0) / (5 - correction)
        np.testing.assert_allclose(found, expected)
    found = run(lambda t: gradients(t.mean(), t), x, shapes=(("N", "M"),))
    np.testing.assert_allclose(found, np.full((5, 7), 1 / 35))
    assert (
        run(lambda t: reduction.dim_size("2*N+1") + t.sum(), np.zeros(3, int), shapes=(("N",),))
        == 7
    )


def test_variance_is_taken_in_two_passes() -> None:
    x = (1e6 + np.arange(8.0)).astype("float32")
    np.testing.assert_allclose(run(lambda t: t.var(), x), 5.25, rtol=1e-2)


def test_deviation_of_equal_elements_has_a_zero_gradient() -> None:
    found = gradient(lambda t: t.std(axis=1), np.array([[2.0, 2, 2], [0, 1, 2]]))
    assert (found[0] == 0).all() and np.isfinite(found).all() and found[1, 2] > 0


def test_corrections() -> None:
    x = declare("x", (3,))
    with pytest.raises(ArgumentError):
        x.var(correction=-1)
    with pytest.raises(ArgumentTypeError):
        x.std(correction="1")
    assert np.isinf(run(lambda t: t.var(correction=3), np.array([1.0, 2, 3])))
    assert np.isnan(run(lambda t: t.mean(), np.zeros(0)))


# --- softmax --------------------------------------------------------------------------------------


def test_softmax_family_against_scipy() -> None:
    x = np.random.default_rng(2).standard_normal((4, 5, 6)) * 30
    for axis in (-1, 0, (0, 2), None):
        np.testing.assert_allclose(run(lambda t: t.softmax(axis), x), special.softmax(x, axis))  # noqa: B023
        np.testing.assert_allclose(
            run(lambda t: t.log_softmax(axis), x),  # noqa: B023
            special.log_softmax(x, axis),
        )
        for keepdims in (False, True):
            np.testing.assert_allclose(
                run(lambda t: t.logsumexp(axis, keepdims=keepdims), x),  # noqa: B023
                special.logsumexp(x, axis, keepdims=keepdims),
            )


def test_softmax_of_infinities() -> None:
    low = np.array([[-np.inf, -np.inf], [-np.inf, 0.0], [np.inf, 0.0]])
    assert run(lambda t: t.logsumexp(axis=1), low).tolist() == [-np.inf, 0.0, np.inf]
    found = gradient(lambda t: t.logsumexp(axis=1), low[:2])
    assert found.tolist() == [[0, 0], [0, 1]]
    found = run(softmax.softmax, low)
    assert np.isnan(found[0]).all() and found[1].tolist() == [0, 1]
    assert run(softmax.log_softmax, np.array([1000.0, 0.0])).tolist() == [0, -1000]


def test_the_expansions_of_softmax_agree_with_the_references() -> None:
    """What the pass `expand` puts in place of the records."""
    for name in ("softmax", "log_softmax", "logsumexp", "mean", "var", "std"):
        op = registry.get(name)
        for sample in op.samples():
            (x,) = sample.operands
            with np.errstate(all="ignore"):
                expected = op.reference(x, **sample.attrs)
            found = run(lambda t: op.lower.build((t,), sample.attrs), x)  # noqa: B023
            assert found.dtype == expected.dtype
            rtol = op.tolerance.float32 if x.dtype == np.float32 else op.tolerance.float64
            scale = np.abs(x[np.isfinite(x)]).max(initial=0.0)
            np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale)


# --- running sums ---------------------------------------------------------------------------------


def test_running_sums_follow_the_standard() -> None:
    x = np.arange(1, 7).reshape(2, 3)
    assert run(lambda t: t.cumsum(axis=1), x).tolist() == [[1, 3, 6], [4, 9, 15]]
    found = run(lambda t: cumulative.cumulative_prod(t, axis=0, include_initial=True), x)
    assert found.tolist() == [[1, 1, 1], [1, 2, 3], [4, 10, 18]]
    found = run(lambda t: cumulative.cumulative_sum(t, include_initial=True), np.ones(3, "int8"))
    assert found.tolist() == [0, 1, 2, 3] and found.dtype == np.int64
    assert cumulative.cumulative_sum(declare("x", (3,), "bool")).dtype == "int64"
    for shape, axis, error in (((), None, ShapeError), ((2, 2), None, ShapeError),
                               ((2,), 1, ShapeError), ((2,), (0,), ArgumentTypeError)):  # fmt: skip
        with pytest.raises(error):
            cumulative.cumulative_sum(declare("x", shape), axis=axis)


def test_gradient_of_running_products_with_zeros() -> None:
    x = np.array([2.0, 0.0, 3.0, 0.0, 5.0])
    # y = (2, 0, 0, 0, 0): only x[0] and, through 2 * 3, x[1] matter.
    found = gradient(cumulative.cumulative_prod, x)
    assert found.tolist() == [1, 2 + 6, 0, 0, 0]


def test_linear_recurrence() -> None:
    a, b = np.array([0.5, 0.5, 2.0]), np.array([1.0, 2.0, 3.0])
    assert run(cumulative.linear_recurrence, a, b).tolist() == [1, 2.5, 8]
    found = run(lambda t, u: cumulative.linear_recurrence(t, u, reverse=True), a, b)
    assert found.tolist() == [2.75, 3.5, 3]
    found = run(lambda u: cumulative.linear_recurrence(0.5, u, axis=0), np.ones((2, 2)))
    assert found.tolist() == [[1, 1], [1.5, 1.5]]
    with pytest.raises(DTypeError):
        cumulative.linear_recurrence(declare("a", (3,), "int64"), declare("b", (3,), "int64"))


# --- searching ------------------------------------------------------------------------------------


def test_places_of_extrema() -> None:
    x = np.array([[1, 5, 5], [np.nan, 9, np.nan], [-np.inf, -np.inf, -np.inf]])
    assert run(lambda t: t.argmax(axis=1), x).tolist() == [1, 0, 0]
    assert run(lambda t: t.argmin(axis=0, keepdims=True), x).tolist() == [[1, 2, 1]]
    assert run(searching.argmax, np.array([[1, 7], [7, 2]])) == 1
    assert run(lambda t: t.argmax(keepdims=True), np.ones((2, 2))).shape == (1, 1)
    assert run(searching.argmax, np.array(3.0)) == 0
    assert run(searching.argmin, np.array([True, False, False])) == 1
    for axis, error in ((2, ShapeError), ((0, 1), ArgumentTypeError)):
        with pytest.raises(error, match="argmax: "):
            searching.argmax(declare("x", (2, 3)), axis=axis)


def test_searchsorted() -> None:
    among, values = np.array([1.0, 2, 2, np.nan]), np.array([[0.0, 2], [3, np.nan]])
    for side in ("left", "right"):
        found = run(lambda a, v: searching.searchsorted(a, v, side=side), among, values)  # noqa: B023
        assert (found == np.searchsorted(among, values, side)).all()
    with pytest.raises(ArgumentError, match="side"):
        searching.searchsorted(constant([1.0]), 2.0, side="middle")
    with pytest.raises(ShapeError):
        searching.searchsorted(declare("x", (2, 2)), 1.0)
    order = np.array([2, 0, 1])
    found = run(
        lambda a, v, o: searching.searchsorted(a, v, sorter=o),
        np.array([5, 9, 1]), np.array([4, 5, 6, 10]), order,
    )  # fmt: skip
    assert found.tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize(
    "name",
    ["nonzero", "argwhere", "unique_values", "unique_all", "unique_counts", "unique_inverse"],
)
def test_results_of_unknown_shape_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        getattr(searching, name)(declare("x", (3,)))


def test_errors_name_the_users_line() -> None:
    with pytest.raises(ShapeError, match=r"max: .*\n  at test_ops_reduction.py:"):
        reduction.max(declare("x", (0,)))
    with pytest.raises(ArgumentTypeError):
        reduction.sum("text")
    with pytest.raises(BindError):
        run(lambda t: t.sum(), np.zeros((2, 3)), shapes=(("N", "N"),))
    assert isinstance(reduction.sum([1, 2]), Tensor)
