"""Numbers among a command's arguments."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A number of at least 0, as an argument's type."""
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**64:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def positive(text: str) -> int:
    """A number of at least 1, as an argument's type."""
    if count(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)
