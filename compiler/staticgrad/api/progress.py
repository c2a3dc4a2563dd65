"""What one sees of an epoch: a bar on a terminal, else a line when it is done."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

# Of more epochs than this, not each leaves its line: a thousand of them say no more.
_LINES = 50
_REFRESH_S = 0.1
_FORMAT = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
# The time that is left takes 12 columns, which narrower terminals need for the figures.
_WIDE = 100
_RUNNING = _FORMAT.replace("{postfix}", ", {remaining} left{postfix}")


class EpochProgress:
    """Context of one epoch. On a terminal a bar on standard error, with figures beside it."""

    def __init__(self, number: int, epochs: int, total: int | None) -> None:
        self._desc = f"epoch {number}/{epochs}"
        self._leaves = number == epochs or number % max(1, -(-epochs // _LINES)) == 0
        self._total = total
        self._count = 0
        self._due = 0.0
        self._bar: Any = None
        self.narrow = shutil.get_terminal_size().columns < _WIDE and sys.stderr.isatty()

    def __enter__(self) -> EpochProgress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, desc=self._desc, file=sys.stderr, leave=self._leaves,
                bar_format=_FORMAT if self.narrow else _RUNNING, dynamic_ncols=True, mininterval=0,
            )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def set_total(self, total: int) -> None:
        """The number of batches, once it is known."""
        if self._bar is not None:
            self._bar.total = total

    def advance(self) -> bool:
        """Counts a batch. True where it is time to `show` figures."""
        self._count += 1
        if self._bar is None or time.perf_counter() < self._due:
            return False
        self._due = time.perf_counter() + _REFRESH_S
        return True

    def show(self, figures: str) -> None:
        """Redraws the bar."""
        if self._bar is not None:
            self._bar.n = self._count
            self._bar.set_postfix_str(figures)

    def finish(self, figures: str) -> None:
        """The epoch is done; without a terminal this writes its line."""
        if self._bar is not None:
            self._bar.total = self._count
            self._bar.bar_format = _FORMAT
            self.show(figures)
        elif self._leaves:
            print(f"{self._desc}: {figures}", file=sys.stderr)


def figures(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`loss 0.0312`, with four significant digits."""
    found = []
    for name, value in values.items():
        plain = not math.isfinite(value) or value == 0 or 1e-4 <= abs(value) < 1e6
        found.append(f"{prefix}{name} {value:.4g}" if plain else f"{prefix}{name} {value:.3e}")
    return found
