"""Every record, compiled: the same values as the reference, with fixed and with symbolic sizes, and
gradients whose bits do not depend on fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_graph
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.graph import Graph
from staticgrad.ops import registry
from staticgrad.ops.lowering import Leaf
from staticgrad.ops.registry import NotDifferentiable, Sample, make

from .oracle import Array, _weighted, _weights, arrays_of, assert_close, declared, evaluate

COMPILED = sorted(name for name, op in registry.all_ops().items() if not isinstance(op.lower, Leaf))
# Samples are compiled together: a module costs some milliseconds, whatever is in it.
TOGETHER = 24


def _groups(samples: list[Sample]) -> list[list[Sample]]:
    return [samples[i : i + TOGETHER] for i in range(0, len(samples), TOGETHER)]


def _program(name: str, samples: list[Sample], symbolic: bool) -> tuple[list, list, list[Array]]:
    inputs: list[Any] = []
    outputs: list[Any] = []
    arrays: list[Array] = []
    for number, sample in enumerate(samples):
        operands = arrays_of(sample)
        values = declared(operands, symbolic=symbolic)
        renamed = [sg.input(f"s{number}_{i}", v.shape, v.dtype) for i, v in enumerate(values)]
        outputs += make(name, renamed, sample.attrs).results
        inputs += renamed
        arrays += operands
    return inputs, outputs, arrays


def _compare(name: str, samples: list[Sample], symbolic: bool) -> None:
    inputs, outputs, arrays = _program(name, samples, symbolic)
    expected = evaluate(outputs, inputs, arrays)
    program = compile_graph(Graph(inputs, outputs), cache=False)
    op = registry.get(name)
    for got, want in zip(program(*arrays), expected, strict=True):
        if "elementwise" in op.traits or want.dtype.kind != "f":
            assert_close(got, want, op)
        else:
            _assert_norm_close(got, want, op)


def _assert_norm_close(got: Array, want: Array, op: registry.Op) -> None:
    """Where an element combines several, rounding is relative to the largest, not to the sum."""
    assert got.dtype == want.dtype and got.shape == want.shape
    rtol = op.tolerance.float32 if want.dtype == np.float32 else op.tolerance.float64
    scale = np.max(np.abs(want), initial=0.0, where=np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol, rtol * scale)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_values_agree_with_the_reference(name: str) -> None:
    for samples in _groups(list(registry.get(name).samples())):
        _compare(name, samples, symbolic=False)


@pytest.mark.parametrize("name", [n for n in COMPILED if "elementwise" in registry.get(n).traits])
def test_symbolic_sizes_give_the_same_values(name: str) -> None:
    # One sample a program: a symbol stands for one size throughout a graph.
    for sample in list(registry.get(name).samples())[-6:]:
        _compare(name, [sample], symbolic=True)


def _gradient_program(name: str) -> tuple[list[Any], list[Any], list[Array]] | None:
    rng = np.random.default_rng(0)
    inputs: list[Any] = []
    outputs: list[Any] = []
    arrays: list[Array] = []
    for number, sample in enumerate(registry.get(name).samples()):
        operands = arrays_of(sample)
        if len(outputs) >= TOGETHER:
            break
        values = [sg.input(f"s{number}_{i}", a.shape, str(a.dtype)) for i, a in enumerate(operands)]
        moving = [v for v in values if v.dtype.is_float]
        results = [r for r in make(name, values, sample.attrs).results if r.dtype.is_float]
        if not moving or not results or not sample.differentiable:
            continue
        weights = [w.astype(str(r.dtype)) for w, r in zip(_weights(results, rng), results)]
        found = gradients(_weighted(results, weights), moving, unreachable="zeros")
        inputs += values
        outputs += [*results, *found]
        arrays += operands
    return (inputs, outputs, arrays) if outputs else None


# Of these reverse mode is refused (tests/test_control_gradients.py), or follows rules of the user's
# (tests/test_custom_derivatives.py).
WITHOUT_GRADIENT = {"while_loop", "custom_vjp", "custom_jvp"}


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in COMPILED
        if n not in WITHOUT_GRADIENT and not isinstance(registry.get(n).vjp, NotDifferentiable)
    ],
)
def test_gradients_agree_and_fusion_keeps_their_bits(name: str) -> None:
    made = _gradient_program(name)
    assert made is not None, f"{name} has no differentiable sample"
    inputs, outputs, arrays = made
    expected = evaluate(outputs, inputs, arrays)
    graph = Graph(inputs, outputs)
    fused = compile_graph(graph, cache=False)(*arrays)
    alone = compile_graph(graph, cache=False, disable=("fuse", "in_place"))(*arrays)
    for a, b in zip(fused, alone, strict=True):
        np.testing.assert_array_equal(
            a.view(np.uint8) if a.ndim else a.reshape(1).view(np.uint8),
            b.view(np.uint8) if b.ndim else b.reshape(1).view(np.uint8),
        )
    for got, want in zip(fused, expected, strict=True):
        tolerance = 2e-4 if want.dtype == np.float32 else 1e-9
        scale = np.max(np.abs(want), initial=0.0, where=np.isfinite(want))
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale + 1e-300)
