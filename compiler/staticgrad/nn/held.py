"""What plain lists, tuples and dicts among a module's attributes hold.

A layer in a list is a part of the model, as in Keras and Equinox: those of `self.layers = [...]`
have the names that a `ModuleList` gives, "layers.0.weight". They are looked for whenever the model
is traversed, since `self.layers = []` is often filled afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError

_PLAIN = frozenset((bool, int, float, str, bytes, type(None)))
_LONG = 256
_UNNAMED = (set, frozenset, deque)
Kinds = tuple[type, ...]  # of modules and of state, which stand above this file


def may_hold(owner: str, value: Any, kinds: Kinds) -> bool:
    """Whether an attribute holds such objects, or may later. Refuses a set of them: its order, and
    so their names, would be others in the next process."""
    if isinstance(value, _UNNAMED) and any(isinstance(v, kinds) for v in value):
        raise ArgumentTypeError(
            f"{owner} is a {type(value).__name__}, in which modules and parameters are not found; "
            "use a list, a tuple or a dict, nn.ModuleList or nn.ModuleDict"
        )
    if isinstance(value, tuple):
        return any(isinstance(v, kinds) or may_hold(owner, v, kinds) for v in value)
    return isinstance(value, (list, dict))


def held(path: str, value: Any, kinds: Kinds) -> Iterator[tuple[str, Any]]:
    """The objects of these kinds inside of an attribute, in order, with their dotted paths."""
    pending: list[tuple[str, Any]] = [(path, value)]
    entered, names = set(), set()
    while pending:
        at, found = pending.pop()
        if isinstance(found, kinds):
            if at in names:
                raise ArgumentError(f"{at} names two entries: keys of a dict that read alike")
            names.add(at)
            yield at, found
        elif isinstance(found, (list, tuple, dict)) and id(found) not in entered:
            entered.add(id(found))  # a list may hold itself
            if _is_data(found):
                continue
            pairs = found.items() if isinstance(found, dict) else enumerate(found)
            inner = [(k, v) for k, v in pairs if type(v) not in _PLAIN]
            pending += reversed([(f"{at}.{_part(at, k, v, kinds)}", v) for k, v in inner])


def _is_data(container: Any) -> bool:
    """Whether it is a vocabulary or a list of numbers, to judge by its ends: to look through 50,000
    of them took 1.3 ms of each traversal, of which a call of a traced function is one."""
    if len(container) < _LONG:
        return False
    values = container.values() if isinstance(container, dict) else container
    return type(next(iter(values))) in _PLAIN and type(next(reversed(values))) in _PLAIN


def _part(path: str, key: Any, value: Any, kinds: Kinds) -> str:
    """A key as part of a dotted path."""
    named = isinstance(key, int) or (isinstance(key, str) and key and "." not in key)
    if not named and isinstance(value, kinds):
        raise ArgumentError(
            f"{path}: the key of a module or parameter in a dict must be a str without '.' or an "
            f"int, got {key!r}"
        )
    return str(key)


def entry(value: Any, name: str) -> Any:
    """The entry of a list, tuple or dict that a part of a dotted path names, or None."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return next((v for k, v in pairs if str(k) == name), None)


def replaced(
    value: Any, kinds: Kinds, new: Callable[[Any], Any], entered: frozenset[int] = frozenset()
) -> Any:
    """An attribute with `new(v)` for each v of these kinds; lists and dicts change in place."""
    if isinstance(value, kinds):
        return new(value)
    if not isinstance(value, (list, tuple, dict)) or id(value) in entered:
        return value
    entered |= {id(value)}
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    made = {
        k: found for k, v in pairs
        if type(v) not in _PLAIN and (found := replaced(v, kinds, new, entered)) is not v
    }  # fmt: skip
    if made and isinstance(value, tuple):
        parts = [made.get(k, v) for k, v in pairs]
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    for k, v in made.items():
        value[k] = v  # type: ignore[index]
    return value


__all__ = ["entry", "held", "may_hold", "replaced"]
