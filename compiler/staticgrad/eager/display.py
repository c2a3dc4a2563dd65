"""How eager tensors print: as PyTorch's do, four digits, aligned, large ones by their edges.

    tensor([2.6667, 3.3333, 4.0000])            tensor(16., requires_grad=True)

Whole floats get a bare point. Where the sizes of the numbers differ by more than 1000, or reach
beyond 1e8 or below 1e-4, all are printed with an exponent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .tape import Leaf, Node
from .tensor import Array, Tensor

DIGITS = 4
LINE = 80
LARGE = 1000  # elements; beyond that only the edges are printed
EDGE = 3

# What PyTorch calls the operations whose names differ.
_NAMES = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "negative": "Neg",
    "square": "Pow", "matmul": "Mm", "linear": "Addmm",
    "permute_dims": "Permute", "reshape": "View",
    "expand_dims": "Unsqueeze", "concat": "Cat", "getitem": "Index", "taken": "Select",
    "cross_entropy": "NllLoss", "astype": "ToCopy", "transposed": "T", "merged": "IndexPut",
}  # fmt: skip


class _Numbers:
    """How the numbers of one tensor are written: all alike, in one width."""

    def __init__(self, values: Array) -> None:
        self.is_float = values.dtype.kind == "f"
        self.exponent = False
        self.whole = True
        self.width = 1
        flat = values.reshape(-1)
        if not self.is_float:
            self.width = max([1, *(len(str(v)) for v in flat.tolist())])
            return
        shown = flat[np.isfinite(flat) & (flat != 0)].astype(np.float64)
        if not shown.size:
            return
        sizes = np.abs(shown)
        low, high = sizes.min(), sizes.max()
        self.whole = bool((shown == np.ceil(shown)).all())
        self.exponent = bool(high / low > 1000.0 or high > 1.0e8 or low < 1.0e-4)
        self.width = max(len(self._bare(v)) for v in shown.tolist())

    def _bare(self, value: Any) -> str:
        if not self.is_float:
            return str(value)
        if self.exponent:
            return f"{value:.{DIGITS}e}"
        if not self.whole:
            return f"{value:.{DIGITS}f}"
        return f"{value:.0f}" + ("." if math.isfinite(value) else "")

    def text(self, value: Any) -> str:
        return self._bare(value).rjust(self.width)


def _edges(array: Array) -> Array:
    """The elements that are printed of a large array."""
    for axis in range(array.ndim):
        if array.shape[axis] > 2 * EDGE:
            kept = [*range(EDGE), *range(array.shape[axis] - EDGE, array.shape[axis])]
            array = array.take(kept, axis)
    return array


def _rows(array: Array, indent: int, large: bool, numbers: _Numbers) -> str:
    if not array.ndim:
        return numbers.text(array.item())
    size = array.shape[0]
    cut = large and size > 2 * EDGE
    chosen = [*range(EDGE), *range(size - EDGE, size)] if cut else range(size)
    if array.ndim == 1:
        parts = [numbers.text(v) for v in array[list(chosen)].tolist()]
        if cut:
            parts.insert(EDGE, " ...")
        return _wrapped(parts, indent, numbers.width)
    parts = [_rows(array[i], indent + 1, large, numbers) for i in chosen]
    if cut:
        parts.insert(EDGE, "...")
    between = "," + "\n" * (array.ndim - 1) + " " * (indent + 1)
    return "[" + between.join(parts) + "]"


def _wrapped(parts: Sequence[str], indent: int, width: int) -> str:
    """The numbers of a row, as many on a line as fit."""
    count = max(1, (LINE - indent) // (width + 2))
    lines = [", ".join(parts[i : i + count]) for i in range(0, len(parts), count)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def array_text(array: Array, indent: int = 0) -> str:
    """An array's numbers in brackets, `indent` columns from the left."""
    if not array.size:
        return "[]"
    large = array.size > LARGE
    return _rows(array, indent, large, _Numbers(_edges(array) if large else array))


def grad_fn_text(node: Any) -> str:
    """The name of what made a tensor, in PyTorch's manner: `AddBackward0`."""
    while not isinstance(node, Node):
        node = node.edges[0]
    name = node.name
    times = 1
    while name.endswith("_backward"):
        name, times = name[: -len("_backward")], times + 1
    title = _NAMES.get(name, "".join(part.title() for part in name.split("_")))
    return title + "Backward" * times + "0"


def tensor_text(t: Tensor) -> str:
    """A tensor as it prints."""
    head = "tensor("
    array, dtype = t._array, t._sig.dtype
    notes = []
    if not array.size and array.ndim != 1:
        notes.append(f"size={array.shape}")
    usual = ("float32",) if not array.size else ("float32", "int64", "bool")
    if dtype not in usual:
        notes.append(f"dtype={dtype!r}")
    if t._node.__class__ is Leaf:
        notes.append("requires_grad=True")
    elif t._node is not None:
        notes.append(f"grad_fn=<{grad_fn_text(t._node)}>")
    text = head + array_text(array, len(head))
    last = len(text) - text.rfind("\n") + 1
    for note in notes:
        if last + len(note) + 2 > LINE:
            text += ",\n" + " " * len(head) + note
            last = len(head) + len(note)
        else:
            text += ", " + note
            last += len(note) + 2
    return text + ")"


__all__ = ["array_text", "grad_fn_text", "tensor_text"]
