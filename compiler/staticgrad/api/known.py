"""Programs that an earlier process compiled, found by the declared graph: no pass runs.

An entry of the disk cache holds the manifest, the constants and the entry's code, and names the
object code, which other graphs may share, by the key of its text. What the key of the graph leaves
out is put in when an entry is read: state is numbered by its place in the key, and a manifest's
lines of the user's program are exchanged for those of the present one.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from staticgrad_runtime.artifact import Artifact, ConstraintSpec, Manifest
from staticgrad_runtime.cache import DiskCache
from staticgrad_runtime.errors import ArtifactError
from staticgrad_runtime.state import StateCell

from .graph_key import MOST_CONSTANT_BYTES, GraphKey

_LENGTH = struct.Struct("<Q")
_AT = re.compile(r" \(at (.*)\)$")


def load(store: DiskCache, key: GraphKey) -> tuple[Artifact, list[StateCell]] | None:
    """The program of a graph with the cells of its state, None where the cache has none that is
    whole and fits."""
    content = store.load(key.digest)
    if content is None:
        return None
    try:
        head, artifact = _unpacked(content)
        code = store.load(head["object"])
        names = _exchange(head["locs"], key.locs)
        manifest = artifact.manifest if names is None else _relocated(artifact.manifest, names)
        if code is None or manifest is None:
            return None
        cells = [key.cells[s.id] for s in manifest.state]
    except (ArtifactError, LookupError, TypeError, ValueError):
        store.remove(key.digest)
        return None
    state = [dataclasses.replace(s, id=cell.id) for s, cell in zip(manifest.state, cells)]
    manifest = dataclasses.replace(manifest, state=state)
    return dataclasses.replace(artifact, manifest=manifest, object_code=code), cells


def keep(store: DiskCache, key: GraphKey, artifact: Artifact, object_key: str) -> None:
    """Stores a program whose object code is in the cache under `object_key`, unless it holds what
    another process could not put in."""
    places = {cell.id: i for i, cell in enumerate(key.cells)}
    manifest = artifact.manifest
    if any(s.id not in places for s in manifest.state):
        return
    if sum(map(len, artifact.blobs)) > MOST_CONSTANT_BYTES:
        return
    if _relocated(manifest, {text: text for text in key.locs}) is None:
        return
    state = [dataclasses.replace(s, id=places[s.id]) for s in manifest.state]
    manifest = dataclasses.replace(manifest, state=state)
    kept = dataclasses.replace(artifact, manifest=manifest, object_code=b"")
    store.store(key.digest, _packed({"object": object_key, "locs": list(key.locs)}, kept))


def _packed(head: Mapping[str, Any], artifact: Artifact) -> bytes:
    text = json.dumps(head, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text + artifact.to_bytes()


def _unpacked(content: bytes) -> tuple[Any, Artifact]:
    (length,) = _LENGTH.unpack_from(content.ljust(_LENGTH.size, b"\0"))
    end = _LENGTH.size + length
    return json.loads(content[_LENGTH.size : end]), Artifact.from_bytes(content[end:])


# --- the user's lines -----------------------------------------------------------------------------


def _exchange(old: Sequence[str], new: Sequence[str]) -> dict[str, str] | None:
    """Which line of the present program takes the place of which; None where they are the same."""
    if list(old) == list(new):
        return None
    if len(old) != len(new) or len(set(old)) < len(old):
        raise ValueError("no line stands for just one line")
    return dict(zip(old, new))


def _relocated(manifest: Manifest, names: Mapping[str, str]) -> Manifest | None:
    """The manifest with other lines in the places of its own; None where it can't be told which
    are meant: a line that is no part of the graph, or one in the middle of a text."""

    def moved(text: str) -> str:
        return ", ".join(names[part] for part in text.split(", ")) if text else text

    def settled(text: str) -> str:
        if any(name in text for name in names):
            raise KeyError(text)
        return text

    def constraint(c: ConstraintSpec) -> ConstraintSpec:
        found = _AT.search(c.message)
        if found is None:
            return dataclasses.replace(c, message=settled(c.message))
        head = settled(c.message[: found.start()])
        return dataclasses.replace(c, message=f"{head} (at {moved(found[1])})")

    try:
        return dataclasses.replace(
            manifest,
            inputs=[dataclasses.replace(s, location=moved(s.location)) for s in manifest.inputs],
            outputs=[dataclasses.replace(s, location=moved(s.location)) for s in manifest.outputs],
            constraints=[constraint(c) for c in manifest.constraints],
            messages={
                code: dataclasses.replace(m, text=settled(m.text), location=moved(m.location))
                for code, m in manifest.messages.items()
            },
            kernels=[{**k, "locations": moved(k["locations"])} for k in manifest.kernels],
        )
    except KeyError:
        return None


__all__ = ["keep", "load"]
