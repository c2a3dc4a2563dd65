"""Ctrl-C in a long run: what compiled loops ask, and what follows.

Python's handler of a signal only sets a flag, which the interpreter looks at between its own
instructions: never, while a compiled program runs. So long loops look at it themselves every 50 ms
or so (by their estimated cost), through three functions of Python's C interface: take the GIL, ask
whether an interrupt has arrived, give the GIL back. A run that finds one ends before its commit
point, with the status INTERRUPTED.
"""

from __future__ import annotations

import ctypes
import functools
import signal
from typing import NoReturn

# The least of all codes, so that no other failure hides it.
INTERRUPTED = -1


@functools.cache
def poll_addresses() -> tuple[int, int, int]:
    """PyGILState_Ensure, PyOS_InterruptOccurred, PyGILState_Release; zeros where there are none
    (another interpreter): loops then don't ask."""
    names = ("PyGILState_Ensure", "PyOS_InterruptOccurred", "PyGILState_Release")
    try:
        found = [ctypes.cast(getattr(ctypes.pythonapi, n), ctypes.c_void_p).value for n in names]
    except AttributeError:
        return 0, 0, 0
    first, second, third = (address or 0 for address in found)
    return first, second, third


def raise_interrupt() -> NoReturn:
    """Has the interrupt that a run found handled as Python would have: by the handler that is set,
    which usually raises KeyboardInterrupt."""
    signal.raise_signal(signal.SIGINT)
    raise KeyboardInterrupt("the step was interrupted; no state has been changed")
