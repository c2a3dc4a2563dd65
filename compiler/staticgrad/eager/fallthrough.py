"""`sg.eager.exp` and its kin: the functions of `sg` on arrays, as the dynamic mode runs them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from staticgrad.ir.dtype import DType
from staticgrad.ir.node import Value

from .dispatch import call


def _package() -> ModuleType:
    return sys.modules["staticgrad"]


def names() -> list[str]:
    """The names that fall through to `sg`."""
    return [name for name in _package().__all__ if _serves(getattr(_package(), name))]


def _serves(value: Any) -> bool:
    return isinstance(value, DType) or getattr(value, "is_operation", False)


def function_of(name: str) -> Any:
    """The function of that name, or the dtype. Raises AttributeError."""
    package = _package()
    value = vars(package).get(name) if name in package.__all__ else None
    if isinstance(value, DType):
        return value
    if getattr(value, "is_operation", False):
        return _eagerly(value)
    from staticgrad.ir.hints import FUNCTIONS, missing

    text = missing("sg.eager", name, FUNCTIONS)
    if value is not None:
        text = f"sg.eager has no attribute {name!r}: use sg.{name}, which serves both modes"
    raise AttributeError(text, name=name, obj=sys.modules[__package__ or ""])


@functools.cache
def _eagerly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on arrays and numbers as on eager tensors; tensors of a graph build graph."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if _of_graph((*args, *kwargs.values())):
            return function(*args, **kwargs)
        return call(function, args, kwargs)

    return run


def _of_graph(values: Iterable[Any]) -> bool:
    return any(
        isinstance(v, Value) or (isinstance(v, (list, tuple)) and _of_graph(v)) for v in values
    )


__all__ = ["function_of", "names"]
