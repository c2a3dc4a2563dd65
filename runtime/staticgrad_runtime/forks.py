"""What a fork waits for, and locks that a forked child finds free.

The child has the thread that forked and no other. Whatever another thread held at that moment stays
held in it for good: the lock of a module that is being imported, llvmlite's own, LLVM's. So threads
compile under `no_fork`, and `os.fork` waits until none is inside.

The order of locks: whoever holds one that code under `no_fork` takes has entered `no_fork` before.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

# How long a thread that forks from within `no_fork` itself (a signal's handler, a finaliser) waits
# for the others: they may wait for what it holds. A unit's code is generated in some 0.1 s.
PATIENCE_S = 10.0

_turn = threading.Condition()  # of the three below
_inside: set[int] = set()  # threads under `no_fork`
_forking = 0  # threads that fork, or wait to
_llvm: dict[int, Any] = {}  # llvmlite's lock, by the thread that holds it while it forks


@contextlib.contextmanager
def no_fork(*, helping: bool = False) -> Iterator[None]:
    """Keeps other threads from forking; as a decorator too, and nested.

    Where a fork waits already it goes first, or threads that compile in turns would keep it waiting
    for good; not before those `helping` a thread that is inside and will wait for them.
    """
    me = threading.get_ident()
    already = me in _inside
    try:
        with _turn:
            while _forking and not helping and not already:
                _turn.wait()
            _inside.add(me)
        yield
    finally:
        if not already:
            with _turn:
                _inside.discard(me)
                _turn.notify_all()


def _before() -> None:
    global _forking
    me = threading.get_ident()
    with _turn:
        _forking += 1
        patience = PATIENCE_S if me in _inside else None
        _turn.wait_for(lambda: not _inside - {me}, patience)
    # Finalisers give compiled code back at any time, outside of `no_fork`.
    lock = getattr(getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None), "_lock", None)
    lock = getattr(lock, "_lock", None)  # without the callbacks of whoever watches llvmlite's
    if lock is not None and lock.acquire():
        _llvm[me] = lock


def _after_in_parent() -> None:
    global _forking
    lock = _llvm.pop(threading.get_ident(), None)
    if lock is not None:
        lock.release()
    with _turn:
        _forking -= 1
        _turn.notify_all()


def _after_in_child() -> None:
    global _turn, _forking
    me = threading.get_ident()
    lock = _llvm.get(me)
    if lock is not None:
        lock.release()
    _llvm.clear()
    _inside.intersection_update({me})
    _forking = 0
    if _turn.acquire(blocking=False):
        _turn.notify_all()  # this thread, if a signal's handler forked while it waited
        _turn.release()
    else:
        _turn = threading.Condition()
    for each in list(_locks):
        each.renew()


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, unless the thread that forked holds it.

    What it guards must be whole at any moment.
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """In the child."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
