"""Clang for microcontrollers: C, assembly and LLVM's IR to objects of one function per section.

TVM hands over unoptimized IR instead of object code: only Clang writes the stack frame of every
function into the object (``.stack_sizes``), and says in attributes what LLVM optimizes for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from effc import zig
from effc.bare.rounding import replace_rounding
from effc.bare.unordered import replace_nan_tests
from effc.devices.target import Target

__all__ = ["assemble_ir", "compile_source", "machine_flags", "zig_flags"]

_C_FLAGS = (
    "-std=c11",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fno-ident",
    "-Wall",
    "-Wextra",
    "-Werror",
)
_OBJECT_FLAGS = ("-ffunction-sections", "-fdata-sections", "-fstack-size-section")
_LEVELS = {
    "size": ("-Oz",),
    "balanced": ("-O2", "-fno-unroll-loops"),  # kernels say themselves what is worth it
    "speed": ("-O2",),
}
_ATTRIBUTES = {"size": "minsize optsize ", "balanced": "", "speed": ""}
_MARCH = {"riscv32": ("-march=rv32imc", "-mabi=ilp32")}
_ZIG_CPU = {"riscv32": "-mcpu=generic_rv32+m+c"}


def machine_flags(target: Target) -> tuple[str, ...]:
    """What tells Clang the processor."""
    machine = _MARCH.get(target.arch, (f"-mcpu={target.cpu}",))
    # Plain names for copies of memory: C libraries of RISC-V and Arm have them, and firmware
    # without a C library need not define another set. Enumerations as arm-none-eabi-gcc has them.
    thumb = ("-Xclang", "-meabi", "-Xclang", "gnu", "-fshort-enums")
    plain = thumb if target.arch == "thumb" else ()
    return (f"--target={target.clang_target}", *machine, *plain)


def zig_flags(target: Target) -> tuple[str, ...]:
    """What tells zig's own compiler the processor."""
    return (_ZIG_CPU.get(target.arch, f"-mcpu={target.cpu.replace('-', '_')}"),)


def compile_source(
    source: Path, target: Target, out: Path, flags: Sequence[str] = (), level: str | None = None
) -> None:
    """Compile a C or assembly file.

    Args:
        source: The file.
        target: What for.
        out: Object to write.
        flags: More of them.
        level: ``-O...``, by default as the target is optimized.

    Raises:
        ToolError: The toolchain is missing or failed.
    """
    language = () if source.suffix == ".S" else (*_C_FLAGS, *_OBJECT_FLAGS)
    optimize = (level,) if level else _LEVELS[target.optimize]
    command = [*machine_flags(target), *optimize, *language, *flags]
    zig.clang([*command, "-c", source.name, "-o", str(out)], cwd=source.parent)


def assemble_ir(ir: str, target: Target) -> bytes:
    """Compile TVM's LLVM IR.

    Args:
        ir: A module in LLVM's text form.
        target: What for.

    Raises:
        ToolError: The toolchain is missing or failed.
    """
    with tempfile.TemporaryDirectory(prefix="effc-ir-") as folder:
        source, out = Path(folder) / "stages.ll", Path(folder) / "stages.o"
        source.write_text(_prepared(ir, target), "utf-8")
        command = [*machine_flags(target), *_LEVELS[target.optimize], *_OBJECT_FLAGS]
        warnings = ("-Wno-override-module", "-fno-ident")
        zig.clang([*command, *warnings, "-c", "stages.ll", "-o", "stages.o"], cwd=source.parent)
        return out.read_bytes()


def _prepared(ir: str, target: Target) -> str:
    """The module without debug information, with what to optimize for.

    TVM adds conversions of half precision to every module; as internal functions they go away
    where nothing calls them.
    """
    ir = ir.replace("emissionKind: FullDebug", "emissionKind: NoDebug")
    ir = re.sub(r"^define weak dso_local ", "define internal ", ir, flags=re.MULTILINE)
    if not target.has("fp-armv8d16sp"):
        ir = replace_rounding(ir)
    if target.has("mve"):
        ir = replace_nan_tests(ir)
    attributes = _ATTRIBUTES[target.optimize]
    return re.sub(r"^(attributes #\d+ = \{ )", rf"\1{attributes}", ir, flags=re.MULTILINE)
