"""How a value from the middle is seen in each mode: snippets that are run here, with what they
print, and a value of the compared model itself, taken out of its compiled step."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from staticgrad.api import debug
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.loc import locs_text
from staticgrad.ir.node import Node
from staticgrad.ops import random
from staticgrad.ops.lowering import Leaf, View
from staticgrad.ops.registry import get
from staticgrad.ops.tensor import Tensor

from .subject import Subject

_START = """\
import numpy as np
import staticgrad as sg

w = sg.parameter(np.array([[0.5, -0.25], [0.125, 0.0625]], "float32"), name="w")
batch = np.array([[1, 2], [3, 4]], "float32")

"""

# (name, mode, code); each runs on its own, after `_START`.
SNIPPETS = (
    ("print", "dynamic", """\
h = sg.tanh(sg.eager.tensor(batch) @ w)
print("h:", h.detach().numpy())  # it has a value: plain Python
h.sum().backward()
"""),
    ("sg.debug.print", "static", """\
x = sg.input("x", ("N", 2))
h = sg.debug.print(sg.tanh(x @ w), "h")  # the compiled step is to show it
step = sg.compile([x], h.sum())
step(batch)
"""),
    ("sg.debug.tap", "static", """\
x = sg.input("x", ("N", 2))
h = sg.debug.tap(sg.tanh(x @ w), lambda a: print("largest:", a.max()))
step = sg.compile([x], h.sum())
step(batch)
step(-batch)
"""),
    ("fit(callbacks=)", "static", """\
model = sg.nn.Linear(2, 1, bias=False)
model.weight.assign(np.array([[0.0, 0.0]], "float32"))
target = np.array([[1.0], [2.0]], "float32")

def show(epoch, logs):
    print(epoch, "loss", round(logs["loss"], 4), "weight", model.weight.numpy())

model.fit(batch, target, loss="mse", optimizer=sg.optim.SGD(model.parameters(), lr=0.02),
          epochs=2, batch_size=2, shuffle=False, callbacks=[show], progress=False)
"""),
)  # fmt: skip


def snippets() -> list[dict[str, str]]:
    """Each way to look inside, with the code and what it prints when it is run."""
    return [
        {"name": name, "mode": mode, "code": code.rstrip("\n"), "output": _printed(code)}
        for name, mode, code in SNIPPETS
    ]


def start() -> str:
    """What stands before each snippet."""
    return _START.rstrip("\n")


def _printed(code: str) -> str:
    printed = io.StringIO()
    with _generator_kept(), contextlib.redirect_stdout(printed):
        exec(compile(_START + code, "model.py", "exec"), {"__name__": "model"})
    return printed.getvalue().rstrip("\n")


@contextlib.contextmanager
def _generator_kept() -> Iterator[None]:
    """The random generator is afterwards as before; inside, layers start alike every time."""
    cell = random.default_generator().cell
    before = cell.numpy()
    random.seed(0)
    try:
        yield
    finally:
        cell.assign(before)


# --- the compared model ---------------------------------------------------------------------------


def value_of_the_model(subject: Subject) -> dict[str, Any] | None:
    """A value from the middle of the model's forward pass, by `sg.debug.tap` in its compiled step,
    and its cost: the kernels with and without the tap. None where there is no such value."""
    graph = subject.static_graph()
    node = _middle(graph, subject)
    if node is None:
        return None
    tensor = node.results[0]
    assert isinstance(tensor, Tensor)
    seen: list[np.ndarray[Any, Any]] = []
    debug.tap(tensor, seen.append)
    try:
        watched = subject.compiled(subject.static_graph())
    finally:
        debug.clear(tensor)
    with subject.unchanged():
        watched(*subject.batch)
    (array,) = seen
    return {
        "op": node.op,
        "line": locs_text(node.locs),
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "mean": float(array.mean()),
        "min": float(array.min()),
        "max": float(array.max()),
        "kernels": len(subject.static.report()["kernels"]),
        "kernels_watched": len(watched.report()["kernels"]),
    }


def _middle(graph: Graph, subject: Subject) -> Node | None:
    """The node half way to the loss among those that compute floating arrays from the batch."""
    inputs = {v.node for v in graph.inputs}
    depends: set[Node] = set(inputs)
    found = []
    for node in reachable(graph.outputs[:1]):
        if any(v.node in depends for v in node.operands):
            depends.add(node)
            plain = not isinstance(get(node.op).lower, (Leaf, View))
            result = node.results[0]
            if plain and result.ndim and result.dtype.is_float and node.op != "training_switch":
                found.append(node)
    return found[len(found) // 2] if found else None


__all__ = ["snippets", "start", "value_of_the_model"]
