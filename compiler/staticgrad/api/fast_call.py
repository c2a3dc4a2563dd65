"""Calls like earlier ones: trees of a known structure, and arguments that a known program takes.

A trace is found again in three steps. Here the trees of a call are compared with structures that
came before, which gives the leaves without a new structure; types of Python numbers and static
values are compared with those of the calls that were served; and all that concerns arrays is left
to the native entry, which compares it in any case and serves a call of sizes that the program was
called with before, or declines (`staticgrad_runtime.executable.DECLINED`). `trace.Traced` sees to
calls that are served by none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from staticgrad_runtime.executable import DECLINED

from staticgrad.ir.errors import StaticgradError
from staticgrad.ops.public import locate

from . import pytree
from .call import BY_TYPE, NUMBERS, Arguments, Static
from .family import Entry
from .pytree import Structure

MOST_FORMS = 8  # of one function
MOST_SERVED = 4  # programs of one form: two sizes that stay, training and evaluation

# Adds the leaves of a tree to a list, or says that it has another structure. What stands where the
# structure has a leaf is taken as it is: who uses it looks at its type.
Match = Callable[[Any, list[Any]], bool]
Build = Callable[[Sequence[Any]], Any]  # leaves -> tree


# Structures


def matcher(structure: Structure) -> Match:
    """A function that compares trees with a structure."""
    name = structure.kind.name if structure.kind else ""
    inner = [None if c.kind is None else matcher(c) for c in structure.children]
    if name == "None":
        return lambda tree, found: tree is None
    if name in ("tuple", "list"):
        return _of_sequence(tuple if name == "tuple" else list, inner)
    if name == "dict" and inner:
        return _of_dict(tuple(structure.data), inner)  # type: ignore[arg-type]
    return _of_any(structure, inner)


def _of_sequence(cls: Any, inner: Sequence[Match | None]) -> Match:
    count, matches = len(inner), _all_of(inner)

    def match(tree: Any, found: list[Any]) -> bool:
        return type(tree) is cls and len(tree) == count and matches(tree, found)

    return match


def _of_dict(keys: tuple[Any, ...], inner: Sequence[Match | None]) -> Match:
    count, matches = len(keys), _all_of(inner)
    values = itemgetter(*keys) if count > 1 else lambda tree: (tree[keys[0]],)

    def match(tree: Any, found: list[Any]) -> bool:
        if type(tree) is not dict or len(tree) != count:
            return False
        try:
            children = values(tree)
        except KeyError:
            return False
        return matches(children, found)

    return match


def _of_any(structure: Structure, inner: Sequence[Match | None]) -> Match:
    """Of a class that says itself how it comes apart."""
    kind, data = structure.kind, structure.data
    count, matches = len(inner), _all_of(inner)

    def match(tree: Any, found: list[Any]) -> bool:
        if kind is None or pytree.kind_of(tree) is not kind:
            return False
        children, rest = kind.flatten(tree)
        return rest == data and len(children) == count and matches(children, found)

    return match


def _all_of(inner: Sequence[Match | None]) -> Match:
    """For the children of a tree, of which there are as many."""
    if not any(inner):

        def extend(children: Any, found: list[Any]) -> bool:
            found.extend(children)
            return True

        return extend

    def match(children: Any, found: list[Any]) -> bool:
        for child, matches in zip(children, inner):
            if matches is None:
                found.append(child)
            elif not matches(child, found):
                return False
        return True

    return match


def builder(structure: Structure) -> Build:
    """A function that makes trees of a structure, which is no leaf; of as many leaves as it has."""
    kind, data = structure.kind, structure.data
    assert kind is not None
    if all(c.kind is None for c in structure.children):
        if kind.name == "tuple":
            return tuple
        if kind.name == "dict":
            return lambda leaves: dict(zip(data, leaves))  # type: ignore[call-overload]
        return lambda leaves: kind.unflatten(data, leaves)
    parts: list[tuple[int, int, Build | None]] = []
    at = 0
    for child in structure.children:
        parts.append((at, at + child.num_leaves, None if child.kind is None else builder(child)))
        at += child.num_leaves

    def build(leaves: Sequence[Any]) -> Any:
        return kind.unflatten(data, [
            leaves[a] if inner is None else inner(leaves[a:b]) for a, b, inner in parts
        ])  # fmt: skip

    return build


# Programs


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A trace, and what is to be looked at in a call beside its arrays before its program is asked
    for it: the types of numbers and the static values, with their places among the leaves.
    """

    entry: Entry
    executable: Callable[..., Any]
    build: Build | None  # of the result
    plain: bool  # whether all leaves are arrays, and there is nothing else to look at
    picked: list[int] | None  # which leaves are inputs; None: all
    types: list[tuple[int, type]]
    scalars: list[int]  # which inputs are NumPy's scalars
    statics: list[tuple[int, type, Any]]
    kinds: int  # classes of trees when it was served: an object that was static may be one now

    @staticmethod
    def of(entry: Entry, leaves: Sequence[Any], call: Arguments) -> Served | None:
        """What serves calls like this one; None where the native entry would serve none."""
        if not getattr(entry.executable, "declines", False):
            return None
        types: list[tuple[int, type]] = []
        statics: list[tuple[int, type, Any]] = []
        scalars: list[int] = []
        for at, (leaf, usual) in enumerate(zip(leaves, call.leaves)):
            if type(usual) is Static:
                statics.append((at, type(leaf), leaf))
            elif type(leaf) in BY_TYPE:
                types.append((at, type(leaf)))
                if type(leaf) not in NUMBERS:
                    scalars.append(at - len(statics))
            elif type(leaf) is not np.ndarray or leaf is not usual:
                return None
        picked = [at for at, usual in enumerate(call.leaves) if type(usual) is not Static]
        return Served(
            entry, entry.executable, None if entry.form is pytree.LEAF else builder(entry.form),
            not (types or statics or entry.captured), picked if statics else None,
            types, scalars, statics, len(pytree.KINDS),
        )  # fmt: skip

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """The result of a call with these leaves; DECLINED where this may not be the trace for it,
        or Python has to see to it."""
        arrays = leaves if self.plain else self._arrays(leaves)
        if arrays is None:
            return DECLINED
        try:
            found = self.executable(*arrays)
        except StaticgradError as error:
            locate(error)
            raise
        if self.build is None or found is DECLINED:
            return found
        return self.build(found)

    def _arrays(self, leaves: Sequence[Any]) -> Sequence[Any] | None:
        """The program's inputs, arrays in place of numbers; None where something is another."""
        entry = self.entry
        for at, cls in self.types:
            if type(leaves[at]) is not cls:
                return None
        for at, cls, value in self.statics:
            leaf = leaves[at]
            if leaf is not value and not (type(leaf) is cls and leaf == value):
                return None
        if self.statics and len(pytree.KINDS) != self.kinds:
            return None
        if entry.captured and entry.changed_variable() is not None:
            return None
        inputs = leaves if self.picked is None else [leaves[at] for at in self.picked]
        if self.scalars:
            inputs = list(inputs)
            for at in self.scalars:
                inputs[at] = np.asarray(inputs[at])
        if entry.number_guards and not _guards_hold(entry, inputs):
            return None
        return entry.arrays(inputs)


def _guards_hold(entry: Entry, inputs: Sequence[Any]) -> bool:
    sizes = entry.sizes(tuple(v.shape for v in inputs if type(v) is np.ndarray))
    return sizes is not None and entry.numbers_hold(sizes, inputs)


class Form:
    """A structure of (args, kwargs) that came before, with the programs that served it last.

    Without a structure: so many positional arguments, each of them a leaf.
    """

    def __init__(self, structure: Structure | None, count: int) -> None:
        self.structure = structure
        self.served: tuple[Served, ...] = ()
        self._last: Served | None = None
        self.count = count
        if structure is not None:
            positional, named = structure.children
            self._positional = matcher(positional)
            self._named = matcher(named) if named.children else None

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any] | None:
        """The leaves of a call; None where it has another structure."""
        if self.structure is None:
            return args if len(args) == self.count and not kwargs else None
        found: list[Any] = []
        if not self._positional(args, found):
            return None
        if self._named is None:
            return None if kwargs else found
        return found if self._named(kwargs, found) else None

    def serve(self, leaves: Sequence[Any]) -> Any:
        """The result of a call with these leaves, or DECLINED."""
        for served in self.served:
            found = served(leaves)
            if found is not DECLINED:
                # twice in a row: two that alternate stay where they are
                if served is self._last and served is not self.served[0]:
                    self._to_front(served)
                self._last = served
                return found
        return DECLINED

    def add(self, served: Served) -> None:
        """Has a program asked first."""
        self.forget(served.entry)
        self._to_front(served)

    def forget(self, entry: Entry) -> None:
        self.served = tuple(s for s in self.served if s.entry is not entry)

    def _to_front(self, served: Served) -> None:
        others = [s for s in self.served if s is not served]
        self.served = (served, *others[: MOST_SERVED - 1])


__all__ = ["MOST_FORMS", "Form", "Served", "builder", "matcher"]
