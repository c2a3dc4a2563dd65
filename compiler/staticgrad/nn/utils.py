"""`sg.nn.utils`: bounds on gradients, where PyTorch has them. They are `sg.optim`'s."""

from __future__ import annotations

from staticgrad.optim import clip_grad_norm_, clip_grad_value_

__all__ = ["clip_grad_norm_", "clip_grad_value_"]
