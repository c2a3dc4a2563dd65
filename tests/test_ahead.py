"""The runtime's own code that is generated beside a program's, before a first call waits for it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import staticgrad as sg
from staticgrad.codegen.assemble import Crew
from staticgrad_runtime import ahead, kept_memory, loader, plan_native, pool_native
from staticgrad_runtime.artifact import BufferSpec, CostSpec, Manifest, OutputSpec
from staticgrad_runtime.plan import NATIVE_FROM


def manifest(
    *, shared_ns: Any = 0, temps: int = 0, output: tuple[Any, ...] = (4,), dtype: str = "float32"
) -> Manifest:
    return Manifest(
        name="test", triple="", cpu="", features="",
        buffers=[BufferSpec("temp", 64, 0, 1)] * temps,
        outputs=[OutputSpec("out", dtype, list(output), 0, "")],
        cost=CostSpec(shared_ns=shared_ns, barriers=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "threads", "expected"),
    [
        (manifest(), 2, []),
        (manifest(shared_ns=1e6), 2, [pool_native.generate]),
        (manifest(shared_ns=1e6), 1, []),
        (manifest(shared_ns=["*", 9, "N"]), 2, [pool_native.generate]),  # it depends
        (manifest(temps=NATIVE_FROM - 1), 1, []),
        (manifest(temps=NATIVE_FROM), 1, [plan_native.generate]),
        (manifest(output=(256, 255)), 1, []),
        (manifest(output=(256, 256)), 1, [kept_memory.generate]),
        (manifest(output=(256, 128), dtype="float64"), 1, [kept_memory.generate]),
        (manifest(output=("N", 256)), 1, []),
    ],
)
def test_what_a_first_call_needs(made: Manifest, threads: int, expected: list[Any]) -> None:
    assert list(ahead.generators(made, threads)) == expected


TEXT = "define i64 @ahead() {{\n  ret i64 {}\n}}\n"


def test_code_that_is_under_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not generated twice: whoever needs it takes what a helper has begun."""
    monkeypatch.setenv("STATICGRAD_CACHE", "0")
    begun, go, made = threading.Event(), threading.Event(), []
    generate = loader._object_code

    def slow(text: str, *rest: Any) -> bytes:
        made.append(text)
        begun.set()
        go.wait(10)
        return generate(text, *rest)

    monkeypatch.setattr(loader, "_object_code", slow)
    text = TEXT.format(1)
    helper = threading.Thread(target=loader.host_code, args=(text,))
    helper.start()
    assert begun.wait(10)
    found: list[loader.Library] = []
    caller = threading.Thread(target=lambda: found.append(loader.compile_text(text, ["ahead"])))
    caller.start()
    go.set()
    helper.join()
    caller.join()
    assert made == [text] and found[0].address("ahead")


def test_a_failure_of_the_helper_is_the_callers_only_where_it_fails_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATICGRAD_CACHE", "0")
    text = TEXT.format(2)
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(loader, "_object_code", lambda *_: (_ for _ in ()).throw(MemoryError()))
        loader.host_code(text)
    assert "ahead" in loader.compile_text(text, ["ahead"])


def test_a_compilation_sets_it_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Crew, "aside", lambda self, job: asked.append(job))
    x = sg.input("x", (512, 512))
    sg.compile([x], [sg.exp(x), sg.sum(x)], threads=1, cache=False)
    assert kept_memory.generate in asked and pool_native.generate not in asked
