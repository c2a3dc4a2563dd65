"""What a framework's driver gives: a workload, ready to be called in that framework."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .workload import Array, Workload


def _same(result: Any) -> Any:
    return result


def _nothing() -> None:
    return None


@dataclass
class Program:
    """A workload in one framework.

    call      runs it once; what it returns may still be being computed
    wait      returns when a result is there
    values    the result's arrays, as NumPy's
    state     the parameters as they are now (kind "train")
    keep      remembers parameters and momentum; what it returns puts them back
    figures   what the framework itself tells: planned memory, operations, stages of compiling;
              `temporary_bytes` is what a call takes beside arguments, state and results
    """

    call: Callable[[], Any]
    values: Callable[[Any], list[Array]]
    wait: Callable[[Any], Any] = _same
    state: Callable[[], list[Array]] = list
    keep: Callable[[], Callable[[], None]] = lambda: _nothing
    figures: Callable[[], dict[str, Any]] = dict


class Driver(Protocol):
    """One framework in this process. Building one imports the framework and starts it up, which
    is no part of any time measured."""

    def __init__(self, threads: int) -> None: ...

    def versions(self) -> dict[str, str]:
        """Packages and their versions."""

    def lacks(self, workload: Workload) -> str | None:
        """Why it cannot take part in a workload; None if it can."""

    def prepare(
        self, workload: Workload, parameters: Sequence[Array], inputs: Sequence[Array]
    ) -> Program:
        """Declares the workload and compiles it as far as that comes before the first call."""

    def forget(self) -> None:
        """Drops what the framework keeps of programs that are gone."""


OURS = "staticgrad"
LABELS = {
    OURS: "staticgrad",
    "numpy": "NumPy",
    "torch": "PyTorch eager",
    "torch_compile": "torch.compile",
    "jax": "JAX",
}
PEERS = tuple(name for name in LABELS if name != OURS)
# What must be there for a framework to run.
PACKAGES = {OURS: "staticgrad", "numpy": "numpy", "torch": "torch", "torch_compile": "torch",
            "jax": "jax"}  # fmt: skip
# Frameworks that keep compiled code on disk, and the variables that say where.
CACHE_VARIABLES = {OURS: "STATICGRAD_CACHE_DIR", "torch_compile": "TORCHINDUCTOR_CACHE_DIR"}
_MODULES = {
    OURS: ("staticgrad_driver", "StaticgradDriver"),
    "numpy": ("numpy_driver", "NumpyDriver"),
    "torch": ("torch_driver", "TorchDriver"),
    "torch_compile": ("torch_driver", "TorchCompileDriver"),
    "jax": ("jax_driver", "JaxDriver"),
}


def driver(name: str, threads: int) -> Driver:
    """The driver of a framework, started. Raises ImportError where it is not installed."""
    module, cls = _MODULES[name]
    made: Driver = getattr(importlib.import_module(f"{__package__}.{module}"), cls)(threads)
    return made


def checked_values(workload: Workload, program: Program, steps: int = 3) -> list[Array]:
    """What is compared: a call's result; of training, each of three losses and then the
    parameters, so that a wrong gradient or update shows."""
    if workload.kind != "train":
        result = program.call()
        program.wait(result)
        return program.values(result)
    found = []
    for _ in range(steps):
        result = program.call()
        program.wait(result)
        found += program.values(result)
    return [np.asarray(a) for a in (*found, *program.state())]
