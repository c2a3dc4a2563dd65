"""What loops and choices share: calling a body on placeholders, and checking what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, equal_dims
from staticgrad.ir.errors import (
    ArgumentTypeError,
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ir.node import Value
from staticgrad.ops import taps
from staticgrad.ops.closing import depends
from staticgrad.ops.convert import as_tensor, promoted
from staticgrad.ops.tensor import Tensor
from staticgrad.ops.weak import WeakNumber

from . import pytree
from .pytree import Structure

Tree = Any
# Calls a body on carries of the types of first values: its inputs, its leaves, a form.
Attempt = Callable[[list[Tensor]], tuple[list[Tensor], list[Any], Structure]]


def is_weak(value: Any) -> bool:
    """A Python number or a size: its dtype follows what it meets."""
    if isinstance(value, (bool, int, float)):
        return not isinstance(value, np.generic)
    return isinstance(value, (WeakNumber, Dim))


def checked_functions(what: str, **given: Any) -> None:
    for name, value in given.items():
        if not callable(value):
            raise ArgumentTypeError(f"{what}: {name} must be a function, got {value!r}")


def tensors_of(values: Sequence[Any], what: str) -> list[Tensor]:
    return [as_tensor(v, what) for v in values]


def trace_body(
    body: Callable[..., Any], inputs: Sequence[Tensor], forms: Sequence[Structure | None],
) -> tuple[list[Any], Structure]:  # fmt: skip
    """What `body` returns on inputs that are put together as `forms` say (None: one tensor)."""
    arguments: list[Any] = []
    at = 0
    for form in forms:
        if form is None:
            arguments.append(inputs[at])
            at += 1
        else:
            arguments.append(pytree.unflatten(form, inputs[at : at + form.num_leaves]))
            at += form.num_leaves
    return pytree.flatten(body(*arguments))


def refuse_taps(what: str, seen: Sequence[tuple[Value, taps.Tap]], inputs: Sequence[Value]) -> None:
    """Refuses effects in a body whose values don't leave it."""
    if any(depends(v, inputs) for v, _ in seen):
        raise UnsupportedError(
            f"{what}: sg.debug can't watch a value inside, which is not computed every time or not "
            "a known number of times; watch what it returns, use sg.scan, or the dynamic mode"
        )


def settled(
    what: str, form: Structure, init: Sequence[Any], attempt: Attempt
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Any], Structure]:  # fmt: skip
    """The first values and the body's inputs, new carries, other leaves and form of these.

    `attempt` calls the body on carries of the first values' types. A Python number among them takes
    the dtype that it has beside what the body gives, and the body is called again.
    """
    first = tensors_of(init, f"{what}: init")
    is_first = True
    while True:
        inputs, found, other_form = attempt(first)
        carries = found[: len(first)]
        tensors_of(carries, f"{what}: the carry")
        met = [
            (promoted(v, c) if is_first else promoted(v, c, t))[0] if is_weak(v) else t
            for v, c, t in zip(init, carries, first)
        ]
        if all(a.dtype == b.dtype for a, b in zip(met, first)):
            break
        first, is_first = met, False
    new = [alike(c, t) for c, t in zip(carries, first)]
    check_types(what, form, first, new)
    return first, inputs, new, found[len(first) :], other_form


def alike(value: Any, like: Tensor) -> Tensor:
    """`value` as a tensor; a Python number in the other's dtype, if that is of its kind."""
    if is_weak(value):
        as_met = promoted(value, like)[0]
        if as_met.dtype == like.dtype:
            return as_met
    return as_tensor(value)


def check_structure(what: str, given: Structure, returned: Structure) -> None:
    if given != returned:
        differs = pytree.difference(given, returned, ("the carry that it gets", "what it returns"))
        raise ArgumentTypeError(f"{what}: the body changes the carry's structure: {differs}")


def check_types(
    what: str, form: Structure, first: Sequence[Value], last: Sequence[Value],
    heads: tuple[str, str] = ("carry in", "carry out"),
    problem: str = "the body changes the carry's type",
) -> None:  # fmt: skip
    """Raises unless the types are equal, with both shown side by side."""
    wrong = [
        a.dtype != b.dtype or a.ndim != b.ndim
        or any(equal_dims(x, y) is False for x, y in zip(a.shape, b.shape))
        for a, b in zip(first, last)
    ]  # fmt: skip
    if not any(wrong):
        return
    names = [p or "value" for p in pytree.paths(form)]
    rows = [("", *heads), *((n, str(a.type), str(b.type)) for n, a, b in zip(names, first, last))]
    widths = [max(len(r[i]) for r in rows) for i in range(3)]
    lines = []
    for row, marked in zip(rows, [False, *wrong]):
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
        lines.append(f"  {text}{'  <- differ' if marked else ''}".rstrip())
    kind = DTypeError if any(a.dtype != b.dtype for a, b in zip(first, last)) else ShapeError
    raise kind(f"{what}: {problem}\n" + "\n".join(lines))
