"""`Tensor`: the handle that users hold. A value of the graph with operators and methods.

The methods are the functions of the array API; they are attached by the family modules through
`METHODS`, so that each op still stands in one file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from staticgrad.ir.dim import Dim, DimLike
from staticgrad.ir.errors import ArgumentTypeError, ShapeError
from staticgrad.ir.node import Value


class Tensor(Value):
    """A value of a static graph: nothing is computed until the graph is compiled and called."""

    __slots__ = ()
    __array_priority__ = 1000  # so that `array * tensor` asks the tensor
    __array_ufunc__ = None

    @property
    def size(self) -> DimLike:
        """The number of elements."""
        return self.type.size

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def name(self) -> str | None:
        """The name of an input or a parameter."""
        return self.node.attrs.get("name")

    def __repr__(self) -> str:
        label = f"{self.name!r}, " if self.name else ""
        return f"Tensor({label}{self.type}, {self.node.op})"

    def __len__(self) -> int:
        if not self.ndim:
            raise ShapeError("a 0-d tensor has no len()")
        size = self.shape[0]
        if isinstance(size, Dim):
            raise ShapeError(
                f"len(): the first dim {size} is symbolic; its size is known only at run time"
            )
        return size

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise ShapeError("a 0-d tensor can't be iterated over or unpacked")
        size = self.shape[0]
        if isinstance(size, Dim):
            raise ShapeError(
                f"a tensor of type {self.type} can't be iterated over or unpacked: its first dim "
                f"{size} is symbolic, its size known only at run time. Use an int dim."
            )
        return (self[i] for i in range(size))

    def __bool__(self) -> bool:
        raise ArgumentTypeError(
            "a static tensor has no value while the graph is being declared, so it can't be used "
            "in `if`, `while` or `and`; use sg.where(condition, a, b)"
        )

    def __float__(self) -> float:
        raise ArgumentTypeError(
            "a static tensor has no value while the graph is being declared; compile it with "
            "sg.compile and call the result"
        )

    __int__ = __float__  # type: ignore[assignment]

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.__float__()

    __hash__ = Value.__hash__


def method(name: str) -> Any:
    """Attaches a function as the method or operator `name` of `Tensor`.

    For `__eq__` this is deliberate: `a == b` is the element-wise comparison, as the standard has
    it. Graph code compares values with `is`.
    """

    def attach(function: Any) -> Any:
        setattr(Tensor, name, function)
        return function

    return attach
