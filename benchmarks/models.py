"""Workloads that are models: whole training steps (SGD with momentum), and inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from .workload import Array, Sizes, Workload, normal, ones, product, zeros

Generator = np.random.Generator
Drawn = tuple[list[Array], list[Array]]

_LAYERS = (784, 512, 256, 10)
_SMALL_LAYERS = (20, 16, 12, 5)


def _named(layers: tuple[int, ...], batch: int) -> Sizes:
    return {"B": batch, **{f"L{i}": n for i, n in enumerate(layers)}}


def _draw_mlp(rng: Generator, s: Sizes) -> Drawn:
    layers = [s[f"L{i}"] for i in range(4)]
    parameters = []
    for fan_in, fan_out in itertools.pairwise(layers):
        parameters += [normal(rng, fan_in, fan_out, scale=(2 / fan_in) ** 0.5), zeros(fan_out)]
    return parameters, [normal(rng, s["B"], layers[0]), rng.integers(0, layers[-1], s["B"])]


def _draw_mlp_inference(rng: Generator, s: Sizes) -> Drawn:
    parameters, (x, _) = _draw_mlp(rng, s)
    return [], [x, *parameters]


def _mlp(X: Any, P: Any, x: Any) -> Any:
    return X.relu(X.relu(x @ P[0] + P[1]) @ P[2] + P[3]) @ P[4] + P[5]


def _mlp_loss(X: Any, P: Any, x: Any, y: Any) -> Any:
    return X.cross_entropy(_mlp(X, P, x), y)


def _mlp_products(s: Sizes) -> tuple[int, int, int]:
    first, second, third = (2 * product(s, f"B L{i} L{i + 1}") for i in range(3))
    return first, second, third


def _draw_cnn(rng: Generator, s: Sizes) -> Drawn:
    b, side, c1, c2, hidden = (s[n] for n in ("B", "S", "C1", "C2", "H"))
    flat = c2 * (side // 4) ** 2
    parameters = [
        normal(rng, c1, 1, 5, 5, scale=0.2), zeros(c1),
        normal(rng, c2, c1, 5, 5, scale=0.05), zeros(c2),
        normal(rng, flat, hidden, scale=0.03), zeros(hidden),
        normal(rng, hidden, 10, scale=0.1), zeros(10),
    ]  # fmt: skip
    return parameters, [normal(rng, b, 1, side, side), rng.integers(0, 10, b)]


def _cnn_loss(X: Any, P: Any, x: Any, y: Any) -> Any:
    h = X.max_pool2d(X.relu(X.conv2d(x, P[0], P[1], 2)))
    h = X.max_pool2d(X.relu(X.conv2d(h, P[2], P[3], 2)))
    h = h.reshape(h.shape[0], P[4].shape[0])
    return X.cross_entropy(X.relu(h @ P[4] + P[5]) @ P[6] + P[7], y)


def _cnn_flops(s: Sizes) -> int:
    b, side, c1, c2, hidden = (s[n] for n in ("B", "S", "C1", "C2", "H"))
    first = 2 * b * side**2 * c1 * 25
    second = 2 * b * (side // 2) ** 2 * c2 * c1 * 25
    dense = 2 * b * (c2 * (side // 4) ** 2 * hidden + hidden * 10)
    return 2 * first + 3 * second + 3 * dense  # the first layer's input needs no gradient


def _draw_residual(rng: Generator, s: Sizes) -> Drawn:
    b, c, side = s["B"], s["C"], s["S"]
    parameters = []
    for _ in range(2):
        parameters += [normal(rng, c, c, 3, 3, scale=(2 / (9 * c)) ** 0.5), ones(c), zeros(c)]
    return parameters, [normal(rng, b, c, side, side), normal(rng, b, c, side, side)]


def _residual_loss(X: Any, P: Any, x: Any, y: Any) -> Any:
    """Source: He et al., arXiv 1512.03385; batch norm by the batch's statistics."""
    h = X.relu(X.batch_norm(X.conv2d(x, P[0], None, 1), P[1], P[2]))
    h = X.relu(X.batch_norm(X.conv2d(h, P[3], None, 1), P[4], P[5]) + x)
    error = h - y
    return X.mean(error * error)


def _draw_attention(rng: Generator, s: Sizes) -> Drawn:
    shape = s["B"], s["H"], s["T"], s["D"]
    return [normal(rng, *shape) for _ in range(3)], [normal(rng, *shape)]


def _attention(X: Any, P: Any) -> Any:
    return X.attention(*P)


def _attention_flops(batch: int, time: int, width: int) -> int:
    """Two products forward and four backward, of the causal half."""
    return 6 * batch * time * (time + 1) * width


def _draw_gpt(rng: Generator, s: Sizes) -> Drawn:
    b, t, d = s["B"], s["T"], s["D"]
    parameters = [
        ones(d), zeros(d), normal(rng, d, 3 * d, scale=0.05), normal(rng, d, d, scale=0.05),
        ones(d), zeros(d), normal(rng, d, 4 * d, scale=0.05), zeros(4 * d),
        normal(rng, 4 * d, d, scale=0.05), zeros(d),
    ]  # fmt: skip
    return parameters, [normal(rng, b, t, d), normal(rng, b, t, d)]


def _gpt_loss(heads: int) -> Callable[..., Any]:
    def loss(X: Any, P: Any, x: Any, y: Any) -> Any:
        b, t, d = x.shape
        h = X.layer_norm(x, P[0], P[1]) @ P[2]
        parts = (h[..., i * d : (i + 1) * d] for i in range(3))
        q, k, v = (part.reshape(b, t, heads, d // heads).swapaxes(1, 2) for part in parts)
        x = x + X.attention(q, k, v).swapaxes(1, 2).reshape(b, t, d) @ P[3]
        out = x + X.gelu(X.layer_norm(x, P[4], P[5]) @ P[6] + P[7]) @ P[8] + P[9]
        error = out - y
        return X.mean(error * error)

    return loss


def _gpt_flops(s: Sizes) -> int:
    return 72 * product(s, "B T D D") + _attention_flops(s["B"], s["T"], s["D"])


def _draw_recurrent(gates: int, states: int) -> Callable[[Generator, Sizes], Drawn]:
    def draw(rng: Generator, s: Sizes) -> Drawn:
        inputs, hidden = s["I"], s["H"]
        parameters = [
            normal(rng, gates * hidden, inputs, scale=0.1),
            normal(rng, gates * hidden, hidden, scale=0.1),
            zeros(gates * hidden), zeros(gates * hidden),
        ]  # fmt: skip
        start = [normal(rng, s["B"], hidden) for _ in range(states)]
        return parameters, [normal(rng, s["T"], s["B"], inputs), *start]

    return draw


def _gru_loss(X: Any, P: Any, xs: Any, h: Any) -> Any:
    last = X.gru(P, xs, h)
    return X.mean(last * last)


def _lstm_loss(X: Any, P: Any, xs: Any, h: Any, c: Any) -> Any:
    last = X.lstm(P, xs, h, c)
    return X.mean(last * last)


def _recurrent_flops(gates: int) -> Callable[[Sizes], int]:
    """The inputs need no gradient: two products of them, three of the state."""
    return lambda s: 2 * gates * product(s, "T B H") * (2 * s["I"] + 3 * s["H"])


def _draw_embedding(rng: Generator, s: Sizes) -> Drawn:
    words, width, batch = s["V"], s["D"], s["B"]
    parameters = [
        normal(rng, words, width, scale=0.1), normal(rng, width, words, scale=0.05), zeros(words)
    ]  # fmt: skip
    return parameters, [rng.integers(0, words, (batch, s["T"])), rng.integers(0, words, batch)]


def _embedding_loss(X: Any, P: Any, context: Any, y: Any) -> Any:
    h = X.mean(X.embedding(P[0], context), 1)
    return X.cross_entropy(h @ P[1] + P[2], y)


_LONG_LOOP = {"torch_compile": "its loop would be unrolled while tracing"}

MODELS = (
    Workload(
        "mlp", "model", "784-512-256-10, batch 128, training step", "train", _named(_LAYERS, 128),
        _named(_SMALL_LAYERS, 8), _draw_mlp, _mlp_loss,
        lambda s: 2 * _mlp_products(s)[0] + 3 * sum(_mlp_products(s)[1:]),
    ),
    Workload(
        "mlp_batch1", "inference", "784-512-256-10, one example, inference", "call",
        _named(_LAYERS, 1), _named(_SMALL_LAYERS, 1), _draw_mlp_inference,
        lambda X, P, x, *weights: _mlp(X, weights, x), lambda s: sum(_mlp_products(s)),
    ),
    Workload(
        "cnn", "model", "2 conv 5x5 with pooling, 2 dense, batch 64 of 28 x 28, training step",
        "train", {"B": 64, "S": 28, "C1": 16, "C2": 32, "H": 128},
        {"B": 3, "S": 8, "C1": 3, "C2": 4, "H": 6}, _draw_cnn, _cnn_loss, _cnn_flops,
    ),
    Workload(
        "residual", "model", "residual block of 2 conv 3x3 with batch norm, 16 x 64 x 28 x 28, "
        "training step", "train", {"B": 16, "C": 64, "S": 28}, {"B": 3, "C": 4, "S": 6},
        _draw_residual, _residual_loss, lambda s: 5 * 2 * 9 * product(s, "B C C S S"),
        # What the first bias adds, the second batch norm takes away but for what relu cuts: its
        # gradient is a small sum of large terms, and PyTorch's is off by 4e-4 in float32.
        tolerance=1e-3,
    ),
    Workload(
        "attention", "model", "causal attention forward and backward, 4 x 8 heads x 512 x 64",
        "vjp", {"B": 4, "H": 8, "T": 512, "D": 64}, {"B": 2, "H": 2, "T": 9, "D": 4},
        _draw_attention, _attention,
        lambda s: _attention_flops(s["B"], s["T"], s["H"] * s["D"]), cotangent=True,
    ),
    Workload(
        "gpt", "model", "transformer block, 8 x 64 x 128, 4 heads, training step", "train",
        {"B": 8, "T": 64, "D": 128}, {"B": 2, "T": 6, "D": 8}, _draw_gpt, _gpt_loss(4),
        _gpt_flops,
    ),
    Workload(
        "gru", "model", "100 steps, batch 32, 64 inputs, 128 hidden, training step", "train",
        {"T": 100, "B": 32, "I": 64, "H": 128}, {"T": 4, "B": 3, "I": 5, "H": 6},
        _draw_recurrent(3, 1), _gru_loss, _recurrent_flops(3), without=_LONG_LOOP,
    ),
    Workload(
        "lstm", "model", "100 steps, batch 32, 64 inputs, 128 hidden, training step", "train",
        {"T": 100, "B": 32, "I": 64, "H": 128}, {"T": 4, "B": 3, "I": 5, "H": 6},
        _draw_recurrent(4, 2), _lstm_loss, _recurrent_flops(4), without=_LONG_LOOP,
    ),
    Workload(
        "embedding", "model", "mean of 8 of 10,000 embeddings, softmax over 10,000 classes, "
        "batch 128, training step", "train", {"V": 10_000, "D": 64, "B": 128, "T": 8},
        {"V": 50, "D": 6, "B": 5, "T": 3}, _draw_embedding, _embedding_loss,
        lambda s: 3 * 2 * product(s, "B D V"),
    ),
)  # fmt: skip
