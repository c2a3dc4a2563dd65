"""The suite runs a process a core, so programs take one thread unless a test asks for more
(`test_threads.py` does): two threads in each of two processes on two cores wait for each other.

Every pass runs, also where an earlier run compiled the same graph: tests change passes in a running
process. `test_known_programs.py` holds what finding programs by their graphs does.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

os.environ.setdefault("STATICGRAD_NUM_THREADS", "1")
os.environ.setdefault("STATICGRAD_CACHE", "objects")


@pytest.fixture
def graph_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that finds programs by their graphs."""
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    monkeypatch.delenv("STATICGRAD_VERIFY", raising=False)
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sources_as_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits the sources while tests run: programs have keys all the same."""
    from staticgrad.api import graph_key as keys

    monkeypatch.setattr(keys, "IMPORTED_NS", 1 << 62)
    monkeypatch.setattr(keys, "code_versions", functools.cache(keys.code_versions.__wrapped__))
