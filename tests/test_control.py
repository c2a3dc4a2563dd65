"""Loops and choices: what they compute, as compiled and by the reference, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

from .pass_checks import assert_same_bits

Array = np.ndarray[Any, Any]
TABLE = np.arange(12.0).reshape(4, 3)


def both(inputs: Sequence[Any], outputs: Any, *arrays: Any, exact: bool = True) -> Any:
    """The compiled values, which must be the reference's: to the bit unless sums are in them."""
    native = sg.compile(inputs, outputs, cache=False)(*arrays)
    reference = sg.compile(inputs, outputs, mode="reference")(*arrays)
    rows = (native, reference) if isinstance(native, tuple) else ((native,), (reference,))
    if exact:
        assert_same_bits(*rows)
    for got, want in zip(*rows, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-6 if got.dtype == "float32" else 1e-12)
    return native


def vector(name: str = "v", size: Any = 4, dtype: str = "float64") -> Any:
    return sg.input(name, (size,), dtype)


def number(name: str = "n") -> Any:
    return sg.input(name, (), "int64")


# --- scan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_scan_is_a_python_loop(length: int, reverse: bool) -> None:
    xs = sg.input("xs", ("T", 3), "float64")
    first = vector("first", 3)

    def step(carry: Any, x: Any) -> Any:
        return carry * 0.5 + x, carry - x

    outputs = sg.scan(step, first, xs, reverse=reverse)
    rows, carry = np.arange(3.0 * length).reshape(length, 3) / 7, np.arange(3.0)
    got = both([first, xs], list(outputs), carry, rows)
    ys = np.zeros((length, 3))
    for t in range(length - 1, -1, -1) if reverse else range(length):
        carry, ys[t] = step(carry, rows[t])
    assert_same_bits(got, [carry, ys])


def test_scan_without_arrays() -> None:
    v = vector()
    carry, ys = sg.scan(lambda c, x: (c * 2, c), v, length=3)
    assert carry.shape == (4,) and ys.shape == (3, 4)
    last, rows = both([v], [carry, ys], np.arange(4.0))
    np.testing.assert_array_equal(last, np.arange(4.0) * 8)
    np.testing.assert_array_equal(rows, np.arange(4.0) * [[1], [2], [4]])


def test_scan_over_trees() -> None:
    a, b = vector("a"), sg.input("b", (4, 2), "int64")

    def step(carry: Any, x: Any) -> Any:
        assert set(carry) == {"sum", "pair"} and isinstance(carry["pair"], tuple)
        p, q = carry["pair"]
        new = {"sum": carry["sum"] + x["b"], "pair": (q, p + x["list"][0])}
        return new, [x["b"], {"p": p, "none": None}]

    first = {"sum": sg.zeros(2, dtype="int64"), "pair": (0.0, sg.constant(np.float64(1.0)))}
    carry, ys = sg.scan(step, first, {"list": [a], "b": b})
    assert isinstance(ys, list) and ys[1]["none"] is None
    outputs = [carry["sum"], *carry["pair"], ys[0], ys[1]["p"]]
    rows = np.arange(8).reshape(4, 2)
    got = both([a, b], outputs, np.arange(4.0), rows)
    np.testing.assert_array_equal(got[0], rows.sum(axis=0))
    np.testing.assert_array_equal(got[3], rows)
    np.testing.assert_array_equal(got[4], [0, 1, 0, 2])


def test_carries_change_places() -> None:
    a, b = vector("a"), vector("b")
    (p, q), _ = sg.scan(lambda c, _: ((c[1], c[0]), None), (a, b), length=3)
    got = both([a, b], [p, q], np.zeros(4), np.ones(4))
    assert_same_bits(got, [np.ones(4), np.zeros(4)])
    (p, q, r), ys = sg.scan(lambda c, _: ((c[1], c[2], c[0] + c[1]), c[0]), (a, b, a), length=4)
    first = np.arange(4.0), np.ones(4)
    state, rows = (first[0], first[1], first[0]), []
    for _ in range(4):
        rows.append(state[0])
        state = (state[1], state[2], state[0] + state[1])
    assert_same_bits(both([a, b], [p, q, r, ys], *first), [*state, np.stack(rows)])


def test_results_of_every_kind() -> None:
    """ys that are the carry, the new carry, a slice, an input, a captured value, a number, the same
    value twice; a carry that stays what it is; one value as two carries."""
    v, w = vector("v", 3), sg.input("w", (4, 3), "float64")
    computed = sg.exp(v)

    def step(carry: Any, x: Any) -> Any:
        a, _, kept = carry
        new = a + x
        ys = (a, new, x, v, computed, 2.5, True, 7, new, x[::-1], kept, w[:, 0])
        return (new, new, kept), ys

    carry, ys = sg.scan(step, (v, v * 2, v), w)
    got = both([v, w], [*carry, *ys], np.arange(3.0), TABLE)
    total = np.cumsum(np.vstack([np.arange(3.0), TABLE]), axis=0)
    np.testing.assert_array_equal(got[0], total[-1])
    np.testing.assert_array_equal(got[1], total[-1])
    np.testing.assert_array_equal(got[3], total[:-1])
    np.testing.assert_array_equal(got[4], total[1:])
    np.testing.assert_array_equal(got[8], np.full(4, 2.5, "float32"))
    np.testing.assert_array_equal(got[12], TABLE[:, ::-1])
    assert [str(a.dtype) for a in got[8:11]] == ["float32", "bool", "int64"]


def test_what_a_body_captures() -> None:
    v, w = vector("v", 3), sg.input("w", (4, 3), "float64")
    parameter = sg.parameter(TABLE[:3], name="p")
    carry, _ = sg.scan(
        lambda c, x: (c + parameter.T[1] * x - w[::-1].T[:, 0] + sg.sin(v), None), v, w.T.T[::2]
    )
    got = both([v, w], carry, np.ones(3), TABLE)
    want = np.ones(3)
    for x in TABLE[::2]:
        want = want + TABLE[:3, 1] * x - TABLE[3] + np.sin(np.ones(3))
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_slices_along_views() -> None:
    w = sg.input("w", ("T", 3), "float64")
    for along in (
        w.T,
        w[::-1],
        w[:, ::-1].T,
        sg.reshape(w, (-1,)),
        sg.broadcast_to(w, (2, *w.shape)),
    ):
        _, ys = sg.scan(lambda c, x: (c, x * 2), None, along)
        both([w], [ys, along * 2], TABLE)
        ys, doubled = sg.compile([w], [ys, along * 2], cache=False)(TABLE)
        np.testing.assert_array_equal(ys, doubled)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "float32", "float64"])
def test_carries_of_every_dtype(dtype: str) -> None:
    v = sg.input("v", (5,), dtype)
    flip = (lambda c: ~c) if dtype == "bool" else (lambda c: c * 3 + v)
    carry, ys = sg.scan(lambda c, x: (flip(c), x), v, v)
    looped = sg.fori_loop(0, 5, lambda i, c: flip(c), v)
    got = both([v], [carry, ys, looped], np.arange(5).astype(dtype))
    assert_same_bits([got[0]], [got[2]])
    assert str(got[0].dtype) == dtype


def test_symbolic_length() -> None:
    w, v = sg.input("w", ("T", 2)), sg.input("v", (2,))
    carry, ys = sg.scan(lambda c, x: (c + x, c.sum()), v, w)
    _, ticks = sg.scan(lambda c, _: (c + 1, c), 0, length=w.shape[0] * 2 + 1)
    assert ys.shape == w.shape[:1]
    run = sg.compile([w, v], [carry, ys, ticks], cache=False)
    for length in (0, 1, 2, 40):
        rows = np.arange(2 * length, dtype="float32").reshape(length, 2)
        last, _, counted = run(rows, np.ones(2, "float32"))
        np.testing.assert_array_equal(last, rows.sum(axis=0) + 1)
        np.testing.assert_array_equal(counted, np.arange(2 * length + 1))
    both([w, v], [carry, ys, ticks], TABLE[:, :2].astype("f"), np.ones(2, "f"))


@pytest.mark.parametrize("rows", [0, 1, 6])
def test_arrays_of_no_elements(rows: int) -> None:
    w = sg.input("w", ("T", 0), "float64")
    v = vector("v", "N")
    (c, d), ys = sg.scan(
        lambda c, x: ((c[0] + x.sum(), c[1] * x), (x, c[0])), (v, sg.zeros(0, dtype="float64")), w
    )
    got = both([w, v], [c, d, *ys], np.zeros((rows, 0)), np.ones(2))
    assert got[2].shape == (rows, 0) and got[3].shape == (rows, 2)
    empty = sg.fori_loop(0, 3, lambda i, u: u * 2 + u.sum(), v)
    chosen = sg.cond(v.sum() > 0, lambda: v, lambda: v * 2)
    assert both([v], [empty, chosen], np.zeros(0))[0].shape == (0,)


# --- Python numbers -------------------------------------------------------------------------------


def test_python_numbers_take_the_dtype_that_they_meet() -> None:
    v = vector("v", 4)
    carry, ys = sg.scan(lambda c, x: (c + x, c), 0.1, v)
    assert carry.dtype == "float64"
    got = both([v], [carry, ys], np.zeros(4))
    assert got[0] == 0.1  # not float32's
    half = sg.fori_loop(0, 5, lambda i, s: s + 0.5, 0)
    assert str(half.dtype) == "float32" and both([v], half, np.zeros(4)) == 2.5
    assert str(sg.fori_loop(0, 5, lambda i, s: s + i, 0).dtype) == "int64"
    a, b = sg.fori_loop(0, 3, lambda i, s: (s[1], s[0] + 0.5), (0, 0))
    assert str(a.dtype) == str(b.dtype) == "float32"
    assert both([v], [a, b], np.zeros(4)) == (0.5, 1.0)
    back, _ = sg.scan(lambda c, x: (0.1, None), v[0], v)
    assert str(back.dtype) == "float64" and both([v], back, np.ones(4)) == 0.1
    segments, _ = sg.scan(lambda c, x: (c + x, None), 0.1, v, checkpoint=2)
    assert str(segments.dtype) == "float64"
    size = sg.fori_loop(0, 3, lambda i, s: s + v.sum(), sg.input("m", ("M",)).shape[0])
    assert str(size.dtype) == "float64"


def test_python_numbers_are_not_truncated() -> None:
    v, n = vector(), number()
    for build in (
        lambda: sg.fori_loop(0, 3, lambda i, s: i, 0.5),
        lambda: sg.scan(lambda c, x: (0.5, None), n, v),
        lambda: sg.while_loop(lambda s: s < 3, lambda s: 0.5, n),
        lambda: sg.cond(n > 0, lambda: 0.5, lambda: n),
    ):
        with pytest.raises(sg.DTypeError, match="<- differ"):
            build()


def test_python_numbers_in_branches() -> None:
    v, n = vector(), number()
    assert str(sg.cond(n > 0, lambda: 0.1, lambda: v[0]).dtype) == "float64"
    assert str(sg.cond(n > 0, lambda: 1, lambda: 0.5).dtype) == "float32"
    chosen = sg.switch(n, [lambda: 0.1, lambda: v[1], lambda: 2])
    assert [float(both([v, n], chosen, np.full(4, 0.3), k)) for k in (0, 1, 2)] == [0.1, 0.3, 2.0]


# --- loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lower", "upper"), [(0, 0), (0, 1), (-2, 3), (5, 2), (7, 9)])
def test_fori_loop_bounds(lower: int, upper: int) -> None:
    a, b = number("a"), number("b")
    want = [0, 0]
    for i in range(lower, upper):
        want = [want[0] * 3 + i, want[1] + 1]

    def body(i: Any, s: Any) -> Any:
        return s[0] * 3 + i, s[1] + 1

    outputs = []
    for bounds in ((lower, upper), (lower, b), (a, upper), (a, b), (np.int32(lower), upper)):
        outputs += sg.fori_loop(*bounds, body, (0, 0))
    assert list(map(int, both([a, b], outputs, lower, upper))) == want * 5


def test_fori_loop_to_a_size() -> None:
    v = vector("v", "N")
    total = sg.fori_loop(0, v.shape[0], lambda i, s: s + v[i], 0.0)
    rest = sg.fori_loop(2, v.shape[0], lambda i, s: s + v[i], 0.0)
    gradients = sg.gradients(rest * rest, [v], unreachable="zeros")
    run = sg.compile([v], [total, rest, *gradients], cache=False)
    for n in (0, 1, 2, 3, 9):
        array = np.arange(1.0, n + 1)
        assert run(array)[:2] == (array.sum(), array[2:].sum())
        want = 2 * array[2:].sum() * (np.arange(n) >= 2)
        np.testing.assert_array_equal(run(array)[2], want)
    both([v], [total, rest, *gradients], np.arange(5.0))


def test_while_loop() -> None:
    v, n, limit = vector(), number(), sg.input("limit", (), "float64")
    count, doubled = sg.while_loop(
        lambda s: (s[0] < n) & (s[1].sum() < limit), lambda s: (s[0] + 1, s[1] * 2), (0, v)
    )
    run = sg.compile([v, n, limit], [count, doubled], cache=False)
    for most, bound, want in ((0, 1e9, 0), (-4, 1e9, 0), (5, 1e9, 5), (50, 100.0, 5), (3, 1.0, 0)):
        got = run(np.ones(4), most, bound)
        assert int(got[0]) == want
        np.testing.assert_array_equal(got[1], np.full(4, 2.0**want))
    both([v, n, limit], [count, doubled], np.ones(4), 50, 100.0)


def test_a_condition_may_be_a_number_or_know_its_answer() -> None:
    v, n = vector(), number()
    down = sg.while_loop(lambda s: s, lambda s: s - 1, n)
    never = sg.while_loop(lambda s: False, lambda s: s * 2, v)
    got = both([v, n], [down, never], np.ones(4), 7)
    assert got[0] == 0
    np.testing.assert_array_equal(got[1], np.ones(4))


@pytest.mark.parametrize("most", [0, 1, 3, 10])
def test_while_loop_with_a_bound(most: int) -> None:
    v, n = vector(), number()
    a, i = sg.while_loop(lambda s: s[1] < n, lambda s: (s[0] * 2, s[1] + 1), (v, 0), max_steps=most)
    run = sg.compile([v, n], [a, i], cache=False)
    for limit in (0, 2, 3, 20):
        got, steps = run(np.ones(4), limit)
        assert int(steps) == min(limit, most)
        np.testing.assert_array_equal(got, np.full(4, 2.0 ** min(limit, most)))
    assert float(both([], sg.while_loop(lambda s: s < 1.2, lambda s: s + 0.5, 0, max_steps=most))) \
        == min(0.5 * most, 1.5)  # fmt: skip


# --- choices --------------------------------------------------------------------------------------


def test_cond_and_switch() -> None:
    v, n = vector(), number()
    picked = sg.cond(n > 1, lambda a: (a * 2, n), lambda a: (a - 1, n * 0), v)
    chosen = sg.switch(n, [lambda: v, lambda: v * 2, lambda: v[::-1]])
    single = sg.switch(n, [lambda a: a + 1], v)
    run = sg.compile([v, n], [*picked, chosen, single], cache=False)
    a = np.arange(4.0)
    cases = [a, a * 2, a[::-1]]
    for k in (-(2**63), -1, 0, 1, 2, 3, 2**63 - 1):
        got = run(a, k)
        np.testing.assert_array_equal(got[0], a * 2 if k > 1 else a - 1)
        assert got[1] == (k if k > 1 else 0)
        np.testing.assert_array_equal(got[2], cases[min(max(k, 0), 2)])
        np.testing.assert_array_equal(got[3], a + 1)
    both([v, n], [*picked, chosen, single], a, 2)


def test_choices_known_when_the_graph_is_declared() -> None:
    v = vector()
    assert sg.cond(True, lambda: v, lambda: 1 / 0) is v
    assert sg.cond(np.bool_(False), lambda a: 1 / 0, lambda a: a, v) is v
    assert sg.switch(9, [lambda: 1 / 0, lambda: v]) is v
    assert sg.switch(np.int8(-9), [lambda: v, lambda: 1 / 0]) is v


def test_an_index_of_every_integer_dtype() -> None:
    v = vector()
    for dtype, values in {
        "uint8": (0, 200),
        "int8": (-3, 1),
        "uint64": (1, 2**62),
        "int32": (0, 5),
    }.items():
        n = sg.input("n", (), dtype)
        chosen = sg.switch(n, [lambda: v, lambda: v * 2])
        for value in values:
            got = both([v, n], chosen, np.ones(4), np.array(value, dtype))
            assert got[0] == (2.0 if value >= 1 else 1.0)


BAD = np.array([1, 99])
FINE = np.array([1, 2])


@pytest.mark.parametrize("through", ["captured", "operand"])
def test_what_is_not_chosen_does_not_fail(through: str) -> None:
    v, at, n = vector(), sg.input("at", (2,), "int64"), number()
    if through == "captured":
        chosen = sg.cond(n > 0, lambda: sg.take(v, at).sum(), lambda: v.sum())
        switched = sg.switch(n, [lambda: v[0], lambda: sg.take(v, at)[0], lambda: v[1]])
    else:
        chosen = sg.cond(n > 0, lambda a: sg.take(v, a).sum(), lambda a: v.sum(), at)
        switched = sg.switch(n, [lambda a: v[0], lambda a: sg.take(v, a)[0], lambda a: v[1]], at)
    both([v, at, n], [chosen, switched], np.ones(4), BAD, 0)
    both([v, at, n], [chosen, switched], np.ones(4), FINE, 1)
    for mode in ("native", "reference"):
        with pytest.raises(sg.ExecutionError, match="index 99 is out of range"):
            sg.compile([v, at, n], [chosen, switched], mode=mode)(np.ones(4), BAD, 1)


def test_a_body_that_does_not_run_does_not_fail() -> None:
    v, at, n = vector(), sg.input("at", (2,), "int64"), number()
    looped = sg.while_loop(
        lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] + sg.take(v, at).sum()), (0, v)
    )
    never, _ = sg.scan(lambda c, _: (c + sg.take(v, at).sum(), None), v, length=0)
    both([v, at, n], [looped[1], never], np.ones(4), BAD, 0)
    with pytest.raises(sg.ExecutionError, match="index 99"):
        sg.compile([v, at, n], looped[1])(np.ones(4), BAD, 1)


def test_a_failure_names_the_line() -> None:
    v, at = vector(), sg.input("at", ("T",), "int64")
    total, _ = sg.scan(lambda c, i: (c + v[i], None), 0.0, at)  # the line
    run = sg.compile([v, at], total)
    assert run(np.arange(4.0), np.array([3, 3, -1])) == 9
    with pytest.raises(
        sg.ExecutionError, match=r"index 7 is out of range.*\n?.*test_control.py:\d+"
    ):
        run(np.arange(4.0), np.array([0, 7, 1]))
    assert run(np.arange(4.0), np.array([1])) == 1


# --- random numbers -------------------------------------------------------------------------------


def drawn(outputs: Sequence[Any], inputs: Sequence[Any] = (), *arrays: Any) -> tuple[Any, Any]:
    """The values of two calls, the first of which must be the reference's."""
    sg.random.seed(11)
    want = sg.compile(inputs, outputs, mode="reference")(*arrays)
    sg.random.seed(11)
    run = sg.compile(inputs, outputs, cache=False)
    first = run(*arrays)
    assert_same_bits(first, want)
    return first, run(*arrays)


def test_iterations_draw_other_numbers() -> None:
    _, flat = sg.scan(lambda c, _: (c, sg.random.uniform((2,))), None, length=5)
    _, nested = sg.scan(
        lambda c, _: (c, sg.scan(lambda d, _: (d, sg.random.uniform(())), None, length=3)[1]),
        None, length=4,
    )  # fmt: skip
    in_branch = sg.scan(
        lambda c, i: (c, sg.cond(i % 2 == 0, lambda: sg.random.uniform(()), lambda: 7.0)),
        None, sg.arange(6),
    )[1]  # fmt: skip
    n = number()
    looped = sg.while_loop(
        lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] * 2 + sg.random.uniform(())), (0, 0.0)
    )[1]
    outside = sg.random.uniform((3,))
    outputs = [flat, nested, in_branch, looped, outside]
    first, second = drawn(outputs, [n], 5)
    numbers = np.concatenate([np.ravel(a) for a in (*first[:2], first[2][::2], first[4])])
    assert len(np.unique(numbers)) == numbers.size == 10 + 12 + 3 + 3
    np.testing.assert_array_equal(first[2][1::2], np.full(3, 7.0, "float32"))
    for a, b in zip(first, second):  # the generator has gone on
        assert np.any(a != b)


def test_a_number_drawn_outside_is_one_number() -> None:
    u = sg.random.uniform(())
    _, ys = sg.scan(lambda c, _: (c, u), None, length=3)
    (rows, one), _ = drawn([ys, u])
    np.testing.assert_array_equal(rows, np.full(3, one))


def test_gradients_see_the_numbers_that_were_drawn() -> None:
    w = sg.parameter(np.ones(3), name="w")
    for k in (None, 2):
        r, _ = sg.scan(
            lambda c, _: (c * sg.random.uniform((3,), dtype="float64"), None), w, length=5,
            checkpoint=k,
        )  # fmt: skip
        (value, gradient), _ = drawn([r, *sg.gradients(r.sum(), [w])])
        np.testing.assert_allclose(value, gradient, rtol=1e-14)
    c = sg.checkpoint(lambda a: a * sg.random.uniform((3,), dtype="float64"))(w)
    (value, gradient), _ = drawn([c, *sg.gradients(c.sum(), [w])])
    np.testing.assert_array_equal(value, gradient)


# --- nested ---------------------------------------------------------------------------------------


def test_a_scan_in_a_scan_in_a_cond_in_a_while() -> None:
    v, n = vector("v", 3), number()

    def inner(carry: Any, x: Any) -> Any:
        total, rows = sg.scan(lambda c, y: (c * 0.5 + x * y, c), carry, v)
        return total, rows.sum()

    def body(state: Any) -> Any:
        i, u = state
        u = sg.cond(i % 2 == 0, lambda a: sg.scan(inner, a.sum(), a)[1], lambda a: a - v, u)
        return i + 1, u

    result = sg.while_loop(lambda s: s[0] < n, body, (0, v))[1]
    got = both([v, n], result, np.array([0.5, -1.0, 0.25]), 5, exact=False)
    a = u = np.array([0.5, -1.0, 0.25])
    for i in range(5):
        if i % 2:
            u = u - a
            continue
        carry, sums = u.sum(), []
        for x in u:
            rows = []
            for y in a:
                rows.append(carry)
                carry = carry * 0.5 + x * y
            sums.append(sum(rows))
        u = np.array(sums)
    np.testing.assert_allclose(got, u, rtol=1e-12)


# --- errors ---------------------------------------------------------------------------------------


def test_types_that_differ_are_shown_side_by_side() -> None:
    v = vector("v", 3)
    with pytest.raises(sg.DTypeError) as caught:
        sg.scan(
            lambda c, _: ({"a": c["a"], "b": sg.astype(c["b"], "float32")}, None),
            {"a": v, "b": v},
            length=2,
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "scan: the body changes the carry's type"
    assert [line.split() for line in lines[1:4]] == [
        ["carry", "in", "carry", "out"], ["['a']", "float64[3]", "float64[3]"],
        ["['b']", "float64[3]", "float32[3]", "<-", "differ"],
    ]  # fmt: skip
    assert "test_control.py:" in lines[-1]
    with pytest.raises(sg.ShapeError, match=r"value +float64\[3\] +float64\[2\] +<- differ"):
        sg.while_loop(lambda s: s.sum() > 0, lambda s: s[:2], v)
    with pytest.raises(sg.ShapeError, match=r"while_loop(.|\n)* <- differ"):
        sg.while_loop(lambda s: s.sum() > 0, lambda s: s[:2], v, max_steps=3)
    with pytest.raises(sg.DTypeError, match=r"false +true\n +value +float64\[3\] +bool\[3\]"):
        sg.cond(v[0] > 0, lambda: v > 0, lambda: v)
    with pytest.raises(sg.ShapeError, match=r"branch 0 +branch 2"):
        sg.switch(sg.astype(v[0], "int64"), [lambda: v, lambda: v, lambda: v[:1]])


V, W, N = vector("v", 3), sg.input("w", (4, 3), "float64"), number()
SAME = lambda c, x: (c, None)  # noqa: E731
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no pair": (lambda: sg.scan(lambda c, x: c, V, W), sg.ArgumentTypeError, "a pair"),
    "a list": (lambda: sg.scan(lambda c, x: [c, c], V, W), sg.ArgumentTypeError, "a pair"),
    "three": (lambda: sg.scan(lambda c, x: (c, c, c), V, W), sg.ArgumentTypeError, "a pair"),
    "structure": (
        lambda: sg.scan(lambda c, x: ((c, c), None), V, W), sg.ArgumentTypeError,
        "changes the carry's structure",
    ),
    "keys": (
        lambda: sg.while_loop(lambda s: True, lambda s: {"b": s["a"]}, {"a": V}),
        sg.ArgumentTypeError, r"\['b'\]",
    ),
    "lengths": (
        lambda: sg.scan(SAME, V, (W, V)), sg.ShapeError,
        r"the lengths differ: xs\[0\] has 4, xs\[1\] has 3\n",
    ),
    "lengths by name": (
        lambda: sg.scan(SAME, V, {"w": W, "v": [V]}), sg.ShapeError,
        r"differ: xs\['v'\]\[0\] has 3, xs\['w'\] has 4\n",
    ),
    "length and xs": (
        lambda: sg.scan(SAME, V, W, length=5), sg.ShapeError,
        "the lengths differ: length=5, xs has 4\n",
    ),
    "no length": (lambda: sg.scan(SAME, V), sg.ArgumentError, "length="),
    "negative": (lambda: sg.scan(SAME, V, length=-1), sg.ArgumentError, "negative, got -1"),
    "float length": (lambda: sg.scan(SAME, V, length=2.0), sg.ArgumentTypeError, "an int"),
    "bool length": (lambda: sg.scan(SAME, V, length=True), sg.ArgumentTypeError, "an int"),
    "tensor length": (lambda: sg.scan(SAME, V, length=N), sg.ArgumentTypeError, "an int"),
    "too long": (lambda: sg.scan(SAME, V, length=2**63), sg.ArgumentError, "int64"),
    "xs without axes": (lambda: sg.scan(SAME, V, N), sg.ShapeError, "first axis"),
    "xs of text": (lambda: sg.scan(SAME, V, "abc"), sg.ArgumentTypeError, "xs"),
    "init of text": (lambda: sg.scan(SAME, "abc", W), sg.ArgumentTypeError, "init"),
    "carry of text": (lambda: sg.scan(lambda c, x: ("c", x), V, W), sg.ArgumentTypeError, "carry"),
    "y of text": (lambda: sg.scan(lambda c, x: (c, "y"), V, W), sg.ArgumentTypeError, "y"),
    "checkpoint 0": (lambda: sg.scan(SAME, V, W, checkpoint=0), sg.ArgumentError, '"sqrt"'),
    "checkpoint text": (lambda: sg.scan(SAME, V, W, checkpoint="log"), sg.ArgumentError, "'log'"),
    "checkpoint bool": (lambda: sg.scan(SAME, V, W, checkpoint=True), sg.ArgumentError, '"sqrt"'),
    "sqrt of a symbol": (
        lambda: sg.scan(SAME, V, sg.input("u", ("T",)), checkpoint="sqrt"), sg.ArgumentError,
        "number of states",
    ),
    "scan of what": (lambda: sg.scan(3, V, W), sg.ArgumentTypeError, "f must be a function"),
    "fori of what": (lambda: sg.fori_loop(0, 3, None, V), sg.ArgumentTypeError, "body must be"),
    "while of what": (
        lambda: sg.while_loop(True, lambda s: s, V), sg.ArgumentTypeError, "condition must be",
    ),
    "cond of what": (lambda: sg.cond(N > 0, V, lambda: V), sg.ArgumentTypeError, "true_fn must be"),
    "known cond": (lambda: sg.cond(True, lambda: V, V), sg.ArgumentTypeError, "false_fn must be"),
    "switch of what": (
        lambda: sg.switch(N, [lambda: V, 5]), sg.ArgumentTypeError, r"branches\[1\] must be",
    ),
    "no branches": (lambda: sg.switch(N, []), sg.ArgumentError, "at least one"),
    "no list": (lambda: sg.switch(N, lambda: V), sg.ArgumentTypeError, "list of functions"),
    "float index": (lambda: sg.switch(V[0], [lambda: V]), sg.DTypeError, "one integer"),
    "indices": (
        lambda: sg.switch(sg.astype(V, "int64"), [lambda: V]), sg.DTypeError, "one integer",
    ),
    "predicates": (lambda: sg.cond(V > 0, lambda: V, lambda: V), sg.ShapeError, r"\.all\(\)"),
    "conditions": (
        lambda: sg.while_loop(lambda s: s > 0, lambda s: s, V), sg.ShapeError, r"\.any\(\)",
    ),
    "a tuple of conditions": (
        lambda: sg.while_loop(lambda s: (True, True), lambda s: s, V), sg.ArgumentTypeError,
        "one bool",
    ),
    "no condition": (
        lambda: sg.while_loop(lambda s: None, lambda s: s, V), sg.ArgumentTypeError, "one bool",
    ),
    "max_steps of 2.5": (
        lambda: sg.while_loop(lambda s: True, lambda s: s, V, max_steps=2.5),
        sg.ArgumentTypeError, "max_steps must be an int",
    ),
    "max_steps of -1": (
        lambda: sg.while_loop(lambda s: True, lambda s: s, V, max_steps=-1), sg.ArgumentError,
        "negative",
    ),
    "float bound": (lambda: sg.fori_loop(0, 2.5, SAME, V), sg.ArgumentTypeError, "integers"),
    "float tensor": (lambda: sg.fori_loop(0, V[0], SAME, V), sg.DTypeError, "integer"),
    "bounds": (lambda: sg.fori_loop(0, V, SAME, V), sg.DTypeError, "without axes"),
    "stored states of a while loop": (
        lambda: sg.fori_loop(0, N, SAME, V, checkpoint=2), sg.ArgumentError, "bounds that are ints",
    ),
    "structures": (
        lambda: sg.cond(N > 0, lambda: (V, V), lambda: V), sg.ArgumentTypeError, "structures",
    ),
    "inside": (lambda: sg.scan(lambda c, x: (c @ W, x), V, W), sg.ShapeError, "matmul"),
    "if": (
        lambda: sg.scan(lambda c, x: (c if c.sum() > 0 else -c, x), V, W), sg.ArgumentTypeError,
        r"sg\.cond(.|\n)*sg\.where(.|\n)*dynamic mode",
    ),
    "checkpoint of what": (lambda: sg.checkpoint(5), sg.ArgumentTypeError, "a function"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    build, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text) as caught:
        build()
    assert "test_control.py:" in str(caught.value)


def test_sizes_that_disagree_at_run_time() -> None:
    a, b = vector("a", "N"), vector("b", "M")
    _, ys = sg.scan(lambda c, x: (c, x[0] * x[1]), None, (a, b))
    run = sg.compile([a, b], ys)
    np.testing.assert_array_equal(run(np.arange(3.0), np.arange(3.0)), [0, 1, 4])
    with pytest.raises(sg.BindError, match="differ in length"):
        run(np.arange(3.0), np.arange(4.0))


def test_a_value_of_a_body_does_not_leave_it() -> None:
    kept: list[Any] = []
    sg.scan(lambda c, x: (kept.append(c) or c, None), V, W)
    with pytest.raises(sg.GraphError, match="c0"):
        sg.compile([V], kept[0] + V)
