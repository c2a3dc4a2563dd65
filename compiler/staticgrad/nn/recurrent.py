"""Recurrent layers and cells, with PyTorch's parameters and arguments: RNN, LSTM, GRU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from staticgrad.ir.errors import ArgumentError
from staticgrad.ir.loc import current_locs
from staticgrad.ops.tensor import Tensor

from . import functional as F
from . import init
from .linear import empty, size
from .module import Module


def _nonlinearity(given: str, what: str) -> str:
    if given not in ("tanh", "relu"):
        raise ArgumentError(f'{what}: nonlinearity must be "tanh" or "relu", got {given!r}')
    return given


def _reset(module: Module, hidden_size: int) -> None:
    """All parameters uniform in +-1/sqrt(hidden_size), as in PyTorch."""
    bound = 1 / math.sqrt(hidden_size)
    for p in module.parameters():
        init.uniform_(p, -bound, bound)


def _warn(message: str) -> None:
    """A warning at the user's line."""
    for loc in current_locs():
        warnings.warn_explicit(message, UserWarning, loc.file, loc.line)


class _Recurrent(Module):
    """What the layers share: parameters by layer and direction, in PyTorch's order and names."""

    _gates = 1

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool,
        dropout: float, bidirectional: bool, proj_size: int, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        what = type(self).__name__
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size", 1)
        self.num_layers = size(num_layers, "num_layers", 1)
        self.proj_size = size(proj_size, "proj_size")
        if self.proj_size >= self.hidden_size:
            raise ArgumentError(
                f"{what}: proj_size must be smaller than hidden_size={hidden_size}, got {proj_size}"
            )
        if not 0 <= dropout <= 1:
            raise ArgumentError(f"{what}: dropout must be between 0 and 1, got {dropout}")
        if dropout and self.num_layers == 1:
            _warn(f"{what}: dropout={dropout} is applied between layers, and there is one layer")
        self.bias, self.batch_first = bias, batch_first
        self.dropout, self.bidirectional = dropout, bidirectional
        self._names: list[str] = []
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse") if bidirectional else ("",):
                self._add_weights(layer, f"_l{layer}{suffix}", device, dtype)
        self.reset_parameters()

    def _add_weights(self, layer: int, suffix: str, device: Any, dtype: Any) -> None:
        """The parameters of one direction of one layer."""
        gates = self._gates * self.hidden_size
        state = self.proj_size or self.hidden_size
        inputs = state * (2 if self.bidirectional else 1) if layer else self.input_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (gates, inputs),
            "weight_hh": (gates, state),
        }
        if self.bias:
            shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, empty(shape, device, dtype))
            self._names.append(name + suffix)

    def reset_parameters(self) -> None:
        _reset(self, self.hidden_size)

    def _arguments(self) -> tuple[Any, ...]:
        """What the function of the layer is given after the input and the first state."""
        return (
            [getattr(self, name) for name in self._names], self.bias, self.num_layers, self.dropout,
            self.training, self.bidirectional, self.batch_first,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        plain = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False,
        }  # fmt: skip
        for name, default in plain.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


class RNN(_Recurrent):
    """`h_t = tanh(x_t W_ih^T + b_ih + h_(t-1) W_hh^T + b_hh)`, or ReLU in place of tanh.

    Parameters as in PyTorch, for layer k: weight_ih_l{k} [H, I], weight_hh_l{k} [H, H],
    bias_ih_l{k} and bias_hh_l{k} [H]; with `bidirectional` the same with the suffix "_reverse".
    Layers after the first have the outputs of the layer before as I. First values are uniform in
    +-1/sqrt(H). `dropout` is applied to the outputs of all layers but the last, in training.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0,
            device, dtype,
        )  # fmt: skip
        self.nonlinearity = _nonlinearity(nonlinearity, "RNN")

    def forward(self, input: Any, hx: Any = None) -> tuple[Tensor, Tensor]:
        """input: [L, N, I], [N, L, I] with `batch_first`, or [L, I]; hx: [layers*D, N, H] or
        [layers*D, H], zeros by default, D = 2 with `bidirectional`. Returns the outputs of the last
        layer, [.., D*H], and the last state of every layer and direction, of the shape of hx."""
        function = F.rnn_relu if self.nonlinearity == "relu" else F.rnn_tanh
        return function(input, hx, *self._arguments())

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.nonlinearity == "tanh" else f"{text}, nonlinearity='relu'"


class GRU(_Recurrent):
    """Gated recurrent units.

        r = sigmoid(x W_ir^T + b_ir + h W_hr^T + b_hr)      z likewise
        n = tanh(x W_in^T + b_in + r * (h W_hn^T + b_hn))
        h' = (1 - z) * n + z * h

    Parameters and arguments as in `RNN`, with weight_ih [3*H, I], weight_hh [3*H, H] and biases
    [3*H], in the order r, z, n.
    """

    _gates = 3

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0,
            device, dtype,
        )  # fmt: skip

    def forward(self, input: Any, hx: Any = None) -> tuple[Tensor, Tensor]:
        """input: [L, N, I], [N, L, I] with `batch_first`, or [L, I]; hx: [layers*D, N, H] or
        [layers*D, H], zeros by default, D = 2 with `bidirectional`. Returns the outputs of the last
        layer, [.., D*H], and the last state of every layer and direction, of the shape of hx."""
        return F.gru(input, hx, *self._arguments())


class LSTM(_Recurrent):
    """Long short-term memory.

        i, f, o = sigmoid(x W_i*^T + b_i* + h W_h*^T + b_h*)      g likewise with tanh
        c' = f * c + i * g      h' = o * tanh(c')

    Parameters and arguments as in `RNN`, with weight_ih [4*H, I], weight_hh [4*H, H] and biases
    [4*H], in the order i, f, g, o. With `proj_size=P` h is projected by weight_hr [P, H], and
    weight_hh is [4*H, P].
    """

    _gates = 4

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        proj_size: int = 0, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype,
        )  # fmt: skip

    def forward(
        self, input: Any, hx: Sequence[Any] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """input: [L, N, I], [N, L, I] with `batch_first`, or [L, I]; hx: a pair of h_0
        [layers*D, N, H] (P in place of H with `proj_size`) and c_0 [layers*D, N, H], without N
        where the input has none; zeros by default. D = 2 with `bidirectional`. Returns the outputs
        of the last layer, [.., D*H], and the pair of the last h and c of every layer and direction.
        """
        y, h, c = F.lstm(input, hx, *self._arguments())
        return y, (h, c)


class _Cell(Module):
    """What the cells share."""

    _gates = 1

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size", 1)
        self.bias = bias
        gates = self._gates * self.hidden_size
        self.weight_ih = empty((gates, self.input_size), device, dtype)
        self.weight_hh = empty((gates, self.hidden_size), device, dtype)
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, empty((gates,), device, dtype) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _reset(self, self.hidden_size)

    def _weights(self) -> tuple[Any, ...]:
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        return text if self.bias else f"{text}, bias=False"


class RNNCell(_Cell):
    """One step of an `RNN`. weight_ih: [H, I], weight_hh: [H, H], bias_ih, bias_hh: [H]."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = _nonlinearity(nonlinearity, "RNNCell")

    def forward(self, input: Any, hx: Any = None) -> Tensor:
        """input: [N, I] or [I]; hx: [N, H] or [H], zeros by default. Returns the new h."""
        function = F.rnn_relu_cell if self.nonlinearity == "relu" else F.rnn_tanh_cell
        return function(input, hx, *self._weights())

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.nonlinearity == "tanh" else f"{text}, nonlinearity='relu'"


class GRUCell(_Cell):
    """One step of a `GRU`. weight_ih: [3*H, I], weight_hh: [3*H, H], bias_ih, bias_hh: [3*H]."""

    _gates = 3

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Any, hx: Any = None) -> Tensor:
        """input: [N, I] or [I]; hx: [N, H] or [H], zeros by default. Returns the new h."""
        return F.gru_cell(input, hx, *self._weights())


class LSTMCell(_Cell):
    """One step of an `LSTM`. weight_ih: [4*H, I], weight_hh: [4*H, H], bias_ih, bias_hh: [4*H]."""

    _gates = 4

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Any, hx: Sequence[Any] | None = None) -> tuple[Tensor, Tensor]:
        """input: [N, I] or [I]; hx: a pair of [N, H] or [H], zeros by default. Returns the new
        (h, c)."""
        return F.lstm_cell(input, hx, *self._weights())


__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
