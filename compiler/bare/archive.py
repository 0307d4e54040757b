"""Static archives for firmware: stage objects, generated C and weights, checked.

Nothing is linked before the firmware is. An archive defines names with the model's prefix only and
takes nothing from outside but copies of memory and the helper functions that every compiler for its
processor brings along (libgcc, compiler-rt).
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from elftools.elf.elffile import ELFFile

from effc import elf, zig
from effc.bare.codegen import (
    MemorySizes,
    bare_header,
    bare_source,
    bare_symbols,
    weights_source,
)
from effc.bare.stack import frames_of, stack_bound
from effc.bare.toolchain import compile_source
from effc.devices.target import Target
from effc.errors import InternalError, UnsupportedError
from effc.link import LinkReport
from effc.program import Program

__all__ = ["link_bare", "loaded_bytes", "stack_bytes", "write_bare_sources"]

_MEMORY_FUNCTIONS = frozenset({"memcpy", "memset", "memmove"})
# Run-time ABI for the Arm architecture, 4; libgcc's integer and soft-float routines elsewhere.
_HELPERS = {
    "thumb": re.compile(r"__aeabi_\w+|__gnu_thumb1_case_\w+"),
    "riscv32": re.compile(r"__(u?div|u?mod|mul|ashl|ashr|lshr|clz|ctz)[ds]i[23]|__\w+[sd]f\w*"),
}
_WRITABLE, _ALLOC, _EXECUTABLE = 1, 2, 4
_LOADED = ("SHT_PROGBITS", "SHT_NOBITS", "SHT_ARM_EXIDX")


def link_bare(program: Program, objects: Sequence[bytes], target: Target, out: Path) -> LinkReport:
    """Make a static archive and check it.

    Args:
        program: What ``run`` does, with the weights.
        objects: ELF objects that define the stage functions.
        target: A microcontroller.
        out: File to write.

    Returns:
        Sizes, and the header, which says them.

    Raises:
        ToolError: The toolchain is missing or failed.
        UnsupportedError: Layers need functions of a C library.
        InternalError: An object is for another machine, or breaks a rule.
    """
    with tempfile.TemporaryDirectory(prefix="effc-link-") as folder:
        work = Path(folder)
        sources = write_bare_sources(program, work)
        members = []
        for source in sources:
            members.append(work / f"{source.stem}.o")
            compile_source(source, target, members[-1])
        for number, data in enumerate(objects):
            members.append(work / f"{program.name}_stages_{number}.o")
            members[-1].write_bytes(data)
        contents = [member.read_bytes() for member in members]
        for data in contents:
            elf.check_object(data, target)
        undefined = _check_names(program, members, target)
        command = [str(zig.zig_path()), "ar", "--format=gnu", "rcsD", "archive.a"]
        zig.run_tool([*command, *(member.name for member in members)], cwd=work)
        (work / "archive.a").replace(out)
    code, constants = loaded_bytes(contents)
    sizes = MemorySizes(code, constants, stack_bytes(program, contents))
    return LinkReport(
        path=out,
        library_bytes=out.stat().st_size,
        code_bytes=code,
        runtime_bytes=0,
        weights_bytes=program.weights.nbytes,
        needed=(),
        undefined=tuple(sorted(undefined)),
        page_bytes=0,
        flash_bytes=code + constants,
        stack_bytes=sizes.stack,
        headers={f"{program.name}.h": bare_header(program, sizes)},
    )


def write_bare_sources(program: Program, work: Path) -> list[Path]:
    """Write the generated files into ``work``; those of them that are compiled.

    The header has no sizes yet: code does not depend on them.
    """
    name, weights = program.name, f"{program.name}.weights"
    (work / f"{name}.h").write_text(bare_header(program, MemorySizes(0, 0, 0)), "utf-8")
    (work / weights).write_bytes(program.weights.data)
    sources = {
        f"{name}.c": bare_source(program),
        f"{name}_weights.S": weights_source(program, weights),
    }
    for file, text in sources.items():
        (work / file).write_text(text, "utf-8")
    return [work / file for file in sources]


def _check_names(program: Program, members: Sequence[Path], target: Target) -> set[str]:
    """Check all names; the functions that the archive takes from elsewhere.

    Raises:
        InternalError: Two models could clash.
        UnsupportedError: A function is not the compiler's; names the layers.
    """
    tables = [elf.object_symbols(member) for member in members]
    defined = set().union(*(table[0] for table in tables))
    used = set().union(*(table[1] for table in tables)) - defined
    helpers = _HELPERS[target.arch]
    stray = {name for name in defined if not name.startswith(f"{program.name}_")}
    missing = set(bare_symbols(program)) - defined
    if stray or missing:
        raise InternalError(
            "an archive for firmware breaks a rule",
            where=program.name,
            got=f"without the prefix: {sorted(stray)}; not defined: {sorted(missing)}",
        )
    unknown = {n for n in used if n not in _MEMORY_FUNCTIONS and not helpers.fullmatch(n)}
    if unknown:
        raise UnsupportedError(
            "layers need functions of a C library that firmware may not have",
            where=target.name,
            got="\n  " + "\n  ".join(_callers(program, members, unknown)),
            hint="rewrite these nodes, or run them outside of the compiled part of the model",
        )
    return used


def _callers(program: Program, members: Sequence[Path], functions: set[str]) -> list[str]:
    """Which layers call functions, one sentence each."""
    frames = frames_of([member.read_bytes() for member in members])
    found = {}
    for call in program.calls:
        names = frames[call.symbol].calls & functions if call.symbol in frames else set()
        if names:
            nodes = ", ".join(call.nodes)
            found[call.region] = f"{call.region} (nodes {nodes}): {', '.join(sorted(names))}"
    return list(found.values()) or sorted(functions)


def loaded_bytes(contents: Sequence[bytes]) -> tuple[int, int]:
    """Bytes of code, and of constants with the weights.

    Raises:
        InternalError: There is writable data.
    """
    code = constants = 0
    for data in contents:
        for section in ELFFile(io.BytesIO(data)).iter_sections():
            flags = section["sh_flags"]
            if not flags & _ALLOC or section["sh_type"] not in _LOADED:
                continue
            if flags & _WRITABLE and section["sh_size"]:
                raise InternalError("the library has variables", where=section.name)
            if flags & _EXECUTABLE:
                code += section["sh_size"]
            else:
                constants += section["sh_size"]
    return code, constants


def stack_bytes(program: Program, contents: Sequence[bytes], weights: Iterable[str] = ()) -> int:
    """Stack of one run, at most.

    Args:
        program: What ``run`` does.
        contents: Objects of the library.
        weights: Names of its arrays of weights, if there is more than one.
    """
    data = frozenset({f"{program.name}_weights", *weights})
    return stack_bound(frames_of(contents), f"{program.name}_run", data)
