"""Convolution layers."""

from __future__ import annotations

from typing import Any

from staticgrad.ir.errors import ArgumentError
from staticgrad.ops.tensor import Tensor

from . import functional as F
from . import init
from .functional.convolution import ints
from .linear import empty, size
from .module import Module

_PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate",
                  "circular": "circular"}  # fmt: skip


class _Conv(Module):
    """What convolutions and their transposes share."""

    _dims: int
    _transposed = False

    def _set_up(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any,
        dilation: Any, groups: int, bias: bool, padding_mode: str, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        dims, name = self._dims, type(self).__name__
        self.in_channels = size(in_channels, "in_channels", 1)
        self.out_channels = size(out_channels, "out_channels", 1)
        self.groups = size(groups, "groups", 1)
        for what, channels in (("in", in_channels), ("out", out_channels)):
            if channels % groups:
                raise ArgumentError(
                    f"{name}: {groups} groups do not divide {what}_channels={channels}"
                )
        self.kernel_size = ints(kernel_size, dims, f"{name}: kernel_size", 1)
        self.stride = ints(stride, dims, f"{name}: stride", 1)
        self.dilation = ints(dilation, dims, f"{name}: dilation", 1)
        words = () if self._transposed else ("same", "valid")
        if isinstance(padding, str) and padding not in words:
            allowed = "ints" if self._transposed else 'ints, "same" or "valid"'
            raise ArgumentError(f"{name}: padding must be {allowed}, got {padding!r}")
        self.padding = (
            padding if isinstance(padding, str) else ints(padding, dims, f"{name}: padding")
        )
        if padding_mode not in _PADDING_MODES:
            raise ArgumentError(
                f"{name}: padding_mode must be one of {tuple(_PADDING_MODES)}, got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        first, second = self.out_channels, self.in_channels
        if self._transposed:
            first, second = second, first
        shape = (first, second // self.groups, *self.kernel_size)
        self.weight = empty(shape, device, dtype)
        bias_shape = (self.out_channels,)
        self.register_parameter("bias", empty(bias_shape, device, dtype) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.linear_defaults(self.weight, self.bias)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        defaults = {"padding": (0,) * self._dims, "dilation": (1,) * self._dims,
                    "output_padding": (0,) * self._dims, "groups": 1,
                    "padding_mode": "zeros"}  # fmt: skip
        for name, default in defaults.items():
            value = getattr(self, name, default)
            if value != default:
                text += f", {name}={value!r}" if name != "padding_mode" else f", {name}={value}"
        return text if self.bias is not None else f"{text}, bias=False"


class _Forward(_Conv):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip

    def _edges(self) -> tuple[int, ...]:
        """The padding in the order of `F.pad`: the last dim first."""
        pairs = [(p, p) for p in self.padding] if isinstance(self.padding, tuple) else []
        if self.padding == "same":
            total = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation)]
            pairs = [(t // 2, t - t // 2) for t in total]
        return tuple(p for pair in reversed(pairs) for p in pair)

    def forward(self, input: Any) -> Tensor:
        conv = F.conv1d if self._dims == 1 else F.conv2d
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._edges(), mode=_PADDING_MODES[self.padding_mode])
            padding = 0
        return conv(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(_Forward):
    """Convolution of [N, C, L]; weight: [out_channels, in_channels/groups, K]."""

    _dims = 1


class Conv2d(_Forward):
    """Convolution of [N, C, H, W]; weight: [out_channels, in_channels/groups, KH, KW].

    First values are uniform in +-1/sqrt(in_channels/groups * KH * KW), as in PyTorch.
    """

    _dims = 2


class _Transposed(_Conv):
    _transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, output_padding: Any = 0, groups: int = 1, bias: bool = True,
        dilation: Any = 1, padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        if padding_mode != "zeros":
            raise ArgumentError(f'{name}: only padding_mode="zeros" exists, got {padding_mode!r}')
        self.output_padding = ints(output_padding, self._dims, f"{name}: output_padding")
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip

    def forward(self, input: Any) -> Tensor:
        conv = F.conv_transpose1d if self._dims == 1 else F.conv_transpose2d
        return conv(
            input, self.weight, self.bias, self.stride, self.padding, self.output_padding,
            self.groups, self.dilation,
        )  # fmt: skip


class ConvTranspose1d(_Transposed):
    """The transposed convolution of [N, C, L]; weight: [in_channels, out_channels/groups, K]."""

    _dims = 1


class ConvTranspose2d(_Transposed):
    """The transposed convolution of [N, C, H, W]; weight: [in_channels, out_channels/groups, KH,
    KW]."""

    _dims = 2


__all__ = ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"]
