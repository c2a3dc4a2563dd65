"""The workloads in staticgrad."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import llvmlite.binding  # part of the import: staticgrad loads it with the first program
import numpy as np
import staticgrad as sg

from .drivers import Program
from .workload import DESCENT_RATE, LEARNING_RATE, MOMENTUM, Array, Workload

F = sg.nn.functional


class X:
    """What the bodies of workloads use."""

    exp, log, sqrt, tanh, erf = sg.exp, sg.log, sg.sqrt, sg.tanh, sg.erf
    sigmoid, relu, sum, mean = sg.sigmoid, sg.relu, sg.sum, sg.mean
    cross_entropy = F.cross_entropy

    @staticmethod
    def softmax(x: Any) -> Any:
        return sg.softmax(x, -1)

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
        return sg.stack(list(numbers))

    @staticmethod
    def scan(step: Any, state: Any, xs: Any) -> Any:
        """The last state."""
        return sg.scan(lambda s, x: (step(s, x), None), state, xs)[0]

    @staticmethod
    def gru(P: Sequence[Any], xs: Any, h: Any) -> Any:
        return F.gru(xs, sg.expand_dims(h, axis=0), list(P), train=True)[1][0]

    @staticmethod
    def lstm(P: Sequence[Any], xs: Any, h: Any, c: Any) -> Any:
        start = (sg.expand_dims(h, axis=0), sg.expand_dims(c, axis=0))
        return F.lstm(xs, start, list(P), train=True)[1][0]


class StaticgradDriver:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def versions(self) -> dict[str, str]:
        version = ".".join(map(str, llvmlite.binding.llvm_version_info))
        return {"staticgrad": sg.__version__, "llvmlite": metadata.version("llvmlite"),
                "llvm": version, "numpy": np.__version__}  # fmt: skip

    def lacks(self, workload: Workload) -> str | None:
        return None

    def prepare(
        self, workload: Workload, parameters: Sequence[Array], inputs: Sequence[Array]
    ) -> Program:
        if workload.kind == "train":
            return self._training(workload, parameters, inputs)
        given = list(parameters) + list(inputs)
        program = sg.compile(*declared(workload, parameters, inputs)[:2], threads=self.threads)
        return Program(
            functools.partial(program, *given), _as_arrays, figures=lambda: _figures(program)
        )

    def forget(self) -> None:
        return None

    def _training(
        self, w: Workload, parameters: Sequence[Array], inputs: Sequence[Array]
    ) -> Program:
        given, loss, updates, held = declared(w, parameters, inputs)
        step = sg.compile(given, loss, updates=updates, threads=self.threads)

        def keep() -> Any:
            known = [(cell, cell.numpy()) for cell in step.cells]

            def restore() -> None:
                for cell, value in known:
                    cell.assign(value)

            return restore

        return Program(
            functools.partial(step, *inputs), _as_arrays,
            state=lambda: [p.numpy() for p in held], keep=keep, figures=lambda: _figures(step),
        )  # fmt: skip


def declared(
    w: Workload, parameters: Sequence[Array], inputs: Sequence[Array]
) -> tuple[list[Any], Any, Any, list[Any]]:
    """A workload as a graph: its inputs, outputs and updates, and the parameters that are state."""
    train = w.kind == "train"
    held = [sg.parameter(p, name=f"p{i}") for i, p in enumerate(parameters)] if train else []
    arrays = inputs if train else [*parameters, *inputs]
    given = [sg.input(f"a{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
    if train:
        loss = w.body(X, held, *given)
        optimizer = sg.optim.SGD(held, lr=LEARNING_RATE, momentum=MOMENTUM)
        return given, [loss], optimizer.minimize(loss), held
    split = len(parameters)
    return given, _results(w, given[:split], given[split:]), None, held


def _results(w: Workload, parameters: list[Any], inputs: list[Any]) -> Any:
    if w.kind == "call":
        return w.body(X, [], *inputs)
    if w.kind == "descent":
        (start,) = parameters

        def down(i: Any, x: Any) -> Any:
            return x - DESCENT_RATE * sg.gradients(w.body(X, [x]), x)

        return sg.fori_loop(0, w.sizes["steps"], down, start)
    cotangent = inputs.pop() if w.cotangent else None
    y = w.body(X, parameters, *inputs)
    if w.kind == "gradient":
        return sg.gradients(y, parameters)
    root = y if w.cotangent else sg.sum(y)
    return [y, *sg.gradients(root, parameters, cotangent=cotangent)]


def _as_arrays(result: Any) -> list[Array]:
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part) for part in parts]


def _figures(program: Any) -> dict[str, Any]:
    report = program.report().to_dict()
    kept = ("distinct_kernels", "flops", "bytes", "peak_bytes", "state_bytes", "compile_ms")
    bound = program.bind({}).plan.lower_bound_bytes
    figures = {"kernels": len(report["kernels"]), "bound_bytes": bound}
    return {**figures, **{name: report[name] for name in kept}}
