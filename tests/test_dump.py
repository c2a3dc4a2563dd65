"""`dump_stages`: every stage of a compilation as files."""

from __future__ import annotations

import json
import re

import numpy as np
import staticgrad as sg
from staticgrad.api.dump import dump_stages
from staticgrad.passes.pipeline import PASSES


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
    dump_stages(sg.Graph([x, y], x[1:] + y), tmp_path)
    text = read(tmp_path, "_memory_plan.txt")
    assert re.match(r"no plan at (N=64, M=64|M=64, N=64): .* (63|64), .* (63|64)", text)


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
