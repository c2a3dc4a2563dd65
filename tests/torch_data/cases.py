"""What is compared with PyTorch: calls that read the same in both, and their inputs.

`record.py` runs the cases in PyTorch and stores outputs and gradients; `test_nn_torch.py` runs them
here. Inputs are made from the case's name alone, so that only results are stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class T:
    """An array argument. Kinds: normal, probability, sign, labels, bool, distribution."""

    shape: tuple[int, ...]
    kind: str = "normal"
    classes: int = 0
    grad: bool = True

    def __repr__(self) -> str:
        return f"{self.kind}{list(self.shape)}"

    @property
    def differentiable(self) -> bool:
        return self.grad and self.kind in ("normal", "probability", "distribution")


@dataclass(frozen=True)
class Case:
    """`nn.<target>(*init, **options)(*args, **kwargs)`, or `F.<target>(*args, **kwargs)`."""

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    init: tuple[Any, ...] | None = None  # None: a function
    options: dict[str, Any] = field(default_factory=dict)
    training: bool = True

    @property
    def name(self) -> str:
        parts = [*map(str, self.args)]
        parts += [f"{k}={v}" for k, v in (*self.kwargs.items(), *self.options.items())]
        parts += [] if self.init is None else [str(self.init)]
        mode = "" if self.training else " eval"
        return f"{self.target}({', '.join(parts)}){mode}".replace("/", "|")


def random_array(key: str, spec: T) -> np.ndarray[Any, Any]:
    """The values of an argument: a function of the case, the argument's place and its kind."""
    rng = np.random.default_rng(zlib.crc32(f"{key}:{spec.kind}{spec.shape}".encode()))
    if spec.kind == "labels":
        return rng.integers(0, spec.classes, spec.shape)
    if spec.kind == "bool":
        found = rng.integers(0, 3, spec.shape) == 0
        found[..., 0] = False
        return found
    if spec.kind == "sign":
        return np.where(rng.integers(0, 2, spec.shape) == 0, -1.0, 1.0)
    if spec.kind == "probability":
        return rng.uniform(0.02, 0.98, spec.shape)
    values = rng.standard_normal(spec.shape)
    if spec.kind == "distribution":
        e = np.exp(values)
        return e / e.sum(axis=1, keepdims=True)
    return values


def arguments(case: Case, wrap: Callable[[str, T, Any], Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a case's call, with every `T`, in tuples too, replaced by
    `wrap(name, spec, values)`."""

    def convert(name: str, value: Any) -> Any:
        if isinstance(value, tuple) and any(isinstance(v, T) for v in value):
            return tuple(convert(f"{name}_{i}", v) for i, v in enumerate(value))
        if not isinstance(value, T):
            return value
        return wrap(name, value, random_array(f"{case.name}.{name}", value))

    args = [convert(f"arg{i}", a) for i, a in enumerate(case.args)]
    return args, {k: convert(k, v) for k, v in case.kwargs.items()}


def results(result: Any) -> list[Any]:
    """The tensors that a call returns, in tuples too, in order."""
    if isinstance(result, tuple):
        return [t for r in result for t in results(r)]
    return [] if result is None else [result]


def parameter_value(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """First values of a module's parameters and buffers."""
    if name.endswith("num_batches_tracked"):
        return np.asarray(3)
    values = random_array(f"{case.name}.{name}", T(shape)) * 0.5
    return np.abs(values) + 0.5 if name.endswith("running_var") else values


def _f(target: str, *args: Any, **kwargs: Any) -> Case:
    return Case(target, args, kwargs)


def _m(target: str, init: tuple[Any, ...], *args: Any, training: bool = True, call: Any = None,
       **options: Any) -> Case:  # fmt: skip
    return Case(target, args, call or {}, init, options, training)


def _activations() -> list[Case]:
    x = T((3, 4))
    found = [
        _f(name, x)
        for name in (
            "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish",
            "logsigmoid", "tanhshrink", "softplus", "softsign", "hardtanh", "hardsigmoid",
            "hardswish", "hardshrink", "softshrink", "sigmoid", "tanh",
        )
    ]  # fmt: skip
    return [
        *found,
        _f("leaky_relu", x, negative_slope=0.2),
        _f("elu", x, alpha=0.5),
        _f("celu", x, alpha=0.5),
        _f("gelu", x, approximate="tanh"),
        _f("softplus", x, beta=2.0, threshold=1.0),
        _f("hardtanh", x, min_val=-0.3, max_val=0.4),
        _f("threshold", x, 0.1, 0.7),
        _f("prelu", T((2, 3, 4)), T((3,))),
        _f("prelu", x, T((1,))),
        _f("glu", T((3, 6))),
        _f("glu", T((4, 3)), dim=0),
        _f("softmax", x, dim=1),
        _f("softmin", x, dim=0),
        _f("log_softmax", T((2, 3, 4)), dim=1),
        _m("GELU", (), x, approximate="tanh"),
        _m("PReLU", (3,), T((2, 3, 4))),
        _m("Softmax", (), x, dim=-1),
        _m("Hardtanh", (-0.5, 0.5), x),
    ]


def _convolutions() -> list[Case]:
    x1, x2 = T((2, 4, 9)), T((2, 4, 6, 7))
    return [
        _f("conv1d", x1, T((6, 4, 3)), T((6,))),
        _f("conv1d", x1, T((6, 2, 3)), stride=2, padding=2, dilation=2, groups=2),
        _f("conv1d", x1, T((2, 4, 4)), padding="same"),
        _f("conv2d", x2, T((3, 4, 3, 3)), T((3,)), padding=1),
        _f("conv2d", x2, T((4, 1, 3, 2)), stride=(2, 1), padding=(1, 0), groups=4),
        _f("conv2d", x2, T((2, 4, 2, 3)), padding="same", dilation=(1, 2)),
        _f("conv2d", x2, T((2, 4, 3, 3)), padding="valid", stride=3),
        _f("conv2d", T((4, 5, 5)), T((2, 4, 3, 3))),
        _f("conv_transpose1d", x1, T((4, 3, 3)), T((3,)), stride=2, padding=1, output_padding=1),
        _f("conv_transpose2d", T((1, 4, 4, 5)), T((4, 2, 3, 2)), stride=(2, 3), padding=(1, 0),
           output_padding=(1, 2), groups=2),
        _f("conv_transpose2d", T((1, 2, 3, 3)), T((2, 2, 2, 2)), output_padding=2, dilation=3,
           padding=1),
        _f("conv_transpose1d", T((1, 2, 3)), T((2, 2, 2)), output_padding=2, dilation=3),
        _m("Conv1d", (4, 3, 3), x1, padding=1),
        _m("Conv2d", (4, 2, 3), T((1, 4, 5, 5)), padding=1, padding_mode="reflect", bias=False),
        _m("Conv2d", (4, 2, (3, 2)), T((1, 4, 4, 5)), padding=(2, 1), padding_mode="circular"),
        _m("Conv2d", (2, 2, 3), T((1, 2, 4, 5)), padding="same", padding_mode="replicate"),
        _m("ConvTranspose2d", (4, 2, 2), T((1, 4, 3, 3)), stride=2),
        _m("ConvTranspose1d", (4, 2, 3), x1, stride=2, output_padding=1),
    ]  # fmt: skip


def _poolings() -> list[Case]:
    x1, x2 = T((2, 3, 11)), T((2, 2, 7, 8))
    return [
        _f("max_pool1d", x1, 2),
        _f("max_pool1d", x1, 3, stride=2, padding=1, dilation=2),
        _f("max_pool2d", x2, 2),
        _f("max_pool2d", x2, 3, stride=2, padding=1),
        _f("max_pool2d", x2, (3, 2), stride=(1, 3), ceil_mode=True),
        _f("max_pool2d", T((3, 6, 6)), 2),
        _f("avg_pool1d", x1, 3, stride=2, padding=1),
        _f("avg_pool1d", x1, 4, stride=3, padding=2, ceil_mode=True, count_include_pad=False),
        _f("avg_pool2d", x2, 2),
        _f("avg_pool2d", x2, 3, stride=2, padding=1, count_include_pad=False),
        _f("avg_pool2d", x2, 3, stride=2, padding=1, ceil_mode=True),
        _f("avg_pool2d", x2, (2, 3), divisor_override=4),
        _f("adaptive_avg_pool1d", x1, 4),
        _f("adaptive_avg_pool2d", x2, 1),
        _f("adaptive_avg_pool2d", x2, (3, 4)),
        _f("adaptive_avg_pool2d", x2, (None, 3)),
        _f("adaptive_max_pool2d", T((2, 2, 6, 8)), (3, 2)),
        _f("unfold", x2, (3, 2), padding=1, stride=2),
        _m("MaxPool2d", (3,), x2, stride=2, padding=1),
        _m("AvgPool2d", (2,), x2, count_include_pad=False),
        _m("AdaptiveAvgPool2d", (1,), x2),
        _m("Flatten", (), T((2, 3, 4))),
        _m("Unflatten", (1, (2, 3)), T((2, 6))),
        _f("pad", T((2, 3, 4)), (1, 2)),
        _f("pad", T((2, 3, 4)), (1, -1, 0, 2), value=0.5),
        _f("pad", T((2, 3, 4)), (3, 1), mode="reflect"),
        _f("pad", T((1, 2, 3, 4)), (2, 1, 1, 2), mode="replicate"),
        _f("pad", T((1, 2, 3, 4)), (2, 1, 1, 2), mode="circular"),
    ]


def _normalizations() -> list[Case]:
    x = T((4, 3, 5))
    return [
        _f("layer_norm", x, (5,)),
        _f("layer_norm", x, (3, 5), T((3, 5)), T((3, 5)), eps=1e-3),
        _f("rms_norm", x, (5,), T((5,))),
        _f("group_norm", T((2, 6, 4)), 3, T((6,)), T((6,))),
        _f("instance_norm", x),
        _f("normalize", x),
        _f("normalize", x, p=3.0, dim=2),
        _f("normalize", x, p=1.0, dim=0),
        _f("cosine_similarity", x, T((4, 3, 5)), dim=2),
        _m("LayerNorm", (5,), x),
        _m("LayerNorm", ((3, 5),), x, bias=False),
        _m("RMSNorm", (5,), x, eps=1e-4),
        _m("GroupNorm", (2, 4), T((2, 4, 3, 3))),
        _m("GroupNorm", (4, 4), T((2, 4, 3)), affine=False),
        _m("InstanceNorm1d", (4,), T((2, 4, 5))),
        _m("InstanceNorm1d", (4,), T((4, 5)), affine=True),
        _m("InstanceNorm2d", (3,), T((2, 3, 4, 5)), affine=True, eps=1e-3),
        _m("BatchNorm1d", (3,), T((4, 3))),
        _m("BatchNorm1d", (3,), x, momentum=0.3, eps=1e-3),
        _m("BatchNorm1d", (3,), x, training=False),
        _m("BatchNorm1d", (3,), x, momentum=None),
        _m("BatchNorm2d", (3,), T((2, 3, 4, 2))),
        _m("BatchNorm2d", (3,), T((2, 3, 4, 2)), affine=False, track_running_stats=False),
        _m("BatchNorm2d", (3,), T((2, 3, 4, 2)), training=False, affine=False),
    ]


def _linear() -> list[Case]:
    x = T((3, 5, 6))
    causal = {"is_causal": True}
    encoder = {"dim_feedforward": 8, "dropout": 0.0}
    return [
        _f("linear", x, T((4, 6)), T((4,))),
        _f("linear", T((6,)), T((4, 6))),
        _f("bilinear", T((3, 2)), T((3, 4)), T((5, 2, 4)), T((5,))),
        _f("embedding", T((2, 3), "labels", 7), T((7, 4))),
        _f("embedding", T((8,), "labels", 4), T((4, 3)), padding_idx=-2),
        _f("one_hot", T((2, 3), "labels", 5), 5),
        _f("scaled_dot_product_attention", T((2, 3, 5, 4)), T((2, 3, 6, 4)), T((2, 3, 6, 7))),
        _f("scaled_dot_product_attention", T((2, 5, 4)), T((2, 5, 4)), T((2, 5, 4)), **causal),
        _f("scaled_dot_product_attention", T((5, 4)), T((6, 4)), T((6, 3)), T((5, 6)), scale=0.3),
        _m("Linear", (6, 4), x),
        _m("Linear", (6, 4), x, bias=False),
        _m("Bilinear", (2, 4, 5), T((3, 2)), T((3, 4))),
        _m("Embedding", (7, 4), T((2, 3), "labels", 7), padding_idx=2),
        _m("MultiheadAttention", (6, 2), T((5, 3, 6)), T((4, 3, 6)), T((4, 3, 6))),
        _m("MultiheadAttention", (6, 3), T((2, 5, 6)), T((2, 4, 3)), T((2, 4, 5)), kdim=3, vdim=5,
           batch_first=True, call={"average_attn_weights": False}),
        _m("MultiheadAttention", (6, 2), T((2, 4, 6)), T((2, 4, 6)), T((2, 4, 6)), bias=False,
           batch_first=True,
           call={"key_padding_mask": T((2, 4), "bool"), "attn_mask": T((4, 4), grad=False),
                 "need_weights": False}),
        _m("MultiheadAttention", (4, 2), T((3, 4)), T((5, 4)), T((5, 4))),
        _m("TransformerEncoderLayer", (6, 2), T((5, 3, 6)), **encoder),
        _m("TransformerEncoderLayer", (6, 2), T((3, 5, 6)), activation="gelu", batch_first=True,
           norm_first=True, call={"src_key_padding_mask": T((3, 5), "bool")}, **encoder),
    ]  # fmt: skip


def _losses() -> list[Case]:
    a, b = T((3, 4)), T((3, 4), grad=False)
    p = T((3, 4), "probability")
    logits, labels = T((4, 5)), T((4,), "labels", 5)
    maps, places = T((2, 3, 4)), T((2, 4), "labels", 3)
    found = [
        _f(name, a, b, reduction=r)
        for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
        for r in ("mean", "sum", "none")
    ]
    return [
        *found,
        _f("mse_loss", a, T((3, 4))),
        _f("smooth_l1_loss", a, b, beta=0.3),
        _f("smooth_l1_loss", a, b, beta=0.0),
        _f("huber_loss", a, b, delta=0.4),
        _f("binary_cross_entropy", p, T((3, 4), "probability", grad=False)),
        _f("binary_cross_entropy", p, T((3, 4), "probability", grad=False),
           T((4,), "probability", grad=False), reduction="sum"),
        _f("binary_cross_entropy_with_logits", a, T((3, 4), "probability")),
        _f("binary_cross_entropy_with_logits", a, T((3, 4), "probability"),
           T((4,), "probability", grad=False), reduction="none",
           pos_weight=T((4,), "probability", grad=False)),
        _f("kl_div", a, T((3, 4), "distribution")),
        _f("kl_div", a, T((3, 4), "distribution"), reduction="batchmean"),
        _f("kl_div", a, T((3, 4)), log_target=True, reduction="sum"),
        *(_f("nll_loss", logits, labels, reduction=r) for r in ("mean", "sum", "none")),
        _f("nll_loss", maps, places, T((3,), "probability", grad=False), ignore_index=1),
        *(_f("cross_entropy", logits, labels, reduction=r) for r in ("mean", "sum", "none")),
        _f("cross_entropy", T((5,)), T((), "labels", 5)),
        _f("cross_entropy", maps, places, T((3,), "probability", grad=False), ignore_index=2),
        _f("cross_entropy", maps, places, ignore_index=0, label_smoothing=0.1),
        _f("cross_entropy", maps, places, T((3,), "probability", grad=False), label_smoothing=0.2),
        _f("cross_entropy", maps, places, ignore_index=0, label_smoothing=0.3, reduction="none"),
        _f("cross_entropy", logits, T((4, 5), "distribution")),
        _f("cross_entropy", maps, T((2, 3, 4), "distribution"),
           T((3,), "probability", grad=False), label_smoothing=0.2),
        _f("cross_entropy", logits, T((4, 5), "distribution"), reduction="sum"),
        _f("soft_margin_loss", a, T((3, 4), "sign")),
        _f("hinge_embedding_loss", a, T((3, 4), "sign"), margin=0.5),
        _f("margin_ranking_loss", a, T((3, 4)), T((3, 4), "sign"), margin=0.2),
        _f("poisson_nll_loss", a, T((3, 4), "probability", grad=False), full=True),
        _f("poisson_nll_loss", p, T((3, 4), "probability", grad=False), log_input=False),
        _f("gaussian_nll_loss", a, T((3, 4)), T((3, 4), "probability"), full=True),
        _m("CrossEntropyLoss", (), logits, labels, label_smoothing=0.1),
        _m("MSELoss", (), a, b, reduction="sum"),
        _m("BCEWithLogitsLoss", (), a, T((3, 4), "probability")),
        _m("KLDivLoss", (), a, T((3, 4), "distribution"), reduction="batchmean"),
    ]  # fmt: skip


def _recurrent() -> list[Case]:
    x, flat, row = T((4, 2, 3)), T((4, 3)), T((2, 3))

    def h(*shape: int) -> T:
        return T((*shape, 5))

    both = {"num_layers": 2, "bidirectional": True}
    found = []
    for kind in ("RNN", "GRU", "LSTM"):

        def hx(*shape: int, kind: str = kind) -> Any:
            return (h(*shape), h(*shape)) if kind == "LSTM" else h(*shape)

        found += [
            _m(kind, (3, 5), x),
            _m(kind, (3, 5), x, hx(1, 2), bias=False),
            _m(kind, (3, 5), x, hx(4, 2), **both),
            _m(kind, (3, 5), T((2, 4, 3)), hx(2, 2), batch_first=True, num_layers=2),
            _m(kind, (3, 5), flat, hx(2), bidirectional=True),
            _m(kind, (3, 5), flat, batch_first=True),
            _m(f"{kind}Cell", (3, 5), row, hx(2)),
            _m(f"{kind}Cell", (3, 5), T((3,)), hx(), bias=False),
            _m(f"{kind}Cell", (3, 5), row),
        ]
    return [
        *found,
        _m("RNN", (3, 5), x, h(4, 2), nonlinearity="relu", **both),
        _m("RNNCell", (3, 5), row, h(2), nonlinearity="relu"),
        _m("LSTM", (3, 5), x, (T((4, 2, 2)), h(4, 2)), proj_size=2, **both),
        _m("LSTM", (3, 5), flat, proj_size=3, bias=False),
    ]


CASES = [
    *_activations(),
    *_convolutions(),
    *_poolings(),
    *_normalizations(),
    *_linear(),
    *_losses(),
    *_recurrent(),
]

# --- optimisers -----------------------------------------------------------------------------------

# Class, options, clipping (max norm, value).
OPTIMIZERS: list[tuple[str, dict[str, Any], tuple[float | None, float | None]]] = [
    ("SGD", {"lr": 0.1}, (None, None)),
    ("SGD", {"lr": 0.1, "momentum": 0.9}, (None, None)),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}, (None, None)),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}, (None, None)),
    ("SGD", {"lr": 0.01, "maximize": True, "weight_decay": 0.1}, (None, None)),
    ("SGD", {"lr": 0.1}, (0.5, None)),
    ("SGD", {"lr": 0.1}, (None, 0.1)),
    ("Adam", {}, (None, None)),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}, (None, None)),
    ("Adam", {"lr": 0.05, "amsgrad": True}, (None, None)),
    ("Adam", {"lr": 0.05, "maximize": True}, (0.7, None)),
    ("AdamW", {"lr": 0.05}, (None, None)),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True}, (None, None)),
    ("RMSprop", {}, (None, None)),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "momentum": 0.5, "centered": True}, (None, None)),
    ("RMSprop", {"weight_decay": 0.1, "eps": 1e-3}, (None, None)),
    ("Adagrad", {"lr": 0.1}, (None, None)),
    (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "weight_decay": 0.1},
        (None, None),
    ),
]
OPTIMIZER_STEPS = 4
OPTIMIZER_SHAPES = {"w": (3, 2), "b": (2,)}


def optimizer_data() -> dict[str, np.ndarray[Any, Any]]:
    """The parameters, inputs and targets of the regression that optimisers are compared on."""
    shapes = {**OPTIMIZER_SHAPES, "x": (8, 3), "y": (8, 2)}
    return {name: random_array(f"optimizer.{name}", T(shape)) for name, shape in shapes.items()}


# Class, arguments; the rates of the first steps are compared, of two groups.
SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 5, 5, 7], "gamma": 0.5}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 3}),
    ("LinearLR", {"start_factor": 0.2, "end_factor": 0.9, "total_iters": 6}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("PolynomialLR", {"total_iters": 8, "power": 2.0}),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": [0.5, 1.0], "total_steps": 12, "cycle_momentum": False}),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "epochs": 3, "steps_per_epoch": 5, "anneal_strategy": "linear",
         "three_phase": True, "cycle_momentum": False},
    ),
]  # fmt: skip
SCHEDULER_RATES = (0.1, 0.2)
SCHEDULER_STEPS = 11
PLATEAU = {"factor": 0.5, "patience": 1, "cooldown": 1, "min_lr": 0.03, "threshold": 0.1}
PLATEAU_METRICS = (1.0, 0.95, 0.92, 0.7, 0.69, 0.68, 0.67, 0.66, 0.65, 0.64, 0.3, 0.3, 0.3)
