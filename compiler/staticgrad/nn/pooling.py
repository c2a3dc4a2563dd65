"""Pooling layers and changes of shape."""

from __future__ import annotations

from typing import Any

from staticgrad.ops.convert import as_tensor
from staticgrad.ops.public import list_of
from staticgrad.ops.shape import flatten, unflatten
from staticgrad.ops.tensor import Tensor

from . import functional as F
from .functional.convolution import ints
from .module import Module


class _Windowed(Module):
    """What layers with windows share: their sizes are checked when the layer is made."""

    _dims = 2

    def _check(self, least: int = 1, **sizes: Any) -> None:
        for name, value in sizes.items():
            if value is not None:
                ints(value, self._dims, f"{type(self).__name__}: {name}", least)


class _MaxPool(_Windowed):
    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        return_indices: bool = False, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._check(kernel_size=kernel_size, stride=stride, dilation=dilation)
        self._check(0, padding=padding)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def _arguments(self) -> tuple[Any, ...]:
        return (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
                self.return_indices)  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """The maximum of each window of [N, C, L]."""

    _dims = 1

    def forward(self, input: Any) -> Tensor:
        return F.max_pool1d(input, *self._arguments())


class MaxPool2d(_MaxPool):
    """The maximum of each window of [N, C, H, W]."""

    def forward(self, input: Any) -> Tensor:
        return F.max_pool2d(input, *self._arguments())


class AvgPool1d(_Windowed):
    """The mean of each window of [N, C, L]."""

    _dims = 1

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self._check(kernel_size=kernel_size, stride=stride)
        self._check(0, padding=padding)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Any) -> Tensor:
        return F.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(AvgPool1d):
    """The mean of each window of [N, C, H, W]."""

    _dims = 2

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad)
        self.divisor_override = divisor_override

    def forward(self, input: Any) -> Tensor:
        return F.avg_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override,
        )  # fmt: skip


class _Adaptive(_Windowed):
    def __init__(self, output_size: Any) -> None:
        super().__init__()
        entries = output_size if isinstance(output_size, (tuple, list)) else (output_size,)
        self._check(0, output_size=tuple(1 if e is None else e for e in entries))
        self.output_size = output_size

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_Adaptive):
    """The mean of `output_size` nearly even parts of the last dim."""

    _dims = 1

    def forward(self, input: Any) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(_Adaptive):
    """The mean of nearly even parts of the last two dims; `output_size` 1 is global pooling."""

    def forward(self, input: Any) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool1d(_Adaptive):
    """The maximum of `output_size` even parts of the last dim."""

    _dims = 1

    def forward(self, input: Any) -> Tensor:
        return F.adaptive_max_pool1d(input, self.output_size)


class AdaptiveMaxPool2d(_Adaptive):
    """The maximum of even parts of the last two dims."""

    def forward(self, input: Any) -> Tensor:
        return F.adaptive_max_pool2d(input, self.output_size)


class Flatten(Module):
    """Dims from `start_dim` to `end_dim` as one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Any) -> Tensor:
        return flatten(as_tensor(input, "Flatten"), self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """One dim as several; one of the sizes may be -1."""

    def __init__(self, dim: int, unflattened_size: Any) -> None:
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(
            list_of(unflattened_size, "Unflatten: unflattened_size", "ints")
        )

    def forward(self, input: Any) -> Tensor:
        return unflatten(as_tensor(input, "Unflatten"), self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class Unfold(_Windowed):
    """The windows of [N, C, H, W] as columns."""

    def __init__(
        self, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
    ) -> None:
        super().__init__()
        self._check(kernel_size=kernel_size, dilation=dilation, stride=stride)
        self._check(0, padding=padding)
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride

    def forward(self, input: Any) -> Tensor:
        return F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, dilation={self.dilation}, padding={self.padding}, "
            f"stride={self.stride}"
        )


__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "Flatten",
    "MaxPool1d",
    "MaxPool2d",
    "Unflatten",
    "Unfold",
]
