"""`staticgrad compile`, and the files of `dump_stages`."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import LATE_PASSES
from staticgrad.api.dump import dump_stages
from staticgrad.passes.pipeline import PASSES

from .cli_help import TWO_MOONS, Cli, write_model


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def test_the_report(cli):
    assert cli("compile", TWO_MOONS) == 0
    lines = cli.out.splitlines()
    assert lines[0] == "two_moons, train"
    assert re.match(r"\d+ kernels, \d+ distinct; flops ", lines[1])
    assert "peak_bytes needs N" in lines[1]
    assert any("two_moons.py" in line for line in lines)
    found = cli.json("compile", TWO_MOONS, "--graph", "predict", "--dim", "N=64")
    assert found["graph"] == "predict"
    assert isinstance(found["report"]["peak_bytes"], int)
    assert isinstance(found["report"]["flops"], int)
    assert found["report"]["kernels"]
    assert found["dump_dir"] is None
    assert found["files"] == []


def test_the_files(cli, tmp_path):
    found = cli.json("compile", TWO_MOONS, "--dump-dir", "out/all")
    names = sorted(p.name for p in (tmp_path / "out/all").iterdir())
    assert sorted(found["files"]) == names
    stages = ["declared", *(p.name for p in PASSES)]
    for index, stage in enumerate(stages):
        for suffix in ("txt", "dot", "mmd", "json"):
            assert f"{index:02d}_{stage}.{suffix}" in names
    rest = [n for n in names if n.partition("_")[2].partition(".")[0] not in stages]
    after = len(stages)
    assert rest == [
        f"{after:02d}_program.txt", f"{after + 1:02d}_memory_plan.txt",
        f"{after + 2:02d}_llvm.ll", f"{after + 3:02d}_assembly.s", "report.json",
    ]  # fmt: skip


def read(folder, ending):
    (path,) = folder.glob(f"*{ending}")
    return path.read_text(encoding="utf-8")


def test_what_stands_in_the_files(tmp_path):
    x = sg.input("x", ("N", 8))
    w = sg.parameter(np.ones((8, 4), "float32"), name="w")
    graph = sg.Graph([x], sg.sum(sg.exp(x @ w), axis=0), [(w, w * 2.0)])
    paths = dump_stages(graph, tmp_path / "out")
    folder = tmp_path / "out"
    assert sorted(paths) == sorted(str(p) for p in folder.iterdir())
    assert read(folder, "_declared.txt") == graph.to_text()
    again = sg.Graph.from_text(read(folder, "_declared.txt"))
    assert again.to_text() == graph.to_text()
    assert read(folder, "_declared.dot").startswith("digraph")
    assert json.loads(read(folder, "_declared.json"))
    assert "matmul" in read(folder, "_declared.mmd")
    assert "program(N) {" in read(folder, "_program.txt")
    assert "kernel " in read(folder, "_program.txt")
    assert "arena of" in read(folder, "_memory_plan.txt")
    assert "at N=64" in read(folder, "_memory_plan.txt")
    assert "define i32 @sg_run(ptr %context" in read(folder, "_llvm.ll")
    assert "sg_run:" in read(folder, "_assembly.s")
    report = json.loads(read(folder, "report.json"))
    assert report["version"] == 1
    assert [p["name"] for p in report["passes"]] == ["declared", *(p.name for p in PASSES)]
    assert report["passes"][0]["nodes"] == len(graph)
    assert report["report"]["kernels"]


def test_the_plan_places_what_lives_together_apart(tmp_path):
    x = sg.input("x", (128, 128))
    a = sg.sort(x, axis=0)
    dump_stages(sg.Graph([x], [sg.sort(a, axis=1) + sg.sort(-a, axis=1)]), tmp_path)
    lines = read(tmp_path, "_memory_plan.txt").splitlines()
    peak = int(re.match(r"arena of (\d+) bytes; alive at once: at most (\d+)", lines[0])[1])
    placed = [
        (int(m[1]), int(m[2]), int(m[3]), int(m[4] or m[3]))
        for m in (re.match(r" +(\d+) +(\d+) bytes +\S+ +steps? (\d+)(?: to (\d+))?$", line)
                  for line in lines[1:])
    ]  # fmt: skip
    assert placed
    assert peak >= max(offset + size for offset, size, _, _ in placed)
    for i, (start, size, first, last) in enumerate(placed):
        for other, length, begin, end in placed[:i]:
            together = first <= end and begin <= last
            assert not together or start >= other + length or other >= start + size


def test_sizes_that_can_not_be_64_have_no_plan(tmp_path):
    x, y = sg.input("x", ("N", 3)), sg.input("y", ("M", 3))
    graph = sg.Graph([x, y], sg.reshape(x, ("M", 3)) if False else x[1:] + y)
    dump_stages(graph, tmp_path)
    assert read(tmp_path, "_memory_plan.txt").startswith("no plan at M=64, N=64: ") or read(
        tmp_path, "_memory_plan.txt"
    ).startswith("no plan at N=64, M=64: ")


def test_a_dump_replaces_an_older_one_and_nothing_else(tmp_path):
    x = sg.input("x", (4,))
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    dump_stages(sg.Graph([x], x + 1.0), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    # as if an older version had had one pass more, and somebody had been at the list
    report["files"] += ["98_old.txt", "notes.txt", "../outside.txt"]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (tmp_path / "98_old.txt").touch()
    (tmp_path.parent / "outside.txt").touch()
    dump_stages(sg.Graph([x], x + 1.0), tmp_path)
    assert not (tmp_path / "98_old.txt").exists()
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path.parent / "outside.txt").exists()


def test_passes_that_are_left_out(cli, tmp_path):
    optional = [p.name for p in PASSES if p.kind != "required"] + list(LATE_PASSES)
    names = list(dict.fromkeys(optional))
    everything = cli.json("compile", TWO_MOONS, "--dump-dir", "on")["report"]
    found = cli.json("compile", TWO_MOONS, "--dump-dir", "off", "--disable", *names)["report"]
    assert len(found["kernels"]) > len(everything["kernels"])
    report = json.loads((tmp_path / "off" / "report.json").read_text(encoding="utf-8"))
    assert {p["name"] for p in report["passes"] if p["disabled"]} == set(names) - set(LATE_PASSES)


def test_what_came_before_a_failure_is_there(cli, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise AssertionError("lost a buffer")

    monkeypatch.setattr("staticgrad.api.compile.emit_program", broken)
    assert cli("compile", TWO_MOONS, "--dump-dir", "out") == 70
    assert "internal error" in cli.err
    assert (tmp_path / "out" / "00_declared.txt").exists()
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--disable", "nothing"], 2, "there is no pass 'nothing'"),
        (["--disable", "expand"], 2, "'expand' can't be left out"),
        (["--dim", "N"], 2, "--dim N: expected NAME=SIZE"),
        (["--dim", "N=1", "--dim", "N=2"], 2, "--dim N: given twice"),
        (["--dim", "M=1"], 2, "the graph has no size M; it has N"),
        (["--dim", f"N={2**46}"], 5, "temporaries of"),
        (["--dump-dir", "file"], 2, "--dump-dir file: this is a file"),
    ],
)
def test_wrong_usage(cli, tmp_path, arguments, code, message):
    (tmp_path / "file").touch()
    assert cli("compile", TWO_MOONS, *arguments) == code
    assert message in cli.err
    assert cli.out == ""


def test_a_graphs_text(cli, tmp_path):
    write_model(tmp_path / "g.sgir", "sgir 1\ngraph(%x: float32[N]) {\n  return %x\n}\n")
    assert cli("compile", "g.sgir") == 0
    assert cli.out.startswith("g\n")
