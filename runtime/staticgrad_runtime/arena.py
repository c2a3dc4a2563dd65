"""Aligned memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ALIGN_BYTES = 64
PAGE_BYTES = 4096
LARGE_BYTES = 64 * 1024  # from here on memory is page aligned


def aligned_bytes(size_bytes: int) -> NDArray[np.uint8]:
    """Uninitialised memory of at least one byte, 64-byte aligned; large ones page aligned.

    Large blocks come from the allocator untouched, so pages cost nothing before their first use
    (and NumPy asks for huge pages from 4 MiB on).
    """
    align = PAGE_BYTES if size_bytes >= LARGE_BYTES else ALIGN_BYTES
    raw = np.empty(max(size_bytes, 1) + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + max(size_bytes, 1)]


def aligned_words(count: int) -> NDArray[np.int64]:
    """`count` zeroed 64-bit words, 64-byte aligned."""
    words = aligned_bytes(8 * max(count, 1)).view(np.int64)
    words[:] = 0
    return words[:count]


def address(array: NDArray[np.generic]) -> int:
    """Where an array's data starts."""
    return int(array.ctypes.data)


class Arena:
    """One block that holds every temporary of a call; grows until it is released."""

    def __init__(self) -> None:
        self.release()

    @property
    def capacity_bytes(self) -> int:
        return int(self._memory.size)

    def reserve(self, size_bytes: int) -> None:
        """Makes the block at least `size_bytes` long; its contents are not kept."""
        if size_bytes > self._memory.size:
            self.release()  # free the old block first: both could double the peak
            self._allocate(size_bytes)

    def release(self) -> None:
        """Frees the block; nothing may be using it."""
        self._allocate(1)

    def _allocate(self, size_bytes: int) -> None:
        self._memory = aligned_bytes(size_bytes)
        self.base = address(self._memory)
