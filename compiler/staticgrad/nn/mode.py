"""The mode of modules, training or evaluation, which is open until it is bound; and devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentTypeError, UnsupportedError

_CPU = ("cpu", "cpu:0")
_DEVICES = ("cuda", "gpu", "tpu", "mps", "xpu", "rocm", "hip")


class SymbolicMode:
    """The value of `training` until `train()` or `eval()` is called: bound when compiling."""

    def __bool__(self) -> bool:
        raise ArgumentTypeError(
            "whether a module trains is not known while the graph is declared: it is bound by "
            "sg.compile(training=...). Record both values with nn.functional.dropout(..., "
            "training=self.training) or training_switch, or fix the mode with model.train() or "
            "model.eval()"
        )

    def __repr__(self) -> str:
        return "symbolic"


SYMBOLIC = SymbolicMode()


def mode_of(training: Any) -> bool | None:
    """A `training` argument (True, False, or open: None or the symbolic mode) as bool or None."""
    if training is None or training is SYMBOLIC:
        return None
    if isinstance(training, (bool, np.bool_)):
        return bool(training)
    raise ArgumentTypeError(f"training must be True, False or None, got {training!r}")


def is_device(text: str) -> bool:
    return text in _CPU or text.split(":")[0] in _DEVICES


def check_device(device: Any) -> None:
    """Accepts "cpu" (and None); refuses other devices by name."""
    if device is not None and str(device) not in _CPU:
        raise UnsupportedError(
            f"device {str(device)!r} is not supported: staticgrad compiles for CPUs only; "
            'use "cpu" or leave the device out'
        )


__all__ = ["SYMBOLIC", "SymbolicMode", "check_device", "is_device", "mode_of"]
