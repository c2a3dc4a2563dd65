"""Recurrent networks and their cells, on `scan`: tanh and ReLU RNNs, LSTM, GRU.

The inputs of all steps meet their weights in one product before the loop, so that an iteration is
the product of the state with its weights and the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from staticgrad.api.control import scan
from staticgrad.ir.dim import DimLike, product, shape_text
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType
from staticgrad.ops.activation import relu, sigmoid
from staticgrad.ops.convert import promoted
from staticgrad.ops.elementwise import zeros_as
from staticgrad.ops.joining import concat, stack
from staticgrad.ops.public import list_of, shown
from staticgrad.ops.shape import expand_dims, may_equal, reshape, squeeze, swapaxes
from staticgrad.ops.slicing import narrow
from staticgrad.ops.tensor import Tensor
from staticgrad.ops.trigonometric import tanh

from .linear import dropout as _dropout
from .linear import linear

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Weights:
    """The weights of one direction of one layer. w_ih: [G*H, I], w_hh: [G*H, H] (with a
    projection [G*H, P]), b_ih and b_hh: [G*H], w_hr: [P, H]; G gates."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None


@dataclass(frozen=True)
class _Cell:
    """A kind of cell.

    states   how many tensors it carries: h, and the LSTM's c
    apart    whether b_hh is added in the step: where a gate is multiplied with the state's part
    step     input part [N, G*H], state, weights -> new state
    """

    gates: int
    states: int
    apart: bool
    step: Callable[[Tensor, State, Weights], State]


def _gates(x: Tensor, count: int) -> list[Tensor]:
    """[.., count*H] -> count times [.., H]"""
    width = x.shape[-1] // count
    return [narrow(x, x.ndim - 1, i * width, width) for i in range(count)]


def _step_rnn(activation: Callable[[Any], Tensor]) -> Callable[[Tensor, State, Weights], State]:
    def step(x: Tensor, state: State, w: Weights) -> State:
        return (activation(x + linear(state[0], w.w_hh)),)

    return step


def _step_lstm(x: Tensor, state: State, w: Weights) -> State:
    h, c = state
    i, f, g, o = _gates(x + linear(h, w.w_hh), 4)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return (h if w.w_hr is None else linear(h, w.w_hr)), c


def _step_gru(x: Tensor, state: State, w: Weights) -> State:
    (h,) = state
    x_r, x_z, x_n = _gates(x, 3)
    h_r, h_z, h_n = _gates(linear(h, w.w_hh, w.b_hh), 3)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = tanh(x_n + r * h_n)
    return (n + z * (h - n),)


_RNN_TANH = _Cell(1, 1, False, _step_rnn(tanh))
_RNN_RELU = _Cell(1, 1, False, _step_rnn(relu))
_LSTM = _Cell(4, 2, False, _step_lstm)
_GRU = _Cell(3, 1, True, _step_gru)


def _input_part(cell: _Cell, x: Tensor, w: Weights) -> Tensor:
    """What the inputs and the biases that can be added beforehand give every step, [.., G*H]."""
    # Of a matrix, so that product and biases are one kernel.
    flat = x if x.ndim <= 2 else reshape(x, (product(x.shape[:-1]), x.shape[-1]))
    y = linear(flat, w.w_ih, w.b_ih)
    if w.b_hh is not None and not cell.apart:
        y = y + w.b_hh
    return y if x.ndim <= 2 else reshape(y, (*x.shape[:-1], y.shape[-1]))


def _run(cell: _Cell, x: Tensor, state: State, w: Weights, reverse: bool) -> tuple[Tensor, State]:
    """One direction of one layer: [L, N, I] -> the h of all steps [L, N, H], the last state."""

    def body(carry: State, part: Tensor) -> tuple[State, Tensor]:
        new = cell.step(part, carry, w)
        return new, new[0]

    last, hs = scan(body, state, _input_part(cell, x, w), reverse=reverse)
    return hs, last


# --- checks ---------------------------------------------------------------------------------------


def _fits(t: Tensor, shape: Sequence[DimLike]) -> bool:
    return t.ndim == len(shape) and all(may_equal(a, b) for a, b in zip(t.shape, shape))


def _check_weights(what: str, cell: _Cell, w: Weights, inputs: DimLike, place: str) -> None:
    """Raises unless the weights belong together and to an input of `inputs` features."""
    if w.w_ih.ndim != 2 or w.w_hh.ndim != 2:
        raise ShapeError(
            f"{what}: expected matrices weight_ih [{cell.gates}*H, I] and weight_hh, got "
            f"{w.w_ih.type} and {w.w_hh.type}{place}"
        )
    state = w.w_hh.shape[1]
    hidden = state if w.w_hr is None else w.w_hr.shape[-1]
    gates = cell.gates * hidden
    wanted = {
        "weight_ih": (w.w_ih, (gates, inputs)),
        "weight_hh": (w.w_hh, (gates, state)),
        "bias_ih": (w.b_ih, (gates,)),
        "bias_hh": (w.b_hh, (gates,)),
        "weight_hr": (w.w_hr, (state, hidden)),
    }
    for name, (t, shape) in wanted.items():
        if t is not None and not _fits(t, shape):
            raise ShapeError(f"{what}: {name} must be {shape_text(shape)}, got {t.type}{place}")


def _check_input(what: str, x: Tensor, w: Weights, ranks: tuple[int, ...], form: str) -> None:
    if not x.dtype.is_float:
        raise DTypeError(f"{what}: expected a floating dtype, got {x.type}")
    if x.ndim not in ranks:
        raise ShapeError(f"{what}: expected an input {form}, got {x.type}")
    size = w.w_ih.shape[-1] if w.w_ih.ndim else 0
    if not may_equal(x.shape[-1], size):
        raise ShapeError(
            f"{what}: the last dim of the input must be input_size={size}, got {x.type}"
        )


def _states(what: str, cell: _Cell, hx: Any) -> list[Any]:
    """The first state as a list: empty where none was given."""
    if hx is None:
        return []
    if cell.states == 1:
        if isinstance(hx, (tuple, list)):
            raise ArgumentTypeError(f"{what}: hx must be a tensor, got {shown(hx)}")
        return [hx]
    if not isinstance(hx, (tuple, list)) or len(hx) != cell.states:
        raise ArgumentTypeError(f"{what}: hx must be a pair (h_0, c_0), got {shown(hx)}")
    return list(hx)


def _check_state(what: str, state: State, shapes: Sequence[tuple[DimLike, ...]]) -> None:
    for name, t, shape in zip(("h_0", "c_0"), state, shapes):
        if not _fits(t, shape):
            raise ShapeError(f"{what}: {name} must be {shape_text(shape)}, got {t.type}")


def _state_sizes(w: Weights) -> list[DimLike]:
    """The last dims of h and c."""
    return [w.w_hh.shape[-1], w.w_hh.shape[-1] if w.w_hr is None else w.w_hr.shape[-1]]


# --- networks -------------------------------------------------------------------------------------


def _network(
    what: str, cell: _Cell, input: Any, hx: Any, params: Any, has_biases: bool, num_layers: int,
    dropout: float, train: Any, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, State]:  # fmt: skip
    directions = 2 if bidirectional else 1
    given = list_of(params, f"{what}: params", "tensors")
    states = _states(what, cell, hx)
    x, *every = promoted(input, *states, *given)
    state: State = tuple(every[: len(states)])
    weights = _grouped(what, cell, every[len(states) :], has_biases, num_layers * directions)
    _check_input(
        what, x, weights[0], (2, 3),
        "[N, L, I] or [L, I]" if batch_first else "[L, N, I] or [L, I]",
    )  # fmt: skip
    batched = x.ndim == 3
    if not batched:
        x = expand_dims(x, axis=1)
    elif batch_first:
        x = swapaxes(x, 0, 1)
    batch = x.shape[1:2] if batched else ()
    shapes = [(len(weights), *batch, size) for size in _state_sizes(weights[0])]
    if state:
        _check_state(what, state, shapes)
        if not batched:
            state = tuple(expand_dims(s, axis=1) for s in state)
    ends: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            at = len(ends)
            w = weights[at]
            place = f" (layer {layer}{', reverse' if direction else ''})"
            _check_weights(what, cell, w, x.shape[-1], place)
            if state:
                first = tuple(squeeze(narrow(s, 0, at, 1), axis=0) for s in state)
            else:
                rows = [(x.shape[1], size) for size in _state_sizes(w)]
                first = tuple(zeros_as(TensorType(x.dtype, s)) for s in rows[: cell.states])
            hs, last = _run(cell, x, first, w, reverse=direction == 1)
            outputs.append(hs)
            ends.append(last)
        x = outputs[0] if directions == 1 else concat(outputs, axis=-1)
        if layer < num_layers - 1:
            x = _dropout(x, dropout, train)
    final: State = tuple(stack(list(parts)) for parts in zip(*ends))
    if not batched:
        return squeeze(x, axis=1), tuple(squeeze(s, axis=1) for s in final)
    return (swapaxes(x, 0, 1) if batch_first else x), final


def _grouped(
    what: str, cell: _Cell, params: Sequence[Tensor], has_biases: bool, count: int
) -> list[Weights]:
    """The flat list of parameters by layer and direction."""
    each = 4 if has_biases else 2
    projected = cell is _LSTM and len(params) == count * (each + 1)
    if count < 1 or not (projected or len(params) == count * each):
        names = "weight_ih, weight_hh" + (", bias_ih, bias_hh" if has_biases else "")
        raise ArgumentError(
            f"{what}: expected {names} for each of {count} layers and directions, "
            f"{count * each} parameters, got {len(params)}"
        )
    found = []
    for i in range(0, len(params), each + projected):
        w_ih, w_hh, *biases = params[i : i + each]
        b_ih, b_hh = biases or (None, None)
        found.append(Weights(w_ih, w_hh, b_ih, b_hh, params[i + each] if projected else None))
    return found


def rnn_tanh(
    input: Any, hx: Any, params: Any, has_biases: bool = True, num_layers: int = 1,
    dropout: float = 0.0, train: Any = False, bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`h_t = tanh(x_t W_ih^T + b_ih + h_(t-1) W_hh^T + b_hh)`: the outputs and the last state.

    input: [L, N, I], [N, L, I] with `batch_first`, or [L, I]. hx: [layers*D, N, H] ([layers*D, H]
    without a batch) or None for zeros; D = 2 with `bidirectional`. `params` holds for each layer
    and direction weight_ih [H, I], weight_hh [H, H] and, with `has_biases`, bias_ih [H] and
    bias_hh [H]. The outputs are [.., D*H], those of both directions side by side; the last state
    has the shape of hx. `dropout` is applied between layers where `train` says so (None: what
    `compile` binds).
    Source: torch.rnn_tanh.
    """
    y, (h,) = _network(
        "rnn_tanh", _RNN_TANH, input, hx, params, has_biases, num_layers, dropout, train,
        bidirectional, batch_first,
    )  # fmt: skip
    return y, h


def rnn_relu(
    input: Any, hx: Any, params: Any, has_biases: bool = True, num_layers: int = 1,
    dropout: float = 0.0, train: Any = False, bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`rnn_tanh` with ReLU in place of tanh. Source: torch.rnn_relu."""
    y, (h,) = _network(
        "rnn_relu", _RNN_RELU, input, hx, params, has_biases, num_layers, dropout, train,
        bidirectional, batch_first,
    )  # fmt: skip
    return y, h


def gru(
    input: Any, hx: Any, params: Any, has_biases: bool = True, num_layers: int = 1,
    dropout: float = 0.0, train: Any = False, bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gated recurrent units: the outputs and the last state.

        r = sigmoid(x W_ir^T + b_ir + h W_hr^T + b_hr)      z likewise
        n = tanh(x W_in^T + b_in + r * (h W_hn^T + b_hn))
        h' = (1 - z) * n + z * h

    Arguments as in `rnn_tanh`, with weight_ih [3*H, I], weight_hh [3*H, H] and biases [3*H] in the
    order r, z, n. Source: Cho et al., arXiv 1406.1078, in the variant of torch.gru.
    """
    y, (h,) = _network(
        "gru", _GRU, input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
        batch_first,
    )  # fmt: skip
    return y, h


def lstm(
    input: Any, hx: Any, params: Any, has_biases: bool = True, num_layers: int = 1,
    dropout: float = 0.0, train: Any = False, bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Long short-term memory: the outputs, the last h and the last c.

        i, f, o = sigmoid(x W_i*^T + b_i* + h W_h*^T + b_h*)      g likewise with tanh
        c' = f * c + i * g      h' = o * tanh(c')

    Arguments as in `rnn_tanh`, with hx a pair (h_0, c_0), and weight_ih [4*H, I], weight_hh
    [4*H, H] and biases [4*H] in the order i, f, g, o. With a fifth parameter weight_hr [P, H] for
    each layer and direction, h is projected to P features, and weight_hh is [4*H, P].
    Source: Hochreiter, Schmidhuber, Neural Computation 9 (8), 1997; torch.lstm.
    """
    y, (h, c) = _network(
        "lstm", _LSTM, input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
        batch_first,
    )  # fmt: skip
    return y, h, c


# --- cells ----------------------------------------------------------------------------------------


def _one_step(
    what: str, cell: _Cell, input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any
) -> State:
    if (b_ih is None) != (b_hh is None):
        raise ArgumentError(f"{what}: give both biases, b_ih and b_hh, or none")
    states = _states(what, cell, hx)
    given = [w_ih, w_hh] if b_ih is None else [w_ih, w_hh, b_ih, b_hh]
    x, *every = promoted(input, *states, *given)
    state: State = tuple(every[: len(states)])
    w = Weights(*every[len(states) :])
    _check_input(what, x, w, (1, 2), "[N, I] or [I]")
    _check_weights(what, cell, w, x.shape[-1], "")
    shapes = [(*x.shape[:-1], size) for size in _state_sizes(w)[: cell.states]]
    if state:
        _check_state(what, state, shapes)
    else:
        state = tuple(zeros_as(TensorType(x.dtype, s)) for s in shapes)
    return cell.step(_input_part(cell, x, w), state, w)


def rnn_tanh_cell(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Tensor:
    """`tanh(x w_ih^T + b_ih + h w_hh^T + b_hh)`. input: [N, I] or [I]; hx: [N, H] or [H], None for
    zeros; w_ih: [H, I], w_hh: [H, H], biases [H]. Source: torch.rnn_tanh_cell."""
    return _one_step("rnn_tanh_cell", _RNN_TANH, input, hx, w_ih, w_hh, b_ih, b_hh)[0]


def rnn_relu_cell(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Tensor:
    """`rnn_tanh_cell` with ReLU in place of tanh. Source: torch.rnn_relu_cell."""
    return _one_step("rnn_relu_cell", _RNN_RELU, input, hx, w_ih, w_hh, b_ih, b_hh)[0]


def gru_cell(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Tensor:
    """One step of `gru`. input: [N, I] or [I]; hx: [N, H] or [H], None for zeros; w_ih: [3*H, I],
    w_hh: [3*H, H], biases [3*H], in the order r, z, n. Source: torch.gru_cell."""
    return _one_step("gru_cell", _GRU, input, hx, w_ih, w_hh, b_ih, b_hh)[0]


def lstm_cell(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> tuple[Tensor, Tensor]:
    """One step of `lstm`: the new (h, c). input: [N, I] or [I]; hx: a pair of [N, H] or [H], None
    for zeros; w_ih: [4*H, I], w_hh: [4*H, H], biases [4*H], in the order i, f, g, o.
    Source: torch.lstm_cell."""
    h, c = _one_step("lstm_cell", _LSTM, input, hx, w_ih, w_hh, b_ih, b_hh)
    return h, c


__all__ = [
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
]
