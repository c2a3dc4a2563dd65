"""The benchmark: its workloads mean the same everywhere, and a run hangs together. No times."""

from __future__ import annotations

import ctypes
import dataclasses
import getpass
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import ceilings, report, results
from benchmarks.client import WorkerError, WorkerProcess, without_paths
from benchmarks.drivers import LABELS, OURS, checked_values
from benchmarks.measure import Options
from benchmarks.numpy_driver import NumpyDriver
from benchmarks.staticgrad_driver import StaticgradDriver
from benchmarks.suite import BY_NAME, WORKLOADS, chosen
from benchmarks.workload import Workload, least_bytes, working_set

from .benchmark_runs import a_run, distinct

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
    return a_run()


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
    assert BY_NAME[report.FMA_WORKLOAD].one_thread
    some = dataclasses.replace(options, threads=(1,))
    assert some.threads_of(BY_NAME["matmul_2x2x2"]) == (1,)
    assert set(BY_NAME["gru"].without) <= LABELS.keys()
