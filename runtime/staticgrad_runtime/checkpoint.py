"""Named arrays in a safetensors file, written so that no crash leaves half a checkpoint."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .arrays import Array
from .artifact import DTYPES
from .errors import StateError


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays and string metadata: to a temporary file, synced to disk, then renamed.

    Raises StateError for an array of a dtype that staticgrad does not have.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, Array] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.name not in DTYPES:
            raise StateError(f"checkpoint: {name!r} has the unsupported dtype {array.dtype}")
        tensors[name] = np.array(array, array.dtype.newbyteorder("="), order="C")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise StateError(f"checkpoint: metadata {key!r} is no string")
    target = Path(path)
    temporary = target.parent / f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}"
    # created here, not by the library: with the mode of an ordinary new file, and never shared
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE(os.stat(temporary).st_mode)
    try:
        save_file(tensors, temporary, metadata=dict(metadata) if metadata else None)
        os.chmod(temporary, mode)  # safetensors 0.8 leaves a new file of mode 0600
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the rename itself lies in the directory
        _sync(target.parent)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of a file. StateError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    arrays: dict[str, Array] = {}
    if not os.path.exists(path):
        raise FileNotFoundError(f"no checkpoint at {os.fspath(path)}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                arrays[name] = np.array(file.get_tensor(name))
    except (SafetensorError, TypeError) as error:
        raise StateError(f"{os.fspath(path)} is no readable checkpoint: {error}") from error
    return arrays, metadata


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
