"""Random numbers: Philox against its published vectors, distributions, determinism, rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats
from staticgrad.api.compile import compile_graph
from staticgrad.autodiff.batching import batched
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dtype import uint64
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.graph import Graph
from staticgrad.ops import random, registry
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad_runtime.philox_native import philox_words

from .oracle import check_no_gradient, check_record

N = 200_000
# Tests of a fixed seed either always pass or never; this asks that they be no rare accident.
LEAST_P = 1e-3


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    before = random.default_generator().numpy()
    random.seed(0)
    yield
    random.default_generator().assign(before)


def value(t: Any, state: Any = None) -> np.ndarray:
    given = None if state is None else {random.default_generator(): np.array(state, np.uint64)}
    return run_graph(Graph([], [t]), [], given)[0][0]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_philox_gives_the_vectors_that_random123_publishes(
    counter: Any, key: Any, expected: Any
) -> None:
    assert tuple(int(w) for w in random.philox(counter, key)) == expected


def test_record() -> None:
    op = registry.get("random_bits")
    check_record(op)
    check_no_gradient(op)
    assert "random" in op.traits


def test_the_counter_is_laid_out_as_documented() -> None:
    seed, step, site = 0x0123456789ABCDEF, 0x00FEDCBA98765432, 7
    found = random.reference_bits((seed, step), site, (2, 3), uint64, 1)
    words = random.philox((np.arange(6), 0xFEDCBA << 8, site, 0x98765432), (0x89ABCDEF, 0x01234567))
    assert (found.ravel() == words[1] + (words[2].astype(np.uint64) << np.uint64(32))).all()


@pytest.mark.parametrize("size", [3, "B"])
@pytest.mark.parametrize("shape", [(), (2,), (5,), (2, 17)])
def test_batched_keys_draw_what_each_draws_alone(size: Any, shape: Any) -> None:
    """Also where a key is computed beside the draw, in a place of the result's own shape."""
    keys = np.array([[1, 0], [2, 7], [2**63 + 5, 2**40 + 3]], np.uint64)
    one, many = declare("key", (2,), "uint64"), declare("keys", (size, 2), "uint64")
    first, second = random.split(one)
    drawn = [
        random.bits(shape, one), random.uniform(shape, key=first, dtype="float64"),
        random.randint(0, 10, shape, key=second), random.split(one, 3),
        random.bits((2,), random.bits((2,), one ^ 1, "uint64") ^ 7, "uint64"),
    ]  # fmt: skip
    together = [t for t, _ in batched(drawn, {one: many}, many.shape[0])]
    found = compile_graph(Graph([many], together), cache=False)(keys)
    alone = [run_graph(Graph([one], drawn), [key])[0] for key in keys]
    for got, rows in zip(found, zip(*alone), strict=True):
        np.testing.assert_array_equal(got, rows)


# --- distributions --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers(dtype: str) -> None:
    u = value(random.uniform((N,), dtype=dtype))
    assert u.dtype == dtype and u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.astype("float64"), "uniform").pvalue > LEAST_P
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert stats.chisquare(counts).pvalue > LEAST_P
    steps = u.astype("float64") * (2**24 if dtype == "float32" else 2**53)
    assert (steps == np.floor(steps)).all()
    shifted = value(random.uniform((N,), -3, 5, dtype=dtype))
    assert shifted.min() >= -3 and shifted.max() < 5 and abs(shifted.mean() - 1) < 0.02


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers(dtype: str) -> None:
    z = value(random.normal((N,), dtype=dtype))
    assert z.dtype == dtype
    assert stats.kstest(z.astype("float64"), "norm").pvalue > LEAST_P
    wide = z.astype("float64")
    # Standard errors of the first four moments of N standard normal numbers.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((wide**power).mean() - moment) < 4 * np.sqrt(variance / N)
    moved = value(random.normal((N,), dtype=dtype, mean=5.0, std=0.1))
    assert abs(moved.mean() - 5) < 1e-3 and abs(moved.std() - 0.1) < 1e-3


def test_the_tails_of_normal_numbers() -> None:
    z = value(random.normal((1_000_000,)))
    for limit in (3.0, 4.0):
        expected = 1e6 * 2 * stats.norm.sf(limit)
        assert abs((abs(z) > limit).sum() - expected) < 4 * np.sqrt(expected)
    # The least radius word there is gives 6.76 standard deviations, not infinity.
    assert np.isfinite(z).all()


def test_bernoulli() -> None:
    hits = value(random.bernoulli(0.3, (N,)))
    assert hits.dtype == bool and abs(hits.mean() - 0.3) < 4 * np.sqrt(0.21 / N)
    assert not value(random.bernoulli(0.0, (N,))).any() and value(random.bernoulli(1, (N,))).all()
    p = np.array([0.0, 0.25, 1.0])
    found = value(random.bernoulli(p, (50_000, 3))).mean(axis=0)
    assert found[0] == 0 and abs(found[1] - 0.25) < 0.01 and found[2] == 1
    assert random.bernoulli(declare("p", ("N", 3))).shape == declare("p", ("N", 3)).shape


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_integers(dtype: str) -> None:
    low, high = (10, 17) if dtype.startswith("u") else (-3, 4)
    found = value(random.randint(low, high, (70_000,), dtype=dtype))
    assert found.dtype == dtype
    counts = np.bincount(found.astype(int) - low)
    assert len(counts) == 7 and stats.chisquare(counts).pvalue > LEAST_P
    info = np.iinfo(dtype)
    ends = value(random.randint(info.min, int(info.max) + 1, (20_000,), dtype=dtype))
    scaled = (ends.astype("float64") - float(info.min)) / 2.0**info.bits
    assert stats.kstest(scaled, "uniform").pvalue > LEAST_P or info.bits == 8
    assert abs(scaled.mean() - 0.5) < 0.01


@pytest.mark.parametrize("n", [1, 3, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 3**40, 2**64 - 1, 2**64])
def test_scaling_of_integers_is_exact(n: int) -> None:
    x = value(random.bits((64,), random.key(1), "uint64"))
    found = value(random._scaled(random.bits((64,), random.key(1), "uint64"), n))
    assert [int(v) for v in found] == [int(v) * n >> 64 for v in x]


# --- determinism and independence -----------------------------------------------------------------


def test_seed_step_site_and_element_decide() -> None:
    a = random.uniform((1000,))
    b = random.uniform((1000,))
    base = value(a, (5, 9))
    assert (base == value(a, (5, 9))).all()
    others = (value(a, (6, 9)), value(a, (5, 10)), value(a, (5 + 2**32, 9)), value(b, (5, 9)),
              value(a, (5, 9 + 2**32)), value(a, (9, 5)))  # fmt: skip
    for other in others:
        assert (base != other).mean() > 0.99
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.1
    assert len(np.unique(value(random.bits((N,), dtype="uint64")))) == N


def test_a_number_depends_on_its_place_alone() -> None:
    key = random.key(3)
    line = value(random.normal((24,), key))
    assert (value(random.normal((2, 3, 4), key)).ravel() == line).all()
    assert (value(random.normal((100,), key))[:24] == line).all()
    n = declare("x", ("N",))
    found = run_graph(Graph([n], [random.normal(("N",), key)]), [np.zeros(24, "float32")])[0][0]
    assert (found == line).all()


def test_seed_repeats_the_numbers_of_programs_declared_again() -> None:
    first = [value(random.normal((8,))), value(random.uniform((8,)))]
    random.seed(0)
    again = [value(random.normal((8,))), value(random.uniform((8,)))]
    assert all((a == b).all() for a, b in zip(first, again))
    random.seed(1)
    assert (value(random.normal((8,))) != first[0]).all()
    assert random.default_generator().numpy().tolist() == [1, 0]


def test_the_generator_is_state_that_is_not_trained() -> None:
    state = random.default_generator()
    assert state is random.default_generator()
    assert state.name == "generator" and not state.trainable and str(state.type) == "uint64[2]"
    graph = Graph([], [random.normal((2,)) + random.uniform((2,))])
    assert graph.state == (state,)


def test_explicit_keys_are_pure() -> None:
    a, b = random.split(random.key(7))
    first, same, other = (value(random.uniform((100,), key=k)) for k in (a, a, b))
    assert (first == same).all() and (first != other).any()
    given = np.array([7, 0], np.uint64)
    assert (value(random.normal((5,), given)) == value(random.normal((5,), random.key(7)))).all()
    keys = value(random.split(random.key(7), 1000))
    assert keys.shape == (1000, 2) and len(np.unique(keys[:, 0])) == 1000


def test_no_gradient_passes_but_scale_and_shift_have_theirs() -> None:
    scale = declare("scale", (3,), "float64")
    noise = random.normal((3,), random.key(0), "float64")
    g = gradients((noise * scale).sum(), scale)
    found = run_graph(Graph([scale], [g, noise]), [np.ones(3)])[0]
    assert (found[0] == found[1]).all()


# --- first values on the host ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_host_initialisers(dtype: str) -> None:
    u = random.init_uniform((300, 400), -2.0, 2.0, dtype)
    z = random.init_normal((300, 400), 1.0, 0.5, dtype)
    assert u.dtype == z.dtype == dtype and u.shape == z.shape == (300, 400)
    assert u.min() >= -2 and u.max() < 2
    assert stats.kstest(u.ravel().astype("float64"), "uniform", (-2, 4)).pvalue > LEAST_P
    assert stats.kstest(z.ravel().astype("float64"), "norm", (1, 0.5)).pvalue > LEAST_P
    random.seed(0)
    assert (random.init_uniform((300, 400), -2.0, 2.0, dtype) == u).all()
    assert (random.init_uniform((300, 400), -2.0, 2.0, dtype) != u).mean() > 0.99


def test_host_draws_leave_compiled_numbers_alone() -> None:
    first = value(random.normal((4,)))
    random.seed(0)
    random.init_normal((4,))
    assert (value(random.normal((4,))) == first).all()
    assert random.default_generator().numpy().tolist() == [0, 0]


# --- errors ---------------------------------------------------------------------------------------


def test_arguments_are_checked() -> None:
    cases: list[tuple[type[Exception], Any]] = [
        (ArgumentTypeError, lambda: random.seed(1.5)),
        (ArgumentTypeError, lambda: random.seed(True)),
        (ArgumentError, lambda: random.seed(-1)),
        (ArgumentError, lambda: random.key(2**64)),
        (DTypeError, lambda: random.normal((2,), dtype="int32")),
        (DTypeError, lambda: random.uniform((2,), key=np.array([1, 2]))),
        (DTypeError, lambda: random.normal((2,), key=np.zeros(3, np.uint64))),
        (DTypeError, lambda: random.normal((2,), key=np.zeros((5, 2), np.uint64))),
        (DTypeError, lambda: random.split(np.zeros((5, 2), np.uint64))),
        (DTypeError, lambda: random.bits((2,), dtype="int32")),
        (ArgumentError, lambda: random.uniform((2,), 1.0, 0.0)),
        (ArgumentError, lambda: random.uniform((2,), -3e38, 3e38)),
        (ArgumentError, lambda: random.uniform((2,), 0.0, np.inf)),
        (ArgumentTypeError, lambda: random.uniform((2,), "a", 1.0)),
        (ArgumentError, lambda: random.normal((2,), std=-1.0)),
        (ArgumentError, lambda: random.bernoulli(1.5, (2,))),
        (ShapeError, lambda: random.bernoulli(np.zeros((2, 3)), (3,))),
        (DTypeError, lambda: random.bernoulli(np.array([1, 0]))),
        (ArgumentError, lambda: random.randint(3, 3, (2,))),
        (ArgumentError, lambda: random.randint(0, 300, (2,), dtype="uint8")),
        (ArgumentTypeError, lambda: random.randint(0.0, 3, (2,))),
        (DTypeError, lambda: random.randint(0, 3, (2,), dtype="float32")),
        (ShapeError, lambda: random.init_normal(("N",))),
        (ArgumentError, lambda: random.init_normal((2,), 0.0, -1.0)),
    ]
    for error, function in cases:
        with pytest.raises(error, match=r"\n  at test_ops_random.py:"):
            function()
    assert value(random.uniform((3,), 2.0, 2.0)).tolist() == [2, 2, 2]
    assert value(random.normal(())).shape == () and value(random.uniform(0)).shape == (0,)


# --- native first values --------------------------------------------------------------------------


@pytest.mark.parametrize("word", [0, 2])
@pytest.mark.parametrize(
    "state", [(0, 0), (2**64 - 1, 3), (0x243F6A8885A308D3, 2**50 + 7)], ids=str
)
def test_native_words_are_those_of_numpy(state: tuple[int, int], word: int) -> None:
    for first, count in ((0, 1), (0, 16), (5, 33), (2**32 - 8, 40), (2**39, 17)):
        found = philox_words(
            first, count, *state, random.HOST_SITE, second=word == 2, rounds=random.ROUNDS,
            multipliers=random.MULTIPLIERS, weyl=random.WEYL,
        )  # fmt: skip
        expected = random._numpy_words(
            *state, random.HOST_SITE, first, first + count, uint64, word
        )  # fmt: skip
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (300, 301), (3, 40_000)], ids=str)
def test_first_values_are_the_formula_of_all_bits_at_once(
    shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalar = np.dtype(dtype).type
    kept = 24 if dtype == "float32" else 53
    low, high = scalar(-0.3), scalar(0.7)
    width, last = high - low, np.nextafter(high, low)

    def bits(draw: int, word: int) -> Any:
        return random.reference_bits((11, draw), random.HOST_SITE, shape, uint64, word)

    u = (bits(0, 0) >> np.uint64(64 - kept)).astype(dtype) * scalar(2.0**-kept)
    uniform = np.minimum(u * width + low, last)
    radius = (bits(1, 0).astype(np.float64) + 0.5) * 2.0**-64
    angle = (bits(1, 2) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    normal = np.sqrt(-2.0 * np.log(radius)) * np.cos(2 * np.pi * angle) * 0.5 + 1.0
    for least in (1, 1 << 40):  # native code, and NumPy
        monkeypatch.setattr(random, "NATIVE_FROM", least)
        random.seed(11)
        found = (
            random.init_uniform(shape, -0.3, 0.7, dtype),
            random.init_normal(shape, 1, 0.5, dtype),
        )
        for array, expected in zip(found, (uniform, normal)):
            assert array.dtype == dtype and array.shape == shape
            np.testing.assert_array_equal(array, np.asarray(expected, dtype))
