"""The error of a run that failed: the manifest's text with the sizes of that run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from staticgrad_runtime.artifact import Manifest
from staticgrad_runtime.binding import Binder

from staticgrad.ir.errors import ExecutionError
from staticgrad.ops.failures import with_sizes

Array = np.ndarray[Any, Any]
Hook = Callable[[int, int, int, Sequence[Array]], None]


def error_of(
    manifest: Manifest, code: int, element: int, value: int, arrays: Sequence[Array]
) -> ExecutionError | None:
    """The error for a status code; None for one that the manifest does not list. `location`, the
    line that declared what failed, is beside its text."""
    message = manifest.messages.get(code)
    if message is None:
        return None
    dims = Binder(manifest).bind_shapes([array.shape for array in arrays])
    text = with_sizes(message.text, dims)
    text = text.replace("{element}", str(element)).replace("{value}", str(value))
    return ExecutionError(
        text, code=code, element=element, value=value, location=message.location
    )  # fmt: skip


def failure_hook(manifest: Manifest) -> Hook:
    """What raises that error with the line that declared what failed."""

    def fail(code: int, element: int, value: int, arrays: Sequence[Array]) -> None:
        error = error_of(manifest, code, element, value, arrays)
        if error is not None:
            if error.location:
                error.args = (f"{error} ({error.location})",)
            try:
                raise error
            finally:
                del error  # it knows this frame, and so the arrays: a circle that lives on

    return fail


__all__ = ["error_of", "failure_hook"]
