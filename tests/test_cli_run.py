"""`staticgrad run`: inputs from JSON and files, outputs to files, graphs as text."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.files import load_graph

from .cli_help import DESCENT, TWO_MOONS, Cli, write_model

AFFINE = """\
import numpy as np, staticgrad as sg

def build():
    x = sg.input("x", ("N", 2))
    k = sg.input("k", ())
    w = sg.parameter(np.array([[1, 2], [3, 4]], "float32"), name="w")
    y = x @ w * k
    return sg.Program(
        train=sg.Graph([x, k], [sg.sum(y)], updates=[(w, w + 1.0)]),
        predict=sg.Graph([x, k], [y, sg.argmax(y, axis=1)]))
"""
X = np.array([[1, 0], [0, 1], [1, 1]], "float32")
Y = np.array([[2, 4], [6, 8], [8, 12]], "float32")


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "affine.py", AFFINE)
    return Cli(capsys)


def values(found):
    return [np.array(o["values"], o["dtype"]).reshape(o["shape"]) for o in found["outputs"]]


def test_json_values(cli):
    found = cli.json("run", "affine.py", "--input", "x=[[1,0],[0,1],[1,1]]", "--input", "k=2")
    assert found["graph"] == "predict"
    assert [o["name"] for o in found["outputs"]] == ["out0", "out1"]
    y, index = values(found)
    assert y.dtype == "float32"
    assert (y == Y).all()
    assert index.tolist() == [1, 1, 1]


def test_arrays_of_files(cli, tmp_path):
    np.save("x.npy", X)
    np.savez("both.npz", x=X, k=np.float32(2))
    np.savez("one.npz", X)
    (tmp_path / "x.csv").write_text("a,b\n1,0\n0,1\n1,1\n", encoding="utf-8")
    (tmp_path / "k.csv").write_text("2\n", encoding="utf-8")
    for x in ("x.npy", "both.npz#x", "one.npz", "x.csv"):
        for k in ("2.0", "@both.npz#k", "@k.csv"):
            found = cli.json("run", "affine.py", "--input", f"x=@{x}", "--input", f"k={k}")
            assert (values(found)[0] == Y).all()


def test_no_rows(cli):
    np.save("x.npy", np.zeros((0, 2), "float32"))
    found = cli.json("run", "affine.py", "--input", "x=@x.npy", "--input", "k=1")
    assert found["outputs"][0] == {
        "name": "out0", "dtype": "float32", "shape": [0, 2], "values": []
    }  # fmt: skip


def test_numbers_that_json_has_not(cli):
    found = cli.json("run", "affine.py", "--input", "x=[[1,-1]]", "--input", "k=Infinity")
    assert found["outputs"][0]["values"] == [["-Infinity", "-Infinity"]]


def test_people_see_the_values(cli):
    assert cli("run", "affine.py", "--input", "x=[[1,0]]", "--input", "k=2") == 0
    assert cli.out == "out0: float32[1, 2]\n[[2., 4.]]\nout1: int64[1] [1]\n"
    assert "parameters are as build() made them" in cli.err


def test_outputs_to_files(cli, tmp_path):
    inputs = ("--input", "x=[[1,0],[0,1],[1,1]]", "--input", "k=2")
    assert cli("run", "affine.py", *inputs, "--output", "y.npz") == 0
    assert cli.out == "affine: out0 float32[3, 2], out1 int64[3] -> y.npz\n"
    with np.load("y.npz", allow_pickle=False) as found:
        assert sorted(found.files) == ["out0", "out1"]
        assert (found["out0"] == Y).all()
    assert cli("run", TWO_MOONS, "--input", "x=[[1, 2]]", "--output", "z.npy") == 0
    assert np.load("z.npy").shape == (1, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"affine.py", "y.npz", "z.npy"}


def test_the_training_graph_runs_one_step(cli):
    inputs = ("--input", "x=[[1,0]]", "--input", "k=1")
    found = cli.json("run", "affine.py", *inputs, "--graph", "train")
    assert found["graph"] == "train"
    assert values(found)[0] == 3.0


def test_parameters_of_a_checkpoint(cli):
    assert cli("train", DESCENT, "--epochs", "100") == 0
    before = cli.json("run", DESCENT)["outputs"][0]["values"]
    after = cli.json("run", DESCENT, "--checkpoint", "descent.safetensors")["outputs"][0]["values"]
    assert before == 10.0
    assert after == pytest.approx(2.0, abs=1e-5)
    assert "as build() made" not in cli.err


def test_a_graphs_text(cli):
    x = sg.input("x", ("N", 2))
    w = sg.parameter(np.array([[1, 2], [3, 4]], "float32"), name="w")
    table = sg.constant(np.arange(64, dtype="float32").reshape(2, 32))
    graph = sg.Graph([x], x @ w @ table)
    graph.save("affine.sgir")
    found = cli.json("run", "affine.sgir", "--input", "x=[[1,0],[0,1],[1,1]]")
    expected = sg.compile([x], x @ w @ table)(X)
    assert (values(found)[0] == expected).all()
    assert cli("run", "affine.sgir", "--graph", "predict") == 2
    assert "holds one graph" in cli.err
    assert cli("train", "affine.sgir") == 2
    assert "give a Python file" in cli.err
    again = load_graph("affine.sgir")
    assert again.to_text() == graph.to_text()
    assert isinstance(again, sg.Graph)


def test_what_a_graphs_text_can_not_hold_is_listed_at_once(cli, tmp_path):
    write_model(tmp_path / "g.sgir", (
        "sgir 1\ngraph(%x: float32[3], %z: complex64[3]) {\n"
        "  %0 = frobnicate(%x) : float32[3]  # conjure(%x)\n  %1 = twist(%0) : float16[3]\n"
        "  return %1\n}\n"
    ))  # fmt: skip
    error = cli.json("run", "g.sgir", code=3)["error"]
    assert error["type"] == "UnsupportedError"
    assert error["message"] == (
        "g.sgir: not supported: dtype complex64 (line 2), op 'frobnicate' (line 3), "
        "op 'twist' (line 4), dtype float16 (line 4)"
    )


def test_a_graphs_text_with_a_mistake(cli, tmp_path):
    write_model(tmp_path / "g.sgir", "sgir 1\ngraph(%x: float32[3]) {\n  return %y\n}\n")
    error = cli.json("run", "g.sgir", code=2)["error"]
    assert error["type"] == "ParseError"
    assert "g.sgir" in error["message"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs missing: x, k; the graph takes x: float32[N, 2], k: float32[]"),
        (["x=[[1,2]]", "z=1"], "inputs unknown: z; missing: k"),
        (["x"], "--input x: expected NAME=VALUE"),
        (["x=1", "x=2"], "--input x: given twice"),
        (["x=abc", "k=1"], "--input x: 'abc' is neither JSON nor @FILE"),
        (["x={}", "k=1"], "--input x: expected numbers, got {}"),
        (["x=[[1],[2,3]]", "k=1"], "--input x: the list is not regular"),
        (['x=["a"]', "k=1"], "--input x: expected a list of numbers"),
        (["x=[[1,2,3]]", "k=1"], "expected shape (N, 2)"),
        (["x=[[1,2]]", "k=[1]"], "expected 0 dims"),
        (["x=@no.npy", "k=1"], "--input x: no.npy: there is no such file"),
        (["x=@affine.py", "k=1"], "--input x: affine.py: expected .npy, .npz or .csv"),
        (["x=@x.npy#y", "k=1"], "only .npz files hold several arrays"),
        (["x=@x.npy", "k=1"], "expected float32 (N, 2), got dtype float64"),
        (["x=@both.npz", "k=1"], "both.npz: choose one of its arrays by #NAME: a, b"),
        (["x=@both.npz#c", "k=1"], "both.npz: no array 'c'; it holds a, b"),
        (["x=@bad.npz", "k=1"], "--input x: bad.npz:"),
        (["x=@objects.npy", "k=1"], "--input x: objects.npy: Object arrays cannot be loaded"),
        (["x=@ragged.csv", "k=1"], "ragged.csv: row 2 has 1 cells, row 1 has 2"),
        (["x=@words.csv", "k=1"], "words.csv: expected float32 in every cell"),
        (["x=@empty.csv", "k=1"], "empty.csv: holds no numbers"),
    ],
)
def test_wrong_inputs(cli, tmp_path, inputs, message):
    np.save("x.npy", np.zeros((1, 2)))
    np.savez("both.npz", a=X, b=X)
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n", encoding="utf-8")
    (tmp_path / "words.csv").write_text("1,2\n3,four\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("a,b\n", encoding="utf-8")
    arguments = [word for text in inputs for word in ("--input", text)]
    assert cli("run", "affine.py", *arguments) == 2
    assert message in cli.err
    assert cli.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "the model file nothing.py does not exist"),
        (["."], "is a directory"),
        (["notes.txt"], "a model file ends in .py or .sgir"),
        (["empty.py"], "empty.py has no function build()"),
        (["affine.py", "--output", "y.txt"], "ends in .npz or .npy"),
        (["affine.py", "--output", "no/y.npz"], "does not exist"),
        (["affine.py", "--output", "y.npy"], ".npy holds one array, the graph has 2 outputs"),
        (["affine.py", "--graph", "other"], "invalid choice"),
    ],
)
def test_wrong_usage(cli, tmp_path, arguments, message):
    (tmp_path / "empty.py").touch()
    (tmp_path / "notes.txt").touch()
    inputs = ["--input", "x=[[1,2]]", "--input", "k=1"]
    assert cli("run", *arguments, *inputs) == 2
    assert message in cli.err


def test_a_model_beside_its_helpers(cli, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    write_model(folder / "my_helpers.py", "def fail():\n    raise RuntimeError('deep')\n")
    write_model(folder / "m.py", "import my_helpers\ndef build():\n    my_helpers.fail()\n")
    error = cli.json("run", "project/m.py", code=2)["error"]
    assert "my_helpers.py:2 in fail: RuntimeError: deep" in error["message"]
    assert error["location"] == f"{folder / 'my_helpers.py'}:2"


def test_what_a_program_that_is_pickled_says_can_be_done(cli):
    x, w = sg.input("x", (3,)), sg.parameter(np.full(3, 2.0, np.float32), "w")
    program = sg.compile([x], x * w)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"sg\.save\(.*sg\.Graph\(.*\.save.*staticgrad run"):
            attempt(program)
    sg.Graph([x], x * w).save("model.sgir")
    found = cli.json("run", "model.sgir", "--input", "x=[1,2,3]")
    np.testing.assert_array_equal(values(found)[0], [2, 4, 6])


def test_profile(cli):
    inputs = ("--input", "x=[[1,0],[0,1],[1,1]]", "--input", "k=2")
    found = cli.json("run", "affine.py", *inputs, "--profile")
    assert (values(found)[0] == Y).all()
    profile = found["profile"]
    assert profile["dims"] == {"N": 3}
    assert "matmul" in {k["kind"] for k in profile["kernels"]}
    assert all(k["locations"].startswith("affine.py:") for k in profile["kernels"])
    assert cli("run", "affine.py", *inputs, "--profile", "--output", "out.npz") == 0
    assert "out.npz" in cli.out and "GFLOP/s" in cli.out and "affine.py:" in cli.out
    assert cli("run", "affine.py", *inputs, "--profile") == 0
    assert "kernels" in cli.out and "out0" not in cli.out
    assert "profile" not in cli.json("run", "affine.py", *inputs)
