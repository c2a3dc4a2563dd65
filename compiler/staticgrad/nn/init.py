"""First values of parameters, by PyTorch's names: each writes into a parameter and returns it.

All draw from the host's Philox generator, seeded by `sg.random.seed`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.random import init_normal, init_uniform

Array = np.ndarray[Any, Any]


def _target(tensor: Any, what: str) -> Parameter:
    if not isinstance(tensor, Parameter):
        raise ArgumentTypeError(f"{what}: expected a parameter, got {type(tensor).__name__}")
    return tensor


def _shape(tensor: Parameter) -> tuple[int, ...]:
    return tuple(tensor.cell.shape)


def uniform_(tensor: Parameter, a: float = 0.0, b: float = 1.0) -> Parameter:
    """Uniform in [a, b)."""
    p = _target(tensor, "uniform_")
    p.assign(init_uniform(_shape(p), a, b, p.dtype))
    return p


def normal_(tensor: Parameter, mean: float = 0.0, std: float = 1.0) -> Parameter:
    """Normal with the given mean and standard deviation."""
    p = _target(tensor, "normal_")
    p.assign(init_normal(_shape(p), mean, std, p.dtype))
    return p


def constant_(tensor: Parameter, val: float) -> Parameter:
    """The same value everywhere."""
    p = _target(tensor, "constant_")
    p.assign(np.full(_shape(p), val, p.dtype.numpy))
    return p


def zeros_(tensor: Parameter) -> Parameter:
    """0 everywhere."""
    return constant_(tensor, 0)


def ones_(tensor: Parameter) -> Parameter:
    """1 everywhere."""
    return constant_(tensor, 1)


def eye_(tensor: Parameter) -> Parameter:
    """The identity matrix, of a 2-d parameter."""
    p = _target(tensor, "eye_")
    if p.ndim != 2:
        raise ShapeError(f"eye_: expected 2 dims, got {p.type}")
    p.assign(np.eye(*_shape(p), dtype=p.dtype.numpy))
    return p


def trunc_normal_(
    tensor: Parameter, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Parameter:
    """Normal, drawn again where it falls outside of [a, b].

    Raises `ArgumentError` where almost nothing falls inside.
    """
    p = _target(tensor, "trunc_normal_")
    if not std > 0:
        raise ArgumentError(f"trunc_normal_: std must be positive, got {std}")
    inside = 0.5 * (math.erf((b - mean) / (std * 2**0.5)) - math.erf((a - mean) / (std * 2**0.5)))
    if inside < 1e-3:
        raise ArgumentError(f"trunc_normal_: [{a}, {b}] holds less than 0.1% of the distribution")
    drawn = np.asarray(init_normal(_shape(p), mean, std, p.dtype)).copy()
    outside = (drawn < a) | (drawn > b)
    while outside.any():
        drawn[outside] = init_normal((int(outside.sum()),), mean, std, p.dtype)
        outside = (drawn < a) | (drawn > b)
    p.assign(drawn)
    return p


def orthogonal_(tensor: Parameter, gain: float = 1.0) -> Parameter:
    """A matrix with orthonormal rows or columns, whichever are fewer; dims after the first are
    taken together. Source: Saxe et al., arXiv 1312.6120."""
    p = _target(tensor, "orthogonal_")
    if p.ndim < 2:
        raise ShapeError(f"orthogonal_: expected at least 2 dims, got {p.type}")
    rows = _shape(p)[0]
    flat = np.asarray(init_normal(_shape(p), 0.0, 1.0, "float64")).reshape(rows, -1)
    tall = flat.T if rows < flat.shape[1] else flat
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    q = q.T if rows < flat.shape[1] else q
    p.assign((gain * q).reshape(_shape(p)).astype(p.dtype.numpy))
    return p


_GAINS = {
    **dict.fromkeys(
        ("linear", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "sigmoid"), 1.0
    ),
    "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity, as PyTorch's table has it."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        known = ", ".join((*_GAINS, "leaky_relu"))
        raise ArgumentError(f"unknown nonlinearity {nonlinearity!r}; known are {known}")
    return _GAINS[nonlinearity]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan in, fan out) of a weight [out, in, *window]: inputs and outputs of one unit."""
    if len(shape) < 2:
        raise ShapeError(f"fan in and fan out need at least 2 dims, got {shape}")
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


def xavier_uniform_(tensor: Parameter, gain: float = 1.0) -> Parameter:
    """Uniform in +-gain*sqrt(6 / (fan_in + fan_out)). Source: Glorot and Bengio, 2010."""
    bound = gain * math.sqrt(6.0 / sum(fans(_shape(_target(tensor, "xavier_uniform_")))))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Parameter, gain: float = 1.0) -> Parameter:
    """Normal with std gain*sqrt(2 / (fan_in + fan_out)). Source: Glorot and Bengio, 2010."""
    std = gain * math.sqrt(2.0 / sum(fans(_shape(_target(tensor, "xavier_normal_")))))
    return normal_(tensor, 0.0, std)


def _kaiming_std(shape: tuple[int, ...], a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f'mode must be "fan_in" or "fan_out", got {mode!r}')
    fan = fans(shape)[mode == "fan_out"]
    # A weight without elements has nothing to draw.
    return calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0


def kaiming_uniform_(
    tensor: Parameter, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Parameter:
    """Uniform in +-gain*sqrt(3 / fan). Source: He et al., arXiv 1502.01852."""
    shape = _shape(_target(tensor, "kaiming_uniform_"))
    bound = math.sqrt(3.0) * _kaiming_std(shape, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Parameter, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Parameter:
    """Normal with std gain/sqrt(fan). Source: He et al., arXiv 1502.01852."""
    shape = _shape(_target(tensor, "kaiming_normal_"))
    return normal_(tensor, 0.0, _kaiming_std(shape, a, mode, nonlinearity))


def linear_defaults(weight: Parameter, bias: Parameter | None) -> None:
    """PyTorch's defaults of linear layers and convolutions: both uniform in +-1/sqrt(fan_in)."""
    kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        fan_in = fans(_shape(weight))[0]
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        uniform_(bias, -bound, bound)


__all__ = [
    "calculate_gain",
    "constant_",
    "eye_",
    "fans",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]
