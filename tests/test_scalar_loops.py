"""Loops over a few numbers as one kernel: which are, and that no bit changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.kernels.ir import Loop
from staticgrad.kernels.program import Program, Repeat, Step
from staticgrad.kernels.verify import verify_program
from staticgrad.passes.lowering import scalar_loops

Array = np.ndarray[Any, Any]
Body = Callable[[Any, Any], Any]
X = sg.input("x", (), "float64")
UNARY = """exp log sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc sigmoid
softplus expm1 log1p sqrt rsqrt cbrt square abs floor round gelu silu"""


def stages(inputs: list[Any], outputs: list[Any], **options: Any) -> Program:
    program = compile_stages(sg.Graph(inputs, outputs), **options).program
    verify_program(program)
    return program


def loops(program: Program) -> list[Step]:
    """The steps that are loops themselves."""
    return [
        s for s in program.steps
        if any(isinstance(t, Loop) and t.kind == "serial" and t.carries for t in s.kernel.body)
    ]  # fmt: skip


def both(inputs: list[Any], outputs: list[Any], *arrays: Any) -> list[Array]:
    """The results, which have the same bits without the pass."""
    found = []
    for off in ((), ("scalar_loops",), ("scalar_loops", "in_place", "fuse")):
        run = sg.compile(inputs, outputs, disable=off, cache=False)
        found.append([np.asarray(r) for r in run(*arrays)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            if a.dtype.kind == "f":  # the sign of a NaN is nobody's business
                a, b = (np.where(np.isnan(x), x.dtype.type(np.nan), x) for x in (a, b))
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return found[0]


# --- which ----------------------------------------------------------------------------------------


def test_a_descent_holds_its_number_in_a_register() -> None:
    end = sg.fori_loop(0, 1000, lambda i, x: x - 0.02 * (2 * x - 4), X)
    program = stages([X], [end])
    (step,) = loops(program)
    assert not any(isinstance(i, Repeat) for i in program.items)
    (loop,) = [s for s in step.kernel.body if isinstance(s, Loop)]
    assert loop.carries and not any("store" in type(s).__name__.lower() for s in loop.body)
    assert step.flops == 4000
    (other,) = [i for i in stages([X], [end], disable=("scalar_loops",)).items
                if isinstance(i, Repeat)]  # fmt: skip
    assert other.length == 1000
    x = 10.0
    for _ in range(1000):
        x = x - 0.02 * (2 * x - 4)
    assert both([X], [end], np.float64(10.0))[0] == x


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda i, x: x * sg.sum(sg.cos(x + sg.arange(300.0))), id="a sum"),
        pytest.param(lambda i, x: sg.cond(x > 0, lambda: x - 1, lambda: x + 1), id="a choice"),
    ],
)
def test_what_is_no_straight_line_stays_a_region(body: Body) -> None:
    end = sg.fori_loop(0, 50, body, X)
    program = stages([X], [end])
    assert not loops(program) and any(isinstance(i, Repeat) for i in program.items)


def test_a_failing_iteration_ends_the_loop() -> None:
    end = sg.fori_loop(0, 50, lambda i, x: sg.sqrt(x) - 1, X)
    run = sg.compile([X], [end], check="nan")
    with pytest.raises(sg.ExecutionError, match="NaN"):
        run(np.float64(3.0))


# --- bits -----------------------------------------------------------------------------------------


def test_numbers_that_trade_places() -> None:
    a, b = sg.input("a", (), "int64"), sg.input("b", (), "int64")
    ends = sg.fori_loop(0, 50, lambda i, ab: (ab[1], ab[0] + ab[1]), (a, b))
    assert len(loops(stages([a, b], list(ends)))) == 1
    assert [int(v) for v in both([a, b], list(ends), 0, 1)] == [12586269025, 20365011074]


@pytest.mark.parametrize("length", [0, 1, 2, 7])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_read_and_stack_numbers(length: int, reverse: bool) -> None:
    xs = sg.input("xs", ("T",), "float64")

    def body(carry: Any, x: Any) -> Any:
        total, count = carry
        return (total * 0.5 + x, count + 1), (total, x > total)

    (total, count), (before, larger) = sg.scan(body, (X, np.int64(0)), xs, reverse=reverse)
    outputs = [total, count, before, larger]
    assert len(loops(stages([X, xs], outputs))) == 1
    values = np.random.default_rng(length).standard_normal(length)
    got = both([X, xs], outputs, np.float64(3.0), values)
    t, seen, above = 3.0, np.zeros(length), np.zeros(length, bool)
    for i in reversed(range(length)) if reverse else range(length):
        seen[i], above[i] = t, values[i] > t
        t = t * 0.5 + values[i]
    assert got[0] == t and got[1] == length
    np.testing.assert_array_equal(got[2], seen)
    np.testing.assert_array_equal(got[3], above)


@pytest.mark.parametrize("checkpoint", [None, "sqrt", 3])
def test_gradients_through_time(checkpoint: Any) -> None:
    xs = sg.input("xs", (20,), "float64")

    def body(c: Any, x: Any) -> Any:
        c = sg.tanh(c * x) + 0.1 * c
        return c, c * c

    end, ys = sg.scan(body, X, xs, checkpoint=checkpoint)
    loss = end + sg.sum(ys)
    got = both(
        [X, xs], [loss, *sg.gradients(loss, [X, xs])], np.float64(0.7), np.linspace(-1, 2, 20)
    )

    def f(x: float, xs: Array) -> float:
        total = 0.0
        for v in xs:
            x = np.tanh(x * v) + 0.1 * x
            total += x * x
        return float(x + total)

    at, h = np.linspace(-1, 2, 20), 1e-6
    np.testing.assert_allclose(got[0], f(0.7, at), rtol=1e-12)
    np.testing.assert_allclose(got[1], (f(0.7 + h, at) - f(0.7 - h, at)) / 2 / h, rtol=1e-6)
    steps = np.eye(20) * h
    expected = [(f(0.7, at + s) - f(0.7, at - s)) / 2 / h for s in steps]
    np.testing.assert_allclose(got[2], expected, rtol=1e-6, atol=1e-8)


def test_a_nested_loop() -> None:
    def inner(i: Any, x: Any) -> Any:
        return sg.fori_loop(0, 5, lambda j, u: u * 0.75 + sg.astype(i * j, "float64"), x)

    end = sg.fori_loop(0, 6, inner, X)
    program = stages([X], [end])
    assert len(loops(program)) == 1
    x = 1.5
    for i in range(6):
        for j in range(5):
            x = x * 0.75 + i * j
    assert both([X], [end], np.float64(1.5))[0] == x


def test_loops_in_a_choice_and_behind_one_another() -> None:
    def slow(x: Any) -> Any:
        return sg.fori_loop(0, 9, lambda i, u: u * 1.25 - 1, x)

    first = sg.cond(X > 0, lambda: slow(X), lambda: slow(-X) * 2)
    second = slow(first + 1)
    assert len(loops(stages([X], [first, second]))) == 3
    for x in (2.0, -3.0):
        both([X], [first, second], np.float64(x))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_long_loops_run_in_pieces(
    length: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a length that is not known, or that is large: there they can be interrupted."""
    monkeypatch.setattr(scalar_loops, "PIECE_OPERATIONS", 128)
    xs = sg.input("xs", ("T",), "float64")
    end, ys = sg.scan(lambda c, x: (c * 0.5 + x, c), X, xs, reverse=reverse)
    program = stages([X, xs], [end, ys])
    (region,) = [i for i in program.items if isinstance(i, Repeat)]
    assert region.pieces and len(region.items) == 1 and len(loops(program)) == 1
    values = np.random.default_rng(1).standard_normal(length)
    got = both([X, xs], [end, ys], np.float64(3.0), values)
    c, seen = 3.0, []
    for v in values[::-1] if reverse else values:
        seen.append(c)
        c = c * 0.5 + v
    assert got[0] == c
    np.testing.assert_array_equal(got[1], seen[::-1] if reverse else seen)


def test_state_is_read_and_written_around_it() -> None:
    w = sg.parameter(np.float64(2.0), "w")
    end = sg.fori_loop(0, 10, lambda i, u: u - 0.1 * (u - w), X)
    found = []
    for off in ((), ("scalar_loops",)):
        w.assign(np.float64(2.0))
        run = sg.compile([X], [end], updates=[(w, w + end)], disable=off, cache=False)
        found.append([float(run(np.float64(5.0))[0]), float(run(np.float64(5.0))[0]), w.numpy()])
    assert found[0] == found[1]


# --- small vectors --------------------------------------------------------------------------------


def lorenz(s: Any, p: Any) -> Any:
    x, y, z = s[0], s[1], s[2]
    return sg.stack([p[0] * (y - x), x * (p[1] - z) - y, x * y - p[2] * z])


def runge_kutta(s: Any, p: Any, h: float = 0.01) -> Any:
    k1 = lorenz(s, p)
    k2 = lorenz(s + 0.5 * h * k1, p)
    k3 = lorenz(s + 0.5 * h * k2, p)
    k4 = lorenz(s + h * k3, p)
    return s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def test_a_differential_equation_and_its_gradient() -> None:
    s, p = sg.input("s", (3,), "float64"), sg.input("p", (3,), "float64")
    end, path = sg.scan(lambda c, _: (runge_kutta(c, p), c), s, length=50)
    loss = sg.sum(end * end)
    outputs = [end, path, *sg.gradients(loss, [s, p])]
    program = stages([s, p], outputs)
    assert len(loops(program)) == 2 and not any(isinstance(i, Repeat) for i in program.items)
    at, of = np.ones(3), np.array([10.0, 28.0, 8 / 3])
    got = both([s, p], outputs, at, of)

    def run(at: Array, of: Array) -> Array:
        def slope(v: Array) -> Array:
            x, y, z = v
            return np.array([of[0] * (y - x), x * (of[1] - z) - y, x * y - of[2] * z])

        for _ in range(50):
            k1 = slope(at)
            k2 = slope(at + 0.005 * k1)
            k3 = slope(at + 0.005 * k2)
            at = at + 0.01 / 6 * (k1 + 2 * k2 + 2 * k3 + slope(at + 0.01 * k3))
        return at

    np.testing.assert_allclose(got[0], run(at, of), rtol=1e-11)
    assert got[1].shape == (50, 3)
    for gradient, number in ((got[2], 0), (got[3], 1)):
        for i, h in enumerate(np.eye(3) * 1e-5):
            more, less = [at, of], [at, of]
            more[number], less[number] = more[number] + h, less[number] - h
            slope = (np.sum(run(*more) ** 2) - np.sum(run(*less) ** 2)) / 2e-5
            np.testing.assert_allclose(gradient[i], slope, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (8,), (2, 3), (2, 2, 2), (0,), (3, 0), (1, 4)])
def test_up_to_eight_elements(shape: tuple[int, ...]) -> None:
    v = sg.input("v", shape)

    def body(c: Any, _: Any) -> Any:
        turned = sg.flip(c, axis=-1) * 0.5 + c
        return sg.concat([turned[..., 1:], turned[..., :1]], axis=-1) * 0.75, c

    end, path = sg.scan(body, v, length=6)
    program = stages([v], [end, path])
    assert len(loops(program)) == (0 if 0 in shape else 1)
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    got = both([v], [end, path], x)
    for i in range(6):
        np.testing.assert_allclose(got[1][i], x, rtol=1e-5)
        turned = (x[..., ::-1] * np.float32(0.5) + x).astype("float32")
        x = np.roll(turned, -1, -1) * np.float32(0.75)
    np.testing.assert_allclose(got[0], x, rtol=1e-5)


@pytest.mark.parametrize("shape", [(9,), (3, 3), ("N",)])
def test_of_more_or_of_unknown_size_not(shape: Any) -> None:
    v = sg.input("v", shape)
    end = sg.fori_loop(0, 6, lambda i, c: sg.tanh(c) + 1, v)
    assert not loops(stages([v], [end]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_have_the_bits_of_vectors(dtype: str) -> None:
    """One number at a time instead of some in lanes."""
    functions = [f for n in UNARY.split() if (f := getattr(sg, n, None)) is not None]
    assert len(functions) > 20
    v, xs = sg.input("v", (5,), dtype), sg.input("xs", (40, 5), dtype)

    def check(some: list[Any]) -> None:
        _, ys = sg.scan(lambda c, x: (c * 0.5, tuple(f(x + c) for f in some)), v, xs)
        assert len(loops(stages([v, xs], list(ys)))) == 1
        at = np.random.default_rng(len(some)).standard_normal((40, 5)).astype(dtype)
        both([v, xs], list(ys), np.zeros(5, dtype), at)

    for first in range(0, len(functions), 4):
        check(functions[first : first + 4])


@pytest.mark.parametrize("seed", range(30))
def test_random_bodies(seed: int) -> None:
    """Numbers of several dtypes, read before and after they are set, some of them stacked."""
    rng = np.random.default_rng(seed)
    dtypes = [str(rng.choice(["float32", "float64", "int32", "bool"])) for _ in range(4)]
    starts = [sg.input(f"s{i}", (), d) for i, d in enumerate(dtypes)]
    xs = sg.input("xs", ("T",), "float32")

    def mixed(a: Any, b: Any, dtype: str) -> Any:
        if dtype == "bool":
            return sg.astype(a, "float64") > sg.astype(b, "float64") - 0.5
        kind = int(rng.integers(4))
        a, b = sg.astype(a, dtype), sg.astype(b, dtype)
        if dtype == "int32":
            return (a + b, a - 3 * b, sg.maximum(a, b), a * 5 + 1)[kind]
        return (a * 0.5 + b * 0.25, sg.sin(a + b), sg.where(a > b, a - b, b * 0.5), -a)[kind]

    def body(state: Any, x: Any) -> Any:
        known = [*state, x]
        for _ in range(int(rng.integers(3, 9))):
            a, b = (known[int(i)] for i in rng.integers(len(known), size=2))
            known.append(mixed(a, b, dtypes[int(rng.integers(4))]))
        following = []
        for d in dtypes:
            of_dtype = [v for v in known if str(v.dtype).endswith(d)]
            following.append(of_dtype[int(rng.integers(len(of_dtype)))])
        picked = [known[int(i)] for i in rng.integers(len(known), size=2)]
        return tuple(following), tuple(picked)

    ends, stacks = sg.scan(body, tuple(starts), xs, reverse=bool(seed % 2))
    arrays = [np.asarray(rng.integers(0, 2) if d == "bool" else rng.integers(-3, 4)).astype(d)
              for d in dtypes]  # fmt: skip
    for length in (0, 1, 13):
        values = rng.standard_normal(length).astype("float32")
        both([*starts, xs], [*ends, *stacks], *arrays, values)
