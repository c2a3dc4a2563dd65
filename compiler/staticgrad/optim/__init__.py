"""Optimisers: pure graph building. `minimize(loss)` gives the updates for `sg.compile`."""

import sys
from typing import TYPE_CHECKING, NoReturn

from staticgrad.ops.public import publish

from . import lr_scheduler
from .algorithms import SGD, Adagrad, Adam, AdamW, RMSprop
from .clip import clip_by_global_norm, clip_by_value, global_norm
from .clip_grad import clip_grad_norm_, clip_grad_value_
from .optimizer import Optimizer, Updates

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "Updates",
    "clip_by_global_norm",
    "clip_by_value",
    "clip_grad_norm_",
    "clip_grad_value_",
    "global_norm",
    "lr_scheduler",
]

if not TYPE_CHECKING:  # or every name would seem to be there

    def __getattr__(name: str) -> NoReturn:
        from staticgrad.ir.hints import OPTIMISERS, missing

        raise AttributeError(
            missing("sg.optim", name, OPTIMISERS), name=name, obj=sys.modules[__name__]
        )


publish(sys.modules[__name__], __all__)
publish(lr_scheduler, lr_scheduler.__all__)
