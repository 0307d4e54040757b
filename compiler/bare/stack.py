"""The stack of one inference, from the compiler's own figures.

Clang writes the frame of every function into ``.stack_sizes`` (address, then bytes as ULEB128; LLVM
documentation, "Emitting function stack size information"); relocations of code name whom
a function calls. The bound is the deepest path of calls. Nothing of effc recurses or calls through
pointers. Functions outside of the archive (``memcpy``, compiler helpers) count with an allowance.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from effc.errors import InternalError

__all__ = ["OUTSIDE_BYTES", "Frame", "frames_of", "stack_bound"]

OUTSIDE_BYTES = 128
"""Allowed to a function outside of the archive; those of libgcc, compiler-rt, newlib and picolibc
that compilers call need less."""

_CALL_ALIGNMENT = 8
_EXECUTABLE = 4


@dataclass
class Frame:
    """A function: bytes of stack that it takes itself, and names of what it calls."""

    nbytes: int
    calls: set[str] = field(default_factory=set)


def frames_of(objects: Sequence[bytes]) -> dict[str, Frame]:
    """Functions of relocatable objects, each in a section of its own, by name.

    Raises:
        InternalError: A function has no recorded frame.
    """
    frames: dict[str, Frame] = {}
    for data in objects:
        elf = ELFFile(io.BytesIO(data))
        frames |= _frames(elf)
    return frames


def _frames(elf: ELFFile) -> dict[str, Frame]:
    table = elf.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    sections = {
        symbol["st_shndx"]: symbol.name
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] == "STT_FUNC"
    }
    frames = {name: Frame(-1) for name in sections.values()}
    for section in elf.iter_sections():
        if section.name == ".stack_sizes":
            owner = sections.get(section["sh_link"])
            if owner is not None:
                frames[owner].nbytes = _uleb128(section.data(), elf.elfclass // 8)
        elif isinstance(section, RelocationSection) and section["sh_info"] in sections:
            target = elf.get_section(section["sh_info"])
            if target["sh_flags"] & _EXECUTABLE:
                frames[sections[section["sh_info"]]].calls |= _called(elf, table, section, sections)
    missing = [name for name, frame in frames.items() if frame.nbytes < 0]
    if missing:
        raise InternalError("the compiler recorded no stack frame", where=", ".join(missing))
    return frames


def _called(
    elf: ELFFile,
    table: SymbolTableSection,
    relocations: RelocationSection,
    sections: Mapping[int, str],
) -> set[str]:
    """Functions that the relocations of one function name, those outside of the object too."""
    called = set()
    for relocation in relocations.iter_relocations():
        symbol = table.get_symbol(relocation["r_info_sym"])
        place = symbol["st_shndx"]
        if place == "SHN_UNDEF":
            called.add(symbol.name)
        elif place in sections and place != relocations["sh_info"]:
            called.add(sections[place])
    return called - {""}


def _uleb128(data: bytes, start: int) -> int:
    value = shift = 0
    for byte in data[start:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value
    raise InternalError("a stack size is cut off", got=data.hex())


def stack_bound(frames: Mapping[str, Frame], root: str, data: frozenset[str]) -> int:
    """Bytes of stack that a call of ``root`` needs at most.

    Args:
        frames: All functions of the archive.
        root: Whom firmware calls.
        data: Names of the archive that are no functions.

    Raises:
        InternalError: A function calls itself, directly or not.
    """

    @cache
    def deepest(name: str) -> int:
        if name not in frames:
            return OUTSIDE_BYTES
        inner = [depth(callee) for callee in frames[name].calls - data]
        own = -(-frames[name].nbytes // _CALL_ALIGNMENT) * _CALL_ALIGNMENT
        return own + max(inner, default=0)

    path: list[str] = []

    def depth(name: str) -> int:
        if name in path:
            raise InternalError("a function calls itself", where=name)
        path.append(name)
        found = deepest(name)
        path.pop()
        return found

    return depth(root)
