"""What a finished library must look like, checked on every build with pyelftools.

Phones with 16 kB pages refuse segments aligned to less, Android refuses text
relocations, and a symbol that the minimum API level lacks fails only when the app
starts: so all of it is checked here, after the linker, on the file itself.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from effc.devices.target import Target
from effc.errors import InternalError

__all__ = ["ElfReport", "check_library", "check_object", "loaded_bytes", "object_symbols"]

PAGE_BYTES = 16384
_MACHINES = {
    "x86_64": "EM_X86_64",
    "aarch64": "EM_AARCH64",
    "arm": "EM_ARM",
    "thumb": "EM_ARM",
    "riscv32": "EM_RISCV",
}
_SHF_ALLOC, _SHF_EXECINSTR = 2, 4


@dataclass(frozen=True)
class ElfReport:
    """Facts of a checked library.

    Attributes:
        file_bytes: Size of the file.
        code_bytes: Executable sections.
        needed: Libraries it asks for.
        undefined: Functions it takes from them.
        exported: Functions it offers.
        page_bytes: Smallest alignment of a loadable segment.
    """

    file_bytes: int
    code_bytes: int
    needed: tuple[str, ...]
    undefined: tuple[str, ...]
    exported: tuple[str, ...]
    page_bytes: int


def check_library(
    path: Path,
    target: Target,
    *,
    exported: Iterable[str],
    needed: Iterable[str],
    known: Iterable[str],
) -> ElfReport:
    """Check a shared library against the rules of its target.

    Args:
        path: The linked file.
        target: What it was linked for.
        exported: The only symbols it may export; all must be there.
        needed: The only libraries it may depend on.
        known: The only functions it may take from them.

    Raises:
        InternalError: A rule is broken; all broken rules are listed.
    """
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        dynamic = elf.get_section_by_name(".dynamic")
        tags = list(dynamic.iter_tags()) if isinstance(dynamic, DynamicSection) else []
        found_needed = tuple(sorted(t.needed for t in tags if t.entry.d_tag == "DT_NEEDED"))
        defined, undefined = _symbols(elf, ".dynsym")
        alignments = [s["p_align"] for s in elf.iter_segments("PT_LOAD")]
        problems = [
            *_header_problems(elf, target),
            *_segment_problems(elf),
            *_list_problems("needs libraries", set(found_needed) - set(needed)),
            *_list_problems("exports", defined - set(exported)),
            *_list_problems("does not export", set(exported) - defined),
            *_list_problems("calls functions that the system may lack", undefined - set(known)),
        ]
        if any(_is_textrel(t) for t in tags):
            problems.append("has text relocations")
        report = ElfReport(
            file_bytes=path.stat().st_size,
            code_bytes=_executable_bytes(elf),
            needed=found_needed,
            undefined=tuple(sorted(undefined)),
            exported=tuple(sorted(defined)),
            page_bytes=min(alignments, default=0),
        )
    if problems:
        raise InternalError(
            "the linked library breaks a rule of its target",
            where=f"{path.name} for {target.name}",
            got="; ".join(problems),
        )
    return report


def object_symbols(path: Path) -> tuple[set[str], set[str]]:
    """Global symbols of an object file: those it defines, and those it uses from others."""
    with path.open("rb") as stream:
        return _symbols(ELFFile(stream), ".symtab")


def loaded_bytes(path: Path) -> int:
    """Bytes of an object that end up in memory: code and data, no relocations."""
    with path.open("rb") as stream:
        return sum(
            section["sh_size"]
            for section in ELFFile(stream).iter_sections()
            if section["sh_flags"] & _SHF_ALLOC
        )


def check_object(data: bytes | Path, target: Target) -> None:
    """Check that a stage object is an ELF object for the target's machine.

    Raises:
        InternalError: It is not.
    """
    stream = io.BytesIO(data if isinstance(data, bytes) else data.read_bytes())
    try:
        machine = ELFFile(stream)["e_machine"]
    except ELFError as error:
        raise InternalError("a stage object is not ELF", got=error) from error
    if machine != _MACHINES.get(target.arch):
        raise InternalError(
            "a stage object is for another machine",
            expected=_MACHINES.get(target.arch),
            got=machine,
        )


def _symbols(elf: ELFFile, section: str) -> tuple[set[str], set[str]]:
    """Global symbols of a symbol table: defined and undefined ones."""
    defined: set[str] = set()
    undefined: set[str] = set()
    table = elf.get_section_by_name(section)
    if isinstance(table, SymbolTableSection):
        for symbol in table.iter_symbols():
            if symbol.name and symbol["st_info"]["bind"] != "STB_LOCAL":
                outside = symbol["st_shndx"] == "SHN_UNDEF"
                (undefined if outside else defined).add(symbol.name)
    return defined, undefined


def _is_textrel(tag: object) -> bool:
    entry = tag.entry  # type: ignore[attr-defined]
    return entry.d_tag == "DT_TEXTREL" or (entry.d_tag == "DT_FLAGS" and bool(entry.d_val & 4))


def _header_problems(elf: ELFFile, target: Target) -> Iterable[str]:
    if elf["e_machine"] != _MACHINES.get(target.arch):
        yield f"is for {elf['e_machine']}"
    if elf["e_type"] != "ET_DYN":
        yield f"is of type {elf['e_type']}"
    if elf.get_section_by_name(".symtab") is not None:
        yield "is not stripped"
    if any(section.name.startswith(".debug") for section in elf.iter_sections()):
        yield "holds debug information"


def _segment_problems(elf: ELFFile) -> Iterable[str]:
    page = PAGE_BYTES if elf.elfclass == 64 else 4096
    for segment in elf.iter_segments():
        kind, flags = segment["p_type"], segment["p_flags"]
        if kind == "PT_LOAD":
            align = segment["p_align"]
            if align % page:
                yield f"has a segment aligned to {align} bytes, not {page}"
            elif segment["p_offset"] % align != segment["p_vaddr"] % align:
                yield "has a segment whose file offset does not fit its address"
            if flags & 1 and flags & 2:
                yield "has a segment that is writable and executable"
        elif kind == "PT_GNU_STACK" and flags & 1:
            yield "asks for an executable stack"
        elif kind == "PT_GNU_RELRO" and (segment["p_vaddr"] + segment["p_memsz"]) % page:
            yield "has a read-only-after-relocation part that ends within a page"
    if not any(s["p_type"] == "PT_GNU_STACK" for s in elf.iter_segments()):
        yield "does not forbid an executable stack"


def _list_problems(what: str, names: set[str]) -> Iterable[str]:
    if names:
        yield f"{what} {', '.join(sorted(names))}"


def _executable_bytes(elf: ELFFile) -> int:
    wanted = _SHF_ALLOC | _SHF_EXECINSTR
    return sum(
        section["sh_size"]
        for section in elf.iter_sections()
        if section["sh_flags"] & wanted == wanted and section["sh_type"] == "SHT_PROGBITS"
    )
