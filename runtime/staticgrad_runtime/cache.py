"""The on-disk cache of compiled programs: bytes by key, checked before they are used.

Loading object code means executing it, so an entry counts only if it is a regular file of this
user's that nobody else can write, in directories of which the same holds, and if its digest over
key and content is right. A damaged entry is removed and is a miss. A directory that cannot be used
means no cache, silently: it only ever saves time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .artifact import Artifact
from .errors import ArgumentError, ArtifactError

IMPORTED_NS = time.time_ns()  # what is imported now is as it was then
ENTRY_VERSION = 1
_MAGIC = b"SGCACHE\n"
_HEADER = struct.Struct("<8sI32s")  # magic, version, SHA-256 of key and content
_SUFFIX = ".sgc"
_TEMPORARY = ".tmp-"

DEFAULT_LIMIT_BYTES = 1 << 30
_STORES_PER_SWEEP = 64  # listing the directory costs about 1 ms per 1,000 entries
_STALE_SECONDS = 3600  # temporary files of writers that died


def _setting() -> str:
    """STATICGRAD_CACHE: 0 for no cache, objects for object code alone, 1 or nothing for all."""
    found = os.environ.get("STATICGRAD_CACHE", "") or "1"
    if found not in ("0", "1", "objects"):
        raise ArgumentError(f"STATICGRAD_CACHE={found!r}: expected 0, 1 or objects")
    return found


def default_root() -> Path | None:
    """$STATICGRAD_CACHE_DIR, else staticgrad in the XDG cache; None if STATICGRAD_CACHE is 0."""
    if _setting() == "0":
        return None
    asked = os.environ.get("STATICGRAD_CACHE_DIR")
    if asked:
        return Path(asked)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: relative paths are to be ignored
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:  # no home directory
            return None
    return Path(base) / "staticgrad"


def remembers_graphs() -> bool:
    """Whether programs are found by their graphs, without a pass; STATICGRAD_CACHE=objects keeps
    object code alone, for who changes passes in a running process, and STATICGRAD_VERIFY=1, which
    wants every pass to run, does so too."""
    return _setting() != "objects" and os.environ.get("STATICGRAD_VERIFY") != "1"


def _is_ours(status: os.stat_result) -> bool:
    """Owned by this user, and writable by nobody else."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


class DiskCache:
    """A cache in one directory; least recently used entries go when it exceeds its limit."""

    def __init__(self, root: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.root = root
        self.limit_bytes = limit_bytes

    @classmethod
    def default(cls) -> DiskCache | None:
        """The user's cache as the environment says, or None where it is switched off."""
        root = default_root()
        return None if root is None else cls(root)

    def load(self, key: str) -> bytes | None:
        """The content stored under `key`, or None."""
        path = self._path(key)
        if not self._usable(self.root) or not self._usable(path.parent):
            return None
        try:
            data = self._read(path)
        except OSError:
            return None
        if data is not None and len(data) >= _HEADER.size:
            magic, version, digest = _HEADER.unpack_from(data)
            content = data[_HEADER.size :]
            if magic == _MAGIC and version == ENTRY_VERSION and digest == _digest(key, content):
                with contextlib.suppress(OSError):
                    os.utime(path)  # the time of last use, which eviction goes by
                return content
        self.remove(key)
        return None

    def store(self, key: str, content: bytes) -> bool:
        """Stores `content` under `key`; False where the directory cannot be written."""
        path = self._path(key)
        try:
            for directory in (self.root, path.parent):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not self._usable(directory):
                    return False
            self._write(path, _HEADER.pack(_MAGIC, ENTRY_VERSION, _digest(key, content)) + content)
        except OSError:
            return False
        if int(key[-2:], 16) % _STORES_PER_SWEEP == 0:  # keys are random: no count need be kept
            self.evict()
        return True

    def load_artifact(self, key: str) -> Artifact | None:
        """The artifact stored under `key`, or None; a malformed one is removed."""
        content = self.load(key)
        if content is None:
            return None
        try:
            return Artifact.from_bytes(content)
        except ArtifactError:
            self.remove(key)
            return None

    def store_artifact(self, key: str, artifact: Artifact) -> bool:
        return self.store(key, artifact.to_bytes())

    def remove(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def evict(self) -> None:
        """Removes the least recently used entries beyond the limit, and stale temporary files."""
        entries = []
        for path, status in self._files():
            if path.name.startswith(_TEMPORARY):
                if status.st_mtime < time.time() - _STALE_SECONDS:
                    with contextlib.suppress(OSError):
                        path.unlink()
            else:
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            if total <= self.limit_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def size_bytes(self) -> int:
        """What the entries take on disk."""
        return sum(status.st_size for path, status in self._files() if path.name.endswith(_SUFFIX))

    def _path(self, key: str) -> Path:
        if len(key) < 8 or set(key) - set("0123456789abcdef"):
            raise ValueError(f"a cache key is a hex digest, not {key!r}")
        return self.root / key[:2] / (key + _SUFFIX)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with contextlib.suppress(OSError):
            for path in list(self.root.glob("??/*")):
                if path.name.endswith(_SUFFIX) or path.name.startswith(_TEMPORARY):
                    with contextlib.suppress(OSError):  # another process may have removed it
                        yield path, path.lstat()

    @staticmethod
    def _usable(directory: Path) -> bool:
        try:
            status = directory.stat()
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and _is_ours(status)

    @staticmethod
    def _read(path: Path) -> bytes | None:
        """The file's bytes; None where it is not an entry of ours. OSError where there is none."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
                return None
            return file.read()

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        """Writes to a temporary name (mode 0600) and renames, so no reader sees a part of it."""
        descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
