"""The errors that a compiled program can raise; the compiler's own errors build on these."""

from __future__ import annotations


class StaticgradError(Exception):
    """The base of every error that staticgrad raises on purpose."""


class ArgumentError(StaticgradError, ValueError):
    """An argument outside of what a function accepts."""


class BindError(StaticgradError, ValueError):
    """Inputs of a call that do not fit the declared shapes, dtypes or dim equalities."""


class ExecutionError(StaticgradError, RuntimeError):
    """A compiled step found bad data (an index out of range, a NaN under check); state is kept.

    `code` is the step's status code, `element` the flat index of the smallest failing element,
    `value` the offending integer (0 where a step reports none), `location` the user's "file:line".
    """

    def __init__(
        self, message: str, *, code: int = 0, element: int = 0, value: int = 0, location: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.element = element
        self.value = value
        self.location = location


class StateError(StaticgradError, ValueError):
    """A checkpoint or assignment that does not fit the parameters."""


class ArtifactError(StaticgradError, ValueError):
    """An artifact that is damaged, of another version, or not well formed."""


class UnsupportedError(StaticgradError, NotImplementedError):
    """A device, dtype, CPU or op that staticgrad does not support; says so by name."""
