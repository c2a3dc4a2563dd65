"""What a failed run says: texts of records with places for the sizes of that run.

A program serves many sizes, so a text that is fixed when it is compiled names them by symbols:
`{=N}` stands for the size of N.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from staticgrad.ir.dim import Dim, DimLike, as_dim, substitute
from staticgrad.ir.types import TensorType

_SIZE = re.compile(r"\{=([^}]*)\}")


def size_text(d: DimLike) -> str:
    """A size in such a text."""
    return f"{{={d}}}" if isinstance(d, Dim) else str(d)


def type_text(t: TensorType) -> str:
    """A type in such a text."""
    return f"{t.dtype}[{', '.join(map(size_text, t.shape))}]"


def with_sizes(text: str, dims: Mapping[str, int]) -> str:
    """The text with the sizes of a run."""
    return _SIZE.sub(lambda found: str(substitute(as_dim(found[1]), dims)), text)


def with_names(text: str, dims: Mapping[str, Dim]) -> str:
    """The text with other symbols in the places for sizes."""
    return _SIZE.sub(lambda found: size_text(substitute(as_dim(found[1]), dims)), text)


__all__ = ["size_text", "type_text", "with_names", "with_sizes"]
