"""stabilize: formulas that lose digits, overflow or underflow -> forms that do not.

before -> after

    %1 = softmax(%0){axes=(1)}              %2 = log_softmax(%0){axes=(1)}
    %2 = log(%1)

    %4 = divide(%ct, %1)                    (gone: the gradient is
    %5 = multiply(%4, %1)                    ct - softmax(x) * sum(ct))

Gradients were built from the form that was written, before this pass runs; so their quotients are
cancelled too (`rewrite.products`), and d/dx log(softmax(x)) is right where softmax underflows.

Each rule is an identity of the reals. Defining: results are rounded less, and are finite where the
written form is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.node import Node, Value
from staticgrad.rewrite.driver import Rule, rewrite, rule_table
from staticgrad.rewrite.pattern import Numbering, fitted, make, number, numbered
from staticgrad.rewrite.products import (
    Cancelling,
    gather,
    hoisted,
    is_one_plus_exp,
    scaled,
    split_scale,
    sum_of_exp,
    total,
)

Found = Sequence[Value] | None

# Without one of these no rule applies.
_SOURCES = frozenset(("erf", "exp", "log", "log1p", "log_softmax", "logsumexp", "sigmoid",
                      "softmax", "sqrt"))  # fmt: skip


def stabilize(graph: Graph) -> Graph:
    if not any(n.op in _SOURCES or subgraphs(n) for n in graph.nodes):
        return graph
    numbering = Numbering()
    return rewrite(graph, numbered(numbering, rule_table(_rules(numbering))))


def _rules(numbering: Numbering) -> Callable[[str], list[Rule]]:
    with_equality = _WithEquality(numbering)
    own: dict[str, list[Rule]] = {
        "log": [_log_softmax, _log_sigmoid, _logsumexp, _log_of_exp, _softplus, _logaddexp, _log1p],
        "log1p": [_log1p_of_exp, _log1p_of_sigmoid],
        "add": [_expm1, _erfc_of_sum],
        "subtract": [_one_minus, with_equality.all_but_share],
        "sqrt": [_sqrt_of_square],
        "multiply": [with_equality.quotient],
        "divide": [with_equality.quotient],
        "reciprocal": [with_equality.quotient],
        "sum": [with_equality.hoist],
        "softmax": [with_equality.shifted],
        "log_softmax": [with_equality.shifted],
    }
    return lambda op: own.get(op, [])


def minus(x: Value) -> Value:
    """-x in the canonical form."""
    y, c = split_scale(x)
    return scaled(y, -c)


# --- log ------------------------------------------------------------------------------------------


def _log_softmax(node: Node) -> Found:
    """log(softmax(x)) -> log_softmax(x)"""
    inner = node.operands[0].node
    if inner.op != "softmax":
        return None
    return [make("log_softmax", inner.operands[0], axes=inner.attrs["axes"])]


def _log_sigmoid(node: Node) -> Found:
    """log(sigmoid(x)) -> negative(softplus(-x))"""
    inner = node.operands[0].node
    if inner.op != "sigmoid":
        return None
    return [make("negative", make("softplus", minus(inner.operands[0])))]


def _logsumexp(node: Node) -> Found:
    """log(sum(exp(x))) -> logsumexp(x)"""
    x = sum_of_exp(node.operands[0])
    return None if x is None else [make("logsumexp", x, **node.operands[0].node.attrs)]


def _log_of_exp(node: Node) -> Found:
    """log(exp(x)) -> x"""
    inner = node.operands[0].node
    return [inner.operands[0]] if inner.op == "exp" else None


def _softplus(node: Node) -> Found:
    """log(add(exp(x), 1.0)) -> softplus(x)"""
    if not is_one_plus_exp(node.operands[0]):
        return None
    return fitted(make("softplus", node.operands[0].node.operands[0].node.operands[0]), node)


def _logaddexp(node: Node) -> Found:
    """log(add(exp(x), exp(y))) -> logaddexp(x, y)"""
    inner = node.operands[0].node
    if inner.op != "add" or any(v.node.op != "exp" for v in inner.operands):
        return None
    return [make("logaddexp", *(v.node.operands[0] for v in inner.operands))]


def _log1p(node: Node) -> Found:
    """log(add(x, 1.0)) -> log1p(x); log(subtract(1.0, x)) -> log1p(-x)"""
    inner = node.operands[0].node
    if inner.op == "add" and number(inner.operands[1]) == 1:
        return fitted(make("log1p", inner.operands[0]), node)
    if inner.op == "subtract" and number(inner.operands[0]) == 1:
        return fitted(make("log1p", minus(inner.operands[1])), node)
    return None


def _log1p_of_exp(node: Node) -> Found:
    """log1p(exp(x)) -> softplus(x); log1p(expm1(x)) -> x"""
    inner = node.operands[0].node
    if inner.op == "exp":
        return [make("softplus", inner.operands[0])]
    return [inner.operands[0]] if inner.op == "expm1" else None


def _log1p_of_sigmoid(node: Node) -> Found:
    """log1p(negative(sigmoid(x))) -> negative(softplus(x))"""
    inner = node.operands[0].node
    if inner.op != "negative" or inner.operands[0].node.op != "sigmoid":
        return None
    return [make("negative", make("softplus", inner.operands[0].node.operands[0]))]


# --- differences ----------------------------------------------------------------------------------


def _expm1(node: Node) -> Found:
    """add(exp(x), -1.0) -> expm1(x)"""
    x, one = node.operands
    if x.node.op != "exp" or number(one) != -1:
        return None
    return fitted(make("expm1", x.node.operands[0]), node)


def _erfc_of_sum(node: Node) -> Found:
    """add(erf(x), 1.0) -> erfc(-x)"""
    x, one = node.operands
    if x.node.op != "erf" or number(one) != 1:
        return None
    return fitted(make("erfc", minus(x.node.operands[0])), node)


def _one_minus(node: Node) -> Found:
    """subtract(1.0, sigmoid(x)) -> sigmoid(-x); subtract(1.0, exp(x)) -> negative(expm1(x));
    subtract(1.0, erf(x)) -> erfc(x)"""
    one, x = node.operands
    if number(one) != 1:
        return None
    inner = x.node
    if inner.op == "sigmoid":
        return fitted(make("sigmoid", minus(inner.operands[0])), node)
    if inner.op == "exp":
        return fitted(make("negative", make("expm1", inner.operands[0])), node)
    return fitted(make("erfc", inner.operands[0]), node) if inner.op == "erf" else None


def _sqrt_of_square(node: Node) -> Found:
    """sqrt(square(x)) -> abs(x)"""
    inner = node.operands[0].node
    return [make("abs", inner.operands[0])] if inner.op == "square" else None


# --- quotients, softmax ---------------------------------------------------------------------------


class _WithEquality:
    """The rules that ask whether two values are equal."""

    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering
        self.cancelling = Cancelling(numbering)

    def quotient(self, node: Node) -> Found:
        """divide(exp(x), sum(exp(x))) -> softmax(x); multiply(divide(ct, softmax), softmax) -> ct;
        multiply(y, subtract(divide(ct, y), t)) -> subtract(ct, multiply(y, t)); and so on"""
        v = node.results[0]
        if not v.dtype.is_float:
            return None
        factors = gather(v)
        reduced = self.cancelling.reduced(factors)
        if reduced is not None:
            return fitted(reduced.built(v), node)
        terms = self.cancelling.distributed(factors)
        return None if terms is None else fitted(total(terms, v), node)

    def all_but_share(self, node: Node) -> Found:
        """subtract(p, multiply(p, sigmoid(x))) -> multiply(p, sigmoid(-x))"""
        p, b = node.operands
        inner = b.node
        if inner.op not in ("multiply", "square"):
            return None
        first, last = inner.operands[0], inner.operands[-1]
        for share, rest in ((first, last), (last, first)):
            if share.node.op == "sigmoid" and self.numbering.same(rest, p):
                left = make("sigmoid", minus(share.node.operands[0]))
                return fitted(make("multiply", p, left), node)
        return None

    def hoist(self, node: Node) -> Found:
        """sum(divide(a, sum(exp(x)))) -> divide(sum(a), sum(exp(x)))"""
        if not node.types[0].dtype.is_float:
            return None
        found = hoisted(node, self.numbering)
        return None if found is None else [found]

    def shifted(self, node: Node) -> Found:
        """softmax(subtract(x, max(x))) -> softmax(x), which subtracts the maximum itself"""
        inner = node.operands[0].node
        if inner.op != "subtract":
            return None
        x, m = inner.operands
        if m.node.op == "stop_gradient":
            m = m.node.operands[0]
        axes = node.attrs["axes"]
        if m.node.op != "max" or m.node.attrs != {"axes": axes, "keepdims": True}:
            return None
        if not self.numbering.same(m.node.operands[0], x):
            return None
        return [make(node.op, x, axes=axes)]


__all__ = ["minus", "stabilize"]
