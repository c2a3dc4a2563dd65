"""Samples of the nodes that hold sub-graphs: small bodies in which every kind of input is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dtype import int64
from staticgrad.ir.graph import Graph
from staticgrad.ir.types import TensorType

from .closing import placeholders
from .registry import Sample
from .samples import FLOATS, random_array

_INDEX = TensorType(int64, ())


def _type(a: np.ndarray[Any, Any]) -> TensorType:
    from staticgrad.ir.dtype import dtype

    return TensorType(dtype(a.dtype), a.shape)


def scans() -> list[Sample]:
    """h, n = tanh(h * w + x), n + i; y = (h * x, h): forwards, backwards, of length 0."""
    from .convert import astype
    from .trigonometric import tanh

    found = []
    for dtype in FLOATS:
        for length, reverse, remat in ((4, False, False), (3, True, True), (0, False, False)):
            h, w = random_array((5,), dtype, 1), random_array((5,), dtype, 2)
            x, n = random_array((length, 5), dtype, 3), np.array(2, "int64")
            types = [_INDEX, _type(h), _type(n), _type(x[0] if length else h), _type(w)]
            i, c, count, row, weight = inputs = placeholders("v", types)
            new = tanh(c * weight + row) + astype(i, dtype) * 0.125
            body = Graph(inputs, [new, count + i, new * row, c])
            attrs = {
                "body": body, "length": length, "carries": 2, "xs": 1, "reverse": reverse,
                "remat": remat,
            }  # fmt: skip
            found.append(Sample((h, n, x, w), attrs))
    return found


def whiles() -> list[Sample]:
    """x = x * w while sum(x) < bound: several steps, and none. Reverse mode refuses them."""
    from .reduction import sum as reduce_sum

    found = []
    for dtype in FLOATS:
        for bound in (50.0, -1.0):
            x, w = np.abs(random_array((3,), dtype, 1)) + 1, np.array(1.5, dtype)
            limit = np.array(bound, dtype)
            test = placeholders("v", [_INDEX, _type(x), _type(limit)])
            inputs = placeholders("v", [_INDEX, _type(x), _type(w)])
            attrs = {
                "condition": Graph(test, [reduce_sum(test[1]) < test[2]]),
                "body": Graph(inputs, [inputs[1] * inputs[2]]), "carries": 1,
                "condition_captures": 1,
            }  # fmt: skip
            found.append(Sample((x, limit, w), attrs, differentiable=False))
    return found


def _branch(dtype: str, function: Any) -> Graph:
    inputs = placeholders("v", [_type(random_array((4,), dtype, s)) for s in (1, 2)])
    return Graph(inputs, function(*inputs))


def conds() -> list[Sample]:
    found = []
    for dtype in FLOATS:
        attrs = {
            "true": _branch(dtype, lambda a, b: [a * b, a]),
            "false": _branch(dtype, lambda a, b: [a - b * b, b * 2.0]),
        }
        a, b = random_array((4,), dtype, 1), random_array((4,), dtype, 2)
        found += [Sample((np.array(p), a, b), attrs) for p in (True, False)]
    return found


def switches() -> list[Sample]:
    """Indices beyond both ends too."""
    found = []
    for dtype in FLOATS:
        attrs = {
            "case0": _branch(dtype, lambda a, b: [a]),
            "case1": _branch(dtype, lambda a, b: [a * b]),
            "case2": _branch(dtype, lambda a, b: [b * b]),
        }
        a, b = random_array((4,), dtype, 1), random_array((4,), dtype, 2)
        found += [Sample((np.array(i, "int64"), a, b), attrs) for i in (-3, 0, 1, 2, 9)]
    return found


def checkpoints() -> list[Sample]:
    from .trigonometric import sin

    found = []
    for dtype in FLOATS:
        a, b = random_array((4,), dtype, 1), random_array((4,), dtype, 2)
        body = _branch(dtype, lambda a, b: [sin(a) * b, sin(a)])
        found.append(Sample((a, b), {"body": body}))
    return found
