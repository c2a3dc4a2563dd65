"""The benchmark: its workloads mean the same everywhere, and a run hangs together. No times."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import functools
import getpass
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import ceilings, compare, page, plot, report, results, sweep, threads
from benchmarks.client import WorkerError, WorkerProcess, without_paths
from benchmarks.drivers import LABELS, OURS, checked_values
from benchmarks.measure import Options, run
from benchmarks.numpy_driver import NumpyDriver
from benchmarks.staticgrad_driver import StaticgradDriver
from benchmarks.suite import BY_NAME, WORKLOADS, chosen
from benchmarks.workload import Workload, least_bytes, working_set


def distinct() -> list[Workload]:
    """The workloads at their small sizes; of the matrix products, each small shape once."""
    seen, kept = set(), []
    for w in (w.shrunk() for w in WORKLOADS):
        key = (w.group, *w.sizes.values()) if w.group == "matmul" else w.name
        if key not in seen:
            seen.add(key)
            kept.append(w)
    return kept


# --- workloads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", distinct(), ids=lambda w: w.name)
def test_staticgrad_and_numpy_compute_the_same(w: Workload) -> None:
    parameters, inputs = w.arrays()
    expected = checked_values(w, NumpyDriver(1, np.float64).prepare(w, parameters, inputs))
    started = parameters if w.kind == "train" else ()
    for driver in (NumpyDriver(1), StaticgradDriver(1)):
        program = driver.prepare(w, parameters, inputs)
        restore = program.keep()
        found = checked_values(w, program)
        assert all(a.dtype == np.float32 for a in found)
        assert results.largest_difference(found, expected, started) <= w.tolerance
        restore()  # every repetition does the same work: the bits tell
        for again, before in zip(checked_values(w, program), found, strict=True):
            np.testing.assert_array_equal(again, before)


def test_arrays_are_the_same_every_time_and_have_the_types_that_frameworks_share() -> None:
    for w in distinct():
        first, second = w.arrays(), w.arrays()
        for a, b in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype in (np.float32, np.int64)


def test_work_is_counted_by_hand() -> None:
    def flops(name: str) -> int:
        w = BY_NAME[name]
        return w.flops(w.sizes)

    assert flops("matmul_512x512x512") == 2 * 512**3
    first, second, third = (2 * 128 * n for n in (784 * 512, 512 * 256, 256 * 10))
    assert flops("mlp") == 2 * first + 3 * second + 3 * third
    assert flops("gru") == 2 * 3 * 100 * 32 * 128 * (2 * 64 + 3 * 128)
    assert all(w.flops(w.sizes) > 0 for w in WORKLOADS)
    p, x, y = (np.zeros(n, np.float32) for n in (10, 100, 1))
    assert least_bytes("train", [p], [x], [y]) == 4 * (4 * 10 + 100 + 1)
    assert working_set("train", [p], [x], [y]) == 4 * (2 * 10 + 100 + 1)
    assert least_bytes("vjp", [p], [x], [y]) == 4 * (10 + 100 + 1)


def test_names_are_chosen_by_pattern_and_group() -> None:
    assert len(BY_NAME) == len(WORKLOADS)
    assert [w.name for w in chosen(["cnn", "sum_*"])] == [
        "sum_axis0", "sum_axis1", "sum_axis2", "sum_all", "cnn"
    ]  # fmt: skip
    assert {w.group for w in chosen(["matmul"])} == {"matmul"}
    assert len(chosen([])) == len(WORKLOADS)
    with pytest.raises(ValueError, match="nothing_fits: no workload or group"):
        chosen(["nothing_fits"])


# --- values ---------------------------------------------------------------------------------------


def test_differences_are_relative_to_the_largest_of_an_array() -> None:
    expected = [np.array([4.0, 0.001]), np.array(2.0)]
    assert results.largest_difference([np.array([4.0, 0.003]), np.array(2.0)], expected) == 0.0005
    assert results.largest_difference([np.array([4.0, 0.001])], expected) == math.inf
    assert results.largest_difference([np.array([4.0]), np.array(2.0)], expected) == math.inf
    nan = [np.array([4.0, np.nan]), np.array(2.0)]
    assert results.largest_difference(nan, expected) == math.inf


def test_a_wrong_gradient_shows_however_small_the_step() -> None:
    """The comparison of parameters is one of their change."""
    w = BY_NAME["mlp"].shrunk()
    parameters, inputs = w.arrays()
    expected = checked_values(w, NumpyDriver(1, np.float64).prepare(w, parameters, inputs))
    found = checked_values(w, NumpyDriver(1).prepare(w, parameters, inputs))
    i = 3 + 2  # behind the losses, the second layer's weights
    step = found[i] - parameters[2]
    found[i] = (parameters[2] + 1.01 * step).astype(np.float32)
    difference = results.largest_difference(found, expected, parameters)
    assert w.tolerance < difference < 0.02


# --- ceilings -------------------------------------------------------------------------------------


def test_the_code_of_the_ceilings_does_the_work_that_it_counts() -> None:
    lanes = ceilings.host_target().vector_bits // 32
    for past_caches in (False, True):
        library = ceilings._library(ceilings.triad_text(lanes, past_caches), "triad")
        triad = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 3)(
            library.address("triad")
        )
        a, b, c = (ceilings._aligned(8 * lanes) for _ in range(3))
        b[:], c[:] = np.arange(8 * lanes), 3.0
        triad(2, 8 * lanes, *(x.ctypes.data for x in (a, b, c)))
        np.testing.assert_array_equal(a, b + 0.5 * c)
    library = ceilings._library(ceilings.fma_text(lanes, 12), "fma")
    fma = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(library.address("fma"))
    a = ceilings._aligned(2 * lanes)
    a[:lanes], a[lanes:] = 2.0, 3.0
    fma(5, a.ctypes.data)
    np.testing.assert_array_equal(a[:lanes], 5 * 12 * 6.0)


def test_the_roofline_takes_the_stream_that_the_arrays_fit() -> None:
    stream = [{"bytes": 1 << 14, "bytes_per_s": 100.0}, {"bytes": 1 << 20, "bytes_per_s": 10.0}]
    document = {"ceilings": {"1": {"fma_flops": 50.0, "stream": stream}}}

    def least(flops: int, moved: int, held: int) -> Any:
        result = {"threads": 1, "flops": flops, "bytes": moved, "held_bytes": held}
        return results.least_seconds(document, result)

    assert least(500, 100, 1 << 10) == 10.0  # operations
    assert least(0, 1000, 1 << 10) == least(0, 1000, 1 << 16) == 10.0
    assert least(0, 1000, 1 << 21) == 100.0
    assert results.least_seconds({"ceilings": {}}, {"threads": 1}) is None


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> results.Document:
    """A whole run with worker processes, in small sizes."""
    options = Options(
        sys.executable, sys.executable, ("numpy",), (1,), repetitions=2, repetition_s=1e-4,
        fresh=1, fresh_calls=1, ceiling_s=1e-4, ceiling_bytes=1 << 20, timeout_s=300.0,
        quick=True, small=True,
    )  # fmt: skip
    notes: list[str] = []
    kept: list[int] = []
    made = run(
        [BY_NAME["mlp"], BY_NAME["matmul_2x2x2"]], options, notes.append,
        lambda document: kept.append(len(document["results"])),
    )  # fmt: skip
    assert kept == [1, 2]
    assert "[1/2] mlp" in "".join(notes) and not [n for n in notes if "failed" in n]
    return made


def test_a_run_has_all_figures(document: results.Document) -> None:
    mlp, product = document["results"]
    for result in (mlp, product):
        for name in (OURS, "numpy"):
            found = result["frameworks"][name]
            assert found["status"] == "ok" and found["difference"] <= result["tolerance"]
            assert found["time"]["repetitions"] == 2 and found["time"]["calls"] >= 1
        assert results.ratio(result) and results.least_seconds(document, result)
    ours = mlp["frameworks"][OURS]
    assert ours["first"].keys() == {"cold", "warm"}
    assert ours["figures"]["kernels"] > 0 and ours["memory"]["state_bytes"] > 0
    assert "first" not in product["frameworks"][OURS]
    memory = ours["memory"]
    assert 0 < memory["bound_bytes"] <= memory["temporary_bytes"] < memory["planned_bytes"]
    if sys.platform == "linux":
        assert memory["compiling_bytes"] > 0 and memory["own_bytes"] > 0
    assert command.exit_code(document) == command.OK


def test_a_document_holds_nothing_personal_and_is_read_back(
    document: results.Document, tmp_path: Path
) -> None:
    text = results.dumped(document)
    assert str(Path.home()) not in text and os.getcwd() not in text and sys.prefix not in text
    assert f'"{platform.node()}"' not in text and f'"{getpass.getuser()}"' not in text
    path = tmp_path / "run.json"
    results.write(document, path)
    assert results.read(str(path)) == document


def test_reports_are_made_of_a_document(document: results.Document, tmp_path: Path) -> None:
    text = report.text(document)
    assert "mlp" in text and "ours / best peer" in text and "a quick run" in text
    written = page.write(document, tmp_path / "performance.md", tmp_path / "images" / "p.svg")
    assert [p.name for p in written] == ["performance.md", "p.svg"]
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
    both = page.with_first_calls(bare, document)
    text = page.page(both, None)
    assert "## First call" in text and f"a run of {document['created']}" in text
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


def test_two_documents_are_compared(document: results.Document) -> None:
    later = copy.deepcopy(document)
    for found in later["results"][0]["frameworks"].values():
        for name in ("median_s", "low_s", "high_s", "best_s"):
            found["time"][name] *= 0.25
    del later["results"][1]
    text = compare.text(document, later)
    (line,) = (line for line in text.splitlines() if line.startswith("mlp"))
    assert "-75.0%" in line and line.endswith("faster")
    assert "the peers took 0.250 times as long" in text
    assert "only in old: matmul_2x2x2, 1 thr." in text


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


# --- workers --------------------------------------------------------------------------------------


def test_a_worker_that_dies_or_fails_says_why() -> None:
    with pytest.raises(WorkerError, match="KeyError: 'abacus'"):
        WorkerProcess("abacus", sys.executable, 1, timeout_s=60.0)
    with pytest.raises(WorkerError, match="No such file"):
        WorkerProcess("numpy", "./no_such_python", 1, timeout_s=60.0)
    worker = WorkerProcess("numpy", sys.executable, 1, timeout_s=60.0)
    try:
        assert "numpy" in worker.versions
        with pytest.raises(WorkerError, match="no workload is open"):
            worker.ask("repeat", calls=1)
        with pytest.raises(WorkerError, match="unknown request 'exec'"):
            worker.ask("exec")
        assert worker.ask("lacks", workload="mlp") == {"why": None}
        worker.kill()
        with pytest.raises(WorkerError, match="the process ended with"):
            worker.ask("close")
    finally:
        worker.stop()


def test_messages_lose_the_users_directories() -> None:
    text = without_paths(f"cannot open {Path.home() / 'x.py'}")
    assert str(Path.home()) not in text and text.endswith("x.py")


# --- sweeps ---------------------------------------------------------------------------------------


def test_a_sweep_times_a_workload_at_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["sweep", "chain", "matmul", "--quick", "--json"]) == command.OK
    document = json.loads(capsys.readouterr().out)
    chain, matmul = document["sweeps"]
    assert [p["sizes"] for p in chain["points"]] == [{"N": 16}, {"N": 32}, {"N": 64}]
    assert [p["work"] for p in chain["points"]] == [16, 32, 64]
    assert matmul["points"][2]["work"] == 2 * 4**3
    assert "elements a ns" in sweep.text(document)
    assert command.main(["sweep", "abacus"]) == command.USAGE


def test_a_cliff_is_where_a_unit_of_work_gets_dearer() -> None:
    times = [(10, 1e-7), (20, 9e-7), (40, 3e-6), (80, 6e-6), (160, 3e-5), (320, 6e-5)]
    points = [{"work": work, "best_s": seconds} for work, seconds in times]
    found = sweep.cliffs(points)
    assert found == [False, False, True, False, True, False]  # no call under 2 us counts


def test_sweeps_go_from_tiny_to_large() -> None:
    for s in sweep.SWEEPS:
        work = [s.work(s.at(sizes).sizes) for sizes in s.sizes]
        assert len(work) > 8 and work == sorted(work)
        assert s.at(s.sizes[0]).sizes.keys() == BY_NAME[s.workload].sizes.keys()


# --- threads --------------------------------------------------------------------------------------


def kernel(one_s: float, all_s: float, ceiling: float, **more: Any) -> dict[str, Any]:
    return {"workload": "mlp", "kernel": "matmul", "step": 0, "runs": 1, "flops": 1, "bytes": 1,
            "one_s": one_s, "all_s": all_s, "bound": "fma", "ceiling": ceiling, **more}  # fmt: skip


@pytest.fixture(scope="module")
def by_kernel() -> threads.Document:
    """Two workloads in small sizes, every kernel however short."""
    effort = dataclasses.replace(threads.QUICK, ceiling_bytes=1 << 18)
    small = [BY_NAME[name].shrunk() for name in ("mlp", "gru")]
    return threads.run(small, 2, lambda line: None, effort, least_s=0.0)


def test_every_kernel_of_a_workload_is_timed_on_one_thread_and_on_two(
    by_kernel: threads.Document, tmp_path: Path
) -> None:
    assert by_kernel["workloads"] == ["mlp", "gru"] and by_kernel["threads"] == 2
    kernels = by_kernel["kernels"]
    assert len([k for k in kernels if "matmul" in k["kernel"] and k["workload"] == "mlp"]) >= 5
    steps = BY_NAME["gru"].small["T"]
    assert {k["runs"] for k in kernels if k["workload"] == "gru"} == {1, steps}
    for k in kernels:
        assert k["one_s"] >= 0 and k["all_s"] >= 0 and k["ceiling"] > 0
        assert k["bound"] in ("fma", "stream")
    text = threads.text(by_kernel)
    assert "mlp: matmul" in text and "gain at least 80%" in text
    results.write(by_kernel, tmp_path / "threads.json")
    assert threads.read([str(tmp_path / "threads.json")])["kernels"] == kernels
    with pytest.raises(results.DocumentError, match="not a document"):
        results.read(str(tmp_path / "threads.json"))


def test_a_kernel_is_held_against_what_bounds_it() -> None:
    def limits(flops: float, near: float, far: float) -> dict[str, Any]:
        rates = {1 << 14: near, 1 << 20: far}
        stream = [{"bytes": size, "bytes_per_s": rate} for size, rate in rates.items()]
        aged = [{"age_s": 0.0, "bytes_per_s": near}, {"age_s": 1.0, "bytes_per_s": near / 4}]
        return {"fma_flops": flops, "stream": stream, "aged": aged}

    pair = limits(10.0, 100.0, 10.0), limits(20.0, 190.0, 11.0)

    def ceiling(count: int, sizes: list[int], one_s: float, age: float = 0.0) -> tuple[str, float]:
        found = threads._ceiling(count, np.array(sizes), np.full(len(sizes), age), one_s, pair)
        return found["bound"], round(found["ceiling"], 3)

    assert ceiling(1000, [1 << 22], 100.0) == ("stream", 1.1)  # as fast as the stream
    assert ceiling(1000, [1 << 22], 199.0) == ("stream", 1.1)
    assert ceiling(1000, [1 << 22], 201.0) == ("fma", 2.0)
    assert ceiling(1000, [1 << 10], 10.0) == ("stream", 1.9)
    assert ceiling(1000, [1 << 10], 100.0) == ("fma", 2.0)
    assert ceiling(1000, [1 << 10], 41.0, 1.0) == ("fma", 2.0)  # a cache of its own keeps it
    assert ceiling(1000, [1 << 20], 199.0, 1.0) == ("stream", 1.1)
    # Half of it from each: 55 s on one thread, 48.1 s on two.
    assert ceiling(1000, [1 << 10, 1 << 22], 55.0) == (
        "stream",
        round(55 / (500 / 190 + 500 / 11), 3),
    )


def test_what_gains_too_little_is_named() -> None:
    kernels = [
        kernel(1.0, 0.5, 2.0), kernel(1.0, 0.63, 2.0, kernel="few_rows"),
        kernel(1.0, 0.95, 1.1, kernel="copy"), kernel(1.0, 1.1, 1.0, kernel="alone"),
    ]  # fmt: skip
    assert [threads.verdict(k) for k in kernels] == ["", "below", "", "slower"]
    document = {"kernels": kernels, "threads": 2, "least_s": 5e-5, "disturbed": ["mlp"]}
    disturbed, enough, less, slower = threads.summary(document)
    assert "every round of mlp" in disturbed and enough.startswith("2 of 4 kernels over 50 µs")
    assert less == "gain less: mlp: few_rows (79%)"
    assert slower == "slower than on one thread: mlp: alone (91%)"
    (first, *_) = threads.table(document).rows
    assert first[1:] == ["1", "1.00 s", "500 ms", "2.00", "2.00", "fma", "100%", "0.00", ""]


def test_runs_over_parts_of_the_suite_are_joined(by_kernel: threads.Document) -> None:
    again = {**by_kernel, "workloads": ["gru"], "kernels": [kernel(1.0, 0.5, 2.0, workload="gru")]}
    both = threads.merged([by_kernel, again])
    assert [k for k in both["kernels"] if k["workload"] == "gru"] == again["kernels"]
    assert sum(k["workload"] == "mlp" for k in both["kernels"]) >= 5
    with pytest.raises(results.DocumentError, match="differ in 'threads'"):
        threads.merged([by_kernel, {**again, "threads": 4}])


def test_the_page_tells_what_was_not_run(
    document: results.Document, by_kernel: threads.Document, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = {**document, "results": [{**document["results"][0], "workload": w} for w in BY_NAME]}
    assert page.missing(whole) == []
    (line,) = page.missing(document)
    missing = len(WORKLOADS) - 2
    assert line.startswith(f"not run: {missing} of {len(WORKLOADS)} workloads, tiny, tiny_100")
    text = page.page(document, None, by_kernel)
    assert f"- {line}" in text and "## Kernels over" in text and "| mlp: matmul" in text
    kernels = f"kernels not timed on one thread and more: {missing} of"
    assert kernels in text
    for name, found in (("run", document), ("threads", by_kernel)):
        results.write({**found, "quick": False}, tmp_path / f"{name}.json")
    write = functools.partial(page.write, path=tmp_path / "p.md", picture=tmp_path / "p.svg")
    monkeypatch.setattr(page, "write", write)
    arguments = ["page", str(tmp_path / "run.json"), "--threads", str(tmp_path / "threads.json")]
    assert command.main(arguments) == command.OK
    told = capsys.readouterr().err
    assert f"warning: {line}" in told and f"warning: {kernels}" in told
    assert kernels in (tmp_path / "p.md").read_text(encoding="utf-8")


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing_fits"], "no workload or group fits"),
        (["--threads", "0"], "--threads 0: expected numbers from 1 to"),
        (["--threads", "x"], "--threads x: expected numbers"),
        (["--peers", "abacus"], "--peers abacus: expected some of numpy"),
        (["--peer-python", "./no_such_python"], "there is no such program"),
        (["--repetitions", "0"], "--repetitions 0: expected at least 1"),
        (["compare", "no_such.json", "no_such.json"], "no_such.json: No such file"),
        (["page", __file__], "not JSON"),
        (["threads", "--only", "nothing_fits"], "no workload or group fits"),
        (["threads", "--threads", "1"], "nothing to compare"),
        (["threads", "--threads", "0"], "--threads 0: expected numbers from 1 to"),
    ],
)
def test_bad_arguments_end_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == command.USAGE
    assert message in capsys.readouterr().err


def test_documents_of_others_and_other_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    refused = {
        "[]": "not a document",
        '{"schema": "x"}': "not a document",
        f'{{"schema": "{results.SCHEMA}", "version": 99}}': "version 99",
    }
    for text, message in refused.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(results.DocumentError, match=message):
            results.read(str(path))


def test_a_quick_run_is_not_published(
    document: results.Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write(document, tmp_path / "quick.json")
    assert command.main(["page", str(tmp_path / "quick.json")]) == command.USAGE
    assert "not for publishing" in capsys.readouterr().err


def test_the_usage_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert "{compare,page,sweep,threads}" in usage


def test_the_list_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == command.OK
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(BY_NAME)


def test_matrix_products_run_with_one_thread_and_with_all() -> None:
    options = Options("python", "python")
    every = results.usable_cores()
    assert options.threads_of(BY_NAME["mlp"]) == (every,)
    assert options.threads_of(BY_NAME["matmul_2x2x2"]) == ((1, every) if every > 1 else (1,))
    some = dataclasses.replace(options, threads=(1,))
    assert some.threads_of(BY_NAME["matmul_2x2x2"]) == (1,)
    assert set(BY_NAME["gru"].without) <= LABELS.keys()
