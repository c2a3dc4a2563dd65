"""The disk cache: hits, damage, tampering, permissions, eviction."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from staticgrad_runtime import Executable, loader
from staticgrad_runtime import cache as cache_module
from staticgrad_runtime.cache import DiskCache, default_root, remembers_graphs
from staticgrad_runtime.errors import ArgumentError

from tests import runtime_programs as programs

KEY = "ab" + "0" * 62
OTHER = "ab" + "1" * 62


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache")


def entry(cache: DiskCache, key: str = KEY) -> Path:
    (path,) = cache.root.glob(f"*/{key}*")
    return path


def test_what_is_stored_is_loaded(cache: DiskCache) -> None:
    assert cache.load(KEY) is None
    assert cache.store(KEY, b"content")
    assert cache.load(KEY) == b"content"
    assert DiskCache(cache.root).load(KEY) == b"content"
    assert cache.store(KEY, b"newer")
    assert cache.load(KEY) == b"newer"
    assert cache.load(OTHER) is None


def test_an_artifact_is_loaded_and_runs(cache: DiskCache) -> None:
    cache.store_artifact(KEY, programs.x2_plus_1())
    loaded = cache.load_artifact(KEY)
    assert loaded is not None
    assert Executable(loaded)([1.0]) == [3.0]


def test_directories_and_files_are_private(cache: DiskCache) -> None:
    cache.store(KEY, b"content")
    path = entry(cache)
    assert [p.stat().st_mode & 0o777 for p in (cache.root, path.parent)] == [0o700, 0o700]
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10])


def other_version(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] += 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def open_to_others(path: Path) -> None:
    path.chmod(0o666)


def link_elsewhere(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("damage", [flip, shorten, other_version, empty, open_to_others])
def test_a_damaged_entry_is_removed(cache: DiskCache, damage: Callable[[Path], None]) -> None:
    cache.store(KEY, b"content")
    path = entry(cache)
    damage(path)
    assert cache.load(KEY) is None
    assert not path.exists()
    cache.store(KEY, b"again")
    assert cache.load(KEY) == b"again"


def test_a_link_is_not_followed(cache: DiskCache) -> None:
    cache.store(KEY, b"content")
    link_elsewhere(entry(cache))
    assert cache.load(KEY) is None


def test_an_entry_under_another_key_is_not_taken(cache: DiskCache) -> None:
    cache.store(KEY, b"content")
    path = entry(cache)
    path.rename(path.with_name(path.name.replace(KEY, OTHER)))
    assert cache.load(OTHER) is None


def test_a_malformed_artifact_is_removed(cache: DiskCache) -> None:
    cache.store(KEY, b"no artifact")
    assert cache.load_artifact(KEY) is None
    assert cache.load(KEY) is None


def test_directories_that_others_can_write_are_not_used(cache: DiskCache) -> None:
    cache.store(KEY, b"content")
    cache.root.chmod(0o777)
    assert cache.load(KEY) is None
    assert not cache.store(OTHER, b"content")
    cache.root.chmod(0o700)
    assert cache.load(KEY) == b"content"
    entry(cache).parent.chmod(0o770)
    assert cache.load(KEY) is None


def test_an_unusable_root_is_silently_no_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = DiskCache(blocked / "cache")
    assert not cache.store(KEY, b"content")
    assert cache.load(KEY) is None
    assert cache.size_bytes() == 0
    cache.evict()


def trouble(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A directory that cannot be used, and why."""
    root = tmp_path / "mine"
    if kind == "a file":
        root.write_text("in the way")
        return root, "Not a directory"
    if kind == "below a file":
        root.write_text("in the way")
        return root / "inner", "Not a directory"
    root.mkdir(0o700)
    if kind == "open to others":
        root.chmod(0o777)
        return root, "others can write to it"
    if kind == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
        return root, "belongs to another user"

    def refuse(prefix: str, dir: Path) -> None:  # root may write anywhere, so modes are no test
        raise PermissionError(13, "Permission denied", str(dir / prefix))

    monkeypatch.setattr(cache_module.tempfile, "mkstemp", refuse)
    return root, f"{root / 'ab' / '.tmp-'}: Permission denied"


@pytest.mark.parametrize(
    "kind", ["a file", "below a file", "open to others", "another user's", "not writable"]
)
def test_who_names_a_directory_that_cannot_be_used_is_warned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root, reason = trouble(kind, tmp_path, monkeypatch)
    monkeypatch.setattr(cache_module, "_warned", False)
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(root))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            cache = DiskCache.default()
            assert cache is not None and cache.load(KEY) is None
            assert not cache.store(KEY, b"content") and cache.trouble == reason
    assert [str(w.message) for w in found] == [
        f"STATICGRAD_CACHE_DIR={root} cannot be used ({reason}): compiled programs are not kept on "
        "disk, so that every process compiles anew"
    ]


def test_a_directory_that_nobody_named_fails_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_warned", False)
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    monkeypatch.delenv("STATICGRAD_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = DiskCache.default()
        assert cache is not None and not cache.store(KEY, b"content")
    assert cache.trouble is not None and cache.trouble.endswith("Not a directory")


def test_a_directory_that_is_not_there_yet_is_made_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_warned", False)
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path / "new" / "inner"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = DiskCache.default()
        assert cache is not None and cache.load(KEY) is None
        assert cache.store(KEY, b"content") and cache.load(KEY) == b"content"
    assert cache.trouble is None


def test_the_least_recently_used_goes_first(cache: DiskCache) -> None:
    keys = [f"{i:02x}" + "0" * 62 for i in range(6)]
    for age, key in enumerate(keys):
        cache.store(key, bytes(1000))
        os.utime(entry(cache, key), ns=(10**15 + age, 10**15 + age))
    assert cache.load(keys[0]) is not None  # used now, so the newest
    one = cache.size_bytes() // 6
    cache.limit_bytes = 3 * one
    cache.evict()
    assert [cache.load(key) is not None for key in keys] == [True, False, False, False, True, True]
    assert cache.size_bytes() == 3 * one


def test_temporary_files_of_dead_writers_are_swept(cache: DiskCache) -> None:
    cache.store(KEY, b"content")
    folder = entry(cache).parent
    old, young = folder / ".tmp-old", folder / ".tmp-young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (time.time() - 1e5, time.time() - 1e5))
    cache.evict()
    assert (old.exists(), young.exists()) == (False, True)
    assert cache.load(KEY) == b"content"


@pytest.mark.parametrize("key", ["", "abc", "../../../../etc/passwd", "AB" * 32, "ab/" + "0" * 32])
def test_keys_are_hex_digests(cache: DiskCache, key: str) -> None:
    with pytest.raises(ValueError, match="hex digest"):
        cache.load(key)


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.delenv("STATICGRAD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "staticgrad"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home" / ".cache" / "staticgrad"
    monkeypatch.setenv("STATICGRAD_CACHE", "0")
    assert default_root() is None
    assert DiskCache.default() is None
    for unset in ("", "1"):
        monkeypatch.setenv("STATICGRAD_CACHE", unset)
        assert default_root() == tmp_path / "home" / ".cache" / "staticgrad"
        assert remembers_graphs()
    monkeypatch.setenv("STATICGRAD_CACHE", "objects")
    assert default_root() is not None and not remembers_graphs()
    monkeypatch.setenv("STATICGRAD_CACHE", "off")
    for asks in (default_root, remembers_graphs):
        with pytest.raises(ArgumentError, match="expected 0, 1 or objects"):
            asks()


def test_one_store_in_64_looks_at_its_folder(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each program of a process has a cache object of its own, so none counts its stores; and only
    where the folder says that there is too much, all entries are looked at."""
    listed: list[str] = []
    entries = DiskCache._entries

    def noted(self: DiskCache, folder: str = "??") -> list[Any]:
        listed.append(folder)
        return entries(self, folder)

    monkeypatch.setattr(DiskCache, "_entries", noted)
    for i in range(256):
        assert DiskCache(cache.root).store(f"{'ab' * 31}{i:02x}", b"")
    assert listed == ["ab"] * 4
    listed.clear()
    size = cache.size_bytes()
    full = DiskCache(cache.root, limit_bytes=size // 2)
    assert full.store("cd" * 31 + "00", bytes(1000))
    assert listed == ["cd", "??"]
    assert full.size_bytes() <= size // 20 * 9


def test_a_folder_that_is_full_by_chance_evicts_nothing(cache: DiskCache) -> None:
    cache.store(KEY, bytes(1000))
    cache.limit_bytes = 10_000  # less than 256 folders of this size would take
    assert cache.store("ab" * 31 + "00", bytes(1000))
    assert cache.load(KEY) is not None and cache.size_bytes() > 2000


# --- the runtime's own libraries ------------------------------------------------------------------

TEXT = "define i64 @answer() {{\n  ret i64 {}\n}}\n"


def answer(number: int, level: int = 2) -> int:
    library = loader.compile_text(TEXT.format(number), ["answer"], level=level)
    return int(ctypes.CFUNCTYPE(ctypes.c_int64)(library.address("answer"))())


def test_a_library_is_compiled_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    compiled = []
    generate = loader._object_code

    def counted(text: str, *host: Any) -> bytes:
        compiled.append(text)
        return generate(text, *host)

    monkeypatch.setattr(loader, "_object_code", counted)
    assert [answer(42), answer(42), answer(43), answer(42, level=0), answer(42)] == [
        42, 42, 43, 42, 42]  # fmt: skip
    assert len(compiled) == 3
    for path in tmp_path.glob("*/*"):
        flip(path)
    assert answer(42) == 42
    assert len(compiled) == 4
    monkeypatch.setenv("STATICGRAD_CACHE", "0")
    assert answer(42) == 42
    assert len(compiled) == 5
