"""Environment variables that take a few words refuse any other, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import cli
from staticgrad.passes.pipeline import run_pipeline
from staticgrad_runtime import cache

from tests import runtime_programs as programs


def load() -> Any:
    return programs.load(programs.x2_plus_1)


def optimise() -> Any:
    x = sg.input("x", (3,))
    return run_pipeline(sg.Graph([x], [x + 1]))


USES: list[tuple[str, str, str, Callable[[], Any]]] = [
    ("STATICGRAD_ENTRY", "pythonic", "native or portable", load),
    ("STATICGRAD_ENTRY", "1", "native or portable", load),
    ("STATICGRAD_VERIFY", "yes", "0 or 1", optimise),
    ("STATICGRAD_VERIFY", "true", "0 or 1", cache.remembers_graphs),
    ("STATICGRAD_CACHE", "off", "0, 1 or objects", cache.default_root),
]


@pytest.mark.parametrize("name, value, accepted, use", USES)
def test_an_unknown_word_is_refused(
    name: str, value: str, accepted: str, use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(sg.ArgumentError) as caught:
        use()
    assert str(caught.value) == f"{name}={value!r}: expected {accepted}"


@pytest.mark.parametrize("value", ["", " ", "native", " native "])
def test_nothing_is_the_default(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATICGRAD_ENTRY", value)
    assert load().is_native


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_verify_takes_0_and_1(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATICGRAD_VERIFY", value)
    assert optimise() is not None


def test_the_command_line_refuses_it_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STATICGRAD_TRACEBACK", "yes")
    assert cli.main(["doctor"]) != 0
    captured = capsys.readouterr()
    assert "STATICGRAD_TRACEBACK='yes': expected 0 or 1" in captured.err
    assert "Traceback" not in captured.err
    monkeypatch.setenv("STATICGRAD_TRACEBACK", "0")
    assert cli.main(["train", "missing.py"]) != 0
    assert "Traceback" not in capsys.readouterr().err


def test_sizes_of_a_report_have_names() -> None:
    x = sg.input("x", ("N", 3))
    program = sg.compile([x], x + 1)
    assert program.report(N=5)["flops"] == 15
    with pytest.raises(sg.ArgumentTypeError) as caught:
        program.report(1)
    message = "report: expected sizes by name, as in report(N=128); got 1"
    assert str(caught.value).splitlines()[0] == message
    y = sg.input("y", (3,))
    with pytest.raises(sg.ArgumentTypeError, match="report: expected no arguments; got 'N'"):
        sg.compile([y], y + 1).report("N")
    np.testing.assert_array_equal(program(np.ones((2, 3), np.float32)), np.full((2, 3), 2))
