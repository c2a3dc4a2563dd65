"""Optimisers: pure graph building. `minimize(loss)` gives the updates for `sg.compile`."""

import sys

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

publish(sys.modules[__name__], __all__)
publish(lr_scheduler, lr_scheduler.__all__)
