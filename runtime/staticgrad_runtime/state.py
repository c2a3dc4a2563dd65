"""State cells: parameters, counters, running statistics; each one stable buffer with a lock.

Locks exclude a writer from everyone else on a cell. Two kinds of holders meet here. Native
entries take all their cells or none, in one step under the GIL, and never wait. Python callers
(the checked path, `assign`, `numpy`) claim cells in the order of their ids under a mutex, then
wait until native holders are gone. A claim is stored before the native word is read, and native
code tests the claim before it stores its own word; both under the GIL, so one of the two always
sees the other. No wait holds the GIL.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .arena import address, aligned_bytes, aligned_words
from .arrays import Array, ConversionError, cast_checked
from .artifact import DTYPES
from .context import CELL_WORDS, CellWord
from .dims import shape_text
from .errors import StateError

_ids = itertools.count(1)
_turn = threading.Condition()
_cells: weakref.WeakSet[StateCell] = weakref.WeakSet()


class StateCell:
    """One named array that programs read and write in place.

    The buffer never moves. `version` counts its writers, so that what is derived from it (packed
    copies) knows when it is stale. Ids increase over the process's life.
    """

    __slots__ = ("__weakref__", "_array", "_pending", "_readers", "_words", "_writer", "id", "name")

    def __init__(self, value: Any, name: str | None = "", dtype: DTypeLike | None = None) -> None:
        source = np.asarray(value, dtype=dtype)
        if source.dtype.name not in DTYPES or not source.dtype.isnative:
            raise StateError(f"state {name!r}: dtype {source.dtype} is not supported")
        self.id = next(_ids)
        self.name = name
        memory = aligned_bytes(source.nbytes)[: source.nbytes]
        self._array: Array = memory.view(source.dtype).reshape(source.shape)
        np.copyto(self._array, source)
        self._words = aligned_words(CELL_WORDS)
        self._readers: dict[int, int] = {}  # thread -> holds, on the Python side
        self._writer: int | None = None
        self._pending = 0  # writers that wait; they come before new readers
        _cells.add(self)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    @property
    def version(self) -> int:
        return int(self._words[CellWord.VERSION])

    @property
    def words_address(self) -> int:
        """Where compiled code finds the cell's words (`context.CellWord`)."""
        return address(self._words)

    def view(self) -> Array:
        """The live buffer. For the runtime only: nothing locks it."""
        return self._array

    def numpy(self) -> Array:
        """A copy of the value."""
        with CellLocks([(self, False)]):
            return self._array.copy()

    def assign(self, value: Any) -> None:
        """Writes a value of the same shape; a dtype of the same kind that fits is cast.

        Raises StateError that names what was expected and what came; the cell is then unchanged.
        """
        source = np.asarray(value)
        expected = f"{self.dtype} {shape_text(self.shape)}"
        if source.shape != self.shape:
            came = f"{source.dtype} {shape_text(source.shape)}"
            raise StateError(f"state {self.name!r}: expected {expected}, got {came}")
        try:
            source = cast_checked(source, self.dtype)
        except ConversionError as error:
            raise StateError(f"state {self.name!r}: expected {expected}, got {error}") from None
        with CellLocks([(self, True)]):
            self.bump()
            np.copyto(self._array, source)

    def bump(self, count: int = 1) -> None:
        """Counts a write; called with the writer's lock held, and before the write, which an
        interrupt may cut short. -1 takes it back, for a write that was none."""
        self._words[CellWord.VERSION] += count

    def __repr__(self) -> str:
        return f"StateCell({self.name!r}, {self.dtype} {shape_text(self.shape)})"

    # The Python side of the lock; all of these run under `_turn`.

    def _may_claim(self, write: bool, thread: int) -> bool:
        if self._writer is not None:
            return False
        if write:
            return not self._readers
        return self._pending == 0 or thread in self._readers

    def _claim(self, write: bool, thread: int) -> None:
        if self._writer == thread or (write and thread in self._readers):
            raise StateError(
                f"state {self.name!r} is in use by the step that this thread is running"
            )
        self._pending += write
        try:
            while not self._may_claim(write, thread):
                _turn.wait()
        finally:
            self._pending -= write
        if write:
            self._writer = thread
        else:
            self._readers[thread] = self._readers.get(thread, 0) + 1
        self._publish_claim()

    def _release(self, write: bool, thread: int) -> None:
        if write:
            self._writer = None
        else:
            holds = self._readers.pop(thread, 0) - 1  # 0 in a child forked while it was held
            if holds > 0:
                self._readers[thread] = holds
        self._publish_claim()

    def _publish_claim(self) -> None:
        self._words[CellWord.CLAIM] = -1 if self._writer is not None else len(self._readers)

    def _native_is_in_the_way(self, write: bool) -> bool:
        native = int(self._words[CellWord.NATIVE])
        return native != 0 if write else native < 0

    def _reset(self) -> None:
        self._words[CellWord.NATIVE] = self._words[CellWord.CLAIM] = 0
        self._readers, self._writer, self._pending = {}, None, 0


class CellLocks:
    """Context manager that holds several cells, each for reading or writing, for one block."""

    def __init__(self, requests: Iterable[tuple[StateCell, bool]]) -> None:
        merged: dict[StateCell, bool] = {}
        for cell, write in requests:
            merged[cell] = merged.get(cell, False) or write
        self._requests: Sequence[tuple[StateCell, bool]] = sorted(
            merged.items(), key=lambda request: request[0].id
        )

    def __enter__(self) -> None:
        if not self._requests:
            return
        thread = threading.get_ident()
        held = 0
        try:
            with _turn:
                for cell, write in self._requests:
                    cell._claim(write, thread)
                    held += 1
            for cell, write in self._requests:
                pause = 10e-6
                while cell._native_is_in_the_way(write):
                    time.sleep(pause)
                    pause = min(2 * pause, 1e-3)
        except BaseException:  # an interrupt while waiting, too: what is held is given back
            self._give_back(held, thread)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._requests:
            self._give_back(len(self._requests), threading.get_ident())

    def _give_back(self, held: int, thread: int) -> None:
        with _turn:
            for cell, write in self._requests[:held]:
                cell._release(write, thread)
            _turn.notify_all()


def _reset_after_fork() -> None:
    """In the child, the threads that held locks are gone."""
    global _turn
    _turn = threading.Condition()
    for cell in list(_cells):
        cell._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
