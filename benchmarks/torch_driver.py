"""The workloads in PyTorch, eager and with torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .drivers import Program
from .workload import DESCENT_RATE, LEARNING_RATE, MOMENTUM, Array, Workload


class X:
    """What the bodies of workloads use."""

    exp, log, sqrt, tanh, erf = torch.exp, torch.log, torch.sqrt, torch.tanh, torch.erf
    sigmoid, relu, sum, mean = torch.sigmoid, torch.relu, torch.sum, torch.mean
    cross_entropy = F.cross_entropy

    @staticmethod
    def softmax(x: Any) -> Any:
        return torch.softmax(x, -1)

    @staticmethod
    def gelu(x: Any) -> Any:
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    @staticmethod
    def batch_norm(x: Any, weight: Any, bias: Any) -> Any:
        return F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)

    @staticmethod
    def conv2d(x: Any, weight: Any, bias: Any, padding: int) -> Any:
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def max_pool2d(x: Any) -> Any:
        return F.max_pool2d(x, 2)

    @staticmethod
    def attention(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    @staticmethod
    def embedding(weight: Any, index: Any) -> Any:
        return F.embedding(index, weight)

    @staticmethod
    def stack(*numbers: Any) -> Any:
        return torch.stack(numbers)

    @staticmethod
    def scan(step: Any, state: Any, xs: Any) -> Any:
        for x in xs:
            state = step(state, x)
        return state

    @staticmethod
    def gru(P: Sequence[Any], xs: Any, h: Any) -> Any:
        """What nn.GRU calls."""
        return torch.gru(xs, h[None], list(P), True, 1, 0.0, True, False, False)[1][0]

    @staticmethod
    def lstm(P: Sequence[Any], xs: Any, h: Any, c: Any) -> Any:
        start = [h[None], c[None]]
        return torch.lstm(xs, start, list(P), True, 1, 0.0, True, False, False)[1][0]


class TorchDriver:
    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.zeros(1).add_(1)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "numpy": np.__version__}

    def lacks(self, workload: Workload) -> str | None:
        return None

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def prepare(
        self, workload: Workload, parameters: Sequence[Array], inputs: Sequence[Array]
    ) -> Program:
        torch.set_grad_enabled(workload.kind != "call")
        given = [_tensor(a) for a in inputs]
        held = [_tensor(p).requires_grad_() for p in parameters]
        if workload.kind == "train":
            return self._training(workload, held, given)
        return Program(self._callable(workload, held, given), _as_arrays)

    def forget(self) -> None:
        return None

    def _callable(self, w: Workload, held: list[Any], given: list[Any]) -> Callable[[], Any]:
        if w.kind == "descent":
            return functools.partial(_descend, w, held[0])
        if w.kind == "call":
            return functools.partial(self.compiled(functools.partial(w.body, X, [])), *given)
        cotangent = given.pop() if w.cotangent else None
        function = self.compiled(functools.partial(_applied, w.body))

        def derived() -> Any:
            y = function(held, *given)
            if w.kind == "gradient":
                return torch.autograd.grad(y, held)
            start = cotangent if w.cotangent else torch.ones_like(y)
            return (y, *torch.autograd.grad(y, held, start))

        return derived

    def _training(self, w: Workload, held: list[Any], given: list[Any]) -> Program:
        loss_of = self.compiled(functools.partial(_applied, w.body))
        optimizer = torch.optim.SGD(held, lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)

        def step() -> Any:
            loss = loss_of(held, *given)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        def keep() -> Callable[[], None]:
            start = [p.detach().clone() for p in held]

            def restore() -> None:
                with torch.no_grad():
                    for p, first in zip(held, start):
                        p.copy_(first)
                        momentum = optimizer.state[p].get("momentum_buffer")
                        if momentum is not None:
                            momentum.zero_()

            return restore

        return Program(
            step, _as_arrays, state=lambda: [p.detach().numpy().copy() for p in held], keep=keep
        )


class TorchCompileDriver(TorchDriver):
    """The function is compiled; gradients and the optimiser are called as always."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        # Loaded with the first compiled function: part of the import.
        import torch._dynamo
        import torch._inductor.compile_fx  # noqa: F401

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # A part that is not compiled is an error, so that none is taken for compiled.
        made: Callable[..., Any] = torch.compile(function, fullgraph=True)
        return made

    def forget(self) -> None:
        torch._dynamo.reset()


def _applied(body: Callable[..., Any], parameters: list[Any], *inputs: Any) -> Any:
    return body(X, parameters, *inputs)


def _descend(w: Workload, start: Any) -> Any:
    x = start.detach().clone().requires_grad_()
    for _ in range(w.sizes["steps"]):
        w.body(X, [x]).backward()
        with torch.no_grad():
            x -= DESCENT_RATE * x.grad
        x.grad = None
    return x


def _tensor(array: Array) -> Any:
    return torch.from_numpy(array.copy())


def _as_arrays(result: Any) -> list[Array]:
    parts = result if isinstance(result, tuple) else (result,)
    return [part.detach().numpy() for part in parts]
