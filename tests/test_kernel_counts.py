"""How many kernels the usual parts of models take, and how much memory those touch.

A row is a part of a model, forward and together with all its gradients. Bytes are counted in
sweeps: what the kernels read and write, each buffer of a kernel once, by the size of the first
input. A softmax is at best one kernel and 2 sweeps (it reads x and writes y), with its gradient 4
(x and the cotangent; y and the gradient by x). Nothing is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.passes.lowering.manifest import build_manifest

from benchmarks.staticgrad_driver import declared
from benchmarks.suite import BY_NAME

from .benchmark_runs import Zeros

F = sg.nn.functional


class Counts(NamedTuple):
    kernels: int
    sweeps: float


def listed(inputs: Sequence[Any], outputs: Any, updates: Any = None) -> list[dict[str, Any]]:
    """The kernels that the report of a program lists."""
    made = compile_stages(sg.Graph(inputs, outputs, updates))
    return build_manifest(made.program, made.graph, made.target, made.called, {})[0].kernels


def counted(size: int, inputs: Sequence[Any], outputs: Any, updates: Any = None) -> Counts:
    """The kernels of a program, and their bytes by those of `size` floats."""
    kernels = listed(inputs, outputs, updates)
    moved = sum(kernel["bytes"] for kernel in kernels)
    return Counts(len(kernels), round(moved / (4 * size), 2))


class Part(NamedTuple):
    """A function of arrays: floats of `shapes`, by which gradients are taken, then `indices`."""

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    indices: tuple[tuple[int, ...], ...] = ()

    def programs(self) -> tuple[tuple[list[Any], list[Any]], tuple[list[Any], list[Any]]]:
        """Inputs and outputs, forward and with the gradients."""
        given = [sg.input(f"x{i}", shape) for i, shape in enumerate(self.shapes)]
        inputs = [*given, *(sg.input(f"i{i}", s, "int64") for i, s in enumerate(self.indices))]
        y = self.function(*inputs)
        ct = None if y.ndim == 0 else sg.input("ct", y.shape)
        grads = sg.gradients(y, given, cotangent=ct)
        return (inputs, [y]), (inputs if ct is None else [*inputs, ct], [y, *grads])

    def counts(self) -> tuple[Counts, Counts]:
        forward, both = self.programs()
        size = math.prod(self.shapes[0])
        return counted(size, *forward), counted(size, *both)


# --- norms, losses, attention, convolution --------------------------------------------------------

MATRIX, ROW = (4096, 1024), (1024,)
IMAGES, CHANNELS = (16, 64, 28, 28), (64,)
LOGITS, HEADS = (128, 10_000), (4, 8, 512, 64)
TABLE, WORDS = (10_000, 64), (128, 8)


def batch_norm(x: Any, weight: Any, bias: Any) -> Any:
    return F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)


def loss(**options: Any) -> Callable[..., Any]:
    return lambda x, y: F.cross_entropy(x, y, **options)


def attention(**options: Any) -> Callable[..., Any]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def conv(**options: Any) -> Callable[..., Any]:
    return lambda x, w, b: sg.relu(F.conv2d(x, w, b, padding=1, **options))


def pooled(x: Any, w: Any, b: Any) -> Any:
    return F.max_pool2d(conv()(x, w, b), 2)


PARTS: dict[str, Part] = {
    "softmax": Part(lambda x: sg.softmax(x, -1), (MATRIX,)),
    "softmax over columns": Part(lambda x: sg.softmax(x, 0), (MATRIX,)),
    "log softmax": Part(lambda x: F.log_softmax(x, -1), (MATRIX,)),
    "layer norm": Part(lambda x, w, b: F.layer_norm(x, ROW, w, b), (MATRIX, ROW, ROW)),
    "rms norm": Part(lambda x, w: F.rms_norm(x, ROW, w), (MATRIX, ROW)),
    "batch norm of rows": Part(batch_norm, (MATRIX, ROW, ROW)),
    "batch norm of images": Part(batch_norm, (IMAGES, CHANNELS, CHANNELS)),
    "group norm": Part(
        lambda x, w, b: F.group_norm(x, 8, w, b), (IMAGES, CHANNELS, CHANNELS)
    ),
    "cross entropy": Part(loss(), (LOGITS,), ((128,),)),
    "cross entropy, few classes": Part(loss(), ((128, 10),), ((128,),)),
    "cross entropy, a sum": Part(loss(reduction="sum"), (LOGITS,), ((128,),)),
    "cross entropy, smoothed": Part(loss(label_smoothing=0.1), (LOGITS,), ((128,),)),
    "cross entropy of probabilities": Part(F.cross_entropy, (LOGITS, LOGITS)),
    "attention": Part(attention(), (HEADS, HEADS, HEADS)),
    "attention, causal": Part(attention(is_causal=True), (HEADS, HEADS, HEADS)),
    "attention, short": Part(attention(is_causal=True), ((8, 4, 64, 32),) * 3),
    "dense": Part(lambda x, w, b: sg.relu(x @ w + b), ((128, 784), (784, 512), (512,))),
    "convolution": Part(conv(), (IMAGES, (64, 64, 3, 3), CHANNELS)),
    "convolution, depthwise": Part(conv(groups=64), (IMAGES, (64, 1, 3, 3), CHANNELS)),
    "convolution, pooled": Part(pooled, (IMAGES, (64, 64, 3, 3), CHANNELS)),
    "embedding": Part(lambda w, i: F.embedding(i, w), (TABLE,), (WORDS,)),
    "embedding, its mean": Part(lambda w, i: sg.mean(F.embedding(i, w), 1), (TABLE,), (WORDS,)),
}  # fmt: skip

# Kernels and sweeps, forward and with the gradients.
EXPECTED: dict[str, tuple[int, float, int, float]] = {
    "softmax": (1, 2.0, 1, 4.0),
    "softmax over columns": (1, 2.0, 1, 4.0),
    "log softmax": (1, 2.0, 1, 4.0),
    "layer norm": (1, 2.0, 2, 4.06),
    "rms norm": (1, 2.0, 2, 4.03),
    "batch norm of rows": (1, 2.0, 1, 4.0),
    "batch norm of images": (4, 4.0, 5, 8.0),
    "group norm": (1, 2.0, 5, 7.01),
    "cross entropy": (4, 1.0, 4, 2.0),
    "cross entropy, few classes": (4, 3.05, 4, 4.45),
    "cross entropy, a sum": (4, 1.0, 4, 2.0),
    "cross entropy, smoothed": (4, 1.0, 4, 2.0),
    "cross entropy of probabilities": (2, 2.0, 2, 4.0),
    "attention": (1, 4.0, 2, 11.0),
    "attention, causal": (1, 4.0, 2, 11.0),
    "attention, short": (3, 12.0, 9, 34.05),
    "dense": (1, 5.66, 4, 18.93),
    "convolution": (1, 2.05, 4, 9.14),
    "convolution, depthwise": (1, 2.0, 4, 9.0),
    "convolution, pooled": (2, 3.3, 8, 15.12),
    "embedding": (1, 0.21, 3, 2.42),
    "embedding, its mean": (2, 0.32, 6, 2.68),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_take_few_kernels_and_sweeps(name: str) -> None:
    forward, both = PARTS[name].counts()
    assert (*forward, *both) == EXPECTED[name]


def test_flops_are_told_of_the_kernel_that_does_them() -> None:
    """Each gradient of a pooled convolution is two kernels: one packs, one multiplies."""
    _, both = PARTS["convolution, pooled"].programs()
    flops = {k["name"]: k["flops"] for k in listed(*both) if "grad" in k["name"]}
    multiplied = 2 * (16 * 64 * 14 * 14) * 64 * 9
    for kind in ("input", "weight"):
        assert flops[f"conv_grad_{kind}_pooled_0"] == 0
        assert flops[f"conv_grad_{kind}_pooled_1"] == multiplied


# --- the benchmark's workloads --------------------------------------------------------------------

# Kernels of a call at full size; of matrix products one each.
WORKLOADS: dict[str, int] = {
    "tiny": 1, "tiny_100": 2, "tiny_many": 40, "linreg": 2, "lorenz": 9, "gd": 2, "chain": 1,
    "broadcast": 1, "black_scholes": 1, "softmax": 1, "layer_norm": 2, "sum_axis0": 2,
    "sum_axis1": 2, "sum_axis2": 1, "sum_all": 2, "mlp": 16, "mlp_batch1": 3, "cnn": 27,
    "residual": 20, "attention": 2, "gpt": 41, "gru": 18, "lstm": 19, "embedding": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME)
def test_workloads_take_few_kernels(name: str) -> None:
    w = BY_NAME[name]
    inputs, outputs, updates, _ = declared(w, *w.draw(Zeros(), w.sizes))  # type: ignore[arg-type]
    assert len(listed(inputs, outputs, updates)) == WORKLOADS.get(name, 1)


# --- updates --------------------------------------------------------------------------------------

SIZES = ((784, 256), (256,), (256, 128), (128,), (128, 10), (10,))
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: sg.optim.SGD(p, lr=0.1),
    "momentum": lambda p: sg.optim.SGD(p, lr=0.1, momentum=0.9),
    "Nesterov, decay": lambda p: sg.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    ),
    "Adam": lambda p: sg.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: sg.optim.AdamW(p, lr=0.1),
    "RMSprop": lambda p: sg.optim.RMSprop(p, lr=0.1),
    "Adagrad": lambda p: sg.optim.Adagrad(p, lr=0.1),
}

# Kernels and sweeps over all parameters where gradients are given, and kernels of a whole training
# step of three dense layers, where updates ride in the products that compute the gradients.
UPDATES: dict[str, tuple[int, float, int]] = {
    "SGD": (7, 3.0, 16),
    "momentum": (7, 5.0, 16),
    "Nesterov, decay": (7, 5.0, 16),
    "Adam": (7, 7.0, 16),
    "AdamW": (8, 7.0, 17),
    "RMSprop": (7, 5.0, 16),
    "Adagrad": (7, 5.0, 16),
}


def parameters() -> list[Any]:
    return [sg.parameter(np.zeros(s, "float32"), name=f"p{i}") for i, s in enumerate(SIZES)]


def given(optimizer: Callable[[Any], Any]) -> Counts:
    held = parameters()
    grads = [sg.input(f"g{i}", shape) for i, shape in enumerate(SIZES)]
    updates = optimizer(held).apply_gradients(grads)
    return counted(sum(map(math.prod, SIZES)), grads, [], updates)


def behind_products(optimizer: Callable[[Any], Any]) -> Counts:
    p = parameters()
    x, y = sg.input("x", (64, SIZES[0][0])), sg.input("y", (64,), "int64")
    h = sg.relu(sg.relu(x @ p[0] + p[1]) @ p[2] + p[3])
    found = F.cross_entropy(h @ p[4] + p[5], y)
    return counted(1, [x, y], [found], optimizer(p).minimize(found))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_take_few_kernels_and_sweeps(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    assert (*given(optimizer), behind_products(optimizer).kernels) == UPDATES[name]
