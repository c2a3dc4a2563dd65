"""Calls of traced functions that are like earlier ones: what is noticed, and what takes no second
look."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from hypothesis import given, settings
from hypothesis import strategies as st
from staticgrad.api import pytree
from staticgrad.api.fast_call import MOST_FORMS, MOST_SERVED, builder, matcher
from staticgrad.api.trace import Traced
from staticgrad.api.watch import watched

from tests.contended import in_threads
from tests.forked import in_child

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, "float32")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
    """How many calls were looked at a second time, and how many of those were taken apart anew,
    since this was asked before."""
    counts = [0, 0]
    served, call = Traced._served, Traced._call

    def counted_served(self: Traced, *args: Any) -> Any:
        counts[0] += 1
        return served(self, *args)

    def counted_call(self: Traced, *args: Any) -> Any:
        counts[1] += 1
        return call(self, *args)

    monkeypatch.setattr(Traced, "_served", counted_served)
    monkeypatch.setattr(Traced, "_call", counted_call)

    def since() -> tuple[int, int]:
        found = tuple(counts)
        counts[:] = [0, 0]
        return found  # type: ignore[return-value]

    return since


# Trees

KEYS = st.sampled_from(["a", "b", "w", 1])
TREES = st.recursive(
    st.one_of(st.integers(0, 9), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
        st.dictionaries(KEYS, inner, max_size=2).map(lambda d: defaultdict(int, d)),
        st.builds(Pair, inner, inner),
        st.builds(Point, inner, inner),
    ),
    max_leaves=8,
)


@given(TREES, TREES)
@settings(max_examples=400, deadline=None)
def test_a_matcher_takes_trees_of_its_structure_apart(a: Any, b: Any) -> None:
    """A tree in a leaf's place is left to whoever looks at the leaf."""
    leaves, form = pytree.flatten(a)
    if form is pytree.LEAF:
        return
    match = matcher(form)
    found: list[Any] = []
    assert match(a, found) and found == leaves
    others: list[Any] = []
    if match(b, others) and not any(pytree.kind_of(v) for v in others):
        assert pytree.flatten(b) == (others, form)
    elif pytree.structure(b) == form:
        raise AssertionError("a tree of this structure was refused")


@given(TREES)
@settings(max_examples=200, deadline=None)
def test_a_builder_puts_trees_together(tree: Any) -> None:
    leaves, form = pytree.flatten(tree)
    if form is not pytree.LEAF:
        made = builder(form)(tuple(leaves))
        assert made == tree and pytree.structure(made) == form


def scaled(tree: Any) -> Any:
    return sg.tree.map(lambda v: v * 2.0, tree)


SAME: list[tuple[str, Any]] = [
    ("dict", {"w": ones(3), "b": ones(2)}),
    ("dict of one", {"w": ones(3)}),
    ("list", [ones(3), ones(2)]),
    ("nested", {"layers": [(ones(2), ones(1)), (ones(3), ones(4))], "scale": ones()}),
    ("None", [ones(2), None, {"a": None, "b": ones(1)}]),
    ("named tuple", Pair(ones(2), [ones(3)])),
    ("dataclass", Point(ones(2), (ones(3),))),
    ("OrderedDict", OrderedDict(b=ones(2), a=ones(1))),
    ("defaultdict", defaultdict(int, b=ones(2), a=ones(1))),
]


@pytest.mark.parametrize("name, tree", SAME)
def test_trees_like_the_last_need_no_second_look(name: str, tree: Any, looks: Any) -> None:
    f = sg.jit(scaled)
    f(tree)
    assert looks() == (1, 1)
    for factor in (1.0, 2.0, 3.0):
        given_ = pytree.map(lambda v, k=factor: np.asarray(v * np.float32(k)), tree)
        found = f(given_)
        assert pytree.structure(found) == pytree.structure(tree)
        for a, b in zip(pytree.leaves(found), pytree.leaves(given_)):
            np.testing.assert_array_equal(a, b * 2)
    named = f(tree=tree)
    assert looks() == (1, 1)
    assert pytree.structure(named) == pytree.structure(f(tree=tree))
    assert looks() == (0, 0)
    assert len(f.cache_entries) == 2


X, Y = ones(2), 3 * ones(2)
CHANGES: list[tuple[str, Any, Any]] = [
    ("a key more", {"a": X}, {"a": X, "b": Y}),
    ("a key less", {"a": X, "b": Y}, {"a": X}),
    ("another key", {"a": X, "b": Y}, {"a": X, "c": Y}),
    ("list and tuple", [X, Y], (X, Y)),
    ("tuple and named tuple", (X, Y), Pair(X, Y)),
    ("dict and OrderedDict", {"a": X, "b": Y}, OrderedDict(a=X, b=Y)),
    ("order of an OrderedDict", OrderedDict(a=X, b=Y), OrderedDict(b=Y, a=X)),
    ("default of a defaultdict", defaultdict(int, a=X), defaultdict(float, a=X)),
    ("a leaf that is a tree", [X, Y], [X, [Y]]),
    ("a tree that is a leaf", {"a": {"b": X}}, {"a": X}),
    ("None for a leaf", [X, Y], [X, None]),
    ("a leaf for None", [None, Y], [X, Y]),
    ("dtype", [X, Y], [X, Y.astype("float64")]),
    ("rank", [X, Y], [X, ones(2, 2)]),
    ("a number for an array", [X, Y], [X, 3.0]),
    ("an array for a number", [X, 3.0], [X, Y]),
    ("int and float", [X, 3], [X, 3.5]),
    ("int and bool", [X, 1], [X, True]),
    ("dataclass", Point(X, Y), Point(X, [Y])),
]


@pytest.mark.parametrize("name, first, second", CHANGES)
def test_what_changed_is_noticed(name: str, first: Any, second: Any) -> None:
    f = sg.jit(scaled)
    for tree in (first, first, second, first, second, second, first):
        found, expected = f(tree), sg.jit(scaled)(tree)
        assert pytree.structure(found) == pytree.structure(expected)
        for a, b in zip(pytree.leaves(found), pytree.leaves(expected)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert len(f.cache_entries) == 2


def test_keys_that_changed_places_are_noticed() -> None:
    f = sg.jit(lambda p: p["a"] * 2.0 - p["b"])
    np.testing.assert_array_equal(f({"a": X, "b": Y}), 2 * X - Y)
    np.testing.assert_array_equal(f({"b": Y, "a": X}), 2 * X - Y)
    np.testing.assert_array_equal(f({"a": Y, "b": X}), 2 * Y - X)
    assert len(f.cache_entries) == 1


def test_arrays_that_the_entry_does_not_take_are_taken_all_the_same(looks: Any) -> None:
    f = sg.jit(lambda p: p["x"] + p["y"])
    x = np.arange(6, dtype="float32").reshape(2, 3)
    expected = x + x
    cases = [
        x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(">f4"), x.tolist(),
    ]  # fmt: skip
    for other in cases[:4]:
        for _ in range(3):
            np.testing.assert_array_equal(f({"x": x, "y": other}), expected)
    looks()
    f({"x": x, "y": x}), f({"y": x, "x": x})
    assert looks() == (0, 0)
    for value in (2.0, np.float32(2), np.float64(2), 2, True, np.array(2, "float32")):
        for _ in range(3):
            found = f({"x": x, "y": value})
            np.testing.assert_array_equal(found, x + np.asarray(value, found.dtype))


def test_scalars_of_numpy_need_no_second_look(looks: Any) -> None:
    f = sg.jit(lambda how, p, k: p["x"] * p["k"] + k if how == "both" else k)
    for how in ("both", "one"):
        f(how, {"x": X, "k": np.float32(2)}, np.float64(3))
    looks()
    for k in (2.0, -1.5, float("inf")):
        found = f("both", {"x": X, "k": np.float32(k)}, np.float64(k))
        np.testing.assert_array_equal(found, X * np.float32(k) + np.float64(k))
        assert found.dtype == np.float64
    assert looks() == (0, 0)
    for k in (np.float16(1), np.int64(3), np.array(5.0), 2.0, True, np.bool_(True)):
        if type(k) is not np.float16:
            for _ in range(2):
                np.testing.assert_array_equal(f("both", {"x": X, "k": np.float32(2)}, k), 2 * X + k)


# Sizes


def test_sizes_that_alternate_need_no_second_look(looks: Any) -> None:
    f = sg.jit(lambda p, x: sg.sum(p["w"] * x, axis=1))
    p = {"w": np.arange(3, dtype="float32")}
    batches = [np.random.default_rng(n).standard_normal((n, 3)).astype("float32")
               for n in (64, 10, 7, 33, 2)]  # fmt: skip
    for batch in batches:
        f(p, batch)
    assert len(f.cache_entries) == 2
    looks()
    for batch in batches * 3:
        np.testing.assert_allclose(f(p, batch), (p["w"] * batch).sum(1), rtol=1e-5, atol=1e-6)
    assert looks() == (0, 0)
    for _ in range(3):
        assert f(p, ones(0, 3)).shape == (
            0,
        )  # empty arrays and sizes of 1 have traces of their own
        np.testing.assert_array_equal(f(p, ones(1, 3)), [3])
    assert looks()[1] == 2


def test_more_sizes_that_stay_than_programs_are_asked(looks: Any) -> None:
    """Sizes that Python reads have a trace each; beyond the last few they are known at a glance."""

    def f(x: Any) -> Any:
        for _ in range(int(x.shape[0])):
            x = x + 1.0
        return x

    g = sg.jit(f)
    sizes = range(2, 4 + MOST_SERVED)
    for n in sizes:
        np.testing.assert_array_equal(g(ones(n)), 1.0 + n * ones(n))
    looks()
    for n in [*sizes] * 3:
        np.testing.assert_array_equal(g(ones(n)), 1.0 + n * ones(n))
    found = looks()
    assert found[0] > 0 and found[1] == 0
    for _ in range(3):
        for n in (2, 3):
            g(ones(n))
    assert looks()[0] <= 2
    assert all(len(form.served) <= MOST_SERVED for form in g._forms)


def test_more_structures_than_are_kept() -> None:
    f = sg.jit(lambda *p: p[0]["a"] * float(len(p)))
    for _ in range(2):
        for n in range(1, MOST_FORMS + 4):
            np.testing.assert_array_equal(f(*[{"a": X}] * n), n * X)
    assert len(f._forms) == MOST_FORMS
    assert len(f.cache_entries) == MOST_FORMS + 3


# Numbers and static values


def test_numbers_need_no_second_look(looks: Any) -> None:
    f = sg.jit(lambda x, rate, p: x * rate + p["n"])
    f(X, 0.5, {"n": 3})
    looks()
    for rate, n in ((0.25, 3), (-1.0, 7), (float("inf"), 0)):
        np.testing.assert_array_equal(f(X, rate, {"n": n}), X * np.float32(rate) + n)
    assert looks() == (0, 0)
    with pytest.raises(
        sg.DTypeError, match=r"argument p\['n'\]: the number \d+ does not fit int64"
    ):
        f(X, 0.5, {"n": 1 << 70})
    assert f(X, 0.5, {"n": True}).dtype == np.float32
    assert len(f.cache_entries) == 2


def test_numbers_that_python_reads_are_asked_each_time() -> None:
    f = sg.jit(lambda p, n: p["x"] * 2.0 if n > 3 else p["x"] * 5.0)
    for n in (1, 5, 2, 7, 7, 1, 4):
        np.testing.assert_array_equal(f({"x": X}, n), X * (2 if n > 3 else 5))
    assert len(f.cache_entries) == 2
    scalar = np.float32(2)  # its shape is one of the call's
    by_size = sg.jit(lambda k, p, n: p["x"] * k if n > p["x"].shape[0] else p["x"] * 5.0)
    for size, n in ((2, 3), (4, 3), (5, 3), (4, 9), (5, 9), (4, 2), (9, 10), (9, 8)) * 2:
        found = by_size(scalar, {"x": ones(size)}, n)
        np.testing.assert_array_equal(found, ones(size) * (2 if n > size else 5))
    by_size = sg.jit(lambda p, n: p["x"] * 2.0 if n > p["x"].shape[0] else p["x"] * 5.0)
    for size, n in ((2, 3), (4, 3), (4, 9), (2, 3), (6, 6), (4, 9), (6, 7), (2, 2)) * 2:
        found = by_size({"x": ones(size)}, n)
        np.testing.assert_array_equal(found, ones(size) * (2 if n > size else 5))


def test_static_values_are_compared(looks: Any) -> None:
    f = sg.jit(lambda x, how: sg.sum(x) if how == "sum" else sg.mean(x))
    x = np.array([1, 2, 6], "float32")
    for how, expected in (("sum", 9), ("sum", 9), ("mean", 3), ("su" + "m"[:], 9), ("mean", 3)):
        assert f(x, how) == expected
    assert looks()[1] == 2
    g = sg.jit(lambda x, n: x * n, static_argnums=1)
    for n in (1, 1.0, True, 2, 1, -0.0, 0.0, 1.0):
        found, expected = g(x, n), x * n
        np.testing.assert_array_equal(found, expected)
        assert np.signbit(found).tolist() == np.signbit(expected).tolist()
    assert len(g.cache_entries) == 6
    with pytest.raises(sg.ArgumentTypeError, match="static argument n must be hashable") as caught:
        g(x, [])
    assert "test_fast_call.py" in str(caught.value)


def test_a_class_that_becomes_a_tree_is_no_static_value_any_more() -> None:
    class Box:
        def __init__(self, value: Any) -> None:
            self.value = value

    f = sg.jit(lambda box, x: x * box.value)
    box = Box(2.0)
    for _ in range(2):
        np.testing.assert_array_equal(f(box, X), 2 * X)
    sg.tree.register(Box, lambda b: ((b.value,), None), lambda rest, children: Box(*children))
    box.value = 3.0
    for value in (3.0, 4.0):
        np.testing.assert_array_equal(f(Box(value), X), value * X)
    np.testing.assert_array_equal(f(box, X), 3 * X)


# Models


def network() -> sg.nn.Sequential:
    sg.random.seed(3)
    return sg.nn.Sequential(sg.nn.Linear(4, 5), sg.nn.Dropout(0.5), sg.nn.Linear(5, 2))


def changes(net: sg.nn.Sequential) -> list[Callable[[], Any]]:
    first = net[0]
    return [
        net.train,
        net.eval,
        lambda: net[1].train(),
        lambda: net[1].eval(),
        lambda: setattr(net[1], "p", 0.25),
        lambda: net.__setitem__(0, sg.nn.Linear(4, 5)),
        lambda: net.__setitem__(0, first),
        lambda: setattr(net[2], "weight", sg.nn.Parameter(np.full((2, 5), 0.5, "float32"))),
        lambda: net[2]._parameters.update(bias=sg.nn.Parameter(np.full(2, 7, "float32"))),
        lambda: net.append(sg.nn.ReLU()),
        lambda: net._modules.popitem(),
        lambda: net[2].__dict__["_parameters"].update(bias=None),
    ]


@pytest.mark.parametrize("as_argument", [False, True])
def test_what_a_model_is_made_of_is_watched(as_argument: bool, looks: Any) -> None:
    net = network()
    f = sg.jit((lambda m, p: m(p["x"])) if as_argument else (lambda p: net(p["x"])))
    p = {"x": np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4)}
    given_ = (net, p) if as_argument else (p,)
    net.eval()
    for number, change in enumerate(changes(net)):
        change()
        sg.random.seed(number)
        found = f(*given_)
        sg.random.seed(number)
        fresh = sg.jit(lambda q: net(q["x"]))(p)
        assert found.tobytes() == fresh.tobytes(), number
        net[0].weight.assign(net[0].weight.numpy() + 0.125)  # values are no part of the trace
        for _ in range(2):
            f(*given_)
        looks()
        f(*given_)
        assert looks() == (0, 0), number


def test_lists_of_layers_and_of_parameters_are_watched() -> None:
    class Net(sg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [sg.nn.Linear(4, 4)]
            self.calls = 0

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = sg.relu(layer(x))
            return x

    net = Net()
    f = sg.jit(lambda x: net(x))
    x = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)
    for _ in range(4):
        for _ in range(3):
            np.testing.assert_array_equal(f(x), sg.jit(lambda v: net(v))(x))
        net.layers.append(sg.nn.Linear(4, 4))
    net.layers.reverse()
    np.testing.assert_array_equal(f(x), sg.jit(lambda v: net(v))(x))
    count = len(f.cache_entries)
    for _ in range(20):  # a counter is no part of the model, and is not watched for good
        net.calls += 1
        f(x)
    assert len(f.cache_entries) == count


def test_variables_from_outside_are_watched() -> None:
    weights = {"a": X, "b": Y}
    f = sg.jit(lambda p: p["x"] * weights["a"] + weights["b"])

    def check() -> None:
        for _ in range(3):
            expected = Y * np.asarray(weights["a"]) + np.asarray(weights["b"])
            np.testing.assert_array_equal(f({"x": Y}), expected)

    check()
    weights["a"] = 5 * X
    check()
    a, b = weights.pop("a"), weights.pop("b")  # the same values under each other's keys
    weights["b"], weights["a"] = a, b
    check()
    weights = {"a": X, "b": X}
    check()


def test_what_cannot_be_watched_is_taken_apart() -> None:
    inner: Any = [X, {"a": Y}]
    assert watched(inner, False, lambda module: False) is not None
    assert watched([X, Point(X, Y)], False, lambda module: False) is None
    assert watched([0.5] * 5000, False, lambda module: False) is None

    class Odd(sg.nn.Module):
        def modules(self) -> Any:
            return iter([self])

    assert watched(Odd(), True, lambda module: module != __name__) is None
    watch = watched(network(), True, lambda module: True)
    assert watch is not None and watch.holds()


# Errors, threads, places


def test_errors_of_later_calls_name_the_line_as_the_first_does() -> None:
    f = sg.jit(lambda p: p["table"][p["index"]])
    good, bad = {"table": Y, "index": np.array([1, 0])}, {"table": Y, "index": np.array([1, 5])}
    texts = []
    for arguments in (bad, good, bad, good, bad):
        if arguments is good:
            np.testing.assert_array_equal(f(good), Y[[1, 0]])
            continue
        with pytest.raises(sg.ExecutionError) as caught:
            f(bad)
        texts.append(str(caught.value))
    assert len(set(texts)) == 1 and "test_fast_call.py" in texts[0]
    assert len(f.cache_entries) == 1


def test_threads_call_one_function_with_trees() -> None:
    f = sg.jit(lambda p, k: {"y": p["x"] * k + p["b"][0]})

    def loop(seed: int) -> None:
        for n in np.random.default_rng(seed).integers(2, 9, 200):
            x = np.full(int(n), seed, "float32")
            tree = {"x": x, "b": [x]} if n % 2 else {"b": (x,), "x": x}
            np.testing.assert_array_equal(f(tree, float(n))["y"], x * n + x)

    in_threads(loop)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_calls_what_its_parent_called() -> None:
    f = sg.jit(lambda p, x: {"y": p["w"] * x})
    p = {"w": X}
    for n in (1.0, 2.0):
        f(p, n * Y)

    def work() -> bool:
        return all(f(p, n * Y)["y"].tolist() == (n * Y).tolist() for n in (1.0, 2.0, 3.0))

    assert in_child(work) == 0
    assert work() and len(f.cache_entries) == 1


def test_a_function_that_is_known_still_builds_graph() -> None:
    f = sg.jit(lambda p: p["x"] * 2.0)
    for _ in range(2):
        np.testing.assert_array_equal(f({"x": X}), 2 * X)
    g = sg.jit(lambda x: f({"x": x}) + f({"x": X}))
    np.testing.assert_array_equal(g(Y), 2 * Y + 2 * X)
    assert len(g.cache_entries) == 1
    x = sg.input("x", (2,))
    np.testing.assert_array_equal(sg.compile([x], f({"x": x}))(Y), 2 * Y)
    np.testing.assert_array_equal(sg.grad(lambda v: sg.sum(f({"x": v})))(Y), [2, 2])


def test_transforms_are_called_as_fast(looks: Any) -> None:
    g = sg.value_and_grad(lambda p, x: sg.sum((x @ p["w"] + p["b"]) ** 2))
    p, x = {"w": ones(3, 2), "b": ones(2)}, ones(4, 3)
    first = g(p, x)
    looks()
    value, grads = g(p, x)
    assert looks() == (0, 0)
    assert value == first[0] and sorted(grads) == ["b", "w"]
    np.testing.assert_array_equal(grads["w"], first[1]["w"])


def test_a_program_that_declines_is_one_of_a_trace() -> None:
    """`sg.compile`'s own serve every call."""
    x = sg.input("x", ("N",))
    program = sg.compile([x], x + 1)
    assert not program.declines
    np.testing.assert_array_equal(program(ones(2)), 2 * ones(2))
    np.testing.assert_array_equal(program.checked([1.0, 2.0]), [2, 3])


@pytest.mark.parametrize("which", ["the model", "its method"])
def test_a_model_that_is_the_function_itself_is_looked_at(which: str) -> None:
    """A layer put in another's place is seen: the trace had the old one's parameters."""
    model = sg.nn.Sequential(sg.nn.Linear(3, 2))
    f = sg.jit(model if which == "the model" else model.forward)
    x = np.ones((4, 3), "float32")
    f(x)
    model[0] = sg.nn.Linear(3, 2)
    weight, bias = (p.numpy() for p in model[0].parameters())
    np.testing.assert_allclose(f(x), x @ weight.T + bias, rtol=1e-5)
