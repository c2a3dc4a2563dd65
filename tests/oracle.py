"""Checks that derive from an op's record: used by the tests of every family.

check_record(op)       the reference gives what `infer` promises, over all samples
check_expansion(op)    a formula in other ops gives what the reference gives
check_gradient(op)     autodiff against central differences in float64, first and second order
check_no_gradient(op)  an op that says it is not differentiable passes nothing back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from staticgrad.autodiff.reverse import backward, gradients
from staticgrad.ir.dim import Dim
from staticgrad.ir.graph import Graph
from staticgrad.ops.convert import constant_array
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.lowering import Expand
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import NotDifferentiable, Op, Sample, make
from staticgrad.ops.tensor import Tensor

Array = np.ndarray[Any, Any]
Arrays = Sequence[Array]


def declared(arrays: Arrays, *, symbolic: bool = False) -> list[Tensor]:
    """An input for each array. `symbolic` names each size above 1: equal sizes by one name."""
    found = []
    for i, a in enumerate(arrays):
        shape = tuple(
            Dim.symbol(f"D{n}") if symbolic and n > 1 else n
            for n in a.shape
        )  # fmt: skip
        found.append(declare(f"x{i}", shape, str(a.dtype)))
    return found


def arrays_of(sample: Sample) -> list[Array]:
    """The operands as read-only arrays, so that a reference that writes into them is found."""
    found = []
    for a in sample.operands:
        array = np.array(a)
        array.flags.writeable = False
        found.append(array)
    return found


def evaluate(outputs: Sequence[Any], inputs: Sequence[Any], arrays: Arrays) -> list[Array]:
    """The values of `outputs` by the reference interpreter."""
    return run_graph(Graph(inputs, outputs), list(arrays))[0]


def run_op(op: Op, sample: Sample, *, symbolic: bool = False) -> list[Array]:
    """The results of a sample by the reference; their types are checked against `infer`."""
    arrays = arrays_of(sample)
    inputs = declared(arrays, symbolic=symbolic)
    return evaluate(make(op.name, inputs, sample.attrs).results, inputs, arrays)


def check_record(op: Op) -> None:
    """Over all samples the reference has the inferred dtype and shape, also where the sizes are
    symbolic (element-wise ops), and gives the same twice."""
    samples = list(op.samples())
    assert samples, f"{op.name} has no samples"
    assert op.summary and op.source
    for sample in samples:
        first = run_op(op, sample)
        again = run_op(op, sample, symbolic="elementwise" in op.traits)
        if "random" not in op.traits:
            for a, b in zip(first, again, strict=True):
                np.testing.assert_array_equal(a, b)


def assert_close(got: Array, expected: Array, op: Op, what: str = "") -> None:
    """Within the record's relative tolerance; NaNs, infinities, bools and integers exactly."""
    assert got.dtype == expected.dtype and got.shape == expected.shape, f"{op.name} {what}"
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, expected, err_msg=f"{op.name} {what}")
        return
    rtol = op.tolerance.float32 if got.dtype == np.float32 else op.tolerance.float64
    # Below the smallest normal number a relative error has no meaning: some subnormal steps.
    atol = 4 * float(np.finfo(got.dtype).smallest_subnormal)
    np.testing.assert_allclose(got, expected, rtol, atol, err_msg=f"{op.name} {what}")


def check_expansion(op: Op) -> None:
    """The formula in other ops gives what the reference gives, over all samples."""
    assert isinstance(op.lower, Expand)
    for sample in op.samples():
        arrays = arrays_of(sample)
        inputs = declared(arrays)
        built = op.lower.build(tuple(inputs), sample.attrs)
        outputs = built if isinstance(built, tuple) else (built,)
        expected = run_op(op, sample)
        for got, want in zip(evaluate(outputs, inputs, arrays), expected, strict=True):
            assert_close(got, want, op, f"{arrays[0].dtype}{list(arrays[0].shape)}")


# --- gradients ------------------------------------------------------------------------------------

# Five points, error h**4 / 30 of the fifth derivative: below 1e-15 for functions whose derivatives
# are of order 1, and 1e-9 at a distance of 0.05 from a singularity; rounding costs 1e-16 / h.
_STEP = 3e-4
_STENCIL = ((-2, 1.0 / 12.0), (-1, -8.0 / 12.0), (1, 8.0 / 12.0), (2, -1.0 / 12.0))


def _slope(f: Callable[[float], float], step: float) -> float:
    return sum(weight * f(k * step) for k, weight in _STENCIL) / step


class _Line:
    """A scalar of the graph along a line: `value(t)` at the point moved by t times a direction."""

    def __init__(
        self, scalar: Tensor, inputs: Sequence[Any], arrays: Arrays, directions: Sequence[Any]
    ) -> None:
        self.graph = Graph(inputs, [scalar])
        self.arrays = arrays
        self.directions = directions

    def value(self, t: float) -> float:
        moved = [a if d is None else a + t * d for a, d in zip(self.arrays, self.directions)]
        return float(run_graph(self.graph, moved)[0][0])

    def slope(self, step: float) -> float:
        return _slope(self.value, step)


def _weighted(values: Sequence[Any], weights: Sequence[Array]) -> Any:
    """The sum of the values' elements, each times a fixed weight: a scalar to differentiate."""
    total: Any = None
    for v, w in zip(values, weights, strict=True):
        term = reduce_sum(v * constant_array(w))
        total = term if total is None else total + term
    assert total is not None
    return total


def _weights(tensors: Sequence[Any], rng: np.random.Generator) -> list[Array]:
    return [rng.uniform(0.5, 1.5, t.shape) * rng.choice((-1.0, 1.0), t.shape) for t in tensors]


def check_gradient(
    op: Op, *, order: int = 2, rtol: float = 1e-6, step: float = _STEP, seed: int = 0
) -> int:
    """Autodiff against central differences over all differentiable float64 samples of `op`.

    Each sample's results are summed with random weights; the gradient's product with a random
    direction is compared with the difference of that scalar along the direction, then the same for
    the scalar `gradient . direction` (second order), up to `order`. Returns how many were compared.
    """
    if isinstance(op.vjp, NotDifferentiable):
        raise AssertionError(f"{op.name} has no gradient: {op.vjp.reason}")
    compared = 0
    for number, sample in enumerate(op.samples()):
        dtypes = {str(np.asarray(a).dtype) for a in sample.operands}
        if sample.differentiable and "float64" in dtypes and "float32" not in dtypes:
            rng = np.random.default_rng([seed, number])
            compared += _check_sample(op, sample, order, rtol, step, rng)
    assert compared, f"{op.name} has no differentiable float64 sample"
    return compared


def _check_sample(
    op: Op, sample: Sample, order: int, rtol: float, step: float, rng: np.random.Generator
) -> bool:
    arrays = arrays_of(sample)
    inputs = declared(arrays)
    moving = [x for x in inputs if x.dtype.is_float]
    results = [r for r in make(op.name, inputs, sample.attrs).results if r.dtype == "float64"]
    if not results:
        return False
    scalar = _weighted(results, _weights(results, rng))
    for k in range(1, order + 1):
        found = gradients(scalar, moving, unreachable="zeros")
        for g, x in zip(found, moving, strict=True):
            assert g.type == x.type, f"{op.name}: the gradient of {x.type} has type {g.type}"
        directions = _weights(moving, rng)
        slope = _weighted(found, directions)
        by_input = dict(zip(moving, directions, strict=True))
        line = _Line(scalar, inputs, arrays, [by_input.get(x) for x in inputs])
        values = evaluate([slope, *found], inputs, arrays)
        got, expected = float(values[0]), line.slope(step)
        # Relative to the terms, not to their sum, which may cancel.
        terms = sum(float(np.abs(g * d).sum()) for g, d in zip(values[1:], directions))
        limit = rtol * terms + 1e-12 * abs(line.value(0.0)) / step + 1e-9
        assert abs(got - expected) <= limit, (
            f"{op.name}, order {k}, operands {[f'{a.dtype}{list(a.shape)}' for a in arrays]}, "
            f"attrs {dict(sample.attrs)}: autodiff {got!r}, differences {expected!r}, "
            f"limit {limit:.1e}"
        )
        scalar = slope
    return True


def check_no_gradient(op: Op) -> None:
    """An op that says it is not differentiable passes nothing back, and says why."""
    assert isinstance(op.vjp, NotDifferentiable) and op.vjp.reason
    for sample in op.samples():
        inputs = declared(arrays_of(sample))
        floating = [x for x in inputs if x.dtype.is_float]
        results = [r for r in make(op.name, inputs, sample.attrs).results if r.dtype.is_float]
        if floating and results:
            seeds = [constant_array(np.ones(r.shape, r.dtype.numpy)) for r in results]
            assert all(g is None for g in backward(results, seeds, floating)), op.name
