"""`operations.md`: the reference page of all operations, from their records."""

from __future__ import annotations

import sys
from itertools import groupby

import numpy as np
from staticgrad.ir.dtype import ALL
from staticgrad.ops.registry import NotDifferentiable, Op, Tolerance, all_ops

HEAD = """\
# Operations

All operations of the graph, from their records (`compiler/staticgrad/ops/`); this page is made by
`python docs/generate.py`. An operation is spelled the same in the IR text, the dumps and the tests.
Most are called by a function of the same name (`sg.exp`); others are what several functions are
made of (`sg.flip` and `x[::2]` are `slice`). The functions' docstrings tell their arguments.

- **dtypes**: those of the operands in the record's samples, which all tests run on. `float`:
  float32 and float64; `int`: int8 to int64 and uint8 to uint64.
- **attributes**: what a node holds beside its operands.
- **gradient**: `yes`, or why there is none. Each rule is made of other operations, so it can be
  differentiated again.
- **tolerance**: the relative error against the NumPy reference that the formula allows, for float32
  and float64; 1e-5 and 1e-12 where nothing is said.
- **kernel**: how it becomes native code (`ops/lowering.py`). Pointwise and Generate compute an
  element from elements or from its index; Reduction folds axes; View moves no data; Product is a
  blocked matrix product or convolution with an epilogue; Custom brings a loop nest of its own;
  Expand is a formula in other operations.
"""

COLUMNS = "| operation | formula | dtypes | attributes | gradient | tolerance | kernel |"
RULE = "| --- | --- | --- | --- | --- | --- | --- |"


def operations() -> str:
    """The page's text."""
    ops = sorted(all_ops().values(), key=lambda op: (family(op), op.name))
    lines = [HEAD]
    for name, members in groupby(ops, key=family):
        found = list(members)
        lines += [f"## {name}", "", about(name), "", COLUMNS, RULE]
        lines += [row(op) for op in found]
        lines += ["", *sources(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def family(op: Op) -> str:
    """The file of the record, by its samples, which stand beside it."""
    return op.samples.__module__.rsplit(".", 1)[1]


def about(name: str) -> str:
    text = sys.modules[f"staticgrad.ops.{name}"].__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())


def row(op: Op) -> str:
    samples = list(op.samples())
    dtypes = {str(np.asarray(x).dtype) for s in samples for x in s.operands}
    attributes = sorted({name for s in samples for name in s.attrs})
    gradient = op.vjp.reason if isinstance(op.vjp, NotDifferentiable) else "yes"
    t = op.tolerance
    tolerance = "" if t == Tolerance() else f"{t.float32:.0e}, {t.float64:.0e}"
    traits = ", ".join(sorted(op.traits - {"elementwise"})).replace("_", " ")
    kernel = type(op.lower).__name__ + (f" ({traits})" if traits else "")
    cells = [
        f"`{op.name}`", op.summary, dtype_text(dtypes), ", ".join(attributes), gradient,
        tolerance, kernel,
    ]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"


def dtype_text(found: set[str]) -> str:
    groups = {
        "bool": {"bool"},
        "int": {str(d) for d in ALL if d.is_integer},
        "float": {str(d) for d in ALL if d.is_float},
    }
    words = []
    left = set(found)
    for word, members in groups.items():
        if members <= left:
            words.append(word)
            left -= members
    ordered = [str(d) for d in ALL if str(d) in left]
    return ", ".join([*words, *ordered])


def sources(ops: list[Op]) -> list[str]:
    """Where the definitions come from: one line for a source, with its ops if there are several."""
    by_source: dict[str, list[str]] = {}
    for op in ops:
        by_source.setdefault(op.source, []).append(f"`{op.name}`")
    if len(by_source) == 1:
        return [f"Source: {source}." for source in by_source]
    return ["Sources:", ""] + [f"- {', '.join(names)}: {s}" for s, names in by_source.items()]
