"""Attention without the matrix of all scores: softmax(q k^T + mask) v, queries a block at a time.

The scores of a block of queries are whole rows, so the softmax is the plain one and each
element is computed by the operations, and in the order, of matmul, softmax, matmul. They lie in
memory of the thread's own that the next block uses again: what a program needs grows with L + S,
not with L * S. The gradients (of q, k, v; of an added mask) and the forward derivative
(`attention_tangent`) compute them once more; derivatives of these are of the plain formula. Where a
query sees only the keys up to its own place, products and sweeps end there: the keys behind weigh
exactly 0. The attribute `scale`, which the pass `simplify` sets (`passes/attention_scale.py`),
multiplies q, and the cotangent that comes back to it.

Source: Vaswani et al. 2017, arXiv 1706.03762; blocks and recomputation: Dao et al. 2022, arXiv
2205.14135, here with whole rows in place of the running maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, product
from staticgrad.ir.dtype import float32, int32, uint32, uint64
from staticgrad.ir.errors import DTypeError, ShapeError
from staticgrad.ir.types import TensorType

from .arithmetic import add
from .attention_gradients import emit_gradient, emit_mask_gradient
from .attention_kernels import BLOCK, block_of, emit_attention, scale_of
from .comparison import less
from .convert import astype, constant_array
from .creation import band, zeros_like
from .linalg import matmul
from .logical import bitwise_right_shift, logical_and
from .lowering import Custom
from .random import reference_bits
from .registry import (
    Attrs,
    BatchContext,
    Op,
    Sample,
    Tolerance,
    Types,
    apply,
    register,
    require_equal,
)
from .rules import in_front
from .samples import random_array
from .selection import where
from .shape import matrix_transpose, reshape
from .softmax import softmax
from .tensor import Tensor

SOURCE = "Vaswani et al. 2017, arXiv 1706.03762; Dao et al. 2022, arXiv 2205.14135"


def attention_weights(
    q: Tensor, k: Tensor, allowed: Tensor | None, added: Tensor | None, causal: bool
) -> Tensor:
    """softmax(q k^T + mask), all of it: [.., L, E], [.., S, E] -> [.., L, S]."""
    scores = matmul(q, matrix_transpose(k))
    if causal:
        seen = band(q.shape[-2], k.shape[-2], None, 0)
        allowed = seen if allowed is None else logical_and(allowed, seen)
    if added is not None:
        scores = add(scores, added)
    if allowed is not None:
        scores = where(allowed, scores, -math.inf)
    return softmax(scores, axis=-1)


def dropped(weights: Tensor, key: Tensor, p: float) -> Tensor:
    """Dropout of weights by an explicit key, uint64[.., 2], whose dims before the last are the
    first ones of the weights: `random.bernoulli`, with a draw for each key."""
    shape = weights.shape[key.ndim - 1 :]
    bits = apply("random_bits", key, site=0, shape=shape, dtype=uint32, word=0)
    unit = astype(astype(bitwise_right_shift(bits, 8), int32), float32) * 2.0**-24
    kept = less(unit, constant_array(np.asarray(1.0 - p, np.float32)))
    return where(kept, weights * (1.0 / (1.0 - p)), 0.0)


class Parts:
    """A node's operands by their parts."""

    def __init__(self, operands: Sequence[Any], attrs: Attrs) -> None:
        self.q, self.k, self.v, *rest = operands
        self.allowed = rest.pop(0) if attrs["allowed"] else None
        self.added = rest.pop(0) if attrs["added"] else None
        self.key = rest.pop(0) if attrs["dropout"] else None
        self.rest = rest  # of the gradient: the cotangent
        self.scale = scale_of(attrs)

    def times_scale(self, x: Any) -> Any:
        return x if self.scale == 1.0 else x * self.scale


# --- types ----------------------------------------------------------------------------------------


def infer_attention(types: Types, attrs: Attrs) -> Types:
    p = Parts(types, attrs)
    _check_operands(p.q, p.k, p.v)
    _check_masks(p)
    if p.key is not None:
        _check_key(p.key, p.q)
    return (TensorType(p.q.dtype, (*p.q.shape[:-1], p.v.shape[-1])),)


def _check_operands(q: TensorType, k: TensorType, v: TensorType) -> None:
    if not q.dtype.is_float or q.dtype != k.dtype or q.dtype != v.dtype:
        raise DTypeError(f"expected one floating dtype, got {q}, {k} and {v}")
    if min(q.ndim, k.ndim, v.ndim) < 2 or not q.ndim == k.ndim == v.ndim:
        raise ShapeError(f"expected at least 2 dims, as many for all, got {q}, {k} and {v}")
    for a, b, c in zip(q.shape[:-2], k.shape[:-2], v.shape[:-2]):
        require_equal(a, b, f"{q} and {k}: the batch's sizes")
        require_equal(a, c, f"{q} and {v}: the batch's sizes")
    require_equal(q.shape[-1], k.shape[-1], f"{q} and {k}: the widths of queries and keys")
    require_equal(k.shape[-2], v.shape[-2], f"{k} and {v}: the numbers of keys and values")


def _check_masks(p: Parts) -> None:
    q, scores = p.q, (*p.q.shape[:-1], p.k.shape[-2])
    if p.allowed is not None and p.allowed.dtype.kind != "b":
        raise DTypeError(f"expected a mask of bools, got {p.allowed}")
    if p.added is not None and p.added.dtype != q.dtype:
        raise DTypeError(f"expected a mask of {q.dtype}, got {p.added}")
    for mask in (p.allowed, p.added):
        if mask is None:
            continue
        if mask.ndim != q.ndim:
            raise ShapeError(f"expected a mask of {q.ndim} dims, got {mask}")
        for a, b in zip(mask.shape, scores):
            if a != 1:
                require_equal(a, b, f"the mask {mask} and the scores")


def _check_key(key: TensorType, q: TensorType) -> None:
    if key.dtype != uint64 or not 1 <= key.ndim < q.ndim or key.shape[-1] != 2:
        raise DTypeError(f"expected keys of type uint64[.., 2], for the first dims of {q}: {key}")
    for a, b in zip(key.shape[:-1], q.shape):
        if a != 1:
            require_equal(a, b, f"the keys {key} and {q}")


def _infer_gradient(types: Types, attrs: Attrs) -> Types:
    _check_cotangent(types, attrs)
    return types[:3]


def _infer_mask_gradient(types: Types, attrs: Attrs) -> Types:
    _check_cotangent(types, attrs)
    if not attrs["added"]:
        raise ShapeError("expected a mask that is added to the scores")
    mask, keys = types[3 + attrs["allowed"]], types[1]
    require_equal(mask.shape[-1], keys.shape[-2], f"{mask} and {keys}: the numbers of keys")
    return (mask,)


def _check_cotangent(types: Types, attrs: Attrs) -> None:
    (result,) = infer_attention(types[:-1], attrs)
    ct = types[-1]
    if ct.dtype != result.dtype or ct.ndim != result.ndim:
        raise ShapeError(f"expected a cotangent of type {result}, got {ct}")
    for a, b in zip(ct.shape, result.shape):
        require_equal(a, b, f"the cotangent {ct} and the result {result}")


def products_flops(types: Types, count: tuple[int, int]) -> DimLike:
    """Of products of L x S by the widths of keys and of values, so many of each."""
    q, k, v = types[:3]
    scores = product(q.shape[:-1]) * k.shape[-2]
    return scores * (q.shape[-1] * (2 * count[0]) + v.shape[-1] * (2 * count[1]))


# --- references -----------------------------------------------------------------------------------


def reference_weights(p: Parts, attrs: Attrs) -> tuple[Any, Any]:
    """The weights, and by what dropout multiplies each."""
    scores = p.times_scale(p.q).astype(np.float64) @ np.swapaxes(p.k, -1, -2).astype(np.float64)
    if p.added is not None:
        scores = scores + p.added
    if p.allowed is not None:
        scores = np.where(p.allowed, scores, -np.inf)
    if attrs["causal"]:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    e = np.exp(scores - np.max(scores, axis=-1, keepdims=True, initial=-np.inf))
    w = e / np.sum(e, axis=-1, keepdims=True)
    if p.key is None:
        return w, np.ones_like(w)
    bits = reference_bits(p.key, 0, w.shape[p.key.ndim - 1 :], uint32, 0)
    kept = (bits >> np.uint32(8)) * 2.0**-24 < np.float32(1.0 - attrs["dropout"])
    return w, np.where(kept, 1.0 / (1.0 - attrs["dropout"]), 0.0)


def _reference(*operands: Any, **attrs: Any) -> Any:
    p = Parts(operands, attrs)
    w, factor = reference_weights(p, attrs)
    return (w * factor @ p.v).astype(p.q.dtype)


def _reference_scores(p: Parts, attrs: Attrs) -> tuple[Any, Any]:
    """The cotangents of the scores, and the weights after dropout."""
    (ct,) = p.rest
    w, factor = reference_weights(p, attrs)
    by_weight = ct @ np.swapaxes(p.v, -1, -2) * factor
    return w * (by_weight - np.sum(by_weight * w, axis=-1, keepdims=True)), w * factor


def _reference_gradient(*operands: Any, **attrs: Any) -> Any:
    p = Parts(operands, attrs)
    by_score, used = _reference_scores(p, attrs)
    turned = np.swapaxes(by_score, -1, -2)
    found = [p.times_scale(by_score @ p.k), turned @ p.times_scale(p.q)]
    found.append(np.swapaxes(used, -1, -2) @ p.rest[0])
    return tuple(x.astype(p.q.dtype) for x in found)


def _reference_mask_gradient(*operands: Any, **attrs: Any) -> Any:
    p = Parts(operands, attrs)
    by_score, _ = _reference_scores(p, attrs)
    assert p.added is not None
    axes = tuple(i for i, d in enumerate(p.added.shape[:-1]) if d == 1)
    return by_score.sum(axes, keepdims=True).astype(p.q.dtype)


# --- rules ----------------------------------------------------------------------------------------


def _vjp(c: Any, ct: Tensor) -> list[Tensor | None]:
    found = apply("attention_gradient", *c.operands, ct, **c.attrs)
    gradients: list[Tensor | None] = [*found, *(None for _ in c.operands[3:])]
    at = 3 + c.attrs["allowed"]
    if c.attrs["added"] and c.needed[at]:
        mask = c.operands[at]
        if isinstance(mask.shape[-1], int) and mask.shape[-1] == 1:  # no weight changes with it
            gradients[at] = zeros_like(mask)
        else:
            gradients[at] = apply("attention_mask_gradient", *c.operands, ct, **c.attrs)
    return gradients


def vjp_through(build: Any) -> Any:
    """Second derivatives go through the plain formula, with its matrix of all scores."""

    def rule(c: Any, arriving: Any) -> list[Tensor | None]:
        given = list(arriving) if isinstance(arriving, (list, tuple)) else [arriving]
        moving = [i for i, needed in enumerate(c.needed) if needed]
        found = _differentiated(c, given, build, moving)
        return [found[moving.index(i)] if i in moving else None for i in range(len(c.operands))]

    return rule


def _jvp(c: Any, tangents: Sequence[Tensor | None]) -> Tensor:
    """With v it moves as v does, with the scores as `attention_tangent` has it."""
    operands, attrs = c.operands, c.attrs
    mask = tangents[3 + attrs["allowed"]] if attrs["added"] else None
    of_scores = {"q": tangents[0], "k": tangents[1], "m": mask}
    moving = {name: t for name, t in of_scores.items() if t is not None}
    terms: list[Tensor] = []
    if moving:
        more = {**attrs, "moving": "".join(moving)}
        terms.append(apply("attention_tangent", *operands, *moving.values(), **more))
    if tangents[2] is not None:
        terms.append(apply("attention", *operands[:2], tangents[2], *operands[3:], **attrs))
    return terms[0] if len(terms) == 1 else add(*terms)


def plain_weights(p: Parts, attrs: Attrs) -> Tensor:
    return attention_weights(p.times_scale(p.q), p.k, p.allowed, p.added, attrs["causal"])


def _plain_scores(c: Any, p: Parts) -> tuple[Any, Any]:
    """The cotangents of the scores, and the weights after dropout, in other operations."""
    (ct,) = p.rest
    w = plain_weights(p, c.attrs)
    by_weight, used = matmul(ct, matrix_transpose(p.v)), w
    if p.key is not None:
        by_weight, used = (dropped(x, p.key, c.attrs["dropout"]) for x in (by_weight, w))
    total = apply("sum", by_weight * w, axes=(w.ndim - 1,), keepdims=True)
    return w * (by_weight - total), used


def _plain_gradient(c: Any, operands: Sequence[Any]) -> list[Any]:
    p = Parts(operands, c.attrs)
    by_score, used = _plain_scores(c, p)
    return [
        p.times_scale(matmul(by_score, p.k)),
        matmul(matrix_transpose(by_score), p.times_scale(p.q)),
        matmul(matrix_transpose(used), p.rest[0]),
    ]  # fmt: skip


def _plain_mask_gradient(c: Any, operands: Sequence[Any]) -> list[Any]:
    p = Parts(operands, c.attrs)
    by_score, _ = _plain_scores(c, p)
    assert p.added is not None
    alike = [isinstance(d, int) and d == 1 for d in p.added.shape[:-1]]
    axes = tuple(i for i, one in enumerate(alike) if one)
    return [apply("sum", by_score, axes=axes, keepdims=True)]


def _differentiated(c: Any, arriving: Sequence[Any], build: Any, moving: list[int]) -> list[Any]:
    """The cotangents of the operands `moving` of a node that is `build` in other operations.
    Differentiated on operands of its own: those of the node may depend on one another."""
    from .closing import placeholders, replaced

    own = placeholders("a", [v.type for v in c.operands])
    roots = [(r, ct) for r, ct in zip(build(c, own), arriving, strict=True) if ct is not None]
    found = c.backward([r for r, _ in roots], [ct for _, ct in roots], [own[i] for i in moving])
    given = [g for g in found if g is not None]
    known = iter(replaced(given, dict(zip(own, c.operands))))
    return [None if g is None else next(known) for g in found]


def jvp_through(build: Any) -> Any:
    def rule(c: Any, tangents: Any) -> Any:
        from .closing import placeholders, replaced

        own = placeholders("a", [v.type for v in c.operands])
        found = c.push(build(c, own), own, tangents)
        given = iter(replaced([t for t in found if t is not None], dict(zip(own, c.operands))))
        moved = [None if t is None else next(given) for t in found]
        return moved[0] if len(moved) == 1 else moved

    return rule


def _batch(c: BatchContext) -> Any:
    """One more axis in front; of a mask or key that is the same for all items, of size 1. But each
    item has a gradient of the mask of its own."""
    attrs = c.attrs
    shared = set(range(3, 3 + attrs["allowed"] + attrs["added"] + (attrs["dropout"] > 0)))
    if c.node.op == "attention_mask_gradient":
        shared.remove(3 + attrs["allowed"])
    operands = in_front(c)
    for i in shared:
        if not c.batched[i]:
            operands[i] = reshape(c.operands[i], (1, *c.types[i].shape))
    return apply(c.node.op, *operands, **attrs)


# --- samples --------------------------------------------------------------------------------------


def sample(
    gradient: bool, batch: tuple[int, ...], sizes: tuple[int, int, int, int],
    dtype: str = "float64", *, causal: bool = False, allowed: tuple[int, ...] | None = None,
    added: tuple[int, ...] | None = None, dropout: float = 0.0, scale: float = 1.0,
) -> Sample:  # fmt: skip
    queries, keys, width, value_width = sizes
    shapes = [(queries, width), (keys, width), (keys, value_width)]
    operands = [random_array((*batch, *s), dtype, 1 + i) for i, s in enumerate(shapes)]
    if allowed is not None:
        mask = random_array(allowed, "bool", 4)
        mask[..., 0] = True  # each query sees a key
        operands.append(mask)
    if added is not None:
        operands.append(random_array(added, dtype, 5))
    if dropout:
        operands.append(np.array([0x243F6A8885A308D3, 1], np.uint64))
    if gradient:
        operands.append(random_array((*batch, queries, value_width), dtype, 6))
    attrs = {"causal": causal, "allowed": allowed is not None, "added": added is not None}
    scaled = {} if scale == 1.0 else {"scale": scale}
    return Sample(tuple(operands), {**attrs, "dropout": dropout, **scaled})


def _samples(gradient: bool) -> list[Sample]:
    return [
        sample(gradient, (2,), (5, 7, 4, 3)),
        sample(gradient, (), (7, 7, 3, 4), causal=True),
        sample(gradient, (2, 3), (4, 6, 2, 2), allowed=(2, 1, 4, 6)),
        sample(gradient, (2, 3), (6, 4, 2, 2), causal=True, added=(1, 3, 6, 4)),
        sample(gradient, (2,), (5, 3, 2, 2), allowed=(1, 1, 3), added=(2, 1, 3)),
        sample(gradient, (2, 3), (5, 4, 2, 3), dropout=0.25),
        sample(gradient, (), (4, 5, 2, 2), causal=True, allowed=(4, 5), dropout=0.5),
        sample(gradient, (1,), (0, 3, 2, 2)),
        sample(gradient, (0,), (2, 3, 2, 2)),
        sample(gradient, (2,), (19, 33, 8, 8), "float32", causal=True),
        sample(gradient, (1,), (BLOCK + 3, BLOCK + 5, 4, 4), "float32", causal=True),
        sample(gradient, (2,), (5, 4, 3, 2), scale=0.75),
        sample(gradient, (), (6, 4, 3, 2), causal=True, dropout=0.25, scale=-1.5),
    ]


def _mask_samples() -> list[Sample]:
    return [
        sample(True, (), (5, 7, 3, 2), added=(5, 7)),
        sample(True, (2, 3), (6, 4, 2, 2), causal=True, added=(1, 3, 6, 4)),
        sample(True, (2, 3, 2), (3, 5, 2, 2), added=(2, 1, 2, 1, 5), allowed=(1, 3, 1, 3, 1)),
        sample(True, (2, 2), (5, 4, 2, 3), added=(2, 1, 5, 4), dropout=0.25),
        sample(True, (3,), (4, 3, 2, 2), added=(1, 1, 3)),
        sample(True, (0,), (2, 3, 2, 2), added=(1, 2, 3)),
        sample(True, (2,), (0, 3, 2, 2), added=(2, 1, 3)),
        sample(True, (2,), (19, 33, 8, 8), "float32", causal=True, added=(1, 19, 33)),
        sample(True, (2,), (5, 4, 3, 2), added=(1, 5, 4), scale=0.75),
    ]


# exp of a difference of scores, and sums of both signs, as in softmax and matmul.
TOLERANCE = Tolerance(1e-4, 1e-11)

register(
    Op(
        name="attention",
        summary="y = softmax((q scale) k^T + mask) v, a block of queries at a time",
        infer=infer_attention,
        reference=_reference,
        vjp=_vjp,
        jvp=_jvp,
        batch=_batch,
        lower=Custom(emit_attention, lambda types, attrs: products_flops(types, (1, 1))),
        samples=lambda: _samples(False),
        source=SOURCE,
        tolerance=TOLERANCE,
    )
)
register(
    Op(
        name="attention_gradient",
        summary="the cotangents of attention's q, k and v, a block of queries at a time",
        infer=_infer_gradient,
        reference=_reference_gradient,
        vjp=vjp_through(_plain_gradient),
        jvp=jvp_through(_plain_gradient),
        batch=_batch,
        lower=Custom(emit_gradient, lambda types, attrs: products_flops(types, (3, 2))),
        samples=lambda: _samples(True),
        source=SOURCE,
        tolerance=TOLERANCE,
    )
)
register(
    Op(
        name="attention_mask_gradient",
        summary="the cotangent of the mask that attention adds, a block of queries at a time",
        infer=_infer_mask_gradient,
        reference=_reference_mask_gradient,
        vjp=vjp_through(_plain_mask_gradient),
        jvp=jvp_through(_plain_mask_gradient),
        batch=_batch,
        lower=Custom(emit_mask_gradient, lambda types, attrs: products_flops(types, (1, 1))),
        samples=_mask_samples,
        source=SOURCE,
        tolerance=TOLERANCE,
    )
)


def attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, added: Tensor | None = None,
    key: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """The record on operands of one rank, masks among them; dropout by a key."""
    more = [x for x in (allowed, added, key) if x is not None]
    result: Tensor = apply(
        "attention", q, k, v, *more, causal=causal, allowed=allowed is not None,
        added=added is not None, dropout=dropout,
    )  # fmt: skip
    return result


__all__ = ["attention", "attention_weights", "block_of", "dropped"]
