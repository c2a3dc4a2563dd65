"""The errors that staticgrad raises. Each says what was expected, what came, and where.

All derive from `StaticgradError` and from the built-in that a user would catch for that kind.
"""

from __future__ import annotations

from staticgrad_runtime.errors import (
    ArgumentError,
    BindError,
    ExecutionError,
    StateError,
    StaticgradError,
    UnsupportedError,
)

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BindError",
    "DTypeError",
    "DifferentiationError",
    "ExecutionError",
    "GraphError",
    "ParseError",
    "PromotionWarning",
    "ShapeError",
    "StateError",
    "StaticgradError",
    "UnsupportedError",
    "VerifyError",
]


class ShapeError(StaticgradError, ValueError):
    """Shapes, ranks, axes or dims that do not fit."""


class DTypeError(StaticgradError, TypeError):
    """A dtype that an operation does not take, or that is not supported at all."""


class ArgumentTypeError(StaticgradError, TypeError):
    """An argument of a wrong kind, e.g. a list where a tensor is expected."""


class GraphError(StaticgradError, ValueError):
    """A graph that is not well formed: an unreachable input, an update of something stateless."""


class ParseError(StaticgradError, ValueError):
    """Graph or kernel text that does not parse; names the line and column."""


class VerifyError(StaticgradError):
    """The verifier found a broken invariant: a bug in a pass or a hand-written graph."""


class DifferentiationError(StaticgradError, ValueError):
    """A gradient that does not exist: an integer path, an unreachable parameter."""


class PromotionWarning(UserWarning):
    """Float64 data meet float32 parameters, so that what follows is computed in float64."""
