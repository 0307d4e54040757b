"""What objects for Apple's systems must look like: a reader of Mach-O object files.

Structures and numbers: Apple's ``<mach-o/loader.h>`` and ``<mach-o/nlist.h>``, 64-bit form.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from effc.devices.target import Target
from effc.errors import InternalError

__all__ = ["CPU_TYPES", "MachObject", "check_object", "read_object"]

CPU_TYPES = {"aarch64": (0x0100000C, 0), "x86_64": (0x01000007, 3)}
"""CPU type and subtype (all models) by ``Target.arch``."""

_MAGIC, _OBJECT = 0xFEEDFACF, 1
_SEGMENT_64, _SYMTAB, _BUILD_VERSION = 0x19, 0x2, 0x32
_MIN_VERSIONS = {0x24: 1, 0x25: 2}  # load commands before LC_BUILD_VERSION, by platform
_PLATFORMS = {"macos": 1, "ios": 2, "simulator": 7}
_STAB, _PRIVATE, _TYPE, _EXTERNAL = 0xE0, 0x10, 0x0E, 0x01
_WEAK_DEFINITION = 0x80
_PURE_CODE = 0x80000000


@dataclass(frozen=True)
class MachObject:
    """Facts of an object file.

    Attributes:
        cpu: CPU type.
        platform: Number of the platform, 0 if the file names none.
        exported: External names it defines that every other file sees.
        private: External names it defines that only files linked into the same image see.
        weak: External names it defines that may be defined elsewhere as well.
        undefined: Names it takes from others.
        code_bytes: Sections of code.
    """

    cpu: int
    platform: int
    exported: frozenset[str]
    private: frozenset[str]
    weak: frozenset[str]
    undefined: frozenset[str]
    code_bytes: int


def read_object(data: bytes) -> MachObject:
    """Read an object file.

    Raises:
        InternalError: It is no 64-bit Mach-O object, or damaged.
    """
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError) as error:
        raise InternalError("an object is not Mach-O", got=error) from error


def check_object(data: bytes, target: Target) -> MachObject:
    """Check that an object is for the target's processor and system.

    Raises:
        InternalError: It is not.
    """
    found = read_object(data)
    wanted = (CPU_TYPES[target.arch][0], _platform(target))
    if (found.cpu, found.platform) != wanted:
        raise InternalError(
            "an object is for another system",
            where=target.name,
            expected=f"CPU type and platform {wanted}",
            got=(found.cpu, found.platform),
        )
    return found


def _platform(target: Target) -> int:
    if target.triple.endswith("-simulator"):
        return _PLATFORMS["simulator"]
    return _PLATFORMS["macos" if "-macos" in target.triple else "ios"]


def _read(data: bytes) -> MachObject:
    magic, cpu, _, kind, count, _, _, _ = struct.unpack_from("<8I", data)
    if magic != _MAGIC or kind != _OBJECT:
        raise ValueError(f"magic {magic:#x}, type {kind}")
    platform = code = 0
    names: dict[str, set[str]] = {"exported": set(), "private": set(), "weak": set()}
    names["undefined"] = set()
    offset = 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, offset)
        if command == _SEGMENT_64:
            code += _code_bytes(data, offset)
        elif command == _BUILD_VERSION:
            (platform,) = struct.unpack_from("<I", data, offset + 8)
        elif command in _MIN_VERSIONS:
            platform = _MIN_VERSIONS[command]
        elif command == _SYMTAB:
            _read_symbols(data, offset, names)
        offset += size
    return MachObject(
        cpu,
        platform,
        frozenset(names["exported"]),
        frozenset(names["private"]),
        frozenset(names["weak"]),
        frozenset(names["undefined"]),
        code,
    )


def _code_bytes(data: bytes, command: int) -> int:
    (sections,) = struct.unpack_from("<I", data, command + 64)
    total = 0
    for i in range(sections):
        section = command + 72 + 80 * i
        (size,) = struct.unpack_from("<Q", data, section + 40)
        (flags,) = struct.unpack_from("<I", data, section + 64)
        total += size if flags & _PURE_CODE else 0
    return total


def _read_symbols(data: bytes, command: int, names: dict[str, set[str]]) -> None:
    table, count, strings, size = struct.unpack_from("<4I", data, command + 8)
    text = data[strings : strings + size]
    for i in range(count):
        index, kind, _, description, _ = struct.unpack_from("<IBBHQ", data, table + 16 * i)
        if kind & _STAB or not kind & _EXTERNAL:
            continue
        name = text[index : text.index(b"\0", index)].decode()
        if kind & _TYPE == 0:
            names["undefined"].add(name)
        elif description & _WEAK_DEFINITION:
            names["weak"].add(name)
        else:
            names["private" if kind & _PRIVATE else "exported"].add(name)
