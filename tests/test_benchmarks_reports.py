"""Reports, the page and comparisons that are made of the benchmark's runs. No times."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import compare, page, plot, report, results, sweep, threads
from benchmarks.drivers import OURS
from benchmarks.suite import BY_NAME, WORKLOADS

from .benchmark_runs import a_run, kernels_run, timed


@pytest.fixture(scope="module")
def document() -> results.Document:
    return a_run()


@pytest.fixture(scope="module")
def by_kernel() -> threads.Document:
    return kernels_run()


# --- reports --------------------------------------------------------------------------------------


def test_reports_are_made_of_a_document(document: results.Document, tmp_path: Path) -> None:
    text = report.text(document)
    assert "mlp" in text and "ours / best peer" in text and "a quick run" in text
    written = page.write(document, tmp_path / "p.md")
    assert written == [tmp_path / "p.md", tmp_path / "images" / "p.svg"]
    made = written[0].read_text(encoding="utf-8")
    assert "(images/p.svg)" in made and "| mlp |" in made and "| matmul_2x2x2 |" in made
    assert plot.draw(document, [tmp_path / "ratios.png"])
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_first_calls_may_come_from_another_run(document: results.Document, tmp_path: Path) -> None:
    bare = copy.deepcopy(document)
    for r in bare["results"]:
        for found in r["frameworks"].values():
            found.pop("first", None)
            found.pop("memory", None)
    assert "First call" not in page.page(bare, None)
    older = copy.deepcopy(document)
    older["created"] = "the first day"
    older["results"][0]["frameworks"][OURS]["first"] = {}
    both = page.with_first_calls(bare, [older, document])
    text = page.page(both, None)
    assert "## First call" in text and f"a run of the first day; {document['created']}\n" in text
    for r, whole in zip(both["results"], document["results"], strict=True):
        for name, found in r["frameworks"].items():
            assert found.get("first") == whole["frameworks"][name].get("first")
            assert found.get("time") == whole["frameworks"][name].get("time")


def test_documents_of_before_are_reported(document: results.Document) -> None:
    """Those without bounds, and without what other frameworks tell of their memory."""
    older = copy.deepcopy(document)
    for found in older["results"][0]["frameworks"].values():
        for name in ("temporary_bytes", "bound_bytes", "compiling_bytes", "own_bytes"):
            found["memory"].pop(name, None)
    table = next(t for t in report.tables(older) if "Memory" in t.title)
    assert table.rows[0][1:3] == ["-", "-"]
    assert "mlp" in compare.text(older, document)


def test_what_threads_bring_is_told_beside_what_they_can(document: results.Document) -> None:
    more = copy.deepcopy(document)
    stream = [{"bytes": 1 << 14, "bytes_per_s": 1e9}]
    more["ceilings"] = {"1": {"fma_flops": 1.0, "stream": stream},
                        "2": {"fma_flops": 2.0, "stream": stream}}  # fmt: skip
    again = copy.deepcopy(more["results"][0])
    again["threads"] = 2
    for run_of, seconds in ((more["results"][0], 0.003), (again, 0.002)):
        run_of["frameworks"][OURS]["time"]["median_s"] = seconds
    more["results"].append(again)
    (row,) = report.threads_table(more).rows
    assert row == ["mlp", "2", "3.00 ms", "2.00 ms", "1.50", "2.00", "75%"]
    assert report.threads_table(document).rows == []


def test_memory_that_is_not_files_is_told_beside_the_plan(document: results.Document) -> None:
    told = copy.deepcopy(document)
    memory = told["results"][0]["frameworks"][OURS]["memory"]
    memory |= {"own_bytes": 30 << 20, "planned_bytes": 10 << 20, "state_bytes": 4 << 20}
    table = next(t for t in report.tables(told) if t.title == report.MEMORY)
    column = list(table.header).index("own over the plan")
    assert table.rows[0][column] == "16.0"
    memory["own_bytes"] = None  # not on Linux
    assert report.memory_table(told, told["results"][:1]).rows[0][column] == "-"
    assert "`own over the plan` leaves the pages of files out" in page.page(told, None)


def test_the_summary_is_of_each_number_of_threads(document: results.Document) -> None:
    more = copy.deepcopy(document)
    product = more["results"][1]
    product |= {"workload": report.FMA_WORKLOAD, "flops": 90}
    for name, seconds in ((OURS, 1.0), ("numpy", 1.5)):
        product["frameworks"][name]["time"]["median_s"] = seconds
    more["ceilings"]["1"]["fma_flops"] = 100.0
    again = copy.deepcopy(product)
    again["threads"] = 2
    again["frameworks"][OURS]["time"]["median_s"] = 3.0
    more["results"].append(again)
    told = report.summary(more)
    mean = "geometric mean 2.000 over 1 workloads, 0 of them below 1"
    assert told[0] == f"ours / best peer, 2 thread(s): {mean}"
    assert told[1] == f"slower than the best peer, 2 thread(s): {report.FMA_WORKLOAD} 2.00 (NumPy)"
    assert told[2].startswith("ours / best peer, 1 thread(s): ")
    assert (
        f"share of the FMA ceiling, {report.FMA_WORKLOAD}, 1 thread(s): staticgrad 90%, NumPy 60%; "
        "time, ours / NumPy's: 0.667"
    ) in told


def test_runs_over_parts_of_the_suite_are_joined(document: results.Document) -> None:
    mlp, product = document["results"]
    first = {**document, "results": [mlp], "created": "the first day", "load": [0.5, None]}
    ceilings = {"2": document["ceilings"]["1"]}
    second = {**document, "results": [{**product, "threads": 2}, product], "ceilings": ceilings,
              "created": "the second day", "load": [2.5, None]}  # fmt: skip
    both = results.joined([second, first], list(BY_NAME))
    assert both["results"] == [  # as in the suite
        {**mlp, "run": "the first day"}, {**product, "run": "the second day"},
        {**product, "threads": 2, "run": "the second day"},
    ]  # fmt: skip
    assert [row[0] for row in report.threads_table(both).rows] == ["matmul_2x2x2"]
    apart = results.joined([{**second, "results": [{**mlp, "threads": 2}]}, first], [])
    assert report.threads_table(apart).rows == []  # times of two runs
    assert [row[0] for row in report.step_table(both, both["results"]).rows] == [
        "mlp, 1 thr.", "matmul_2x2x2, 1 thr.", "matmul_2x2x2"
    ]  # fmt: skip
    assert both["created"] == "the second day, the first day" and both["load"][0] == 2.5
    assert both["ceilings"].keys() == {"1", "2"}
    again = results.joined([first, {**document, "created": "the third day"}], list(BY_NAME))
    assert again["created"] == "the third day"  # nothing of the first is left
    elsewhere = {**second, "host": {**document["host"], "cpu": "Abacus"}}
    with pytest.raises(results.DocumentError, match="differ in 'cpu'"):
        results.joined([first, elsewhere], list(BY_NAME))


def test_a_page_with_sweeps_tells_what_work_costs(
    document: results.Document, tmp_path: Path
) -> None:
    paths = [tmp_path / "run.json", tmp_path / "sweep.json"]
    effort = sweep.Effort(1, 1e-4, 2)
    swept = sweep.run(sweep.chosen(["chain"]), 1, lambda line: None, effort)
    for path, found in zip(paths, (document, swept)):
        results.write({**found, "quick": False}, path)
    assert sweep.TITLE not in page.page(document, None)
    arguments = ["page", str(paths[0]), "--sweep", str(paths[1]), "--output"]
    assert command.main([*arguments, str(tmp_path / "p.md")]) == command.OK
    text = (tmp_path / "p.md").read_text(encoding="utf-8")
    assert f"## {sweep.TITLE}" in text and "| N 16 to N 32 | ns an element |" in text
    assert f"A run of {swept['created']}, 1 thread(s). Once calls no longer dominate" in text
    results.write(swept, paths[1])  # a quick one
    assert command.main([*arguments, str(tmp_path / "q.md")]) == command.USAGE


def test_a_wrong_result_has_no_time_and_cannot_win(document: results.Document) -> None:
    wrong = copy.deepcopy(document)
    found = wrong["results"][0]["frameworks"]["numpy"]
    found.update(status="differs", difference=0.5)
    assert (
        results.best_peer(wrong["results"][0]) is None
        and results.ratio(wrong["results"][0]) is None
    )
    assert command.exit_code(wrong) == command.MISMATCH
    assert "numpy, mlp: differs: a difference of 5.0e-01" in report.text(wrong)
    wrong["results"][0]["frameworks"][OURS] = {"status": "failed", "why": "ShapeError: x"}
    assert command.exit_code(wrong) == command.FAILED
    assert "staticgrad, mlp: failed: ShapeError: x" in report.text(wrong)


def test_the_page_tells_what_was_not_run(
    document: results.Document, by_kernel: threads.Document, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = {**document, "results": [{**document["results"][0], "workload": w} for w in BY_NAME]}
    assert page.missing(whole) == []
    line, first = page.missing(document)
    headline = [w.name for w in WORKLOADS if w.headline and w.name != "mlp"]
    assert first.startswith(f"no first call: {len(headline)} of {len(headline) + 1} workloads, ")
    assert first.endswith(", ".join(headline))
    missing = len(WORKLOADS) - 2
    assert line.startswith(f"not run: {missing} of {len(WORKLOADS)} workloads, tiny, tiny_100")
    text = page.page(document, None, by_kernel)
    assert f"- {line}" in text and "## Kernels over" in text and "| mlp: matmul" in text
    kernels = f"kernels not timed on one thread and more: {missing} of"
    assert kernels in text
    for name, found in (("run", document), ("threads", by_kernel)):
        results.write({**found, "quick": False}, tmp_path / f"{name}.json")
    arguments = ["page", str(tmp_path / "run.json"), "--threads", str(tmp_path / "threads.json"),
                 "--output"]  # fmt: skip
    assert command.main([*arguments, str(tmp_path / "p.md")]) == command.OK
    told = capsys.readouterr()
    assert f"warning: {line}" in told.err and f"warning: {kernels}" in told.err
    assert f"wrote {tmp_path / 'p.md'}" in told.out
    assert kernels in (tmp_path / "p.md").read_text(encoding="utf-8")
    assert command.main([*arguments, str(tmp_path)]) == command.USAGE
    assert f"--output {tmp_path}: " in capsys.readouterr().err
    assert not (tmp_path.parent / "images").exists()


def test_a_page_tells_when_and_where_each_of_its_runs_was(
    document: results.Document, by_kernel: threads.Document
) -> None:
    here = {**by_kernel, "created": "the first day"}
    there = {**here, "host": {**document["host"], "cpu": "Abacus"}, "created": "the second day"}
    text = page.page(page.with_first_calls(document, [document]), None, here)
    assert f"- Run: {document['created']};" in text and text.count(document["host"]["cpu"]) == 1
    assert f"- First calls and memory: a run of {document['created']}\n" in text
    assert "A run of the first day. " in text
    text = page.page(page.with_first_calls(document, [{**document, **there}]), None, there)
    for words in ("- First calls and memory: a run", "A run"):
        assert f"{words} of the second day on another host: Abacus, " in text
    part = {**here, "workloads": ["gru"], "created": "the third day"}
    assert threads.merged([here, part])["created"] == "the first day, the third day"
    with pytest.raises(results.DocumentError, match="differ in 'cpu'"):
        threads.merged([here, there])


def test_a_quick_run_is_not_published(
    document: results.Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write(document, tmp_path / "quick.json")
    assert command.main(["page", str(tmp_path / "quick.json")]) == command.USAGE
    assert "not for publishing" in capsys.readouterr().err


# --- comparisons ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "machine", "expected"),
    [
        ((1.0, 1.2), 1.2, ""),  # the machine was slower
        ((1.0, 1.0), 1.2, "faster"),
        ((1.0, 1.0), 0.8, "slower"),
        ((1.0, 1.2), None, "slower"),
        ((1.0, 1.2), 1.0, "slower"),
        ((1.0, 1.22), 1.2, ""),  # below 3 %
        ((None, 1.0), 1.0, "was differs"),
        ((1.0, None), 1.0, "differs"),
    ],
)
def test_a_change_is_judged_beside_what_the_peers_tell_of_the_machine(
    ours: tuple[float | None, float | None], machine: float | None, expected: str
) -> None:
    old, new = (timed({OURS: t}) for t in ours)
    assert compare.verdict(old, new, machine) == expected


def test_repetitions_that_overlap_once_corrected_tell_nothing() -> None:
    def both(spread: float) -> list[results.Result]:
        return [timed({OURS: t}, spread) for t in (1.0, 1.5)]

    assert compare.verdict(*both(0.05), 1.2) == "slower"
    assert compare.verdict(*both(0.15)) == "slower"  # apart as they are measured
    assert compare.verdict(*both(0.15), 1.2) == ""


def test_the_machine_is_the_median_of_the_peers_that_both_runs_have() -> None:
    old = timed({OURS: 1.0, "numpy": 1.0, "torch": 1.0, "torch_compile": 1.0, "jax": 2.0})
    new = timed({OURS: 9.0, "numpy": 1.2, "torch": 5.0, "torch_compile": None, "jax": 2.6})
    peers = ["numpy", "torch", "torch_compile", "jax"]
    assert compare.drift(old, new, peers) == 1.3
    assert compare.drift(old, new, ["numpy"]) == 1.2
    assert compare.drift(old, new, ["torch_compile"]) is None


def test_a_peer_of_another_version_tells_nothing_of_the_machine(
    document: results.Document,
) -> None:
    document = {**document, "quick": False}
    later = copy.deepcopy(document)
    later["results"][0]["frameworks"]["numpy"]["time"]["median_s"] *= 0.25
    assert "took" in compare.text(document, later)
    later["versions"]["numpy"] = {"numpy": "99"}
    text = compare.text(document, later)
    assert "took" not in text and "so not counted: NumPy" in text
    assert "the verdict is of the raw change: mlp, 1 thr.; matmul_2x2x2, 1 thr." in text


@pytest.mark.parametrize("which", ["old", "new", "old and new"])
def test_quick_runs_are_not_judged(document: results.Document, which: str) -> None:
    old, new = ({**copy.deepcopy(document), "quick": n in which} for n in ("old", "new"))
    for name in ("median_s", "low_s", "high_s"):
        new["results"][0]["frameworks"][OURS]["time"][name] *= 4
    text = compare.text(old, new)
    (line,) = (line for line in text.splitlines() if line.startswith("mlp"))
    assert "+300.0%" in line and "slower" not in text and "took" not in text
    assert f"\n{which}: a quick run, so nothing is judged; run without --quick" in text
    new["results"][0]["frameworks"][OURS]["status"] = "differs"
    assert "differs" in compare.text(old, new)


def test_two_documents_are_compared(document: results.Document) -> None:
    document = {**document, "quick": False}
    later = copy.deepcopy(document)
    for found in later["results"][0]["frameworks"].values():
        for name in ("median_s", "low_s", "high_s", "best_s"):
            found["time"][name] *= 0.25
    del later["results"][1]
    text = compare.text(document, later)
    (line,) = (line for line in text.splitlines() if line.startswith("mlp"))
    assert line.split()[-5:-2] == ["-75.0%", "-75.0%", "+0.0%"]  # ours, the peers', corrected
    assert "the peers took 0.250 times as long" in text
    assert "only in old: matmul_2x2x2, 1 thr." in text
