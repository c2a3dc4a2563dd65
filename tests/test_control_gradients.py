"""Gradients, tangents and batches of loops and choices: against differences, each other, and loops
in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.autodiff.batching import batched
from staticgrad.autodiff.forward import push

from .random_control import RandomControl

Array = np.ndarray[Any, Any]

_STEP = 1e-4
_STENCIL = ((-2, 1.0 / 12.0), (-1, -8.0 / 12.0), (1, 8.0 / 12.0), (2, -1.0 / 12.0))


def slope(f: Callable[..., float], arrays: Sequence[Array], along: Sequence[Array | None]) -> float:
    """The derivative of `f` along a direction, by differences at five points."""
    total = 0.0
    for k, weight in _STENCIL:
        moved = [a if d is None else a + k * _STEP * d for a, d in zip(arrays, along)]
        total += weight * f(*moved)
    return total / _STEP


def check(
    inputs: Sequence[Any], loss: Any, arrays: Sequence[Array], *, mixed: bool = False
) -> None:  # fmt: skip
    """Reverse and forward mode against differences and each other, first and second order, and
    `mixed` one of the other."""
    rng = np.random.default_rng(0)
    moving = [x for x in inputs if x.dtype.is_float]
    along = [rng.standard_normal(a.shape) if x.dtype.is_float else None
             for x, a in zip(inputs, arrays)]  # fmt: skip
    tangents = [sg.constant(d) for d in along if d is not None]

    def reverse(scalar: Any) -> Any:
        found = sg.gradients(scalar, moving, unreachable="zeros")
        return sum((g * t).sum() for g, t in zip(found, tangents))

    def forward(scalar: Any) -> Any:
        (found,) = push([scalar], moving, tangents)
        return sg.zeros((), dtype="float64") if found is None else found

    first, ahead = reverse(loss), forward(loss)
    seconds = [reverse(first), forward(ahead)]
    if mixed:
        seconds += [forward(first), reverse(ahead)]
    compiled = sg.compile(inputs, [loss, first, ahead, *seconds], cache=False)

    def run(*values: Array) -> list[float]:
        sg.random.seed(3)  # the same draws each time
        return [float(v) for v in compiled(*values)]

    _, found, tangent, *twice = run(*arrays)
    wanted = slope(lambda *a: run(*a)[0], arrays, along)
    wanted_twice = slope(lambda *a: run(*a)[1], arrays, along)
    scale = max(1.0, abs(wanted), abs(wanted_twice))
    assert found == pytest.approx(wanted, abs=1e-7 * scale)
    assert tangent == pytest.approx(found, abs=1e-11 * scale)
    for value in twice:
        assert value == pytest.approx(wanted_twice, abs=1e-6 * scale)
        assert value == pytest.approx(twice[0], abs=1e-10 * scale)


V = sg.input("v", (3,), "float64")
W = sg.input("w", ("T", 3), "float64")
M = sg.input("m", (3, 3), "float64")
K = sg.input("k", (), "int64")
INPUTS = [V, W, M, K]


def arrays(length: int = 4, k: int = 3) -> list[Array]:
    rng = np.random.default_rng(length)
    return [rng.standard_normal(3), rng.standard_normal((length, 3)),
            rng.standard_normal((3, 3)) / 2, np.array(k)]  # fmt: skip


def _scan(reverse: bool = False, checkpoint: Any = None) -> Any:
    """Two carries that change places, one of ints, slices, captured values, ys of every kind."""

    def step(carry: Any, x: Any) -> Any:
        a, b, n = carry
        new = sg.tanh(M @ a + x * sg.sin(V)) + b * sg.astype(n, "float64") * 0.1
        return (b, new, n + 1), (a, new, x * V, V, n)

    (a, b, n), ys = sg.scan(
        step, (V, V * 2, 0), W, reverse=reverse, checkpoint=checkpoint
    )  # fmt: skip
    parts = [(y * y * sg.cos(y)).sum() for y in ys[:4]]
    return sum(parts) + sg.sin(a).sum() + (b * V).sum() * sg.astype(n, "float64")


def _nested() -> Any:
    def outer(carry: Any, x: Any) -> Any:
        def inner(c: Any, y: Any) -> Any:
            return sg.tanh(c * y + x[0]), c * x.sum()

        last, rows = sg.scan(inner, carry, V)
        turned = sg.cond(rows.sum() > 0, lambda: last * 2 - V, lambda: last * x)
        return turned, rows

    last, rows = sg.scan(outer, V, W)
    return (last * last).sum() + sg.sin(rows).sum()


def _one_result_of_two() -> Any:
    """The reverse keeps some results of the inner loop, and has no use for what it adds."""
    shift = V[::-1] * 3

    def step(c: Any, x: Any) -> Any:
        last, rows = sg.scan(lambda d, y: (sg.tanh(d + y), d + shift), c, W)
        return last + rows.sum(axis=0) * x, None

    return sg.scan(step, V, W)[0].sum()


def _unbounded_inside() -> Any:
    """A while loop without a bound on values that no gradient goes through."""
    n = sg.while_loop(lambda s: s < K, lambda s: s + 2, 0)
    return sg.fori_loop(0, 4, lambda i, c: sg.where(i < n, sg.tanh(M @ c), c), V).sum()


LOSSES: dict[str, Callable[[], Any]] = {
    "scan": _scan,
    "scan in reverse": lambda: _scan(reverse=True),
    "a carry that stays": lambda: sg.scan(lambda c, x: (c, c * x), V, W)[1].sum() ** 2,
    "only ys": lambda: sg.sin(sg.scan(lambda c, x: (None, M @ x), None, W)[1]).sum(),
    "only captured": lambda: sg.scan(lambda c, _: (c + sg.sin(M).sum(), None), 0.0, length=3)[0],
    "a slice of a view": lambda: (
        sg.scan(lambda c, x: (c * 0.5 + x, c * x), W[0, 0], W.T[:, 0])[1] ** 2
    ).sum(),
    "one value as two carries": lambda: sum(
        (c * c).sum() for c in sg.fori_loop(0, 3, lambda i, s: (s[1] * s[0], s[0] + V), (V, V))
    ),
    "fori": lambda: (sg.fori_loop(0, 5, lambda i, c: sg.tanh(M @ c) + V * i, V) ** 2).sum(),
    "fori to a size": lambda: sg.sin(
        sg.fori_loop(1, W.shape[0], lambda i, c: c * W[i] + V, V)
    ).sum(),
    "fori of nothing": lambda: (sg.fori_loop(3, 1, lambda i, c: c * 0, V) ** 3).sum(),
    "bounded while": lambda: (
        sg.while_loop(
            lambda s: s[1] < K, lambda s: (sg.tanh(M @ s[0]) * V, s[1] + 1), (V, 0), max_steps=6
        )[0] ** 2
    ).sum(),
    "while beside": _unbounded_inside,
    "cond": lambda: sum(
        (sg.cond(p, lambda a: sg.sin(a) * V, lambda a: M @ a, V) ** 2).sum() for p in (K > 2, K > 5)
    ),
    "switch": lambda: sum(
        sg.switch(K - i, [lambda: sg.sin(V), lambda: M @ V, lambda: sg.exp(V) * W.sum()]).sum()
        for i in range(4)
    ),
    "cond in a scan": lambda: sg.scan(
        lambda c, x: (sg.cond(x[0] > 0, lambda u: u * x, lambda u: sg.tanh(M @ u), c), c), V, W
    )[1].sum(),
    "one result of two": _one_result_of_two,
    "checkpoint": lambda: (sg.checkpoint(lambda a, b: sg.tanh(M @ a) * b)(V, V + 1) ** 2).sum(),
    "checkpoint in a scan": lambda: sg.scan(
        lambda c, x: (sg.checkpoint(lambda a: sg.tanh(M @ a) + x)(c), c * x), V, W
    )[1].sum(),
    "scan in a checkpoint": lambda: sg.checkpoint(
        lambda a: sg.scan(lambda c, x: (c * x + a, None), a, W)[0]
    )(V).sum(),
    "scan with stored states": lambda: sg.scan(
        lambda c, x: (sg.tanh(M @ c + x), c), V, W, checkpoint=2
    )[1].sum(),
    "nested": _nested,
    "draws": lambda: (
        sg.fori_loop(0, 4, lambda i, c: c * sg.random.uniform((3,), dtype="float64") + V, V) ** 2
    ).sum(),
    "gather": lambda: (
        sg.fori_loop(0, 3, lambda i, c: c + sg.sin(W[i + 1 - i] * W[i]) * c[i], V) ** 2
    ).sum(),
}  # fmt: skip


MIXED = ("fori", "bounded while", "switch", "nested", "checkpoint in a scan")


@pytest.mark.parametrize("name", LOSSES)
def test_against_differences(name: str) -> None:
    check(INPUTS, LOSSES[name](), arrays(), mixed=name in MIXED)


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_short_scans(length: int, reverse: bool) -> None:
    check(INPUTS, _scan(reverse), arrays(length))


@pytest.mark.parametrize("seed", (0, 1, 3, 4))
def test_random_programs_against_differences(seed: int) -> None:
    made = RandomControl(seed + 40, rows=3, steps=1, depth=1, draws=seed % 2 == 0)
    weights = np.random.default_rng(seed).standard_normal((3, 4))
    loss = (sg.sin(made.outputs[-2]) * sg.constant(weights)).sum()
    check(made.inputs, loss, made.arrays(3, 3))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 7, 9])
def test_stored_states_change_no_gradient(length: int, reverse: bool) -> None:
    def found(checkpoint: Any) -> list[Array]:
        w = sg.input("w", (length, 3), "float64")

        def step(carry: Any, x: Any) -> Any:
            return sg.tanh(M @ carry + x), (carry * x, x.sum())

        r, y = sg.scan(step, V, w, reverse=reverse, checkpoint=checkpoint)
        loss = (r * r).sum() + sg.sin(y[0]).sum() + y[1].sum()
        gradients = sg.gradients(loss, [V, w, M], unreachable="zeros")
        run = sg.compile([V, w, M], [r, *y, *gradients], cache=False)
        return list(run(*arrays(length)[:3]))

    expected = found(None)
    for k in ("sqrt", 2, 20):
        for got, want in zip(found(k), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


def test_stored_states_of_a_symbolic_length_and_of_indices() -> None:
    def loss(checkpoint: Any) -> Any:
        def body(i: Any, c: Any) -> Any:
            return sg.tanh(M @ c + W[i]) * sg.cos(sg.astype(i, "float64"))

        return (sg.fori_loop(1, W.shape[0], body, V, checkpoint=checkpoint) ** 2).sum()

    runs = [sg.compile(INPUTS, sg.gradients(loss(k), [V, W, M]), cache=False) for k in (None, 1, 3)]
    for length in (0, 1, 2, 4, 11):
        expected = runs[0](*arrays(length))
        for run in runs[1:]:
            for got, want in zip(run(*arrays(length)), expected, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


def test_what_has_no_gradient() -> None:
    steps = sg.while_loop(lambda s: s.sum() < 5, lambda s: s * 2, V)
    with pytest.raises(sg.DifferentiationError) as caught:
        sg.gradients(steps.sum(), [V])
    for way in ("max_steps=", "fori_loop or scan", "forward mode"):
        assert way in str(caught.value)
    (tangent,) = push([steps], [V], [V * 0 + 1])
    run = sg.compile([V], [steps, tangent])
    np.testing.assert_array_equal(run(np.ones(3))[1], np.full(3, 2.0))


def test_a_gradient_through_ints_is_none() -> None:
    n, ys = sg.scan(lambda c, x: (c + 1, sg.astype(x, "int64")), 0, W)
    with pytest.raises(sg.DifferentiationError):
        sg.gradients(sg.astype(n + ys.sum(), "float64"), [W])
    assert push([n, ys], [W], [W * 1]) == [None, None]


# --- batches --------------------------------------------------------------------------------------


def rows_of(many: Sequence[bool], rows: Sequence[Sequence[Array]]) -> list[Array]:
    return [np.stack([r[j] for r in rows]) if m else rows[0][j] for j, m in enumerate(many)]


def check_batched(
    inputs: Sequence[Any], outputs: Sequence[Any], many: Sequence[bool],
    rows: Sequence[Sequence[Array]], rtol: float = 1e-10,
) -> None:  # fmt: skip
    """One program for all rows against one call a row."""
    replaced = {
        v: sg.input(f"{v.node.attrs['name']}s", (len(rows), *v.shape), v.dtype)
        for v, m in zip(inputs, many) if m
    }  # fmt: skip
    found = batched(outputs, replaced, len(rows))
    run = sg.compile([replaced.get(v, v) for v in inputs], [t for t, _ in found], cache=False)
    got = run(*rows_of(many, rows))
    single = sg.compile(inputs, outputs, cache=False)
    for k, row in enumerate(rows):
        wanted = single(*[a if m else rows[0][j] for j, (a, m) in enumerate(zip(row, many))])
        for (_, is_batched), values, want in zip(found, got, wanted, strict=True):
            np.testing.assert_allclose(values[k] if is_batched else values, want, rtol, 1e-12)


ROWS = [
    [a + 0.25 * k if a.dtype.kind == "f" else np.array(2 * k - 1) for a in arrays()]
    for k in range(4)
]
MANY = [
    (True, True, True, True), (True, False, False, False), (False, True, False, False),
    (False, False, True, True), (False, False, False, True),
]  # fmt: skip


@pytest.mark.parametrize("many", [MANY[0], MANY[2], MANY[4]], ids=str)
@pytest.mark.parametrize("name", [n for n in LOSSES if n != "draws"])
def test_a_batch_is_a_loop_over_rows(name: str, many: tuple[bool, ...]) -> None:
    check_batched(INPUTS, [LOSSES[name]() + V.sum() + W.sum() + M.sum() * K], many, ROWS)


@pytest.mark.parametrize("many", MANY, ids=str)
def test_loops_that_wait_for_each_row(many: tuple[bool, ...]) -> None:
    def step(s: Any) -> Any:
        i, a, b = s
        return i + 1, sg.tanh(M @ a) + b, b * 0.5

    found = sg.while_loop(lambda s: (s[0] < K) & (s[1].sum() < 9), step, (0, V, W.sum()))

    def inner(s: Any) -> Any:
        return sg.while_loop(lambda u: u.sum() < V[0] * 3 + s[0], lambda u: u + 1.5, s[1])

    nested = sg.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, inner(s)), (0, V))
    check_batched(INPUTS, [*found, *nested, V + W.sum() + M[0] * K], many, ROWS)


def test_batches_of_gradients_and_gradients_of_batches() -> None:
    loss = LOSSES["cond in a scan"]() + LOSSES["bounded while"]()
    found = sg.gradients(loss, [V, W, M])
    check_batched(INPUTS, found, (True, True, False, True), ROWS, 1e-9)
    vs = sg.input("vs", (4, 3), "float64")
    ((per_row, _),) = batched([loss], {V: vs}, 4)
    (of_batch,) = sg.gradients(per_row.sum(), [vs])
    ((rows, _),) = batched([found[0]], {V: vs}, 4)
    a, b = sg.compile([vs, W, M, K], [of_batch, rows], cache=False)(
        np.stack([r[0] for r in ROWS]), *ROWS[0][1:3], 3
    )
    np.testing.assert_allclose(a, b, rtol=1e-10)


def test_rows_that_do_not_choose_a_branch_do_not_fail_in_it() -> None:
    def looked_up(i: Any) -> Any:
        nested = sg.scan(lambda c, x: (c + W[i, 0] * x, sg.take(V, i - 1)), 0.0, V)
        waited = sg.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + V[i - 1]), (0, 0.0))
        inner = sg.cond(i > 2, lambda: V[i - 1], lambda: sg.checkpoint(lambda j: V[j])(i))
        return nested[0] + nested[1].sum() + waited[1] + inner

    inside = (K > 0) & (K < 4)
    outputs = [
        sg.cond(inside, lambda: looked_up(K), lambda: V[0]),
        sg.cond(inside, lambda i: W[i].sum(), lambda i: V[1] * 1, K),
        sg.switch(K, [lambda: V[0], lambda: V[K], lambda: V[K], lambda: V[2] * 2]),
        sg.switch(K, [lambda: V[2]]),
    ]
    # Rows that have ended stand beyond the table while others go on.
    outputs += sg.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + K, s[1] + W[s[0]]), (0, V))
    gradients = sg.gradients(sum(o.sum() for o in outputs[1:4]), [V, W])
    rows = [[*ROWS[k][:3], np.array(n)] for k, n in enumerate((1, 9, 3, 2))]
    for many in (MANY[4], MANY[0]):
        check_batched(INPUTS, [*outputs, *gradients], many, rows)


def test_rows_that_choose_a_branch_fail_in_it() -> None:
    chosen = sg.cond(K > 0, lambda: V[K], lambda: V[0])
    ks = sg.input("ks", (3,), "int64")
    ((rows, _),) = batched([chosen], {K: ks}, 3)
    run = sg.compile([V, ks], rows)
    np.testing.assert_array_equal(run(np.arange(3.0), np.array([-9, 2, 1])), [0, 2, 1])
    with pytest.raises(sg.ExecutionError, match="index 3 is out of range"):
        run(np.arange(3.0), np.array([-9, 2, 3]))


def test_batches_of_batches() -> None:
    outputs = [LOSSES["nested"](), LOSSES["cond"]()]
    vs, ks = sg.input("vs", (2, 3), "float64"), sg.input("ks", (3,), "int64")
    inner = [t for t, _ in batched(outputs, {V: vs}, 2)]
    found = batched(inner, {K: ks}, 3)
    got = sg.compile([vs, W, M, ks], [t for t, _ in found], cache=False)(
        np.stack([ROWS[0][0], ROWS[1][0]]), *ROWS[0][1:3], np.array([0, 3, 6])
    )
    single = sg.compile(INPUTS, outputs, cache=False)
    for j, k in enumerate((0, 3, 6)):
        for i in range(2):
            for values, (_, by_k), want in zip(got, found, single(ROWS[i][0], *ROWS[0][1:3], k)):
                np.testing.assert_allclose(values[j][i] if by_k else values[i], want, rtol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_in_batches(seed: int) -> None:
    made = RandomControl(seed + 70, rows=3, steps=2, depth=1, draws=False, bounded=seed % 2 == 0)
    rng = np.random.default_rng(seed)
    many = [bool(b) for b in rng.integers(0, 2, 4)]
    many[seed % 4] = True
    rows = []
    for count in (3, 0, 5):
        x, series, _, picks = made.arrays(3, 3)
        rows.append([x + count * 0.1, series - count * 0.2, np.array(count), (picks + count) % 4])
    check_batched(made.inputs, made.outputs, many, rows, 1e-9)
