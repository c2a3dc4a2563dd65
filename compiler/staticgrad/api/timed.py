"""A program whose steps are timed: the ordinary one compiled once more, with a clock behind each
step (`codegen/step_clock.py`). It has state of its own, so that timing a training step trains
nothing."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from staticgrad_runtime.artifact import Artifact
from staticgrad_runtime.executable import Executable
from staticgrad_runtime.loader import Library, compile_text, libc_address
from staticgrad_runtime.state import StateCell

from staticgrad.codegen.assemble import assemble
from staticgrad.codegen.entry import entry_object
from staticgrad.codegen.program import emit_program
from staticgrad.codegen.step_clock import TICK, ClockedDriver
from staticgrad.ir.errors import ArgumentError, UnsupportedError
from staticgrad.ir.graph import Graph
from staticgrad.passes.lowering.manifest import build_manifest

from .compile import compile_stages
from .custom import c_functions_of
from .failure import failure_hook

MOST_STEPS = 1 << 14
_TABLE, _LAST, _THREADS, _STEPS = "sg_ticks", 0, 1, 2  # the table: last tick, threads, times
_CLOCK_TEXT = f"""
@{_TABLE} = global [{_STEPS + MOST_STEPS} x i64] zeroinitializer, align 64
declare i32 @clock_gettime(i32, ptr)

define void @{TICK}(i64 %step, i64 %tid, i64 %n) {{
  %first = icmp eq i64 %tid, 0
  br i1 %first, label %note, label %done
note:
  %time = alloca [2 x i64]
  %r = call i32 @clock_gettime(i32 $CLOCK$, ptr %time)
  %s = load i64, ptr %time
  %ns_at = getelementptr i64, ptr %time, i64 1
  %ns = load i64, ptr %ns_at
  %whole = mul i64 %s, 1000000000
  %now = add i64 %whole, %ns
  %last = load i64, ptr @{_TABLE}
  store i64 %now, ptr @{_TABLE}
  %n_at = getelementptr i64, ptr @{_TABLE}, i64 {_THREADS}
  store i64 %n, ptr %n_at
  %slot = add i64 %step, {_STEPS}
  %at = getelementptr i64, ptr @{_TABLE}, i64 %slot
  %old = load i64, ptr %at
  %took = sub i64 %now, %last
  %sum = add i64 %old, %took
  store i64 %sum, ptr %at
  br label %done
done:
  ret void
}}
"""
_turn = threading.Lock()  # there is one table


@functools.cache
def _clock() -> tuple[Library, np.ndarray[Any, Any]]:
    """The clock's code and its table."""
    if not hasattr(time, "CLOCK_MONOTONIC"):
        raise UnsupportedError(f"{sys.platform} has no clock_gettime, which times the steps")
    text = _CLOCK_TEXT.replace("$CLOCK$", str(int(time.CLOCK_MONOTONIC)))
    hooks = {"clock_gettime": libc_address("clock_gettime")}
    library = compile_text(text, [TICK, _TABLE], hooks)
    place = (ctypes.c_int64 * (_STEPS + MOST_STEPS)).from_address(library.address(_TABLE))
    return library, np.ctypeslib.as_array(place)


class TimedProgram:
    """A graph's program with a clock behind each step, for each of some numbers of threads.

    `kernels` are the manifest's: name, flops, bytes and times (runs in a call) of each step, in the
    order of the times that `seconds` gives. State begins as it is now.
    """

    def __init__(
        self, graph: Graph, threads: Sequence[int], *, training: bool | None = None,
        disable: Iterable[str] = (),
    ) -> None:  # fmt: skip
        made = compile_stages(graph, training=training, disable=disable)
        self.program, target = made.program, made.target
        if len(self.program.steps) >= MOST_STEPS:
            raise ArgumentError(
                f"the program has {len(self.program.steps)} steps; the clock's table holds "
                f"{MOST_STEPS}"
            )
        text, called = emit_program(self.program, target, driver=ClockedDriver)
        code = assemble(text, target).object_code
        manifest, blobs = build_manifest(self.program, made.graph, target, called, {})
        artifact = Artifact(manifest, code, blobs, entry_code=entry_object(target))
        library, self._table = _clock()
        own = [v.node.payload for v in made.graph.state]
        cells = [StateCell(cell.numpy(), cell.name) for cell in own]
        self._functions = c_functions_of(self.program)  # kept alive
        symbols = {c.symbol: c.address for c in self._functions} | {TICK: library.address(TICK)}
        native = not any(c.calls_python for c in self._functions)
        self.kernels = manifest.kernels
        self._programs = {
            n: Executable(artifact, cells, threads=n, extra_symbols=symbols, native=native)
            for n in threads
        }
        if manifest.messages:
            for made_program in self._programs.values():
                made_program.on_failure = failure_hook(manifest)

    @property
    def any(self) -> Executable:
        """One of the programs, for what holds of all: sizes and their plan."""
        return next(iter(self._programs.values()))

    def seconds(
        self, threads: int, arrays: Sequence[Any], out: Sequence[Any] | None = None,
        named: Mapping[str, Any] | None = None,
    ) -> tuple[int, list[float]]:  # fmt: skip
        """One call: on how many threads it ran, and the seconds of each step."""
        with _turn:
            table = self._table
            table[:] = 0
            self._programs[threads](*arrays, out=out, **(named or {}))
            times = 1e-9 * table[_STEPS : _STEPS + len(self.kernels)]
            return int(table[_THREADS]), times.tolist()


__all__ = ["MOST_STEPS", "TimedProgram"]
