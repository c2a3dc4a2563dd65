"""Looking at graphs: pictures, plain data, and other programs' forms."""

from __future__ import annotations

from .as_json import to_json
from .as_networkx import to_networkx
from .dot import to_dot
from .mermaid import to_mermaid
from .svg import to_svg

__all__ = ["to_dot", "to_json", "to_mermaid", "to_networkx", "to_svg"]
