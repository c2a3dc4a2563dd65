"""The programs of other frameworks give the numbers of the originals.

Figures of PyTorch and JAX that no formula gives were recorded from the same programs run there.
"""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

from .sample_files import SAMPLES, sample

FOLDER = SAMPLES / "from_other_frameworks"
FILES = sorted(f.stem for f in FOLDER.glob("*.py"))

# x² from 5 at rate 0.3, rounded to two digits: 16 points.
ROUNDED = [5, 2, 0.8, 0.32, 0.13, 0.05, 0.02, 0.01, *[0] * 8]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are the same for any number; several tests at once on few cores are faster so."""
    monkeypatch.setenv("STATICGRAD_NUM_THREADS", "1")


def program(name: str) -> ModuleType:
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return sample(name)


def array(value: Any) -> np.ndarray:
    """An eager tensor's values."""
    found: np.ndarray = value.detach().numpy()
    return found


def test_the_table_names_every_program() -> None:
    table = (FOLDER / "README.md").read_text()
    assert len(FILES) == 12
    for name in (*(f"{f}.py" for f in FILES), "descent_picture.ipynb"):
        assert f"`{name}`" in table


@pytest.mark.parametrize("name", FILES)
def test_every_program_runs_as_a_script(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(name)  # so that its neighbours are found
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out


# --- PyTorch: autograd ----------------------------------------------------------------------------


def test_loss_of_two_tensors() -> None:
    loss, a_grad, b_grad = program("pytorch_autograd").loss_of_two_tensors()
    assert loss.item() == np.float32(50 - (42 - 77) / 3)
    assert str(loss.detach()) == "tensor(61.6667)"
    assert str(a_grad) == "tensor([-2., -4., -6.])"
    assert str(b_grad) == "tensor([2.6667, 3.3333, 4.0000])"
    np.testing.assert_array_equal(array(a_grad), [-2, -4, -6])
    np.testing.assert_allclose(array(b_grad), np.array([8, 10, 12]) / 3, rtol=1e-7)
    static = program("pytorch_autograd").loss_as_a_graph()
    for found, wanted in zip(static, (loss, a_grad, b_grad), strict=True):
        np.testing.assert_array_equal(found, array(wanted))


def test_parabola() -> None:
    module = program("pytorch_autograd")
    assert str(module.slope_at_ten()) == "tensor(16.)"
    assert module.gradients_add_up() == [16.0, 32.0, 48.0]
    # PyTorch's values. A gradient that stays that of the first x would end at 10 - 320.
    for descend in (module.descend_retained, module.descend_rebuilt):
        assert descend() == np.float32(2.0000029) == 2.000002861022949
        assert descend("float64") == 2.0000000000000053
        assert descend(steps=3) == pytest.approx(2 + 8 * 0.96**3, rel=1e-6)
    assert module.descend_compiled(10.0) == np.float32(2.0000029)
    assert module.descend_compiled(np.float64(10.0)) == 2.0000000000000053


def test_memory_is_shared_with_numpy() -> None:
    np.testing.assert_array_equal(program("pytorch_autograd").shared_with_numpy(), [2.0, 4.0, 6.0])
    numbers = np.array([1.0, 2.0])
    t = sg.eager.from_numpy(numbers)
    numbers[0] = 7.0
    assert t[0].item() == 7.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numpy_of_a_recorded_tensor", r"requires a gradient.*detach\(\)"),
        ("retained_graph_of_a_changed_leaf", "changed in place"),
        ("second_backward", "retain_graph=True"),
        ("leaf_changed_where_it_is_recorded", r"no_grad\(\)"),
        ("leaf_replaced_by_a_result", "does not require a gradient"),
        ("gradient_of_integers", "only floating tensors"),
    ],
)
def test_what_pytorch_refuses_is_refused(name: str, message: str) -> None:
    module = program("pytorch_autograd")
    failing = {f.__name__: f for f in module.FAILING}
    assert len(failing) == 6
    with pytest.raises((sg.DifferentiationError, sg.DTypeError), match=message):
        failing[name]()


# --- PyTorch: layers ------------------------------------------------------------------------------


def test_one_layer_with_loss_and_optimizer() -> None:
    module = program("pytorch_layers")
    losses, weight_grad, bias_grad = module.one_layer()
    np.testing.assert_allclose(losses, module.one_layer_compiled(), rtol=1e-6)
    np.testing.assert_allclose(losses, [0.27181, 0.249788, 0.231275, 0.215698, 0.202579], atol=1e-6)
    np.testing.assert_allclose(array(bias_grad), [0.2402247, 0.0242175, -0.0349758], atol=1e-6)
    x, y = module.wave(10, 5), module.wave(10, 3) ** 2
    w, b = module.wave(3, 5, scale=0.5), module.wave(3, scale=0.5)
    p = np.maximum(x @ w.T + b, 0)
    d = 2 * (p - y) / p.size * (p > 0)
    np.testing.assert_allclose(array(weight_grad), d.T @ x, atol=1e-6)
    np.testing.assert_allclose(array(bias_grad), d.sum(axis=0), atol=1e-6)


def test_classification_over_a_loader(capsys: pytest.CaptureFixture[str]) -> None:
    losses, accuracy = program("pytorch_layers").classify()
    np.testing.assert_allclose(losses, [1.1446, 1.0490, 0.8870, 0.6168, 0.3738, 0.2363], atol=1e-4)
    assert accuracy == 1.0
    np.testing.assert_allclose(program("pytorch_layers").classify_compiled(), losses, rtol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].strip() == "epoch 1, loss 1.1446"


def test_a_module_with_its_own_forward(capsys: pytest.CaptureFixture[str]) -> None:
    coefficients, losses = program("pytorch_layers").quadratic()
    np.testing.assert_allclose(coefficients, [1, -4, 1], atol=1e-6)
    np.testing.assert_allclose(losses[:2], [29.72519875, 3.797e-05], rtol=1e-3)
    assert capsys.readouterr().out.count("loss") == 6


def test_a_gradient_written_by_hand_serves_both_modes() -> None:
    module = program("pytorch_layers")
    # d/dr (3r² - r) = 6r - 1 at r = 0.1, 0.2, 2 is -0.4, 0.2, 11, which is held at 1.
    for found in module.own_gradient():
        np.testing.assert_allclose(found, [0.0, -0.4, 0.2, 1.0], rtol=1e-12)
    with pytest.raises(sg.UnsupportedError, match=r"WithBackward.*custom_vjp"):
        module.WithBackward()


# --- PyTorch: linear regression -------------------------------------------------------------------


def test_all_programs_of_the_regression_are_equal() -> None:
    module = program("pytorch_linear_regression")
    for epochs in (3, module.EPOCHS):
        found = [module.training_loop(p, epochs) for p in module.PROGRAMS]
        (w, b), losses = found[0]
        for (other_w, other_b), other_losses in found[1:]:
            np.testing.assert_allclose(other_w, w, rtol=1e-12)
            assert other_b == pytest.approx(b, rel=1e-12)
            np.testing.assert_allclose(other_losses, losses, rtol=1e-11)
    exact_w, exact_b = module.closed_form()
    np.testing.assert_allclose(w, exact_w, rtol=1e-12)
    assert b == pytest.approx(exact_b, rel=1e-12)


# --- descents -------------------------------------------------------------------------------------


def test_one_descent_with_the_derivative_from_five_places() -> None:
    paths = program("descent_five_ways").paths()
    assert len(paths) == 5
    for w in paths.values():
        assert list(np.around(w, 2)) == ROUNDED
        np.testing.assert_array_equal(w, paths["by hand"])
        np.testing.assert_allclose(w, 5 * 0.4 ** np.arange(16), rtol=1e-12)


def test_descent_until_the_value_stands_still() -> None:
    module = program("descent_until_still")
    found = [loop() for loop in module.LOOPS]
    assert len(found) == 3
    for updates, x, y in found:
        assert (updates, f"{x:.6f}", f"{y:.6f}") == (106, "2.105643", "-3.988840")
        assert x == pytest.approx(2 + 8 * 0.96**106, rel=1e-13)
        assert (x, y) == pytest.approx(found[0][1:], rel=1e-15)


def test_the_whole_while_loop_is_one_trace() -> None:
    module = program("descent_until_still")
    module.one_while_loop()
    module.descend(np.float64(7.0))
    assert len(module.descend.cache_entries) == 1


def test_the_picture_of_the_descent(tmp_path: Path) -> None:
    module = program("descent_picture")
    xs, ys = module.visited()
    assert list(np.around(xs, 2)) == ROUNDED
    np.testing.assert_array_equal(ys, xs**2)
    file = tmp_path / "descent.png"
    module.main([str(file)])
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    assert width > 700 and height > 500
    curve, path = module.draw(module.f, xs, ys).axes[0].lines
    np.testing.assert_array_equal(curve.get_ydata(), curve.get_xdata() ** 2)
    np.testing.assert_array_equal(path.get_xydata(), np.column_stack([xs, ys]))


def test_the_notebook_runs_and_shows_what_it_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((FOLDER / "descent_picture.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    names: dict[str, Any] = {"__name__": "__main__"}
    pictures = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            assert cell["cell_type"] == "markdown" and "outputs" not in cell
            continue
        text = io.StringIO()
        with redirect_stdout(text):
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        saved = [o for o in cell["outputs"] if o["output_type"] == "stream"]
        assert text.getvalue() == "".join("".join(o["text"]) for o in saved)
        pictures += sum("image/png" in o.get("data", {}) for o in cell["outputs"])
    assert pictures == 1
    _, path = names["axes"].lines
    np.testing.assert_array_equal(path.get_xdata(), names["xs"])
    assert list(np.around(names["xs"], 2)) == ROUNDED
    names["plt"].close(names["figure"])


# --- TensorFlow -----------------------------------------------------------------------------------


def test_a_session_runs_what_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    module = program("tensorflow1_session")
    assert module.declared() == {
        "c": 15.0, "product": 12.0, "product alone": 30.0, "c of a fed product": 103.0,
    }  # fmt: skip
    assert module.only_what_is_fetched()["a + 1"] == 1 < module.only_what_is_fetched()["both"]
    assert module.gradient() == (4.0, -4.0)
    path = module.descent()
    assert list(np.around(path, 2)) == ROUNDED
    np.testing.assert_allclose(path, 5 * 0.4 ** np.arange(16), rtol=1e-12)
    weight, bias, loss = module.regression()
    assert weight == pytest.approx(0.1, abs=1e-6) and bias == pytest.approx(0.3, abs=1e-6)
    assert loss < 1e-12
    assert capsys.readouterr().out.count("step") == 5


def test_variables_and_tapes() -> None:
    module = program("tensorflow2_tape")
    assert module.squared_difference() == (4.0, 4.0, -4.0)
    assert module.persistent() == (108.0, 6.0)
    x, y = module.meet()
    assert x == pytest.approx(2 + 0.6**20, rel=1e-6) and y == pytest.approx(2 - 0.6**20, rel=1e-6)
    path = module.descent()
    assert list(np.around(path, 2)) == ROUNDED
    np.testing.assert_allclose(path, 5 * 0.4 ** np.arange(16), rtol=1e-5)
    assert module.outside_the_tape() is None


# --- Keras ----------------------------------------------------------------------------------------


def test_fit_evaluate_predict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module = program("keras_fit")
    labels = module.data()[2][1]
    loss, accuracy, classes = module.three_lines()
    assert accuracy == np.mean(classes == labels) > 0.7 and 0 < loss < 0.65
    found = module.run()
    history = found["history"]
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert found["accuracy"] == np.mean(found["classes"] == labels) > 0.95
    assert 0 < found["loss"] < 0.15
    # It stopped three epochs after the best one, and kept that one's weights.
    assert found["stopped"] == found["best"] + 3 == len(history["loss"]) - 1 < 59
    assert min(history["val_loss"]) == history["val_loss"][found["best"]] == found["best_loss"]
    assert "epoch 2/60: loss" in capsys.readouterr().err
    file = tmp_path / "history.png"
    figure = history.plot(file)
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert module.run(progress=False)["loss"] == found["loss"]
    assert capsys.readouterr().err == ""


def test_fit_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    module, terminal = program("keras_fit"), Terminal()
    x, y = module.data()[1]
    monkeypatch.setattr(sys, "stderr", terminal)
    module.build().fit(x, y, loss="cross_entropy", metrics=["accuracy"], epochs=2)
    shown = terminal.getvalue()
    assert "epoch 1/2 |##########| 8/8, loss" in shown and "accuracy" in shown


# --- JAX ------------------------------------------------------------------------------------------


def test_gradients_of_one_argument() -> None:
    found = program("jax_gradients").of_one_argument()
    slope = np.array([-2, -4, 4]) / 3
    assert found["grad of (x - y)² at 3, 1"] == 4.0
    np.testing.assert_allclose(found["grad of mean((x - y)²)"], slope, rtol=1e-15)
    value, gradient = found["its value and gradient"]
    assert value == 3.0
    np.testing.assert_allclose(gradient, slope, rtol=1e-15)
    assert found["the second derivative"] == 2.0


@pytest.mark.parametrize("order", [2, 3, 4])
def test_gradients_of_the_p_norm(order: int) -> None:
    module = program("jax_gradients")
    found = module.of_chosen_arguments(order)
    d = module.X - module.Y
    powers = np.abs(d) ** order
    norm = powers.sum() ** (1 / order)
    by_x = np.sign(d) * np.abs(d) ** (order - 1) * norm ** (1 - order)
    share = powers / powers.sum()
    by_order = norm * (share @ np.log(np.abs(d)) / order - np.log(powers.sum()) / order**2)
    np.testing.assert_allclose(found["order first, argnums=1"], by_x, rtol=1e-14)
    for got, wanted in zip(found["order first, argnums=(1, 2)"], (by_x, -by_x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-14)
    np.testing.assert_allclose(found["order last, argnums=1"], -by_x, rtol=1e-14)
    for got, wanted in zip(found["order last, argnums=(1, 2)"], (-by_x, by_order), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13)
    if order == 2:
        np.testing.assert_allclose(by_x, np.array([-1, -2, 2]) / 3, rtol=1e-15)
        assert by_order == pytest.approx(-0.7237221922555709, rel=1e-14)  # JAX's
    with pytest.raises(sg.DifferentiationError, match="order"):
        sg.grad(module.p_norm)(order, module.X, module.Y)


def test_gradients_of_trees() -> None:
    module = program("jax_gradients")
    found = module.of_trees()
    assert found["of a dict"] == {"x": 4.0, "y": -4.0}
    wanted = {"pair": (2.0, 8.0), "list": [18.0], "point": module.Point(5.0, 4.0)}
    assert found["of a tree"] == wanted
    assert isinstance(found["of a tree"]["point"], module.Point)
    (theta,) = module.unpacked().values()
    np.testing.assert_allclose(theta, [-32 / 3, -4], rtol=1e-15)


def test_what_fails_in_jax_fails_with_its_reason() -> None:
    module = program("jax_gradients")
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        module.three_arguments()
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for -: 'dict' and 'dict'"):
        module.dict_minus_dict()
    with pytest.raises(sg.DifferentiationError, match="has_aux=True"):
        module.tuple_without_has_aux()


def test_linear_models() -> None:
    module = program("jax_models")
    theta, params = module.fit_array(), module.fit_dict()
    np.testing.assert_allclose(theta, [*module.W, module.B], rtol=1e-12)
    assert sorted(params) == ["b", "w"]
    np.testing.assert_allclose(params["w"], theta[:3], rtol=1e-13)
    np.testing.assert_allclose(params["b"], theta[3], rtol=1e-13)


def test_auxiliary_output() -> None:
    module = program("jax_models")
    gradient, predictions = module.auxiliary()
    x, y = module.data()
    np.testing.assert_array_equal(predictions, np.ones(64))
    np.testing.assert_allclose(gradient["w"], 2 * x.T @ (1 - y) / 64, rtol=1e-13)
    np.testing.assert_allclose(gradient["b"], 2 * np.mean(1 - y), rtol=1e-13)


def test_running_statistics_are_carried() -> None:
    module = program("jax_models")
    params, state, losses = module.fit_normed()
    x = 4 * module.data()[0] + np.array([1.0, -2.0, 3.0])
    kept = 0.9**100  # of the first state
    np.testing.assert_allclose(state["mean"], (1 - kept) * x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(state["var"], kept + (1 - kept) * x.var(axis=0), rtol=1e-12)
    assert losses[0] == pytest.approx(12.772578, abs=1e-6) and losses[-1] < 1e-6
    normal, same = module.batch_norm(params["norm"], state, sg.constant(x), training=False)
    assert same is state
    assert sg.compile([], normal)().shape == (64, 3)


def test_functions_of_arrays_run_in_the_dynamic_mode_as_well() -> None:
    """The same functions, called with eager tensors: by `backward`, and through the transforms."""
    gradients, models = program("jax_gradients"), program("jax_models")
    tensor = sg.eager.tensor
    x, y = tensor(gradients.X, requires_grad=True), tensor(gradients.Y, requires_grad=True)
    for order in (2, 3):
        x.grad = y.grad = None
        gradients.p_norm(order, x, y).backward()
        wanted = gradients.of_chosen_arguments(order)["order first, argnums=(1, 2)"]
        np.testing.assert_allclose(array(x.grad), wanted[0], rtol=1e-14)
        np.testing.assert_allclose(array(y.grad), wanted[1], rtol=1e-14)
    found = sg.grad(gradients.mean_squared)(x.detach(), y.detach())
    np.testing.assert_allclose(array(found), np.array([-2, -4, 4]) / 3, rtol=1e-15)
    params = {"w": np.zeros(3), "b": np.zeros(())}
    static = models.update_dict(params, *models.data())
    dynamic = models.update_dict(sg.tree.map(tensor, params), *map(tensor, models.data()))
    for name in params:
        np.testing.assert_array_equal(array(dynamic[name]), static[name])


# --- NumPy ----------------------------------------------------------------------------------------


def test_gradients_by_hand_are_those_of_the_project() -> None:
    module = program("numpy_backpropagation")
    params, x, y = module.setup()
    found = {way.__name__: way(params, x, y) for way in module.WAYS}
    for name in params:
        wanted = found["by_backpropagation"][name]
        for way in ("by_hand", "by_grad", "by_graph"):
            np.testing.assert_allclose(found[way][name], wanted, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(found["by_differences"][name], wanted, atol=1e-8)
    for name in params:
        np.testing.assert_array_equal(found["by_grad"][name], found["by_graph"][name])
