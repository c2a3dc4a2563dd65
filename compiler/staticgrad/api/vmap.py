"""`vmap`: a function of one item becomes a function of many, by the records' batch rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.autodiff.batching import batched
from staticgrad.ir.dim import DimLike, equal_dims
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ops import taps
from staticgrad.ops.convert import as_tensor
from staticgrad.ops.leaves import input as graph_input
from staticgrad.ops.public import public, shown
from staticgrad.ops.shape import broadcast_to, moveaxis, reshape
from staticgrad.ops.tensor import Tensor

from . import pytree
from .arguments import ARRAYS, checked_function, output_leaves, remembered
from .call import namer
from .trace import Traced
from .transforms import named


@public
def vmap(fn: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Any:
    """The function that applies `fn` to many items at once: a loop over an axis, without the loop.

    in_axes   which axis of each argument counts the items: an int (negative: from the end), None
              for an argument that is the same for all items, or a tuple or list with one entry for
              each argument; an entry may be a tree of ints and None above the argument's own tree.
              Keyword arguments have the axis 0
    out_axes  where the axis stands in the results: an int, None for results that are the same for
              all items, or a tree of these above the result's tree

    Nests with itself and all other transforms. Random numbers that `fn` draws are the same for all
    items; for others draw them outside, as many as there are items. Raises `ShapeError` for an axis
    that an argument does not have and for different numbers of items, `ArgumentError` where no
    argument has items.
    """
    checked_function(fn, "vmap")
    _check_axes(in_axes, "in_axes")
    _check_axes(out_axes, "out_axes")
    if not isinstance(in_axes, (int, tuple, list)):
        raise ArgumentTypeError(
            f"vmap: in_axes must be an int or a tuple with an entry for each argument, got "
            f"{in_axes!r}"
        )
    name_of = namer(fn)

    def build(*args: Any, **kwargs: Any) -> Any:
        leaves, axes, forms, names = _arguments(args, kwargs, in_axes, name_of)
        size = _number_of_items(leaves, axes, names)
        replaced: dict[Any, Tensor] = {}
        given = []
        for leaf, axis in zip(leaves, axes):
            if axis is None:
                given.append(leaf)
                continue
            many = _in_front(leaf, axis, size)
            item = graph_input("item", many.shape[1:], many.dtype)
            replaced[item] = many
            given.append(item)
        one = pytree.unflatten(forms, given)
        with taps.of_body() as seen:
            outputs, form, out_names = output_leaves(fn(*one[0], **one[1]), "vmap")
        places = pytree.prefix_leaves(out_axes, form, _is_axis, "vmap: out_axes")
        # What is watched is batched too, whether or not a result needs it.
        found = batched([*outputs, *(v for v, _ in seen)], replaced, size)
        same = [pair for pair, (_, many) in zip(seen, found[len(outputs) :]) if not many]
        taps.pass_on(same)
        results = [
            _placed(t, many, axis, size, name)
            for (t, many), axis, name in zip(found, places, out_names)
        ]
        return pytree.unflatten(form, results)

    key = ("vmap", _key(in_axes), _key(out_axes))
    return remembered(fn, key, lambda: named(Traced(fn, build, label="vmap")))


def _is_axis(value: Any) -> bool:
    return value is None or isinstance(value, int)


def _check_axes(axes: Any, what: str) -> None:
    for axis in pytree.leaves(axes, _is_axis):
        if axis is not None and type(axis) is not int:
            raise ArgumentTypeError(
                f"vmap: {what} must be ints and None, alone or in trees, got {shown(axis)}"
            )


def _key(axes: Any) -> Any:
    leaves, form = pytree.flatten(axes, _is_axis)
    return tuple(leaves), form


def _arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], in_axes: Any, name_of: Callable[[int], str]
) -> tuple[list[Any], list[int | None], pytree.Structure, list[str]]:
    """The leaves of a call, the axis of each, the call's structure, the leaves' names."""
    leaves, form = pytree.flatten((args, kwargs))
    positional, named_form = form.children
    if isinstance(in_axes, int):
        axes: list[int | None] = [in_axes] * positional.num_leaves
    else:
        if len(in_axes) != len(args):
            raise ArgumentError(
                f"vmap: in_axes has {len(in_axes)} entries {tuple(in_axes)!r}, but the function "
                f"was called with {len(args)} positional arguments"
            )
        axes = []
        for i, (entry, child) in enumerate(zip(in_axes, positional.children)):
            axes += pytree.prefix_leaves(entry, child, _is_axis, f"vmap: in_axes[{i}]")
    axes += [0] * named_form.num_leaves
    names = pytree.call_paths(form, name_of)
    for i, (leaf, axis) in enumerate(zip(leaves, axes)):
        if axis is not None:
            leaves[i] = _checked(leaf, axis, names[i])
    return leaves, axes, form, names


def _checked(leaf: Any, axis: int, name: str) -> Tensor:
    """An argument with items along `axis`."""
    if not isinstance(leaf, ARRAYS):
        raise ArgumentTypeError(
            f"vmap: argument {name} is {shown(leaf)}, which has no axis {axis}; give it None in "
            "in_axes"
        )
    tensor = as_tensor(leaf)
    if not -tensor.ndim <= axis < tensor.ndim:
        raise ShapeError(
            f"vmap: argument {name} is {tensor.type}, which has no axis {axis} to go along; "
            "give it another axis in in_axes, or None if it is the same for all items"
        )
    return tensor


def _number_of_items(
    leaves: Sequence[Any], axes: Sequence[int | None], names: Sequence[str]
) -> DimLike:
    sizes = [
        (name, axis, leaf.shape[axis])
        for name, axis, leaf in zip(names, axes, leaves) if axis is not None
    ]  # fmt: skip
    if not sizes:
        raise ArgumentError(
            "vmap: no argument has items: in_axes must be an int for one argument at least"
        )
    first = sizes[0][2]
    if any(equal_dims(first, size) is False for _, _, size in sizes):
        listed = ", ".join(f"{name} has {size} (axis {axis})" for name, axis, size in sizes)
        raise ShapeError(f"vmap: the arguments have different numbers of items: {listed}")
    ints = [size for _, _, size in sizes if isinstance(size, int)]
    return ints[0] if ints else first


def _in_front(tensor: Tensor, axis: int, size: DimLike) -> Tensor:
    many = moveaxis(tensor, axis, 0) if axis % tensor.ndim else tensor
    if equal_dims(many.shape[0], size) is None:
        # The numbers of items are equal only if the call's arrays say so, which this asks for.
        many = reshape(many, (size, *many.shape[1:]))
    return many


def _placed(t: Tensor, many: bool, axis: int | None, size: DimLike, name: str) -> Tensor:
    """A result with the axis of items where `out_axes` wants it."""
    if axis is None:
        if many:
            raise ArgumentError(
                f"vmap: {name} differs from item to item, so its out_axes can't be None"
            )
        return t
    if not many:
        t = broadcast_to(t, (size, *t.shape))
    if not -t.ndim <= axis < t.ndim:
        raise ShapeError(
            f"vmap: out_axes puts the items of {name} along axis {axis}, but it has {t.ndim} axes"
        )
    return moveaxis(t, 0, axis) if axis % t.ndim else t


__all__ = ["vmap"]
