"""What is needed to run a compiled program, and no more. Never imports the compiler."""

from __future__ import annotations

from .artifact import (
    Artifact,
    BufferSpec,
    ConstantSpec,
    ConstraintSpec,
    CostSpec,
    InputSpec,
    Manifest,
    MessageSpec,
    OutputSpec,
    StateSpec,
)
from .errors import (
    ArtifactError,
    BindError,
    ExecutionError,
    StateError,
    StaticgradError,
    UnsupportedError,
)
from .executable import Executable
from .state import StateCell

__all__ = [
    "Artifact",
    "ArtifactError",
    "BindError",
    "BufferSpec",
    "ConstantSpec",
    "ConstraintSpec",
    "CostSpec",
    "Executable",
    "ExecutionError",
    "InputSpec",
    "Manifest",
    "MessageSpec",
    "OutputSpec",
    "StateCell",
    "StateError",
    "StateSpec",
    "StaticgradError",
    "UnsupportedError",
]
