"""Values from inside a compiled step: `debug.print` and `debug.tap`.

Both register an effect on a tensor and return that tensor, so they can stand alone or in an
expression. A program that is compiled later and computes the value, in its forward pass or because
a gradient needs it, gives it as a hidden output more; after each call that succeeded the effects
run, in the order of their declaration. So does a program that computes what the value follows from
without randomness or layers' state, so that `debug.print(h.mean())` prints wherever h is computed.
Any other program is compiled as if there were no effects: same graph, same code. On a tensor of the
dynamic mode the effect runs at once.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, BindError
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.loc import current_locs, locs_text
from staticgrad.ops import taps
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import dynamic, public, shown
from staticgrad.ops.taps import Tap
from staticgrad.ops.tensor import Tensor

Array = np.ndarray[Any, Any]


@public
def tap(t: Tensor, fn: Callable[[Array], Any]) -> Tensor:
    """Calls `fn(array)` after each call of a program that computes `t`; returns `t`.

    The array is a NumPy copy, which `fn` may keep. What `fn` raises reaches the caller of the
    program; the step is done by then, its state updated. Programs that were compiled before do not
    change. Raises `ArgumentTypeError` where `t` is no tensor or `fn` can't be called.
    """
    _check_tensor(t, "debug.tap")
    if not callable(fn):
        raise ArgumentTypeError(f"debug.tap: expected a function of an array, got {shown(fn)}")
    return _watched(t, fn)


@public
def print(t: Tensor, label: Any = "", *, format: str = "", file: TextIO | None = None) -> Tensor:
    """Prints `t` after each call of a program that computes it; returns `t`.

        model.py:12 h: float32[2, 3]
        [[0.1  0.25 0.  ]
         [0.   1.5  2.  ]]

    The line is that of this call, `label` (a str) by default the name of an input or a parameter,
    else the operation. `format` is a format of single numbers, such as ".3f"; without it and for
    how much of a large array is shown NumPy's print options hold. `file` is standard output by
    default.

    In the body of a `scan` it prints at each step, under `vmap` all rows at once; in that of a
    `cond`, a `switch` or a `while_loop` it is refused.

    Raises `ArgumentTypeError` where `t` is no tensor, `ArgumentError` for a format that its dtype
    does not take, `UnsupportedError` where it is refused.
    """
    if isinstance(t, str) and (isinstance(label, Tensor) or dynamic.is_tensor(label)):
        named = t.replace("{}", "").strip(" :=") or "x"
        raise ArgumentTypeError(
            f"debug.print: the tensor comes first, then its label: sg.debug.print(x, {named!r}); "
            'the values follow the label, format=".3f" formats each number'
        )
    _check_tensor(t, "debug.print")
    if not isinstance(label, str):
        raise ArgumentTypeError(f"debug.print: label must be a str, got {shown(label)}")
    if file is not None and not callable(getattr(file, "write", None)):
        raise ArgumentTypeError(f"debug.print: file must be open for writing, got {shown(file)}")
    try:
        builtins.format(t.dtype.numpy.type(0).item(), format)
    except ValueError as error:
        raise ArgumentError(f"debug.print: the format {format!r} of {t.dtype}: {error}") from None
    where = locs_text(current_locs())
    name = label or t.name or ("tensor" if dynamic.is_tensor(t) else t.node.op)

    def show(array: Array) -> None:
        text = array_text(array, format)
        gap = "\n" if "\n" in text else " "
        head = f"{where} {name}: {array.dtype}{list(array.shape)}"
        builtins.print(f"{head}{gap}{text}", file=file or sys.stdout)

    return _watched(t, show)


def array_text(array: Array, format: str) -> str:
    """The numbers as NumPy prints them, or each in a format of its own."""
    if not format:
        return np.array2string(array)

    def element(x: Any) -> str:
        return builtins.format(x.item(), format)

    return np.array2string(array, formatter={"all": element})


@public
def clear(t: Tensor | None = None) -> None:
    """Removes the effects on a tensor, or all of them, from programs compiled from now on."""
    if t is None:
        taps.remove_all()
        return
    _check_tensor(t, "debug.clear")
    if isinstance(t, Tensor):
        taps.remove(t)


def _check_tensor(t: Any, what: str) -> None:
    if not isinstance(t, Tensor) and not dynamic.is_tensor(t):
        raise ArgumentTypeError(f"{what}: expected a tensor, got {shown(t)}")


def _watched(t: Any, run: Callable[[Array], Any]) -> Any:
    """`t`, with an effect on it."""
    if dynamic.is_tensor(t):
        run(np.array(t.detach().numpy(), copy=True))
    elif dynamic.inside.get() and isinstance(t, Parameter):
        run(t.numpy())  # in a module that runs eagerly a parameter stands for its value
    else:
        taps.add(t, run)
    return t


# --- programs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effects:
    """What follows each call of a program: (place among its outputs, tap), in order.

    The first `count` outputs are those that were asked for; `single` if that was one bare tensor.
    """

    taps: tuple[tuple[int, Tap], ...]
    count: int
    single: bool

    def extended(self, out: Any) -> list[Any]:
        """`out=` for all outputs of the program, from the one that the caller knows of."""
        given = [out] if self.single else out
        if not isinstance(given, (list, tuple)):
            raise BindError(
                f"out: expected a sequence of {self.count} arrays, got {type(out).__name__}"
            )
        if len(given) != self.count:
            raise BindError(f"out: expected {self.count} arrays, got {len(given)}")
        hidden = max((place for place, _ in self.taps), default=0) + 1 - self.count
        return [*given, *[None] * hidden]

    def finish(self, outputs: Sequence[Array]) -> Any:
        """Runs the effects, each on a copy of its own, and gives what was asked for."""
        for place, tap in self.taps:
            tap.run(np.array(outputs[place], copy=True))
        return outputs[0] if self.single else tuple(outputs[: self.count])


def tapped(
    graph: Graph, training: bool | None = None, *, derived: bool = True
) -> tuple[Graph, Effects]:
    """The graph with its tapped values (see `taps_of`) as further outputs; itself where there are
    none."""
    found = taps.taps_of(graph, training, derived=derived)
    count = len(graph.outputs)
    if not found:
        return graph, Effects((), count, graph.single)
    places = {v: place for place, v in reversed(list(enumerate(graph.outputs)))}
    outputs = list(graph.outputs)
    for value, _ in found:
        if value not in places:
            places[value] = len(outputs)
            outputs.append(value)
    effects = Effects(tuple((places[v], tap) for v, tap in found), count, graph.single)
    known = {*graph.nodes}
    more = (c for n in reachable(outputs) if n not in known for c in n.constraints)
    extended = Graph(
        graph.inputs, outputs, graph.updates, order=graph.nodes, locs=graph.locs,
        constraints=(*graph.constraints, *more),
    )  # fmt: skip
    return extended, effects


__all__ = ["clear", "print", "tap"]
