"""The program that an emulated board runs: start-up code, monitor, and a library for firmware.

The library is the finished archive. Memory of the model lies between guards; sizes come from the
manifest, as everything that the host must know.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from effc import zig
from effc.bare.codegen import ALIGNMENT
from effc.bare.toolchain import compile_source, machine_flags, zig_flags
from effc.devices.emulated import Board, get_board
from effc.devices.target import Target
from effc.errors import DeviceError, ToolError
from effc.memory_plan import align_up
from effc.musl import compiler_rt
from effc.samples import numpy_dtype

__all__ = ["link_monitor", "linker_script", "model_source", "monitor_sources"]

_GUARD_BYTES = 64
_STACK_BYTES = 128 << 10
_EMULATIONS = {"thumb": "armelf", "riscv32": "elf32lriscv"}
_START = {"thumb": "arm_m.c", "riscv32": "riscv.c"}
_HEADERS = ("monitor.h", "port.h")


def link_monitor(
    library: Path,
    manifest: Mapping[str, Any],
    target: Target,
    out: Path,
    wire: str = "semihosting.c",
) -> Board:
    """Link the program for the board that emulates a target.

    Args:
        library: Archive to run.
        manifest: Its manifest.
        target: What it is for.
        out: Executable to write.
        wire: Source of the board's end of the wire.

    Returns:
        The board.

    Raises:
        ToolError: The toolchain is missing or failed.
        DeviceError: Nothing emulates the target, or the model does not fit the board.
    """
    if not target.machine:
        raise DeviceError("nothing here emulates this processor", where=target.name)
    board = get_board(target.machine)
    runtime = _runtime_objects(target, board, wire)
    with tempfile.TemporaryDirectory(prefix="effc-link-") as folder:
        work = Path(folder)
        (work / "model.c").write_text(model_source(manifest))
        includes = [f"-I{_folder()}"]
        compile_source(work / "model.c", target, work / "model.o", includes, "-Os")
        script = work / "board.ld"
        script.write_text(linker_script(board))
        try:
            zig.lld(
                [
                    *(
                        "-m",
                        _EMULATIONS[target.arch],
                        "-static",
                        "--gc-sections",
                        "--build-id=none",
                    ),
                    *("-T", str(script), "--no-warn-mismatch"),
                    *map(str, (*runtime, work / "model.o", library.absolute())),
                    *("--start-lib", str(compiler_rt(target, zig_flags(target))), "--end-lib"),
                ],
                out.absolute(),
            )
        except ToolError as error:
            if "will not fit in region" in str(error):
                raise DeviceError(
                    "the model does not fit the emulated board",
                    where=board.machine,
                    expected=f"program and weights up to {board.code.length} bytes, memory up to "
                    f"{board.data.length} bytes",
                ) from error
            raise
    return board


def _folder() -> Path:
    return Path(str(resources.files("effc.runtimes"))) / "bare"


def monitor_sources(target: Target, wire: str) -> dict[str, str]:
    """Start-up code and monitor for a processor, text by file name."""
    names = ("monitor.c", wire, _START[target.arch], *_HEADERS)
    return {name: (_folder() / name).read_text("utf-8") for name in names}


def _runtime_objects(target: Target, board: Board, wire: str) -> list[Path]:
    """Start-up code and monitor, compiled once per kind of processor."""
    texts = monitor_sources(target, wire)
    names = [name for name in texts if name.endswith(".c")]
    flags = ["-DEFFC_STRICT_ALIGNMENT"] if board.strict else []

    def build(folder: Path) -> None:
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
        for name in names:
            compile_source(folder / name, target, folder / f"{Path(name).stem}.o", flags, "-Os")

    key = ("monitor", *machine_flags(target), *flags, *texts.values())
    folder = zig.cached(key, build)
    return [folder / f"{Path(name).stem}.o" for name in names]


def model_source(manifest: Mapping[str, Any]) -> str:
    """C source of ``monitor_the_model``, see monitor.h."""
    name = manifest["name"]
    ports = (*manifest["inputs"], *manifest["outputs"])
    sizes = [(int(port["bytes"]), _alignment(port)) for port in ports]
    blocks, total = _blocks([*sizes, (int(manifest["arena_bytes"]), ALIGNMENT)])
    arguments = "const void *const *, void *const *, void *"
    entries = ", ".join(f"{{{offset}, {size}}}" for offset, size in blocks)
    return f"""\
#include "monitor.h"
int {name}_run({arguments});
int {name}_step(int, {arguments});
static uint8_t memory[{total}] __attribute__((aligned({_GUARD_BYTES})));
static const monitor_block blocks[] = {{{entries}}};
const monitor_model monitor_the_model = {{
    {name}_run, {name}_step, {len(manifest["inputs"])}, {len(manifest["outputs"])},
    {len(manifest["steps"])}, blocks, memory, {total},
}};
"""


def _alignment(port: Mapping[str, Any]) -> int:
    """What an input or output is promised: its element's, or what a test says (quads)."""
    return int(port.get("alignment") or numpy_dtype(port["dtype"]).itemsize)


def _blocks(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """Offset and bytes of each block, and the bytes of all of it with the guards.

    Args:
        sizes: Bytes and alignment of each block. None is aligned to more than that, so that
            code which counts on more faults or gives wrong results.
    """
    blocks, end = [], 0
    for size, alignment in sizes:
        offset = align_up(end + _GUARD_BYTES, 2 * alignment) + alignment
        blocks.append((offset, size))
        end = offset + size
    return blocks, end + _GUARD_BYTES


def linker_script(board: Board) -> str:
    """Stack lowest, so that what overflows it faults instead of damaging anything."""
    return f"""\
MEMORY {{
    code (rx) : ORIGIN = {board.code.origin:#x}, LENGTH = {board.code.length:#x}
    data (rw) : ORIGIN = {board.data.origin:#x}, LENGTH = {board.data.length:#x}
}}
SECTIONS {{
    .text : {{ KEEP(*(.vectors)) *(.text .text.*) *(.rodata .rodata.*) }} > code
    .stack (NOLOAD) : {{
        port_stack_low = .;
        . += {_STACK_BYTES:#x};
        port_stack_high = .;
    }} > data
    .data : {{ *(.data .data.*) }} > data
    .bss (NOLOAD) : {{ *(.bss .bss.* COMMON) }} > data
    /DISCARD/ : {{ *(.ARM.exidx* .ARM.extab* .comment .note* .eh_frame) }}
}}
"""
