"""`staticgrad compare`: agreement, the document's form, the page, exit codes; never times."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import custom
from staticgrad.compare import graphs, sections
from staticgrad.compare.agreement import agreement, difference
from staticgrad.compare.inside import snippets
from staticgrad.compare.mistakes import mistakes
from staticgrad.compare.replay import Replay
from staticgrad.compare.shapes import shape_changes
from staticgrad.compare.subject import Subject
from staticgrad.compare.text import as_text
from staticgrad.ops import registry

from .cli_help import DESCENT, Cli, write_model

MODEL = """\
import numpy as np
import staticgrad as sg

def batches(rng):
    points = rng.standard_normal((12, 3)).astype("float32")
    yield points, (points.sum(1) > 0).astype("int64")

def build():
    x = sg.input("x", ("N", 3))
    y = sg.input("y", ("N",), dtype="int64")
    model = sg.nn.Sequential(sg.nn.Linear(3, 8), sg.nn.Tanh(), {extra}sg.nn.Linear(8, 2))

    def loss_of(points, labels):
        return sg.nn.functional.cross_entropy(model(points), labels)

    loss = loss_of(x, y)
    optimizer = sg.optim.SGD(model.parameters(), lr={declared}, momentum=0.9)
    updates = optimizer.minimize(loss)
    {between}
    return sg.Program(train=sg.Graph([x, y], [loss], updates=updates), train_batches=batches,
                      {both})
"""
BOTH = "loss=loss_of, optimizer=optimizer"


def model_text(*, extra: str = "", between: str = "pass", both: str = BOTH) -> str:
    return MODEL.format(extra=extra, declared=0.1, between=between, both=both)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def subject_of(text: str, seed: int = 0) -> Subject:
    namespace: dict = {"__name__": "model"}
    sg.random.seed(seed)
    exec(compile(text, "model.py", "exec"), namespace)
    program = namespace["build"]()
    return Subject(program, next(iter(program.train_batches(np.random.default_rng(seed)))))


# --- the command ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page consists of; every element must be closed."""

    VOID = ("meta", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_document_and_the_page(cli, tmp_path):
    model = write_model(tmp_path / "model.py", model_text())
    environment = dict(os.environ)
    found = cli.json("compare", model, "--fast", "--threads", "1", "-o", "page.html")
    assert dict(os.environ) == environment  # the cache of its own is gone again
    assert found["verb"] == "compare" and found["model"] == "model"
    assert (found["step"], found["dynamic"], found["threads"]) == ("update", "called", 1)
    assert found["batch"] == [
        {"name": "x", "dtype": "float32", "shape": [12, 3]},
        {"name": "y", "dtype": "int64", "shape": [12]},
    ]
    check_agreement(found["agreement"])
    check_times(found["build"], found["steady_ms"])
    check_counts(found["calls"], found["memory"])
    check_optimisations(found["optimisations"])
    check_text(as_text("title", "of", sections.sections(found)))
    check_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert found["page"] == "page.html"


def check_agreement(found):
    assert found["agrees"] is True
    kinds = [(d["what"], d["dtype"]) for d in found["differences"]]
    assert {k: kinds.count(k) for k in kinds} == {
        ("loss", "float32"): 1, ("gradient", "float32"): 4,
        ("parameter after a step", "float32"): 4,
        ("loss", "float64"): 1, ("gradient", "float64"): 4,
    }  # fmt: skip
    assert found["worst"]["float32"] < 1e-5 and found["worst"]["float64"] < 1e-13


def check_times(build, steady):
    stages = {"declare", "compile", "first_step", "to_loss", "total"}
    for mode in ("static", "dynamic"):
        assert steady[mode] > 0
        for state in ("cold", "warm"):
            assert set(build[mode][state]) == stages
            assert 0 < build[mode][state]["to_loss"] <= build[mode][state]["total"]


def check_counts(calls, memory):
    static, dynamic = calls["native"]["static"], calls["native"]["dynamic"]
    assert static["native_calls"] == 1 < dynamic["native_calls"]
    # linear, tanh, linear, cross_entropy; as many back; one update of all parameters
    assert dynamic["forward"]["native_calls"] == dynamic["backward"]["native_calls"] == 4
    assert dynamic["native_calls"] == 9
    assert 1 <= static["kernels"] <= dynamic["kernels"]
    assert calls["python"]["static"]["python"] < calls["python"]["dynamic"]["python"]
    # two layers' weights and biases in float32, each with its momentum; one rate in float64
    assert memory["state_bytes"] == 2 * 4 * (3 * 8 + 8 + 8 * 2 + 2) + 8
    for mode in ("static", "dynamic"):
        assert memory[mode]["total_bytes"] == (
            memory[mode]["arena_bytes"] + memory[mode]["allocated_bytes"]
        )
    assert memory["static"]["planned_bytes"] == static["arena_bytes"]


def check_optimisations(found):
    first, *others, last = found
    assert first["without"] is None and last["without"] == "all"
    names = [e["without"] for e in others]
    assert {"fuse", "cse", "in_place", "layout"} <= set(names) and "expand" not in names
    assert all(e["meaning"] for e in others)
    fused = next(e for e in others if e["without"] == "fuse")
    assert first["kernels"] < fused["kernels"] <= last["kernels"]
    assert first["moved_bytes"] < fused["moved_bytes"]


def check_text(text):
    assert re.findall(r"^(\d)\. ", text, re.MULTILINE) == [str(n) for n in range(1, 9)]
    tables = [line for line in text.splitlines() if not line.startswith("    ")]
    assert max(map(len, tables)) <= 110
    assert "label out of range: the first element of y is 1000000" in text
    assert "N: 12 to 18" in text and "without fuse" in text


def check_page(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.tags.count("section") == page.tags.count("h2") == 8
    assert page.tags.count("svg") >= 6 and page.tags.count("table") >= 8
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "onload")]
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_model_without_inputs_or_loss(cli):
    """The declared graph is replayed, a step ends with the gradients."""
    assert cli("compare", DESCENT, "--fast", "--threads", "1") == 0
    assert re.findall(r"^(\d)\. ", cli.out, re.MULTILINE) == [str(n) for n in range(1, 9)]
    assert "no inputs; dynamic: the declared graph, node by node; 1 thread of a" in cli.out
    assert "Both modes compute the same" in cli.out
    assert "A compiled step is 1 native call" in cli.out
    assert "The model takes no batch." in cli.out
    assert cli.err.splitlines()[0] == "compare: values and gradients"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no.py",), "does not exist"),
        (("graph.sgir",), "give a Python file with build"),
        (("model.py", "-o", "page.txt"), "ends in .html"),
        (("model.py", "-o", "nowhere/page.html"), "does not exist"),
        (("model.py", "--threads", "0"), "at least 1"),
        (("predicts.py",), "build() gives no training graph"),
        (("starved.py",), "gives no train_batches"),
        (("empty.py",), "train_batches gives no batch"),
        (("narrow.py",), "a batch is a tuple of 2 arrays, got 1"),
        (("constant.py",), "depends on no trainable parameter"),
    ],
)
def test_usage_errors(cli, tmp_path, arguments, said):
    text = model_text()
    write_model(tmp_path / "model.py", text)
    write_model(tmp_path / "graph.sgir", "")
    start = (
        "import numpy as np\nimport staticgrad as sg\ndef build():\n    x = sg.input('x', (3,))\n"
    )
    write_model(
        tmp_path / "predicts.py", f"{start}    return sg.Program(predict=sg.Graph([x], x))\n"
    )
    write_model(tmp_path / "starved.py", text.replace("train_batches=batches,", ""))
    write_model(
        tmp_path / "empty.py", text.replace("train_batches=batches", "train_batches=lambda r: []")
    )
    write_model(tmp_path / "narrow.py", re.sub(r"yield points, .*", "yield (points,)", text))
    write_model(tmp_path / "constant.py", (
        f"{start}    w = sg.parameter(np.float32(0), name='w')\n"
        "    return sg.Program(train=sg.Graph([x], [x.sum()], updates=[(w, w + 1.0)]),\n"
        "                      train_batches=lambda rng: [(np.ones(3, 'float32'),)])\n"
    ))  # fmt: skip
    error = cli.json("compare", *arguments, "--fast", code=2)["error"]
    assert said in error["message"]


def test_a_mismatch_ends_with_4(cli, tmp_path):
    """The optimiser is another one than the updates that the graph was declared with."""
    between = "optimizer = sg.optim.SGD(model.parameters(), lr=0.5)"
    model = write_model(tmp_path / "model.py", model_text(between=between))
    error = cli.json("compare", model, "-o", "page.html", code=4)["error"]
    assert error["type"] == "MismatchError"
    lines = error["message"].splitlines()
    assert lines[0] == "the static and the dynamic mode disagree:"
    assert len(lines) == 5 and all("parameter after a step" in line for line in lines[1:])
    assert not (tmp_path / "page.html").exists()


def test_an_error_of_the_models_loss_names_its_line(cli, tmp_path):
    text = model_text(both="loss=lambda x, y: 1 / 0, optimizer=optimizer")
    model = write_model(tmp_path / "model.py", text)
    error = cli.json("compare", model, "--fast", code=2)["error"]
    assert "ZeroDivisionError" in error["message"] and error["location"].endswith("model.py:21")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ("(12, 3)).astype(float) * 1j", "input 'x': expected float32[N, 3], got complex128"),
        ("(0, 3)).astype('float32')", "input 'x': the first batch is empty, of shape (0, 3)"),
        ("(12, 3)).astype(str)", "input 'x': expected float32[N, 3], got <U32"),
    ],
)
def test_a_batch_that_does_not_fit_is_an_error_of_the_model_file(cli, tmp_path, batch, said):
    text = model_text().replace('(12, 3)).astype("float32")', batch)
    text = text.replace("points.sum(1) > 0", "np.arange(len(points)) > 3")
    error = cli.json("compare", write_model(tmp_path / "model.py", text), code=2)["error"]
    assert error["type"] == "ModelFileError" and error["message"] == f"train_batches: {said}"


def test_a_loss_that_gives_none_in_the_dynamic_mode_is_refused(cli, tmp_path):
    text = model_text(both="loss=lambda x, y: None, optimizer=optimizer")
    error = cli.json("compare", write_model(tmp_path / "model.py", text), code=2)["error"]
    assert "must return the loss as an eager tensor, got None" in error["message"]


def test_a_model_file_that_is_no_text_is_refused(cli, tmp_path):
    (tmp_path / "model.py").write_bytes(bytes(range(256)))
    error = cli.json("compare", tmp_path / "model.py", code=2)["error"]
    assert error["type"] == "ModelFileError" and "holds null bytes" in error["message"]


# --- agreement ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    ["", "sg.nn.Dropout(0.5), ", "sg.nn.BatchNorm1d(8), ", "sg.nn.Dropout(0.2), sg.nn.ReLU(), "
     "sg.nn.Dropout(0.4), "],
)  # fmt: skip
@pytest.mark.parametrize("both", [BOTH, ""])
def test_both_modes_agree_with_random_layers_and_statistics(extra, both):
    found = agreement(subject_of(model_text(extra=extra, both=both)))
    assert found["agrees"] and max(found["worst"].values()) < 1e-5
    draws = any("random numbers" in note for note in found["notes"])
    assert draws is ("Dropout" in extra)


def test_state_is_afterwards_as_before():
    subject = subject_of(model_text(extra="sg.nn.BatchNorm1d(8), sg.nn.Dropout(0.5), "))
    before = {name: cell.numpy().tobytes() for name, cell in subject.program.cells().items()}
    agreement(subject)
    shape_changes(subject)
    mistakes(subject)
    after = {name: cell.numpy().tobytes() for name, cell in subject.program.cells().items()}
    assert before == after
    assert all(p.grad is None for p in subject.parameters)


def test_a_gradient_that_is_zero_but_for_rounding_is_not_compared():
    """A bias before batch normalisation: what the mean takes away again."""
    subject = subject_of(model_text(extra="sg.nn.BatchNorm1d(8), ").replace("sg.nn.Tanh(), ", ""))
    found = {(d["what"], d["name"], d["dtype"]): d for d in agreement(subject)["differences"]}
    assert found["gradient", "0.bias", "float32"]["zero_but_for_rounding"]
    assert not found["gradient", "0.weight", "float32"]["zero_but_for_rounding"]


def test_an_operation_for_float32_alone_is_not_widened():
    square = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float)(lambda v: v * v)
    sg.custom_op(
        "test_square32", c_functions={"float32": square}, reference=lambda x: x * x,
        vjp=lambda c, ct: (2.0 * c.operands[0] * ct,), samples=[(np.ones(2, "float32"),)],
        signature="scalar",
    )  # fmt: skip
    try:
        text = model_text(both="").replace("model(points)", "apply('test_square32', model(points))")
        found = agreement(subject_of("from staticgrad.ops.registry import apply\n" + text))
    finally:
        registry.unregister("test_square32")
        custom._custom.discard("test_square32")
    assert found["agrees"] and set(found["worst"]) == {"float32"}
    assert any("float64 is not possible" in note for note in found["notes"])


def test_difference():
    one = np.array([1.0, -2.0])
    assert difference("loss", "x", one, one + np.array([0, 2e-6])).relative == pytest.approx(1e-6)
    assert difference("loss", "x", one, one.astype("float32")).relative == np.inf
    assert difference("loss", "x", one, one[:1]).relative == np.inf
    odd = np.array([np.nan, np.inf, 1.0])
    assert difference("loss", "x", odd, odd).relative == 0
    assert difference("loss", "x", odd, np.array([1.0, np.inf, 1.0])).relative == np.inf
    assert difference("loss", "x", np.zeros(0), np.zeros(0)).relative == 0


# --- the declared graph in other forms ------------------------------------------------------------


def declared():
    """A function of two inputs that share a dim, with an op whose attributes hold that dim."""
    x, y = sg.input("x", ("N", 3)), sg.input("y", ("N",))
    w = sg.parameter(np.array([0.5, -1.0, 2.0], "float32"), name="w")
    z = sg.reshape(sg.broadcast_to(y, (2, *y.shape)), (-1,)).sum() + (x @ w * y).mean()
    return sg.Graph([x, y], [z * 2.0])


BATCH = (np.arange(12, dtype="float32").reshape(4, 3) / 7, np.arange(4, dtype="float32") - 1)


def test_a_graph_at_given_sizes_is_the_same_function():
    graph = declared()
    fixed = graphs.at_sizes(graph, {"N": 4})
    assert [tuple(v.shape) for v in fixed.inputs] == [(4, 3), (4,)]
    (expected,) = sg.compile(graph.inputs, graph.outputs)(*BATCH)
    (found,) = sg.compile(fixed.inputs, fixed.outputs)(*BATCH)
    assert found == pytest.approx(expected, rel=1e-6)
    with pytest.raises(sg.BindError):
        sg.compile(fixed.inputs, fixed.outputs)(*(a[:3] for a in BATCH))


def test_a_graph_in_float64_has_no_float32_left():
    wide, (w,) = graphs.with_state_as_inputs(declared(), wide=True)
    assert {str(t.dtype) for n in wide.nodes for t in n.types if t.dtype.is_float} == {"float64"}
    x, y = (a.astype("float64") for a in BATCH)
    (found,) = sg.compile(wide.inputs, wide.outputs)(x, y, np.array([0.5, -1.0, 2.0]))
    weights = w.node.payload.numpy().astype("float64")
    assert found == pytest.approx(2 * (2 * y.sum() + (x @ weights * y).mean()), rel=1e-14)


def test_the_replay_calls_each_node_for_any_size():
    graph = declared()
    replay = Replay(graph)
    step = sg.compile(graph.inputs, graph.outputs)
    for count in (4, 3, 1):
        batch = [a[:count] for a in BATCH]
        (found,) = replay([sg.eager.tensor(a) for a in batch])
        assert found.item() == pytest.approx(step(*batch)[0], rel=1e-6)


def test_a_loop_is_one_node_of_the_replay():
    """A node that holds a graph: its sizes are those of the batch."""
    text = model_text(both="").replace("model(points)", "model(loop(points))").replace(
        "def build():", "def loop(x):\n"
        "    return sg.scan(lambda c, row: (c + row, c * row), x[0], x)[1]\n\ndef build():"
    )  # fmt: skip
    found = agreement(subject_of(text))
    assert found["agrees"] and found["worst"]["float64"] < 1e-13


def test_a_loss_without_an_optimiser_ends_with_the_gradients():
    subject = subject_of(model_text(both="loss=loss_of"))
    assert not subject.updates and not subject.replays
    found = agreement(subject)
    assert found["agrees"]
    assert {d["what"] for d in found["differences"]} == {"loss", "gradient"}


@pytest.mark.parametrize(
    ("both", "said"),
    [("loss=3", "loss: expected a function"), ("optimizer=3", "optimizer: expected an object")],
)
def test_a_program_refuses_what_is_no_loss_or_optimiser(both, said):
    with pytest.raises(sg.ArgumentTypeError, match=said):
        subject_of(model_text(both=both))


# --- shapes, mistakes, snippets -------------------------------------------------------------------


def test_each_axis_changes_in_turn():
    features, samples = sorted(shape_changes(subject_of(model_text())), key=lambda a: a["symbolic"])
    assert (features["axis"], features["from"], features["to"]) == ("x[1]", 3, 4)
    assert features["static_symbolic"]["error"]["type"] == "BindError"
    assert features["dynamic"]["error"]["type"] == "ShapeError"
    assert (samples["axis"], samples["inputs"]) == ("N", ["x", "y"])
    assert samples["static_symbolic"]["accepted"] and samples["static_symbolic"]["compiled"] == 0
    assert samples["dynamic"]["accepted"]
    fixed = samples["static_fixed"]
    assert fixed["compiled"] == 1 and fixed["error"]["type"] == "BindError"
    assert "expected shape (12, 3), got (18, 3)" in fixed["error"]["message"]


def test_mistakes_name_the_users_line():
    wide, label, count = mistakes(subject_of(model_text()))
    loss_line = "model.py:14"
    assert wide["what"] == "axis 1 of x is 4 in place of 3"
    assert (wide["declare"]["type"], wide["declare"]["line"]) == ("ShapeError", loss_line)
    assert (wide["call"]["type"], wide["dynamic"]["type"]) == ("BindError", "ShapeError")
    assert wide["dynamic"]["line"] == loss_line
    assert label["declare"] is None
    assert (label["call"]["type"], label["call"]["line"]) == ("ExecutionError", loss_line)
    assert (label["dynamic"]["type"], label["dynamic"]["line"]) == ("ExecutionError", loss_line)
    assert "1000000" in label["call"]["message"] and "1000000" in label["dynamic"]["message"]
    assert count["what"] == "N is 12 in x, 13 in y"
    assert count["call"]["type"] == "BindError" and count["dynamic"]["line"] == loss_line


def test_a_replay_does_not_pretend_to_run_the_models_code():
    wide, label, _ = mistakes(subject_of(model_text(both="")))
    assert wide["declare"] is None and wide["dynamic"] is None
    assert (label["dynamic"]["type"], label["dynamic"]["line"]) == ("ExecutionError", "model.py:14")


def test_snippets_show_the_same_value():
    found = {s["name"]: s for s in snippets()}
    dynamic, static = found["print"]["output"], found["sg.debug.print"]["output"]
    assert dynamic.startswith("h: ") and static.startswith("model.py:8 h: float32[2, 2]")
    numbers = [re.findall(r"-?\d+\.\d+", t.partition("]\n")[2] or t) for t in (dynamic, static)]
    assert numbers[0][-2:] == numbers[1][-2:]
    assert found["sg.debug.tap"]["output"].count("largest:") == 2
    assert len(found["fit(callbacks=)"]["output"].splitlines()) == 2
    assert list(snippets()) == list(found.values())  # the same every time


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.0000012, "0.00 µs"), (0.0123, "12.3 µs"), (0.4996, "500 µs"), (0.9996, "1.00 ms"),
     (12.34, "12.3 ms"), (123.4, "123 ms"), (1234.0, "1.23 s")],
)  # fmt: skip
def test_times_are_shown_in_a_unit_that_suits_them(milliseconds, text):
    assert sections.ms(milliseconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (5 << 20, "5.00 MiB")],
)
def test_sizes_are_shown_in_a_unit_that_suits_them(size_bytes, text):
    assert sections.size(size_bytes) == text


# --- the page about it ----------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "static-vs-dynamic.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_print_what_it_says(tmp_path):
    """All of its Python in one process; each text block is what the block before it prints."""
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(blocks) == DOCUMENT.count("```python")
    program = write_model(tmp_path / "page.py", "\nprint('-' * 9)\n".join(c for c, _ in blocks))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, encoding="utf-8",
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("-" * 9 + "\n") == [printed for _, printed in blocks]


def test_the_figures_of_the_page_are_made_by_its_script(monkeypatch, tmp_path):
    """The page is what the script makes of the findings that are kept."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    figures = importlib.import_module("compare_figures")
    made = re.findall(r"<!-- generated: (\w+) -->\n(.*?)<!-- end -->", DOCUMENT, re.DOTALL)
    assert all(text.strip() for _, text in made)
    parts = figures.parts(figures.known())
    assert set(parts) == set(dict(made))
    assert figures.with_parts(DOCUMENT, parts) == DOCUMENT
