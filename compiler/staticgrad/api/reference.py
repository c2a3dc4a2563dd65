"""`mode="reference"`: the same calls, run op by op by the NumPy interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.errors import BindError
from staticgrad.ir.graph import Graph
from staticgrad.ops.interpret import run_graph
from staticgrad.passes.mode import bind_mode

from .debug import Effects


class ReferenceExecutable:
    """Called like a compiled program, at the speed of an interpreter; state is updated alike."""

    def __init__(self, graph: Graph, training: bool | None, effects: Effects) -> None:
        self.graph = bind_mode(graph, training)
        self.effects = effects

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        g = self.graph
        names = [v.node.attrs["name"] for v in g.inputs]
        given = dict(zip(names, arrays))
        unknown = [n for n in named if n not in names or n in given]
        if unknown or len(arrays) > len(names) or len(given) + len(named) != len(names):
            raise BindError(f"expected the inputs {names}, got {len(arrays)} and {sorted(named)}")
        given.update(named)
        checked = []
        for v, name in zip(g.inputs, names):
            a = given[name]
            a = a if isinstance(a, np.ndarray) else np.asarray(a, v.dtype.numpy)
            if a.dtype != v.dtype.numpy:
                raise BindError(f"input {name!r}: expected {v.type}, got {a.dtype}")
            checked.append(np.ascontiguousarray(a).reshape(a.shape))
        outputs, state = run_graph(g, checked)
        for value, new in state.items():
            value.node.payload.assign(new)
        return self.effects.finish(outputs)
