"""Trees of arrays: what transforms take and return in place of single arrays.

A tree is a tuple, list, dict (its keys in sorted order, whatever the order of insertion), named
tuple, `OrderedDict`, `defaultdict`, instance of a dataclass (its fields), None (a tree without
leaves) or an object of a registered class, and its children are trees. Anything else is a leaf.
Users know this module as `sg.tree`.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError

IsLeaf = Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How objects of one class come apart and together again."""

    name: str
    flatten: Callable[[Any], tuple[Sequence[Any], Hashable]]  # -> children, the rest
    unflatten: Callable[[Any, Sequence[Any]], Any]  # the rest, children
    steps: Callable[[Any, int], Sequence[str]]  # the rest, count -> each child's step of a path


class Structure:
    """The shape of a tree without its leaves: equal for trees that can be mapped together."""

    __slots__ = ("_hash", "children", "data", "kind", "num_leaves")

    def __init__(
        self, kind: _Kind | None, data: Hashable = None, children: tuple[Structure, ...] = ()
    ) -> None:
        self.kind, self.data, self.children = kind, data, children
        self.num_leaves: int = 1 if kind is None else sum(c.num_leaves for c in children)
        self._hash = hash((kind.name if kind else None, data, children))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Structure)
            and self._hash == other._hash
            and self.kind is other.kind
            and self.data == other.data
            and self.children == other.children
        )

    def __repr__(self) -> str:
        return f"Structure({_text(self)})"


LEAF = Structure(None)


def _text(s: Structure) -> str:
    return "*" if s.kind is None else repr(unflatten(s, [_Star()] * s.num_leaves))


class _Star:
    def __repr__(self) -> str:
        return "*"


def _indices(data: Any, count: int) -> list[str]:
    return [f"[{i}]" for i in range(count)]


def _keys(data: Any, count: int) -> list[str]:
    return [f"[{k!r}]" for k in data]


def _attributes(data: Any, count: int) -> list[str]:
    return [f".{name}" for name in data[1]]


def _sorted_keys(d: Any) -> tuple[Any, ...]:
    try:
        return tuple(sorted(d))
    except TypeError:  # keys of several types
        return tuple(sorted(d, key=lambda k: (type(k).__qualname__, repr(k))))


def _flatten_dict(d: Any) -> tuple[list[Any], Hashable]:
    keys = _sorted_keys(d)
    return [d[k] for k in keys], keys


def _unflatten_dataclass(data: Any, children: Sequence[Any]) -> Any:
    # No call of the class: __init__ and __post_init__ may do arithmetic that leaves don't have.
    made = object.__new__(data[0])
    for name, child in zip(data[1], children):
        object.__setattr__(made, name, child)
    return made


def _flatten_fields(obj: Any) -> tuple[list[Any], Hashable]:
    names = tuple(f.name for f in dataclasses.fields(obj))
    return [getattr(obj, name) for name in names], (type(obj), names)


_TUPLE = _Kind("tuple", lambda t: (t, None), lambda data, c: tuple(c), _indices)
_NAMED = _Kind(
    "namedtuple",
    lambda t: (t, (type(t), t._fields)),
    lambda data, c: data[0]._make(c),
    _attributes,
)
_DATACLASS = _Kind("dataclass", _flatten_fields, _unflatten_dataclass, _attributes)
KINDS: dict[type, _Kind] = {
    tuple: _TUPLE,
    list: _Kind("list", lambda t: (t, None), lambda data, c: list(c), _indices),
    dict: _Kind("dict", _flatten_dict, lambda data, c: dict(zip(data, c)), _keys),
    type(None): _Kind("None", lambda t: ((), None), lambda data, c: None, _indices),
    OrderedDict: _Kind(
        "OrderedDict",
        lambda d: (list(d.values()), tuple(d)),
        lambda data, c: OrderedDict(zip(data, c)),
        _keys,
    ),
    defaultdict: _Kind(
        "defaultdict",
        lambda d: (_flatten_dict(d)[0], (d.default_factory, _sorted_keys(d))),
        lambda data, c: defaultdict(data[0], zip(data[1], c)),
        lambda data, count: _keys(data[1], count),
    ),
}


def kind_of(obj: Any) -> _Kind | None:
    cls = type(obj)
    found = KINDS.get(cls)
    if found is not None:
        return found
    if isinstance(obj, tuple):
        return _NAMED if hasattr(cls, "_fields") else None
    return _DATACLASS if dataclasses.is_dataclass(cls) else None


def register(
    cls: type,
    flatten: Callable[[Any], tuple[Iterable[Any], Hashable]],
    unflatten: Callable[[Any, Sequence[Any]], Any],
) -> None:
    """Makes instances of a class trees.

    flatten    object -> (children, rest); the rest is hashable and stays as it is
    unflatten  (rest, children) -> object; must take any children, not arrays alone

    The arguments are those of JAX's `register_pytree_node`. Raises `ArgumentError` where the class
    is a tree already.
    """
    if not isinstance(cls, type):
        raise ArgumentTypeError(f"tree.register: expected a class, got {cls!r}")
    if cls in KINDS:
        raise ArgumentError(f"tree.register: {cls.__qualname__} is a tree already")

    def apart(obj: Any) -> tuple[Sequence[Any], Hashable]:
        children, rest = flatten(obj)
        return tuple(children), (cls, rest)

    KINDS[cls] = _Kind(
        cls.__qualname__, apart, lambda data, c: unflatten(data[1], tuple(c)), _indices
    )


def flatten(tree: Any, is_leaf: IsLeaf | None = None) -> tuple[list[Any], Structure]:
    """The leaves of a tree from left to right, and its structure.

    `is_leaf` says of an inner tree that it is to be taken as a leaf. Raises `ArgumentTypeError` for
    what a structure can't hold (an unhashable rest of a registered class).
    """
    found: list[Any] = []
    return found, _flatten_into(tree, found, is_leaf)


def _flatten_into(tree: Any, found: list[Any], is_leaf: IsLeaf | None) -> Structure:
    kind = kind_of(tree)
    if kind is None or (is_leaf is not None and is_leaf(tree)):
        found.append(tree)
        return LEAF
    children, data = kind.flatten(tree)
    try:
        return Structure(kind, data, tuple(_flatten_into(c, found, is_leaf) for c in children))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        raise ArgumentTypeError(
            f"tree: what flatten of {kind.name} gives beside the children must be hashable: {error}"
        ) from None


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Any:
    """The tree of a structure with these leaves. Raises `ArgumentError` for a wrong number."""
    given = list(leaves)
    if len(given) != structure.num_leaves:
        raise ArgumentError(
            f"tree.unflatten: {structure!r} has {structure.num_leaves} leaves, got {len(given)}"
        )
    return _unflatten_from(structure, iter(given))


def _unflatten_from(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure.kind is None:
        return next(leaves)
    children = [_unflatten_from(c, leaves) for c in structure.children]
    return structure.kind.unflatten(structure.data, children)


def leaves(tree: Any, is_leaf: IsLeaf | None = None) -> list[Any]:
    """The leaves of a tree, from left to right."""
    return flatten(tree, is_leaf)[0]


def structure(tree: Any, is_leaf: IsLeaf | None = None) -> Structure:
    """The structure of a tree."""
    return flatten(tree, is_leaf)[1]


def map(function: Callable[..., Any], tree: Any, *rest: Any, is_leaf: IsLeaf | None = None) -> Any:
    """The tree of `function(leaf, ...)` over the leaves of trees of one structure.

    Raises `ArgumentError` that names the first place where the structures differ.
    """
    if not callable(function):
        raise ArgumentTypeError(f"tree.map: expected a function first, got {function!r}")
    first, form = flatten(tree, is_leaf)
    columns = [first]
    for i, other in enumerate(rest):
        values, other_form = flatten(other, is_leaf)
        if other_form != form:
            raise ArgumentError(f"tree.map: {difference(form, other_form, ('tree', f'rest[{i}]'))}")
        columns.append(values)
    return unflatten(form, [function(*row) for row in zip(*columns)])


def paths(structure: Structure, prefix: str = "") -> list[str]:
    """The path of each leaf as Python writes it: `params['w'][0]` with the prefix `params`."""
    if structure.kind is None:
        return [prefix]
    found: list[str] = []
    steps = structure.kind.steps(structure.data, len(structure.children))
    for step, child in zip(steps, structure.children):
        found += paths(child, prefix + step)
    return found


def call_paths(form: Structure, name_of: Callable[[int], str]) -> list[str]:
    """How a user would write each leaf of a call, `form` being that of (args, kwargs) and `name_of`
    the name of the argument at a position."""
    positional, named = form.children
    found: list[str] = []
    for i, child in enumerate(positional.children):
        found += paths(child, name_of(i))
    for key, child in zip(named.data, named.children):  # type: ignore[call-overload]
        found += paths(child, key)
    return found


def difference(a: Structure, b: Structure, names: tuple[str, str] = ("the first", "the second")
               ) -> str:  # fmt: skip
    """Where two structures differ first, in words."""
    return _difference(a, b, names, "")


def _difference(a: Structure, b: Structure, names: tuple[str, str], at: str) -> str:
    here = f" at {at}" if at else ""
    if a.kind is not b.kind or len(a.children) != len(b.children) or a.data != b.data:
        return (
            f"the structures differ{here}: {names[0]}{at} is {_described(a)}, {names[1]}{at} is "
            f"{_described(b)}"
        )
    steps = a.kind.steps(a.data, len(a.children)) if a.kind else ()
    for step, x, y in zip(steps, a.children, b.children):
        if x != y:
            return _difference(x, y, names, at + step)
    return "the structures are equal"


def _described(s: Structure) -> str:
    if s.kind is None:
        return "a leaf"
    if s.kind.name == "None":
        return "None"
    if s.kind.name in ("dict", "OrderedDict"):
        return f"a {s.kind.name} with the keys {list(s.data)}"  # type: ignore[call-overload]
    if s.kind.name in ("namedtuple", "dataclass"):
        return f"a {s.data[0].__qualname__}"  # type: ignore[index]
    return f"a {s.kind.name} of {len(s.children)}"


def prefix_leaves(prefix: Any, form: Structure, is_leaf: IsLeaf, what: str) -> list[Any]:
    """For each leaf of `form` the leaf of `prefix` above it: `(0, None)` for `((a, b), c)` gives
    `[0, 0, None]`. `is_leaf` says what a leaf of the prefix is (None may be one). Raises
    `ArgumentError` where the prefix goes another way than the tree."""
    found: list[Any] = []
    _spread(prefix, form, is_leaf, what, "", found)
    return found


def _spread(
    prefix: Any, form: Structure, is_leaf: IsLeaf, what: str, at: str, found: list[Any]
) -> None:
    if is_leaf(prefix):
        found += [prefix] * form.num_leaves
        return
    kind = kind_of(prefix)
    if kind is None:
        raise ArgumentTypeError(f"{what}{at}: unexpected {prefix!r}")
    children, data = kind.flatten(prefix)
    if kind is not form.kind or data != form.data or len(children) != len(form.children):
        raise ArgumentError(
            f"{what}{at} is {_described(structure(prefix, is_leaf))}, but what it stands for is "
            f"{_described(form)}"
        )
    steps = kind.steps(data, len(children))
    for step, child, inner in zip(steps, children, form.children):
        _spread(child, inner, is_leaf, what, at + step, found)


__all__ = ["Structure", "flatten", "leaves", "map", "register", "structure", "unflatten"]
