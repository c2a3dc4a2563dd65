"""All workloads, in the order in which they run."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from .elementwise import CALLS, MEMORY_BOUND
from .models import MODELS
from .products import MATMULS
from .workload import Workload

WORKLOADS: tuple[Workload, ...] = (*CALLS, *MEMORY_BOUND, *MODELS, *MATMULS)
BY_NAME = {w.name: w for w in WORKLOADS}


def chosen(patterns: Sequence[str]) -> list[Workload]:
    """The workloads whose name or group fits one of the patterns; all, without patterns.

    Raises ValueError for a pattern that fits none.
    """

    def fits(w: Workload, pattern: str) -> bool:
        return fnmatch.fnmatchcase(w.name, pattern) or w.group == pattern

    for pattern in patterns:
        if not any(fits(w, pattern) for w in WORKLOADS):
            groups = ", ".join(dict.fromkeys(w.group for w in WORKLOADS))
            raise ValueError(
                f"--only {pattern}: no workload or group fits (groups: {groups}; all: --list)"
            )
    return [w for w in WORKLOADS if not patterns or any(fits(w, p) for p in patterns)]
