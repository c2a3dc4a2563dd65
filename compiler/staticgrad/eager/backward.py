"""`backward` and `grad`: checks around the walk back along the tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DifferentiationError
from staticgrad.ops.convert import to_array
from staticgrad.ops.public import public

from .tape import Leaf, walk
from .tensor import Tensor

_WHY = (
    "it was computed from tensors that require none, or under no_grad(), or it is a new tensor: "
    "`p = p - lr * p.grad` under no_grad() makes p one that is no leaf with a gradient any more, "
    "where `p -= lr * p.grad` changes p itself. Leaves say requires_grad=True"
)


def _seed(root: Tensor, gradient: Any, create: bool) -> Any:
    """The cotangent of a root: an array, or a tensor if the walk is recorded."""
    if not isinstance(root, Tensor):
        raise ArgumentTypeError(f"backward: expected an eager tensor, got {root!r}")
    if root._node is None:
        raise DifferentiationError(
            f"backward: this tensor ({root.type}) does not require a gradient, so the tape has "
            f"nothing about it: {_WHY}"
        )
    if gradient is None:
        if root._array.size != 1:
            raise DifferentiationError(
                "backward: a gradient can be begun without an argument for scalars only, this "
                f"tensor is {root.type}; reduce it with .sum() or .mean(), or pass gradient="
            )
        array = np.ones(root._sig.shape, root._sig.numpy_dtype)
        return Tensor(array) if create else array
    if not isinstance(gradient, Tensor):
        gradient = Tensor(np.array(to_array(gradient, root._sig.dtype), order="C"))
    if gradient._sig is not root._sig:
        raise DifferentiationError(
            f"backward: the gradient has type {gradient.type}, the tensor {root.type}"
        )
    return gradient if create else gradient._array


def _seeds(roots: Sequence[Tensor], gradients: Any, create: bool) -> list[Any]:
    if gradients is None:
        gradients = [None] * len(roots)
    if len(gradients) != len(roots):
        raise ArgumentError(f"{len(gradients)} gradients were given for {len(roots)} tensors")
    return [_seed(t, g, create) for t, g in zip(roots, gradients)]


def run_backward(
    roots: Sequence[Tensor], gradients: Any, retain_graph: bool | None, create_graph: bool,
    inputs: Any = None,
) -> None:  # fmt: skip
    """`Tensor.backward` for several tensors."""
    keep = create_graph if retain_graph is None else retain_graph
    seeds = _seeds(roots, gradients, create_graph)
    if inputs is None:
        walk(roots, seeds, create=create_graph, keep=keep)
        return
    chosen = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    edges = [_edge(t, "backward") for t in chosen]
    found = walk(roots, seeds, create=create_graph, keep=keep, targets=edges)
    for t, edge, ct in zip(chosen, edges, found):
        if not isinstance(edge, Leaf):
            raise DifferentiationError(f"backward: inputs must be leaves, got {t.type}")
        if ct is not None:
            edge.accumulate(ct, create_graph, False)


def _edge(t: Any, what: str) -> Any:
    from .parameters import eager_of

    t = eager_of(t, what)
    if t._node is None:
        raise DifferentiationError(
            f"{what}: one of the tensors to differentiate by ({t.type}) does not require a "
            "gradient; say requires_grad=True before it is used"
        )
    return t._node


@public
def grad(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None,
    create_graph: bool = False, allow_unused: bool | None = None, materialize_grads: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """The gradients of the sum of `outputs` by `inputs`, as a tuple; nothing is added to `.grad`.

    `grad_outputs` weigh the outputs, as `backward`'s gradient does. `create_graph` records the
    pass. An input on which the outputs do not depend is an error, or None with `allow_unused`, or
    zeros with `materialize_grads`.
    """
    roots = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    wrt = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    weights = grad_outputs
    if weights is not None and not isinstance(weights, (list, tuple)):
        weights = [weights]
    keep = create_graph if retain_graph is None else retain_graph
    edges = [_edge(t, "grad") for t in wrt]
    seeds = _seeds(roots, weights, create_graph)
    found = walk(roots, seeds, create=create_graph, keep=keep, targets=edges)
    results: list[Any] = []
    for t, ct in zip(wrt, found):
        if ct is None and not (allow_unused or materialize_grads):
            raise DifferentiationError(
                f"grad: the outputs do not depend on the input of type {t.type}; pass "
                "allow_unused=True to get None for it"
            )
        if ct is None:
            zeros = materialize_grads and np.zeros(t.shape, t.dtype.numpy)
            results.append(Tensor(zeros) if zeros is not False else None)
        else:
            results.append(ct if create_graph else Tensor(ct.copy()))
    return tuple(results)


__all__ = ["grad", "run_backward"]
