"""PyTorch's `dim=` and `keepdim=` beside the array API's `axis=` and `keepdims=`, and the other way
round for functions that have PyTorch's names, as those of `nn.functional`."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from staticgrad.ir.errors import ArgumentTypeError

_PYTORCH = {"dim": "axis", "keepdim": "keepdims"}
_SPELLINGS = {**_PYTORCH, **{axis: dim for dim, axis in _PYTORCH.items()}}

# Functions whose namesakes in PyTorch give something else when they are called with a dim.
_UNLIKE = {
    "max": "PyTorch's max(dim=..) gives values and places; here max(axis=..) gives the values and "
    "argmax(axis=..) the places",
    "min": "PyTorch's min(dim=..) gives values and places; here min(axis=..) gives the values and "
    "argmin(axis=..) the places",
    "sort": "PyTorch's sort(dim=..) gives values and places; here sort(axis=..) gives the values "
    "and argsort(axis=..) the places",
}
_UNBIASED = frozenset(("std", "var"))


def spellings(function: FunctionType) -> dict[str, str]:
    """The other spellings of a function's parameters."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {
        other: name for other, name in _SPELLINGS.items() if name in names and other not in names
    }


def respelled(name: str, kwargs: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    """Keywords in this project's spelling. Raises ArgumentTypeError for one that is given twice, or
    where PyTorch's function means something else."""
    found = {}
    for given, value in kwargs.items():
        axis = known.get(given, given)
        if axis != given:
            if axis in kwargs:
                raise ArgumentTypeError(f"{name}: {given}= is {axis}=; give one of them")
            if given in _PYTORCH and name in _UNLIKE:
                raise ArgumentTypeError(f"{name}: {_UNLIKE[name]}")
            if given in _PYTORCH and name in _UNBIASED and "correction" not in kwargs:
                raise ArgumentTypeError(
                    f"{name}: PyTorch's {name} divides by n - 1, here the default is n: say which "
                    f"with correction=1 or correction=0, or write {axis}="
                )
        found[axis] = value
    return found


__all__ = ["respelled", "spellings"]
