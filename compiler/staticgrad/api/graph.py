"""`Graph`: the graph as an object that users declare, print, draw and save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from staticgrad.ir import graph as ir
from staticgrad.ir.errors import ArgumentTypeError, DTypeError, GraphError, ShapeError
from staticgrad.ir.loc import locs_text
from staticgrad.ir.node import Value
from staticgrad.ops.public import list_of, public_class
from staticgrad.ops.tensor import Tensor


@public_class
class Graph(ir.Graph):
    """What is computed from inputs and state: `Graph([x, y], [loss], updates=...)`.

    `outputs` is one tensor or a list of them. `updates` is what an optimiser's `minimize` gives, or
    pairs (state, new value), or a dict of them; all new values are computed from the old state.

    Raises `GraphError` where an output needs an input that is not listed or where something is
    updated that is no state, `ShapeError` and `DTypeError` where a new value does not fit.
    """

    def __init__(
        self, inputs: Sequence[Tensor], outputs: Tensor | Sequence[Tensor], updates: Any = None
    ) -> None:
        single = isinstance(outputs, Value)
        listed = [outputs] if isinstance(outputs, Value) else _tensors(outputs, "outputs")
        super().__init__(checked_inputs(inputs), listed, checked_updates(updates), single=single)

    def to_text(self) -> str:
        """The graph in the language of the dumps; `Graph.from_text` reads it back."""
        from staticgrad.ir.printer import to_text

        return to_text(self)

    @staticmethod
    def from_text(text: str) -> ir.Graph:
        """The graph that `to_text` printed. Raises `ParseError` with line and column."""
        from staticgrad.api.files import parse

        return parse(text)

    def save(self, path: Any) -> None:
        """Writes the text to `path` and large constants and state beside it (safetensors)."""
        from staticgrad.api.files import save_graph

        save_graph(self, path)

    def to_dot(self) -> str:
        """The graph for Graphviz."""
        from staticgrad.inspect import to_dot

        return to_dot(self)

    def to_mermaid(self) -> str:
        """The graph for Mermaid."""
        from staticgrad.inspect import to_mermaid

        return to_mermaid(self)

    def to_json(self) -> str:
        """The graph as one JSON document."""
        from staticgrad.inspect import to_json

        return to_json(self)

    def to_svg(self) -> str:
        """The graph as a picture."""
        from staticgrad.inspect import to_svg

        return to_svg(self)

    def to_networkx(self) -> Any:
        """The graph as a `networkx.MultiDiGraph`."""
        from staticgrad.inspect import to_networkx

        return to_networkx(self)


def _tensors(values: Any, what: str) -> list[Tensor]:
    found = list_of(values, what, "tensors")
    for v in found:
        if not isinstance(v, Tensor):
            raise ArgumentTypeError(f"{what}: expected tensors, got {type(v).__name__}")
    return found


def checked_inputs(inputs: Any) -> list[Tensor]:
    """Declared inputs, each once and each with a name of its own."""
    found = _tensors(inputs, "inputs")
    names: dict[str, Tensor] = {}
    for v in found:
        if v.node.op != "input":
            raise ArgumentTypeError(
                f"inputs: {v!r} (declared at {locs_text(v.node.locs)}) is no input; inputs are "
                "declared by sg.input"
            )
        name = v.node.attrs["name"]
        if name in names:
            raise GraphError(f"inputs: the name {name!r} is given twice")
        names[name] = v
    return found


def checked_updates(updates: Any) -> list[tuple[Tensor, Tensor]]:
    """Pairs of state and new value, of equal types, each state once."""
    if updates is None:
        return []
    given = list(updates.items()) if isinstance(updates, Mapping) else updates
    pairs = list_of(given, "updates", "pairs (state, new value)")
    seen: set[int] = set()
    found = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ArgumentTypeError(f"updates: expected pairs (state, new value), got {pair!r}")
        state, value = pair
        if not isinstance(state, Tensor) or state.node.op != "state":
            raise GraphError(
                f"updates: {state!r} is no state; only what sg.parameter declares can be updated"
            )
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(f"updates: the new value of {state!r} is {value!r}, no tensor")
        if value.dtype != state.dtype:
            raise DTypeError(
                f"updates: {state!r} can't become {value!r}: its dtype stays {state.dtype!s}"
            )
        if value.shape != state.shape:
            raise ShapeError(f"updates: {state!r} can't become {value!r}: its shape stays")
        if state.node.attrs["id"] in seen:
            raise GraphError(f"updates: {state!r} is updated twice")
        seen.add(state.node.attrs["id"])
        found.append((state, value))
    return found
