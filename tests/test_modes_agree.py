"""`jit` equals the dynamic mode, over all records: the same bits from a program and a tape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.ops import registry
from staticgrad.ops.lowering import Leaf

LARGEST = 600  # elements of a sample


def sample_of(op: registry.Op) -> registry.Sample | None:
    """The first small sample; not with a layer's open mode, which the two bind differently."""
    for s in op.samples():
        small = sum(np.size(a) for a in s.operands) <= LARGEST
        if small and s.operands and s.attrs.get("training", True) is not None:
            return s
    return None


NAMES = [
    name for name, op in registry.all_ops().items()
    if not isinstance(op.lower, Leaf) and sample_of(op) is not None
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_the_dynamic_mode(name: str) -> None:
    sample = sample_of(registry.get(name))
    assert sample is not None
    arrays = [np.ascontiguousarray(a).reshape(np.shape(a)) for a in sample.operands]

    def function(*values: Any) -> Any:
        return registry.make(name, values, sample.attrs).results

    traced = sg.jit(function)(*arrays)
    inputs = [sg.input(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
    tensors = [sg.eager.tensor(a, dtype=str(a.dtype)) for a in arrays]
    eager = sg.eager.call_graph(Graph(inputs, function(*inputs)), tensors)
    assert len(traced) == len(eager)
    for a, b in zip(traced, eager):
        b = b.numpy()
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    again = sg.jit(function)(*tensors)  # a traced function of eager tensors is on their tape
    for a, c in zip(traced, again):
        assert type(c).__module__.startswith("staticgrad.eager")
        assert a.tobytes() == c.numpy().tobytes()


def test_draws_by_a_key_are_the_same_in_both_modes() -> None:
    key = np.array([5, 7], "uint64")
    draw = sg.jit(lambda k: (sg.random.uniform((3,), key=k), sg.random.normal((3,), key=k)))
    for a, b in zip(draw(key), draw(sg.eager.tensor(key, dtype="uint64"))):
        assert a.tobytes() == b.numpy().tobytes()
