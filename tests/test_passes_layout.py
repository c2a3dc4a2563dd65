"""layout: where permutations and reshapes go; bits stay, in the compiled program too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.passes.canonicalize import canonicalize
from staticgrad.passes.cse import cse
from staticgrad.passes.layout import layout

from .pass_checks import assert_same_bits, formula, ops_of, run, verified


def laid_out(before: Graph) -> Graph:
    return verified(layout(cse(canonicalize(before))))


def integers(*shapes: tuple[int, ...]) -> list[Any]:
    """Whole numbers: sums are exact, so the interpreter's order of summation does not matter."""
    rng = np.random.default_rng(0)
    return [rng.integers(-4, 5, s).astype("float32") for s in shapes]


def check(before: Graph, arrays: list[Any], expected: str | None = None) -> Graph:
    after = laid_out(before)
    if expected is not None:
        assert formula(after.outputs[0]) == expected
    assert_same_bits(run(after, arrays), run(before, arrays), expected or "")
    return after


def test_a_product_that_is_read_transposed_is_computed_transposed() -> None:
    a, b = sg.input("a", ("N", 4)), sg.input("b", (4, 3))
    check(
        Graph([a, b], [(a @ b).T]), integers((5, 4), (4, 3)),
        "matmul(permute_dims(b, axes=(1, 0)), permute_dims(a, axes=(1, 0)))",
    )  # fmt: skip


def test_double_transposes_cancel() -> None:
    a, b = sg.input("a", (4, "N")), sg.input("b", (3, 4))
    check(Graph([a, b], [(a.T @ b.T).T]), integers((4, 5), (3, 4)), "matmul(b, a)")


def test_gradient_of_a_linear_layer_is_computed_as_it_is_stored() -> None:
    x, w = sg.input("x", ("N", 4)), sg.input("w", (3, 4))
    y = x @ w.T
    g = sg.gradients(sg.sum(y * y), w)
    after = check(Graph([x, w], [w - 0.5 * g]), integers((5, 4), (3, 4)))
    assert after.outputs[0].node.op == "subtract"
    product = after.outputs[0].node.operands[1].node.operands[0]
    assert product.node.op == "matmul" and product.shape == (3, 4)


def test_element_wise_ops_with_numbers_may_stand_between() -> None:
    a, b, r = sg.input("a", ("N", 4)), sg.input("b", (4, 3)), sg.input("r", (3,))
    after = check(
        Graph([a, b, r], [(sg.relu(a @ b + r) * 2.0).T]), integers((5, 4), (4, 3), (3,)),
    )  # fmt: skip
    assert after.outputs[0].node.op == "multiply"
    assert "permute_dims" in ops_of(after)


@pytest.mark.parametrize("rank", [3, 4])
def test_batches_of_products(rank: int) -> None:
    batch = (2, 3)[: rank - 2]
    a, b = sg.input("a", (*batch, 5, 4)), sg.input("b", (*batch, 4, 3))
    after = check(Graph([a, b], [sg.matrix_transpose(a @ b)]),
                  integers((*batch, 5, 4), (*batch, 4, 3)))  # fmt: skip
    assert after.outputs[0].node.op == "matmul"


def test_a_product_with_other_readers_stays() -> None:
    a, b = sg.input("a", ("N", 4)), sg.input("b", (4, 3))
    y = a @ b
    g = canonicalize(Graph([a, b], [y.T, y]))
    assert layout(g) is g
    z = sg.permute_dims(sg.reshape(y, ("N", 3, 1)) + 0.5, (2, 1, 0))
    check(Graph([a, b], [z, y.T]), integers((5, 4), (4, 3)))


def test_permutations_move_through_element_wise_ops_to_products() -> None:
    a, b = sg.input("a", (4, "N")), sg.input("b", (4, 3))
    check(
        Graph([a, b], [sg.sin(a.T) @ b]), integers((4, 5), (4, 3)),
        "matmul(permute_dims(sin(a), axes=(1, 0)), b)",
    )  # fmt: skip


def test_inverse_permutations_cancel_across_element_wise_ops() -> None:
    a, b, s = sg.input("a", (2, "N", 3)), sg.input("b", (2, "N", 3)), sg.input("s", ())
    axes = (2, 0, 1)
    inner = sg.sin(sg.permute_dims(a, axes)) * s + sg.permute_dims(b, axes) * 2.0
    check(
        Graph([a, b, s], [sg.permute_dims(inner, (1, 2, 0))]), integers((2, 5, 3), (2, 5, 3), ()),
        "add(multiply(s, sin(a)), multiply(b, 2.0))",
    )  # fmt: skip


def test_operands_of_one_dim_are_turned() -> None:
    a, r = sg.input("a", ("N", 3)), sg.input("r", ("N",))
    check(
        Graph([a, r], [(a.T + r).T]), integers((5, 3), (5,)),
        "add(reshape(r, shape=(N, 1)), a)",
    )  # fmt: skip
    b = sg.input("b", (3,))
    check(
        Graph([a, b], [(a.T + sg.expand_dims(b, axis=1)).T]), integers((5, 3), (3,)),
        "add(a, reshape(reshape(b, shape=(3, 1)), shape=(1, 3)))",
    )  # fmt: skip


def test_a_permuted_output_is_left_where_it_is() -> None:
    """Moving the permutation behind sin would make one kernel into two."""
    a = sg.input("a", ("N", 3))
    g = Graph([a], [sg.sin(a.T)])
    assert formula(laid_out(g).outputs[0]) == "sin(permute_dims(a, axes=(1, 0)))"


def test_other_permutations_are_kept_apart() -> None:
    a, b = sg.input("a", (4, 4, 4)), sg.input("b", (4, 4, 4))
    y = sg.permute_dims(a, (1, 2, 0)) * sg.permute_dims(b, (2, 0, 1))
    check(Graph([a, b], [sg.permute_dims(y, (2, 0, 1)), y]), integers((4, 4, 4), (4, 4, 4)))


def test_broadcast_batches_of_a_product_are_dropped() -> None:
    a, w = sg.input("a", ("B", 5, 4)), sg.input("w", (4, 3))
    wide = sg.broadcast_to(w, ("B", 4, 3))
    check(Graph([a, w], [a @ wide]), integers((2, 5, 4), (4, 3)), "matmul(a, w)")
    u = sg.input("u", ("B", 1, 4))
    # Here the batch comes from the broadcast alone.
    check(Graph([u, w], [sg.broadcast_to(w.T, ("B", 3, 4)) @ w]), integers((2, 1, 4), (4, 3)))


def test_an_element_wise_op_rides_on_what_is_before_a_reshape() -> None:
    x, w = sg.input("x", ("N", 4)), sg.input("w", (4, 6))
    y = sg.relu(sg.reshape(x @ w, ("N", 2, 3)))
    check(
        Graph([x, w], [sg.sum(y, axis=1)]), integers((5, 4), (4, 6)),
        "sum(reshape(relu(matmul(x, w)), shape=(N, 2, 3)), axes=(1))",
    )  # fmt: skip


def test_zero_sizes_and_scalars() -> None:
    a, b = sg.input("a", ("N", 4)), sg.input("b", (4, 3))
    check(Graph([a, b], [(a @ b).T * 2.0]), integers((0, 4), (4, 3)))
    s = sg.input("s", ())
    check(Graph([s], [sg.permute_dims(s, ()) + 1.0]), integers(()))


@pytest.mark.parametrize("shape", [(1, 7, 5), (33, 64, 17), (5, 300, 1), (40, 1, 24)])
def test_compiled_bits_stay(shape: tuple[int, int, int]) -> None:
    """A product's bits do not depend on which operand comes first."""
    m, k, n = shape
    a, b, v = sg.input("a", (m, k)), sg.input("b", (k, n)), sg.input("v", (n, m))
    outputs = [v + (a @ b).T * 1.5, sg.sin(a.T).T @ b]
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s).astype("float32") for s in ((m, k), (k, n), (n, m))]
    on = sg.compile([a, b, v], outputs, cache=False)(*arrays)
    off = sg.compile([a, b, v], outputs, cache=False, disable=["layout"])(*arrays)
    assert_same_bits(on, off, str(shape))
