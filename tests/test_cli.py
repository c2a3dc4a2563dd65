"""The command itself, and `staticgrad doctor`."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import staticgrad as sg

from .cli_help import Cli


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path / "cache"))
    return Cli(capsys)


def test_version_and_help(cli):
    assert cli("--version") == 0
    assert cli.out == f"staticgrad {sg.__version__}\n"
    assert cli("--help") == 0
    for verb in ("train", "run", "compile", "doctor"):
        assert verb in cli.out
    for verb in ("train", "run", "compile", "doctor"):
        assert cli(verb, "--help") == 0
        assert f"examples:\n  staticgrad {verb}" in cli.out
        assert "--json" in cli.out


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["run"], ["doctor", "--what"]])
def test_wrong_usage(cli, arguments):
    assert cli(*arguments) == 2
    assert cli.err.startswith("staticgrad: ")
    assert "usage: staticgrad" in cli.err
    assert cli.out == ""
    assert cli.json(*arguments, code=2)["error"]["type"] == "UsageError"


def test_the_doctors_document(cli, tmp_path):
    found = cli.json("doctor")
    assert found["verb"] == "doctor"
    assert found["host"]["vector_bits"] in (128, 256, 512)
    assert found["host"]["cores"] >= 1
    assert found["host"]["threads"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["staticgrad"] == sg.__version__
    assert found["cache"]["directory"] == str(tmp_path / "cache")
    assert found["cache"]["usable"] is True
    assert found["cache"]["size_bytes"] == 0  # what the doctor stored to see, it removed
    assert found["self_test"]["passed"] is True
    assert found["self_test"]["relative_error"] < 1e-5


def test_a_wrong_number_of_threads(cli, monkeypatch):
    monkeypatch.setenv("STATICGRAD_NUM_THREADS", "many")
    error = cli.json("doctor", code=2)["error"]
    assert "STATICGRAD_NUM_THREADS='many'" in error["message"]


def test_what_the_doctor_says(cli, tmp_path, monkeypatch):
    assert cli("doctor") == 0
    assert [line.split()[0] for line in cli.out.splitlines()] == [
        "CPU", "threads", "vectors", "caches", "versions", "platform", "entry", "cache", "self-test"
    ]  # fmt: skip
    assert "passed" in cli.out
    monkeypatch.setenv("STATICGRAD_CACHE", "0")
    assert cli("doctor") == 0
    assert "off (STATICGRAD_CACHE=0)" in cli.out
    monkeypatch.delenv("STATICGRAD_CACHE")
    (tmp_path / "file").touch()
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the report alone tells of it
        assert cli("doctor") == 0
    where = f"{tmp_path / 'file'} (STATICGRAD_CACHE_DIR)"
    assert where in cli.out and "NOT USABLE (Not a directory)" in cli.out
    cache = cli.json("doctor")["cache"]
    assert (cache["variable"], cache["trouble"]) == ("STATICGRAD_CACHE_DIR", "Not a directory")


def test_wrong_values_are_a_mismatch(cli, monkeypatch):
    from staticgrad.ops.interpret import run_graph

    def wrong(graph, arrays, state=None):
        outputs, new = run_graph(graph, arrays, state)
        return [o * 1.01 for o in outputs], new

    monkeypatch.setattr("staticgrad.api.reference.run_graph", wrong)
    error = cli.json("doctor", code=4)["error"]
    assert error["type"] == "MismatchError"
    assert "differ from NumPy's by 9.9e-03" in error["message"]


def test_a_machine_that_is_not_supported(cli, monkeypatch):
    def refused():
        raise sg.UnsupportedError("this machine is 'pdp11'")

    monkeypatch.setattr("staticgrad.codegen.target.host_target", refused)
    assert cli.json("doctor", code=3)["error"]["message"] == "this machine is 'pdp11'"


@pytest.mark.skipif(os.name != "posix", reason="pipes that close are POSIX's")
def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "staticgrad.cli", "--help"],
        stdout=writing, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr == b""
