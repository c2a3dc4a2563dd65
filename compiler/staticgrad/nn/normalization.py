"""Normalisation layers and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dim import as_shape
from staticgrad.ir.errors import ArgumentError, ShapeError, UnsupportedError
from staticgrad.ir.node import Value
from staticgrad.ops.conv import channels_last
from staticgrad.ops.convert import as_tensor, astype
from staticgrad.ops.shape import expand_dims, squeeze
from staticgrad.ops.tensor import Tensor

from . import functional as F
from . import init
from .functional.normalization import normalise_batch
from .linear import empty, size
from .mode import mode_of
from .module import Module


class _BatchNorm(Module):
    """Batch normalisation: the batch's statistics in training, the running ones in evaluation.

    Running statistics are state that is not trained; a training executable updates them.
    """

    _ranks: tuple[int, ...]

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features = size(num_features, "num_features")
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        shape = (self.num_features,)
        for name in ("weight", "bias"):
            self.register_parameter(name, empty(shape, device, dtype) if affine else None)
        zeros = empty(shape, device, dtype).numpy() if track_running_stats else None
        self.register_buffer("running_mean", zeros)
        self.register_buffer("running_var", None if zeros is None else zeros + 1)
        self.register_buffer(
            "num_batches_tracked", None if zeros is None else np.zeros((), np.int64)
        )
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            self.num_batches_tracked.assign(np.zeros((), np.int64))

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.affine:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.ndim not in self._ranks:
            ranks = " or ".join(map(str, self._ranks))
            raise ShapeError(f"{name}: expected an input of {ranks} dims, got {x.type}")
        if isinstance(x.shape[1], int) and x.shape[1] != self.num_features:
            raise ShapeError(
                f"{name}: expected {self.num_features} channels in dim 1, got {x.type}"
                f"{channels_last(x.shape, self.num_features)}"
            )

    def forward(self, input: Any) -> Tensor:
        x = as_tensor(input, type(self).__name__)
        self._check(x)
        scale = (self.weight, self.bias)
        mode = mode_of(self.training)
        if not self.track_running_stats:
            return normalise_batch(x, None, scale, mode, 0.0, self.eps)
        counted = self.num_batches_tracked + 1
        momentum: Any = self.momentum
        if momentum is None:  # the average over all batches
            momentum = 1.0 / astype(counted, x.dtype)
        updates: list[tuple[Value, Value]] = [(self.num_batches_tracked, counted)]
        running = (self.running_mean, self.running_var)
        return normalise_batch(x, running, scale, mode, momentum, self.eps, updates)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of [N, C] or [N, C, L], by channel."""

    _ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of [N, C, H, W], by channel."""

    _ranks = (4,)


class _OverShape(Module):
    """What LayerNorm and RMSNorm share: the last dims that they normalise over."""

    def _set_shape(self, normalized_shape: Any, elementwise_affine: bool) -> tuple[int, ...]:
        shape = as_shape(normalized_shape)
        if not shape or not all(isinstance(d, int) for d in shape):
            raise ArgumentError(
                f"{type(self).__name__}: normalized_shape must be ints, got {normalized_shape!r}"
            )
        self.normalized_shape = tuple(int(d) for d in shape)
        self.elementwise_affine = elementwise_affine
        return self.normalized_shape

    def _shape_text(self) -> str:
        inner = ", ".join(map(str, self.normalized_shape))
        return f"({inner},)" if len(self.normalized_shape) == 1 else f"({inner})"


class LayerNorm(_OverShape):
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dims."""

    def __init__(
        self, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True,
        bias: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        shape = self._set_shape(normalized_shape, elementwise_affine)
        self.eps = eps
        has = {"weight": elementwise_affine, "bias": elementwise_affine and bias}
        for name, wanted in has.items():
            self.register_parameter(name, empty(shape, device, dtype) if wanted else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Any) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self._shape_text()}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(_OverShape):
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dims."""

    def __init__(
        self, normalized_shape: Any, eps: float | None = None, elementwise_affine: bool = True,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        shape = self._set_shape(normalized_shape, elementwise_affine)
        self.eps = eps
        self.register_parameter(
            "weight", empty(shape, device, dtype) if elementwise_affine else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Any) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self._shape_text()}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Standardises groups of channels of [N, C, ..], then scales by channel."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_groups = size(num_groups, "num_groups", 1)
        self.num_channels = size(num_channels, "num_channels")
        if num_channels % num_groups:
            raise ArgumentError(
                f"GroupNorm: {num_groups} groups do not divide {num_channels} channels"
            )
        self.eps = eps
        self.affine = affine
        shape = (self.num_channels,)
        for name in ("weight", "bias"):
            self.register_parameter(name, empty(shape, device, dtype) if affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.affine:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, input: Any) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _InstanceNorm(Module):
    """Standardises each channel of each example, by its own statistics in evaluation too."""

    _rank: int

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = False,
        track_running_stats: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if track_running_stats:
            raise UnsupportedError(
                f"{type(self).__name__}: track_running_stats=True is not supported: an example is "
                "standardised by its own statistics; nn.BatchNorm1d and BatchNorm2d track theirs"
            )
        self.num_features = size(num_features, "num_features")
        self.eps, self.momentum, self.affine = eps, momentum, affine
        self.track_running_stats = False
        for name in ("weight", "bias"):
            value = empty((self.num_features,), device, dtype) if affine else None
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.affine:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, input: Any) -> Tensor:
        name = type(self).__name__
        x = as_tensor(input, name)
        if x.ndim not in (self._rank - 1, self._rank):
            raise ShapeError(
                f"{name}: expected an input of {self._rank - 1} or {self._rank} dims, got {x.type}"
            )
        alone = x.ndim < self._rank  # one example, without an axis of examples
        x = expand_dims(x, axis=0) if alone else x
        if isinstance(x.shape[1], int) and x.shape[1] != self.num_features:
            raise ShapeError(
                f"{name}: expected {self.num_features} channels, got {x.type}"
                f"{channels_last(x.shape, self.num_features)}"
            )
        y = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return squeeze(y, axis=0) if alone else y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class InstanceNorm1d(_InstanceNorm):
    """Standardises each channel of [N, C, L] or [C, L] over L; with `affine` then scales it."""

    _rank = 3


class InstanceNorm2d(_InstanceNorm):
    """Standardises each channel of [N, C, H, W] or [C, H, W]; with `affine` then scales it."""

    _rank = 4


class _Dropout(Module):
    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if isinstance(p, bool) or not 0 <= p <= 1:
            raise ArgumentError(f"{type(self).__name__}: p must be between 0 and 1, got {p!r}")
        self.p = p
        self.inplace = inplace

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_Dropout):
    """In training, each element is 0 with probability p, else divided by 1 - p."""

    def forward(self, input: Any) -> Tensor:
        return F.dropout(input, self.p, self.training)


class Dropout1d(_Dropout):
    """`Dropout` of whole channels of [N, C, L]."""

    def forward(self, input: Any) -> Tensor:
        return F.dropout1d(input, self.p, self.training)


class Dropout2d(_Dropout):
    """`Dropout` of whole channels of [N, C, H, W]."""

    def forward(self, input: Any) -> Tensor:
        return F.dropout2d(input, self.p, self.training)


__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
]
