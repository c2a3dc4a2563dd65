"""Rules of `simplify` about the gradient of max pooling, which has a window's cotangent in one
place: what is done to all elements of the plane is done to one an output instead."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from staticgrad.ir.dim import DimLike, Shape, product
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Node, Value
from staticgrad.ops.pooled_conv import Planes, planes_of
from staticgrad.ops.pooling_kernels import UNROLLED
from staticgrad.rewrite.driver import rewrite, rule_table
from staticgrad.rewrite.pattern import Numbering, constant_of, make, number

Found = Sequence[Value] | None

MOST_TAPS = 28  # accumulators in 32 registers


class Pools:
    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering

    def relu_before(self, node: Node) -> Found:
        """where(greater(x, 0), max_pool_grad(relu(x), ct), 0) -> max_pool_grad(relu(x),
        where(greater(max_pool(relu(x)), 0), ct, 0))

        An element of a positive maximum is the maximum. Of 64 x 16 planes of 28 x 28, a mask of
        800 kB and a sweep over 6 MB are gone, and x with them.
        """
        condition, pooled, zero = node.operands
        grad, greater = pooled.node, condition.node
        if grad.op != "max_pool_grad" or greater.op != "greater" or number(zero) != 0:
            return None
        source, ct = grad.operands
        if source.node.op != "relu" or number(greater.operands[1]) != 0:
            return None
        if not self.numbering.same(source.node.operands[0], greater.operands[0]):
            return None
        # Each plane of windows is one row, as rows of 14 or 7 leave vectors half empty; most of all
        # in the sum over them, the gradient of a bias ([64, 16, 14, 14]: 145 -> 47 us).
        rows = (*ct.shape[:2], product(ct.shape[2:]))
        maxima, arriving = (
            make("reshape", v, shape=rows) for v in (make("max_pool", source, **grad.attrs), ct)
        )
        bound, otherwise = (constant_of(number(v), v.dtype) for v in (greater.operands[1], zero))
        kept = make("where", make("greater", maxima, bound), arriving, otherwise)
        masked = make("reshape", kept, shape=ct.shape)
        return [make("max_pool_grad", source, masked, **grad.attrs)]


def weight_of_grad(node: Node) -> Found:
    """conv_grad_weight(x, max_pool_grad(z, ct)) -> conv_grad_weight_pooled(x, ct,
    max_pool_place(z)), where windows are apart: the zeros between the maxima are left out"""
    x, grad = node.operands
    planes = _planes(node, grad, x.shape[1], x.shape[2:], node.attrs["kernel"])
    if planes is None:
        return None
    place = make("max_pool_place", grad.node.operands[0], **grad.node.attrs, **planes.steps)
    return [make("conv_grad_weight_pooled", x, grad.node.operands[1], place,
                 kernel=node.attrs["kernel"], **_geometry(node, planes))]  # fmt: skip


def input_of_grad(node: Node) -> Found:
    """conv_grad_input(max_pool_grad(z, ct), w) -> conv_grad_input_pooled(ct, max_pool_place(z),
    w), likewise"""
    grad, w = node.operands
    planes = _planes(node, grad, w.shape[1], node.attrs["spatial"], w.shape[2:])
    if planes is None:
        return None
    place = make("max_pool_place", grad.node.operands[0], **grad.node.attrs, **planes.steps)
    return [make("conv_grad_input_pooled", grad.node.operands[1], place, w,
                 spatial=node.attrs["spatial"], **_geometry(node, planes))]  # fmt: skip


def _geometry(node: Node, planes: Planes) -> dict[str, Any]:
    shared = {name: node.attrs[name] for name in ("stride", "padding", "dilation")}
    return {**shared, "plane": planes.plane}


def _planes(
    node: Node, grad: Value, channels: DimLike, size: Shape, kernel: Shape
) -> Planes | None:
    """The planes that the gradient of a convolution goes over by windows; None where it is none of
    max pooling, or not faster so: windows have to be apart and of at least four elements, and their
    taps vectors of channels in registers."""
    if grad.node.op != "max_pool_grad" or node.attrs["groups"] != 1 or grad.ndim != 4:
        return None
    pool = grad.node.attrs
    apart = all(
        s >= d * (n - 1) + 1 for n, s, d in zip(pool["kernel"], pool["stride"], pool["dilation"])
    )
    if pool["ceil_mode"] or any(p for pair in pool["padding"] for p in pair) or not apart:
        return None
    known = (channels, grad.shape[1], *kernel)
    if not 4 <= prod(pool["kernel"]) <= UNROLLED or str(grad.dtype) not in ("float32", "float64"):
        return None
    if not all(isinstance(d, int) and d > 0 for d in known) or prod(map(int, kernel)) > MOST_TAPS:
        return None
    planes = planes_of(node.attrs, size, kernel, grad.shape[2:], channels)
    return planes if 4 * planes.image_channels >= 3 * planes.channels else None


class _Sums:
    """Knows the cotangents of convolutions, whose sums are gradients of biases."""

    def __init__(self, graph: Graph) -> None:
        products = [n for n in graph.nodes if n.op in _COTANGENT]
        self.cotangents = {n.operands[_COTANGENT[n.op]].node for n in products}

    def of_windows(self, node: Node) -> Found:
        """sum(max_pool_grad(x, ct)) over whole planes -> sum(ct), where every window has elements
        and the plane is a convolution's cotangent. (Behind a batch norm it is none: the gradient of
        a bias is rounding noise there, which another order of the sum would replace.)"""
        inner = node.operands[0].node
        axes = node.attrs["axes"]
        if inner.op != "max_pool_grad" or not {2, 3} <= set(axes):
            return None
        if inner.attrs["ceil_mode"] or any(p for pair in inner.attrs["padding"] for p in pair):
            return None
        if inner not in self.cotangents:
            return None
        ct = inner.operands[1]
        if ct.node.op != "reshape" or ct.node.operands[0].ndim != 3:
            return [make("sum", ct, **node.attrs)]
        # `relu_before` has made a row of each plane.
        axes = tuple(a for a in axes if a != 3)
        total = make("sum", ct.node.operands[0], axes=axes, keepdims=node.attrs["keepdims"])
        return [make("reshape", total, shape=node.types[0].shape)]


_COTANGENT = {"conv_grad_weight": 1, "conv_grad_input": 0}


def behind_convolutions(graph: Graph) -> Graph:
    """The rules for convolutions whose results are pooled: first the sums, which have to see what
    the cotangents of convolutions are, then the products."""
    if not any(n.op == "max_pool_grad" for n in graph.nodes):
        return graph
    sums = {"sum": [_Sums(graph).of_windows]}
    graph = rewrite(graph, rule_table(lambda op: sums.get(op, [])))
    products = {"conv_grad_weight": [weight_of_grad], "conv_grad_input": [input_of_grad]}
    return rewrite(graph, rule_table(lambda op: products.get(op, [])))
