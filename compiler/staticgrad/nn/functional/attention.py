"""Attention: scaled dot products, and several heads over learned projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import DimLike, equal_dims
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType
from staticgrad.ops.attention import attention, attention_weights, block_of, dropped
from staticgrad.ops.convert import as_tensor, constant_array, promoted
from staticgrad.ops.exponential import sqrt
from staticgrad.ops.linalg import matmul
from staticgrad.ops.logical import logical_and, logical_not
from staticgrad.ops.mode import training_switch
from staticgrad.ops.public import shown
from staticgrad.ops.random import bits
from staticgrad.ops.reduction import dim_size, mean
from staticgrad.ops.registry import broadcast_shapes
from staticgrad.ops.shape import broadcast_to, expand_dims, may_equal, permute_dims, reshape
from staticgrad.ops.slicing import narrow
from staticgrad.ops.tensor import Tensor

from ..mode import mode_of
from .linear import checked_probability, dropout, linear


def _mask_parts(attn_mask: Any, what: str) -> tuple[Tensor | None, Tensor | None]:
    """A mask as (bool: what may be attended to, float: what is added to the scores)."""
    if attn_mask is None:
        return None, None
    mask = as_tensor(attn_mask, what)
    if mask.dtype.kind == "b":
        return mask, None
    if not mask.dtype.is_float:
        raise DTypeError(f"{what}: a mask must be bool or floating, got {mask.type}")
    return None, mask


def _scaled(q: Tensor, scale: float | None) -> Tensor:
    if scale is not None:
        return q * scale
    width = q.shape[-1]
    if isinstance(width, int):
        return q * (1.0 / math.sqrt(width) if width else 1.0)
    return q / sqrt(dim_size(width, q.dtype))


def _require_masks(
    q: Tensor, k: Tensor, v: Tensor, masks: Sequence[Tensor | None]
) -> tuple[DimLike, ...]:
    """The batch's common shape; raises unless the masks broadcast to the scores."""
    batch = broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    scores = TensorType(q.dtype, (*batch, q.shape[-2], k.shape[-2]))
    for mask in masks:
        if mask is None:
            continue
        pairs = zip(reversed(mask.shape), reversed(scores.shape))
        if mask.ndim > scores.ndim or not all(a == 1 or may_equal(a, b) for a, b in pairs):
            raise ShapeError(f"attention: the mask {mask.type} does not broadcast to {scores}")
    return batch


def _attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, added: Tensor | None,
    is_causal: bool, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """softmax(q k^T + mask) v, in blocks of queries if there may be more than one block. Both ways
    compute every element alike, so a size that is declared gives the bits of a symbolic one. They
    would not where an added mask is the same for several items, whose cotangents are summed, and
    where more keys are given than a block of causal queries sees, which NaN in them would tell."""
    batch = _require_masks(q, k, v, (allowed, added))
    queries = q.shape[-2]
    key = _key() if 0 < dropout_p < 1 else None
    sizes = (queries, k.shape[-2]) if is_causal else (queries,)
    one_block = all(isinstance(n, int) and n <= block_of(is_causal) for n in sizes)
    mixed = added is not None and added.dtype != q.dtype
    if (one_block and added is None) or dropout_p == 1 or mixed:
        weights = attention_weights(q, k, allowed, added, is_causal)
        if key is not None:
            return matmul(dropped(weights, key, dropout_p), v)
        return matmul(dropout(weights, dropout_p), v)
    q, k, v = (broadcast_to(x, (*batch, *x.shape[-2:])) for x in promoted(q, k, v))
    allowed, added = (
        None if m is None else reshape(m, (*(1,) * (q.ndim - m.ndim), *m.shape))
        for m in (allowed, added)
    )
    return attention(q, k, v, allowed, added, key, causal=is_causal, dropout=float(dropout_p))


def _key() -> Tensor:
    """A key of its own for one dropout, drawn from the global generator."""
    return bits((2,), dtype="uint64") * constant_array(np.array([1, 0], np.uint64))


def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """`softmax(query key^T scale + mask) value`. query: [.., L, E], key: [.., S, E], value:
    [.., S, V]; the result is [.., L, V].

    `attn_mask` broadcasts to [.., L, S]: bool, True where a key takes part, or floating, added to
    the scores. `is_causal` lets query i see keys 0 .. i. `scale` is 1/sqrt(E) by default. A query
    that sees no key gives NaN. `dropout_p` is always applied, as in PyTorch.

    Queries are taken in blocks, so memory grows with L + S, not with L * S: of the result, of its
    gradients (a floating mask's is as large as the mask) and of `jvp`. Only second derivatives
    compute all weights at once.
    """
    q, k, v = promoted(query, key, value)
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise ShapeError(
            f"scaled_dot_product_attention: expected at least 2 dims, got {q.type}, {k.type} and "
            f"{v.type}"
        )
    if is_causal and attn_mask is not None:
        raise ArgumentError(
            "scaled_dot_product_attention: give attn_mask or is_causal=True, not both"
        )
    allowed, added = _mask_parts(attn_mask, "scaled_dot_product_attention")
    p = checked_probability(dropout_p, "scaled_dot_product_attention: dropout_p")
    return _attend(_scaled(q, scale), k, v, allowed, added, is_causal, p)


def _heads(x: Tensor, count: int) -> Tensor:
    """[N, L, E] -> [N, heads, L, E/heads]."""
    n, length, width = x.shape
    return permute_dims(reshape(x, (n, length, count, width // count)), (0, 2, 1, 3))


def _invert(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else logical_not(mask)


def _merge_masks(
    attn_mask: Any, key_padding_mask: Any, n: DimLike, heads: int, what: str
) -> tuple[Tensor | None, Tensor | None]:
    """PyTorch's masks of multi-head attention, where True *excludes*, as (allowed, added), each of
    a shape that broadcasts to [N, heads, L, S]."""
    excluded, added = _mask_parts(attn_mask, f"{what}: attn_mask")
    parts = []
    for part in (excluded, added):
        if part is not None and part.ndim == 3:
            part = reshape(part, (n, heads, *part.shape[1:]))
        elif part is not None and part.ndim != 2:
            raise ShapeError(
                f"{what}: attn_mask must be [L, S] or [N*heads, L, S], got {part.type}"
            )
        parts.append(part)
    allowed, added = _invert(parts[0]), parts[1]
    padding, padding_added = _mask_parts(key_padding_mask, f"{what}: key_padding_mask")
    for part in (padding, padding_added):
        if part is not None and part.ndim != 2:
            raise ShapeError(f"{what}: key_padding_mask must be [N, S], got {part.type}")
    if padding is not None:
        kept = expand_dims(logical_not(padding), axis=(1, 2))
        allowed = kept if allowed is None else logical_and(allowed, kept)
    if padding_added is not None:
        more = expand_dims(padding_added, axis=(1, 2))
        added = more if added is None else added + more
    return allowed, added


def project(
    query: Tensor, key: Tensor, value: Tensor, weights: Any, bias: Any, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The three projections. `weights` is one parameter [3*E, E], or three of [E, ..]; a product
    that has the same operand for all three is one product."""
    separate = isinstance(weights, (tuple, list))
    if separate and len(weights) != 3:
        raise ArgumentError(f"expected one weight or three, got {len(weights)}")
    if not separate:
        weights = as_tensor(weights, "multi_head_attention: in_weights")
    parts: list[Tensor | None] = [None] * 3
    if bias is not None:
        whole = as_tensor(bias, "multi_head_attention: in_bias")
        if whole.ndim != 1 or equal_dims(whole.shape[0], 3 * width) is False:
            raise ShapeError(f"expected a bias [{3 * width}], got {whole.type}")
        parts = [narrow(whole, 0, i * width, width) for i in range(3)]
    if separate:
        found = [
            linear(x, w, b) for x, w, b in zip((query, key, value), weights, parts, strict=True)
        ]
    elif query is key and key is value:
        both = linear(query, weights, bias)
        found = [narrow(both, both.ndim - 1, i * width, width) for i in range(3)]
    else:
        rows = [narrow(weights, 0, i * width, width) for i in range(3)]
        found = [linear(x, w, b) for x, w, b in zip((query, key, value), rows, parts)]
    return found[0], found[1], found[2]


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, in_weights: Any, in_bias: Any,
    out_weight: Any, out_bias: Any, dropout_p: float = 0.0, training: Any = None,
    attn_mask: Any = None, key_padding_mask: Any = None, is_causal: bool = False,
    need_weights: bool = True, average_attn_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention in `num_heads` heads over [N, L, E], [N, S, ..] and [N, S, ..] (batch first).

    Returns the projected result [N, L, E] and, with `need_weights`, the attention weights
    [N, L, S], averaged over the heads, or [N, heads, L, S]; without it they are never all in
    memory. In bool masks True excludes. Source: Vaswani et al., arXiv 1706.03762.
    """
    what = "multi_head_attention"
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{what}: {name} must be a tensor, got {shown(x)}")
        if x.ndim != 3:
            raise ShapeError(f"{what}: expected a {name} of 3 dims, got {x.type}")
    n, length, width = query.shape
    if num_heads < 1 or width % num_heads != 0:
        raise ArgumentError(f"{what}: the width {width} can't be divided among {num_heads} heads")
    q, k, v = project(query, key, value, in_weights, in_bias, int(width))
    allowed, added = _merge_masks(attn_mask, key_padding_mask, n, num_heads, what)
    q, k, v = _scaled(_heads(q, num_heads), None), _heads(k, num_heads), _heads(v, num_heads)
    weights = None
    if need_weights:
        _require_masks(q, k, v, (allowed, added))
        weights = attention_weights(q, k, allowed, added, is_causal)
        weights = dropout(weights, dropout_p, training)
        found = matmul(weights, v)
    else:
        p, mode = checked_probability(dropout_p, f"{what}: dropout_p"), mode_of(training)
        found = _attend(q, k, v, allowed, added, is_causal, 0.0 if mode is False else p)
        if p and mode is None:
            whole = _attend(q, k, v, allowed, added, is_causal)
            found = training_switch(found, whole, training=mode)
    merged = permute_dims(found, (0, 2, 1, 3))
    y = linear(reshape(merged, (n, length, width)), out_weight, out_bias)
    if not need_weights:
        return y, None
    return y, mean(weights, axis=1) if average_attn_weights else weights


__all__ = ["multi_head_attention", "scaled_dot_product_attention"]
