"""Manipulation, joining, padding and creation against NumPy, with int and with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim, parse_dim
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    BindError,
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ops import creation as new
from staticgrad.ops import joining as join
from staticgrad.ops import shape as sh
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.registry import NotDifferentiable, all_ops
from staticgrad.ops.slicing import flip, never_negative, pad
from staticgrad.ops.tensor import Tensor

from .oracle import check_gradient, check_no_gradient, check_record, declared, evaluate

RECORDS = (
    "broadcast_to", "reshape", "permute_dims", "slice", "pad", "concat", "iota", "linspace", "band",
)  # fmt: skip

X1 = np.arange(7.0)
X2 = np.arange(15.0).reshape(3, 5)
X3 = np.arange(24, dtype="int32").reshape(2, 3, 4)
X4 = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype("float32")
Z = np.zeros((0, 3))


@pytest.mark.parametrize("name", RECORDS)
def test_record(name: str) -> None:
    op = all_ops()[name]
    check_record(op)
    if isinstance(op.vjp, NotDifferentiable):
        check_no_gradient(op)
    else:
        check_gradient(op, order=3)


def check(
    function: Callable[..., Any], expected: Callable[..., Any], *arrays: Any, symbolic: bool = True
) -> None:
    """`function` on tensors equals `expected` on arrays, in dtype and shape too: with int sizes
    and, unless that can't be, with every size above 1 symbolic."""
    wanted = expected(*arrays)
    for named in (False, True) if symbolic else (False,):
        inputs = declared(arrays, symbolic=named)
        got = function(*inputs)
        outputs = list(got) if isinstance(got, (tuple, list)) else [got]
        results = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
        assert len(outputs) == len(results)
        for a, b in zip(evaluate(outputs, inputs, arrays), results):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_array_equal(a, b)


def test_expand_and_squeeze() -> None:
    for axis in (0, 1, -1, 2):
        check(
            lambda x, a=axis: sh.expand_dims(x, axis=a),
            lambda x, a=axis: np.expand_dims(x, a),
            X2,
        )
    check(lambda x: sh.expand_dims(x, axis=(0, -1)), lambda x: np.expand_dims(x, (0, -1)), X3)
    one = X2.reshape(1, 3, 1, 5)
    check(lambda x: sh.squeeze(x, 0), lambda x: np.squeeze(x, 0), one)
    check(lambda x: sh.squeeze(x, (0, -2)), lambda x: np.squeeze(x, (0, -2)), one)
    check(lambda x: x.squeeze(), np.squeeze, one)
    check(lambda x: x.unsqueeze(-1), lambda x: x[..., None], X2)
    with pytest.raises(ShapeError, match="axis 1"):
        sh.squeeze(declare("x", (1, 3)), 1)
    with pytest.raises(ShapeError, match="out of range"):
        sh.expand_dims(declare("x", (3,)), axis=3)


def test_order_of_dims() -> None:
    check(lambda x: sh.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1), X4)
    check(lambda x: sh.moveaxis(x, (0, 2), (3, 0)), lambda x: np.moveaxis(x, (0, 2), (3, 0)), X4)
    check(lambda x: sh.swapaxes(x, 1, -1), lambda x: np.swapaxes(x, 1, -1), X4)
    check(lambda x: x.transpose(0, 2), lambda x: np.swapaxes(x, 0, 2), X4)
    check(lambda x: x.permute(3, 1, 0, 2), lambda x: x.transpose(3, 1, 0, 2), X4)
    check(lambda x: x.permute((1, 0)), lambda x: x.T, X2)
    check(lambda x: x.T, lambda x: x.T, X2)
    check(lambda x: x.mT, lambda x: x.swapaxes(-1, -2), X4)
    check(lambda x: sh.permute_dims(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), X3)
    with pytest.raises(ShapeError, match=r"x\.T is for 2 dims"):
        _ = declare("x", (2, 3, 4)).T
    with pytest.raises(ShapeError, match="at least 2 dims"):
        _ = declare("x", (2,)).mT
    with pytest.raises(ShapeError, match="twice"):
        sh.permute_dims(declare("x", (2, 3)), (0, 0))
    with pytest.raises(ShapeError, match="no permutation"):
        sh.permute_dims(declare("x", (2, 3)), (0,))
    with pytest.raises(ShapeError, match="1 axes to move to 2"):
        sh.moveaxis(declare("x", (2, 3)), 0, (0, 1))
    with pytest.raises(ArgumentTypeError, match="axis1 must be an int"):
        sh.swapaxes(declare("x", (2, 3)), 0.0, 1)  # type: ignore[arg-type]


def test_reshape() -> None:
    check(lambda x: x.reshape(-1, 4), lambda x: x.reshape(-1, 4), X3)
    check(lambda x: x.view((4, -1)), lambda x: x.reshape(4, -1), X3)
    check(lambda x: sh.reshape(x, np.int64(-1)), lambda x: x.reshape(-1), X3)
    check(lambda x: sh.reshape(x, []), lambda x: x.reshape(()), np.ones((1, 1)))
    check(lambda x: x.flatten(), np.ravel, X3)
    check(lambda x: x.flatten(1), lambda x: x.reshape(2, 12), X3)
    check(lambda x: sh.flatten(x, 1, 2), lambda x: x.reshape(2, 12, 5), X4)
    check(lambda x: sh.flatten(x), np.ravel, np.float32(3.0).reshape(()))
    check(lambda x: sh.unflatten(x, 1, (2, -1)), lambda x: x.reshape(2, 2, 2, 3),
          np.arange(24).reshape(2, 4, 3), symbolic=False)  # fmt: skip
    x = declare("x", ("N", 6))
    assert sh.reshape(x, (-1, 3)).shape == (parse_dim("2*N"), 3)
    assert sh.unflatten(x, -1, (2, -1)).shape == (Dim.symbol("N"), 2, 3)
    for bad in ((-1, -1), (4, -2), (0, -1)):
        with pytest.raises(ShapeError):
            sh.reshape(declare("y", (2, 6)), bad)
    with pytest.raises(ShapeError, match="can't be reshaped"):
        sh.reshape(declare("y", (2, 6)), (5, 2))
    with pytest.raises(BindError, match="reshape"):
        evaluate([x.reshape(4, 3)], [x], [np.zeros((3, 6), "float32")])
    with pytest.raises(ShapeError, match="start_dim 2"):
        sh.flatten(declare("y", (2, 3, 4)), 2, 1)


def index_of(record: str, attrs: dict[str, Any], x: tuple[Any, ...], y: tuple[Any, ...]) -> Any:
    from staticgrad.ir.dtype import float32
    from staticgrad.ir.types import TensorType

    at = tuple(Dim.symbol(f"i{a}") for a in range(len(y)))
    lower: Any = all_ops()[record].lower
    found = lower.index(at, attrs, TensorType(float32, x), TensorType(float32, y))
    return None if found is None else [str(i) for i in found]


def test_reshape_is_a_view_where_dims_are_split() -> None:
    n = Dim.symbol("N")
    assert index_of("reshape", {}, (n, 6), (n, 1, 2, 3)) == ["i0", "3*i2+i3"]
    assert index_of("reshape", {}, (1, n), (n,)) == ["0", "i0"]
    assert index_of("reshape", {}, (n,), (1, n, 1)) == ["i1"]
    assert index_of("reshape", {}, (2, 3), (6,)) is None
    assert index_of("reshape", {}, (2, 6), (3, 4)) is None


def test_broadcasts() -> None:
    check(lambda a, b: sh.broadcast_arrays(a, b), np.broadcast_arrays, X2, X2[:, :1].copy())
    check(lambda x: x.expand(4, -1, 5), lambda x: np.broadcast_to(x, (4, 3, 5)),
          X2[:, :1].copy())  # fmt: skip
    check(lambda x: sh.broadcast_to(x, (2, 0)), lambda x: np.broadcast_to(x, (2, 0)), np.ones(1))
    with pytest.raises(ShapeError, match="-1 stands for a new dim"):
        declare("x", (3,)).expand(-1, 3)
    with pytest.raises(ShapeError, match="can't be broadcast"):
        sh.broadcast_to(declare("x", (3,)), (4,))


def test_flip_and_roll() -> None:
    check(lambda x: flip(x), np.flip, X3)
    check(lambda x: flip(x, axis=(0, -1)), lambda x: np.flip(x, (0, -1)), X3)
    check(lambda x: x.flip(axis=0), lambda x: np.flip(x, 0), Z)
    for shift in (0, 1, -1, 3, -8, 12):
        check(lambda x, s=shift: join.roll(x, s), lambda x, s=shift: np.roll(x, s), X1)
        check(lambda x, s=shift: join.roll(x, s, axis=1),
              lambda x, s=shift: np.roll(x, s, 1), X3)  # fmt: skip
    check(lambda x: join.roll(x, (1, -2), axis=(0, 1)), lambda x: np.roll(x, (1, -2), (0, 1)), X2)
    check(lambda x: join.roll(x, 2, axis=0), lambda x: np.roll(x, 2, 0), Z)
    empty = declare("e", ("N",))
    for shift in (3, -3):
        (got,) = evaluate([join.roll(empty, shift)], [empty], [np.zeros(0, "float32")])
        assert got.shape == (0,)
    with pytest.raises(ArgumentError, match="2 shifts for 1 axes"):
        join.roll(declare("x", (3,)), (1, 2), axis=0)
    with pytest.raises(ArgumentTypeError, match="a shift is an int"):
        join.roll(declare("x", (3,)), 1.5)


def test_concat_and_stack() -> None:
    check(lambda a, b: join.concat([a, b]), lambda a, b: np.concatenate([a, b]), X2, X2 + 1)
    check(lambda a, b: join.concat((a, b, a), axis=-1),
          lambda a, b: np.concatenate((a, b, a), -1), X2, X2[:, :2].copy())  # fmt: skip
    check(lambda a, b: join.concat([a, b], axis=None),
          lambda a, b: np.concatenate([a, b], None), X2, X1)  # fmt: skip
    check(lambda a, b: join.concat([a, b]),
          lambda a, b: np.concatenate([a, b.astype("float64")]), X1, X1.astype("int8"))  # fmt: skip
    for axis in (0, 1, 2, -1):
        check(lambda a, b, i=axis: join.stack([a, b], axis=i),
              lambda a, b, i=axis: np.stack([a, b], i), X2, -X2)  # fmt: skip
    check(lambda a: join.stack([a, a]), lambda a: np.stack([a, a]), np.float64(2.0).reshape(()))
    x, y = declare("x", ("N", 3)), declare("y", ("M", 3))
    assert join.concat([x, y, x]).shape == (parse_dim("2*N+M"), 3)
    with pytest.raises(ShapeError, match="differ in axis 1"):
        join.concat([x, declare("z", (2, 4))])
    with pytest.raises(ShapeError, match="differ in rank"):
        join.concat([x, declare("z", (2,))])
    with pytest.raises(ShapeError, match="use stack"):
        join.concat([declare("s", ()), declare("t", ())])
    with pytest.raises(ShapeError, match="differ in shape"):
        join.stack([declare("a", (2,)), declare("b", (3,))])
    with pytest.raises(ArgumentTypeError, match="tuple or list"):
        join.concat(x)
    with pytest.raises(ArgumentError, match="at least one"):
        join.stack([])


def test_concat_gradient_takes_each_operand_apart() -> None:
    x, y = declare("x", ("N", 2)), declare("y", ("M", 2))
    w = declare("w", (parse_dim("N+M"), 2))
    gx, gy = gradients((join.concat([x, y]) * w).sum(), [x, y])
    assert gx.type == x.type and gy.type == y.type
    assert not gx.node.constraints and not gy.node.constraints  # proved, nothing asked at the call
    arrays = [np.zeros((n, 2), "float32") for n in (2, 3)]
    weights = np.arange(10, dtype="float32").reshape(5, 2)
    got = evaluate([gx, gy], [x, y, w], [*arrays, weights])
    np.testing.assert_array_equal(got[0], weights[:2])
    np.testing.assert_array_equal(got[1], weights[2:])


def test_split_chunk_unstack() -> None:
    check(lambda x: join.split(x, 2, axis=1), lambda x: np.split(x, [2, 4], 1), X2, symbolic=False)
    check(lambda x: x.split([1, 2]), lambda x: np.split(x, [1]), X2)
    check(lambda x: join.chunk(x, 2, axis=1), lambda x: np.split(x, [3], 1), X2, symbolic=False)
    check(lambda x: x.chunk(4), lambda x: np.split(x, [1, 2]), X2, symbolic=False)
    check(lambda x: join.unstack(x, axis=1), lambda x: [x[:, i] for i in range(5)], X2,
          symbolic=False)  # fmt: skip
    x = declare("x", ("N", parse_dim("3*H")))
    q, k, v = x.chunk(3, axis=1)
    assert q.shape == k.shape == v.shape == (Dim.symbol("N"), Dim.symbol("H"))
    assert [p.shape[1] for p in join.split(x, "H", axis=1)] == [Dim.symbol("H")] * 3
    pieces = join.split(declare("y", ("N",)), ["M", 2])
    assert [p.shape for p in pieces] == [(Dim.symbol("M"),), (2,)]
    with pytest.raises(ShapeError, match="no known multiple"):
        x.chunk(2, axis=1)
    with pytest.raises(ShapeError, match="known only at run time"):
        join.split(x, 2, axis=0)
    with pytest.raises(ShapeError, match="sum to 4"):
        join.split(declare("z", (5,)), [1, 3])
    with pytest.raises(ShapeError, match="known only at run time"):
        join.unstack(x)
    with pytest.raises(ArgumentError, match="must be positive"):
        join.split(declare("z", (5,)), 0)
    with pytest.raises(ArgumentError, match="positive number"):
        join.chunk(declare("z", (5,)), 0)


def test_tile_and_repeat() -> None:
    for times in ((2,), (2, 3), (2, 1, 2), (0, 2), ()):
        check(lambda x, t=times: join.tile(x, t), lambda x, t=times: np.tile(x, t), X2)
    check(lambda x: x.tile(2), lambda x: np.tile(x, 2), X2)
    check(lambda x: join.repeat(x, 3), lambda x: np.repeat(x, 3), X2)
    check(lambda x: join.repeat(x, 2, axis=1), lambda x: np.repeat(x, 2, 1), X3)
    check(lambda x: x.repeat_interleave(2, 0), lambda x: np.repeat(x, 2, 0), X3)
    check(lambda x: join.repeat(x, 0, axis=0), lambda x: np.repeat(x, 0, 0), X2)
    assert join.tile(declare("x", ("N",)), "M").shape == (parse_dim("M*N"),)
    with pytest.raises(ArgumentTypeError, match="one int or dim"):
        join.repeat(declare("x", (3,)), [1, 2, 3])


def test_pad() -> None:
    check(lambda x: pad(x, 1), lambda x: np.pad(x, 1), X2)
    check(lambda x: pad(x, (1, 2), value=-3),
          lambda x: np.pad(x, (1, 2), constant_values=-3), X3)  # fmt: skip
    check(lambda x: pad(x, ((0, 2), (1, 0))), lambda x: np.pad(x, ((0, 2), (1, 0))), X2)
    check(lambda x: pad(x, [(1, 1)]), lambda x: np.pad(x, [(1, 1)]), X2)
    check(lambda x: pad(x, 1, value=True), lambda x: np.pad(x, 1, constant_values=True), X1 > 3)
    check(lambda x: pad(x, 0), lambda x: x, X2)
    assert pad(declare("x", ("N",)), [("M", 1)]).shape == (parse_dim("M+N+1"),)
    with pytest.raises(UnsupportedError, match="reflect"):
        pad(declare("x", (3,)), 1, mode="reflect")
    with pytest.raises(ShapeError, match="expected 2 pairs"):
        pad(declare("x", (3, 3)), [(1, 1)] * 3)
    with pytest.raises(DTypeError, match="does not fit uint8"):
        pad(declare("x", (3,), "uint8"), 1, value=256)
    with pytest.raises(DTypeError, match=r"1\.5 is no int32"):
        pad(declare("x", (3,), "int32"), 1, value=1.5)
    with pytest.raises(ArgumentTypeError, match="expected sizes"):
        pad(declare("x", (3,)), 1.5)
    with pytest.raises(ShapeError, match="negative"):
        pad(declare("x", (3,)), -1)


# --- creation -------------------------------------------------------------------------------------


def check_new(got: Tensor, expected: Any) -> None:
    (value,) = evaluate([got], [], [])
    assert value.dtype == expected.dtype
    np.testing.assert_array_equal(value, expected)


def test_fills() -> None:
    check_new(new.zeros((2, 3)), np.zeros((2, 3), "float32"))
    check_new(new.ones(2, 3, dtype="int8"), np.ones((2, 3), "int8"))
    check_new(new.empty(()), np.zeros((), "float32"))
    check_new(new.full(3, 2), np.full(3, 2))
    check_new(new.full((2,), True), np.full(2, True))
    check_new(new.full((2,), 1.5), np.full(2, 1.5, "float32"))
    check_new(new.full((2,), 1.5, dtype="int32"), np.full(2, 1, "int32"))
    check(lambda x: new.zeros_like(x), np.zeros_like, X3)
    check(lambda x: new.empty_like(x), np.zeros_like, X3)
    check(lambda x: new.ones_like(x, dtype="bool"), lambda x: np.ones_like(x, "bool"), X3)
    check(lambda x: new.full_like(x, 7), lambda x: np.full_like(x, 7), X3)
    check(lambda x: new.full((2, 2), x), lambda x: np.full((2, 2), x), np.array(4, "int16"))
    assert new.zeros("N", 3).shape == (Dim.symbol("N"), 3)
    with pytest.raises(ShapeError, match="must be a scalar"):
        new.full((2,), [1, 2])
    with pytest.raises(UnsupportedError, match="CPUs only"):
        new.zeros((2,), device="cuda")


@pytest.mark.parametrize(
    "arguments",
    [(5,), (2, 9), (2, 9, 3), (9, 2, -3), (9, 2), (0,), (-3,), (0, 7, 7), (0, 8, 7)],
)
def test_arange_of_ints(arguments: tuple[int, ...]) -> None:
    check_new(new.arange(*arguments), np.arange(*arguments))
    check_new(new.arange(*arguments, dtype="float32"), np.arange(*arguments, dtype="float32"))


def test_arange_and_linspace() -> None:
    check_new(new.arange(0.0, 1.0, 0.1), np.arange(0.0, 1.0, 0.1).astype("float32"))
    check_new(new.arange(1.0, -1.0, -0.3, dtype="float64"), 1.0 - 0.3 * np.arange(7))
    check_new(new.arange(300, dtype="uint8"), np.arange(300).astype("uint8"))
    check_new(new.linspace(0, 1, 5), np.linspace(0, 1, 5, dtype="float32"))
    check_new(new.linspace(3.0, -1.0, 7, dtype="float64", endpoint=False),
              np.linspace(3.0, -1.0, 7, endpoint=False))  # fmt: skip
    for n in (0, 1):
        check_new(new.linspace(2, 3, n, dtype="float64"), np.linspace(2, 3, n))
    x = declare("x", ("N",), "float64")
    n = x.shape[0]
    outputs = [
        new.arange(n), new.arange(1, "N"), new.arange("N", 1, -1), new.arange(0, n, 2),
        new.linspace(0.0, 1.0, n, dtype="float64"),
    ]  # fmt: skip
    for size in (0, 1, 6):
        got = evaluate(outputs, [x], [np.zeros(size)])
        expected = (
            np.arange(size), np.arange(1, size), np.arange(size, 1, -1), np.arange(0, size, 2),
            np.linspace(0.0, 1.0, size),
        )  # fmt: skip
        for a, b in zip(got, expected):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ArgumentError, match="step can't be 0"):
        new.arange(0, 5, 0)
    with pytest.raises(ArgumentTypeError, match="must be ints"):
        new.arange(0.5, "N")
    with pytest.raises(ArgumentTypeError, match="expected a number"):
        new.arange([1])
    with pytest.raises(ArgumentError, match="finite"):
        new.arange(0.0, float("inf"))
    with pytest.raises(DTypeError, match="floating"):
        new.linspace(0, 1, 3, dtype="int32")


def test_bands() -> None:
    check_new(new.eye(3), np.eye(3, dtype="float32"))
    check_new(new.eye(3, 5, k=2, dtype="int64"), np.eye(3, 5, k=2, dtype="int64"))
    check_new(new.eye(4, 2, k=-1, dtype="bool"), np.eye(4, 2, k=-1, dtype=bool))
    for k in (-2, 0, 1, 9):
        check(lambda x, k=k: new.tril(x, k=k), lambda x, k=k: np.tril(x, k), X4)
        check(lambda x, k=k: x.triu(k), lambda x, k=k: np.triu(x, k), X3)
    check(lambda x: x.tril(), np.tril, np.full((3, 3), np.nan))
    with pytest.raises(ShapeError, match="at least 2 dims"):
        new.tril(declare("x", (3,)))
    with pytest.raises(ArgumentTypeError, match="k must be an int"):
        new.eye(3, k=1.5)  # type: ignore[arg-type]


def test_meshgrid_and_one_hot() -> None:
    y = np.arange(3, dtype="int64")
    z = np.arange(2.0)
    for indexing in ("xy", "ij"):
        for arrays in ((X1,), (X1, y), (X1, y, z)):
            check(lambda *a, i=indexing: new.meshgrid(*a, indexing=i),
                  lambda *a, i=indexing: np.meshgrid(*a, indexing=i), *arrays)  # fmt: skip
    labels = np.array([[0, 2, 5], [3, -1, 4]])
    check(lambda x: new.one_hot(x, 5),
          lambda x: (x[..., None] == np.arange(5)).astype("float32"), labels)  # fmt: skip
    check(lambda x: new.one_hot(x, 300, dtype="bool"),
          lambda x: x[..., None] == np.arange(300), np.array([255, 0], "uint8"))  # fmt: skip
    check(lambda x: new.one_hot(x, 3, dtype="int32"),
          lambda x: np.zeros((1, 3), "int32"), np.array([2**64 - 1], "uint64"))  # fmt: skip
    with pytest.raises(DTypeError, match="must be integers"):
        new.one_hot(declare("x", (3,)), 4)
    with pytest.raises(ArgumentError, match="indexing"):
        new.meshgrid(X1, indexing="yx")
    with pytest.raises(ShapeError, match="1-d"):
        new.meshgrid(X2)


# --- proofs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "provable"),
    [
        ("N", True), ("N-1", False), ("max(N-3, 0)", True), ("N-min(N, 5)", True),
        ("5-min(N, 5)", True), ("N-2*(N//2)", True), ("N-2*((N+1)//2)", False),
        ("N-2*((N+1)//2)+1", True), ("N%4", True), ("3-N%4", True), ("2-N%4", False),
        ("min(N, M)", True), ("max(N, M)-M", True), ("N*M-N", False), ("-N", False),
        ("N-max(N-3, 0)", True), ("min(N-1, 3)", False),
    ],
)  # fmt: skip
def test_proofs_about_sizes(text: str, provable: bool) -> None:
    """What is proved holds for all small sizes; the common clamps of slices are proved."""
    from staticgrad.ir.dim import substitute

    d = parse_dim(text)
    assert never_negative(d) == provable
    if provable:
        values = [substitute(d, {"N": n, "M": m}) for n in range(9) for m in range(9)]
        assert all(isinstance(v, int) and v >= 0 for v in values)
