"""Linear algebra and einsum against NumPy, with int and with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    BindError,
    DTypeError,
    ShapeError,
)
from staticgrad.ir.graph import reachable
from staticgrad.ops.einsum import einsum
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.linalg import diagonal, dot, matmul, outer, tensordot, trace, vecdot
from staticgrad.ops.registry import all_ops
from staticgrad.ops.tensor import Tensor

from .oracle import check_gradient, check_record, declared, evaluate

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("name", ["matmul", "diagonal"])
def test_record(name: str) -> None:
    op = all_ops()[name]
    check_record(op)
    check_gradient(op, order=3)


def array(*shape: int, dtype: str = "float64") -> np.ndarray[Any, Any]:
    if dtype.startswith("float"):
        return RNG.standard_normal(shape).astype(dtype)
    return RNG.integers(0, 9, shape).astype(dtype)


def check(function: Callable[..., Any], expected: Callable[..., Any], *arrays: Any) -> None:
    """Values with int and with symbolic sizes; the gradient along a random direction against a
    difference, which is exact for functions linear in each operand."""
    wanted = np.asarray(expected(*arrays))
    for symbolic in (False, True):
        inputs = declared(arrays, symbolic=symbolic)
        y = function(*inputs)
        (got,) = evaluate([y], inputs, arrays)
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        if got.dtype.kind != "f":
            np.testing.assert_array_equal(got, wanted)
            continue
        atol = 1e-5 if got.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(got, wanted, rtol=atol, atol=atol)
        if got.dtype == np.float64 and all(a.dtype == np.float64 for a in arrays):
            _check_directions(expected, y, inputs, arrays)


def _check_directions(expected: Any, y: Tensor, inputs: Any, arrays: Any) -> None:
    weights = RNG.standard_normal(np.shape(expected(*arrays)))
    scalar = (y * weights).sum()
    found = evaluate(gradients(scalar, inputs), inputs, arrays)
    for i, (g, a) in enumerate(zip(found, arrays)):
        direction = RNG.standard_normal(a.shape)
        moved = [[*arrays[:i], a + s * direction, *arrays[i + 1 :]] for s in (0.5, -0.5)]
        above, below = ((expected(*m) * weights).sum() for m in moved)
        np.testing.assert_allclose((g * direction).sum(), above - below, rtol=1e-9, atol=1e-9)


# --- matmul ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (4,)), ((4,), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((3, 0), (0, 5)),
        ((0, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((1, 1), (1, 1)),
    ],
)  # fmt: skip
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check(matmul, np.matmul, array(*a), array(*b))
    check(lambda x, y: x @ y, np.matmul, array(*a, dtype="int32"), array(*b, dtype="int32"))


def test_matmul_operands() -> None:
    x = array(2, 3, dtype="float32")
    check(lambda a: a @ x.T.copy(), lambda a: a @ x.T, x)
    check(lambda a: x.T.copy() @ a, lambda a: x.T @ a, x)
    check(lambda a: a @ [1, 2, 3], lambda a: a @ np.array([1, 2, 3], "float32"), x)
    check(matmul, lambda a, b: a @ b.astype("float64"), array(2, 3), array(3, 2, dtype="int8"))
    with pytest.raises(ShapeError, match=r"inner sizes.*3 and 4 differ"):
        declare("x", (2, 3)) @ declare("y", (4, 2))
    with pytest.raises(ShapeError, match="0-d"):
        declare("x", (2, 3)) @ 2.0
    with pytest.raises(DTypeError, match="expected numbers"):
        declare("x", (2, 3), "bool") @ declare("y", (3, 2), "bool")
    with pytest.raises(ShapeError, match="do not broadcast"):
        declare("x", (2, 2, 3)) @ declare("y", (3, 3, 2))
    x1, y1 = declare("x", (2, "N")), declare("y", ("M", 2))
    with pytest.raises(BindError, match="inner sizes"):
        evaluate([x1 @ y1], [x1, y1], [np.ones((2, 3), "float32"), np.ones((4, 2), "float32")])


def test_weight_gradient_of_a_batch_is_one_product_over_all_rows() -> None:
    x, w = declare("x", ("N", "T", 8)), declare("w", (8, 4))
    (g,) = gradients((x @ w).sum(), [w])
    assert g.node.op == "matmul"
    assert [str(d) for d in g.node.operands[0].shape] == ["8", "N*T"]


def operations(y: Tensor) -> list[str]:
    return [n.op for n in reachable([y]) if n.op not in ("input", "constant")]


# --- other products -------------------------------------------------------------------------------


def test_vecdot_outer_dot() -> None:
    a, b = array(3, 4), array(3, 4)
    check(vecdot, lambda x, y: (x * y).sum(-1), a, b)
    check(lambda x, y: vecdot(x, y, axis=0), lambda x, y: (x * y).sum(0), a, b)
    check(vecdot, lambda x, y: (x * y).sum(-1), a, b[0].copy())
    check(vecdot, lambda x, y: (x * y).sum(-1, dtype="int8"),
          array(3, 4, dtype="int8"), array(4, dtype="int8"))  # fmt: skip
    check(outer, np.outer, array(3), array(4))
    for s, t in (((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 5)), ((3, 4), (4, 5)), ((), (3,)),
                 ((2, 3, 4), (5, 4, 2))):  # fmt: skip
        check(dot, np.dot, array(*s), array(*t))
        check(lambda x, y: x.dot(y), np.dot, array(*s), array(*t))
    with pytest.raises(ShapeError, match="must have the size 3"):
        vecdot(declare("x", (2, 3)), declare("y", (2, 1)))
    with pytest.raises(ShapeError, match="one rank"):
        vecdot(declare("x", (3, 2)), declare("y", (3,)), axis=0)
    with pytest.raises(ShapeError, match="0-d"):
        vecdot(declare("x", ()), declare("y", (3,)))
    with pytest.raises(DTypeError, match="expected numbers"):
        vecdot(declare("x", (3,), "bool"), declare("y", (3,), "bool"))
    with pytest.raises(ShapeError, match="1-d"):
        outer(declare("x", (3, 1)), declare("y", (3,)))


@pytest.mark.parametrize(
    ("a", "b", "axes"),
    [
        ((2, 3, 4), (3, 4, 5), 2), ((2, 3), (4, 5), 0), ((2, 3), (3, 4), 1),
        ((3, 2), (3, 4), (0, 0)), ((2, 3, 4), (5, 4, 3), ((1, 2), (2, 1))),
        ((2, 3, 4), (4, 5, 2), ((0, -1), (2, 0))), ((2, 3, 4), (3, 5), ((1,), (0,))),
        ((2, 3), (2, 3), ((0, 1), (0, 1))), ((2, 0), (0, 3), 1), ((4,), (4,), 1),
    ],
)  # fmt: skip
def test_tensordot(a: tuple[int, ...], b: tuple[int, ...], axes: Any) -> None:
    check(
        lambda x, y: tensordot(x, y, axes=axes),
        lambda x, y: np.tensordot(x, y, axes=axes),
        array(*a),
        array(*b),
    )


def test_tensordot_permutes_only_where_it_must() -> None:
    x, y = declare("x", (2, 3, 4)), declare("y", (3, 4, 5))
    wide = declare("w", (3, 4, 5, 2))
    assert operations(tensordot(x, wide)) == ["reshape", "reshape", "matmul", "reshape"]
    assert operations(tensordot(x, y, axes=((2, 1), (1, 0)))).count("permute_dims") == 0
    z = declare("z", (4, 3, 5))
    found = operations(tensordot(x, z, axes=((1, 2), (1, 0))))
    assert found.count("permute_dims") == 1
    with pytest.raises(ArgumentError, match="non-negative int"):
        tensordot(x, y, axes=-1)
    with pytest.raises(ShapeError, match="sum over 4 dims"):
        tensordot(x, y, axes=4)
    with pytest.raises(ShapeError, match="1 axes of x1 but 2"):
        tensordot(x, y, axes=((0,), (0, 1)))
    with pytest.raises(ShapeError, match="must have the size 2"):
        tensordot(x, y, axes=((0,), (0,)))


def test_sizes_that_only_the_call_knows_are_asked_one_by_one() -> None:
    """N*M == P*Q is not enough: each pair must agree."""
    x, y = declare("x", ("N", "M"), "float64"), declare("y", ("P", "Q"), "float64")
    total = tensordot(x, y)
    (got,) = evaluate([total], [x, y], [np.ones((2, 3)), np.ones((2, 3))])
    assert got == 6
    with pytest.raises(BindError):
        evaluate([total], [x, y], [np.ones((2, 3)), np.ones((3, 2))])
    e = einsum("ij,ij->", x, y)
    with pytest.raises(BindError):
        evaluate([e], [x, y], [np.ones((2, 3)), np.ones((3, 2))])


@pytest.mark.parametrize("offset", [-4, -1, 0, 2, 9])
def test_diagonal_and_trace(offset: int) -> None:
    for shape in ((3, 5), (2, 5, 3), (4, 4)):
        x = array(*shape)
        check(lambda x: diagonal(x, offset),
              lambda x: np.diagonal(x, offset, -2, -1), x)  # fmt: skip
        check(lambda x: x.trace(offset), lambda x: np.trace(x, offset, -2, -1), x)
    check(lambda x: trace(x, offset), lambda x: np.trace(x, offset, dtype="int64"),
          array(4, 4, dtype="int8"))  # fmt: skip
    with pytest.raises(ShapeError, match="at least 2 dims"):
        diagonal(declare("x", (3,)))


# --- einsum ---------------------------------------------------------------------------------------

SIZES = {"i": 2, "j": 3, "k": 4, "l": 5, "b": 2, "h": 3, "q": 4, "d": 6}


@pytest.mark.parametrize(
    "text",
    [
        "ij,jk->ik", "ij,jk", "ij,kj->ik", "ji,jk->ik", "ij,jk->ki", "ij->ji", "ij->", "ij->j",
        "ij,ij->ij", "ij,ij->", "ij,ij->i", "i,j->ij", "i,j->ji", "ii->i", "ii->", "ii", "iij->ji",
        "iijj->ij", "bij,bjk->bik", "bij,bkj->bik", "bij,bjk->kib", "bhqd,bhkd->bhqk",
        "bqhd,bkhd->bhqk", "ij,jk,kl->il", "ij,jk,kl", "ij,jk,kl,lb->ib", "i,i,i->i", "i,i,i->",
        "bi,ijk,bk->bj", "ij,k->ikj", "ij,k->", "i->i", "ijk->kij", "ba", "ii,ij->j", "ij,jj->i",
        "ijk,ilj->kl", "bj,bj,bj->b", " i j , j k -> i k ", "bd,hd->bh", "ihd,jhd->hij",
        "iJ,Jk->ik",
    ],
)  # fmt: skip
def test_einsum(text: str) -> None:
    terms = text.replace(" ", "").split("->")[0].split(",")
    arrays = [array(*(SIZES.get(c.lower(), 3) for c in t)) for t in terms]
    check(lambda *x: einsum(text, *x), lambda *x: np.einsum(text, *x, optimize=False), *arrays)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("...ij,...jk->...ik", ((2, 3, 4), (2, 4, 5))), ("...ij,jk", ((2, 6, 3, 4), (4, 5))),
        ("...ij,...jk->ik...", ((2, 3, 4), (2, 4, 5))), ("i...->...i", ((2, 3, 4),)),
        ("...,...->...", ((2, 3), (3,))), ("...i,...i->...", ((2, 1, 4), (3, 4))),
        ("i...i->...", ((3, 2, 3),)), ("...i->...", ((3,),)), ("...", ((2, 3),)),
        ("ij,ij->ij", ((1, 3), (2, 3))), ("ij,jk->ik", ((2, 1), (3, 4))),
        ("ij,ij->", ((1, 3), (2, 1))),
        ("...ij->...", ((0, 2, 3),)), ("ij,jk->ik", ((2, 0), (0, 3))), (",i->i", ((), (3,))),
        (",->", ((), ())), ("...a,...b->...ab", ((2, 3), (2, 4))),
    ],
)  # fmt: skip
def test_einsum_with_ellipsis_and_broadcasts(text: str, shapes: Any) -> None:
    arrays = [array(*s) for s in shapes]
    check(lambda *x: einsum(text, *x), lambda *x: np.einsum(text, *x), *arrays)


def test_einsum_dtypes() -> None:
    ints = [array(2, 3, dtype="int8"), array(3, 4, dtype="int8")]
    check(lambda *x: einsum("ij,jk->ik", *x), lambda *x: np.einsum("ij,jk->ik", *x), *ints)
    check(lambda *x: einsum("ij->i", *x), lambda *x: np.einsum("ij->i", *x), ints[0])
    check(lambda x: einsum("i,i->", x, 2.0 * np.ones(3)),
          lambda x: (2 * x.astype("float64")).sum(), array(3, dtype="float32"))  # fmt: skip
    with pytest.raises(DTypeError, match="expected numbers"):
        einsum("i->", declare("x", (3,), "bool"))


def test_einsum_becomes_products_without_needless_permutes() -> None:
    q, k = declare("q", ("B", 4, "T", 8)), declare("k", ("B", 4, "S", 8))
    found = operations(einsum("bhqd,bhkd->bhqk", q, k))
    assert found.count("matmul") == 1 and found.count("permute_dims") == 1  # the right operand's
    x, w = declare("x", ("N", "T", 8)), declare("w", (8, 4))
    assert operations(einsum("ntd,de->nte", x, w)) == ["reshape", "matmul", "reshape"]
    v = declare("v", (4, 8))
    assert operations(einsum("ntd,ed->nte", x, v)).count("permute_dims") == 1
    assert "matmul" not in operations(
        einsum("ni,ni->n", declare("a", (3, 4)), declare("b", (3, 4)))
    )
    # The vector first: 3 products of a matrix and a vector, not of two matrices.
    m = [declare(f"m{i}", (50, 50)) for i in range(2)]
    y = einsum("ij,jk,k->i", *m, declare("u", (50,)))
    assert all(n.types[0].size == 50 for n in reachable([y]) if n.op == "matmul")
    assert einsum("ij->i", declare("x", ("N", 3))).shape == (Dim.symbol("N"),)


def test_einsum_errors() -> None:
    x = declare("x", (2, 3))
    for text, operands, error, message in (
        ("ij,jk", (x,), ArgumentError, "2 terms for 1 operands"),
        ("ijk", (x,), ShapeError, "names 3 of 2 dims"),
        ("i", (x,), ShapeError, "names 1 of 2 dims"),
        ("ij->k", (x,), ArgumentError, "label 'k' is in no term"),
        ("ij->ii", (x,), ArgumentError, "label 'i' occurs twice"),
        ("i1", (x,), ArgumentError, "letters"),
        ("......", (x,), ArgumentError, "letters"),
        ("...i->i", (x,), ArgumentError, "must have '...'"),
        ("ij,ij", (x, declare("y", (4, 3))), ShapeError, "label 'i'"),
        ("ii", (x,), ShapeError, "label 'i'"),
        ("ij", (), ArgumentError, "at least one operand"),
        (x, (x,), ArgumentTypeError, "subscripts must be a str"),
    ):
        with pytest.raises(error, match=message):
            einsum(text, *operands)  # type: ignore[arg-type]
