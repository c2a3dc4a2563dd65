"""The pipeline (stand-in until the passes are all there)."""
from __future__ import annotations

from typing import Any

from .expand import expand
from .fuse import fuse
from .mode import bind_mode


def run_pipeline(graph: Any, *, training: Any = None, disable: Any = (), verify: Any = None,
                 observe: Any = None, also: Any = ()) -> Any:
    g = expand(bind_mode(graph, training))
    return g if "fuse" in disable else fuse(g)
