"""The external symbols of an object file, so that none is resolved by accident.

The JIT linker would look any name up in the whole process; a program may use `memcpy`, `memmove`,
`memset` and what the caller injects, and nothing else. ELF, Mach-O and COFF, 64-bit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from .errors import ArtifactError

_ELF_SYMTAB = 2  # SHT_SYMTAB
_ELF_GOT = "_GLOBAL_OFFSET_TABLE_"  # named by position-independent code, made by the linker
_MACHO_SYMTAB = 2  # LC_SYMTAB
_COFF_EXTERNAL = 2  # IMAGE_SYM_CLASS_EXTERNAL


@dataclass
class ObjectSymbols:
    """External names as the source spelled them: those an object has, those it wants."""

    defined: set[str] = field(default_factory=set)
    undefined: set[str] = field(default_factory=set)

    def add(self, name: str, is_defined: bool) -> None:
        (self.defined if is_defined else self.undefined).add(name)


def object_symbols(object_code: bytes) -> ObjectSymbols:
    """The external symbols of an object file; ArtifactError where it cannot be read."""
    try:
        if object_code[:4] == b"\x7fELF":
            return _elf(object_code)
        if object_code[:4] == b"\xcf\xfa\xed\xfe":
            return _macho(object_code)
        return _coff(object_code)
    except (struct.error, UnicodeDecodeError) as error:
        raise ArtifactError(f"object code that cannot be read: {error}") from error


def _name(data: bytes, start: int, stop: int) -> str:
    end = data.find(b"\0", start, stop)
    return data[start : end if end >= 0 else stop].decode()


def _elf(data: bytes) -> ObjectSymbols:
    if data[4:6] != b"\x02\x01":
        raise ArtifactError("object code that is no 64-bit little-endian ELF")
    (sections,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    if count == 0:  # more than 65,279 sections: the count is section 0's size
        (count,) = struct.unpack_from("<Q", data, sections + 0x20)
    found = ObjectSymbols()
    for at in range(sections, sections + count * entry_size, entry_size):
        (kind,) = struct.unpack_from("<I", data, at + 4)
        if kind != _ELF_SYMTAB:
            continue
        offset, size, link = struct.unpack_from("<QQI", data, at + 0x18)
        names_at, names_size = struct.unpack_from("<QQ", data, sections + link * entry_size + 0x18)
        for symbol in range(offset + 24, offset + size, 24):  # the first one is the null symbol
            name, info, _, section = struct.unpack_from("<IBBH", data, symbol)
            if name and info >> 4:  # not local
                found.add(_name(data, names_at + name, names_at + names_size), section != 0)
    found.undefined.discard(_ELF_GOT)
    return found


def _macho(data: bytes) -> ObjectSymbols:
    (commands,) = struct.unpack_from("<I", data, 16)
    found = ObjectSymbols()
    at = 32
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == _MACHO_SYMTAB:
            symbols, count, names_at, names_size = struct.unpack_from("<IIII", data, at + 8)
            for symbol in range(symbols, symbols + 16 * count, 16):
                name, tag, _, _, _ = struct.unpack_from("<IBBHQ", data, symbol)
                if not tag & 0xE0 and tag & 0x01:  # no debugging entry, external
                    text = _name(data, names_at + name, names_at + names_size)
                    found.add(text.removeprefix("_"), tag & 0x0E != 0)
        at += size
    return found


def _coff(data: bytes) -> ObjectSymbols:
    machine, _, _, symbols, count = struct.unpack_from("<HHIII", data, 0)
    if machine not in (0x8664, 0xAA64):
        raise ArtifactError("object code of an unknown format")
    names_at = symbols + 18 * count
    found = ObjectSymbols()
    i = 0
    while i < count:
        at = symbols + 18 * i
        _, section, _, storage, extra = struct.unpack_from("<IhHBB", data, at + 8)
        if storage == _COFF_EXTERNAL:
            zero, offset = struct.unpack_from("<II", data, at)
            if zero == 0:
                found.add(_name(data, names_at + offset, len(data)), section != 0)
            else:
                found.add(_name(data, at, at + 8), section != 0)
        i += 1 + extra
    return found
