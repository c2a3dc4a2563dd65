"""Programs of every kind of kernel, and executables of one artifact for any number of threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import Compiled, compile_stages
from staticgrad.codegen import sharing
from staticgrad.codegen.assemble import assemble
from staticgrad.codegen.entry import entry_object
from staticgrad.kernels.program import Program
from staticgrad.passes.lowering.manifest import build_manifest
from staticgrad_runtime import Artifact, Executable, StateCell, binding, workers
from staticgrad_runtime.context import STATUS_OK, Word

Array = Any


@dataclass
class Threaded:
    """A compiled program, from which executables with state of their own are made."""

    program: Program
    artifact: Artifact
    state: list[Any]

    @staticmethod
    def of(inputs: Sequence[Any], outputs: Any, updates: Any = None) -> Threaded:
        return Threaded.made(compile_stages(sg.Graph(inputs, outputs, updates)))

    @staticmethod
    def made(made: Compiled) -> Threaded:
        code = assemble(made.text, made.target).object_code
        manifest, blobs = build_manifest(made.program, made.graph, made.target, made.called, {})
        artifact = Artifact(manifest, code, blobs, entry_code=entry_object(made.target))
        return Threaded(made.program, artifact, [v.node.payload for v in made.graph.state])

    def on(self, threads: int) -> Executable:
        cells = [StateCell(cell.numpy(), cell.name) for cell in self.state]
        return Executable(self.artifact, cells, threads=threads)


def share_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run on as many threads as they are given, however little there is to do."""
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    monkeypatch.setattr(workers, "WAKE_NS", 0)
    monkeypatch.setattr(sharing, "LEAST_SHARED_NS", 0)
    monkeypatch.delenv(workers.NUM_THREADS, raising=False)


def random(shape: Any, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def bits(arrays: Any) -> list[bytes]:
    """What must be equal: every byte of every array, its dtype and its shape."""
    arrays = arrays if isinstance(arrays, tuple) else (arrays,)
    return [f"{a.dtype} {a.shape}".encode() + np.ascontiguousarray(a).tobytes() for a in arrays]


def sweeps() -> Threaded:
    """Maps, reductions by rows and by columns, softmax, sorting, scans, gathers, random numbers."""
    x = sg.input("x", ("N", 33))
    rows = sg.input("rows", ("N",), "int64")
    weight = sg.constant(random((7, 33), 1))
    outputs = [
        sg.exp(x) * 2 + 1,
        (x > 0) & (x < 1),
        x.sum(axis=1),
        x.sum(axis=0),
        sg.max(x, axis=0),
        x.mean(),
        sg.softmax(x, -1),
        sg.log_softmax(x, 0),
        sg.permute_dims(x, (1, 0)) + 0,
        sg.sort(x, axis=1),
        sg.argsort(x, axis=0),
        sg.cumulative_sum(x, axis=1),
        sg.cumulative_sum(x, axis=0),
        sg.take(weight, rows, axis=0),
        sg.take_along_axis(x, sg.argsort(x, axis=1), axis=1),
        sg.concat([x, x * 2], axis=0),
        sg.random.uniform(("N", 33), key=sg.random.key(3)) + x,
        sg.random.normal(("N", 5), key=sg.random.key(4)) + x[:, :5],
        sg.one_hot(rows, 7),
        sg.argmax(x, axis=1),
    ]
    w = sg.parameter(random((7, 33), 5), name="table")
    (dw,) = sg.gradients((sg.take(w, rows, axis=0) * x).sum(), [w])
    return Threaded.of([x, rows], [*outputs, dw])


def sweeps_arrays(n: int) -> list[Array]:
    return [random((n, 33), n), np.arange(n, dtype="int64") * 5 % 7]


def products() -> Threaded:
    """Matrix products with epilogues, transposed, batched, and their gradients."""
    x = sg.input("x", ("N", 33))
    w = sg.parameter(random((33, 40), 1), name="w")
    b = sg.parameter(random(40, 2), name="b")
    h = sg.relu(x @ w + b)
    cube = sg.reshape(x, ("N", 3, 11))
    batched = sg.softmax(cube @ sg.matrix_transpose(cube), -1) @ cube
    loss = (h * h).sum() + sg.tanh(batched).sum()
    return Threaded.of([x], [h, batched, loss, x.T @ h, *sg.gradients(loss, [x, w, b])])


def images() -> Threaded:
    """Convolution and pooling with their gradients."""
    x = sg.input("x", ("N", 4, 9, 8))
    w = sg.parameter(random((6, 4, 3, 3), 1), name="w")
    b = sg.parameter(random(6, 2), name="b")
    h = sg.relu(sg.nn.functional.conv2d(x, w, b, padding=1, stride=2))
    y = sg.nn.functional.max_pool2d(h, 2)
    z = sg.nn.functional.avg_pool2d(h, 2)
    loss = (y * y).sum() + z.sum()
    return Threaded.of([x], [y, z, *sg.gradients(loss, [x, w, b])])


def training() -> Threaded:
    """A step of a small network: everything that is updated in place."""
    x, y = sg.input("x", ("N", 20)), sg.input("y", ("N",), "int64")
    model = sg.nn.Sequential(
        sg.nn.Linear(20, 70), sg.nn.BatchNorm1d(70), sg.nn.ReLU(), sg.nn.Dropout(0.3),
        sg.nn.Linear(70, 10),
    )  # fmt: skip
    loss = sg.nn.functional.cross_entropy(model(x), y)
    optimizer = sg.optim.Adam(model.parameters(), lr=0.01)
    return Threaded.of([x, y], [loss], updates=optimizer.minimize(loss))


def training_arrays(n: int) -> list[Array]:
    return [random((n, 20), n), np.arange(n, dtype="int64") % 10]


class InTurn:
    """A pool that runs a program's threads one at a time, in a given order between two barriers.

    Where a barrier is missing, or memory is given away too early, some order shows it.
    """

    address = barrier = dispatch = 0

    def __init__(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self._turn = threading.Condition()
        self._local = threading.local()
        self._dispatch = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(
            self._run
        )
        self._barrier = ctypes.CFUNCTYPE(
            ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )(self._meet)
        self.dispatch = ctypes.cast(self._dispatch, ctypes.c_void_p).value or 0
        self.barrier = ctypes.cast(self._barrier, ctypes.c_void_p).value or 0
        self.meetings = 0

    def _run(self, context: int, share: int) -> int:
        n = len(self.order)
        function = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )(share)
        self._ticket, self._votes = 0, 0
        results = [-1] * n

        def work(tid: int) -> None:
            private = (ctypes.c_int64 * (Word.RUN_LAST + 1))()
            ctypes.memmove(private, context, ctypes.sizeof(private))
            private[Word.STATUS] = STATUS_OK
            self._local.ticket = self.order.index(tid)
            self._wait()
            results[tid] = function(ctypes.addressof(private) if tid else context, tid, n)
            self._pass_on()

        threads = [threading.Thread(target=work, args=(tid,)) for tid in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(results)) == 1
        return results[0]

    def _meet(self, context: int, n: int, vote: int) -> int:
        self._votes |= vote
        self._local.ticket += n
        self.meetings += self._local.ticket % n == 0
        self._pass_on()
        self._wait()
        return self._votes

    def _wait(self) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._ticket == self._local.ticket)

    def _pass_on(self) -> None:
        with self._turn:
            self._ticket += 1
            self._turn.notify_all()
