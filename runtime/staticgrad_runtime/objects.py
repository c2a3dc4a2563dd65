"""Several object files as one run of bytes: a program may be compiled in parts."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from .errors import ArtifactError

_MAGIC = b"SGOBJS\r\n"  # no object file begins so
_COUNT = struct.Struct("<Q")


def pack(objects: Sequence[bytes]) -> bytes:
    """One object file as it is; of several their number, lengths and bytes."""
    if len(objects) == 1:
        return objects[0]
    lengths = struct.pack(f"<{len(objects)}Q", *map(len, objects))
    return b"".join((_MAGIC, _COUNT.pack(len(objects)), lengths, *objects))


def unpack(code: bytes) -> list[bytes]:
    """The object files of `pack`'s result. Raises ArtifactError where the lengths do not fit."""
    if not code.startswith(_MAGIC):
        return [code]
    at = len(_MAGIC) + _COUNT.size
    if len(code) < at:
        raise ArtifactError("object code is cut off")
    (count,) = _COUNT.unpack_from(code, len(_MAGIC))
    if count > (len(code) - at) // 8:
        raise ArtifactError("object code is damaged: its parts do not add up")
    lengths = struct.unpack_from(f"<{count}Q", code, at)
    at += 8 * count
    if at + sum(lengths) != len(code):
        raise ArtifactError("object code is damaged: its parts do not add up")
    found = []
    for length in lengths:
        found.append(code[at : at + length])
        at += length
    return found
