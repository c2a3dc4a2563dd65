"""Whether an object is made of what it was made of, told at a glance.

A trace holds as long as the model that its function reads is the same: its layers, their parameters
and modes. To take a model of three layers apart takes 10 us; what it is made of can only change
where one of the dicts and lists behind it does, and to compare these with what they held takes 3.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from . import pytree

_MOST_ITEMS = 4096
_TABLES = (dict, list, tuple)
_PLAIN = frozenset((dict, OrderedDict, list, tuple))


class Watch:
    """Whether dicts and lists hold the very objects that they held, in the same order; of dicts
    with `keys` these too."""

    def __init__(self, tables: Sequence[Any], keys: bool) -> None:
        self._tables = tables
        self._read: list[Callable[[], Iterable[Any]]] = []  # so that a check is a few calls
        for table in filter(len, tables):
            self._read.append(table.values if isinstance(table, dict) else table.__iter__)
            if keys and isinstance(table, dict):
                self._read.append(table.keys)
        self._sizes = list(map(len, tables))
        self._items = list(chain.from_iterable([read() for read in self._read]))

    def holds(self) -> bool:
        """Whether nothing has been put in or taken out."""
        if list(map(len, self._tables)) != self._sizes:
            return False
        now = chain.from_iterable([read() for read in self._read])
        return all(map(operator.is_, now, self._items))


def watched(value: Any, is_layer: bool, of_library: Callable[[str | None], bool]) -> Watch | None:
    """A watch over a layer with all below it, or over a tree of tuples, lists and dicts; None where
    other classes say what it is made of, or there is too much to look at."""
    pending = [value]
    if is_layer:
        modules = list(value.modules())
        if not all(_is_plain(type(m), of_library) for m in modules):
            return None
        pending = [vars(m) for m in modules]
    tables: dict[int, Any] = {}
    count = 0
    while pending:
        table = pending.pop()
        if id(table) in tables:
            continue
        count += len(table)
        if type(table) not in _PLAIN or count > _MOST_ITEMS:
            return None
        tables[id(table)] = table
        for held in table.values() if isinstance(table, dict) else table:
            if isinstance(held, _TABLES):
                pending.append(held)
            elif not is_layer and held is not None and pytree.kind_of(held) is not None:
                return None
    return Watch(list(tables.values()), keys=not is_layer)


def _is_plain(cls: Any, of_library: Callable[[str | None], bool]) -> bool:
    """Whether the library's own methods say what a layer of this class is made of."""
    methods = (cls.modules, cls.named_modules, getattr(cls.training, "fget", None))
    return all(of_library(getattr(method, "__module__", None)) for method in methods)


__all__ = ["Watch", "watched"]
