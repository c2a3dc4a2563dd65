"""How attention moves with its scores: the part of its forward derivative that has a kernel.

    for each block of queries of each item of the batch         (shared among threads)
        q, q' = q scale, q' scale              rows, in memory of the thread's own
        w, moved = q k^T, q' k^T + q k'^T      rows of scores, likewise
        for each row: w = softmax(w + mask); moved = w (moved + mask' - sum(w (moved + mask')))
        y' = moved v

`moving` names the operands that have a tangent (q, k and the mask, m), which follow the others. How
it moves with v is `attention` of v'. Derivatives of this go through the plain formula, with its
matrix of all scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike
from staticgrad.ir.errors import ShapeError
from staticgrad.kernels.builder import KernelBuilder
from staticgrad.kernels.ir import Expr

from .attention import (
    SOURCE,
    TOLERANCE,
    Parts,
    dropped,
    infer_attention,
    jvp_through,
    plain_weights,
    products_flops,
    reference_weights,
    sample,
    vjp_through,
)
from .attention_kernels import Attention
from .linalg import matmul
from .lowering import Custom
from .registry import Attrs, BatchContext, Op, Sample, Types, apply, register, require_equal
from .rules import in_front
from .samples import random_array
from .shape import matrix_transpose, reshape


def _tangents(p: Parts, attrs: Attrs) -> dict[str, Any]:
    return dict(zip(attrs["moving"], p.rest, strict=True))


def _scaled_tangents(p: Parts, attrs: Attrs) -> dict[str, Any]:
    """That of q as `p.scale` scales q."""
    found = _tangents(p, attrs)
    return {name: p.times_scale(t) if name == "q" else t for name, t in found.items()}


def _infer(types: Types, attrs: Attrs) -> Types:
    result = infer_attention(types[: -len(attrs["moving"])], attrs)
    p = Parts(types, attrs)
    operands = {"q": p.q, "k": p.k, "m": p.added}
    for name, t in _tangents(p, attrs).items():
        x = operands[name]
        if x is None or t.dtype != x.dtype or t.ndim != x.ndim:
            raise ShapeError(f"expected a tangent of {x}, got {t}")
        for a, b in zip(t.shape, x.shape):
            require_equal(a, b, f"the tangent {t} of {x}")
    return result


def _reference(*operands: Any, **attrs: Any) -> Any:
    p = Parts(operands, attrs)
    t = {name: x.astype(np.float64) for name, x in _scaled_tangents(p, attrs).items()}
    w, factor = reference_weights(p, attrs)
    moved = np.zeros_like(w)
    if "q" in t:
        moved = moved + t["q"] @ np.swapaxes(p.k, -1, -2)
    if "k" in t:
        moved = moved + p.times_scale(p.q) @ np.swapaxes(t["k"], -1, -2)
    if "m" in t:
        moved = moved + t["m"]
    moved = w * (moved - np.sum(w * moved, axis=-1, keepdims=True))
    return (moved * factor @ p.v).astype(p.q.dtype)


def _plain(c: Any, operands: Sequence[Any]) -> list[Any]:
    p = Parts(operands, c.attrs)
    t, w = _scaled_tangents(p, c.attrs), plain_weights(p, c.attrs)
    terms = [matmul(t["q"], matrix_transpose(p.k))] if "q" in t else []
    terms += [matmul(p.times_scale(p.q), matrix_transpose(t["k"]))] if "k" in t else []
    terms += [t["m"]] if "m" in t else []
    moved: Any = terms[0]
    for more in terms[1:]:
        moved = moved + more
    moved = w * (moved - apply("sum", w * moved, axes=(w.ndim - 1,), keepdims=True))
    if p.key is not None:
        moved = dropped(moved, p.key, c.attrs["dropout"])
    return [matmul(moved, p.v)]


def _batch(c: BatchContext) -> Any:
    """One more axis in front; of a mask, with its tangent, or a key that is the same for all items,
    of size 1."""
    attrs, operands = c.attrs, in_front(c)
    names = ["allowed"] * attrs["allowed"] + ["m"] * attrs["added"]
    names += ["key"] * (attrs["dropout"] > 0)
    names = ["q", "k", "v", *names, *(f"{name}'" for name in attrs["moving"])]
    batched = dict(zip(names, c.batched))
    if batched.get("m") or batched.get("m'"):
        batched["m"] = batched["m'"] = True
    for i, name in enumerate(names):
        if name in ("allowed", "m", "key", "m'") and not batched[name]:
            operands[i] = reshape(c.operands[i], (1, *c.types[i].shape))
    return apply(c.node.op, *operands, **attrs)


# --- kernel ---------------------------------------------------------------------------------------


class _Tangent(Attention):
    """With the tangents of the scores of a block."""

    def __init__(self, k: KernelBuilder) -> None:
        super().__init__(k)
        tangents = dict(zip(k.attrs["moving"], self.rest, strict=True))
        self.by_mask = tangents.pop("m", None)
        self.tangents_of = tangents
        self.scaled_t = self.room_for_scaled() if "q" in tangents else None
        shape = (self.block, self.row)
        self.moved = k.scratch(self.q.dtype, shape)
        self.more = k.scratch(self.q.dtype, shape) if len(tangents) == 2 else self.moved

    def open_with_scores(self, item: DimLike, block: DimLike) -> None:
        self.open(item, block)
        q = self.scaled(self.q, self.scaled_q)
        self.scores(self.weights, q, self.key)
        for into, (name, t) in zip((self.moved, self.more), self.tangents_of.items()):
            if name == "q":
                self.scores(into, self.scaled(t, self.scaled_t), self.key)
            else:
                self.scores(into, q, t)

    def tangent(self, r: DimLike, j: DimLike) -> Expr:
        """Of a score: the products, and the mask's."""
        k = self.k
        arrays = (self.moved, self.more)[: len(self.tangents_of)]
        terms: list[Expr] = [k.load(x, (r, j)) for x in arrays]
        if self.by_mask is not None:
            terms.append(self.mask(self.by_mask, r, j))
        found = terms[0]
        for more in terms[1:]:
            found = k.call("add", found, more)
        return found if self.allowed is None else self.or_zero(self.is_allowed(r, j), found)

    def tangents(self, r: DimLike) -> None:
        """Row r of `moved`: of the weights that are used."""
        k, w, moved = self.k, self.weights, self.moved
        reciprocal = self.exponentials(r)

        def by_weight(j: DimLike) -> Expr:
            weight = k.let(k.call("multiply", k.load(w, (r, j)), reciprocal))
            of_score = k.let(self.tangent(r, j))
            k.store(w, (r, j), weight)
            k.store(moved, (r, j), of_score)
            return k.call("multiply", weight, of_score)

        total = k.reduce("sum", (self.visible(r),), by_weight, vector=True)
        with k.vector(self.visible(r)) as j:
            difference = k.call("subtract", k.load(moved, (r, j)), total)
            found: Expr = k.call("multiply", k.load(w, (r, j)), difference)
            if self.key_of_bits is not None:
                found = self.or_zero(self.is_kept(r, j), self.enlarged(found))
            k.store(moved, (r, j), found)
        self.clear(moved, r)


def emit_tangent(k: KernelBuilder) -> None:
    a = _Tangent(k)
    with k.parallel(a.items * a.blocks) as i:
        a.open_with_scores(*a.place(i))
        with k.loop(a.rows) as r:
            a.tangents(r)
        a.weighted(a.moved, a.v, k.results[0])


# --- record ---------------------------------------------------------------------------------------


def _samples() -> list[Sample]:
    found = []
    for moving, given in (
        ("qk", sample(False, (2,), (5, 7, 4, 3))),
        ("q", sample(False, (), (7, 7, 3, 4), causal=True)),
        ("k", sample(False, (2, 3), (4, 6, 2, 2), allowed=(2, 1, 4, 6))),
        ("qkm", sample(False, (2, 3), (6, 4, 2, 2), causal=True, added=(1, 3, 6, 4))),
        ("m", sample(False, (2,), (5, 3, 2, 2), allowed=(1, 1, 3), added=(2, 1, 3))),
        ("qk", sample(False, (2, 3), (5, 4, 2, 3), dropout=0.25)),
        ("qk", sample(False, (0,), (2, 3, 2, 2))),
        ("qk", sample(False, (2,), (19, 33, 8, 8), "float32", causal=True)),
        ("qkm", sample(False, (2,), (5, 4, 3, 2), added=(1, 5, 4), scale=0.75)),
        ("k", sample(False, (), (6, 4, 3, 2), causal=True, scale=-1.5)),
    ):
        operands = dict(zip("qkm", (*given.operands[:2], given.operands[-1])))
        arrays = [
            random_array(operands[name].shape, str(operands[name].dtype), 7 + i)
            for i, name in enumerate(moving)
        ]
        found.append(Sample((*given.operands, *arrays), {**given.attrs, "moving": moving}))
    return found


register(
    Op(
        name="attention_tangent",
        summary="how attention moves with q, k and the mask, a block of queries at a time",
        infer=_infer,
        reference=_reference,
        vjp=vjp_through(_plain),
        jvp=jvp_through(_plain),
        batch=_batch,
        lower=Custom(
            emit_tangent, lambda t, a: products_flops(t, (1 + len(set(a["moving"]) & set("qk")), 1))
        ),
        samples=_samples,
        source=SOURCE,
        tolerance=TOLERANCE,
    )
)

__all__: list[str] = []
