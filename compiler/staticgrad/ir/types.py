"""The type of a value: dtype and shape."""

from __future__ import annotations

from dataclasses import dataclass

from .dim import DimLike, Shape, product, shape_text
from .dtype import DType


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dense array type, printed as `float32[N, 784]`; a 0-d array is `float32[]`."""

    dtype: DType
    shape: Shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> DimLike:
        """The number of elements."""
        return product(self.shape)

    @property
    def size_bytes(self) -> DimLike:
        return self.size * self.dtype.itemsize_bytes

    def __str__(self) -> str:
        return f"{self.dtype!s}{shape_text(self.shape)}"
