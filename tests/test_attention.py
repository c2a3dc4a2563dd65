"""Attention in blocks of queries: numbers against NumPy, bits against the plain form, and memory
that grows with the length, not with its square."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ops.attention import attention_weights
from staticgrad.ops.attention_kernels import BLOCK, CAUSAL_BLOCK, GROUP_BLOCKS, MOST_GROUPS
from staticgrad.ops.linalg import matmul
from staticgrad.ops.shape import expand_dims

F = sg.nn.functional
Array = np.ndarray[Any, Any]


def _operands(
    batch: tuple[int, ...], queries: int, keys: int, width: int = 4, values: int = 4,
    dtype: str = "float32",
) -> list[Array]:  # fmt: skip
    rng = np.random.default_rng([7, queries, keys])
    shapes = ((queries, width), (keys, width), (keys, values), (queries, values))
    return [rng.standard_normal((*batch, *s)).astype(dtype) for s in shapes]


def _oracle(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, scale: float) -> Array:
    """In float64, one row of scores after the other."""
    scores = np.einsum("...le,...se->...ls", q.astype("f8") * scale, k.astype("f8"))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        later = np.arange(k.shape[-2])[None, :] > np.arange(q.shape[-2])[:, None]
        scores = np.where(later, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("...ls,...sv->...lv", weights, v.astype("f8"))


def _oracle_gradient(
    q: Array, k: Array, v: Array, ct: Array, mask: Array | None, causal: bool, scale: float
) -> list[Array]:
    """By central differences, along one direction for each operand: numbers."""
    rng = np.random.default_rng(3)
    found = []
    operands = [x.astype("f8") for x in (q, k, v)]
    for i in range(3):
        direction = rng.standard_normal(operands[i].shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(operands)
            moved[i] = moved[i] + step * direction
            ends.append(np.sum(_oracle(*moved, mask, causal, scale) * ct))  # type: ignore[arg-type]
        found.append(np.asarray((ends[0] - ends[1]) / 2e-5))
    return found


def _program(
    operands: list[Array], mask: Array | None = None, symbolic: bool = False, **options: Any
) -> Any:
    """The result and the cotangents of query, key and value."""
    compiled = {n: options.pop(n) for n in ("threads", "disable") if n in options}
    names = ("L", "S", "S", "L")
    shapes = [
        (*x.shape[:-2], n if symbolic else x.shape[-2], x.shape[-1])
        for x, n in zip(operands, names)
    ]
    inputs = [sg.input(f"a{i}", s, str(x.dtype)) for i, (s, x) in enumerate(zip(shapes, operands))]
    q, k, v, ct = inputs
    if mask is not None:
        options["attn_mask"] = sg.input("mask", mask.shape, str(mask.dtype))
        inputs.append(options["attn_mask"])
    y = F.scaled_dot_product_attention(q, k, v, **options)
    return sg.compile(inputs, [y, *sg.gradients(y, [q, k, v], cotangent=ct)], **compiled)


def _plain(operands: list[Array], causal: bool, scale: float) -> Any:
    q, k, v, ct = (sg.input(f"a{i}", x.shape, str(x.dtype)) for i, x in enumerate(operands))
    y = matmul(attention_weights(q * scale, k, None, None, causal), v)
    return sg.compile([q, k, v, ct], [y, *sg.gradients(y, [q, k, v], cotangent=ct)])


def _bits(arrays: Any) -> list[bytes]:
    return [np.asarray(a).tobytes() for a in arrays]


def _kernels(program: Any) -> set[str]:
    return {node for k in program.report().to_dict()["kernels"] for node in k["nodes"]}


MASKS = {
    "none": None,
    "padding": np.arange(BLOCK + 37) < BLOCK + 2,
    "rows": np.random.default_rng(1).random((2, 1, BLOCK + 9, BLOCK + 37)) < 0.8,
    "added": np.random.default_rng(2).standard_normal((3, BLOCK + 9, 1)),
    "added_columns": np.random.default_rng(2).standard_normal((1, BLOCK + 37)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(BLOCK + 9, BLOCK + 9), (2 * BLOCK + 5, 33), (BLOCK + 1, 400)])
def test_values_and_gradients_agree_with_numpy(sizes: tuple[int, int], causal: bool) -> None:
    operands = _operands((2, 3), *sizes, width=5, values=3, dtype="float64")
    program = _program(operands, is_causal=causal)
    assert {"attention", "attention_gradient"} <= _kernels(program)
    _check(program, operands, None, causal)


@pytest.mark.parametrize("name", MASKS)
def test_masks_agree_with_numpy(name: str) -> None:
    operands = _operands((2, 3), BLOCK + 9, BLOCK + 37, dtype="float64")
    mask = MASKS[name]
    program = _program(operands, mask)
    assert {"attention", "attention_gradient"} <= _kernels(program)
    _check(program, operands, mask, False)


def _check(program: Any, operands: list[Array], mask: Array | None, causal: bool) -> None:
    scale = operands[0].shape[-1] ** -0.5
    y, *found = program(*operands, *(() if mask is None else (mask,)))
    q, k, v, ct = operands
    np.testing.assert_allclose(y, _oracle(q, k, v, mask, causal, scale), rtol=1e-11, atol=1e-12)
    rng = np.random.default_rng(3)
    for x, g, want in zip((q, k, v), found, _oracle_gradient(q, k, v, ct, mask, causal, scale)):
        along = np.sum(g * rng.standard_normal(x.shape))
        np.testing.assert_allclose(along, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "length, causal", [(1, True), (63, False), (CAUSAL_BLOCK, True), (BLOCK, False)]
)
def test_a_declared_length_gives_the_bits_of_a_symbolic_one(
    length: int, causal: bool, dropout: float
) -> None:
    """Up to one block the plain form is declared; a program of symbolic sizes runs the blocks."""
    operands = _operands((2, 2), length, length + 21, width=16)
    found = []
    for symbolic in (False, True):
        sg.random.seed(11)
        program = _program(operands, is_causal=causal, dropout_p=dropout, symbolic=symbolic)
        assert ("attention" in _kernels(program)) == symbolic
        found.append(_bits(program(*operands)))
    assert found[0] == found[1]


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_compute_what_the_plain_form_does(causal: bool) -> None:
    """A query's row has the plain form's bits; keys' and values' cotangents are sums of blocks."""
    operands = _operands((3,), 2 * BLOCK + 44, 2 * BLOCK + 44, width=16, values=16)
    blocks = _program(operands, is_causal=causal, scale=0.25)(*operands)
    plain = _plain(operands, causal, 0.25)(*operands)
    assert _bits(blocks[:2]) == _bits(plain[:2])
    for a, b in zip(blocks[2:], plain[2:]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_bits_do_not_depend_on_threads_passes_or_symbols(dropout: float) -> None:
    operands = _operands((2, 2), 3 * BLOCK - 11, 3 * BLOCK - 11, width=16)

    def run(**options: Any) -> list[bytes]:
        sg.random.seed(3)
        return _bits(_program(operands, is_causal=True, dropout_p=dropout, **options)(*operands))

    expected = run(threads=1)
    variants: list[dict[str, Any]] = [
        {"threads": 2}, {"threads": 3}, {"symbolic": True, "threads": 2},
        {"disable": ("fuse", "in_place", "cse", "layout")},
    ]  # fmt: skip
    for options in variants:
        assert run(**options) == expected, options


def test_items_of_a_batch_have_the_bits_that_they_have_alone() -> None:
    """Of few items threads share groups of blocks, of many each thread takes items of its own."""
    length = 2 * GROUP_BLOCKS * CAUSAL_BLOCK + 70
    operands = _operands((MOST_GROUPS, 1), length, length, width=3, values=2)
    whole = _program(operands, is_causal=True, threads=2)(*operands)
    for n in (1, MOST_GROUPS - 1):
        part = [x[:n] for x in operands]
        for threads in (1, 3):
            alone = _program(part, is_causal=True, threads=threads)
            assert "attention_gradient_1" in alone.llvm_ir
            assert _bits(alone(*part)) == _bits(x[:n] for x in whole)
    symbolic = _program(operands, is_causal=True, symbolic=True, threads=2)
    assert _bits(symbolic(*operands)) == _bits(whole)


@pytest.mark.parametrize("mask", ["none", "rows"])
def test_dropout_drops_weights_and_their_cotangents(mask: str) -> None:
    """With the unit matrix for values the result is the weights, so it tells what was kept; the
    cotangents are then those of weights with these factors."""
    p = 0.25
    q, k, _, ct = _operands((2, 3), BLOCK + 9, BLOCK + 37, 4, BLOCK + 37, dtype="float64")
    allowed, v = MASKS[mask], np.broadcast_to(np.eye(BLOCK + 37), (2, 3, BLOCK + 37, BLOCK + 37))
    operands = [q, k, np.ascontiguousarray(v), ct]
    extra = () if allowed is None else (allowed,)
    program = _program(operands, allowed, dropout_p=p)
    weights, dq, dk, dv = program(*operands, *extra)
    whole = _oracle(q, k, v, allowed, False, 0.5)
    kept = weights != 0
    share = kept[whole > 0].mean()
    assert abs(share - (1 - p)) < 0.01
    np.testing.assert_allclose(weights, np.where(kept, whole / (1 - p), 0), rtol=1e-11)
    factor = kept / (1 - p)
    by_weight = ct * factor
    by_score = whole * (by_weight - np.sum(by_weight * whole, -1, keepdims=True))
    for found, want in (
        (dq, by_score @ k * 0.5), (dk, np.swapaxes(by_score, -1, -2) @ q * 0.5),
        (dv, np.swapaxes(whole * factor, -1, -2) @ ct),
    ):  # fmt: skip
        np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-11)
    again = program(*operands, *extra)[0] != 0
    assert 0.3 < (again != kept)[whole > 0].mean() < 0.45  # 2 p (1 - p): the next call's own draw


def _peak(length: int, causal: bool) -> int:
    report = _program(_operands((2, 4), length, length, 64, 64), is_causal=causal).report()
    return int(report.to_dict()["peak_bytes"])


@pytest.mark.parametrize("causal", [False, True])
def test_planned_memory_grows_with_the_length(causal: bool) -> None:
    short, long = _peak(1024, causal), _peak(3072, causal)
    assert long < 3.1 * short
    assert long < 2 * 4 * 3072 * 3072 * 4 / 8  # of all scores, in float32


def test_no_buffer_holds_all_scores() -> None:
    length = 1024
    operands = _operands((1, 2), length, length, 16, 16)
    program = _program(operands, is_causal=True, symbolic=True)
    program(*operands)
    report = program.report(L=length, S=length).to_dict()
    assert report["peak_bytes"] < 2 * length * length * 4


def test_the_gradient_of_an_added_mask() -> None:
    """A learned bias, as large as the scores: all of them are computed for it."""
    operands = _operands((2,), BLOCK + 3, 5, dtype="float64")
    q, k, v, ct = (sg.input(f"a{i}", x.shape, "float64") for i, x in enumerate(operands))
    bias = sg.input("bias", (BLOCK + 3, 5), "float64")
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    program = sg.compile([q, k, v, bias, ct], sg.gradients(y, bias, cotangent=ct))
    rng = np.random.default_rng(0)
    at, along = rng.standard_normal((2, BLOCK + 3, 5))
    ends = [
        np.sum(_oracle(*operands[:3], at + step * along, False, 0.5) * operands[3])
        for step in (1e-5, -1e-5)
    ]
    found = np.sum(program(*operands[:3], at, operands[3]) * along)
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_second_derivatives_of_self_attention() -> None:
    """Query, key and value are one tensor: its cotangents are counted once each."""
    x0 = _operands((2,), BLOCK + 2, BLOCK + 2, dtype="float64")[0]
    direction = np.random.default_rng(5).standard_normal(x0.shape)
    x, d = sg.input("x", x0.shape, "float64"), sg.input("d", x0.shape, "float64")
    y = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    first = sg.gradients(sg.sum(y * y), x)
    second = sg.gradients(sg.sum(first * d), x)
    program = sg.compile([x, d], [first, second])
    up, down = (program(x0 + s * direction, direction)[0] for s in (1e-5, -1e-5))
    want = (up - down) / 2e-5
    np.testing.assert_allclose(program(x0, direction)[1], want, rtol=1e-6, atol=1e-7)


def test_a_query_without_keys_gives_nan() -> None:
    operands = _operands((), BLOCK + 2, 3)
    mask = np.ones((BLOCK + 2, 3), bool)
    mask[5] = False
    y, dq, dk, _ = _program(operands, mask)(*operands, mask)
    assert np.isnan(y[5]).all() and np.isfinite(np.delete(y, 5, 0)).all()
    assert not dq[5].any() and np.isfinite(dk).all()


def test_broadcast_keys_and_no_sizes_at_all() -> None:
    q, k, v, _ = _operands((3,), BLOCK + 2, 7)
    a = sg.input("q", ("N", "H", "L", 4))
    b, c = sg.input("k", (1, 1, "S", 4)), sg.input("v", (1, 1, "S", 4))
    y = F.scaled_dot_product_attention(a, b, c)
    program = sg.compile([a, b, c], [y, *sg.gradients(sg.sum(y), [a, b, c])])
    found = program(q[None], k[None, :1], v[None, :1])
    np.testing.assert_allclose(
        found[0], _oracle(q[None], k[:1], v[:1], None, False, 0.5), rtol=1e-5, atol=1e-6
    )
    for shape, keys in (((0, 3, 5, 4), 2), ((2, 3, 0, 4), 2), ((2, 3, 5, 4), 0)):
        empty = np.ones((1, 1, keys, 4), "float32")
        y0, dq, dk, dv = program(np.ones(shape, "float32"), empty, empty)
        assert y0.shape == dq.shape == shape and dk.shape == dv.shape == empty.shape
        assert keys or not y0.any()
        assert not (y0.size == 0 and (dk.any() or dv.any()))


def test_multi_head_attention_without_weights_runs_in_blocks() -> None:
    layer = sg.nn.MultiheadAttention(16, 4, batch_first=True)
    x = sg.input("x", (2, BLOCK + 5, 16))
    padding = sg.input("padding", (2, BLOCK + 5), "bool")
    in_blocks, _ = layer(x, x, x, key_padding_mask=padding, need_weights=False, is_causal=True)
    whole, weights = layer(x, x, x, key_padding_mask=padding, is_causal=True)
    program = sg.compile([x, padding], [in_blocks, *sg.gradients(sg.sum(in_blocks**2), [x])])
    plain = sg.compile([x, padding], [whole, *sg.gradients(sg.sum(whole**2), [x])])
    assert "attention" in _kernels(program) and "attention" not in _kernels(plain)
    assert weights is not None and weights.shape == (2, BLOCK + 5, BLOCK + 5)
    x0 = np.random.default_rng(0).standard_normal((2, BLOCK + 5, 16)).astype("float32")
    hidden = np.zeros((2, BLOCK + 5), bool)
    hidden[1, -9:] = True
    for a, b in zip(program(x0, hidden), plain(x0, hidden)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_dropout_of_a_layer_is_bound_with_its_mode() -> None:
    layer = sg.nn.MultiheadAttention(16, 4, dropout=0.5, batch_first=True)
    x = sg.input("x", (2, BLOCK + 5, 16))
    y, _ = layer(x, x, x, need_weights=False)
    training, evaluation = (sg.compile([x], y, training=mode) for mode in (True, False))
    x0 = np.random.default_rng(0).standard_normal((2, BLOCK + 5, 16)).astype("float32")
    assert np.any(training(x0) != training(x0))
    np.testing.assert_array_equal(evaluation(x0), evaluation(x0))
    assert "random_bits" in _kernels(training) and "random_bits" not in _kernels(evaluation)


def test_integers_are_promoted() -> None:
    ones = np.ones((BLOCK + 1, 3), "int64")
    y = F.scaled_dot_product_attention(*(sg.input(n, ones.shape, "int64") for n in "qkv"))
    assert y.node.op == "attention" and y.dtype.is_float


def test_masks_that_do_not_fit_are_refused() -> None:
    q = sg.input("q", (2, BLOCK + 1, 4))
    for shape in ((3, 1, BLOCK + 1), (BLOCK, BLOCK + 1), (1, 2, BLOCK + 1, BLOCK + 1)):
        with pytest.raises(sg.ShapeError, match="mask"):
            F.scaled_dot_product_attention(q, q, q, attn_mask=sg.input("m", shape, "bool"))
    x = expand_dims(q, axis=0)
    with pytest.raises(sg.ShapeError):
        F.scaled_dot_product_attention(x, sg.input("k", (3, 2, 9, 4)), sg.input("v", (2, 2, 9, 4)))
