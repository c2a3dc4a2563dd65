"""What a program's first call generates of the runtime's own code, for whoever can begin it sooner:
of a transformer block's it was 20 ms of 30."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from . import kept_memory, plan_native, pool_native
from .artifact import Manifest
from .binding import threads_for
from .plan import NATIVE_FROM


def generators(manifest: Manifest, threads: int) -> Iterator[Callable[[], None]]:
    """Functions that generate what the first call needs, as far as that can be told before sizes
    are bound; a program of symbolic sizes may want threads."""
    ns, barriers = manifest.cost.shared_ns, manifest.cost.barriers
    if isinstance(ns, (int, float)) and isinstance(barriers, (int, float)):
        threads = threads_for(threads, ns, barriers)
    if threads > 1:
        yield pool_native.generate
    if sum(buffer.kind == "temp" for buffer in manifest.buffers) >= NATIVE_FROM:
        yield plan_native.generate
    for spec in manifest.outputs:
        elements = math.prod(d if isinstance(d, int) else 0 for d in spec.shape)
        if elements * np.dtype(spec.dtype).itemsize >= kept_memory.KEPT_LEAST_BYTES:
            yield kept_memory.generate
            break
