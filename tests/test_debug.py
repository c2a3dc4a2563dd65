"""`sg.debug`: values from inside a compiled step, and no trace where nothing is watched."""

from __future__ import annotations

import gc
import io
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import debug
from staticgrad.ops import taps
from staticgrad.ops.mode import training_switch

XB = np.arange(6, dtype="float32").reshape(2, 3)
W = np.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]], "float32")


@pytest.fixture(autouse=True)
def no_taps_are_left() -> Any:
    yield
    sg.debug.clear()


class Model:
    """h = x w, loss = mean(h**2), one SGD step."""

    def __init__(self) -> None:
        self.x = sg.input("x", ("N", 3))
        self.w = sg.parameter(W, name="w")
        self.h = self.x @ self.w
        self.loss = (self.h * self.h).mean()

    def step(self, **options: Any) -> Any:
        updates = sg.optim.SGD([self.w], lr=0.1).minimize(self.loss)
        return sg.compile([self.x], [self.loss], updates=updates, **options)


def text_of(model: Model, updates: bool = True) -> str:
    pairs = sg.optim.SGD([model.w], lr=0.1).minimize(model.loss) if updates else None
    return sg.Graph([model.x], [model.loss], pairs).to_text()


@pytest.mark.parametrize("options", [{}, {"mode": "reference"}, {"check": "nan"}])
def test_a_tap_sees_what_numpy_computes_at_each_step(options: dict[str, Any]) -> None:
    model, seen = Model(), []
    assert sg.debug.tap(model.h, seen.append) is model.h
    step = model.step(**options)
    w = W.astype("float64")
    for _ in range(3):
        (loss,) = step(XB)
        h = XB @ w
        np.testing.assert_allclose(seen[-1], h, rtol=1e-5)
        np.testing.assert_allclose(loss, np.mean(h * h), rtol=1e-5)
        w -= 0.1 * XB.T @ (2 * h / h.size)
    assert len(seen) == 3  # once a step, though the gradient needs the value as well
    np.testing.assert_allclose(model.w.numpy(), w, rtol=1e-5)


def test_without_taps_there_is_no_trace() -> None:
    plain, watched = Model(), Model()
    before = watched.step()
    other = sg.input("z", (2,)) * 2.0
    sg.debug.tap(other, print)  # of another graph
    sg.debug.tap(watched.h, print)
    after = plain.step()
    assert type(after) is type(before)
    assert after.llvm_ir == before.llvm_ir and after.is_native == before.is_native
    assert text_of(plain).replace("test_debug", "") == text_of(Model()).replace("test_debug", "")
    assert debug.tapped(sg.Graph([plain.x], [plain.loss]))[1].taps == ()


def test_state_and_results_are_the_same_with_taps() -> None:
    plain, watched = Model(), Model()
    sg.debug.tap(watched.h, lambda a: a.fill(0.0))  # its own copy
    sg.debug.tap(watched.h, lambda a: a.fill(1.0))
    one, two = plain.step(), watched.step()
    for _ in range(3):
        assert one(XB)[0].tobytes() == two(XB)[0].tobytes()
    assert plain.w.numpy().tobytes() == watched.w.numpy().tobytes()


def test_effects_run_in_the_order_of_declaration() -> None:
    model, order = Model(), []
    sg.debug.tap(model.loss, lambda a: order.append("loss"))
    sg.debug.tap(model.h, lambda a: order.append("h"))
    sg.debug.tap(model.x, lambda a: order.append("x"))
    sg.debug.tap(model.w, lambda a: order.append(("w", a.copy())))
    model.step()(XB)
    assert order[:3] == ["loss", "h", "x"]
    np.testing.assert_array_equal(order[3][1], W)  # the value that the step read


def test_outputs_keep_their_form() -> None:
    model, seen = Model(), []
    sg.debug.tap(model.h, seen.append)
    single = sg.compile([model.x], model.loss)
    both = sg.compile([model.x], [model.loss, model.h])
    assert isinstance(single(XB), np.ndarray) and single(XB).shape == ()
    loss, h = both(x=XB)
    np.testing.assert_array_equal(h, seen[-1])
    assert not np.shares_memory(h, seen[-1])
    out = np.empty((), "float32")
    assert single(XB, out=out) is out and out == loss
    hs = np.empty((2, 2), "float32")
    assert both(XB, out=[None, hs])[1] is hs
    with pytest.raises(sg.BindError, match="expected 2 arrays, got 3"):
        both(XB, out=[None, hs, None])
    with pytest.raises(sg.BindError, match="expected a sequence of 2 arrays"):
        both(XB, out=hs)


def test_it_works_in_an_expression_and_in_a_gradient() -> None:
    x = sg.input("x", (3,), dtype="float64")
    seen: list[Any] = []
    y = sg.debug.tap(sg.sin(x), seen.append) * 2.0
    gradient = sg.gradients(y.sum(), x)
    cosine = sg.debug.tap(gradient, seen.append)
    values = np.array([0.1, 0.2, 0.3])
    sg.compile([x], [y, cosine])(values)
    np.testing.assert_allclose(seen[0], np.sin(values), rtol=1e-12)
    np.testing.assert_allclose(seen[1], 2 * np.cos(values), rtol=1e-12)


def test_transforms_keep_the_taps() -> None:
    seen: list[Any] = []

    def f(x: Any) -> Any:
        return (sg.debug.tap(sg.sin(x), seen.append) ** 2).sum()

    values = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    sg.jit(f)(values)
    sg.grad(f)(values)
    np.testing.assert_allclose(seen, [np.sin(values)] * 2, rtol=1e-12)
    sg.vmap(f)(values)  # all items at once
    np.testing.assert_allclose(seen[2:], [np.sin(values)], rtol=1e-12)


def test_in_the_dynamic_mode_an_effect_runs_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    t, seen = sg.eager.tensor([1.0, 2.0], requires_grad=True), []
    y = sg.debug.tap(t * 2.0, seen.append)
    assert seen[0].tolist() == [2.0, 4.0] and type(seen[0]) is np.ndarray
    seen[0].fill(0.0)
    assert y.detach().numpy().tolist() == [2.0, 4.0]
    sg.debug.print(y, "y", format=".1f")
    assert capsys.readouterr().out.endswith(" y: float32[2] [2.0 4.0]\n")
    y.sum().backward()
    assert t.grad.numpy().tolist() == [2.0, 2.0]


def test_what_follows_from_a_computed_value_is_shown_too() -> None:
    model, seen = Model(), []
    y = sg.input("y", ("N", 2))
    sg.debug.tap(model.h.mean(), lambda a: seen.append(("mean", float(a))))  # held by nobody
    sg.debug.tap(abs(model.h - y).max(), lambda a: seen.append(("worst", float(a))))
    sg.debug.tap(sg.nn.functional.dropout(model.h, 0.5).sum(), lambda a: seen.append("random"))
    gc.collect()
    h = XB @ W
    step = model.step()
    step(XB)  # y is no input of this one
    assert seen == [("mean", pytest.approx(h.mean()))]
    seen.clear()
    loss = sg.nn.functional.mse_loss(model.h, y)
    sg.compile([model.x, y], loss)(XB, np.ones((2, 2), "float32"))
    h = XB @ model.w.numpy()
    expected = [("mean", h.mean()), ("worst", abs(h - 1).max())]
    assert seen == [(name, pytest.approx(value, rel=1e-5)) for name, value in expected]


def test_a_parameter_is_shown_once_a_step_however_often_it_was_declared() -> None:
    seen: list[Any] = []

    class Net(sg.nn.Linear):
        def forward(self, input: Any) -> Any:
            sg.debug.tap(self.weight, seen.append)
            return super().forward(input)

    net = Net(3, 2)
    for _ in range(3):
        seen.clear()
        net.fit(XB, XB[:, :2], loss="mse", batch_size=2, progress=False)
        net.predict(XB)
        assert len(seen) == 2


def test_a_failed_step_shows_nothing() -> None:
    table = sg.parameter(np.zeros((3, 2), "float32"))
    at = sg.input("at", ("N",), dtype="int64")
    rows, seen = sg.take(table, at, axis=0), []
    sg.debug.tap(rows, seen.append)
    run = sg.compile([at], rows.sum())
    with pytest.raises(sg.ExecutionError):
        run(np.array([0, 7]))
    assert not seen
    run(np.array([0, 2]))
    assert len(seen) == 1


def test_an_exception_reaches_the_caller_after_the_step() -> None:
    model = Model()

    def stop(array: Any) -> None:
        raise KeyError("found it")

    sg.debug.tap(model.h, stop)
    step = model.step()
    with pytest.raises(KeyError, match="found it"):
        step(XB)
    assert not np.array_equal(model.w.numpy(), W)


def test_watching_a_nan_does_not_stop_a_checked_step() -> None:
    x, seen = sg.input("x", (2,)), []
    root = sg.debug.tap(sg.sqrt(x), seen.append)
    safe = sg.where(x > 0.0, root, 0.0)
    run = sg.compile([x], safe, check="nan")
    assert run(np.array([4.0, -1.0], "float32")).tolist() == [2.0, 0.0]
    assert seen[0][0] == 2.0 and np.isnan(seen[0][1])


def test_a_branch_for_training_is_not_watched_in_evaluation() -> None:
    x, seen = sg.input("x", (2,)), []
    y = training_switch(sg.debug.tap(x * 2.0, seen.append), x * 3.0)
    sg.compile([x], y)(np.ones(2, "float32"))
    assert not seen
    sg.compile([x], y, training=True)(np.ones(2, "float32"))
    assert seen[0].tolist() == [2.0, 2.0]


def test_layers_can_be_watched_in_their_forward() -> None:
    seen: list[Any] = []

    class Net(sg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = sg.nn.Linear(3, 4), sg.nn.Linear(4, 1)

        def forward(self, x: Any) -> Any:
            return self.b(sg.debug.tap(self.a(x), seen.append))

    net = Net()
    net.fit(XB, np.ones(2), loss="mse", epochs=2, batch_size=1, progress=False)
    assert [a.shape for a in seen] == [(1, 4)] * 4
    compiled = net.__dict__["_trainer"]._programs
    known = set(map(id, compiled.values()))
    net.fit(XB, np.ones(2), loss="mse", epochs=1, batch_size=2, progress=False)
    assert set(map(id, compiled.values())) == known  # its own taps don't make it compile again


def test_print_shows_line_name_type_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    model, file = Model(), io.StringIO()
    sg.debug.print(model.x)
    sg.debug.print(model.h, "hidden")
    sg.debug.print(model.loss, format=".3f")
    sg.debug.print(model.h, file=file, format="+.1f")
    model.step()(XB)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert not err
    assert lines[0].startswith("test_debug.py:") and lines[0].endswith(" x: float32[2, 3]")
    assert lines[1:3] == ["[[0. 1. 2.]", " [3. 4. 5.]]"]
    assert lines[3].endswith(" hidden: float32[2, 2]")
    h = XB @ W
    assert lines[6].endswith(f" multiply: float32[] {np.mean(h * h):.3f}") or lines[6].endswith(
        f" mean: float32[] {np.mean(h * h):.3f}"
    )
    assert file.getvalue().splitlines()[1] == "[[+0.5 +4.0]"


def test_taps_go_when_they_are_cleared_and_when_the_tensor_goes() -> None:
    model, seen = Model(), []
    sg.debug.tap(model.h, seen.append)
    sg.debug.clear(model.h)
    model.step()(XB)
    assert not seen
    sg.debug.tap(model.h, seen.append)
    sg.debug.tap(model.h.mean(), seen.append)
    gc.collect()
    assert taps.living() == 2
    del model
    gc.collect()
    assert taps.living() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: sg.debug.tap(np.ones(3), print), "expected a tensor, got an object of type nd"),
        (lambda t: sg.debug.tap(t, 3), "expected a function of an array, got 3"),
        (lambda t: sg.debug.print(3.0), "expected a tensor, got 3.0"),
        (lambda t: sg.debug.print(t, format=".3q"), r"the format '.3q' of float32"),
        (lambda t: sg.debug.print(t, file="x"), "file must be open for writing, got 'x'"),
        (lambda t: sg.debug.print(t, 3), "label must be a str"),
        (lambda t: sg.debug.print("loss: {}", t), r"comes first.*sg.debug.print\(x, 'loss'\)"),
        (lambda t: sg.debug.clear(3), "expected a tensor"),
    ],
)
def test_wrong_use_names_the_line(call: Any, message: str) -> None:
    with pytest.raises(sg.StaticgradError, match=message) as error:
        call(sg.input("x", (3,)))
    assert "test_debug.py" in str(error.value)


# --- under vmap -----------------------------------------------------------------------------------


def _seen_by(fn: Any, *args: Any) -> list[Any]:
    """What `tapped` values inside were, in order."""
    found: list[Any] = []
    fn(lambda t: sg.debug.tap(t, lambda a: found.append(a.tolist())))(*args)
    return found


def test_vmap_shows_the_rows_of_a_value_that_no_result_needs() -> None:
    def f(tap: Any) -> Any:
        def item(x: Any) -> Any:
            tap(x * 3)
            return x

        return item

    assert _seen_by(lambda tap: sg.vmap(f(tap)), np.arange(3.0)) == [[0, 3, 6]]
    table = np.arange(4.0).reshape(2, 2)
    assert _seen_by(lambda tap: sg.vmap(sg.vmap(f(tap))), table) == [[[0, 3], [6, 9]]]
    graded = _seen_by(lambda tap: sg.grad(lambda x: sg.sum(sg.vmap(f(tap))(x))), np.ones(2))
    assert graded == [[3, 3]]


@pytest.mark.parametrize("reverse", [False, True])
def test_vmap_of_scan_shows_the_rows_of_each_step(reverse: bool) -> None:
    def f(tap: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            tap(c * 2)
            return c + x, None

        return lambda c, xs: sg.scan(step, c, xs, reverse=reverse)[0]

    start, xs = np.array([0.0, 10.0]), np.arange(6.0).reshape(2, 3)
    carry, expected = start, []
    for x in xs.T[::-1] if reverse else xs.T:
        expected.append((2 * carry).tolist())
        carry = carry + x
    assert _seen_by(lambda tap: sg.vmap(f(tap)), start, xs) == expected
    nested = [np.array(e) + 2 * xs.sum(1) * i for i in range(2) for e in expected]
    twice = _seen_by(
        lambda tap: sg.vmap(lambda c, x: sg.fori_loop(0, 2, lambda _, c: f(tap)(c, x), c)),
        start, xs,
    )  # fmt: skip
    np.testing.assert_allclose(twice, nested)


def test_scan_of_vmap_shows_the_rows_of_each_step() -> None:
    def f(tap: Any) -> Any:
        def item(x: Any) -> Any:
            tap(x * 3)
            return x + 1

        return lambda c: sg.scan(lambda c, _: (sg.vmap(item)(c), None), c, None, length=2)[0]

    def program(tap: Any) -> Any:
        return sg.jit(f(tap))

    assert _seen_by(program, np.arange(3.0)) == [[0, 3, 6], [3, 6, 9]]
    rows = np.arange(4.0).reshape(2, 2)
    batched = _seen_by(lambda tap: sg.vmap(f(tap)), rows)
    np.testing.assert_array_equal(batched, [rows * 3, rows * 3 + 3])


def test_vmap_in_a_branch_can_not_be_watched() -> None:
    def branch(x: Any) -> Any:
        return sg.vmap(lambda v: sg.debug.tap(v * 3, print))(x)

    with pytest.raises(sg.UnsupportedError, match="can't watch a value inside"):
        sg.jit(lambda x: sg.cond(x[0] > 0, branch, branch, x))(np.ones(2))
