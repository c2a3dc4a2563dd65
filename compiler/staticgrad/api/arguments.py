"""What the transforms share: which arguments they differentiate by, and the checks of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, equal_dims
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DifferentiationError
from staticgrad.ops.convert import as_tensor, astype
from staticgrad.ops.elementwise import zeros_as
from staticgrad.ops.public import shown
from staticgrad.ops.registry import apply
from staticgrad.ops.shape import reshape
from staticgrad.ops.tensor import Tensor
from staticgrad.ops.weak import WeakNumber

from . import pytree
from .trace import Traced

ARRAYS = (Tensor, np.ndarray, np.generic, bool, int, float, Dim)


def checked_function(fn: Any, label: str) -> None:
    if not callable(fn):
        raise ArgumentTypeError(f"{label}: the first argument must be a function, got {shown(fn)}")


def checked_argnums(argnums: Any, label: str) -> int | tuple[int, ...]:
    """An int or a tuple of different ints."""
    given = argnums if isinstance(argnums, (tuple, list)) else (argnums,)
    for n in given:
        if type(n) is not int:
            raise ArgumentTypeError(
                f"{label}: argnums must be an int or a tuple of ints, got {argnums!r}"
            )
    if not given or len(set(given)) != len(given):
        raise ArgumentError(f"{label}: argnums must be different ints, got {argnums!r}")
    return tuple(given) if isinstance(argnums, (tuple, list)) else argnums  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Split:
    """A call whose chosen arguments were replaced by fresh tensors to differentiate by.

    `args` calls the function; `leaves` are the fresh tensors of all chosen arguments, in order;
    `forms` the chosen arguments' structures; `single` whether argnums was an int.
    """

    args: tuple[Any, ...]
    leaves: list[Tensor]
    forms: list[pytree.Structure]
    names: list[str]
    single: bool

    def regrouped(self, values: Sequence[Any]) -> Any:
        """One value for each of `leaves`, in the structures of the chosen arguments."""
        found, at = [], 0
        for form in self.forms:
            found.append(pytree.unflatten(form, values[at : at + form.num_leaves]))
            at += form.num_leaves
        return found[0] if self.single else tuple(found)


def split(
    args: tuple[Any, ...], argnums: int | tuple[int, ...], name_of: Callable[[int], str], label: str
) -> Split:  # fmt: skip
    """Fresh tensors in place of the arguments `argnums`."""
    single = isinstance(argnums, int)
    chosen = []
    for n in (argnums,) if isinstance(argnums, int) else argnums:
        at = n + len(args) if n < 0 else n
        if not 0 <= at < len(args):
            raise ArgumentError(
                f"{label}: argnums has {n}, but the function was called with {len(args)} "
                f"positional argument{'' if len(args) == 1 else 's'}"
            )
        chosen.append(at)
    replaced = list(args)
    leaves: list[Tensor] = []
    forms, names = [], []
    for at in chosen:
        values, form = pytree.flatten(args[at])
        paths = pytree.paths(form, name_of(at))
        fresh = [alias(differentiable(v, path, label)) for v, path in zip(values, paths)]
        leaves += fresh
        names += paths
        forms.append(form)
        replaced[at] = pytree.unflatten(form, fresh)
    return Split(tuple(replaced), leaves, forms, names, single)


def differentiable(value: Any, name: str, label: str) -> Tensor:
    """A leaf of an argument as a floating tensor. A Python float becomes float32, as everywhere."""
    if not isinstance(value, ARRAYS):
        raise DifferentiationError(
            f"{label}: argument {name} is {shown(value)}, which can't be differentiated by; leave "
            "it out of argnums"
        )
    tensor = as_tensor(value)
    if not tensor.dtype.is_float:
        what = f"{value.number!r}" if isinstance(value, WeakNumber) else "what was passed"
        mend = (
            f"pass {float(value.number)!r}"
            if isinstance(value, WeakNumber)
            else 'convert it: .astype("float32")'
        )
        raise DifferentiationError(
            f"{label}: argument {name} is {tensor.type}, and an integer has no gradient: {what} "
            f"must be floating; {mend}"
        )
    return tensor


def alias(x: Tensor) -> Tensor:
    """The same value as a value of its own: derivatives by it are not derivatives by `x`, which the
    function may read as well. (`canonicalize` removes it.)"""
    same: Tensor = apply("astype", x, dtype=x.dtype)
    return same


def output_leaf(value: Any, name: str, label: str) -> Tensor:
    """A leaf of what a function returns, as a tensor."""
    if not isinstance(value, ARRAYS):
        raise ArgumentTypeError(
            f"{label}: {name} is {shown(value)}; the function must return tensors, arrays and "
            "numbers, alone or in trees"
        )
    return as_tensor(value)


def output_leaves(result: Any, label: str) -> tuple[list[Tensor], pytree.Structure, list[str]]:
    """What a function returned: tensors, their structure, their names."""
    values, form = pytree.flatten(result)
    names = pytree.paths(form, "result")
    return [output_leaf(v, name, label) for v, name in zip(values, names)], form, names


def floating_output(t: Tensor, name: str, label: str) -> None:
    if not t.dtype.is_float:
        raise DifferentiationError(
            f"{label}: {name} is {t.type}, and an integer has no derivative; return it as "
            "auxiliary output (has_aux=True) or convert it: .astype(sg.float32)"
        )


def parted(result: Any, has_aux: bool, label: str) -> tuple[Any, Any]:
    """The value and the auxiliary output of what a function returned."""
    if not has_aux:
        return result, None
    if not isinstance(result, tuple) or len(result) != 2:
        raise ArgumentTypeError(
            f"{label}: with has_aux=True the function must return a pair (value, aux), got "
            f"{_sketch(result)}"
        )
    return result[0], result[1]


def _sketch(result: Any) -> str:
    form = pytree.structure(result)
    if form is pytree.LEAF:
        return repr(result) if isinstance(result, Tensor) else shown(result)
    if result is None:
        return "None"
    return f"a {form.kind.name} of {len(form.children)}" if form.kind else "a leaf"


def scalar_output(result: Any, label: str) -> Tensor:
    """The floating scalar that a function to be differentiated must return."""
    values, form = pytree.flatten(result)
    if form is not pytree.LEAF:
        raise DifferentiationError(
            f"{label}: the function must return one scalar, got {_sketch(result)}; if the first of "
            "two is the value to differentiate and the rest auxiliary output, pass has_aux=True"
        )
    tensor = output_leaf(values[0], "the result", label)
    if tensor.shape != ():
        raise DifferentiationError(
            f"{label}: the function must return a scalar, got {tensor.type}; reduce it with .sum() "
            "or .mean(), or use sg.jacobian for the derivative of each element"
        )
    floating_output(tensor, "the result", label)
    return tensor


def filled(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives, with zeros where no path leads."""
    return [zeros_as(v.type) if t is None else t for t, v in zip(found, like)]


class _Remembered(dict[Any, Any]):
    """What was made of one function; the function itself holds it."""

    owner: Any


def remembered(fn: Callable[..., Any], key: Any, make: Callable[[], Any]) -> Any:
    """`make()`, once for each function and key: `sg.vjp(f, x)` called again is not traced again."""
    if not isinstance(fn, (FunctionType, Traced)):
        return make()
    table = fn.__dict__.get("_staticgrad_transforms")
    # `functools.wraps` copies a function's attributes to another one.
    if table is None or table.owner is not fn:
        table = fn.__dict__["_staticgrad_transforms"] = _Remembered()
        table.owner = fn
    if key not in table:
        table[key] = make()
    return table[key]


def moved_like(given: Any, values: Sequence[Tensor], form: pytree.Structure, names: Sequence[str],
               what: str, label: str) -> list[Tensor]:  # fmt: skip
    """Tangents or cotangents: one for each of `values`, in the structure `form`, of its type."""
    leaves, found_form = pytree.flatten(given)
    if found_form != form:
        raise ArgumentError(
            f"{label}: the {what}s must be structured like the values that they belong to; "
            f"{pytree.difference(form, found_form, ('the values', f'the {what}s'))}"
        )
    return [_moved(g, v, n, what, label) for g, v, n in zip(leaves, values, names)]


def _moved(given: Any, value: Tensor, name: str, what: str, label: str) -> Tensor:
    weak = isinstance(given, (WeakNumber, bool, int, float)) and not isinstance(given, np.generic)
    tensor = output_leaf(given, f"the {what} of {name}", label)
    if weak:
        tensor = astype(given if isinstance(given, WeakNumber) else tensor, value.dtype)
    fits = tensor.dtype == value.dtype and tensor.ndim == value.ndim
    sames = [equal_dims(a, b) for a, b in zip(tensor.shape, value.shape)]
    if not fits or any(same is False for same in sames):
        raise ArgumentError(
            f"{label}: the {what} of {name} must have its type {value.type}, got {tensor.type}"
        )
    # A size that is not known to be equal is asked for when the program is called.
    return tensor if all(sames) else reshape(tensor, value.shape)


__all__ = [
    "Split", "alias", "checked_argnums", "checked_function", "differentiable", "filled",
    "floating_output", "moved_like", "output_leaves", "parted", "remembered", "scalar_output",
    "split",
]  # fmt: skip
