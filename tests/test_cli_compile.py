"""`staticgrad compile`: the report, the files, what is left out and what goes wrong."""

from __future__ import annotations

import json
import re

import pytest
from staticgrad.api.compile import LATE_PASSES
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

    monkeypatch.setattr("staticgrad.codegen.program.emit_program", broken)
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
