"""What a user may say about memory that the runtime keeps."""

from __future__ import annotations

from staticgrad_runtime.kept_memory import release_memory

__all__ = ["release_memory"]
