"""The warning where float64 data makes a float32 model float64.

NumPy makes float64 of Python's floats, so data come in it unasked. Beside it a float32 parameter is
promoted, as the standard says, and so is everything that follows: the results are right, but take
twice the memory and about twice the time. PyTorch's layers refuse such data, JAX rounds them to
float32 unless it is told otherwise; here it is told once for each input.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from staticgrad.ir.dtype import float32, float64
from staticgrad.ir.errors import PromotionWarning
from staticgrad.ir.loc import current_locs
from staticgrad.ir.node import Node, Value

# Operations that change how a parameter lies and not what it is.
_LAYOUTS = frozenset(("permute_dims", "reshape", "broadcast_to", "slice"))
_told: weakref.WeakSet[Node] = weakref.WeakSet()  # inputs, and what follows from them
_shown: dict[Any, Any] = {}  # the registry of `warnings`: one line of a program is told once


def tell_widened(operands: Sequence[Value | None]) -> None:
    """Warns if a float32 parameter among operands that become float64 meets data of that dtype."""
    tensors = [v for v in operands if v is not None]
    name = next((n for v in tensors if v.dtype == float32 and (n := _parameter(v))), None)
    if name is None:
        return
    for v in tensors:
        if v.dtype == float64 and (found := _source(v.node)) is not None:
            _warn(name, found)


def tell_mixed(types: Sequence[Any], parameters: Sequence[Any]) -> None:
    """The same for an operation of the dynamic mode: the types of its tensors, and the parameters
    among them (None: it is none)."""
    for p in parameters:
        if p is not None and p.dtype == float32 and (name := _parameter(p)):
            if any(t.dtype == float64 and q is None for t, q in zip(types, parameters)):
                _warn(name, None)
            return


def _warn(name: str, source: Node | None) -> None:
    """Warns that the float32 parameter is promoted by a float64 input or constant; of the dynamic
    mode there is no node."""
    # Those of loops' bodies have names of ours, and no line.
    named = source is not None and source.op == "input" and source.locs
    what = f"the float64 input {source.attrs['name']!r}" if named and source else "float64 data"
    loc = next(iter(current_locs()), None)
    text = (
        f"the float32 parameter {name!r} meets {what}, so that it and all that follows are "
        'computed in float64. Cast the data, x.astype("float32"), or for a model in float64 its '
        'parameters, model.to("float64"); NumPy makes float64 where it is not told otherwise'
    )
    if loc is None:
        warnings.warn(text, PromotionWarning, stacklevel=2)
    else:
        warnings.warn_explicit(text, PromotionWarning, loc.file, loc.line, registry=_shown)


def _parameter(value: Value) -> str | None:
    """The name of the trainable parameter that a value is."""
    node = value.node
    while node.op in _LAYOUTS:
        node = node.operands[0].node
    if node.op != "state" or not node.attrs["trainable"]:
        return None
    return node.attrs.get("name") or "parameter"


def _source(start: Node) -> Node | None:
    """The input or constant that a value has its float64 from; None where it was asked for by a
    conversion, and where it was told before."""
    pending, seen, found = [start], {start}, None
    while pending and (found is None or found.op != "input"):
        node = pending.pop()
        if node in _told:
            found = None
            break
        if node.op in ("input", "constant"):
            found = node
        inner = [v.node for v in node.operands if v.dtype == float64]
        pending += [n for n in inner if n not in seen]
        seen.update(inner)
    _told.add(start)
    if found is not None:
        _told.add(found)
    return found


__all__ = ["tell_mixed", "tell_widened"]
