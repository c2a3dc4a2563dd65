"""Multi-head attention and transformer encoders, with PyTorch's parameters and arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from staticgrad.ops.convert import as_tensor
from staticgrad.ops.shape import expand_dims, squeeze, swapaxes
from staticgrad.ops.tensor import Tensor

from . import functional as F
from . import init
from .containers import ModuleList
from .linear import Linear, empty, size
from .module import Module
from .normalization import Dropout, LayerNorm


class MultiheadAttention(Module):
    """Attention in several heads over learned projections.

    Parameters as in PyTorch: in_proj_weight [3*E, E] and in_proj_bias [3*E] (or, with `kdim` or
    `vdim`, q_proj_weight, k_proj_weight and v_proj_weight), out_proj.weight, out_proj.bias.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True,
        add_bias_kv: bool = False, add_zero_attn: bool = False, kdim: int | None = None,
        vdim: int | None = None, batch_first: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if add_bias_kv or add_zero_attn:
            raise UnsupportedError(
                "MultiheadAttention: add_bias_kv and add_zero_attn are not supported"
            )
        self.embed_dim = size(embed_dim, "embed_dim", 1)
        self.num_heads = size(num_heads, "num_heads", 1)
        if embed_dim % num_heads:
            raise ArgumentError(
                f"MultiheadAttention: embed_dim={embed_dim} must be divisible by "
                f"num_heads={num_heads}"
            )
        if not 0 <= dropout <= 1:
            raise ArgumentError(
                f"MultiheadAttention: dropout must be between 0 and 1, got {dropout}"
            )
        self.dropout = dropout
        self.batch_first = batch_first
        self.kdim = embed_dim if kdim is None else size(kdim, "kdim", 1)
        self.vdim = embed_dim if vdim is None else size(vdim, "vdim", 1)
        same = self.kdim == embed_dim and self.vdim == embed_dim
        shapes = {
            "in_proj_weight": (3 * embed_dim, embed_dim) if same else None,
            "q_proj_weight": None if same else (embed_dim, embed_dim),
            "k_proj_weight": None if same else (embed_dim, self.kdim),
            "v_proj_weight": None if same else (embed_dim, self.vdim),
            "in_proj_bias": (3 * embed_dim,) if bias else None,
        }
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else empty(shape, device, dtype))
        self.out_proj = Linear(embed_dim, embed_dim, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            weight = getattr(self, name)
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Any, key: Any, value: Any, key_padding_mask: Any = None,
        need_weights: bool = True, attn_mask: Any = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """query: [L, N, E] ([N, L, E] with batch_first, [L, E] without a batch), key and value:
        [S, N, ..]. Returns the result, of the query's shape, and the attention weights [N, L, S]
        (or [N, heads, L, S] with `average_attn_weights=False`), or None: with `need_weights=False`,
        for long sequences, they are never all in memory.

        In bool masks True excludes; floating masks are added. attn_mask: [L, S] or
        [N*heads, L, S], key_padding_mask: [N, S] or [S]. `is_causal=True` needs no mask.
        """
        q, k, v, batched = self._batch_first(query, key, value)
        if not batched and key_padding_mask is not None:
            key_padding_mask = expand_dims(as_tensor(key_padding_mask), axis=0)
        weights: Any = self.in_proj_weight
        if weights is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        y, attention = F.multi_head_attention(
            q, k, v, num_heads=self.num_heads, in_weights=weights, in_bias=self.in_proj_bias,
            out_weight=self.out_proj.weight, out_bias=self.out_proj.bias, dropout_p=self.dropout,
            training=self.training, attn_mask=attn_mask, key_padding_mask=key_padding_mask,
            is_causal=is_causal, need_weights=need_weights,
            average_attn_weights=average_attn_weights,
        )  # fmt: skip
        if not batched:
            return squeeze(y, axis=0), None if attention is None else squeeze(attention, axis=0)
        return (y if self.batch_first else swapaxes(y, 0, 1)), attention

    def _batch_first(self, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any, bool]:
        """The operands as [N, L, E]; one operand given three times stays one."""
        q = as_tensor(query, "MultiheadAttention")
        batched = q.ndim != 2
        turned: dict[int, Tensor] = {}
        found = []
        for x in (query, key, value):
            if id(x) not in turned:
                t = as_tensor(x, "MultiheadAttention")
                if not batched:
                    t = expand_dims(t, axis=0)
                elif not self.batch_first:
                    t = swapaxes(t, 0, 1)
                turned[id(x)] = t
            found.append(turned[id(x)])
        return found[0], found[1], found[2], batched


def _activation(given: Any) -> Callable[[Any], Tensor]:
    known: dict[str, Callable[[Any], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
    if isinstance(given, str):
        if given not in known:
            raise ArgumentError(f'activation must be "relu", "gelu" or a function, got {given!r}')
        return known[given]
    if not callable(given):
        raise ArgumentError(f"activation must be a name or a function, got {given!r}")
    return given  # type: ignore[no-any-return]


class TransformerEncoderLayer(Module):
    """Self-attention and a two-layer network, each with a residual and layer norm.

    x: [L, N, d_model], or [N, L, d_model] with `batch_first`. `norm_first` normalises before each
    part instead of after its residual. Source: Vaswani et al., arXiv 1706.03762.
    """

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: Any = F.relu, layer_norm_eps: float = 1e-5, batch_first: bool = False,
        norm_first: bool = False, bias: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.linear1 = Linear(d_model, dim_feedforward, bias, device, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, device, dtype)
        self.norm_first = norm_first
        norm = {"eps": layer_norm_eps, "bias": bias, "device": device, "dtype": dtype}
        self.norm1 = LayerNorm(d_model, **norm)
        self.norm2 = LayerNorm(d_model, **norm)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = _activation(activation)

    def forward(
        self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        masks = (src_mask, src_key_padding_mask, is_causal)
        x = as_tensor(src, "TransformerEncoderLayer")
        if self.norm_first:
            x = x + self._attend(self.norm1(x), *masks)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, *masks))
        return self.norm2(x + self._feed_forward(x))

    def _attend(self, x: Tensor, mask: Any, padding: Any, is_causal: bool) -> Tensor:
        y, _ = self.self_attn(
            x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False,
            is_causal=is_causal,
        )  # fmt: skip
        return self.dropout1(y)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerEncoder(Module):
    """`num_layers` copies of a layer, one after another, and a norm at the end if one is given."""

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        if not isinstance(encoder_layer, Module):
            raise ArgumentTypeError(
                "TransformerEncoder: encoder_layer must be a Module, got "
                f"{type(encoder_layer).__name__}"
            )
        self.num_layers = size(num_layers, "num_layers")
        self.layers = ModuleList(copy.deepcopy(encoder_layer) for _ in range(self.num_layers))
        self.add_module("norm", norm)

    def forward(
        self, src: Any, mask: Any = None, src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        x = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, is_causal)
        return x if self.norm is None else self.norm(x)


__all__ = ["MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer"]
