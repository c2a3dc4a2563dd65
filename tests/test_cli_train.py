"""`staticgrad train`: the summary, checkpoints, exact resumption, the bar, and what goes wrong."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.cli.training import Trainer
from staticgrad_runtime import checkpoint

from .cli_help import DESCENT, MODELS, TWO_MOONS, Cli, Terminal, write_model


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def contents(path):
    arrays, metadata = checkpoint.load(path)
    return {name: a.tobytes() for name, a in arrays.items()}, metadata


def variant(body: str) -> str:
    """A model like two_moons whose `build` gives `body` of its program `p`."""
    return (
        f"import dataclasses, os, signal, sys\nsys.path.insert(0, {str(MODELS)!r})\n"
        f"import two_moons\nimport staticgrad as sg\n"
        f"def build():\n    p = two_moons.build()\n{body}"
    )


# --- what it gives --------------------------------------------------------------------------------


def test_the_summary_is_one_line(cli):
    assert cli("train", TWO_MOONS) == 0
    assert re.fullmatch(
        r"two_moons: 3 epochs, loss 0\.\d+, test accuracy \d\.?\d*, \d+\.\d s, [\d,]+ samples/s, "
        r"checkpoint two_moons\.safetensors\n",
        cli.out,
    )
    assert [line.split(":")[0] for line in cli.err.splitlines()] == [
        "epoch 1/3", "epoch 2/3", "epoch 3/3"
    ]  # fmt: skip


def test_the_document(cli):
    found = cli.json("train", TWO_MOONS, "--epochs", "2", "--seed", "7")
    assert found["verb"] == "train"
    assert found["model"] == "two_moons"
    assert found["epochs"] == len(found["history"]) == 2
    assert found["seed"] == 7
    assert found["resumed_from_epoch"] is None
    assert found["checkpoint"] == "two_moons.safetensors"
    assert found["history"][-1]["samples"] == 100
    assert set(found["history"][-1]["train"]) == {"loss", "accuracy"}
    assert found["test"] == found["history"][-1]["test"]
    assert 0.5 < found["test"]["accuracy"] <= 1


def test_figures_are_means_over_samples(cli, tmp_path):
    model = write_model(tmp_path / "means.py", (
        "import numpy as np, staticgrad as sg\n"
        "def build():\n"
        "    x = sg.input('x', ('N',))\n"
        "    w = sg.parameter(np.float32(0.0), name='w')\n"
        "    batches = [(np.full(3, 2, 'float32'),), (np.full(1, 6, 'float32'),)]\n"
        "    return sg.Program(\n"
        "        train=sg.Graph([x], [sg.mean(x) + w], updates=[(w, w * 1.0)]),\n"
        "        predict=sg.Graph([x], x * 2.0),\n"
        "        train_batches=lambda rng: batches, test_batches=lambda: batches,\n"
        "        metrics={'mean': lambda out, batch: out.mean()})\n"
    ))  # fmt: skip
    found = cli.json("train", model, "--epochs", "1", "--no-checkpoint")
    assert found["loss"] == 3.0
    assert found["test"] == {"mean": 6.0}
    assert found["checkpoint"] is None
    assert not (tmp_path / "means.safetensors").exists()


def test_a_graph_without_inputs_takes_one_step_an_epoch(cli, tmp_path):
    assert cli("train", DESCENT, "--epochs", "60") == 0
    assert "steps/s" in cli.out
    arrays, _ = checkpoint.load(tmp_path / "descent.safetensors")
    assert arrays["x"] == pytest.approx(2.0, abs=1e-4)
    # 60 epochs, of which every second leaves a line
    assert len(cli.err.splitlines()) == 30


def test_limit_batches(cli):
    found = cli.json("train", TWO_MOONS, "--limit-batches", "2", "--epochs", "1")
    assert found["history"][0]["samples"] == 32


@pytest.mark.parametrize("missing", ["metrics={}", "predict=None, metrics={}"])
def test_without_metrics_the_test_batches_give_the_loss(cli, tmp_path, missing):
    body = f"    return dataclasses.replace(p, {missing}, test_batches=HELD_OUT, epochs=2)\n"
    text = "HELD_OUT = lambda: [two_moons.data(2, 40), two_moons.data(3, 8)]\n" + variant(body)
    model = write_model(tmp_path / "m.py", text)
    found = cli.json("train", model)
    assert list(found["test"]) == ["loss"]
    assert found["test"] == found["history"][1]["test"] != found["history"][0]["test"]
    assert "test loss" in (cli("train", model, "--no-checkpoint"), cli.out)[1]
    # The oracle: NumPy, from the checkpoint; no dropout, weighted by the number of samples.
    state = checkpoint.load("m.safetensors")[0]
    names = ("0.weight", "0.bias", "3.weight", "3.bias")
    w1, b1, w2, b2 = (state[name].astype("float64") for name in names)
    data = runpy.run_path(TWO_MOONS)["data"]
    x, y = (np.concatenate(parts) for parts in zip(data(2, 40), data(3, 8)))
    logits = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert found["test"]["loss"] == pytest.approx(-log_p[np.arange(48), y].mean(), rel=1e-5)


def test_threads(cli):
    one, two = (cli.json("train", TWO_MOONS, "--threads", n, "--epochs", "1") for n in "12")
    assert (one["loss"], one["test"]) == (two["loss"], two["test"])
    program = runpy.run_path(TWO_MOONS)["build"]()
    assert Trainer(program, 0, None, None, threads=1).step._binder._threads == 1


def test_the_seed_decides_parameters_and_order(cli, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        cli("train", TWO_MOONS, "--epochs", "1", "--seed", seed, "--checkpoint", name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


# --- the bar --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "figures"), [("120", r"accuracy \d\.?\d*, test accuracy"), ("80", "test accuracy")]
)
def test_the_bar_is_for_terminals(cli, monkeypatch, columns, figures):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", columns)
    assert cli("train", TWO_MOONS, "--epochs", "2") == 0
    last = [line.split("\r")[-1] for line in terminal.text.split("\n")]
    for number, line in enumerate(last[:2], 1):
        assert re.fullmatch(
            rf"epoch {number}/2 \|█+\| 7/7, loss 0\.\d+, {figures} \d\.?\d*, [\d,]+ samples/s", line
        )
        assert len(line) <= int(columns)
    assert cli.out.count("\n") == 1


def test_the_document_stands_alone_on_a_terminal(cli, monkeypatch, tmp_path):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    model = write_model(tmp_path / "chatty.py", variant("    print('hello')\n    return p\n"))
    cli.json("train", model, "--epochs", "1")
    assert "hello" in terminal.text
    assert "epoch 1/1 |" in terminal.text


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_holds_everything(cli, tmp_path):
    cli("train", TWO_MOONS, "--epochs", "2")
    arrays, metadata = checkpoint.load(tmp_path / "two_moons.safetensors")
    assert arrays.keys() >= {"0.weight", "0.bias", "3.weight", "3.bias", "generator", "lr.0"}
    assert {n for n in arrays if "momentum" in n}
    assert metadata["epoch"] == "2"
    assert metadata["seed"] == "0"
    assert "PCG64" in metadata["data_order"]
    assert "last_epoch" in metadata["scheduler"]
    assert arrays["generator"][1] == 14  # dropout drew in each of 2 x 7 steps
    assert [p.name for p in tmp_path.iterdir()] == ["two_moons.safetensors"]


def test_resuming_is_exact(cli, tmp_path):
    cli("train", TWO_MOONS, "--epochs", "5", "--seed", "3", "--checkpoint", "whole")
    cli("train", TWO_MOONS, "--epochs", "2", "--seed", "3", "--checkpoint", "parts")
    assert contents(tmp_path / "whole") != contents(tmp_path / "parts")
    assert cli("train", TWO_MOONS, "--epochs", "3", "--resume", "parts") == 0
    found = cli.json("train", TWO_MOONS, "--epochs", "5", "--checkpoint", "parts", "--resume")
    assert found["resumed_from_epoch"] == 3
    assert found["seed"] == 3
    assert [e["epoch"] for e in found["history"]] == [4, 5]
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_resuming_into_another_file(cli, tmp_path):
    cli("train", TWO_MOONS, "--epochs", "1", "--checkpoint", "old")
    before = contents(tmp_path / "old")
    assert cli("train", TWO_MOONS, "--epochs", "2", "--resume", "old", "--checkpoint", "new") == 0
    assert "2 epochs (1 more)" in cli.out
    assert contents(tmp_path / "old") == before
    assert contents(tmp_path / "new")[1]["epoch"] == "2"


def test_nothing_is_left_to_train(cli, tmp_path):
    cli("train", TWO_MOONS, "--epochs", "2")
    before = contents(tmp_path / "two_moons.safetensors")
    found = cli.json("train", TWO_MOONS, "--epochs", "2", "--resume")
    assert found["loss"] is None
    assert found["test"]["accuracy"] > 0.5
    assert contents(tmp_path / "two_moons.safetensors") == before
    cli("train", TWO_MOONS, "--epochs", "2", "--resume")
    assert "already trained for 2 epochs, test accuracy" in cli.out


def change(path, edit):
    arrays, metadata = checkpoint.load(path)
    edit(arrays)
    checkpoint.save(path, arrays, metadata)


def _reshape(arrays):
    arrays["3.bias"] = np.zeros(3, "float32")


def _retype(arrays):
    arrays["3.bias"] = np.zeros(2, "float64")


def _rename(arrays):
    arrays["4.bias"] = arrays.pop("3.bias")


@pytest.mark.parametrize(
    ("edit", "lines"),
    [
        (_reshape, ["wrong type: 3.bias: expected float32[2], got float32[3]"]),
        (_retype, ["wrong type: 3.bias: expected float32[2], got float64[2]"]),
        (_rename, ["missing: 3.bias", "surplus: 4.bias"]),
    ],
)
def test_a_checkpoint_that_does_not_fit(cli, tmp_path, edit, lines):
    cli("train", TWO_MOONS, "--epochs", "1")
    change(tmp_path / "two_moons.safetensors", edit)
    error = cli.json("train", TWO_MOONS, "--resume", code=2)["error"]
    assert error["type"] == "StateError"
    assert [line.strip() for line in error["message"].splitlines()[1:]] == lines
    assert cli("run", TWO_MOONS, "--input", "x=[[1,2]]", "--checkpoint",
               "two_moons.safetensors") == 2  # fmt: skip
    assert all(line in cli.err for line in lines)


def test_a_damaged_checkpoint(cli, tmp_path):
    cli("train", TWO_MOONS, "--epochs", "1")
    path = tmp_path / "two_moons.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert cli("train", TWO_MOONS, "--resume", path, "--checkpoint", "other") == 2
    assert "no readable checkpoint" in cli.err
    arrays = {"w": np.zeros(2)}
    checkpoint.save(path, arrays, {"staticgrad_checkpoint": "1", "epoch": "one"})
    assert cli("train", TWO_MOONS, "--resume", path) == 2
    assert "damaged metadata" in cli.err
    checkpoint.save(path, arrays, {"staticgrad_checkpoint": "99"})
    assert cli("train", TWO_MOONS, "--resume", path) == 2
    assert "of format 99" in cli.err


def test_other_files_are_not_overwritten(cli, tmp_path):
    sg.save(tmp_path / "weights.safetensors", {"w": np.zeros(2)})
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for name in ("weights.safetensors", "notes.txt"):
        before = (tmp_path / name).read_bytes()
        assert cli("train", TWO_MOONS, "--checkpoint", name) == 2
        assert "not overwritten" in cli.err
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "there is no checkpoint two_moons.safetensors"),
        (["--checkpoint", "nowhere/a"], "nowhere does not exist"),
        (["--checkpoint", "a", "--no-checkpoint"], "exclude each other"),
        (["--epochs", "-1"], "expected a number of at least 0"),
        (["--limit-batches", "0"], "expected a number of at least 1"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate\nusage: staticgrad train "),
        (["--threads", "0"], "expected a number of at least 1"),
    ],
)
def test_wrong_usage(cli, arguments, message):
    assert cli("train", TWO_MOONS, *arguments) == 2
    assert message in cli.err
    assert cli.out == ""
    assert message in cli.json("train", TWO_MOONS, *arguments, code=2)["error"]["message"]


def test_an_unknown_option_is_named_without_the_model(cli):
    """`2` was taken for the model, so that the model is left over."""
    assert cli("train", "--workers", "2", TWO_MOONS) == 2
    assert "unrecognized arguments: --workers\nusage: staticgrad train " in cli.err
    assert cli("run", TWO_MOONS, "surplus") == 2
    assert "unrecognized arguments: surplus\nusage: staticgrad run " in cli.err


def test_another_seed_can_not_go_on(cli):
    cli("train", TWO_MOONS, "--epochs", "1", "--seed", "3")
    assert cli("train", TWO_MOONS, "--resume", "--seed", "3", "--epochs", "1") == 0
    assert cli("train", TWO_MOONS, "--resume", "--seed", "4") == 2
    assert "was trained with seed 3" in cli.err


# --- Ctrl-C ---------------------------------------------------------------------------------------

INTERRUPTED = variant("""\
    epochs = []
    def batches(rng):
        epochs.append(1)
        for i, batch in enumerate(p.train_batches(rng)):
            if len(epochs) == 3 and i == 4 and not os.path.exists('calm'):
                os.kill(os.getpid(), signal.SIGINT)
            yield batch
    return dataclasses.replace(p, train_batches=batches)
""")


def test_an_interrupt_keeps_the_last_epoch(cli, tmp_path):
    model = write_model(tmp_path / "stopped.py", INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", "staticgrad.cli", "train", model, "--epochs", "4", "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "interrupted in epoch 3; the checkpoint stopped.safetensors holds epoch 2" in done.stderr
    assert '"type": "InterruptedRun"' in done.stdout
    (tmp_path / "calm").touch()
    assert cli("train", model, "--epochs", "4", "--resume") == 0
    assert cli("train", model, "--epochs", "4", "--checkpoint", "whole") == 0
    assert contents(tmp_path / "stopped.safetensors") == contents(tmp_path / "whole")


def test_an_interrupt_before_the_first_checkpoint(cli, tmp_path):
    model = write_model(tmp_path / "early.py", variant(
        "    def batches(rng):\n        raise KeyboardInterrupt\n"
        "    return dataclasses.replace(p, train_batches=batches)\n"
    ))  # fmt: skip
    assert cli("train", model) == 130
    assert "interrupted in epoch 1; no checkpoint was written" in cli.err
    assert [p.name for p in Path(tmp_path).iterdir()] == ["early.py"]


# --- the model's own errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    {}['k']\n", "m.py:7 in build: KeyError: 'k'\n    {}['k']"),
        ("    sys.exit(3)\n", "m.py:7 in build: the model file left the process: sys.exit(3)"),
        ("    return 5\n", "build() returned int, expected an sg.Program"),
        ("    return dataclasses.replace(p, train_batches=lambda rng: 1 / 0)\n",
         "m.py:7 in <lambda>: ZeroDivisionError"),
        ("    return dataclasses.replace(p, train_batches=lambda rng: [])\n",
         "train_batches gave no batch"),
        ("    return dataclasses.replace(p, train_batches=lambda rng: [1])\n",
         "a batch is a tuple of arrays, got int"),
        ("    return dataclasses.replace(p, train_batches=lambda rng: [()])\n",
         "takes 2 inputs (x, y)"),
        ("    return dataclasses.replace(p, test_batches=lambda: [()])\n",
         "a batch has 0 arrays; predict takes x from x, y"),
        ("    return dataclasses.replace(p, metrics={'m': lambda out, batch: out.shapes})\n",
         "has no attribute 'shapes'"),
        ("    return dataclasses.replace(p, metrics={'m': lambda out, batch: None})\n",
         "the metric 'm' must give a number, got NoneType"),
        ("    return dataclasses.replace(p, train_batches=None)\n",
         "the training graph has inputs (x, y), but build() gives no train_batches"),
        ("    return dataclasses.replace(p, train=None)\n", "build() gives no training graph"),
        ("    return dataclasses.replace(p, metrics=[1])\n", "Program: metrics: expected a dict"),
        ("    return dataclasses.replace(p, epochs='5')\n", "Program: epochs: expected a number"),
        ("    return sg.Program()\n", "expected a graph as train=, predict= or both"),
        ("    return sg.Program(train=p.predict)\n", "the loss, a floating scalar"),
    ],
)  # fmt: skip
def test_what_the_model_does_wrong(cli, tmp_path, body, message):
    model = write_model(tmp_path / "m.py", variant(body))
    assert cli("train", model, "--epochs", "1") == 2
    assert message in cli.err
    assert "Traceback" not in cli.err
    assert cli.out == ""


def test_the_location_is_the_users_line(cli, tmp_path):
    model = write_model(tmp_path / "m.py", "def build():\n    return later()\n")
    error = cli.json("train", model, code=2)["error"]
    assert error["type"] == "ModelFileError"
    assert error["location"] == f"{model}:2"
    write_model(model, "import staticgrad as sg\n\ndef build(:\n")
    error = cli.json("train", model, code=2)["error"]
    assert "m.py:3: SyntaxError" in error["message"]
    assert error["location"] == f"{model}:3"


def test_the_traceback_is_there_for_those_who_ask(cli, tmp_path, monkeypatch):
    model = write_model(tmp_path / "m.py", "def build():\n    return later()\n")
    assert cli("train", model, "--traceback") == 2
    assert "Traceback" in cli.err
    assert "return later()" in cli.err
    monkeypatch.setenv("STATICGRAD_TRACEBACK", "1")
    cli("train", model)
    assert "Traceback" in cli.err


def test_an_unsupported_dtype(cli, tmp_path):
    model = write_model(tmp_path / "m.py", (
        "import staticgrad as sg\ndef build():\n    sg.input('x', (3,), dtype='complex64')\n"
    ))  # fmt: skip
    error = cli.json("train", model, code=3)["error"]
    assert error["type"] == "UnsupportedError"
    assert error["location"] == f"{model}:3"


def test_bad_data_stops_training(cli, tmp_path):
    model = write_model(tmp_path / "m.py", variant(
        "    import numpy as np\n    bad = [(np.zeros((1, 2), 'float32'), np.array([5]))]\n"
        "    return dataclasses.replace(p, train_batches=lambda rng: bad)\n"
    ))  # fmt: skip
    error = cli.json("train", model, code=2)["error"]
    assert error["type"] == "ExecutionError"


def test_a_bug_in_the_compiler_has_a_code_of_its_own(cli, monkeypatch):
    def broken(*arguments, **options):
        raise AssertionError("lost a buffer")

    monkeypatch.setattr("staticgrad.api.compile.compile_graph", broken)
    error = cli.json("train", TWO_MOONS, code=70)["error"]
    assert error["type"] == "AssertionError"
    cli("train", TWO_MOONS)
    assert "internal error: AssertionError: lost a buffer" in cli.err


def test_no_memory(cli, monkeypatch):
    def hungry(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("staticgrad.api.compile.compile_graph", hungry)
    assert cli.json("train", TWO_MOONS, code=5)["error"]["message"] == "out of memory"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train_batches=batches", "train_batches is called as train_batches(rng)"),
        ("train_batches=lambda rng: [], test_batches=shuffled", "called as test_batches()"),
    ],
)
def test_functions_of_batches_with_other_arguments(cli, tmp_path, given, message):
    path = tmp_path / "model.py"
    path.write_text(
        "import staticgrad as sg\n\n\ndef batches():\n    return []\n\n\n"
        "def shuffled(rng):\n    return []\n\n\ndef build():\n    w = sg.parameter(1.0)\n"
        "    step = sg.Graph([], [w * w], updates=[(w, w * 0.5)])\n"
        f"    return sg.Program(train=step, {given})\n",
        encoding="utf-8",
    )
    assert cli("train", path) != 0
    assert message in cli.err and "model.py:" in cli.err


@pytest.mark.parametrize("name", ["sg.exponential", "sg.nn.Linaer", "sg.optim.Adm"])
def test_a_misspelt_name_is_the_model_file_s(cli, tmp_path, name):
    """staticgrad's own module raises the AttributeError, for the line that asks."""
    model = tmp_path / "model.py"
    model.write_text(f"import staticgrad as sg\n\n\ndef build():\n    return {name}(2, 2)\n")
    assert cli("train", str(model)) == 2
    assert f"model.py:5 in build: AttributeError: {name.rpartition('.')[0]}" in cli.err
    assert "internal" not in cli.err
