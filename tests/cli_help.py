"""Running the command in-process, for the tests of its verbs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from staticgrad.cli import main

MODELS = Path(__file__).parent / "cli_models"
TWO_MOONS = str(MODELS / "two_moons.py")
DESCENT = str(MODELS / "descent.py")


class Cli:
    """`cli(*arguments)` -> exit code; `out` and `err` are what that call wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str | os.PathLike[str]) -> int:
        self._capsys.readouterr()
        code = main([os.fspath(a) for a in arguments])
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *arguments: str | os.PathLike[str], code: int = 0) -> dict[str, Any]:
        """The one document on standard output."""
        assert self(*arguments, "--json") == code
        assert self.out.count("\n") == 1
        document: dict[str, Any] = json.loads(self.out, parse_constant=_refuse)
        assert document["version"] == 1
        assert document["ok"] is (code == 0)
        if code:
            assert set(document["error"]) == {"type", "message", "location"}
        return document


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


class Terminal(io.TextIOWrapper):
    """A standard error that says it is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace")

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]


def write_model(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
