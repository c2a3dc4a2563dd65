"""Gradients in NumPy, as one writes them by hand: a tape of array functions and their derivatives.

Functions take and give plain arrays; an array becomes part of the tape only where one of the
arguments is a `Var`. The same functions in float64 are the reference that every framework's values
are compared with. Sources: the derivatives are the textbook ones (Griewank, Walther, "Evaluating
Derivatives", 2nd ed., 2008).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

try:
    from scipy.special import erf as _erf
except ImportError:  # for the reference only: NumPy alone does not take part where erf is needed
    _erf = None

Array = np.ndarray[Any, Any]
Pull = Callable[[Array], Array]
_numbers = itertools.count()


class Var:
    """An array on the tape: its value, and for each parent how a gradient goes back to it."""

    __array_ufunc__ = None  # NumPy's own operators leave mixed operations to this class
    __slots__ = ("number", "parents", "value")

    def __init__(self, value: Array, parents: Sequence[tuple[Var, Any]] = ()) -> None:
        self.value = value
        self.parents = parents
        self.number = next(_numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def __add__(self, other: Any) -> Any:
        return _binary(self, other, np.add, lambda x, y: (lambda g: g, lambda g: g))

    def __sub__(self, other: Any) -> Any:
        return _binary(self, other, np.subtract, lambda x, y: (lambda g: g, np.negative))

    def __rsub__(self, other: Any) -> Any:
        return _binary(other, self, np.subtract, lambda x, y: (lambda g: g, np.negative))

    def __mul__(self, other: Any) -> Any:
        return _binary(self, other, np.multiply, lambda x, y: (lambda g: g * y, lambda g: g * x))

    def __truediv__(self, other: Any) -> Any:
        return _binary(
            self, other, np.divide, lambda x, y: (lambda g: g / y, lambda g: -g * x / (y * y))
        )

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Any:
        return node(-self.value, (self, np.negative))

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul(other, self)

    def __getitem__(self, index: Any) -> Any:
        return node(self.value[index], (self, _At(index)))

    def reshape(self, *shape: int) -> Any:
        return node(self.value.reshape(*shape), (self, lambda g: g.reshape(self.shape)))

    def swapaxes(self, a: int, b: int) -> Any:
        return node(self.value.swapaxes(a, b), (self, lambda g: g.swapaxes(a, b)))


class _At:
    """The gradient of a part: it is added in place, for a copy of the whole each would cost more
    than the loop that takes the parts."""

    def __init__(self, index: Any) -> None:
        self.index = index


def value(x: Any) -> Any:
    return x.value if isinstance(x, Var) else x


def node(out: Any, *parents: tuple[Any, Any]) -> Any:
    """`out` as it is, or as a Var if a parent is one."""
    on_tape = [(p, pull) for p, pull in parents if isinstance(p, Var)]
    return Var(out, on_tape) if on_tape else out


def _unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """The sum of a gradient over the axes that broadcasting added or stretched."""
    if g.shape == shape:
        return g
    g = g.sum(tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(stretched, keepdims=True) if stretched else g


def _binary(a: Any, b: Any, function: Any, pulls: Callable[[Any, Any], tuple[Pull, Pull]]) -> Any:
    x, y = value(a), value(b)
    to_x, to_y = pulls(x, y)
    return node(
        function(x, y),
        (a, lambda g: _unbroadcast(to_x(g), np.shape(x))),
        (b, lambda g: _unbroadcast(to_y(g), np.shape(y))),
    )


def gradients(y: Var, wrt: Sequence[Var], start: Array | None = None) -> list[Array]:
    """dy/dw for each w, from `start` (ones, if None): reverse mode, newest nodes first."""
    found: dict[int, Var] = {}
    stack = [y]
    while stack:
        v = stack.pop()
        if v.number not in found:
            found[v.number] = v
            stack += [p for p, _ in v.parents]
    grads: dict[int, Array] = {y.number: np.ones_like(y.value) if start is None else start}
    owned: set[int] = set()
    for number in sorted(found, reverse=True):
        g = grads[number]
        for parent, pull in found[number].parents:
            _accumulate(grads, owned, parent, pull, g)
    return [grads[w.number] for w in wrt]


def _accumulate(grads: dict[int, Array], owned: set[int], parent: Var, pull: Any, g: Array) -> None:
    n = parent.number
    if isinstance(pull, _At):
        if n not in owned:
            grads[n] = grads[n].copy() if n in grads else np.zeros_like(parent.value)
            owned.add(n)
        grads[n][pull.index] += g
    elif n not in grads:
        grads[n] = pull(g)
    else:
        grads[n] = grads[n] + pull(g)
        owned.add(n)


# --- functions ------------------------------------------------------------------------------------


def exp(x: Any) -> Any:
    y = np.exp(value(x))
    return node(y, (x, lambda g: g * y))


def log(x: Any) -> Any:
    v = value(x)
    return node(np.log(v), (x, lambda g: g / v))


def sqrt(x: Any) -> Any:
    y = np.sqrt(value(x))
    return node(y, (x, lambda g: g * 0.5 / y))


def tanh(x: Any) -> Any:
    y = np.tanh(value(x))
    return node(y, (x, lambda g: g * (1 - y * y)))


def sigmoid(x: Any) -> Any:
    y = 1 / (1 + np.exp(-value(x)))
    return node(y, (x, lambda g: g * y * (1 - y)))


def relu(x: Any) -> Any:
    v = value(x)
    return node(np.maximum(v, 0), (x, lambda g: g * (v > 0)))


def erf(x: Any) -> Any:
    v = value(x)
    y = np.frompyfunc(math.erf, 1, 1)(v).astype(v.dtype) if _erf is None else _erf(v)
    return node(y, (x, lambda g: g * (2 / math.sqrt(math.pi)) * np.exp(-v * v)))


def gelu(x: Any) -> Any:
    """The form with tanh. Source: Hendrycks, Gimpel, arXiv 1606.08415."""
    v = value(x)
    scale = math.sqrt(2 / math.pi)
    t = np.tanh(scale * (v + 0.044715 * v * v * v))

    def pull(g: Array) -> Array:
        inner = scale * (1 + 3 * 0.044715 * v * v)
        return np.asarray(g * 0.5 * (1 + t + v * (1 - t * t) * inner))

    return node(0.5 * v * (1 + t), (x, pull))


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    v = value(x)

    def pull(g: Array) -> Array:
        if axis is not None and not keepdims:
            g = np.expand_dims(g, axis)
        return np.broadcast_to(g, v.shape)

    return node(v.sum(axis, keepdims=keepdims), (x, pull))


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    total = sum(x, axis, keepdims)
    return total * (value(total).size / value(x).size)


def matmul(a: Any, b: Any) -> Any:
    x, y = value(a), value(b)

    def to_y(g: Array) -> Array:
        if y.ndim == 2 and x.ndim > 2:  # one product for the whole batch
            return np.asarray(x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1]))
        return np.asarray(x.swapaxes(-1, -2) @ g)

    return node(x @ y, (a, lambda g: g @ y.swapaxes(-1, -2)), (b, to_y))


def softmax(x: Any) -> Any:
    v = value(x)
    e = np.exp(v - v.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return node(y, (x, lambda g: y * (g - (g * y).sum(-1, keepdims=True))))


def cross_entropy(x: Any, target: Array) -> Any:
    """The mean of -log softmax(x)[target]."""
    v = value(x)
    shifted = v - v.max(-1, keepdims=True)
    rows = np.arange(len(target))
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def pull(g: Array) -> Array:
        p = np.exp(logs)
        p[rows, target] -= 1
        return np.asarray(p * (g / len(target)))

    return node(-logs[rows, target].mean(), (x, pull))


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    return _normalized(x, -1, weight, bias, lambda p: p)


def batch_norm(x: Any, weight: Any, bias: Any) -> Any:
    """Over all but axis 1, by the batch's own statistics."""
    return _normalized(x, (0, 2, 3), weight, bias, lambda p: p[:, None, None])


def _normalized(x: Any, axis: Any, weight: Any, bias: Any, along: Callable[[Any], Any]) -> Any:
    """(x - mean) / sqrt(var + 1e-5) * weight + bias."""
    v, w = value(x), value(weight)
    centred = v - v.mean(axis, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(axis, keepdims=True) + 1e-5)
    unit = centred * inverse
    shape = w.shape

    def to_x(g: Array) -> Array:
        g = g * along(w)
        corrected = g - g.mean(axis, keepdims=True)
        return np.asarray(inverse * (corrected - unit * (g * unit).mean(axis, keepdims=True)))

    def to_parameter(g: Array) -> Array:
        return _unbroadcast(g, along(w).shape).reshape(shape)

    return node(
        unit * along(w) + along(value(bias)),
        (x, to_x), (weight, lambda g: to_parameter(g * unit)), (bias, to_parameter),
    )  # fmt: skip


def conv2d(x: Any, weight: Any, bias: Any, padding: int) -> Any:
    """x: [B, C, H, W], weight: [O, C, k, k]: one product over all windows."""
    v, w = value(x), value(weight)
    windows = _windows(v, w.shape[-1], padding)
    y = np.einsum("bchwij,ocij->bohw", windows, w, optimize=True)
    if bias is not None:
        y += value(bias)[:, None, None]

    def to_x(g: Array) -> Array:
        back = _windows(g, w.shape[-1], w.shape[-1] - 1 - padding)
        return np.asarray(np.einsum("bohwij,ocij->bchw", back, w[:, :, ::-1, ::-1], optimize=True))

    def to_weight(g: Array) -> Array:
        return np.asarray(np.einsum("bchwij,bohw->ocij", windows, g, optimize=True))

    return node(y, (x, to_x), (weight, to_weight), (bias, lambda g: g.sum((0, 2, 3))))


def _windows(x: Array, k: int, padding: int) -> Array:
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return sliding_window_view(np.pad(x, around), (k, k), axis=(2, 3))


def max_pool2d(x: Any) -> Any:
    """The largest of each 2 x 2; the gradient goes to the first of equal ones."""
    v = value(x)
    b, c, h, w = v.shape
    parts = v.reshape(b, c, h // 2, 2, w // 2, 2).swapaxes(3, 4).reshape(b, c, h // 2, w // 2, 4)
    first = parts.argmax(-1)[..., None]

    def pull(g: Array) -> Array:
        back = np.zeros_like(parts)
        np.put_along_axis(back, first, g[..., None], -1)
        return back.reshape(b, c, h // 2, w // 2, 2, 2).swapaxes(3, 4).reshape(v.shape)

    return node(np.take_along_axis(parts, first, -1)[..., 0], (x, pull))


def attention(q: Any, k: Any, v: Any) -> Any:
    """softmax(q k^T / sqrt(D), causal) v; q, k, v: [B, H, T, D]."""
    time, width = q.shape[-2:]
    hidden = np.triu(np.full((time, time), -np.inf, value(q).dtype), 1)
    scores = matmul(q, k.swapaxes(-1, -2)) * (1 / math.sqrt(width)) + hidden
    return matmul(softmax(scores), v)


def embedding(weight: Any, index: Array) -> Any:
    w = value(weight)

    def pull(g: Array) -> Array:
        back = np.zeros_like(w)
        np.add.at(back, index, g)
        return back

    return node(w[index], (weight, pull))


def stack(*numbers: Any) -> Any:
    pulls = [(x, operator.itemgetter(i)) for i, x in enumerate(numbers)]
    return node(np.array([value(x) for x in numbers]), *pulls)


def scan(step: Any, state: Any, xs: Any) -> Any:
    """The last state."""
    for i in range(xs.shape[0]):
        state = step(state, xs[i])
    return state


def gru(P: Sequence[Any], xs: Any, h: Any) -> Any:
    """The last state; the inputs' products are one for all steps. Source: torch.gru."""
    w_ih, w_hh, b_ih, b_hh = P
    n = w_hh.shape[1]
    inputs, turned = matmul(xs, w_ih.swapaxes(0, 1)) + b_ih, w_hh.swapaxes(0, 1)
    for t in range(inputs.shape[0]):
        a, b = inputs[t], matmul(h, turned) + b_hh
        both = sigmoid(a[:, : 2 * n] + b[:, : 2 * n])
        reset, keep = both[:, :n], both[:, n:]
        new = tanh(a[:, 2 * n :] + reset * b[:, 2 * n :])
        h = new + keep * (h - new)
    return h


def lstm(P: Sequence[Any], xs: Any, h: Any, c: Any) -> Any:
    """The last h. Source: torch.lstm."""
    w_ih, w_hh, b_ih, b_hh = P
    n = w_hh.shape[1]
    inputs, turned = matmul(xs, w_ih.swapaxes(0, 1)) + (b_ih + b_hh), w_hh.swapaxes(0, 1)
    for t in range(inputs.shape[0]):
        a = inputs[t] + matmul(h, turned)
        i, f = sigmoid(a[:, :n]), sigmoid(a[:, n : 2 * n])
        g, o = tanh(a[:, 2 * n : 3 * n]), sigmoid(a[:, 3 * n :])
        c = f * c + i * g
        h = o * tanh(c)
    return h
