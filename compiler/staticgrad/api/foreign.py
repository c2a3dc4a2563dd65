"""How tensors of the dynamic mode take part in transforms, which stand below that mode.

The dynamic mode registers its tensors' class with a function that runs a traced graph on them, so
that results are on its tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from staticgrad.ir.graph import Graph

@dataclass(frozen=True)
class Foreign:
    """A class of tensors that are no arrays.

    run       graph, inputs in its order (foreign tensors, arrays, Python numbers) -> its outputs
    array_of  a foreign tensor as an array of its dtype and shape; other leaves as they are
    """

    run: Callable[[Graph, Sequence[Any]], Sequence[Any]]
    array_of: Callable[[Any], Any]


_classes: dict[type, Foreign] = {}


def register_foreign(cls: type, foreign: Foreign) -> None:
    """Makes transforms called with an instance of `cls` among their leaves run by `foreign`."""
    _classes[cls] = foreign


def foreign_of(leaves: Sequence[Any]) -> Foreign | None:
    """What runs a call with these leaves, where one of them is foreign."""
    if not _classes:
        return None
    for v in leaves:
        for cls, foreign in _classes.items():
            if isinstance(v, cls):
                return foreign
    return None


__all__ = ["Foreign", "foreign_of", "register_foreign"]
