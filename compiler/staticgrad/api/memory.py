"""What a user may say about memory that the runtime keeps."""

from __future__ import annotations

from staticgrad_runtime.executable import release_arenas
from staticgrad_runtime.kept_memory import release_kept


def release_memory() -> None:
    """Gives memory that is kept for later calls back to the system.

    That is the memory of dead results (those of 256 KiB and more leave up to 256 MiB when they die,
    on Linux; elsewhere NumPy's own allocator serves), and the temporaries of every program, whose
    block stays as large as its largest call needed. Arrays that are in use are not touched, nor the
    temporaries of a call that is running; the next call of a program makes its block anew.
    """
    release_kept()
    release_arenas()


__all__ = ["release_memory"]
