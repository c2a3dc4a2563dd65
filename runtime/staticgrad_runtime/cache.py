"""The on-disk cache of compiled programs: bytes by key, checked before they are used.

Loading object code means executing it, so an entry counts only if it is a regular file of this
user's that nobody else can write, in directories of which the same holds, and if its digest over
key and content is right. A damaged entry is removed and is a miss. A directory that cannot be used
means no cache, silently, for it only ever saves time; but who named it by STATICGRAD_CACHE_DIR is
warned, once in a process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import struct
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from .artifact import Artifact
from .environment import chosen, verifies
from .errors import ArtifactError

IMPORTED_NS = time.time_ns()  # what is imported now is as it was then
ENTRY_VERSION = 1
_MAGIC = b"SGCACHE\n"
_HEADER = struct.Struct("<8sI32s")  # magic, version, SHA-256 of key and content
_SUFFIX = ".sgc"
_TEMPORARY = ".tmp-"

DEFAULT_LIMIT_BYTES = 1 << 30
# One store in so many lists the entries of its folder, one of 256, and all of them where those say
# that there are too many: 85,000 entries took 0.9 s of a compilation.
_STORES_PER_SWEEP = 64
_FOLDERS = 256
_STALE_SECONDS = 3600  # temporary files of writers that died

DIRECTORY = "STATICGRAD_CACHE_DIR"


def _setting() -> str:
    """STATICGRAD_CACHE: 0 for no cache, objects for object code alone, 1 or nothing for all."""
    return chosen("STATICGRAD_CACHE", ("0", "1", "objects"), "1")


def default_root() -> Path | None:
    """$STATICGRAD_CACHE_DIR, else staticgrad in the XDG cache; None if STATICGRAD_CACHE is 0."""
    if _setting() == "0":
        return None
    asked = os.environ.get(DIRECTORY)
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
    return _setting() != "objects" and not verifies()


def _not_ours(status: os.stat_result) -> str | None:
    """Why something is not owned by this user and writable by nobody else; None where it is."""
    if not hasattr(os, "geteuid"):
        return None
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return "others can write to it" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def _check(directory: Path) -> None:
    """Raises OSError where there is no directory that may hold entries."""
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    reason = _not_ours(status)
    if reason is not None:
        raise OSError(errno.EPERM, reason, str(directory))


_warned = False


def _warn(message: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(message, UserWarning, stacklevel=2)


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


class DiskCache:
    """A cache in one directory; least recently used entries go when it exceeds its limit.

    `asked` says that the user named the directory, and so is warned where it cannot be used;
    `trouble` is why it could not the last time that this was found.
    """

    def __init__(
        self, root: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES, *, asked: bool = False
    ) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.asked = asked
        self.trouble: str | None = None

    @classmethod
    def default(cls) -> DiskCache | None:
        """The user's cache as the environment says, or None where it is switched off."""
        root = default_root()
        return None if root is None else cls(root, asked=bool(os.environ.get(DIRECTORY)))

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
                if not directory.exists():
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                _check(directory)
            self._write(path, _HEADER.pack(_MAGIC, ENTRY_VERSION, _digest(key, content)) + content)
        except OSError as error:
            self._tell(error)
            return False
        if int(key[-2:], 16) % _STORES_PER_SWEEP == 0:  # keys are random: no count need be kept
            self._sweep(path.parent)
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

    def _sweep(self, folder: Path) -> None:
        """Removes what is stale in a folder; evicts where the folder says that all take more than
        the limit, as keys are random, and then a tenth more, so that it is long until the next."""
        if sum(size for _, size, _ in self._entries(folder.name)) * _FOLDERS > self.limit_bytes:
            self.evict(self.limit_bytes // 10 * 9)

    def evict(self, to_bytes: int | None = None) -> None:
        """Removes the least recently used entries beyond the limit, or `to_bytes`, and stale
        temporary files."""
        entries = self._entries()
        total, limit = sum(size for _, size, _ in entries), self.limit_bytes
        if to_bytes is not None and total > limit:
            limit = to_bytes
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            if total <= limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _entries(self, folder: str = "??") -> list[tuple[int, int, Path]]:
        """Time of last use, size and path of all entries; removes stale temporary files."""
        entries = []
        for path, status in self._files(folder):
            if path.name.endswith(_SUFFIX):
                entries.append((status.st_mtime_ns, status.st_size, path))
            elif status.st_mtime < time.time() - _STALE_SECONDS:
                with contextlib.suppress(OSError):
                    path.unlink()
        return entries

    def size_bytes(self) -> int:
        """What the entries take on disk."""
        return sum(status.st_size for path, status in self._files() if path.name.endswith(_SUFFIX))

    def _path(self, key: str) -> Path:
        if len(key) < 8 or set(key) - set("0123456789abcdef"):
            raise ValueError(f"a cache key is a hex digest, not {key!r}")
        return self.root / key[:2] / (key + _SUFFIX)

    def _files(self, folder: str = "??") -> Iterator[tuple[Path, os.stat_result]]:
        with contextlib.suppress(OSError):
            for path in list(self.root.glob(f"{folder}/*")):
                if path.name.endswith(_SUFFIX) or path.name.startswith(_TEMPORARY):
                    with contextlib.suppress(OSError):  # another process may have removed it
                        yield path, path.lstat()

    def _usable(self, directory: Path) -> bool:
        try:
            _check(directory)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # else the first entry makes it
                self._tell(error)
            return False
        return True

    def _tell(self, error: OSError) -> None:
        """Notes why the directory cannot be used, and warns who asked for it."""
        self.trouble = str(error.strerror)
        if error.filename not in (None, str(self.root)):
            self.trouble = f"{error.filename}: {self.trouble}"
        if self.asked:
            _warn(
                f"{DIRECTORY}={self.root} cannot be used ({self.trouble}): compiled programs "
                "are not kept on disk, so that every process compiles anew"
            )

    @staticmethod
    def _read(path: Path) -> bytes | None:
        """The file's bytes; None where it is not an entry of ours. OSError where there is none."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or _not_ours(status):
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
