"""Attention: scaled dot products, and several heads over learned projections."""

from __future__ import annotations

import math
from typing import Any

from staticgrad.ir.dim import DimLike, equal_dims
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ops.convert import as_tensor, promoted
from staticgrad.ops.creation import band
from staticgrad.ops.exponential import sqrt
from staticgrad.ops.linalg import matmul
from staticgrad.ops.logical import logical_and, logical_not
from staticgrad.ops.public import shown
from staticgrad.ops.reduction import dim_size, mean
from staticgrad.ops.selection import where
from staticgrad.ops.shape import expand_dims, permute_dims, require_broadcast, reshape, swapaxes
from staticgrad.ops.slicing import narrow
from staticgrad.ops.softmax import softmax
from staticgrad.ops.tensor import Tensor

from .linear import dropout, linear


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


def _weights(
    q: Tensor, k: Tensor, allowed: Tensor | None, added: Tensor | None, is_causal: bool,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T scale + mask): [.., L, E], [.., S, E] -> [.., L, S]."""
    if is_causal:
        causal = band(q.shape[-2], k.shape[-2], None, 0)
        allowed = causal if allowed is None else logical_and(allowed, causal)
    if scale is None:
        width = q.shape[-1]
        if isinstance(width, int):
            q = q * (1.0 / math.sqrt(width) if width else 1.0)
        else:
            q = q / sqrt(dim_size(width, q.dtype))
    else:
        q = q * scale
    scores = matmul(q, swapaxes(k, -1, -2))
    for mask in (added, allowed):
        if mask is not None:
            require_broadcast(mask, scores, "attention", "mask")
    if added is not None:
        scores = scores + added
    if allowed is not None:
        scores = where(allowed, scores, -math.inf)
    return softmax(scores, axis=-1)


def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """`softmax(query key^T scale + mask) value`. query: [.., L, E], key: [.., S, E], value:
    [.., S, V]; the result is [.., L, V].

    `attn_mask` broadcasts to [.., L, S]: bool, True where a key takes part, or floating, added to
    the scores. `is_causal` lets query i see keys 0 .. i. `scale` is 1/sqrt(E) by default. A query
    that sees no key gives NaN. `dropout_p` is always applied, as in PyTorch.
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
    weights = _weights(q, k, allowed, added, is_causal, scale)
    return matmul(dropout(weights, dropout_p), v)


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
    [N, L, S], averaged over the heads, or [N, heads, L, S]. In bool masks True excludes. Source:
    Vaswani et al., arXiv 1706.03762.
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
    weights = _weights(_heads(q, num_heads), _heads(k, num_heads), allowed, added, is_causal, None)
    weights = dropout(weights, dropout_p, training)
    merged = permute_dims(matmul(weights, _heads(v, num_heads)), (0, 2, 1, 3))
    y = linear(reshape(merged, (n, length, width)), out_weight, out_bias)
    if not need_weights:
        return y, None
    return y, mean(weights, axis=1) if average_attn_weights else weights


__all__ = ["multi_head_attention", "scaled_dot_product_attention"]
