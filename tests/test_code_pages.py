"""LLVM's code is not kept in memory once ours has been generated."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad_runtime import code_pages
from staticgrad_runtime.code_pages import (
    WORTH_MS,
    code_range,
    count_code_generation,
    give_back_code_pages,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells and takes")
MIB = 1 << 20


def resident_bytes() -> int:
    """What of LLVM's code is resident."""
    found = code_range()
    assert found is not None
    start = f"{found[0]:x}-"
    here = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(start):
                here = True
            elif here and line.startswith("Rss:"):
                return 1024 * int(line.split()[1])
    raise AssertionError("not mapped")


def program(slope: float) -> Any:
    x = sg.input("x", (5,))
    return sg.compile([x], sg.tanh(x * slope), cache=False)


ONES = np.ones(5, "float32")


@linux
def test_pages_are_given_back_at_a_first_call_and_come_again() -> None:
    first = program(0.5)
    count_code_generation(WORTH_MS)
    values = [first(ONES)[0]]
    assert resident_bytes() < 4 * MIB
    second = program(0.25)
    assert resident_bytes() > 4 * MIB
    count_code_generation(WORTH_MS)
    values.append(second(ONES)[0])
    assert resident_bytes() < 4 * MIB
    np.testing.assert_allclose(values, np.tanh([0.5, 0.25]), rtol=1e-6)


@linux
def test_small_programs_do_not_pay_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_pages, "_spent_ms", -10 * WORTH_MS)
    small = program(0.125)
    before = resident_bytes()
    np.testing.assert_allclose(small(ONES), np.tanh(0.125 * ONES), rtol=1e-6)
    assert resident_bytes() >= before > 4 * MIB


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    code_range.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(code_pages.sys, "platform", "win32")
        count_code_generation(WORTH_MS)
        give_back_code_pages()
        assert code_range() is None
    code_range.cache_clear()
