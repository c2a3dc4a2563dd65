"""Environment variables that choose among a few words."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .errors import ArgumentError


def chosen(name: str, accepted: Sequence[str], default: str) -> str:
    """The value of a variable, `default` where it is not set or empty. Raises ArgumentError for
    any but the accepted ones: who misspells one would not find out that it did nothing."""
    found = os.environ.get(name, "").strip() or default
    if found not in accepted:
        *others, last = accepted
        raise ArgumentError(f"{name}={found!r}: expected {', '.join(others)} or {last}")
    return found


def portable_entry() -> bool:
    """STATICGRAD_ENTRY: portable keeps calls from the native entry, native or nothing does not."""
    return chosen("STATICGRAD_ENTRY", ("native", "portable"), "native") == "portable"


def verifies() -> bool:
    """STATICGRAD_VERIFY: 1 checks the graph after every pass, 0 or nothing does not."""
    return chosen("STATICGRAD_VERIFY", ("0", "1"), "0") == "1"
