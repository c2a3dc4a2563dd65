"""Generated matrix products (work in progress): micro-kernel first."""

from .gemm_kernel import require_micro_kernel, tile_shape

__all__ = ["require_micro_kernel", "tile_shape"]
