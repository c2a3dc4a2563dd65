"""Trees of arrays: flattening, structures, registered classes, mismatches by name."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import pytree

Point = namedtuple("Point", ["x", "y"])


@dataclass(frozen=True)
class Layer:
    w: Any
    b: Any
    name: str = "layer"

    def __post_init__(self) -> None:
        if isinstance(self.w, str):
            raise AssertionError("unflatten must not run __post_init__ on leaves")


class Interval:
    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = low, high


sg.tree.register(Interval, lambda i: ((i.low, i.high), None), lambda rest, c: Interval(*c))


@pytest.mark.parametrize(
    "tree",
    [
        (1, [2, {"b": 3, "a": 4}], None),
        Point(1, (2, 3)),
        Layer(1, {"k": 2}, "dense"),
        OrderedDict([("z", 1), ("a", 2)]),
        defaultdict(list, {"b": 1, "a": 2}),
        {1: "int", "a": "str"},
        [],
        None,
        5,
    ],
)
def test_a_tree_comes_together_again(tree: Any) -> None:
    leaves, structure = sg.tree.flatten(tree)
    again = sg.tree.unflatten(structure, leaves)
    assert again == tree and type(again) is type(tree)
    assert sg.tree.structure(again) == structure
    assert hash(sg.tree.structure(again)) == hash(structure)
    assert structure.num_leaves == len(leaves)


def test_leaves_stand_in_the_order_of_sorted_keys() -> None:
    assert sg.tree.leaves({"b": 1, "a": (2, 3), "c": None}) == [2, 3, 1]
    assert sg.tree.structure({"b": 1, "a": 2}) == sg.tree.structure({"a": 5, "b": 6})
    one, two = OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)
    assert sg.tree.structure(one) != sg.tree.structure(two)
    assert sg.tree.leaves(two) == [2, 1]


def test_structures_tell_classes_apart() -> None:
    forms = [sg.tree.structure(t) for t in ((1, 2), [1, 2], Point(1, 2), {"x": 1, "y": 2})]
    assert len(set(forms)) == 4
    assert repr(forms[0]) == "Structure((*, *))"
    Other = namedtuple("Other", ["x", "y"])
    assert sg.tree.structure(Other(1, 2)) != sg.tree.structure(Point(1, 2))


def test_unflatten_puts_anything_in_place_of_leaves() -> None:
    layer = sg.tree.map(lambda v: "leaf", Layer(1, 2, "n"))
    assert (layer.w, layer.b, layer.name) == ("leaf", "leaf", "leaf")


def test_registered_classes_are_trees() -> None:
    moved = sg.tree.map(lambda v: v + 1, {"i": Interval(1, 2)})
    assert (moved["i"].low, moved["i"].high) == (2, 3)
    with pytest.raises(sg.ArgumentError, match="Interval is a tree already"):
        sg.tree.register(Interval, lambda i: ((), None), lambda rest, c: Interval(0, 0))
    with pytest.raises(sg.ArgumentTypeError, match="expected a class"):
        sg.tree.register("Interval", lambda i: ((), None), lambda rest, c: None)  # type: ignore[arg-type]
    g = sg.grad(lambda i: i.low * i.high**2)(Interval(2.0, 3.0))
    assert (float(g.low), float(g.high)) == (9.0, 12.0)


def test_map_goes_over_several_trees() -> None:
    params = {"w": np.array([1.0, 2.0]), "b": 3.0}
    grads = {"b": 1.0, "w": np.array([0.5, 0.5])}
    stepped = sg.tree.map(lambda p, g: p - 2 * g, params, grads)
    np.testing.assert_array_equal(stepped["w"], [0.0, 1.0])
    assert stepped["b"] == 1.0
    assert sg.tree.map(len, [(1, 2), (3,)], is_leaf=lambda t: isinstance(t, tuple)) == [2, 1]


def test_a_mismatch_is_named_by_its_path() -> None:
    a = {"w": [1, 2], "b": 3}
    with pytest.raises(
        sg.ArgumentError,
        match=r"differ at \['w'\]: tree\['w'\] is a list of 2, rest\[0\]\['w'\] is a list of 3",
    ):
        sg.tree.map(lambda x, y: x, a, {"w": [1, 2, 3], "b": 3})
    with pytest.raises(sg.ArgumentError, match=r"keys \['b', 'w'\].*keys \['w'\]"):
        sg.tree.map(lambda x, y: x, a, {"w": [1, 2]})
    with pytest.raises(sg.ArgumentError, match="has 3 leaves, got 2"):
        sg.tree.unflatten(sg.tree.structure(a), [1, 2])
    with pytest.raises(sg.ArgumentTypeError, match="expected a function first"):
        sg.tree.map(a, a)  # type: ignore[arg-type]


def test_paths_are_written_as_in_python() -> None:
    form = sg.tree.structure({"w": [1, Point(2, 3)], "l": Layer(1, 2, "n")})
    assert pytree.paths(form, "params") == [
        "params['l'].w", "params['l'].b", "params['l'].name", "params['w'][0]", "params['w'][1].x",
        "params['w'][1].y",
    ]  # fmt: skip


def test_a_prefix_stands_for_the_trees_below() -> None:
    def is_leaf(v: Any) -> bool:
        return v is None or isinstance(v, int)

    form = sg.tree.structure(((1, 2), {"a": 3, "b": (4, 5)}))
    spread = pytree.prefix_leaves((0, {"a": None, "b": 1}), form, is_leaf, "axes")
    assert spread == [0, 0, None, 1, 1]
    with pytest.raises(sg.ArgumentError, match=r"axes\[1\] is a list of 1"):
        pytree.prefix_leaves((0, [1]), form, is_leaf, "axes")


def test_what_can_t_be_hashed_is_refused() -> None:
    class Odd:
        pass

    sg.tree.register(Odd, lambda o: ((), [1]), lambda rest, c: Odd())  # type: ignore[arg-type]
    with pytest.raises(sg.ArgumentTypeError, match="must be hashable"):
        sg.tree.flatten(Odd())
