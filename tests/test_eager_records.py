"""Every record on the tape: first and second derivatives of eager calls are those of the static
graph, by the same rules, in float64. The static side runs in the reference interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.autodiff.reverse import backward
from staticgrad.ir.graph import Graph
from staticgrad.ops import registry
from staticgrad.ops.interpret import run_graph

eager = sg.eager

LARGEST = 600  # elements of a sample


def differentiable() -> list[str]:
    return [
        name
        for name, op in registry.all_ops().items()
        if not isinstance(op.vjp, registry.NotDifferentiable) and sample_of(op) is not None
    ]


def sample_of(op: registry.Op) -> registry.Sample | None:
    """The first sample of an op with floating operands, all float64, at a differentiable point.

    A layer's open mode is evaluation in the reference and training on the tape: not compared.
    """
    for s in op.samples():
        if s.attrs.get("training", True) is None:
            continue
        arrays = [np.asarray(a) for a in s.operands]
        floats = [a for a in arrays if a.dtype.kind == "f"]
        small = sum(a.size for a in arrays) <= LARGEST and all(a.size for a in arrays)
        finite = all(np.isfinite(a).all() for a in floats)
        double = all(a.dtype == np.float64 for a in floats)
        if s.differentiable and floats and small and finite and double:
            return s
    return None


def declared(arrays: Sequence[Any]) -> list[Any]:
    return [sg.input(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]


def weight(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape)


def weighted(values: Sequence[Any], make: Any, seed: int) -> Any:
    """The sum of all floating values, each element with a weight of its own."""
    total: Any = None
    for i, v in enumerate(values):
        if v is not None and v.dtype.is_float:
            part = (v * make(weight(v.shape, seed + i))).sum()
            total = part if total is None else total + part
    return total


@pytest.mark.parametrize("name", differentiable())
def test_the_tape_differentiates_as_the_graph_does(name: str) -> None:
    op = registry.get(name)
    sample = sample_of(op)
    assert sample is not None
    arrays = [np.ascontiguousarray(a).reshape(np.shape(a)) for a in sample.operands]
    inputs = declared(arrays)
    node = registry.make(name, inputs, sample.attrs)
    floats = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
    results = [r for r in node.results if r.dtype.is_float]
    if not results:
        return

    # The static side: gradients, and gradients of their weighted sum.
    loss = weighted(results, sg.constant, 1)
    wrt = [inputs[i] for i in floats]
    first = backward([loss], [sg.constant(np.float64(1))], wrt)
    again = weighted(first, sg.constant, 100)
    second = (
        [None] * len(wrt) if again is None
        else backward([again], [sg.constant(np.float64(1))], wrt)
    )  # fmt: skip
    wanted = [v for v in (*first, *second) if v is not None]
    values = iter(run_graph(Graph(inputs, wanted), arrays)[0])
    expected = [None if v is None else next(values) for v in (*first, *second)]

    # The tape.
    tensors = [
        eager.tensor(a, requires_grad=i in floats) if a.dtype.kind == "f" else eager.tensor(a)
        for i, a in enumerate(arrays)
    ]
    outputs = eager.call_graph(Graph(inputs, node.results), tensors)
    targets = [tensors[i] for i in floats]
    tape_loss = weighted([o for o in outputs if o.dtype.is_float], eager.tensor, 1)
    if not tape_loss.requires_grad:
        assert all(v is None for v in first)
        return
    found = list(eager.grad(tape_loss, targets, create_graph=True, allow_unused=True))
    tape_again = weighted(found, eager.tensor, 100)
    if tape_again is None or not tape_again.requires_grad:
        found += [None] * len(targets)
    else:
        found += eager.grad(tape_again, targets, allow_unused=True)
    for i, (e, f) in enumerate(zip(expected, found)):
        if e is None or f is None:
            # A path of zeros may be a path to one side and none to the other.
            there = e if f is None else f.detach().numpy()
            assert there is None or not np.any(there)
        else:
            np.testing.assert_allclose(
                f.detach().numpy(), e, rtol=1e-10, atol=1e-12, err_msg=f"{name}, cotangent {i}"
            )
