"""The dynamic mode: operations run as they are called; a tape records how to differentiate them.

    t = sg.eager.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (t**2).sum().backward()
    t.grad                                      # tensor([2., 4., 6.])

It is the same functions, layers and optimisers as the static mode's, with PyTorch's names and rules
for tensors (`tensor`, `backward`, `no_grad`), and `Variable` and `GradientTape` as TensorFlow 2 has
them. Operations run through compiled kernels: one set of records and rules serves both modes.
"""

from __future__ import annotations

from typing import Any

from staticgrad.ops.public import dynamic

from . import dispatch, fallthrough, indexing, inplace, methods, operators  # noqa: F401
from .backward import grad
from .creation import (
    arange,
    as_tensor,
    empty,
    eye,
    from_numpy,
    full,
    linspace,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    tensor,
    zeros,
    zeros_like,
)
from .display import array_text as array_text
from .functions import call_graph, is_tensor, meant
from .gradient_tape import GradientTape, Variable
from .mode import (
    detect_anomaly,
    enable_grad,
    is_anomaly_enabled,
    is_grad_enabled,
    no_grad,
    set_detect_anomaly,
    set_grad_enabled,
)
from .parameters import eager_of as eager_of
from .parameters import leaf_of
from .static_values import value_of as value_of
from .tensor import Tensor

dynamic.types = frozenset((Tensor, Variable))
dynamic.call = dispatch.call


def __getattr__(name: str) -> Any:
    """The functions of `sg` on arrays, and its dtypes: `sg.eager.exp` is `sg.exp`, in this mode."""
    return fallthrough.function_of(name)


def __dir__() -> list[str]:
    dunders = (n for n in globals() if n.startswith("__"))
    return sorted({*__all__, *dunders, *fallthrough.names()})


__all__ = [
    "GradientTape",
    "Tensor",
    "Variable",
    "arange",
    "as_tensor",
    "call_graph",
    "detect_anomaly",
    "empty",
    "enable_grad",
    "eye",
    "from_numpy",
    "full",
    "grad",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "is_tensor",
    "leaf_of",
    "linspace",
    "meant",
    "no_grad",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "set_detect_anomaly",
    "set_grad_enabled",
    "tensor",
    "zeros",
    "zeros_like",
]
