"""lower: graph -> program. Kernels are chosen, indices worked out, buffers named."""

from .lower import lower

__all__ = ["lower"]
