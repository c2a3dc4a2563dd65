"""Attention in blocks of queries: numbers against NumPy, bits against the plain form, and memory
that grows with the length, not with its square."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ops.attention import attention_weights
from staticgrad.ops.attention_gradients import GROUP_BLOCKS, MOST_GROUPS
from staticgrad.ops.attention_kernels import BLOCK, CAUSAL_BLOCK
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
    "queries, keys, causal",
    [(1, 22, True), (63, 84, False), (CAUSAL_BLOCK, CAUSAL_BLOCK, True), (BLOCK, 149, False),
     (30, CAUSAL_BLOCK + 1, True)],
)  # fmt: skip
def test_a_declared_length_gives_the_bits_of_a_symbolic_one(
    queries: int, keys: int, causal: bool, dropout: float
) -> None:
    """Up to one block the plain form is declared; a program of symbolic sizes runs the blocks."""
    operands = _operands((2, 2), queries, keys, width=16)
    one_block = not causal or keys <= CAUSAL_BLOCK
    found = []
    for symbolic in (False, True):
        sg.random.seed(11)
        program = _program(operands, is_causal=causal, dropout_p=dropout, symbolic=symbolic)
        assert ("attention" in _kernels(program)) == (symbolic or not one_block)
        found.append(_bits(program(*operands)))
    assert found[0] == found[1]


def test_keys_that_no_query_sees_do_not_matter() -> None:
    """Whether declared or not: 0 times NaN is NaN, so they must not be multiplied by weights."""
    operands = _operands((2,), 30, 2 * CAUSAL_BLOCK)
    for x in operands[1:3]:
        x[:, CAUSAL_BLOCK:] = np.nan
    for symbolic in (False, True):
        found = _program(operands, is_causal=True, symbolic=symbolic)(*operands)
        assert all(np.isfinite(x).all() for x in found)


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
    assert _peak(3072, causal) < 2 * 4 * 3072 * 3072 * 4 / 8  # of all scores, in float32
    # From here on the gradient's sums are kept for as many groups of blocks, whatever the length.
    length = MOST_GROUPS * GROUP_BLOCKS * BLOCK
    assert _peak(3 * length, causal) < 3.1 * _peak(length, causal)


def test_no_buffer_holds_all_scores() -> None:
    length = 1024
    operands = _operands((1, 2), length, length, 16, 16)
    program = _program(operands, is_causal=True, symbolic=True)
    program(*operands)
    report = program.report(L=length, S=length).to_dict()
    assert report["peak_bytes"] < 2 * length * length * 4


MASK_SHAPES = [(3, 2, BLOCK + 3, 5), (BLOCK + 3, 5), (2, 1, 5), (3, 1, BLOCK + 3, 5), (3, 1, 1, 5)]


def _with_bias(operands: list[Array], bias: Array, wanted: str, **options: Any) -> Any:
    """The cotangent of the bias, or of all operands, or of the queries alone."""
    compiled = {n: options.pop(n) for n in ("threads", "disable") if n in options}
    symbolic = options.pop("symbolic", False)
    sizes = {operands[0].shape[-2]: "L", operands[1].shape[-2]: "S"} if symbolic else {}
    inputs = [
        sg.input(f"a{i}", tuple(sizes.get(d, d) for d in x.shape), str(x.dtype))
        for i, x in enumerate((*operands, bias))
    ]
    q, k, v, ct, mask = inputs
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
    wrt = {"bias": [mask], "all": [mask, q, k, v], "q": [q]}[wanted]
    return sg.compile(inputs, sg.gradients(y, wrt, cotangent=ct), **compiled)


@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_the_gradient_of_an_added_mask(shape: tuple[int, ...]) -> None:
    """A learned bias, the same for some items, rows or columns: what they give is added up."""
    operands = _operands((3, 2), BLOCK + 3, 5, dtype="float64")
    rng = np.random.default_rng(0)
    at, along = rng.standard_normal((2, *shape))
    program = _with_bias(operands, at, "bias")
    assert _kernels(program) - {"copy"} == {"attention_mask_gradient"}
    ends = [
        np.sum(_oracle(*operands[:3], at + step * along, False, 0.5) * operands[3])
        for step in (1e-5, -1e-5)
    ]
    (found,) = program(*operands, at)
    assert found.shape == shape
    want = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(np.sum(found * along), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", [(BLOCK + 3, 1), (3, 1, 1, 1)], ids=str)
def test_what_is_added_to_whole_rows_changes_nothing(shape: tuple[int, ...]) -> None:
    operands = _operands((3, 2), BLOCK + 3, 5)
    bias = np.random.default_rng(0).standard_normal(shape, "float32")
    program = _with_bias(operands, bias, "bias")
    assert not _kernels(program) & {"attention", "attention_mask_gradient"}
    np.testing.assert_array_equal(program(*operands, bias)[0], np.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 1, 40, 40), (1, 3, 40, 40), (1, 40)], ids=str)
def test_bits_of_a_masks_gradient(shape: tuple[int, ...]) -> None:
    """The same on any number of threads, of declared and symbolic sizes, without passes; also of so
    few queries that without an added mask the plain form is declared."""
    operands = _operands((2, 3), 40, 40, width=16)
    bias = np.random.default_rng(0).standard_normal(shape, "float32")

    def run(**options: Any) -> list[bytes]:
        return _bits(_with_bias(operands, bias, "all", **options)(*operands, bias))

    expected = run(threads=1)
    variants: list[dict[str, Any]] = [
        {"threads": 3}, {"symbolic": True, "threads": 2},
        {"disable": ("fuse", "in_place", "cse", "dce", "layout")},
    ]  # fmt: skip
    for options in variants:
        assert run(**options) == expected, options


def test_a_masks_gradient_needs_no_memory_for_scores() -> None:
    """With a bias of each head's own the result is L x S for a head, for a whole batch."""
    length, items = 512, 16
    operands = _operands((items, 2), length, length, 16, 16)
    bias = np.zeros((2, length, length), "float32")
    report = _with_bias(operands, bias, "all", threads=2).report().to_dict()
    assert report["peak_bytes"] < 3 * bias.nbytes + 10 * items * operands[0][0].nbytes
    assert report["peak_bytes"] < items * bias.nbytes / 2


def test_second_derivatives_of_a_masks_gradient() -> None:
    operands = _operands((2,), BLOCK + 2, 3, dtype="float64")
    rng = np.random.default_rng(0)
    at, along = rng.standard_normal((2, BLOCK + 2, 3))
    q, k, v, ct, bias, d = (
        sg.input(f"a{i}", x.shape, "float64") for i, x in enumerate((*operands, at, along))
    )
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    first = sg.gradients(y, bias, cotangent=ct)
    second = sg.gradients(sg.sum(first * d), [q, bias])
    program = sg.compile([q, k, v, ct, bias, d], [first, *second])
    ends = [program(*operands, at + step * along, along)[0] for step in (1e-5, -1e-5)]
    want = np.sum((ends[0] - ends[1]) * along) / 2e-5
    _, of_q, of_bias = program(*operands, at, along)
    np.testing.assert_allclose(np.sum(of_bias * along), want, rtol=1e-6)
    turn = rng.standard_normal(of_q.shape)
    moved = [program(operands[0] + s * turn, *operands[1:], at, along)[0] for s in (1e-5, -1e-5)]
    want = np.sum((moved[0] - moved[1]) * along) / 2e-5
    np.testing.assert_allclose(np.sum(of_q * turn), want, rtol=1e-6)


def test_vmap_keeps_the_blocks() -> None:
    """Of attention and of its gradients: a mask's for each item."""
    x = np.random.default_rng(0).standard_normal((3, BLOCK + 2, 4))
    bias = np.random.default_rng(1).standard_normal((BLOCK + 2, BLOCK + 2))

    def gradients(a: Any, b: Any) -> Any:
        y = F.scaled_dot_product_attention(a, a, a, attn_mask=b)
        return sg.gradients(sg.sum(y * y), [a, b])

    a, b = sg.input("a", x.shape, "float64"), sg.input("b", bias.shape, "float64")
    program = sg.compile([a, b], list(sg.vmap(gradients, in_axes=(0, None))(a, b)))
    names = {"attention", "attention_gradient", "attention_mask_gradient"}
    assert names <= _kernels(program) and "matmul" not in _kernels(program)
    of_x, of_bias = program(x, bias)
    one = sg.input("one", x.shape[1:], "float64")
    single = sg.compile([one, b], list(gradients(one, b)))
    for i in range(3):
        for found, want in zip((of_x[i], of_bias[i]), single(x[i], bias)):
            np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-11)


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


def _pushed(
    operands: list[Array], mask: Array | None, moving: str, symbolic: bool = False, **options: Any
) -> tuple[Any, list[Array]]:
    """The tangent of the result, where q, k, v and the mask (m) move as told; and what it takes."""
    compiled = {n: options.pop(n) for n in ("threads", "disable") if n in options}
    arrays = dict(zip("qkv", operands))
    if mask is not None:
        arrays["m"] = mask
    rng = np.random.default_rng(9)
    tangents = {f"{n}'": rng.standard_normal(arrays[n].shape).astype("f4") for n in moving}
    arrays |= {n: t.astype(operands[0].dtype) for n, t in tangents.items()}
    sizes = {operands[0].shape[-2]: "L", operands[1].shape[-2]: "S"} if symbolic else {}
    at = {
        n: sg.input(n.replace("'", "t"), tuple(sizes.get(d, d) for d in x.shape), str(x.dtype))
        for n, x in arrays.items()
    }

    def f(*moved: Any) -> Any:
        x = {**at, **dict(zip(moving, moved))}
        y = F.scaled_dot_product_attention(x["q"], x["k"], x["v"], attn_mask=x.get("m"), **options)
        return y

    _, tangent = sg.jvp(f, [at[n] for n in moving], [at[f"{n}'"] for n in moving])
    return sg.compile(list(at.values()), tangent, **compiled), list(arrays.values())


@pytest.mark.parametrize(
    "moving, name, causal",
    [("qkv", "none", True), ("qkvm", "added", False), ("k", "rows", False), ("v", "none", True),
     ("m", "added", False), ("qv", "padding", False)],
)  # fmt: skip
def test_forward_mode(moving: str, name: str, causal: bool) -> None:
    operands = _operands((2, 3), BLOCK + 9, BLOCK + 37, dtype="float64")[:3]
    mask = MASKS[name]
    program, arrays = _pushed(operands, mask, moving, is_causal=causal)
    assert _kernels(program) & {"attention", "attention_tangent"}
    assert "matmul" not in _kernels(program)
    named = dict(zip([*"qkv", *("m" if mask is not None else "")], arrays))
    steps = dict(zip(moving, arrays[-len(moving) :]))
    ends = []
    for step in (1e-5, -1e-5):
        moved = {n: x + step * steps[n] if n in steps else x for n, x in named.items()}
        q, k, v = (moved[n] for n in "qkv")
        ends.append(_oracle(q, k, v, moved.get("m"), causal, 0.5))
    want = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(program(*arrays), want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("length, causal", [(CAUSAL_BLOCK, True), (BLOCK, False)])
def test_bits_of_forward_mode(length: int, causal: bool, dropout: float) -> None:
    """Of one block the plain form's; the same on any number of threads."""
    operands = _operands((2, 2), length, length, width=16)[:3]
    found = []
    for symbolic, threads in ((False, 1), (True, 1), (True, 3)):
        sg.random.seed(11)
        program, arrays = _pushed(
            operands, None, "qkv", symbolic, is_causal=causal, dropout_p=dropout, threads=threads
        )
        assert ("attention_tangent" in _kernels(program)) == symbolic
        found.append(program(*arrays).tobytes())
    assert found[0] == found[1] == found[2]


def test_forward_mode_needs_no_memory_for_scores() -> None:
    operands = _operands((8, 2), 1024, 1024, 16, 16)[:3]
    program, _ = _pushed(operands, None, "qkv", is_causal=True)
    report = program.report().to_dict()
    assert report["peak_bytes"] < 16 * 1024 * 1024 * 4 / 4  # a quarter of all scores, in float32


def test_derivatives_of_forward_mode() -> None:
    """A gradient of a tangent, and a tangent of it, beside central differences."""
    x0 = _operands((2,), BLOCK + 2, BLOCK + 2, dtype="float64")[0]
    rng = np.random.default_rng(5)
    d0, e0 = rng.standard_normal((2, *x0.shape))
    x, d, e = (sg.input(n, x0.shape, "float64") for n in "xde")

    def f(x: Any) -> Any:
        y = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return sg.sum(y * y)

    def moved(x: Any) -> Any:
        return sg.jvp(f, [x], [d])[1]

    value = moved(x)
    outputs = [value, sg.gradients(value, x), sg.jvp(moved, [x], [e])[1]]
    program = sg.compile([x, d, e], outputs)
    assert "attention_tangent" in _kernels(program)
    up, down = (program(x0 + s * e0, d0, e0)[0] for s in (1e-5, -1e-5))
    _, gradient, second = program(x0, d0, e0)
    want = (up - down) / 2e-5
    np.testing.assert_allclose(np.sum(gradient * e0), want, rtol=1e-6)
    np.testing.assert_allclose(second, want, rtol=1e-6)


def test_vmap_of_forward_mode() -> None:
    """A basis of directions at once, as `jacfwd` has it; with the mask moving, and without."""
    operands = _operands((2,), BLOCK + 2, 5, dtype="float64")[:3]
    bias = np.random.default_rng(1).standard_normal((BLOCK + 2, 5))
    along = np.random.default_rng(2).standard_normal((3, *bias.shape))
    turns = np.random.default_rng(3).standard_normal((3, *operands[0].shape))
    inputs = [sg.input(f"a{i}", x.shape, "float64") for i, x in enumerate((*operands, bias))]
    b, t = sg.input("b", along.shape, "float64"), sg.input("t", turns.shape, "float64")
    q, k, v, m = inputs

    def of_bias(d: Any) -> Any:
        f = lambda m: F.scaled_dot_product_attention(q, k, v, attn_mask=m)  # noqa: E731
        return sg.jvp(f, [m], [d])[1]

    def of_q(d: Any) -> Any:
        f = lambda q: F.scaled_dot_product_attention(q, k, v, attn_mask=m)  # noqa: E731
        return sg.jvp(f, [q], [d])[1]

    program = sg.compile([*inputs, b, t], [sg.vmap(of_bias)(b), sg.vmap(of_q)(t)])
    assert "attention_tangent" in _kernels(program) and "matmul" not in _kernels(program)
    found = program(*operands, bias, along, turns)
    for i in range(3):
        ends = [_oracle(*operands, bias + s * along[i], False, 0.5) for s in (1e-5, -1e-5)]
        np.testing.assert_allclose(found[0][i], (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)
        ends = [
            _oracle(operands[0] + s * turns[i], *operands[1:], bias, False, 0.5)
            for s in (1e-5, -1e-5)
        ]
        np.testing.assert_allclose(found[1][i], (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


# --- the scale of queries -------------------------------------------------------------------------


def _gradient_kernels(**options: Any) -> list[str]:
    """The operations of kernels of a forward and backward pass, but for copies."""
    length = CAUSAL_BLOCK + 3
    program = _program(_operands((2, 2), length, length, width=8), is_causal=True, **options)
    kernels = program.report().to_dict()["kernels"]
    return sorted(n for k in kernels for n in k["nodes"] if n != "copy")


@pytest.mark.parametrize("symbolic", [False, True])
def test_queries_are_scaled_in_attentions_kernels(symbolic: bool) -> None:
    assert _gradient_kernels(symbolic=symbolic) == ["attention", "attention_gradient"]
    separate = ["attention", "attention_gradient", "multiply", "multiply"]
    assert sorted(_gradient_kernels(symbolic=symbolic, disable=("simplify",))) == separate


@pytest.mark.parametrize("moving", ["qk", "q", "k", "qkv"])
def test_scaling_in_the_kernels_gives_the_same_bits(moving: str) -> None:
    """Of a number that rounds, beside a constant factor that canonical forms merge with it."""
    operands = _operands((2, 3), BLOCK + 9, BLOCK + 11, width=5)
    for run in (
        lambda **o: _program(operands, dropout_p=0.25, scale=0.3, **o)(*operands),
        lambda **o: _call(*_pushed(operands[:3], None, moving, scale=0.3, is_causal=True, **o)),
    ):
        found = []
        for disable in ((), ("simplify",)):
            sg.random.seed(5)
            found.append(_bits(run(disable=disable)))
        assert found[0] == found[1]


def _call(program: Any, arrays: list[Array]) -> list[Array]:
    return [program(*arrays)]


def test_scaled_queries_that_others_read_stay() -> None:
    """As they do where the cotangent of the scaled queries is wanted."""
    q, k, v, ct = _operands((2,), BLOCK + 9, 40, dtype="float64")
    inputs = [sg.input(n, x.shape, "float64") for n, x in zip("qkvc", (q, k, v, ct))]
    scaled = inputs[0] * 0.3
    y = F.scaled_dot_product_attention(scaled, *inputs[1:3], scale=1.0)
    for wanted in ([y, scaled], [y, *sg.gradients(y, [scaled], cotangent=inputs[3])]):
        program = sg.compile(inputs, wanted)
        assert "multiply" in _kernels(program)
        found = program(q, k, v, ct)
        np.testing.assert_allclose(found[0], _oracle(q, k, v, None, False, 0.3), rtol=1e-11)
    given = _program([q, k, v, ct], scale=0.3)(q, k, v, ct)[1]
    np.testing.assert_allclose(found[1] * 0.3, given, rtol=1e-11)
