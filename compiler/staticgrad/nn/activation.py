"""Activations as modules, with PyTorch's names, arguments and defaults."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError
from staticgrad.ops.tensor import Tensor

from . import functional as F
from .linear import empty, size
from .module import Module


class Sigmoid(Module):
    """`1 / (1 + exp(-x))`."""

    def forward(self, input: Any) -> Tensor:
        return F.sigmoid(input)


class LogSigmoid(Module):
    """`log(sigmoid(x))`."""

    def forward(self, input: Any) -> Tensor:
        return F.logsigmoid(input)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, input: Any) -> Tensor:
        return F.tanh(input)


class Tanhshrink(Module):
    """`x - tanh(x)`."""

    def forward(self, input: Any) -> Tensor:
        return F.tanhshrink(input)


class Softsign(Module):
    """`x / (1 + |x|)`."""

    def forward(self, input: Any) -> Tensor:
        return F.softsign(input)


class _InPlace(Module):
    """A function whose only argument is `inplace`, which is accepted and not needed: values of a
    graph are never changed, and the compiler reuses their memory by itself."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class ReLU(_InPlace):
    """`max(x, 0)`; the gradient at 0 is 0."""

    def forward(self, input: Any) -> Tensor:
        return F.relu(input)


class ReLU6(_InPlace):
    """`min(max(x, 0), 6)`."""

    def forward(self, input: Any) -> Tensor:
        return F.relu6(input)


class SELU(_InPlace):
    """The activation of self-normalising networks."""

    def forward(self, input: Any) -> Tensor:
        return F.selu(input)


class SiLU(_InPlace):
    """`x * sigmoid(x)`."""

    def forward(self, input: Any) -> Tensor:
        return F.silu(input)


class Mish(_InPlace):
    """`x * tanh(softplus(x))`."""

    def forward(self, input: Any) -> Tensor:
        return F.mish(input)


class Hardswish(_InPlace):
    """`x * hardsigmoid(x)`."""

    def forward(self, input: Any) -> Tensor:
        return F.hardswish(input)


class Hardsigmoid(_InPlace):
    """`min(max(x + 3, 0), 6) / 6`."""

    def forward(self, input: Any) -> Tensor:
        return F.hardsigmoid(input)


class LeakyReLU(Module):
    """`x` where x > 0, else `negative_slope * x`."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, input: Any) -> Tensor:
        return F.leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(Module):
    """`x` where x > 0, else `weight * x` with a learned weight for all or for each channel."""

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_parameters = size(num_parameters, "num_parameters", 1)
        self.weight = empty((self.num_parameters,), device, dtype)
        self.weight.assign(np.full(self.num_parameters, init, self.weight.dtype.numpy))

    def forward(self, input: Any) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class ELU(Module):
    """`x` where x > 0, else `alpha * (exp(x) - 1)`."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, input: Any) -> Tensor:
        return F.elu(input, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class CELU(ELU):
    """`max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)`."""

    def forward(self, input: Any) -> Tensor:
        return F.celu(input, self.alpha)


class GELU(Module):
    """`x * Phi(x)`; `approximate="tanh"` for its approximation."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ArgumentError(f'GELU: approximate must be "none" or "tanh", got {approximate!r}')
        self.approximate = approximate

    def forward(self, input: Any) -> Tensor:
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softplus(Module):
    """`log(1 + exp(beta * x)) / beta`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: Any) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class Hardtanh(Module):
    """`x` held between `min_val` and `max_val`."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if not min_val < max_val:
            raise ArgumentError(
                f"Hardtanh: min_val must be below max_val, got {min_val} and {max_val}"
            )
        self.min_val = min_val
        self.max_val = max_val

    def forward(self, input: Any) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


class Threshold(Module):
    """`x` where x > threshold, else `value`."""

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        super().__init__()
        self.threshold = threshold
        self.value = value

    def forward(self, input: Any) -> Tensor:
        return F.threshold(input, self.threshold, self.value)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, value={self.value}"


class Hardshrink(Module):
    """`x` where |x| > lambd, else 0."""

    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, input: Any) -> Tensor:
        return F.hardshrink(input, self.lambd)

    def extra_repr(self) -> str:
        return str(self.lambd)


class Softshrink(Hardshrink):
    """`x` moved towards 0 by lambd."""

    def forward(self, input: Any) -> Tensor:
        return F.softshrink(input, self.lambd)


class _AlongDim(Module):
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_AlongDim):
    """`exp(x) / sum(exp(x))` along `dim`."""

    def forward(self, input: Any) -> Tensor:
        return F.softmax(input, self.dim)


class LogSoftmax(_AlongDim):
    """`log(softmax(x))` along `dim`."""

    def forward(self, input: Any) -> Tensor:
        return F.log_softmax(input, self.dim)


class Softmin(_AlongDim):
    """`softmax(-x)` along `dim`."""

    def forward(self, input: Any) -> Tensor:
        return F.softmin(input, self.dim)


class GLU(_AlongDim):
    """`a * sigmoid(b)` of the halves a and b along `dim`."""

    def forward(self, input: Any) -> Tensor:
        return F.glu(input, self.dim)


__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]
