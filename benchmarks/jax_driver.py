"""The workloads in JAX: each a jitted function; parameters are donated to a training step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .drivers import Program
from .workload import DESCENT_RATE, LEARNING_RATE, MOMENTUM, Array, Workload


class X:
    """What the bodies of workloads use."""

    exp, log, sqrt, tanh, erf = jnp.exp, jnp.log, jnp.sqrt, jnp.tanh, jax.scipy.special.erf
    sigmoid, relu, sum, mean = jax.nn.sigmoid, jax.nn.relu, jnp.sum, jnp.mean

    @staticmethod
    def softmax(x: Any) -> Any:
        return jax.nn.softmax(x, -1)

    @staticmethod
    def gelu(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=True)

    @staticmethod
    def cross_entropy(x: Any, target: Any) -> Any:
        logs = jax.nn.log_softmax(x, -1)
        return -jnp.take_along_axis(logs, target[:, None], 1).mean()

    @staticmethod
    def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
        return _normalized(x, -1) * weight + bias

    @staticmethod
    def batch_norm(x: Any, weight: Any, bias: Any) -> Any:
        return _normalized(x, (0, 2, 3)) * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def conv2d(x: Any, weight: Any, bias: Any, padding: int) -> Any:
        around = [(padding, padding)] * 2
        y = lax.conv_general_dilated(
            x, weight, (1, 1), around, dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        return y if bias is None else y + bias[:, None, None]

    @staticmethod
    def max_pool2d(x: Any) -> Any:
        size = (1, 1, 2, 2)
        return lax.reduce_window(x, -jnp.inf, lax.max, size, size, "VALID")

    @staticmethod
    def attention(q: Any, k: Any, v: Any) -> Any:
        time, width = q.shape[-2:]
        scores = q @ k.swapaxes(-1, -2) / width**0.5
        seen = jnp.tril(jnp.ones((time, time), bool))
        return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1) @ v

    @staticmethod
    def embedding(weight: Any, index: Any) -> Any:
        return weight[index]

    @staticmethod
    def stack(*numbers: Any) -> Any:
        return jnp.stack(numbers)

    @staticmethod
    def scan(step: Any, state: Any, xs: Any) -> Any:
        return lax.scan(lambda s, x: (step(s, x), None), state, xs)[0]

    @staticmethod
    def gru(P: Sequence[Any], xs: Any, h: Any) -> Any:
        """The inputs' products are one for all steps."""
        w_ih, w_hh, b_ih, b_hh = P
        n = w_hh.shape[1]

        def step(h: Any, a: Any) -> Any:
            b = h @ w_hh.T + b_hh
            reset = jax.nn.sigmoid(a[:, :n] + b[:, :n])
            keep = jax.nn.sigmoid(a[:, n : 2 * n] + b[:, n : 2 * n])
            new = jnp.tanh(a[:, 2 * n :] + reset * b[:, 2 * n :])
            return (1 - keep) * new + keep * h, None

        return lax.scan(step, h, xs @ w_ih.T + b_ih)[0]

    @staticmethod
    def lstm(P: Sequence[Any], xs: Any, h: Any, c: Any) -> Any:
        w_ih, w_hh, b_ih, b_hh = P

        def step(state: Any, a: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(a + h @ w_hh.T, 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        return lax.scan(step, (h, c), xs @ w_ih.T + (b_ih + b_hh))[0][0]


def _normalized(x: Any, axis: Any) -> Any:
    mean = x.mean(axis, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5)


class JaxDriver:
    def __init__(self, threads: int) -> None:
        jax.block_until_ready(jnp.zeros(1))

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "jaxlib": jax.lib.__version__, "numpy": np.__version__}

    def lacks(self, workload: Workload) -> str | None:
        return None

    def prepare(
        self, workload: Workload, parameters: Sequence[Array], inputs: Sequence[Array]
    ) -> Program:
        held = [_on_device(p) for p in parameters]
        given = [_on_device(a) for a in inputs]
        if workload.kind == "train":
            return _training(workload, held, given)
        function, arguments = _function(workload, held, given)
        compiled = jax.jit(function)
        return Program(
            functools.partial(compiled, *arguments), _as_arrays, jax.block_until_ready,
            figures=lambda: _figures(compiled, *arguments),
        )  # fmt: skip

    def forget(self) -> None:
        jax.clear_caches()


def _on_device(array: Array) -> Any:
    """JAX computes with int32 unless told otherwise."""
    return jnp.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)


def _function(w: Workload, held: list[Any], given: list[Any]) -> tuple[Any, list[Any]]:
    """The function to jit, and its arguments."""
    body = w.body
    if w.kind == "call":
        return lambda *arrays: body(X, [], *arrays), given
    if w.kind == "descent":
        slope = jax.grad(lambda x: body(X, [x]))
        steps = w.sizes["steps"]

        def descend(x: Any) -> Any:
            return lax.fori_loop(0, steps, lambda i, x: x - DESCENT_RATE * slope(x), x)

        return descend, held
    if w.kind == "gradient":
        return jax.grad(lambda P, *arrays: body(X, P, *arrays)), [held, *given]

    def derived(parameters: Any, *arrays: Any) -> Any:
        inputs = arrays[:-1] if w.cotangent else arrays
        y, pull = jax.vjp(lambda P: body(X, P, *inputs), parameters)
        (grads,) = pull(arrays[-1] if w.cotangent else jnp.ones_like(y))
        return (y, *grads)

    return derived, [held, *given]


def _training(w: Workload, held: list[Any], given: list[Any]) -> Program:
    state = [held, [jnp.zeros_like(p) for p in held]]

    def update(parameters: Any, momenta: Any, *arrays: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda P: w.body(X, P, *arrays))(parameters)
        momenta = [MOMENTUM * m + g for m, g in zip(momenta, grads)]
        return [p - LEARNING_RATE * m for p, m in zip(parameters, momenta)], momenta, loss

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> Any:
        state[0], state[1], loss = compiled(state[0], state[1], *given)
        return loss

    def keep() -> Callable[[], None]:
        start = [np.array(p) for p in state[0]]

        def restore() -> None:
            state[0] = [jnp.array(p) for p in start]
            state[1] = [jnp.zeros_like(p) for p in state[0]]
            jax.block_until_ready(state)

        return restore

    return Program(
        step, _as_arrays, jax.block_until_ready,
        state=lambda: [np.array(p) for p in state[0]], keep=keep,
        figures=lambda: _figures(compiled, *state, *given),
    )  # fmt: skip


def _figures(compiled: Any, *arguments: Any) -> dict[str, Any]:
    """What XLA allocates for a call beside arguments and results; what its library of matrix
    products takes for itself is not in it. Compiles once more."""
    found = compiled.lower(*arguments).compile().memory_analysis()
    return {} if found is None else {"temporary_bytes": int(found.temp_size_in_bytes)}


def _as_arrays(result: Any) -> list[Array]:
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return [np.asarray(part) for part in parts]
