"""Every public function, given what it can't take: an error of this project that names the user's
line, or Python's own TypeError for a wrong call; never an error from the inside."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.errors import StaticgradError

JUNK: dict[str, Any] = {
    "None": None,
    "str": "text",
    "dict": {"a": 1},
    "object": object(),
    "object array": np.array([object()]),
    "complex": np.zeros(3, "complex64"),
    "half": np.zeros(3, "float16"),
    "ragged": [[1.0], [1.0, 2.0]],
    "function": len,
}


def _functions(module: Any) -> dict[str, Callable[..., Any]]:
    names = getattr(module, "__all__", None) or dir(module)
    prefix = module.__name__.rpartition(".")[2]
    return {
        f"{prefix}.{n}": getattr(module, n)
        for n in names
        if not n.startswith("_") and inspect.isfunction(getattr(module, n))
    }


FUNCTIONS = {
    **_functions(sg),
    **_functions(sg.random),
    **_functions(sg.nn.functional),
}
LAYERS = {
    n: getattr(sg.nn, n)
    for n in dir(sg.nn)
    if inspect.isclass(getattr(sg.nn, n)) and issubclass(getattr(sg.nn, n), sg.nn.Module)
}
OPTIMIZERS = {n: getattr(sg.optim, n) for n in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")}


def _required(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


def _assert_refuses_or_takes(call: Callable[[], Any]) -> None:
    try:
        call()
    except (StaticgradError, TypeError):
        return
    except FileNotFoundError:  # `load` of a path that does not exist says so as Python does
        return


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = FUNCTIONS[name]
    count = max(_required(function), 1)
    x = sg.input("x", ("N", 3))
    for junk in JUNK.values():
        _assert_refuses_or_takes(lambda junk=junk: function(*[junk] * count))
        if count > 1:  # a good first operand with bad others
            _assert_refuses_or_takes(lambda junk=junk: function(x, *[junk] * (count - 1)))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers(name: str) -> None:
    layer = LAYERS[name]
    for junk in JUNK.values():
        _assert_refuses_or_takes(lambda junk=junk: layer(*[junk] * _required(layer)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    w = sg.parameter(np.ones(3, "float32"))
    for junk in JUNK.values():
        _assert_refuses_or_takes(lambda junk=junk: OPTIMIZERS[name](junk))
        _assert_refuses_or_takes(lambda junk=junk: OPTIMIZERS[name]([w], lr=junk))


@pytest.mark.parametrize("method", ["sum", "mean", "max", "argmax", "softmax", "sort", "cumsum"])
@pytest.mark.parametrize("axis", [7, -3, 1.5, "0", (0, 0), None.__class__])
def test_axes_name_the_users_line(method: str, axis: Any) -> None:
    x = sg.input("x", ("N", 3))
    with pytest.raises(StaticgradError, match=r"test_bad_input\.py"):
        getattr(x, method)(axis=axis)


@pytest.mark.parametrize("wrong", ["complex64", "float16", "bfloat16", complex, np.complex128])
def test_unsupported_dtypes_are_refused_by_name(wrong: Any) -> None:
    with pytest.raises(sg.UnsupportedError, match=r"complex|float16|bfloat16"):
        sg.input("x", (3,), dtype=wrong)


@pytest.mark.parametrize("device", ["cuda", "gpu", "tpu"])
def test_other_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(sg.UnsupportedError, match=device):
        sg.zeros((2,), device=device)
    with pytest.raises(sg.UnsupportedError, match=device):
        sg.nn.Linear(2, 3).to(device)


# --- the same answer in every mode, or an error ---------------------------------------------------

ROW = np.arange(1, 4, dtype="float32")


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_an_extremum_of_no_elements_is_refused_by_programs_that_serve_all_sizes(name: str) -> None:
    function = getattr(sg, name)
    jitted = sg.jit(function)
    for n in (3, 4, 5):  # from the second size on the axis has a symbol
        jitted(np.ones(n, "float32"))
        function(sg.eager.ones(n))
    for call in (lambda: jitted(np.ones(0, "float32")), lambda: function(sg.eager.zeros(0))):
        with pytest.raises(sg.ShapeError, match="no elements"):
            call()
    total = sg.jit(sg.sum)
    assert [float(total(np.ones(n, "float32"))) for n in (3, 4, 0, 5, 0)] == [3, 4, 0, 5, 0]


MASKED = np.ma.array(ROW, mask=[0, 1, 0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: sg.constant(MASKED),
        lambda: sg.parameter(MASKED, "p"),
        lambda: sg.ones((3,)) + MASKED,
        lambda: sg.eager.tensor(MASKED),
        lambda: sg.eager.ones(3) + MASKED,
        lambda: sg.nn.Linear(3, 1).predict(np.ma.array([ROW], mask=True)),
        lambda: _session_sum(MASKED),
    ],
)
def test_a_masked_array_does_not_lose_its_mask(call: Callable[[], Any]) -> None:
    with pytest.raises(StaticgradError, match=r"masked array.*fill it first"):
        call()


def _session_sum(fed: Any) -> Any:
    x = sg.input("x", (3,))
    with sg.Session() as session:
        return session.run(sg.sum(x), {x: fed})


def test_an_eager_tensor_compared_with_what_is_no_number_is_unequal() -> None:
    t = sg.eager.tensor(ROW)
    for other in (None, "text", object()):
        assert (t == other) is False
        assert (t != other) is True
    with pytest.raises(sg.ArgumentTypeError, match="expected tensors, arrays, numbers or lists"):
        t + {1}
    with pytest.raises(sg.ArgumentTypeError, match="got str"):
        (sg.eager.ones(3, requires_grad=True) * 2).backward("text")


# --- what changes between calls -------------------------------------------------------------------


def test_static_arguments_that_are_equal_but_not_the_same_have_traces_of_their_own() -> None:
    scaled = sg.jit(lambda x, n: x * n, static_argnums=1)
    assert not np.signbit(scaled(ROW, 0.0)).any()
    assert np.signbit(scaled(ROW, -0.0)).all()
    first = sg.jit(lambda x, n: x * n[0], static_argnums=1)
    ints = np.array([1, 2])
    assert [first(ints, (n,)).dtype for n in (1, 1.0, True)] == ["int64", "float32", "int64"]
    many = sg.jit(lambda x, n: x * n, static_argnums=1)
    many(ROW, float("nan")), many(ROW, float("nan"))
    assert len(many.cache_entries) == 1
    with pytest.raises(sg.ArgumentError, match="'m', but the function's arguments are x, n"):
        sg.jit(lambda x, n: x * n, static_argnames="m")


def test_a_captured_zero_that_changes_its_sign_is_traced_again() -> None:
    sign = 0.0

    def f(x: Any) -> Any:
        return x * sign

    traced = sg.jit(f)
    assert not np.signbit(traced(ROW)).any()
    sign = -0.0
    assert np.signbit(traced(ROW)).all()


def test_a_captured_model_that_changes_is_traced_again() -> None:
    model = sg.nn.Sequential(sg.nn.Linear(3, 4), sg.nn.Dropout(0.0), sg.nn.Linear(4, 2))
    traced = sg.jit(lambda x: model(x))
    batch = ROW[None]

    def check() -> None:
        eager = model(sg.eager.tensor(batch)).detach().numpy()
        np.testing.assert_allclose(traced(batch), eager, rtol=1e-5, atol=1e-6)

    check()
    model[2] = sg.nn.Linear(4, 2)
    check()
    model[2].weight = sg.parameter(np.zeros((2, 4), "float32"))
    check()
    kept = len(traced.cache_entries)
    model[2].weight.assign(np.ones((2, 4), "float32"))  # its value is state: the trace serves
    check()
    assert len(traced.cache_entries) == kept
    model.train()
    model[1].p = 1.0
    np.testing.assert_allclose(traced(batch)[0], model[2].bias.numpy(), rtol=1e-6)


def test_a_pullback_is_of_the_values_that_vjp_was_given() -> None:
    x = ROW.copy()
    _, pullback = sg.vjp(lambda a: a * a, x)
    x[:] = 100
    np.testing.assert_array_equal(pullback(np.ones(3, "float32"))[0], 2 * ROW)
    t = sg.eager.tensor(ROW)
    _, pullback = sg.vjp(lambda a: a * a, t)
    t.mul_(10)
    np.testing.assert_array_equal(pullback(sg.eager.ones(3))[0].numpy(), 2 * ROW)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_model_and_its_optimizer_are_copied_in_the_middle_of_training(copied: Any) -> None:
    model = sg.nn.Linear(3, 2)
    optimizer = sg.optim.Adam(model.parameters(), lr=0.1)
    batch = sg.eager.ones(4, 3)

    def step(model: Any, optimizer: Any) -> np.ndarray[Any, Any]:
        optimizer.zero_grad()
        (model(batch) ** 2).mean().backward()
        optimizer.step()
        return np.array(model.weight.numpy())

    model.fit(np.ones((4, 3)), np.ones((4, 2)), loss="mse", epochs=1, progress=False)
    step(model, optimizer)
    twin, its_optimizer = copied((model, optimizer))
    np.testing.assert_array_equal(step(model, optimizer), step(twin, its_optimizer))
    its_optimizer.lr = 0.5
    assert (optimizer.lr, its_optimizer.param_groups[0]["lr"]) == (0.1, 0.5)
    step(twin, its_optimizer)
    assert (model.weight.numpy() != twin.weight.numpy()).any()
    assert twin.predict(np.ones((1, 3))).shape == (1, 2)


def test_eager_gradients_of_empty_tensors_beside_full_ones() -> None:
    a = sg.eager.zeros(3, 0, 1, dtype=sg.float64, requires_grad=True)
    b = sg.eager.zeros(1, 0, requires_grad=True)
    (a + b).sum().backward()
    assert (a.grad.shape, b.grad.shape) == ((3, 0, 1), (1, 0))
    full = sg.eager.ones(5, 2, requires_grad=True)
    joined = sg.concat([full, sg.eager.zeros(0, 2)])
    (joined * 2).sum().backward()
    np.testing.assert_array_equal(full.grad.numpy(), np.full((5, 2), 2.0))


def test_no_grad_serves_threads_and_generators_that_move_between_them() -> None:
    switch = sg.eager.no_grad()
    entered, left = threading.Event(), threading.Event()
    seen: list[bool] = []

    def other() -> None:
        with sg.eager.enable_grad(), switch:
            entered.set()
            left.wait(10)
            seen.append(sg.eager.is_grad_enabled())
        seen.append(sg.eager.is_grad_enabled())

    thread = threading.Thread(target=other)
    with switch:
        thread.start()
        entered.wait(10)
    assert sg.eager.is_grad_enabled()
    left.set()
    thread.join()
    assert seen == [False, True]

    def block() -> Iterator[None]:
        with sg.eager.no_grad():
            yield

    begun = block()
    starter = threading.Thread(target=lambda: next(begun))
    starter.start()
    starter.join()
    begun.close()
    assert sg.eager.is_grad_enabled()
    with pytest.raises(sg.ArgumentTypeError, match="expected a function to decorate, got 3"):
        sg.eager.no_grad(3)
