"""A cross entropy stores no logarithm of a probability that nobody asks for: its label's element is
picked first, and its gradient is computed with the rows that it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ops.indexing import pick_along
from staticgrad.passes.expand import expand
from staticgrad.passes.simplify import simplify
from staticgrad_runtime.errors import ExecutionError

F = sg.nn.functional
Array = np.ndarray[Any, Any]
ROWS, CLASSES = 12, 3000
WHOLE = ROWS * CLASSES * 4  # bytes of the logits


def _logits(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def _labels(*shape: int, classes: int = CLASSES) -> Array:
    return np.random.default_rng(1).integers(0, classes, shape)


def _kernels(program: Any) -> list[list[str]]:
    return [k["nodes"] for k in program.report().to_dict()["kernels"]]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "ignored": {"ignore_index": 5},
    "smoothed": {"label_smoothing": 0.1},
    "weighted": {"weight": True},
    "all": {"weight": True, "label_smoothing": 0.1, "ignore_index": 5},
}


def _loss(x: Any, y: Any, w: Any, **options: Any) -> Any:
    if options.pop("weight", False):
        options["weight"] = w
    return F.cross_entropy(x, y, **options)


def _oracle(x: Array, y: Array, w: Array, **options: Any) -> tuple[float, Array]:
    """The loss and its gradient in float64."""
    z = x.astype("f8")
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    weight = w.astype("f8") if options.get("weight") else np.ones(x.shape[1])
    e = options.get("label_smoothing", 0.0)
    target = (np.arange(x.shape[1]) == y[:, None]) * (1 - e) + e / x.shape[1]
    counted = y != options.get("ignore_index", -100)
    target = target * weight * counted[:, None]
    total = 1.0 if options.get("reduction") == "sum" else (weight[y] * counted).sum()
    loss = -(target * np.log(p)).sum() / total
    return float(loss), (p * target.sum(1, keepdims=True) - target) / total


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_cross_entropy_and_its_gradient_hold_no_rows(name: str, symbolic: bool) -> None:
    options = OPTIONS[name]
    a, labels = _logits(ROWS, CLASSES), _labels(ROWS)
    labels[3] = 5
    weights = np.random.default_rng(2).random(CLASSES).astype("f4")
    x = sg.input("x", ("N" if symbolic else ROWS, CLASSES))
    y = sg.input("y", (x.shape[0],), dtype="int64")
    w = sg.input("w", (CLASSES,))
    loss = _loss(x, y, w, **options)
    forward = sg.compile([x, y, w], loss)
    both = sg.compile([x, y, w], [loss, *sg.gradients(loss, [x])])
    want, want_gradient = _oracle(a, labels, weights, **options)
    found, gradient = both(a, labels, weights)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-7)
    assert forward(a, labels, weights).tobytes() == found.tobytes()
    for program in (forward, both):
        if not symbolic:
            assert program.report().to_dict()["peak_bytes"] < WHOLE / 10
        assert sum("exp" in k for k in _kernels(program)) == 1
        if not symbolic:  # the logits are read once, and the gradient is written once
            moved = sum(k["bytes"] for k in program.report().to_dict()["kernels"])
            assert moved < (1.2 if program is forward else 2.2) * WHOLE


@pytest.mark.parametrize("name", ["plain", "all"])
def test_bits_do_not_depend_on_passes_or_threads(name: str) -> None:
    a, labels = _logits(ROWS, CLASSES), _labels(ROWS)
    weights = np.random.default_rng(2).random(CLASSES).astype("f4")
    x, y = sg.input("x", a.shape), sg.input("y", (ROWS,), dtype="int64")
    w = sg.input("w", (CLASSES,))
    loss = _loss(x, y, w, **OPTIONS[name])
    outputs = [loss, *sg.gradients(loss, [x])]
    variants: list[dict[str, Any]] = [
        {"threads": 1}, {"threads": 3}, {"disable": ("fuse",)}, {"disable": ("in_place", "cse")},
    ]  # fmt: skip
    found = [
        [v.tobytes() for v in sg.compile([x, y, w], outputs, **o)(a, labels, weights)]
        for o in variants
    ]
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize(
    "build", [F.log_softmax, F.softmax, lambda x, axis: x - sg.max(x, axis=axis, keepdims=True)]
)
@pytest.mark.parametrize("axis", [1, 2])
def test_a_picked_element_has_the_bits_of_its_row(build: Any, axis: int) -> None:
    """Also of an axis that is not the last, and of what is computed from the input first."""
    a = _logits(3, 70, 50)
    index = np.expand_dims(
        _labels(3, *(n for i, n in enumerate(a.shape[1:], 1) if i != axis), classes=a.shape[axis]),
        axis,
    )
    x, i = sg.input("x", a.shape), sg.input("i", index.shape, dtype="int64")
    rows = build(sg.tanh(x) * 3.0, axis=axis)
    whole = sg.compile([x], rows)(a)
    program = sg.compile([x, i], pick_along(rows, i, axis))
    assert program(a, index).tobytes() == np.take_along_axis(whole, index, axis).tobytes()
    together = sg.compile([x, i], [pick_along(rows, i, axis), rows])
    picked, whole_again = together(a, index)
    assert picked.tobytes() == np.take_along_axis(whole, index, axis).tobytes()
    assert whole_again.tobytes() == whole.tobytes()


def test_a_label_out_of_range_fails_as_before() -> None:
    x, y = sg.input("x", ("N", CLASSES)), sg.input("y", ("N",), dtype="int64")
    loss = F.cross_entropy(x, y)
    program = sg.compile([x, y], [loss, *sg.gradients(loss, [x])])
    labels = _labels(ROWS)
    labels[4] = CLASSES
    with pytest.raises(ExecutionError, match=f"label {CLASSES}: the input has {CLASSES} classes"):
        program(_logits(ROWS, CLASSES), labels)


def _gather_reads(outputs: Any, inputs: list[Any]) -> str:
    """The operation whose result the gather reads."""
    graph = simplify(expand(sg.Graph(inputs, outputs)))
    (node,) = (n for n in graph.nodes if n.op == "gather")
    return node.operands[0].node.op


def test_only_what_is_in_memory_anyway_is_picked_from() -> None:
    """Rows that are reduced, or an input; else a product would be stored beside its multiple."""
    x, w = sg.input("x", (ROWS, 8)), sg.input("w", (8, CLASSES))
    i = sg.input("i", (ROWS, 1), dtype="int64")
    scaled = sg.matmul(x, w) * 2.0
    assert _gather_reads([pick_along(scaled, i, 1)], [x, w, i]) == "multiply"
    shifted = scaled - sg.max(scaled, axis=1, keepdims=True)
    assert _gather_reads([pick_along(shifted, i, 1)], [x, w, i]) == "multiply"
    other = scaled - sg.sum(x, axis=1, keepdims=True)
    assert _gather_reads([pick_along(other, i, 1)], [x, w, i]) == "subtract"
    z = sg.input("z", (ROWS, CLASSES))
    picked = pick_along(F.softmax(sg.tanh(z), axis=1), i, 1)
    assert _gather_reads([picked], [z, i]) == "input"
    many = sg.input("many", (ROWS, 4), dtype="int64")
    assert _gather_reads([pick_along(F.softmax(z, axis=1), many, 1)], [z, many]) == "multiply"


def test_rows_that_wait_for_each_other_are_not_joined() -> None:
    """Each of two sweeps reads rows of one kernel and a sum of the other's: both can't join."""
    a, b = _logits(ROWS, 300), _logits(ROWS, 300, seed=5)
    x, y = sg.input("x", a.shape), sg.input("y", b.shape)
    p, q = (F.softmax(v, axis=1) for v in (x, y))
    sp, sq = (sg.sum(v * v, axis=1, keepdims=True) for v in (p, q))
    of_p, of_q = p * sg.exp(sq) + 1.0, q * sg.exp(sp) - 1.0
    program = sg.compile([x, y], [of_p, of_q])
    plain = sg.compile([x, y], [of_p, of_q], disable=["fuse"])
    assert [v.tobytes() for v in program(a, b)] == [v.tobytes() for v in plain(a, b)]

    def softmax(v: Array) -> Array:
        e = np.exp(v.astype("f8"))
        return e / e.sum(1, keepdims=True)

    sums = [(softmax(v) ** 2).sum(1, keepdims=True) for v in (a, b)]
    np.testing.assert_allclose(program(a, b)[0], softmax(a) * np.exp(sums[1]) + 1, rtol=1e-5)
    np.testing.assert_allclose(program(a, b)[1], softmax(b) * np.exp(sums[0]) - 1, rtol=1e-5)
