"""The samples keep what they promise: accuracies of the worst of five seeds, closed forms, a loss
below the baseline's."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import staticgrad as sg
from sklearn.linear_model import LinearRegression
from staticgrad.cli import main as cli
from staticgrad.ops import registry

from .oracle import check_gradient, check_record
from .sample_files import MODELS, SAMPLES, sample


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are the same for any number; several tests at once on few cores are faster so."""
    monkeypatch.setenv("STATICGRAD_NUM_THREADS", "1")


def trained(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> dict:
    """The JSON document of `staticgrad train`."""
    path = str(SAMPLES / f"{name}.py")
    code = cli(["train", path, "--json", "--no-checkpoint", *arguments])
    out = capsys.readouterr()
    assert code == 0, out.err
    document: dict = json.loads(out.out)
    return document


def printed(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """What `python samples/name.py` prints."""
    sample(name)  # so that its neighbours are found
    runpy.run_path(str(SAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", MODELS)
def test_every_sample_is_a_model_of_the_command_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = trained(capsys, name, "--epochs", "1", "--limit-batches", "2")
    assert document["ok"] and document["epochs"] == 1 and np.isfinite(document["loss"])


# --- digits ---------------------------------------------------------------------------------------


def test_a_stratified_third_of_the_digits_is_held_out() -> None:
    (x, y), (x_test, y_test) = sample("digits").data()
    assert len(x) + len(x_test) == 1797 and len(x_test) == 599
    assert np.abs(np.bincount(y) - 2 * np.bincount(y_test)).max() <= 3
    seen = {image.tobytes() for image in x}
    assert sum(image.tobytes() in seen for image in x_test) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("name", "promised"), [("digits_mlp", 0.97), ("digits_cnn", 0.985), ("rgb_convnet", 0.97)]
)
def test_every_seed_reaches_the_promised_accuracy(
    name: str, promised: float, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promised == sample(name).PROMISED
    document = trained(capsys, name, "--seed", str(seed))
    assert document["test"]["accuracy"] >= promised


def test_training_by_hand_is_what_the_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    build = sample("digits_mlp").build

    def short() -> sg.Program:
        return dataclasses.replace(build(), epochs=2)

    document = trained(capsys, "digits_mlp", "--epochs", "2", "--seed", "3")
    assert sample("digits").train(short, 3) == document["test"]["accuracy"]
    sample("digits").train_five(short, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[5].startswith("worst of 5: ")


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "char_transformer"])
def test_the_rate_is_a_cosine_that_stays_at_its_end(name: str) -> None:
    module = sample(name)
    program = module.build()
    first, rates = program.scheduler.get_last_lr()[0], []
    for _ in range(2 * module.EPOCHS):
        rates += program.scheduler.get_last_lr()
        program.scheduler.step()
    plain = sg.optim.SGD([sg.parameter(0.0)], lr=first)
    cosine = sg.optim.lr_scheduler.CosineAnnealingLR(plain, module.EPOCHS)
    assert rates[: module.EPOCHS] == [cosine.rate(0, t) for t in range(module.EPOCHS)]
    assert set(rates[module.EPOCHS :]) == {rates[module.EPOCHS - 1]}


def test_a_longer_training_keeps_the_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line's own example: `--epochs 20 --resume`."""
    path, found = str(tmp_path / "mlp.safetensors"), []
    for arguments in (("--epochs", "10"), ("--epochs", "20", "--resume")):
        command = ["train", str(SAMPLES / "digits_mlp.py"), "--json", "--checkpoint", path]
        assert cli([*command, *arguments]) == 0
        found.append(json.loads(capsys.readouterr().out))
    short, long = found
    assert long["resumed_from_epoch"] == 10 and long["epochs"] == 20
    assert long["loss"] < 1.2 * short["loss"]  # 2.4 times with a cosine that rises again
    assert long["test"]["accuracy"] >= 0.985


# --- closed forms ---------------------------------------------------------------------------------


def test_descent_finds_the_least_squares_solution(capsys: pytest.CaptureFixture[str]) -> None:
    module = sample("linear_regression")
    x, y = module.data()
    weights, intercept = module.descend()
    exact = LinearRegression().fit(x, y)
    np.testing.assert_allclose(weights, exact.coef_, rtol=1e-9)
    np.testing.assert_allclose(intercept, exact.intercept_, rtol=1e-9)
    wide = np.column_stack([x, np.ones(len(x))])
    np.testing.assert_allclose(weights, np.linalg.lstsq(wide, y)[0][:-1], rtol=1e-9)
    text = printed(capsys, "linear_regression")
    assert text.count("\n") == 13 and "R2 0.5177" in text


def test_gradient_descent_takes_the_path_of_the_closed_form() -> None:
    module = sample("gradient_descent")
    square, shifted = module.CASES
    assert (square.start, square.rate) == (5.0, 0.3)
    assert (shifted.start, shifted.rate) == (10.0, 0.02)
    xs, ys = module.path(square)
    k = np.arange(square.steps + 1)
    np.testing.assert_allclose(xs, 5 * 0.4**k, rtol=1e-12)
    np.testing.assert_allclose(ys, xs**2, rtol=1e-15)
    xs, ys = module.path(shifted)
    k = np.arange(shifted.steps + 1)
    np.testing.assert_allclose(xs, 2 + 8 * 0.96**k, rtol=1e-12)
    np.testing.assert_allclose(ys, xs**2 - 4 * xs, rtol=1e-14)
    assert abs(xs[-1] - 2) < 3e-3


def test_gradient_descent_prints_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "下降.png"  # a path in Chinese, and no CJK font
    sample("gradient_descent").main([str(file)])
    out = capsys.readouterr().out
    assert "x² - 4x from 10, rate 0.02" in out and str(file) in out
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    assert width > 1000 and height > 600


# --- a language model -----------------------------------------------------------------------------


def test_the_trigram_is_a_distribution_and_its_smoothing_helps() -> None:
    module = sample("char_transformer")
    p = module.trigram(module.TRAIN, 0.6)
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-12)
    assert p.min() > 0
    a, b, c = module.TRAIN[1000:1003]
    alone = np.mean([module.TRAIN[i + 2] == c for i in range(len(module.TRAIN) - 2)
                     if (module.TRAIN[i], module.TRAIN[i + 1]) == (a, b)])  # fmt: skip
    assert p[a, b, c] == pytest.approx(alone, abs=0.2)
    # Known figures of English: 4.7 bits without statistics, 2.8 from trigrams of this little text.
    assert 1.7 < module.trigram_loss() < 2.0


def test_the_model_sees_no_character_that_follows() -> None:
    module = sample("char_transformer")
    program = module.build()
    predict = sg.compile(program.predict.inputs, program.predict.outputs[0])
    codes = module.TRAIN[None, : module.CONTEXT].copy()
    before = predict(codes)
    codes[0, 20:] = 0
    after = predict(codes)
    np.testing.assert_array_equal(before[0, :20], after[0, :20])
    assert (before[0, 20:] != after[0, 20:]).any()


def test_the_language_model_beats_the_trigram_and_writes() -> None:
    module = sample("char_transformer")
    lines: list[str] = []
    predict, held_out = module.train(0, lines.append)
    assert held_out < module.trigram_loss() - 0.1
    assert len(lines) == module.EPOCHS
    text = module.write(predict, "Alice ", 200)
    assert text.startswith("Alice ") and len(text) == 206
    assert set(text) <= set(module.CHARACTERS)
    words = set(module.TEXT.split())
    assert np.mean([w in words for w in text.split()[1:-1]]) > 0.4


# --- a C function ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bessel_j0", "bessel_j1"])
def test_bessel_functions_have_sound_records(name: str) -> None:
    sample("custom_c_op")
    op = registry.get(name)
    check_record(op)
    assert check_gradient(op) > 0


def test_bessel_functions_run_in_the_c_library() -> None:
    module = sample("custom_c_op")
    x = sg.input("x", ("N",), dtype="float64")
    y = module.j0(x)
    program = sg.compile([x], [y, sg.gradients(y.sum(), x)])
    points = np.linspace(-20, 20, 101)
    j0, slope = program(points)
    np.testing.assert_allclose(j0, module.bessel(0)(points), atol=1e-14)
    np.testing.assert_allclose(slope, -module.bessel(1)(points), atol=1e-14)
    assert "@sgc_bessel_j0_float64(" in program.llvm_ir
    address = ctypes.cast(module.LIBRARY.j0, ctypes.c_void_p).value
    assert str(address) not in program.llvm_ir


def test_the_drum_is_fitted_and_the_zero_found(capsys: pytest.CaptureFixture[str]) -> None:
    module = sample("custom_c_op")
    a, k = module.fit()
    assert abs(a - module.AMPLITUDE) < 0.01 and abs(k - module.WAVE_NUMBER) < 0.01
    assert module.newton(2.0, 6)[-1] == pytest.approx(module.FIRST_ZERO, rel=1e-15)
    assert "2.404825557695773  (table)" in printed(capsys, "custom_c_op")
