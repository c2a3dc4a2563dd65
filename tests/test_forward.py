"""Forward mode: every record's `jvp` against reverse mode and central differences, first and second
order; what is cut, broadcast, refused; and with symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_graph
from staticgrad.autodiff.forward import push
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ops import registry
from staticgrad.ops.convert import constant_array
from staticgrad.ops.registry import NotDifferentiable, Op, Sample, make

from .oracle import (
    _STEP,
    Array,
    _Line,
    _weighted,
    _weights,
    arrays_of,
    declared,
    evaluate,
)

# Above this many elements a sample shows nothing new about a derivative, and costs the most.
MOST_ELEMENTS = 1000
MOST_SAMPLES = 16


def _types(op: Op, sample: Sample) -> tuple[set[str], set[str]]:
    """The dtypes of the floating operands and results."""
    node = make(op.name, declared(arrays_of(sample)), sample.attrs)
    operands = {str(v.dtype) for v in node.operands if v.dtype.is_float}
    return operands, {str(t.dtype) for t in node.types if t.dtype.is_float}


def _samples(op: Op) -> list[Sample]:
    """The differentiable samples that are float64 alone; not all where there are many."""
    found = []
    for sample in op.samples():
        operands, results = _types(op, sample)
        if sample.differentiable and operands == {"float64"} and "float64" in results:
            found.append(sample)
    found.sort(key=_size)
    small = [s for s in found if _size(s) <= MOST_ELEMENTS] or found[:1]
    # Evenly over the sizes, the largest among them: the first are empty arrays.
    return small[::-1][:: max(1, -(-len(small) // MOST_SAMPLES))]


def _size(sample: Sample) -> int:
    return sum(np.asarray(a).size for a in sample.operands)


MOVING = [
    name for name, op in registry.all_ops().items()
    if any(all(_types(op, sample)) for sample in op.samples())
]  # fmt: skip
SMOOTH = [
    n for n in MOVING
    # `astype` alone has none, since its operand and result differ; see below. Of `while_loop` the
    # reverse is refused; tests/test_control_gradients.py compares its tangents with differences.
    if not isinstance(registry.get(n).vjp, NotDifferentiable) and n not in ("astype", "while_loop")
]  # fmt: skip


def _constants(arrays: Sequence[Array]) -> list[Any]:
    return [constant_array(a) for a in arrays]


def _dot(values: Sequence[Any], weights: Sequence[Array], like: Any) -> Any:
    """The weighted sum of those values that there are; zero of nothing."""
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
    if not pairs:
        return constant_array(np.zeros((), like.dtype.numpy))
    return _weighted([v for v, _ in pairs], [w for _, w in pairs])


def _agree(name: str, what: str, got: Any, expected: Any, scale: float, rtol: float) -> None:
    difference = float(np.max(np.abs(np.asarray(got) - expected), initial=0.0))
    assert difference <= rtol * scale + 1e-11, f"{name}, {what}: {got} and {expected}"


class _Case:
    """One sample: f = <w, results>, and directions t and u to move its operands along."""

    def __init__(self, op: Op, sample: Sample, number: int) -> None:
        rng = np.random.default_rng([7, number])
        self.name = op.name
        self.arrays = arrays_of(sample)
        self.inputs = declared(self.arrays)
        self.moving = [x for x in self.inputs if x.dtype.is_float]
        node = make(op.name, self.inputs, sample.attrs)
        self.results = [r for r in node.results if r.dtype == "float64"]
        self.weights = _weights(self.results, rng)
        self.t, self.u = _weights(self.moving, rng), _weights(self.moving, rng)

    def push(self, values: Sequence[Any], along: Sequence[Array]) -> list[Any]:
        return push(values, self.moving, _constants(along))

    def line(self, scalar: Any, along: Sequence[Array]) -> float:
        by_input = dict(zip(self.moving, along, strict=True))
        line = _Line(scalar, self.inputs, self.arrays, [by_input.get(x) for x in self.inputs])
        self.noise = 1e-12 * abs(line.value(0.0)) / _STEP
        return line.slope(_STEP)

    def values(self, tensors: Sequence[Any]) -> list[Array]:
        return evaluate(tensors, self.inputs, self.arrays)


def _check_first_order(c: _Case) -> Any:
    """<w, J t> by push = <J^T w, t> by reverse mode = the slope of f along t; and J t is the sum
    over the operands of what each of them alone gives."""
    f = _weighted(c.results, c.weights)
    gradient = gradients(f, c.moving, unreachable="zeros")
    tangents = c.push(c.results, c.t)
    for r, t in zip(c.results, tangents):
        assert t is None or t.type == r.type
    forward = _dot(tangents, c.weights, f)
    one_by_one = []
    for i, direction in enumerate(_constants(c.t)):
        alone = [direction if k == i else None for k in range(len(c.moving))]
        one_by_one.append(_dot(push(c.results, c.moving, alone), c.weights, f))
    got, reverse, *rest = c.values([forward, _weighted(gradient, c.t), *one_by_one, *gradient])
    parts, found = rest[: len(c.moving)], rest[len(c.moving) :]
    scale = sum(float(np.abs(g * t).sum()) for g, t in zip(found, c.t))
    _agree(c.name, "forward and reverse", got, reverse, scale, 1e-11)
    _agree(c.name, "the sum over the operands", sum(parts), got, scale, 1e-11)
    slope = c.line(f, c.t)
    _agree(c.name, "forward and differences", got, slope, scale + c.noise / 1e-6, 1e-6)
    return f, gradient, forward


def _check_second_order(c: _Case, f: Any, gradient: Sequence[Any], forward: Any) -> None:
    """H u by forward over reverse, reverse over reverse and reverse over forward; t H u by push of
    push and by differences of the first push."""
    over_reverse = c.push(gradient, c.u)
    reverse_twice = gradients(_weighted(gradient, c.u), c.moving, unreachable="zeros")
    reverse_of_push = gradients(
        _dot(c.push(c.results, c.u), c.weights, f), c.moving, unreachable="zeros"
    )
    twice = _dot(c.push([forward], c.u), [np.ones(())], f)
    known = [g for g in over_reverse if g is not None]
    got, *rest = c.values([twice, *known, *reverse_twice, *reverse_of_push])
    given = iter(rest[: len(known)])
    fr = [np.zeros(x.shape) if g is None else next(given) for g, x in zip(over_reverse, c.moving)]
    rest = rest[len(known) :]
    rr, rf = rest[: len(c.moving)], rest[len(c.moving) :]
    scale = sum(float(np.abs(h * t).sum()) for h, t in zip(rr, c.t))
    for a, b, d in zip(fr, rr, rf, strict=True):
        size = float(np.max(np.abs(b), initial=1.0))
        _agree(c.name, "forward over reverse and reverse over reverse", a, b, size, 1e-9)
        _agree(c.name, "reverse over forward and reverse over reverse", d, b, size, 1e-9)
    expected = sum(float((h * t).sum()) for h, t in zip(rr, c.t))
    _agree(c.name, "push of push and reverse of reverse", got, expected, scale + 1.0, 1e-9)
    slope = c.line(forward, c.u)
    _agree(c.name, "push of push and differences", got, slope, scale + c.noise / 1e-6, 1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_forward_agrees_with_reverse_and_with_differences(name: str) -> None:
    op = registry.get(name)
    samples = _samples(op)
    assert samples, f"{name} has no differentiable float64 sample"
    for number, sample in enumerate(samples):
        case = _Case(op, sample, number)
        _check_second_order(case, *_check_first_order(case))


@pytest.mark.parametrize("name", MOVING)
def test_tangents_have_the_types_of_the_results(name: str) -> None:
    """Over all samples: also of float32, with integers beside floats, empty and special ones."""
    op = registry.get(name)
    assert isinstance(op.jvp, NotDifferentiable) == isinstance(op.vjp, NotDifferentiable)
    for sample in op.samples():
        inputs = declared(arrays_of(sample))
        results = make(name, inputs, sample.attrs).results
        moving = [x for x in inputs if x.dtype.is_float]
        found = push(results, moving, [sg.ones_like(x) for x in moving])
        for r, t in zip(results, found, strict=True):
            if not r.dtype.is_float or isinstance(op.jvp, NotDifferentiable):
                assert t is None
            else:
                assert t is None or t.type == r.type


@pytest.mark.parametrize("name", [n for n in SMOOTH if "elementwise" in registry.get(n).traits])
def test_symbolic_sizes_give_the_same_tangents(name: str) -> None:
    for sample in _samples(registry.get(name))[:2]:
        arrays = arrays_of(sample)
        found = []
        for symbolic in (False, True):
            inputs = declared(arrays, symbolic=symbolic)
            (y,) = make(name, inputs, sample.attrs).results
            moving = [x for x in inputs if x.dtype.is_float]
            (t,) = push([y], moving, [sg.ones_like(x) for x in moving])
            found.append(evaluate([t], inputs, arrays)[0])
        np.testing.assert_array_equal(*found)


# --- what `push` itself does ----------------------------------------------------------------------


def test_a_program_compiles_with_its_tangents() -> None:
    x, v = sg.input("x", ("N", 3), "float64"), sg.input("v", ("N", 3), "float64")
    w = sg.constant(np.arange(6.0).reshape(2, 3))
    y = sg.softmax(sg.tanh(x * 2.0 + w[0]), axis=-1)
    (t,) = push([y], [x], [v])
    program = compile_graph(Graph([x, v], [y, t]))
    rng = np.random.default_rng(0)
    at, along = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))

    def f(a: Array) -> Array:
        e = np.exp(np.tanh(a * 2 + [0.0, 1.0, 2.0]))
        return e / e.sum(axis=-1, keepdims=True)

    got_y, got_t = program(at, along)
    np.testing.assert_allclose(got_y, f(at), 1e-12)
    h = 1e-5
    np.testing.assert_allclose(got_t, (f(at + h * along) - f(at - h * along)) / (2 * h), atol=1e-9)


def test_integers_cut_the_path_and_have_no_tangent() -> None:
    x = sg.input("x", (4,))
    index = sg.argmax(x)
    back = sg.astype(index, "float32") * 2.0
    assert push([index, back, x > 0.0], [x], [sg.ones_like(x)]) == [None, None, None]


def test_stopped_and_unreached_outputs_have_no_tangent() -> None:
    x, other = sg.input("x", (4,)), sg.input("other", (4,))
    stopped = sg.stop_gradient(x) * 3.0
    assert push([stopped, other, other * 2.0], [x], [sg.ones_like(x)]) == [None, None, None]
    mixed = sg.stop_gradient(x) * x
    (t,) = push([mixed], [x], [sg.ones_like(x)])
    assert evaluate([t], [x], [np.arange(4, dtype="float32")])[0].tolist() == [0, 1, 2, 3]


def test_a_tangent_of_none_is_zero_and_makes_no_node() -> None:
    x, y = sg.input("x", (3,)), sg.input("y", (3,))
    assert push([x * y], [x, y], [None, None]) == [None]
    (t,) = push([x * y], [x, y], [None, sg.ones_like(y)])
    got = evaluate(
        [t], [x, y], [np.arange(1, 4, dtype="float32"), np.arange(4, 7, dtype="float32")]
    )[0]
    assert got.tolist() == [1, 2, 3]


def test_an_output_may_be_what_moves() -> None:
    x = sg.input("x", (3,))
    v = sg.ones_like(x)
    assert push([x], [x], [v])[0] is v


def test_a_value_in_the_middle_moves_by_what_arrives_and_by_its_own_tangent() -> None:
    """The transpose of reverse mode, which gives total derivatives by both."""
    x = sg.input("x", (), "float64")
    y = x * 3.0
    z = y * y
    gx, gy = gradients(z, [x, y])
    (t,) = push([z], [x, y], [sg.constant(np.float64(0.5)), sg.constant(np.float64(0.25))])
    got, a, b = evaluate([t, gx, gy], [x], [np.float64(2.0)])
    assert got == 0.5 * a + 0.25 * b == 12 * (3 * 0.5 + 0.25)


def test_the_tangent_of_a_smaller_operand_is_broadcast_to_the_result() -> None:
    x, y = sg.input("x", ("N", 1)), sg.input("y", (3,))
    (t,) = push([x + y], [y], [sg.ones_like(y)])
    assert t is not None and t.type == (x + y).type
    got = evaluate([t], [x, y], [np.zeros((2, 1), "float32"), np.zeros(3, "float32")])[0]
    assert got.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_tangents_carry_the_lines_of_what_they_are_the_tangent_of() -> None:
    x = sg.input("x", (3,))
    y = sg.exp(x)
    (t,) = push([y], [x], [sg.ones_like(x)])
    assert t is not None and t.node.locs == y.node.locs


def test_a_long_chain_needs_no_recursion() -> None:
    x = sg.input("x", (), "float64")
    y = x
    for _ in range(5000):
        y = y * 1.0
    (t,) = push([y], [x], [sg.constant(np.float64(2.0))])
    assert evaluate([t], [x], [np.float64(1.0)])[0] == 2.0


def test_only_what_moves_is_walked() -> None:
    x, y = sg.input("x", (3,)), sg.input("y", (3,))
    still = sg.exp(y) * sg.sin(y)
    (t,) = push([x + still], [x], [sg.ones_like(x)])
    assert t is not None
    assert not {"exp", "sin", "cos"} & {n.op for n in reachable([t])}


def test_wrong_tangents_are_refused() -> None:
    x, n = sg.input("x", ("N", 3)), sg.input("n", (3,), "int64")
    with pytest.raises(sg.DifferentiationError, match=r"float32\[3\].*float32\[N, 3\]"):
        push([x], [x], [sg.ones((3,))])
    with pytest.raises(sg.DifferentiationError, match="float64"):
        push([x], [x], [sg.ones(("N", 3), dtype="float64")])
    with pytest.raises(sg.DifferentiationError, match="not floating"):
        push([x], [n], [sg.ones((3,))])
    assert push([n + 1], [n], [None]) == [None]


# --- single rules ---------------------------------------------------------------------------------


def test_a_conversion_converts_the_tangent() -> None:
    x, v = sg.input("x", (3,)), sg.input("v", (3,))
    wide = sg.astype(x, "float64")
    y = sg.astype(wide * wide, "float32")
    found = push([wide, y, sg.astype(x, "int32")], [x], [v])
    assert [None if t is None else str(t.type) for t in found] == ["float64[3]", "float32[3]", None]
    at, along = np.array([1, 2, 3], "float32"), np.array([0.5, -1, 2], "float32")
    got = evaluate(found[:2], [x, v], [at, along])
    assert got[0].tolist() == along.tolist() and got[1].tolist() == (2 * at * along).tolist()


def test_logsumexp_of_minus_infinity_has_a_finite_tangent() -> None:
    x = sg.input("x", (2, 2), "float64")
    (t,) = push([sg.logsumexp(x, axis=1)], [x], [sg.ones_like(x)])
    at = np.array([[-np.inf, -np.inf], [-np.inf, 1.0]])
    assert evaluate([t], [x], [at])[0].tolist() == [0.0, 1.0]
