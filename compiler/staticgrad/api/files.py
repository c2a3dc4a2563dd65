"""Saving and loading: arrays as safetensors, graphs as text with their tensors beside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from staticgrad.ir.errors import ArgumentTypeError
from staticgrad.ops.leaves import Parameter
from staticgrad_runtime import checkpoint

Array = np.ndarray[Any, Any]


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes named arrays (or parameters) in the safetensors format, atomically: to a temporary
    file that is then renamed."""
    if not isinstance(arrays, Mapping):
        raise ArgumentTypeError(
            f"save: expected a dict of arrays, e.g. model.state_dict(), got {type(arrays).__name__}"
        )
    plain = {}
    for name, value in arrays.items():
        plain[name] = value.numpy() if isinstance(value, Parameter) else np.asarray(value)
    checkpoint.save(path, plain, {})


def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays that `save` wrote, by name."""
    return dict(checkpoint.load(path)[0])
