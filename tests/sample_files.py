"""What the tests of the samples share: loading them as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

SAMPLES = Path(__file__).parent.parent / "samples"
MODELS = (
    "char_transformer", "custom_c_op", "digits_cnn", "digits_mlp", "gradient_descent",
    "linear_regression", "rgb_convnet",
)  # fmt: skip


def sample(name: str) -> ModuleType:
    """A file of `samples/` as a module, found as Python finds it when the file is run."""
    folder = str(SAMPLES)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
