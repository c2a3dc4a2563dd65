"""`sg.Session`: TensorFlow 1's way, against plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import compile as driver

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 3)), RNG.normal(size=20)


class Model:
    """Linear regression in float64 by gradient descent."""

    def __init__(self) -> None:
        self.x = sg.input("x", ("N", 3), dtype="float64")
        self.y = sg.input("y", ("N",), dtype="float64")
        self.w = sg.parameter(np.zeros(3), name="w")
        self.h = self.x @ self.w
        self.loss = ((self.h - self.y) ** 2).mean()
        self.train = sg.optim.SGD([self.w], lr=0.1).minimize(self.loss)
        self.feed = {self.x: X, self.y: Y}


@pytest.fixture
def m() -> Model:
    return Model()


@pytest.fixture
def session() -> Iterator[Any]:
    with sg.Session() as s:
        yield s


def test_a_training_loop_gives_the_numbers_of_numpy(m: Model, session: Any) -> None:
    w = np.zeros(3)
    session.run(sg.global_variables_initializer())
    for _ in range(20):
        done, loss = session.run([m.train, m.loss], feed_dict=m.feed)
        error = X @ w - Y
        assert done is None
        np.testing.assert_allclose(loss, np.mean(error**2), rtol=1e-12)
        w -= 0.1 * 2 / 20 * X.T @ error
    np.testing.assert_allclose(session.run(m.w), w, rtol=1e-10)
    np.testing.assert_array_equal(session.run(m.w), m.w.numpy())


def test_the_parabola_of_tensorflow_1() -> None:
    x = sg.parameter(np.array(10.0), name="x")
    loss = x * x - 4.0 * x
    train = sg.optim.SGD([x], lr=0.1).minimize(loss)
    with sg.Session() as sess:
        for _ in range(100):
            sess.run(train)
        np.testing.assert_allclose(sess.run([x, loss]), [2.0, -4.0], rtol=1e-8)


class Pair(NamedTuple):
    first: Any
    second: Any


def test_values_come_in_the_structure_of_the_fetches(m: Model, session: Any) -> None:
    m.w.assign([1.0, 2.0, 3.0])
    h = X @ m.w.numpy()
    loss = np.mean((h - Y) ** 2)
    found = session.run({"a": [m.h, (m.loss, None)], "b": Pair(m.loss, m.w), "c": []}, m.feed)
    assert list(found) == ["a", "b", "c"] and isinstance(found["a"][1], tuple)
    assert found["a"][1][1] is None and found["c"] == [] and isinstance(found["b"], Pair)
    np.testing.assert_allclose(found["a"][0], h, rtol=1e-12)
    np.testing.assert_allclose([found["a"][1][0], found["b"].first], [loss, loss], rtol=1e-12)
    np.testing.assert_array_equal(found["b"].second, m.w.numpy())
    assert session.run(None) is None and session.run([]) == []


def test_only_what_is_fetched_is_compiled(m: Model, session: Any) -> None:
    expensive = sg.exp(m.h).sum()
    names = [i.name for i in session.executable(m.h, m.feed).manifest.inputs]
    assert names == ["x"]
    nodes = [n for k in session.executable(m.h).report()["kernels"] for n in k["nodes"]]
    assert "matmul" in nodes and "exp" not in nodes and "subtract" not in nodes
    assert session.executable(m.h).manifest.state[0].written is False
    assert session.executable([m.train]).manifest.state[0].written is True
    np.testing.assert_array_equal(session.run(m.h, {m.x: X}), np.zeros(20))  # y is not needed
    np.testing.assert_allclose(session.run(expensive, m.feed), 20.0)


def test_a_program_is_compiled_once_for_what_is_fetched_and_fed(m: Model, session: Any) -> None:
    for _ in range(2):
        session.run([m.train, m.loss], m.feed)
        session.run(m.loss, {m.y: Y, m.x: X})
        session.run(m.loss, m.feed)
        session.run((m.loss,), {m.x: X[:5], m.y: Y[:5]})
        session.run(m.loss, {m.h: X @ np.ones(3), m.y: Y})
    assert len(session._programs) == 3
    before = driver.compilations
    session.run([m.train, m.loss], m.feed)
    assert driver.compilations == before


def test_inputs_are_fed_by_name_and_numbers_are_converted(session: Any) -> None:
    a, b = sg.input("a", (2,)), sg.input("b", (), dtype="int64")
    total = a.sum() + sg.astype(b, "float32")
    found = session.run(total, {"a": np.array([1.5, 2.0]), b: 3})
    assert found.dtype == "float32" and found == 6.5
    assert session.run(total, {"a": [1, 2], "b": np.int8(3)}) == 6.0
    with pytest.raises(sg.BindError, match=r"'b' .*expected int64\[\], got float64"):
        session.run(total, {"a": [1, 2], "b": 2.5})
    with pytest.raises(sg.BindError, match="finite value that overflows"):
        session.run(total, {"a": np.array([1e300, 0]), "b": 2})


def test_any_tensor_can_be_fed(m: Model, session: Any) -> None:
    h = RNG.normal(size=7)
    assert session.run(m.h * 2.0, {m.h: h}) == pytest.approx(2 * h)
    assert session.run(m.loss, {m.h: h, m.y: np.zeros(7)}) == pytest.approx(np.mean(h**2))
    np.testing.assert_allclose(session.run(m.h, {m.w: [1, 2, 3], m.x: X}), X @ [1, 2, 3])
    np.testing.assert_array_equal(session.run(m.h, {m.h: h}), h)
    # In a gradient too: d loss / d h at the fed value.
    g = sg.gradients(m.loss, m.h)
    np.testing.assert_allclose(session.run(g, {m.h: h, m.y: np.ones(7)}), 2 * (h - 1) / 7)
    parts = sg.split(m.x, 1, axis=1)
    fed = session.run([parts[1], parts[0]], {parts[1]: np.ones((20, 1)), m.x: X})
    np.testing.assert_array_equal(fed[0], np.ones((20, 1)))
    np.testing.assert_array_equal(fed[1], X[:, :1])


def test_an_update_of_a_fed_parameter_starts_from_what_is_fed(m: Model, session: Any) -> None:
    w = np.array([1.0, 2.0, 3.0])
    session.run(m.train, {**m.feed, m.w: w})
    expected = w - 0.1 * 2 / 20 * X.T @ (X @ w - Y)
    np.testing.assert_allclose(m.w.numpy(), expected, rtol=1e-12)


def test_a_missing_input_is_named_with_its_line(m: Model, session: Any) -> None:
    with pytest.raises(sg.BindError, match=r"'y' \(declared at test_session.py:\d+\), float64\[N"):
        session.run([m.train, m.loss], feed_dict={m.x: X})


def test_the_initializer_gives_first_values_back() -> None:
    model = sg.nn.Sequential(sg.nn.Linear(3, 4), sg.nn.BatchNorm1d(4), sg.nn.Linear(4, 1))
    x = sg.input("x", ("N", 3))
    loss = sg.nn.functional.mse_loss(model(x), sg.zeros((1, 1)))
    optimizer = sg.optim.Adam(model.parameters(), lr=0.01)
    train, init = optimizer.minimize(loss), sg.global_variables_initializer()
    state = model.state_dict()
    with sg.Session() as s:
        assert s.run(init) is None
        first = [s.run([train, loss], {x: X})[1] for _ in range(3)]
        generator = sg.random.default_generator().numpy()
        optimizer.lr = 0.01
        assert s.run([init, None]) == [None, None]
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, state[name])
        np.testing.assert_array_equal(sg.random.default_generator().numpy(), generator)
        assert [s.run([train, loss], {x: X})[1] for _ in range(3)] == first
        s.run([train, init, None], {x: X})  # initialised first, then stepped
        assert s.run(loss, {x: X}) != first[0]


def test_layers_are_in_training_mode_with_updates_alone() -> None:
    x = sg.input("x", (1000,))
    w = sg.parameter(np.ones((), "float32"))
    dropped = sg.nn.functional.dropout(x * w, 0.5, training=None)
    train = sg.optim.SGD([w], lr=0.0).minimize(dropped.sum())
    with sg.Session() as s:
        assert s.run(dropped, {x: np.ones(1000)}).tolist() == [1.0] * 1000
        assert set(s.run([dropped, train], {x: np.ones(1000)})[0]) == {0.0, 2.0}


def test_state_is_shared_with_compiled_programs(m: Model, session: Any) -> None:
    step = sg.compile([m.x, m.y], [m.loss], updates=m.train)
    (first,) = step(X, Y)
    (second,) = step(X, Y)
    assert session.run(m.loss, m.feed) < second < first


def test_what_is_tapped_between_two_runs_is_seen(m: Model, session: Any) -> None:
    seen: list[Any] = []
    session.run(m.loss, m.feed)
    sg.debug.tap(m.h, seen.append)
    session.run(m.loss, m.feed)
    assert len(seen) == 1
    twice = sg.debug.tap(m.h * 2.0, seen.append)
    session.run(twice, {m.h: np.ones(2)})  # a node that is built again behind the cut
    assert seen[-1].tolist() == [2.0, 2.0]
    sg.debug.clear()


def test_a_closed_session_refuses(m: Model) -> None:
    with sg.Session() as s:
        s.run(m.w)
    for use in (lambda: s.run(m.w), lambda: s.executable(m.w), s.__enter__):
        with pytest.raises(sg.ArgumentError, match="the session is closed"):
            use()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, m: s.run("x"), "fetches are tensors, updates .* got 'x'"),
        (lambda s, m: s.run([m.loss, 3.0], m.feed), "got 3.0"),
        (lambda s, m: s.run(m.loss, [X]), "feed_dict must be a dict"),
        (lambda s, m: s.run(m.loss, {3: X}), "keys of feed_dict are tensors or names, got 3"),
        (lambda s, m: s.run(m.loss, {"z": X}), "no input 'z'; they need 'x', 'y'"),
        (lambda s, m: s.run(m.w, {"z": X}), "no input 'z'; they need none"),
        (lambda s, m: s.run(m.loss, {**m.feed, "x": X}), "twice, by itself and by name"),
        (lambda s, m: s.run(m.loss, {m.x: X, m.y: m.h}), "feed an array, not the tensor"),
        (lambda s, m: s.run(m.loss, {m.x: X, m.y: "abc"}), r"'y' .*expected float64\[N\], got <U3"),
        (lambda s, m: s.run(m.loss, {m.x: X, m.y: [[1], [1, 2]]}), "an object of type list"),
        (lambda s, m: s.run(m.loss, {m.x: X, m.y: X}), "expected 1 dims"),
        (lambda s, m: s.run(m.loss, {m.x: X, m.y: Y[:3]}), "'y'"),
        (lambda s, m: s.run([m.train, m.train], m.feed), "updated twice"),
        (lambda s, m: s.executable([None]), "need no program"),
    ],
)
def test_wrong_use_names_the_line(call: Any, message: str, m: Model, session: Any) -> None:
    with pytest.raises(sg.StaticgradError, match=message) as error:
        call(session, m)
    assert "test_session.py" in str(error.value)


def test_a_session_s_programs_use_the_threads_asked_for() -> None:
    x = sg.input("x", (512, 512))
    a = np.ones((512, 512), "float32")
    found = []
    for threads in (1, 3):
        with sg.Session(threads=threads) as session:
            found.append(session.run(sg.exp(x) @ x, {x: a}))
            assert session.executable(sg.exp(x) @ x).bind({}).threads == threads
    np.testing.assert_array_equal(*found)
    with pytest.raises(sg.ArgumentError, match="threads: expected 1 to"):
        sg.Session(threads=0)
